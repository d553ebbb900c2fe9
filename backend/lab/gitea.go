// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// GiteaUser is an account of a Gitea.
type GiteaUser struct {
	Name      string // compared without regard to case
	Password  string
	Admin     bool
	TwoFactor bool // a password alone is not enough
}

// GiteaToken is an access token as the inventory of a Gitea shows it: without its secret.
type GiteaToken struct {
	ID     int      `json:"id"`
	User   string   `json:"user"`
	Name   string   `json:"name"` // unique among those of a user
	Scopes []string `json:"scopes"`
}

// Gitea is a stand-in for the access tokens of a Gitea or Forgejo:
//
//	POST   /api/v1/users/{username}/tokens          {"name","scopes"} -> 201 {"id","name","sha1","token_last_eight"}
//	GET    /api/v1/users/{username}/tokens          -> 200 [{"id","name",…}], without secrets, newest first; ?page=&limit=, 30 by default, 50 at most
//	DELETE /api/v1/users/{username}/tokens/{token}  by id or name -> 204
//	GET    /api/v1/users/{username}                 -> 200 {"login"}
//	GET    /api/v1/user                             -> 200 by password, and by a token with that scope
//	GET    /lab/keys                                -> 200 {"keys":[...]}, the inventory, open to all
//	POST   /lab/faults, DELETE /lab/faults          see Control
//
// Tokens never expire. The paths of tokens require the name and password of the user or of an administrator, who may act as
// the user with the header Sudo. A user's former name is a redirect in paths (307), and unknown in Sudo (404). Make one with
// NewGitea.
type Gitea struct {
	Control
	mux *http.ServeMux

	mu      sync.Mutex
	users   []GiteaUser
	tokens  []heldGiteaToken
	made    int
	ownOnly bool              // see DeletesOwnOnly
	former  map[string]string // a user's present name by former name
}

// heldGiteaToken is a token with its secret.
type heldGiteaToken struct {
	GiteaToken
	secret string
}

var giteaScope = regexp.MustCompile(`^((read|write):(activitypub|admin|issue|misc|notification|organization|package|repository|user)|all|public-only)$`)

// NewGitea makes a Gitea without users.
func NewGitea() *Gitea {
	g := &Gitea{Control: Control{ops: []string{OpCreate, OpFind, OpRevoke, OpUse}}, mux: http.NewServeMux(), former: map[string]string{}}
	const tokens = "/api/v1/users/{username}/tokens"
	g.mux.HandleFunc("POST "+tokens, g.handle(OpCreate, g.asOwner(g.create)))
	g.mux.HandleFunc("GET "+tokens, g.handle(OpFind, g.asOwner(g.list)))
	g.mux.HandleFunc("DELETE "+tokens+"/{token}", g.handle(OpRevoke, g.asOwner(g.revoke)))
	g.mux.HandleFunc("GET /api/v1/users/{username}", g.handle(OpFind, g.asOwner(func(w http.ResponseWriter, _ *http.Request, _, owner string) {
		writeJSON(w, http.StatusOK, map[string]string{"login": owner})
	})))
	g.mux.HandleFunc("GET /api/v1/user", g.handle(OpUse, g.use))
	g.mux.HandleFunc("GET /lab/keys", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"keys": g.Live()})
	})
	g.mount(g.mux)
	return g
}

// ServeHTTP implements http.Handler.
func (g *Gitea) ServeHTTP(w http.ResponseWriter, r *http.Request) { g.mux.ServeHTTP(w, r) }

// SetUser adds a user, or replaces the one of that name.
func (g *Gitea) SetUser(u GiteaUser) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if old := g.user(u.Name); old != nil {
		*old = u
		return
	}
	g.users = append(g.users, u)
}

// Rename gives a user another name. Paths with the former name redirect there; Sudo does not know it.
func (g *Gitea) Rename(from, to string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.former[from] = to
	delete(g.former, to)
	g.user(from).Name = to
	for i := range g.tokens {
		if g.tokens[i].User == from {
			g.tokens[i].User = to
		}
	}
}

// RemoveUser removes a user and all their tokens.
func (g *Gitea) RemoveUser(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.users = slices.DeleteFunc(g.users, func(u GiteaUser) bool { return u.Name == name })
	g.tokens = slices.DeleteFunc(g.tokens, func(t heldGiteaToken) bool { return t.User == name })
}

// DeletesOwnOnly makes DELETE look for the token only among the caller's own, so that an administrator who deletes another
// user's token gets 404. Some versions behave so.
func (g *Gitea) DeletesOwnOnly(own bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ownOnly = own
}

// Live returns the tokens that live, oldest first; never nil.
func (g *Gitea) Live() []GiteaToken {
	g.mu.Lock()
	defer g.mu.Unlock()
	live := make([]GiteaToken, 0, len(g.tokens))
	for _, t := range g.tokens {
		live = append(live, t.GiteaToken)
	}
	return live
}

// Valid reports whether key is a token that lives.
func (g *Gitea) Valid(key string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.ContainsFunc(g.tokens, func(t heldGiteaToken) bool { return t.secret == key })
}

// user finds a user by name, nil if there is none. The caller holds mu.
func (g *Gitea) user(name string) *GiteaUser {
	for i := range g.users {
		if strings.EqualFold(g.users[i].Name, name) {
			return &g.users[i]
		}
	}
	return nil
}

func giteaRefusal(w http.ResponseWriter, status int, text string) {
	writeJSON(w, status, map[string]string{"message": text, "url": "/api/swagger"})
}

// asOwner lets through callers who authenticate by password as the user of the path or as an administrator. It holds mu
// during next.
func (g *Gitea) asOwner(next func(w http.ResponseWriter, r *http.Request, doer, owner string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		name, password, ok := r.BasicAuth()
		g.mu.Lock()
		defer g.mu.Unlock()
		doer := g.user(name)
		if !ok || doer == nil || doer.Password != password {
			giteaRefusal(w, http.StatusUnauthorized, "auth required")
			return
		}
		if sudo := r.Header.Get("Sudo"); sudo != "" {
			as := g.user(sudo)
			switch {
			case !doer.Admin:
				giteaRefusal(w, http.StatusForbidden, "Only administrators allowed to sudo.")
				return
			case as == nil:
				giteaRefusal(w, http.StatusNotFound, "The target couldn't be found.")
				return
			}
			doer = as
		}
		owner := g.user(r.PathValue("username"))
		switch now, renamed := g.former[r.PathValue("username")]; {
		case renamed:
			http.Redirect(w, r, strings.Replace(r.URL.EscapedPath(), r.PathValue("username"), now, 1), http.StatusTemporaryRedirect)
		case doer.TwoFactor:
			giteaRefusal(w, http.StatusUnauthorized, "invalid provided OTP")
		case owner == nil:
			giteaRefusal(w, http.StatusNotFound, "The target couldn't be found.")
		case owner != doer && !doer.Admin:
			giteaRefusal(w, http.StatusForbidden, "doer should be the site admin or be same as the contextUser")
		default:
			next(w, r, doer.Name, owner.Name)
		}
	}
}

func (g *Gitea) create(w http.ResponseWriter, r *http.Request, _, owner string) {
	var in struct {
		Name   string   `json:"name"`
		Scopes []string `json:"scopes"`
	}
	if !readJSON(w, r, &in) {
		return
	}
	switch {
	case in.Name == "":
		giteaRefusal(w, http.StatusUnprocessableEntity, "[Name]: Required")
	case slices.ContainsFunc(g.tokens, func(t heldGiteaToken) bool { return t.User == owner && t.Name == in.Name }):
		giteaRefusal(w, http.StatusBadRequest, "access token name has been used already")
	case len(in.Scopes) == 0:
		giteaRefusal(w, http.StatusBadRequest, "access token must have a scope")
	case slices.ContainsFunc(in.Scopes, func(s string) bool { return !giteaScope.MatchString(s) }):
		giteaRefusal(w, http.StatusBadRequest, "invalid access token scope provided")
	default:
		g.made++
		t := heldGiteaToken{GiteaToken{ID: g.made, User: owner, Name: in.Name, Scopes: in.Scopes}, randomHex(20)}
		g.tokens = append(g.tokens, t)
		writeJSON(w, http.StatusCreated, map[string]any{
			"id": t.ID, "name": t.Name, "sha1": t.secret, "token_last_eight": t.secret[32:], "scopes": t.Scopes,
		})
	}
}

func (g *Gitea) list(w http.ResponseWriter, r *http.Request, _, owner string) {
	number := func(name string, def int) int {
		if n, err := strconv.Atoi(r.URL.Query().Get(name)); err == nil && n > 0 {
			return n
		}
		return def
	}
	limit := min(number("limit", 30), 50)
	skip := (number("page", 1) - 1) * limit
	listed := []map[string]any{}
	for _, t := range slices.Backward(g.tokens) {
		if t.User != owner {
			continue
		}
		if skip--; skip < 0 && len(listed) < limit {
			listed = append(listed, map[string]any{"id": t.ID, "name": t.Name, "sha1": "", "token_last_eight": t.secret[32:], "scopes": t.Scopes})
		}
	}
	writeJSON(w, http.StatusOK, listed)
}

func (g *Gitea) revoke(w http.ResponseWriter, r *http.Request, doer, owner string) {
	if g.ownOnly {
		owner = doer
	}
	token := r.PathValue("token")
	id, _ := strconv.Atoi(token)
	i := slices.IndexFunc(g.tokens, func(t heldGiteaToken) bool {
		return t.User == owner && (id != 0 && t.ID == id || id == 0 && t.Name == token)
	})
	if i < 0 {
		giteaRefusal(w, http.StatusNotFound, "The target couldn't be found.")
		return
	}
	g.tokens = slices.Delete(g.tokens, i, i+1)
	w.WriteHeader(http.StatusNoContent)
}

// use accepts a token as "token" or "Bearer".
func (g *Gitea) use(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if name, password, ok := r.BasicAuth(); ok {
		if u := g.user(name); u != nil && u.Password == password && !u.TwoFactor {
			writeJSON(w, http.StatusOK, map[string]string{"login": u.Name})
			return
		}
	}
	_, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	for _, t := range g.tokens {
		switch {
		case t.secret != key:
		case !slices.ContainsFunc(t.Scopes, func(s string) bool { return s == "all" || strings.HasSuffix(s, ":user") }):
			giteaRefusal(w, http.StatusForbidden, "token does not have at least one of required scope(s)")
			return
		default:
			writeJSON(w, http.StatusOK, map[string]string{"login": t.User})
			return
		}
	}
	giteaRefusal(w, http.StatusUnauthorized, "user does not exist [uid: 0, name: ]")
}
