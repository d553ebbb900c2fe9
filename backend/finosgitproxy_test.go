// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// finosWorld is a world with a finos/git-proxy that is configured as the example's page says, and its identity provider.
type finosWorld struct {
	*world
	provider *lab.OAuth
	url      string // of the proxy
}

const (
	finosClient   = "git-proxy-robots"
	finosAudience = "https://git-proxy.example.com"
)

func newFinosWorld(t *testing.T) *finosWorld {
	t.Helper()
	w := &finosWorld{world: newWorld(t)}
	w.provider = lab.NewOAuth(lab.OAuthOptions{Path: "/realms/acme", Algorithm: "RS256", Now: w.clock.now, Audiences: []string{finosAudience}, Scopes: []string{"git-proxy.admin", "git-proxy.read"},
		Clients: []lab.OAuthClient{{ID: finosClient, Method: "client_secret_basic", Secret: clientSecret}}})
	w.provider.SetURL(w.serve(w.provider))

	page, err := os.ReadFile("../bootstrap/targets/finos-git-proxy.md")
	if err != nil {
		t.Fatal(err)
	}
	var written struct {
		APIAuthentication []struct {
			Type      string
			Enabled   bool
			JWTConfig struct {
				AuthorityURL, ClientID, ExpectedAudience string
				RoleMapping                              map[string]map[string]string
			}
		}
	}
	block := regexp.MustCompile("(?s)```json\n(.*?)```").FindStringSubmatch(string(page))
	if block == nil || json.Unmarshal([]byte("{"+block[1]+"}"), &written) != nil || len(written.APIAuthentication) != 1 {
		t.Fatalf("the page has no configuration of the proxy: %q", block)
	}
	is := written.APIAuthentication[0]
	o := lab.FinosGitProxyOptions{Disabled: !is.Enabled || is.Type != "jwt", ClientID: is.JWTConfig.ClientID, ExpectedAudience: is.JWTConfig.ExpectedAudience,
		AuthorityURL: strings.Replace(is.JWTConfig.AuthorityURL, loginURL, w.provider.Issuer(), 1), RoleMapping: map[string][]lab.FinosClaim{}, Client: w.client(), Now: w.clock.now}
	for role, claims := range is.JWTConfig.RoleMapping {
		for name, value := range claims {
			o.RoleMapping[role] = append(o.RoleMapping[role], lab.FinosClaim{Name: name, Value: value})
		}
	}
	w.url = w.serve(lab.NewFinosGitProxy(o))

	asked := w.run("finos-git-proxy.md", loginURL, w.provider.Issuer(), "=@client.secret", "="+clientSecret)
	if want := []string{"git-proxy-read", "git-proxy-admin"}; !slices.Equal(asked, want) {
		t.Errorf("the page asks for keys of %q; want %q", asked, want)
	}
	return w
}

// ask calls the proxy's API with a key as the lease says that it is presented, and returns the status.
func (w *finosWorld) ask(method, path string, data map[string]any) int {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set(data["header_name"].(string), data["header_value"].(string))
	resp, err := w.client().Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// The page's commands, and its configuration of the proxy: each role's key does what the page says, and ends by itself alone.
func TestFinosGitProxyExample(t *testing.T) {
	w := newFinosWorld(t)
	for role, deleting := range map[string]int{"git-proxy-read": 401, "git-proxy-admin": 200} {
		resp, err := w.exchange(role, w.token(map[string]any{"aud": "https://vault.example.com/oidcexchange"}))
		if err != nil || resp.IsError() {
			t.Fatalf("%s: %v %v\n%s", role, resp, err, w.logs)
		}
		if status := w.ask("GET", "/api/v1/repo", resp.Data); status != 200 {
			t.Errorf("%s: reading is answered %d", role, status)
		}
		if status := w.ask("DELETE", "/api/v1/repo/7/delete", resp.Data); status != deleting {
			t.Errorf("%s: deleting is answered %d; want %d", role, status, deleting)
		}
		if resp.Data["revocable"] != false || resp.Secret.Renewable || resp.Secret.TTL != 4*time.Minute {
			t.Errorf("%s: revocable %v, renewable %v for %v; want what the proxy keeps", role, resp.Data["revocable"], resp.Secret.Renewable, resp.Secret.TTL)
		}
		w.revoke(resp)
		if record := w.read("keys/" + resp.Data["id"].(string)); record["state"] != "exposed" || w.ask("GET", "/api/v1/repo", resp.Data) != 200 {
			t.Errorf("%s: after its lease the ledger says %v; the key lives on", role, record["state"])
		}
		w.clock.advance(5 * time.Minute)
		if status := w.ask("GET", "/api/v1/repo", resp.Data); status != 401 {
			t.Errorf("%s: after its end the key is answered %d", role, status)
		}
	}
	if strings.Contains(w.logs.String(), clientSecret) {
		t.Error("the log has the client's secret")
	}
}

// What the target gives is bound by its condition, and what the role gives by the role: no request makes an administrator.
func TestFinosGitProxyScoping(t *testing.T) {
	w := newFinosWorld(t)
	token := func() string { return w.token(map[string]any{"aud": "https://vault.example.com/oidcexchange"}) }
	reason, status := reasonOf(w.do("update", "creds/git-proxy-read", map[string]any{"subject_token": token(), "parameters": map[string]any{"scopes": "git-proxy.admin"}}))
	if reason != reasonParameter || status != http.StatusBadRequest {
		t.Errorf("a request that wants more: %s, %d", reason, status)
	}
	// Two scopes are another text than the mapping's: such a key is nobody's administrator.
	w.write("roles/git-proxy-admin", map[string]any{"parameters": map[string]any{"audience": finosAudience, "scopes": "git-proxy.admin,git-proxy.read"}})
	resp, err := w.exchange("git-proxy-admin", token())
	if err != nil || resp.IsError() {
		t.Fatalf("%v %v\n%s", resp, err, w.logs)
	}
	if status := w.ask("DELETE", "/api/v1/repo/7/delete", resp.Data); status != 401 {
		t.Errorf("two scopes: deleting is answered %d", status)
	}
	w.refused("roles/git-proxy-read", map[string]any{"parameters": map[string]any{"audience": "https://elsewhere.example"}}, "condition")
}
