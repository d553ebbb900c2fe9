// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

const fedAudience = "https://fed.example"

// federation is a world whose mount is an OpenID provider, and an API that trusts it.
type federation struct {
	*world
	issuer  string
	trusted *lab.Relying // what it knows of the mount comes from discovery over Vault's own listener
	fed     *lab.KeyAPI
}

func newFederation(t *testing.T, s *server) *federation {
	t.Helper()
	const plugin = pluginName + "-self" // a process of its own, for reloading a mount disturbs the others of its process
	s.register(t, plugin, s.built.plain)
	f := &federation{world: newWorld(t, s, plugin)}
	f.issuer = f.addr + "/v1/" + f.path + "/oidc"
	f.trusted = &lab.Relying{Issuer: f.issuer, Audience: fedAudience, Subject: "role:fed"}
	f.fed = lab.NewKeyAPI(lab.KeyAPIOptions{AdminToken: f.admin, MayCreate: f.trusted.Accepts})
	f.write(t, "config", map[string]any{"allow_http_loopback": true})
	secret := f.write(t, "targets/fed", map[string]any{"driver": "http", "profile": exampleProfile(t, "federated"), "url": f.serve(t, f.fed), "ca_pem": f.ca,
		"credential": map[string]any{"token": f.admin}, "audience": fedAudience, "allowed_roles": "*"})
	if secret == nil || !strings.Contains(strings.Join(secret.Warnings, "\n"), "issuer_url") {
		t.Errorf("the target was saved before self was switched on, with %+v", secret)
	}
	f.write(t, "roles/fed", map[string]any{"trust": "main,login", "target": "fed", "parameters": map[string]any{"project": "widget"}, "ttl": "15m", "max_ttl": "2h"})
	return f
}

// testSelf makes a mount vouch for its callers: at an API that trusts it, to Vault's own JWT auth method, and to verifiers
// in two languages, before and after its keys rotate.
func testSelf(t *testing.T, s *server) {
	f := newFederation(t, s)
	verify := javascript(t)
	f.wantOff(t)
	f.write(t, "self", map[string]any{"issuer_url": f.issuer})
	f.wantDocuments(t)

	first := f.wantKey(t)
	token := f.wantShown(t, "people", f.path)
	f.wantVerified(t, verify, token)
	f.wantJWTLogin(t, token)
	f.wantNotItsOwn(t, token)

	before := f.keyIDs(t)
	f.age(t)
	eventually(t, "a rotation of the mount's keys", func() (bool, string) {
		now := f.keyIDs(t)
		return now[0] == before[1], fmt.Sprintf("%q, then %q", before, now)
	})
	second := f.wantKey(t)
	if after := f.wantShown(t, "people", f.path); kid(t, after) == kid(t, token) {
		t.Error("the former key still signs")
	} else {
		f.wantVerified(t, verify, after)
	}
	f.wantVerified(t, verify, token) // what the former key has signed is good until it expires

	renewed, err := f.user.Sys().RenewWithContext(t.Context(), first.LeaseID, 1200)
	if err != nil || renewed.LeaseDuration != 1200 {
		t.Errorf("renewing: %+v %v", renewed, err)
	}
	f.must(t, f.root.Token(), "lease", "revoke", "-sync", first.LeaseID)
	if f.fed.Valid(first.Data["api_key"].(string)) || !f.fed.Valid(second.Data["api_key"].(string)) {
		t.Error("revoking one key ended another, or none")
	}
	f.must(t, f.root.Token(), "lease", "revoke", "-prefix", f.path+"/creds")
	eventually(t, "the end of all keys", func() (bool, string) { return len(f.fed.Live()) == 0, fmt.Sprint(f.fed.Live()) })

	f.write(t, "self", map[string]any{"issuer_url": ""})
	f.wantOff(t)
	f.write(t, "self", map[string]any{"issuer_url": f.issuer})
	if now := f.keyIDs(t); len(now) != 2 || slices.Contains(now, kid(t, token)) {
		t.Errorf("switched on again, it publishes %q", now)
	}
	f.wantNotItsOwn(t, token)
	f.wantKey(t)
}

// get reads a public document, without a Vault token.
func (f *federation) get(t *testing.T, document string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.issuer+"/.well-known/"+document, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, body
}

func (f *federation) wantOff(t *testing.T) {
	t.Helper()
	for _, document := range []string{"openid-configuration", "keys"} {
		if resp, body := f.get(t, document); resp.StatusCode != http.StatusNotFound || !json.Valid(body) || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s while self is off: %d %v %s", document, resp.StatusCode, resp.Header, body)
		}
	}
	_, err := f.user.Logical().ReadWithContext(t.Context(), f.path+"/creds/fed")
	wantRefused(t, err, http.StatusForbidden, "disabled")
}

func (f *federation) wantDocuments(t *testing.T) {
	t.Helper()
	for _, document := range []string{"openid-configuration", "keys"} {
		resp, body := f.get(t, document)
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Cache-Control") != "public, max-age=300" {
			t.Errorf("%s: %d %v", document, resp.StatusCode, resp.Header)
		}
		var object map[string]any
		if err := json.Unmarshal(body, &object); err != nil || object["errors"] != nil || object["data"] != nil {
			t.Errorf("%s is not the document itself: %s", document, body)
		}
	}
	for _, document := range []string{"", "x", "keys/x"} {
		if resp, body := f.get(t, document); resp.StatusCode < 400 {
			t.Errorf("%q is open to all: %d %s", document, resp.StatusCode, body)
		}
	}
}

// wantKey reads a key by the caller's login, which the API must make for the mount's token.
func (f *federation) wantKey(t *testing.T) *api.Secret {
	t.Helper()
	secret, err := f.user.Logical().ReadWithContext(t.Context(), f.path+"/creds/fed")
	if err != nil {
		t.Fatal(err)
	}
	f.canary(secret.Data["api_key"].(string))
	if !f.fed.Valid(secret.Data["api_key"].(string)) {
		t.Error("the API does not know the key")
	}
	return secret
}

// wantShown checks the claims of the token that the API was last shown, and returns the token.
func (f *federation) wantShown(t *testing.T, issuer, subject string) string {
	t.Helper()
	shown := f.trusted.Presented()
	token := shown[len(shown)-1]
	f.canary(strings.Split(token, ".")[1:]...)
	var claims map[string]any
	if err := json.Unmarshal(part(t, token, 1), &claims); err != nil {
		t.Fatal(err)
	}
	if life := claims["exp"].(float64) - claims["iat"].(float64); life != 300 {
		t.Errorf("the token lives %v s", life)
	}
	if id, name := fmt.Sprint(claims["entity_id"]), fmt.Sprint(claims["entity_name"]); len(id) != 36 || name == "" {
		t.Errorf("entity %q %q", id, name)
	}
	for name, want := range map[string]string{"iss": f.issuer, "aud": fedAudience, "sub": "role:fed", "role": "fed", "mount": f.path, "subject_issuer": issuer, "subject": subject} {
		if claims[name] != want {
			t.Errorf("%s is %v; want %s", name, claims[name], want)
		}
	}
	return token
}

// wantVerified checks that the verifiers accept a token and refuse changed ones.
func (f *federation) wantVerified(t *testing.T, javascript func(t *testing.T, issuer, token string) error, token string) {
	t.Helper()
	parts := strings.Split(token, ".")
	forged := strings.Replace(string(part(t, token, 1)), `"role:fed"`, `"role:god"`, 1)
	tampered := parts[0] + "." + encoded(forged) + "." + parts[2]
	fresh := func() *lab.Relying { return &lab.Relying{Issuer: f.issuer, Audience: fedAudience, Subject: "role:fed"} }
	if !fresh().Accepts(token) {
		t.Error("go-oidc refuses the token")
	}
	if r := fresh(); r.Accepts(tampered) {
		t.Error("go-oidc accepts a tampered token")
	}
	if javascript == nil {
		return
	}
	if err := javascript(t, f.issuer, token); err != nil {
		t.Errorf("jose refuses the token: %v", err)
	}
	if err := javascript(t, f.issuer, tampered); err == nil || !strings.Contains(err.Error(), "ERR_JWS_SIGNATURE_VERIFICATION_FAILED") {
		t.Errorf("jose on a tampered token: %v", err)
	}
}

// wantJWTLogin checks that Vault's own JWT auth method accepts the mount's token for a login, and no other.
func (f *federation) wantJWTLogin(t *testing.T, token string) {
	t.Helper()
	auth := f.path + "-jwt"
	if err := f.root.Sys().EnableAuthWithOptionsWithContext(t.Context(), auth, &api.EnableAuthOptions{Type: "jwt"}); err != nil {
		t.Fatal(err)
	}
	f.rootWrite(t, "auth/"+auth+"/config", map[string]any{"oidc_discovery_url": f.issuer, "jwt_supported_algs": "ES256"})
	f.rootWrite(t, "auth/"+auth+"/role/fed", map[string]any{
		"role_type": "jwt", "user_claim": "sub", "bound_audiences": fedAudience, "bound_subject": "role:fed",
		"bound_claims": map[string]any{"subject_issuer": "people", "subject": f.path},
	})
	login := func(token string) (*api.Secret, error) {
		return f.root.Logical().WriteWithContext(t.Context(), "auth/"+auth+"/login", map[string]any{"role": "fed", "jwt": token})
	}
	secret, err := login(token)
	if err != nil || secret.Auth == nil || secret.Auth.ClientToken == "" {
		t.Errorf("logging in by JWT: %v", err)
	}
	if _, err := login(token[:len(token)-8] + "AAAAAAAA"); err == nil {
		t.Error("the JWT auth method accepts a tampered token")
	}
}

// wantNotItsOwn checks that the mount accepts neither itself as an issuer nor its own token as a subject token.
func (f *federation) wantNotItsOwn(t *testing.T, token string) {
	t.Helper()
	entry := map[string]any{"oidc_discovery_url": f.issuer, "jwt_supported_algs": "ES256"}
	_, err := f.root.Logical().WriteWithContext(t.Context(), f.path+"/issuers/own", entry)
	if status, text := refusal(err); status != http.StatusBadRequest || !strings.Contains(text, "bad_request: issuer: ") {
		t.Errorf("an entry for the mount itself: %d %s", status, text)
	}
	_, err = f.exchange(t, "fed", token)
	wantRefused(t, err, http.StatusForbidden, "unknown_issuer")
}

func (f *federation) keyIDs(t *testing.T) (ids []string) {
	t.Helper()
	for _, id := range f.read(t, "self")["key_ids"].([]any) {
		ids = append(ids, id.(string))
	}
	return ids
}

// age makes the mount's keys a day older, in Vault's storage, and drops what the plugin has cached of them.
func (f *federation) age(t *testing.T) {
	t.Helper()
	mounts, err := f.root.Sys().ListMountsWithContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	path := "sys/raw/logical/" + mounts[f.path+"/"].UUID + "/self"
	stored, err := f.root.Logical().ReadWithContext(t.Context(), path)
	if err != nil || stored == nil {
		t.Fatalf("reading Vault's storage: %v %v", stored, err)
	}
	var envelope map[string]any
	if err := json.Unmarshal([]byte(stored.Data["value"].(string)), &envelope); err != nil {
		t.Fatal(err)
	}
	ring := envelope["record"].(map[string]any)["ring"].(map[string]any)
	for _, stage := range []string{"next", "current"} {
		ring[stage].(map[string]any)["published_at"] = time.Now().UTC().Add(-25 * time.Hour).Format(time.RFC3339)
	}
	f.rootWrite(t, path, map[string]any{"value": mustJSON(t, envelope)})
	f.rootWrite(t, "sys/plugins/reload/backend", map[string]any{"mounts": f.path})
}

// part decodes one part of a compact token.
func part(t *testing.T, token string, i int) []byte {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[i])
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func encoded(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

func kid(t *testing.T, token string) string {
	t.Helper()
	var header struct{ Kid string }
	if err := json.Unmarshal(part(t, token, 0), &header); err != nil {
		t.Fatal(err)
	}
	return header.Kid
}

// joseVersion is the release of the npm package jose, a JavaScript verifier, that the tests install.
const joseVersion = "6.2.17"

// joseScript verifies a token as a relying party does: keys by discovery, then issuer, audience and subject.
const joseScript = `
import { createRemoteJWKSet, jwtVerify } from "jose";
const { ISSUER, AUDIENCE, TOKEN } = process.env;
try {
  const document = await (await fetch(ISSUER + "/.well-known/openid-configuration")).json();
  if (document.issuer !== ISSUER) throw new Error("the document names another issuer");
  await jwtVerify(TOKEN, createRemoteJWKSet(new URL(document.jwks_uri)), {
    issuer: ISSUER, audience: AUDIENCE, subject: "role:fed", typ: "JWT", maxTokenAge: "5m",
    algorithms: document.id_token_signing_alg_values_supported,
  });
} catch (e) {
  console.error(e.code ?? e.message);
  process.exit(1);
}
`

// javascript installs the verifier and returns a function that runs it, or nil if there is no node.
func javascript(t *testing.T) func(t *testing.T, issuer, token string) error {
	t.Helper()
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			fmt.Fprintf(os.Stderr, "\nNOT RUN: %s is missing, so no JavaScript verifier has looked at the tokens of self. Install Node.js 20 or newer.\n\n", tool)
			return nil
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "verify.mjs"), []byte(joseScript), 0o600); err != nil {
		t.Fatal(err)
	}
	install := exec.CommandContext(t.Context(), "npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "jose@"+joseVersion)
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("installing jose: %v\n%s", err, out)
	}
	return func(t *testing.T, issuer, token string) error {
		t.Helper()
		run := exec.CommandContext(t.Context(), "node", "verify.mjs")
		run.Dir, run.Env = dir, append(os.Environ(), "ISSUER="+issuer, "AUDIENCE="+fedAudience, "TOKEN="+token)
		out, err := run.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
}
