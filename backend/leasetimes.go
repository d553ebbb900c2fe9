// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// leaseTimesAge is for how long what Vault said of the mount's lease times is used.
const leaseTimesAge = 10 * time.Second

// leaseTimes are the mount's default and maximum for leases. Asking Vault is a call to another process, and each key takes
// three; so an answer is used for a moment. A lease is safe from that: Vault itself holds it to the mount's maximum as it is.
type leaseTimes struct {
	mu     sync.Mutex
	cached *logical.StaticSystemView
	at     time.Time
}

// of returns a view that knows the lease times, and nothing else.
func (l *leaseTimes) of(system logical.SystemView, now time.Time) logical.SystemView {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cached == nil || now.Sub(l.at) >= leaseTimesAge || now.Before(l.at) {
		l.cached, l.at = &logical.StaticSystemView{DefaultLeaseTTLVal: system.DefaultLeaseTTL(), MaxLeaseTTLVal: system.MaxLeaseTTL()}, now
	}
	return l.cached
}
