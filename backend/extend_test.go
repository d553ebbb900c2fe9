// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"testing"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// A target that moves the end of keys is not called where the key outlives its lease anyway.
func TestRenewMovesNoEndNeedlessly(t *testing.T) {
	w := newWorld(t)
	lease := w.issue("deploy")
	if reason, _ := reasonOf(w.lease(logical.RenewOperation, lease)); reason != "" || w.keys.Calls(lab.OpExtend) != 0 {
		t.Errorf("%q after %d calls", reason, w.keys.Calls(lab.OpExtend))
	}
}
