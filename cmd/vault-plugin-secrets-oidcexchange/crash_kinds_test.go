// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// lostKeys is a role whose keys, unlike those of testCrashWhileIssuing, cannot be found again by name. If one may live after
// a crash, the ledger must show it.
type lostKeys struct {
	*world
	plugin, file string // what dies, and where it is told at which step
	role         string
	token        func() string
	living       func() int
}

// lost is what a crash leaves behind: the number of keys that the ledger shows as exposed, and of keys that live without a
// lease.
type lost struct{ exposed, alive int }

// The plugin's process is killed at each step of issuing a key, and in each call, at a target that cannot end keys and at
// one behind two hops.
func testCrashOfLostKeys(t *testing.T, s *server) {
	t.Run("no end", func(t *testing.T) {
		t.Parallel()
		k := newLostKeys(t, s, "lost-nuget", "publish")
		k.token = func() string { return k.world.token(map[string]any{"aud": nugetAudience}) }
		k.living = func() int { return len(k.nuget.Live()) }
		k.diesAt(t, map[string]lost{"decided": {}, "claimed": {}, "intended": {1, 0}, "exchanged": {1, 1}, "issued": {1, 1}})
		for _, stage := range []lab.Stage{lab.StageReceived, lab.StageDone} {
			k.diesIn(t, &k.nuget.Control, lab.OpToken, stage, lost{1, 1}) // what was received is done, whoever waits for it
		}
	})
	t.Run("two hops", func(t *testing.T) {
		t.Parallel()
		const gateway, supervisor = "spiffe://example.org/gateway", "spiffe://example.org/supervisor"
		socket := filepath.Join(t.TempDir(), "agent.sock")
		agent := lab.NewWorkloadAPI(lab.WorkloadAPIOptions{IDs: []string{gateway, supervisor}})
		if err := agent.Start(socket); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(agent.Stop)
		k := newLostKeys(t, s, "lost-hops", "hops", "SPIFFE_ENDPOINT_SOCKET=unix://"+socket)
		first, second := k.wantHops(t, gateway, supervisor, agent.Domain)
		k.token = func() string { return k.world.token(map[string]any{"aud": first.Issuer()}) }
		k.living = func() int { return len(second.Live()) }
		// A key that the ledger has is ended at the server, although its answer never left.
		k.diesAt(t, map[string]lost{"decided": {}, "claimed": {}, "intended": {1, 0}, "exchanged": {1, 1}, "issued": {}})
		for _, stage := range []lab.Stage{lab.StageReceived, lab.StageDone} {
			k.diesIn(t, &first.Control, lab.OpGrant, stage, lost{1, 0})
			k.diesIn(t, &second.Control, lab.OpGrant, stage, lost{1, 1})
			k.diesRevoking(t, &second.Control, stage)
		}
	})
}

func newLostKeys(t *testing.T, s *server, plugin, role string, env ...string) *lostKeys {
	t.Helper()
	k := &lostKeys{plugin: plugin, file: filepath.Join(t.TempDir(), "die-at"), role: role}
	k.world, _ = crashWorld(t, s, plugin, s.built.faults, append(env, "OIDCEXCHANGE_DIE_AT="+k.file)...)
	return k
}

// left waits until nothing is open, and returns what was left behind.
func (k *lostKeys) left(t *testing.T) (l lost) {
	t.Helper()
	k.settle(t)
	for _, key := range k.ledger(t) {
		if strings.HasSuffix(key, " exposed") {
			l.exposed++
		}
	}
	l.alive = k.living() - len(k.leases(t, "creds/"+k.role+"/"))
	return l
}

// crash asks for a key in a process that dies on the way. Vault may repeat the request by itself; a key that results has a
// lease.
func (k *lostKeys) crash(t *testing.T, at string, died func() bool, want lost) {
	t.Helper()
	before := k.left(t)
	_, _ = k.exchange(t, k.role, k.token()) // whatever the caller hears
	if !died() {
		t.Fatalf("the plugin did not come to %s", at)
	}
	k.recovered(t)
	after := k.left(t)
	if got := (lost{after.exposed - before.exposed, after.alive - before.alive}); got != want {
		t.Errorf("%s: %+v; want %+v", at, got, want)
	}
}

func (k *lostKeys) diesAt(t *testing.T, steps map[string]lost) {
	t.Helper()
	for step, want := range steps {
		dieAt(t, k.file, step)
		k.crash(t, step, func() bool { wantDied(t, k.file, step); return true }, want)
	}
}

func (k *lostKeys) diesIn(t *testing.T, target *lab.Control, op string, stage lab.Stage, want lost) {
	t.Helper()
	k.crash(t, op+", "+string(stage), k.killAt(t, k.plugin, target, op, stage), want)
	target.OnRequest(nil)
}

// diesRevoking makes Vault revoke again, after the answer to the first revocation was lost.
func (k *lostKeys) diesRevoking(t *testing.T, target *lab.Control, stage lab.Stage) {
	t.Helper()
	before := k.left(t)
	secret, err := k.exchange(t, k.role, k.token())
	if err != nil {
		t.Fatal(err)
	}
	killed := k.killAt(t, k.plugin, target, lab.OpRevoke, stage)
	k.cli(t, k.root.Token(), "lease", "revoke", "-sync", secret.LeaseID)
	if !killed() {
		t.Fatalf("no revocation came to %s", stage)
	}
	k.recovered(t)
	k.must(t, k.root.Token(), "lease", "revoke", "-sync", secret.LeaseID)
	if after := k.left(t); after != before {
		t.Errorf("killed while revoking, %s: %+v; want %+v", stage, after, before)
	}
	target.OnRequest(nil)
}
