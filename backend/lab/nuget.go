// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// NuGetOptions configures a NuGet.
type NuGetOptions struct {
	Issuers      []string         // exact issuers whose tokens are accepted as those of GitHub Actions
	Client       *http.Client     // fetches their discovery documents and keys; nil = http.DefaultClient
	Audience     string           // the only `aud` accepted; default https://www.nuget.org
	KeyTTL       time.Duration    // a multiple of 5 minutes up to 1 hour, the default
	BannedEvents []string         // values of `event_name` that no policy accepts
	Disabled     bool             // the token API is switched off: it answers 404
	Now          func() time.Time // nil = time.Now
}

// User is an account of the gallery. With zero switches it is a user in good standing.
type User struct {
	Name         string // compared without regard to case
	Organization bool
	Deleted      bool
	Locked       bool
	Unconfirmed  bool // has no confirmed email address
}

// Policy is a trust policy for GitHub Actions.
type Policy struct {
	Name         string // used in messages
	User         string // who created it, and the `username` of requests; an existing user
	PackageOwner string // whose packages the keys are for; default User
	Created      time.Time
	Owner        string // of the repository
	Repository   string // without its owner
	Workflow     string // file name below .github/workflows
	Environment  string // empty = any

	// A policy with both ids is permanent. Without them it is temporary: it ends at ValidateBy (default: seven days from
	// now, rounded down to the hour) unless a token matches it before. Then the policy takes over the token's ids for good.
	OwnerID, RepositoryID string
	ValidateBy            time.Time
}

// NuGetKey is a key as the inventory of a NuGet shows it: without its secret.
type NuGetKey struct {
	User      string    `json:"user"`
	Owner     string    `json:"owner"`
	Policy    string    `json:"policy"`
	ExpiresAt time.Time `json:"expires_at"` // UTC
}

// NuGet is a stand-in for the trusted publishing of a NuGet gallery (nuget.org):
//
//	POST /api/v2/token     {"username","tokenType":"ApiKey"} with an identity token as bearer
//	                       -> 200 {"tokenType","expires","apiKey"}
//	PUT  /api/v2/package   with X-NuGet-ApiKey -> 201 while the key lives; what is pushed is not looked at
//	GET  /lab/keys         -> 200 {"keys":[...]}, the inventory, open to all
//	POST /lab/faults, DELETE /lab/faults, see Control
//
// It makes the gallery's checks in the gallery's order and with the gallery's texts, and really verifies tokens. As in the
// gallery, a token works once (its jti is remembered for ever, whoever issued it) and nobody can end a key before its time.
//
// The text of a refusal is also the HTTP reason phrase, as in the gallery. Left out: the policies for Entra ID and GitLab,
// feature flags, the scopes of policies, and add-in validators. Make one with NewNuGet.
type NuGet struct {
	Control
	mux *http.ServeMux
	o   NuGetOptions
	now func() time.Time

	mu       sync.Mutex
	users    []User // a user's key (number) is its place, counted from 1
	policies []Policy
	used     map[string]bool // the jti of every token that was exchanged for a key
	keys     map[string]NuGetKey
}

// nugetError is a refusal of the token API.
type nugetError struct {
	status int
	text   string
}

func unauthorized(format string, args ...any) *nugetError {
	return &nugetError{http.StatusUnauthorized, fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) *nugetError {
	return &nugetError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// NewNuGet makes a NuGet without users. It panics if the gallery would refuse the KeyTTL.
func NewNuGet(o NuGetOptions) *NuGet {
	o.Audience = cmp.Or(o.Audience, "https://www.nuget.org")
	o.KeyTTL = cmp.Or(o.KeyTTL, time.Hour)
	o.Client = cmp.Or(o.Client, http.DefaultClient)
	if o.KeyTTL < 0 || o.KeyTTL > time.Hour || o.KeyTTL%(5*time.Minute) != 0 {
		panic(fmt.Sprintf("lab: KeyTTL %s: want a multiple of 5 minutes up to 1 hour", o.KeyTTL))
	}
	g := &NuGet{
		Control: Control{ops: []string{OpToken, OpPush}},
		mux:     http.NewServeMux(),
		o:       o,
		now:     clock(o.Now),
		used:    make(map[string]bool),
		keys:    make(map[string]NuGetKey),
	}
	g.mux.HandleFunc("/api/v2/token", g.handle(OpToken, g.token))
	g.mux.HandleFunc("PUT /api/v2/package", g.handle(OpPush, g.push))
	g.mux.HandleFunc("GET /lab/keys", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"keys": g.Live()})
	})
	g.mount(g.mux)
	return g
}

// ServeHTTP implements http.Handler.
func (g *NuGet) ServeHTTP(w http.ResponseWriter, r *http.Request) { g.mux.ServeHTTP(w, r) }

// SetUser adds a user, or replaces the one of that name.
func (g *NuGet) SetUser(u User) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := g.userIndex(u.Name); i >= 0 {
		g.users[i] = u
		return
	}
	g.users = append(g.users, u)
}

// AddPolicy adds a trust policy. A zero Created means now.
func (g *NuGet) AddPolicy(p Policy) {
	now := g.now()
	p.PackageOwner = cmp.Or(p.PackageOwner, p.User)
	if p.Created.IsZero() {
		p.Created = now
	}
	if p.ValidateBy.IsZero() && !p.permanent() {
		p.ValidateBy = now.Add(7 * 24 * time.Hour).UTC().Truncate(time.Hour)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.policies = append(g.policies, p)
	slices.SortStableFunc(g.policies, func(a, b Policy) int { return a.Created.Compare(b.Created) })
}

// Policies returns the trust policies as they are now, oldest first.
func (g *NuGet) Policies() []Policy {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.policies)
}

// Live returns the keys that live now, by their end, earliest first; never nil.
func (g *NuGet) Live() []NuGetKey {
	g.mu.Lock()
	defer g.mu.Unlock()
	live := make([]NuGetKey, 0, len(g.keys))
	for _, k := range g.keys {
		if k.ExpiresAt.After(g.now()) {
			live = append(live, k)
		}
	}
	slices.SortFunc(live, func(a, b NuGetKey) int {
		return cmp.Or(a.ExpiresAt.Compare(b.ExpiresAt), cmp.Compare(a.Policy, b.Policy))
	})
	return live
}

// Valid reports whether key is a live key.
func (g *NuGet) Valid(key string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	k, ok := g.keys[key]
	return ok && k.ExpiresAt.After(g.now())
}

// token is the token API. The order of the checks is the gallery's.
func (g *NuGet) token(w http.ResponseWriter, r *http.Request) {
	if g.o.Disabled || r.Method != http.MethodPost { // the gallery has no route for other methods
		http.NotFound(w, r)
		return
	}
	bearer, refused := bearerToken(r.Header)
	if refused == nil && g.Valid(r.Header.Get("X-NuGet-ApiKey")) {
		refused = unauthorized("Only Bearer token authentication is accepted.")
	}
	var username string
	if refused == nil {
		username, refused = tokenRequest(r)
	}
	var key string
	var expires time.Time
	if refused == nil {
		key, expires, refused = g.exchange(r.Context(), username, bearer)
	}
	if refused != nil {
		if refused.status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", "Bearer")
		}
		if a, controlled := w.(*answer); controlled {
			a.reason = refused.text
		}
		writeError(w, refused.status, refused.text)
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{
		"tokenType": "ApiKey",
		"expires":   expires.UTC().Format("2006-01-02T15:04:05.0000000-07:00"), // format "O" of a .NET DateTimeOffset
		"apiKey":    key,
	})
}

// bearerToken takes the token from the Authorization header. (A server that trims header values, as net/http does, sees
// "Bearer " without a token as "Bearer".)
func bearerToken(h http.Header) (string, *nugetError) {
	const prefix = "Bearer "
	values := h.Values("Authorization")
	switch {
	case len(values) == 0:
		return "", unauthorized("The Authorization header is missing.")
	case len(values) > 1:
		return "", unauthorized("Only one Authorization header is allowed.")
	case len(values[0]) < len(prefix) || !strings.EqualFold(values[0][:len(prefix)], prefix):
		return "", unauthorized("The Authorization header value must start with 'Bearer '.")
	}
	token := strings.TrimSpace(values[0][len(prefix):])
	if token == "" {
		return "", unauthorized("The bearer token is missing from the Authorization header.")
	}
	return token, nil
}

// tokenRequest checks the rest of the request and returns the username. A body that is not a JSON object has no properties.
// The case of property names does not matter, neither to encoding/json nor to the gallery.
func tokenRequest(r *http.Request) (string, *nugetError) {
	if !isJSON(r) {
		return "", &nugetError{http.StatusUnsupportedMediaType, "The request must have a Content-Type of 'application/json'."}
	}
	if strings.TrimSpace(r.UserAgent()) == "" {
		return "", badRequest("A User-Agent header is required.")
	}
	var in struct {
		Username  string `json:"username"`
		TokenType string `json:"tokenType"`
	}
	_ = json.NewDecoder(r.Body).Decode(&in)
	if strings.TrimSpace(in.Username) == "" {
		return "", badRequest("The username property in the request body is required.")
	}
	if in.TokenType != "ApiKey" {
		return "", badRequest("The tokenType property in the request body is required and must set to 'ApiKey'.")
	}
	return in.Username, nil
}

// push uses a key.
func (g *NuGet) push(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("X-NuGet-ApiKey")
	switch {
	case key == "":
		w.Header().Set("WWW-Authenticate", `ApiKey realm="`+r.Host+`"`)
		writeError(w, http.StatusUnauthorized, "An API key must be provided in the 'X-NuGet-ApiKey' header to use this service.")
	case !g.Valid(key):
		writeError(w, http.StatusForbidden,
			"The specified API key is invalid, has expired, or does not have permission to access the specified package.")
	default:
		w.WriteHeader(http.StatusCreated)
	}
}

// userIndex finds a user by name, -1 if there is none. The caller holds mu.
func (g *NuGet) userIndex(name string) int {
	return slices.IndexFunc(g.users, func(u User) bool { return strings.EqualFold(u.Name, name) })
}
