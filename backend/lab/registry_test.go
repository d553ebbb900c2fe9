// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"encoding/base64"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// published is a registry under test with its issuer, and a publisher for the issuer's default claims.
type published struct {
	issuer  *Issuer
	clock   *testClock
	handler http.Handler
	aud     string
}

var widget = Publisher{Package: "widget", Owner: "acme", OwnerID: "90210", Repository: "widget", Workflow: "release.yml"}

// newPublished makes a registry. Its tokens are signed with RS256, which all registries accept.
func newPublished(t *testing.T, aud string, make func(RegistryOptions) http.Handler) *published {
	t.Helper()
	clock := newClock()
	issuer, client := newIssuer(t, IssuerOptions{Now: clock.Now})
	return &published{issuer, clock, make(RegistryOptions{Issuers: []string{issuer.URL()}, Client: client, Now: clock.Now}), aud}
}

// claims are those of a token for the registry; nil removes a claim.
func (p *published) claims(change map[string]any) map[string]any {
	all := map[string]any{"aud": p.aud}
	maps.Copy(all, change)
	return all
}

func (p *published) do(t *testing.T, method, path, body string, header ...string) reply {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "test")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return handleRequest(p.handler, r)
}

func wantReply(t *testing.T, name string, r reply, status int, body string) {
	t.Helper()
	if r.status != status || body != "" && r.body != body {
		t.Errorf("%s: %d %s; want %d %s", name, r.status, r.body, status, body)
	}
}

// bad returns tokens that no registry accepts.
func (p *published) bad(t *testing.T) map[string]string {
	t.Helper()
	stranger := NewIssuer(IssuerOptions{URL: p.issuer.URL(), Now: p.clock.Now})
	return map[string]string{
		"garbage":     "x",
		"foreign":     p.issuer.Token(p.claims(map[string]any{"iss": "https://other.example"})),
		"forged":      stranger.Token(p.claims(nil)),
		"unsigned":    p.issuer.Sign(map[string]any{"alg": "none"}, mustJSON(override(p.issuer.claims(), p.claims(nil)))),
		"no exp":      p.issuer.Token(p.claims(map[string]any{"exp": nil})),
		"expired":     p.issuer.Token(p.claims(map[string]any{"exp": start.Add(-2 * time.Minute).Unix()})),
		"early":       p.issuer.Token(p.claims(map[string]any{"nbf": start.Add(2 * time.Minute).Unix()})),
		"aud":         p.issuer.Token(p.claims(map[string]any{"aud": "elsewhere"})),
		"aud list":    p.issuer.Token(p.claims(map[string]any{"aud": []string{p.aud}})),
		"repository":  p.issuer.Token(p.claims(map[string]any{"repository": "acme/other"})),
		"owner":       p.issuer.Token(p.claims(map[string]any{"repository_owner_id": "666"})),
		"workflow":    p.issuer.Token(p.claims(map[string]any{"workflow_ref": "acme/widget/.github/workflows/x.yml@refs/heads/main", "job_workflow_ref": "acme/widget/.github/workflows/x.yml@refs/heads/main"})),
		"fork's flow": p.issuer.Token(p.claims(map[string]any{"workflow_ref": "evil/widget/.github/workflows/release.yml@x", "job_workflow_ref": "evil/widget/.github/workflows/release.yml@x"})),
	}
}

// refuses sends each bad token and checks for the refusal that want names.
func (p *published) refuses(t *testing.T, send func(token string) reply, want func(name string) (int, string)) {
	t.Helper()
	for name, token := range p.bad(t) {
		status, body := want(name)
		wantReply(t, name, send(token), status, body)
	}
}

func TestPyPI(t *testing.T) {
	t.Parallel()
	var pypi *PyPI
	p := newPublished(t, "pypi", func(o RegistryOptions) http.Handler { pypi = NewPyPI(o); return pypi })
	pending := widget
	pending.Pending = true
	pypi.AddPublisher(pending)
	mint := func(token string) reply {
		return p.do(t, "POST", "/_/oidc/mint-token", `{"token":"`+token+`"}`, "Content-Type", "text/plain")
	}
	refusal := func(code, text string) string {
		return `{"errors":[{"code":"` + code + `","description":"` + text + `"}],"message":"Token request failed"}`
	}
	p.refuses(t, mint, func(name string) (int, string) {
		switch name {
		case "garbage":
			return 422, refusal("invalid-payload", "malformed JWT")
		case "foreign":
			return 422, refusal("invalid-payload", "unknown trusted publishing issuer")
		case "repository", "owner", "workflow", "fork's flow":
			return 422, refusal("invalid-publisher", "valid token, but no corresponding publisher")
		}
		return 422, refusal("invalid-token", "malformed or invalid token")
	})
	wantReply(t, "not JSON", p.do(t, "POST", "/_/oidc/mint-token", "x"), 422, refusal("invalid-payload", "invalid JSON"))
	wantReply(t, "event", mint(p.issuer.Token(p.claims(map[string]any{"event_name": "pull_request_target"}))), 422, refusal("invalid-publisher", "valid token, but no corresponding publisher"))
	wantReply(t, "audience", p.do(t, "GET", "/_/oidc/audience", ""), 200, `{"audience":"pypi"}`)
	if !pypi.Publishers()[0].Pending {
		t.Error("a refusal made the project")
	}

	token := p.issuer.Token(p.claims(nil))
	r := mint(token)
	key, _ := r.object(t)["token"].(string)
	wantReply(t, "good", r, 200, `{"expires":`+itoa(start.Add(15*time.Minute).Unix())+`,"success":true,"token":"`+key+`"}`)
	if !strings.HasPrefix(key, "pypi-") || pypi.Publishers()[0].Pending {
		t.Error("no key, or no project")
	}
	wantReply(t, "again", mint(token), 422, refusal("invalid-reuse-token", "invalid token: already used"))
	upload := func(user string) int {
		return p.do(t, "POST", "/legacy/", "", "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":"+key))).status
	}
	if got := []int{upload("__token__"), upload("me"), len(pypi.Live())}; got[0] != 200 || got[1] != 403 || got[2] != 1 {
		t.Errorf("upload, upload as another, live: %v", got)
	}
	p.clock.Advance(15 * time.Minute)
	if upload("__token__") != 403 || len(pypi.Live()) != 0 {
		t.Error("the key lives for more than 15 minutes")
	}
}

func itoa(n int64) string { return string(mustJSON(n)) }

func TestCratesIO(t *testing.T) {
	t.Parallel()
	var crates *CratesIO
	p := newPublished(t, "crates.io", func(o RegistryOptions) http.Handler { crates = NewCratesIO(o); return crates })
	crates.AddPublisher(widget)
	const path = "/api/v1/trusted_publishing/tokens"
	exchange := func(token string) reply { return p.do(t, "POST", path, `{"jwt":"`+token+`"}`) }
	refusal := func(text string) string { return `{"errors":[{"detail":"` + text + `"}]}` }
	p.refuses(t, exchange, func(name string) (int, string) {
		switch name {
		case "foreign":
			return 400, refusal("Unsupported JWT issuer: https://other.example")
		case "repository":
			return 400, refusal("No Trusted Publishing config found for repository `acme/other`.")
		case "owner":
			return 400, refusal("The Trusted Publishing config for repository `acme/widget` does not match the repository owner ID (666) in the JWT. Expected owner IDs: 90210.")
		case "workflow":
			return 400, refusal("The Trusted Publishing config for repository `acme/widget` does not match the workflow filename `x.yml` in the JWT. Expected workflow filenames: `release.yml`")
		case "fork's flow":
			return 400, ""
		}
		return 400, refusal("Failed to decode JWT")
	})
	wantReply(t, "event", exchange(p.issuer.Token(p.claims(map[string]any{"event_name": "workflow_run"}))), 400, "")
	prod := widget
	prod.Repository, prod.Environment = "prod", "prod"
	crates.AddPublisher(prod)
	for environment, want := range map[any]string{
		nil: "requires an environment, but the JWT does not specify one", "test": "does not match the environment `test` in the JWT",
	} {
		token := p.issuer.Token(p.claims(map[string]any{"repository": "acme/prod", "workflow_ref": "acme/prod/.github/workflows/release.yml@x", "environment": environment}))
		wantReply(t, want, exchange(token), 400, refusal("The Trusted Publishing config for repository `acme/prod` "+want+". Expected environments: `prod`"))
	}
	wantReply(t, "no agent", p.do(t, "POST", path, `{"jwt":"x"}`, "User-Agent", ""), 403, "")
	wantReply(t, "PUT", p.do(t, "PUT", path, "{}"), 405, "")

	token := p.issuer.Token(p.claims(nil))
	p.issuer.Fault(OpJWKS, Fault{Kind: KindStatus, Status: 500, Count: 1})
	wantReply(t, "no keys", exchange(token), 500, refusal("Failed to load OIDC key set"))
	r := exchange(token)
	key, _ := r.object(t)["token"].(string)
	wantReply(t, "good", r, 200, `{"token":"`+key+`"}`)
	wantReply(t, "again", exchange(token), 400, refusal("JWT has already been used"))

	publish := func() int { return p.do(t, "PUT", "/api/v1/crates/new", "", "Authorization", key).status }
	if publish() != 200 {
		t.Error("the key does not work")
	}
	for name, c := range map[string]struct {
		header string
		status int
	}{"unknown": {"Bearer cio_tp_" + strings.Repeat("x", 32), 204}, "malformed": {"Bearer x", 401}, "none": {"", 401}, "scheme": {"Basic " + key, 401}} {
		wantReply(t, name, p.do(t, "DELETE", path, "", "Authorization", c.header), c.status, "")
	}
	if publish() != 200 {
		t.Error("the key was ended by another")
	}
	for range 2 {
		wantReply(t, "revoke", p.do(t, "DELETE", path, "", "Authorization", "bearer "+key), 204, "")
	}
	if publish() != 403 || len(crates.Live()) != 0 {
		t.Error("the key lives on")
	}
	if again := exchange(p.issuer.Token(p.claims(nil))); !crates.Valid(again.object(t)["token"].(string)) {
		t.Error("the next key does not live")
	}
	p.clock.Advance(30 * time.Minute)
	if len(crates.Live()) != 0 {
		t.Error("the key lives for more than 30 minutes")
	}
}

func TestRubyGems(t *testing.T) {
	t.Parallel()
	var gems *RubyGems
	p := newPublished(t, "rubygems.org", func(o RegistryOptions) http.Handler { gems = NewRubyGems(o); return gems })
	special := widget
	special.Environment, special.Package = "prod", "widget-prod"
	gems.AddPublisher(widget)
	gems.AddPublisher(special)
	gems.AddRole(KeyRole{Token: "rg_1", Issuer: p.issuer.URL(), Subject: "repo:acme/widget:ref:refs/heads/main", Gem: "widget", ValidFor: time.Hour})
	const publisher, role = "/api/v1/oidc/trusted_publisher/exchange_token", "/api/v1/oidc/api_key_roles/rg_1/assume_role"
	to := func(path string) func(string) reply {
		return func(token string) reply { return p.do(t, "POST", path, `{"jwt":"`+token+`"}`) }
	}
	p.refuses(t, to(publisher), func(name string) (int, string) {
		switch name {
		case "garbage":
			return 400, `{"error":"Invalid JWT"}`
		case "no exp":
			return 400, `{"error":"Missing/invalid exp"}`
		}
		return 404, `{"error":"Not Found"}`
	})
	wantReply(t, "no jti", to(role)(p.issuer.Token(p.claims(map[string]any{"jti": nil}))), 400, `{"error":"Missing/invalid jti"}`)
	wantReply(t, "another subject", to(role)(p.issuer.Token(p.claims(map[string]any{"sub": "x"}))), 404, "")
	wantReply(t, "another role", to("/api/v1/oidc/api_key_roles/rg_2/assume_role")(p.issuer.Token(p.claims(nil))), 404, "")

	token := p.issuer.Token(p.claims(map[string]any{"environment": "prod"}))
	r := to(publisher)(token)
	key, _ := r.object(t)["rubygems_api_key"].(string)
	wantReply(t, "good", r, 201, `{"expires_at":"2026-03-05T13:45:45Z","name":"GitHub Actions acme/widget","rubygems_api_key":"`+key+`","scopes":["push_rubygem"]}`)
	if live := gems.Live(); len(live) != 1 || live[0].Packages[0] != "widget-prod" {
		t.Errorf("live %v; want a key of the publisher for the environment", live)
	}
	wantReply(t, "a publisher's token works twice", to(publisher)(token), 201, "")
	wantReply(t, "role", to(role)(p.issuer.Token(p.claims(map[string]any{"jti": "one"}))), 201, "")
	wantReply(t, "role again", to(role)(p.issuer.Token(p.claims(map[string]any{"jti": "one"}))), 422, `{"errors":{"jwt.claims.jti":["must be unique"]}}`)
	push := func() int { return p.do(t, "POST", "/api/v1/gems", "", "Authorization", key).status }
	if got := push(); got != 200 {
		t.Errorf("push: %d", got)
	}
	p.clock.Advance(15 * time.Minute)
	if got := push(); got != 401 || len(gems.Live()) != 1 {
		t.Errorf("push with an expired key: %d, %d live; want the role's", got, len(gems.Live()))
	}
}

func TestNPM(t *testing.T) {
	t.Parallel()
	var npm *NPM
	p := newPublished(t, "npm:registry.npmjs.org", func(o RegistryOptions) http.Handler { npm = NewNPM(o); return npm })
	scoped := widget
	scoped.Package = "@acme/widget"
	npm.AddPublisher(scoped)
	exchange := func(token string) reply {
		return p.do(t, "POST", "/-/npm/v1/oidc/token/exchange/package/@acme%2Fwidget", "", "Authorization", "Bearer "+token)
	}
	p.refuses(t, exchange, func(name string) (int, string) {
		switch name {
		case "repository", "owner", "workflow", "fork's flow":
			return 404, `{"message":"OIDC token exchange error - package not found"}`
		}
		return 401, `{"message":"OIDC token exchange error - invalid token"}`
	})
	wantReply(t, "no token", p.do(t, "POST", "/-/npm/v1/oidc/token/exchange/package/x", ""), 401, "")
	token := p.issuer.Token(p.claims(nil))
	wantReply(t, "another package", p.do(t, "POST", "/-/npm/v1/oidc/token/exchange/package/other", "", "Authorization", "Bearer "+token), 404, "")
	r := exchange(token)
	key, _ := r.object(t)["token"].(string)
	wantReply(t, "good", r, 201, `{"created":`+itoa(start.Unix())+`,"expires":`+itoa(start.Add(15*time.Minute).Unix())+`,"token":"`+key+`","token_type":"oidc"}`)
	wantReply(t, "again", exchange(token), 404, "")
	npm.TimesAsText(true)
	if got := exchange(p.issuer.Token(p.claims(nil))).object(t)["expires"]; got != "2026-03-05T13:45:45Z" {
		t.Errorf("expires %v", got)
	}
	publish := func(name string) int { return p.do(t, "PUT", "/"+name, "", "Authorization", "Bearer "+key).status }
	if got := []int{publish("@acme%2fwidget"), publish("other")}; got[0] != 200 || got[1] != 403 {
		t.Errorf("publish, publish another: %v", got)
	}
	p.clock.Advance(15 * time.Minute)
	if got := publish("@acme%2fwidget"); got != 401 {
		t.Errorf("publish with an expired key: %d", got)
	}
}

func TestArtifactory(t *testing.T) {
	t.Parallel()
	clock := newClock()
	issuer, client := newIssuer(t, IssuerOptions{Now: clock.Now})
	a := NewArtifactory(ArtifactoryOptions{AdminToken: "admin-token", Client: client, Now: clock.Now})
	a.AddMapping(IdentityMapping{Provider: "github", Issuer: issuer.URL(), Audience: "jfrog", Name: "web", Claims: map[string]string{"repository": "acme/widget"},
		Username: "ci", Scope: "applied-permissions/user", TTL: time.Hour})
	p := &published{issuer, clock, a, "jfrog"}
	body := func(token, provider string) string {
		return `{"grant_type":"urn:ietf:params:oauth:grant-type:token-exchange","subject_token_type":"urn:ietf:params:oauth:token-type:id_token","subject_token":"` + token + `","provider_name":"` + provider + `"}`
	}
	const path = "/access/api/v1/oidc/token"
	good := issuer.Token(p.claims(nil))
	for name, c := range map[string]struct {
		body   string
		status int
	}{
		"not JSON": {"x", 400}, "no grant": {`{"subject_token":"x"}`, 400}, "provider": {body(good, "other"), 404}, "garbage": {body("x", "github"), 401},
		"forged":  {body(NewIssuer(IssuerOptions{URL: issuer.URL(), Now: clock.Now}).Token(p.claims(nil)), "github"), 401},
		"expired": {body(issuer.Token(p.claims(map[string]any{"exp": start.Unix()})), "github"), 401},
		"aud":     {body(issuer.Token(map[string]any{"aud": "x"}), "github"), 403},
		"claims":  {body(issuer.Token(p.claims(map[string]any{"repository": "acme/other"})), "github"), 403},
	} {
		wantReply(t, name, p.do(t, "POST", path, c.body), c.status, "")
	}
	r := p.do(t, "POST", path, body(good, "github"))
	key, _ := r.object(t)["access_token"].(string)
	if o := r.object(t); r.status != 200 || o["expires_in"] != 3600.0 || o["username"] != "ci" || !a.Valid(key) {
		t.Fatalf("exchange: %d %v", r.status, o)
	}
	as := func(token, method, path, body string) reply {
		return p.do(t, method, path, body, "Authorization", "Bearer "+token)
	}
	const tokens = "/access/api/v1/tokens"
	made := as("admin-token", "POST", tokens, `{"username":"bob","scope":"applied-permissions/user","expires_in":60,"description":"oidcx-1","force_revocable":true}`).object(t)
	bob, id := made["access_token"].(string), made["token_id"].(string)
	for name, c := range map[string]struct {
		got  reply
		want int
	}{
		"me":                     {as(bob, "GET", tokens+"/me", ""), 200},
		"me with the wrong one":  {as("x", "GET", tokens+"/me", ""), 401},
		"for another":            {as(bob, "POST", tokens, `{"username":"ci","scope":"applied-permissions/user"}`), 403},
		"scope":                  {as("admin-token", "POST", tokens, `{"username":"ci","scope":"all"}`), 400},
		"another's":              {as(key, "DELETE", tokens+"/"+id, ""), 403},
		"unknown":                {as("admin-token", "DELETE", tokens+"/x", ""), 404},
		"one's own without name": {as("", "GET", tokens, ""), 401},
	} {
		wantReply(t, name, c.got, c.want, "")
	}
	for query, want := range map[string]int{"": 2, "?description=oidcx-1": 1, "?description=oidcx-": 0, "?description=oidcx-*": 1} {
		if got := as("admin-token", "GET", tokens+query, "").object(t)["tokens"].([]any); len(got) != want {
			t.Errorf("%q lists %v; want %d", query, got, want)
		}
	}
	if got := as(key, "GET", tokens, "").object(t)["tokens"].([]any); len(got) != 1 {
		t.Errorf("ci sees %v", got)
	}
	wantReply(t, "revoke", as("admin-token", "DELETE", tokens+"/"+id, ""), 200, "")
	wantReply(t, "revoke again", as("admin-token", "DELETE", tokens+"/"+id, ""), 404, "")
	wantReply(t, "revoke what is not revocable", as("admin-token", "DELETE", tokens+"/"+a.Live()[0].ID, ""), 200, "")
	if a.Valid(bob) || !a.Valid(key) {
		t.Errorf("revoked lives %v, not revocable lives %v", a.Valid(bob), a.Valid(key))
	}
	clock.Advance(time.Hour)
	if len(a.Live()) != 0 {
		t.Error("the token outlived its mapping's TTL")
	}
	wantPanic(t, "lab: Artifactory without an admin token", func() { NewArtifactory(ArtifactoryOptions{}) })
}

func TestGitea(t *testing.T) {
	t.Parallel()
	g := NewGitea()
	for _, u := range []GiteaUser{{Name: "root", Password: "r", Admin: true}, {Name: "Bob", Password: "b"}, {Name: "eve", Password: "e"}, {Name: "two", Password: "t", TwoFactor: true}} {
		g.SetUser(u)
	}
	p := &published{handler: g}
	const path = "/api/v1/users/bob/tokens"
	as := func(name, password, method, path, body string, header ...string) reply {
		basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))
		return p.do(t, method, path, body, append([]string{"Authorization", basic}, header...)...)
	}
	const read = `{"name":"oidcx-1","scopes":["read:user"]}`
	for name, c := range map[string]struct {
		got  reply
		want int
	}{
		"wrong password": {as("bob", "x", "POST", path, read), 401},
		"nobody":         {as("ann", "x", "POST", path, read), 401},
		"second factor":  {as("two", "t", "POST", "/api/v1/users/two/tokens", read), 401},
		"of another":     {as("eve", "e", "POST", path, read), 403},
		"sudo by anyone": {as("eve", "e", "POST", path, read, "Sudo", "bob"), 403},
		"sudo as nobody": {as("root", "r", "POST", path, read, "Sudo", "ann"), 404},
		"for nobody":     {as("root", "r", "POST", "/api/v1/users/ann/tokens", read), 404},
		"unknown scope":  {as("bob", "b", "POST", path, `{"name":"x","scopes":["read:all"]}`), 400},
		"no scope":       {as("bob", "b", "POST", path, `{"name":"x","scopes":[]}`), 400},
		"no name":        {as("bob", "b", "POST", path, `{"name":"","scopes":["all"]}`), 422},
	} {
		wantReply(t, name, c.got, c.want, "")
	}
	r := as("bob", "b", "POST", path, read)
	key, _ := r.object(t)["sha1"].(string)
	if r.status != 201 || !g.Valid(key) {
		t.Fatalf("create: %d %s", r.status, r.body)
	}
	wantReply(t, "same name", as("bob", "b", "POST", path, read), 400, "")
	wantReply(t, "same name, another user", as("eve", "e", "POST", "/api/v1/users/eve/tokens", `{"name":"oidcx-1","scopes":["read:issue"]}`), 201, "")
	wantReply(t, "use", p.do(t, "GET", "/api/v1/user", "", "Authorization", "token "+key), 200, `{"login":"Bob"}`)
	wantReply(t, "use without scope", p.do(t, "GET", "/api/v1/user", "", "Authorization", "Bearer "+eveKey(g)), 403, "")
	wantReply(t, "a token makes no token", p.do(t, "POST", path, read, "Authorization", "token "+key), 401, "")
	if list := as("bob", "b", "GET", path, ""); list.status != 200 || strings.Contains(list.body, key) || !strings.Contains(list.body, `"name":"oidcx-1"`) {
		t.Errorf("list: %d %s", list.status, list.body)
	}
	g.DeletesOwnOnly(true)
	wantReply(t, "an administrator of such a version", as("root", "r", "DELETE", path+"/oidcx-1", ""), 404, "")
	wantReply(t, "as the user", as("root", "r", "DELETE", path+"/oidcx-1", "", "Sudo", "bob"), 204, "")
	wantReply(t, "again", as("bob", "b", "DELETE", path+"/oidcx-1", ""), 404, "")
	g.DeletesOwnOnly(false)
	wantReply(t, "by id", as("root", "r", "DELETE", "/api/v1/users/eve/tokens/2", ""), 204, "")
	if len(g.Live()) != 0 {
		t.Errorf("live %v", g.Live())
	}
	wantReply(t, "use of a dead one", p.do(t, "GET", "/api/v1/user", "", "Authorization", "token "+key), 401, "")
	for i := range 31 {
		as("bob", "b", "POST", path, `{"name":"n`+itoa(int64(i))+`","scopes":["all"]}`)
	}
	if list := as("bob", "b", "GET", path, ""); strings.Count(list.body, `"name"`) != 30 || strings.Contains(list.body, `"n0"`) {
		t.Errorf("a list has 30, newest first; got %s", list.body)
	}
}

func eveKey(g *Gitea) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.tokens[1].secret
}
