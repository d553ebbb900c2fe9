// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// issuing is what the stand-ins for APIs that issue keys have in common.
type issuing interface {
	http.Handler
	Valid(key string) bool
}

// examples are the systems of bootstrap/targets, each with the roles that its page makes.
var examples = []struct {
	page, public string
	make         func(*world) issuing
	roles        []exampleRole
}{
	{"nuget.md", "www.nuget.org", func(w *world) issuing {
		s := lab.NewNuGet(lab.NuGetOptions{Issuers: []string{w.issuerURL}, Client: w.http})
		s.SetUser(lab.User{Name: "jim"})
		s.AddPolicy(lab.Policy{Name: "widget", User: "jim", Owner: "acme", Repository: "widget", Workflow: "release.yml"})
		return s
	}, []exampleRole{{"nuget-widget", "https://www.nuget.org", false}}},
	{"pypi.md", "pypi.org", func(w *world) issuing {
		s := lab.NewPyPI(w.registry())
		s.AddPublisher(trusted("widget"))
		return s
	}, []exampleRole{{"pypi-widget", "pypi", false}}},
	{"crates-io.md", "crates.io", func(w *world) issuing {
		s := lab.NewCratesIO(w.registry())
		s.AddPublisher(trusted("widget"))
		return s
	}, []exampleRole{{"crate-widget", "crates.io", true}}},
	{"rubygems.md", "rubygems.org", func(w *world) issuing {
		s := lab.NewRubyGems(w.registry())
		s.AddPublisher(trusted("widget"))
		s.AddRole(lab.KeyRole{Token: "rg_oidc_akr_x7", Issuer: w.issuerURL, Subject: "repo:acme/widget:ref:refs/heads/main", Gem: "widget"})
		return s
	}, []exampleRole{{"gem-widget", "rubygems.org", false}, {"gem-widget-role", "rubygems.org", false}}},
	{"npm.md", "registry.npmjs.org", func(w *world) issuing {
		s := lab.NewNPM(w.registry())
		s.AddPublisher(trusted("@acme/widget"))
		return s
	}, []exampleRole{{"npm-widget", "npm:registry.npmjs.org", false}}},
	{"artifactory.md", "acme.jfrog.io", func(w *world) issuing {
		s := lab.NewArtifactory(lab.ArtifactoryOptions{AdminToken: w.admin, Client: w.http})
		s.AddMapping(lab.IdentityMapping{Provider: "github", Issuer: w.issuerURL, Audience: "https://acme.jfrog.io", Name: "widget",
			Claims: map[string]string{"repository": "acme/widget"}, Username: "ci", Scope: "applied-permissions/user", TTL: time.Hour})
		return s
	}, []exampleRole{{"jfrog-widget", "https://acme.jfrog.io", false}, {"jfrog-ci", audience, true}}},
	{"gitea.md", "git.example.com", func(w *world) issuing {
		s := lab.NewGitea()
		s.SetUser(lab.GiteaUser{Name: "ci", Password: w.admin})
		return s
	}, []exampleRole{{"gitea-ci", audience, true}}},
}

type exampleRole struct {
	name, audience string
	revocable      bool
}

func trusted(name string) lab.Publisher {
	return lab.Publisher{Package: name, Owner: "acme", OwnerID: "90210", Repository: "widget", Workflow: "release.yml"}
}

func (w *world) registry() lab.RegistryOptions {
	return lab.RegistryOptions{Issuers: []string{w.issuerURL}, Client: w.http}
}

// shellBlocks matches the commands that a page shows.
var shellBlocks = regexp.MustCompile("(?s)```sh\n(.*?)```")

// shell runs a page's commands, except those that only ask for keys, in a shell with Vault's own command line. The stand-ins
// replace the hosts that the page names.
func (w *world) shell(t *testing.T, page string, hosts ...string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "bootstrap", "targets", page))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string]string{"ca.pem": w.ca, "admin.token": w.admin, "password": w.admin} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(w.bin, filepath.Join(dir, "vault")); err != nil {
		t.Fatal(err)
	}
	for _, block := range shellBlocks.FindAllStringSubmatch(string(text), -1) {
		if strings.Contains(block[1], "oidcexchange/creds/") {
			continue
		}
		cmd := exec.CommandContext(t.Context(), "sh", "-eu", "-c", strings.NewReplacer(append(hosts, "oidcexchange/", w.path+"/")...).Replace(block[1]))
		cmd.Dir = dir
		cmd.Env = []string{"VAULT_ADDR=" + w.addr, "VAULT_TOKEN=" + w.root.Token(), "HOME=" + dir, "PATH=" + dir + ":" + os.Getenv("PATH")}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", page, err, out)
		}
	}
}

// The commands on the example pages work in a real Vault: a key is issued, and the end of its lease ends the key if the
// target can do that.
func testExamples(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	for _, own := range []string{"roles/publish", "targets/nuget"} { // a page has a target of that name
		if _, err := w.root.Logical().DeleteWithContext(t.Context(), w.path+"/"+own); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range examples {
		t.Run(e.page, func(t *testing.T) {
			stand := e.make(w)
			at := w.serve(t, stand)
			driver := "driver=" + strings.TrimSuffix(e.page, ".md") + " "
			w.shell(t, e.page, "oidc_discovery_url=https://token.actions.githubusercontent.com", "ca_pem=@ca.pem oidc_discovery_url="+w.issuerURL,
				"forward_to="+e.public, "forward_to="+strings.TrimPrefix(at, "https://"), "url=https://"+e.public, "ca_pem=@ca.pem url="+at,
				driver+"allowed_roles", driver+"ca_pem=@ca.pem url="+at+" audience="+e.roles[0].audience+" allowed_roles", "https://vault.example.com/oidcexchange", audience)
			for _, role := range e.roles {
				t.Run(role.name, func(t *testing.T) { w.testRole(t, role, stand) })
			}
		})
	}
}

func (w *world) testRole(t *testing.T, role exampleRole, stand issuing) {
	token := w.token(map[string]any{"aud": role.audience})
	secret, err := w.exchange(t, role.name, token)
	if err != nil {
		t.Fatal(err)
	}
	key := secret.Data["api_key"].(string)
	if !stand.Valid(key) || secret.Data["revocable"] != role.revocable || secret.Renewable != role.revocable {
		t.Errorf("the key lives: %v; revocable %v, lease renewable %v", stand.Valid(key), secret.Data["revocable"], secret.Renewable)
	}
	_, err = w.exchange(t, role.name, token)
	wantRefused(t, err, http.StatusForbidden, "replayed")
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", secret.LeaseID)
	if stand.Valid(key) == role.revocable {
		t.Errorf("after revoke the key lives: %v", stand.Valid(key))
	}
	if record := w.read(t, "keys/"+secret.Data["id"].(string)); role.revocable && record != nil || !role.revocable && (record == nil || record["state"] != "exposed") {
		t.Errorf("after revoke the ledger says %v", record)
	}
}
