// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"crypto"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/google/go-cmp/cmp"
)

// newIssuer starts an issuer over TLS and returns a client that trusts it.
func newIssuer(t *testing.T, o IssuerOptions) (*Issuer, *http.Client) {
	t.Helper()
	i := NewIssuer(o)
	s := httptest.NewTLSServer(i)
	t.Cleanup(s.Close)
	i.SetURL(s.URL)
	return i, s.Client()
}

// verify verifies a token with go-oidc, with keys fetched anew.
func verify(t *testing.T, i *Issuer, c *http.Client, token, alg string, now func() time.Time) (*oidc.IDToken, error) {
	t.Helper()
	ctx := oidc.ClientContext(t.Context(), c)
	provider, err := oidc.NewProvider(ctx, i.URL())
	if err != nil {
		t.Fatal(err)
	}
	return provider.Verifier(&oidc.Config{ClientID: "https://github.com/acme", SupportedSigningAlgs: []string{alg}, Now: now}).Verify(ctx, token)
}

func TestTokensVerify(t *testing.T) {
	t.Parallel()
	for _, alg := range []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"} {
		t.Run(alg, func(t *testing.T) {
			t.Parallel()
			clock := newClock()
			i, c := newIssuer(t, IssuerOptions{Algorithm: alg, Now: clock.Now})
			token, err := verify(t, i, c, i.Token(nil), alg, clock.Now)
			if err != nil {
				t.Fatal(err)
			}
			if token.Issuer != i.URL() || token.Subject != "repo:acme/widget:ref:refs/heads/main" ||
				!token.Expiry.Equal(start.Add(5*time.Minute)) || !token.IssuedAt.Equal(start) {
				t.Errorf("token %+v", token)
			}
		})
	}
	wantPanic(t, `lab: algorithm "HS256": unknown`, func() { NewIssuer(IssuerOptions{Algorithm: "HS256"}) })
}

// part decodes a part of a token: 0 header, 1 claims.
func part(t *testing.T, token string, n int) map[string]any {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[n])
	if err != nil {
		t.Fatal(err)
	}
	var object map[string]any
	if err := json.Unmarshal(raw, &object); err != nil {
		t.Fatal(err)
	}
	return object
}

func TestTokenClaims(t *testing.T) {
	t.Parallel()
	clock := newClock()
	i := NewIssuer(IssuerOptions{URL: "https://issuer.example", Algorithm: "ES256", Now: clock.Now})
	first, second := part(t, i.Token(nil), 1), part(t, i.Token(nil), 1)
	if first["jti"] == second["jti"] {
		t.Error("two tokens with one jti")
	}
	want := strings.Fields(`actor actor_id aud base_ref event_name exp head_ref iat iss job_workflow_ref job_workflow_sha jti nbf ref
		ref_protected ref_type repository repository_id repository_owner repository_owner_id repository_visibility run_attempt run_id
		run_number runner_environment sha sub workflow workflow_ref workflow_sha`)
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(first))); diff != "" {
		t.Errorf("claims, -want +got:\n%s", diff)
	}

	changed := part(t, i.Token(map[string]any{"jti": nil, "sub": "x", "exp": "soon", "new": []int{1}, "iss": "other"}), 1)
	maps.Copy(first, map[string]any{"sub": "x", "exp": "soon", "new": []any{1.0}, "iss": "other"})
	delete(first, "jti")
	if diff := cmp.Diff(first, changed); diff != "" {
		t.Errorf("overridden claims, -want +got:\n%s", diff)
	}
}

func TestSignAnyHeader(t *testing.T) {
	t.Parallel()
	i := NewIssuer(IssuerOptions{})
	kid, key := i.Key()
	for name, c := range map[string]struct {
		header, want map[string]any
		alg          string // of the signature
	}{
		"filled in":     {nil, map[string]any{"alg": "RS256", "kid": kid}, "RS256"},
		"left out":      {map[string]any{"alg": nil, "kid": nil, "typ": "JWT"}, map[string]any{"typ": "JWT"}, "RS256"},
		"other alg":     {map[string]any{"alg": "PS384"}, map[string]any{"alg": "PS384", "kid": kid}, "PS384"},
		"alg none":      {map[string]any{"alg": "none"}, map[string]any{"alg": "none", "kid": kid}, "RS256"},
		"alg of others": {map[string]any{"alg": "ES256"}, map[string]any{"alg": "ES256", "kid": kid}, "RS256"},
		"crit and kid":  {map[string]any{"crit": []string{"b64"}, "kid": 7}, map[string]any{"alg": "RS256", "crit": []any{"b64"}, "kid": 7.0}, "RS256"},
	} {
		token := i.Sign(c.header, []byte("not even JSON"))
		if diff := cmp.Diff(c.want, part(t, token, 0)); diff != "" {
			t.Errorf("%s: header, -want +got:\n%s", name, diff)
		}
		wantSignature(t, name, token, c.alg, key.Public())
	}
}

// wantSignature checks the RSA signature of a token without reading its header.
func wantSignature(t *testing.T, name, token, alg string, public crypto.PublicKey) {
	t.Helper()
	input, encoded := token[:strings.LastIndex(token, ".")], token[strings.LastIndex(token, ".")+1:]
	signature, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		t.Fatal(err)
	}
	hash := algorithms[alg].hash
	digest := hash.New()
	digest.Write([]byte(input))
	if strings.HasPrefix(alg, "PS") {
		err = rsa.VerifyPSS(public.(*rsa.PublicKey), hash, digest.Sum(nil), signature, nil)
	} else {
		err = rsa.VerifyPKCS1v15(public.(*rsa.PublicKey), hash, digest.Sum(nil), signature)
	}
	if err != nil {
		t.Errorf("%s: the signature is not one of %s by the issuer's key: %v", name, alg, err)
	}
}

func TestCompactTakesHeadersAsTheyAre(t *testing.T) {
	t.Parallel()
	key := generateKey("ES256")
	token, err := Compact("ES256", key, []byte(`{"alg":"none","alg":"ES256"}`), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if want := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","alg":"ES256"}`)) + ".eA."; !strings.HasPrefix(token, want) {
		t.Errorf("token %s; want it to begin with %s", token, want)
	}
	if _, err := Compact("ES384", key, nil, nil); err == nil || err.Error() != `signing with "ES384": the key does not fit; got *ecdsa.PrivateKey` {
		t.Errorf("a curve that does not fit: %v", err)
	}
}

func TestRotateAndRetire(t *testing.T) {
	t.Parallel()
	clock := newClock()
	i, c := newIssuer(t, IssuerOptions{Algorithm: "ES256", Now: clock.Now})
	oldKid, _ := i.Key()
	old := i.Token(nil)
	kid := i.Rotate()
	if got, _ := i.Key(); got != kid || got == oldKid {
		t.Errorf("signing key %q after rotating from %q to %q", got, oldKid, kid)
	}
	check := func(when, token string, want bool) {
		t.Helper()
		if _, err := verify(t, i, c, token, "ES256", clock.Now); (err == nil) != want {
			t.Errorf("%s: error %v; want verified %v", when, err, want)
		}
	}
	check("old token after rotation", old, true)
	check("new token", i.Token(nil), true)
	i.Retire(oldKid)
	check("old token after retirement", old, false)
	check("new token after the old key's retirement", i.Token(nil), true)
	i.Retire(kid)
	if got, _ := i.Key(); got != kid {
		t.Error("a retired key signs no more")
	}
	check("token of a retired key", i.Token(nil), false)
}

func TestKeySetCanBeAnything(t *testing.T) {
	t.Parallel()
	i, c := newIssuer(t, IssuerOptions{Algorithm: "ES256"})
	get := func(path string) reply {
		req, err := http.NewRequestWithContext(t.Context(), "GET", i.URL()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		return send(c, req)
	}
	kids := func() (kids []any) {
		for _, k := range get("/jwks").object(t)["keys"].([]any) {
			kids = append(kids, k.(map[string]any)["kid"])
		}
		return kids
	}
	kid, _ := i.Key()
	i.Publish(json.RawMessage(`{"kty":"oct","k":"c2VjcmV0","kid":"poison"}`))
	i.Publish(map[string]any{"kty": "RSA"})
	if diff := cmp.Diff([]any{kid, "poison", nil}, kids()); diff != "" {
		t.Errorf("published, -want +got:\n%s", diff)
	}
	i.Retire("poison")
	if diff := cmp.Diff([]any{kid, nil}, kids()); diff != "" {
		t.Errorf("published after Retire, -want +got:\n%s", diff)
	}

	i.SetJWKS([]byte{})
	if r := get("/jwks"); r.status != 200 || r.body != "" || r.header.Get("Content-Type") != "application/jwk-set+json" {
		t.Errorf("empty body: %d %q %s", r.status, r.body, r.header.Get("Content-Type"))
	}
	i.SetJWKS(nil)
	if diff := cmp.Diff([]any{kid, nil}, kids()); diff != "" {
		t.Errorf("published after SetJWKS(nil), -want +got:\n%s", diff)
	}

	if r := get("/.well-known/openid-configuration"); r.header.Get("Content-Type") != "application/json" || r.object(t)["jwks_uri"] != i.URL()+"/jwks" {
		t.Errorf("discovery: %s %s", r.header.Get("Content-Type"), r.body)
	}
	i.Fault(OpJWKS, Fault{Kind: KindStatus, Status: 500})
	i.Fault(OpDiscovery, Fault{Kind: KindHuge, Size: 1, Count: 1})
	if r := get("/jwks"); r.status != 500 {
		t.Errorf("keys with a fault: %d; want 500", r.status)
	}
	if r := get("/.well-known/openid-configuration"); len(r.body) < 1<<20 || r.object(t)["issuer"] != i.URL() {
		t.Errorf("discovery with a fault: %d bytes; want more than 1 MiB", len(r.body))
	}
	if discovery, jwks := i.Fetches(); discovery != 2 || jwks != 5 {
		t.Errorf("%d fetches of discovery, %d of keys; want 2, 5", discovery, jwks)
	}
}

func TestIssuerOverHTTP(t *testing.T) {
	t.Parallel()
	i := NewIssuer(IssuerOptions{URL: "https://issuer.example", Algorithm: "ES256"})
	url := serve(t, i)
	if r := do(t, "POST", url+"/lab/token", ""); r.status != 200 || part(t, r.body, 1)["repository"] != "acme/widget" {
		t.Errorf("token: %d %s", r.status, r.body)
	}
	r := do(t, "POST", url+"/lab/token", `{"repository":"acme/gadget","jti":null,"big":9007199254740993}`)
	claims, err := base64.RawURLEncoding.DecodeString(strings.Split(r.body, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"repository":"acme/gadget"`, `"big":9007199254740993`} {
		if !strings.Contains(string(claims), want) {
			t.Errorf("claims %s; want %s", claims, want)
		}
	}
	if strings.Contains(string(claims), `"jti"`) {
		t.Errorf("claims %s; want no jti", claims)
	}
	for _, body := range []string{"[]", "{", "{}{}"} {
		if r := do(t, "POST", url+"/lab/token", body); r.status != 400 || r.body != `{"error":"want a JSON object of claims"}` {
			t.Errorf("claims %s: %d %s; want 400", body, r.status, r.body)
		}
	}
	rotated := do(t, "POST", url+"/lab/rotate", "")
	if kid, _ := i.Key(); rotated.status != 200 || rotated.body != kid {
		t.Errorf("rotate: %d %s; want 200 %s", rotated.status, rotated.body, kid)
	}
}

// A caller that gives up on a hanging issuer does not leave the server hanging.
func TestIssuerHangs(t *testing.T) {
	t.Parallel()
	i, c := newIssuer(t, IssuerOptions{Algorithm: "ES256"})
	i.Fault(OpAny, Fault{Kind: KindHang})
	ctx, cancel := context.WithCancel(t.Context())
	i.OnRequest(func(string, Stage) { cancel() })
	_, err := oidc.NewProvider(oidc.ClientContext(ctx, c), i.URL())
	if err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
		t.Errorf("error %v; want %v", err, context.Canceled)
	}
}
