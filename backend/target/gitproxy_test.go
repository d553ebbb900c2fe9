// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target/targettest"
)

// gitProxyWire is git-proxy-java as its server sees it: users with a password, sessions, and a key for each user.
type gitProxyWire struct {
	mu        sync.Mutex
	passwords map[string]string
}

const users = "/api/users"

func (g *gitProxyWire) read(r *http.Request, body []byte) targettest.Call {
	c := targettest.Call{Credential: map[string]string{"api_key": r.Header.Get("X-Api-Key")}}
	name, isUser := strings.CutPrefix(r.URL.Path, users+"/")
	switch {
	case is(r, "POST", users):
		var in struct {
			Username, Password string
			Roles              []string
		}
		if json.Unmarshal(body, &in) != nil || in.Password == "" || cmp.Diff([]string{"USER", "SELF_CERTIFY"}, in.Roles) != "" || r.Header.Get("Content-Type") != "application/json" {
			return targettest.Call{}
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.passwords[in.Username] = in.Password
		c.Op, c.Name = targettest.Exchange, in.Username
	case r.Method == http.MethodDelete && isUser:
		c.Op, c.Key = targettest.Revoke, name
	case is(r, "GET", users):
		c.Op = targettest.List
	case r.Method == http.MethodGet && isUser:
		c.Op, c.Key = targettest.Find, name
	case is(r, "GET", "/api/me"):
		c.Op = targettest.Check
	default:
		return targettest.Call{}
	}
	return c
}

func (g *gitProxyWire) write(op targettest.Op, keys []targettest.Key) (int, any) {
	switch op {
	case targettest.Exchange:
		return 201, map[string]any{"username": keys[0].Accessor}
	case targettest.Find:
		return 200, map[string]any{"username": keys[0].Accessor, "emails": []string{}}
	case targettest.List:
		list := []map[string]any{{"username": "ana", "primaryEmail": "ana@example.com"}}
		for _, k := range keys {
			list = append(list, map[string]any{"username": k.Accessor, "primaryEmail": nil, "scmProviders": []string{}})
		}
		return 200, list
	case targettest.Revoke:
		return 204, nil
	}
	return 200, map[string]any{"username": "operator-api-key", "authorities": []string{"ROLE_USER", "ROLE_ADMIN"}}
}

func (g *gitProxyWire) aside(r *http.Request, body []byte, living []targettest.Key) *targettest.Answer {
	switch {
	case is(r, "POST", "/login"):
		form, err := url.ParseQuery(string(body))
		g.mu.Lock()
		defer g.mu.Unlock()
		if name := form.Get("username"); err == nil && g.passwords[name] == form.Get("password") && r.Header.Get("X-Api-Key") == "" {
			return &targettest.Answer{Status: 302, Header: http.Header{
				"Location": {"/dashboard/"}, "Set-Cookie": {"JSESSIONID=of-" + name + "; Path=/; HttpOnly", "XSRF-TOKEN=; Max-Age=0"},
			}}
		}
		return &targettest.Answer{Status: 302, Header: http.Header{"Location": {"/login.html?error"}}}
	case is(r, "POST", "/api/me/api-key"):
		session, err := r.Cookie("JSESSIONID")
		csrf, csrfErr := r.Cookie("XSRF-TOKEN")
		if err != nil || csrfErr != nil || r.Header.Get("X-XSRF-TOKEN") != csrf.Value || r.Header.Get("X-Api-Key") != "" || len(r.Cookies()) != 2 {
			return &targettest.Answer{Status: 401}
		}
		for _, k := range living {
			if session.Value == "of-"+k.Name {
				return &targettest.Answer{Status: 200, Body: map[string]any{"key": k.Secret}}
			}
		}
		return &targettest.Answer{Status: 401}
	}
	return nil
}

func TestGitProxy(t *testing.T) {
	wire := &gitProxyWire{passwords: map[string]string{}}
	targettest.Run(t, targettest.Suite{
		Config:     target.Config{Driver: "git-proxy-java"},
		Caps:       target.Caps{Revoke: true, Find: true, List: true, Check: true},
		Credential: []string{"api_key"},
		Accessor:   true, Named: true, Doubts: 1,
		Denied: []int{400, 401, 403, 404, 415, 422, 501},
		Header: "X-Api-Key",
		Wire:   targettest.Wire{Read: wire.read, Write: wire.write, Aside: wire.aside},
	})
}
