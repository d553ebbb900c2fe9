// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"cmp"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// GitLabOptions configures a GitLab.
type GitLabOptions struct {
	AdminToken  string           // token of the administrator root, the first user, with scope api and without expiry; "" = no such user
	MaxLifetime int              // days; 0 = 365
	Free        bool             // no project and group access tokens, as on gitlab.com without a subscription
	Before1711  bool             // tokens of service accounts can be made, but neither listed nor ended by id
	Now         func() time.Time // nil = time.Now
}

// GitLabUser is an account of a GitLab.
type GitLabUser struct {
	Name  string
	Admin bool
	Group string // of a service account: the path of the group that it belongs to
}

// GitLabToken is a token as the inventory of a GitLab shows it: without its secret.
type GitLabToken struct {
	ID        int64    `json:"id"`
	Kind      string   `json:"kind"` // personal, impersonation, project, group or service_account
	Of        string   `json:"of"`   // the path of the project or group, else the user
	Name      string   `json:"name"`
	Scopes    []string `json:"scopes"`
	Level     int      `json:"access_level,omitempty"`
	ExpiresAt string   `json:"expires_at"` // the first day on which it no longer works
}

// GitLab is a stand-in for the token API of a GitLab instance, below /api/v4:
//
//	GET    /personal_access_tokens?user_id=&state=&search=     GET, DELETE /personal_access_tokens/{id}, /self
//	POST   /personal_access_tokens/{id}/rotate, /self/rotate
//	POST   /users/{user}/personal_access_tokens                 administrators only
//	POST, GET /users/{user}/impersonation_tokens                administrators only; DELETE with /{id}
//	POST, GET /projects/{id}/access_tokens, /groups/{id}/…      DELETE with /{id}, POST with /{id}/rotate
//	POST, GET /groups/{id}/service_accounts/{user}/personal_access_tokens   DELETE with /{id}, POST with /{id}/rotate
//	GET    /users?username=
//	GET    /user                                                200 with a token that lives: the use of a key
//	GET    /lab/keys                                            200 {"keys":[...]}, the inventory, open to all
//	POST   /lab/faults, DELETE /lab/faults                      see Control
//
// It refuses as GitLab does: 404 for what a caller may not see, 401 for what the caller may not list, 400 for what the
// caller may not make or end (422 for a service account's). Any token but an impersonation token may end itself, whatever
// its scopes. A token ends at 00:00 UTC of its expires_at. Rotation ends the old token. An attempt to rotate an ended token
// with itself ends all tokens that descend from it. The bot of a project or group token is removed with its token, so ending
// such a token again is 404 (as in older versions); other tokens may be ended again and again.
//
// Left out: bearer tokens and tokens in the query (only PRIVATE-TOKEN is read), Admin Mode, tiers other than Free, mails,
// and visibility to anybody but members. Make one with NewGitLab.
type GitLab struct {
	Control
	mux *http.ServeMux
	o   GitLabOptions
	now func() time.Time

	mu        sync.Mutex
	users     []GitLabUser   // a user's id is its place, counted from 1
	places    []*gitlabPlace // a project's or group's id is its place, counted from 1
	tokens    []*gitlabToken // a token's id is its place, counted from 1
	callsLeft int            // calls left before they are throttled; -1 = no limit
	resetAt   time.Time      // when callsLeft is reset
}

// gitlabPlace is a project or group.
type gitlabPlace struct {
	id      int64
	kind    string // project or group
	path    string
	members map[string]int // level by user's name
}

type gitlabToken struct {
	GitLabToken
	secret   string
	user     int64        // the user that it acts as; 0 = the bot of its place
	place    *gitlabPlace // of project and group tokens
	created  time.Time
	revoked  bool
	given    bool  // made by the test through AddToken, not requested
	previous int64 // the token that it replaced
}

// NewGitLab makes a GitLab whose only user is root.
func NewGitLab(o GitLabOptions) *GitLab {
	o.MaxLifetime = cmp.Or(o.MaxLifetime, 365)
	g := &GitLab{
		Control: Control{ops: []string{OpCreate, OpRotate, OpRevoke, OpFind, OpUsers, OpCheck, OpUse}},
		mux:     http.NewServeMux(), o: o, now: clock(o.Now), callsLeft: -1,
	}
	if o.AdminToken != "" {
		g.users = []GitLabUser{{Name: "root", Admin: true}}
		g.add(&gitlabToken{user: 1, given: true, GitLabToken: GitLabToken{Kind: "personal", Of: "root", Name: "given", Scopes: []string{"api"}}}).secret = o.AdminToken
	}
	g.route("GET", "/personal_access_tokens", OpFind, g.listPersonal)
	g.route("GET", "/personal_access_tokens/{token}", OpCheck, g.show)
	g.route("DELETE", "/personal_access_tokens/{token}", OpRevoke, g.revokePersonal)
	g.route("POST", "/personal_access_tokens/{token}/rotate", OpRotate, g.rotatePersonal)
	g.route("POST", "/users/{user}/personal_access_tokens", OpCreate, g.ofUser("personal", g.create))
	for _, each := range []struct {
		path string
		find func(gitlabHandler) gitlabHandler
	}{
		{"/users/{user}/impersonation_tokens", func(h gitlabHandler) gitlabHandler { return g.ofUser("impersonation", h) }},
		{"/projects/{id}/access_tokens", func(h gitlabHandler) gitlabHandler { return g.ofPlace("project", h) }},
		{"/groups/{id}/access_tokens", func(h gitlabHandler) gitlabHandler { return g.ofPlace("group", h) }},
		{"/groups/{id}/service_accounts/{user}/personal_access_tokens", g.ofServiceAccount},
	} {
		g.route("POST", each.path, OpCreate, each.find(g.create))
		if !o.Before1711 || !strings.Contains(each.path, "service_accounts") {
			g.route("GET", each.path, OpFind, each.find(g.list))
			g.route("DELETE", each.path+"/{token}", OpRevoke, each.find(g.revoke))
		}
		if !strings.Contains(each.path, "impersonation") {
			g.route("POST", each.path+"/{token}/rotate", OpRotate, each.find(g.rotate))
		}
	}
	g.route("GET", "/users", OpUsers, g.findUsers)
	g.route("GET", "/user", OpUse, g.use)
	if o.Before1711 { // the path exists, with other methods
		g.mux.HandleFunc("GET /api/v4/groups/{id}/service_accounts/{user}/personal_access_tokens", func(w http.ResponseWriter, _ *http.Request) {
			writeError(w, http.StatusMethodNotAllowed, "405 Not Allowed")
		})
	}
	g.mux.HandleFunc("/api/v4/", func(w http.ResponseWriter, _ *http.Request) { writeError(w, http.StatusNotFound, "404 Not Found") })
	g.mux.HandleFunc("GET /lab/keys", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"keys": g.Live()})
	})
	g.mount(g.mux)
	return g
}

// ServeHTTP implements http.Handler.
func (g *GitLab) ServeHTTP(w http.ResponseWriter, r *http.Request) { g.mux.ServeHTTP(w, r) }

// AddUser adds a user, or a service account, and returns its id.
func (g *GitLab) AddUser(u GitLabUser) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.users = append(g.users, u)
	return int64(len(g.users))
}

// AddProject adds a project with its members' levels, and returns its id.
func (g *GitLab) AddProject(path string, members map[string]int) int64 {
	return g.addPlace("project", path, members)
}

// AddGroup adds a group with its members' levels, and returns its id.
func (g *GitLab) AddGroup(path string, members map[string]int) int64 {
	return g.addPlace("group", path, members)
}

func (g *GitLab) addPlace(kind, path string, members map[string]int) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.places = append(g.places, &gitlabPlace{id: int64(len(g.places) + 1), kind: kind, path: path, members: members})
	return int64(len(g.places))
}

// Move changes the path of a project or group.
func (g *GitLab) Move(id int64, path string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.places[id-1].path = path
}

// AddToken adds a personal access token for a user, which ends after the given number of days, and returns its secret. The
// inventory leaves it out.
func (g *GitLab) AddToken(user int64, days int, scopes ...string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.add(&gitlabToken{user: user, given: true, GitLabToken: GitLabToken{
		Kind: "personal", Of: g.users[user-1].Name, Name: "given", Scopes: scopes, ExpiresAt: g.day(days),
	}})
	return t.secret
}

// Throttle lets the given number of calls through and answers later ones with 429, until d has passed.
func (g *GitLab) Throttle(calls int, d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.callsLeft, g.resetAt = calls, g.now().Add(d)
}

// Live returns the tokens that live now, oldest first; never nil.
func (g *GitLab) Live() []GitLabToken {
	g.mu.Lock()
	defer g.mu.Unlock()
	live := []GitLabToken{}
	for _, t := range g.tokens {
		if !t.given && g.active(t) {
			live = append(live, t.GitLabToken)
		}
	}
	return live
}

// Valid reports whether secret is the secret of a live token.
func (g *GitLab) Valid(secret string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.bySecret(secret)
	return t != nil && g.active(t)
}

func (g *GitLab) bySecret(secret string) *gitlabToken {
	i := slices.IndexFunc(g.tokens, func(t *gitlabToken) bool { return t.secret == secret })
	if i < 0 {
		return nil
	}
	return g.tokens[i]
}

// add gives a token its id, secret and creation time.
func (g *GitLab) add(t *gitlabToken) *gitlabToken {
	t.ID, t.secret, t.created = int64(len(g.tokens)+1), "glpat-"+randomHex(10), g.now().UTC()
	g.tokens = append(g.tokens, t)
	return t
}

// day returns the date that many days from now.
func (g *GitLab) day(days int) string {
	return g.now().UTC().AddDate(0, 0, days).Format(time.DateOnly)
}

// expired compares dates as text, which sorts like the dates. A token no longer works on the day of its expires_at.
func (g *GitLab) expired(t *gitlabToken) bool { return t.ExpiresAt != "" && t.ExpiresAt <= g.day(0) }

func (g *GitLab) active(t *gitlabToken) bool { return !t.revoked && !g.expired(t) }

// gitlabCall is one authenticated request.
type gitlabCall struct {
	*http.Request
	w     http.ResponseWriter
	token *gitlabToken // the caller's
	user  GitLabUser

	// where the requested token belongs, once that is known
	kind  string
	of    int64
	place *gitlabPlace
}

type gitlabHandler func(*gitlabCall)

var gitlabRotation = regexp.MustCompile(`access_tokens/(\d+|self)/rotate$`)

// route serves a path under control, for callers with a good token.
func (g *GitLab) route(method, path, op string, work gitlabHandler) {
	g.mux.HandleFunc(method+" /api/v4"+path, g.handle(op, func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		defer g.mu.Unlock()
		c := &gitlabCall{Request: r, w: w}
		if g.throttled(c) {
			return
		}
		c.token = g.bySecret(r.Header.Get("PRIVATE-TOKEN"))
		if c.token == nil {
			c.message(http.StatusUnauthorized, "401 Unauthorized")
			return
		}
		if g.expired(c.token) {
			c.oauthError(http.StatusUnauthorized, "invalid_token", "Token is expired. You can either do re-authorization or token refresh.")
			return
		}
		if c.token.revoked {
			if gitlabRotation.MatchString(r.URL.Path) {
				g.revokeDescendants(c.token)
			}
			c.oauthError(http.StatusUnauthorized, "invalid_token", "Token was revoked. You have to re-authorize from the user.")
			return
		}
		if !c.inScope() {
			c.oauthError(http.StatusForbidden, "insufficient_scope", "The request requires higher privileges than provided by the access token.")
			return
		}
		if c.token.user > 0 {
			c.user = g.users[c.token.user-1]
		}
		work(c)
	}))
}

// throttled counts the call. If it is over the limit, throttled answers it and returns true.
func (g *GitLab) throttled(c *gitlabCall) bool {
	if g.callsLeft < 0 || !g.now().Before(g.resetAt) {
		g.callsLeft = -1
		return false
	}
	h := c.w.Header()
	h.Set("RateLimit-Name", "throttle_authenticated_api")
	h.Set("RateLimit-Remaining", strconv.Itoa(max(g.callsLeft-1, 0)))
	h.Set("RateLimit-Reset", strconv.FormatInt(g.resetAt.Unix(), 10))
	if g.callsLeft > 0 {
		g.callsLeft--
		return false
	}
	h.Set("RateLimit-ResetTime", g.resetAt.UTC().Format(http.TimeFormat))
	h.Set("Retry-After", strconv.FormatInt(int64(g.resetAt.Sub(g.now())/time.Second), 10))
	h.Set("Content-Type", "text/plain")
	c.w.WriteHeader(http.StatusTooManyRequests)
	_, _ = c.w.Write([]byte("Retry later\n"))
	return true
}

// inScope reports whether the caller's token may be used for this call: a token may always look at itself and end itself.
func (c *gitlabCall) inScope() bool {
	has := func(scopes ...string) bool {
		return slices.ContainsFunc(scopes, func(s string) bool { return slices.Contains(c.token.Scopes, s) })
	}
	self := strings.HasSuffix(c.URL.Path, "/personal_access_tokens/self")
	switch {
	case has("api") || self:
		return true
	case strings.HasSuffix(c.URL.Path, "/self/rotate"):
		return has("self_rotate")
	case c.Method == http.MethodGet && strings.HasSuffix(c.URL.Path, "/user"):
		return has("read_api", "read_user")
	}
	return c.Method == http.MethodGet && has("read_api")
}

func (c *gitlabCall) message(status int, text string) {
	writeJSON(c.w, status, map[string]string{"message": text})
}

func (c *gitlabCall) badRequest(reason string) {
	text := "400 Bad request"
	if reason != "" {
		text += " - " + reason
	}
	c.message(http.StatusBadRequest, text)
}

func (c *gitlabCall) notFound(what string) {
	c.message(http.StatusNotFound, strings.Join(strings.Fields(fmt.Sprintf("404 %s Not Found", what)), " "))
}

func (c *gitlabCall) oauthError(status int, code, description string) {
	writeJSON(c.w, status, map[string]string{"error": code, "error_description": description})
}

// level is the caller's access level in a place; -1 = may not even see it.
func (c *gitlabCall) level(p *gitlabPlace) int {
	if c.user.Admin {
		return 50
	}
	if level, member := p.members[c.user.Name]; member && c.token.place == nil {
		return level
	}
	if c.token.place == p {
		return c.token.Level
	}
	return -1
}
