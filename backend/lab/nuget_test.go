// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// gallery is a NuGet under test with its issuer, the user demo and a policy for the issuer's default claims.
type gallery struct {
	*NuGet
	issuer *Issuer
	clock  *testClock
}

func newGallery(t *testing.T, o NuGetOptions) *gallery {
	t.Helper()
	clock := newClock()
	issuer, client := newIssuer(t, IssuerOptions{Algorithm: "ES256", Now: clock.Now})
	o.Issuers, o.Client, o.Now = []string{issuer.URL()}, client, clock.Now
	g := &gallery{NewNuGet(o), issuer, clock}
	g.SetUser(User{Name: "demo"})
	return g
}

func (g *gallery) addPolicy(change func(*Policy)) {
	p := Policy{Name: "release", User: "demo", Owner: "acme", Repository: "widget", Workflow: "release.yml"}
	if change != nil {
		change(&p)
	}
	g.AddPolicy(p)
}

// token signs a token for the gallery.
func (g *gallery) token(claims map[string]any) string {
	all := map[string]any{"aud": "https://www.nuget.org"}
	maps.Copy(all, claims)
	return g.issuer.Token(all)
}

// exchangeAs exchanges a token in the name of a user. It uses no network, so that any header can be sent.
func (g *gallery) exchangeAs(t *testing.T, user, token string) reply {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/api/v2/token", strings.NewReader(`{"username":"`+user+`","tokenType":"ApiKey"}`))
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "test")
	return handleRequest(g, r)
}

func (g *gallery) exchange(t *testing.T, token string) reply {
	t.Helper()
	return g.exchangeAs(t, "demo", token)
}

func handleRequest(h http.Handler, r *http.Request) reply {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return reply{status: w.Code, header: w.Header(), body: w.Body.String()}
}

// wantError checks a refusal to the letter.
func wantError(t *testing.T, name string, r reply, status int, text string) {
	t.Helper()
	if want := string(mustJSON(map[string]string{"error": text})); r.status != status || r.body != want {
		t.Errorf("%s: %d %s; want %d %s", name, r.status, r.body, status, want)
	}
	if got := r.header.Get("Content-Type"); got != "application/json" {
		t.Errorf("%s: Content-Type %q; want application/json", name, got)
	}
	challenge := ""
	if status == http.StatusUnauthorized {
		challenge = "Bearer"
	}
	if got := r.header.Get("WWW-Authenticate"); got != challenge {
		t.Errorf("%s: WWW-Authenticate %q; want %q", name, got, challenge)
	}
}

const noDemoPolicy = "No matching trust policy owned by user 'demo' was found."

// The request begins with every fault there is; each row removes the fault for which the previous row was refused.
func TestNuGetOrderOfChecks(t *testing.T) {
	t.Parallel()
	g := newGallery(t, NuGetOptions{})
	g.addPolicy(nil)
	live := g.exchange(t, g.token(nil)).object(t)["apiKey"].(string)
	token := g.token(nil)

	header := http.Header{"X-Nuget-Apikey": {live}, "User-Agent": {" "}}
	body := `{"username":" ","tokenType":"apikey"}`
	for _, row := range []struct {
		name   string
		change func()
		status int
		text   string
	}{
		{"nothing", func() {}, 401, "The Authorization header is missing."},
		{"two headers", func() { header["Authorization"] = []string{"Bearer a", "Bearer b"} }, 401, "Only one Authorization header is allowed."},
		{"other scheme", func() { header.Set("Authorization", "Basic x") }, 401, "The Authorization header value must start with 'Bearer '."},
		{"scheme alone", func() { header.Set("Authorization", "Bearer") }, 401, "The Authorization header value must start with 'Bearer '."},
		{"no token", func() { header.Set("Authorization", "Bearer  ") }, 401, "The bearer token is missing from the Authorization header."},
		{"live API key", func() { header.Set("Authorization", "bEARER "+token) }, 401, "Only Bearer token authentication is accepted."},
		{"no media type", func() { header.Set("X-NuGet-ApiKey", "dead") }, 415, "The request must have a Content-Type of 'application/json'."},
		{"other media type", func() { header.Set("Content-Type", "text/json") }, 415, "The request must have a Content-Type of 'application/json'."},
		{"blank user agent", func() { header.Set("Content-Type", "Application/JSON; charset=utf-8") }, 400, "A User-Agent header is required."},
		{"blank username", func() { header.Set("User-Agent", "test") }, 400, "The username property in the request body is required."},
		{"no JSON", func() { body = "{" }, 400, "The username property in the request body is required."},
		{"wrong token type", func() { body = `{"username":"nobody","tokenType":"apikey"}` }, 400,
			"The tokenType property in the request body is required and must set to 'ApiKey'."},
		{"unknown user", func() { body = `{"username":"nobody","tokenType":"ApiKey"}` }, 401,
			"No matching trust policy owned by user 'nobody' was found."},
	} {
		row.change()
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/api/v2/token", strings.NewReader(body))
		r.Header = header.Clone()
		wantError(t, row.name, handleRequest(g, r), row.status, row.text)
	}
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/api/v2/token", strings.NewReader(`{"USERNAME":"Demo","TokenType":"ApiKey"}`))
	r.Header = header.Clone()
	if got := handleRequest(g, r); got.status != 200 {
		t.Errorf("nothing wrong any more: %d %s; want 200", got.status, got.body)
	}
}

func TestNuGetHasNoOtherRoutes(t *testing.T) {
	t.Parallel()
	g := newGallery(t, NuGetOptions{})
	disabled := newGallery(t, NuGetOptions{Disabled: true})
	for name, c := range map[string]struct {
		g      *gallery
		method string
	}{"GET": {g, "GET"}, "revocation": {g, "DELETE"}, "disabled": {disabled, "POST"}} {
		r := handleRequest(c.g, httptest.NewRequestWithContext(t.Context(), c.method, "/api/v2/token", nil))
		if r.status != 404 || strings.Contains(r.body, "{") {
			t.Errorf("%s: %d %s; want a plain 404", name, r.status, r.body)
		}
	}
}

func TestNuGetKey(t *testing.T) {
	t.Parallel()
	g := newGallery(t, NuGetOptions{KeyTTL: 15 * time.Minute})
	g.SetUser(User{Name: "acme-org", Organization: true})
	g.addPolicy(func(p *Policy) { p.PackageOwner = "acme-org" })
	url := serve(t, g.NuGet)
	r := do(t, "POST", url+"/api/v2/token", `{"username":"demo","tokenType":"ApiKey"}`,
		"Authorization", "Bearer "+g.token(nil), "Content-Type", "application/json")
	object := r.object(t)
	key, _ := object["apiKey"].(string)
	want := map[string]any{"tokenType": "ApiKey", "expires": "2026-03-05T13:45:00.0000000+00:00", "apiKey": key}
	if diff := cmp.Diff(want, object); r.status != 200 || diff != "" {
		t.Fatalf("exchange: status %d, -want +got:\n%s", r.status, diff)
	}
	if want := "JQQJ99CCN5L000002ENeS003NUGT"; len(key) != 84 || key[52:80] != want {
		t.Errorf("key of %d characters with %q; want 84 with %q", len(key), key[52:80], want)
	}
	live := []NuGetKey{{User: "demo", Owner: "acme-org", Policy: "release", ExpiresAt: time.Date(2026, 3, 5, 13, 45, 0, 0, time.UTC)}}
	if diff := cmp.Diff(live, g.Live()); diff != "" {
		t.Errorf("live, -want +got:\n%s", diff)
	}
	if r := do(t, "GET", url+"/lab/keys", ""); r.status != 200 || !strings.Contains(r.body, "acme-org") || strings.Contains(r.body, key) {
		t.Errorf("inventory %d: want the owner and not the key", r.status)
	}

	push := func(key string) reply { return do(t, "PUT", url+"/api/v2/package", "package", "X-NuGet-ApiKey", key) }
	if r := push(key); r.status != 201 {
		t.Errorf("push: %d %s; want 201", r.status, r.body)
	}
	host := strings.TrimPrefix(url, "http://")
	if r := do(t, "PUT", url+"/api/v2/package", "package"); r.status != 401 || r.header.Get("WWW-Authenticate") != `ApiKey realm="`+host+`"` {
		t.Errorf("push without key: %d, WWW-Authenticate %q", r.status, r.header.Get("WWW-Authenticate"))
	}
	const refused = "The specified API key is invalid, has expired, or does not have permission to access the specified package."
	wantError(t, "push with a made-up key", push("x"), 403, refused)
	g.clock.Advance(14*time.Minute + 15*time.Second) // it is 13:45 now
	wantError(t, "push with an expired key", push(key), 403, refused)
	if g.Valid(key) || len(g.Live()) != 0 {
		t.Errorf("the expired key is valid %v, live %d", g.Valid(key), len(g.Live()))
	}
}

// The text of a refusal is also the reason phrase, where NuGet's own client looks for it.
func TestNuGetReasonPhrase(t *testing.T) {
	t.Parallel()
	url := serve(t, newGallery(t, NuGetOptions{}).NuGet)
	res, err := plainClient().Post(url+"/api/v2/token", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.Status != "401 The Authorization header is missing." || string(body) != `{"error":"The Authorization header is missing."}` || res.Header.Get("WWW-Authenticate") != "Bearer" {
		t.Errorf("%s %q %v %s, %v", res.Status, res.Header.Get("WWW-Authenticate"), res.Header, body, err)
	}
}

// The expected key is the example from the gallery's own documentation of the format.
func TestNuGetKeyFormat(t *testing.T) {
	t.Parallel()
	made := time.Date(2024, time.December, 5, 13, 30, 0, 0, time.UTC)
	if got, want := nugetKeyTail(made, 'Z', 1337, 15*time.Minute), "JQQJ99ALN5Z0000LZENeS003NUGT"; got != want {
		t.Errorf("key part %q; want %q", got, want)
	}
	wantPanic(t, "lab: KeyTTL 1h5m0s: want a multiple of 5 minutes up to 1 hour", func() { NewNuGet(NuGetOptions{KeyTTL: 65 * time.Minute}) })
	wantPanic(t, "lab: KeyTTL 7m0s: want a multiple of 5 minutes up to 1 hour", func() { NewNuGet(NuGetOptions{KeyTTL: 7 * time.Minute}) })
}

func TestNuGetTokenValidation(t *testing.T) {
	t.Parallel()
	g := newGallery(t, NuGetOptions{})
	g.addPolicy(nil)
	stranger := NewIssuer(IssuerOptions{URL: g.issuer.URL(), Algorithm: "ES256", Now: g.clock.Now})
	kid, _ := g.issuer.Key()
	at := func(d time.Duration) int64 { return start.Add(d).Unix() }
	for name, c := range map[string]struct{ token, text string }{
		"garbage":          {"x", "The bearer token could not be parsed as a JSON web token."},
		"claims no object": {g.issuer.Sign(nil, []byte("[]")), "The bearer token could not be parsed as a JSON web token."},
		"no aud":           {g.token(map[string]any{"aud": nil}), "The JSON web token must have exactly one aud claim value."},
		"two aud":          {g.token(map[string]any{"aud": []string{"https://www.nuget.org", "x"}}), "The JSON web token must have exactly one aud claim value."},
		"blank aud":        {g.token(map[string]any{"aud": " "}), "The JSON web token must have an aud claim."},
		"no iss":           {g.token(map[string]any{"iss": nil}), "The JSON web token must have an iss claim."},
		"http iss":         {g.token(map[string]any{"iss": "http://issuer.example"}), "The JSON web token iss claim must be a valid HTTPS URL."},
		"unknown iss":      {g.token(map[string]any{"iss": "https://issuer.example"}), "The JSON web token iss claim is not supported."},
		"same host":        {g.token(map[string]any{"iss": g.issuer.URL() + "/other"}), "The JSON web token could not be validated."},
		"no jti":           {g.token(map[string]any{"jti": nil}), "The JSON web token must have a jti claim."},
		"no exp":           {g.token(map[string]any{"exp": nil}), "The JSON web token could not be validated."},
		"expired":          {g.token(map[string]any{"exp": at(-5*time.Minute - time.Second)}), "The JSON web token has expired."},
		"not yet valid":    {g.token(map[string]any{"nbf": at(5*time.Minute + time.Second)}), "The JSON web token is not yet valid."},
		"wrong aud":        {g.token(map[string]any{"aud": "https://www.nuget.org/"}), "The JSON web token has an incorrect audience."},
		"wrong key": {stranger.Sign(map[string]any{"kid": kid}, mustJSON(override(stranger.claims(), map[string]any{"aud": "https://www.nuget.org"}))),
			"The JSON web token has an invalid signature."},
		"unknown key": {stranger.Token(map[string]any{"aud": "https://www.nuget.org"}), "The JSON web token has an invalid signature."},
		"no alg":      {g.issuer.Sign(map[string]any{"alg": "none"}, mustJSON(override(g.issuer.claims(), map[string]any{"aud": "https://www.nuget.org"}))), "The JSON web token has an invalid signature."},
	} {
		wantError(t, name, g.exchange(t, c.token), 401, c.text)
	}
	for name, claims := range map[string]map[string]any{
		"aud in a list":        {"aud": []string{"https://www.nuget.org"}},
		"expired within skew":  {"exp": at(-5 * time.Minute)},
		"not yet, within skew": {"nbf": at(5 * time.Minute)},
	} {
		if r := g.exchange(t, g.token(claims)); r.status != 200 {
			t.Errorf("%s: %d %s; want 200", name, r.status, r.body)
		}
	}
	g.issuer.Fault(OpJWKS, Fault{Kind: KindStatus, Status: 500})
	wantError(t, "issuer down", g.exchange(t, g.token(nil)), 401, "The JSON web token could not be validated.")
}

func TestNuGetTokenWorksOnce(t *testing.T) {
	t.Parallel()
	g := newGallery(t, NuGetOptions{BannedEvents: []string{"Pull_Request_Target"}})
	g.addPolicy(nil)
	const used = "This bearer token has already been used. A new bearer token must be used for each request."
	token := g.token(map[string]any{"jti": "one"})
	var wg sync.WaitGroup
	replies := make([]reply, 8)
	for i := range replies {
		wg.Go(func() { replies[i] = g.exchange(t, token) })
	}
	wg.Wait()
	good := 0
	for _, r := range replies {
		if r.status == 200 {
			good++
			continue
		}
		wantError(t, "replay", r, 401, used)
	}
	if good != 1 || len(g.Live()) != 1 {
		t.Errorf("%d of 8 exchanges of one token succeeded, %d keys; want 1, 1", good, len(g.Live()))
	}
	g.clock.Advance(24 * time.Hour)
	wantError(t, "same jti a day later in another token", g.exchange(t, g.token(map[string]any{"jti": "one"})), 401, used)

	// A refusal does not cost the token.
	g.SetUser(User{Name: "demo", Locked: true})
	token = g.token(nil)
	wantError(t, "locked", g.exchange(t, token), 400, "The user 'demo' is locked.")
	g.SetUser(User{Name: "demo"})
	if r := g.exchange(t, token); r.status != 200 {
		t.Errorf("same token, user unlocked: %d %s; want 200", r.status, r.body)
	}
}
