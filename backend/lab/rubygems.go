// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// KeyRole is an API key role of a RubyGems: the tokens that it exchanges, and the keys that they get.
type KeyRole struct {
	Token    string // the name of the role in requests
	Issuer   string
	Subject  string        // exact `sub` of the tokens
	Gem      string        // that the keys are for; empty = all gems of the role's owner
	ValidFor time.Duration // lifetime of its keys, 5 minutes to a day; default 30 minutes
}

// RubyGems is a stand-in for RubyGems.org's exchange of tokens for API keys:
//
//	POST /api/v1/oidc/trusted_publisher/exchange_token       {"jwt"} -> 201 {"rubygems_api_key","name","scopes","expires_at"}
//	POST /api/v1/oidc/api_key_roles/{token}/assume_role      the same
//	POST /api/v1/gems                                        with the key as Authorization -> 200 while it lives
//
// and those of every registry. A token that lacks a claim is refused with 400, one that was already used in a role with 422,
// and everything else with 404. A trusted publisher's token can be exchanged again, and its keys live 15 minutes; nobody can
// end a key earlier. Left out: all statements of a role's policy but one condition, and separate workflow repositories. Make
// one with NewRubyGems.
type RubyGems struct {
	registry
	roles []KeyRole // see AddRole
}

const gemKeyTTL = 15 * time.Minute

// NewRubyGems makes a RubyGems without publishers and roles.
func NewRubyGems(o RegistryOptions) *RubyGems {
	g := &RubyGems{}
	g.init(o, "rubygems.org", OpToken, OpPush)
	g.mux.HandleFunc("POST /api/v1/oidc/trusted_publisher/exchange_token", g.handle(OpToken, g.exchange))
	g.mux.HandleFunc("POST /api/v1/oidc/api_key_roles/{token}/assume_role", g.handle(OpToken, g.assume))
	g.mux.HandleFunc("POST /api/v1/gems", g.handle(OpPush, g.push))
	return g
}

// AddRole adds an API key role.
func (g *RubyGems) AddRole(r KeyRole) {
	if r.ValidFor == 0 {
		r.ValidFor = 30 * time.Minute
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.roles = append(g.roles, r)
}

func gemNotFound(w http.ResponseWriter) { writeError(w, http.StatusNotFound, "Not Found") }

// token reads and verifies the token of a request. If the token is not good, it answers and returns false.
func (g *RubyGems) token(w http.ResponseWriter, r *http.Request) (tokenClaims, bool) {
	var in struct {
		JWT string `json:"jwt"`
	}
	if !readJSON(w, r, &in) {
		return nil, false
	}
	claims, ok := parseClaims(in.JWT)
	if !ok {
		writeError(w, http.StatusBadRequest, "Invalid JWT")
		return nil, false
	}
	for _, name := range []string{"nbf", "iat", "exp"} {
		if _, ok := claims.time(name); !ok {
			writeError(w, http.StatusBadRequest, "Missing/invalid "+name)
			return nil, false
		}
	}
	for _, name := range []string{"iss", "jti"} {
		if claims.text(name) == "" {
			writeError(w, http.StatusBadRequest, "Missing/invalid "+name)
			return nil, false
		}
	}
	if _, fault := g.verify(r.Context(), in.JWT, []jose.SignatureAlgorithm{jose.RS256, jose.ES256}, 0); fault != tokenGood {
		gemNotFound(w)
		return nil, false
	}
	return claims, true
}

func (g *RubyGems) exchange(w http.ResponseWriter, r *http.Request) {
	claims, ok := g.token(w, r)
	if !ok {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	found := g.matching(claims, "job_workflow_ref")
	if len(found) == 0 {
		gemNotFound(w)
		return
	}
	p := g.publishers[found[0]] // a publisher for one environment takes precedence over one for any
	g.answer(w, "GitHub Actions "+p.Owner+"/"+p.Repository, gemKeyTTL, p.Package)
}

func (g *RubyGems) assume(w http.ResponseWriter, r *http.Request) {
	claims, ok := g.token(w, r)
	if !ok {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, role := range g.roles {
		if role.Token != r.PathValue("token") || role.Issuer != claims.text("iss") || role.Subject != claims.text("sub") {
			continue
		}
		if !g.spend(claims, time.Hour) {
			writeJSON(w, http.StatusUnprocessableEntity, map[string]any{"errors": map[string]any{"jwt.claims.jti": []string{"must be unique"}}})
			return
		}
		g.answer(w, "role "+role.Token, role.ValidFor, role.Gem)
		return
	}
	gemNotFound(w)
}

// answer makes a key and answers with it. The caller holds mu.
func (g *RubyGems) answer(w http.ResponseWriter, name string, ttl time.Duration, gem string) {
	key := "rubygems_" + randomHex(24)
	expires := g.add(key, ttl, gem)
	writeJSON(w, http.StatusCreated, map[string]any{
		"rubygems_api_key": key, "name": name, "scopes": []string{"push_rubygem"}, "expires_at": expires.Format(time.RFC3339),
	})
}

func (g *RubyGems) push(w http.ResponseWriter, r *http.Request) {
	if !g.Valid(r.Header.Get("Authorization")) {
		http.Error(w, "Access Denied. Please sign up for an account at https://rubygems.org", http.StatusUnauthorized)
		return
	}
	w.WriteHeader(http.StatusOK)
}
