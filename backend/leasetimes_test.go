// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// askedView counts how often Vault is asked for lease times.
type askedView struct {
	logical.SystemView
	asked atomic.Int64
}

func (v *askedView) DefaultLeaseTTL() time.Duration {
	v.asked.Add(1)
	return v.SystemView.DefaultLeaseTTL()
}

func (v *askedView) MaxLeaseTTL() time.Duration {
	v.asked.Add(1)
	return v.SystemView.MaxLeaseTTL()
}

// Vault is asked for the mount's lease times now and then and not for each key, and a change of them holds after a moment.
func TestLeaseTimesAreAskedNowAndThen(t *testing.T) {
	w := newWorld(t)
	view := &askedView{SystemView: w.system}
	if err := w.Setup(t.Context(), &logical.BackendConfig{System: view, StorageView: w.store}); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		resp := w.issue("deploy")
		if resp.Secret.MaxTTL != 2*time.Hour {
			t.Errorf("maximum %s; want the role's", resp.Secret.MaxTTL)
		}
		if renewed, err := w.lease(logical.RenewOperation, resp); err != nil || renewed.IsError() {
			t.Errorf("%v %v", renewed, err)
		}
	}
	if n := view.asked.Load(); n != 2 {
		t.Errorf("five keys and their renewals asked %d times for lease times; want 2", n)
	}
	w.system.MaxLeaseTTLVal = 30 * time.Minute
	w.clock.advance(leaseTimesAge)
	if resp := w.issue("deploy"); resp.Secret.MaxTTL != 30*time.Minute {
		t.Errorf("maximum %s after the mount's was changed", resp.Secret.MaxTTL)
	}
	w.clock.advance(-time.Minute) // a clock that was set back does not keep an answer for ever
	w.system.MaxLeaseTTLVal = 20 * time.Minute
	if resp := w.issue("deploy"); resp.Secret.MaxTTL != 20*time.Minute {
		t.Errorf("maximum %s after the clock was set back", resp.Secret.MaxTTL)
	}
}
