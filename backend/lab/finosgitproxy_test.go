// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// finos is a FinosGitProxy under test, with its authority.
type finos struct {
	url       string
	authority *Issuer
	clock     *testClock
}

func newFinos(t *testing.T, change func(*FinosGitProxyOptions)) *finos {
	t.Helper()
	f := &finos{clock: newClock()}
	f.authority = NewIssuer(IssuerOptions{Now: f.clock.Now})
	f.authority.SetURL(serve(t, f.authority))
	o := FinosGitProxyOptions{AuthorityURL: f.authority.URL(), ClientID: "vault", ExpectedAudience: "git-proxy", Now: f.clock.Now,
		RoleMapping: map[string][]FinosClaim{"admin": {{"scope", "git-proxy.admin"}, {"sub", "robot"}}}}
	if change != nil {
		change(&o)
	}
	f.url = serve(t, NewFinosGitProxy(o))
	return f
}

// token returns a token that the proxy accepts unless the given claims prevent it.
func (f *finos) token(claims map[string]any) string {
	now := f.clock.Now()
	all := map[string]any{"iss": f.authority.URL(), "sub": "robot", "aud": "git-proxy", "azp": "vault", "iat": now.Unix(), "exp": now.Add(time.Minute).Unix()}
	return f.authority.Sign(nil, mustJSON(override(all, claims)))
}

func (f *finos) ask(t *testing.T, authorization string) reply {
	t.Helper()
	if authorization == "" {
		return do(t, "GET", f.url+"/api/v1/repo", "")
	}
	return do(t, "GET", f.url+"/api/v1/repo", "", "Authorization", authorization)
}

func TestFinosGitProxyAccepts(t *testing.T) {
	t.Parallel()
	f := newFinos(t, nil)
	for name, authorization := range map[string]string{
		"bearer":          "Bearer " + f.token(nil),
		"without a word":  f.token(nil),
		"any word":        "Whatever " + f.token(nil),
		"one of several":  "Bearer " + f.token(map[string]any{"aud": []string{"other", "git-proxy"}}),
		"no azp":          "Bearer " + f.token(map[string]any{"azp": nil}),
		"an empty azp":    "Bearer " + f.token(map[string]any{"azp": ""}),
		"without an end":  "Bearer " + f.token(map[string]any{"exp": nil}),
		"started a while": "Bearer " + f.token(map[string]any{"nbf": f.clock.Now().Unix()}),
	} {
		if r := f.ask(t, authorization); r.status != 200 || r.body != "[]" {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
	if discovery, jwks := f.authority.Fetches(); discovery != 8 || jwks != 8 {
		t.Errorf("document and keys were fetched %d and %d times; want once for each of 8 requests", discovery, jwks)
	}
	open := newFinos(t, func(o *FinosGitProxyOptions) { o.Disabled = true })
	if r := open.ask(t, ""); r.status != 200 {
		t.Errorf("without authentication: %d", r.status)
	}
	own := newFinos(t, func(o *FinosGitProxyOptions) { o.ExpectedAudience = "" })
	if r := own.ask(t, own.token(map[string]any{"aud": "vault"})); r.status != 200 {
		t.Errorf("the client as the audience: %d %s", r.status, r.body)
	}
	if r := do(t, "GET", f.url+"/api/v1/healthcheck", ""); r.status != 200 {
		t.Errorf("health: %d", r.status)
	}
}

// Every refusal has the status and the text of the real one.
func TestFinosGitProxyRefusals(t *testing.T) {
	t.Parallel()
	f := newFinos(t, nil)
	stranger := NewIssuer(IssuerOptions{})
	kid, _ := f.authority.Key()
	curve := NewIssuer(IssuerOptions{Algorithm: "ES256"})
	curveID, key := curve.Key()
	f.authority.Publish(jose.JSONWebKey{Key: key.Public(), KeyID: curveID, Algorithm: "ES256", Use: "sig"})
	good := f.token(nil)
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(good, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	past, future := f.clock.Now().Add(-time.Second).Unix(), f.clock.Now().Add(time.Second).Unix()
	for name, c := range map[string]struct{ token, want string }{
		"no token at all":   {"x", "Invalid JWT: Missing key ID (kid)"},
		"no kid":            {f.authority.Sign(map[string]any{"kid": nil}, payload), "Invalid JWT: Missing key ID (kid)"},
		"unknown kid":       {f.authority.Sign(map[string]any{"kid": "k"}, payload), "No matching key found in JWKS"},
		"RS512":             {f.authority.Sign(map[string]any{"alg": "RS512"}, payload), "invalid algorithm"},
		"PS256":             {f.authority.Sign(map[string]any{"alg": "PS256"}, payload), "invalid algorithm"},
		"ES256":             {curve.Sign(nil, payload), "invalid algorithm"},
		"none":              {strings.Join([]string{base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"` + kid + `"}`)), strings.Split(good, ".")[1], ""}, "."), "jwt signature is required"},
		"another's key":     {stranger.Sign(map[string]any{"kid": kid}, payload), "invalid signature"},
		"ended":             {f.token(map[string]any{"exp": past}), "jwt expired"},
		"not begun":         {f.token(map[string]any{"nbf": future}), "jwt not active"},
		"another audience":  {f.token(map[string]any{"aud": "vault"}), "jwt audience invalid. expected: git-proxy"},
		"no audience":       {f.token(map[string]any{"aud": nil}), "jwt audience invalid. expected: git-proxy"},
		"another authority": {f.token(map[string]any{"iss": f.authority.URL() + "/"}), "jwt issuer invalid. expected: " + f.authority.URL()},
		"another client":    {f.token(map[string]any{"azp": "other"}), "JWT client ID does not match"},
	} {
		want := "JWT validation failed: " + c.want + "\n"
		if r := f.ask(t, "Bearer "+c.token); r.status != 401 || r.body != want || !strings.HasPrefix(r.header.Get("Content-Type"), "text/html") {
			t.Errorf("%s: %d %q; want 401 %q", name, r.status, r.body, want)
		}
	}
	if r := f.ask(t, ""); r.status != 401 || r.body != "No token provided\n" {
		t.Errorf("no header: %d %q", r.status, r.body)
	}
	if r := f.ask(t, "Bearer a b"); r.status != 401 || r.body != "JWT validation failed: Invalid JWT: Missing key ID (kid)\n" {
		t.Errorf("three words: %d %q", r.status, r.body)
	}
	f.authority.Fault(OpJWKS, Fault{Kind: KindStatus, Status: 500, Count: 1})
	if r := f.ask(t, "Bearer "+good); r.status != 401 || r.body != "JWT validation failed: Failed to fetch JWKS\n" {
		t.Errorf("no keys: %d %q", r.status, r.body)
	}
	for want, change := range map[string]func(*FinosGitProxyOptions){
		"JWT configuration is missing\n":         func(o *FinosGitProxyOptions) { o.Unconfigured = true },
		"OIDC authority URL is not configured\n": func(o *FinosGitProxyOptions) { o.AuthorityURL = "" },
		"OIDC client ID is not configured\n":     func(o *FinosGitProxyOptions) { o.ClientID = "" },
	} {
		if r := newFinos(t, change).ask(t, "Bearer x"); r.status != http.StatusInternalServerError || r.object(t)["message"] != want {
			t.Errorf("%d %s; want 500 %q", r.status, r.body, want)
		}
	}
}

// A role depends only on the first claim of its mapping, which must be a string and equal.
func TestFinosGitProxyRoles(t *testing.T) {
	t.Parallel()
	f := newFinos(t, nil)
	for name, c := range map[string]struct {
		scope any
		want  int
	}{
		"the scope":         {"git-proxy.admin", 200},
		"none":              {nil, 401}, // although the second claim of the mapping is right
		"another":           {"git-proxy.read", 401},
		"among others":      {"git-proxy.admin openid", 401},
		"a list":            {[]string{"git-proxy.admin"}, 401},
		"in capital":        {"Git-Proxy.admin", 401},
		"a number":          {7, 401},
		"the empty one":     {"", 401},
		"a list of nothing": {[]string{}, 401},
	} {
		r := do(t, "DELETE", f.url+"/api/v1/repo/7/delete", "", "Authorization", "Bearer "+f.token(map[string]any{"scope": c.scope}))
		if r.status != c.want || c.want == 401 && r.object(t)["message"] != "You are not authorised to perform this action..." {
			t.Errorf("%s: %d %s; want %d", name, r.status, r.body, c.want)
		}
	}
	none := newFinos(t, func(o *FinosGitProxyOptions) { o.RoleMapping = nil })
	if r := do(t, "DELETE", none.url+"/api/v1/repo/7/delete", "", "Authorization", none.token(map[string]any{"scope": "git-proxy.admin"})); r.status != 401 {
		t.Errorf("without a mapping: %d", r.status)
	}
}
