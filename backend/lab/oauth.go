// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"cmp"
	"crypto"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// The grants of an OAuth server.
const (
	grantExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	grantClient   = "client_credentials"
	grantBearer   = "urn:ietf:params:oauth:grant-type:jwt-bearer"
)

// Places of an OAuth server's metadata document, for an issuer with a path.
const (
	PlaceInserted = "inserted" // /.well-known/oauth-authorization-server/path (RFC 8414)
	PlaceAppended = "appended" // /path/.well-known/oauth-authorization-server
	PlaceOpenID   = "openid"   // /path/.well-known/openid-configuration
)

// OAuthOptions configures an OAuth server. What is not in a list of clients, issuers, audiences or scopes is refused.
type OAuthOptions struct {
	Path      string                    // path of the issuer, such as /realms/acme; "" = none
	Clients   []OAuthClient             //
	Issuers   []string                  // whose subject and actor tokens are accepted, found by discovery; the server's own are always accepted
	Client    *http.Client              // fetches their discovery documents and keys; nil = http.DefaultClient
	Domain    func(name string) *Issuer // the authority of a trust domain, see WorkloadAPI.Domain; nil = no SVID is accepted
	Audiences []string                  // for which it makes tokens; nil = any
	Scopes    []string                  // nil = any
	Algorithm string                    // signature algorithm of its tokens; "" = ES256
	Life      time.Duration             // lifetime of its tokens, whole seconds; 0 = 5 minutes
	SingleUse bool                      // a subject token is accepted only once
	Places    []string                  // where its metadata document is; nil = PlaceInserted and PlaceOpenID
	Without   []string                  // members left out of its document and answers: expires_in, token_type, grant_types_supported, …
	Now       func() time.Time
}

// OAuthClient is a client of an OAuth server.
type OAuthClient struct {
	ID     string
	Method string           // none, client_secret_basic, client_secret_post, private_key_jwt, tls_client_auth, or the type of assertion by which its SVID comes: jwt-bearer or jwt-spiffe
	Secret string           //
	Key    crypto.PublicKey // for private_key_jwt
	KeyID  string           // the kid of Key
	Grants []string         // which it may use; nil = all
}

// OAuthToken is a token as the inventory of an OAuth server shows it: without the token.
type OAuthToken struct {
	ID        string    `json:"id"`
	Client    string    `json:"client"`
	Subject   string    `json:"subject"`
	Actor     string    `json:"actor,omitempty"`
	Audience  []string  `json:"audience"`
	Scope     string    `json:"scope"`
	ExpiresAt time.Time `json:"expires_at"` // UTC
}

// OAuth is a stand-in for an OAuth 2.0 authorization server:
//
//	GET  the metadata document (RFC 8414, OpenID Connect Discovery), see Places, and GET <path>/jwks
//	POST <path>/token       token exchange (RFC 8693), client credentials, JWT bearer (RFC 7523)
//	POST <path>/revoke      RFC 7009
//	POST <path>/introspect  RFC 7662
//	GET  <path>/api         with Authorization: Bearer <token> -> 200 while the token lives
//	GET  /lab/tokens        -> 200 {"tokens":[…]}, the inventory, open to all
//	POST /lab/faults, DELETE /lab/faults, see Control
//
// Refusals are those of RFC 6749 section 5.2, RFC 8693 section 2.2.2 and RFC 7009 section 2.2.1. Callers must be clients of
// the server and authenticate by their one registered method. In Basic, id and secret are form-encoded. A signed assertion
// must name this server, live at most ten minutes and be used once; the sub of an SVID must be the client. A subject token
// from outside must name this server as its only aud; one that an authorization server made must name the client that
// presents it, so that tokens can pass from hop to hop. Tokens are JWTs (RFC 9068). Make one with NewOAuth.
type OAuth struct {
	Control
	mux    *http.ServeMux
	o      OAuthOptions
	signer *Issuer
	now    func() time.Time

	mu     sync.Mutex
	base   string
	tokens []oauthHeld     // in the order in which they were made
	used   map[string]bool // client and jti of assertions; whole subject tokens
	asked  []url.Values
}

// oauthHeld is a live token.
type oauthHeld struct {
	OAuthToken
	token string
}

// NewOAuth makes an OAuth server without tokens. Its URL is set with SetURL.
func NewOAuth(o OAuthOptions) *OAuth {
	if o.Client == nil {
		o.Client = http.DefaultClient
	}
	if o.Life == 0 {
		o.Life = 5 * time.Minute
	}
	if o.Places == nil {
		o.Places = []string{PlaceInserted, PlaceOpenID}
	}
	a := &OAuth{
		Control: Control{ops: []string{OpDiscovery, OpJWKS, OpGrant, OpRevoke, OpIntrospect, OpUse}},
		mux:     http.NewServeMux(), o: o, now: clock(o.Now), used: make(map[string]bool),
		signer: NewIssuer(IssuerOptions{Algorithm: cmp.Or(o.Algorithm, "ES256"), Now: o.Now}),
	}
	for place, path := range map[string]string{
		PlaceInserted: "/.well-known/oauth-authorization-server" + o.Path, PlaceAppended: o.Path + "/.well-known/oauth-authorization-server",
		PlaceOpenID: o.Path + "/.well-known/openid-configuration",
	} {
		if slices.Contains(o.Places, place) && (place != PlaceAppended || o.Path != "") {
			a.mux.HandleFunc("GET "+path, a.handle(OpDiscovery, a.document))
		}
	}
	a.mux.HandleFunc("GET "+o.Path+"/jwks", a.handle(OpJWKS, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(a.signer.keySet()) }))
	a.mux.HandleFunc("POST "+o.Path+"/token", a.handle(OpGrant, a.asClient(a.grant)))
	a.mux.HandleFunc("POST "+o.Path+"/revoke", a.handle(OpRevoke, a.asClient(a.revoke)))
	a.mux.HandleFunc("POST "+o.Path+"/introspect", a.handle(OpIntrospect, a.asClient(a.introspect)))
	a.mux.HandleFunc("GET "+o.Path+"/api", a.handle(OpUse, a.use))
	a.mux.HandleFunc("GET /lab/tokens", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"tokens": a.Live()})
	})
	a.mount(a.mux)
	return a
}

// ServeHTTP implements http.Handler.
func (a *OAuth) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// SetURL sets the URL at which the server listens, without the issuer's path.
func (a *OAuth) SetURL(base string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.base = base
	a.signer.SetURL(base + a.o.Path)
}

// Issuer returns the issuer identifier.
func (a *OAuth) Issuer() string { return a.signer.URL() }

// Live returns the tokens that live now, oldest first; never nil.
func (a *OAuth) Live() []OAuthToken {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dropExpired()
	live := make([]OAuthToken, 0, len(a.tokens))
	for _, t := range a.tokens {
		live = append(live, t.OAuthToken)
	}
	return live
}

// Valid reports whether token is a live token of this server.
func (a *OAuth) Valid(token string) bool {
	_, ok := a.lookup(token)
	return ok
}

// Asked returns the forms by which tokens were made, oldest first.
func (a *OAuth) Asked() []url.Values {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.asked)
}

func (a *OAuth) document(w http.ResponseWriter, _ *http.Request) {
	at := a.Issuer()
	writeJSON(w, http.StatusOK, a.without(map[string]any{
		"issuer": at, "jwks_uri": at + "/jwks", "token_endpoint": at + "/token", "revocation_endpoint": at + "/revoke", "introspection_endpoint": at + "/introspect",
		"grant_types_supported":                 []string{grantExchange, grantClient, grantBearer},
		"token_endpoint_auth_methods_supported": []string{"none", "client_secret_basic", "client_secret_post", "private_key_jwt", "tls_client_auth"},
		"response_types_supported":              []string{},
	}))
}

// without removes the members that OAuthOptions.Without names.
func (a *OAuth) without(object map[string]any) map[string]any {
	for _, name := range a.o.Without {
		delete(object, name)
	}
	return object
}

// revoke ends a token; it succeeds also for a token that does not exist. Only the client that a token was made for may end
// it.
func (a *OAuth) revoke(w http.ResponseWriter, form url.Values, c OAuthClient) {
	token := form.Get("token")
	if token == "" {
		writeError(w, http.StatusBadRequest, "invalid_request")
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.tokens, func(t oauthHeld) bool { return t.token == token })
	if i >= 0 && a.tokens[i].Client != c.ID {
		writeError(w, http.StatusBadRequest, "unauthorized_client")
		return
	}
	if i >= 0 {
		a.tokens = slices.Delete(a.tokens, i, i+1)
	}
	w.WriteHeader(http.StatusOK)
}

func (a *OAuth) introspect(w http.ResponseWriter, form url.Values, _ OAuthClient) {
	t, ok := a.lookup(form.Get("token"))
	switch {
	case form.Get("token") == "":
		writeError(w, http.StatusBadRequest, "invalid_request")
	case !ok:
		writeJSON(w, http.StatusOK, map[string]any{"active": false})
	default:
		writeJSON(w, http.StatusOK, a.without(map[string]any{
			"active": true, "client_id": t.Client, "sub": t.Subject, "aud": t.Audience, "scope": t.Scope, "iss": a.Issuer(), "exp": t.ExpiresAt.Unix(), "token_type": "Bearer",
		}))
	}
}

func (a *OAuth) use(w http.ResponseWriter, r *http.Request) {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	t, ok := a.lookup(token)
	if !ok {
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		writeError(w, http.StatusUnauthorized, "invalid_token")
		return
	}
	writeJSON(w, http.StatusOK, t)
}

func (a *OAuth) lookup(token string) (OAuthToken, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dropExpired()
	for _, t := range a.tokens {
		if t.token == token {
			return t.OAuthToken, true
		}
	}
	return OAuthToken{}, false
}

// dropExpired removes expired tokens. The caller holds mu.
func (a *OAuth) dropExpired() {
	now := a.now()
	a.tokens = slices.DeleteFunc(a.tokens, func(t oauthHeld) bool { return !t.ExpiresAt.After(now) })
}

// first reports whether something that may be used once has not been used before.
func (a *OAuth) first(what string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	seen := a.used[what]
	a.used[what] = true
	return !seen
}
