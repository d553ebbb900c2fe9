// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const verdaccioConfig = `
storage: ./storage
auth:
  htpasswd:
    file: ./htpasswd
security:
  api:
    legacy: false
    jwt:
      sign:
        expiresIn: 1h
packages:
  '**':
    access: $authenticated
log: {type: stdout, format: pretty, level: warn}
`

// Verdaccio does not revoke a token that it has signed, whatever its API answers. The shipped profile says so.
func testVerdaccio(t *testing.T, s *server) {
	optIn(t, "Verdaccio")
	dir, data, listen := realServer(t, "verdaccio", "node", "npm"), t.TempDir(), freePort(t)
	w := newWorld(t, s, pluginName)
	config := filepath.Join(data, "config.yaml")
	if err := os.WriteFile(config, []byte(verdaccioConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	background(t, exec.Command("node", filepath.Join(dir, "node_modules", "verdaccio", "bin", "verdaccio"), "--config", config, "--listen", listen))
	at := "http://" + listen
	answers(t, at+"/-/ping")
	if got, _ := call(t, http.MethodPut, at+"/-/user/org.couchdb.user:ci", "", map[string]any{"name": "ci", "password": w.admin}); got != http.StatusCreated {
		t.Fatalf("making a user: status %d", got)
	}
	w.write(t, "config", map[string]any{"allow_http_loopback": true})
	target := map[string]any{"driver": "http", "profile": exampleProfile(t, "verdaccio"), "url": at,
		"credential": map[string]any{"username": "ci", "password": w.admin}, "allowed_roles": "*"}
	w.write(t, "targets/verdaccio", target)
	w.write(t, "roles/verdaccio", map[string]any{"trust": "login", "target": "verdaccio", "ttl": "5m"})

	w.wantCheck(t, "verdaccio", "ok")
	key := w.readKey(t, "verdaccio")
	who := func() any {
		_, answer := call(t, http.MethodGet, at+"/-/whoami", "Bearer "+key.Data["api_key"].(string), nil)
		return answer["username"]
	}
	if who() != "ci" || key.Renewable || key.Data["revocable"] != false || !strings.Contains(strings.Join(key.Warnings, " "), "cannot revoke") {
		t.Errorf("the key is %v's; the lease is %+v", who(), key)
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", key.LeaseID)
	if record := w.read(t, "keys/"+key.Data["id"].(string)); who() != "ci" || record["state"] != "exposed" {
		t.Errorf("after its lease's end the key is %v's, and the ledger says %v", who(), record)
	}
	login := "Bearer " + key.Data["api_key"].(string)
	if got, _ := call(t, http.MethodDelete, at+"/-/npm/v1/tokens/token/"+key.Data["accessor"].(string), login, nil); got != http.StatusOK {
		t.Errorf("deleting the token: status %d", got)
	}
	if _, list := call(t, http.MethodGet, at+"/-/npm/v1/tokens", login, nil); fmt.Sprint(list["objects"]) != "[]" || who() != "ci" {
		t.Errorf("after its deletion the token is %v's, the list is %v: if it ends now, the profile can revoke", who(), list)
	}
	target["credential"] = map[string]any{"username": "ci", "password": w.admin + "x"}
	w.write(t, "targets/verdaccio", target)
	w.wantHint(t, "verdaccio", "the registry refuses user and password")
	w.wantCheck(t, "verdaccio", "failed")
}

// startPostgreSQL starts a database server and returns its port.
func startPostgreSQL(t *testing.T) string {
	t.Helper()
	installed, _ := filepath.Glob("/usr/lib/postgresql/*/bin") // where Debian has them, off the PATH
	tool := func(name string) string {
		for _, dir := range installed {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return path
			}
		}
		path, err := exec.LookPath(name)
		if err != nil {
			notRun(t, "Unleash", name+" is missing; install PostgreSQL")
		}
		return path
	}
	initdb, postgres := tool("initdb"), tool("postgres")
	dir := unprivilegedDir(t)
	_, port, err := net.SplitHostPort(freePort(t))
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	output(t, unprivileged(dir, exec.CommandContext(t.Context(), initdb, "-A", "trust", "-U", "unleash", "--no-sync", "-D", data)))
	background(t, unprivileged(dir, exec.Command(postgres, "-D", data, "-p", port, "-k", dir, "-h", "127.0.0.1")))
	eventually(t, "PostgreSQL", func() (bool, string) {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			return false, err.Error()
		}
		_ = conn.Close()
		return true, ""
	})
	return port
}

// Unleash deletes a token at once, but accepts it for a while longer. The lease's end is the deletion; the time until
// refusal is measured.
func testUnleash(t *testing.T, s *server) {
	optIn(t, "Unleash")
	dir, listen := realServer(t, "unleash", "node", "npm"), freePort(t)
	postgres := startPostgreSQL(t)
	w := newWorld(t, s, pluginName)
	admin := "*:*." + w.admin
	run := exec.Command("node", filepath.Join("testdata", "unleash.cjs"))
	run.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(dir, "node_modules"), "PGPORT="+postgres, "PORT="+listen[strings.LastIndex(listen, ":")+1:], "ADMIN="+admin)
	background(t, run)
	at := "http://" + listen
	answers(t, at+"/health")
	w.write(t, "config", map[string]any{"allow_http_loopback": true})
	w.write(t, "targets/unleash", map[string]any{"driver": "http", "profile": exampleProfile(t, "unleash"), "url": at,
		"credential": map[string]any{"token": admin}, "allowed_roles": "*"})
	parameters := map[string]any{"environment": "development", "projects": "default"}
	w.write(t, "roles/unleash", map[string]any{"trust": "login", "target": "unleash", "parameters": parameters, "ttl": "5m", "max_ttl": "1h"})

	key, other := w.readKey(t, "unleash"), w.readKey(t, "unleash")
	use := func(key string) int {
		status, _ := call(t, http.MethodGet, at+"/api/client/features", key, nil)
		return status
	}
	text := key.Data["api_key"].(string)
	if got := use(text); got != http.StatusOK || key.Data["revocable"] != true {
		t.Fatalf("the key's status is %d; %v", got, key.Data)
	}
	if renewed, err := w.user.Sys().RenewWithContext(t.Context(), key.LeaseID, 1200); err != nil || renewed.LeaseDuration != 1200 {
		t.Errorf("renewing: %v %v", renewed, err)
	}
	listed := func() string {
		_, list := call(t, http.MethodGet, at+"/api/admin/api-tokens", admin, nil)
		return fmt.Sprint(list["tokens"])
	}
	if !strings.Contains(listed(), text) {
		t.Error("Unleash does not list the token, so its absence would show nothing")
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", key.LeaseID)
	ended := time.Now()
	if strings.Contains(listed(), text) || w.read(t, "keys/"+key.Data["id"].(string)) != nil {
		t.Error("after its lease's end the token is still listed, or in the ledger")
	}
	eventually(t, "Unleash to refuse the token", func() (bool, string) { got := use(text); return got == http.StatusUnauthorized, fmt.Sprint(got) })
	t.Logf("Unleash took the deleted token for %s", time.Since(ended).Round(time.Second))
	if got := use(other.Data["api_key"].(string)); got != http.StatusOK {
		t.Errorf("the other key's status is %d", got)
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", other.LeaseID)

	w.write(t, "roles/unleash", map[string]any{"parameters": map[string]any{"environment": "nowhere", "projects": "default"}})
	w.wantHint(t, "unleash", "the environment or a project does not exist")
	w.wantCheck(t, "unleash", "ok")
	w.write(t, "targets/unleash", map[string]any{"credential": map[string]any{"token": admin + "x"}})
	w.wantCheck(t, "unleash", "failed")
}
