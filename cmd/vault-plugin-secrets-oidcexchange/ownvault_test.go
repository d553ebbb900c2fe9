// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

// allow adds capabilities to those of a token's policies: each path with its capability.
func (w *world) allow(t *testing.T, policy string, paths ...string) {
	t.Helper()
	var rules strings.Builder
	for i := 0; i < len(paths); i += 2 {
		fmt.Fprintf(&rules, "path %q { capabilities = [%q] }\n", paths[i], paths[i+1])
	}
	if err := w.root.Sys().PutPolicyWithContext(t.Context(), policy, rules.String()); err != nil {
		t.Fatal(err)
	}
}

// Vault vouches for its own callers, with tokens of its identity engine and of its OpenID provider: documents, keys and
// tokens are Vault's, read over its own listener.
func testVaultIssuer(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	w.write(t, "config", map[string]any{"allow_http_loopback": true, "jwks_min_refresh": "1s"})
	w.allow(t, w.path, w.path+"/creds/*", "update", "identity/oidc/token/"+w.path, "read", "identity/oidc/provider/"+w.path+"/authorize", "read")
	w.rootWrite(t, "identity/oidc/key/"+w.path, map[string]any{"algorithm": "ES256", "allowed_client_ids": "*"})
	w.rootWrite(t, "identity/oidc/role/"+w.path, map[string]any{"key": w.path, "client_id": audience, "ttl": "5m",
		"template": fmt.Sprintf(`{"login": {{identity.entity.aliases.%s.name}}}`, s.accessors["userpass/"])})
	w.write(t, "issuers/identity", map[string]any{"oidc_discovery_url": s.addr + "/v1/identity/oidc", "jwt_supported_algs": "ES256", "verify": true})
	w.write(t, "trust/identity", map[string]any{"issuer": "identity", "bound_audiences": audience, "bound_claims": map[string]any{"login": w.path}})
	w.write(t, "roles/deploy", map[string]any{"trust": "identity"})
	token := func(of *api.Client) string {
		t.Helper()
		secret, err := of.Logical().ReadWithContext(t.Context(), "identity/oidc/token/"+w.path)
		if err != nil {
			t.Fatal(err)
		}
		return w.secret(secret.Data["token"].(string))
	}

	shown := token(w.user)
	secret, err := w.exchange(t, "deploy", shown)
	if err != nil {
		t.Fatal(err)
	}
	self, err := w.user.Auth().Token().LookupSelfWithContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if secret.Data["subject"] != self.Data["entity_id"] || w.use(t, secret.Data["api_key"].(string)) != http.StatusOK {
		t.Errorf("the key is %v; want one of entity %v", secret.Data, self.Data["entity_id"])
	}
	_, err = w.exchange(t, "deploy", shown)
	wantRefused(t, err, http.StatusForbidden, "replayed")

	other := newWorld(t, s, pluginName)
	w.allow(t, other.path, "identity/oidc/token/"+w.path, "read")
	_, err = w.exchange(t, "deploy", token(other.user))
	wantRefused(t, err, http.StatusForbidden, "not_trusted")

	w.testVaultProvider(t)

	before := token(w.user)
	w.rootWrite(t, "identity/oidc/key/"+w.path+"/rotate", nil)
	eventually(t, "the new key", func() (bool, string) {
		after := token(w.user)
		_, err := w.exchange(t, "deploy", after)
		return err == nil && kid(t, after) != kid(t, before), reasonOf(err)
	})
	if _, err := w.exchange(t, "deploy", before); err != nil {
		t.Errorf("what the former key has signed: %v", err)
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds")
	w.wantNone(t)
}

// testVaultProvider checks that an ID token from the authorization code flow is verified like any other.
func (w *world) testVaultProvider(t *testing.T) {
	t.Helper()
	const redirect = "https://app.example/callback"
	w.rootWrite(t, "identity/oidc/client/"+w.path, map[string]any{"key": w.path, "redirect_uris": redirect, "assignments": "allow_all", "id_token_ttl": "5m"})
	client, err := w.root.Logical().ReadWithContext(t.Context(), "identity/oidc/client/"+w.path)
	if err != nil {
		t.Fatal(err)
	}
	id, password := client.Data["client_id"].(string), client.Data["client_secret"].(string)
	w.canary(password)
	w.rootWrite(t, "identity/oidc/provider/"+w.path, map[string]any{"allowed_client_ids": id})
	provider := w.addr + "/v1/identity/oidc/provider/" + w.path

	ask := url.Values{"scope": {"openid"}, "response_type": {"code"}, "client_id": {id}, "redirect_uri": {redirect}, "state": {"s"}, "nonce": {"n"}}
	_, allowed := call(t, http.MethodGet, provider+"/authorize?"+ask.Encode(), "Bearer "+w.user.Token(), nil)
	grant := url.Values{"grant_type": {"authorization_code"}, "code": {fmt.Sprint(allowed["code"])}, "redirect_uri": {redirect}, "client_id": {id}, "client_secret": {password}}
	_, granted := call(t, http.MethodPost, provider+"/token", "", grant)
	token := w.secret(granted["id_token"].(string))

	w.write(t, "issuers/provider", map[string]any{"oidc_discovery_url": provider, "jwt_supported_algs": "ES256", "verify": true})
	w.write(t, "trust/provider", map[string]any{"issuer": "provider", "bound_audiences": id, "accept_any_subject": true})
	w.write(t, "roles/deploy", map[string]any{"trust": "identity,provider"})
	secret, err := w.exchange(t, "deploy", token)
	if err != nil || secret.Data["issuer"] != "provider" {
		t.Errorf("an ID token of Vault's provider: %v", err)
	}
}

// Vault's token API as a target, with the profile that is shipped: the keys are Vault tokens.
func testVaultToken(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	keyPolicy, enginePolicy := w.path+"-key", w.path+"-engine"
	w.allow(t, keyPolicy, w.path+"/status", "read")
	w.allow(t, enginePolicy, "auth/token/create/"+w.path, "update", "auth/token/renew-accessor", "update", "auth/token/revoke-accessor", "update", "auth/token/lookup-self", "read")
	w.rootWrite(t, "auth/token/roles/"+w.path, map[string]any{"orphan": true, "token_no_default_policy": true, "allowed_policies": keyPolicy, "token_period": "2m"})
	engine := w.rootWrite(t, "auth/token/create-orphan", map[string]any{"policies": []string{enginePolicy}, "no_default_policy": true}).Auth
	w.canary(engine.ClientToken)
	w.write(t, "config", map[string]any{"allow_http_loopback": true})
	w.write(t, "targets/vault", map[string]any{"driver": "http", "profile": exampleProfile(t, "vault-token"), "url": s.addr,
		"credential": map[string]any{"token": engine.ClientToken}, "allowed_roles": "*"})
	parameters := map[string]any{"role": w.path}
	w.write(t, "roles/vault", map[string]any{"trust": "login", "target": "vault", "parameters": parameters, "ttl": "1m", "max_ttl": "1h"})

	w.wantCheck(t, "vault", "ok")
	first, second := w.readKey(t, "vault"), w.readKey(t, "vault")
	w.wantVaultToken(t, first, keyPolicy)
	renewed, err := w.user.Sys().RenewWithContext(t.Context(), first.LeaseID, 1800)
	if err != nil || renewed.LeaseDuration < 100 || renewed.LeaseDuration > 120 { // the token role's period
		t.Errorf("renewing: %v %v", renewed, err)
	}
	if token := w.lookup(t, first); token == nil || token["last_renewal"] == nil {
		t.Errorf("the token was not renewed: %v", token)
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", first.LeaseID)
	if works(t, w, first) || !works(t, w, second) {
		t.Error("revoking one key ended another, or none")
	}
	w.rootWrite(t, "auth/token/revoke-accessor", map[string]any{"accessor": second.Data["accessor"]}) // by somebody else
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", second.LeaseID)
	if left := w.ledger(t); len(left) != 0 {
		t.Errorf("the ledger has %q", left)
	}

	w.write(t, "roles/vault", map[string]any{"parameters": map[string]any{"role": w.path, "policies": "root"}})
	w.wantHint(t, "vault", "the token role does not allow these policies")
	w.write(t, "roles/vault", map[string]any{"parameters": map[string]any{"role": w.path + "x"}})
	w.wantHint(t, "vault", "the credential has ended, or its policy lacks update")
	w.rootWrite(t, "sys/policies/acl/"+enginePolicy, map[string]any{"policy": `path "auth/token/create/*" { capabilities = ["update"] }`})
	w.wantHint(t, "vault", "the token role does not exist")
	w.wantCheck(t, "vault", "failed") // that policy has no lookup-self
}

// readKey reads a key by the user's login, which must succeed.
func (w *world) readKey(t *testing.T, role string) *api.Secret {
	t.Helper()
	secret, err := w.user.Logical().ReadWithContext(t.Context(), w.path+"/creds/"+role)
	if err != nil {
		t.Fatal(err)
	}
	w.hold(secret)
	return secret
}

// wantHint checks that the target denies a key, and that Vault's log says what to fix.
func (w *world) wantHint(t *testing.T, role, hint string) {
	t.Helper()
	start := len(w.log(t, 0))
	_, err := w.user.Logical().ReadWithContext(t.Context(), w.path+"/creds/"+role)
	wantRefused(t, err, http.StatusUnprocessableEntity, "target_denied")
	eventually(t, "the log to say "+hint, func() (bool, string) { return bytes.Contains(w.log(t, start), []byte(hint)), reasonOf(err) })
}

// wantVaultToken checks that a key is a valid token, has the rights that the token role gives, and expires soon after its
// lease must end.
func (w *world) wantVaultToken(t *testing.T, key *api.Secret, policy string) {
	t.Helper()
	token := w.lookup(t, key)
	if token == nil || !works(t, w, key) || key.Data["header_name"] != "X-Vault-Token" {
		t.Fatalf("the key does not work: %v", token)
	}
	longest, err := token["explicit_max_ttl"].(json.Number).Int64()
	if life := time.Duration(longest) * time.Second; err != nil || life < time.Hour || life > time.Hour+10*time.Minute {
		t.Errorf("it lives for at most %v", life)
	}
	if token["orphan"] != true || fmt.Sprint(token["policies"]) != "["+policy+"]" || !strings.Contains(token["display_name"].(string), "oidcx-") {
		t.Errorf("it is %v", token)
	}
}

// lookup returns what Vault knows about a token by its accessor; nil if the accessor is unknown.
func (w *world) lookup(t *testing.T, key *api.Secret) map[string]any {
	t.Helper()
	secret, err := w.root.Auth().Token().LookupAccessorWithContext(t.Context(), key.Data["accessor"].(string))
	if err != nil {
		return nil
	}
	return secret.Data
}

// works reports whether the key, a Vault token, can do what its policy allows.
func works(t *testing.T, w *world, key *api.Secret) bool {
	t.Helper()
	client, err := w.client(key.Data["api_key"].(string))
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.Logical().ReadWithContext(t.Context(), w.path+"/status")
	return err == nil
}
