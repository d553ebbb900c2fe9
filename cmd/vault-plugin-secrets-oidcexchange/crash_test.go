// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/vault/api"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// crashes is how often each kind of crash is tried, because Vault sometimes repeats the request by itself.
const crashes = 3

// crashWorld makes a world with a plugin process of its own, a short grace, and a key that no crash may affect.
func crashWorld(t *testing.T, s *server, plugin, binary string, env ...string) (*world, *api.Secret) {
	t.Helper()
	s.register(t, plugin, binary, env...)
	w := newWorld(t, s, plugin)
	w.write(t, "config", map[string]any{"sweep_grace": "1s"})
	return w, w.issue(t, "deploy")
}

// wantSettled checks the invariant once nothing is open, and that the bystander is still alive, then ends the bystander.
func (w *world) wantSettled(t *testing.T, bystander *api.Secret) {
	t.Helper()
	w.settle(t)
	w.wantConsistent(t)
	if status := w.use(t, bystander.Data["api_key"].(string)); status != http.StatusOK {
		t.Errorf("the target answers a key that nothing happened to with %d", status)
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds/deploy")
	w.wantNone(t)
}

// The plugin dies at each step of issuing a key. Whatever the caller hears, exactly the leased keys live.
func testCrashWhileIssuing(t *testing.T, s *server) {
	for _, step := range []string{"decided", "claimed", "intended", "exchanged", "issued"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "die-at")
			w, bystander := crashWorld(t, s, "crash-"+step, s.built.faults, "OIDCEXCHANGE_DIE_AT="+file)
			for range crashes {
				dieAt(t, file, step)
				token := w.token(nil)
				_, err := w.exchange(t, "deploy", token)
				wantDied(t, file, step)
				if status, text := refusal(err); err != nil && status != http.StatusInternalServerError {
					t.Errorf("the crash answered %d, %s", status, text)
				}
				w.recovered(t)
				// The token is used as soon as something may have been made of it.
				_, again := w.exchange(t, "deploy", token)
				if unused := step == "decided" && err != nil; unused && again != nil {
					t.Errorf("a token of which nothing was made is refused: %v", again)
				} else if !unused {
					wantRefused(t, again, http.StatusForbidden, "replayed")
				}
			}
			w.wantSettled(t, bystander)
		})
	}
}

// The plugin dies when the target has revoked a key and the ledger has not recorded it yet.
func testCrashWhileRevoking(t *testing.T, s *server) {
	file := filepath.Join(t.TempDir(), "die-at")
	w, bystander := crashWorld(t, s, "crash-revoked", s.built.faults, "OIDCEXCHANGE_DIE_AT="+file)
	for range crashes {
		secret := w.issue(t, "deploy")
		dieAt(t, file, "revoked")
		w.cli(t, w.root.Token(), "lease", "revoke", "-sync", secret.LeaseID)
		wantDied(t, file, "revoked")
		w.recovered(t)
		if w.keys.Valid(secret.Data["api_key"].(string)) {
			t.Error("the key lives")
		}
		w.must(t, w.root.Token(), "lease", "revoke", "-sync", secret.LeaseID)
	}
	w.wantSettled(t, bystander)
}

// recovered waits until Vault has noticed that the plugin died, and has started it again.
func (w *world) recovered(t *testing.T) {
	t.Helper()
	eventually(t, "the plugin to come back", func() (bool, string) {
		_, err := w.root.Logical().ReadWithContext(t.Context(), w.path+"/config")
		return err == nil, fmt.Sprint(err)
	})
}

// dieAt makes the plugin die when it reaches a step.
func dieAt(t *testing.T, file, step string) {
	t.Helper()
	if err := os.WriteFile(file+".new", []byte(step), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// wantDied checks that the plugin reached the step: otherwise the test has proved nothing.
func wantDied(t *testing.T, file, step string) {
	t.Helper()
	if _, err := os.Stat(file); err == nil {
		t.Fatalf("the plugin did not come to step %q", step)
	}
}

// The plugin is killed from outside while the target handles its request, before the work and after it.
func testKilledDuringCall(t *testing.T, s *server) {
	for op, ask := range map[string]func(*world) error{
		lab.OpCreate: func(w *world) error {
			_, err := w.exchange(t, "deploy", w.token(nil))
			w.recovered(t)
			return err
		},
		lab.OpRevoke: func(w *world) error {
			lease := w.issue(t, "deploy").LeaseID
			err := w.root.Sys().RevokeWithOptionsWithContext(t.Context(), &api.RevokeOptions{LeaseID: lease, Sync: true})
			w.recovered(t)
			w.must(t, w.root.Token(), "lease", "revoke", "-sync", lease)
			return err
		},
	} {
		for _, stage := range []lab.Stage{lab.StageReceived, lab.StageDone} {
			plugin := "killed-" + op + "-" + string(stage)
			t.Run(plugin, func(t *testing.T) {
				t.Parallel()
				w, bystander := crashWorld(t, s, plugin, s.built.plain)
				for range crashes {
					killed := w.killAt(t, plugin, &w.keys.Control, op, stage)
					err := ask(w)
					if !killed() {
						t.Fatalf("no call came to %s of %s", stage, op)
					}
					if status, text := refusal(err); err != nil && status != http.StatusInternalServerError && status != http.StatusBadRequest {
						t.Errorf("the crash answered %d, %s", status, text)
					}
				}
				w.wantSettled(t, bystander)
			})
		}
	}
}

// killAt kills the plugin once, when the next call of op at a target reaches a stage.
func (w *world) killAt(t *testing.T, plugin string, target *lab.Control, op string, stage lab.Stage) (killed func() bool) {
	var once sync.Once
	var done atomic.Bool
	target.OnRequest(func(got string, at lab.Stage) {
		if got == op && at == stage {
			once.Do(func() {
				w.killPlugin(t, plugin)
				done.Store(true)
			})
		}
	})
	return done.Load
}
