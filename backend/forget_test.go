// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// use has a token used that ends after a while, and returns the name of its record.
func (w *world) use(life time.Duration, jti string) string {
	w.t.Helper()
	before := w.stored(usedTable.prefix)
	if resp, err := w.exchange("deploy", w.token(map[string]any{"exp": w.clock.now().Add(life).Unix(), "jti": jti})); err != nil || resp.IsError() {
		w.t.Fatalf("token %s: %v %v", jti, resp, err)
	}
	for _, key := range w.stored(usedTable.prefix) {
		if !slices.Contains(before, key) {
			return key
		}
	}
	w.t.Fatalf("token %s left no record", jti)
	return ""
}

// forgets lets a while pass and a tick come, and tells which records there are then.
func (w *world) forgets(after time.Duration) []string {
	w.clock.advance(after)
	w.periodic()
	return w.stored(usedTable.prefix)
}

// What is known to have passed is forgotten without a look at any other record; what a process before this one recorded is
// found by one walk.
func TestForgettingTokens(t *testing.T) {
	t.Parallel()
	for name, restarts := range map[string]bool{"of this process": false, "of one before": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.periodic() // it has walked
			w.use(30*time.Minute, "a")
			w.use(40*time.Minute, "b")
			long := w.use(5*time.Hour, "c")
			if restarts {
				w.restart()
			}
			w.periodic()
			lists := &listed{Storage: w.store.Storage}
			w.store.Storage = lists
			w.store.set(nil)
			w.clock.advance(2 * time.Hour)
			w.periodic()
			if slices.Contains(lists.prefixes, usedTable.prefix) || slices.ContainsFunc(w.store.seen, func(access string) bool { return strings.HasSuffix(access, long) }) {
				t.Errorf("all records are listed, or the one that lives is looked at: %q %q", lists.prefixes, w.store.seen)
			}
			if left := w.stored(usedTable.prefix); !slices.Equal(left, []string{long}) {
				t.Errorf("left are %q; want %q", left, long)
			}
			if left := w.forgets(5 * time.Hour); len(left) != 0 || w.replay.ends.n != 0 {
				t.Errorf("left are %q; memory has room for %d less", left, w.replay.ends.n)
			}
		})
	}
}

// A token was given back, and one of the same id that lives longer is used: the end of the first is not that of the second.
func TestForgettingTokensOfOneID(t *testing.T) {
	w := newWorld(t)
	w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindStatus, Status: 403, Count: 1})
	if reason, _ := reasonOf(w.exchange("deploy", w.token(map[string]any{"jti": "a", "exp": w.clock.now().Add(30 * time.Minute).Unix()}))); reason != reasonTargetDenied {
		t.Fatalf("the target refuses: %q", reason)
	}
	record := w.use(5*time.Hour, "a")
	if left := w.forgets(3 * time.Hour); !slices.Equal(left, []string{record}) {
		t.Errorf("left are %q; want %q", left, record)
	}
	if left := w.forgets(4 * time.Hour); len(left) != 0 {
		t.Errorf("left are %q", left)
	}
}

// More tokens than memory has room for are found by a walk an hour later.
func TestForgettingMoreTokensThanAreKnown(t *testing.T) {
	w := newWorld(t)
	w.periodic()
	w.replay.ends.n = maxTokenEnds
	w.use(30*time.Minute, "a")
	w.replay.ends.n = 0
	if left := w.forgets(30 * time.Minute); len(left) != 1 {
		t.Fatalf("left are %q", left)
	}
	if left := w.forgets(2 * time.Hour); len(left) != 0 {
		t.Errorf("left are %q", left)
	}
}

// A record that cannot be read keeps no other, and storage that fails for a while leaves none behind.
func TestForgettingTokensWithBadStorage(t *testing.T) {
	t.Parallel()
	for name, restarts := range map[string]bool{"known": false, "found by a walk": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.periodic() // it has walked
			bad := w.use(30*time.Minute, "a")
			if err := w.store.Storage.Put(t.Context(), &logical.StorageEntry{Key: bad, Value: []byte("no record")}); err != nil {
				t.Fatal(err)
			}
			w.use(30*time.Minute, "b")
			w.use(30*time.Minute, "c")
			if restarts {
				w.restart()
			}
			w.store.set(func(op, key string) error {
				if strings.HasPrefix(key, usedTokens) {
					return errors.New("broken")
				}
				return nil
			})
			if left := w.forgets(3 * time.Hour); len(left) != 3 {
				t.Fatalf("left are %q", left)
			}
			w.store.set(nil)
			w.pass(3 * time.Minute) // each meets the bad one, and another of the others first
			if left := w.stored(usedTable.prefix); !slices.Equal(left, []string{bad}) || !strings.Contains(w.logs.String(), "decoding the record's envelope") {
				t.Errorf("left are %q; want %q, and a word in the log", left, bad)
			}
		})
	}
}
