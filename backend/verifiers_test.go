// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"testing"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// While an issuer's server is down, an edit loses its keys only if other keys may be wanted after it.
func TestKeysSurviveAnEdit(t *testing.T) {
	config := func(field string, value any) func(*world) {
		return func(w *world) { w.write("config", map[string]any{field: value}) }
	}
	github := func(field string, value any) func(*world) {
		return func(w *world) { w.write("issuers/github", map[string]any{field: value}) }
	}
	const kept, lost = "", identity.IssuerUnavailable
	for name, c := range map[string]struct {
		edit func(*world)
		want string
	}{
		"description":        {github("description", "those of GitHub"), kept},
		"custom_metadata":    {github("custom_metadata", "team=red"), kept},
		"off and on":         {func(w *world) { github("enabled", false)(w); github("enabled", true)(w) }, kept},
		"jwt_supported_algs": {github("jwt_supported_algs", "ES256"), kept},
		"max_age":            {github("max_age", "30m"), kept},
		"single_use":         {github("single_use", false), kept},
		"another issuer":     {func(w *world) { w.write("issuers/people", map[string]any{"description": "staff"}) }, kept},
		"sweep_grace":        {config("sweep_grace", "5m"), kept},
		"jwks_max_stale":     {config("jwks_max_stale", "2h"), kept},
		"max_token_bytes":    {config("max_token_bytes", 8192), kept},
		"ca_pem":             {func(w *world) { github("ca_pem", w.ca+lab.NewAuthority().PEM())(w) }, lost},
		"jwks_hosts":         {github("jwks_hosts", "keys.example.com"), lost},
		"proxy_url":          {github("proxy_url", "https://proxy.example"), lost},
		"jwks_url": {func(w *world) {
			w.write("issuers/github", map[string]any{"oidc_discovery_url": "", "jwks_url": w.issuerURL + "/jwks"})
		}, lost},
		"max_jwks_bytes": {config("max_jwks_bytes", 8192), lost},
		"allow_private":  {config("allow_private", "127.0.0.0/8,10.0.0.0/8"), lost},
		"forbidden for a while": {func(w *world) {
			config("egress_hosts", "other.example")(w)
			w.read("status")
			config("egress_hosts", "")(w)
		}, lost},
		"made anew": {func(w *world) {
			github("description", "read")(w)
			w.write("roles/deploy", map[string]any{"trust": "alice"})
			w.delete("trust/main", nil)
			w.delete("issuers/github", nil)
			w.write("issuers/github", map[string]any{"oidc_discovery_url": w.issuerURL, "ca_pem": w.ca, "description": "read"})
			w.write("trust/main", map[string]any{"issuer": "github", "bound_audiences": audience, "bound_claims": map[string]any{"repository": "acme/widget"}})
			w.write("roles/deploy", map[string]any{"trust": "main"})
		}, lost},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.issue("deploy")
			w.issuer.Fault(lab.OpAny, lab.Fault{Kind: lab.KindStatus, Status: 500})
			c.edit(w)
			if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != c.want {
				t.Errorf("%q; want %q", reason, c.want)
			}
		})
	}
}

// A node that another one tells of a write knows its path alone.
func TestKeysSurviveAWriteElsewhere(t *testing.T) {
	w := newWorld(t)
	w.issue("deploy")
	w.issuer.Fault(lab.OpAny, lab.Fault{Kind: lab.KindStatus, Status: 500})
	for _, path := range []string{"config", "issuers/github"} {
		w.InvalidateKey(t.Context(), path)
		if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != "" {
			t.Errorf("%s: %q", path, reason)
		}
	}
}

// No edit brings back the keys that refresh has dropped.
func TestRefreshedKeysStayDropped(t *testing.T) {
	w := newWorld(t)
	w.issue("deploy")
	w.issuer.Fault(lab.OpAny, lab.Fault{Kind: lab.KindStatus, Status: 500})
	w.write("issuers/github", map[string]any{"description": "leaked its key"})
	if reason, _ := reasonOf(w.do(logical.UpdateOperation, "refresh/github", nil)); reason != identity.IssuerUnavailable {
		t.Fatalf("refresh: %q", reason)
	}
	w.write("issuers/github", map[string]any{"description": "had leaked its key"})
	if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != identity.IssuerUnavailable {
		t.Errorf("%q", reason)
	}
}
