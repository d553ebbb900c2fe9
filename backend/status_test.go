// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

func (w *world) issuerHealth(name string) map[string]any {
	w.t.Helper()
	return w.read("status")["issuers"].(map[string]any)[name].(map[string]any)
}

// issuerPEM is the public key that verifies the issuer's tokens.
func (w *world) issuerPEM() string {
	w.t.Helper()
	_, key := w.issuer.Key()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		w.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func TestStatusOfIssuers(t *testing.T) {
	w := newWorld(t)
	want := map[string]any{
		"type": "oidc", "enabled": true, "keys": 0, "key_ids": []string(nil), "skipped": map[string]int(nil),
		"fetched_at": nil, "tried_at": nil, "last_error": "",
	}
	if diff := cmp.Diff(want, w.issuerHealth("github")); diff != "" {
		t.Errorf("before the first token (-want +got):\n%s", diff)
	}
	if discovery, _ := w.issuer.Fetches(); discovery != 0 {
		t.Error("reading the status asked the issuer")
	}
	w.issue("deploy")
	kid, _ := w.issuer.Key()
	at := w.clock.now().UTC().Format(time.RFC3339)
	want["keys"], want["key_ids"], want["skipped"], want["fetched_at"], want["tried_at"] = 1, []string{kid}, map[string]int{}, at, at
	if diff := cmp.Diff(want, w.issuerHealth("github")); diff != "" {
		t.Errorf("after a token (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]any{"type": "login", "enabled": true}, w.issuerHealth("people")); diff != "" {
		t.Errorf("login (-want +got):\n%s", diff)
	}
	w.write("config", map[string]any{"allow_private": ""})
	w.write("issuers/people", map[string]any{"enabled": false})
	w.issuer.Fault(lab.OpAny, lab.Fault{Kind: lab.KindStatus, Status: 500})
	if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonEgress {
		t.Errorf("refused for %q", reason)
	}
	if got := w.issuerHealth("github")["last_error"]; !strings.Contains(got.(string), "no longer fits config") {
		t.Errorf("an issuer that config forbids: %v", got)
	}
	if w.issuerHealth("people")["enabled"] != false {
		t.Error("a disabled issuer is shown as enabled")
	}
}

func TestStatusOfTargetsAndLedger(t *testing.T) {
	w := newWorld(t).withNuGet()
	lease := w.issue("deploy")
	w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonOutcomeUnknown {
		t.Fatalf("refused for %q", reason)
	}
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 502})
	if _, err := w.lease(logical.RevokeOperation, lease); err == nil {
		t.Fatal("revoking works although the target is down")
	}
	w.clock.advance(time.Minute)
	got := w.read("status")
	want := map[string]any{
		"acme":  map[string]any{"driver": "http", "enabled": true, "deleted": false, "keys": 2, "revoke": true, "renew": true, "find": true, "check": true, "list": true, "rotate": false, "identify": false, "rotate_root": false, "failures": 2, "breaker_open": false, "next_call_at": nil, "calls_running": 0, "calls_waiting": 0},
		"nuget": map[string]any{"driver": "nuget", "enabled": true, "deleted": false, "keys": 0, "revoke": false, "renew": false, "find": false, "check": false, "list": false, "rotate": false, "identify": false, "rotate_root": false, "failures": 0, "breaker_open": false, "next_call_at": nil, "calls_running": 0, "calls_waiting": 0},
	}
	if diff := cmp.Diff(want, got["targets"]); diff != "" {
		t.Errorf("targets (-want +got):\n%s", diff)
	}
	ledger := map[string]any{"pending": 1, "in_flight": 0, "debt": 1, "oldest_seconds": 60, "oldest_debt_seconds": 60, "keys": 2, "counted": true, "last_error": ""}
	if diff := cmp.Diff(ledger, got["ledger"]); diff != "" {
		t.Errorf("ledger (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]any{"last_run": nil, "complete": false, "lag_seconds": 0}, got["sweeper"]); diff != "" {
		t.Errorf("sweeper (-want +got):\n%s", diff)
	}
	w.keys.ClearFaults()
	w.clock.advance(10 * time.Minute)
	w.settleAll()
	got = w.read("status")
	if diff := cmp.Diff(map[string]any{"last_run": w.clock.now().UTC().Format(time.RFC3339), "complete": true, "lag_seconds": 0}, got["sweeper"]); diff != "" {
		t.Errorf("sweeper (-want +got):\n%s", diff)
	}
	if n := got["ledger"].(map[string]any)["keys"]; n != 0 {
		t.Errorf("the ledger has %v keys", n)
	}
}

func TestStatusOfSelf(t *testing.T) {
	w := newWorld(t)
	if diff := cmp.Diff(map[string]any{"issuer_url": "", "key_ids": []string{}, "next_rotation": nil}, w.read("status")["self"]); diff != "" {
		t.Errorf("off (-want +got):\n%s", diff)
	}
	w.write("self", map[string]any{"issuer_url": "https://vault.example/v1/oidcexchange/oidc"})
	self := w.read("self")
	want := map[string]any{"issuer_url": self["issuer_url"], "key_ids": self["key_ids"], "next_rotation": self["next_rotation"]}
	if diff := cmp.Diff(want, w.read("status")["self"]); diff != "" || len(self["key_ids"].([]string)) == 0 {
		t.Errorf("on (-want +got):\n%s", diff)
	}
}

// After a refresh no key vouches that the issuer does not publish now, however recent the last fetch was.
func TestRefreshDropsKeys(t *testing.T) {
	w := newWorld(t)
	w.issue("deploy")
	stolen, _ := w.issuer.Key()
	old := w.token(nil)
	fresh := w.issuer.Rotate()
	w.issuer.Retire(stolen)
	if reason, _ := reasonOf(w.exchange("deploy", old)); reason != "" {
		t.Fatalf("within jwks_max_age the withdrawn key vouches; refused for %q", reason)
	}
	got := w.write("refresh/github", nil).Data
	if diff := cmp.Diff([]string{fresh}, got["key_ids"]); diff != "" {
		t.Errorf("keys after a refresh (-want +got):\n%s", diff)
	}
	if reason, _ := reasonOf(w.exchange("deploy", old)); reason != identity.UnknownKey {
		t.Errorf("a token of the withdrawn key: %q", reason)
	}
	w.issue("deploy")
}

func TestRefreshWhileTheIssuerIsDown(t *testing.T) {
	w := newWorld(t)
	w.issue("deploy")
	w.issuer.Fault(lab.OpAny, lab.Fault{Kind: lab.KindStatus, Status: 500})
	if reason, status := reasonOf(w.do(logical.UpdateOperation, "refresh/github", nil)); reason != identity.IssuerUnavailable || status != 503 {
		t.Errorf("refreshing: %q, status %d", reason, status)
	}
	if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != identity.IssuerUnavailable {
		t.Errorf("a token while no key is known: %q", reason)
	}
	health := w.issuerHealth("github")
	if health["keys"] != 0 || health["last_error"] != "discovery: the issuer answered with status 500, want 200" {
		t.Errorf("status: %v", health)
	}
	w.issuer.ClearFaults()
	w.clock.advance(time.Minute)
	w.issue("deploy")
}

func TestRefreshOfWhatHasNoKeys(t *testing.T) {
	w := newWorld(t)
	w.refused("refresh/nobody", nil, "issuer")
	w.refused("refresh/people", nil, "issuer")
	w.write("issuers/pinned", map[string]any{"issuer": "https://pinned.example", "jwt_validation_pubkeys": []any{w.issuerPEM()}})
	if got := w.write("refresh/pinned", nil).Data; got["keys"] != 1 || got["fetched_at"] != nil {
		t.Errorf("configured keys: %v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.issuer.Fault(lab.OpAny, lab.Fault{Kind: lab.KindHang})
	req := &logical.Request{ID: "gone", Operation: logical.UpdateOperation, Path: "refresh/github", Storage: w.store}
	if reason, _ := reasonOf(w.HandleRequest(ctx, req)); reason != identity.IssuerUnavailable {
		t.Errorf("whoever has left waits for the issuer: %q", reason)
	}
}

// What is deleted while status is being read is left out of it.
func TestStatusBesideDelete(t *testing.T) {
	for _, path := range []string{"targets/spare", "issuers/spare"} {
		w := newWorld(t)
		w.write("targets/spare", map[string]any{"driver": "http", "url": w.keysURL, "profile": acme, "ca_pem": w.ca, "credential": "token=" + adminToken})
		w.write("issuers/spare", map[string]any{"issuer": "https://spare.example", "jwks_url": "https://spare.example/keys"})
		once := sync.OnceFunc(func() {
			if resp, err := w.do(logical.DeleteOperation, path, nil); err != nil || resp.IsError() {
				t.Error(err, resp)
			}
		})
		slow := &slowStorage{Storage: w.store, after: func(op, key string) {
			if op == "get" && key == path {
				once()
			}
		}}
		resp, err := w.HandleRequest(t.Context(), &logical.Request{ID: "slow", Operation: logical.ReadOperation, Path: "status", Storage: slow})
		if err != nil || resp.IsError() {
			t.Errorf("%s: %v %v", path, resp, err)
			continue
		}
		for _, kind := range []string{"targets", "issuers"} {
			if known, found := resp.Data[kind].(map[string]any)["spare"]; found == (kind+"/spare" == path) {
				t.Errorf("after deleting %s: %s has %v", path, kind, known)
			}
		}
	}
}

// The age of what is open is since when it is open, not the key's.
func TestAgeOfADebt(t *testing.T) {
	w := newWorld(t).withStatic()
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 503, Count: 1000})
	w.write("rotate-role/ci", nil)
	lease := w.issue("deploy")
	w.pass(61 * time.Minute) // a static role's old key is owed now
	_, _ = w.lease(logical.RevokeOperation, lease)
	w.pass(time.Minute)
	ledger := w.read("status")["ledger"].(map[string]any)
	if ledger["debt"] != 2 || ledger["oldest_seconds"].(int) > 180 {
		t.Errorf("%v debts, the oldest %v s old", ledger["debt"], ledger["oldest_seconds"])
	}
}
