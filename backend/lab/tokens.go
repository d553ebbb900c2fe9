// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"crypto/subtle"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

// TokenEndpointOptions configures a TokenEndpoint.
type TokenEndpointOptions struct {
	Issuer       *Issuer       // signs the tokens; required
	ClientID     string        // the one client, with its secret; required
	ClientSecret string        //
	Audience     string        // aud of the tokens
	Life         time.Duration // of the tokens, whole seconds; 0 = 5 minutes
	NoExpiresIn  bool          // leave the optional member expires_in out
}

// TokenEndpoint is a stand-in for the token endpoint of an OAuth 2.0 server with one confidential client and one grant
// (RFC 6749 section 4.4):
//
//	POST /token    grant_type=client_credentials, as a form -> 200 {"access_token","token_type","expires_in"}
//	POST /lab/faults, DELETE /lab/faults, see Control
//
// The client authenticates by Basic or in the form, but not by both (section 2.3). Refusals are those of section 5.2. The
// token is a JWT (RFC 9068) with the requested scope. Make one with NewTokenEndpoint.
type TokenEndpoint struct {
	Control
	mux     *http.ServeMux
	options TokenEndpointOptions

	mu     sync.Mutex
	issued []string
	params []url.Values
}

// NewTokenEndpoint makes a TokenEndpoint. It panics if there is no issuer or client.
func NewTokenEndpoint(o TokenEndpointOptions) *TokenEndpoint {
	if o.Issuer == nil || o.ClientID == "" || o.ClientSecret == "" {
		panic("lab: token endpoint without an issuer or a client")
	}
	if o.Life == 0 {
		o.Life = 5 * time.Minute
	}
	e := &TokenEndpoint{Control: Control{ops: []string{OpGrant}}, mux: http.NewServeMux(), options: o}
	e.mux.HandleFunc("POST /token", e.handle(OpGrant, e.grant))
	e.mount(e.mux)
	return e
}

// ServeHTTP implements http.Handler.
func (e *TokenEndpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) { e.mux.ServeHTTP(w, r) }

// Issued returns the tokens that were made, oldest first.
func (e *TokenEndpoint) Issued() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.issued)
}

// Asked returns the forms of the requests that got a token, oldest first.
func (e *TokenEndpoint) Asked() []url.Values {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.params)
}

func (e *TokenEndpoint) grant(w http.ResponseWriter, r *http.Request) {
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "application/x-www-form-urlencoded" || r.ParseForm() != nil || repeats(r.PostForm) {
		writeError(w, http.StatusBadRequest, "invalid_request")
		return
	}
	id, secret, basic := r.BasicAuth()
	switch {
	case basic && r.PostForm.Has("client_secret"):
		writeError(w, http.StatusBadRequest, "invalid_request")
		return
	case basic:
		id, secret = unescape(id), unescape(secret)
	default:
		id, secret = r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
	}
	if id != e.options.ClientID || subtle.ConstantTimeCompare([]byte(secret), []byte(e.options.ClientSecret)) != 1 {
		w.Header().Set("WWW-Authenticate", "Basic")
		writeError(w, http.StatusUnauthorized, "invalid_client")
		return
	}
	if r.PostForm.Get("grant_type") != "client_credentials" {
		writeError(w, http.StatusBadRequest, "unsupported_grant_type")
		return
	}
	e.answer(w, r.PostForm)
}

func (e *TokenEndpoint) answer(w http.ResponseWriter, form url.Values) {
	now := e.options.Issuer.now()
	token := e.options.Issuer.Sign(map[string]any{"typ": "at+jwt"}, mustJSON(map[string]any{
		"iss": e.options.Issuer.URL(), "sub": e.options.ClientID, "client_id": e.options.ClientID, "aud": e.options.Audience,
		"iat": now.Unix(), "exp": now.Add(e.options.Life).Unix(), "jti": randomHex(16), "scope": form.Get("scope"),
	}))
	e.mu.Lock()
	e.issued, e.params = append(e.issued, token), append(e.params, form)
	e.mu.Unlock()
	body := map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": int(e.options.Life / time.Second)}
	if e.options.NoExpiresIn {
		delete(body, "expires_in")
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, http.StatusOK, body)
}

// repeats reports whether a parameter occurs twice, which section 3.2 forbids.
func repeats(form url.Values) bool {
	for _, values := range form {
		if len(values) > 1 {
			return true
		}
	}
	return false
}

// unescape undoes the form encoding that section 2.3.1 requires inside Basic; it returns "" if s is not encoded so, which
// matches no client.
func unescape(s string) string {
	plain, err := url.QueryUnescape(s)
	if err != nil {
		return ""
	}
	return plain
}
