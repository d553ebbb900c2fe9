// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package source

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

const clientID = "engine&co"

// server is a token endpoint and a source that asks it.
type server struct {
	*lab.TokenEndpoint
	*Source
	clock *clock
}

func newServer(t *testing.T, o lab.TokenEndpointOptions, with func(*Config)) *server {
	t.Helper()
	s := &server{clock: newClock()}
	o.Issuer, o.ClientID, o.ClientSecret, o.Audience = newIssuer(s.clock), clientID, secret, audience
	s.TokenEndpoint = lab.NewTokenEndpoint(o)
	s.Source = openClient(t, s.TokenEndpoint, s.clock, with)
	return s
}

// openClient opens a source that asks the handler's /token.
func openClient(t *testing.T, h http.Handler, c *clock, with func(*Config)) *Source {
	t.Helper()
	address, ca := serve(t, h)
	config := Config{Kind: ClientCredentials, Audience: audience, TokenURL: address + "/token", ClientID: clientID, ClientSecret: secret,
		Egress: loopback(), HTTP: egress.Options{CAPEM: ca}, Now: c.now}
	if with != nil {
		with(&config)
	}
	return open(t, config)
}

// last wants a token that is the newest of the endpoint's.
func (s *server) last(t *testing.T, calls int) {
	t.Helper()
	token, err := s.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if issued := s.Issued(); len(issued) != calls || token != issued[calls-1] {
		t.Errorf("%d tokens were issued; want %d, and the last of them", len(issued), calls)
	}
}

func TestClientAuthenticates(t *testing.T) {
	for _, auth := range []string{"", AuthBasic, AuthPost} {
		s := newServer(t, lab.TokenEndpointOptions{}, func(c *Config) {
			c.TokenAuth, c.TokenScopes, c.TokenParams = auth, []string{"read", "write"}, map[string]string{"resource": "https://a.example/?b=c"}
		})
		s.last(t, 1)
		want := url.Values{"grant_type": {"client_credentials"}, "scope": {"read write"}, "resource": {"https://a.example/?b=c"}}
		if auth == AuthPost {
			want["client_id"], want["client_secret"] = []string{clientID}, []string{secret}
		}
		if diff := cmp.Diff(want, s.Asked()[0]); diff != "" {
			t.Errorf("%q: %s", auth, diff)
		}
	}
}

// The secret is sent once, in the one way that is configured, also where the endpoint wants another.
func TestClientDoesNotTryOut(t *testing.T) {
	s := newServer(t, lab.TokenEndpointOptions{}, func(c *Config) { c.ClientSecret = "wrong-" + secret })
	token, err := s.Token(t.Context())
	wantRefused(t, "wrong secret", token, err, false, "the token endpoint refuses with invalid_client (status 401)", secret)
	if calls := s.Calls(lab.OpGrant); calls != 1 {
		t.Errorf("%d calls; want 1", calls)
	}
}

func TestTokenIsKept(t *testing.T) {
	for name, c := range map[string]struct {
		life, kept time.Duration
	}{
		"a minute before its end":  {10 * time.Minute, 9 * time.Minute},
		"half its life if short":   {time.Minute, 30 * time.Second},
		"an hour of a day at most": {24 * time.Hour, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, lab.TokenEndpointOptions{Life: c.life}, nil)
			s.last(t, 1)
			s.clock.advance(c.kept - 2*time.Second) // x/oauth2 counts from the machine's clock
			s.last(t, 1)
			s.clock.advance(3 * time.Second)
			s.last(t, 2)
		})
	}
}

// The end that the token itself tells counts too.
func TestTokenThatEndsBeforeItsAnswerSays(t *testing.T) {
	c := newClock()
	issuer, calls := newIssuer(c), 0
	s := openClient(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls++
		token := issuer.Token(map[string]any{"aud": audience, "exp": c.now().Add(2 * time.Minute).Unix()})
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":%q,"token_type":"bearer","expires_in":3600}`, token)
	}), c, nil)
	for n, after := range []time.Duration{0, 59 * time.Second, 2 * time.Second} {
		c.advance(after)
		if _, err := s.Token(t.Context()); err != nil || calls != []int{1, 1, 2}[n] {
			t.Errorf("use %d: %d calls, %v", n+1, calls, err)
		}
	}
}

// A token of which nobody says how long it lives is presented once, whoever else waits for one.
func TestTokenWithoutEndIsUsedOnce(t *testing.T) {
	s := newServer(t, lab.TokenEndpointOptions{NoExpiresIn: true}, nil)
	s.last(t, 1)
	s.last(t, 2)
	tokens := s.together(t, 8)
	for token, n := range tokens {
		if n != 1 || token == "" {
			t.Errorf("one token was given to %d", n)
		}
	}
	if calls := s.Calls(lab.OpGrant); calls != 10 {
		t.Errorf("%d calls; want one for each use, 10", calls)
	}
}

// together asks for n tokens at a time and counts how often each was given.
func (s *server) together(t *testing.T, n int) map[string]int {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	tokens := map[string]int{}
	for range n {
		wg.Go(func() {
			token, err := s.Token(t.Context())
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			tokens[token]++
		})
	}
	wg.Wait()
	return tokens
}

func TestOneCallForManyCallers(t *testing.T) {
	s := newServer(t, lab.TokenEndpointOptions{}, nil)
	if tokens := s.together(t, 64); len(tokens) != 1 || s.Calls(lab.OpGrant) != 1 {
		t.Errorf("%d tokens by %d calls for 64 callers; want 1 and 1", len(tokens), s.Calls(lab.OpGrant))
	}
}

// A fault of the plugin in reading one endpoint's answer ends one call, not the process of every mount.
func TestPanicEndsOneCall(t *testing.T) {
	s := &clientCredentials{now: newClock().now, client: &http.Client{Transport: panics{}, Timeout: time.Second}}
	s.conf.TokenURL = "https://id.example.com/token"
	for range 2 {
		token, err := s.token(t.Context())
		wantRefused(t, "panic", token, err, false, "reading the token endpoint's answer panicked", secret)
	}
}

type panics struct{}

func (panics) RoundTrip(*http.Request) (*http.Response, error) { panic("canary-" + secret) }

// A caller who leaves is let go at once; the call goes on for those who come after.
func TestCallerLeaves(t *testing.T) {
	s := newServer(t, lab.TokenEndpointOptions{}, nil)
	asked, answer := make(chan struct{}), make(chan struct{})
	s.OnRequest(func(_ string, stage lab.Stage) {
		if stage == lab.StageReceived {
			close(asked)
		}
	})
	s.Fault(lab.OpGrant, lab.Fault{Kind: lab.KindDelay, Until: answer, Count: 1})
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := s.Token(ctx)
		left <- err
	}()
	<-asked
	cancel()
	wantRefused(t, "caller who left", "", <-left, true, "the request ended")
	close(answer)
	s.last(t, 1)
}

func TestEndpointFaults(t *testing.T) {
	for name, c := range map[string]struct {
		fault   lab.Fault
		passing bool
		text    string
	}{
		"bad request":       {lab.Fault{Kind: lab.KindStatus, Status: 400}, false, "the token endpoint refuses (status 400)"},
		"unauthorized":      {lab.Fault{Kind: lab.KindStatus, Status: 401}, false, "the token endpoint refuses (status 401)"},
		"forbidden":         {lab.Fault{Kind: lab.KindStatus, Status: 403}, false, "the token endpoint refuses (status 403)"},
		"not there":         {lab.Fault{Kind: lab.KindStatus, Status: 404}, false, "the token endpoint refuses (status 404)"},
		"too many":          {lab.Fault{Kind: lab.KindStatus, Status: 429}, true, "answers status 429"},
		"server's fault":    {lab.Fault{Kind: lab.KindStatus, Status: 500}, true, "answers status 500"},
		"server is busy":    {lab.Fault{Kind: lab.KindStatus, Status: 503}, true, "answers status 503"},
		"cut":               {lab.Fault{Kind: lab.KindCut}, true, "token endpoint: the connection failed"},
		"half an answer":    {lab.Fault{Kind: lab.KindTruncate}, true, "token endpoint: the connection failed"},
		"redirect":          {lab.Fault{Kind: lab.KindRedirect, Location: "/token"}, false, "redirects are not followed"},
		"redirect of POSTs": {lab.Fault{Kind: lab.KindRedirect, Status: 307, Location: "/token"}, false, "redirects are not followed"},
		"oversized":         {lab.Fault{Kind: lab.KindHuge, Size: 1}, false, "the answer is too large"},
		"page":              {lab.Fault{Kind: lab.KindHTML}, false, "answer has no token"},
		"other types":       {lab.Fault{Kind: lab.KindWrongTypes}, false, "answer has no token"},
		"no token":          {lab.Fault{Kind: lab.KindNoSecret}, false, "answer has no token"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, lab.TokenEndpointOptions{}, nil)
			c.fault.Count = 1
			s.Fault(lab.OpGrant, c.fault)
			token, err := s.Token(t.Context())
			secrets := append(s.Issued(), secret)
			wantRefused(t, name, token, err, c.passing, c.text, secrets...)
			if calls := s.Calls(lab.OpGrant); calls != 1 {
				t.Errorf("%d calls; want 1", calls)
			}
			s.last(t, len(s.Issued())+1) // what failed is not kept
		})
	}
}

// An endpoint that never answers, or never comes to an end, is given up.
func TestEndpointThatIsSlow(t *testing.T) {
	c := newClock()
	for name, work := range map[string]func(http.ResponseWriter){
		"never answers": func(http.ResponseWriter) {},
		"never ends": func(w http.ResponseWriter) {
			_, _ = io.WriteString(w, `{"access_token":"`)
			_ = http.NewResponseController(w).Flush()
		},
	} {
		s := openClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // only then is it seen that the client goes
			work(w)
			<-r.Context().Done()
		}), c, func(c *Config) { c.HTTP.Timeout = 50 * time.Millisecond })
		token, err := s.Token(t.Context())
		wantRefused(t, name, token, err, true, "no answer in time")
	}
}

// Nothing that an endpoint says is repeated, above all not what it was sent.
func TestEndpointThatEchoes(t *testing.T) {
	c := newClock()
	issuer := newIssuer(c)
	header := base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(clientID) + ":" + secret))
	for name, answer := range map[string]struct {
		status      int
		media, body string
		text        string
	}{
		"refusal":               {401, "application/json", `{"error":"invalid_client","error_description":"SENT","error_uri":"SENT"}`, "refuses with invalid_client (status 401)"},
		"error code":            {400, "application/json", `{"error":"SENT"}`, "refuses (status 400)"},
		"refusal of status 200": {200, "application/json", `{"error":"SENT"}`, "refuses (status 200)"},
		"text":                  {400, "text/plain", "error=SENT", "refuses (status 400)"},
		"page":                  {403, "text/html", "SENT", "refuses (status 403)"},
		"bad JSON":              {200, "application/json", `SENT`, "answer has no token"},
		"bad number":            {200, "application/json", `{"access_token":"x","expires_in":"SENT"}`, "answer has no token"},
		"token":                 {200, "application/json", `{"access_token":"SENT","token_type":"Bearer"}`, "it is no JWT to present"},
		"type":                  {200, "application/json", `{"access_token":"` + issuer.Token(map[string]any{"aud": audience}) + `","token_type":"SENT"}`, "another type than Bearer"},
	} {
		for _, auth := range []string{AuthBasic, AuthPost} {
			var sent string
			s := openClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				sent = strings.TrimSpace(r.Header.Get("Authorization") + " " + string(body))
				w.Header().Set("Content-Type", answer.media)
				w.WriteHeader(answer.status)
				_, _ = io.WriteString(w, strings.ReplaceAll(answer.body, "SENT", sent))
			}), c, func(c *Config) { c.TokenAuth = auth })
			token, err := s.Token(t.Context())
			wantRefused(t, name, token, err, false, answer.text, secret, header)
			if !strings.Contains(sent, secret) && !strings.Contains(sent, header) {
				t.Errorf("%s: the endpoint was not sent the secret, so this test proves nothing", name)
			}
		}
	}
}

func TestTokenOfAnAnswer(t *testing.T) {
	c := newClock()
	issuer := newIssuer(c)
	jwt := func(aud any, end time.Duration) string {
		return issuer.Token(map[string]any{"aud": aud, "exp": c.now().Add(end).Unix()})
	}
	for name, d := range map[string]struct {
		audience, token, text string
	}{
		"JWT":                          {audience, jwt(audience, time.Hour), ""},
		"of another audience":          {audience, jwt("https://other.example", time.Hour), "its aud is not exactly"},
		"of one audience more":         {audience, jwt([]string{audience, "x"}, time.Hour), "its aud is not exactly"},
		"expired":                      {audience, jwt(audience, 0), "it has expired"},
		"opaque where a JWT is wanted": {audience, "opaque", "it is no JWT to present"},
		"opaque":                       {"", "opaque-._~+/==", ""},
		"16 KiB":                       {"", strings.Repeat("x", maxOpaqueBytes), ""},
		"more than 16 KiB":             {"", strings.Repeat("x", maxOpaqueBytes+1), "it is no bearer token"},
		"with a space":                 {"", "two words", "it is no bearer token"},
		"with a line end":              {"", `x\r\nX-Evil: 1`, "it is no bearer token"},
		"empty":                        {"", "", "answer has no token"},
		"JWT for whom nobody asks":     {"", jwt("https://other.example", time.Hour), ""},
	} {
		s := openClient(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"access_token":"%s","token_type":"Bearer","expires_in":"300"}`, d.token)
		}), c, func(c *Config) { c.Audience = d.audience })
		token, err := s.Token(t.Context())
		if d.text != "" {
			wantRefused(t, name, token, err, false, d.text, d.token)
		} else if err != nil || token != d.token {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is permitted by its name may still lead to an address that is not: that is judged when it is dialled, and nothing is
// sent.
func TestEndpointAtAForbiddenAddress(t *testing.T) {
	var calls atomic.Int32
	address, ca := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls.Add(1) }))
	first, err := net.DefaultResolver.LookupNetIP(t.Context(), "ip", "localhost")
	if err != nil {
		t.Fatal(err)
	}
	policy := loopback()
	if first[0].Unmap().Is4() { // so that the first address that is dialled is the forbidden one
		policy.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("::1/128")}
	}
	s := open(t, Config{Kind: ClientCredentials, TokenURL: strings.Replace(address, "127.0.0.1", "localhost", 1),
		ClientID: clientID, ClientSecret: secret, Egress: policy, HTTP: egress.Options{CAPEM: ca}})
	token, err := s.Token(t.Context())
	wantRefused(t, "loopback", token, err, false, "token endpoint: refused by the egress rules", secret)
	if calls.Load() != 0 {
		t.Error("a request was sent")
	}
}

func TestEndpointThatIsDown(t *testing.T) {
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	s := open(t, Config{Kind: ClientCredentials, TokenURL: strings.Replace(closed.URL, "http:", "https:", 1), ClientID: clientID,
		ClientSecret: secret, Egress: loopback()})
	token, err := s.Token(t.Context())
	wantRefused(t, "closed port", token, err, true, "connection refused", secret)

	untrusted := openClient(t, http.NotFoundHandler(), newClock(), func(c *Config) { c.HTTP.CAPEM = "" })
	token, err = untrusted.Token(t.Context())
	wantRefused(t, "unknown CA", token, err, true, "not signed by a trusted CA", secret)
}
