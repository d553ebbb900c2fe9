// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// clock is a clock that tests move.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// ahead lets the engine's clock run ahead of everybody else's, until it is made anew.
func (w *world) ahead(d time.Duration) {
	w.engine.now = func() time.Time { return w.clock.now().Add(d) }
}

// world is an engine with an identity provider and a key API around it.
type world struct {
	*engine
	t      testing.TB
	clock  *clock
	system *logical.StaticSystemView
	store  *faultyStorage
	logs   *strings.Builder
	events *bus
	issuer *lab.Issuer
	keys   *lab.KeyAPI
	nuget  *lab.NuGet

	requests int
	doors    map[controlled]*door

	issuerURL, keysURL, nugetURL, ca string
}

const (
	audience   = "https://vault.example"
	adminToken = "canary-admin-token"
)

// acme is the example profile that is shipped, so that what users start from is what the tests run.
var acme = func() string {
	text, err := os.ReadFile("../bootstrap/targets/acme.yaml")
	if err != nil {
		panic(err)
	}
	return string(text)
}()

// profile returns acme with one text replaced by another, everywhere.
func (w *world) profile(old, by string) string {
	w.t.Helper()
	if !strings.Contains(acme, old) {
		w.t.Fatalf("the profile has no %q", old)
	}
	return strings.ReplaceAll(acme, old, by)
}

// All stand-ins have one certificate, of a key whose handshakes are cheap.
var (
	authority   = lab.NewAuthority()
	certificate = authority.Issue(nil)
)

// newWorld makes an engine with issuer github, trust policy main, targets acme and nuget, and roles deploy and publish.
func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, ca: authority.PEM(), clock: &clock{at: time.Now().Truncate(time.Second)}, logs: &strings.Builder{}, events: &bus{}, doors: map[controlled]*door{}, store: &faultyStorage{Storage: &logical.InmemStorage{}}}
	w.issuer = lab.NewIssuer(lab.IssuerOptions{Now: w.clock.now, Algorithm: "ES256"})
	w.issuerURL = w.serve(w.issuer)
	w.issuer.SetURL(w.issuerURL)
	w.keys = lab.NewKeyAPI(lab.KeyAPIOptions{AdminToken: adminToken, Now: w.clock.now})
	w.keysURL = w.serve(w.keys)
	w.system = logical.TestSystemView()
	w.system.PluginEnvironment = &logical.PluginEnvironment{VaultVersion: "1.21.2", VaultVersionMetadata: "ent.hsm"}
	w.system.DefaultLeaseTTLVal, w.system.MaxLeaseTTLVal = time.Hour, 24*time.Hour
	w.system.EntityVal = &logical.Entity{ID: "entity-1", Name: "ci", Metadata: map[string]string{"team": "red"}, Aliases: []*logical.Alias{
		{MountAccessor: "auth_userpass_1", Name: "alice", Metadata: map[string]string{"shift": "night"}, CustomMetadata: map[string]string{"grade": "a"}},
		{MountAccessor: "auth_jwt_1", Name: "repo:acme/widget:ref:refs/heads/main"},
	}}
	w.system.GroupsVal = []*logical.Group{{ID: "g1", Name: "deployers"}}
	w.restart()
	t.Cleanup(func() { w.configChanged() }) // of the last engine

	w.write("config", map[string]any{"allow_private": "127.0.0.0/8"})
	w.write("issuers/github", map[string]any{"oidc_discovery_url": w.issuerURL, "ca_pem": w.ca})
	w.write("issuers/people", map[string]any{"type": "login", "mount_accessor": "auth_userpass_1"})
	w.write("trust/main", map[string]any{"issuer": "github", "bound_audiences": audience, "bound_claims": map[string]any{"repository": "acme/widget"}})
	w.write("trust/alice", map[string]any{"issuer": "people", "bound_subject": "alice"})
	w.write("targets/acme", map[string]any{"driver": "http", "url": w.keysURL, "profile": acme, "ca_pem": w.ca, "credential": "token=" + adminToken, "allowed_roles": "*"})
	w.write("roles/deploy", map[string]any{"trust": "main,alice", "target": "acme", "parameters": "project=widget", "ttl": "15m", "max_ttl": "2h"})
	return w
}

// withNuGet adds a NuGet gallery, with a role publish.
func (w *world) withNuGet() *world {
	w.t.Helper()
	w.nuget = lab.NewNuGet(lab.NuGetOptions{Issuers: []string{w.issuerURL}, Client: w.client(), Now: w.clock.now, Audience: "https://www.nuget.org"})
	w.nuget.SetUser(lab.User{Name: "jim"})
	w.nuget.AddPolicy(lab.Policy{User: "jim", Owner: "acme", Repository: "widget", Workflow: "release.yml"})
	w.nugetURL = w.serve(w.nuget)
	w.write("issuers/github", map[string]any{"forward_to": strings.TrimPrefix(w.nugetURL, "https://")})
	w.write("trust/nuget", map[string]any{"issuer": "github", "bound_audiences": "https://www.nuget.org", "bound_claims": map[string]any{"repository": "acme/widget"}})
	w.write("targets/nuget", map[string]any{"driver": "nuget", "url": w.nugetURL, "ca_pem": w.ca, "allowed_roles": "publish"})
	w.write("roles/publish", map[string]any{"trust": "nuget", "target": "nuget", "parameters": "username=jim"})
	return w
}

// controlled is what a test does to a stand-in from outside.
type controlled interface {
	Fault(op string, f lab.Fault)
	ClearFaults()
	OnRequest(f func(op string, stage lab.Stage))
}

// door is a server's listener; while it is shut, connections are closed before a byte is read.
type door struct {
	net.Listener
	shut atomic.Bool
}

func (d *door) Accept() (net.Conn, error) {
	for {
		conn, err := d.Listener.Accept()
		if err != nil || !d.shut.Load() {
			return conn, err
		}
		_ = conn.Close()
	}
}

// serve runs a handler with TLS, under one certificate for all.
func (w *world) serve(h http.Handler) string {
	server := httptest.NewUnstartedServer(h)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	if c, ok := h.(controlled); ok {
		w.doors[c] = &door{Listener: server.Listener}
		server.Listener = w.doors[c]
	}
	server.StartTLS()
	w.t.Cleanup(server.Close)
	return server.URL
}

func (w *world) client() *http.Client { return authority.Client() }

// restart makes the engine anew on the same storage, as after the end of its process.
func (w *world) restart() {
	w.t.Helper()
	if w.engine != nil {
		w.Cleanup(w.t.Context())
	}
	w.engine = newEngine(w.clock.now)
	err := w.Setup(w.t.Context(), &logical.BackendConfig{
		System: w.system, StorageView: w.store, EventsSender: w.sender(),
		Logger: hclog.New(&hclog.LoggerOptions{Output: &lockedWriter{b: w.logs}, Level: hclog.Trace}),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.ledger.count(w.t.Context(), w.store); err != nil {
		w.t.Fatal(err)
	}
}

type lockedWriter struct {
	mu sync.Mutex
	b  *strings.Builder
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (w *world) do(op logical.Operation, path string, data map[string]any) (*logical.Response, error) {
	w.t.Helper()
	w.requests++
	req := &logical.Request{ID: fmt.Sprintf("request-%d", w.requests), Operation: op, Path: path, Data: data, Storage: w.store, MountPoint: "oidcexchange/", EntityID: "entity-1", DisplayName: "userpass-alice",
		Connection: &logical.Connection{RemoteAddr: "192.0.2.7"}}
	return w.HandleRequest(w.t.Context(), req)
}

// write writes and wants success.
func (w *world) write(path string, data map[string]any) *logical.Response {
	w.t.Helper()
	resp, err := w.do(logical.UpdateOperation, path, data)
	if err != nil || resp.IsError() {
		w.t.Fatalf("writing %s: %v %v\n%s", path, err, resp, w.logs)
	}
	return resp
}

func (w *world) read(path string) map[string]any {
	w.t.Helper()
	resp, err := w.do(logical.ReadOperation, path, nil)
	if err != nil || resp == nil || resp.IsError() {
		w.t.Fatalf("reading %s: %v %v", path, err, resp)
	}
	return resp.Data
}

func (w *world) token(claims map[string]any) string {
	all := map[string]any{"aud": audience}
	for name, value := range claims {
		all[name] = value
	}
	return w.issuer.Token(all)
}

// exchange writes a token to creds/role.
func (w *world) exchange(role, token string) (*logical.Response, error) {
	w.t.Helper()
	return w.do(logical.UpdateOperation, "creds/"+role, map[string]any{"subject_token": token})
}

// issue wants a key by token.
func (w *world) issue(role string) *logical.Response {
	w.t.Helper()
	resp, err := w.exchange(role, w.token(nil))
	if err != nil || resp.IsError() {
		w.t.Fatalf("issuing: %v %v", err, resp)
	}
	return resp
}

// lease renews or revokes as Vault's core does: with the Secret, as it comes back from storage, and nothing else.
func (w *world) lease(op logical.Operation, resp *logical.Response) (*logical.Response, error) {
	w.t.Helper()
	secret := *resp.Secret
	secret.IssueTime = w.clock.now()
	return w.HandleRequest(w.t.Context(), &logical.Request{Operation: op, Storage: w.store, Secret: &secret})
}

func (w *world) revoke(resp *logical.Response) {
	w.t.Helper()
	if got, err := w.lease(logical.RevokeOperation, resp); err != nil || got.IsError() {
		w.t.Fatalf("revoking: %v %v", err, got)
	}
}

// settle lets the grace pass and sweeps.
func (w *world) settleAll() {
	w.t.Helper()
	w.clock.advance(4 * time.Minute)
	w.write("sweep", nil)
}

// reasonOf is the reason code of a refusal, or "" for none, and its status.
func reasonOf(resp *logical.Response, err error) (string, int) {
	text, status := "", 0
	var coded logical.HTTPCodedError
	switch {
	case errors.As(err, &coded):
		text, status = err.Error(), coded.Code()
	case err != nil:
		return "an error without status: " + err.Error(), 500
	case resp.IsError():
		text, status = resp.Error().Error(), http.StatusBadRequest
	default:
		return "", 0
	}
	reason, _, _ := strings.Cut(text, ":")
	return reason, status
}

// ledgerKeys lists all entries that the ledger has in storage, by key.
func (w *world) stored(prefixes ...string) []string {
	w.t.Helper()
	keys, err := logical.CollectKeys(context.Background(), w.store.Storage)
	if err != nil {
		w.t.Fatal(err)
	}
	var found []string
	for _, key := range keys {
		for _, prefix := range prefixes {
			if strings.HasPrefix(key, prefix) {
				found = append(found, key)
			}
		}
	}
	return found
}

func (w *world) ledgerEntries() []string {
	w.t.Helper()
	return w.stored("ledger/", "sealed/")
}

// faultyStorage fails writes on demand.
type faultyStorage struct {
	logical.Storage
	mu   sync.Mutex
	fail func(op, key string) error
	seen []string
}

func (s *faultyStorage) judge(op, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, op+" "+key)
	if s.fail == nil {
		return nil
	}
	return s.fail(op, key)
}

func (s *faultyStorage) set(fail func(op, key string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail, s.seen = fail, nil
}

func (s *faultyStorage) Put(ctx context.Context, e *logical.StorageEntry) error {
	if err := s.judge("put", e.Key); err != nil {
		return err
	}
	return s.Storage.Put(ctx, e)
}

func (s *faultyStorage) Delete(ctx context.Context, key string) error {
	if err := s.judge("delete", key); err != nil {
		return err
	}
	return s.Storage.Delete(ctx, key)
}

func (s *faultyStorage) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	if err := s.judge("get", key); err != nil {
		return nil, err
	}
	return s.Storage.Get(ctx, key)
}
