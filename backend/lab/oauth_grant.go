// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	tokenTypes      = "urn:ietf:params:oauth:token-type:"
	typeAccessToken = tokenTypes + "access_token"
	typeJWT         = tokenTypes + "jwt"
)

// grant makes a token, or returns the RFCs' error code for why not.
func (a *OAuth) grant(w http.ResponseWriter, form url.Values, c OAuthClient) {
	t := OAuthToken{ID: randomHex(16), Client: c.ID, Subject: c.ID, ExpiresAt: a.now().Add(a.o.Life).Truncate(time.Second).UTC()}
	kind, grant := typeAccessToken, form.Get("grant_type")
	var refused string
	switch {
	case c.Grants != nil && !slices.Contains(c.Grants, grant):
		refused = "unauthorized_client"
	case grant == grantExchange:
		kind, refused = a.exchange(form, &t)
	case grant == grantBearer:
		t.Subject, refused = a.subject(form.Get("assertion"), c.ID)
		if refused != "" {
			refused = "invalid_grant" // RFC 7523 section 3.1
		}
	case grant == grantClient && c.Method == "none": // RFC 6749 section 4.4: confidential clients only
		refused = "unauthorized_client"
	case grant != grantClient:
		refused = "unsupported_grant_type"
	}
	if refused == "" {
		refused = a.aim(form, &t)
	}
	if refused != "" {
		writeError(w, http.StatusBadRequest, refused)
		return
	}
	body := map[string]any{"access_token": a.make(t, form), "token_type": "Bearer", "expires_in": int(a.o.Life / time.Second), "scope": t.Scope}
	if grant == grantExchange {
		body["issued_token_type"] = kind
	}
	if t.Scope == "" {
		delete(body, "scope")
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, http.StatusOK, a.without(body))
}

// exchange reads the parameters that only a token exchange has. The error for a bad token there is invalid_request (RFC 8693
// section 2.2.2).
func (a *OAuth) exchange(form url.Values, t *OAuthToken) (kind, refused string) {
	kind = form.Get("requested_token_type")
	if kind == "" {
		kind = typeAccessToken
	}
	known := []string{typeAccessToken, typeJWT, tokenTypes + "id_token"}
	if !slices.Contains(known[:2], kind) || !slices.Contains(known, form.Get("subject_token_type")) {
		return "", "invalid_request"
	}
	if t.Subject, refused = a.subject(form.Get("subject_token"), t.Client); refused != "" {
		return "", refused
	}
	if form.Has("actor_token") != form.Has("actor_token_type") {
		return "", "invalid_request"
	}
	if form.Has("actor_token") {
		t.Actor, refused = a.subject(form.Get("actor_token"), t.Client)
	}
	return kind, refused
}

// subject verifies a token that stands for somebody (an assertion, subject token or actor token) and returns its sub. A token
// from outside must be for this server; one that an authorization server made must be for the client that presents it.
func (a *OAuth) subject(token, client string) (sub, refused string) {
	const bad = "invalid_request"
	claims, ok := parseClaims(token)
	if !ok || claims.text("sub") == "" {
		return "", bad
	}
	if svid, ok := a.svid(token); ok {
		return svid.text("sub"), ""
	}
	keys, ok := a.keysOf(claims.text("iss"))
	now := a.now()
	exp, hasExp := claims.time("exp")
	if !ok || !signedBy(keys, token, asymmetric) || !hasExp || !exp.After(now) {
		return "", bad
	}
	if aud := claims.audiences(); len(aud) != 1 || aud[0] != any(client) && !a.isForMe(claims) {
		return "", bad
	}
	if claims.text("client_id") != "" && !slices.Contains(claims.audiences(), any(client)) {
		return "", bad // an access token that was made for somebody else
	}
	if a.o.SingleUse && !a.first(token) {
		return "", bad
	}
	return claims.text("sub"), ""
}

// keysOf returns the keys of a trusted issuer.
func (a *OAuth) keysOf(issuer string) (keys jose.JSONWebKeySet, ok bool) {
	if issuer == a.Issuer() {
		return keys, json.Unmarshal(a.signer.keySet(), &keys) == nil
	}
	if !slices.Contains(a.o.Issuers, issuer) {
		return keys, false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	keys, err := fetchKeys(ctx, a.o.Client, issuer)
	return keys, err == nil
}

// aim reads the audience, resource and scope that a token is requested for.
func (a *OAuth) aim(form url.Values, t *OAuthToken) (refused string) {
	t.Scope = form.Get("scope")
	for scope := range strings.FieldsSeq(t.Scope) {
		if a.o.Scopes != nil && !slices.Contains(a.o.Scopes, scope) {
			return "invalid_scope"
		}
	}
	for _, resource := range form["resource"] {
		if u, err := url.Parse(resource); err != nil || !u.IsAbs() || u.Fragment != "" { // RFC 8707 section 2
			return "invalid_target"
		}
	}
	t.Audience = slices.Concat(form["audience"], form["resource"])
	for _, audience := range t.Audience {
		if a.o.Audiences != nil && !slices.Contains(a.o.Audiences, audience) {
			return "invalid_target"
		}
	}
	if len(t.Audience) == 0 {
		t.Audience = []string{a.Issuer()}
	}
	return ""
}

// make signs a token and adds it to the inventory.
func (a *OAuth) make(t OAuthToken, form url.Values) string {
	claims := map[string]any{
		"iss": a.Issuer(), "sub": t.Subject, "aud": t.Audience, "client_id": t.Client, "azp": t.Client,
		"iat": a.now().Unix(), "exp": t.ExpiresAt.Unix(), "jti": t.ID, "scope": t.Scope,
	}
	if t.Actor != "" {
		claims["act"] = map[string]string{"sub": t.Actor}
	}
	token := a.signer.Sign(map[string]any{"typ": "at+jwt"}, mustJSON(claims))
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dropExpired()
	a.tokens, a.asked = append(a.tokens, oauthHeld{t, token}), append(a.asked, form)
	return token
}
