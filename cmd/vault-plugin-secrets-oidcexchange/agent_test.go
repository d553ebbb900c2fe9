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
// renders another key when the first one's lease is over.
func testAgent(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	dir := w.agentFiles(t)
	w.trustAgent(t, dir, "acme", "3s", "8s")
	a := w.startAgent(t, dir)

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

	a.stop()
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds/agent")
	w.wantNone(t)
}

// agentFiles writes the agent's configuration, for this world's mount, and a login for it into a directory.
func (w *world) agentFiles(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	shipped := filepath.Join("..", "..", "bootstrap", "agent")
	w.rootWrite(t, "auth/approle/role/"+w.path, map[string]any{"token_policies": w.path})
	id, err := w.root.Logical().ReadWithContext(t.Context(), "auth/approle/role/"+w.path+"/role-id")
	if err != nil {
		t.Fatal(err)
	}
	secret := w.rootWrite(t, "auth/approle/role/"+w.path+"/secret-id", nil)
	for name, content := range map[string]string{
		"agent.hcl":    readFile(t, shipped, "agent.hcl"),
		"key.ctmpl":    w.template(t, "key.ctmpl"),
		"static.ctmpl": w.template(t, "static.ctmpl"),
		"role_id":      id.Data["role_id"].(string),
		"secret_id":    secret.Data["secret_id"].(string),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// trustAgent allows the login in a directory to get keys of a target.
func (w *world) trustAgent(t *testing.T, dir, target, ttl, maxTTL string) {
	t.Helper()
	w.write(t, "issuers/machines", map[string]any{"type": "login", "mount_accessor": w.accessors["approle/"]})
	w.write(t, "trust/agent", map[string]any{"issuer": "machines", "bound_subject": readFile(t, dir, "role_id")})
	w.write(t, "roles/agent", map[string]any{"trust": "agent", "target": target, "parameters": map[string]any{"project": "widget"}, "ttl": ttl, "max_ttl": maxTTL})
}

// agent is a running Vault Agent.
type agent struct {
	dir   string
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process has ended
}

// template returns a template of bootstrap/agent, for this world's mount.
func (w *world) template(t *testing.T, name string) string {
	t.Helper()
	const mount = `"oidcexchange/`
	template := readFile(t, filepath.Join("..", "..", "bootstrap", "agent"), name)
	if !strings.Contains(template, mount) {
		t.Fatalf("%s names no mount that could be replaced:\n%s", name, template)
	}
	return strings.ReplaceAll(template, mount, `"`+w.path+`/`)
}

// startAgent runs the agent until it is stopped, or the test ends.
func (w *world) startAgent(t *testing.T, dir string) *agent {
	t.Helper()
	log, err := os.Create(filepath.Join(dir, "agent.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	a := &agent{dir: dir, cmd: exec.Command(w.bin, "agent", "-config=agent.hcl"), ended: make(chan struct{})}
	a.cmd.Dir, a.cmd.Stdout, a.cmd.Stderr = dir, log, log
	a.cmd.Env = []string{"VAULT_ADDR=" + w.addr, "HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = a.cmd.Wait()
		close(a.ended)
	}()
	t.Cleanup(a.stop)
	return a
}

func (a *agent) stop() {
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	<-a.ended
}

// lives reports whether the process has not ended.
func (a *agent) lives() bool {
	select {
	case <-a.ended:
		return false
	default:
		return true
	}
}

// wantExit waits until the process ends by itself, and checks that it failed.
func (a *agent) wantExit(t *testing.T) {
	t.Helper()
	eventually(t, "the agent's end", func() (bool, string) { return !a.lives(), readFile(t, a.dir, "agent.log") })
	if code := a.cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("the agent's exit status is %d; want 1", code)
	}
}

// rendered returns the key in the agent's file, "" if there is none yet.
func rendered(dir string) string { return renderedIn(dir, "key.env") }

func renderedIn(dir, file string) string {
	content, err := os.ReadFile(filepath.Join(dir, file))
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
