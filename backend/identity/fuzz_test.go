// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"crypto"
	"encoding/json"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

// A header that we accept names neither keys nor anything else that another library would act on, and go-jose reads the
// same algorithm and key id out of it.
func FuzzHeader(f *testing.F) {
	for _, seed := range []string{
		header1.String(), headerE.String(), `{"alg":"none"}`, `{"alg":"RS256","alg":"none"}`, `{"alg":"RS256","ALG":"none"}`, `{"alg":"RS256","\u212aid":"k"}`,
		`{"alg":"ES256","jwk":{}}`, `{"alg":"RS256","JKU":"https://evil"}`, `{"alg":"RS256","crit":["b64"],"b64":false}`, `{"alg":"RS256","x5t#S256":"AA"}`,
		`{"alg":"RS256","kid":7}`, `{"alg":"RS256","kid":"k\u0000"}`, `{"alg":"PS512","zip":"DEF"}`, `{"alg":"EdDSA","cty":"JWT","typ":"at+jwt"}`, `[]`, ``,
		`{"alg":"RS256","nonce":1}`, `{"alg":"RS256","url":[]}`, `{"alg":"RS256","kid":"k","x":{"jwk":1,"JWK":2}}`,
	} {
		f.Add(seed)
	}
	var algorithms []jose.SignatureAlgorithm
	for _, alg := range asymmetric {
		algorithms = append(algorithms, jose.SignatureAlgorithm(alg))
	}
	f.Fuzz(func(t *testing.T, text string) {
		h, err := parseHeader(text, testLimits)
		if err != nil {
			return
		}
		var all map[string]any
		if err := json.Unmarshal([]byte(text), &all); err != nil {
			t.Fatalf("encoding/json refuses what we accept: %v", err)
		}
		for name := range all {
			foreign := slices.ContainsFunc(refusedHeaders, func(r string) bool { return strings.EqualFold(r, name) })
			if used := slices.ContainsFunc(registeredHeaders, func(r string) bool { return r != name && strings.EqualFold(r, name) }); foreign || used {
				t.Errorf("a header with %q was accepted", name)
			}
		}
		if h.hasKid != (all["kid"] != nil) || h.hasKid && !isKeyID(h.kid) {
			t.Errorf("kid %q, present: %t", h.kid, h.hasKid)
		}
		if !slices.Contains(asymmetric, h.alg) {
			return
		}
		jws, err := jose.ParseSignedCompact(b64(text)+".e30.AA", algorithms)
		if err != nil {
			return // it refuses more, such as a nonce that is no text
		}
		if got := jws.Signatures[0].Header; got.KeyID != h.kid || got.Algorithm != h.alg || got.JSONWebKey != nil {
			t.Errorf("go-jose reads alg %q, kid %q; we read %q, %q", got.Algorithm, got.KeyID, h.alg, h.kid)
		}
	})
}

// Whatever an issuer signs, go-oidc accepts by itself what we accept, and a program that decodes the claims into a struct
// finds the same values as we do.
func FuzzSignedClaims(f *testing.F) {
	const issuer = "https://id.example.com"
	good := claims(issuer, start)
	for _, seed := range []fields{
		good, good.with("SUB", "evil"), good.with("aud", []string{"a", "b"}), good.without("jti"), good.with("i\u017fs", "evil"), good.with("exp", start.Unix()+1),
		good.with("exp", json.RawMessage("1.8e9")), good.with("iss", issuer+"/"), good.with("Repository", "x").with("repository", "y"), good.with("nonce", "n"),
		good.with("_claim_names", fields{}), good.with("sub", "a\u200bb"), good.with("at_hash", "x").with("azp", "y"),
	} {
		f.Add(`{"alg":"EdDSA"}`, seed.String())
	}
	f.Add(`{"alg":"EdDSA","kid":"k"}`, strings.Replace(good.String(), `"sub"`, `"sub":"evil","sub"`, 1))
	f.Add(`{"alg":"EdDSA","typ":"JWT"}`, `{"iss":"https://id.example.com","sub":"s","iat":1788264000,"exp":1788264600}`)
	ours := must(New(Config{Issuer: issuer, PublicKeys: []string{publicPEM(edKey().Public())}, Algorithms: []string{"EdDSA"}, Now: newClock().now}))
	theirs := oidc.NewVerifier(issuer, &oidc.StaticKeySet{PublicKeys: []crypto.PublicKey{edKey().Public()}},
		&oidc.Config{SupportedSigningAlgs: []string{"EdDSA"}, SkipClientIDCheck: true, Now: newClock().now})
	f.Fuzz(func(t *testing.T, header, payload string) {
		raw := compact("EdDSA", edKey(), header, payload)
		got, err := ours.Verify(t.Context(), raw)
		if err != nil {
			if why := reason(t, err); why == "" || strings.Contains(err.Error(), "\n") {
				t.Errorf("refused with %q", err)
			}
			return
		}
		id, err := theirs.Verify(t.Context(), raw)
		if err != nil {
			t.Fatalf("go-oidc refuses what we accept: %v", err)
		}
		if id.Issuer != issuer || id.Subject != got.Subject || !slices.Equal(id.Audience, got.Audience) || !id.Expiry.Equal(got.Expiry) || !id.IssuedAt.Equal(got.IssuedAt) {
			t.Errorf("go-oidc reads %+v, we read %+v", id, got)
		}
		var loose struct{ Iss, Sub, Jti string } // names match in any case
		if err := id.Claims(&loose); err != nil || loose.Iss != issuer || loose.Sub != got.Subject || loose.Jti != got.ID {
			t.Errorf("a struct reads %+v, %v; we read %v", loose, err, got.Claims)
		}
	})
}

// An issuer or discovery address that is accepted is https (or loopback, where that is permitted) in its only spelling,
// is kept as it is, and is one tenant's.
func FuzzIssuer(f *testing.F) {
	for _, seed := range []string{
		"https://id.example.com", "https://id.example.com/realm/", "https://ID.example.com", "https://id.example.com:443", "https://u@id.example.com",
		"https://id.example.com/a/../b", "https://id.example.com?x", "http://evil?https://good", "https://a.*", "https://b\u00fccher.example", "http://127.0.0.1:8200",
		"http://localhost:1/x", "https://login.microsoftonline.com/common/v2.0", "https://login.microsoftonline.com//Common", "https://sts.windows.net/",
		"https://login.microsoftonline.com/72f988bf-86f1-41af-91ab-2d7cd011db47/v2.0", "https://login.microsoftonline.com/%63ommon", "https://169.254.169.254",
	} {
		f.Add(seed)
	}
	pub := []string{publicPEM(edKey().Public())}
	f.Fuzz(func(t *testing.T, raw string) {
		for _, loopback := range []bool{false, true} {
			for _, c := range []Config{{Issuer: raw, PublicKeys: pub}, {DiscoveryURL: raw}} {
				c.Egress.AllowHTTPLoopback = loopback
				v, err := New(c)
				if err != nil {
					continue
				}
				u, err := url.Parse(raw)
				if err != nil || u.String() != raw || v.cfg.Issuer != raw || u.Hostname() != strings.ToLower(u.Hostname()) || u.User != nil || strings.ContainsAny(raw, "?#") || strings.Contains(u.Host, "*") {
					t.Fatalf("%q was accepted", raw)
				}
				ip, _ := netip.ParseAddr(u.Hostname())
				if u.Scheme != "https" && !(loopback && u.Scheme == "http" && (u.Hostname() == "localhost" || ip.IsLoopback())) {
					t.Errorf("%q was accepted with loopback permitted: %t", raw, loopback)
				}
				tenant, _, _ := strings.Cut(strings.TrimLeft(strings.ToLower(u.Path), "/"), "/")
				if u.Host == "login.microsoftonline.com" && slices.Contains([]string{"", "common", "organizations", "consumers"}, tenant) {
					t.Errorf("%q, which serves every tenant, was accepted", raw)
				}
			}
		}
	})
}
