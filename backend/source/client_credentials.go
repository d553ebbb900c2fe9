// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
)

// How the client's secret is sent to a token endpoint (RFC 6749 section 2.3.1).
const (
	AuthBasic = "basic" // in the Authorization header
	AuthPost  = "post"  // in the body
)

const (
	maxOpaqueBytes = 16 << 10 // of a token that is no JWT
	maxAnswerBytes = 64 << 10
	maxFieldBytes  = 16 << 10 // of client_id, client_secret, and of all scopes
	endMargin      = time.Minute
	maxKept        = time.Hour // how long a token is kept: one that its server has revoked is presented at most this long
)

var (
	// token68 is the form of a bearer token (RFC 6750 section 2.1).
	token68 = regexp.MustCompile(`\A[A-Za-z0-9._~+/-]+=*\z`)
	// scopeToken is RFC 6749 section 3.3.
	scopeToken = regexp.MustCompile(`\A[\x21\x23-\x5B\x5D-\x7E]+\z`)
	visible    = regexp.MustCompile(`\A[\x20-\x7E]+\z`)
)

// ownParams are the parameters of a token request that have fields of their own, or none at all.
var ownParams = []string{"grant_type", "scope", "client_id", "client_secret", "client_assertion", "client_assertion_type"}

// endpointErrors are the codes that a token endpoint may answer (RFC 6749 section 5.2, RFC 8707 section 2). Only these are
// repeated: anything else that it says may be what we sent.
var endpointErrors = []string{"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client",
	"unsupported_grant_type", "invalid_scope", "invalid_target"}

// clientCredentials gets tokens for the engine's own client id.
type clientCredentials struct {
	conf     clientcredentials.Config
	client   *http.Client
	audience string
	now      func() time.Time

	mu     sync.Mutex
	kept   string
	until  time.Time
	flight *flight
}

// flight is one call of the token endpoint; what it yields may be read once done is closed.
type flight struct {
	done  chan struct{}
	token string
	keep  bool // more than one caller may present the token
	err   error
}

func openClientCredentials(c Config) (*Source, error) {
	if err := checkClientCredentials(c); err != nil {
		return nil, err
	}
	client, err := c.Egress.Client(c.HTTP)
	if err != nil { // begins with the field
		return nil, err
	}
	s := &clientCredentials{client: client, audience: c.Audience, now: c.Now, conf: clientcredentials.Config{
		ClientID: c.ClientID, ClientSecret: c.ClientSecret, TokenURL: c.TokenURL, Scopes: c.TokenScopes,
		EndpointParams: url.Values{}, AuthStyle: oauth2.AuthStyleInHeader, // left open, it would be tried out with the secret
	}}
	if c.TokenAuth == AuthPost {
		s.conf.AuthStyle = oauth2.AuthStyleInParams
	}
	for name, value := range c.TokenParams {
		s.conf.EndpointParams.Set(name, value)
	}
	return &Source{kind: ClientCredentials, fetch: s.token, close: client.CloseIdleConnections}, nil
}

func checkClientCredentials(c Config) error {
	if c.TokenURL == "" {
		return errors.New("token_url: is required with subject_token_source client_credentials")
	}
	if _, err := c.Egress.ParseURL(c.TokenURL); err != nil {
		return fmt.Errorf("token_url: %v", err)
	}
	scopeBytes := 0
	for _, scope := range c.TokenScopes {
		scopeBytes += len(scope) + 1
		if !scopeToken.MatchString(scope) || scopeBytes > maxFieldBytes {
			return fmt.Errorf("token_scopes: want scopes of printable ASCII without spaces, quotes and backslashes, %d bytes at most", maxFieldBytes)
		}
	}
	for name := range c.TokenParams {
		if slices.Contains(ownParams, name) {
			return fmt.Errorf("token_params: %s is not for this map; it has a field of its own, or is not sent", name)
		}
		if !visible.MatchString(name) {
			return errors.New("token_params: want names of printable ASCII")
		}
	}
	switch {
	case !visible.MatchString(c.ClientID) || len(c.ClientID) > maxFieldBytes:
		return fmt.Errorf("client_id: want 1 to %d bytes of printable ASCII", maxFieldBytes)
	case c.ClientSecret == "" || len(c.ClientSecret) > maxFieldBytes:
		return fmt.Errorf("client_secret: want 1 to %d bytes", maxFieldBytes)
	case c.TokenAuth != "" && c.TokenAuth != AuthBasic && c.TokenAuth != AuthPost:
		return fmt.Errorf("token_auth: want %s or %s", AuthBasic, AuthPost)
	}
	return nil
}

// token returns the kept token, or joins the call that fetches the next one. That call does not depend on any caller's
// context: it goes on if the caller who began it leaves.
func (s *clientCredentials) token(ctx context.Context) (string, error) {
	for {
		token, f, mine := s.join()
		if f == nil {
			return token, nil
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return "", unavailable("the request ended while the token was fetched")
		}
		// A token that may not be kept is for one caller, the one who began the call.
		if f.err != nil || f.keep || mine {
			return f.token, f.err
		}
	}
}

// join returns the kept token and no flight, or the flight to wait for.
func (s *clientCredentials) join() (token string, f *flight, mine bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now().Before(s.until) {
		return s.kept, nil, false
	}
	if s.flight != nil {
		return "", s.flight, false
	}
	s.flight = &flight{done: make(chan struct{})}
	go s.fly(s.flight)
	return "", s.flight, true
}

func (s *clientCredentials) fly(f *flight) {
	began := s.now()
	token, life, err := s.ask(began)
	s.mu.Lock()
	defer s.mu.Unlock()
	life -= min(endMargin, life/2)
	f.token, f.err, f.keep = token, err, life > 0
	if f.keep {
		s.kept, s.until = token, began.Add(min(life, maxKept))
	}
	s.flight = nil
	close(f.done)
}

// ask calls the token endpoint once and returns a token with the rest of its life, 0 if that is not known. A panic is an error:
// one endpoint's answer must not end a process that serves others.
func (s *clientCredentials) ask(now time.Time) (token string, life time.Duration, err error) {
	defer func() {
		if recover() != nil {
			token, life, err = "", 0, errors.New("reading the token endpoint's answer panicked")
		}
	}()
	w := &witness{next: s.client.Transport}
	client := *s.client
	// As the context's, the end of the time is one that egress.Cause knows, also from within the transport.
	client.Transport, client.Timeout = w, 0
	ctx, cancel := context.WithTimeout(context.Background(), s.client.Timeout)
	defer cancel()
	got, err := s.conf.Token(context.WithValue(ctx, oauth2.HTTPClient, &client))
	if err != nil {
		return "", 0, w.refusal(err)
	}
	if !got.Expiry.IsZero() {
		life = time.Until(got.Expiry) // x/oauth2 counts from the machine's clock
	}
	if got.Type() != "Bearer" {
		return "", 0, errors.New("the token endpoint gave a token of another type than Bearer")
	}
	if s.audience == "" {
		if !token68.MatchString(got.AccessToken) || len(got.AccessToken) > maxOpaqueBytes {
			return "", 0, fmt.Errorf("it is no bearer token of at most %d bytes", maxOpaqueBytes)
		}
		return got.AccessToken, life, nil
	}
	expiry, err := fit(got.AccessToken, s.audience, now)
	if err != nil {
		return "", 0, err
	}
	return got.AccessToken, min(life, expiry.Sub(now)), nil
}

// witness notes what became of the one call that x/oauth2 makes, whose own errors hold answers and lose causes. It reads the
// answer itself, so that a long one is refused instead of cut.
type witness struct {
	next   http.RoundTripper
	status int
	err    error
}

func (w *witness) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := w.next.RoundTrip(r)
	if err != nil {
		w.err = err
		return nil, err
	}
	defer resp.Body.Close()
	body, err := egress.ReadAll(resp.Body, maxAnswerBytes)
	if err == nil {
		err = r.Context().Err() // a server that sees us go may end its answer properly
	}
	if err != nil {
		w.err = err
		return nil, err
	}
	w.status = resp.StatusCode
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// refusal returns why there is no token, without words of the endpoint other than known error codes.
func (w *witness) refusal(err error) error {
	switch {
	case errors.Is(w.err, egress.ErrRefused) || errors.Is(w.err, egress.ErrTooLarge):
		return fmt.Errorf("token endpoint: %s", egress.Cause(w.err))
	case w.err != nil:
		return unavailable("token endpoint: " + egress.Cause(w.err))
	case w.status == http.StatusTooManyRequests || w.status >= http.StatusInternalServerError:
		return unavailable(fmt.Sprintf("the token endpoint answers status %d", w.status))
	case w.status/100 == 3:
		return fmt.Errorf("the token endpoint redirects (status %d), and redirects are not followed; correct token_url", w.status)
	}
	if answer := (*oauth2.RetrieveError)(nil); errors.As(err, &answer) {
		if slices.Contains(endpointErrors, answer.ErrorCode) {
			return fmt.Errorf("the token endpoint refuses with %s (status %d)", answer.ErrorCode, w.status)
		}
		return fmt.Errorf("the token endpoint refuses (status %d)", w.status)
	}
	return errors.New("the token endpoint's answer has no token")
}
