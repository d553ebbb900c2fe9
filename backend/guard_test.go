// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

func TestKillSwitchWaitsForNoNetwork(t *testing.T) {
	w := newWorld(t)
	w.write("config", map[string]any{"http_timeout": "5s"})
	asked, answer, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.issuer.Fault(lab.OpDiscovery, lab.Fault{Kind: lab.KindDelay, Until: answer})
	w.issuer.OnRequest(func(op string, _ lab.Stage) {
		if op == lab.OpDiscovery {
			once.Do(func() { close(asked) })
		}
	})
	var verified atomic.Bool
	go func() {
		defer close(done)
		_, _ = w.request(context.Background(), "v", logical.UpdateOperation, "issuers/github", map[string]any{"verify": true})
		verified.Store(true)
	}()
	<-asked
	w.write("roles/deploy", map[string]any{"enabled": false})
	if verified.Load() {
		t.Error("the write waited until an issuer's verification had ended")
	}
	close(answer)
	<-done
}

// What is switched off stays off until somebody says that it is on.
func TestNullSwitchesNothingOn(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"issuers/github", "trust/main", "targets/acme", "roles/deploy"} {
		w.write(path, map[string]any{"enabled": false})
		w.refused(path, map[string]any{"enabled": nil}, "enabled")
		if got := w.read(path)["enabled"]; got != false {
			t.Errorf("%s: enabled is %v", path, got)
		}
	}
}

// An empty text is what an unset shell variable gives; a map is emptied by {}.
func TestEmptyTextIsNoMap(t *testing.T) {
	w := newWorld(t)
	w.write("trust/main", map[string]any{"bound_subject": "repo:acme/widget:ref:refs/heads/main"})
	w.refused("trust/main", map[string]any{"bound_claims": ""}, "bound_claims")
	if got := w.read("trust/main")["bound_claims"]; !cmp.Equal(got, map[string]any{"repository": "acme/widget"}) {
		t.Errorf("bound_claims %v", got)
	}
}

// A write that failed may have been written all the same: what is in storage holds from the next request on.
func TestWriteOfUnknownOutcomeIsNotHidden(t *testing.T) {
	w := newWorld(t)
	w.issue("deploy") // the role is cached
	w.store.set(func(op, key string) error {
		if op != "put" || key != "roles/deploy" {
			return nil
		}
		record, err := w.roleNoun.table.get(context.Background(), w.store.Storage, "deploy")
		if err != nil {
			return err
		}
		record.Enabled = false
		if err := w.roleNoun.table.put(context.Background(), w.store.Storage, "deploy", record); err != nil {
			return err
		}
		return context.DeadlineExceeded
	})
	if reason, _ := reasonOf(w.do(logical.UpdateOperation, "roles/deploy", map[string]any{"enabled": false})); reason != reasonStorage {
		t.Fatalf("the write answered %q", reason)
	}
	w.store.set(nil)
	if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonDisabled {
		t.Errorf("got %q; storage says that the role is disabled", reason)
	}
}

// Vault forwards what a node may not write if the error says so.
func TestNodeThatMayNotWriteForwards(t *testing.T) {
	w := newWorld(t)
	w.store.set(func(op, _ string) error {
		if op == "get" {
			return nil
		}
		return logical.ErrReadOnly
	})
	for path, data := range map[string]map[string]any{"creds/deploy": {"subject_token": w.token(nil)}, "roles/deploy": {"ttl": "5m"}} {
		_, err := w.do(logical.UpdateOperation, path, data)
		if err == nil || !strings.Contains(err.Error(), logical.ErrReadOnly.Error()) {
			t.Errorf("%s: %v; want what Vault forwards for, %q", path, err, logical.ErrReadOnly)
		}
	}
	if made := w.keys.Calls("create"); made != 0 {
		t.Errorf("%d calls reached the target", made)
	}
}

// A caller who is told that trust changed gives the key up; storage that fails for a moment is no such thing.
func TestRenewDuringAStorageFault(t *testing.T) {
	for _, key := range []string{"roles/deploy", "trust/main", "issuers/github", "targets/acme", plainKeys} {
		w := newWorld(t)
		resp := w.issue("deploy")
		w.restart()
		w.store.set(func(op, read string) error {
			if op == "get" && strings.HasPrefix(read, key) {
				return errors.New("no route to storage")
			}
			return nil
		})
		if reason, status := reasonOf(w.lease(logical.RenewOperation, resp)); reason != reasonStorage || status != http.StatusInternalServerError {
			t.Errorf("without %s: %q %d; want %s", key, reason, status, reasonStorage)
		}
	}
}

// A token stays used whatever becomes of its issuer's entry while it is valid.
func TestUsedTokenStaysUsed(t *testing.T) {
	w := newWorld(t)
	now := w.clock.now()
	hour := now.Truncate(time.Hour).Add(2 * time.Hour)
	w.clock.advance(hour.Add(-5 * time.Minute).Sub(now))
	token := w.token(map[string]any{"exp": hour.Add(-10 * time.Second).Unix()})
	if reason, _ := reasonOf(w.exchange("deploy", token)); reason != "" {
		t.Fatalf("refused for %s", reason)
	}
	w.write("issuers/github", map[string]any{"clock_skew_leeway": 0})
	if reason, _ := reasonOf(w.exchange("deploy", token)); reason != reasonReplayed {
		t.Errorf("the token worked twice: %q", reason)
	}
}

// The lease id has the request's path and nothing else, so only that can be what lease_path wants: a parameter of the same
// name is a parameter.
func TestLeasePathIsOfTheRequestsPathAlone(t *testing.T) {
	w := newWorld(t)
	w.write("targets/acme", map[string]any{"profile": w.profile("  project: {", "  path: {}\n  project: {"), "credential": "token=" + adminToken})
	w.write("roles/deploy", map[string]any{"lease_path": "vault.alias.name", "allowed_parameters": "path"})
	if reason, _ := reasonOf(w.do(logical.ReadOperation, "creds/deploy", map[string]any{"path": "alice"})); reason != reasonLeasePath {
		t.Errorf("creds/deploy?path=alice: %q; want %s", reason, reasonLeasePath)
	}
	if reason, _ := reasonOf(w.do(logical.ReadOperation, "creds/deploy/alice", nil)); reason != "" {
		t.Errorf("creds/deploy/alice: %q", reason)
	}
}

// What a caller sends is not sent back without bound, and nothing odd in it is a fault of the plugin.
func TestOddRequestsAreRefusedBriefly(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		op   logical.Operation
		data map[string]any
	}{
		"long name":      {logical.UpdateOperation, map[string]any{strings.Repeat("k", 100_000): "x"}},
		"null for a map": {logical.ReadOperation, map[string]any{"parameters": nil, "scopes": "read"}},
	} {
		resp, err := w.do(c.op, "creds/deploy", c.data)
		if reason, status := reasonOf(resp, err); status != http.StatusBadRequest {
			t.Errorf("%s: %q %d; want a bad request", name, reason, status)
		} else if text := resp.Error().Error(); len(text) > 1000 {
			t.Errorf("%s: the refusal has %d bytes", name, len(text))
		}
	}
	if strings.Contains(w.logs.String(), "panic") {
		t.Error("a request made the plugin panic")
	}
}
