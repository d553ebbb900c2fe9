// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
)

// A refused connection is told from a lost one: nothing was sent.
func TestEgressRefuses(t *testing.T) {
	opened, saw := serve(t, base, 201, "{}")
	client, err := egress.Policy{}.Client(egress.Options{})
	if err != nil {
		t.Fatal(err)
	}
	opened.api.client = client // as if the name had been pointed at loopback after it was configured
	_, err = opened.Exchange(t.Context(), request(nil))
	if !errors.Is(err, ErrEgress) || MayLive(err) || saw.Method != "" {
		t.Errorf("got %v; want ErrEgress, nothing sent", err)
	}
}

// A body that ends because our time is up is no whole one, whatever it looks like: what the target did is not known.
func TestBodyCutByTheDeadline(t *testing.T) {
	opened, _ := serve(t, base, 201, "{}")
	ctx, cancel := context.WithCancel(t.Context())
	opened.api.client = &http.Client{Transport: answering(func(*http.Request) *http.Response {
		cut := readerFunc(func([]byte) (int, error) { cancel(); return 0, io.EOF })
		return &http.Response{StatusCode: 201, Body: io.NopCloser(io.MultiReader(strings.NewReader(`{"sec`), cut))}
	})}
	_, err := opened.Exchange(ctx, request(nil))
	if !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v; want an unknown outcome", err)
	}
}

// answering answers every request by itself.
type answering func(*http.Request) *http.Response

func (a answering) RoundTrip(r *http.Request) (*http.Response, error) { return a(r), nil }

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A secret in an address would be in errors of net/http.
func TestLostNeverShowsTheURL(t *testing.T) {
	err := lost(t.Context(), "revoke", reachedServer, &url.Error{Op: "Delete", URL: "https://x/s3cret", Err: errors.New("s3cret")})
	if want := "revoke: outcome is unknown: the connection failed"; err.Error() != want {
		t.Errorf("got %v; want %s", err, want)
	}
}

// An address that a call brings goes out with its query as it is written, whatever the base URL is.
func TestAddressOfACall(t *testing.T) {
	base := &url.URL{Scheme: "https", Host: "api.example", Path: "/v1"}
	own, err := url.Parse("https://id.example/token?b=%2f&a&b=1")
	if err != nil {
		t.Fatal(err)
	}
	a := &api{base: base}
	if got := a.address(call{url: own}).String(); got != own.String() {
		t.Errorf("got %s", got)
	}
	if got, want := a.address(call{segments: []string{"a/b"}, query: url.Values{"q": {"1"}}}).String(), "https://api.example/v1/a%2Fb?q=1"; got != want {
		t.Errorf("got %s; want %s", got, want)
	}
}

// What a refusal means may stand in its body; what is said of it is ours.
func TestRefusedLooksIntoTheBody(t *testing.T) {
	for body, want := range map[string]string{
		"gone":   "",
		"known":  "revoke: denied by the target: it refused: do this (status 404)",
		"s3cret": "revoke: denied by the target: it refused (status 404)",
	} {
		a, _ := lending(t, 404, body)
		_, err := a.do(t.Context(), call{op: "revoke", method: http.MethodDelete, header: http.Header{}, ok: []int{204}, denied: []int{404},
			hint:   func(a answer) string { return map[string]string{"known": "do this"}[string(a.body)] },
			absent: func(a answer) bool { return a.status == 404 && string(a.body) == "gone" }})
		if want == "" && err != nil || want != "" && (err == nil || err.Error() != want || !errors.Is(err, ErrDenied)) {
			t.Errorf("%.10q: got %v; want %q", body, err, want)
		}
	}
}

func TestRateLimitReset(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		after, reset string
		want         time.Duration
	}{
		"alone":              {"", "1893456007", 7 * time.Second},
		"beside Retry-After": {"3", "1893456007", 3 * time.Second},
		"beside a date":      {"Tue, 01 Jan 2030 00:00:05 GMT", "1893456007", 5 * time.Second},
		"in the past":        {"", "1893455000", 0},
		"far off":            {"", "9893456007", maxPause},
		"no number":          {"", "soon", 0},
	} {
		h := http.Header{}
		h.Set("Retry-After", c.after)
		h.Set("RateLimit-Reset", c.reset)
		if got := retryAfter(h, now); got != c.want {
			t.Errorf("%s: got %v; want %v", name, got, c.want)
		}
	}
}

// A proxy before an API may answer in its place: with a login page, or with one of its own for a path that it does not know.
// Neither is taken for the end of a key, or for the health of the API.
func TestPageOfAProxy(t *testing.T) {
	const html = "text/html; charset=utf-8"
	for name, c := range map[string]struct {
		status     int
		kind, body string
		page       bool
	}{
		"login page":        {200, html, "\n <!DOCTYPE html><title>Sign in</title>", true},
		"byte order mark":   {200, html, "\ufeff\r\n<!DOCTYPE html><title>Sign in</title>", true},
		"no such path":      {404, "text/html", "<html><center>nginx</center></html>", true},
		"empty":             {200, html, "", false},
		"no content":        {204, html, "", false},
		"text":              {200, html, "ok", false},
		"the API's":         {404, "application/json", `{"message":"<none>"}`, false},
		"the API's own 404": {404, "text/plain", "404 page not found", false},
	} {
		opened, _ := serve(t, base, c.status, c.body, "Content-Type", c.kind)
		err := opened.Revoke(t.Context(), Handle{Name: "n", Accessor: "k-7"})
		if c.page != errors.Is(err, ErrProtocol) || !c.page && err != nil {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// A gateway that has lost the connection to the server says so with the status by which others say that nothing happened: a key
// may live then. Where it never had a connection it says that, and to a call that makes nothing it is all the same.
func TestGatewayThatLostTheServer(t *testing.T) {
	const envoy = "upstream connect error or disconnect/reset before headers"
	const varnish = `<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN"
 "http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd">
<html>
  <head>
    <title>503 first byte timeout</title>
  </head>
  <body>
    <h1>Error 503 first byte timeout</h1>
    <p>first byte timeout</p>
    <h3>Guru Mediation:</h3>
    <p>Details: cache-fra-eddf8230047-FRA 1790000000 1234567890</p>
    <hr>
    <p>Varnish cache server</p>
  </body>
</html>
`
	heroku := `<!DOCTYPE html>
<html>
  <head>
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <meta charset="utf-8">
    <title>Application Error</title>
    <style media="screen">` + strings.Repeat("\n      html,body,iframe { margin: 0; padding: 0; }", 5) + `
    </style>
  </head>
  <body>
    <iframe src="//www.herokucdn.com/error-pages/application-error.html"></iframe>
  </body>
</html>`
	for name, c := range map[string]struct {
		body string
		lost bool
	}{
		"ended":              {envoy + ". reset reason: connection termination", true},
		"reset":              {envoy + ". reset reason: remote reset", true},
		"an older one":       {envoy, true},
		"asked twice":        {envoy + ". retried and the latest reset reason: connection failure", true},
		"Varnish, Fastly":    {varnish, true},
		"Heroku":             {heroku, true},
		"Azure Front Door":   {"<h2>Our services aren't available right now</h2><p>We're working to restore all services as soon as possible.", true},
		"nginx":              {"<html>\r\n<head><title>503 Service Temporarily Unavailable</title></head>\r\n<body>\r\n<center><h1>503 Service Temporarily Unavailable</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>", false},
		"HAProxy":            {"<html><body><h1>503 Service Unavailable</h1>\nNo server is available to handle this request.\n</body></html>", false},
		"no connection":      {envoy + ". reset reason: connection failure", false},
		"refused connection": {envoy + ". reset reason: remote connection failure, transport failure reason: delayed connect error: 111", false},
		"no server":          {"no healthy upstream", false},
		"the API's own":      {`{"error": "down for maintenance"}`, false},
		"no words":           {"", false},
	} {
		opened, _ := serve(t, base, 503, c.body)
		_, err := opened.Exchange(t.Context(), request(nil))
		if MayLive(err) != c.lost || errors.Is(err, ErrUnknown) != c.lost || errors.Is(err, ErrBusy) == c.lost {
			t.Errorf("%s: got %v", name, err)
		}
		if err := opened.Revoke(t.Context(), Handle{Name: "n", Accessor: "k-7"}); !errors.Is(err, ErrBusy) {
			t.Errorf("%s: revoking, got %v", name, err)
		}
	}
}

// What is busy after the subject token was used must not be repeated with it, whatever it was that was busy.
func TestBusyAfterTheTokenWasUsed(t *testing.T) {
	for _, cause := range []error{nil, context.Canceled, fmt.Errorf("no SVID: %w", ErrBusy)} {
		err := spent(&Error{Op: "exchange", Text: "hop 2 of 2: x", RetryAfter: time.Minute, outcome: ErrBusy, cause: cause})
		if !errors.Is(err, ErrDenied) || errors.Is(err, ErrBusy) || MayLive(err) || err.Error() != "exchange: denied by the target: hop 2 of 2: x, with another subject token" {
			t.Errorf("%v: got %v", cause, err)
		}
		if errors.Is(cause, context.Canceled) != errors.Is(err, context.Canceled) {
			t.Errorf("%v: the cause is %v", cause, errors.Unwrap(err))
		}
	}
	if err := spent(protocol("exchange", "x")); !errors.Is(err, ErrProtocol) || !MayLive(err) {
		t.Errorf("got %v", err)
	}
}

// Where a profile says what an answer must say, its status alone ends no key, and finds none wrong.
func TestOnlyIf(t *testing.T) {
	profile := strings.Replace(base, "gone: [404]", "gone: [404]\n  ok: [200]\n  only_if: 'response.status == 200 ? response.json.ok : response.text.contains(\"no such key\")'", 1)
	if profile == base {
		t.Fatal("the profile has no gone")
	}
	for name, c := range map[string]struct {
		status int
		body   string
		holds  bool
	}{
		"ok":               {200, `{"ok": true}`, true},
		"not ok":           {200, `{"ok": false}`, false},
		"no bool":          {200, `{"ok": "true"}`, false},
		"says nothing":     {200, `{}`, false},
		"no JSON":          {200, `ok`, false},
		"nothing":          {200, ``, false},
		"gone":             {404, `{"error": "no such key"}`, true},
		"an ingress's 404": {404, "default backend - 404", false},
	} {
		opened, _ := serve(t, profile, c.status, c.body, "Content-Type", "text/plain")
		err := opened.Revoke(t.Context(), Handle{Name: "n", Accessor: "k-7"})
		if c.holds != (err == nil) || !c.holds && !errors.Is(err, ErrUnknown) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	opened, _ := serve(t, profile, 404, "<html>no such key</html>", "Content-Type", "text/html")
	if err := opened.Revoke(t.Context(), Handle{Name: "n", Accessor: "k-7"}); !errors.Is(err, ErrProtocol) {
		t.Errorf("a web page: got %v", err)
	}
}
