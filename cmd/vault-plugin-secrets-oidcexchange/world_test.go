// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/vault/api"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

const (
	audience      = "https://vault.example"
	nugetAudience = "https://www.nuget.org"
)

// world is one mount of the plugin, with stand-ins of its own for an identity provider and two APIs, and a user who may only
// ask for keys.
type world struct {
	*server
	path  string // of the mount
	admin string // the engine's credential at the key API

	issuer    *lab.Issuer
	keys      *lab.KeyAPI
	nuget     *lab.NuGet
	http      *http.Client // trusts the stand-ins
	ca        string
	issuerURL string
	keysURL   string
	nugetURL  string

	user *api.Client // logged in as alice by userpass

	mu   sync.Mutex
	held map[string]string // lease id -> accessor, of the keys that reached a caller
}

// newWorld mounts the plugin with issuers github and people, trust policies main and login, targets acme and nuget, and
// roles deploy and publish.
func newWorld(t testing.TB, s *server, plugin string) *world {
	t.Helper()
	w := &world{server: s, path: "m-" + strings.ToLower(rand.Text()[:10]), admin: "admin-" + rand.Text(), held: map[string]string{}}
	s.canary(w.admin)
	start := len(s.log(t, 0))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what Vault logged meanwhile:\n%s", s.story(t, start, w.path))
		}
	})
	w.standIns(t)
	if err := s.root.Sys().MountWithContext(t.Context(), w.path, &api.MountInput{Type: plugin}); err != nil {
		t.Fatalf("mounting the plugin: %v", err)
	}
	w.write(t, "config", map[string]any{"allow_private": "127.0.0.0/8"})
	w.write(t, "issuers/github", map[string]any{"oidc_discovery_url": w.issuerURL, "ca_pem": w.ca, "forward_to": strings.TrimPrefix(w.nugetURL, "https://")})
	w.write(t, "issuers/people", map[string]any{"type": "login", "mount_accessor": s.accessors["userpass/"]})
	w.write(t, "trust/main", map[string]any{"issuer": "github", "bound_audiences": audience, "bound_claims": map[string]any{"repository": "acme/widget"}})
	w.write(t, "trust/login", map[string]any{"issuer": "people", "bound_subject": w.path})
	w.write(t, "trust/nuget", map[string]any{"issuer": "github", "bound_audiences": nugetAudience, "bound_claims": map[string]any{"repository": "acme/widget"}})
	w.write(t, "targets/acme", map[string]any{"driver": "http", "profile": acmeProfile(t), "url": w.keysURL, "ca_pem": w.ca,
		"credential": map[string]any{"token": w.admin}, "allowed_roles": "*"})
	w.write(t, "targets/nuget", map[string]any{"driver": "nuget", "url": w.nugetURL, "ca_pem": w.ca, "allowed_roles": "publish"})
	w.write(t, "roles/deploy", map[string]any{"trust": "main,login", "target": "acme", "parameters": map[string]any{"project": "widget"}, "ttl": "15m", "max_ttl": "2h"})
	w.write(t, "roles/publish", map[string]any{"trust": "nuget", "target": "nuget", "parameters": map[string]any{"username": "jim"}})
	w.user = w.login(t)
	return w
}

// acmeProfile is the example that operators start their own profiles from.
func acmeProfile(t testing.TB) string { return exampleProfile(t, "acme") }

func exampleProfile(t testing.TB, name string) string {
	t.Helper()
	profile, err := os.ReadFile(filepath.Join("..", "..", "bootstrap", "targets", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return string(profile)
}

func (w *world) standIns(t testing.TB) {
	t.Helper()
	w.issuer = lab.NewIssuer(lab.IssuerOptions{})
	w.issuerURL = w.serve(t, w.issuer)
	w.issuer.SetURL(w.issuerURL)
	w.keys = lab.NewKeyAPI(lab.KeyAPIOptions{AdminToken: w.admin})
	w.keysURL = w.serve(t, w.keys)
	w.nuget = lab.NewNuGet(lab.NuGetOptions{Issuers: []string{w.issuerURL}, Client: w.http, Audience: nugetAudience})
	w.nuget.SetUser(lab.User{Name: "jim"})
	w.nuget.AddPolicy(lab.Policy{User: "jim", Owner: "acme", Repository: "widget", Workflow: "release.yml"})
	w.nugetURL = w.serve(t, w.nuget)
}

// serve runs a stand-in with TLS; all stand-ins have the same certificate authority.
func (w *world) serve(t testing.TB, h http.Handler) string {
	t.Helper()
	stand := httptest.NewUnstartedServer(h)
	stand.Config.ErrorLog = log.New(io.Discard, "", 0) // of clients who do not trust it, as some tests want
	stand.StartTLS()
	t.Cleanup(func() {
		stand.CloseClientConnections() // Close waits for calls that a fault keeps hanging
		stand.Close()
	})
	w.ca = lab.CertificatePEM(stand.Certificate())
	w.http = stand.Client()
	return stand.URL
}

// login makes a user of the world's own, who may only ask for keys, and logs in as that user.
func (w *world) login(t testing.TB) *api.Client {
	t.Helper()
	if err := w.root.Sys().PutPolicyWithContext(t.Context(), w.path, fmt.Sprintf(`path "%s/creds/*" { capabilities = ["read", "update"] }`, w.path)); err != nil {
		t.Fatal(err)
	}
	w.rootWrite(t, "auth/userpass/users/"+w.path, map[string]any{"password": "correct horse", "policies": w.path})
	secret := w.rootWrite(t, "auth/userpass/login/"+w.path, map[string]any{"password": "correct horse"})
	user, err := w.client(secret.Auth.ClientToken)
	if err != nil {
		t.Fatal(err)
	}
	return user
}

func (w *world) rootWrite(t testing.TB, path string, data map[string]any) *api.Secret {
	t.Helper()
	secret, err := w.root.Logical().WriteWithContext(t.Context(), path, data)
	if err != nil {
		t.Fatalf("writing %s: %v", path, err)
	}
	return secret
}

// write writes to the mount as its operator.
func (w *world) write(t testing.TB, path string, data map[string]any) *api.Secret {
	t.Helper()
	return w.rootWrite(t, w.path+"/"+path, data)
}

// read reads from the mount as its operator; nil is a 404.
func (w *world) read(t testing.TB, path string) map[string]any {
	t.Helper()
	secret, err := w.root.Logical().ReadWithContext(t.Context(), w.path+"/"+path)
	if err != nil {
		t.Fatalf("reading %s: %v", path, err)
	}
	if secret == nil {
		return nil
	}
	return secret.Data
}

// list lists what is below a path of Vault.
func (w *world) list(t testing.TB, path string) []string {
	t.Helper()
	secret, err := w.root.Logical().ListWithContext(t.Context(), path)
	if err != nil {
		t.Fatalf("listing %s: %v", path, err)
	}
	if secret == nil {
		return nil
	}
	var names []string
	for _, name := range secret.Data["keys"].([]any) {
		names = append(names, name.(string))
	}
	return names
}

// token makes an identity token for the role deploy, with some claims changed.
func (w *world) token(claims map[string]any) string {
	all := map[string]any{"aud": audience}
	maps.Copy(all, claims)
	return w.secret(w.issuer.Token(all))
}

// secret marks a token as one that must not appear in a log, and returns it.
func (w *world) secret(token string) string {
	parts := strings.Split(token, ".")
	w.canary(parts[1], parts[2]) // the header is the same for all
	return token
}

// exchange asks for a key by token.
func (w *world) exchange(t testing.TB, role, token string) (*api.Secret, error) {
	t.Helper()
	secret, err := w.user.Logical().WriteWithContext(t.Context(), w.path+"/creds/"+role, map[string]any{"subject_token": token})
	if err == nil {
		w.hold(secret)
	}
	return secret, err
}

// hold remembers a key that reached its caller.
func (w *world) hold(secret *api.Secret) {
	w.canary(secret.Data["api_key"].(string))
	w.mu.Lock()
	defer w.mu.Unlock()
	accessor, _ := secret.Data["accessor"].(string)
	w.held[secret.LeaseID] = accessor
}

// issue exchanges a token for a key, which must succeed.
func (w *world) issue(t testing.TB, role string) *api.Secret {
	t.Helper()
	secret, err := w.exchange(t, role, w.token(nil))
	if err != nil {
		t.Fatalf("issuing: %v", err)
	}
	return secret
}

// use presents a key to the key API and returns the status.
func (w *world) use(t testing.TB, key string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.keysURL+"/v1/data", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Acme-Key", key)
	resp, err := w.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// leases lists the leases that Vault holds below a path of the mount.
func (w *world) leases(t testing.TB, below string) []string {
	t.Helper()
	prefix := w.path + "/" + below
	var all []string
	for _, name := range w.list(t, "sys/leases/lookup/"+prefix) {
		if strings.HasSuffix(name, "/") {
			all = append(all, w.leases(t, below+name)...)
			continue
		}
		all = append(all, prefix+name)
	}
	return all
}

// live returns the accessors of the keys that live at the key API, sorted.
func (w *world) live() []string {
	var ids []string
	for _, key := range w.keys.Live() {
		ids = append(ids, key.ID)
	}
	slices.Sort(ids)
	return ids
}

// ledger returns the accessors of the keys that the ledger has, sorted, each with its state if that is not "issued".
func (w *world) ledger(t testing.TB) []string {
	t.Helper()
	var all []string
	for _, id := range w.list(t, w.path+"/keys") {
		record := w.read(t, "keys/"+id)
		if record == nil {
			continue // it died between the list and now
		}
		text := record["accessor"].(string)
		if record["state"] != "issued" {
			text += " " + record["state"].(string)
		}
		all = append(all, text)
	}
	slices.Sort(all)
	return all
}

// sweep runs the sweeper and returns its answer.
func (w *world) sweep(t testing.TB) map[string]json.Number {
	t.Helper()
	counts := map[string]json.Number{}
	for name, value := range w.write(t, "sweep", nil).Data {
		counts[name] = value.(json.Number)
	}
	return counts
}

// settle sweeps until nothing is open.
func (w *world) settle(t testing.TB) {
	t.Helper()
	eventually(t, "the sweeper", func() (bool, string) {
		answer := w.sweep(t)
		return answer["pending"] == "0" && answer["debt"] == "0", fmt.Sprint(answer)
	})
}

// static returns the accessors of the keys that static roles hold.
func (w *world) static(t testing.TB) []string {
	t.Helper()
	var all []string
	for _, name := range w.list(t, w.path+"/static-roles") {
		key := w.read(t, "static-creds/"+name)
		all = append(all, key["accessor"].(string), key["predecessor"].(string))
	}
	return all
}

// wantConsistent checks the invariant: the live keys at the target, except those of static roles, are the keys in the
// ledger, and as many as Vault has leases. A key that reached its caller lives as long as its lease.
func (w *world) wantConsistent(t testing.TB) {
	t.Helper()
	static := w.static(t)
	live := slices.DeleteFunc(w.live(), func(accessor string) bool { return slices.Contains(static, accessor) })
	ledger, leases := w.ledger(t), w.leases(t, "creds/")
	if !slices.Equal(live, ledger) {
		t.Errorf("%d keys live at the target: %q; the ledger has %d: %q", len(live), live, len(ledger), ledger)
	}
	if len(leases) != len(live) {
		t.Errorf("%d keys live at the target: %q; Vault has %d leases: %q", len(live), live, len(leases), leases)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, lease := range leases {
		if accessor, known := w.held[lease]; known && !slices.Contains(live, accessor) {
			t.Errorf("key %s was revoked while its lease lives", accessor)
		}
	}
}

// wantNone checks that none of the mount's keys is left, once Vault has done all the revocations that it was told to do.
func (w *world) wantNone(t testing.TB) {
	t.Helper()
	eventually(t, "the end of all leases", func() (bool, string) {
		leases := w.leases(t, "creds/")
		return len(leases) == 0, strings.Join(leases, " ")
	})
	w.wantConsistent(t)
	if live := w.live(); len(live) > 0 {
		t.Errorf("keys live: %q", live)
	}
}

// refusal returns the status and text of Vault's refusal, and 0 if err is none.
func refusal(err error) (status int, text string) {
	var answer *api.ResponseError
	switch {
	case err == nil:
		return 0, ""
	case errors.As(err, &answer):
		return answer.StatusCode, strings.Join(answer.Errors, "\n")
	default:
		return -1, err.Error()
	}
}

// refusalText matches the form of every refusal: reason, what to do, and the id of the request under which the log has the
// details.
func refusalText(reason string) *regexp.Regexp {
	return regexp.MustCompile(`(` + reason + `): [^()]+ \(request [0-9a-f-]{36}\)`)
}

// reasonOf returns the reason of a refusal, "" if there was none.
func reasonOf(err error) string {
	_, text := refusal(err)
	if found := refusalText("[a-z_]+").FindStringSubmatch(text); found != nil {
		return found[1]
	}
	return text
}

// wantRefused checks that an error has this status and reason, and names the request.
func wantRefused(t testing.TB, err error, status int, reason string) {
	t.Helper()
	got, text := refusal(err)
	if got != status || reasonOf(err) != reason {
		t.Errorf("got status %d, %q; want %d, %s: … (request …)", got, text, status, reason)
	}
}
