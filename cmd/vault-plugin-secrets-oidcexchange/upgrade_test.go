// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"os"
	"testing"

	"github.com/hashicorp/vault/api"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// Another version takes over with live leases, and then the old one again: each renews and revokes what the other has
// issued.
func testVersions(t *testing.T, s *server) {
	const plugin, newer = "versions", "v1.3.0"
	s.register(t, plugin, s.built.plain)
	w := newWorld(t, s, plugin)
	next := buildPlugin(t, "", newer)
	s.link(t, plugin+"-next", next)
	s.registerAs(t, plugin, plugin+"-next", newer, next)
	for _, version := range []string{newer, pluginVersion} {
		w.wantSurvival(t, "to "+version, func() {
			w.must(t, w.root.Token(), "secrets", "tune", "-plugin-version="+version, w.path)
			w.must(t, w.root.Token(), "plugin", "reload", "-plugin="+plugin)
			if runs := w.read(t, "status")["version"]; runs != version {
				t.Errorf("%v runs; want %s", runs, version)
			}
		})
	}
}

// The plugin is reloaded while a call waits at the target. Vault lets the call finish first.
func testReloads(t *testing.T, s *server) {
	const plugin = "reloads"
	s.register(t, plugin, s.built.plain)
	w := newWorld(t, s, plugin)
	w.write(t, "config", map[string]any{"sweep_grace": "1s"})
	bystander := w.issue(t, "deploy")
	for _, stage := range []lab.Stage{lab.StageReceived, lab.StageDone} {
		token := w.token(nil)
		w.reloadDuring(t, plugin, lab.OpCreate, stage, func() error {
			_, err := w.exchange(t, "deploy", token)
			return err
		})
		leased := w.issue(t, "deploy").LeaseID
		w.reloadDuring(t, plugin, lab.OpRevoke, stage, func() error {
			return w.root.Sys().RevokeWithOptionsWithContext(t.Context(), &api.RevokeOptions{LeaseID: leased, Sync: true})
		})
	}
	w.wantSettled(t, bystander)
}

// reloadDuring makes Vault reload the plugin while a call that ask has caused waits at the target.
func (w *world) reloadDuring(t *testing.T, plugin, op string, stage lab.Stage, ask func() error) {
	t.Helper()
	p := w.pause(t, op, stage)
	asked, reloaded := make(chan error, 1), make(chan error, 1)
	go func() { asked <- ask() }()
	wait(t, "the call of "+op, p.met)
	reloads := w.reloads(t)
	go func() {
		_, err := w.root.Logical().WriteWithContext(t.Context(), "sys/plugins/reload/backend", map[string]any{"plugin": plugin})
		reloaded <- err
	}()
	eventually(t, "the reload to begin", func() (bool, string) { return w.reloads(t) > reloads, "the audit log has none" })
	p.resume()
	if err := <-asked; err != nil {
		t.Errorf("what %s at %s was asked for: %v", op, stage, err)
	}
	if err := <-reloaded; err != nil {
		t.Errorf("reloading while %s waits at %s: %v", op, stage, err)
	}
	w.keys.OnRequest(nil)
	w.settle(t)
	w.wantConsistent(t)
}

// reloads counts the requests for a reload in the audit log.
func (w *world) reloads(t *testing.T) int {
	t.Helper()
	content, err := os.ReadFile(w.audit)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(content, []byte(`"path":"sys/plugins/reload/backend"`))
}
