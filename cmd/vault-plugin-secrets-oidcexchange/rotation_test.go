// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// Vault Agent reads the key of a static role, Vault's own clock rotates it, and the agent reads the new one; GitLab's
// credential and its keys are rotated in place.
func testRotation(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	w.write(t, "targets/acme", map[string]any{"allowed_roles": "*,static/*"})
	w.write(t, "static-roles/ci", map[string]any{"target": "acme", "parameters": "project=widget", "rotation_period": "1m", "overlap": 0})
	dir := w.agentFiles(t)
	if err := w.root.Sys().PutPolicyWithContext(t.Context(), w.path+"-static", `path "`+w.path+`/static-creds/ci" { capabilities = ["read"] }`); err != nil {
		t.Fatal(err)
	}
	w.rootWrite(t, "auth/approle/role/"+w.path, map[string]any{"token_policies": w.path + "-static"})
	writeFile(t, dir, "key.ctmpl", readFile(t, dir, "static.ctmpl"))
	w.startAgent(t, dir)
	first := ""
	eventually(t, "the first key in the agent's file", func() (bool, string) {
		first = rendered(dir)
		return first != "" && w.keys.Valid(first), readFile(t, dir, "agent.log")
	})

	g := lab.NewGitLab(lab.GitLabOptions{})
	credential := g.AddToken(g.AddUser(lab.GitLabUser{Name: "engine"}), 90, "api")
	s.canary(first, credential)
	g.AddProject("acme/widget", map[string]int{"engine": 40})
	w.write(t, "targets/gitlab", map[string]any{"driver": "gitlab", "url": w.serve(t, g), "ca_pem": w.ca, "credential": "token=" + credential, "allowed_roles": "static/*"})
	w.write(t, "rotate-root/gitlab", nil)
	if g.Valid(credential) || w.read(t, "check/gitlab")["state"] != "ok" {
		t.Errorf("after rotate-root the old credential lives: %v, check: %v", g.Valid(credential), w.read(t, "check/gitlab"))
	}
	w.write(t, "static-roles/widget", map[string]any{"target": "gitlab", "rotation_schedule": "0 3 * * SAT", "overlap": 0,
		"parameters": map[string]any{"kind": "project", "id": "1", "scopes": "read_repository", "access_level": "reporter"}})
	old := w.read(t, "static-creds/widget")["api_key"].(string)
	w.must(t, w.root.Token(), "write", "-f", w.path+"/rotate-role/widget")
	fresh := w.read(t, "static-creds/widget")["api_key"].(string)
	s.canary(old, fresh)
	if g.Valid(old) || !g.Valid(fresh) || g.Calls(lab.OpRotate) != 2 {
		t.Errorf("after rotate-role: the old key lives %v, the new one %v, %d rotations", g.Valid(old), g.Valid(fresh), g.Calls(lab.OpRotate))
	}

	eventually(t, "the time of the next rotation", func() (bool, string) {
		ttl := fmt.Sprint(w.read(t, "static-creds/ci")["ttl"])
		return ttl == "10" || !w.keys.Valid(first), ttl
	})
	eventually(t, "a rotation by Vault's own clock", func() (bool, string) {
		return w.read(t, "static-creds/ci")["predecessor"] != "", "there was none"
	})
	second := ""
	eventually(t, "a rotated key in the agent's file", func() (bool, string) {
		second = rendered(dir)
		return second != "" && second != first, readFile(t, dir, "agent.log")
	})
	s.canary(second)
	eventually(t, "the end of the first key", func() (bool, string) { return !w.keys.Valid(first), "it lives" })
}

// rotate asks for a rotation, and again if Vault's own clock is just doing one.
func (w *world) rotate(t *testing.T) (out run) {
	t.Helper()
	eventually(t, "a turn to rotate", func() (bool, string) {
		out = w.cli(t, w.root.Token(), "write", "-f", w.path+"/rotate-role/ci")
		return !strings.Contains(out.stderr, "target_busy"), out.stderr
	})
	return out
}

// The plugin dies at each step of a rotation. There is always a live key to read, and in the end no other.
func testCrashWhileRotating(t *testing.T, s *server) {
	for _, step := range []string{"rotation-intended", "rotation-asked", "rotation-made", "rotation-committed"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "die-at")
			w, bystander := crashWorld(t, s, "crash-"+step, s.built.faults, "OIDCEXCHANGE_DIE_AT="+file)
			w.write(t, "targets/acme", map[string]any{"allowed_roles": "*,static/*"})
			w.write(t, "static-roles/ci", map[string]any{"target": "acme", "parameters": "project=widget", "rotation_period": "24h", "overlap": 0})
			for range crashes {
				before := w.read(t, "static-creds/ci")
				dieAt(t, file, step)
				w.rotate(t)
				wantDied(t, file, step)
				w.recovered(t)
				if key := w.read(t, "static-creds/ci")["api_key"].(string); !w.keys.Valid(key) {
					t.Error("the key that is read is dead")
				}
				if out := w.rotate(t); out.code != 0 {
					t.Errorf("rotating: %s", out.stderr)
				}
				if after := w.read(t, "static-creds/ci"); after["accessor"] == before["accessor"] || !w.keys.Valid(after["api_key"].(string)) {
					t.Errorf("%v follows %v", after["accessor"], before["accessor"])
				}
			}
			// With an overlap of nothing the next tick hands the old keys to the sweeper.
			eventually(t, "the end of all other keys", func() (bool, string) {
				w.sweep(t)
				live := w.live()
				return len(live) == 2, strings.Join(live, " ")
			})
			w.write(t, "static-roles/ci", map[string]any{"revoke_on_delete": true})
			w.must(t, w.root.Token(), "delete", w.path+"/static-roles/ci")
			w.wantSettled(t, bystander)
		})
	}
}
