// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// PyPI is a stand-in for the trusted publishing of PyPI:
//
//	GET  /_/oidc/audience     -> 200 {"audience"}
//	POST /_/oidc/mint-token   {"token"} -> 200 {"success","token","expires"}; expires in seconds since 1970
//	POST /legacy/             with Basic __token__:<key> -> 200 while the key lives; what is uploaded is not looked at
//
// and those of every registry. Refusals are 422 with PyPI's codes. A token must be signed with RS256 and have a single aud
// that is a string; it works once. A key lives 15 minutes, and nobody can end it earlier. A pending publisher becomes a
// project with its first key. Make one with NewPyPI.
type PyPI struct{ registry }

const pypiKeyTTL = 15 * time.Minute

// NewPyPI makes a PyPI without publishers.
func NewPyPI(o RegistryOptions) *PyPI {
	p := &PyPI{}
	p.init(o, "pypi", OpToken, OpPush)
	p.mux.HandleFunc("GET /_/oidc/audience", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"audience": p.o.Audience})
	})
	p.mux.HandleFunc("POST /_/oidc/mint-token", p.handle(OpToken, p.mint))
	p.mux.HandleFunc("POST /legacy/", p.handle(OpPush, p.upload))
	return p
}

func pypiRefusal(w http.ResponseWriter, code, text string) {
	writeJSON(w, http.StatusUnprocessableEntity, map[string]any{
		"message": "Token request failed", "errors": []map[string]string{{"code": code, "description": text}},
	})
}

// mint does not check the body's content type.
func (p *PyPI) mint(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Token string `json:"token"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		pypiRefusal(w, "invalid-payload", "invalid JSON")
		return
	}
	claims, fault := p.verify(r.Context(), in.Token, []jose.SignatureAlgorithm{jose.RS256}, 30*time.Second, "iat", "exp")
	switch fault {
	case tokenGood:
	case tokenMalformed:
		pypiRefusal(w, "invalid-payload", "malformed JWT")
		return
	case tokenForeign:
		pypiRefusal(w, "invalid-payload", "unknown trusted publishing issuer")
		return
	default:
		pypiRefusal(w, "invalid-token", "malformed or invalid token")
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	found := p.matching(claims, "job_workflow_ref", "pull_request_target")
	if len(found) == 0 {
		pypiRefusal(w, "invalid-publisher", "valid token, but no corresponding publisher")
		return
	}
	if !p.spend(claims, 35*time.Second) {
		pypiRefusal(w, "invalid-reuse-token", "invalid token: already used")
		return
	}
	var projects []string
	for _, i := range found {
		p.publishers[i].Pending = false
		projects = append(projects, p.publishers[i].Package)
	}
	key := "pypi-" + randomHex(60)
	expires := p.add(key, pypiKeyTTL, projects...)
	writeJSON(w, http.StatusOK, map[string]any{"success": true, "token": key, "expires": expires.Unix()})
}

func (p *PyPI) upload(w http.ResponseWriter, r *http.Request) {
	name, key, _ := r.BasicAuth()
	if name != "__token__" || !p.Valid(key) {
		writeError(w, http.StatusForbidden, "Invalid or non-existent authentication information.")
		return
	}
	w.WriteHeader(http.StatusOK)
}
