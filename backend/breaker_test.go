// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

func (w *world) targetHealth(name string) map[string]any {
	w.t.Helper()
	return w.read("status")["targets"].(map[string]any)[name].(map[string]any)
}

// kill makes every call of the key API fail, and has the breaker open.
func (w *world) kill() {
	w.t.Helper()
	w.keys.Fault(lab.OpAny, lab.Fault{Kind: lab.KindStatus, Status: http.StatusBadGateway})
	for range 5 {
		w.wantCheck("acme", "failed", reasonTargetBusy)
	}
	if health := w.targetHealth("acme"); health["breaker_open"] != true || health["failures"] != 5 || health["next_call_at"] != w.clock.now().Add(time.Second).UTC().Format(time.RFC3339) {
		w.t.Fatalf("after five failures: %v", health)
	}
}

func (w *world) calls() (n int) {
	for _, op := range []string{lab.OpCreate, lab.OpExtend, lab.OpRevoke, lab.OpFind, lab.OpCheck} {
		n += w.keys.Calls(op)
	}
	return n
}

// What an API has asked for, and that it is dead, is known after every write, until the target is another one.
func TestLimiterOutlivesWrites(t *testing.T) {
	w := newWorld(t)
	writes := map[string]func(){
		"of the target": func() { w.write("targets/acme", map[string]any{"description": "x"}) },
		"of its limits": func() { w.write("targets/acme", map[string]any{"rate": 100, "burst": 10, "concurrency": 5}) },
		"of config":     func() { w.write("config", map[string]any{"request_timeout": "7s"}) },
		"of all nodes":  func() { w.invalidate(t.Context(), "targets/acme") },
	}
	w.keys.Fault(lab.OpCheck, lab.Fault{Kind: lab.KindStatus, Status: http.StatusTooManyRequests, RetryAfter: time.Minute, Count: 1})
	w.wantCheck("acme", "failed", reasonTargetBusy)
	for name, write := range writes {
		write()
		if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonTargetBusy || w.calls() != 1 {
			t.Fatalf("after a write %s the API is not left alone: %q after %d calls", name, reason, w.calls())
		}
	}
	w.clock.advance(time.Minute)
	w.kill()
	before := w.calls()
	for name, write := range writes {
		write()
		if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonTargetBusy || w.calls() != before {
			t.Fatalf("after a write %s the dead API is asked: %q", name, reason)
		}
	}
	w.delete("roles/deploy", nil)
	w.delete("targets/acme", nil)
	w.write("targets/acme", map[string]any{"driver": "http", "url": w.keysURL, "profile": acme, "ca_pem": w.ca, "credential": "token=" + adminToken})
	if health := w.targetHealth("acme"); health["breaker_open"] != false || health["failures"] != 0 {
		t.Errorf("a new target of an old name: %v", health)
	}
}

// A write that is refused, or only tried, changes no limit of the target that is there.
func TestRefusedLimitsAreNotUsed(t *testing.T) {
	w := newWorld(t)
	w.write("targets/acme", map[string]any{"rate": 0.001, "burst": 1})
	w.wantCheck("acme", "ok", "")
	w.refused("targets/acme", map[string]any{"rate": 1000, "driver": "nuget"}, "driver")
	w.refused("targets/acme", map[string]any{"rate": 1000, "burst": 1000, "url": "https://elsewhere.example"}, "url")
	if got := w.wantCheck("acme", "failed", reasonTargetBusy); got != "no turn in time" {
		t.Errorf("the bucket is empty, and the check says %q", got)
	}
	w.write("targets/acme", map[string]any{"rate": 0, "burst": 0})
	w.wantCheck("acme", "ok", "")
}

// Writers and readers at the same time; the race detector looks on.
func TestLimiterBesideWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var all sync.WaitGroup
	ask := func(op logical.Operation, path string, data map[string]any) {
		if reason, _ := reasonOf(w.request(t.Context(), path, op, path, data)); reason != "" {
			t.Errorf("%s: %s", path, reason)
		}
	}
	for i := range 4 {
		all.Go(func() {
			for range 5 {
				ask(logical.ReadOperation, "check/acme", nil)
				ask(logical.ReadOperation, "status", nil)
			}
		})
		all.Go(func() {
			for n := range 5 {
				ask(logical.UpdateOperation, "targets/acme", map[string]any{"concurrency": 1 + i, "rate": 1000 + n})
			}
		})
	}
	all.Wait()
	w.wantCheck("acme", "ok", "")
}

// An exchange costs a token and leaves an unknown outcome: a dead API is asked by a check first, and no token is used up.
func TestExchangeIsNoProbe(t *testing.T) {
	w := newWorld(t)
	w.kill()
	w.clock.advance(time.Second)
	token := w.token(nil)
	if reason, status := reasonOf(w.exchange("deploy", token)); reason != reasonTargetBusy || status != 503 {
		t.Errorf("refused for %q, status %d", reason, status)
	}
	if n := w.keys.Calls(lab.OpCreate); n != 0 || len(w.ledgerEntries()) != 0 {
		t.Errorf("%d keys were asked for; the ledger has %v", n, w.ledgerEntries())
	}
	w.keys.ClearFaults()
	w.clock.advance(2 * time.Second)
	if resp, err := w.exchange("deploy", token); err != nil || resp.IsError() {
		t.Errorf("the API lives again, and the token was not used: %v %v", resp, err)
	}
	if health := w.targetHealth("acme"); health["breaker_open"] != false || health["next_call_at"] != nil {
		t.Errorf("%v", health)
	}
}

// Where nothing else can be asked, the exchange itself is the probe.
func TestExchangeAsProbe(t *testing.T) {
	w := newWorld(t).withNuGet()
	w.nuget.Fault(lab.OpAny, lab.Fault{Kind: lab.KindStatus, Status: 502})
	ask := func() string {
		t.Helper()
		reason, _ := reasonOf(w.exchange("publish", w.token(map[string]any{"aud": "https://www.nuget.org"})))
		return reason
	}
	for range 5 {
		ask()
	}
	if reason := ask(); reason != reasonTargetBusy {
		t.Errorf("after five failures: %q", reason)
	}
	w.nuget.ClearFaults()
	w.clock.advance(time.Second)
	if reason := ask(); reason != "" {
		t.Errorf("the probe: %q", reason)
	}
}

// While the API is dead revocations fail at once and end as debts, which are paid when it is back.
func TestRevocationsWhileTheAPIIsDead(t *testing.T) {
	w := newWorld(t)
	leases := []*logical.Response{w.issue("deploy"), w.issue("deploy"), w.issue("deploy")}
	w.kill()
	before := w.calls()
	for _, lease := range leases {
		if _, err := w.lease(logical.RevokeOperation, lease); err == nil {
			t.Fatal("a key counts as revoked")
		}
	}
	if n := w.calls() - before; n != 0 {
		t.Errorf("the dead API was asked %d times", n)
	}
	w.clock.advance(debtPatience + time.Second)
	if _, err := w.lease(logical.RevokeOperation, leases[0]); err != nil {
		t.Errorf("the ledger does not take the debt over: %v", err)
	}
	if n := w.calls() - before; n != 1 {
		t.Errorf("the dead API was asked %d times; want one probe, the revocation", n)
	}
	w.keys.ClearFaults()
	w.clock.advance(time.Hour)
	w.write("sweep", nil)
	if live := w.keys.Live(); len(live) != 0 || len(w.ledgerEntries()) != 0 {
		t.Errorf("%d keys live; the ledger has %v", len(live), w.ledgerEntries())
	}
}

// What one caller asks for may break the server each time; that keeps no other caller away.
func TestErrorsOfOneCallerOpenNoBreaker(t *testing.T) {
	w := newWorld(t)
	w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindStatus, Status: http.StatusInternalServerError, Count: 20})
	for range 20 {
		if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonOutcomeUnknown {
			t.Fatalf("refused for %q", reason)
		}
	}
	w.issue("deploy")
}
