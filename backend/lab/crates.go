// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"fmt"
	"net/http"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// CratesIO is a stand-in for the trusted publishing of crates.io:
//
//	POST   /api/v1/trusted_publishing/tokens   {"jwt"} -> 200 {"token"}
//	DELETE /api/v1/trusted_publishing/tokens   with the key -> 204, also for one that is unknown
//	PUT    /api/v1/crates/new                  with the key -> 200 while it lives; what is published is not looked at
//
// and those of every registry. A key is presented in the Authorization header, with or without Bearer. Every call needs a
// User-Agent (403). Refusals are 400 with crates.io's texts and do not use up the token; otherwise a token works once. A key
// lives 30 minutes. Make one with NewCratesIO.
type CratesIO struct{ registry }

const cratesKeyTTL = 30 * time.Minute

// cratesKey matches the form of a key. The key's checksum is not verified.
var cratesKey = regexp.MustCompile(`^cio_tp_[A-Za-z0-9]{32}$`)

// NewCratesIO makes a CratesIO without publishers.
func NewCratesIO(o RegistryOptions) *CratesIO {
	c := &CratesIO{}
	c.init(o, "crates.io", OpToken, OpRevoke, OpPush)
	const tokens = "/api/v1/trusted_publishing/tokens"
	c.mux.HandleFunc("POST "+tokens, c.handle(OpToken, c.knownAgent(c.exchange)))
	c.mux.HandleFunc("DELETE "+tokens, c.handle(OpRevoke, c.knownAgent(c.revoke)))
	c.mux.HandleFunc("PUT /api/v1/crates/new", c.handle(OpPush, c.knownAgent(c.publish)))
	return c
}

func cratesRefusal(w http.ResponseWriter, status int, format string, args ...any) {
	writeJSON(w, status, map[string]any{"errors": []map[string]string{{"detail": fmt.Sprintf(format, args...)}}})
}

func (c *CratesIO) knownAgent(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.UserAgent() == "" {
			http.Error(w, "We require that all requests include a `User-Agent` header.", http.StatusForbidden)
			return
		}
		next(w, r)
	}
}

func (c *CratesIO) exchange(w http.ResponseWriter, r *http.Request) {
	var in struct {
		JWT string `json:"jwt"`
	}
	if !readJSON(w, r, &in) {
		return
	}
	claims, fault := c.verify(r.Context(), in.JWT, []jose.SignatureAlgorithm{jose.RS256, jose.ES256}, time.Minute, "iat", "exp")
	switch {
	case fault == tokenForeign:
		cratesRefusal(w, http.StatusBadRequest, "Unsupported JWT issuer: %s", claims.text("iss"))
		return
	case fault == tokenNoKeys:
		cratesRefusal(w, http.StatusInternalServerError, "Failed to load OIDC key set")
		return
	case fault != tokenGood || claims.text("jti") == "":
		cratesRefusal(w, http.StatusBadRequest, "Failed to decode JWT")
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	found := c.matching(claims, "workflow_ref", "pull_request_target", "workflow_run")
	if len(found) == 0 {
		cratesRefusal(w, http.StatusBadRequest, "%s", c.mismatch(claims))
		return
	}
	if !c.spend(claims, time.Minute) {
		cratesRefusal(w, http.StatusBadRequest, "JWT has already been used")
		return
	}
	var crates []string
	for _, i := range found {
		crates = append(crates, c.publishers[i].Package)
	}
	key := "cio_tp_" + randomHex(16)
	c.add(key, cratesKeyTTL, crates...)
	writeJSON(w, http.StatusOK, map[string]string{"token": key})
}

// mismatch says why no publisher accepts a token. The caller holds mu.
func (c *CratesIO) mismatch(claims tokenClaims) string {
	repository := claims.text("repository")
	text := "No Trusted Publishing config found for repository `" + repository + "`."
	const config = "The Trusted Publishing config for repository `%s` "
	workflow, _, _ := strings.Cut(claims.text("workflow_ref"), "@")
	for _, p := range c.publishers {
		switch {
		case !strings.EqualFold(repository, p.Owner+"/"+p.Repository):
		case claims.text("repository_owner_id") != p.OwnerID:
			text = fmt.Sprintf(config+"does not match the repository owner ID (%s) in the JWT. Expected owner IDs: %s.", repository, claims.text("repository_owner_id"), p.OwnerID)
		case path.Base(workflow) != p.Workflow:
			text = fmt.Sprintf(config+"does not match the workflow filename `%s` in the JWT. Expected workflow filenames: `%s`", repository, path.Base(workflow), p.Workflow)
		case p.Environment != "" && claims.text("environment") == "":
			text = fmt.Sprintf(config+"requires an environment, but the JWT does not specify one. Expected environments: `%s`", repository, p.Environment)
		case p.Environment != "" && claims.text("environment") != p.Environment:
			text = fmt.Sprintf(config+"does not match the environment `%s` in the JWT. Expected environments: `%s`", repository, claims.text("environment"), p.Environment)
		}
	}
	return text
}

// presented returns the key of a request. If there is none, or it does not have the form of a key, presented answers the
// request.
func (c *CratesIO) presented(w http.ResponseWriter, r *http.Request) (string, bool) {
	key := r.Header.Get("Authorization")
	if scheme, rest, found := strings.Cut(key, " "); found && strings.EqualFold(scheme, "Bearer") {
		key = rest
	}
	if !cratesKey.MatchString(key) {
		cratesRefusal(w, http.StatusUnauthorized, "Invalid `Authorization` header: Failed to parse token")
		return "", false
	}
	return key, true
}

func (c *CratesIO) revoke(w http.ResponseWriter, r *http.Request) {
	key, ok := c.presented(w, r)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.keys, key)
	w.WriteHeader(http.StatusNoContent)
}

func (c *CratesIO) publish(w http.ResponseWriter, r *http.Request) {
	key, ok := c.presented(w, r)
	switch {
	case !ok:
	case !c.Valid(key):
		cratesRefusal(w, http.StatusForbidden, "authentication failed")
	default:
		writeJSON(w, http.StatusOK, map[string]any{})
	}
}
