// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

func TestRoleIsBusyUntilCounted(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"max_keys": 9})
	w.issue("deploy")
	w.engine.ledger.tally = tally{}
	if reason, status := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonTargetBusy || status != 503 {
		t.Errorf("before the count: %q, status %d", reason, status)
	}
	if reason, _ := reasonOf(w.do(logical.DeleteOperation, "targets/acme", nil)); reason != reasonBadRequest { // a role needs it
		t.Errorf("deleting the target: %q", reason)
	}
	w.write("roles/deploy", map[string]any{"max_keys": 0})
	w.issue("deploy")
	w.write("roles/deploy", map[string]any{"max_keys": 2})
	if err := w.ledger.count(t.Context(), w.store); err != nil {
		t.Fatal(err)
	}
	w.wantLimit("deploy")
}

// An entry that is removed while the ledger is counted is not brought back by the count, and one that is made is not lost.
func TestCountBesideChanges(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"max_keys": 0})
	first := w.issue("deploy")
	w.issue("deploy")
	_, rand, _ := splitID(first.Data["id"].(string))
	w.engine.ledger.tally = tally{}
	once := sync.OnceFunc(func() {
		w.revoke(first)
		w.issue("deploy")
	})
	slow := &slowStorage{Storage: w.store, after: func(op, key string) {
		if op == "get" && strings.HasPrefix(key, plainKeys) && strings.HasSuffix(key, rand) {
			once()
		}
	}}
	if err := w.ledger.count(t.Context(), slow); err != nil {
		t.Fatal(err)
	}
	w.write("roles/deploy", map[string]any{"max_keys": 3})
	w.issue("deploy")
	w.wantLimit("deploy")
}

// A ledger record that cannot be read is named. Ceilings, which need to know all, refuse until it is gone.
func TestCountBesideAnUnreadableRecord(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"max_keys": 3})
	w.issue("deploy")
	w.issue("deploy")
	bad := plainKeys + hourOf(w.clock.now()) + "/0" // read first
	if err := w.store.Storage.Put(t.Context(), &logical.StorageEntry{Key: bad, Value: []byte("rubbish")}); err != nil {
		t.Fatal(err)
	}
	w.engine.ledger.tally = tally{}
	ledger := func() map[string]any { return w.read("status")["ledger"].(map[string]any) }
	for again := range 3 {
		w.store.set(nil)
		if err := w.ledger.count(t.Context(), w.store); err == nil {
			t.Fatal("what cannot be read is counted")
		}
		if reads := len(w.store.seen); again > 0 && reads > 2 { // of the one record
			t.Errorf("the ledger is gone through again, by %d reads", reads)
		}
		if got := ledger(); got["counted"] != false || !strings.Contains(got["last_error"].(string), bad) {
			t.Errorf("ledger: %v", got)
		}
	}
	if reason, status := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonTargetBusy || status != 503 || !strings.Contains(w.logs.String(), bad) {
		t.Errorf("with ceilings: %q, status %d", reason, status)
	}
	if err := w.store.Storage.Delete(t.Context(), bad); err != nil {
		t.Fatal(err)
	}
	if err := w.ledger.count(t.Context(), w.store); err != nil {
		t.Fatal(err)
	}
	if got := ledger(); got["keys"] != 2 || got["counted"] != true || got["last_error"] != "" {
		t.Errorf("ledger: %v", got)
	}
	w.issue("deploy")
	w.wantLimit("deploy")
}

// After a count that could not read a key the next one still knows which is the oldest.
func TestAgesAfterACountThatFailed(t *testing.T) {
	w := newWorld(t)
	first := w.issue("deploy")
	w.clock.advance(time.Minute)
	_, second, _ := splitID(w.issue("deploy").Data["id"].(string))
	w.engine.ledger.tally = tally{}
	w.store.set(func(op, key string) error {
		if op == "get" && strings.HasSuffix(key, second) {
			return errors.New("no answer")
		}
		return nil
	})
	if err := w.ledger.count(t.Context(), w.store); err == nil {
		t.Fatal("what cannot be read is counted")
	}
	w.store.set(nil)
	if err := w.ledger.count(t.Context(), w.store); err != nil {
		t.Fatal(err)
	}
	w.write("roles/deploy", map[string]any{"max_keys": 2, "on_limit": "revoke_oldest"})
	w.issue("deploy")
	if live := w.accessors(); len(live) != 2 || slices.Contains(live, first.Data["accessor"].(string)) {
		t.Errorf("alive are %q; the oldest is %v", live, first.Data["accessor"])
	}
}

// What is open and cannot be read keeps neither status nor metrics from telling the rest; metrics do not call it nothing.
func TestStatusBesideAnUnreadableRecord(t *testing.T) {
	w := newWorld(t)
	w.issue("deploy")
	w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonOutcomeUnknown {
		t.Fatalf("refused for %q", reason)
	}
	bad := openEntries + "0"
	if err := w.store.Storage.Put(t.Context(), &logical.StorageEntry{Key: bad, Value: []byte("rubbish")}); err != nil {
		t.Fatal(err)
	}
	got := w.read("status")["ledger"].(map[string]any)
	if got["pending"] != 1 || got["keys"] != 2 || !strings.Contains(got["last_error"].(string), bad) {
		t.Errorf("ledger: %v", got)
	}
	series := w.scrape()
	if _, told := series["ledger_open{state=debt}"]; told || series["ledger_counted"] != 1 {
		t.Errorf("metrics tell what is not known, or nothing: %v", series)
	}
}
