// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"mime"
	"net/http"
	"slices"
	"time"
)

// Names from RFC 8693, and Connect's own.
const (
	tokenExchangeGrant = "urn:ietf:params:oauth:grant-type:token-exchange"
	idTokenType        = "urn:ietf:params:oauth:token-type:id_token"
	accessTokenType    = "urn:ietf:params:oauth:token-type:access_token"
	connectKeyType     = "urn:posit:connect:api-key"
)

// oauthError is a refusal of an exchange (RFC 6749 section 5.2).
type oauthError struct{ code, description string }

func (c *Connect) metadata(w http.ResponseWriter, r *http.Request) {
	if c.o.NoOAuth {
		http.NotFound(w, r)
		return
	}
	scheme := "https"
	if r.TLS == nil {
		scheme = "http"
	}
	base := scheme + "://" + r.Host + c.o.Path
	endpoint := base + "/oauth/v1/token"
	if c.o.TokenQuery != "" {
		endpoint += "?" + c.o.TokenQuery
	}
	document := map[string]any{
		"issuer": base, "token_endpoint": endpoint, "authorization_endpoint": base + "/oauth/v1/authorize",
		"response_types_supported": []string{"code"}, "token_endpoint_auth_methods_supported": []string{"none"},
	}
	if c.o.GrantTypes != nil {
		document["grant_types_supported"] = c.o.GrantTypes
	}
	writeJSON(w, http.StatusOK, document)
}

// token is the OAuth server: a token that fits exactly one trusted publisher gets a key of its service principal.
func (c *Connect) token(w http.ResponseWriter, r *http.Request) {
	if c.o.NoOAuth || r.URL.RawQuery != c.o.TokenQuery {
		http.NotFound(w, r)
		return
	}
	claims, refused := c.subject(r, accessTokenType)
	var fits []ConnectPublisher
	if refused == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, p := range c.publishers {
			if p.fits(claims) {
				fits = append(fits, p)
			}
		}
		switch {
		case len(fits) == 0:
			refused = &oauthError{"invalid_grant", "no service principal found"}
		case len(fits) > 1:
			refused = &oauthError{"invalid_grant", "ambiguous match"}
		}
	}
	if refused != nil {
		refused.write(w)
		return
	}
	c.issue(w, ConnectKey{Principal: fits[0].Name, Role: "publisher"}, accessTokenType)
}

func (p ConnectPublisher) fits(claims tokenClaims) bool {
	if !slices.Contains(claims.audiences(), any(p.Audience)) {
		return false
	}
	for name, want := range p.Claims {
		if claims.text(name) != want {
			return false
		}
	}
	return true
}

// federate issues a key of an existing user. Without an audience there must be exactly one integration.
func (c *Connect) federate(w http.ResponseWriter, r *http.Request) {
	claims, refused := c.subject(r, connectKeyType)
	if refused != nil {
		refused.write(w)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.integrations) == 0 {
		connectError(w, http.StatusNotFound, connectNotFound, "The requested object does not exist.")
		return
	}
	i := slices.IndexFunc(c.integrations, func(i ConnectIntegration) bool { return i.GUID == r.PostForm.Get("audience") })
	if !r.PostForm.Has("audience") && len(c.integrations) == 1 {
		i = 0
	}
	if i < 0 {
		(&oauthError{"invalid_target", "no such integration"}).write(w)
		return
	}
	integration := c.integrations[i]
	for _, u := range c.users {
		if slices.Contains(claims.audiences(), any(integration.Audience)) && claims.text(integration.MatchClaim) == u.Username {
			c.issue(w, ConnectKey{User: u.GUID, Role: u.Role, Name: "federated"}, connectKeyType)
			return
		}
	}
	(&oauthError{"invalid_grant", "no user found"}).write(w)
}

// issue makes a key and answers with it. The caller holds mu.
func (c *Connect) issue(w http.ResponseWriter, k ConnectKey, kind string) {
	k.ExpiresAt = c.now().Add(c.o.KeyTTL).UTC()
	made := c.add(k, "connect-"+randomHex(16))
	answer := map[string]any{"access_token": made.secret, "token_type": "Key", "issued_token_type": kind}
	if !c.o.NoExpiry {
		answer["expires_in"] = int(c.o.KeyTTL / time.Second)
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, http.StatusOK, answer)
}

func (e *oauthError) write(w http.ResponseWriter) {
	writeJSON(w, http.StatusBadRequest, map[string]string{"error": e.code, "error_description": e.description})
}

// subject checks an exchange's form and its token, and returns the token's claims.
func (c *Connect) subject(r *http.Request, requested string) (tokenClaims, *oauthError) {
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "application/x-www-form-urlencoded" || r.ParseForm() != nil || repeats(r.PostForm) {
		return nil, &oauthError{"invalid_request", "want a form in which nothing is repeated"}
	}
	switch {
	case r.PostForm.Get("grant_type") != tokenExchangeGrant:
		return nil, &oauthError{"unsupported_grant_type", "want a token exchange"}
	case r.PostForm.Get("subject_token_type") != idTokenType:
		return nil, &oauthError{"invalid_request", "subject_token_type: want an ID token"}
	case r.PostForm.Get("requested_token_type") != requested:
		return nil, &oauthError{"invalid_request", "requested_token_type: not issued here"}
	case r.PostForm.Get("subject_token") == "":
		return nil, &oauthError{"invalid_request", "subject_token: missing"}
	}
	return c.verify(r.Context(), r.PostForm.Get("subject_token"))
}

func (c *Connect) verify(ctx context.Context, token string) (tokenClaims, *oauthError) {
	claims, ok := parseClaims(token)
	if !ok || !slices.Contains(c.o.Issuers, claims.text("iss")) {
		return nil, &oauthError{"invalid_grant", "could not verify token issuer"}
	}
	if checkSignature(ctx, c.o.Client, claims.text("iss"), token, asymmetric) != nil {
		return nil, &oauthError{"invalid_grant", "could not verify token signature"}
	}
	if end, has := claims.time("exp"); !has || !end.After(c.now()) {
		return nil, &oauthError{"invalid_grant", "could not verify token: it has expired"}
	}
	return claims, nil
}
