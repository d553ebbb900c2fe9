// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"cmp"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

var projectName = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)

// KeyAPIOptions configures a KeyAPI.
type KeyAPIOptions struct {
	AdminToken string            // the bearer token of all calls except the use of a key; required
	MayCreate  func(string) bool // which bearer tokens may make keys, instead of the admin token; nil = only the admin token
	Now        func() time.Time  // nil = time.Now
}

// Key is a key as the inventory of a KeyAPI shows it: without its secret.
type Key struct {
	ID        string    `json:"id"`
	Project   string    `json:"project"`
	Name      string    `json:"name"` // unique among the live keys of a project
	Scopes    []string  `json:"scopes"`
	ExpiresAt time.Time `json:"expires_at"` // UTC
}

// KeyAPI is a stand-in for any REST API that makes, extends, finds and ends keys:
//
//	POST   /v1/projects/{project}/keys        {"name","scopes","expires_at"} -> 201 {"id","name","secret","expires_at"}
//	GET    /v1/projects/{project}/keys?name=  -> 200 {"keys":[{"id","name","expires_at"}]}
//	PATCH  /v1/projects/{project}/keys/{id}   {"expires_at"} -> 200 {"id","expires_at"}
//	DELETE /v1/projects/{project}/keys/{id}   -> 204
//	GET    /v1/whoami                         -> 200
//	GET    /v1/data                           with X-Acme-Key: <secret> -> 200 while the key lives
//	GET    /lab/keys                          -> 200 {"keys":[...]}, the inventory, open to all
//	POST   /lab/faults, DELETE /lab/faults    see Control
//
// All /v1 paths but data require the admin token as bearer (401); MayCreate may require another one to make keys. Projects
// need not be made; a name outside [a-z0-9-]{1,40} is unknown (404). Bodies are JSON objects (415) with exactly the members
// above (400); names are not empty, expiries lie in the future (400) and are required. A name that a live key of the project
// has is taken (409). A key that was ended or has expired is unknown (404). Make one with NewKeyAPI.
type KeyAPI struct {
	Control
	mux   *http.ServeMux
	admin string
	now   func() time.Time

	mu    sync.Mutex
	made  int                    // number of keys made so far
	byID  map[string]*heldKey    // an expired key stays until it is looked up
	names map[[2]string]*heldKey // by project and name
}

// heldKey is a key with its secret.
type heldKey struct {
	Key
	secret string
	number int // position in the order in which keys were made
}

// NewKeyAPI makes a KeyAPI without keys. It panics if there is no admin token.
func NewKeyAPI(o KeyAPIOptions) *KeyAPI {
	if o.AdminToken == "" {
		panic("lab: key API without an admin token")
	}
	a := &KeyAPI{
		Control: Control{ops: []string{OpCreate, OpExtend, OpRevoke, OpFind, OpCheck, OpUse}},
		mux:     http.NewServeMux(),
		admin:   o.AdminToken,
		now:     clock(o.Now),
		byID:    make(map[string]*heldKey),
		names:   make(map[[2]string]*heldKey),
	}
	mayCreate := o.MayCreate
	if mayCreate == nil {
		mayCreate = a.isAdmin
	}
	const keys = "/v1/projects/{project}/keys"
	a.mux.HandleFunc("POST "+keys, a.handle(OpCreate, a.as(mayCreate, a.create)))
	a.mux.HandleFunc("GET "+keys, a.handle(OpFind, a.as(a.isAdmin, a.find)))
	a.mux.HandleFunc("PATCH "+keys+"/{id}", a.handle(OpExtend, a.as(a.isAdmin, a.extend)))
	a.mux.HandleFunc("DELETE "+keys+"/{id}", a.handle(OpRevoke, a.as(a.isAdmin, a.revoke)))
	a.mux.HandleFunc("GET /v1/whoami", a.handle(OpCheck, a.as(a.isAdmin, a.whoami)))
	a.mux.HandleFunc("GET /v1/data", a.handle(OpUse, a.use))
	a.mux.HandleFunc("GET /lab/keys", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"keys": a.Live()})
	})
	a.mount(a.mux)
	return a
}

// ServeHTTP implements http.Handler.
func (a *KeyAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// Live returns the keys that live now, oldest first; never nil.
func (a *KeyAPI) Live() []Key {
	live := []Key{}
	for _, k := range a.held() {
		live = append(live, k.Key)
	}
	return live
}

// held returns the live keys, oldest first.
func (a *KeyAPI) held() []heldKey {
	a.mu.Lock()
	defer a.mu.Unlock()
	var held []heldKey
	for _, k := range a.byID {
		if a.live(k) != nil {
			held = append(held, *k)
		}
	}
	slices.SortFunc(held, func(x, y heldKey) int { return x.number - y.number })
	return held
}

// Valid reports whether secret is the secret of a live key.
func (a *KeyAPI) Valid(secret string) bool {
	_, ok := a.bySecret(secret)
	return ok
}

func (a *KeyAPI) isAdmin(token string) bool {
	return subtle.ConstantTimeCompare([]byte(token), []byte(a.admin)) == 1
}

// as lets through only calls whose bearer token may accepts and whose project name, if the path has one, is valid.
func (a *KeyAPI) as(may func(token string) bool, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !bearer || !may(token) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			writeError(w, http.StatusUnauthorized, "the bearer token is missing or wrong")
			return
		}
		if p := r.PathValue("project"); p != "" && !projectName.MatchString(p) {
			writeError(w, http.StatusNotFound, "no such project")
			return
		}
		next(w, r)
	}
}

func (a *KeyAPI) create(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Name      string    `json:"name"`
		Scopes    []string  `json:"scopes"`
		ExpiresAt time.Time `json:"expires_at"`
	}
	if !readJSON(w, r, &in) {
		return
	}
	if in.Name == "" {
		writeError(w, http.StatusBadRequest, "name: missing")
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !in.ExpiresAt.After(a.now()) {
		writeError(w, http.StatusBadRequest, "expires_at: want a time in the future")
		return
	}
	project := r.PathValue("project")
	if a.live(a.names[[2]string{project, in.Name}]) != nil {
		writeError(w, http.StatusConflict, "name: in use")
		return
	}
	a.made++
	k := &heldKey{
		Key: Key{ID: "key-" + randomHex(8), Project: project, Name: in.Name, Scopes: append([]string{}, in.Scopes...),
			ExpiresAt: in.ExpiresAt.UTC()},
		secret: "acme_" + randomHex(20), number: a.made,
	}
	a.byID[k.ID], a.names[[2]string{project, k.Name}] = k, k
	writeJSON(w, http.StatusCreated, map[string]any{"id": k.ID, "name": k.Name, "secret": k.secret, "expires_at": k.ExpiresAt})
}

func (a *KeyAPI) find(w http.ResponseWriter, r *http.Request) {
	type found struct {
		ID        string    `json:"id"`
		Name      string    `json:"name"`
		ExpiresAt time.Time `json:"expires_at"`
	}
	query := r.URL.Query()
	keys := []found{}
	for _, k := range a.Live() {
		if k.Project == r.PathValue("project") && (!query.Has("name") || k.Name == query.Get("name")) {
			keys = append(keys, found{k.ID, k.Name, k.ExpiresAt})
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{"keys": keys})
}

func (a *KeyAPI) extend(w http.ResponseWriter, r *http.Request) {
	var in struct {
		ExpiresAt time.Time `json:"expires_at"`
	}
	if !readJSON(w, r, &in) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	k := a.named(r)
	if k == nil {
		writeError(w, http.StatusNotFound, "no such key")
		return
	}
	if !in.ExpiresAt.After(a.now()) {
		writeError(w, http.StatusBadRequest, "expires_at: want a time in the future")
		return
	}
	k.ExpiresAt = in.ExpiresAt.UTC()
	writeJSON(w, http.StatusOK, map[string]any{"id": k.ID, "expires_at": k.ExpiresAt})
}

func (a *KeyAPI) revoke(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := a.named(r)
	if k == nil {
		writeError(w, http.StatusNotFound, "no such key")
		return
	}
	a.drop(k)
	w.WriteHeader(http.StatusNoContent)
}

func (a *KeyAPI) whoami(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]string{"name": "admin"})
}

func (a *KeyAPI) use(w http.ResponseWriter, r *http.Request) {
	k, ok := a.bySecret(r.Header.Get("X-Acme-Key"))
	if !ok {
		writeError(w, http.StatusUnauthorized, "the key is missing, unknown or has ended")
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"key": k.ID, "project": k.Project, "scopes": k.Scopes})
}

func (a *KeyAPI) bySecret(secret string) (Key, bool) {
	held := a.held()
	i := slices.IndexFunc(held, func(k heldKey) bool { return k.secret == secret })
	if i < 0 {
		return Key{}, false
	}
	return held[i].Key, true
}

// named returns the live key that the path names, or nil. The caller holds mu.
func (a *KeyAPI) named(r *http.Request) *heldKey {
	if k := a.live(a.byID[r.PathValue("id")]); k != nil && k.Project == r.PathValue("project") {
		return k
	}
	return nil
}

// live returns k, or nil if k is nil or has expired. The caller holds mu.
func (a *KeyAPI) live(k *heldKey) *heldKey {
	if k == nil || k.ExpiresAt.After(a.now()) {
		return k
	}
	a.drop(k)
	return nil
}

// drop forgets a key. The caller holds mu.
func (a *KeyAPI) drop(k *heldKey) {
	delete(a.byID, k.ID)
	delete(a.names, [2]string{k.Project, k.Name})
}

// readJSON reads one JSON object that has no members but those of v. If the body is anything else, it answers and returns
// false.
func readJSON(w http.ResponseWriter, r *http.Request, v any) bool {
	if !isJSON(r) {
		writeError(w, http.StatusUnsupportedMediaType, "want Content-Type application/json")
		return false
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := cmp.Or(d.Decode(v), trailing(d)); err != nil {
		writeError(w, http.StatusBadRequest, "the body is not the JSON object that was asked for")
		return false
	}
	return true
}

// trailing returns an error if anything but white space follows what d has read.
func trailing(d *json.Decoder) error {
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the JSON value")
	}
	return nil
}

// isJSON reports whether the request says that its body is JSON; parameters such as charset may follow.
func isJSON(r *http.Request) bool {
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && media == "application/json"
}
