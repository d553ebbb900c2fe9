// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// FinosGitProxyOptions configures a FinosGitProxy: the members of its apiAuthentication of type jwt.
type FinosGitProxyOptions struct {
	Disabled         bool // the API is open to all
	Unconfigured     bool // there is no jwtConfig
	AuthorityURL     string
	ClientID         string
	ExpectedAudience string // "" = ClientID

	// RoleMapping lists, for each role, the claims that give it. Only the first claim in the list is looked at.
	RoleMapping map[string][]FinosClaim

	Client *http.Client // reaches the authority; nil = http.DefaultClient
	Now    func() time.Time
}

// FinosClaim is a claim and the text that it must equal.
type FinosClaim struct{ Name, Value string }

// FinosGitProxy is a stand-in for the API of finos/git-proxy with JWT authentication. It issues nothing: callers
// authenticate with a token of its identity provider.
//
//	GET    /api/v1/healthcheck          -> 200, open to all
//	GET    /api/v1/repo, /push, /user   -> 200 [], for who presents a token
//	DELETE /api/v1/repo/{id}/delete     -> 200 {"message":"deleted"}, for the role admin; 401 JSON without it
//	POST   /lab/faults, DELETE /lab/faults, see Control
//
// Authorization may be "Bearer <token>" or "<token>", nothing else. The authority's discovery document and keys are fetched
// for each request. A token must have a kid that is in the keys, an RS256 signature, an exp in the future, ExpectedAudience
// among its audiences, exactly AuthorityURL as its issuer, and ClientID as its azp if it has one. A refusal is 401 with a
// text that ends with a line feed. A role is given by one claim that is a string and equals the mapping's; a list never
// gives one. There is no revocation: a token lives until its exp, whatever its issuer says. Left out: sessions, and all that
// git does. Make one with NewFinosGitProxy.
type FinosGitProxy struct {
	Control
	mux *http.ServeMux
	o   FinosGitProxyOptions
	now func() time.Time
}

// NewFinosGitProxy makes a FinosGitProxy.
func NewFinosGitProxy(o FinosGitProxyOptions) *FinosGitProxy {
	if o.Client == nil {
		o.Client = http.DefaultClient
	}
	p := &FinosGitProxy{Control: Control{ops: []string{OpUse}}, mux: http.NewServeMux(), o: o, now: clock(o.Now)}
	p.mux.HandleFunc("GET /api/v1/healthcheck", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"message": "ok"})
	})
	for _, what := range []string{"repo", "push", "user"} {
		p.mux.HandleFunc("GET /api/v1/"+what, p.handle(OpUse, p.authenticated(func(w http.ResponseWriter, _ []string) {
			writeJSON(w, http.StatusOK, []any{})
		})))
	}
	p.mux.HandleFunc("DELETE /api/v1/repo/{id}/delete", p.handle(OpUse, p.authenticated(func(w http.ResponseWriter, roles []string) {
		if !slices.Contains(roles, "admin") {
			writeJSON(w, http.StatusUnauthorized, map[string]string{"message": "You are not authorised to perform this action..."})
			return
		}
		writeJSON(w, http.StatusOK, map[string]string{"message": "deleted"})
	})))
	p.mount(p.mux)
	return p
}

// ServeHTTP implements http.Handler.
func (p *FinosGitProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.mux.ServeHTTP(w, r) }

// authenticated lets through callers who present a good token, with the roles that it gives. With authentication disabled
// there are no roles.
func (p *FinosGitProxy) authenticated(next func(w http.ResponseWriter, roles []string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		header := r.Header.Get("Authorization")
		var missing string
		switch {
		case p.o.Disabled:
			next(w, nil)
			return
		case header == "":
			writeHTML(w, http.StatusUnauthorized, "No token provided\n")
			return
		case p.o.Unconfigured:
			missing = "JWT configuration is missing\n"
		case p.o.AuthorityURL == "":
			missing = "OIDC authority URL is not configured\n"
		case p.o.ClientID == "":
			missing = "OIDC client ID is not configured\n"
		}
		if missing != "" {
			writeJSON(w, http.StatusInternalServerError, map[string]string{"message": missing})
			return
		}
		token := strings.Split(header, " ")[0]
		if parts := strings.Split(header, " "); len(parts) == 2 {
			token = parts[1]
		}
		claims, fault := p.verify(r.Context(), token)
		if fault != "" {
			writeHTML(w, http.StatusUnauthorized, "JWT validation failed: "+fault+"\n")
			return
		}
		next(w, p.roles(claims))
	}
}

// writeHTML answers with a text, as Express sends one.
func writeHTML(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text))
}

// verify checks a token; fault is the text with which finos/git-proxy refuses it, "" if it is good.
func (p *FinosGitProxy) verify(ctx context.Context, token string) (claims tokenClaims, fault string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	keys, err := p.keys(ctx)
	if err != nil {
		return nil, "Failed to fetch JWKS"
	}
	claims, ok := parseClaims(token)
	header := headerOf(token)
	if !ok || header.KeyID == "" {
		return nil, "Invalid JWT: Missing key ID (kid)"
	}
	found := keys.Key(header.KeyID)
	switch {
	case len(found) == 0:
		return nil, "No matching key found in JWKS"
	case strings.HasSuffix(token, "."):
		return nil, "jwt signature is required"
	case header.Algorithm != string(jose.RS256):
		return nil, "invalid algorithm"
	case !signedBy(jose.JSONWebKeySet{Keys: found[:1]}, token, []jose.SignatureAlgorithm{jose.RS256}):
		return nil, "invalid signature"
	}
	return claims, p.judge(claims)
}

// keys fetches the authority's keys, each time anew. The issuer that the discovery document names is not checked.
func (p *FinosGitProxy) keys(ctx context.Context) (keys jose.JSONWebKeySet, err error) {
	var document struct {
		JWKSURI string `json:"jwks_uri"`
	}
	if err = fetch(ctx, p.o.Client, p.o.AuthorityURL+"/.well-known/openid-configuration", &document); err == nil {
		err = fetch(ctx, p.o.Client, document.JWKSURI, &keys)
	}
	return keys, err
}

// jwtHeader is the part of a token's header that concerns its signature.
type jwtHeader struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
}

// headerOf reads a token's header without verifying it; it returns zero if the header cannot be read.
func headerOf(token string) (h jwtHeader) {
	first, _, _ := strings.Cut(token, ".")
	if raw, err := base64.RawURLEncoding.DecodeString(first); err != nil || json.Unmarshal(raw, &h) != nil {
		return jwtHeader{}
	}
	return h
}

// judge says what is wrong with the claims of a token whose signature is good, "" if nothing.
func (p *FinosGitProxy) judge(claims tokenClaims) string {
	now, audience := p.now(), cmp.Or(p.o.ExpectedAudience, p.o.ClientID)
	start, hasStart := claims.time("nbf")
	end, hasEnd := claims.time("exp")
	switch {
	case hasStart && start.After(now):
		return "jwt not active"
	case hasEnd && !now.Before(end):
		return "jwt expired"
	case !slices.Contains(claims.audiences(), any(audience)):
		return "jwt audience invalid. expected: " + audience
	case claims["iss"] != any(p.o.AuthorityURL):
		return "jwt issuer invalid. expected: " + p.o.AuthorityURL
	case claims["azp"] != nil && claims["azp"] != "" && claims["azp"] != any(p.o.ClientID):
		return "JWT client ID does not match"
	}
	return ""
}

// roles returns the roles that a token's claims give.
func (p *FinosGitProxy) roles(claims tokenClaims) []string {
	var roles []string
	for role, wanted := range p.o.RoleMapping {
		if len(wanted) > 0 && claims[wanted[0].Name] == any(wanted[0].Value) && wanted[0].Value != "" {
			roles = append(roles, role)
		}
	}
	return roles
}
