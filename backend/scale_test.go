// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// countingStorage counts what is asked of it.
type countingStorage struct {
	logical.Storage
	lists, gets, puts, deletes atomic.Int64
}

func (s *countingStorage) List(ctx context.Context, prefix string) ([]string, error) {
	s.lists.Add(1)
	return s.Storage.List(ctx, prefix)
}

func (s *countingStorage) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	s.gets.Add(1)
	return s.Storage.Get(ctx, key)
}

func (s *countingStorage) Put(ctx context.Context, e *logical.StorageEntry) error {
	s.puts.Add(1)
	return s.Storage.Put(ctx, e)
}

func (s *countingStorage) Delete(ctx context.Context, key string) error {
	s.deletes.Add(1)
	return s.Storage.Delete(ctx, key)
}

// total is how many calls there were, and begins to count anew.
func (s *countingStorage) total() (n [4]int64) {
	for i, counter := range []*atomic.Int64{&s.lists, &s.gets, &s.puts, &s.deletes} {
		n[i] = counter.Swap(0)
	}
	return n
}

// ledgerCosts returns what an issue, a tick and some reads ask of storage while the ledger has n keys: lists, gets, puts,
// deletes.
func ledgerCosts(t testing.TB, n int) map[string][4]int64 {
	t.Helper()
	w := newWorld(t)
	counted := &countingStorage{Storage: w.store.Storage}
	w.store.Storage = counted
	w.write("roles/deploy", map[string]any{"max_keys": 2 * n, "max_keys_per_subject": n})
	w.seed("acme", "other", n)
	w.restart() // so that the keys are counted by a scan
	held := w.issue("deploy")
	w.periodic() // caches are warm
	ids := w.list("keys")
	if len(ids) != n+1 {
		t.Fatalf("%d keys are listed", len(ids))
	}
	find := func(filter map[string]any, want int) func() {
		return func() {
			if resp, err := w.do(logical.ReadOperation, "keys", filter); err != nil || resp.IsError() || resp.Data["matched"] != want {
				t.Fatalf("%v: %v %v", filter, err, resp)
			}
		}
	}
	costs := map[string][4]int64{}
	for _, c := range []struct {
		name string
		do   func()
	}{
		{"issue", func() { w.issue("deploy") }},
		{"renew", func() {
			if resp, err := w.lease(logical.RenewOperation, held); err != nil || resp.IsError() {
				t.Fatal(err, resp)
			}
		}},
		{"tick", w.periodic},
		{"find by role", find(map[string]any{"role": "deploy"}, 2)},
		{"find a page", find(map[string]any{"role": "other", "limit": 10, "after": ids[n/2]}, 10)},
		{"status", func() { w.read("status") }},
	} {
		counted.total()
		c.do()
		costs[c.name] = counted.total()
	}
	return costs
}

// What issuing and sweeping ask of storage does not grow with the number of live keys, nor does what is read to show some.
// See BenchmarkLedger for a million.
func TestLedgerAtScale(t *testing.T) {
	t.Parallel()
	few, many := ledgerCosts(t, 100), ledgerCosts(t, 10_000)
	for _, costs := range []map[string][4]int64{few, many} {
		if n := costs["find a page"]; n[0] > 10 || n[1] != 10 { // how many hours it lists depends on how many keys they have
			t.Errorf("a page of 10 keys takes %d lists and %d gets", n[0], n[1])
		}
		delete(costs, "find a page")
	}
	if diff := cmp.Diff(few, many); diff != "" {
		t.Errorf("lists, gets, puts and deletes with 100 keys and 10,000 (-100 +10,000):\n%s", diff)
	}
	if n := many["issue"]; n[0] != 0 || n[2] > 5 || n[3] > 1 {
		t.Errorf("an issue makes %d lists, %d gets, %d puts and %d deletes", n[0], n[1], n[2], n[3])
	}
	if n := many["renew"]; n != [4]int64{0, 1, 0, 0} { // of its record
		t.Errorf("a renewal makes %d lists, %d gets, %d puts and %d deletes", n[0], n[1], n[2], n[3])
	}
	if n := many["find by role"]; n[1] > 6 {
		t.Errorf("finding 2 keys of 10,000 reads %d entries", n[1])
	}
}

// BenchmarkLedger tells the same from no key to a million, with the time that an issue and a tick take, and the memory that
// the engine holds beside what storage does. It needs 3 GB of memory.
func BenchmarkLedger(b *testing.B) {
	for _, n := range []int{0, 10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w, counted, held := worldWith(b, n)
			b.Run("issue", func(b *testing.B) {
				counted.each(b, func() { w.issue("deploy") })
				b.ReportMetric(float64(held)/1e6, "MB-held")
			})
			b.Run("tick", func(b *testing.B) { counted.each(b, w.periodic) })
		})
	}
}

// worldWith makes an engine whose ledger has n keys of another role, and counts them; held is how many bytes it keeps for them.
func worldWith(b *testing.B, n int) (w *world, counted *countingStorage, held int64) {
	b.Helper()
	w = newWorld(b)
	counted = &countingStorage{Storage: w.store.Storage}
	w.store.Storage = counted
	w.seed("acme", "other", n)
	w.engine.ledger.tally = tally{}
	w.store.set(nil) // forgets what it has seen
	before := heap()
	w.restart()
	held = heap() - before
	w.issue("deploy")
	w.periodic() // caches are warm
	return w, counted, held
}

// heap is how many bytes live.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// each runs do, and tells what it asks of storage each time.
func (s *countingStorage) each(b *testing.B, do func()) {
	s.total()
	b.ResetTimer()
	for range b.N {
		do()
	}
	b.StopTimer()
	for i, n := range s.total() {
		b.ReportMetric(float64(n)/float64(b.N), []string{"lists/op", "gets/op", "puts/op", "deletes/op"}[i])
	}
}

// A tick ends what has outlived its lease as far as its time goes, and the next one goes on.
func TestTickIsBoundedAndGoesOn(t *testing.T) {
	w := newWorld(t)
	w.seed("acme", "deploy", 50)
	w.clock.advance(26 * time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	var calls atomic.Int32
	w.keys.OnRequest(func(op string, stage lab.Stage) {
		if op == lab.OpRevoke && stage == lab.StageDone && calls.Add(1) == 20 {
			cancel() // as if its time were over
		}
	})
	_, _ = w.sweep(ctx, w.store, false) // its error says so
	if left := len(w.ledgerEntries()); left != 30 && left != 31 {
		t.Fatalf("%d keys are left after 20 calls", left)
	}
	if lag := w.read("status")["sweeper"].(map[string]any)["lag_seconds"].(int); lag < 12*3600 || lag > 22*3600 {
		t.Errorf("lag %d s", lag)
	}
	w.periodic()
	if left := w.ledgerEntries(); len(left) != 0 || calls.Load() > 51 {
		t.Errorf("%d keys are left after %d calls", len(left), calls.Load())
	}
	if lag := w.read("status")["sweeper"].(map[string]any)["lag_seconds"]; lag != 0 {
		t.Errorf("lag %v s with nothing to do", lag)
	}
}

// What is owed is late once its next try is due and has not been made.
func TestLagOfDebts(t *testing.T) {
	w := newWorld(t)
	lease := w.issue("deploy")
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 403})
	if _, err := w.lease(logical.RevokeOperation, lease); err == nil {
		t.Fatal("revoking works")
	}
	status := func() (debt, age, lag any) {
		all := w.read("status")
		ledger := all["ledger"].(map[string]any)
		return ledger["debt"], ledger["oldest_debt_seconds"], all["sweeper"].(map[string]any)["lag_seconds"]
	}
	if debt, age, lag := status(); debt != 1 || age != 0 || lag != 0 {
		t.Errorf("at once: debt %v of %v s, lag %v s", debt, age, lag)
	}
	w.clock.advance(debtPatience + 7*time.Second)
	if debt, age, lag := status(); debt != 1 || age != 307 || lag != 7 {
		t.Errorf("later: debt %v of %v s, lag %v s", debt, age, lag)
	}
}

// deleting is an API that ends whatever key it is told to, once.
type deleting struct {
	ended sync.Map
	n     atomic.Int64
}

func (d *deleting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, gone := d.ended.LoadOrStore(r.URL.Path, true); gone || r.Method != http.MethodDelete {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	d.n.Add(1)
	w.WriteHeader(http.StatusNoContent)
}

// BenchmarkRevocation ends 10,000 keys at a target that is limited to 500 calls a second, by a claim, which must be read for
// each. of-limit is the rate that was reached beside the limit, without what a burst allows; it should be 0.85 or more.
func BenchmarkRevocation(b *testing.B) {
	const keys, limit = 10_000, 500
	for range b.N {
		w := newWorld(b)
		api := &deleting{}
		url := w.serve(api)
		w.write("targets/gone", map[string]any{"driver": "http", "url": url, "profile": acme, "ca_pem": w.ca, "credential": "token=" + adminToken, "rate": limit})
		w.seed("gone", "deploy", keys)
		counted := &countingStorage{Storage: w.store.Storage}
		began := time.Now()
		rec := &revocation{Filter: filter{Claim: map[string]string{"repository": "acme/widget"}}, State: runRunning, StartedAt: w.clock.now()}
		id, err := w.startRevocation(b.Context(), counted, rec, true)
		if err != nil {
			b.Fatal(err)
		}
		w.runs.mu.Lock()
		r := w.runs.active[id]
		w.runs.mu.Unlock()
		<-r.over
		took := time.Since(began).Seconds()
		if r.rec.State != runDone || api.n.Load() != keys {
			b.Fatalf("%+v; %d were ended", r.rec.census, api.n.Load())
		}
		b.ReportMetric((keys-limit)/took/limit, "of-limit")
		b.ReportMetric(float64(counted.gets.Load())/keys, "gets/key")
		b.ReportMetric(float64(counted.puts.Load())/keys, "puts/key")
		b.ReportMetric(float64(counted.deletes.Load())/keys, "deletes/key")
		b.ReportMetric(float64(counted.lists.Load()), "lists")
	}
}

// Ticks do not walk over the keys that live, or the tokens that were used, while no hour passes; what an hour leaves is looked
// at until it is gone.
func TestTicksWalkOnceAnHour(t *testing.T) {
	w := newWorld(t)
	walks := func() (n int) {
		t.Helper()
		w.store.set(nil)
		lists := &listed{Storage: w.store.Storage}
		w.store.Storage = lists
		w.periodic()
		w.store.Storage = lists.Storage
		for _, prefix := range lists.prefixes {
			if prefix == plainKeys || prefix == sealedKeys || prefix == usedTable.prefix {
				n++
			}
		}
		return n
	}
	w.issue("deploy")
	if n := walks(); n != 3 {
		t.Errorf("the first tick walks %d times; want 3", n)
	}
	if n := walks(); n != 0 {
		t.Errorf("the next tick walks %d times", n)
	}
	w.clock.advance(-2 * time.Hour) // set back, hours pass again
	if n := walks(); n != 2 {
		t.Errorf("after the clock was set back a tick walks %d times; want 2", n)
	}
	w.clock.advance(6 * time.Hour) // the lease was lost
	if n := walks(); n != 2 || len(w.ledgerEntries()) != 0 {
		t.Errorf("when the key's hour has passed a tick walks %d times; want 2, and none of %q", n, w.ledgerEntries())
	}
	if n := walks(); n != 2 {
		t.Errorf("after a tick that met keys the next one walks %d times; want 2, to see that they are gone", n)
	}
	if n := walks(); n != 0 {
		t.Errorf("a tick walks %d times when all is done", n)
	}
}

// What is scraped every few seconds must cost the same at a million keys.
func TestLookingWalksOverNoKeys(t *testing.T) {
	w := newWorld(t)
	w.issue("deploy")
	w.clock.advance(26 * time.Hour)
	lists := &listed{Storage: w.store.Storage}
	w.store.Storage = lists
	if lag := w.read("status")["sweeper"].(map[string]any)["lag_seconds"].(int); lag < 20*3600 {
		t.Errorf("with a key that outlived its lease by most of a day the sweeper is %d s late", lag)
	}
	w.scrape()
	for _, prefix := range lists.prefixes {
		if strings.HasPrefix(prefix, plainKeys) || strings.HasPrefix(prefix, sealedKeys) {
			t.Errorf("lists %s", prefix)
		}
	}
}

// listed keeps the prefixes that are listed.
type listed struct {
	logical.Storage
	prefixes []string
}

func (s *listed) List(ctx context.Context, prefix string) ([]string, error) {
	s.prefixes = append(s.prefixes, prefix)
	return s.Storage.List(ctx, prefix)
}
