// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// eachWriteFails runs a test once for each write that it makes after arm, with that one failing, and again with all failing from
// that one on.
func eachWriteFails(t *testing.T, run func(t *testing.T, n int, arm func(*world))) {
	t.Helper()
	for _, lasting := range []bool{false, true} {
		for n, reached := 1, true; reached; n++ {
			reached = false
			t.Run(fmt.Sprintf("write %d, lasting %v", n, lasting), func(t *testing.T) {
				run(t, n, func(w *world) {
					writes := 0
					w.store.set(func(op, _ string) error {
						if op == "get" {
							return nil
						}
						if writes++; writes == n || lasting && writes > n {
							reached = true
							return errors.New("disk full")
						}
						return nil
					})
				})
			})
		}
	}
}

// What a rotation has made or replaced and not ended yet is ended, although an operator writes another credential; but never
// what is in use.
func TestOperatorWritesACredentialBesideARotation(t *testing.T) {
	for name, c := range map[string]struct {
		write string
		busy  bool // the new one cannot be tried, so it is not in use when the operator writes
		want  []string
	}{
		"while the old one is to be retired": {"canary-written", false, []string{"canary-credential-1", "canary-written"}},
		"the old one again":                  {"canary-credential-0", false, []string{"canary-credential-0", "canary-credential-1"}},
		"while the new one is tried":         {"canary-written", true, []string{"canary-credential-0", "canary-written"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			api := w.withCredentials()
			if !slices.Contains(api.good, c.write) {
				api.good = append(api.good, c.write)
			}
			if c.busy {
				api.check = http.StatusServiceUnavailable
			}
			_, _ = w.do(logical.UpdateOperation, "rotate-root/overlap", nil)
			w.write("targets/overlap", map[string]any{"credential": "token=" + c.write})
			api.check = 0
			w.pass(5 * time.Minute)
			got := api.list()
			slices.Sort(got)
			if diff := cmp.Diff(c.want, got); diff != "" || w.credential("overlap") != c.write {
				t.Errorf("in use is %s (-want +good):\n%s", w.credential("overlap"), diff)
			}
			if w.rotation("overlap")["retiring"] != false {
				t.Errorf("in the end: %v", w.rotation("overlap"))
			}
		})
	}
}

// Nor is the old one forgotten whose process ended when the new one was in use already, and an operator writes before that is
// recorded. What is in use is not tried anew: with it the rotation is over, whatever the target says, and whatever is wrong with
// the stored entry, which the operator may be about to mend.
func TestOperatorWritesAfterARotationWasCutOff(t *testing.T) {
	for name, spoil := range map[string]func(*targetRecord){
		"as it was": func(*targetRecord) {}, "is not valid in this version": func(r *targetRecord) { r.Condition = "canary" },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			api := w.withCredentials()
			w.write("rotate-root/overlap", nil) // from now on nobody else knows the credential
			w.pass(2 * time.Minute)
			swapped := false
			w.store.set(func(op, key string) error {
				swapped = swapped || op == "put" && key == "targets/overlap"
				if op == "put" && key == rootStates+"overlap" && swapped {
					return errors.New("disk full")
				}
				return nil
			})
			_, _ = w.do(logical.UpdateOperation, "rotate-root/overlap", nil)
			w.store.set(nil)
			record, err := w.targetNoun.table.get(t.Context(), w.store, "overlap")
			if err == nil {
				spoil(record)
				err = w.targetNoun.table.put(t.Context(), w.store, "overlap", record)
			}
			if err != nil {
				t.Fatal(err)
			}
			w.restart()
			if w.credential("overlap") != "canary-credential-2" {
				t.Fatalf("in use is %s", w.credential("overlap"))
			}
			api.good, api.check = append(api.good, "canary-written"), http.StatusForbidden
			resp := w.write("targets/overlap", map[string]any{"credential": "token=canary-written", "condition": ""})
			w.pass(5 * time.Minute)
			if diff := cmp.Diff([]string{"canary-credential-2", "canary-written"}, api.list()); diff != "" || w.credential("overlap") != "canary-written" {
				t.Errorf("in use is %s (-want +good):\n%s", w.credential("overlap"), diff)
			}
			if got := w.rotation("overlap"); resp == nil || len(resp.Warnings) != 1 || got["rotation"] != "idle" || got["retiring"] != false {
				t.Errorf("%v; the operator is told %v", got, resp)
			}
		})
	}
}

// Whoever may write targets must not collect what a rotation has left: it is sent by the way that it is known for, or not at all.
func TestCredentialOfARotationIsSentNoOtherWay(t *testing.T) {
	for name, status := range map[string]int{"while the old one is to be retired": 0, "while the new one is tried": http.StatusServiceUnavailable} {
		w := newWorld(t)
		api := w.withCredentials()
		api.check = status
		_, _ = w.do(logical.UpdateOperation, "rotate-root/overlap", nil)
		before := w.read("targets/overlap")["url"].(string)
		w.write("targets/overlap", map[string]any{"url": before + "/mine", "credential": "token=made-up"})
		w.pass(5 * time.Minute)
		if api.strays != 0 || w.rotation("overlap")["retiring"] != true {
			t.Errorf("%s: a good credential was sent elsewhere %d times; %v", name, api.strays, w.rotation("overlap"))
		}
		api.check, api.good = 0, append(api.good, "canary-written")
		w.write("targets/overlap", map[string]any{"url": before, "credential": "token=canary-written"})
		w.pass(2 * time.Hour)
		if got := api.list(); len(got) != 2 || !slices.Contains(got, "canary-written") {
			t.Errorf("%s: by the former way: %q", name, got)
		}
	}
}

// A new credential that may do too little is given up, and ended, for it lives.
func TestNewCredentialThatMayDoTooLittle(t *testing.T) {
	w := newWorld(t)
	c := w.withCredentials()
	c.check = http.StatusForbidden
	if reason, _ := reasonOf(w.do(logical.UpdateOperation, "rotate-root/overlap", nil)); reason != reasonTargetProtocol {
		t.Errorf("rotate-root: %q", reason)
	}
	w.pass(2 * time.Minute)
	if diff := cmp.Diff([]string{"canary-credential-0"}, c.list()); diff != "" || w.credential("overlap") != "canary-credential-0" {
		t.Errorf("in use is %s (-want +good):\n%s", w.credential("overlap"), diff)
	}
	c.check = 0
	w.write("rotate-root/overlap", nil)
	if w.credential("overlap") != "canary-credential-2" {
		t.Errorf("after another: %s", w.credential("overlap"))
	}
}

// An old credential that may not end itself is told, and keeps neither the next rotation nor, with force, the target's end.
func TestOldCredentialThatMayNotEndItself(t *testing.T) {
	w := newWorld(t)
	c := w.withCredentials()
	c.retire = http.StatusForbidden
	w.write("rotate-root/overlap", nil)
	w.pass(2 * time.Minute)
	if got := w.rotation("overlap"); got["last_error"] != reasonTargetDenied || got["retiring"] != true {
		t.Errorf("status: %v", got)
	}
	w.write("rotate-root/overlap", nil)
	if w.credential("overlap") != "canary-credential-2" || !strings.Contains(w.logs.String(), "end it at the target") {
		t.Errorf("in use after another: %s", w.credential("overlap"))
	}
	if reason, _ := reasonOf(w.do(logical.DeleteOperation, "targets/overlap", nil)); reason != reasonBadRequest {
		t.Errorf("deleting the target: %q", reason)
	}
	if reason, _ := reasonOf(w.do(logical.DeleteOperation, "targets/overlap", map[string]any{"force": true})); reason != "" {
		t.Errorf("deleting the target by force: %q", reason)
	}
}

// A target is not deleted while its credential is being rotated: nobody would have the new one.
func TestDeletingATargetBesideARotation(t *testing.T) {
	w := newWorld(t)
	w.withCredentials()
	release, _ := w.nameLocks.try("target/overlap")
	if reason, _ := reasonOf(w.do(logical.DeleteOperation, "targets/overlap", map[string]any{"force": true})); reason != reasonTargetBusy {
		t.Errorf("while it is rotated: %q", reason)
	}
	release()
	asking := &rootState{Turn: turn{State: turnAsking, Since: w.clock.now()}, Old: map[string]string{"token": "canary-credential-0"}}
	if err := rootTable.put(t.Context(), w.store, "overlap", asking); err != nil {
		t.Fatal(err)
	}
	if reason, _ := reasonOf(w.do(logical.DeleteOperation, "targets/overlap", nil)); reason != reasonBadRequest {
		t.Errorf("after a process ended in one: %q", reason)
	}
	w.pass(time.Minute)
	if reason, _ := reasonOf(w.do(logical.DeleteOperation, "targets/overlap", nil)); reason != "" {
		t.Errorf("when that is known to be unknown: %q", reason)
	}
}

// Nor can a rotation begin until the target's record is gone: it would make a credential that nobody has.
func TestRotatingBesideADelete(t *testing.T) {
	w := newWorld(t)
	w.withCredentials()
	deleted := false
	slow := &slowStorage{Storage: w.store, after: func(op, key string) {
		if op != "delete" || key != "targets/overlap" {
			return
		}
		deleted = true
		if release, ok := w.nameLocks.try("target/overlap"); ok {
			release()
			t.Error("a rotation can begin while the record is being deleted")
		}
	}}
	resp, err := w.HandleRequest(t.Context(), &logical.Request{ID: "slow", Operation: logical.DeleteOperation, Path: "targets/overlap", Storage: slow})
	if err != nil || resp.IsError() || !deleted {
		t.Fatalf("deleting: %v %v, deleted %v", resp, err, deleted)
	}
	if release, ok := w.nameLocks.try("target/overlap"); !ok {
		t.Error("the delete keeps the lock")
	} else {
		release()
	}
}

// A rotation that has begun is taken to its end whether or not its caller waits: a call that is cut off would leave a credential
// that nobody has.
func TestRotationOutlivesItsCaller(t *testing.T) {
	w := newWorld(t)
	c := w.withCredentials()
	ctx, cancel := context.WithCancel(t.Context())
	c.during = cancel
	_, err := w.HandleRequest(ctx, &logical.Request{Operation: logical.UpdateOperation, Path: "rotate-root/overlap", Storage: &cancellable{w.store}, MountPoint: "oidcexchange/"})
	if got := w.rotation("overlap"); err != nil || got["rotation"] != "idle" || w.credential("overlap") != "canary-credential-1" {
		t.Errorf("%v, %v, in use is %s", err, got["rotation"], w.credential("overlap"))
	}
}

// cancellable is storage as a plugin has it: a call whose context has ended fails.
type cancellable struct{ logical.Storage }

func (s *cancellable) Put(ctx context.Context, e *logical.StorageEntry) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return s.Storage.Put(ctx, e)
}

func (s *cancellable) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return s.Storage.Get(ctx, key)
}

// A clock that ran ahead and was set back stops neither rotations nor tries.
func TestClockThatIsSetBack(t *testing.T) {
	w := newWorld(t).withStatic()
	const ahead = 1000 * time.Hour
	w.clock.advance(ahead)
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 503, Count: 2})
	w.pass(2 * time.Hour)
	w.clock.advance(-ahead)
	w.pass(26 * time.Hour)
	if got := w.read("static-creds/ci"); got["last_vault_rotation"].(string) > w.clock.now().UTC().Format(time.RFC3339) || len(w.liveKeys()) > 2 {
		t.Errorf("it is %v; %v, live %q, ledger %q", w.clock.now().UTC(), got["last_vault_rotation"], w.liveKeys(), w.ledgerEntries())
	}
	if len(w.ledgerEntries()) != 0 {
		t.Errorf("the ledger has %q", w.ledgerEntries())
	}
}
