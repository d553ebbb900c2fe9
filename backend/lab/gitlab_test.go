// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// gitLab is a GitLab under test: root is an administrator, ana a maintainer of the project acme/widget and an owner of the
// group acme/sub, bob a developer of both, eve nobody; bot is a service account of the group.
type gitLab struct {
	*GitLab
	url   string
	clock *testClock

	root, ana, bob, eve string // their tokens
	bobID, botID        int64
}

func newGitLab(t *testing.T, o GitLabOptions) *gitLab {
	t.Helper()
	clock := newClock()
	o.Now, o.AdminToken = clock.Now, "glpat-root"
	g := &gitLab{GitLab: NewGitLab(o), clock: clock, root: o.AdminToken}
	g.url = serve(t, g.GitLab)
	g.ana = g.AddToken(g.AddUser(GitLabUser{Name: "ana"}), 30, "api")
	g.bobID = g.AddUser(GitLabUser{Name: "bob"})
	g.bob = g.AddToken(g.bobID, 30, "api")
	g.eve = g.AddToken(g.AddUser(GitLabUser{Name: "eve"}), 30, "api")
	g.botID = g.AddUser(GitLabUser{Name: "bot", Group: "acme/sub"})
	g.AddProject("acme/widget", map[string]int{"ana": 40, "bob": 30})
	g.AddGroup("acme/sub", map[string]int{"ana": 50, "bob": 30})
	return g
}

func (g *gitLab) do(t *testing.T, token, method, path, body string) reply {
	t.Helper()
	return do(t, method, g.url+"/api/v4"+path, body, "PRIVATE-TOKEN", token, "Content-Type", "application/json")
}

// make makes a token that ends the day after tomorrow, which must succeed, and returns its id and secret.
func (g *gitLab) make(t *testing.T, token, path, name string) (id int, secret string) {
	t.Helper()
	r := g.do(t, token, "POST", path, `{"name":"`+name+`","scopes":["api"],"expires_at":"2026-03-07"}`)
	if r.status != http.StatusCreated {
		t.Fatalf("%s: %d %s", path, r.status, r.body)
	}
	made := r.object(t)
	return int(made["id"].(float64)), made["token"].(string)
}

// paths are where the tokens of each kind are made, with who may.
func (g *gitLab) paths() map[string][2]string {
	return map[string][2]string{
		"personal":        {g.root, fmt.Sprintf("/users/%d/personal_access_tokens", g.bobID)},
		"impersonation":   {g.root, fmt.Sprintf("/users/%d/impersonation_tokens", g.bobID)},
		"project":         {g.ana, "/projects/acme%2Fwidget/access_tokens"},
		"group":           {g.ana, "/groups/2/access_tokens"},
		"service_account": {g.ana, fmt.Sprintf("/groups/acme%%2Fsub/service_accounts/%d/personal_access_tokens", g.botID)},
	}
}

func TestGitLabLifeOfATokenOfEachKind(t *testing.T) {
	t.Parallel()
	of := map[string]string{"personal": "bob", "impersonation": "bob", "project": "acme/widget", "group": "acme/sub", "service_account": "bot"}
	for kind := range of {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			g := newGitLab(t, GitLabOptions{})
			who, path := g.paths()[kind][0], g.paths()[kind][1]
			id, secret := g.make(t, who, path, "n1")
			g.make(t, who, path, "n2")
			level := 0
			if kind == "project" || kind == "group" {
				level = 40
			}
			want := GitLabToken{ID: int64(id), Kind: kind, Of: of[kind], Name: "n1", Scopes: []string{"api"}, Level: level, ExpiresAt: "2026-03-07"}
			if live := g.Live(); len(live) != 2 || cmp.Diff(want, live[0]) != "" {
				t.Errorf("live: %+v; want %+v first of two", live, want)
			}
			if r := g.do(t, secret, "GET", "/user", ""); r.status != 200 || !g.Valid(secret) {
				t.Errorf("use: %d, valid %v", r.status, g.Valid(secret))
			}
			inventory := do(t, "GET", g.url+"/lab/keys", "")
			if !strings.Contains(inventory.body, `"name":"n1"`) || strings.Contains(inventory.body, secret) || strings.Contains(inventory.body, "given") {
				t.Errorf("inventory %s", inventory.body)
			}
			listed, ended := path, path
			if kind == "personal" {
				listed, ended = fmt.Sprintf("/personal_access_tokens?user_id=%d", g.bobID), "/personal_access_tokens"
			}
			if r := g.do(t, who, "GET", listed, ""); r.status != 200 || !strings.Contains(r.body, `"name":"n1"`) || strings.Contains(r.body, secret) {
				t.Errorf("list: %d %s", r.status, r.body)
			}
			if r := g.do(t, who, "DELETE", fmt.Sprintf("%s/%d", ended, id), ""); r.status != 204 || r.body != "" {
				t.Errorf("revoke: %d %q", r.status, r.body)
			}
			again := 204
			if level > 0 {
				again = 404 // the bot went with it
			}
			if r := g.do(t, who, "DELETE", fmt.Sprintf("%s/%d", ended, id), ""); r.status != again {
				t.Errorf("revoking again: %d; want %d", r.status, again)
			}
			r := g.do(t, secret, "GET", "/user", "")
			if want := `{"error":"invalid_token","error_description":"Token was revoked. You have to re-authorize from the user."}`; r.status != 401 || r.body != want || g.Valid(secret) || len(g.Live()) != 1 {
				t.Errorf("use of a revoked token: %d %s", r.status, r.body)
			}
		})
	}
}

// A token ends at midnight (UTC) at the beginning of the day in its expires_at.
func TestGitLabTokensEndWhenADayBegins(t *testing.T) {
	t.Parallel()
	g := newGitLab(t, GitLabOptions{})
	_, secret := g.make(t, g.ana, "/projects/1/access_tokens", "n1")
	g.clock.Advance(time.Date(2026, 3, 7, 0, 0, 0, 0, time.UTC).Sub(start) - time.Nanosecond)
	if r := g.do(t, secret, "GET", "/user", ""); r.status != 200 {
		t.Errorf("just before: %d", r.status)
	}
	g.clock.Advance(time.Nanosecond)
	r := g.do(t, secret, "GET", "/user", "")
	if want := `{"error":"invalid_token","error_description":"Token is expired. You can either do re-authorization or token refresh."}`; r.status != 401 || r.body != want || len(g.Live()) != 0 {
		t.Errorf("at midnight: %d %s", r.status, r.body)
	}
}

func TestGitLabRefusals(t *testing.T) {
	t.Parallel()
	const good = `{"name":"n","scopes":["api"],"expires_at":"2026-03-07"}`
	g := newGitLab(t, GitLabOptions{})
	id, _ := g.make(t, g.ana, "/projects/1/access_tokens", "n1")
	personal, _ := g.make(t, g.root, "/users/3/personal_access_tokens", "p1")
	impersonation, imitates := g.make(t, g.root, "/users/3/impersonation_tokens", "i1")
	weak := g.AddToken(g.bobID, 30, "read_user")
	message := func(text string) string { return `{"message":"` + text + `"}` }
	failure := func(text string) string { return `{"error":"` + text + `"}` }
	scope := `{"error":"insufficient_scope","error_description":"The request requires higher privileges than provided by the access token."}`
	for name, c := range map[string]struct {
		token, method, path, body string
		status                    int
		want                      string
	}{
		"no token":                {"", "GET", "/user", "", 401, message("401 Unauthorized")},
		"unknown token":           {"glpat-x", "GET", "/user", "", 401, message("401 Unauthorized")},
		"scope":                   {weak, "POST", "/projects/1/access_tokens", good, 403, scope},
		"scope, list":             {weak, "GET", "/projects/1/access_tokens", "", 403, scope},
		"no such path":            {g.root, "DELETE", "/projects/1/tokens/1", "", 404, failure("404 Not Found")},
		"unknown project":         {g.root, "POST", "/projects/nobody/access_tokens", good, 404, message("404 Project Not Found")},
		"hidden project":          {g.eve, "POST", "/projects/1/access_tokens", good, 404, message("404 Project Not Found")},
		"hidden group":            {g.eve, "GET", "/groups/2/access_tokens", "", 404, message("404 Group Not Found")},
		"group as project":        {g.root, "GET", "/projects/2/access_tokens", "", 404, message("404 Project Not Found")},
		"developer makes":         {g.bob, "POST", "/projects/1/access_tokens", good, 400, message("400 Bad request - User does not have permission to create project access token")},
		"developer lists":         {g.bob, "GET", "/projects/1/access_tokens", "", 401, message("401 Unauthorized")},
		"developer ends":          {g.bob, "DELETE", fmt.Sprintf("/projects/1/access_tokens/%d", id), "", 400, message("400 Bad request - bob cannot delete n1")},
		"developer rotates":       {g.bob, "POST", fmt.Sprintf("/projects/1/access_tokens/%d/rotate", id), "", 401, message("401 Unauthorized")},
		"level above own":         {g.ana, "POST", "/projects/1/access_tokens", `{"name":"n","scopes":["api"],"access_level":50}`, 400, message("400 Bad request - Access level of the token contains permissions not held by the creating user")},
		"no such level":           {g.ana, "POST", "/projects/1/access_tokens", `{"name":"n","scopes":["api"],"access_level":35}`, 400, failure("access_level does not have a valid value")},
		"no such scope":           {g.ana, "POST", "/projects/1/access_tokens", `{"name":"n","scopes":["root"]}`, 400, failure("scopes does not have a valid value")},
		"scope of users":          {g.ana, "POST", "/projects/1/access_tokens", `{"name":"n","scopes":["sudo"]}`, 400, failure("scopes does not have a valid value")},
		"nothing":                 {g.ana, "POST", "/projects/1/access_tokens", `{}`, 400, failure("name is missing, scopes is missing")},
		"no JSON":                 {g.ana, "POST", "/projects/1/access_tokens", `{`, 400, failure("The body is invalid")},
		"no date":                 {g.ana, "POST", "/projects/1/access_tokens", `{"name":"n","scopes":["api"],"expires_at":"soon"}`, 400, failure("expires_at is invalid")},
		"too late":                {g.ana, "POST", "/projects/1/access_tokens", `{"name":"n","scopes":["api"],"expires_at":"2027-03-06"}`, 400, message("400 Bad request - Expiration date must be before 2027-03-05")},
		"unknown project token":   {g.ana, "DELETE", "/projects/1/access_tokens/999", "", 404, message("404 project Access Token Not Found")},
		"token of another place":  {g.ana, "DELETE", fmt.Sprintf("/groups/2/access_tokens/%d", id), "", 404, message("404 group Access Token Not Found")},
		"users' tokens":           {g.ana, "POST", "/users/3/personal_access_tokens", good, 403, message("403 Forbidden")},
		"unknown user":            {g.root, "POST", "/users/99/impersonation_tokens", good, 404, message("404 User Not Found")},
		"unknown impersonation":   {g.root, "DELETE", "/users/3/impersonation_tokens/999", "", 404, message("404 Impersonation Token Not Found")},
		"another's list":          {g.ana, "GET", "/personal_access_tokens?user_id=3", "", 401, message("401 Unauthorized")},
		"another's token":         {g.ana, "DELETE", fmt.Sprintf("/personal_access_tokens/%d", personal), "", 400, message("400 Bad request")},
		"an impersonation of me":  {g.bob, "DELETE", fmt.Sprintf("/personal_access_tokens/%d", impersonation), "", 400, message("400 Bad request")},
		"unknown token to admins": {g.root, "DELETE", "/personal_access_tokens/999", "", 404, message("404 Not found")},
		"unknown token to others": {g.ana, "GET", "/personal_access_tokens/999", "", 401, message("401 Unauthorized")},
		"account, not owner":      {g.bob, "POST", "/groups/2/service_accounts/5/personal_access_tokens", good, 403, message("403 Forbidden")},
		"account, a person":       {g.ana, "POST", "/groups/2/service_accounts/3/personal_access_tokens", good, 400, message("400 Bad request - User is not of type Service Account")},
		"account, nobody":         {g.ana, "GET", "/groups/2/service_accounts/99/personal_access_tokens", "", 404, message("404 User Not Found")},
		"account, unknown token":  {g.ana, "DELETE", "/groups/2/service_accounts/5/personal_access_tokens/999", "", 404, message("404 Personal Access Token Not Found")},
	} {
		if r := g.do(t, c.token, c.method, c.path, c.body); r.status != c.status || r.body != c.want {
			t.Errorf("%s: %d %s; want %d %s", name, r.status, r.body, c.status, c.want)
		}
	}
	if r := g.do(t, imitates, "GET", "/personal_access_tokens/self", ""); r.status != 200 || len(g.Live()) != 3 {
		t.Errorf("a refusal changed something: %d, live %v", r.status, g.Live())
	}
	free := newGitLab(t, GitLabOptions{Free: true, MaxLifetime: 400})
	if r := free.do(t, free.ana, "POST", "/projects/1/access_tokens", good); r.status != 400 || !strings.Contains(r.body, "User does not have permission to create project access token") {
		t.Errorf("free: %d %s", r.status, r.body)
	}
	if r := free.do(t, free.root, "POST", "/users/3/personal_access_tokens", `{"name":"n","scopes":["api"]}`); !strings.Contains(r.body, `"expires_at":"2027-04-09"`) {
		t.Errorf("no expiry: %s; want the longest, 400 days", r.body)
	}
}

func TestGitLabSelf(t *testing.T) {
	t.Parallel()
	g := newGitLab(t, GitLabOptions{})
	weak := g.AddToken(g.bobID, 5, "read_repository")
	self := g.do(t, weak, "GET", "/personal_access_tokens/self", "").object(t)
	if diff := cmp.Diff([]any{[]any{"read_repository"}, "2026-03-10", true, false}, []any{self["scopes"], self["expires_at"], self["active"], self["revoked"]}); diff != "" || self["token"] != nil {
		t.Errorf("self (-want +got):\n%s", diff)
	}
	if root := g.do(t, g.root, "GET", "/personal_access_tokens/self", "").object(t); root["expires_at"] != nil || root["active"] != true {
		t.Errorf("a token without end: %v", root)
	}
	if r := g.do(t, weak, "DELETE", "/personal_access_tokens/self", ""); r.status != 204 || g.Valid(weak) {
		t.Errorf("ending itself: %d", r.status)
	}
	if r := g.do(t, weak, "DELETE", "/personal_access_tokens/self", ""); r.status != 401 || r.object(t)["error"] != "invalid_token" {
		t.Errorf("again: %d %s", r.status, r.body)
	}
	for kind, want := range map[string]int{"personal": 204, "impersonation": 400, "project": 204, "group": 204, "service_account": 204} {
		_, secret := g.make(t, g.paths()[kind][0], g.paths()[kind][1], "n")
		if r := g.do(t, secret, "DELETE", "/personal_access_tokens/self", ""); r.status != want || g.Valid(secret) != (want == 400) {
			t.Errorf("%s ends itself: %d, lives %v; want %d", kind, r.status, g.Valid(secret), want)
		}
	}
}

// Before 17.11, owners of the group can make tokens of service accounts, but only the tokens themselves can end them.
func TestGitLabBefore1711(t *testing.T) {
	t.Parallel()
	g := newGitLab(t, GitLabOptions{Before1711: true, MaxLifetime: 30})
	who, path := g.paths()["service_account"][0], g.paths()["service_account"][1]
	id, secret := g.make(t, who, path, "n1")
	if r := g.do(t, who, "GET", path, ""); r.status != 405 || r.object(t)["error"] != "405 Not Allowed" {
		t.Errorf("list: %d %s", r.status, r.body)
	}
	if r := g.do(t, who, "DELETE", fmt.Sprintf("%s/%d", path, id), ""); r.status != 404 || r.object(t)["error"] != "404 Not Found" || !g.Valid(secret) {
		t.Errorf("end by id: %d %s", r.status, r.body)
	}
	if r := g.do(t, secret, "DELETE", "/personal_access_tokens/self", ""); r.status != 204 || g.Valid(secret) {
		t.Errorf("end by itself: %d", r.status)
	}
	if r := g.do(t, who, "POST", path, `{"name":"n","scopes":["api"],"expires_at":"2027-03-07"}`); r.status != 422 || r.object(t)["message"] != "Expiration date must be before 2026-04-04" {
		t.Errorf("past the longest: %d %s", r.status, r.body)
	}
	p, _ := g.make(t, g.ana, "/projects/1/access_tokens", "n")
	if r := g.do(t, g.ana, "DELETE", fmt.Sprintf("/projects/1/access_tokens/%d", p), ""); r.status != 204 {
		t.Errorf("other kinds: %d", r.status)
	}
}

// The new token has its own id and everything else from the old one, which has ended. An attempt to rotate the old one with
// itself is treated as theft: all its descendants end.
func TestGitLabRotation(t *testing.T) {
	t.Parallel()
	g := newGitLab(t, GitLabOptions{})
	id, _ := g.make(t, g.ana, "/projects/1/access_tokens", "n1")
	r := g.do(t, g.ana, "POST", fmt.Sprintf("/projects/1/access_tokens/%d/rotate", id), `{"expires_at":"2026-03-20"}`)
	made := r.object(t)
	want := []GitLabToken{{ID: int64(made["id"].(float64)), Kind: "project", Of: "acme/widget", Name: "n1", Scopes: []string{"api"}, Level: 40, ExpiresAt: "2026-03-20"}}
	if diff := cmp.Diff(want, g.Live()); r.status != 200 || diff != "" || int(made["id"].(float64)) == id {
		t.Errorf("rotate: %d (-want +got):\n%s", r.status, diff)
	}

	first := g.AddToken(g.bobID, 30, "self_rotate")
	if r := g.do(t, first, "GET", "/users?username=bob", ""); r.status != 403 {
		t.Errorf("beyond its scope: %d", r.status)
	}
	second := g.do(t, first, "POST", "/personal_access_tokens/self/rotate", "").object(t)
	third := g.do(t, second["token"].(string), "POST", "/personal_access_tokens/self/rotate", "").object(t)
	if second["expires_at"] != "2026-03-12" || !g.Valid(third["token"].(string)) {
		t.Errorf("self: %v, then %v", second, third)
	}
	if r := g.do(t, g.root, "POST", fmt.Sprintf("/personal_access_tokens/%v/rotate", second["id"]), ""); r.status != 400 || !strings.Contains(r.body, "Token already revoked") || !g.Valid(third["token"].(string)) {
		t.Errorf("rotating a dead one by another's token: %d %s", r.status, r.body)
	}
	if r := g.do(t, first, "POST", "/personal_access_tokens/self/rotate", ""); r.status != 401 || g.Valid(third["token"].(string)) {
		t.Errorf("reuse: %d; the youngest lives: %v", r.status, g.Valid(third["token"].(string)))
	}
}

func TestGitLabPages(t *testing.T) {
	t.Parallel()
	g := newGitLab(t, GitLabOptions{})
	for i := range 5 {
		g.make(t, g.ana, "/projects/1/access_tokens", fmt.Sprintf("key-%d", i))
	}
	r := g.do(t, g.ana, "GET", "/projects/1/access_tokens?per_page=2&page=2&state=active", "")
	got := map[string]string{}
	for _, name := range []string{"X-Total", "X-Total-Pages", "X-Page", "X-Per-Page", "X-Next-Page"} {
		got[name] = r.header.Get(name)
	}
	if diff := cmp.Diff(map[string]string{"X-Total": "5", "X-Total-Pages": "3", "X-Page": "2", "X-Per-Page": "2", "X-Next-Page": "3"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !strings.Contains(r.header.Get("Link"), `page=3`) || strings.Count(r.body, `"name"`) != 2 || !strings.Contains(r.body, "key-2") {
		t.Errorf("Link %q, body %s", r.header.Get("Link"), r.body)
	}
	if r := g.do(t, g.ana, "GET", "/projects/1/access_tokens?search=KEY-3", ""); strings.Count(r.body, `"name"`) != 1 || r.header.Get("X-Next-Page") != "" {
		t.Errorf("search: %s", r.body)
	}
	if r := g.do(t, g.ana, "GET", "/projects/1/access_tokens?state=inactive", ""); r.body != "[]" {
		t.Errorf("inactive: %s", r.body)
	}
}

func TestGitLabThrottle(t *testing.T) {
	t.Parallel()
	g := newGitLab(t, GitLabOptions{})
	g.Throttle(1, time.Minute)
	if r := g.do(t, g.ana, "GET", "/user", ""); r.status != 200 || r.header.Get("RateLimit-Remaining") != "0" {
		t.Errorf("the last call: %d %v", r.status, r.header)
	}
	r := g.do(t, g.ana, "GET", "/user", "")
	if r.status != 429 || r.body != "Retry later\n" || r.header.Get("Retry-After") != "60" || r.header.Get("RateLimit-Reset") != fmt.Sprint(start.Add(time.Minute).Unix()) || r.header.Get("RateLimit-ResetTime") == "" {
		t.Errorf("one too many: %d %s %v", r.status, r.body, r.header)
	}
	g.clock.Advance(time.Minute)
	if r := g.do(t, g.ana, "GET", "/user", ""); r.status != 200 {
		t.Errorf("after the pause: %d", r.status)
	}
}

func TestGitLabMoves(t *testing.T) {
	t.Parallel()
	g := newGitLab(t, GitLabOptions{})
	g.Move(1, "acme/gadget")
	for path, want := range map[string]int{"/projects/acme%2Fwidget/access_tokens": 404, "/projects/acme%2Fgadget/access_tokens": 200, "/projects/1/access_tokens": 200} {
		if r := g.do(t, g.ana, "GET", path, ""); r.status != want {
			t.Errorf("%s: %d; want %d", path, r.status, want)
		}
	}
}
