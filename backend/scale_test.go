// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
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
