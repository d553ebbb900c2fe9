// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/vault/api"
)

// runbook runs the commands of bootstrap/runbook.md in a world's mount, as a reader would.
type runbook struct {
	*world
	blocks []string
	bin    string // a directory with the vault command
}

func newRunbook(t *testing.T, w *world) *runbook {
	t.Helper()
	compromised, _, _ := strings.Cut(runbookText(t), afterRestore)
	return newPart(t, w, compromised)
}

// afterRestore is the heading of the part of the runbook that testRestore follows.
const afterRestore = "\n## After a restore\n"

func runbookText(t *testing.T) string {
	return readFile(t, filepath.Join("..", "..", "bootstrap"), "runbook.md")
}

func newPart(t *testing.T, w *world, text string) *runbook {
	t.Helper()
	r := &runbook{world: w, bin: t.TempDir()}
	for _, block := range shellBlocks.FindAllStringSubmatch(text, -1) {
		r.blocks = append(r.blocks, block[1])
	}
	if err := os.Symlink(w.bin, filepath.Join(r.bin, "vault")); err != nil {
		t.Fatal(err)
	}
	return r
}

// run runs a shell command with typed as its input, and returns its output and exit status.
func (r *runbook) run(t *testing.T, token, typed, command string) (out string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-eu", "-c", strings.NewReplacer(
		"oidcexchange-security", r.path+"-security", "bootstrap/revoke.sh oidcexchange", "bootstrap/revoke.sh "+r.path, "oidcexchange/", r.path+"/",
		"trust/widget-main", "trust/main", "roles/release", "roles/deploy").Replace(command))
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = []string{"VAULT_ADDR=" + r.addr, "VAULT_TOKEN=" + token, "HOME=" + r.bin, "PATH=" + r.bin + ":" + os.Getenv("PATH")}
	cmd.Stdin = strings.NewReader(typed)
	said, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(said), cmd.ProcessState.ExitCode()
}

// follow runs the next block of the runbook, which must succeed, and returns its output.
func (r *runbook) follow(t *testing.T, token, typed string, replace ...string) string {
	t.Helper()
	out, code := r.run(t, token, typed, strings.NewReplacer(replace...).Replace(r.blocks[0]))
	if code != 0 {
		t.Fatalf("exit status %d\n%s%s", code, r.blocks[0], out)
	}
	r.blocks = r.blocks[1:]
	return out
}

// An operator who follows the runbook, up to its part about restores, with the policy that it writes and no other right,
// ends everything that the workflow has, and nothing else.
func testRunbook(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	r := newRunbook(t, w)
	var stolen []*api.Secret
	for range 25 {
		stolen = append(stolen, w.issue(t, "deploy"))
	}
	spared, err := w.user.Logical().ReadWithContext(t.Context(), w.path+"/creds/deploy")
	if err != nil {
		t.Fatal(err)
	}
	w.hold(spared)
	w.write(t, "targets/acme", map[string]any{"allowed_roles": "*,static/*"})
	w.write(t, "static-roles/ci", map[string]any{"target": "acme", "parameters": "project=widget", "rotation_period": "24h"})
	shared := w.read(t, "static-creds/ci")["api_key"].(string)
	w.canary(shared)
	r.follow(t, w.root.Token(), "")
	made, err := w.root.Auth().Token().CreateWithContext(t.Context(), &api.TokenCreateRequest{Policies: []string{w.path + "-security"}, NoDefaultPolicy: true})
	if err != nil {
		t.Fatal(err)
	}
	me := made.Auth.ClientToken
	w.canary(me)

	if out := r.follow(t, me, ""); !strings.Contains(out, `"repository": "acme/widget"`) {
		t.Errorf("a key's record:\n%s", out)
	}
	if out, code := r.run(t, me, "24\n", r.blocks[0]); code != 1 || !strings.Contains(out, "nothing was started") || len(w.live()) != 27 {
		t.Errorf("another number than that of the keys: exit status %d\n%s", code, out)
	}
	out := r.follow(t, me, "25\n")
	if !strings.Contains(out, "done: 25 of 25 revoked, 0 owed, 0 exposed") || !strings.HasSuffix(out, "Nothing is left.\n") {
		t.Errorf("revoke.sh:\n%s", out)
	}
	for _, secret := range stolen {
		if status := w.use(t, secret.Data["api_key"].(string)); status != http.StatusUnauthorized {
			t.Errorf("the target answers a stolen key with %d", status)
		}
	}
	if status := w.use(t, spared.Data["api_key"].(string)); status != http.StatusOK {
		t.Errorf("the target answers another's key with %d", status)
	}
	_, err = w.exchange(t, "deploy", w.token(nil))
	wantRefused(t, err, http.StatusForbidden, "blocked")

	first := w.list(t, w.path+"/revocations")[0]
	r.follow(t, me, "", "revocations/ID", "revocations/"+first) // the same by hand
	if out := r.follow(t, me, ""); !strings.HasPrefix(out, "00{") {
		t.Errorf("what is alive:\n%s", out)
	}
	if out := r.follow(t, me, "", "role/NAME", "role/ci"); !strings.Contains(out, "\nci\n") {
		t.Errorf("the static roles:\n%s", out)
	}
	eventually(t, "the end of the shared key", func() (bool, string) { return !w.keys.Valid(shared), "it lives" })
	one := fmt.Sprintf("bootstrap/revoke.sh oidcexchange accessor=%s block=false", spared.Data["accessor"])
	if out, code := r.run(t, me, "1\n", one); code != 0 || !strings.Contains(out, "its block is n/a") || w.keys.Valid(spared.Data["api_key"].(string)) {
		t.Errorf("one key by its accessor: exit status %d\n%s", code, out)
	}
	if _, err := w.user.Logical().ReadWithContext(t.Context(), w.path+"/creds/deploy"); err != nil {
		t.Errorf("its holder gets no other: %v", err)
	}
	if out, code := r.run(t, me, "", "vault read -field=state oidcexchange/check/acme"); code != 0 || out != "ok" {
		t.Errorf("the target's state: exit status %d\n%s", code, out)
	}
	r.follow(t, me, "") // the wider switches
	_, err = w.user.Logical().ReadWithContext(t.Context(), w.path+"/creds/deploy")
	wantRefused(t, err, http.StatusForbidden, "disabled")
	r.follow(t, me, "", "-ID", "-"+first, "/ID", "/"+first)
	if len(r.blocks) != 0 {
		t.Errorf("not run: %q", r.blocks)
	}
	for _, command := range []string{"vault write oidcexchange/roles/release enabled=true", "vault read oidcexchange/creds/deploy", "vault read oidcexchange/static-creds/ci",
		"vault write oidcexchange/static-roles/ci enabled=true", "vault write oidcexchange/targets/acme enabled=true", "vault read oidcexchange/targets/acme"} {
		if out, code := r.run(t, me, "", command); code == 0 || !strings.Contains(out, "permission denied") {
			t.Errorf("the security team may %s: exit status %d\n%s", command, code, out)
		}
	}
}

// Keys that cannot be revoked are reported, and the script fails.
func testRevokeScriptOfExposedKeys(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	r := newRunbook(t, w)
	if _, err := w.exchange(t, "publish", w.token(map[string]any{"aud": nugetAudience})); err != nil {
		t.Fatal(err)
	}
	out, code := r.run(t, w.root.Token(), "1\n", "bootstrap/revoke.sh oidcexchange target=nuget")
	if code != 2 || !strings.Contains(out, "1 keys cannot be revoked here and live until 20") {
		t.Errorf("exit status %d\n%s", code, out)
	}
	for _, wrong := range []string{"", " claim", " role=x dry_run=false", " rolle=x", " subject="} {
		if out, code := r.run(t, w.root.Token(), "0\n", "bootstrap/revoke.sh oidcexchange"+wrong); code != 1 {
			t.Errorf("%q: exit status %d\n%s", wrong, code, out)
		}
	}
	if started := w.list(t, w.path+"/revocations"); len(started) != 1 {
		t.Errorf("%q", started)
	}
	out, code = r.run(t, w.root.Token(), "0\n", "bootstrap/revoke.sh oidcexchange claim=sha=x")
	if code != 2 || !strings.Contains(out, "1 keys could not be judged, and live") || !strings.Contains(out, "No key matches.") {
		t.Errorf("a claim that was not recorded: exit status %d\n%s", code, out)
	}
}

// A revocation goes on after the plugin is killed in the middle of it, while Vault itself revokes the same keys.
func testRevocationGoesOn(t *testing.T, s *server) {
	const plugin = "killed-in-revocation"
	s.register(t, plugin, s.built.plain)
	w := newWorld(t, s, plugin)
	for range 40 {
		w.issue(t, "deploy")
	}
	w.write(t, "targets/acme", map[string]any{"rate": 4, "burst": 1}) // so that it takes some seconds
	id := w.write(t, "revocations", map[string]any{"claim": "repository=acme/widget", "dry_run": false}).Data["id"].(string)
	eventually(t, "the first keys to end", func() (bool, string) { n := len(w.live()); return n < 38, fmt.Sprint(n) })
	w.killPlugin(t, plugin)
	w.recovered(t)
	if n := len(w.live()); n == 0 {
		t.Fatal("all had ended before")
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds")
	w.finished(t, id)
	w.wantNone(t)
	_, err := w.exchange(t, "deploy", w.token(nil))
	wantRefused(t, err, http.StatusForbidden, "blocked")
}

// finished waits for the end of a revocation.
func (w *world) finished(t testing.TB, id string) {
	t.Helper()
	eventually(t, "the end of the revocation", func() (bool, string) {
		run := w.read(t, "revocations/"+id)
		return run["state"] == "done", fmt.Sprint(run)
	})
}
