// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// RegistryOptions configures a PyPI, CratesIO, RubyGems or NPM.
type RegistryOptions struct {
	Issuers  []string         // exact issuers whose tokens are accepted as those of GitHub Actions
	Client   *http.Client     // fetches their discovery documents and keys; nil = http.DefaultClient
	Audience string           // the only `aud` accepted; default the registry's own
	Now      func() time.Time // nil = time.Now
}

// Publisher is a trusted publisher: a workflow of GitHub Actions whose tokens a registry exchanges for keys.
type Publisher struct {
	Package     string // project, crate, gem or package that the keys are for
	Owner       string // of the repository
	OwnerID     string
	Repository  string // without its owner
	Workflow    string // file name below .github/workflows
	Environment string // empty = any
	Pending     bool   // PyPI: the project does not exist yet
}

// RegistryKey is a key as the inventory of a registry shows it: without its secret.
type RegistryKey struct {
	Packages  []string  `json:"packages"`
	ExpiresAt time.Time `json:"expires_at"` // UTC
}

// registry is what the registries with trusted publishing have in common: whom they trust, which tokens were used, and which
// keys live. In addition to its own paths each has
//
//	GET  /lab/keys         -> 200 {"keys":[...]}, the inventory, open to all
//	POST /lab/faults, DELETE /lab/faults, see Control
type registry struct {
	Control
	mux *http.ServeMux
	o   RegistryOptions
	now func() time.Time

	mu         sync.Mutex
	publishers []Publisher
	used       map[string]time.Time // jti -> when it may be forgotten
	keys       map[string]RegistryKey
}

func (r *registry) init(o RegistryOptions, audience string, ops ...string) {
	o.Audience = cmp.Or(o.Audience, audience)
	o.Client = cmp.Or(o.Client, http.DefaultClient)
	r.Control.ops, r.mux, r.o, r.now = ops, http.NewServeMux(), o, clock(o.Now)
	r.used, r.keys = make(map[string]time.Time), make(map[string]RegistryKey)
	r.mux.HandleFunc("GET /lab/keys", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"keys": r.Live()})
	})
	r.mount(r.mux)
}

// ServeHTTP implements http.Handler.
func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) { r.mux.ServeHTTP(w, req) }

// AddPublisher adds a trusted publisher.
func (r *registry) AddPublisher(p Publisher) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.publishers = append(r.publishers, p)
}

// Publishers returns the trusted publishers as they are now.
func (r *registry) Publishers() []Publisher {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.publishers)
}

// Live returns the keys that live now, by their end, earliest first; never nil.
func (r *registry) Live() []RegistryKey {
	r.mu.Lock()
	defer r.mu.Unlock()
	live := make([]RegistryKey, 0, len(r.keys))
	for _, k := range r.keys {
		if k.ExpiresAt.After(r.now()) {
			live = append(live, k)
		}
	}
	slices.SortFunc(live, func(a, b RegistryKey) int { return a.ExpiresAt.Compare(b.ExpiresAt) })
	return live
}

// Valid reports whether key is a live key.
func (r *registry) Valid(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	k, ok := r.keys[key]
	return ok && k.ExpiresAt.After(r.now())
}

// tokenFault is what is wrong with a token, in the order in which registries check.
type tokenFault int

const (
	tokenGood      tokenFault = iota
	tokenMalformed            // not a JWT
	tokenForeign              // its issuer is not trusted
	tokenNoKeys               // the issuer's keys cannot be fetched
	tokenForged
	tokenLacks // it lacks a claim that every token must have
	tokenOutOfTime
	tokenElsewhere // it is for another audience
)

// verify really verifies a token. The required claims are numbers of seconds; leeway applies to all times.
func (r *registry) verify(ctx context.Context, token string, algorithms []jose.SignatureAlgorithm, leeway time.Duration, required ...string) (tokenClaims, tokenFault) {
	claims, ok := parseClaims(token)
	if !ok {
		return nil, tokenMalformed
	}
	if !slices.Contains(r.o.Issuers, claims.text("iss")) {
		return claims, tokenForeign
	}
	switch err := checkSignature(ctx, r.o.Client, claims.text("iss"), token, algorithms); err {
	case nil:
	case errSignature:
		return claims, tokenForged
	default:
		return claims, tokenNoKeys
	}
	for _, name := range required {
		if _, ok := claims.time(name); !ok {
			return claims, tokenLacks
		}
	}
	now := r.now()
	exp, hasExp := claims.time("exp")
	nbf, hasNbf := claims.time("nbf")
	switch {
	case !hasExp || !exp.After(now.Add(-leeway)), hasNbf && nbf.After(now.Add(leeway)):
		return claims, tokenOutOfTime
	case claims["aud"] != r.o.Audience: // a single string
		return claims, tokenElsewhere
	}
	return claims, tokenGood
}

// matching returns the indexes of the publishers that accept the claims, those bound to an environment first. ref is the
// claim that names the workflow; banned are events that no publisher accepts. The caller holds mu.
func (r *registry) matching(claims tokenClaims, ref string, banned ...string) []int {
	if slices.Contains(banned, claims.text("event_name")) {
		return nil
	}
	var found []int
	for i, p := range r.publishers {
		repository := p.Owner + "/" + p.Repository
		if strings.EqualFold(claims.text("repository"), repository) && strings.EqualFold(claims.text("repository_owner"), p.Owner) &&
			claims.text("repository_owner_id") == p.OwnerID &&
			strings.HasPrefix(claims.text(ref), repository+"/.github/workflows/"+p.Workflow+"@") &&
			(p.Environment == "" || claims.text("environment") == p.Environment) {
			found = append(found, i)
		}
	}
	slices.SortStableFunc(found, func(a, b int) int {
		return strings.Compare(r.publishers[b].Environment, r.publishers[a].Environment)
	})
	return found
}

// spend marks a token as used, by its jti, and reports false if it was used already. kept is how long after exp the jti is
// remembered. The caller holds mu.
func (r *registry) spend(claims tokenClaims, kept time.Duration) bool {
	jti := claims.text("jti")
	if until, used := r.used[jti]; used && r.now().Before(until) {
		return false
	}
	exp, _ := claims.time("exp")
	r.used[jti] = exp.Add(kept)
	return true
}

// add makes a live key. The caller holds mu.
func (r *registry) add(key string, ttl time.Duration, packages ...string) (expires time.Time) {
	expires = r.now().UTC().Add(ttl).Truncate(time.Second)
	r.keys[key] = RegistryKey{Packages: packages, ExpiresAt: expires}
	return expires
}
