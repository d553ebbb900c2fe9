// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// ArtifactoryOptions configures an Artifactory.
type ArtifactoryOptions struct {
	AdminToken string           // an administrator's access token; required
	Client     *http.Client     // fetches the keys of issuers; nil = http.DefaultClient
	Now        func() time.Time // nil = time.Now
}

// IdentityMapping says which tokens of an OIDC provider become which access token.
type IdentityMapping struct {
	Provider string // name of the provider
	Issuer   string // its exact issuer
	Audience string // the `aud` that the provider wants
	Name     string
	Claims   map[string]string // that a token must have, exactly
	Username string
	Scope    string
	TTL      time.Duration
}

// ArtifactoryToken is an access token as the inventory of an Artifactory shows it: without its secret.
type ArtifactoryToken struct {
	ID          string    `json:"token_id"`
	Username    string    `json:"username"`
	Scope       string    `json:"scope"`
	Description string    `json:"description,omitempty"`
	ExpiresAt   time.Time `json:"expires_at"` // UTC; zero = never
}

// Artifactory is a stand-in for the access tokens of a JFrog platform:
//
//	POST   /access/api/v1/oidc/token       {"grant_type","subject_token_type","subject_token","provider_name",…}
//	                                       -> 200 {"access_token","expires_in","token_type","scope","username",…}
//	POST   /access/api/v1/tokens           {"username","scope","expires_in","description","force_revocable",…}
//	                                       -> 200 {"token_id","access_token","expires_in","scope","token_type"}
//	GET    /access/api/v1/tokens?description=  -> 200 {"tokens":[{"token_id","subject","description",…}]}, of the caller's user or all
//	DELETE /access/api/v1/tokens/{id}      -> 200
//	GET    /access/api/v1/tokens/me        -> 200 while the caller's token lives
//	GET    /lab/keys                       -> 200 {"keys":[...]}, the inventory, open to all
//	POST   /lab/faults, DELETE /lab/faults see Control
//
// All calls but the exchange require an access token as bearer. Errors are {"errors":[{"status","code","message"}]}; which
// status an exchange uses for which error is not documented. As in the real platform, DELETE of a token that has an expiry
// but was not made revocable removes it from the list, and the token still works. Make one with NewArtifactory.
type Artifactory struct {
	Control
	mux *http.ServeMux
	o   ArtifactoryOptions
	now func() time.Time

	mu       sync.Mutex
	mappings []IdentityMapping
	tokens   []heldToken
}

// heldToken is an access token with its secret.
type heldToken struct {
	ArtifactoryToken
	secret    string
	revocable bool
	deleted   bool // no longer listed, but still valid
}

// NewArtifactory makes an Artifactory without providers. It panics if there is no admin token.
func NewArtifactory(o ArtifactoryOptions) *Artifactory {
	if o.AdminToken == "" {
		panic("lab: Artifactory without an admin token")
	}
	o.Client = cmp.Or(o.Client, http.DefaultClient)
	a := &Artifactory{
		Control: Control{ops: []string{OpToken, OpCreate, OpFind, OpRevoke, OpUse}},
		mux:     http.NewServeMux(), o: o, now: clock(o.Now),
	}
	const tokens = "/access/api/v1/tokens"
	a.mux.HandleFunc("POST /access/api/v1/oidc/token", a.handle(OpToken, a.exchange))
	a.mux.HandleFunc("POST "+tokens, a.handle(OpCreate, a.asCaller(a.create)))
	a.mux.HandleFunc("GET "+tokens, a.handle(OpFind, a.asCaller(a.list)))
	a.mux.HandleFunc("DELETE "+tokens+"/{id}", a.handle(OpRevoke, a.asCaller(a.revoke)))
	a.mux.HandleFunc("GET "+tokens+"/me", a.handle(OpUse, a.asCaller(func(w http.ResponseWriter, _ *http.Request, caller string) {
		writeJSON(w, http.StatusOK, map[string]string{"subject": "jfac@lab/users/" + caller})
	})))
	a.mux.HandleFunc("GET /lab/keys", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"keys": a.Live()})
	})
	a.mount(a.mux)
	return a
}

// ServeHTTP implements http.Handler.
func (a *Artifactory) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// AddMapping adds an identity mapping, and its provider.
func (a *Artifactory) AddMapping(m IdentityMapping) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mappings = append(a.mappings, m)
}

// Live returns the tokens that live now, oldest first; never nil.
func (a *Artifactory) Live() []ArtifactoryToken {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dropExpired()
	live := make([]ArtifactoryToken, 0, len(a.tokens))
	for _, t := range a.tokens {
		live = append(live, t.ArtifactoryToken)
	}
	return live
}

// Valid reports whether key is a token that lives.
func (a *Artifactory) Valid(key string) bool {
	_, ok := a.user(key)
	return ok && key != a.o.AdminToken
}

const administrator = "admin"

// user returns the user of a token that lives.
func (a *Artifactory) user(token string) (string, bool) {
	if token == a.o.AdminToken {
		return administrator, true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dropExpired()
	for _, t := range a.tokens {
		if t.secret == token {
			return t.Username, true
		}
	}
	return "", false
}

// dropExpired removes expired tokens. The caller holds mu.
func (a *Artifactory) dropExpired() {
	now := a.now()
	a.tokens = slices.DeleteFunc(a.tokens, func(t heldToken) bool { return !t.ExpiresAt.IsZero() && !t.ExpiresAt.After(now) })
}

func jfrogRefusal(w http.ResponseWriter, status int, code, text string) {
	writeJSON(w, status, map[string]any{"errors": []map[string]any{{"status": status, "code": code, "message": text}}})
}

// asCaller lets through only calls with a token that lives.
func (a *Artifactory) asCaller(next func(http.ResponseWriter, *http.Request, string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		token, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		user, ok := a.user(token)
		if !found || !ok {
			jfrogRefusal(w, http.StatusUnauthorized, "UNAUTHORIZED", "Invalid token")
			return
		}
		next(w, r, user)
	}
}

func (a *Artifactory) exchange(w http.ResponseWriter, r *http.Request) {
	var in struct {
		GrantType        string `json:"grant_type"`
		SubjectTokenType string `json:"subject_token_type"`
		SubjectToken     string `json:"subject_token"`
		Provider         string `json:"provider_name"`
		Mapping          string `json:"identity_mapping_name"`
		Project          string `json:"project_key"`
	}
	if !readJSON(w, r, &in) {
		return
	}
	if in.GrantType != "urn:ietf:params:oauth:grant-type:token-exchange" || in.SubjectTokenType != "urn:ietf:params:oauth:token-type:id_token" {
		jfrogRefusal(w, http.StatusBadRequest, "BAD_REQUEST", "unsupported grant or token type")
		return
	}
	a.mu.Lock()
	mappings := slices.DeleteFunc(slices.Clone(a.mappings), func(m IdentityMapping) bool { return m.Provider != in.Provider })
	a.mu.Unlock()
	if len(mappings) == 0 {
		jfrogRefusal(w, http.StatusNotFound, "NOT_FOUND", "no such provider")
		return
	}
	claims, ok := parseClaims(in.SubjectToken)
	exp, hasExp := claims.time("exp")
	issuer := mappings[0].Issuer
	if !ok || claims.text("iss") != issuer || !hasExp || !exp.After(a.now()) ||
		checkSignature(r.Context(), a.o.Client, issuer, in.SubjectToken, []jose.SignatureAlgorithm{jose.RS256, jose.ES256}) != nil {
		jfrogRefusal(w, http.StatusUnauthorized, "UNAUTHORIZED", "the token is not valid")
		return
	}
	for _, m := range mappings {
		if (in.Mapping == "" || in.Mapping == m.Name) && m.accepts(claims) {
			t := a.add(ArtifactoryToken{Username: m.Username, Scope: m.Scope}, m.TTL, false)
			writeJSON(w, http.StatusOK, map[string]any{
				"access_token": t.secret, "expires_in": int(m.TTL / time.Second), "token_type": "Bearer", "scope": m.Scope,
				"issued_token_type": "urn:ietf:params:oauth:token-type:access_token", "username": m.Username,
			})
			return
		}
	}
	jfrogRefusal(w, http.StatusForbidden, "FORBIDDEN", "no identity mapping accepts the token")
}

func (m IdentityMapping) accepts(claims tokenClaims) bool {
	for name, value := range m.Claims {
		if claims.text(name) != value {
			return false
		}
	}
	return slices.Contains(claims.audiences(), any(m.Audience))
}

func (a *Artifactory) add(t ArtifactoryToken, ttl time.Duration, revocable bool) heldToken {
	t.ID = randomHex(16)
	if ttl > 0 {
		t.ExpiresAt = a.now().UTC().Add(ttl)
	}
	held := heldToken{ArtifactoryToken: t, secret: "eyJ2ZXIiOiIyIn0." + randomHex(48), revocable: revocable || ttl == 0}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tokens = append(a.tokens, held)
	return held
}

func (a *Artifactory) create(w http.ResponseWriter, r *http.Request, caller string) {
	var in struct {
		Username       string `json:"username"`
		Scope          string `json:"scope"`
		ExpiresIn      int64  `json:"expires_in"`
		Refreshable    bool   `json:"refreshable"`
		ForceRevocable bool   `json:"force_revocable"`
		Description    string `json:"description"`
	}
	if !readJSON(w, r, &in) {
		return
	}
	switch {
	case caller != administrator && in.Username != caller:
		jfrogRefusal(w, http.StatusForbidden, "FORBIDDEN", "only an administrator can make tokens for others")
	case in.Username == "" || in.ExpiresIn < 0 || !strings.HasPrefix(in.Scope, "applied-permissions/"):
		jfrogRefusal(w, http.StatusBadRequest, "BAD_REQUEST", "username, expires_in or scope")
	default:
		t := a.add(ArtifactoryToken{Username: in.Username, Scope: in.Scope, Description: in.Description}, time.Duration(in.ExpiresIn)*time.Second, in.ForceRevocable)
		writeJSON(w, http.StatusOK, map[string]any{
			"token_id": t.ID, "access_token": t.secret, "expires_in": in.ExpiresIn, "scope": in.Scope, "token_type": "Bearer",
		})
	}
}

// list filters by description; with a star at its end, it matches all descriptions that begin with the rest.
func (a *Artifactory) list(w http.ResponseWriter, r *http.Request, caller string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dropExpired()
	want, filtered := r.URL.Query().Get("description"), r.URL.Query().Has("description")
	begin, star := strings.CutSuffix(want, "*")
	listed := []map[string]any{}
	for _, t := range a.tokens {
		if t.deleted || caller != administrator && t.Username != caller ||
			filtered && t.Description != want && !(star && strings.HasPrefix(t.Description, begin)) {
			continue
		}
		entry := map[string]any{"token_id": t.ID, "subject": "jfac@lab/users/" + t.Username, "refreshable": false}
		if t.Description != "" {
			entry["description"] = t.Description
		}
		listed = append(listed, entry)
	}
	writeJSON(w, http.StatusOK, map[string]any{"tokens": listed})
}

func (a *Artifactory) revoke(w http.ResponseWriter, r *http.Request, caller string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dropExpired()
	i := slices.IndexFunc(a.tokens, func(t heldToken) bool { return t.ID == r.PathValue("id") && !t.deleted })
	switch {
	case i < 0:
		jfrogRefusal(w, http.StatusNotFound, "NOT_FOUND", "no such token")
		return
	case caller != administrator && a.tokens[i].Username != caller:
		jfrogRefusal(w, http.StatusForbidden, "FORBIDDEN", "not your token")
		return
	case a.tokens[i].revocable:
		a.tokens = slices.Delete(a.tokens, i, i+1)
	default:
		a.tokens[i].deleted = true
	}
	w.WriteHeader(http.StatusOK)
}
