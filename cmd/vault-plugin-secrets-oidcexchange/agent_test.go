// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Vault Agent, with the configuration that operators start from, logs in, renders a key, keeps it through renewals, and
// renders another one when its time is over.
func testAgent(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	dir := w.agentFiles(t)
	w.write(t, "issuers/machines", map[string]any{"type": "login", "mount_accessor": s.accessors["approle/"]})
	w.write(t, "trust/agent", map[string]any{"issuer": "machines", "bound_subject": readFile(t, dir, "role_id")})
	w.write(t, "roles/agent", map[string]any{"trust": "agent", "target": "acme", "parameters": map[string]any{"project": "widget"}, "ttl": "3s", "max_ttl": "8s"})
	stop := w.startAgent(t, dir)

	var first, second string
	eventually(t, "the first key in the agent's file", func() (bool, string) {
		first = rendered(dir)
		return first != "", readFile(t, dir, "agent.log")
	})
	eventually(t, "a renewal of the key in the agent's file", func() (bool, string) {
		leases := w.leases(t, "creds/agent/")
		if len(leases) != 1 {
			return false, strings.Join(leases, " ")
		}
		found, err := w.root.Sys().LookupWithContext(t.Context(), leases[0])
		if err != nil {
			return false, err.Error()
		}
		first = rendered(dir)
		return found.Data["last_renewal"] != nil && w.keys.Valid(first), readFile(t, dir, "agent.log")
	})
	eventually(t, "another key in the agent's file", func() (bool, string) {
		second = rendered(dir)
		return second != "" && second != first, readFile(t, dir, "agent.log")
	})
	w.canary(first, second)
	if !w.keys.Valid(second) {
		t.Error("the target does not know the agent's second key")
	}
	eventually(t, "the end of the first key", func() (bool, string) { return !w.keys.Valid(first), "it lives" })

	stop()
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds/agent")
	w.wantNone(t)
}

// agentFiles puts the agent's configuration in a directory, for this world's mount, and a login for it.
func (w *world) agentFiles(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	shipped := filepath.Join("..", "..", "bootstrap", "agent")
	template := readFile(t, shipped, "key.ctmpl")
	if !strings.Contains(template, `"oidcexchange/creds/`) {
		t.Fatalf("the template names no mount that could be replaced:\n%s", template)
	}
	w.rootWrite(t, "auth/approle/role/"+w.path, map[string]any{"token_policies": w.path})
	id, err := w.root.Logical().ReadWithContext(t.Context(), "auth/approle/role/"+w.path+"/role-id")
	if err != nil {
		t.Fatal(err)
	}
	secret := w.rootWrite(t, "auth/approle/role/"+w.path+"/secret-id", nil)
	for name, content := range map[string]string{
		"agent.hcl": readFile(t, shipped, "agent.hcl"),
		"key.ctmpl": strings.ReplaceAll(template, `"oidcexchange/`, `"`+w.path+`/`),
		"role_id":   id.Data["role_id"].(string),
		"secret_id": secret.Data["secret_id"].(string),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// startAgent runs the agent until stop is called, or the test ends.
func (w *world) startAgent(t *testing.T, dir string) (stop func()) {
	t.Helper()
	log, err := os.Create(filepath.Join(dir, "agent.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(w.bin, "agent", "-config=agent.hcl")
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	cmd.Env = []string{"VAULT_ADDR=" + w.addr, "HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
		}
	}
	t.Cleanup(stop)
	return stop
}

// rendered returns the key in the agent's file, "" if there is none yet.
func rendered(dir string) string {
	content, err := os.ReadFile(filepath.Join(dir, "key.env"))
	if err != nil {
		return ""
	}
	_, after, _ := strings.Cut(string(content), "ACME_KEY=")
	key, _, whole := strings.Cut(after, "\n")
	if !whole {
		return ""
	}
	return key
}

func readFile(t testing.TB, dir, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
