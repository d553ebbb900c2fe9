// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/vault/api"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// The target fails in every way while it makes a key. The caller is told what to do, and no key lives without a lease.
func testTargetFaults(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	w.write(t, "config", map[string]any{"sweep_grace": "1h", "request_timeout": "3s"}) // no key ends while they are counted
	bystander := w.issue(t, "deploy")
	late := make(chan struct{})
	cases := map[string]struct {
		fault  lab.Fault
		status int
		reason string
		made   int // keys that live although the caller got none
	}{
		"refused":      {lab.Fault{Kind: lab.KindStatus, Status: 403}, 422, "target_denied", 0},
		"429":          {lab.Fault{Kind: lab.KindStatus, Status: 429}, 503, "target_busy", 0},
		"503":          {lab.Fault{Kind: lab.KindStatus, Status: 503}, 503, "target_busy", 0},
		"500 before":   {lab.Fault{Kind: lab.KindStatus, Status: 500}, 422, "outcome_unknown", 0},
		"500 after":    {lab.Fault{Kind: lab.KindStatus, Status: 500, After: true}, 422, "outcome_unknown", 1},
		"cut before":   {lab.Fault{Kind: lab.KindCut}, 422, "outcome_unknown", 0},
		"cut after":    {lab.Fault{Kind: lab.KindCut, After: true}, 422, "outcome_unknown", 1},
		"never":        {lab.Fault{Kind: lab.KindHang}, 422, "outcome_unknown", 0},
		"never, after": {lab.Fault{Kind: lab.KindHang, After: true}, 422, "outcome_unknown", 1},
		"late":         {lab.Fault{Kind: lab.KindDelay, Until: late}, 422, "outcome_unknown", 0},
		"redirect":     {lab.Fault{Kind: lab.KindRedirect, Status: 307, Location: w.keysURL + "/v1/whoami"}, 422, "outcome_unknown", 0},
		"truncated":    {lab.Fault{Kind: lab.KindTruncate}, 422, "outcome_unknown", 1},
		"page":         {lab.Fault{Kind: lab.KindHTML}, 422, "target_protocol", 1},
		"wrong types":  {lab.Fault{Kind: lab.KindWrongTypes}, 422, "target_protocol", 1},
		"no secret":    {lab.Fault{Kind: lab.KindNoSecret}, 422, "target_protocol", 1},
		"huge":         {lab.Fault{Kind: lab.KindHuge, Size: 8}, 422, "target_protocol", 1},
	}
	lost := 1 // by the late answer
	for name, c := range cases {
		before, calls := len(w.live()), w.keys.Calls(lab.OpCreate)
		c.fault.Count = 1
		w.keys.Fault(lab.OpCreate, c.fault)
		token := w.token(nil)
		_, err := w.exchange(t, "deploy", token)
		if status, text := refusal(err); status != c.status || reasonOf(err) != c.reason {
			t.Errorf("%s: %d %s; want %d, %s", name, status, text, c.status, c.reason)
		}
		if sent := w.keys.Calls(lab.OpCreate) - calls; sent != 1 {
			t.Errorf("%s: the target was asked %d times", name, sent)
		}
		if made := len(w.live()) - before; made != c.made {
			t.Errorf("%s: the target made %d keys; want %d, or this test proves nothing", name, made, c.made)
		}
		lost += c.made
		// The token works again only if nothing can have been made of it.
		secret, err := w.exchange(t, "deploy", token)
		if unused := c.reason == "target_denied" || c.reason == "target_busy"; unused && err != nil {
			t.Errorf("%s: a token of which nothing was made is refused: %v", name, err)
		} else if unused {
			w.must(t, w.root.Token(), "lease", "revoke", "-sync", secret.LeaseID)
		} else {
			wantRefused(t, err, http.StatusForbidden, "replayed")
		}
		// An answer in between: each fault is one by itself, and a target with many in a row is asked no more for a while.
		if state := w.read(t, "check/acme")["state"]; state != "ok" {
			t.Errorf("%s: the target's state is %v", name, state)
		}
	}
	close(late)
	eventually(t, "the late answer", func() (bool, string) { return len(w.live()) == lost+1, strings.Join(w.live(), " ") })
	w.write(t, "config", map[string]any{"sweep_grace": "1s"})
	w.wantSettled(t, bystander)
}

// Vault's clients repeat requests that were answered 5xx. So 5xx must be the answer if nothing was done, and in no other
// case.
func testClientRepeats(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	w.write(t, "config", map[string]any{"sweep_grace": "1s"})
	bystander := w.issue(t, "deploy")
	w.user.SetMaxRetries(api.DefaultConfig().MaxRetries)
	for name, c := range map[string]struct {
		fault  lab.Fault
		reason string
		calls  int
	}{
		"unknown": {lab.Fault{Kind: lab.KindCut, After: true, Count: 1}, "outcome_unknown", 1},
		"refused": {lab.Fault{Kind: lab.KindStatus, Status: 403, Count: 1}, "target_denied", 1},
		"busy":    {lab.Fault{Kind: lab.KindStatus, Status: 503, Count: 1}, "", 2},
	} {
		before := w.keys.Calls(lab.OpCreate)
		w.keys.Fault(lab.OpCreate, c.fault)
		_, err := w.exchange(t, "deploy", w.token(nil))
		if reason := reasonOf(err); reason != c.reason {
			t.Errorf("%s: %q; want %q", name, reason, c.reason)
		}
		if calls := w.keys.Calls(lab.OpCreate) - before; calls != c.calls {
			t.Errorf("%s: one request of a caller became %d at the target; want %d", name, calls, c.calls)
		}
	}
	w.wantSettled(t, bystander)
}

// A key that cannot be revoked now is a debt: the ledger shows it, and the sweeper revokes it when the target is back.
func testDebt(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	secret := w.issue(t, "deploy")
	id := secret.Data["id"].(string)
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 503})
	r := w.cli(t, w.root.Token(), "lease", "revoke", "-sync", secret.LeaseID)
	if r.code != 2 || !strings.Contains(r.stderr, `key `+id+` at target "acme" is not revoked yet: target_busy`) {
		t.Errorf("revoking while the target is down: exit status %d: %s", r.code, r.stderr)
	}
	record := w.read(t, "keys/"+id)
	if record["state"] != "debt" || record["debt_since"] == nil || record["next_try"] == nil {
		t.Errorf("ledger: %v", record)
	}
	if answer := w.sweep(t); answer["debt"] != "1" || answer["revoked"] != "0" {
		t.Errorf("sweep while the target is down: %v", answer)
	}
	r = w.cli(t, w.user.Token(), "lease", "renew", secret.LeaseID)
	if r.code != 2 || !strings.Contains(r.stderr, "trust_changed: ") || strings.Contains(r.stderr, "(request )") {
		t.Errorf("renewing a debt: exit status %d: %s", r.code, r.stderr)
	}
	w.keys.ClearFaults()
	if answer := w.sweep(t); answer["debt"] != "0" || answer["revoked"] != "1" {
		t.Errorf("sweep when the target is back: %v", answer)
	}
	if w.keys.Valid(secret.Data["api_key"].(string)) {
		t.Error("the key lives")
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", secret.LeaseID) // what is gone is gone
	w.wantNone(t)
}

// Vault forgets a lease by force; the ledger does not forget its key.
func testForceWhileDown(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	secret := w.issue(t, "deploy")
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 503})
	w.must(t, w.root.Token(), "lease", "revoke", "-force", "-prefix", w.path+"/creds/deploy")
	if leases := w.leases(t, "creds/"); len(leases) != 0 {
		t.Errorf("leases: %q", leases)
	}
	want := []string{secret.Data["accessor"].(string) + " debt"}
	if ledger := w.ledger(t); !slices.Equal(ledger, want) {
		t.Errorf("ledger: %q; want %q", ledger, want)
	}
	w.keys.ClearFaults()
	w.settle(t)
	w.wantNone(t)
}

// If a caller leaves while the target makes a key, no key stays behind.
func testCallerLeaves(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	w.write(t, "config", map[string]any{"sweep_grace": "1s"})
	bystander := w.issue(t, "deploy")
	ctx, cancel := context.WithCancel(t.Context())
	w.keys.OnRequest(func(op string, stage lab.Stage) {
		if op == lab.OpCreate && stage == lab.StageDone {
			cancel()
		}
	})
	_, err := w.user.Logical().WriteWithContext(ctx, w.path+"/creds/deploy", map[string]any{"subject_token": w.token(nil)})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v; want %v", err, context.Canceled)
	}
	w.keys.OnRequest(nil)
	eventually(t, "the end of the key that nobody got", func() (bool, string) { // and then of the lease that Vault had begun to write
		live, leases := w.live(), w.leases(t, "creds/")
		return len(live) == 1 && len(leases) == 1, fmt.Sprint(live, leases)
	})
	w.wantSettled(t, bystander)
}

// Vault's own calls clean up without anybody asking. Both need a long wait, so the tests share one.
func testLeftToVault(t *testing.T, s *server) {
	swept, retried := sweptByVault(t, s), expiryWhileDown(t, s)
	swept()
	retried()
}

// expiryWhileDown makes a lease end while the target is down; wait checks that Vault tries again.
func expiryWhileDown(t *testing.T, s *server) (wait func()) {
	t.Helper()
	w := newWorld(t, s, pluginName)
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindHang})
	w.write(t, "config", map[string]any{"request_timeout": "1s"})
	w.write(t, "roles/deploy", map[string]any{"ttl": "1s", "max_ttl": "1s"})
	secret := w.issue(t, "deploy")
	id := secret.Data["id"].(string)
	eventually(t, "the debt", func() (bool, string) {
		state, _ := w.read(t, "keys/"+id)["state"].(string)
		return state == "debt", state
	})
	if !w.keys.Valid(secret.Data["api_key"].(string)) || len(w.leases(t, "creds/")) != 1 {
		t.Error("the key or its lease ended while the target was down")
	}
	w.keys.ClearFaults()
	return func() { w.wantNone(t) }
}

// sweptByVault leaves a key of unknown outcome; wait checks that Vault's periodic call ends it.
func sweptByVault(t *testing.T, s *server) (wait func()) {
	t.Helper()
	w := newWorld(t, s, pluginName)
	w.write(t, "config", map[string]any{"sweep_grace": "1s"})
	w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	_, err := w.exchange(t, "deploy", w.token(nil))
	wantRefused(t, err, http.StatusUnprocessableEntity, "outcome_unknown")
	if len(w.live()) != 1 {
		t.Error("no key lives: then this test proves nothing")
	}
	return func() {
		eventually(t, "Vault's periodic call", func() (bool, string) { return len(w.live()) == 0, strings.Join(w.live(), " ") })
		w.wantNone(t)
	}
}

// A mount cannot be disabled while a key lives that can be revoked.
func testDisableWhileDown(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	w.write(t, "config", map[string]any{"request_timeout": "1s"})
	secret := w.issue(t, "deploy")
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 503})
	r := w.cli(t, w.root.Token(), "secrets", "disable", w.path)
	if r.code != 2 || !strings.Contains(r.stderr, "is not revoked yet: target_busy") {
		t.Errorf("disabling while the target is down: exit status %d: %s%s", r.code, r.stdout, r.stderr)
	}
	if !w.keys.Valid(secret.Data["api_key"].(string)) {
		t.Error("the key ended: then this test proves nothing")
	}
	if another, err := w.user.Logical().ReadWithContext(t.Context(), w.path+"/creds/deploy"); err != nil || another != nil {
		t.Errorf("a mount that is being disabled answers %v, %v; want 404", another, err)
	}
	w.keys.ClearFaults()
	w.must(t, w.root.Token(), "secrets", "disable", w.path)
	w.wantUnmounted(t)
}

// If a target is gone for good, giving up its leases makes it possible to disable the mount.
func testDisableByForce(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	w.write(t, "config", map[string]any{"request_timeout": "1s"})
	w.issue(t, "deploy")
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 503})
	if r := w.cli(t, w.root.Token(), "secrets", "disable", w.path); r.code != 2 {
		t.Errorf("disabling while the target is down: exit status %d: %s%s", r.code, r.stdout, r.stderr)
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-force", "-prefix", w.path+"/creds")
	w.must(t, w.root.Token(), "secrets", "disable", w.path)
	if len(w.live()) != 1 {
		t.Error("the key ended: then this test proves nothing")
	}
}

// Disabling must not forget a key that only the ledger knows, either.
func testDisableWithUnknownOutcome(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	_, err := w.exchange(t, "deploy", w.token(nil))
	wantRefused(t, err, http.StatusUnprocessableEntity, "outcome_unknown")
	if len(w.live()) != 1 {
		t.Error("no key lives: then this test proves nothing")
	}
	w.must(t, w.root.Token(), "secrets", "disable", w.path)
	w.wantUnmounted(t)
}

func (w *world) wantUnmounted(t *testing.T) {
	t.Helper()
	mounts, err := w.root.Sys().ListMountsWithContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, mounted := mounts[w.path+"/"]; mounted {
		t.Error("the mount is still there")
	}
	if live := w.live(); !slices.Equal(live, nil) {
		t.Errorf("the mount is gone and keys live: %q", live)
	}
}
