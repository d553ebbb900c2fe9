// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// example runs a script of bootstrap/targets on the world's mount, as operators would who start from it.
func (w *world) example(t *testing.T, name string, env ...string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(w.bin, filepath.Join(dir, "vault")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join("..", "..", "bootstrap", "targets", name))
	cmd.Env = append(env, "VAULT_ADDR="+w.addr, "VAULT_TOKEN="+w.root.Token(), "HOME="+dir, "PATH="+dir+":"+os.Getenv("PATH"),
		"MOUNT="+w.path, "CA_FILE="+writeFile(t, dir, "ca.pem", w.ca), "REPOSITORY_ID=710042", "OWNER_ID=90210")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func writeFile(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// mustExchange exchanges a token for a key, which must succeed.
func (w *world) mustExchange(t *testing.T, role, token string) *api.Secret {
	t.Helper()
	secret, err := w.exchange(t, role, token)
	if err != nil {
		t.Fatalf("%s: %v", role, err)
	}
	return secret
}

// All three kinds of keys of Posit Connect work with the example's commands.
func testConnect(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	w.write(t, "config", map[string]any{"sweep_grace": "1s"})
	admin := "connect-admin-" + w.path
	s.canary(admin)
	connect := lab.NewConnect(lab.ConnectOptions{Issuers: []string{w.issuerURL}, Client: w.http, Path: "/rsc", KeyTTL: 10 * time.Minute})
	connect.AddPublisher(lab.ConnectPublisher{Name: "widget", Claims: map[string]string{"repository": "acme/widget"}})
	connect.AddIntegration(lab.ConnectIntegration{GUID: "i-1", Audience: "connect", MatchClaim: "actor"})
	connect.AddUser(lab.ConnectUser{GUID: "g-octocat", Username: "octocat"}, "")
	connect.AddUser(lab.ConnectUser{GUID: "g-engine", Username: "vault"}, admin)
	w.example(t, "connect.sh", "CONNECT="+w.serve(t, connect)+"/rsc", "INTEGRATION=i-1", "CONNECT_USER=g-engine", "CONNECT_KEY_FILE="+writeFile(t, t.TempDir(), "key", admin+"\n"))
	forConnect := func() string { return w.token(map[string]any{"aud": "connect"}) }

	publish := w.mustExchange(t, "connect-publish", forConnect())
	visit := w.mustExchange(t, "connect-visit", forConnect())
	for _, secret := range []*api.Secret{publish, visit} {
		key := secret.Data["api_key"].(string)
		if !connect.Valid(key) || secret.Renewable || secret.Data["revocable"] != false || secret.LeaseDuration > 600 || secret.Data["header_value"] != "Key "+key {
			t.Errorf("renewable %v, lease of %d s", secret.Renewable, secret.LeaseDuration)
		}
	}
	if publish.Data["username"] != nil || visit.Data["username"] != "octocat" {
		t.Errorf("users %v and %v", publish.Data["username"], visit.Data["username"])
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", publish.LeaseID)
	if record := w.read(t, "keys/"+publish.Data["id"].(string)); record["state"] != "exposed" {
		t.Errorf("after its lease the key is %v", record)
	}
	_, err := w.exchange(t, "connect-visit", w.token(map[string]any{"aud": "connect", "actor": "stranger"}))
	wantRefused(t, err, http.StatusUnprocessableEntity, "target_denied")
	connect.Fault(lab.OpWhoami, lab.Fault{Kind: lab.KindStatus, Status: 500, Count: 1})
	_, err = w.exchange(t, "connect-publish", forConnect())
	wantRefused(t, err, http.StatusUnprocessableEntity, "outcome_unknown")
	connect.Fault(lab.OpDiscovery, lab.Fault{Kind: lab.KindStatus, Status: 500, Count: 1})
	_, err = w.exchange(t, "connect-publish", forConnect())
	wantRefused(t, err, http.StatusServiceUnavailable, "target_busy")

	report := w.mustExchange(t, "connect-report", forConnect())
	if report.Data["revocable"] != true || !report.Renewable || report.LeaseDuration != 900 {
		t.Errorf("renewable %v, lease of %d s, %v", report.Renewable, report.LeaseDuration, report.Data["revocable"])
	}
	w.must(t, w.root.Token(), "lease", "renew", report.LeaseID)
	connect.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	_, err = w.exchange(t, "connect-report", forConnect())
	wantRefused(t, err, http.StatusUnprocessableEntity, "outcome_unknown")
	w.settle(t)
	if !connect.Valid(report.Data["api_key"].(string)) {
		t.Error("the sweeper ended a key that has a lease")
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", report.LeaseID)
	for _, k := range connect.Live() {
		if strings.HasPrefix(k.Name, "oidcx-") {
			t.Errorf("key %s of the engine's user lives", k.Name)
		}
	}
}
