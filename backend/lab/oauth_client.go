// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"crypto/subtle"
	"encoding/json"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const assertionTypes = "urn:ietf:params:oauth:client-assertion-type:"

// maxAssertionLife is how far in the future a client's assertion may expire.
const maxAssertionLife = 10 * time.Minute

// asClient reads the form of a request and lets through only known clients.
func (a *OAuth) asClient(next func(http.ResponseWriter, url.Values, OAuthClient)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if err != nil || media != "application/x-www-form-urlencoded" || r.ParseForm() != nil || repeatsBut(r.PostForm, "resource", "audience") {
			writeError(w, http.StatusBadRequest, "invalid_request")
			return
		}
		id, method := presented(r)
		i := slices.IndexFunc(a.o.Clients, func(c OAuthClient) bool { return c.ID == id && c.Method == method })
		if i < 0 || !a.isClient(r, a.o.Clients[i]) {
			w.Header().Set("WWW-Authenticate", "Basic")
			writeError(w, http.StatusUnauthorized, "invalid_client")
			return
		}
		next(w, r.PostForm, a.o.Clients[i])
	}
}

// repeatsBut reports whether a parameter occurs more than once, except those that may.
func repeatsBut(form url.Values, may ...string) bool {
	for name, values := range form {
		if len(values) > 1 && !slices.Contains(may, name) {
			return true
		}
	}
	return false
}

// presented returns the client that a request claims to be from, and the method; "" if it uses two (RFC 6749 section 2.3).
func presented(r *http.Request) (id, method string) {
	form := r.PostForm
	basicID, _, basic := r.BasicAuth()
	secret, assertion := form.Has("client_secret"), form.Has("client_assertion")
	switch {
	case basic && (secret || assertion) || secret && assertion:
		return "", ""
	case basic:
		return unescape(basicID), "client_secret_basic"
	case secret:
		return form.Get("client_id"), "client_secret_post"
	case assertion:
		claims, _ := parseClaims(form.Get("client_assertion"))
		id = claims.text("sub")
		if form.Has("client_id") && form.Get("client_id") != id { // RFC 7521 section 4.2
			return "", ""
		}
		switch kind := form.Get("client_assertion_type"); {
		case kind == assertionTypes+"jwt-spiffe":
			return id, "jwt-spiffe"
		case kind == assertionTypes+"jwt-bearer" && domainOf(id) != "" && id != domainOf(id):
			return id, "jwt-bearer"
		case kind == assertionTypes+"jwt-bearer":
			return id, "private_key_jwt"
		}
		return "", ""
	case r.TLS != nil && len(r.TLS.PeerCertificates) > 0:
		return form.Get("client_id"), "tls_client_auth"
	}
	return form.Get("client_id"), "none"
}

// isClient verifies the client's credential in the request.
func (a *OAuth) isClient(r *http.Request, c OAuthClient) bool {
	same := func(given string) bool { return subtle.ConstantTimeCompare([]byte(given), []byte(c.Secret)) == 1 }
	assertion := r.PostForm.Get("client_assertion")
	switch c.Method {
	case "none":
		return true
	case "client_secret_basic":
		_, secret, _ := r.BasicAuth()
		return same(unescape(secret))
	case "client_secret_post":
		return same(r.PostForm.Get("client_secret"))
	case "tls_client_auth":
		return r.TLS.PeerCertificates[0].Subject.CommonName == c.ID
	case "private_key_jwt":
		claims, _ := parseClaims(assertion)
		return signedBy(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: c.Key, KeyID: c.KeyID}}}, assertion, asymmetric) &&
			claims.text("iss") == c.ID && a.current(claims) && a.isForMe(claims) && claims.text("jti") != "" && a.first(c.ID+" "+claims.text("jti"))
	}
	claims, ok := a.svid(assertion)
	return ok && claims.text("sub") == c.ID
}

// svid checks a JWT-SVID by the keys of its trust domain.
func (a *OAuth) svid(token string) (tokenClaims, bool) {
	claims, ok := parseClaims(token)
	if !ok || a.o.Domain == nil || domainOf(claims.text("sub")) == "" {
		return nil, false
	}
	var keys jose.JSONWebKeySet
	if json.Unmarshal(a.o.Domain(domainOf(claims.text("sub"))).keySet(), &keys) != nil {
		return nil, false
	}
	return claims, signedBy(keys, token, asymmetric) && a.current(claims) && a.isForMe(claims)
}

// current reports whether a token is valid now and does not end too far in the future.
func (a *OAuth) current(claims tokenClaims) bool {
	now := a.now()
	exp, hasExp := claims.time("exp")
	nbf, hasNbf := claims.time("nbf")
	return hasExp && exp.After(now) && exp.Before(now.Add(maxAssertionLife+time.Second)) && !(hasNbf && nbf.After(now))
}

// isForMe reports whether a token's only audience is this server, named by its issuer or its token endpoint.
func (a *OAuth) isForMe(claims tokenClaims) bool {
	aud := claims.audiences()
	return len(aud) == 1 && (aud[0] == any(a.Issuer()) || aud[0] == any(a.Issuer()+"/token"))
}
