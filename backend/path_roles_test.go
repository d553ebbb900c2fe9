// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"strings"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"
)

// A target that was narrowed no longer takes a role's parameters, but its keys are renewed as long as the role is on.
func TestRoleIsSwitchedOffWhateverItsTarget(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	resp := w.issue("deploy")
	w.write("targets/acme", map[string]any{"condition": "params.project == 'other'"})
	w.refused("roles/deploy", map[string]any{"description": "still on"}, "condition")
	if renewed, err := w.lease(logical.RenewOperation, resp); err != nil {
		t.Fatal(renewed, err)
	}
	w.write("roles/deploy", map[string]any{"enabled": false})
	if reason, _ := reasonOf(w.lease(logical.RenewOperation, resp)); reason != reasonDisabled {
		t.Errorf("renewing: %q; want %s", reason, reasonDisabled)
	}
	w.refused("roles/deploy", map[string]any{"enabled": true}, "condition")
	w.refused("roles/new", map[string]any{"enabled": false, "trust": "main", "target": "acme", "parameters": "project=x"}, "condition")
}

// A warning says what will happen.
func TestWarningsOfWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withNuGet()
	for _, c := range []struct {
		path string
		data map[string]any
		want string
	}{
		{"roles/publish", nil, "lives until it expires"},
		{"roles/publish", map[string]any{"require_revocable": true}, "issuing is refused, as require_revocable demands"},
		{"targets/acme", map[string]any{"request_timeout": "21s"}, "request_timeout is above config's of 20s"},
		{"targets/acme", map[string]any{"request_timeout": "20s"}, ""},
	} {
		resp := w.write(c.path, c.data)
		var got []string
		if resp != nil {
			got = resp.Warnings
		}
		if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
			t.Errorf("%s %v warns %q; want %q", c.path, c.data, got, c.want)
		}
	}
}
