// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"crypto/sha256"
	"crypto/subtle"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// GitProxyOptions configures a GitProxy.
type GitProxyOptions struct {
	OperatorKey string // GITPROXY_API_KEY; required
	Provider    string // auth.provider; only with local, the default, can users made through the API log in
	ReadOnly    bool   // the user store takes no changes
	NoUserKeys  bool   // a version without keys for users
}

// GitProxyUser is a user as the inventory of a GitProxy shows it: without password and key.
type GitProxyUser struct {
	Username string   `json:"username"`
	Roles    []string `json:"roles"`
	HasKey   bool     `json:"has_key"`
}

// GitProxy is a stand-in for git-proxy-java with a local user store:
//
//	POST   /login                   form username, password -> 302 to /dashboard/ with a session, or to /login.html?error
//	GET    /api/me                  -> 200 {"username","authorities","hasApiKey",…}
//	POST   /api/me/api-key          -> 200 {"key"}; wants the role SELF_CERTIFY (403)
//	DELETE /api/me/api-key          -> 204, also without a key
//	GET    /api/users               -> 200 [{"username",…}]
//	POST   /api/users               {"username","password","email","roles"} -> 201 {"username"}
//	GET    /api/users/{name}        -> 200 {"username",…}
//	DELETE /api/users/{name}        -> 204
//	GET    /api/push                use of a key -> 200
//	GET    /lab/keys                -> 200 {"keys":[...]}, the users, open to all
//	POST   /lab/faults, DELETE /lab/faults, see Control
//
// A call is made by the session's user, or by the holder of the key in X-Api-Key: the operator's key or a user's. A wrong
// key is ignored. With neither, the answer is 401 without a body. /api/users requires an administrator (403), which the
// operator is; the operator does not have SELF_CERTIFY. A call that changes something and has no X-Api-Key must repeat the
// cookie XSRF-TOKEN in the header X-XSRF-TOKEN (403). Each user has one key, which does not expire: making another ends it.
// To make a user with a taken name, or to delete the last administrator, is 409. A read-only user store answers changes with
// 501. Make one with NewGitProxy.
type GitProxy struct {
	Control
	mux *http.ServeMux
	o   GitProxyOptions

	mu        sync.Mutex
	users     []proxyUser       // oldest first
	passwords []string          // of all users ever made
	sessions  map[string]string // username by the cookie's value
}

type proxyUser struct {
	name, password string
	roles          []string
	key            [sha256.Size]byte // hash; zero = none
}

// caller is the user or operator who makes a call.
type caller struct {
	name  string
	roles []string
}

func (c caller) has(role string) bool { return slices.Contains(c.roles, role) }

// NewGitProxy makes a GitProxy without users. It panics if there is no operator key.
func NewGitProxy(o GitProxyOptions) *GitProxy {
	if o.OperatorKey == "" {
		panic("lab: git-proxy-java without an operator's key")
	}
	g := &GitProxy{
		Control: Control{ops: []string{OpLogin, OpCheck, OpMakeKey, OpDropKey, OpFind, OpCreate, OpRevoke, OpUse}},
		mux:     http.NewServeMux(), o: o, sessions: map[string]string{},
	}
	g.mux.HandleFunc("POST /login", g.handle(OpLogin, g.login))
	g.mux.HandleFunc("GET /api/me", g.handle(OpCheck, g.as("", g.me)))
	g.mux.HandleFunc("POST /api/me/api-key", g.handle(OpMakeKey, g.as("", g.makeKey)))
	g.mux.HandleFunc("DELETE /api/me/api-key", g.handle(OpDropKey, g.as("", g.dropKey)))
	g.mux.HandleFunc("GET /api/users", g.handle(OpFind, g.as("ADMIN", g.list)))
	g.mux.HandleFunc("GET /api/users/{name}", g.handle(OpFind, g.as("ADMIN", g.get)))
	g.mux.HandleFunc("POST /api/users", g.handle(OpCreate, g.as("ADMIN", g.create)))
	g.mux.HandleFunc("DELETE /api/users/{name}", g.handle(OpRevoke, g.as("ADMIN", g.remove)))
	g.mux.HandleFunc("GET /api/push", g.handle(OpUse, g.as("", func(w http.ResponseWriter, _ *http.Request, c caller) {
		writeJSON(w, http.StatusOK, map[string]string{"user": c.name})
	})))
	g.mux.HandleFunc("GET /lab/keys", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"keys": g.Users()})
	})
	g.mount(g.mux)
	return g
}

// ServeHTTP implements http.Handler.
func (g *GitProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) { g.mux.ServeHTTP(w, r) }

// Users returns the users, oldest first; never nil.
func (g *GitProxy) Users() []GitProxyUser {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make([]GitProxyUser, 0, len(g.users))
	for _, u := range g.users {
		all = append(all, GitProxyUser{u.name, slices.Clone(u.roles), u.key != [sha256.Size]byte{}})
	}
	return all
}

// Secrets returns the password of each user that was ever made and the value of each session, which only the server and the
// client that asked for them may know.
func (g *GitProxy) Secrets() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.AppendSeq(slices.Clone(g.passwords), maps.Keys(g.sessions))
}

// Valid reports whether key is the key of a user.
func (g *GitProxy) Valid(key string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.byKey(key)
	return ok
}

// byKey finds the caller that a key stands for. The caller holds mu.
func (g *GitProxy) byKey(key string) (caller, bool) {
	if subtle.ConstantTimeCompare([]byte(key), []byte(g.o.OperatorKey)) == 1 {
		return caller{"operator-api-key", []string{"USER", "ADMIN"}}, true
	}
	sum := sha256.Sum256([]byte(key))
	i := slices.IndexFunc(g.users, func(u proxyUser) bool { return u.key == sum })
	if i < 0 {
		return caller{}, false
	}
	return caller{g.users[i].name, g.users[i].roles}, true
}

// caller finds out who makes a call. Its own caller holds mu.
func (g *GitProxy) caller(r *http.Request) (caller, bool) {
	if cookie, err := r.Cookie("JSESSIONID"); err == nil {
		if i := g.index(g.sessions[cookie.Value]); i >= 0 {
			return caller{g.users[i].name, g.users[i].roles}, true
		}
	}
	if key := r.Header.Get("X-Api-Key"); key != "" {
		return g.byKey(key)
	}
	return caller{}, false
}

// index finds a user by name, -1 if there is none. The caller holds mu.
func (g *GitProxy) index(name string) int {
	return slices.IndexFunc(g.users, func(u proxyUser) bool { return u.name == name })
}

// as lets through callers who are known and have the role; next runs with mu held.
func (g *GitProxy) as(role string, next func(http.ResponseWriter, *http.Request, caller)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && len(r.Header.Values("X-Api-Key")) == 0 && !csrfHolds(r) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		who, known := g.caller(r)
		switch {
		case !known:
			w.WriteHeader(http.StatusUnauthorized)
		case role != "" && !who.has(role):
			w.WriteHeader(http.StatusForbidden)
		default:
			next(w, r, who)
		}
	}
}

// csrfHolds compares the cookie with the header; the server stores neither.
func csrfHolds(r *http.Request) bool {
	cookie, err := r.Cookie("XSRF-TOKEN")
	return err == nil && cookie.Value != "" && cookie.Value == r.Header.Get("X-XSRF-TOKEN")
}

func (g *GitProxy) login(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	g.mu.Lock()
	defer g.mu.Unlock()
	i := g.index(r.PostForm.Get("username"))
	local := g.o.Provider == "" || g.o.Provider == "local"
	if !local || i < 0 || r.PostForm.Get("password") != g.users[i].password {
		w.Header().Set("Location", "/login.html?error")
		w.WriteHeader(http.StatusFound)
		return
	}
	session := randomHex(16)
	g.sessions[session] = g.users[i].name
	http.SetCookie(w, &http.Cookie{Name: "JSESSIONID", Value: session, Path: "/", HttpOnly: true})
	http.SetCookie(w, &http.Cookie{Name: "XSRF-TOKEN", Path: "/", MaxAge: -1})
	w.Header().Set("Location", "/dashboard/")
	w.WriteHeader(http.StatusFound)
}

func (g *GitProxy) me(w http.ResponseWriter, _ *http.Request, who caller) {
	authorities := []string{}
	for _, role := range who.roles {
		authorities = append(authorities, "ROLE_"+role)
	}
	me := map[string]any{"username": who.name, "emails": []string{}, "scmIdentities": []string{}, "authorities": authorities}
	if i := g.index(who.name); !g.o.NoUserKeys {
		me["hasApiKey"] = i >= 0 && g.users[i].key != [sha256.Size]byte{}
	}
	writeJSON(w, http.StatusOK, me)
}

// changes reports whether the user store takes changes; if not, it answers the request.
func (g *GitProxy) changes(w http.ResponseWriter, text string) bool {
	if g.o.ReadOnly {
		writeError(w, http.StatusNotImplemented, text)
	}
	return !g.o.ReadOnly
}

const noMutations = "Profile mutations are not supported with the current user store backend"

func (g *GitProxy) makeKey(w http.ResponseWriter, r *http.Request, who caller) {
	i := g.index(who.name)
	switch {
	case g.o.NoUserKeys:
		http.NotFound(w, r)
	case !g.changes(w, noMutations):
	case !who.has("SELF_CERTIFY") || i < 0:
		writeError(w, http.StatusForbidden, "API key generation requires the SELF_CERTIFY role")
	default:
		key := "gp_" + randomHex(32)
		g.users[i].key = sha256.Sum256([]byte(key))
		writeJSON(w, http.StatusOK, map[string]string{"key": key})
	}
}

func (g *GitProxy) dropKey(w http.ResponseWriter, r *http.Request, who caller) {
	switch {
	case g.o.NoUserKeys:
		http.NotFound(w, r)
	case g.changes(w, noMutations):
		if i := g.index(who.name); i >= 0 {
			g.users[i].key = [sha256.Size]byte{}
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

func (g *GitProxy) list(w http.ResponseWriter, _ *http.Request, _ caller) {
	all := []map[string]any{}
	for _, u := range g.users {
		all = append(all, map[string]any{"username": u.name, "primaryEmail": nil, "scmProviders": []string{}, "pushCounts": map[string]int{}})
	}
	writeJSON(w, http.StatusOK, all)
}

func (g *GitProxy) get(w http.ResponseWriter, r *http.Request, _ caller) {
	if g.index(r.PathValue("name")) < 0 {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"username": r.PathValue("name"), "emails": []string{}, "scmIdentities": []string{}, "pushCounts": map[string]int{}})
}

func (g *GitProxy) create(w http.ResponseWriter, r *http.Request, _ caller) {
	var in struct {
		Username string   `json:"username"`
		Password string   `json:"password"`
		Email    string   `json:"email"`
		Roles    []string `json:"roles"`
	}
	switch {
	case !g.changes(w, "User creation requires a JDBC user store"):
	case !readJSON(w, r, &in):
	case strings.TrimSpace(in.Username) == "":
		writeError(w, http.StatusBadRequest, "username is required")
	case strings.TrimSpace(in.Password) == "":
		writeError(w, http.StatusBadRequest, "password is required")
	case g.index(in.Username) >= 0:
		writeError(w, http.StatusConflict, "User already exists: "+in.Username)
	default:
		if len(in.Roles) == 0 {
			in.Roles = []string{"USER"}
		}
		g.users = append(g.users, proxyUser{name: in.Username, password: in.Password, roles: in.Roles})
		g.passwords = append(g.passwords, in.Password)
		writeJSON(w, http.StatusCreated, map[string]string{"username": in.Username})
	}
}

func (g *GitProxy) remove(w http.ResponseWriter, r *http.Request, _ caller) {
	if !g.changes(w, "User deletion requires a JDBC user store") {
		return
	}
	i := g.index(r.PathValue("name"))
	if i < 0 {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	isAdmin := func(u proxyUser) bool { return slices.Contains(u.roles, "ADMIN") }
	rest := slices.Delete(slices.Clone(g.users), i, i+1)
	if isAdmin(g.users[i]) && !slices.ContainsFunc(rest, isAdmin) {
		writeError(w, http.StatusConflict, "Cannot delete the last admin user")
		return
	}
	g.users = rest
	w.WriteHeader(http.StatusNoContent)
}
