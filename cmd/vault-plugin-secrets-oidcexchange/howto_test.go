// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// jwtLogin returns replacements that make a page use a JWT auth method of this world for its stand-in, instead of the page's
// own for the issuer.
func (w *world) jwtLogin(path, issuer, standIn string) []string {
	own := w.path + "-login"
	return []string{"auth enable jwt", "auth enable -path=" + own + " jwt", "enable -path=" + path, "enable -path=" + own,
		"auth/" + path + "/config oidc_discovery_url=" + issuer, "auth/" + own + "/config oidc_discovery_ca_pem=@ca.pem oidc_discovery_url=" + standIn,
		"auth/" + path, "auth/" + own, "ci-widget", w.path + "-ci"}
}

// The workflow pushes a package with the page's set-up, and a refusal looks as the page shows it.
func testGitHubActions(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	const github = "https://token.actions.githubusercontent.com"
	g := newGuide(t, w, "how-to/github-actions-nuget.md", append(w.jwtLogin("jwt", github, w.issuerURL),
		"oidc_discovery_url="+github, "ca_pem=@ca.pem oidc_discovery_url="+w.issuerURL, "forward_to=www.nuget.org", "forward_to="+strings.TrimPrefix(w.nugetURL, "https://"))...)
	g.followAll(t)
	job := documents[struct {
		Permissions map[string]string
		Jobs        struct {
			Release struct {
				Steps []struct{ Name, Run string }
			}
		}
	}](t, "github-actions-nuget.yaml")[0]
	push := job.Jobs.Release.Steps[len(job.Jobs.Release.Steps)-1]
	if job.Permissions["id-token"] != "write" || push.Name != "push" {
		t.Fatalf("permissions %v, last step %q", job.Permissions, push.Name)
	}

	claims := map[string]any{}
	provider := w.serve(t, http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "bearer runner" || r.FormValue("api-version") != "2.0" {
			http.Error(out, "who asks?", http.StatusUnauthorized)
			return
		}
		mine := maps.Clone(claims)
		mine["aud"] = r.FormValue("audience")
		_ = json.NewEncoder(out).Encode(map[string]any{"count": 1, "value": w.token(mine)})
	}))
	g.tool(t, "dotnet", `test "$1 $2 $4" = "nuget push --api-key"; printf %s "$5" > key; exec curl -sf -X PUT -H "X-NuGet-ApiKey: $5" "$NUGET/api/v2/package"`)
	env := []string{"ACTIONS_ID_TOKEN_REQUEST_URL=" + provider + "/?api-version=2.0", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=runner", "NUGET=" + w.nugetURL}
	if out, code := g.run(t, "bash", "", push.Run, env...); code != 0 {
		t.Fatalf("exit status %d\n%s", code, out)
	}
	key := readFile(t, g.dir, "key")
	w.canary(key)
	if !w.nuget.Valid(key) || w.nuget.Calls(lab.OpPush) != 1 {
		t.Errorf("the gallery knows the key: %v, %d pushes", w.nuget.Valid(key), w.nuget.Calls(lab.OpPush))
	}
	eventually(t, "the end of the job's lease, with its token", func() (bool, string) {
		left := w.leases(t, "creds/")
		return len(left) == 0, strings.Join(left, " ")
	})
	claims["event_name"] = "schedule"
	if out, code := g.run(t, "bash", "", push.Run, env...); code == 0 || !strings.Contains(out, "not_trusted: ") {
		t.Errorf("another event: exit status %d\n%s", code, out)
	}
	claims["ref"] = "refs/heads/other"
	if out, code := g.run(t, "bash", "", push.Run, env...); code == 0 || !strings.Contains(out, `claim "ref" does not match`) {
		t.Errorf("another branch: exit status %d\n%s", code, out)
	}
	if w.nuget.Calls(lab.OpPush) != 1 {
		t.Error("it was pushed all the same")
	}
}

// The job holds a GitLab key until the job ends.
func testGitLabCI(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	gitlab := lab.NewGitLab(lab.GitLabOptions{})
	credential := gitlab.AddToken(gitlab.AddUser(lab.GitLabUser{Name: "engine"}), 90, "api")
	s.canary(credential)
	gitlab.AddProject("acme/widget", map[string]int{"engine": 40})
	provider := lab.NewIssuer(lab.IssuerOptions{})
	provider.SetURL(w.serve(t, provider))
	g := newGuide(t, w, "how-to/gitlab-ci-gitlab.md", append(w.jwtLogin("jwt-gitlab", "https://gitlab.com", provider.URL()), "ci-mirror", w.path+"-ci",
		"@bootstrap/trust/gitlab-ci/issuer.json", "@issuer.json", "PROJECT=20", "PROJECT=1")...)
	var issuer map[string]any
	if err := json.Unmarshal([]byte(readFile(t, filepath.Join(g.dir, "bootstrap", "trust", "gitlab-ci"), "issuer.json")), &issuer); err != nil {
		t.Fatal(err)
	}
	issuer["oidc_discovery_url"], issuer["ca_pem"] = provider.URL(), w.ca
	writeFile(t, g.dir, "issuer.json", mustJSON(t, issuer))
	g.env = append(g.env, "GITLAB="+w.serve(t, gitlab))
	writeFile(t, g.dir, "gitlab.token", credential)
	g.followAll(t)

	job := documents[map[string]struct {
		IDTokens map[string]struct{ Aud string } `yaml:"id_tokens"`
		Script   []string
	}](t, "gitlab-ci-gitlab.yaml")[0]["mirror"]
	var key string
	lived := false
	check := w.serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		key = r.Header.Get("PRIVATE-TOKEN")
		lived = gitlab.Valid(key)
	}))
	g.tool(t, "mirror.sh", `exec curl -sf -H "PRIVATE-TOKEN: $GITLAB_KEY" `+check)
	run := func(project string) (out string, code int) {
		var env []string
		for name, token := range job.IDTokens {
			env = append(env, name+"="+w.secret(provider.Token(map[string]any{"aud": token.Aud, "project_id": "20", "job_project_id": project, "namespace_id": "72",
				"ref": "main", "ref_type": "branch", "ref_protected": "true", "pipeline_source": "push"})))
		}
		return g.run(t, "sh", "", strings.Join(job.Script, "\n"), env...)
	}
	if out, code := run("20"); code != 0 || !lived {
		t.Errorf("exit status %d, the key lived %v\n%s", code, lived, out)
	}
	eventually(t, "the end of key and lease, with the token's", func() (bool, string) {
		return !gitlab.Valid(key) && len(w.leases(t, "creds/")) == 0, fmt.Sprint(w.leases(t, "creds/"))
	})
	w.canary(key)
	if out, code := run("21"); code == 0 || !strings.Contains(out, "not_trusted: ") {
		t.Errorf("a fork's merge request: exit status %d\n%s", code, out)
	}
}

// Agent, with the page's configuration, keeps a Connect key in its file.
func testAgentConnect(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	admin := "connect-admin-" + w.path
	s.canary(admin)
	connect := lab.NewConnect(lab.ConnectOptions{Issuers: []string{w.issuerURL}, Client: w.http})
	connect.AddUser(lab.ConnectUser{GUID: "6f2ab3a0-0d2c-4a0b-8f0e-0c8f4d1c1a11", Username: "vault"}, admin)
	g := newGuide(t, w, "how-to/agent-connect.md", "vault auth enable approle\n", "", "reporting", w.path+"-reporting",
		"url=https://connect.example.com", "ca_pem=@ca.pem url="+w.serve(t, connect))
	writeFile(t, g.dir, "connect.json", `{"api_key": "`+admin+`"}`)
	g.followAll(t)

	writeFile(t, g.dir, "agent.hcl", g.replace.Replace(readFile(t, filepath.Join(g.dir, "bootstrap", "how-to"), "agent-connect.hcl")))
	a := w.startAgent(t, g.dir)
	var key string
	eventually(t, "the key in the agent's file", func() (bool, string) {
		content, err := os.ReadFile(filepath.Join(g.dir, "connect.env"))
		if err != nil {
			return false, readFile(t, g.dir, "agent.log")
		}
		before, after, _ := strings.Cut(string(content), "CONNECT_API_KEY=")
		var whole bool
		key, _, whole = strings.Cut(after, "\n")
		return whole && before == "CONNECT_SERVER=https://connect.example.com\n", string(content)
	})
	a.stop()
	w.canary(key)
	if !connect.Valid(key) {
		t.Error("Connect does not know the agent's key")
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", "-prefix", w.path+"/creds")
	if connect.Valid(key) {
		t.Error("the agent's key outlives its lease")
	}
}

// What operators in Kubernetes do with the page's resources works: they log in, read, and end a lease.
func testKubernetes(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	g := newGuide(t, w, "how-to/kubernetes.md", append(w.jwtLogin("kubernetes-jwt", "https://oidc.eks.eu-west-1.amazonaws.com/id/EXAMPLE", w.issuerURL),
		"policy write web", "policy write "+w.path+"-web", `policies": "web"`, `policies": "`+w.path+`-web"`, "targets/keys", "targets/acme", "target=keys", "target=acme")...)
	g.followAll(t)
	type auth struct {
		Role      string
		Audiences []string
		Account   struct {
			Ref struct{ Audiences []string } `yaml:"serviceAccountRef"`
		} `yaml:"kubernetesServiceAccountToken"`
		Path string
	}
	type resource struct {
		Kind string
		Spec struct {
			Mount, Path string
			JWT         auth
			Revoke      bool
			Provider    struct{ Auth struct{ JWT auth } }
		}
	}
	var login auth
	for _, r := range append(documents[resource](t, "kubernetes-vso.yaml"), documents[resource](t, "kubernetes-eso.yaml")...) {
		switch path := r.Spec.Path; r.Kind {
		case "VaultAuth":
			login = r.Spec.JWT
			login.Path = r.Spec.Mount
		case "VaultDynamicSecret":
			if eso := r.Spec.Provider.Auth.JWT; eso.Role != "" {
				login, login.Audiences = eso, eso.Account.Ref.Audiences
				login.Path = eso.Path
			} else {
				path = r.Spec.Mount + "/" + path
			}
			token := w.token(map[string]any{"sub": "system:serviceaccount:web:web", "aud": login.Audiences,
				"kubernetes.io": map[string]any{"serviceaccount": map[string]any{"uid": "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798"}}})
			w.readAsOperator(t, g.replace.Replace("auth/"+login.Path)+"/login", login.Role, token, g.replace.Replace(path), r.Spec.Revoke)
		}
	}
}

func (w *world) readAsOperator(t *testing.T, login, role, token, path string, revoke bool) {
	t.Helper()
	operator, err := w.client(w.rootWrite(t, login, map[string]any{"role": role, "jwt": token}).Auth.ClientToken)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := operator.Logical().ReadWithContext(t.Context(), path)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	key := secret.Data["api_key"].(string)
	w.canary(key)
	if w.use(t, key) != http.StatusOK {
		t.Errorf("%s: the target does not take the key", path)
	}
	if strings.Contains(path, "/static-creds/") {
		for _, name := range []string{"last_vault_rotation", "rotation_period", "ttl"} {
			if secret.Data[name] == nil {
				t.Errorf("%s has no %s", path, name)
			}
		}
		return
	}
	if !secret.Renewable {
		t.Errorf("%s: the lease is not renewable", path)
	}
	if revoke {
		if _, err := operator.Logical().WriteWithContext(t.Context(), "sys/leases/revoke", map[string]any{"lease_id": secret.LeaseID, "sync": true}); err != nil {
			t.Errorf("%s: ending the lease: %v", path, err)
		}
		if w.use(t, key) != http.StatusUnauthorized {
			t.Errorf("%s: the key outlives its lease", path)
		}
	}
}

// terraformFiles matches what main.tf writes from files: the path and the file's name.
var terraformFiles = regexp.MustCompile(`path += "([^"]+)"\s+data_json += file\("\$\{path.module\}/([^"]+)"\)`)

// Terraform reads back exactly what it has written, so that a plan without a change shows none.
func testTerraform(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	g := newGuide(t, w, "how-to/terraform.md")
	writeFile(t, g.dir, "admin.json", `{"token": "`+w.admin+`"}`)
	g.followAll(t)
	dir := filepath.Join(g.dir, "bootstrap", "how-to", "terraform")
	main := readFile(t, dir, "main.tf")
	written := terraformFiles.FindAllStringSubmatch(main, -1)
	if len(written) != strings.Count(main, `resource "`) {
		t.Fatalf("of %d resources %d were understood", strings.Count(main, `resource "`), len(written))
	}
	for _, each := range written {
		var data map[string]any
		if err := json.Unmarshal([]byte(readFile(t, dir, each[2])), &data); err != nil {
			t.Fatalf("%s: %v", each[2], err)
		}
		path := strings.TrimPrefix(each[1], "oidcexchange/")
		w.write(t, path, data)
		var back map[string]any
		if err := json.Unmarshal([]byte(mustJSON(t, w.read(t, path))), &back); err != nil {
			t.Fatal(err)
		}
		for name, value := range data {
			if !reflect.DeepEqual(back[name], value) {
				t.Errorf("%s: %s is written as %v and read as %v", each[2], name, value, back[name])
			}
		}
	}
	if !strings.Contains(main, `"oidcexchange/creds/terraform"`) {
		t.Error("main.tf asks for another key than this test")
	}
	w.write(t, "roles/terraform", map[string]any{"trust": "login", "target": "acme", "parameters": map[string]any{"project": "widget"}})
	secret, err := w.user.Logical().WriteWithContext(t.Context(), w.path+"/creds/terraform", map[string]any{})
	if err != nil {
		t.Fatal(err)
	}
	w.hold(secret)
	tool, err := exec.LookPath("terraform")
	if err != nil {
		t.Log("NOT RUN: terraform fmt: terraform is missing")
		return
	}
	cmd := exec.CommandContext(t.Context(), tool, "fmt", "-check", "-diff", dir+string(filepath.Separator))
	cmd.Env = []string{"HOME=" + g.dir, "PATH=" + os.Getenv("PATH"), "CHECKPOINT_DISABLE=1"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("terraform fmt: %v\n%s", err, out)
	}
}

// takes matches the names in Vault that a page's commands claim: an auth mount, a policy, a role of a login, a role, or a
// target that they make.
var takes = regexp.MustCompile(`vault (auth enable (?:-path=\S+ )?\S+|policy write \S+|write auth/\S+/role/\S+|write oidcexchange/(?:static-)?roles/\S+)|vault (write oidcexchange/targets/\S+).* driver=`)

// Two guides, or a guide and an example's script, can be followed in the same Vault: the second overwrites nothing of the
// first.
func TestGuidesApart(t *testing.T) {
	var pages []string
	for _, kind := range []string{"how-to/*.md", "targets/*.sh"} {
		found, err := filepath.Glob(filepath.Join("..", "..", "bootstrap", filepath.FromSlash(kind)))
		if err != nil || len(found) < 2 {
			t.Fatalf("%s: %d pages, %v", kind, len(found), err)
		}
		pages = append(pages, found...)
	}
	asOnPages := regexp.MustCompile(`"\$mount/([^"]+)"`)
	taken := map[string]string{}
	for _, page := range pages {
		text := asOnPages.ReplaceAllString(readFile(t, filepath.Dir(page), filepath.Base(page)), "oidcexchange/$1")
		for _, command := range takes.FindAllStringSubmatch(text, -1) {
			name := command[1] + command[2]
			if first, there := taken[name]; there && first != page {
				t.Errorf("%s: %q is in %s, too", filepath.Base(page), name, filepath.Base(first))
			}
			taken[name] = page
		}
	}
	if len(taken) < 16 {
		t.Errorf("the pages take %d names; are their commands understood?", len(taken))
	}
}
