// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"testing"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// A kill switch also stops who is on the way: keys of an issuer may take many seconds to come, and what is switched off
// meanwhile must not issue.
func TestSwitchedOffWhileKeysAreFetched(t *testing.T) {
	for name, c := range map[string]struct {
		path, want string
		data       map[string]any
	}{
		"nothing":       {"trust/alice", "", map[string]any{"description": "x"}},
		"config":        {"config", "", map[string]any{"sweep_grace": "4m"}},
		"policy":        {"trust/main", reasonDisabled, map[string]any{"enabled": false}},
		"policy's text": {"trust/main", reasonTrustChanged, map[string]any{"bound_claims": map[string]any{"repository": "acme/other"}}},
		"issuer":        {"issuers/github", reasonDisabled, map[string]any{"enabled": false}},
		"issuer's keys": {"issuers/github", reasonTrustChanged, map[string]any{"oidc_discovery_url": "", "jwks_url": "https://keys.example.com"}},
		"issuer's age":  {"issuers/github", reasonTrustChanged, map[string]any{"max_age": "1m"}},
		"issuer's text": {"issuers/github", "", map[string]any{"description": "x", "custom_metadata": "a=b"}},
		"role":          {"roles/deploy", reasonDisabled, map[string]any{"enabled": false}},
		"target":        {"targets/acme", reasonDisabled, map[string]any{"enabled": false}},
		"block":         {"blocks/b", reasonBlocked, map[string]any{"issuer": "github"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			token := w.token(nil)
			w.issuer.OnRequest(func(op string, stage lab.Stage) {
				if op == lab.OpJWKS && stage == lab.StageReceived {
					w.write(c.path, c.data)
				}
			})
			if got, _ := reasonOf(w.exchange("deploy", token)); got != c.want {
				t.Errorf("%q; want %q", got, c.want)
			}
			if made := len(w.keys.Live()); made != 0 && c.want != "" {
				t.Errorf("%d keys were made", made)
			}
			if used := w.stored(usedTokens + "token/"); len(used) != 0 && c.want != "" {
				t.Errorf("the token stays used: %v", used)
			}
		})
	}
}
