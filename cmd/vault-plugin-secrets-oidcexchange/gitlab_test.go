// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// The example's commands, with a credential that has only the rights that the example names, make keys that Vault ends.
func testGitLab(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	g := lab.NewGitLab(lab.GitLabOptions{})
	credential := g.AddToken(g.AddUser(lab.GitLabUser{Name: "engine"}), 90, "api")
	s.canary(credential)
	g.AddProject("acme/widget", map[string]int{"engine": 40})
	g.AddGroup("acme", map[string]int{"engine": 50})
	g.AddUser(lab.GitLabUser{Name: "deployer", Group: "acme"})
	url := w.serve(t, g)

	dir := t.TempDir()
	for name, text := range map[string]string{"gitlab.token": credential + "\n", "ca.pem": w.ca} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(s.bin, filepath.Join(dir, "vault")); err != nil {
		t.Fatal(err)
	}
	example := exec.CommandContext(t.Context(), "bash", filepath.Join("..", "..", "bootstrap", "targets", "gitlab.sh"))
	example.Env = []string{"VAULT_ADDR=" + s.addr, "VAULT_TOKEN=" + w.root.Token(), "HOME=" + dir, "PATH=" + dir + ":" + os.Getenv("PATH"), "MOUNT=" + w.path,
		"TRUST=main", "GITLAB=" + url, "CA_FILE=" + filepath.Join(dir, "ca.pem"), "TOKEN_FILE=" + filepath.Join(dir, "gitlab.token"), "PROJECT=1", "GROUP=2", "ACCOUNT=2"}
	if out, err := example.CombinedOutput(); err != nil {
		t.Fatalf("the example: %v\n%s", err, out)
	}

	for role, want := range map[string]lab.GitLabToken{
		"gitlab-read":   {Kind: "project", Of: "acme/widget", Level: 20},
		"gitlab-deploy": {Kind: "service_account", Of: "deployer"},
	} {
		secret, err := w.exchange(t, role, w.token(nil))
		if err != nil {
			t.Fatal(err)
		}
		key, live := secret.Data["api_key"].(string), g.Live()
		if len(live) != 1 || live[0].Kind != want.Kind || live[0].Of != want.Of || live[0].Level != want.Level || !g.Valid(key) {
			t.Fatalf("%s: live %v; want one like %v", role, live, want)
		}
		if secret.Data["header_name"] != "PRIVATE-TOKEN" || secret.Data["expires_at"] != live[0].ExpiresAt+"T00:00:00Z" || !secret.Renewable || secret.LeaseDuration != 900 {
			t.Errorf("%s: renewable %v, lease of %d s, data %v", role, secret.Renewable, secret.LeaseDuration, secret.Data)
		}
		if end, err := time.Parse(time.RFC3339, secret.Data["expires_at"].(string)); err != nil || time.Until(end) < time.Hour {
			t.Errorf("%s: the key ends at %v, before its lease can", role, end)
		}
		if renewed, err := w.user.Sys().RenewWithContext(t.Context(), secret.LeaseID, 1800); err != nil || renewed.LeaseDuration != 1800 {
			t.Errorf("%s: renewing: %v %v", role, renewed, err)
		}
		w.must(t, w.root.Token(), "lease", "revoke", "-sync", secret.LeaseID)
		if g.Valid(key) || len(g.Live()) != 0 {
			t.Errorf("%s: live after revoke: %v", role, g.Live())
		}
	}

	g.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	_, err := w.exchange(t, "gitlab-read", w.token(nil))
	wantRefused(t, err, http.StatusUnprocessableEntity, "outcome_unknown")
	if len(g.Live()) != 1 {
		t.Errorf("live: %v; want the key whose answer was lost", g.Live())
	}
	w.write(t, "config", map[string]any{"sweep_grace": "1s"})
	w.settle(t)
	if len(g.Live()) != 0 {
		t.Errorf("live after the sweep: %v", g.Live())
	}
}

// Before GitLab 17.11, a service account's key ends itself, with the same example.
func testGitLabSelf(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	g := lab.NewGitLab(lab.GitLabOptions{Before1711: true})
	credential := g.AddToken(g.AddUser(lab.GitLabUser{Name: "engine"}), 90, "api")
	g.AddGroup("acme", map[string]int{"engine": 50})
	g.AddUser(lab.GitLabUser{Name: "deployer", Group: "acme"})
	url := w.serve(t, g)
	w.example(t, "gitlab.sh", "TRUST=main", "GITLAB="+url, "TOKEN_FILE="+writeFile(t, t.TempDir(), "token", credential), "PROJECT=1", "GROUP=1", "ACCOUNT=2", "REVOKE_BY=self")

	for _, leaked := range []bool{false, true} {
		secret := w.mustExchange(t, "gitlab-deploy", w.token(nil))
		key := secret.Data["api_key"].(string)
		s.canary(credential, key)
		if !g.Valid(key) || secret.Data["revocable"] != true {
			t.Errorf("the key lives: %v, revocable %v", g.Valid(key), secret.Data["revocable"])
		}
		if leaked { // somebody ended it by itself: GitLab answers 401 of it from then on
			req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, url+"/api/v4/personal_access_tokens/self", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("PRIVATE-TOKEN", key)
			if resp, err := w.http.Do(req); err != nil || resp.StatusCode != http.StatusNoContent {
				t.Fatalf("ending the key: %v %v", resp, err)
			}
		}
		w.must(t, w.root.Token(), "lease", "revoke", "-sync", secret.LeaseID)
		if g.Valid(key) || len(g.Live()) != 0 || w.read(t, "keys/"+secret.Data["id"].(string)) != nil {
			t.Errorf("ended before %v: live %v, or the ledger has it still", leaked, g.Live())
		}
	}
}
