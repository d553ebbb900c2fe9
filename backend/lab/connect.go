// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ConnectOptions configures a Connect.
type ConnectOptions struct {
	Issuers    []string         // exact issuers whose tokens are accepted
	Client     *http.Client     // fetches their discovery documents and keys; nil = http.DefaultClient
	Path       string           // path of the server below its host, such as /connect
	TokenQuery string           // query of the token endpoint's address, if it has one
	GrantTypes []string         // in the OAuth metadata; nil = the member is left out
	KeyTTL     time.Duration    // of exchanged keys, whole seconds; default 15 minutes
	NoExpiry   bool             // an older server: no expires_in, and keys made through the API do not expire
	NoOAuth    bool             // an older server: no OAuth server
	Now        func() time.Time // nil = time.Now
}

// ConnectPublisher is a trusted publisher: tokens that have its audience and claims get keys of its service principal.
type ConnectPublisher struct {
	Name     string
	Audience string            // default connect
	Claims   map[string]string // exact values
}

// ConnectIntegration is an integration for identity federation: a token with its audience gets a key of the user whose
// name is the token's match claim.
type ConnectIntegration struct {
	GUID       string
	Audience   string
	MatchClaim string // default sub
}

// ConnectUser is a user. Users are never made by an exchange.
type ConnectUser struct {
	GUID, Username string
	Role           string // administrator, publisher or viewer; default publisher
}

// ConnectKey is a key as the inventory of a Connect shows it: without its secret.
type ConnectKey struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	User      string    `json:"user"`      // GUID; "" = a service principal's
	Principal string    `json:"principal"` // the publisher's name
	Role      string    `json:"role"`
	ExpiresAt time.Time `json:"expires_at"` // UTC; zero = never
}

// Connect is a stand-in for a Posit Connect server, with all paths below ConnectOptions.Path:
//
//	GET    /.well-known/oauth-authorization-server               -> 200 metadata
//	POST   /oauth/v1/token                                       token exchange -> a service principal's key
//	POST   /__api__/v1/oauth/integrations/credentials            token exchange -> a user's key
//	GET    /__api__/server_settings                              -> 200 {"version","hostname"}
//	GET    /__api__/v1/user                 -> 200 {"guid","username"}; 403 code 22 for a service principal's key
//	GET    /__api__/v1/users/{guid}/keys    -> 200 [{"id","name","key",…}], the key cut off
//	POST   /__api__/v1/users/{guid}/keys    {"name","user_role","expires_at"} -> 200 {"id","name","key",…}
//	DELETE /__api__/v1/users/{guid}/keys/{id}                    -> 204
//	GET    /__api__/v1/content                                   use of a key -> 200
//
// and besides GET /lab/keys, the inventory, open to all; POST and DELETE /lab/faults, see Control.
//
// The API requires "Authorization: Key …" (401 code 30). Users can reach only their own keys: with another user's guid,
// making a key is 403 code 22, and every other call is 404. A key's role is at most its user's. The exchanges have no client
// authentication; they do verify tokens. Of the error codes and descriptions, only 22, 30, "ambiguous match", "could not
// verify token signature" and "no service principal found" are known from Connect's clients; the others are this stand-in's
// own. Tokens may be used again: what Connect does is not known. Make one with NewConnect.
type Connect struct {
	Control
	mux *http.ServeMux
	o   ConnectOptions
	now func() time.Time

	mu           sync.Mutex
	publishers   []ConnectPublisher
	integrations []ConnectIntegration
	users        []ConnectUser
	keys         []connectKey
	made         int // number of keys made so far; the next key's id
}

// connectKey is a key with its secret.
type connectKey struct {
	ConnectKey
	secret string
}

// The known error codes, and this stand-in's own.
const (
	connectBadRequest   = 3
	connectNotFound     = 4
	connectNoPermission = 22
	connectInvalidLogin = 30
)

var connectRoles = []string{"viewer", "publisher", "administrator"}

// NewConnect makes a Connect without users, publishers and integrations.
func NewConnect(o ConnectOptions) *Connect {
	o.KeyTTL = cmp.Or(o.KeyTTL, 15*time.Minute)
	o.Client = cmp.Or(o.Client, http.DefaultClient)
	c := &Connect{
		Control: Control{ops: []string{OpDiscovery, OpToken, OpFederate, OpCheck, OpWhoami, OpFind, OpCreate, OpRevoke, OpUse}},
		mux:     http.NewServeMux(), o: o, now: clock(o.Now),
	}
	handle := func(pattern, op string, work http.HandlerFunc) {
		method, path, _ := strings.Cut(pattern, " ")
		c.mux.HandleFunc(method+" "+o.Path+path, c.handle(op, work))
	}
	handle("GET /.well-known/oauth-authorization-server", OpDiscovery, c.metadata)
	handle("POST /oauth/v1/token", OpToken, c.token)
	handle("POST /__api__/v1/oauth/integrations/credentials", OpFederate, c.federate)
	handle("GET /__api__/server_settings", OpCheck, func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"version": "2026.07.0", "hostname": r.Host})
	})
	handle("GET /__api__/v1/user", OpWhoami, c.as(c.whoami))
	handle("GET /__api__/v1/users/{guid}/keys", OpFind, c.as(c.list))
	handle("POST /__api__/v1/users/{guid}/keys", OpCreate, c.as(c.create))
	handle("DELETE /__api__/v1/users/{guid}/keys/{id}", OpRevoke, c.as(c.revoke))
	handle("GET /__api__/v1/content", OpUse, c.as(func(w http.ResponseWriter, _ *http.Request, _ ConnectKey) {
		writeJSON(w, http.StatusOK, []string{})
	}))
	c.mux.HandleFunc("GET /lab/keys", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"keys": c.Live()})
	})
	c.mount(c.mux)
	return c
}

// ServeHTTP implements http.Handler.
func (c *Connect) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.mux.ServeHTTP(w, r) }

// AddPublisher adds a trusted publisher.
func (c *Connect) AddPublisher(p ConnectPublisher) {
	p.Audience = cmp.Or(p.Audience, "connect")
	c.mu.Lock()
	defer c.mu.Unlock()
	c.publishers = append(c.publishers, p)
}

// AddIntegration adds an integration.
func (c *Connect) AddIntegration(i ConnectIntegration) {
	i.MatchClaim = cmp.Or(i.MatchClaim, "sub")
	c.mu.Lock()
	defer c.mu.Unlock()
	c.integrations = append(c.integrations, i)
}

// AddUser adds a user with one key that never expires, like those that people make for themselves; with secret "" the user
// has none.
func (c *Connect) AddUser(u ConnectUser, secret string) {
	u.Role = cmp.Or(u.Role, "publisher")
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users = append(c.users, u)
	if secret != "" {
		c.add(ConnectKey{Name: "own", User: u.GUID, Role: u.Role}, secret)
	}
}

// Live returns the keys that live now, oldest first; never nil.
func (c *Connect) Live() []ConnectKey {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropExpired()
	live := make([]ConnectKey, 0, len(c.keys))
	for _, k := range c.keys {
		live = append(live, k.ConnectKey)
	}
	return live
}

// Valid reports whether secret is a live key.
func (c *Connect) Valid(secret string) bool {
	_, ok := c.bySecret(secret)
	return ok
}

// add makes a key. The caller holds mu.
func (c *Connect) add(k ConnectKey, secret string) connectKey {
	c.made++
	k.ID = strconv.Itoa(c.made)
	made := connectKey{k, secret}
	c.keys = append(c.keys, made)
	return made
}

func (c *Connect) bySecret(secret string) (ConnectKey, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropExpired()
	i := slices.IndexFunc(c.keys, func(k connectKey) bool { return secret != "" && k.secret == secret })
	if i < 0 {
		return ConnectKey{}, false
	}
	return c.keys[i].ConnectKey, true
}

// dropExpired removes expired keys. The caller holds mu.
func (c *Connect) dropExpired() {
	now := c.now()
	c.keys = slices.DeleteFunc(c.keys, func(k connectKey) bool { return !k.ExpiresAt.IsZero() && !k.ExpiresAt.After(now) })
}

// connectError answers in the form of Connect's API.
func connectError(w http.ResponseWriter, status, code int, text string) {
	writeJSON(w, status, map[string]any{"code": code, "error": text, "payload": nil})
}

// as lets through only calls with a live key.
func (c *Connect) as(next func(http.ResponseWriter, *http.Request, ConnectKey)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		secret, isKey := strings.CutPrefix(r.Header.Get("Authorization"), "Key ")
		k, ok := c.bySecret(secret)
		if !isKey || !ok {
			connectError(w, http.StatusUnauthorized, connectInvalidLogin, "Invalid login.")
			return
		}
		next(w, r, k)
	}
}

func noPermission(w http.ResponseWriter) {
	connectError(w, http.StatusForbidden, connectNoPermission, "You don't have permission to perform this operation.")
}

func (c *Connect) whoami(w http.ResponseWriter, _ *http.Request, k ConnectKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, u := range c.users {
		if u.GUID == k.User {
			writeJSON(w, http.StatusOK, map[string]string{"guid": u.GUID, "username": u.Username, "user_role": u.Role})
			return
		}
	}
	noPermission(w)
}

// keyJSON returns a key as the API shows it. secret is the whole secret when the key is made, and cut off ever after.
func (k ConnectKey) keyJSON(secret string, withEnd bool) map[string]any {
	out := map[string]any{"id": k.ID, "name": k.Name, "user_role": k.Role, "key": secret}
	if withEnd {
		out["expires_at"] = nil
		if !k.ExpiresAt.IsZero() {
			out["expires_at"] = k.ExpiresAt
		}
	}
	return out
}

func (c *Connect) list(w http.ResponseWriter, r *http.Request, own ConnectKey) {
	if own.User != r.PathValue("guid") {
		connectError(w, http.StatusNotFound, connectNotFound, "The requested object does not exist.")
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	keys := []any{}
	for _, k := range c.keys {
		if k.User == own.User {
			keys = append(keys, k.keyJSON(k.secret[max(0, len(k.secret)-4):], !c.o.NoExpiry))
		}
	}
	writeJSON(w, http.StatusOK, keys)
}

func (c *Connect) create(w http.ResponseWriter, r *http.Request, own ConnectKey) {
	if own.User != r.PathValue("guid") {
		noPermission(w)
		return
	}
	var in struct {
		Name      string     `json:"name"`
		UserRole  string     `json:"user_role"`
		ExpiresAt *time.Time `json:"expires_at"`
	}
	if !readJSON(w, r, &in) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	made := ConnectKey{Name: in.Name, User: own.User, Role: cmp.Or(in.UserRole, own.Role)}
	if in.ExpiresAt != nil && !c.o.NoExpiry {
		made.ExpiresAt = in.ExpiresAt.UTC()
	}
	switch rank := slices.Index(connectRoles, made.Role); {
	case in.Name == "" || rank < 0 || !made.ExpiresAt.IsZero() && !made.ExpiresAt.After(c.now()):
		connectError(w, http.StatusBadRequest, connectBadRequest, "The requested operation is invalid.")
	case rank > slices.Index(connectRoles, own.Role):
		noPermission(w)
	default:
		k := c.add(made, "connect-"+randomHex(16))
		writeJSON(w, http.StatusOK, k.keyJSON(k.secret, !c.o.NoExpiry))
	}
}

func (c *Connect) revoke(w http.ResponseWriter, r *http.Request, own ConnectKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.keys, func(k connectKey) bool {
		return k.User == r.PathValue("guid") && k.User == own.User && k.ID == r.PathValue("id")
	})
	if i < 0 {
		connectError(w, http.StatusNotFound, connectNotFound, "The requested object does not exist.")
		return
	}
	c.keys = slices.Delete(c.keys, i, i+1)
	w.WriteHeader(http.StatusNoContent)
}
