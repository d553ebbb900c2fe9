// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/trust"
)

func TestExplain(t *testing.T) {
	w := newWorld(t)
	w.write("trust/main", map[string]any{"condition": `claims.ref == "refs/heads/main"`})
	w.write("roles/deploy", map[string]any{"lease_path": "claims.repository", "trust": "main"})
	sample := func(ref string) map[string]any {
		return map[string]any{"sub": "s", "aud": audience, "repository": "acme/widget", "repository_id": "7", "ref": ref}
	}
	for name, c := range map[string]struct {
		data   map[string]any
		reason string
		unmet  []string
	}{
		"token":                {map[string]any{"subject_token": w.token(nil)}, "", nil},
		"token with a line":    {map[string]any{"subject_token": w.token(nil) + "\n"}, "", nil},
		"token of a fork":      {map[string]any{"subject_token": w.token(map[string]any{"repository": "evil/widget", "ref": "x"})}, trust.NotTrusted, []string{"bound_claims.repository", "condition"}},
		"token of nobody":      {map[string]any{"subject_token": "rubbish"}, identity.TokenMalformed, nil},
		"sample":               {map[string]any{"issuer": "github", "claims": sample("refs/heads/main")}, "", nil},
		"sample of a branch":   {map[string]any{"issuer": "github", "claims": sample("refs/heads/x")}, trust.NotTrusted, []string{"condition"}},
		"login without policy": {map[string]any{}, reasonTokenRequired, nil},
	} {
		before := w.stored("")
		resp := w.write("explain/deploy", c.data)
		if got := resp.Data["reason"]; got != c.reason || resp.Data["accepted"] != (c.reason == "") {
			t.Errorf("%s: %v %v", name, got, resp.Data["detail"])
		}
		var unmet []string
		for _, p := range resp.Data["policies"].([]map[string]any) {
			for _, condition := range p["conditions"].([]map[string]any) {
				if condition["holds"] == false {
					unmet = append(unmet, condition["condition"].(string))
				}
			}
		}
		if diff := cmp.Diff(c.unmet, unmet); diff != "" {
			t.Errorf("%s: unmet (-want +got):\n%s", name, diff)
		}
		if c.reason == "" && (resp.Data["path"] != "creds/deploy/acme/widget" || !cmp.Equal(resp.Data["parameters"].(map[string]any)["project"], "widget")) {
			t.Errorf("%s: %v", name, resp.Data)
		}
		if ids, _ := resp.Data["ids"].(map[string]any); resp.Data["subject"] != nil && ids["repository_id"] == nil {
			t.Errorf("%s: the ids are missing: %v", name, ids)
		}
		if diff := cmp.Diff(before, w.stored("")); diff != "" || len(w.keys.Live()) != 0 {
			t.Errorf("%s: had side effects: %s", name, diff)
		}
	}
	w.refused("explain/deploy", map[string]any{"claims": sample("x"), "subject_token": "x"}, "claims")
	w.refused("explain/deploy", map[string]any{"claims": sample("x")}, "issuer")
	w.refused("explain/deploy", map[string]any{"issuer": "github"}, "issuer")
	w.refused("explain/deploy", map[string]any{"issuer": "github", "claims": map[string]any{"aud": audience}}, "claims")
	token := w.token(nil)
	w.write("explain/deploy", map[string]any{"subject_token": token})
	if reason, _ := reasonOf(w.exchange("deploy/acme/widget", token)); reason != "" {
		t.Errorf("explaining used the token up: %s", reason)
	}
	w.write("roles/deploy", map[string]any{"trust": "alice", "lease_path": `"x"`})
	if got := w.write("explain/deploy", nil).Data; got["accepted"] != true || got["subject"] != "alice" {
		t.Errorf("own login: %v", got)
	}
}
