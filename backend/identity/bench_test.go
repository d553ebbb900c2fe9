// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"crypto"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

// githubClaims has the shape and size of a token of GitHub Actions.
func githubClaims(issuer string, now time.Time) fields {
	c := claims(issuer, now)
	for _, name := range []string{
		"actor", "actor_id", "base_ref", "environment", "event_name", "head_ref", "job_workflow_ref", "job_workflow_sha", "ref", "ref_protected",
		"ref_type", "repository", "repository_owner", "repository_owner_id", "repository_visibility", "run_attempt", "run_id", "run_number",
		"runner_environment", "sha", "workflow", "workflow_ref", "workflow_sha",
	} {
		c[name] = "acme/widget/.github/workflows/release.yml"
	}
	return c
}

// BenchmarkVerify compares a whole Verify with go-oidc's own (which gives no claims yet) over the same static
// key, both without network.
func BenchmarkVerify(b *testing.B) {
	const issuer = "https://id.example.com"
	for _, k := range []struct {
		alg    string
		key    any
		public crypto.PublicKey
	}{{"RS256", rsaKey(), rsaKey().Public()}, {"ES256", ecKey(), ecKey().Public()}} {
		now := func() time.Time { return start }
		raw := compact(k.alg, k.key, fields{"alg": k.alg, "kid": "k1", "typ": "JWT"}.String(), githubClaims(issuer, start).String())
		b.Run(k.alg+"/go-oidc", func(b *testing.B) {
			set := &oidc.StaticKeySet{PublicKeys: []crypto.PublicKey{k.public}}
			v := oidc.NewVerifier(issuer, set, &oidc.Config{SkipClientIDCheck: true, SupportedSigningAlgs: []string{k.alg}, Now: now})
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(b.Context(), raw); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(k.alg+"/identity", func(b *testing.B) {
			v, err := New(Config{Issuer: issuer, PublicKeys: []string{publicPEM(k.public)}, Algorithms: []string{k.alg}, Now: now})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(b.Context(), raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRefuse measures the cost of a token that is refused before its signature is checked.
func BenchmarkRefuse(b *testing.B) {
	v, err := New(Config{Issuer: "https://id.example.com", PublicKeys: []string{publicPEM(rsaKey().Public())}, Now: newClock().now})
	if err != nil {
		b.Fatal(err)
	}
	raw := token(githubClaims("https://id.example.com", start.Add(-time.Hour)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(b.Context(), raw); err == nil {
			b.Fatal("accepted")
		}
	}
}
