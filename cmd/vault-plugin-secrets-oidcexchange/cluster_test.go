// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"fmt"
	"net/http"
	"slices"
	"testing"

	"github.com/hashicorp/vault/api"
)

// cluster are Vault servers that share their storage by raft; one is active, the others stand by.
type cluster []*server

// startCluster starts a new cluster of n servers.
func startCluster(t testing.TB, bin string, built binaries, n int) cluster {
	t.Helper()
	first := startServer(t, bin, built)
	all := cluster{first}
	for i := 1; i < n; i++ {
		s := &server{bin: bin, dir: t.TempDir(), id: fmt.Sprint("node", i), joins: first.addr, audit: first.audit,
			built: built, unsealKey: first.unsealKey, accessors: first.accessors}
		t.Cleanup(s.end)
		s.configure(t)
		s.link(t, pluginName, built.plain)
		s.launch(t)
		var err error
		if s.root, err = s.client(first.root.Token()); err != nil {
			t.Fatal(err)
		}
		s.join(t)
		all = append(all, s)
	}
	return all
}

// join unseals a server once it has joined its cluster, and waits until it has a vote.
func (s *server) join(t testing.TB) {
	t.Helper()
	status := func(ok func(*api.SealStatusResponse) bool) func() (bool, string) {
		return func() (bool, string) {
			status, err := s.root.Sys().SealStatusWithContext(t.Context())
			return err == nil && ok(status), fmt.Sprintf("%+v %v", status, err)
		}
	}
	eventually(t, "an answer of the leader", status(func(status *api.SealStatusResponse) bool { return status.Initialized }))
	if _, err := s.root.Sys().UnsealWithContext(t.Context(), s.unsealKey); err != nil {
		t.Fatalf("unsealing a standby: %v", err)
	}
	eventually(t, "a standby", status(func(status *api.SealStatusResponse) bool { return !status.Sealed }))
	eventually(t, "a vote", func() (bool, string) {
		secret, err := s.root.Logical().ReadWithContext(t.Context(), "sys/storage/raft/configuration")
		if err != nil {
			return false, err.Error()
		}
		config, _ := secret.Data["config"].(map[string]any)
		nodes, _ := config["servers"].([]any)
		return slices.ContainsFunc(nodes, func(node any) bool {
			known, _ := node.(map[string]any)
			return known["node_id"] == s.id && known["voter"] == true
		}), fmt.Sprint(nodes)
	})
}

// active returns the server that is active, once there is one.
func (c cluster) active(t testing.TB) (active *server) {
	t.Helper()
	eventually(t, "an active Vault", func() (bool, string) {
		for _, s := range c {
			health, err := s.root.Sys().HealthWithContext(t.Context())
			if err == nil && !health.Sealed && !health.Standby {
				active = s
				return true, ""
			}
		}
		return false, "none is"
	})
	return active
}

// failOver kills the active server, as a crash would, and turns the world to the next one.
func (c cluster) failOver(t testing.TB, w *world) {
	t.Helper()
	old := w.server
	old.kill(t)
	next := c.active(t)
	if next == old {
		t.Fatal("the killed server is active")
	}
	next.canary(old.canaries...)
	w.server = next
	user, err := next.client(w.user.Token())
	if err != nil {
		t.Fatal(err)
	}
	w.user = user
	eventually(t, "the mount", func() (bool, string) {
		_, err := w.root.Logical().ReadWithContext(t.Context(), w.path+"/status")
		return err == nil, fmt.Sprint(err)
	})
}

// What one server has promised, the next one keeps: a token that was used stays used, keys have their leases, ceilings hold.
func testFailover(t *testing.T, shared *server) {
	c := startCluster(t, shared.bin, shared.built, 3)
	w := newWorld(t, c[0], pluginName)
	w.write(t, "roles/deploy", map[string]any{"max_keys": 3})
	used, refused := w.token(nil), w.token(map[string]any{"repository": "acme/other"})
	first, err := w.exchange(t, "deploy", used)
	if err != nil {
		t.Fatal(err)
	}
	second := w.issue(t, "deploy")
	if _, err := w.exchange(t, "deploy", refused); reasonOf(err) != "not_trusted" {
		t.Errorf("a token that no policy accepts: %v", err)
	}

	c.failOver(t, w)

	_, err = w.exchange(t, "deploy", used)
	wantRefused(t, err, http.StatusForbidden, "replayed")
	w.wantConsistent(t)
	if renewed, err := w.user.Sys().RenewWithContext(t.Context(), first.LeaseID, 1200); err != nil || renewed.LeaseDuration != 1200 {
		t.Errorf("renewing: %v %v", renewed, err)
	}
	eventually(t, "the count of the ledger", func() (bool, string) {
		ledger := w.read(t, "status")["ledger"].(map[string]any)
		return ledger["counted"] == true, fmt.Sprint(ledger)
	})
	w.issue(t, "deploy")
	_, err = w.exchange(t, "deploy", w.token(nil))
	wantRefused(t, err, http.StatusForbidden, "limit")
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", second.LeaseID)
	if status := w.use(t, second.Data["api_key"].(string)); status != http.StatusUnauthorized {
		t.Errorf("the target answers a revoked key with %d", status)
	}
	w.issue(t, "deploy")
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds")
	w.wantNone(t)
	for _, s := range c {
		s.wantClean(t)
	}
}
