// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/hashicorp/vault/api"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// Two hops, as in OpenShell: the caller's token is exchanged for one for the supervisor with the gateway's SVID, and that
// one for a key with the supervisor's SVID.
func testOAuthHops(t *testing.T, s *server) {
	const gateway, supervisor = "spiffe://example.org/gateway", "spiffe://example.org/supervisor"
	socket := filepath.Join(t.TempDir(), "agent.sock")
	agent := lab.NewWorkloadAPI(lab.WorkloadAPIOptions{IDs: []string{gateway, supervisor}})
	if err := agent.Start(socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(agent.Stop)
	s.register(t, "two-hops", s.built.plain, "SPIFFE_ENDPOINT_SOCKET=unix://"+socket)
	w := newWorld(t, s, "two-hops")
	first, second := w.wantHops(t, gateway, supervisor, agent.Domain)

	token := w.token(map[string]any{"aud": first.Issuer()})
	agent.Fault(lab.OpSVID, lab.Fault{Kind: lab.KindStatus, Status: 503, Count: 3}) // Vault's client repeats
	_, err := w.exchange(t, "hops", token)
	wantRefused(t, err, http.StatusServiceUnavailable, "target_busy")
	agent.ClearFaults()
	second.Fault(lab.OpGrant, lab.Fault{Kind: lab.KindStatus, Status: 403, Count: 1})
	_, err = w.exchange(t, "hops", token)
	wantRefused(t, err, http.StatusUnprocessableEntity, "target_denied")
	if _, err = w.exchange(t, "hops", token); err != nil {
		t.Errorf("the caller's token is not as good as before: %v", err)
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds/hops")
	eventually(t, "the end of the last key", func() (bool, string) { return len(second.Live()) == 0, fmt.Sprint(second.Live()) })
}

// wantHops starts two servers that accept the SVIDs of domain, and makes role hops. It checks that a key of the second
// server is issued by way of the first, and that it ends.
func (w *world) wantHops(t *testing.T, gateway, supervisor string, domain func(string) *lab.Issuer) (first, second *lab.OAuth) {
	t.Helper()
	serve := func(issuer, client string) *lab.OAuth {
		a := lab.NewOAuth(lab.OAuthOptions{Path: "/realms/acme", Issuers: []string{issuer}, Client: w.http, Domain: domain,
			Clients: []lab.OAuthClient{{ID: client, Method: "jwt-spiffe"}}})
		a.SetURL(w.serve(t, a))
		return a
	}
	first = serve(w.issuerURL, gateway)
	second = serve(first.Issuer(), supervisor)
	host := func(a *lab.OAuth) string {
		return strings.TrimSuffix(strings.TrimPrefix(a.Issuer(), "https://"), "/realms/acme")
	}
	w.write(t, "issuers/github", map[string]any{"forward_to": host(first)})
	w.write(t, "trust/hops", map[string]any{"issuer": "github", "bound_audiences": first.Issuer(), "bound_claims": map[string]any{"repository": "acme/widget"}})
	w.write(t, "targets/hops", map[string]any{"driver": "oauth", "url": second.Issuer(), "ca_pem": w.ca, "audience": first.Issuer(), "client_auth": "svid_jwt_spiffe",
		"spiffe_id": supervisor, "chain": fmt.Sprintf(`[{"token_url": %q, "spiffe_id": %q}]`, first.Issuer()+"/token", gateway), "token_hosts": host(first), "allowed_roles": "hops"})
	w.write(t, "roles/hops", map[string]any{"trust": "hops", "target": "hops", "ttl": "4m", "parameters": map[string]any{"audience": "https://api.example"}})

	secret, err := w.exchange(t, "hops", w.token(map[string]any{"aud": first.Issuer()}))
	if err != nil {
		t.Fatal(err)
	}
	key := secret.Data["api_key"].(string)
	if !second.Valid(key) || second.Live()[0].Client != supervisor || first.Asked()[0].Get("audience") != supervisor {
		t.Errorf("the key is not the second server's, or went another way: %v", second.Live())
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", secret.LeaseID)
	if second.Valid(key) {
		t.Error("the key lives on")
	}
	return first, second
}

// Releases of the npm packages that the tests install.
const (
	providerPackage = "oidc-provider@9.13.3"
	providerJOSE    = "jose@6.2.17"
)

// provider is another project's authorization server.
type provider struct {
	*world
	issuer, secret, key string
}

// startProvider installs and starts the server; it returns nil if there is no node.
func startProvider(t *testing.T, w *world) *provider {
	t.Helper()
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			fmt.Fprintf(os.Stderr, "\nNOT RUN: %s is missing, so driver oauth was not tried with a real authorization server. Install Node.js 20 or newer.\n\n", tool)
			return nil
		}
	}
	p := &provider{world: w, secret: "canary-s:e&c ret+-" + w.path} // it needs its encoding
	w.canary(p.secret)
	jwk := p.newKey(t)
	dir := t.TempDir()
	script, err := os.ReadFile(filepath.Join("testdata", "oidc-provider.mjs"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "provider.mjs"), script, 0o600)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "ca.pem"), []byte(w.ca), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	install := exec.CommandContext(t.Context(), "npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-save", providerPackage, providerJOSE)
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("installing the provider: %v\n%s", err, out)
	}
	run := exec.Command("node", "provider.mjs")
	var said bytes.Buffer
	run.Dir, run.Stderr = dir, &said
	run.Env = append(os.Environ(), "SECRET="+p.secret, "JWK="+jwk, "ISSUER="+w.issuerURL, "NODE_EXTRA_CA_CERTS="+filepath.Join(dir, "ca.pem"))
	out, err := run.StdoutPipe()
	if err == nil {
		err = run.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = run.Process.Kill()
		_ = run.Wait()
		if t.Failed() {
			t.Logf("what the provider said:\n%s", &said)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the provider does not start: %v\n%s", err, &said)
	}
	p.issuer = strings.TrimSpace(line)
	return p
}

// newKey makes the key of client robots, and returns its public half.
func (p *provider) newKey(t *testing.T) (jwk string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p.key = lab.KeyPEM(key)
	p.canary(strings.Split(p.key, "\n")[1])
	public, err := json.Marshal(jose.JSONWebKey{Key: key.Public(), KeyID: "r1", Algorithm: "ES256", Use: "sig"})
	if err != nil {
		t.Fatal(err)
	}
	return string(public)
}

// active asks the server itself whether the token is active.
func (p *provider) active(t *testing.T, secret *api.Secret) bool {
	t.Helper()
	form := url.Values{"token": {secret.Data["api_key"].(string)}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.issuer+"/token/introspection", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(url.QueryEscape("the vault"), url.QueryEscape(p.secret))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var said struct{ Active *bool }
	if err := json.NewDecoder(resp.Body).Decode(&said); err != nil || said.Active == nil {
		t.Fatalf("introspection: status %d, %v", resp.StatusCode, err)
	}
	return *said.Active
}

// Another project's certified implementation: discovery, token exchange with a secret that needs encoding, client
// credentials with a signed assertion, introspection at renewal, revocation at the lease's end.
func testOAuthProvider(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	p := startProvider(t, w)
	if p == nil {
		return
	}
	w.write(t, "config", map[string]any{"allow_http_loopback": true})
	w.write(t, "issuers/github", map[string]any{"forward_to": strings.TrimPrefix(p.issuer, "http://")})
	w.write(t, "trust/idp", map[string]any{"issuer": "github", "bound_audiences": p.issuer, "bound_claims": map[string]any{"repository": "acme/widget"}})
	w.write(t, "targets/idp", map[string]any{"driver": "oauth", "url": p.issuer, "client_auth": "client_secret_basic", "client_id": "the vault", "client_secret": p.secret,
		"subject_token_type": "id_token", "introspection_url": "discover", "allowed_roles": "idp"})
	w.write(t, "targets/robots", map[string]any{"driver": "oauth", "url": p.issuer, "grant": "client_credentials", "client_auth": "private_key_jwt", "client_id": "robots",
		"private_key": p.key, "private_key_id": "r1", "allowed_roles": "robots"})
	w.write(t, "roles/idp", map[string]any{"trust": "idp", "target": "idp", "ttl": "1m", "max_ttl": "1h", "parameters": map[string]any{"scopes": "api:read"}})
	w.write(t, "roles/robots", map[string]any{"trust": "login", "target": "robots", "parameters": map[string]any{"scopes": "api:read"}})

	token := w.token(map[string]any{"aud": p.issuer})
	exchanged, err := w.exchange(t, "idp", token)
	if err != nil {
		t.Fatal(err)
	}
	if exchanged.LeaseDuration != 60 || !exchanged.Renewable || exchanged.Data["scope"] != "api:read" || exchanged.Data["revocable"] != true {
		t.Errorf("lease of %d s, renewable %v, %v", exchanged.LeaseDuration, exchanged.Renewable, exchanged.Data)
	}
	own, err := w.user.Logical().ReadWithContext(t.Context(), w.path+"/creds/robots")
	if err != nil {
		t.Fatal(err)
	}
	w.hold(own)
	if !p.active(t, exchanged) || !p.active(t, own) {
		t.Fatal("the keys do not live")
	}
	renewed, err := w.user.Sys().RenewWithContext(t.Context(), exchanged.LeaseID, 3000)
	if err != nil || renewed.LeaseDuration < 200 || renewed.LeaseDuration > 300 { // what is left of the token, less the margin
		t.Errorf("renewing: %v %v", renewed, err)
	}
	for _, secret := range []*api.Secret{exchanged, own} {
		w.must(t, w.root.Token(), "lease", "revoke", "-sync", secret.LeaseID)
		if p.active(t, secret) {
			t.Error("a key lives on")
		}
	}
	if left := w.ledger(t); len(left) != 0 {
		t.Errorf("the ledger has %q", left)
	}

	start := len(s.log(t, 0))
	w.write(t, "targets/idp", map[string]any{"subject_token_type": "jwt"})
	_, err = w.exchange(t, "idp", w.token(map[string]any{"aud": p.issuer}))
	wantRefused(t, err, http.StatusUnprocessableEntity, "target_denied")
	w.write(t, "targets/idp", map[string]any{"subject_token_type": "id_token", "client_secret": p.secret + "x"})
	_, err = w.exchange(t, "idp", w.token(map[string]any{"aud": p.issuer}))
	wantRefused(t, err, http.StatusUnprocessableEntity, "target_denied")
	_, text := refusal(err)
	w.wantLogged(t, start, text, "target_denied")
	if said := s.log(t, start); !bytes.Contains(said, []byte("invalid_client: it does not accept the engine as its client")) || bytes.Contains(said, []byte("no such subject token")) {
		t.Error("the log does not say what to mend, or repeats what the server said")
	}
}
