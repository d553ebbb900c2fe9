// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"strconv"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/trust"
)

// BenchmarkIssue runs the whole issuing path in process: by token (verify, decide, exchange, ledger) and by login, with a
// target on loopback, beside the exchange alone; the difference is what the engine costs.
func BenchmarkIssue(b *testing.B) {
	b.Run("exchange alone", func(b *testing.B) {
		w := newWorld(b)
		t, err := w.target(b.Context(), w.store, "acme")
		if err != nil {
			b.Fatal(err)
		}
		e := &entry{ID: "2026010203-a"}
		o := &order{who: &subject{issuer: &issuer{}, Identity: &trust.Identity{}}, target: t, params: map[string]any{"project": "widget", "scopes": []any{"read"}}}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			e.Name, e.NotAfter = "bench-"+strconv.Itoa(i), w.clock.now().AddDate(0, 0, 1)
			if _, err := t.Exchange(b.Context(), o.request(e, "")); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("by login", func(b *testing.B) {
		w := newWorld(b)
		b.ReportAllocs()
		for b.Loop() {
			w.mustIssue(b, logical.ReadOperation, nil)
		}
	})
	for name, singleUse := range map[string]bool{"by token": false, "by token, single use": true} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b)
			w.write("issuers/github", map[string]any{"single_use": singleUse})
			tokens := make([]string, 1)
			if singleUse {
				tokens = make([]string, b.N+1000)
			}
			for i := range tokens {
				tokens[i] = w.token(nil)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				w.mustIssue(b, logical.UpdateOperation, map[string]any{"subject_token": tokens[i%len(tokens)]})
			}
		})
	}
}

// BenchmarkVerifyAndDecide leaves the target out.
func BenchmarkVerifyAndDecide(b *testing.B) {
	w := newWorld(b)
	r, err := w.role(b.Context(), w.store, "deploy")
	if err != nil {
		b.Fatal(err)
	}
	token := w.token(nil)
	req := &logical.Request{Storage: w.store}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.identify(b.Context(), req, r, token, nil, expr.NewBudget()); err != nil {
			b.Fatal(err)
		}
	}
}

func (w *world) mustIssue(b *testing.B, op logical.Operation, data map[string]any) {
	resp, err := w.do(op, "creds/deploy", data)
	if err != nil || resp.IsError() {
		b.Fatalf("%v %v", resp, err)
	}
}
