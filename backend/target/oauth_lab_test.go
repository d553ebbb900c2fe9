// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

const (
	gatewayID    = "spiffe://example.org/gateway"
	supervisorID = "spiffe://example.org/supervisor"
	labSecret    = "canary-s:e&c ret+"
)

// testClock stands still until it is moved.
type testClock struct {
	mu sync.Mutex
	at time.Time
}

func (c *testClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *testClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// authority is an authorization server with all around it, and a target there.
type authority struct {
	*testing.T
	*lab.OAuth
	clock  *testClock
	issuer *lab.Issuer
	agent  *lab.WorkloadAPI
	ca     string
	config target.Config
}

// newAuthority makes a server with the options, and a target there that discovers it and shows a secret. configure changes the
// target's configuration.
func newAuthority(t *testing.T, o lab.OAuthOptions, configure func(*authority, *target.Config)) (*authority, *target.Target) {
	t.Helper()
	a := &authority{T: t, clock: &testClock{at: time.Now().Truncate(time.Second)}}
	a.issuer = lab.NewIssuer(lab.IssuerOptions{Now: a.clock.now, Algorithm: "ES256"})
	a.issuer.SetURL(a.serve(a.issuer))
	a.agent = lab.NewWorkloadAPI(lab.WorkloadAPIOptions{IDs: []string{gatewayID, supervisorID}, Now: a.clock.now})
	o.Issuers, o.Now, o.Client = append(o.Issuers, a.issuer.URL()), a.clock.now, a.client()
	if o.Domain == nil {
		o.Domain = a.agent.Domain
	}
	if o.Clients == nil {
		o.Clients = []lab.OAuthClient{{ID: "the engine", Method: "client_secret_basic", Secret: labSecret}}
	}
	a.OAuth = lab.NewOAuth(o)
	a.SetURL(a.serve(a.OAuth))
	a.config = target.Config{
		Name: "idp", Driver: "oauth", URL: a.Issuer(), CAPEM: a.ca, Egress: egress.Policy{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}, Now: a.clock.now, RequestTimeout: 5 * time.Second,
		OAuth: target.OAuth{ClientAuth: "client_secret_basic", ClientID: "the engine", ClientSecret: labSecret, OwnToken: a.ownToken},
	}
	if configure != nil {
		configure(a, &a.config)
	}
	return a, a.open()
}

func (a *authority) open() *target.Target {
	a.Helper()
	opened, err := target.Open(a.config)
	if err != nil {
		a.Fatalf("Open: %v", err)
	}
	a.Cleanup(opened.Close)
	return opened
}

// serve runs a handler with TLS; all have one certificate. It takes a client's certificate, if one is shown.
func (a *authority) serve(h http.Handler) string {
	server := httptest.NewUnstartedServer(h)
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	a.Cleanup(server.Close)
	a.ca = lab.CertificatePEM(server.Certificate())
	return server.URL
}

func (a *authority) client() *http.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(a.ca))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	a.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// ownToken is what an agent gives to the engine.
func (a *authority) ownToken(_ context.Context, source, id, audience string) (string, error) {
	if source != target.SourceSVID {
		return "", errors.New("no such source")
	}
	if id == "" {
		id = gatewayID
	}
	return a.agent.SVID(map[string]any{"sub": id, "aud": audience}), nil
}

func (a *authority) token(claims map[string]any) string {
	all := map[string]any{"aud": a.Issuer(), "sub": "jim"}
	for name, value := range claims {
		all[name] = value
	}
	return a.issuer.Token(all)
}

// exchange asks for a key by a token, with parameters.
func (a *authority) exchange(t *target.Target, token string, params map[string]any) (target.Key, error) {
	a.Helper()
	checked, err := t.Params(params)
	if err != nil {
		a.Fatalf("Params: %v", err)
	}
	key, err := t.Exchange(a.Context(), target.Request{Name: "oidcx-1", Params: checked, SubjectToken: token})
	if err != nil && cmp.Diff(target.Key{}, key) != "" {
		a.Error("an error and a key")
	}
	if err != nil && (strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "https://")) {
		a.Errorf("the error shows too much: %v", err)
	}
	return key, err
}

// wantError wants exactly this text, and this outcome.
func wantError(t *testing.T, name string, err, outcome error, text string) {
	t.Helper()
	if err == nil || !errors.Is(err, outcome) || err.Error() != text {
		t.Errorf("%s:\n got %v\nwant %s", name, err, text)
	}
}

// Each way to say who the engine is, against a server that takes that one alone: also where it revokes and introspects.
func TestOAuthClientAuthentication(t *testing.T) {
	t.Parallel()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	cert, certKey := engineCertificate()
	for name, c := range map[string]struct {
		client    lab.OAuthClient
		configure func(*target.OAuth)
	}{
		"none":  {lab.OAuthClient{ID: "engine", Method: "none"}, func(o *target.OAuth) { *o = target.OAuth{ClientID: "engine"} }},
		"basic": {lab.OAuthClient{ID: "the engine", Method: "client_secret_basic", Secret: labSecret}, func(*target.OAuth) {}},
		"post":  {lab.OAuthClient{ID: "the engine", Method: "client_secret_post", Secret: labSecret}, func(o *target.OAuth) { o.ClientAuth = "client_secret_post" }},
		"EC": {lab.OAuthClient{ID: "engine", Method: "private_key_jwt", Key: ec.Public(), KeyID: "k1"}, func(o *target.OAuth) {
			*o = target.OAuth{ClientAuth: "private_key_jwt", ClientID: "engine", PrivateKey: lab.KeyPEM(ec), KeyID: "k1"}
		}},
		"RSA, for the token endpoint": {lab.OAuthClient{ID: "engine", Method: "private_key_jwt", Key: rs.Public()}, func(o *target.OAuth) {
			*o = target.OAuth{ClientAuth: "private_key_jwt", ClientID: "engine", PrivateKey: lab.KeyPEM(rs), AssertionAudience: "+/token"}
		}},
		"SVID": {lab.OAuthClient{ID: gatewayID, Method: "jwt-bearer"}, func(o *target.OAuth) { *o = target.OAuth{ClientAuth: "svid_jwt_bearer", OwnToken: o.OwnToken} }},
		"SVID of an id": {lab.OAuthClient{ID: supervisorID, Method: "jwt-spiffe"}, func(o *target.OAuth) {
			*o = target.OAuth{ClientAuth: "svid_jwt_spiffe", SPIFFEID: supervisorID, ClientID: supervisorID, OwnToken: o.OwnToken}
		}},
		"certificate": {lab.OAuthClient{ID: "engine", Method: "tls_client_auth"}, func(o *target.OAuth) { *o = target.OAuth{ClientAuth: "tls_client_auth", ClientID: "engine"} }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, opened := newAuthority(t, lab.OAuthOptions{Path: "/realms/acme", Clients: []lab.OAuthClient{c.client}}, func(a *authority, config *target.Config) {
				c.configure(&config.OAuth)
				config.Audience = a.Issuer()
				config.OAuth.IntrospectionURL = "discover"
				if rest, ok := strings.CutPrefix(config.OAuth.AssertionAudience, "+"); ok {
					config.OAuth.AssertionAudience = a.Issuer() + rest
				}
				if config.OAuth.ClientAuth == "tls_client_auth" {
					config.ClientCert, config.ClientKey = cert, certKey
				}
			})
			for range 2 { // an assertion is never used twice
				key, err := a.exchange(opened, a.token(nil), nil)
				if err != nil {
					t.Fatal(err)
				}
				if !a.Valid(key.Secret) || !key.Expiry.Equal(a.clock.now().Add(5*time.Minute)) {
					t.Errorf("the key is not valid, or ends at %v", key.Expiry)
				}
				if end, err := opened.Renew(t.Context(), key.Handle, time.Time{}); err != nil || !end.Equal(key.Expiry) {
					t.Errorf("Renew: %v, %v", end, err)
				}
				if err := opened.Revoke(t.Context(), key.Handle); err != nil || a.Valid(key.Secret) {
					t.Errorf("Revoke: %v; it lives: %v", err, a.Valid(key.Secret))
				}
				_, err = opened.Renew(t.Context(), key.Handle, time.Time{})
				wantError(t, "renewing what was revoked", err, target.ErrDenied, "renew: denied by the target: the token is no longer active")
			}
			if err := opened.Check(t.Context()); err != nil {
				t.Errorf("Check: %v", err)
			}
			if got := a.Calls(lab.OpDiscovery); got != 1 {
				t.Errorf("the document was asked for %d times; want once", got)
			}
		})
	}
}

// The text of a refusal says what to mend, and nothing that the server said.
func TestOAuthRefusals(t *testing.T) {
	t.Parallel()
	const denied = "exchange: denied by the target: it refused: "
	a, opened := newAuthority(t, lab.OAuthOptions{Audiences: []string{"https://api.example"}, Scopes: []string{"read"}, SingleUse: true}, func(_ *authority, c *target.Config) {
		c.OAuth.SubjectTokenType = "id_token"
	})
	used := a.token(nil)
	if _, err := a.exchange(opened, used, map[string]any{"audience": "https://api.example", "scopes": "read"}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		token  string
		params map[string]any
		want   string
	}{
		"used":     {used, nil, "invalid_request: a parameter is missing, or one that it does not take; in a token exchange also: it does not accept the subject or actor token"},
		"expired":  {a.token(map[string]any{"exp": a.clock.now().Unix()}), nil, "invalid_request: a parameter is missing, or one that it does not take; in a token exchange also: it does not accept the subject or actor token"},
		"audience": {a.token(nil), map[string]any{"audience": "https://other.example"}, "invalid_target: audience or resource of the role is unknown there, or not for this client or subject"},
		"scope":    {a.token(nil), map[string]any{"scopes": "read,write"}, "invalid_scope: a scope of the role is unknown there, or more than this client or subject may have"},
	} {
		_, err := a.exchange(opened, c.token, c.params)
		wantError(t, name, err, target.ErrDenied, denied+c.want+" (status 400)")
	}
	a.config.OAuth.ClientSecret = "wrong"
	stranger := a.open()
	const client = "it refused: invalid_client: it does not accept the engine as its client; look at client_auth, client_id and the secret or key there (status 401)"
	_, err := a.exchange(stranger, a.token(nil), nil)
	wantError(t, "client", err, target.ErrDenied, "exchange: denied by the target: "+client)
	wantError(t, "client, check", stranger.Check(t.Context()), target.ErrDenied, "check: denied by the target: "+client)
	wantError(t, "client, revoke", stranger.Revoke(t.Context(), target.Handle{Secret: "x"}), target.ErrDenied, "revoke: denied by the target: "+client)
	if got := len(a.Live()); got != 1 {
		t.Errorf("%d tokens live; want the first alone", got)
	}
}

// What is asked for reaches the server, and the actor is who the engine is.
func TestOAuthAsksForWhatTheRoleSays(t *testing.T) {
	t.Parallel()
	a, opened := newAuthority(t, lab.OAuthOptions{}, func(_ *authority, c *target.Config) { c.OAuth.SPIFFEID = supervisorID })
	key, err := a.exchange(opened, a.token(nil), map[string]any{"audience": "https://api.example", "resource": []any{"https://a.example/x", "urn:b"}, "scopes": "read,write",
		"requested_token_type": "urn:ietf:params:oauth:token-type:jwt", "actor_token_source": "svid"})
	if err != nil {
		t.Fatal(err)
	}
	live := a.Live()[0]
	want := lab.OAuthToken{ID: live.ID, Client: "the engine", Subject: "jim", Actor: supervisorID, Audience: []string{"https://api.example", "https://a.example/x", "urn:b"},
		Scope: "read write", ExpiresAt: live.ExpiresAt}
	if diff := cmp.Diff(want, live); diff != "" {
		t.Error(diff)
	}
	if key.Header != "Bearer "+key.Secret || key.Fields["scope"] != "read write" {
		t.Errorf("header %v, fields %v", key.Header == "Bearer "+key.Secret, key.Fields)
	}
	_, err = a.exchange(opened, a.token(nil), map[string]any{"actor_token_source": "file"})
	wantError(t, "no such token", err, target.ErrParameter, "exchange: request cannot be made: no token of the engine's own from file")
	if _, err = a.exchange(opened, a.token(nil), map[string]any{"actor_token_source": "none"}); err != nil {
		t.Error(err)
	}
}

// An engine without a token of its own for now has sent nothing, and says that later may help.
func TestOAuthOwnTokenUnavailable(t *testing.T) {
	t.Parallel()
	a, opened := newAuthority(t, lab.OAuthOptions{}, func(_ *authority, c *target.Config) {
		c.OAuth = target.OAuth{ClientAuth: "svid_jwt_bearer", OwnToken: func(context.Context, string, string, string) (string, error) { return "", target.ErrBusy }}
	})
	_, err := a.exchange(opened, a.token(nil), nil)
	wantError(t, "busy", err, target.ErrBusy, "exchange: target is busy: no token of the engine's own from svid")
	wantError(t, "revoke", opened.Revoke(t.Context(), target.Handle{Secret: "x"}), target.ErrBusy, "revoke: target is busy: no token of the engine's own from svid")
	if a.Calls(lab.OpGrant)+a.Calls(lab.OpRevoke) != 0 {
		t.Error("something was sent")
	}
}

// While the server asks to be left alone, nothing is issued, and what revokes waits for its turn instead of giving up.
func TestOAuthRevokingWaits(t *testing.T) {
	t.Parallel()
	a, opened := newAuthority(t, lab.OAuthOptions{}, func(a *authority, c *target.Config) {
		c.Audience, c.OAuth.TokenURL, c.OAuth.RevocationURL = a.Issuer(), a.Issuer()+"/token", a.Issuer()+"/revoke"
	})
	a.Fault(lab.OpGrant, lab.Fault{Kind: lab.KindStatus, Status: 429, RetryAfter: time.Minute})
	_, err := a.exchange(opened, a.token(nil), nil)
	wantError(t, "busy", err, target.ErrBusy, "exchange: target is busy: try again later (status 429)")
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // who waits sees it, and who gives up does not come to that
	_, err = opened.Exchange(ctx, target.Request{SubjectToken: "x"})
	wantError(t, "paused", err, target.ErrBusy, "exchange: target is busy: the target asked to be left alone")
	wantError(t, "waits", opened.Revoke(ctx, target.Handle{Secret: "x"}), target.ErrBusy, "revoke: target is busy: no turn in time")
}

// What is introspected alone is kept for that.
func TestOAuthIntrospectsAlone(t *testing.T) {
	t.Parallel()
	a, opened := newAuthority(t, lab.OAuthOptions{}, func(_ *authority, c *target.Config) {
		c.OAuth.RevocationURL, c.OAuth.IntrospectionURL = "none", "discover"
	})
	key, err := a.exchange(opened, a.token(nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	if end, err := opened.Renew(t.Context(), key.Handle, time.Time{}); err != nil || !end.Equal(key.Expiry) {
		t.Errorf("Renew: %v, %v", end, err)
	}
}

// hops makes two servers, of which the second trusts the first, and a target with a chain over both.
func hops(t *testing.T, chain string) (first, second *authority, opened *target.Target) {
	t.Helper()
	first, _ = newAuthority(t, lab.OAuthOptions{Clients: []lab.OAuthClient{{ID: gatewayID, Method: "jwt-bearer"}}}, nil)
	second, opened = newAuthority(t, lab.OAuthOptions{Issuers: []string{first.Issuer()}, Domain: first.agent.Domain, Clients: []lab.OAuthClient{{ID: supervisorID, Method: "jwt-bearer"}}}, func(_ *authority, c *target.Config) {
		c.Audience = first.Issuer()
		c.OAuth = target.OAuth{ClientAuth: "svid_jwt_bearer", SPIFFEID: supervisorID, OwnToken: first.ownToken, TokenHosts: []string{strings.TrimPrefix(first.Issuer(), "https://")},
			Chain: strings.ReplaceAll(chain, "FIRST", first.Issuer()+"/token")}
	})
	return first, second, opened
}

// As in OpenShell: the gateway exchanges the user's token for one that is for the supervisor's SPIFFE ID, and the supervisor
// that one for the resource's.
func TestOAuthTwoHops(t *testing.T) {
	t.Parallel()
	first, second, opened := hops(t, `[{"token_url": "FIRST", "spiffe_id": "`+gatewayID+`"}]`)
	if diff := cmp.Diff([]string{strings.TrimPrefix(first.Issuer(), "https://")}, opened.SubjectHosts()); diff != "" {
		t.Errorf("hosts that get the subject token: %s", diff)
	}
	key, err := second.exchange(opened, first.token(nil), map[string]any{"audience": "https://api.example", "scopes": "read"})
	if err != nil {
		t.Fatal(err)
	}
	asked := first.Asked()[0]
	if asked.Get("audience") != supervisorID || asked.Has("scope") || asked.Has("client_id") || asked.Get("requested_token_type") != tokenTypes+"access_token" {
		t.Errorf("hop 1 asks for %q, scope %q", asked.Get("audience"), asked.Get("scope"))
	}
	if asked := second.Asked()[0]; asked.Get("subject_token_type") != tokenTypes+"access_token" {
		t.Errorf("hop 2 presents %q", asked.Get("subject_token_type"))
	}
	if got := second.Live()[0]; got.Subject != "jim" || got.Client != supervisorID || !cmp.Equal(got.Audience, []string{"https://api.example"}) || !second.Valid(key.Secret) {
		t.Errorf("got %+v", got)
	}
	if err := opened.Revoke(t.Context(), key.Handle); err != nil || second.Valid(key.Secret) {
		t.Errorf("Revoke: %v", err)
	}
}

// Which hop failed is said, and what that means for a key.
func TestOAuthHopsFail(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		hurt    func(first, second *authority)
		outcome error
		want    string
	}{
		"first refuses":   {func(f, _ *authority) { f.Fault(lab.OpGrant, lab.Fault{Kind: lab.KindStatus, Status: 403}) }, target.ErrDenied, `denied by the target: hop 1 of 2: it refused: it says "injected fault" (status 403)`},
		"second refuses":  {func(_, s *authority) { s.Fault(lab.OpGrant, lab.Fault{Kind: lab.KindStatus, Status: 403}) }, target.ErrDenied, `denied by the target: hop 2 of 2: it refused: it says "injected fault" (status 403)`},
		"second is busy":  {func(_, s *authority) { s.Fault(lab.OpGrant, lab.Fault{Kind: lab.KindStatus, Status: 503}) }, target.ErrDenied, "denied by the target: hop 2 of 2: try again later, with another subject token (status 503)"},
		"first is lost":   {func(f, _ *authority) { f.Fault(lab.OpGrant, lab.Fault{Kind: lab.KindCut, After: true}) }, target.ErrUnknown, "outcome is unknown: hop 1 of 2: the connection failed"},
		"second is lost":  {func(_, s *authority) { s.Fault(lab.OpGrant, lab.Fault{Kind: lab.KindCut, After: true}) }, target.ErrUnknown, "outcome is unknown: hop 2 of 2: the connection failed"},
		"first is broken": {func(f, _ *authority) { f.Fault(lab.OpGrant, lab.Fault{Kind: lab.KindNoSecret}) }, target.ErrProtocol, "target's answer makes no sense: hop 1 of 2: no access_token in the answer"},
		"second redirects": {func(_, s *authority) {
			s.Fault(lab.OpGrant, lab.Fault{Kind: lab.KindRedirect, Location: "https://evil.example"})
		}, target.ErrUnknown, "outcome is unknown: hop 2 of 2: it redirects, and redirects are not followed; correct the target's url (status 302)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, second, opened := hops(t, `[{"token_url": "FIRST", "spiffe_id": "`+gatewayID+`"}]`)
			c.hurt(first, second)
			_, err := second.exchange(opened, first.token(nil), nil)
			wantError(t, name, err, c.outcome, "exchange: "+c.want)
			if strings.HasPrefix(name, "first") && second.Calls(lab.OpGrant) > 0 {
				t.Error("the second hop was made")
			}
		})
	}
}
