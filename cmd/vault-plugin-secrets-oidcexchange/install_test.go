// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/vault/api"
)

const (
	shippedName = "vault-plugin-secrets-oidcexchange" // in the catalog, for those who follow the pages
	nextVersion = "v1.2.4"
)

// An operator who follows bootstrap/install.md by hand installs the plugin, upgrades a mount with a live lease and goes
// back, and removes everything: on one node, and with REAL=1 on three, whose active node is killed after the upgrade.
func testInstall(t *testing.T, shared *server) {
	nodes := 1
	if os.Getenv("REAL") == "1" {
		nodes = 3
	}
	c := startCluster(t, shared.bin, shared.built, nodes)
	g := newGuide(t, &world{server: c[0], path: "oidcexchange"}, "install.md")
	placing := g.blocks[0]
	g.blocks = g.blocks[1:]
	c.place(t, g, placing, shared.built.plain)
	g.follow(t, 1)
	w := newWorld(t, c[0], shippedName)
	w.must(t, w.root.Token(), "secrets", "disable", "oidcexchange/") // the page's mount, whose place this world's takes
	g.world, g.replace = w, strings.NewReplacer("oidcexchange/", w.path+"/", "sys/mounts/oidcexchange", "sys/mounts/"+w.path)
	kept := w.issue(t, "deploy")

	c.place(t, g, placing, buildPlugin(t, "", nextVersion))
	w.wantVersion(t, g.follow(t, 1), nextVersion, kept)
	if nodes > 1 {
		lost := w.server
		lost.crash(t)
		c.takeOver(t, w, lost)
		w.wantVersion(t, nextVersion, nextVersion, kept)
	}
	w.setVersion(t, "roles/publish", 2) // what a later version may do to a record that it writes
	w.wantVersion(t, g.follow(t, 1), pluginVersion, kept)
	w.wantNewerRecord(t, "roles/publish")
	w.setVersion(t, "roles/publish", 1)

	w.rootWrite(t, w.rawPath(t, "ledger/keys/2026113010/ecro2om2vvon6pxaajfuhivq4u"), map[string]any{"value": "rubbish"})
	w.wantLedger(t, "ledger/keys/2026113010/ecro2om2vvon6pxaajfuhivq4u")
	if out := g.follow(t, 1); !strings.Contains(out, `"count": 0`) {
		t.Errorf("reconcile beside keys that the ledger has: %s", out)
	}
	w.wantLedger(t, "")

	if out := g.follow(t, 2); !strings.HasSuffix(out, "none is left\n") {
		t.Errorf("before the mount goes: %s", out)
	}
	if status := w.use(t, kept.Data["api_key"].(string)); status != http.StatusUnauthorized {
		t.Errorf("the target answers a key with %d after all were revoked", status)
	}
	_, err := w.exchange(t, "deploy", w.token(nil))
	wantRefused(t, err, http.StatusForbidden, "disabled")
	g.follow(t, 1)
	if len(g.blocks) != 0 {
		t.Errorf("not run: %q", g.blocks)
	}
	w.wantUnmounted(t)
	if r := w.cli(t, w.root.Token(), "plugin", "info", "-version="+pluginVersion, "secret", shippedName); r.code != 2 {
		t.Errorf("the catalog has the plugin still: exit status %d\n%s", r.code, r.stdout)
	}
	for _, s := range c {
		s.wantClean(t)
	}
}

// place installs a binary, as make leaves it, on every node.
func (c cluster) place(t *testing.T, g *guide, command, binary string) {
	t.Helper()
	bin := filepath.Join(g.dir, "bin")
	if err := os.MkdirAll(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(filepath.Join(bin, shippedName))
	if err := os.Link(binary, filepath.Join(bin, shippedName)); err != nil {
		t.Fatal(err)
	}
	for _, node := range c {
		script := strings.ReplaceAll(command, "/etc/vault/plugins", filepath.Join(node.dir, "plugins"))
		if out, code := g.run(t, "sh", "", script); code != 0 || script == command {
			t.Fatalf("exit status %d\n%s\n%s", code, script, out)
		}
	}
}

// wantVersion checks that the mount runs a version of the plugin, as the page's last command says, and that an earlier lease
// goes on.
func (w *world) wantVersion(t *testing.T, said, version string, kept *api.Secret) {
	t.Helper()
	if !strings.HasSuffix(strings.TrimSpace(said), version) {
		t.Errorf("the plugin that runs should be %s: %s", version, said)
	}
	if renewed, err := w.user.Sys().RenewWithContext(t.Context(), kept.LeaseID, 1200); err != nil || renewed.LeaseDuration != 1200 {
		t.Errorf("%s: renewing: %v %v", version, renewed, err)
	}
	if status := w.use(t, kept.Data["api_key"].(string)); status != http.StatusOK {
		t.Errorf("%s: the target answers the key with %d", version, status)
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", w.issue(t, "deploy").LeaseID)
	w.wantConsistent(t)
}

// wantNewerRecord checks that a role that a newer version wrote is refused, that the log says why, and that nobody can
// change it.
func (w *world) wantNewerRecord(t *testing.T, record string) {
	t.Helper()
	from := len(w.log(t, 0))
	_, err := w.exchange(t, "publish", w.token(map[string]any{"aud": nugetAudience}))
	wantRefused(t, err, http.StatusInternalServerError, "storage")
	eventually(t, "the log to say which version wrote the record", func() (bool, string) {
		log := w.log(t, from)
		return bytes.Contains(log, []byte("record has version 2; this plugin knows 1 to 1, so run the plugin that wrote it")), string(log)
	})
	_, err = w.root.Logical().WriteWithContext(t.Context(), w.path+"/"+record, map[string]any{"ttl": "1m"})
	wantRefused(t, err, http.StatusInternalServerError, "storage")
}

// rawPath is the path at which Vault shows a record of the mount as it is stored.
func (w *world) rawPath(t *testing.T, record string) string {
	t.Helper()
	mounts, err := w.root.Sys().ListMountsWithContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return "sys/raw/logical/" + mounts[w.path+"/"].UUID + "/" + record
}

// wantLedger makes the plugin count the ledger again, as the next tick would, and checks that status names the unreadable
// record, or none if unreadable is "".
func (w *world) wantLedger(t *testing.T, unreadable string) {
	t.Helper()
	w.rootWrite(t, "sys/plugins/reload/backend", map[string]any{"mounts": w.path})
	eventually(t, "the count of the ledger", func() (bool, string) {
		ledger := w.read(t, "status")["ledger"].(map[string]any)
		fault := ledger["last_error"].(string)
		return ledger["counted"] == (unreadable == "") && strings.Contains(fault, unreadable) && (fault == "") == (unreadable == ""), fmt.Sprint(ledger)
	})
}

// setVersion changes the version of a record of the mount, and makes the plugin read it again.
func (w *world) setVersion(t *testing.T, record string, version int) {
	t.Helper()
	path := w.rawPath(t, record)
	stored, err := w.root.Logical().ReadWithContext(t.Context(), path)
	if err != nil || stored == nil {
		t.Fatalf("reading Vault's storage: %v %v", stored, err)
	}
	var envelope map[string]any
	if err := json.Unmarshal([]byte(stored.Data["value"].(string)), &envelope); err != nil {
		t.Fatal(err)
	}
	envelope["version"] = version
	w.rootWrite(t, path, map[string]any{"value": mustJSON(t, envelope)})
	w.rootWrite(t, "sys/plugins/reload/backend", map[string]any{"mounts": w.path})
}
