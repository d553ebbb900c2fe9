// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// Package differential compares the plugin's verifier with two others on the same tokens: lestrrat-go/jwx, which shares
// no code with it, and hashicorp/cap, which Vault's JWT auth method uses.
package differential

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	capjwt "github.com/hashicorp/cap/jwt"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jws"
	jwxjwt "github.com/lestrrat-go/jwx/v3/jwt"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
)

// start is the time at which all tokens are verified.
var start = time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)

const issuer = "https://id.example.com"

// claims are the claims that a verifier has read from a token that it accepts.
type claims struct {
	Issuer, Subject, ID string
	Audience            []string
	Expiry, IssuedAt    int64
}

// verifier is one library, set up as leniently as possible: it should refuse only what is wrong under every policy.
type verifier func(token string) (claims, error)

// Every other library accepts each token that we accept, and reads it in the same way. A difference is either a hole in our
// verifier or a fault of the other; neither may go unnoticed.
func TestWeAcceptNothingThatOthersRefuse(t *testing.T) {
	const tokens, seed = 6000, 20260901
	keys := newKeys(t)
	ours := newOurs(t, keys)
	others := map[string]verifier{"jwx": newJWX(t, keys), "cap": newCap(t, keys)}
	accepted, stricter := 0, map[string]int{}
	g := newGenerator(seed, keys)
	for n := range tokens {
		token, how := g.token()
		got, err := ours(token)
		if err == nil {
			accepted++
		}
		for name, verify := range others {
			theirs, theirErr := verify(token)
			switch {
			case err == nil && theirErr != nil:
				t.Errorf("token %d (%s): %s refuses what we accept: %v\n%s", n, how, name, theirErr, token)
			case err == nil && !equal(got, theirs):
				t.Errorf("token %d (%s): %s reads %+v, we read %+v\n%s", n, how, name, theirs, got, token)
			case err != nil && theirErr == nil:
				stricter[name]++
			}
		}
	}
	t.Logf("%d tokens: we accept %d, and refuse %v that others accept", tokens, accepted, stricter)
	// Without this, a generator of nothing but rubbish or a verifier that refuses everything would pass.
	if accepted < tokens/10 || accepted > tokens/2 || stricter["jwx"] < tokens/10 || stricter["cap"] < tokens/10 {
		t.Errorf("we accept %d of %d, and refuse %v that others accept: the test has lost its point", accepted, tokens, stricter)
	}
}

func equal(a, b claims) bool {
	return a.Issuer == b.Issuer && a.Subject == b.Subject && a.ID == b.ID && slices.Equal(a.Audience, b.Audience) &&
		a.Expiry == b.Expiry && a.IssuedAt == b.IssuedAt
}

// key signs tokens, which name it by id.
type key struct {
	id, alg string // alg is what it signs with
	signer  crypto.Signer
}

func newKeys(t *testing.T) []key {
	t.Helper()
	var keys []key
	add := func(id, alg string, signer crypto.Signer, err error) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key{id, alg, signer})
	}
	one, err := rsa.GenerateKey(rand.Reader, 2048)
	add("r1", "RS256", one, err)
	two, err := rsa.GenerateKey(rand.Reader, 2048)
	add("p1", "PS256", two, err)
	three, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	add("e1", "ES256", three, err)
	_, four, err := ed25519.GenerateKey(rand.Reader)
	add("d1", "EdDSA", four, err)
	return keys
}

// keySet returns the public keys, each for the one algorithm that it is used with.
func keySet(t *testing.T, keys []key) jwk.Set {
	t.Helper()
	set := jwk.NewSet()
	for _, k := range keys {
		public, err := jwk.Import(k.signer.Public())
		for name, value := range map[string]any{jwk.KeyIDKey: k.id, jwk.AlgorithmKey: k.alg} {
			if err == nil {
				err = public.Set(name, value)
			}
		}
		if err == nil {
			err = set.AddKey(public)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return set
}

func algorithms(keys []key) []string {
	var list []string
	for _, k := range keys {
		list = append(list, k.alg)
	}
	return list
}

func newOurs(t *testing.T, keys []key) verifier {
	t.Helper()
	body, err := json.Marshal(keySet(t, keys))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }))
	t.Cleanup(server.Close)
	v, err := identity.New(identity.Config{
		Issuer: issuer, JWKSURL: server.URL, Egress: egress.Policy{AllowHTTPLoopback: true}, Algorithms: algorithms(keys),
		Leeway: 30 * time.Second, Now: func() time.Time { return start },
	})
	if err != nil {
		t.Fatal(err)
	}
	return func(token string) (claims, error) {
		got, err := v.Verify(context.Background(), token)
		if err != nil {
			return claims{}, err
		}
		return claims{issuer, got.Subject, got.ID, got.Audience, got.Expiry.Unix(), got.IssuedAt.Unix()}, nil
	}
}

// skew is more than our leeway and the minute by which iat may lie in the future.
const skew = 2 * time.Minute

func newJWX(t *testing.T, keys []key) verifier {
	t.Helper()
	set := keySet(t, keys)
	return func(token string) (claims, error) {
		got, err := jwxjwt.Parse([]byte(token), jwxjwt.WithKeySet(set, jws.WithRequireKid(false)), jwxjwt.WithIssuer(issuer),
			jwxjwt.WithAcceptableSkew(skew), jwxjwt.WithClock(jwxjwt.ClockFunc(func() time.Time { return start })))
		if err != nil {
			return claims{}, err
		}
		var c claims
		c.Issuer, _ = got.Issuer()
		c.Subject, _ = got.Subject()
		c.ID, _ = got.JwtID()
		c.Audience, _ = got.Audience()
		expiry, _ := got.Expiration()
		issued, _ := got.IssuedAt()
		c.Expiry, c.IssuedAt = expiry.Unix(), issued.Unix()
		return c, nil
	}
}

func newCap(t *testing.T, keys []key) verifier {
	t.Helper()
	var public []crypto.PublicKey
	var algs []capjwt.Alg
	for _, k := range keys {
		public, algs = append(public, k.signer.Public()), append(algs, capjwt.Alg(k.alg))
	}
	set, err := capjwt.NewStaticKeySet(public)
	if err != nil {
		t.Fatal(err)
	}
	v, err := capjwt.NewValidator(set)
	if err != nil {
		t.Fatal(err)
	}
	return func(token string) (claims, error) {
		got, err := v.Validate(context.Background(), token, capjwt.Expected{
			Issuer: issuer, SigningAlgorithms: algs, ClockSkewLeeway: skew, Now: func() time.Time { return start },
		})
		if err != nil {
			return claims{}, err
		}
		return read(got)
	}
}

// read reads the claims from the map that cap returns.
func read(m map[string]any) (claims, error) {
	var c claims
	for name, to := range map[string]*string{"iss": &c.Issuer, "sub": &c.Subject, "jti": &c.ID} {
		if v, ok := m[name]; ok {
			if *to, ok = v.(string); !ok {
				return c, fmt.Errorf("%s is %T", name, v)
			}
		}
	}
	for name, to := range map[string]*int64{"exp": &c.Expiry, "iat": &c.IssuedAt} {
		number, ok := m[name].(float64)
		if !ok {
			return c, fmt.Errorf("%s is %T", name, m[name])
		}
		*to = int64(number)
	}
	switch aud := m["aud"].(type) {
	case string:
		c.Audience = []string{aud}
	case []any:
		for _, a := range aud {
			c.Audience = append(c.Audience, fmt.Sprint(a))
		}
	}
	return c, nil
}
