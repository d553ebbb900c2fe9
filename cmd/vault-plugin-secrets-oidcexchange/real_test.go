// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/vault/api"
)

// optIn skips a test of a server that takes long to build or start, or needs many other tools.
func optIn(t *testing.T, server string) {
	t.Helper()
	if os.Getenv("REAL") != "1" {
		t.Skipf("REAL is not 1, so %s was not tried; `make test REAL=1` does", server)
	}
}

// realServer returns the folder of another project's server, and builds it if necessary. If that fails, the test is skipped
// with a visible message; with REAL=1 it may be skipped only if a tool is missing.
func realServer(t *testing.T, name string, tools ...string) string {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			notRun(t, name, tool+" is missing; install it")
		}
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join("..", "..", "scripts", "real.sh"), name)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	switch {
	case err == nil:
		return strings.TrimSpace(string(out))
	case os.Getenv("REAL") == "1":
		t.Fatalf("setting %s up: %v\n%s", name, err, &said)
	}
	notRun(t, name, fmt.Sprintf("it cannot be had: %v\n%s", err, &said))
	return ""
}

func notRun(t *testing.T, name, why string) {
	t.Helper()
	fmt.Fprintf(os.Stderr, "\nNOT RUN: %s was not tried: %s\n\n", name, why)
	t.Skip(why)
}

// background starts a server that ends with the test. Its output is shown if the test fails.
func background(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("what %s said:\n%s", filepath.Base(cmd.Path), &said)
		}
	})
}

// output runs a command to its end and returns what it printed.
func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", filepath.Base(cmd.Path), err, out, &said)
	}
	return string(out)
}

// answers waits until a server answers.
func answers(t *testing.T, at string) {
	t.Helper()
	eventually(t, at, func() (bool, string) {
		resp, err := http.Get(at)
		if err != nil {
			return false, err.Error()
		}
		_ = resp.Body.Close()
		return resp.StatusCode < 500, resp.Status
	})
}

// call sends a request to another project's server: body is a form, or else encoded as JSON, and auth is the Authorization
// header. The returned object is nil if the answer has none.
func call(t *testing.T, method, at, auth string, body any) (int, map[string]any) {
	t.Helper()
	var content io.Reader
	kind := "application/json"
	switch body := body.(type) {
	case nil:
	case url.Values:
		content, kind = strings.NewReader(body.Encode()), "application/x-www-form-urlencoded"
	default:
		content = strings.NewReader(mustJSON(t, body))
	}
	req, err := http.NewRequestWithContext(t.Context(), method, at, content)
	if err != nil {
		t.Fatal(err)
	}
	if content != nil {
		req.Header.Set("Content-Type", kind)
	}
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var object map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&object); err != nil {
		object = nil
	}
	return resp.StatusCode, object
}

// wantCheck checks that a target's check reports this state: it tells a good credential from a bad one, without making a
// key.
func (w *world) wantCheck(t *testing.T, target, state string) {
	t.Helper()
	if got := w.read(t, "check/"+target); got["state"] != state {
		t.Errorf("checking %s: %v; want %s", target, got, state)
	}
}

// PocketBase's tokens, with the shipped profile. PocketBase cannot revoke a token, so it lives until it expires, and the
// plugin says so.
func testPocketBase(t *testing.T, s *server) {
	dir, data := realServer(t, "pocketbase"), t.TempDir()
	base := filepath.Join(dir, "base")
	w := newWorld(t, s, pluginName)
	output(t, exec.CommandContext(t.Context(), base, "superuser", "upsert", "admin@example.test", w.admin, "--dir", data))
	listen := freePort(t)
	background(t, exec.Command(base, "serve", "--http", listen, "--dir", data))
	at := "http://" + listen
	answers(t, at+"/api/health")
	_, login := call(t, http.MethodPost, at+"/api/collections/_superusers/auth-with-password", "", map[string]any{"identity": "admin@example.test", "password": w.admin})
	credential := w.secret(login["token"].(string))
	_, user := call(t, http.MethodPost, at+"/api/collections/users/records", credential, map[string]any{"email": "ci@example.test", "password": w.admin, "passwordConfirm": w.admin})
	record := at + "/api/collections/users/records/" + user["id"].(string)
	status := func(key *api.Secret) int {
		got, _ := call(t, http.MethodGet, record, "Bearer "+key.Data["api_key"].(string), nil)
		return got
	}

	w.write(t, "config", map[string]any{"allow_http_loopback": true})
	w.write(t, "targets/pocketbase", map[string]any{"driver": "http", "profile": exampleProfile(t, "pocketbase"), "url": at,
		"credential": map[string]any{"token": credential}, "allowed_roles": "*"})
	w.write(t, "roles/pocketbase", map[string]any{"trust": "login", "target": "pocketbase", "parameters": map[string]any{"user": user["id"]}, "ttl": "3s"})
	short := w.readKey(t, "pocketbase")
	if got := status(short); got != http.StatusOK {
		t.Errorf("the key's status is %d", got)
	}
	w.write(t, "roles/pocketbase", map[string]any{"ttl": "5m"})
	long := w.readKey(t, "pocketbase")
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", long.LeaseID)
	if record := w.read(t, "keys/"+long.Data["id"].(string)); status(long) != http.StatusOK || record["state"] != "exposed" {
		t.Errorf("after its lease's end the key's status is %d, and the ledger says %v", status(long), record)
	}
	eventually(t, "the key's own end", func() (bool, string) { got := status(short); return got == http.StatusNotFound, fmt.Sprint(got) })
	if got, _ := call(t, http.MethodPatch, record, credential, map[string]any{"tokenKey": strings.Repeat(w.path, 5)[:50]}); got != http.StatusOK || status(long) == http.StatusOK {
		t.Errorf("changing tokenKey: %d; the key's status is then %d", got, status(long))
	}

	w.write(t, "roles/pocketbase", map[string]any{"parameters": map[string]any{"user": "nobodynobody123"}})
	w.wantHint(t, "pocketbase", "there is no such collection or user")
	w.wantCheck(t, "pocketbase", "ok")
	w.write(t, "targets/pocketbase", map[string]any{"credential": map[string]any{"token": long.Data["api_key"]}}) // no superuser's
	w.wantCheck(t, "pocketbase", "failed")
}

// nobody is the user id for servers that refuse to run as root.
const nobody = 65534

// unprivilegedDir makes a directory for commands that unprivileged starts.
func unprivilegedDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "oidcexchange")
	if err == nil && os.Geteuid() == 0 {
		err = os.Chown(dir, nobody, nobody)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// unprivileged makes a command run as nobody if the tests run as root, with dir as its home.
func unprivileged(dir string, cmd *exec.Cmd) *exec.Cmd {
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+dir, "USER=nobody", "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	return cmd
}
