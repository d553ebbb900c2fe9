// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"cmp"
	"encoding/base64"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// standIn is what the stand-ins for APIs that issue keys have in common.
type standIn interface {
	http.Handler
	Fault(op string, f lab.Fault)
	ClearFaults()
	Valid(key string) bool
}

// example is a system of bootstrap/targets: what its page promises is tested by its own commands.
type example struct {
	page, role string
	public     string // host that the page names
	audience   string
	make       func(*world) (s standIn, living func() int)
	op         string // of the stand-in, by which it makes keys

	lifetime   time.Duration // of its keys; 0 = as long as the lease at most, or by the minute
	headerName string        // default Authorization
	revocable  bool
	lost       bool // a key whose answer was lost cannot be ended
	header     func(key string) string
	username   string
	refused    map[string]any // claims that the engine trusts and the API does not
	broken     map[string]any // or a target's path, and a credential that is wrong there
	hint       string
}

func bearerHeader(key string) string { return "Bearer " + key }

var workflowX = map[string]any{"workflow_ref": "acme/widget/.github/workflows/x.yml@refs/heads/main", "job_workflow_ref": "acme/widget/.github/workflows/x.yml@refs/heads/main"}

var trusted = lab.Publisher{Package: "widget", Owner: "acme", OwnerID: "90210", Repository: "widget", Workflow: "release.yml"}

func (w *world) registryOptions() lab.RegistryOptions {
	return lab.RegistryOptions{Issuers: []string{w.issuerURL}, Client: w.client(), Now: w.clock.now}
}

var examples = map[string]example{
	"nuget": {
		page: "nuget.md", role: "nuget-widget", public: "www.nuget.org", audience: "https://www.nuget.org", op: lab.OpToken, lost: true, headerName: "X-NuGet-ApiKey",
		refused: workflowX, hint: "no trust policy of this user matches the token: username is the user who made the policy, never an organization; look at repository and owner, too (status 401)",
		make: func(w *world) (standIn, func() int) {
			s := lab.NewNuGet(lab.NuGetOptions{Issuers: []string{w.issuerURL}, Client: w.client(), Now: w.clock.now})
			s.SetUser(lab.User{Name: "jim"})
			s.AddPolicy(lab.Policy{Name: "widget", User: "jim", Owner: "acme", Repository: "widget", Workflow: "release.yml"})
			return s, func() int { return len(s.Live()) }
		},
	},
	"pypi": {
		page: "pypi.md", role: "pypi-widget", public: "pypi.org", audience: "pypi", op: lab.OpToken, lifetime: 15 * time.Minute, lost: true, username: "__token__",
		header:  func(key string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte("__token__:"+key)) },
		refused: workflowX, hint: "no trusted publisher of PyPI matches the token's repository, workflow and environment (status 422)",
		make: func(w *world) (standIn, func() int) {
			s := lab.NewPyPI(w.registryOptions())
			s.AddPublisher(trusted)
			return s, func() int { return len(s.Live()) }
		},
	},
	"crates-io": {
		page: "crates-io.md", role: "crate-widget", public: "crates.io", audience: "crates.io", op: lab.OpToken, lifetime: 30 * time.Minute, lost: true, revocable: true,
		header: bearerHeader, refused: workflowX, hint: "the trusted publisher wants another workflow file (status 400)",
		make: func(w *world) (standIn, func() int) {
			s := lab.NewCratesIO(w.registryOptions())
			s.AddPublisher(trusted)
			return s, func() int { return len(s.Live()) }
		},
	},
	"rubygems": {
		page: "rubygems.md", role: "gem-widget", public: "rubygems.org", audience: "rubygems.org", op: lab.OpToken, lifetime: 15 * time.Minute, lost: true,
		refused: workflowX, hint: "no trusted publisher matches the token, or no role of that name accepts it: see issuer, audience and conditions (status 404)",
		make: newGems,
	},
	"rubygems role": {
		page: "rubygems.md", role: "gem-widget-role", public: "rubygems.org", audience: "rubygems.org", op: lab.OpToken, lifetime: time.Hour, lost: true,
		refused: map[string]any{"sub": "repo:acme/widget:ref:refs/heads/other"}, hint: "no trusted publisher matches the token, or no role of that name accepts it: see issuer, audience and conditions (status 404)",
		make: newGems,
	},
	"npm": {
		page: "npm.md", role: "npm-widget", public: "registry.npmjs.org", audience: "npm:registry.npmjs.org", op: lab.OpToken, lifetime: 15 * time.Minute, lost: true,
		header: bearerHeader, refused: workflowX, hint: "the package does not exist, or its trusted publisher does not match the token (status 404)",
		make: func(w *world) (standIn, func() int) {
			s := lab.NewNPM(w.registryOptions())
			p := trusted
			p.Package = "@acme/widget"
			s.AddPublisher(p)
			return s, func() int { return len(s.Live()) }
		},
	},
	"artifactory": {
		page: "artifactory.md", role: "jfrog-widget", public: "acme.jfrog.io", audience: "https://acme.jfrog.io", op: lab.OpToken, lifetime: time.Hour, lost: true, username: "ci",
		header: bearerHeader, refused: map[string]any{"repository": "acme/other"}, hint: "the provider is unknown, or none of its identity mappings accepts the token (status 403)",
		make: newArtifactory,
	},
	"artifactory, with credential": {
		page: "artifactory.md", role: "jfrog-ci", public: "acme.jfrog.io", audience: "https://vault.example.com/oidcexchange", op: lab.OpCreate, revocable: true, username: "ci",
		header: bearerHeader, broken: map[string]any{"targets/jfrog-admin": "token=wrong"},
		hint: "the credential is no access token of an administrator, or has expired (status 401)",
		make: newArtifactory,
	},
	"gitea": {
		page: "gitea.md", role: "gitea-ci", public: "git.example.com", audience: "https://vault.example.com/oidcexchange", op: lab.OpCreate, revocable: true, username: "ci",
		header: func(key string) string { return "token " + key }, broken: map[string]any{"targets/gitea": []any{"username=ci", "password=wrong"}},
		hint: "name or password is wrong, or a second factor is asked for (status 401)",
		make: func(*world) (standIn, func() int) {
			s := lab.NewGitea()
			s.SetUser(lab.GiteaUser{Name: "ci", Password: adminToken})
			return s, func() int { return len(s.Live()) }
		},
	},
}

func newGems(w *world) (standIn, func() int) {
	s := lab.NewRubyGems(w.registryOptions())
	s.AddPublisher(trusted)
	s.AddRole(lab.KeyRole{Token: "rg_oidc_akr_x7", Issuer: w.issuerURL, Subject: "repo:acme/widget:ref:refs/heads/main", Gem: "widget", ValidFor: time.Hour})
	return s, func() int { return len(s.Live()) }
}

func newArtifactory(w *world) (standIn, func() int) {
	s := lab.NewArtifactory(lab.ArtifactoryOptions{AdminToken: adminToken, Client: w.client(), Now: w.clock.now})
	s.AddMapping(lab.IdentityMapping{Provider: "github", Issuer: w.issuerURL, Audience: "https://acme.jfrog.io", Name: "widget", Claims: map[string]string{"repository": "acme/widget"},
		Username: "ci", Scope: "applied-permissions/user", TTL: time.Hour})
	return s, func() int { return len(s.Live()) }
}

// shellBlocks are what a page shows as commands.
var shellBlocks = regexp.MustCompile("(?s)```sh\n(.*?)```")

// run runs a page's commands: the shell takes them apart, and what vault is told is told to the engine. Hosts that the
// page names are those of the stand-ins. It returns the roles that the page asks for keys.
func (w *world) run(page string, hosts ...string) (asked []string) {
	w.t.Helper()
	text, err := os.ReadFile("../bootstrap/targets/" + page)
	if err != nil {
		w.t.Fatal(err)
	}
	dir := w.t.TempDir()
	for _, file := range []string{"admin.token", "password"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(adminToken), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, block := range shellBlocks.FindAllStringSubmatch(string(text), -1) {
		script := "vault() { printf '%s\\0' \"$@\"; printf '\\0'; }\n" + strings.NewReplacer(hosts...).Replace(block[1])
		cmd := exec.CommandContext(w.t.Context(), "sh", "-eu", "-c", script)
		cmd.Dir = dir
		out, err := cmd.Output()
		if err != nil {
			w.t.Fatalf("%s: %v\n%s", page, err, script)
		}
		for _, command := range strings.Split(strings.TrimSuffix(string(out), "\x00\x00"), "\x00\x00") {
			if role := w.command(strings.Split(command, "\x00")); role != "" {
				asked = append(asked, role)
			}
		}
	}
	return asked
}

// command does what `vault write` would, but for the key itself: then it returns the role.
func (w *world) command(args []string) (role string) {
	w.t.Helper()
	path, ours := strings.CutPrefix(args[1], "oidcexchange/")
	if args[0] != "write" || !ours {
		w.t.Fatalf("not a write to the mount: %q", args)
	}
	data := map[string]any{}
	for _, arg := range args[2:] {
		name, value, _ := strings.Cut(arg, "=")
		switch old := data[name].(type) {
		case nil:
			data[name] = value
		case string:
			data[name] = []any{old, value}
		}
	}
	if role, ask := strings.CutPrefix(path, "creds/"); ask {
		if data["subject_token"] != "@id.jwt" {
			w.t.Fatalf("the page asks with %v", data)
		}
		return role
	}
	if strings.HasPrefix(path, "targets/") || strings.HasPrefix(path, "issuers/") {
		data["ca_pem"] = w.ca
	}
	w.write(path, data)
	return ""
}

// shown is a world with the example set up, its stand-in, and how many keys live there.
func (e example) shown(t *testing.T) (*world, standIn, func() int) {
	t.Helper()
	w := newWorld(t)
	for _, path := range []string{"roles/deploy", "trust/main", "issuers/github"} { // the page begins with an empty mount
		w.delete(path, nil)
	}
	w.issuer = lab.NewIssuer(lab.IssuerOptions{Now: w.clock.now}) // RS256, as GitHub's, and PyPI takes nothing else
	w.issuerURL = w.serve(w.issuer)
	w.issuer.SetURL(w.issuerURL)
	s, living := e.make(w)
	at := w.serve(s)
	host := strings.TrimPrefix(at, "https://")
	driver := "driver=" + strings.TrimSuffix(e.page, ".md") + " "
	asked := w.run(e.page, "https://token.actions.githubusercontent.com", w.issuerURL, "forward_to="+e.public, "forward_to="+host,
		"url=https://"+e.public, "url="+at, driver+"allowed_roles", driver+"url="+at+" audience="+e.audience+" allowed_roles")
	if e.role != "gem-widget-role" && !slices.Contains(asked, e.role) {
		t.Errorf("the page asks for keys of %q; want %s among them", asked, e.role)
	}
	return w, s, living
}

func (w *world) exchangeFor(e example, claims map[string]any) (*logical.Response, error) {
	all := map[string]any{"aud": e.audience}
	for name, value := range claims {
		all[name] = value
	}
	return w.exchange(e.role, w.issuer.Token(all))
}

func TestExamples(t *testing.T) {
	t.Parallel()
	for name, e := range examples {
		t.Run(name, func(t *testing.T) {
			t.Run("life of a key", e.testLife)
			t.Run("refusal", e.testRefusal)
			t.Run("lost answer", func(t *testing.T) {
				e.testLost(t, lab.Fault{Kind: lab.KindCut, After: true, Count: 1}, "outcome_unknown")
			})
			t.Run("answer without the key", func(t *testing.T) {
				e.testLost(t, lab.Fault{Kind: lab.KindNoSecret, Count: 1}, "target_protocol")
			})
		})
	}
}

func (e example) testLife(t *testing.T) {
	w, s, living := e.shown(t)
	resp, err := w.exchangeFor(e, nil)
	if err != nil || resp.IsError() {
		t.Fatalf("%v %v\n%s", resp, err, w.logs)
	}
	key := resp.Data["api_key"].(string)
	if !s.Valid(key) || living() != 1 {
		t.Fatalf("the key does not live; %d do", living())
	}
	var header any
	if e.header != nil {
		header = e.header(key)
	}
	var username any
	if e.username != "" {
		username = e.username
	}
	for field, want := range map[string]any{"revocable": e.revocable, "header_name": cmp.Or(e.headerName, "Authorization"), "header_value": header, "username": username} {
		if got := resp.Data[field]; got != want {
			t.Errorf("%s is %v; want %v", field, got, want)
		}
	}
	if end := w.clock.now().Add(e.lifetime).Format(time.RFC3339); e.lifetime > 0 && resp.Data["expires_at"] != end {
		t.Errorf("expires_at is %v; want %v", resp.Data["expires_at"], end)
	}
	if most := 30 * time.Minute; resp.Secret.TTL > most || resp.Secret.TTL < 14*time.Minute || resp.Secret.Renewable != e.revocable {
		t.Errorf("lease of %v, renewable %v", resp.Secret.TTL, resp.Secret.Renewable)
	}

	w.revoke(resp)
	switch record, err := w.do(logical.ReadOperation, "keys/"+resp.Data["id"].(string), nil); {
	case err != nil:
		t.Fatal(err)
	case e.revocable && (s.Valid(key) || record != nil || len(w.ledgerEntries()) != 0):
		t.Errorf("after revoke the key lives: %v; the ledger says %v", s.Valid(key), record)
	case !e.revocable && (!s.Valid(key) || record == nil || record.Data["state"] != stateExposed):
		t.Errorf("after revoke the key lives: %v; the ledger says %v", s.Valid(key), record)
	}
	w.revoke(resp) // again is success
	w.wantNoSecret(t, key)
}

func (w *world) wantNoSecret(t *testing.T, secrets ...string) {
	t.Helper()
	for _, secret := range append(secrets, adminToken) {
		if strings.Contains(w.logs.String(), secret) {
			t.Errorf("the log has a secret")
		}
	}
}

// What the API does not accept is refused with a hint for the operator alone, and nothing stays open.
func (e example) testRefusal(t *testing.T) {
	w, _, living := e.shown(t)
	for path, credential := range e.broken {
		w.write(path, map[string]any{"credential": credential})
	}
	resp, err := w.exchangeFor(e, e.refused)
	if reason, status := reasonOf(resp, err); reason != "target_denied" || status != 422 {
		t.Errorf("got %s, %d; want target_denied, 422", reason, status)
	}
	if !strings.Contains(w.logs.String(), e.hint) || strings.Contains(err.Error(), e.hint) {
		t.Errorf("want the operator to read %q, and not the caller: %v\n%s", e.hint, err, w.logs)
	}
	if living() != 0 || len(w.ledgerEntries()) != 0 {
		t.Errorf("%d keys live, the ledger has %q", living(), w.ledgerEntries())
	}
	w.wantNoSecret(t)
}

// A key whose answer is lost is ended by the sweeper where that is possible, and shown for as long as it may live elsewhere.
func (e example) testLost(t *testing.T, f lab.Fault, want string) {
	w, s, living := e.shown(t)
	s.Fault(e.op, f)
	resp, err := w.exchangeFor(e, nil)
	if reason, status := reasonOf(resp, err); reason != want || status != 422 {
		t.Errorf("got %s, %d; want %s, 422", reason, status, want)
	}
	if living() != 1 {
		t.Fatalf("%d keys live; want the lost one", living())
	}
	w.settleAll()
	if !e.lost {
		if living() != 0 || len(w.ledgerEntries()) != 0 {
			t.Errorf("%d keys live, the ledger has %q", living(), w.ledgerEntries())
		}
		return
	}
	list, err := w.do(logical.ReadOperation, "keys/", nil)
	if err != nil {
		t.Fatal(err)
	}
	records := list.Data["keys"].([]map[string]any)
	if len(records) != 1 || records[0]["state"] != stateExposed {
		t.Errorf("the ledger has %v; want one key that is exposed", records)
	}
	w.clock.advance(28 * time.Hour)
	w.settleAll()
	if living() != 0 || len(w.ledgerEntries()) != 0 {
		t.Errorf("a day later %d keys live, the ledger has %q", living(), w.ledgerEntries())
	}
}

// An administrator's credential ends other users' keys, also where that does not go without saying.
func TestGiteaAdministrator(t *testing.T) {
	w, s, living := examples["gitea"].shown(t)
	gitea := s.(*lab.Gitea)
	gitea.SetUser(lab.GiteaUser{Name: "vault", Password: adminToken, Admin: true})
	gitea.DeletesOwnOnly(true)
	w.write("targets/gitea", map[string]any{"credential": []any{"username=vault", "password=" + adminToken}})
	resp, err := w.exchangeFor(examples["gitea"], nil)
	if err != nil || resp.IsError() || living() != 1 {
		t.Fatalf("%v %v, %d keys live", resp, err, living())
	}
	w.revoke(resp)
	if living() != 0 {
		t.Error("the key lives on, and the ledger takes it for dead")
	}
}
