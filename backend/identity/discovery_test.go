// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"compress/gzip"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A fetch ends by its own time limit, and a caller leaves before that when its request ends.
func TestStuckIssuer(t *testing.T) {
	i := newIssuer(t, jwks(firstKey()))
	c := newClock()
	cfg := i.config(c)
	cfg.HTTPTimeout = time.Second // long enough for the discovery on a busy machine
	v := newVerifier(t, cfg)
	release := make(chan struct{})
	asked := make(chan struct{}, 1)
	i.answer(func(http.ResponseWriter, *http.Request) { asked <- struct{}{}; <-release })
	defer close(release)

	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := v.Verify(ctx, fresh(i, c))
		left <- err
	}()
	<-asked
	cancel()
	if err := <-left; reason(t, err) != IssuerUnavailable {
		t.Errorf("caller that left: %v, want %s", err, IssuerUnavailable)
	}
	settle(v) // hangs if the fetch does not end
	wantReason(t, v, fresh(i, c), IssuerUnavailable)
	if got, want := v.Status().LastError, "keys: no answer in time"; got != want {
		t.Errorf("LastError = %q, want %q", got, want)
	}
}

// The headers come, the body never ends.
func TestDrippingIssuer(t *testing.T) {
	i := newIssuer(t, "")
	c := newClock()
	cfg := i.config(c)
	cfg.HTTPTimeout = 50 * time.Millisecond
	v := newVerifier(t, cfg)
	release := make(chan struct{})
	i.answer(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"keys":[`)
		w.(http.Flusher).Flush()
		<-release
	})
	defer close(release)
	wantReason(t, v, fresh(i, c), IssuerUnavailable)
}

func TestRedirectIsNotFollowed(t *testing.T) {
	v, i, c := fetching(t)
	elsewhere := newIssuer(t, jwks(firstKey()))
	i.answer(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL+"/keys", http.StatusFound)
	})
	wantReason(t, v, fresh(i, c), IssuerUnavailable)
	elsewhere.wantHits(t, "/keys", 0)
	if got, want := v.Status().LastError, "keys: the issuer answered with status 302, want 200"; got != want {
		t.Errorf("LastError = %q, want %q", got, want)
	}
}

func TestHugeBodies(t *testing.T) {
	pad := func(n int) string { // a key set of n bytes
		set := jwks(firstKey())
		return set + strings.Repeat(" ", n-len(set))
	}
	for _, tt := range []struct {
		name string
		body string
		want string
		last string
	}{
		{"at the limit", pad(512 << 10), "", ""},
		{"beyond the limit", pad(512<<10 + 1), IssuerUnavailable, "keys: the answer is larger than 524288 bytes"},
	} {
		v, i, c := fetching(t)
		i.publish(tt.body)
		wantReason(t, v, fresh(i, c), tt.want)
		if got := v.Status().LastError; got != tt.last {
			t.Errorf("%s: LastError = %q, want %q", tt.name, got, tt.last)
		}
	}
	// What comes compressed, though nobody asked for that, is not blown up.
	v, i, c := fetching(t)
	i.answer(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "" {
			t.Errorf("Accept-Encoding is %q", r.Header.Get("Accept-Encoding"))
		}
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = z.Write([]byte(jwks(firstKey())))
		_ = z.Close()
	})
	wantReason(t, v, fresh(i, c), IssuerUnavailable)
	if got := v.Status().LastError; got != "keys: the answer is not a JWK set" {
		t.Errorf("compressed: LastError = %q", got)
	}

	v, i, c = fetching(t)
	i.set(func(f *fakeIssuer) {
		f.discovery = fields{"issuer": i.URL, "jwks_uri": i.URL + "/keys", "x": strings.Repeat("x", maxDiscoveryBytes)}.String()
	})
	wantReason(t, v, fresh(i, c), IssuerUnavailable)
	i.wantHits(t, "/keys", 0)
}

func TestErrorsRepeatNoAnswer(t *testing.T) {
	const canary = "CANARY \x1b[31m"
	for _, h := range []http.HandlerFunc{
		func(w http.ResponseWriter, _ *http.Request) { http.Error(w, strings.Repeat(canary, 1000), 500) },
		func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, canary) },
		func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"keys":[{"kty":%q,"kid":%q}]}`, canary, canary)
		},
		func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"keys":[{"kty":"RSA","n":%q,"e":"AQAB"}]}`, canary)
		},
	} {
		v, i, c := fetching(t)
		i.answer(h)
		_, err := v.Verify(t.Context(), fresh(i, c))
		if reason(t, err) != IssuerUnavailable {
			t.Errorf("Verify: %v, want %s", err, IssuerUnavailable)
		}
		for _, text := range []string{fmt.Sprint(err), fmt.Sprint(v.Probe(t.Context())), fmt.Sprint(v.Status())} {
			if strings.Contains(text, "CANARY") || strings.Contains(text, "\x1b") {
				t.Errorf("the issuer's answer is repeated: %q", text)
			}
		}
	}
}

func TestNoFetchForTokensThatCannotPass(t *testing.T) {
	v, i, c := fetching(t)
	body := claims(i.URL, c.now())
	wantReason(t, v, token(body.with("iss", "https://evil.example")), UnknownIssuer)
	wantReason(t, v, token(claims(i.URL, c.now().Add(-time.Hour))), Expired)
	wantReason(t, v, compact("RS256", rsaKey(), header1.with("alg", "none").String(), body.String()), Algorithm)
	wantReason(t, v, compact("RS256", rsaKey(), header1.with("typ", "dpop+jwt").String(), body.String()), TokenType)
	wantReason(t, v, token(body.with("sub", "")), TokenMalformed)
	i.wantHits(t, wellKnown, 0)
	i.wantHits(t, "/keys", 0)
}

// A token that is wrong in every way is refused by the cheapest check. When the faults are corrected one by one, the next
// check refuses it, and the signature, which costs most, comes last.
func TestCheapestCheckFirst(t *testing.T) {
	v, i, c := fetching(t)
	wantReason(t, v, fresh(i, c), "")
	header := fields{"alg": "none", "typ": "dpop+jwt", "kid": "k9"}
	body := claims("https://evil.example", c.now().Add(-time.Hour)).with("sub", "")
	pad := strings.Repeat("x", 16<<10)
	for _, step := range []struct {
		fix  func()
		want string
	}{
		{func() {}, TokenMalformed},           // larger than a token may be
		{func() { pad = "" }, TokenMalformed}, // no subject
		{func() { body["sub"] = "s" }, Algorithm},
		{func() { header["alg"] = "RS256" }, TokenType},
		{func() { delete(header, "typ") }, UnknownIssuer},
		{func() { body["iss"] = i.URL }, Expired},
		{func() { body = claims(i.URL, c.now()) }, UnknownKey},
		{func() { header["kid"] = "k1" }, BadSignature},
	} {
		step.fix()
		wantReason(t, v, b64(header.String())+"."+b64(body.String())+".AAAA"+pad, step.want)
	}
	wantReason(t, v, compact("RS256", rsaKey(), header.String(), body.String()), "")
	i.wantHits(t, "/keys", 1)
}

func TestDiscoveryAttacks(t *testing.T) {
	inside := newIssuer(t, jwks(firstKey()))
	for _, tt := range []struct {
		name string
		doc  func(issuer string) string
	}{
		{"of another issuer", func(iss string) string { return fields{"issuer": inside.URL, "jwks_uri": iss + "/keys"}.String() }},
		{"issuer with trailing slash", func(iss string) string { return fields{"issuer": iss + "/", "jwks_uri": iss + "/keys"}.String() }},
		{"issuer missing", func(iss string) string { return fields{"jwks_uri": iss + "/keys"}.String() }},
		{"issuer folded", func(iss string) string { return fields{"Issuer": iss, "jwks_uri": iss + "/keys"}.String() }},
		{"issuer twice", func(iss string) string {
			return fmt.Sprintf(`{"issuer":%q,"issuer":%q,"jwks_uri":%q}`, inside.URL, iss, iss+"/keys")
		}},
		{"keys missing", func(iss string) string { return fields{"issuer": iss}.String() }},
		{"keys a number", func(iss string) string { return fields{"issuer": iss, "jwks_uri": 1}.String() }},
		{"keys by http", func(iss string) string {
			return fields{"issuer": iss, "jwks_uri": strings.Replace(iss, "https", "http", 1) + "/keys"}.String()
		}},
		{"keys on another host", func(iss string) string { return fields{"issuer": iss, "jwks_uri": inside.URL + "/keys"}.String() }},
		{"keys with a user", func(iss string) string {
			return fields{"issuer": iss, "jwks_uri": strings.Replace(iss, "//", "//u:p@", 1) + "/keys"}.String()
		}},
		{"keys at the metadata address", func(iss string) string {
			return fields{"issuer": iss, "jwks_uri": "https://169.254.169.254/keys"}.String()
		}},
		{"keys in a file", func(iss string) string { return fields{"issuer": iss, "jwks_uri": "file:///etc/passwd"}.String() }},
		{"not JSON", func(string) string { return "<html>" }},
		{"an array", func(string) string { return "[]" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, i, c := fetching(t)
			i.set(func(f *fakeIssuer) { f.discovery = tt.doc(i.URL) })
			wantReason(t, v, fresh(i, c), IssuerUnavailable)
			i.wantHits(t, "/keys", 0)
			inside.wantHits(t, "/keys", 0)
			if !strings.HasPrefix(v.Status().LastError, "discovery: ") {
				t.Errorf("LastError = %q, want one of discovery", v.Status().LastError)
			}
		})
	}
}

func TestKeyHosts(t *testing.T) {
	keys := newIssuer(t, jwks(firstKey()))
	i := newIssuer(t, "")
	i.set(func(f *fakeIssuer) { f.discovery = fields{"issuer": i.URL, "jwks_uri": keys.URL + "/keys"}.String() })
	c := newClock()
	cfg := i.config(c)
	cfg.JWKSHosts = []string{strings.TrimPrefix(keys.URL, "https://")}
	v := newVerifier(t, cfg)
	wantReason(t, v, fresh(i, c), "")
	keys.wantHits(t, "/keys", 1)
}

// A host with its scheme's default port is the same host as without.
func TestHostPort(t *testing.T) {
	for raw, want := range map[string]string{
		"https://a.example": "a.example", "https://a.example:443/x": "a.example", "https://a.example:8443": "a.example:8443", "https://a.example:80": "a.example:80",
		"http://localhost:80": "localhost", "http://localhost:443": "localhost:443", "https://[::1]:443": "[::1]",
	} {
		if got := hostPort(must(url.Parse(raw))); got != want {
			t.Errorf("%s: %q, want %q", raw, got, want)
		}
	}
}

func TestDiscoveryIsRepeated(t *testing.T) {
	v, i, c := fetching(t)
	wantReason(t, v, fresh(i, c), "")
	i.wantHits(t, wellKnown, 1)
	c.advance(24 * time.Hour)
	wantReason(t, v, fresh(i, c), "")
	i.wantHits(t, wellKnown, 2)

	// The keys have moved, and their old address answers with an error from now on.
	i.answer(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/moved" {
			fmt.Fprint(w, jwks(firstKey()))
			return
		}
		w.WriteHeader(http.StatusGone)
	})
	i.set(func(f *fakeIssuer) { f.discovery = fields{"issuer": i.URL, "jwks_uri": i.URL + "/moved"}.String() })
	c.advance(10 * time.Minute)
	for range rediscoverFailures + 1 {
		wantReason(t, v, fresh(i, c), "")
		settle(v)
		c.advance(30 * time.Second)
	}
	i.wantHits(t, wellKnown, 3)
	i.wantHits(t, "/moved", 1)
}

// After an outage the keys are fetched from their old address, even if the discovery document is not available. An address
// that is a day old is not used without the document, because the issuer may have withdrawn it.
func TestKeysComeBackBeforeDiscovery(t *testing.T) {
	v, i, c := fetching(t)
	wantReason(t, v, fresh(i, c), "")
	i.set(func(f *fakeIssuer) { f.discovery, f.keys = "down", "down" })
	c.advance(time.Hour + time.Second)
	for range rediscoverFailures + 1 {
		wantReason(t, v, fresh(i, c), IssuerUnavailable)
		c.advance(30 * time.Second)
	}
	i.set(func(f *fakeIssuer) { f.keys = jwks(firstKey()) })
	wantReason(t, v, fresh(i, c), "")
	c.advance(23 * time.Hour)
	wantReason(t, v, fresh(i, c), IssuerUnavailable)
	i.wantHits(t, wellKnown, 4)
}

func TestJWKSURLNeedsNoDiscovery(t *testing.T) {
	i := newIssuer(t, jwks(firstKey()))
	c := newClock()
	cfg := i.config(c)
	cfg.DiscoveryURL, cfg.JWKSURL, cfg.Issuer = "", i.URL+"/keys", "https://id.example.com"
	v := newVerifier(t, cfg)
	wantReason(t, v, token(claims("https://id.example.com", c.now())), "")
	i.wantHits(t, wellKnown, 0)
}

// Even if a set has a single key, a token must name the key's id.
func TestKeyIDIsRequired(t *testing.T) {
	v, i, c := fetching(t)
	wantReason(t, v, compact("RS256", rsaKey(), header1.without("kid").String(), claims(i.URL, c.now()).String()), UnknownKey)
	wantReason(t, v, fresh(i, c), "")
}

func TestUnnamedKeys(t *testing.T) {
	v, i, c := fetching(t)
	i.publish(jwks(jwk(rsaKey().Public(), "", "", nil), jwk(ecKey().Public(), "", "", nil)))
	body := claims(i.URL, c.now()).String()
	wantReason(t, v, compact("RS256", rsaKey(), `{"alg":"RS256"}`, body), "")
	wantReason(t, v, compact("ES256", ecKey(), `{"alg":"ES256"}`, body), "")
	wantReason(t, v, compact("RS256", otherRSA(), `{"alg":"RS256"}`, body), BadSignature)
	wantReason(t, v, compact("EdDSA", edKey(), `{"alg":"EdDSA"}`, body), Algorithm)
	wantReason(t, v, fresh(i, c), UnknownKey)
	i.wantHits(t, "/keys", 1)
}

func TestConfiguredKeys(t *testing.T) {
	c := newClock()
	v := newVerifier(t, Config{
		Issuer: "https://id.example.com", Now: c.now, Algorithms: []string{"RS256", "ES256"},
		PublicKeys: []string{publicPEM(otherRSA().Public()), publicPEM(rsaKey().Public()), publicPEM(ecKey().Public())},
	})
	body := claims("https://id.example.com", c.now())
	wantReason(t, v, token(body), "") // whatever kid it has
	wantReason(t, v, compact("RS256", rsaKey(), `{"alg":"RS256"}`, body.String()), "")
	wantReason(t, v, compact("ES256", ecKey(), `{"alg":"ES256"}`, body.String()), "")
	wantReason(t, v, unsigned("k1", body), BadSignature)
	if err := v.Refresh(t.Context()); err != nil {
		t.Errorf("Refresh = %v, want nil", err)
	}
	if err := v.Probe(t.Context()); err != nil {
		t.Errorf("Probe = %v, want nil", err)
	}
	wantReason(t, v, token(body), "")
	if got := v.Status(); got.Keys != 3 || got.KeyIDs != nil || !got.Fetched.IsZero() {
		t.Errorf("Status = %+v, want three keys without id or time", got)
	}
}

func TestRefreshDropsKeys(t *testing.T) {
	v, i, c := fetching(t)
	wantReason(t, v, fresh(i, c), "")
	i.publish(jwks(secondKey()))
	if err := v.Refresh(t.Context()); err != nil { // within the floor
		t.Fatal(err)
	}
	wantReason(t, v, fresh(i, c), UnknownKey)
	i.wantHits(t, wellKnown, 2)

	i.answer(status(http.StatusBadGateway))
	if err := v.Refresh(t.Context()); reason(t, err) != IssuerUnavailable {
		t.Errorf("Refresh = %v, want %s", err, IssuerUnavailable)
	}
	wantReason(t, v, tokenBy(otherRSA(), "k2", claims(i.URL, c.now())), IssuerUnavailable)
}

// The result of a fetch that was running when the keys were dropped is not used, because it may contain the keys that were
// to be dropped.
func TestRefreshDiscardsRunningFetch(t *testing.T) {
	v, i, c := fetching(t)
	asked, release := make(chan struct{}), make(chan struct{})
	i.answer(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		<-release
		fmt.Fprint(w, jwks(firstKey()))
	})
	done := make(chan error)
	go func() {
		_, err := v.Verify(t.Context(), fresh(i, c))
		done <- err
	}()
	<-asked
	i.answer(nil)
	i.publish(jwks(secondKey()))
	if err := v.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
	close(release)
	if err := <-done; reason(t, err) != UnknownKey {
		t.Errorf("Verify = %v, want %s: the key was withdrawn", err, UnknownKey)
	}
}

// If two operators refresh at once, the first also gets the keys that are there in the end.
func TestRefreshOvertakesRefresh(t *testing.T) {
	keys := jwks(firstKey())
	synctest.Test(t, func(t *testing.T) {
		asked := make(chan chan string)
		v := newVerifier(t, Config{TrustDomain: "example.org", Bundle: func(context.Context, string) ([]byte, error) {
			answer := make(chan string)
			asked <- answer
			return []byte(<-answer), nil
		}})
		done := make(chan error, 2)
		refresh := func() chan string {
			go func() { done <- v.Refresh(t.Context()) }()
			return <-asked
		}
		first, second := refresh(), refresh()
		first <- "no key set"
		synctest.Wait()
		second <- keys
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("Refresh = %v, want nil", err)
			}
		}
	})
}

// If the caller leaves for whom a fetch was begun, those who wait with it are served by the same fetch.
func TestFetchOutlivesItsCaller(t *testing.T) {
	v, i, c := fetching(t)
	asked, release := make(chan struct{}), make(chan struct{})
	i.answer(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		<-release
		fmt.Fprint(w, jwks(firstKey()))
	})
	ctx, cancel := context.WithCancel(t.Context())
	left, served := make(chan error), make(chan error)
	verify := func(ctx context.Context, done chan error) {
		_, err := v.Verify(ctx, fresh(i, c))
		done <- err
	}
	go verify(ctx, left)
	<-asked
	go verify(t.Context(), served)
	cancel()
	if err := <-left; reason(t, err) != IssuerUnavailable {
		t.Errorf("caller that left: %v, want %s", err, IssuerUnavailable)
	}
	close(release)
	if err := <-served; err != nil {
		t.Errorf("caller that stayed: %v, want nil", err)
	}
	i.wantHits(t, "/keys", 1)
}

// go-oidc and net/http use a client without any limit if they are given none.
func TestDefaultClientIsNotUsed(t *testing.T) {
	before := http.DefaultTransport
	defer func() { http.DefaultTransport = before }()
	http.DefaultTransport = transport(func(*http.Request) { t.Error("the default client was used") })
	v, i, c := fetching(t)
	wantReason(t, v, fresh(i, c), "")
	if err := v.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
	if err := v.Probe(t.Context()); err != nil {
		t.Error(err)
	}
}

// transport tells of a request and serves none.
type transport func(*http.Request)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) {
	f(r)
	return nil, http.ErrNotSupported
}

func TestProbeChangesNothing(t *testing.T) {
	v, i, _ := fetching(t)
	if err := v.Probe(t.Context()); err != nil {
		t.Errorf("Probe = %v, want nil", err)
	}
	i.answer(status(http.StatusInternalServerError))
	if err := v.Probe(t.Context()); reason(t, err) != IssuerUnavailable {
		t.Errorf("Probe = %v, want %s", err, IssuerUnavailable)
	}
	if diff := cmp.Diff(Status{}, v.Status()); diff != "" {
		t.Errorf("Status after Probe (-want +got):\n%s", diff)
	}
}

func TestStatus(t *testing.T) {
	v, i, c := fetching(t)
	i.publish(jwks(secondKey(), firstKey(), jwk(edKey().Public(), "", "", nil), []byte(`{"kty":"oct","k":"AA"}`)))
	wantReason(t, v, fresh(i, c), "")
	want := Status{
		Fetched: start, Tried: start, Fetches: 1, Keys: 3, KeyIDs: []string{"k1", "k2"}, Skipped: map[string]int{"a symmetric key": 1},
	}
	if diff := cmp.Diff(want, v.Status()); diff != "" {
		t.Errorf("Status (-want +got):\n%s", diff)
	}
}

func TestPanicInFetchIsAnError(t *testing.T) {
	v, i, c := fetching(t)
	v.keys.source.(*webSource).client = nil
	wantReason(t, v, fresh(i, c), IssuerUnavailable)
	if got, want := v.Status().LastError, "reading the issuer's answer panicked"; got != want {
		t.Errorf("LastError = %q, want %q", got, want)
	}
}

// An issuer whose certificate is not from a trusted CA gets no request.
func TestWrongCA(t *testing.T) {
	i := newIssuer(t, jwks(firstKey()))
	c := newClock()
	cfg := i.config(c)
	cfg.CAPEM = ""
	v := newVerifier(t, cfg)
	wantReason(t, v, fresh(i, c), IssuerUnavailable)
	i.wantHits(t, wellKnown, 0)
}

// A proxy from the environment is not used.
func TestEnvironmentProxyIsIgnored(t *testing.T) {
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the proxy was asked") }))
	defer proxy.Close()
	t.Setenv("HTTPS_PROXY", proxy.URL)
	v, i, c := fetching(t)
	wantReason(t, v, fresh(i, c), "")
}
