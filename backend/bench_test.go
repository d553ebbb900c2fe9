// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"crypto"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
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

// BenchmarkVerifyAndDecide leaves the target out. The mount has so many policies; the role names one, or as many as it may, of
// which the last accepts.
func BenchmarkVerifyAndDecide(b *testing.B) {
	for _, stored := range []int{1, 100, 1_000, 10_000} {
		w := newWorld(b)
		named := []string{}
		for i := 1; i < stored; i++ {
			name := "p" + strconv.Itoa(i)
			w.write("trust/"+name, map[string]any{"issuer": "github", "bound_audiences": audience, "bound_claims": map[string]any{"repository": "acme/other-" + strconv.Itoa(i)}})
			if i < maxPolicies {
				named = append(named, name)
			}
		}
		token := w.token(nil)
		req := &logical.Request{Storage: w.store}
		for _, names := range [][]string{{"main"}, append(named, "main")} {
			b.Run(fmt.Sprintf("%d stored/%d named", stored, len(names)), func(b *testing.B) {
				w.write("roles/deploy", map[string]any{"trust": strings.Join(names, ",")})
				r, err := w.role(b.Context(), w.store, "deploy")
				if err != nil {
					b.Fatal(err)
				}
				b.ReportAllocs()
				for b.Loop() {
					if _, err := w.identify(b.Context(), req, r, token, nil, expr.NewBudget()); err != nil {
						b.Fatal(err)
					}
				}
			})
			if stored == 1 {
				break // both are the same
			}
		}
	}
}

// BenchmarkAgainstGoOIDC compares verification and decision with go-oidc's own Verify over a static key, in turn in one
// run, with the token of a job at GitHub, RS256 and 2048 bits. A thousand policies are stored; a role names one of them,
// or ten of which the last accepts. The ratio says what the strict parse, the key set, the policies and their caches cost
// beside one RSA verification; for one policy it should stay below 1.5.
func BenchmarkAgainstGoOIDC(b *testing.B) {
	w := newWorld(b)
	rs := lab.NewIssuer(lab.IssuerOptions{Now: w.clock.now, Algorithm: "RS256"})
	rs.SetURL(w.serve(rs))
	w.write("issuers/rs", map[string]any{"oidc_discovery_url": rs.URL(), "ca_pem": w.ca})
	policy := func(name, repository string) {
		w.write("trust/"+name, map[string]any{
			"issuer": "rs", "bound_audiences": audience, "bound_claims_type": "glob", "condition": `claims.repository_owner == "acme" && claims.ref_protected != "false"`,
			"bound_claims": map[string]any{"repository": repository, "sub": "repo:acme/*:ref:refs/heads/**"},
		})
	}
	for n := range 999 {
		policy("p"+strconv.Itoa(n), "acme/other-"+strconv.Itoa(n))
	}
	policy("accepts", "acme/widget")

	_, key := rs.Key()
	verifier := oidc.NewVerifier(rs.URL(), &oidc.StaticKeySet{PublicKeys: []crypto.PublicKey{key.Public()}},
		&oidc.Config{ClientID: audience, SupportedSigningAlgs: []string{"RS256"}, Now: w.clock.now})
	token := rs.Token(map[string]any{"aud": audience, "nbf": w.clock.now().Unix()})
	req := &logical.Request{Storage: w.store}
	theirs := func() error {
		_, err := verifier.Verify(b.Context(), token)
		return err
	}
	for name, named := range map[string]string{"one policy": "accepts", "ten policies": "p0,p1,p2,p3,p4,p5,p6,p7,p8,accepts"} {
		b.Run(name, func(b *testing.B) {
			w.write("roles/deploy", map[string]any{"trust": named})
			r, err := w.role(b.Context(), w.store, "deploy")
			if err != nil {
				b.Fatal(err)
			}
			ours := func() error {
				_, err := w.identify(b.Context(), req, r, token, nil, expr.NewBudget())
				return err
			}
			var took [2]time.Duration
			for b.Loop() {
				for i, verify := range []func() error{theirs, ours} {
					began := time.Now()
					if err := verify(); err != nil {
						b.Fatal(err)
					}
					took[i] += time.Since(began)
				}
			}
			b.ReportMetric(float64(took[0])/float64(b.N), "go-oidc-ns/op")
			b.ReportMetric(float64(took[1])/float64(b.N), "ours-ns/op")
			b.ReportMetric(float64(took[1])/float64(took[0]), "ratio")
		})
	}
}

func (w *world) mustIssue(b *testing.B, op logical.Operation, data map[string]any) {
	resp, err := w.do(op, "creds/deploy", data)
	if err != nil || resp.IsError() {
		b.Fatalf("%v %v", resp, err)
	}
}
