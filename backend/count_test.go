// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"strings"
	"sync"
	"testing"

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

// A ledger record that cannot be read is named, and costs each further try no more than itself. Ceilings, which need to know
// all, refuse until it is gone.
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
	for try, reads := range []int{3, 1} {
		counting := &countingStorage{Storage: w.store}
		if err := w.ledger.count(t.Context(), counting); err == nil {
			t.Fatal("what cannot be read is counted")
		}
		if n := counting.total()[1]; n != int64(reads) {
			t.Errorf("try %d reads %d records", try, n)
		}
		if got := ledger(); got["keys"] != 2 || got["counted"] != false || !strings.Contains(got["last_error"].(string), bad) {
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

// What is open and cannot be read keeps neither status nor metrics from telling the rest.
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
	if n := w.scrape()["ledger_open{state=pending}"]; n != 1 {
		t.Errorf("metrics have %v pending", n)
	}
}
