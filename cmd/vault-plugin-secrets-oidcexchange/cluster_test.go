// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"fmt"
	"maps"
	"slices"
	"syscall"
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

// join unseals a server once it has joined its cluster, and waits until it may vote.
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
		if err != nil || secret == nil { // nothing: it does not know its own paths yet
			return false, fmt.Sprint(err)
		}
		config, _ := secret.Data["config"].(map[string]any)
		nodes, _ := config["servers"].([]any)
		return slices.ContainsFunc(nodes, func(node any) bool {
			known, _ := node.(map[string]any)
			return known["node_id"] == s.id && known["voter"] == true
		}), fmt.Sprint(nodes)
	})
}

// active waits for an active server other than lost, and returns it.
func (c cluster) active(t testing.TB, lost *server) (active *server) {
	t.Helper()
	eventually(t, "an active Vault", func() (bool, string) {
		for _, s := range c {
			health, err := s.root.Sys().HealthWithContext(t.Context())
			if err == nil && s != lost && !health.Sealed && !health.Standby {
				active = s
				return true, ""
			}
		}
		return false, "none is"
	})
	return active
}

// crash ends Vault and its plugins at once, as the loss of its machine would.
func (s *server) crash(t testing.TB) {
	t.Helper()
	if err := syscall.Kill(-s.process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-s.ended
}

// seal has Vault sealed by its operator.
func (s *server) seal(t testing.TB) {
	t.Helper()
	if err := s.root.Sys().SealWithContext(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// rejoin brings back a server that was lost or sealed. A plugin process that has survived it is ended first, as a service
// manager would do.
func (s *server) rejoin(t testing.TB) {
	t.Helper()
	select {
	case <-s.ended:
		_ = syscall.Kill(-s.process.Pid, syscall.SIGKILL) // there may be none
		s.groups = slices.DeleteFunc(s.groups, func(group int) bool { return group == s.process.Pid })
		s.launch(t)
	default:
	}
	s.join(t)
}

// takeOver points the world to the server that becomes active after another was lost.
func (c cluster) takeOver(t testing.TB, w *world, lost *server) {
	t.Helper()
	next := c.active(t, lost)
	next.canary(slices.Collect(maps.Keys(w.canaries))...) // all that were used so far
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
