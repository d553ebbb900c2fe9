// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

const (
	loginURL   = "https://login.example.com/realms/acme" // as the examples call the authorization server
	supervisor = "spiffe://example.org/supervisor"
)

// oauthWorld is a world with an authorization server.
type oauthWorld struct {
	*world
	server *lab.OAuth
	agent  *lab.WorkloadAPI
	key    string // of client robots, PEM
}

func newOAuthWorld(t *testing.T) *oauthWorld {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "socket")
	t.Setenv(endpointSocket, "unix://"+socket)
	w := &oauthWorld{world: newWorld(t)}
	w.agent = lab.NewWorkloadAPI(lab.WorkloadAPIOptions{IDs: []string{"spiffe://example.org/gateway", supervisor}, Now: w.clock.now})
	if err := w.agent.Start(socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.agent.Stop)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w.key = lab.KeyPEM(key)
	w.server = lab.NewOAuth(lab.OAuthOptions{Path: "/realms/acme", Issuers: []string{w.issuerURL}, Client: w.client(), Domain: w.agent.Domain, Now: w.clock.now,
		Audiences: []string{"https://api.example.com", supervisor}, Scopes: []string{"read"}, SingleUse: true, Clients: []lab.OAuthClient{
			{ID: "vault", Method: "client_secret_basic", Secret: clientSecret}, {ID: "robots", Method: "private_key_jwt", Key: key.Public(), KeyID: "2026-11"},
			{ID: "spiffe://example.org/gateway", Method: "jwt-bearer"}, {ID: supervisor, Method: "jwt-bearer"},
		}})
	w.server.SetURL(w.serve(w.server))
	return w
}

// host is where the server listens.
func (w *oauthWorld) host() string {
	return strings.TrimSuffix(strings.TrimPrefix(w.server.Issuer(), "https://"), "/realms/acme")
}

// follow runs the commands of the example as they are written there; only addresses and files are the test's. It returns what
// the commands on creds/ answered, by role.
func (w *oauthWorld) follow() map[string]*logical.Response {
	w.t.Helper()
	text, err := os.ReadFile("../bootstrap/targets/oauth.md")
	if err != nil {
		w.t.Fatal(err)
	}
	files := map[string]func() string{"client.secret": func() string { return clientSecret }, "client.key": func() string { return w.key }, "id.jwt": w.callersToken}
	here := strings.NewReplacer("\\\n", " ", loginURL, w.server.Issuer(), "https://token.actions.githubusercontent.com", w.issuerURL, "=login.example.com", "="+w.host())
	issued := map[string]*logical.Response{}
	for line := range strings.SplitSeq(here.Replace(string(text)), "\n") {
		words := shellWords(line)
		if len(words) < 3 || words[0] != "vault" {
			continue
		}
		path := strings.TrimPrefix(words[2], "oidcexchange/")
		data := map[string]any{}
		for _, word := range words[3:] {
			name, value, _ := strings.Cut(word, "=")
			if file, isFile := strings.CutPrefix(value, "@"); isFile {
				value = files[file]()
			}
			data[name] = value
		}
		if strings.HasPrefix(path, "issuers/") || strings.HasPrefix(path, "targets/") {
			data["ca_pem"] = w.ca
		}
		if words[1] == "write" {
			issued[strings.TrimPrefix(path, "creds/")] = w.write(path, data)
			continue
		}
		resp, err := w.do(logical.ReadOperation, path, nil)
		if reason, _ := reasonOf(resp, err); reason != "" {
			w.t.Fatalf("%s: %s\n%s", line, reason, w.logs)
		}
		issued[strings.TrimPrefix(path, "creds/")] = resp
	}
	return issued
}

// shellWords splits a line as a shell does that knows single quotes alone.
func shellWords(line string) []string {
	var words []string
	quoted := false
	for i, part := range strings.Split(line, "'") {
		if quoted = i%2 == 1; quoted {
			words[len(words)-1] += part
			continue
		}
		fields := strings.Fields(part)
		if i > 0 && len(fields) > 0 && !strings.HasPrefix(part, " ") {
			words[len(words)-1] += fields[0]
			fields = fields[1:]
		}
		words = append(words, fields...)
	}
	return words
}

func (w *oauthWorld) callersToken() string {
	return w.token(map[string]any{"aud": w.server.Issuer()})
}

// The example's commands work as they stand there, and each of their keys lives and ends at the server.
func TestOAuthExample(t *testing.T) {
	w := newOAuthWorld(t)
	issued := w.follow()
	for role, client := range map[string]string{"api-read": "vault", "robot": "robots", "sandbox": supervisor} {
		resp := issued[role]
		if resp == nil || resp.Secret == nil {
			t.Fatalf("%s: no key: %v", role, resp)
		}
		key := resp.Data["api_key"].(string)
		if !w.server.Valid(key) || resp.Data["header_name"] != "Authorization" || resp.Data["header_value"] != "Bearer "+key || resp.Data["revocable"] != true {
			t.Errorf("%s: valid %v, header %v, revocable %v", role, w.server.Valid(key), resp.Data["header_name"], resp.Data["revocable"])
		}
		live := w.server.Live()
		i := len(live) - 1
		for i >= 0 && (live[i].Client != client || !cmp.Equal(live[i].Audience, []string{"https://api.example.com"})) {
			i--
		}
		if i < 0 {
			t.Errorf("%s: no token of client %s for the API lives", role, client)
		}
		w.revoke(resp)
		if w.server.Valid(key) {
			t.Errorf("%s: the key lives on", role)
		}
	}
	// What lives is the token between the hops, which nobody has.
	if live := w.server.Live(); len(live) != 1 || live[0].Audience[0] != supervisor || live[0].Client != "spiffe://example.org/gateway" {
		t.Errorf("tokens live: %v", live)
	}
	if entries := w.ledgerEntries(); len(entries) != 0 {
		t.Errorf("the ledger has %v", entries)
	}
	w.wantUnseen(issued)
}

// wantUnseen wants no key and no secret in the logs, nor in storage but where they belong.
func (w *oauthWorld) wantUnseen(issued map[string]*logical.Response) {
	w.t.Helper()
	secrets := []string{clientSecret, strings.Split(w.key, "\n")[1]}
	for _, resp := range issued {
		if resp != nil && resp.Secret != nil {
			secrets = append(secrets, strings.Split(resp.Data["api_key"].(string), ".")[2])
		}
	}
	text := map[string]string{"the log": w.logs.String()}
	for _, key := range w.stored("") {
		entry, err := w.store.Storage.Get(w.t.Context(), key)
		if err != nil {
			w.t.Fatal(err)
		}
		text[key] = string(entry.Value)
	}
	for where, content := range text {
		for _, secret := range secrets {
			if strings.Contains(content, secret) && !strings.HasPrefix(where, "targets/") && !strings.HasPrefix(where, "sealed/") {
				w.t.Errorf("%s holds a secret", where)
			}
		}
	}
	for _, name := range []string{"login", "robots"} {
		for field, value := range w.read("targets/" + name) {
			if text, _ := value.(string); field == "client_secret" || field == "private_key" || strings.Contains(text, clientSecret) {
				w.t.Errorf("reading target %s shows %s", name, field)
			}
		}
	}
}

// What the server does, and what that means for a caller, for his token and for the ledger.
func TestOAuthOutcomes(t *testing.T) {
	for name, c := range map[string]struct {
		op      string
		fault   lab.Fault
		reason  string
		status  int
		exposed bool // a key may live
	}{
		"refused":            {lab.OpGrant, lab.Fault{Kind: lab.KindStatus, Status: 403}, reasonTargetDenied, 422, false},
		"busy":               {lab.OpGrant, lab.Fault{Kind: lab.KindStatus, Status: 503}, reasonTargetBusy, 503, false},
		"failed":             {lab.OpGrant, lab.Fault{Kind: lab.KindStatus, Status: 500, After: true}, reasonOutcomeUnknown, 422, true},
		"lost":               {lab.OpGrant, lab.Fault{Kind: lab.KindCut, After: true}, reasonOutcomeUnknown, 422, true},
		"redirected":         {lab.OpGrant, lab.Fault{Kind: lab.KindRedirect, Location: "https://evil.example"}, reasonOutcomeUnknown, 422, true},
		"nonsense":           {lab.OpGrant, lab.Fault{Kind: lab.KindNoSecret}, reasonTargetProtocol, 422, true},
		"a page":             {lab.OpGrant, lab.Fault{Kind: lab.KindHTML}, reasonTargetProtocol, 422, true},
		"no document":        {lab.OpDiscovery, lab.Fault{Kind: lab.KindStatus, Status: 404}, reasonTargetDenied, 422, false},
		"document is a page": {lab.OpDiscovery, lab.Fault{Kind: lab.KindHTML}, reasonTargetDenied, 422, false},
		"discovery fails":    {lab.OpDiscovery, lab.Fault{Kind: lab.KindStatus, Status: 500}, reasonTargetBusy, 503, false},
		"discovery is down":  {lab.OpDiscovery, lab.Fault{Kind: lab.KindCut}, reasonTargetBusy, 503, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newOAuthWorld(t)
			w.follow()
			for _, key := range w.ledgerEntries() {
				_ = w.store.Storage.Delete(t.Context(), key)
			}
			w.write("targets/login", map[string]any{"description": "the document is asked for anew"})
			w.server.Fault(c.op, c.fault)
			token := w.callersToken()
			if reason, status := reasonOf(w.exchange("api-read", token)); reason != c.reason || status != c.status {
				t.Fatalf("got %q %d; want %q %d\n%s", reason, status, c.reason, c.status, w.logs)
			}
			if said := strings.Contains(w.logs.String(), "injected fault"); said != (name == "refused") || strings.Contains(w.logs.String(), "Sign in") {
				t.Error("the log does not repeat a refusal's error, or repeats more than that")
			}
			w.server.ClearFaults()
			w.clock.advance(30 * time.Second) // the floor of discovery
			again, _ := reasonOf(w.exchange("api-read", token))
			if want := map[bool]string{true: reasonReplayed}[c.exposed]; again != want {
				t.Errorf("the same token afterwards: %q; want %q\n%s", again, want, w.logs)
			}
			w.settleAll()
			states := map[any]int{}
			for _, id := range w.list("keys") {
				states[w.read("keys/" + id)["state"]]++
			}
			want := map[any]int{stateIssued: 1}
			if c.exposed { // it cannot be found
				want = map[any]int{stateExposed: 1}
			}
			if diff := cmp.Diff(want, states); diff != "" {
				t.Errorf("the ledger (-want +got):\n%s", diff)
			}
		})
	}
}

// A token that the engine refuses is revoked at once, so nothing is left to show; where the server has no time for that, it is
// shown as exposed.
func TestOAuthRefusedTokenIsEnded(t *testing.T) {
	w := newOAuthWorld(t)
	w.follow()
	server := lab.NewOAuth(lab.OAuthOptions{Without: []string{"expires_in"}, Now: w.clock.now, Clients: []lab.OAuthClient{{ID: "vault", Method: "client_secret_basic", Secret: clientSecret}}})
	server.SetURL(w.serve(server))
	w.write("targets/unsaid", map[string]any{"driver": "oauth", "url": server.Issuer(), "grant": "client_credentials", "client_auth": "client_secret_basic",
		"client_id": "vault", "client_secret": clientSecret, "allowed_roles": "unsaid", "ca_pem": w.ca})
	w.write("roles/unsaid", map[string]any{"trust": "alice", "target": "unsaid", "ttl": "4m"})
	issue := func() (reason string) {
		reason, _ = reasonOf(w.do(logical.ReadOperation, "creds/unsaid", nil))
		w.settleAll()
		return reason
	}
	before := len(w.list("keys"))
	if reason := issue(); reason != reasonTargetProtocol || len(server.Live()) != 0 || len(w.list("keys")) != before {
		t.Errorf("%q; %d tokens live, the ledger has %d keys more\n%s", reason, len(server.Live()), len(w.list("keys"))-before, w.logs)
	}
	server.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 503})
	if reason := issue(); reason != reasonTargetProtocol || len(server.Live()) != 1 || len(w.list("keys")) != before+1 {
		t.Errorf("%q; %d tokens live, the ledger has %d keys more", reason, len(server.Live()), len(w.list("keys"))-before)
	}
}

// It is shown until the end that the server told of it, be that sooner or later than what its target's lifetime would have it.
func TestOAuthRefusedTokenIsShownUntilItsEnd(t *testing.T) {
	for life, want := range map[string]time.Duration{`"expires_in": 600`: 10 * time.Minute, `"expires_in": 864000`: 240 * time.Hour, `"expires_in": 0`: time.Hour, `"x": 0`: time.Hour} {
		w := newWorld(t)
		api := w.serve(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/revoke" {
				out.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintf(out, `{"access_token": "k3y", "token_type": "DPoP", %s}`, life)
		}))
		w.write("targets/dpop", map[string]any{"driver": "oauth", "url": api, "token_url": api + "/token", "revocation_url": api + "/revoke", "lifetime": "1h",
			"grant": "client_credentials", "client_auth": "client_secret_basic", "client_id": "vault", "client_secret": clientSecret, "allowed_roles": "dpop", "ca_pem": w.ca})
		w.write("roles/dpop", map[string]any{"trust": "alice", "target": "dpop", "ttl": "4m"})
		if reason, _ := reasonOf(w.do(logical.ReadOperation, "creds/dpop", nil)); reason != reasonTargetProtocol {
			t.Fatalf("%s: %q\n%s", life, reason, w.logs)
		}
		want := w.clock.now().Add(want + 3*time.Minute).UTC().Format(time.RFC3339) // the grace
		w.settleAll()
		if got := w.read("keys/" + w.list("keys")[0]); got["state"] != stateExposed || got["expires_at"] != want || got["not_after"] != want {
			t.Errorf("%s: %v until %v; want exposed until %s", life, got["state"], got["expires_at"], want)
		}
	}
}

// Renewing asks the server whether the token lives, and promises no more than it has.
func TestOAuthRenew(t *testing.T) {
	w := newOAuthWorld(t)
	resp := w.follow()["api-read"]
	w.clock.advance(2 * time.Minute)
	got, err := w.lease(logical.RenewOperation, resp)
	if reason, _ := reasonOf(got, err); reason != "" {
		t.Fatalf("%s\n%s", reason, w.logs)
	}
	if ttl := got.Secret.TTL; ttl <= 2*time.Minute || ttl >= 3*time.Minute {
		t.Errorf("the lease has %v; the token has three minutes", ttl)
	}
	if calls := w.server.Calls(lab.OpIntrospect); calls != 1 {
		t.Errorf("the server was asked %d times; want once", calls)
	}
	w.server.Fault(lab.OpIntrospect, lab.Fault{Kind: lab.KindStatus, Status: 500, Count: 1})
	if reason, status := reasonOf(w.lease(logical.RenewOperation, resp)); reason != reasonTargetBusy || status != 503 {
		t.Errorf("nobody knows: %q %d", reason, status)
	}
	// A document that lacks what is wanted says nothing of the key, which is not owed for that.
	w.write("targets/login", map[string]any{"description": "the document is asked for anew"})
	w.server.Fault(lab.OpDiscovery, lab.Fault{Kind: lab.KindStatus, Status: 404})
	if reason, status := reasonOf(w.lease(logical.RenewOperation, resp)); reason != reasonTargetDenied || status != 422 || len(w.stored(openEntries)) != 0 {
		t.Errorf("no document: %q %d; open: %v", reason, status, w.stored(openEntries))
	}
	w.server.ClearFaults()
	w.clock.advance(30 * time.Second) // the floor of discovery
	w.revoke(resp)
	e := w.ledgerEntries()
	if len(e) != 2 { // of the other roles
		t.Errorf("the ledger has %v", e)
	}

	resp, err = w.exchange("api-read", w.callersToken())
	if reason, _ := reasonOf(resp, err); reason != "" {
		t.Fatal(reason)
	}
	w.endsAtTheServer(resp)
	if reason, status := reasonOf(w.lease(logical.RenewOperation, resp)); reason != reasonTrustChanged || status != 403 {
		t.Errorf("of a token that was revoked elsewhere: %q %d", reason, status)
	}
	if state := w.read("keys/" + resp.Data["id"].(string))["state"]; state != stateDebt {
		t.Errorf("the ledger calls the key %v; want a debt", state)
	}
	w.revoke(resp) // what is gone is success
}

// A server that can tell is asked at each renewal, also where the key outlives the lease: what ended there is not renewed, and
// the sweeper makes sure of its end.
func TestOAuthRenewAsksEachTime(t *testing.T) {
	w := newOAuthWorld(t)
	w.follow()
	w.write("roles/api-read", map[string]any{"ttl": "1m", "max_ttl": "2m"}) // the token has five
	resp, err := w.exchange("api-read", w.callersToken())
	if reason, _ := reasonOf(resp, err); reason != "" {
		t.Fatal(reason)
	}
	for n := range 2 {
		w.store.set(nil)
		if reason, _ := reasonOf(w.lease(logical.RenewOperation, resp)); reason != "" || w.server.Calls(lab.OpIntrospect) != n+1 {
			t.Fatalf("renewal %d: %q after %d questions", n, reason, w.server.Calls(lab.OpIntrospect))
		}
		for _, call := range w.store.seen {
			if strings.HasPrefix(call, "put ") {
				t.Errorf("an answer that changes nothing is written: %s", call)
			}
		}
	}
	w.endsAtTheServer(resp)
	for range 2 {
		if reason, _ := reasonOf(w.lease(logical.RenewOperation, resp)); reason != reasonTrustChanged {
			t.Errorf("renewing what has ended: %q", reason)
		}
	}
	if n := w.server.Calls(lab.OpIntrospect); n != 3 {
		t.Errorf("%d questions; want none about what is known to have ended", n)
	}
	revoked := w.server.Calls(lab.OpRevoke)
	w.clock.advance(debtPatience)
	w.write("sweep", nil)
	if reason, _ := reasonOf(w.do(logical.ReadOperation, "keys/"+resp.Data["id"].(string), nil)); reason != "" || w.server.Calls(lab.OpRevoke) != revoked+1 {
		t.Errorf("%q after %d revocations", reason, w.server.Calls(lab.OpRevoke)-revoked)
	}
	if got, err := w.do(logical.ReadOperation, "keys/"+resp.Data["id"].(string), nil); got != nil || err != nil {
		t.Errorf("the ledger still has %v", got)
	}

	// If the ledger cannot learn it, the renewal is refused all the same.
	resp, err = w.exchange("api-read", w.callersToken())
	if reason, _ := reasonOf(resp, err); reason != "" {
		t.Fatal(reason)
	}
	w.endsAtTheServer(resp)
	w.store.set(func(op, key string) error {
		if op == "put" {
			return errors.New("disk full")
		}
		return nil
	})
	if reason, status := reasonOf(w.lease(logical.RenewOperation, resp)); reason != reasonStorage || status != 500 {
		t.Errorf("while nothing can be written: %q %d", reason, status)
	}
}

// A change after which nobody could revoke the keys that live at the server is refused, and says how many they are.
func TestOAuthRevocationStays(t *testing.T) {
	w := newOAuthWorld(t)
	resp := w.follow()["api-read"]
	none := map[string]any{"revocation_url": "none", "client_secret": clientSecret}
	if got, err := w.do(logical.UpdateOperation, "targets/login", none); err != nil || !got.IsError() || !strings.Contains(got.Error().Error(), "revocation_url: after this change, 1 keys") {
		t.Errorf("%v %v", got, err)
	}
	w.refused("targets/login", map[string]any{"token_url": w.server.Issuer() + "/token", "client_secret": clientSecret}, "token_url")
	w.write("targets/login", map[string]any{"description": "what takes nothing away"})
	w.revoke(resp)
	w.write("targets/login", none)
	if got := w.read("check/login"); got["revoke"] != false {
		t.Errorf("%v", got)
	}
}

// endsAtTheServer revokes a key behind the engine's back.
func (w *oauthWorld) endsAtTheServer(resp *logical.Response) {
	w.t.Helper()
	form := strings.NewReader("token=" + resp.Data["api_key"].(string))
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.server.Issuer()+"/revoke", form)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth("vault", clientSecret)
	answer, err := w.client().Do(req)
	if err != nil || answer.StatusCode != http.StatusOK {
		w.t.Fatalf("%v %v", answer, err)
	}
	_ = answer.Body.Close()
}

// A key that cannot be revoked for now becomes a debt, which is paid.
func TestOAuthRevokeLater(t *testing.T) {
	w := newOAuthWorld(t)
	resp := w.follow()["api-read"]
	for _, fault := range []lab.Fault{{Kind: lab.KindStatus, Status: 503}, {Kind: lab.KindStatus, Status: 404}, {Kind: lab.KindCut}, {Kind: lab.KindStatus, Status: 401}} {
		w.server.ClearFaults()
		w.server.Fault(lab.OpRevoke, fault)
		if _, err := w.lease(logical.RevokeOperation, resp); err == nil {
			t.Errorf("%v: revoked", fault)
		}
		if !w.server.Valid(resp.Data["api_key"].(string)) {
			t.Fatalf("%v: the key is gone: then this proves nothing", fault)
		}
	}
	w.server.ClearFaults()
	w.clock.advance(debtPatience - 31*time.Second) // before the token ends by itself
	w.write("sweep", nil)
	w.revoke(resp)
	if w.server.Valid(resp.Data["api_key"].(string)) {
		t.Error("the key lives on")
	}
}

// The caller's token goes to no host that its issuer does not list, wherever the fields send it.
func TestOAuthForwardsNowhereElse(t *testing.T) {
	w := newOAuthWorld(t)
	w.follow()
	elsewhere := lab.NewOAuth(lab.OAuthOptions{})
	url := w.serve(elsewhere)
	host := strings.TrimPrefix(url, "https://")
	for name, data := range map[string]map[string]any{
		"token_url":   {"token_url": url + "/token", "revocation_url": "discover", "token_hosts": host, "client_secret": clientSecret},
		"token_hosts": {"token_url": "", "token_hosts": host, "client_secret": clientSecret}, // a document could name that
		"chain":       {"token_hosts": host, "chain": `[{"audience": "vault", "token_url": "` + url + `/token"}]`, "client_secret": clientSecret},
	} {
		w.write("targets/login", data)
		before := w.server.Calls(lab.OpGrant)
		if reason, status := reasonOf(w.exchange("api-read", w.callersToken())); reason != reasonNotForwardable || status != 403 {
			t.Errorf("%s: %q %d", name, reason, status)
		}
		if elsewhere.Calls(lab.OpGrant) != 0 || w.server.Calls(lab.OpGrant) != before {
			t.Errorf("%s: something was sent", name)
		}
		w.write("targets/login", map[string]any{"token_url": nil, "token_hosts": nil, "chain": nil, "client_secret": clientSecret})
	}
	w.write("issuers/github", map[string]any{"forward_to": w.host() + "," + host})
	w.write("targets/login", map[string]any{"token_hosts": host, "client_secret": clientSecret})
	if reason, _ := reasonOf(w.exchange("api-read", w.callersToken())); reason != "" {
		t.Errorf("to a host that is listed: %q\n%s", reason, w.logs)
	}
}

// Without an SVID of its own nothing is sent, and the caller's token is as good as before.
func TestOAuthWithoutSVID(t *testing.T) {
	w := newOAuthWorld(t)
	w.follow()
	before := w.server.Calls(lab.OpGrant)
	token := w.callersToken()
	for status, want := range map[int]string{http.StatusForbidden: reasonNotForwardable, http.StatusServiceUnavailable: reasonTargetBusy} {
		w.agent.Fault(lab.OpSVID, lab.Fault{Kind: lab.KindStatus, Status: status, Count: 1})
		if reason, _ := reasonOf(w.exchange("sandbox", token)); reason != want {
			t.Errorf("%d: %q; want %q\n%s", status, reason, want, w.logs)
		}
	}
	if w.server.Calls(lab.OpGrant) != before {
		t.Error("something was sent")
	}
	w.agent.Fault(lab.OpSVID, lab.Fault{Kind: lab.KindStatus, Status: http.StatusServiceUnavailable, Count: 1})
	own := w.oauth(targetRecord{Driver: target.DriverOAuth}, egress.Policy{}).OwnToken
	if _, err := own(t.Context(), target.SourceSVID, "", "x"); !errors.Is(err, target.ErrBusy) { // what revokes then is tried again
		t.Errorf("got %v; want one that is ErrBusy", err)
	}
	if reason, _ := reasonOf(w.exchange("sandbox", token)); reason != "" {
		t.Errorf("afterwards: %q", reason)
	}
}

func TestOAuthFields(t *testing.T) {
	w := newOAuthWorld(t)
	w.follow()
	t.Setenv("OIDCEXCHANGE_TOKEN_DIRS", "")
	for _, c := range []struct {
		target string
		data   map[string]any
		field  string // "" = accepted
	}{
		{"login", map[string]any{"client_auth": "magic"}, "client_auth"},
		{"login", map[string]any{"grant": "implicit"}, "grant"},
		{"login", map[string]any{"subject_token_source": "client_credentials"}, "subject_token_source"},
		{"login", map[string]any{"token_auth": "post"}, "token_auth"},
		{"login", map[string]any{"token_scopes": "a"}, "token_scopes"},
		{"login", map[string]any{"token_params": "a=b"}, "token_params"},
		{"login", map[string]any{"credential": "a=b"}, "credential"},
		{"login", map[string]any{"client_secret": nil}, "client_secret"},
		{"login", map[string]any{"token_file": "/etc/shadow"}, "token_file"},
		{"login", map[string]any{"chain": "[{]"}, "chain"},
		{"login", map[string]any{"chain": []any{map[string]any{"audience": "a"}}}, "chain"},
		{"login", map[string]any{"lifetime": -1}, "lifetime"},
		{"login", map[string]any{"url": "https://other.example"}, "url"},
		// Whoever may write targets cannot have the secret sent elsewhere.
		{"login", map[string]any{"token_url": "https://" + w.host() + "/x"}, "client_secret"},
		{"login", map[string]any{"url": "https://" + w.host() + "/other"}, "client_secret"},
		{"login", map[string]any{"revocation_url": "https://" + w.host() + "/x"}, "client_secret"},
		{"login", map[string]any{"introspection_url": "https://" + w.host() + "/x"}, "client_secret"},
		{"login", map[string]any{"token_hosts": "h.example"}, "client_secret"},
		{"login", map[string]any{"chain": `[{"audience":"a"}]`}, "client_secret"},
		{"login", map[string]any{"ca_pem": ""}, "client_secret"},
		{"login", map[string]any{"token_hosts": "h.example", "client_secret": clientSecret}, ""},
		{"robots", map[string]any{"assertion_audience": "https://other.example"}, "private_key"},
		{"robots", map[string]any{"assertion_audience": "https://other.example", "private_key": w.key}, ""},
		{"robots", map[string]any{"subject_token_source": "request"}, "subject_token_source"},
		{"robots", map[string]any{"private_key": "x"}, "private_key"},
		{"sandbox", map[string]any{"spiffe_id": "spiffe:// "}, "spiffe_id"},
		{"acme", map[string]any{"grant": "token_exchange"}, "grant"},
		{"acme", map[string]any{"client_auth": "none"}, "client_auth"},
		{"acme", map[string]any{"private_key": w.key}, "private_key"},
		{"acme", map[string]any{"private_key_id": "k"}, "private_key_id"},
		{"acme", map[string]any{"assertion_audience": "a"}, "assertion_audience"},
		{"acme", map[string]any{"subject_token_type": "jwt"}, "subject_token_type"},
		{"acme", map[string]any{"chain": "[]"}, "chain"},
		{"acme", map[string]any{"revocation_url": "none"}, "revocation_url"},
		{"acme", map[string]any{"introspection_url": "none"}, "introspection_url"},
		{"acme", map[string]any{"token_hosts": "h.example"}, "token_hosts"},
		{"acme", map[string]any{"lifetime": 60}, "lifetime"},
		{"acme", map[string]any{"client_id": "x"}, "client_id"},
	} {
		if c.field == "" {
			w.write("targets/"+c.target, c.data)
			continue
		}
		w.refused("targets/"+c.target, c.data, c.field)
	}
	t.Setenv(endpointSocket, "")
	w.restart()
	w.refused("targets/sandbox", map[string]any{"description": "x"}, "client_auth")
	w.write("targets/sandbox", map[string]any{"enabled": false})
}
