// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

const (
	ownAudience  = "https://api.acme.example"
	clientSecret = "canary-client-secret"
	engineID     = "spiffe://example.org/vault/engine"
)

// owned is a world with a key API that gives keys to the engine's own identity, by a token of one source.
type owned struct {
	*world
	file     string             // where the token is that source file reads
	endpoint *lab.TokenEndpoint // what source client_credentials asks
	agent    *lab.WorkloadAPI   // what source svid asks
	written  []string           // the tokens that were in the file

	mu        sync.Mutex
	presented []string // what the key API was shown
}

// ownSources are the fields of target own for each source.
func (w *owned) ownSources() map[string]map[string]any {
	return map[string]map[string]any{
		"file": {"token_file": w.file},
		"client_credentials": {"token_url": w.serve(w.endpoint) + "/token", "client_id": "engine", "client_secret": clientSecret,
			"token_scopes": "keys,read", "token_params": "resource=" + ownAudience},
		"svid": {"spiffe_id": engineID},
	}
}

// newOwned makes target own with the source, and role own.
func newOwned(t testing.TB, source string) *owned {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("OIDCEXCHANGE_TOKEN_DIRS", "/nowhere:"+dir)
	socket := filepath.Join(t.TempDir(), "socket")
	t.Setenv(endpointSocket, "unix://"+socket)
	w := &owned{world: newWorld(t), file: filepath.Join(dir, "token")}
	w.agent = lab.NewWorkloadAPI(lab.WorkloadAPIOptions{IDs: []string{"spiffe://example.org/vault", engineID}, Now: w.clock.now})
	if err := w.agent.Start(socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.agent.Stop)
	w.keys = lab.NewKeyAPI(lab.KeyAPIOptions{AdminToken: adminToken, Now: w.clock.now, MayCreate: func(token string) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.presented = append(w.presented, token)
		return true
	}})
	w.endpoint = lab.NewTokenEndpoint(lab.TokenEndpointOptions{Issuer: w.issuer, ClientID: "engine", ClientSecret: clientSecret, Audience: ownAudience})
	w.writeToken(nil)
	data := map[string]any{"driver": "http", "url": w.serve(w.keys), "profile": w.ownProfile(), "ca_pem": w.ca,
		"credential": "token=" + adminToken, "allowed_roles": "*", "subject_token_source": source, "audience": ownAudience}
	maps.Copy(data, w.ownSources()[source])
	w.write("targets/own", data)
	w.write("roles/own", map[string]any{"trust": "main,alice", "target": "own", "parameters": "project=widget"})
	return w
}

// ownProfile is acme, but keys are made for the bearer of a subject token. All else is done with the credential.
func (w *owned) ownProfile() string {
	const headers = `  headers: {Authorization: '"Bearer " + credential.token'}` + "\n"
	profile := w.profile(headers, strings.Replace(headers, "credential.token", "subject_token", 1))
	profile = strings.Replace(profile, "subject_token_source: none", "subject_token_source: file", 1)
	for _, method := range []string{"PATCH", "DELETE", "GET"} {
		profile = strings.ReplaceAll(profile, "  method: "+method+"\n", "  method: "+method+"\n"+headers)
	}
	return profile
}

// writeToken puts a token into the file.
func (w *owned) writeToken(claims map[string]any) {
	w.t.Helper()
	all := map[string]any{"aud": ownAudience, "sub": "engine", "exp": w.clock.now().Add(time.Hour).Unix()}
	maps.Copy(all, claims)
	token := w.issuer.Token(all)
	w.written = append(w.written, token)
	if err := os.WriteFile(w.file, []byte(token), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// wantUnseen wants nothing of the engine's own tokens and secrets in logs, and in storage the client secret alone, in the
// target's record.
func (w *owned) wantUnseen() {
	w.t.Helper()
	tokens := slices.Concat(w.endpoint.Issued(), w.written, w.presented)
	text := map[string]string{"the log": w.logs.String()}
	for _, key := range w.stored("") {
		entry, err := w.store.Storage.Get(w.t.Context(), key)
		if err != nil {
			w.t.Fatal(err)
		}
		text[key] = string(entry.Value)
	}
	for where, content := range text {
		for _, token := range tokens {
			if strings.Contains(content, token) || strings.Contains(content, strings.Split(token, ".")[2]) {
				w.t.Errorf("%s holds a token", where)
			}
		}
		if where != "targets/own" && strings.Contains(content, clientSecret) {
			w.t.Errorf("%s holds the client secret", where)
		}
	}
}

func TestIssueWithTheEnginesOwnToken(t *testing.T) {
	for _, source := range []string{"file", "client_credentials", "svid"} {
		t.Run(source, func(t *testing.T) {
			w := newOwned(t, source)
			byToken := w.issue("own")
			byLogin, err := w.do(logical.ReadOperation, "creds/own", nil)
			if err != nil || byLogin.IsError() {
				t.Fatalf("%v %v", err, byLogin)
			}
			if len(w.presented) != 2 {
				t.Fatalf("%d tokens were presented; want 2", len(w.presented))
			}
			for _, token := range w.presented {
				switch source {
				case "file":
					if token != w.written[0] {
						t.Error("it is not the file's token")
					}
				case "client_credentials":
					if !cmp.Equal(w.endpoint.Issued(), []string{token}) {
						t.Errorf("%d tokens were issued, or another", len(w.endpoint.Issued()))
					}
				case "svid":
					if svid, err := jwtsvid.ParseInsecure(token, []string{ownAudience}); err != nil || svid.ID.String() != engineID {
						t.Errorf("%v, %v; want an SVID of %s", svid, err, engineID)
					}
				}
			}
			// Whose key it is, the caller decides alone.
			if byToken.Data["subject"] != "repo:acme/widget:ref:refs/heads/main" || byLogin.Data["subject"] != "alice" {
				t.Errorf("subjects %v and %v", byToken.Data["subject"], byLogin.Data["subject"])
			}
			w.wantUnseen()
			w.revoke(byToken)
			w.wantSettled(byLogin)
		})
	}
}

// Without a token nothing is sent, nothing stays in the ledger, and the caller's token is as good as before.
func TestNoOwnToken(t *testing.T) {
	for name, c := range map[string]struct {
		source string
		spoil  func(*owned)
		mend   func(*owned)
		reason string
		status int
	}{
		"file is for another": {"file", func(w *owned) { w.writeToken(map[string]any{"aud": "https://other.example"}) },
			func(w *owned) { w.writeToken(nil) }, reasonNotForwardable, http.StatusForbidden},
		"file is missing": {"file", func(w *owned) { _ = os.Remove(w.file) },
			func(w *owned) { w.writeToken(nil) }, reasonNotForwardable, http.StatusForbidden},
		"client is refused": {"client_credentials", func(w *owned) { w.endpoint.Fault(lab.OpGrant, lab.Fault{Kind: lab.KindStatus, Status: 401}) },
			func(w *owned) { w.endpoint.ClearFaults() }, reasonNotForwardable, http.StatusForbidden},
		"endpoint redirects": {"client_credentials", func(w *owned) { w.endpoint.Fault(lab.OpGrant, lab.Fault{Kind: lab.KindRedirect, Location: "/token"}) },
			func(w *owned) { w.endpoint.ClearFaults() }, reasonNotForwardable, http.StatusForbidden},
		"endpoint is busy": {"client_credentials", func(w *owned) { w.endpoint.Fault(lab.OpGrant, lab.Fault{Kind: lab.KindStatus, Status: 503}) },
			func(w *owned) { w.endpoint.ClearFaults() }, reasonTargetBusy, http.StatusServiceUnavailable},
		"endpoint is down": {"client_credentials", func(w *owned) { w.endpoint.Fault(lab.OpGrant, lab.Fault{Kind: lab.KindCut}) },
			func(w *owned) { w.endpoint.ClearFaults() }, reasonTargetBusy, http.StatusServiceUnavailable},
		"no SVID for us": {"svid", func(w *owned) { w.agent.Fault(lab.OpSVID, lab.Fault{Kind: lab.KindStatus, Status: 403}) },
			func(w *owned) { w.agent.ClearFaults() }, reasonNotForwardable, http.StatusForbidden},
		"agent is down": {"svid", func(w *owned) { w.agent.Stop() },
			func(w *owned) {
				if err := w.agent.Start(strings.TrimPrefix(os.Getenv(endpointSocket), "unix://")); err != nil {
					w.t.Fatal(err)
				}
			}, reasonTargetBusy, http.StatusServiceUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			w := newOwned(t, c.source)
			c.spoil(w)
			token := w.token(nil)
			if reason, status := reasonOf(w.exchange("own", token)); reason != c.reason || status != c.status {
				t.Fatalf("got %q %d; want %q %d\n%s", reason, status, c.reason, c.status, w.logs)
			}
			if calls := w.keys.Calls(lab.OpCreate); calls != 0 {
				t.Errorf("%d calls reached the target", calls)
			}
			w.wantSettled()
			if strings.Contains(w.logs.String(), "injected fault") || strings.Contains(w.logs.String(), w.file) {
				t.Error("the log repeats what the source said, or the path")
			}
			w.wantUnseen()
			c.mend(w)
			if reason, _ := reasonOf(w.exchange("own", token)); reason != "" {
				t.Errorf("afterwards: %q", reason)
			}
		})
	}
}

// Whoever issues shares one token of the endpoint, until the target or the config is written.
func TestClientCredentialsAreKept(t *testing.T) {
	w := newOwned(t, "client_credentials")
	w.write("targets/own", map[string]any{"concurrency": 64})
	var wg sync.WaitGroup
	for n := range 64 {
		token := w.token(nil)
		wg.Go(func() {
			if reason, _ := reasonOf(w.request(t.Context(), fmt.Sprintf("c-%d", n), logical.UpdateOperation, "creds/own", map[string]any{"subject_token": token})); reason != "" {
				t.Errorf("refused for %s", reason)
			}
		})
	}
	wg.Wait()
	if calls := w.endpoint.Calls(lab.OpGrant); calls != 1 || len(w.keys.Live()) != 64 {
		t.Errorf("%d calls for %d keys; want 1 for 64", calls, len(w.keys.Live()))
	}
	for n, change := range []func(){
		func() { w.write("targets/own", map[string]any{"description": "x"}) },
		func() { w.InvalidateKey(t.Context(), "targets/own") }, // written by another node
		func() { w.write("config", map[string]any{"request_timeout": "10s"}) },
	} {
		change()
		w.issue("own")
		w.issue("own")
		if calls := w.endpoint.Calls(lab.OpGrant); calls != n+2 {
			t.Errorf("after change %d: %d calls; want %d", n+1, calls, n+2)
		}
	}
}

// A plugin that was registered anew without its directories, or a config that forbids the endpoint, stops issuing. What
// lives can still be revoked.
func TestRevokingNeedsNoSource(t *testing.T) {
	for source, c := range map[string]struct {
		change func(*owned)
		field  string // of the next write's refusal
	}{
		"file": {func(w *owned) {
			w.t.Setenv("OIDCEXCHANGE_TOKEN_DIRS", "")
			w.restart()
		}, "token_file"},
		"client_credentials": {func(w *owned) {
			w.write("targets/own", map[string]any{"token_url": "https://issuer.example/token", "client_secret": clientSecret})
			w.write("config", map[string]any{"egress_hosts": "127.0.0.1"})
		}, "token_url"},
		"svid": {func(w *owned) {
			w.t.Setenv(endpointSocket, "")
			w.restart()
		}, "subject_token_source"},
	} {
		t.Run(source, func(t *testing.T) {
			w := newOwned(t, source)
			resp := w.issue("own")
			c.change(w)
			w.refused("targets/own", map[string]any{"description": "x"}, c.field)
			if reason, status := reasonOf(w.exchange("own", w.token(nil))); reason != reasonNotForwardable || status != http.StatusForbidden {
				t.Errorf("issuing: %q %d", reason, status)
			}
			w.write("targets/own", map[string]any{"enabled": false})
			w.revoke(resp)
			w.wantSettled()
		})
	}
}

func TestSourceFields(t *testing.T) {
	for source, writes := range map[string][]struct {
		data  map[string]any
		field string // "" = accepted
	}{
		"file": {
			{map[string]any{"token_file": "/etc/shadow"}, "token_file"},
			{map[string]any{"token_file": nil}, "token_file"},
			{map[string]any{"audience": ""}, "audience"},
			{map[string]any{"token_url": "https://issuer.example/token"}, "token_url"},
			{map[string]any{"client_id": "x"}, "client_id"},
			{map[string]any{"client_secret": "x"}, "client_secret"},
			{map[string]any{"token_auth": "post"}, "token_auth"},
			{map[string]any{"token_scopes": "x"}, "token_scopes"},
			{map[string]any{"token_params": "a=b"}, "token_params"},
			{map[string]any{"spiffe_id": "spiffe://example/a"}, "spiffe_id"},
			{map[string]any{"subject_token_source": "request"}, "token_file"},
			{map[string]any{"subject_token_source": "svid"}, "token_file"},
			{map[string]any{"subject_token_source": "vault"}, "subject_token_source"},
			{map[string]any{"subject_token_source": "request", "token_file": ""}, ""},
			{map[string]any{"token_file": "/nowhere/t"}, "token_file"}, // with source request
		},
		"client_credentials": {
			{map[string]any{"token_url": "http://issuer.example"}, "token_url"},
			{map[string]any{"token_url": "https://10.0.0.1/token", "client_secret": "x"}, "token_url"},
			{map[string]any{"token_url": "https://issuer.example/token"}, "client_secret"},
			{map[string]any{"ca_pem": "", "credential": "token=x"}, "client_secret"},
			{map[string]any{"proxy_url": "https://proxy.example", "credential": "token=x"}, "client_secret"},
			{map[string]any{"proxy_url": "https://proxy.example", "client_secret": "x"}, "credential"},
			{map[string]any{"client_secret": nil}, "client_secret"},
			{map[string]any{"token_auth": "both"}, "token_auth"},
			{map[string]any{"token_params": "grant_type=password"}, "token_params"},
			{map[string]any{"token_file": "/nowhere/t"}, "token_file"},
			{map[string]any{"token_url": "https://issuer.example/token", "client_secret": "x"}, ""},
			{map[string]any{"audience": nil, "token_scopes": nil, "token_params": nil}, ""},
		},
		"svid": {
			{map[string]any{"spiffe_id": "example/a"}, "spiffe_id"},
			{map[string]any{"audience": nil}, "audience"},
			{map[string]any{"client_id": "x"}, "client_id"},
			{map[string]any{"spiffe_id": nil}, ""},
		},
	} {
		t.Run(source, func(t *testing.T) {
			w := newOwned(t, source)
			for _, c := range writes {
				if c.field != "" {
					w.refused("targets/own", c.data, c.field)
					continue
				}
				w.write("targets/own", c.data)
			}
			shown := w.read("targets/own")
			if _, there := shown["client_secret"]; there || shown["client_secret_set"] != (source == "client_credentials") {
				t.Errorf("read shows %v", shown)
			}
		})
	}
}

// Records from before there were sources of the engine's own load as targets without one.
func TestFirstTargetsLoad(t *testing.T) {
	var got [2]*targetRecord
	for n, name := range []string{"target", "target-first"} {
		raw, err := os.ReadFile(filepath.Join("testdata", "v1", name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		if got[n], err = newEngine(nil).targetNoun.table.decode(raw); err != nil {
			t.Fatal(err)
		}
	}
	want := *got[0]
	want.TokenFile, want.TokenURL, want.ClientID, want.ClientSecret, want.TokenAuth, want.SPIFFEID = "", "", "", "", "", ""
	want.TokenScopes, want.TokenParams, want.Lifetime, want.oauthRecord = []string{}, map[string]string{}, 0, oauthRecord{TokenHosts: []string{}}
	want.SelfSubject = "" // nor of this mount's
	if diff := cmp.Diff(&want, got[1], cmp.AllowUnexported(targetRecord{})); diff != "" {
		t.Error(diff)
	}
}
