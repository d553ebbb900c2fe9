// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// A deleted target is read as absent, so it is made anew like one: nothing of it comes back unasked.
func TestDeletedTargetDoesNotComeBackByItself(t *testing.T) {
	w := newWorld(t)
	resp := w.issue("deploy")
	w.delete("roles/deploy", nil)
	w.delete("targets/acme", map[string]any{"force": true})
	w.refused("targets/acme", map[string]any{"description": "x"}, "driver")
	again := map[string]any{"driver": "http", "url": w.keysURL, "profile": acme, "ca_pem": w.ca}
	w.refused("targets/acme", again, "credential")
	again["credential"] = "token=" + adminToken
	w.write("targets/acme", again)
	if got := w.read("targets/acme")["allowed_roles"]; !cmp.Equal(got, []any{}) {
		t.Errorf("allowed_roles %v", got)
	}
	w.revoke(resp)
	w.wantSettled()
}

// withBeta adds a second target, with a role of the same name, whose keys do not end by themselves.
func (w *world) withBeta() *world {
	w.t.Helper()
	endless := w.profile(`"expires_at": not_after}`, `"expires_at": "2099-01-01T00:00:00Z"}`)
	w.write("targets/beta", map[string]any{"driver": "http", "url": w.keysURL, "profile": endless, "ca_pem": w.ca, "credential": "token=" + adminToken, "allowed_roles": "*"})
	w.write("roles/beta", map[string]any{"trust": "main", "target": "beta", "parameters": "project=beta", "max_ttl": "2h"})
	return w
}

func TestTombstonesGoOneByOne(t *testing.T) {
	w := newWorld(t).withBeta()
	w.write("roles/deploy", map[string]any{"max_ttl": "20h"})
	w.issue("deploy")
	other := w.issue("beta")
	for _, path := range []string{"roles/deploy", "roles/beta"} {
		w.delete(path, nil)
	}
	for _, path := range []string{"targets/acme", "targets/beta"} {
		w.delete(path, map[string]any{"force": true})
	}
	w.revoke(other)
	w.clock.advance(5 * time.Hour) // past the latest end that a key of beta could have
	w.settleAll()
	if left := w.stored("targets/"); !cmp.Equal(left, []string{"targets/acme"}) {
		t.Errorf("left are %v; the last key of beta is gone", left)
	}
}

// After a long outage the sweeps may not have come yet to the keys whose hour has passed: without their target they could never
// be ended.
func TestTombstoneStaysUntilThePassedKeysAreSwept(t *testing.T) {
	w := newWorld(t).withBeta()
	w.issue("beta")
	w.delete("roles/beta", nil)
	w.delete("targets/beta", map[string]any{"force": true})
	w.clock.advance(5 * time.Hour) // past the latest end of the lease, which nobody ended
	w.turn = 2                     // tombstones have their turn first
	w.settleAll()
	if live := w.keys.Live(); len(live) != 0 {
		t.Errorf("keys of a deleted target that nobody can end any more: %v\n%s", live, w.logs)
	}
	w.settleAll()
	if left := w.stored("targets/"); !cmp.Equal(left, []string{"targets/acme"}) {
		t.Errorf("left are %v; the last key of beta is gone", left)
	}
}

// A tick costs the same at a million keys, whatever was deleted: it never reads keys whose hour has not passed.
func TestTombstoneDoesNotMakeTicksReadTheLedger(t *testing.T) {
	w := newWorld(t).withBeta()
	for range 3 {
		w.issue("deploy")
	}
	w.issue("beta")
	w.delete("roles/beta", nil)
	w.delete("targets/beta", map[string]any{"force": true})
	w.store.set(nil)
	w.periodic()
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	for _, call := range w.store.seen {
		if strings.HasPrefix(call, "get "+plainKeys) {
			t.Fatalf("a tick reads live keys: %q", w.store.seen)
		}
	}
}

// A target that hangs uses up a sweep; over a few sweeps everything else has its turn all the same.
func TestSweepsAreFair(t *testing.T) {
	w := newWorld(t).withBeta()
	w.issue("beta")
	w.clock.advance(5 * time.Hour) // past the latest end of the lease, which nobody ended
	w.keys.Fault("create", lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonOutcomeUnknown {
		t.Fatalf("refused for %q", reason)
	}
	w.clock.advance(4 * time.Minute)
	w.keys.Fault("find", lab.Fault{Kind: lab.KindHang})
	for range 4 {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		_, _ = w.sweep(ctx, w.store, false) // it cannot settle what hangs
		cancel()
	}
	if slices.ContainsFunc(w.keys.Live(), func(k lab.Key) bool { return k.Project == "beta" }) {
		t.Error("a key that outlived its lease lives, because another target hangs")
	}
}

// An intent that is still there although its key is filed is that of a process which ended before it could answer: nobody
// has the key.
func TestKeyThatWasNeverAnsweredWith(t *testing.T) {
	w := newWorld(t)
	delivered := w.issue("deploy")
	w.store.set(func(op, key string) error {
		if op == "delete" && strings.HasPrefix(key, openEntries) {
			panic("the process ends here")
		}
		return nil
	})
	if _, err := w.exchange("deploy", w.token(nil)); err == nil {
		t.Fatal("the request was answered")
	}
	w.store.set(nil)
	w.restart()
	w.settleAll()
	w.wantSettled(delivered)
}

// Vault holds a lock of its core during a tick, so a tick leaves a sweep that is running to itself.
func TestTickDoesNotWaitForASweep(t *testing.T) {
	w := newWorld(t)
	w.sweeps.Lock()
	defer w.sweeps.Unlock()
	done := make(chan error, 1)
	go func() { done <- w.tick(t.Context(), &logical.Request{Storage: w.store}) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the tick waits")
	}
}

// One record that cannot be read keeps the sweeper from nothing else.
func TestSweepGoesOnAfterAnUnreadableRecord(t *testing.T) {
	w := newWorld(t)
	first := w.issue("deploy") // and both leases are lost
	w.clock.advance(2 * time.Hour)
	w.issue("deploy")
	hour, _, _ := splitID(first.Data["id"].(string))
	if err := w.store.Storage.Put(t.Context(), &logical.StorageEntry{Key: plainKeys + hour + "/0", Value: []byte("rubbish")}); err != nil {
		t.Fatal(err)
	}
	w.clock.advance(10 * time.Hour)
	for range 3 {
		w.settleAll()
	}
	if left := w.ledgerEntries(); len(w.keys.Live()) != 0 || len(left) != 1 {
		t.Errorf("%d keys live; the ledger has %v", len(w.keys.Live()), left)
	}
}

// moved is a server before the key API, which fails every call about one project in its own way.
type moved struct {
	http.Handler
	mu     sync.Mutex
	status int // 0 = none
	asked  int // about the project
}

func (m *moved) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	status := 0
	if strings.HasPrefix(r.URL.Path, "/v1/projects/moved/") {
		m.asked++
		status = m.status
	}
	m.mu.Unlock()
	if status != 0 {
		w.WriteHeader(status)
		return
	}
	m.Handler.ServeHTTP(w, r)
}

func (m *moved) fails(status int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status, m.asked = status, 0
}

// withMoved makes target gamma at such a server, and roles moved and stays.
func (w *world) withMoved() *moved {
	w.t.Helper()
	m := &moved{Handler: w.keys}
	w.write("targets/gamma", map[string]any{"driver": "http", "url": w.serve(m), "profile": acme, "ca_pem": w.ca, "credential": "token=" + adminToken, "allowed_roles": "*"})
	for _, project := range []string{"moved", "stays"} {
		w.write("roles/"+project, map[string]any{"trust": "main", "target": "gamma", "parameters": "project=" + project, "max_ttl": "20h"})
	}
	return m
}

// lose asks for a key whose answer is lost, and returns its open entry.
func (w *world) lose(role string) string {
	w.t.Helper()
	before := w.stored(openEntries)
	w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	if reason, _ := reasonOf(w.exchange(role, w.token(nil))); reason != reasonOutcomeUnknown {
		w.t.Fatalf("refused for %q", reason)
	}
	for _, key := range w.stored(openEntries) {
		if !slices.Contains(before, key) {
			return strings.TrimPrefix(key, openEntries)
		}
	}
	w.t.Fatal("no entry is open")
	return ""
}

func (w *world) openEntry(rand string) *entry {
	w.t.Helper()
	e, err := openTable.get(w.t.Context(), w.store, rand)
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

// An entry that fails for ever is tried more and more seldom, and keeps the sweeper from none of its target's others.
func TestSweepPutsOffWhatFailsByItself(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusForbidden, http.StatusInternalServerError} {
		w := newWorld(t)
		m := w.withMoved()
		bad, good := w.lose("moved"), w.lose("stays")
		owed, err := w.exchange("moved", w.token(nil))
		if reason, _ := reasonOf(owed, err); reason != "" {
			t.Fatal(reason)
		}
		m.fails(status)
		if _, err := w.lease(logical.RevokeOperation, owed); err == nil {
			t.Fatal("a key counts as revoked")
		}
		m.fails(status)
		w.sweptTo = good // so that what fails has its turn before it
		w.clock.advance(6 * time.Minute)
		w.periodic()
		if w.openEntry(good) != nil {
			t.Errorf("status %d: an entry was not settled, because another failed", status)
		}
		if e := w.openEntry(bad); e.State != statePending || e.Tries != 1 || !e.NextTry.After(w.clock.now()) {
			t.Errorf("status %d: what fails is %s, after %d tries, next at %v", status, e.State, e.Tries, e.NextTry)
		}
		for range 4 * 60 {
			w.clock.advance(time.Minute)
			w.periodic()
		}
		if m.asked < 8 || m.asked > 24 {
			t.Errorf("status %d: two entries were tried %d times in four hours; want some eight times each", status, m.asked)
		}
		m.fails(0)
		w.clock.advance(maxBackoff)
		w.periodic()
		if live := w.keys.Live(); len(live) != 0 || len(w.ledgerEntries()) != 0 {
			t.Errorf("status %d: %d keys live; the ledger has %v", status, len(live), w.ledgerEntries())
		}
	}
}

// What is owed to a target that was away is paid as soon as it is back, however long that took, and it was asked no more than
// once a minute. A key that never comes to an end keeps none of the others waiting.
func TestOutageIsPaidWhenItIsOver(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]lab.Fault{
		"no answer": {Kind: lab.KindCut}, "a gateway answers": {Kind: lab.KindStatus, Status: http.StatusBadGateway}, "a gateway waits": {Kind: lab.KindStatus, Status: http.StatusGatewayTimeout},
	} {
		t.Run(name, func(t *testing.T) { outageIsPaid(t, away) })
	}
}

func outageIsPaid(t *testing.T, away lab.Fault) {
	w := newWorld(t)
	m := w.withMoved()
	roles := []string{"stays", "moved", "stays", "moved", "stays"}
	for _, role := range roles {
		owed, err := w.exchange(role, w.token(nil))
		if reason, _ := reasonOf(owed, err); reason != "" {
			t.Fatal(reason)
		}
		w.keys.Fault(lab.OpAny, away)
		if _, err := w.lease(logical.RevokeOperation, owed); err == nil {
			t.Fatal("a key counts as revoked")
		}
		w.keys.ClearFaults()
	}
	w.keys.Fault(lab.OpAny, away)
	before, minutes := w.calls(), 5*60
	for range minutes {
		w.clock.advance(time.Minute)
		w.periodic()
	}
	if made := w.calls() - before; made > minutes+5 {
		t.Errorf("the target was asked %d times in %d minutes", made, minutes)
	}
	w.keys.ClearFaults()
	m.fails(http.StatusServiceUnavailable)
	for range 4 {
		w.clock.advance(time.Minute)
		w.periodic()
	}
	if live := w.keys.Live(); slices.ContainsFunc(live, func(k lab.Key) bool { return k.Project != "moved" }) || len(live) != 2 {
		t.Errorf("live are %v; want those two of the project that fails", live)
	}
	m.fails(0)
	w.clock.advance(maxBackoff)
	w.periodic()
	if live := w.keys.Live(); len(live) != 0 || len(w.ledgerEntries()) != 0 {
		t.Errorf("%d keys live; the ledger has %v", len(live), w.ledgerEntries())
	}
}

// The longest grace holds for what another node wrote whose clock is a little ahead; what is written far ahead waits for nothing.
func TestPutOff(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for ahead, want := range map[time.Duration]bool{-time.Second: false, 0: false, time.Second: true, time.Hour + time.Minute: true, time.Hour + clocksApart + time.Second: false} {
		if got := putOff(now.Add(ahead), now); got != want {
			t.Errorf("what is due in %v is put off: %v; want %v", ahead, got, want)
		}
	}
}

// An operator who sweeps tries everything, whatever was put off.
func TestSweepNowTriesWhatWasPutOff(t *testing.T) {
	w := newWorld(t)
	m := w.withMoved()
	bad := w.lose("moved")
	m.fails(http.StatusForbidden)
	w.settleAll()
	m.fails(0)
	w.write("sweep", nil)
	if e := w.openEntry(bad); e != nil {
		t.Errorf("left is %+v", e)
	}
}

// What was settled while a try failed does not come back by being put off.
func TestSweepPutsOffNothingThatIsGone(t *testing.T) {
	w := newWorld(t)
	rand := w.lose("deploy")
	w.keys.Fault(lab.OpFind, lab.Fault{Kind: lab.KindStatus, Status: http.StatusForbidden})
	w.keys.OnRequest(func(op string, stage lab.Stage) {
		if op == lab.OpFind && stage == lab.StageReceived {
			if err := w.ledger.void(context.Background(), w.store, rand); err != nil {
				t.Error(err)
			}
		}
	})
	w.settleAll()
	if e := w.openEntry(rand); e != nil {
		t.Errorf("it is back: %+v", e)
	}
}

// Of what is open, too, a record that cannot be read keeps nothing else from being settled.
func TestSweepGoesOnAfterAnUnreadableOpenRecord(t *testing.T) {
	w := newWorld(t)
	rand := w.lose("deploy")
	if err := w.store.Storage.Put(t.Context(), &logical.StorageEntry{Key: openEntries + "0", Value: []byte("rubbish")}); err != nil {
		t.Fatal(err)
	}
	w.clock.advance(4 * time.Minute)
	w.periodic()
	if w.openEntry(rand) != nil || len(w.keys.Live()) != 0 {
		t.Error("what comes after the record was not settled")
	}
	if w.lastSweep.Load().complete {
		t.Error("the sweep calls itself complete")
	}
}

// A key that was lost where nobody can find it is shown as exposed for as long as it can live: no longer end is asked for
// than the target's lifetime, however long the role's leases may be.
func TestLostKeyIsShownForItsWholeLife(t *testing.T) {
	w := newWorld(t)
	start, end := strings.Index(acme, "find:\n"), strings.Index(acme, "check:\n")
	w.write("targets/plain", map[string]any{"driver": "http", "url": w.keysURL, "profile": acme[:start] + acme[end:] + "lifetime: 30m\n", "ca_pem": w.ca, "credential": "token=" + adminToken, "allowed_roles": "*"})
	w.write("roles/plain", map[string]any{"trust": "main", "target": "plain", "parameters": "project=widget", "ttl": "15m", "max_ttl": "2h"})
	w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	if reason, _ := reasonOf(w.exchange("plain", w.token(nil))); reason != reasonOutcomeUnknown {
		t.Fatalf("refused for %q", reason)
	}
	w.clock.advance(10 * time.Minute)
	w.settleAll()
	ids, living := w.list("keys"), w.keys.Live()
	if len(ids) != 1 || len(living) != 1 {
		t.Fatalf("%d keys in the ledger, %d live; want the lost one in both", len(ids), len(living))
	}
	shown := w.read("keys/" + ids[0])
	until, err := time.Parse(time.RFC3339, shown["not_after"].(string))
	if err != nil || shown["state"] != stateExposed || living[0].ExpiresAt.After(until) {
		t.Errorf("the key lives until %v; the ledger shows it as %v until %v (%v)", living[0].ExpiresAt, shown["state"], shown["not_after"], err)
	}
}

// A target may say "never" by the last moment that a time can have. Such a key is in the ledger, delivered or not, and told of.
func TestKeyThatExpiresInTheYear9999(t *testing.T) {
	for accessor, refused := range map[string]string{"string(response.json.id)": "", `'".."'`: reasonTargetProtocol} {
		w := newWorld(t)
		start, end := strings.Index(acme, "renew:\n"), strings.Index(acme, "check:\n")
		profile := strings.NewReplacer("timestamp(response.json.expires_at)", `timestamp("9999-12-31T23:59:59Z")`, "string(response.json.id)", accessor).
			Replace(acme[:start] + acme[end:] + "lifetime: 30m\n")
		w.write("targets/plain", map[string]any{"driver": "http", "url": w.keysURL, "profile": profile, "ca_pem": w.ca, "credential": "token=" + adminToken, "allowed_roles": "*"})
		w.write("roles/plain", map[string]any{"trust": "main", "target": "plain", "parameters": "project=widget", "ttl": "15m", "max_ttl": "2h"})
		if reason, _ := reasonOf(w.exchange("plain", w.token(nil))); reason != refused {
			t.Fatalf("%q; want %q", reason, refused)
		}
		for range 2 {
			w.clock.advance(5 * time.Hour)
			w.settleAll()
		}
		ids := w.list("keys")
		if len(ids) != 1 || w.read("keys/" + ids[0])["expires_at"] != "9999-12-31T23:59:59Z" {
			t.Fatalf("the ledger has %v\n%s", ids, w.logs)
		}
		w.wantRun(w.works(w.starts(map[string]any{"role": "plain"})), map[string]any{"matched": 1, "exposed": 1, "exposed_until": "9999-12-31T23:59:59Z"})
		w.delete("roles/plain", nil)
		w.delete("targets/plain", map[string]any{"force": true})
	}
}
