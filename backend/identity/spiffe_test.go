// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// workloadAPI stands for the Workload API: the test sets its answer for a trust domain, and it counts the requests.
type workloadAPI struct {
	mu      sync.Mutex
	bundles map[string]string // by trust domain
	err     error             // if set, answers in their place
	hold    chan struct{}     // if set, answers come when it is closed
	calls   int
}

func (a *workloadAPI) bundle(ctx context.Context, domain string) ([]byte, error) {
	a.mu.Lock()
	a.calls++
	body, known := a.bundles[domain]
	err, hold := a.err, a.hold
	a.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, errors.New("too slow")
		}
	}
	switch {
	case err != nil:
		return nil, err
	case !known:
		return nil, fmt.Errorf("no bundle: %w", ErrWithdrawn)
	}
	return []byte(body), nil
}

func (a *workloadAPI) set(change func(*workloadAPI)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(a)
}

func (a *workloadAPI) publish(keys ...json.RawMessage) {
	a.set(func(a *workloadAPI) { a.bundles = map[string]string{"example.org": jwks(keys...)} })
}

func (a *workloadAPI) wantCalls(t *testing.T, want int) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.calls != want {
		t.Errorf("the Workload API was asked %d times, want %d", a.calls, want)
	}
}

// trusting returns a verifier of example.org over a Workload API that has the domain's first key.
func trusting(t *testing.T, change func(*Config)) (*Verifier, *workloadAPI, *clock) {
	t.Helper()
	a, c := &workloadAPI{}, newClock()
	a.publish(firstKey(), jwk(ecKey().Public(), "e1", "", nil))
	cfg := Config{TrustDomain: "example.org", Bundle: a.bundle, Leeway: 30 * time.Second, Now: c.now}
	if change != nil {
		change(&cfg)
	}
	return newVerifier(t, cfg), a, c
}

const workloadID = "spiffe://example.org/ns/acme/sa/widget"

// svidClaims are those of a JWT-SVID as SPIRE makes it: without iss, nbf and jti.
func svidClaims(now time.Time) fields {
	return fields{"sub": workloadID, "aud": []string{"vault"}, "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix()}
}

func TestVerifyJWTSVID(t *testing.T) {
	v, _, _ := trusting(t, nil)
	got, err := v.Verify(t.Context(), token(svidClaims(start)))
	if err != nil {
		t.Fatal(err)
	}
	want := &Token{
		Subject: workloadID, Audience: []string{"vault"}, IssuedAt: start, Expiry: start.Add(5 * time.Minute), Digest: got.Digest,
		Claims: map[string]any{
			"sub": workloadID, "aud": []any{"vault"},
			"iat": json.Number(fmt.Sprint(start.Unix())), "exp": json.Number(fmt.Sprint(start.Add(5 * time.Minute).Unix())),
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("token (-want +got):\n%s", diff)
	}
}

func TestJWTSVIDAttacks(t *testing.T) {
	v, a, _ := trusting(t, nil)
	c := svidClaims(start)
	sub := func(id string) string { return token(c.with("sub", id)) }
	headed := func(h fields) string { return compact("RS256", rsaKey(), h.String(), c.String()) }
	good := strings.Split(token(c), ".")
	for _, tt := range []attack{
		{"without typ", headed(header1.without("typ")), ""},
		{"typ JOSE", headed(header1.with("typ", "JOSE")), ""},
		{"ES256", compact("ES256", ecKey(), headerE.String(), c.String()), ""},
		{"any iss, where none is set", token(c.with("iss", "https://anybody.example")), ""},
		{"long path", sub("spiffe://example.org/" + strings.Repeat("a/", 400) + "b"), ""},

		{"other domain, signed by this domain's key", sub("spiffe://evil.example/ns/acme/sa/widget"), UnknownIssuer},
		{"domain below this one", sub("spiffe://a.example.org/x"), UnknownIssuer},
		{"domain that begins like this one", sub("spiffe://example.org.evil.example/x"), UnknownIssuer},
		{"domain with a dot at its end", sub("spiffe://example.org./x"), UnknownIssuer},
		{"domain in upper case", sub("spiffe://EXAMPLE.org/x"), TokenMalformed},
		{"scheme in upper case", sub("SPIFFE://example.org/x"), TokenMalformed},
		{"no scheme", sub("example.org/x"), TokenMalformed},
		{"other scheme", sub("https://example.org/x"), TokenMalformed},
		{"port", sub("spiffe://example.org:443/x"), TokenMalformed},
		{"user", sub("spiffe://evil@example.org/x"), TokenMalformed},
		{"slash at the end", sub(workloadID + "/"), TokenMalformed},
		{"query", sub(workloadID + "?x"), TokenMalformed},
		{"fragment", sub(workloadID + "#x"), TokenMalformed},
		{"percent", sub("spiffe://example.org/a%2fb"), TokenMalformed},
		{"dots", sub("spiffe://example.org/a/../b"), TokenMalformed},
		{"two slashes", sub("spiffe://example.org//a"), TokenMalformed},
		{"no path", sub("spiffe://example.org"), TokenMalformed},
		{"empty path", sub("spiffe://example.org/"), TokenMalformed},
		{"no domain", sub("spiffe:///a"), TokenMalformed},
		{"sub missing", token(c.without("sub")), TokenMalformed},
		{"sub a list", token(c.with("sub", []string{workloadID})), TokenMalformed},

		{"iss empty", token(c.with("iss", "")), TokenMalformed},
		{"iss a number", token(c.with("iss", 1)), TokenMalformed},
		{"iss null", token(c.with("iss", nil)), TokenMalformed},
		{"iss folded", token(c.with("ISS", "x")), TokenMalformed},
		{"exp missing", token(c.without("exp")), TokenMalformed},
		{"iat missing", token(c.without("iat")), TokenMalformed},
		{"expired", token(c.with("exp", start.Add(-31*time.Second).Unix()).with("iat", start.Add(-time.Minute).Unix())), Expired},
		{"issued in the future", token(c.with("iat", start.Add(2*time.Minute).Unix())), NotYetValid},
		{"issued long ago", token(c.with("iat", start.Add(-2*time.Hour).Unix())), TooOld},
		{"too long a life", token(c.with("exp", start.Add(25*time.Hour).Unix())), Lifetime},

		{"no kid", headed(header1.without("kid")), UnknownKey},
		{"kid empty", headed(header1.with("kid", "")), TokenMalformed},
		{"unknown kid", headed(header1.with("kid", "k9")), UnknownKey},
		{"this kid, other key", tokenBy(otherRSA(), "k1", c), BadSignature},
		{"alg outside", compact("PS256", rsaKey(), header1.with("alg", "PS256").String(), c.String()), Algorithm},
		{"alg none", b64(header1.with("alg", "none").String()) + "." + b64(c.String()) + ".", Algorithm},
		{"EdDSA", compact("EdDSA", edKey(), fields{"alg": "EdDSA", "kid": "d1"}.String(), c.String()), Algorithm},
		{"access token", headed(header1.with("typ", "at+jwt")), TokenType},
		{"workload identity token", headed(header1.with("typ", "wit+jwt")), TokenType},
		{"flattened JSON", fields{"protected": good[0], "payload": good[1], "signature": good[2]}.String(), TokenMalformed},
		{"embedded jwk", headed(header1.with("jwk", firstKey())), TokenMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) { wantReason(t, v, tt.token, tt.want) })
	}
	a.wantCalls(t, 1)
}

// With an issuer configured, an iss in the token must equal it; without one there is nothing to compare.
func TestJWTSVIDWithIssuer(t *testing.T) {
	v, _, _ := trusting(t, func(c *Config) { c.Issuer = "https://oidc.example.org" })
	c := svidClaims(start)
	wantReason(t, v, token(c), "")
	wantReason(t, v, token(c.with("iss", "https://oidc.example.org")), "")
	wantReason(t, v, token(c.with("iss", "https://oidc.example.org/")), UnknownIssuer)
	wantReason(t, v, token(c.with("iss", "https://id.example.com")), UnknownIssuer) // an OpenID provider's
	wantReason(t, v, token(c.with("iss", "https://oidc.example.org").with("sub", "spiffe://evil.example/x")), UnknownIssuer)
	wantReason(t, v, token(c.with("iss", "https://oidc.example.org").with("sub", "repo:acme/widget")), TokenMalformed)
}

// An OpenID provider's tokens need an iss, whatever their sub looks like.
func TestSubjectIsFreeOfOpenIDProviders(t *testing.T) {
	v, i := door(t)
	c := claims(i.URL, start)
	wantReason(t, v, token(c.with("sub", workloadID)), "")
	wantReason(t, v, token(c.with("sub", "spiffe://EXAMPLE.org/")), "")
	wantReason(t, v, token(c.with("sub", workloadID).without("iss")), TokenMalformed)
}

func TestClaimedBy(t *testing.T) {
	domain, _, _ := trusting(t, nil)
	named, _, _ := trusting(t, func(c *Config) { c.Issuer = "https://oidc.example.org" })
	provider, i := door(t)
	for _, tt := range []struct {
		c                       Claimed
		domain, named, provider bool
	}{
		{Claimed{"", workloadID, ""}, true, true, false},
		{Claimed{"https://oidc.example.org", workloadID, ""}, true, true, false},
		{Claimed{"https://other.example", workloadID, ""}, true, false, false},
		{Claimed{i.URL, workloadID, ""}, true, false, true},
		{Claimed{i.URL, "anything", ""}, false, false, true},
		{Claimed{i.URL, "spiffe://evil.example/x", ""}, false, false, true},
		{Claimed{"", "spiffe://evil.example/x", ""}, false, false, false},
		{Claimed{"", "spiffe://example.org", ""}, false, false, false},
		{Claimed{}, false, false, false},
	} {
		if got := [3]bool{domain.cfg.ClaimedBy(tt.c), named.cfg.ClaimedBy(tt.c), provider.cfg.ClaimedBy(tt.c)}; got != [3]bool{tt.domain, tt.named, tt.provider} {
			t.Errorf("%v: domain, domain with issuer, provider: %t", tt.c, got)
		}
	}
}

func TestNewTrustDomain(t *testing.T) {
	pub := publicPEM(rsaKey().Public())
	bundle := (&workloadAPI{}).bundle
	sources := "workload_api, oidc_discovery_url, jwks_url, jwt_validation_pubkeys: want one of them"
	for name, tt := range map[string]struct {
		c    Config
		want string
	}{
		"workload API":    {Config{TrustDomain: "example.org", Bundle: bundle}, ""},
		"key address":     {Config{TrustDomain: "example.org", JWKSURL: "https://example.org/bundle"}, ""},
		"discovery":       {Config{TrustDomain: "example.org", DiscoveryURL: "https://oidc.example.org"}, ""},
		"configured keys": {Config{TrustDomain: "example.org", PublicKeys: []string{pub}}, ""},
		"all characters":  {Config{TrustDomain: "a-b_c.9", Bundle: bundle}, ""},

		"SPIFFE ID":            {Config{TrustDomain: "spiffe://example.org", Bundle: bundle}, "trust_domain: "},
		"upper case":           {Config{TrustDomain: "Example.org", Bundle: bundle}, "trust_domain: "},
		"port":                 {Config{TrustDomain: "example.org:1", Bundle: bundle}, "trust_domain: "},
		"path":                 {Config{TrustDomain: "example.org/a", Bundle: bundle}, "trust_domain: "},
		"too long":             {Config{TrustDomain: strings.Repeat("a", 256), Bundle: bundle}, "trust_domain: "},
		"no source":            {Config{TrustDomain: "example.org"}, sources},
		"two sources":          {Config{TrustDomain: "example.org", Bundle: bundle, PublicKeys: []string{pub}}, sources + " alone; what a write does not name stays"},
		"issuer not a URL":     {Config{TrustDomain: "example.org", Issuer: "spire", Bundle: bundle}, "issuer: "},
		"bundle of a provider": {Config{Issuer: "https://id.example.com", Bundle: bundle}, "workload_api: "},
	} {
		_, err := New(tt.c)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	v := newVerifier(t, Config{TrustDomain: "example.org", DiscoveryURL: "https://oidc.example.org"})
	if v.cfg.Issuer != "https://oidc.example.org" || !v.oidc.SkipIssuerCheck || v.oidc.SkipExpiryCheck || v.oidc.InsecureSkipSignatureCheck {
		t.Errorf("issuer %q, go-oidc %+v", v.cfg.Issuer, v.oidc)
	}
}

// Configured keys have no id; the token must have a kid all the same.
func TestJWTSVIDWithConfiguredKeys(t *testing.T) {
	v, _, _ := trusting(t, func(c *Config) { c.Bundle, c.PublicKeys = nil, []string{publicPEM(rsaKey().Public())} })
	wantReason(t, v, token(svidClaims(start)), "")
	wantReason(t, v, tokenBy(otherRSA(), "k1", svidClaims(start)), BadSignature)
	wantReason(t, v, compact("RS256", rsaKey(), header1.without("kid").String(), svidClaims(start).String()), UnknownKey)
}

// The bundle of a SPIFFE bundle endpoint says which keys are for JWT-SVIDs. To an OpenID provider they are nothing.
func TestKeyUses(t *testing.T) {
	with := func(use string) string {
		return jwks(jwk(rsaKey().Public(), "k1", "", fields{"use": use}), jwk(ecKey().Public(), "e1", "", nil))
	}
	for use, want := range map[string]string{"jwt-svid": "", "sig": "", "": "", "x509-svid": UnknownKey, "enc": UnknownKey, "wit-svid": UnknownKey} {
		i := newIssuer(t, with(use))
		v, _, _ := trusting(t, func(c *Config) {
			web := i.config(newClock())
			c.Bundle, c.JWKSURL, c.CAPEM, c.Egress = nil, i.URL+"/keys", web.CAPEM, web.Egress
		})
		wantReason(t, v, token(svidClaims(start)), want)
		if got := v.Status().Skipped["not for signatures"]; (got == 1) != (want != "") {
			t.Errorf("use %q: %d keys skipped", use, got)
		}
	}
	i := newIssuer(t, with("jwt-svid"))
	wantReason(t, newVerifier(t, i.config(newClock())), token(claims(i.URL, start)), UnknownKey)
}
