// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// gitProxy is a GitProxy under test.
type gitProxy struct {
	*GitProxy
	url string
}

func newGitProxy(t *testing.T, o GitProxyOptions) *gitProxy {
	t.Helper()
	o.OperatorKey = "operator"
	g := NewGitProxy(o)
	return &gitProxy{g, serve(t, g)}
}

func (g *gitProxy) as(t *testing.T, key, method, path, body string) reply {
	t.Helper()
	return do(t, method, g.url+path, body, "X-Api-Key", key, "Content-Type", "application/json")
}

// makeUser makes a user with password p.
func (g *gitProxy) makeUser(t *testing.T, name, roles string) {
	t.Helper()
	if r := g.as(t, "operator", "POST", "/api/users", `{"username":"`+name+`","password":"p","roles":[`+roles+`]}`); r.status != 201 || r.body != `{"username":"`+name+`"}` {
		t.Fatalf("making %s: %d %s", name, r.status, r.body)
	}
}

// login returns the session's cookie, "" if there is none.
func (g *gitProxy) login(t *testing.T, name, password string) string {
	t.Helper()
	r := do(t, "POST", g.url+"/login", "username="+name+"&password="+password, "Content-Type", "application/x-www-form-urlencoded")
	want := map[bool]string{true: "/dashboard/", false: "/login.html?error"}
	for _, line := range r.header.Values("Set-Cookie") {
		if cookie, err := http.ParseSetCookie(line); err == nil && cookie.Name == "JSESSIONID" {
			if got := r.header.Get("Location"); r.status != 302 || got != want[true] {
				t.Errorf("login: %d to %s", r.status, got)
			}
			return "JSESSIONID=" + cookie.Value
		}
	}
	if got := r.header.Get("Location"); r.status != 302 || got != want[false] {
		t.Errorf("a login that fails: %d to %s", r.status, got)
	}
	return ""
}

// makeKey makes a key in a session.
func (g *gitProxy) makeKey(t *testing.T, session string) reply {
	t.Helper()
	return do(t, "POST", g.url+"/api/me/api-key", "", "Cookie", session+"; XSRF-TOKEN=a", "X-XSRF-TOKEN", "a")
}

func TestGitProxyLifeOfAKey(t *testing.T) {
	t.Parallel()
	g := newGitProxy(t, GitProxyOptions{})
	g.makeUser(t, "u1", `"USER","SELF_CERTIFY"`)
	session := g.login(t, "u1", "p")
	if session == "" || g.login(t, "u1", "q") != "" || g.login(t, "u2", "p") != "" {
		t.Fatal("logins are not told apart")
	}
	r := g.makeKey(t, session)
	key, _ := r.object(t)["key"].(string)
	if r.status != 200 || len(key) != 67 || !strings.HasPrefix(key, "gp_") || !g.Valid(key) {
		t.Fatalf("making a key: %d %s", r.status, r.body)
	}
	if diff := cmp.Diff([]GitProxyUser{{"u1", []string{"USER", "SELF_CERTIFY"}, true}}, g.Users()); diff != "" {
		t.Error(diff)
	}
	if r := g.as(t, key, "GET", "/api/push", ""); r.status != 200 || r.body != `{"user":"u1"}` {
		t.Errorf("use: %d %s", r.status, r.body)
	}
	second := g.as(t, key, "POST", "/api/me/api-key", "").object(t)["key"].(string) // by itself; the first one ends
	if g.Valid(key) || !g.Valid(second) {
		t.Error("a user has two keys")
	}
	if r := g.as(t, second, "DELETE", "/api/me/api-key", ""); r.status != 204 || g.Valid(second) {
		t.Errorf("giving the key up: %d", r.status)
	}
	third := g.makeKey(t, session).object(t)["key"].(string)
	if r := g.as(t, "operator", "GET", "/api/users/u1", ""); r.status != 200 || r.object(t)["username"] != "u1" {
		t.Errorf("get: %d %s", r.status, r.body)
	}
	if r := g.as(t, "operator", "GET", "/api/users", ""); r.status != 200 || strings.Count(r.body, "username") != 1 {
		t.Errorf("list: %d %s", r.status, r.body)
	}
	if r := g.as(t, "operator", "DELETE", "/api/users/u1", ""); r.status != 204 || g.Valid(third) || len(g.Users()) != 0 {
		t.Errorf("deleting the user: %d", r.status)
	}
	for _, method := range []string{"GET", "DELETE"} {
		if r := g.as(t, "operator", method, "/api/users/u1", ""); r.status != 404 {
			t.Errorf("%s of the deleted user: %d", method, r.status)
		}
	}
	if r := g.makeKey(t, session); r.status != 401 {
		t.Errorf("the session of a deleted user: %d", r.status)
	}
	if diff := cmp.Diff([]string{"p", strings.TrimPrefix(session, "JSESSIONID=")}, g.Secrets()); diff != "" {
		t.Errorf("secrets (-want +got):\n%s", diff)
	}
}

func TestGitProxyRefusals(t *testing.T) {
	t.Parallel()
	g := newGitProxy(t, GitProxyOptions{})
	g.makeUser(t, "plain", `"USER"`)
	g.makeUser(t, "admin", `"USER","ADMIN","SELF_CERTIFY"`)
	plain := g.login(t, "plain", "p")
	for name, c := range map[string]struct {
		method, path, body, key, cookie, csrf string
		status                                int
		text                                  string
	}{
		"wrong key":            {"GET", "/api/me", "", "operato", "", "", 401, ""},
		"nothing":              {"GET", "/api/me", "", "", "", "", 401, ""},
		"no administrator":     {"GET", "/api/users", "", "", plain, "", 403, ""},
		"no SELF_CERTIFY":      {"POST", "/api/me/api-key", "", "", plain + "; XSRF-TOKEN=a", "a", 403, `{"error":"API key generation requires the SELF_CERTIFY role"}`},
		"operator makes a key": {"POST", "/api/me/api-key", "", "operator", "", "", 403, `{"error":"API key generation requires the SELF_CERTIFY role"}`},
		"no CSRF":              {"POST", "/api/me/api-key", "", "", plain, "", 403, ""},
		"other CSRF":           {"POST", "/api/me/api-key", "", "", plain + "; XSRF-TOKEN=a", "b", 403, ""},
		"name is taken":        {"POST", "/api/users", `{"username":"plain","password":"p"}`, "operator", "", "", 409, `{"error":"User already exists: plain"}`},
		"no password":          {"POST", "/api/users", `{"username":"x"}`, "operator", "", "", 400, `{"error":"password is required"}`},
		"no name":              {"POST", "/api/users", `{"password":"x"}`, "operator", "", "", 400, `{"error":"username is required"}`},
		"not JSON":             {"POST", "/api/users", `x`, "operator", "", "", 400, `{"error":"the body is not the JSON object that was asked for"}`},
		"last administrator":   {"DELETE", "/api/users/admin", "", "operator", "", "", 409, `{"error":"Cannot delete the last admin user"}`},
	} {
		header := []string{"Content-Type", "application/json", "Cookie", c.cookie, "X-XSRF-TOKEN", c.csrf}
		if c.key != "" {
			header = append(header, "X-Api-Key", c.key)
		}
		if r := do(t, c.method, g.url+c.path, c.body, header...); r.status != c.status || r.body != c.text {
			t.Errorf("%s: %d %s; want %d %s", name, r.status, r.body, c.status, c.text)
		}
	}
	if me := g.as(t, "operator", "GET", "/api/me", "").object(t); cmp.Diff([]any{"ROLE_USER", "ROLE_ADMIN"}, me["authorities"]) != "" || me["hasApiKey"] != false {
		t.Errorf("the operator is %v", me)
	}
	wantPanic(t, "lab: git-proxy-java without an operator's key", func() { NewGitProxy(GitProxyOptions{}) })
}

func TestGitProxyOfOtherKinds(t *testing.T) {
	t.Parallel()
	old := newGitProxy(t, GitProxyOptions{NoUserKeys: true})
	old.makeUser(t, "u1", `"SELF_CERTIFY"`)
	if r := old.makeKey(t, old.login(t, "u1", "p")); r.status != 404 {
		t.Errorf("a version without keys for users: %d", r.status)
	}
	if me := old.as(t, "operator", "GET", "/api/me", "").object(t); me["hasApiKey"] != nil {
		t.Errorf("a version without keys for users says %v", me)
	}
	idp := newGitProxy(t, GitProxyOptions{Provider: "oidc"})
	idp.makeUser(t, "u1", `"SELF_CERTIFY"`)
	if idp.login(t, "u1", "p") != "" {
		t.Error("a local user can log in although the provider is another")
	}
	fixed := newGitProxy(t, GitProxyOptions{ReadOnly: true})
	for _, c := range [][3]string{
		{"POST", "/api/users", "User creation requires a JDBC user store"},
		{"DELETE", "/api/users/x", "User deletion requires a JDBC user store"},
		{"POST", "/api/me/api-key", noMutations},
		{"DELETE", "/api/me/api-key", noMutations},
	} {
		if r := fixed.as(t, "operator", c[0], c[1], `{}`); r.status != 501 || r.object(t)["error"] != c[2] {
			t.Errorf("%s %s: %d %s", c[0], c[1], r.status, r.body)
		}
	}
}
