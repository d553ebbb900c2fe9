// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"fmt"
	"os"

	"github.com/hashicorp/vault/api"
)

// boundClaims are the claims that both the JWT auth method and the plugin's trust policies require of a token.
var boundClaims = map[string]any{"repository_id": "710042", "ref": "refs/heads/main"}

const audience = "bench"

const callerPolicy = `
path "oidcexchange/creds/*" { capabilities = ["read", "update"] }
path "null/creds/*" { capabilities = ["read", "update"] }
path "sys/leases/renew" { capabilities = ["update"] }
`

// writes makes writes to Vault in the given order.
func (w *world) writes(ctx context.Context, all ...write) error {
	for _, one := range all {
		if _, err := w.root.Logical().WriteWithContext(ctx, one.path, one.data); err != nil {
			return fmt.Errorf("writing %s: %w", one.path, err)
		}
	}
	return nil
}

type write struct {
	path string
	data map[string]any
}

// enableLogins lets a caller log in once by password, and a job log in with a token for each key: by one role it gets a
// service token, which is Vault's default, by the other a batch token, which takes no storage.
func (w *world) enableLogins(ctx context.Context, _ options) error {
	for _, method := range []string{"userpass", "jwt"} {
		if err := w.root.Sys().EnableAuthWithOptionsWithContext(ctx, method, &api.EnableAuthOptions{Type: method}); err != nil {
			return err
		}
	}
	if err := w.root.Sys().PutPolicyWithContext(ctx, "caller", callerPolicy); err != nil {
		return err
	}
	role := func(kind string) map[string]any {
		return map[string]any{"role_type": "jwt", "user_claim": "repository", "bound_audiences": audience, "bound_claims": boundClaims, "token_policies": "caller", "token_ttl": "20m", "token_type": kind}
	}
	err := w.writes(ctx,
		write{"auth/userpass/users/ana", map[string]any{"password": "a-long-password", "token_policies": "caller", "token_ttl": "2h"}},
		write{"auth/jwt/config", map[string]any{"oidc_discovery_url": w.issuers["rs"].URL(), "oidc_discovery_ca_pem": w.text("issuers.pem")}},
		write{"auth/jwt/role/service", role("service")}, write{"auth/jwt/role/batch", role("batch")},
	)
	if err != nil {
		return err
	}
	login, err := w.root.Logical().WriteWithContext(ctx, "auth/userpass/login/ana", map[string]any{"password": "a-long-password"})
	if err != nil {
		return err
	}
	w.caller = login.Auth.ClientToken
	return nil
}

func (w *world) configureNull(ctx context.Context, _ options) error {
	return w.writes(ctx, write{"null/config", map[string]any{"url": w.text("keyapi.url"), "token": w.text("keyapi.token"), "ca_pem": w.text("ca.pem")}})
}

func (w *world) configurePlugin(ctx context.Context, _ options) error {
	methods, err := w.root.Sys().ListAuthWithContext(ctx)
	if err != nil {
		return err
	}
	profile, err := os.ReadFile("bootstrap/targets/acme.yaml")
	if err != nil {
		return fmt.Errorf("run this from the root of the repository: %w", err)
	}
	at := func(path string) string { return "oidcexchange/" + path }
	role := func(trust string) map[string]any {
		return map[string]any{"trust": trust, "target": "acme", "parameters": map[string]any{"project": "bench"}, "ttl": "30m", "max_ttl": "1h"}
	}
	err = w.writes(ctx,
		write{at("config"), map[string]any{"allow_private": "127.0.0.0/8"}},
		write{at("targets/acme"), map[string]any{"driver": "http", "profile": string(profile), "url": w.text("keyapi.url"), "ca_pem": w.text("ca.pem"),
			"credential": map[string]any{"token": w.text("keyapi.token")}, "allowed_roles": "*"}},
		write{at("issuers/login"), map[string]any{"type": "login", "mount_accessor": methods["userpass/"].Accessor}},
		write{at("trust/login"), map[string]any{"issuer": "login", "bound_subject": "ana"}},
		write{at("roles/login"), role("login")},
	)
	for name, issuer := range w.issuers {
		if err != nil {
			return err
		}
		err = w.writes(ctx,
			write{at("issuers/" + name), map[string]any{"oidc_discovery_url": issuer.URL(), "ca_pem": w.text("issuers.pem"), "single_use": name == "rs-once" || name == "es-once", "verify": true}},
			write{at("trust/" + name), map[string]any{"issuer": name, "bound_audiences": audience, "bound_claims": boundClaims}},
			write{at("roles/" + name), role(name)},
		)
	}
	return err
}
