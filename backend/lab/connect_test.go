// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// connectServer is a Connect under test, with an issuer that it trusts.
type connectServer struct {
	*Connect
	url    string
	clock  *testClock
	issuer *Issuer
}

const (
	credentialsPath = "/__api__/v1/oauth/integrations/credentials"
	oauthTokenPath  = "/oauth/v1/token"
	aliceKeys       = "/__api__/v1/users/g-alice/keys"
)

func newConnectServer(t *testing.T, o ConnectOptions) *connectServer {
	t.Helper()
	clock := newClock()
	issuer := NewIssuer(IssuerOptions{Now: clock.Now, Algorithm: "ES256"})
	issuer.SetURL(serve(t, issuer))
	o.Issuers, o.Now = []string{issuer.URL()}, clock.Now
	c := NewConnect(o)
	c.AddUser(ConnectUser{GUID: "g-alice", Username: "alice", Role: "administrator"}, "alices-own")
	c.AddUser(ConnectUser{GUID: "g-bob", Username: "bob"}, "bobs-own")
	return &connectServer{c, serve(t, c) + o.Path, clock, issuer}
}

// exchange sends a token with the parameters of flow A; form changes them one by one, "-" removes one.
func (c *connectServer) exchange(t *testing.T, path, token string, form map[string]string) reply {
	t.Helper()
	body := url.Values{"grant_type": {tokenExchangeGrant}, "subject_token_type": {idTokenType}, "requested_token_type": {accessTokenType}, "subject_token": {token}}
	if path == credentialsPath {
		body.Set("requested_token_type", connectKeyType)
	}
	for name, value := range form {
		if body.Set(name, value); value == "-" {
			body.Del(name)
		}
	}
	return do(t, "POST", c.url+path, body.Encode(), "Content-Type", "application/x-www-form-urlencoded")
}

func (c *connectServer) with(t *testing.T, key, method, path, body string) reply {
	t.Helper()
	return do(t, method, c.url+path, body, "Authorization", "Key "+key, "Content-Type", "application/json")
}

func TestConnectServicePrincipal(t *testing.T) {
	t.Parallel()
	c := newConnectServer(t, ConnectOptions{Path: "/connect", TokenQuery: "tenant=1", GrantTypes: []string{tokenExchangeGrant}})
	c.AddPublisher(ConnectPublisher{Name: "release", Claims: map[string]string{"repository": "acme/widget"}})
	metadata := do(t, "GET", c.url+"/.well-known/oauth-authorization-server", "").object(t)
	if metadata["token_endpoint"] != c.url+oauthTokenPath+"?tenant=1" || cmp.Diff([]any{tokenExchangeGrant}, metadata["grant_types_supported"]) != "" {
		t.Errorf("metadata %v", metadata)
	}
	r := c.exchange(t, oauthTokenPath+"?tenant=1", c.issuer.Token(map[string]any{"aud": "connect"}), nil)
	got := r.object(t)
	key, _ := got["access_token"].(string)
	want := map[string]any{"access_token": key, "token_type": "Key", "issued_token_type": accessTokenType, "expires_in": 900.0}
	if diff := cmp.Diff(want, got); r.status != 200 || key == "" || diff != "" {
		t.Fatalf("%d, -want +got:\n%s", r.status, diff)
	}
	if r := c.with(t, key, "GET", "/__api__/v1/user", ""); r.status != 403 || r.object(t)["code"] != 22.0 {
		t.Errorf("whose key: %d %s; want 403 code 22", r.status, r.body)
	}
	if r := c.with(t, key, "GET", "/__api__/v1/content", ""); r.status != 200 {
		t.Errorf("use: %d", r.status)
	}
	if r := c.exchange(t, oauthTokenPath, c.issuer.Token(map[string]any{"aud": "connect"}), nil); r.status != 404 {
		t.Errorf("without the query: %d", r.status)
	}
	c.clock.Advance(15 * time.Minute)
	if r := c.with(t, key, "GET", "/__api__/v1/user", ""); r.status != 401 || r.object(t)["code"] != 30.0 || c.Valid(key) {
		t.Errorf("an expired key: %d %s; want 401 code 30", r.status, r.body)
	}
}

func TestConnectFederation(t *testing.T) {
	t.Parallel()
	c := newConnectServer(t, ConnectOptions{NoExpiry: true})
	c.AddIntegration(ConnectIntegration{GUID: "i-1", Audience: "posit", MatchClaim: "actor"})
	r := c.exchange(t, credentialsPath, c.issuer.Token(map[string]any{"aud": "posit", "actor": "bob"}), map[string]string{"audience": "i-1"})
	got := r.object(t)
	key, _ := got["access_token"].(string)
	want := map[string]any{"access_token": key, "token_type": "Key", "issued_token_type": connectKeyType}
	if diff := cmp.Diff(want, got); r.status != 200 || key == "" || diff != "" {
		t.Fatalf("%d, -want +got:\n%s", r.status, diff)
	}
	if r := c.with(t, key, "GET", "/__api__/v1/user", ""); r.status != 200 || r.object(t)["username"] != "bob" {
		t.Errorf("whose key: %d %s; want bob's", r.status, r.body)
	}
	if r := c.exchange(t, credentialsPath, c.issuer.Token(map[string]any{"aud": "posit", "actor": "bob"}), nil); r.status != 200 {
		t.Errorf("the only integration, unnamed: %d %s", r.status, r.body)
	}
}

func TestConnectExchangeRefusals(t *testing.T) {
	t.Parallel()
	c := newConnectServer(t, ConnectOptions{})
	c.AddPublisher(ConnectPublisher{Name: "release", Claims: map[string]string{"repository": "acme/widget"}})
	c.AddPublisher(ConnectPublisher{Name: "main", Claims: map[string]string{"ref": "refs/heads/main"}})
	none := newConnectServer(t, ConnectOptions{NoOAuth: true})
	good := map[string]any{"aud": "connect", "ref": "refs/tags/v1"}
	stranger := NewIssuer(IssuerOptions{Now: c.clock.Now})
	stranger.SetURL("https://stranger.example")
	forged := strings.Split(c.issuer.Token(good), ".")
	for name, x := range map[string]struct {
		server *connectServer
		path   string
		token  string
		form   map[string]string
		status int
		want   string
	}{
		"two publishers": {c, oauthTokenPath, c.issuer.Token(map[string]any{"aud": "connect"}), nil, 400, `{"error":"invalid_grant","error_description":"ambiguous match"}`},
		"no publisher":   {c, oauthTokenPath, c.issuer.Token(map[string]any{"aud": "connect", "repository": "evil/widget", "ref": "x"}), nil, 400, `{"error":"invalid_grant","error_description":"no service principal found"}`},
		"audience":       {c, oauthTokenPath, c.issuer.Token(map[string]any{"ref": "x"}), nil, 400, `{"error":"invalid_grant","error_description":"no service principal found"}`},
		"signature":      {c, oauthTokenPath, forged[0] + "." + forged[1] + "." + strings.Repeat("A", len(forged[2])), nil, 400, `{"error":"invalid_grant","error_description":"could not verify token signature"}`},
		"issuer":         {c, oauthTokenPath, stranger.Token(good), nil, 400, `{"error":"invalid_grant","error_description":"could not verify token issuer"}`},
		"no token":       {c, oauthTokenPath, "garbage", nil, 400, `{"error":"invalid_grant","error_description":"could not verify token issuer"}`},
		"expired":        {c, oauthTokenPath, c.issuer.Token(map[string]any{"aud": "connect", "exp": start.Unix()}), nil, 400, `{"error":"invalid_grant","error_description":"could not verify token: it has expired"}`},
		"grant":          {c, oauthTokenPath, c.issuer.Token(good), map[string]string{"grant_type": "x"}, 400, `{"error":"unsupported_grant_type","error_description":"want a token exchange"}`},
		"type":           {c, oauthTokenPath, c.issuer.Token(good), map[string]string{"subject_token_type": "-"}, 400, `{"error":"invalid_request","error_description":"subject_token_type: want an ID token"}`},
		"requested":      {c, oauthTokenPath, c.issuer.Token(good), map[string]string{"requested_token_type": connectKeyType}, 400, `{"error":"invalid_request","error_description":"requested_token_type: not issued here"}`},
		"missing":        {c, oauthTokenPath, "-", map[string]string{"subject_token": "-"}, 400, `{"error":"invalid_request","error_description":"subject_token: missing"}`},
		"no OAuth":       {none, oauthTokenPath, none.issuer.Token(good), nil, 404, "404 page not found\n"},
		"no federation":  {c, credentialsPath, c.issuer.Token(good), nil, 404, `{"code":4,"error":"The requested object does not exist.","payload":null}`},
	} {
		if r := x.server.exchange(t, x.path, x.token, x.form); r.status != x.status || r.body != x.want {
			t.Errorf("%s: %d %s; want %d %s", name, r.status, r.body, x.status, x.want)
		}
	}
	if r := do(t, "GET", none.url+"/.well-known/oauth-authorization-server", ""); r.status != 404 {
		t.Errorf("metadata of a server without OAuth: %d", r.status)
	}
	if r := do(t, "POST", c.url+oauthTokenPath, `{}`, "Content-Type", "application/json"); r.status != 400 || r.object(t)["error"] != "invalid_request" {
		t.Errorf("JSON: %d %s", r.status, r.body)
	}

	c.AddIntegration(ConnectIntegration{GUID: "i-1", Audience: "posit"})
	c.AddIntegration(ConnectIntegration{GUID: "i-2", Audience: "posit"})
	token := c.issuer.Token(map[string]any{"aud": "posit", "sub": "carol"})
	for audience, want := range map[string]string{
		"i-1": `{"error":"invalid_grant","error_description":"no user found"}`,
		"-":   `{"error":"invalid_target","error_description":"no such integration"}`,
		"i-3": `{"error":"invalid_target","error_description":"no such integration"}`,
	} {
		if r := c.exchange(t, credentialsPath, token, map[string]string{"audience": audience}); r.status != 400 || r.body != want {
			t.Errorf("federation with audience %s: %d %s", audience, r.status, r.body)
		}
	}
	if got := len(c.Live()); got != 2 {
		t.Errorf("%d keys live; want the users' own", got)
	}
}

func TestConnectKeysOfUsers(t *testing.T) {
	t.Parallel()
	c := newConnectServer(t, ConnectOptions{})
	r := c.with(t, "alices-own", "POST", aliceKeys, `{"name":"n1","user_role":"viewer","expires_at":"2026-03-05T14:30:45Z"}`)
	made := r.object(t)
	secret, _ := made["key"].(string)
	want := map[string]any{"id": "3", "name": "n1", "key": secret, "user_role": "viewer", "expires_at": "2026-03-05T14:30:45Z"}
	if diff := cmp.Diff(want, made); r.status != 200 || diff != "" {
		t.Fatalf("%d, -want +got:\n%s", r.status, diff)
	}
	if r := c.with(t, "alices-own", "GET", aliceKeys, ""); r.status != 200 || !strings.Contains(r.body, `"n1"`) || strings.Contains(r.body, secret) || strings.Contains(r.body, "bobs-own") {
		t.Errorf("list: %d %s", r.status, r.body)
	}
	for name, x := range map[string]struct {
		key, method, path, body string
		status, code            int
	}{
		"nobody":               {"wrong", "GET", aliceKeys, "", 401, 30},
		"make for another":     {"alices-own", "POST", "/__api__/v1/users/g-bob/keys", `{"name":"x"}`, 403, 22},
		"list another's":       {"alices-own", "GET", "/__api__/v1/users/g-bob/keys", "", 404, 4},
		"delete another's":     {"alices-own", "DELETE", "/__api__/v1/users/g-bob/keys/2", "", 404, 4},
		"delete by other path": {"alices-own", "DELETE", aliceKeys + "/2", "", 404, 4},
		"role above":           {secret, "POST", aliceKeys, `{"name":"x","user_role":"publisher"}`, 403, 22},
		"no role":              {"alices-own", "POST", aliceKeys, `{"name":"x","user_role":"owner"}`, 400, 3},
		"no name":              {"alices-own", "POST", aliceKeys, `{}`, 400, 3},
		"end in the past":      {"alices-own", "POST", aliceKeys, `{"name":"x","expires_at":"2026-03-05T13:30:45Z"}`, 400, 3},
	} {
		if r := c.with(t, x.key, x.method, x.path, x.body); r.status != x.status || r.object(t)["code"] != float64(x.code) {
			t.Errorf("%s: %d %s; want %d, code %d", name, r.status, r.body, x.status, x.code)
		}
	}
	if r := c.with(t, "alices-own", "DELETE", aliceKeys+"/3", ""); r.status != 204 || c.Valid(secret) {
		t.Errorf("delete: %d %s", r.status, r.body)
	}
	if r := c.with(t, "alices-own", "DELETE", aliceKeys+"/3", ""); r.status != 404 {
		t.Errorf("delete again: %d", r.status)
	}

	old := newConnectServer(t, ConnectOptions{NoExpiry: true})
	if made := old.with(t, "alices-own", "POST", aliceKeys, `{"name":"n1","expires_at":"2026-03-05T14:30:45Z"}`).object(t); made["expires_at"] != nil {
		t.Errorf("an older server's key: %v", made)
	}
	old.clock.Advance(24 * time.Hour)
	if got := len(old.Live()); got != 3 {
		t.Errorf("%d keys live; want all, for ever", got)
	}
	if r := do(t, "GET", old.url+"/__api__/server_settings", ""); r.status != 200 || r.object(t)["version"] == nil {
		t.Errorf("settings: %d %s", r.status, r.body)
	}
	inventory := do(t, "GET", old.url+"/lab/keys", "")
	if inventory.status != http.StatusOK || strings.Contains(inventory.body, "alices-own") || !strings.Contains(inventory.body, `"g-alice"`) {
		t.Errorf("inventory %s", inventory.body)
	}
}
