// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// gitlabScopes may be given to all kinds of tokens, gitlabUserScopes only to users' tokens.
var (
	gitlabScopes = []string{"api", "read_api", "read_repository", "write_repository", "read_registry", "write_registry", "self_rotate",
		"create_runner", "manage_runner", "ai_features", "k8s_proxy"}
	gitlabUserScopes = []string{"read_user", "sudo", "admin_mode", "read_service_ping"}
	gitlabLevels     = []int{10, 15, 20, 30, 40, 50}
)

const (
	gitlabMaintainer = 40
	gitlabOwner      = 50
)

// ofUser finds the user of the path, for administrators.
func (g *GitLab) ofUser(kind string, next gitlabHandler) gitlabHandler {
	return func(c *gitlabCall) {
		c.kind = kind
		c.of, _ = strconv.ParseInt(c.PathValue("user"), 10, 64)
		switch {
		case !c.user.Admin:
			c.message(http.StatusForbidden, "403 Forbidden")
		case c.of < 1 || int(c.of) > len(g.users):
			c.notFound("User")
		default:
			next(c)
		}
	}
}

// ofPlace finds the project or group of the path, if the caller may see it.
func (g *GitLab) ofPlace(kind string, next gitlabHandler) gitlabHandler {
	return func(c *gitlabCall) {
		c.kind = kind
		id := c.PathValue("id")
		i := slices.IndexFunc(g.places, func(p *gitlabPlace) bool {
			return p.kind == kind && (p.path == id || strconv.FormatInt(p.id, 10) == id)
		})
		if i < 0 || c.level(g.places[i]) < 0 {
			c.notFound(strings.ToUpper(kind[:1]) + kind[1:])
			return
		}
		c.place = g.places[i]
		next(c)
	}
}

// ofServiceAccount finds the account of the path, for owners of its group.
func (g *GitLab) ofServiceAccount(next gitlabHandler) gitlabHandler {
	return g.ofPlace("group", func(c *gitlabCall) {
		c.kind = "service_account"
		c.of, _ = strconv.ParseInt(c.PathValue("user"), 10, 64)
		switch {
		case c.level(c.place) < gitlabOwner:
			c.message(http.StatusForbidden, "403 Forbidden")
		case c.of < 1 || int(c.of) > len(g.users):
			c.notFound("User")
		case g.users[c.of-1].Group == "":
			c.badRequest("User is not of type Service Account")
		case g.users[c.of-1].Group != c.place.path:
			c.notFound("User")
		default:
			c.place = nil
			next(c)
		}
	})
}

// within lists the tokens of the place that the path names.
func (g *GitLab) within(c *gitlabCall) []*gitlabToken {
	kind := c.kind
	if kind == "service_account" {
		kind = "personal" // tokens of service accounts are personal tokens of another user
	}
	var found []*gitlabToken
	for _, t := range g.tokens {
		isOf := c.place != nil && t.place == c.place || c.place == nil && t.user == c.of
		if isOf && (t.Kind == kind || t.Kind == c.kind) && !(t.place != nil && t.revoked) { // a bot is removed with its token, so a revoked one is gone
			found = append(found, t)
		}
	}
	return found
}

// member finds the token of the path among those of its place.
func (g *GitLab) member(c *gitlabCall) *gitlabToken {
	for _, t := range g.within(c) {
		if strconv.FormatInt(t.ID, 10) == c.PathValue("token") {
			return t
		}
	}
	return nil
}

func (g *GitLab) create(c *gitlabCall) {
	in, ok := c.read()
	if !ok {
		return
	}
	t := &gitlabToken{user: c.of, place: c.place, GitLabToken: GitLabToken{Kind: c.kind, Name: in.Name, Scopes: in.Scopes, ExpiresAt: in.ExpiresAt}}
	if c.place != nil {
		t.Of, t.Level = c.place.path, in.Level
		needs := map[string]int{"project": gitlabMaintainer, "group": gitlabOwner}[c.kind]
		switch {
		case g.o.Free || c.token.place != nil || c.level(c.place) < needs:
			c.badRequest("User does not have permission to create " + c.kind + " access token")
			return
		case in.Level > c.level(c.place):
			c.badRequest("Access level of the token contains permissions not held by the creating user")
			return
		}
	} else {
		t.Of = g.users[c.of-1].Name
	}
	if latest := g.day(g.o.MaxLifetime); in.ExpiresAt == "" {
		t.ExpiresAt = latest
	} else if in.ExpiresAt > latest {
		if text := "Expiration date must be before " + latest; c.kind == "service_account" {
			c.message(http.StatusUnprocessableEntity, text)
		} else {
			c.badRequest(text)
		}
		return
	}
	g.present(c, http.StatusCreated, g.add(t), true)
}

// gitlabInput describes a token that a request asks for.
type gitlabInput struct {
	Name      string   `json:"name"`
	Scopes    []string `json:"scopes"`
	Level     int      `json:"access_level"`
	ExpiresAt string   `json:"expires_at"` // a date, or an instant that read turns into its date
}

// read reads and checks the description of a requested token. If it is not acceptable, read answers and returns false.
func (c *gitlabCall) read() (gitlabInput, bool) {
	var in gitlabInput
	if !isJSON(c.Request) || json.NewDecoder(c.Body).Decode(&in) != nil {
		writeError(c.w, http.StatusBadRequest, "The body is invalid")
		return in, false
	}
	var missing []string
	for name, absent := range map[string]bool{"name is missing": in.Name == "", "scopes is missing": len(in.Scopes) == 0} {
		if absent {
			missing = append(missing, name)
		}
	}
	slices.Sort(missing)
	allowed := gitlabScopes
	if c.place == nil {
		allowed = slices.Concat(gitlabScopes, gitlabUserScopes)
	} else if in.Level == 0 {
		in.Level = gitlabMaintainer
	}
	var ok bool
	in.ExpiresAt, ok = gitlabDate(in.ExpiresAt)
	text := ""
	switch {
	case len(missing) > 0:
		text = strings.Join(missing, ", ")
	case slices.ContainsFunc(in.Scopes, func(s string) bool { return !slices.Contains(allowed, s) }):
		text = "scopes does not have a valid value"
	case c.place != nil && !slices.Contains(gitlabLevels, in.Level):
		text = "access_level does not have a valid value"
	case !ok:
		text = "expires_at is invalid"
	}
	if text != "" {
		writeError(c.w, http.StatusBadRequest, text)
	}
	return in, text == ""
}

// gitlabDate returns the date in text, which may be a date or an instant; "" means none.
func gitlabDate(text string) (string, bool) {
	if text == "" {
		return "", true
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if at, err := time.Parse(layout, text); err == nil {
			return at.Format(time.DateOnly), true
		}
	}
	return "", false
}

// present answers with a token, and with its secret if it is new.
func (g *GitLab) present(c *gitlabCall, status int, t *gitlabToken, isNew bool) {
	body := g.entity(t)
	if isNew {
		body["token"] = t.secret
	}
	writeJSON(c.w, status, body)
}

func (g *GitLab) entity(t *gitlabToken) map[string]any {
	body := map[string]any{
		"id": t.ID, "name": t.Name, "revoked": t.revoked, "created_at": t.created.Format("2006-01-02T15:04:05.000Z07:00"), "description": nil,
		"scopes": t.Scopes, "user_id": t.user, "last_used_at": nil, "active": g.active(t), "expires_at": t.ExpiresAt,
	}
	if t.ExpiresAt == "" {
		body["expires_at"] = nil
	}
	if t.place != nil {
		body["access_level"], body["user_id"] = t.Level, 1000+t.ID
	}
	return body
}

func (g *GitLab) list(c *gitlabCall) {
	if c.place != nil && c.level(c.place) < gitlabMaintainer {
		c.message(http.StatusUnauthorized, "401 Unauthorized")
		return
	}
	search := c.URL.Query().Get("search")
	if c.kind == "impersonation" {
		search = ""
	}
	g.page(c, g.within(c), search)
}

// listPersonal lists the caller's tokens; administrators see others' too.
func (g *GitLab) listPersonal(c *gitlabCall) {
	query := c.URL.Query()
	c.kind, c.of = "personal", c.token.user
	if query.Has("user_id") {
		c.of, _ = strconv.ParseInt(query.Get("user_id"), 10, 64)
	}
	if c.of != c.token.user && !c.user.Admin {
		c.message(http.StatusUnauthorized, "401 Unauthorized")
		return
	}
	g.page(c, g.within(c), query.Get("search"))
}

// page answers with one page of the tokens that match state and search.
func (g *GitLab) page(c *gitlabCall, tokens []*gitlabToken, search string) {
	query := c.URL.Query()
	entities := []map[string]any{}
	for _, t := range tokens {
		state := map[string]bool{"": true, "active": g.active(t), "inactive": !g.active(t)}[query.Get("state")]
		if state && strings.Contains(strings.ToLower(t.Name), strings.ToLower(search)) {
			entities = append(entities, g.entity(t))
		}
	}
	number := func(name string, absent int) int {
		n, err := strconv.Atoi(query.Get(name))
		if err != nil || n < 1 {
			return absent
		}
		return n
	}
	page, size := number("page", 1), min(number("per_page", 20), 100)
	last := max((len(entities)+size-1)/size, 1)
	h := c.w.Header()
	for name, value := range map[string]int{"X-Total": len(entities), "X-Total-Pages": last, "X-Per-Page": size, "X-Page": page} {
		h.Set(name, strconv.Itoa(value))
	}
	h.Set("X-Next-Page", "")
	if page < last {
		h.Set("X-Next-Page", strconv.Itoa(page+1))
		next := *c.URL
		query.Set("page", strconv.Itoa(page+1))
		next.RawQuery = query.Encode()
		h.Set("Link", fmt.Sprintf(`<https://%s%s>; rel="next"`, c.Host, next.RequestURI()))
	}
	from := min((page-1)*size, len(entities))
	writeJSON(c.w, http.StatusOK, entities[from:min(from+size, len(entities))])
}

func (g *GitLab) revoke(c *gitlabCall) {
	t := g.member(c)
	switch {
	case t == nil:
		c.notFound(map[string]string{
			"impersonation": "Impersonation Token", "service_account": "Personal Access Token",
			"project": "project Access Token", "group": "group Access Token",
		}[c.kind])
	case c.place != nil && c.level(c.place) < gitlabMaintainer:
		c.badRequest(c.user.Name + " cannot delete " + t.Name)
	default:
		t.revoked = true
		c.w.WriteHeader(http.StatusNoContent)
	}
}

// token finds the token that the path names, of whatever kind; "self" is the caller's own.
func (g *GitLab) token(c *gitlabCall) *gitlabToken {
	if c.PathValue("token") == "self" {
		return c.token
	}
	id, _ := strconv.Atoi(c.PathValue("token"))
	if id < 1 || id > len(g.tokens) {
		return nil
	}
	return g.tokens[id-1]
}

// mayManage reports whether the caller may end or rotate a token by its id alone.
func (c *gitlabCall) mayManage(t *gitlabToken) bool {
	return c.user.Admin || t == c.token || t.user > 0 && t.user == c.token.user && t.Kind != "impersonation"
}

func (g *GitLab) show(c *gitlabCall) {
	t := g.token(c)
	if t == nil || !c.mayManage(t) {
		g.hide(c)
		return
	}
	g.present(c, http.StatusOK, t, false)
}

// hide answers 404, but only to administrators; others are not told that there is no such token.
func (g *GitLab) hide(c *gitlabCall) {
	if c.user.Admin {
		c.notFound("")
		return
	}
	c.message(http.StatusUnauthorized, "401 Unauthorized")
}

func (g *GitLab) revokePersonal(c *gitlabCall) {
	t := g.token(c)
	switch {
	case t == nil:
		c.message(http.StatusNotFound, "404 Not found")
	case !c.mayManage(t) || t.Kind == "impersonation" && !c.user.Admin:
		c.badRequest("")
	default:
		t.revoked = true
		c.w.WriteHeader(http.StatusNoContent)
	}
}

func (g *GitLab) findUsers(c *gitlabCall) {
	found := []map[string]any{}
	for i, u := range g.users {
		if strings.EqualFold(u.Name, c.URL.Query().Get("username")) {
			found = append(found, map[string]any{"id": i + 1, "username": u.Name, "state": "active"})
		}
	}
	writeJSON(c.w, http.StatusOK, found)
}

func (g *GitLab) use(c *gitlabCall) {
	writeJSON(c.w, http.StatusOK, map[string]any{"id": c.token.user, "username": c.token.Of})
}
