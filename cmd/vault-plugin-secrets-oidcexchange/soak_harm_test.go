// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// harm is something that happens to the cluster, or is done with the engine, under load.
type harm struct {
	name     string
	silences bool // a caller may hear nothing of a key that was made
	do       func(*soak, *testing.T)
}

// The plugin's process survives gentle harms, but not rough ones.
var (
	gentle = []harm{
		{"target down", false, (*soak).targetDown},
		{"static key rotated", false, (*soak).rotate},
		{"revocation by filter", false, (*soak).revokeGroup},
		{"revocation by prefix", false, (*soak).revokePrefix},
		{"standby killed", true, (*soak).killStandby}, // it may have been about to pass on an answer
	}
	rough = []harm{
		{"active Vault killed", true, func(s *soak, t *testing.T) { s.failOver(t, (*server).kill) }},
		{"active Vault and plugin killed", true, func(s *soak, t *testing.T) { s.failOver(t, (*server).crash) }},
		{"active Vault sealed", true, func(s *soak, t *testing.T) { s.failOver(t, (*server).seal) }},
		{"active Vault stepped down", true, func(s *soak, t *testing.T) { s.failOver(t, (*server).stepDown) }},
		{"plugin killed", true, (*soak).killProcess},
		{"plugin reloaded", true, (*soak).reload},
	}
)

// stepDown makes the active Vault give up its role.
func (s *server) stepDown(t testing.TB) {
	t.Helper()
	if err := s.root.Sys().StepDownWithContext(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (s *soak) failOver(t *testing.T, lose func(*server, testing.TB)) {
	lost := s.server
	lose(lost, t)
	s.c.takeOver(t, s.world, lost)
	lost.rejoin(t)
}

func (s *soak) killStandby(t *testing.T) {
	standby := s.c[s.dice.n(len(s.c))]
	if standby == s.server {
		return
	}
	standby.crash(t)
	standby.rejoin(t)
}

func (s *soak) killProcess(t *testing.T) {
	s.killPlugin(t, pluginName)
	s.recovered(t)
}

func (s *soak) reload(t *testing.T) {
	s.must(t, s.root.Token(), "plugin", "reload", "-plugin="+pluginName)
	s.recovered(t)
}

// rotate may fail, because the target may; the next rotation goes on from there.
func (s *soak) rotate(t *testing.T) {
	_, _ = s.root.Logical().WriteWithContext(t.Context(), s.path+"/rotate-role/ci", nil)
}

// revokeGroup ends all keys of a group. Later keys belong to another group.
func (s *soak) revokeGroup(t *testing.T) {
	ref := groupRef(s.group.Add(1) - 1)
	run := s.write(t, "revocations", map[string]any{"claim": "ref=" + ref, "dry_run": false})
	s.runs = append(s.runs, run.Data["id"].(string))
}

// revokePrefix may fail, because the target may; the leases still end by themselves.
func (s *soak) revokePrefix(t *testing.T) {
	_ = s.root.Sys().RevokePrefixWithContext(t.Context(), s.path+"/creds/brief")
}

func (s *soak) targetDown(t *testing.T) {
	s.outage.Store(true)
	defer s.outage.Store(false)
	rest(t.Context(), time.Duration(1+s.dice.n(6))*time.Second)
}

// onRequest makes calls of the target fail: some at any time, all while it is down.
func (s *soak) onRequest(op string, stage lab.Stage) {
	if stage != lab.StageReceived {
		return
	}
	down := s.outage.Load()
	if down || s.dice.percent(8) {
		s.faults.Add(1)
		s.keys.Fault(op, s.fault(down))
	}
}

func (s *soak) fault(down bool) lab.Fault {
	after := s.dice.percent(50)
	switch kind := s.dice.n(10); {
	case down && kind < 5:
		return lab.Fault{Kind: lab.KindCut, Count: 1}
	case down:
		return lab.Fault{Kind: lab.KindStatus, Status: http.StatusServiceUnavailable, Count: 1}
	case kind < 3:
		return lab.Fault{Kind: lab.KindCut, After: after, Count: 1}
	case kind < 4:
		return lab.Fault{Kind: lab.KindStatus, Status: http.StatusTooManyRequests, RetryAfter: time.Second, Count: 1}
	case kind < 6:
		status := []int{http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout}[s.dice.n(3)]
		return lab.Fault{Kind: lab.KindStatus, Status: status, After: after, Count: 1}
	case kind < 9:
		return lab.Fault{Kind: lab.KindDelay, Delay: time.Duration(50+s.dice.n(3000)) * time.Millisecond, After: after, Count: 1}
	}
	return lab.Fault{Kind: []lab.Kind{lab.KindTruncate, lab.KindHTML, lab.KindWrongTypes}[s.dice.n(3)], Count: 1}
}

// groupRef is the claim that all keys of a group share.
func groupRef(n int64) string { return fmt.Sprint("refs/heads/g", n) }
