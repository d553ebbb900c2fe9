// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/hashicorp/vault/api"
)

const giteaConfig = `
RUN_USER  = %[4]s
WORK_PATH = %[1]s
[server]
HTTP_ADDR        = 127.0.0.1
HTTP_PORT        = %[2]s
ROOT_URL         = http://127.0.0.1:%[2]s/
STATIC_ROOT_PATH = %[3]s
OFFLINE_MODE     = true
DISABLE_SSH      = true
[database]
DB_TYPE = sqlite3
PATH    = %[1]s/gitea.db
[repository]
ROOT = %[1]s/repositories
[security]
INSTALL_LOCK = true
[cron]
ENABLED = false
[actions]
ENABLED = false
[log]
LEVEL = warn
`

// startGitea starts a Gitea with the users root1, an administrator, and ci, who both have the password.
func startGitea(t *testing.T, password string) (at string) {
	t.Helper()
	built, dir := realServer(t, "gitea"), unprivilegedDir(t)
	static := filepath.Join(dir, "gitea")
	output(t, exec.CommandContext(t.Context(), "cp", "-r", built, static)) // where nobody can read it
	_, port, err := net.SplitHostPort(freePort(t))
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "app.ini")
	user := "nobody"
	if os.Geteuid() != 0 {
		user = os.Getenv("USER")
	}
	if err := os.WriteFile(config, fmt.Appendf(nil, giteaConfig, dir, port, static, user), 0o666); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 { // it writes its own secrets there
		if err := os.Chown(config, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	gitea := func(args ...string) *exec.Cmd {
		cmd := unprivileged(dir, exec.Command(filepath.Join(static, "gitea"), append(args, "--config", config)...))
		cmd.Env = append(cmd.Env, "GITEA_WORK_DIR="+dir, "USER="+user)
		return cmd
	}
	output(t, gitea("migrate"))
	for name, flag := range map[string]string{"root1": "--admin=true", "ci": "--admin=false"} {
		output(t, gitea("admin", "user", "create", "--username", name, "--password", password, "--email", name+"@example.test", "--must-change-password=false", flag))
	}
	background(t, gitea("web"))
	at = "http://127.0.0.1:" + port
	answers(t, at+"/api/healthz")
	return at
}

// Gitea's access tokens, made with their user's own credential and with an administrator's.
func testGitea(t *testing.T, s *server) {
	optIn(t, "Gitea")
	w := newWorld(t, s, pluginName)
	at := startGitea(t, w.admin)
	w.write(t, "config", map[string]any{"allow_http_loopback": true})
	for role, user := range map[string]string{"own": "ci", "admin": "root1"} {
		w.write(t, "targets/"+role, map[string]any{"driver": "gitea", "url": at, "credential": map[string]any{"username": user, "password": w.admin}, "allowed_roles": role})
		w.write(t, "roles/"+role, map[string]any{"trust": "login", "target": role, "parameters": map[string]any{"username": "ci", "scopes": "read:user"}, "ttl": "5m", "max_ttl": "1h"})
	}
	use := func(key *api.Secret) (int, any) {
		status, user := call(t, http.MethodGet, at+"/api/v1/user", "token "+key.Data["api_key"].(string), nil)
		return status, user["login"]
	}
	for _, role := range []string{"own", "admin"} {
		key, other := w.readKey(t, role), w.readKey(t, role)
		if status, user := use(key); status != http.StatusOK || user != "ci" {
			t.Errorf("%s: the key's status is %d, its user %v", role, status, user)
		}
		if renewed, err := w.user.Sys().RenewWithContext(t.Context(), key.LeaseID, 1200); err != nil || renewed.LeaseDuration != 1200 {
			t.Errorf("%s: renewing: %v %v", role, renewed, err)
		}
		w.must(t, w.root.Token(), "lease", "revoke", "-sync", key.LeaseID)
		gone, _ := use(key)
		if lives, _ := use(other); gone != http.StatusUnauthorized || lives != http.StatusOK {
			t.Errorf("%s: after revoke the key's status is %d, the other's %d", role, gone, lives)
		}
		// What is gone already is gone, which Gitea says by a status alone.
		itself := "Basic " + base64.StdEncoding.EncodeToString([]byte("ci:"+w.admin))
		if status, _ := call(t, http.MethodDelete, fmt.Sprintf("%s/api/v1/users/ci/tokens/%s", at, other.Data["accessor"]), itself, nil); status != http.StatusNoContent {
			t.Errorf("%s: ending a key behind the engine's back: status %d", role, status)
		}
		w.must(t, w.root.Token(), "lease", "revoke", "-sync", other.LeaseID)
	}
	// A user who is given another name takes the tokens along, which by the former name look gone.
	moved := w.readKey(t, "admin")
	rename := func(from, to string) {
		admin := "Basic " + base64.StdEncoding.EncodeToString([]byte("root1:"+w.admin))
		if status, body := call(t, http.MethodPost, at+"/api/v1/admin/users/"+from+"/rename", admin, map[string]any{"new_username": to}); status != http.StatusNoContent {
			t.Fatalf("renaming %s: status %d, %v", from, status, body)
		}
	}
	rename("ci", "cd")
	err := w.root.Sys().RevokeWithOptionsWithContext(t.Context(), &api.RevokeOptions{LeaseID: moved.LeaseID, Sync: true})
	if lives, _ := use(moved); err == nil || lives != http.StatusOK {
		t.Errorf("by the former name: revoke says %v, the key's status is %d", err, lives)
	}
	rename("cd", "ci")
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", moved.LeaseID)
	if gone, _ := use(moved); gone != http.StatusUnauthorized {
		t.Errorf("after revoke by its name the key's status is %d", gone)
	}
	if left := w.ledger(t); len(left) != 0 {
		t.Errorf("the ledger has %q", left)
	}
	w.write(t, "roles/own", map[string]any{"parameters": map[string]any{"username": "root1", "scopes": "read:user"}}) // another's, as a user
	_, err = w.user.Logical().ReadWithContext(t.Context(), w.path+"/creds/own")
	wantRefused(t, err, http.StatusUnprocessableEntity, "target_denied")
	w.write(t, "targets/own", map[string]any{"credential": map[string]any{"username": "ci", "password": w.admin + "x"}})
	_, err = w.user.Logical().ReadWithContext(t.Context(), w.path+"/creds/own")
	wantRefused(t, err, http.StatusUnprocessableEntity, "target_denied")
}
