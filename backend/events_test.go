// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// bus is a server's event bus. It keeps each event as a line: its kind, and its metadata by name.
type bus struct {
	mu    sync.Mutex
	lines []string
	fault error
}

func (s *bus) SendEvent(_ context.Context, kind logical.EventType, event *logical.EventData) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	line := string(kind)
	fields := event.GetMetadata().GetFields()
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		line += " " + name + "=" + fields[name].GetStringValue()
	}
	s.lines = append(s.lines, line)
	return s.fault
}

// hears compares the events since it was last called.
func (w *world) hears(want ...string) {
	w.t.Helper()
	w.events.mu.Lock()
	defer w.events.mu.Unlock()
	if diff := cmp.Diff(want, w.events.lines); diff != "" {
		w.t.Errorf("events (-want +got):\n%s", diff)
	}
	w.events.lines = nil
}

func TestEventsOfKeys(t *testing.T) {
	w := newWorld(t)
	w.hears()
	first, second := w.issue("deploy"), w.issue("deploy")
	about := func(resp *logical.Response) string {
		return " id=" + resp.Data["id"].(string) + " path=creds/deploy role=deploy target=acme"
	}
	w.hears("oidcexchange/key-issue"+about(first), "oidcexchange/key-issue"+about(second))
	if _, err := w.lease(logical.RenewOperation, first); err != nil {
		t.Fatal(err)
	}
	w.hears("oidcexchange/key-renew" + about(first))
	w.revoke(first)
	w.hears("oidcexchange/key-revoke" + about(first))

	w.keys.Fault("revoke", lab.Fault{Kind: "status", Status: http.StatusServiceUnavailable})
	w.store.set(func(op, key string) error {
		if op == "put" && strings.HasPrefix(key, openEntries) {
			return errors.New("disk full")
		}
		return nil
	})
	if _, err := w.lease(logical.RevokeOperation, second); err == nil {
		t.Fatal("a key was revoked by an API that is down")
	}
	w.store.set(nil)
	w.hears()     // nothing of a debt that is not recorded
	for range 2 { // a debt is told of once
		if _, err := w.lease(logical.RevokeOperation, second); err == nil {
			t.Fatal("a key was revoked by an API that is down")
		}
	}
	w.hears("oidcexchange/key-debt" + about(second))
	w.keys.ClearFaults()
	w.clock.advance(time.Hour)
	w.write("sweep", nil)
	w.hears("oidcexchange/key-revoke" + about(second))

	if resp, err := w.exchange("deploy", "no.jwt.here"); err == nil && !resp.IsError() {
		t.Fatal("a key for no token")
	}
	w.hears() // nothing that a stranger can make without end
}

func TestEventsOfARevocation(t *testing.T) {
	w := newWorld(t)
	key := w.issue("deploy").Data["id"].(string)
	w.hears("oidcexchange/key-issue id=" + key + " path=creds/deploy role=deploy target=acme")
	id := w.starts(map[string]any{"role": "deploy"})
	w.wantRun(w.works(id), map[string]any{"state": runDone})
	w.hears(
		"oidcexchange/revocation-start debt=0 exposed=0 matched=0 path=revocations/"+id+" revoked=0",
		"oidcexchange/key-revoke id="+key+" path=creds/deploy role=deploy target=acme",
		"oidcexchange/revocation-done debt=0 exposed=0 matched=1 path=revocations/"+id+" revoked=1",
	)
}

// A revocation that waits is told of once; one that is stopped is, although nobody works on it then.
func TestEventOfARevocationThatIsStopped(t *testing.T) {
	w := newWorld(t)
	w.issue("deploy")
	w.keys.Fault("revoke", lab.Fault{Kind: "status", Status: http.StatusServiceUnavailable})
	id := w.starts(map[string]any{"role": "deploy"})
	w.wantRun(w.works(id), map[string]any{"state": runWaiting})
	w.events.lines = nil
	w.pass(time.Minute)
	w.wantRun(w.works(id), map[string]any{"state": runWaiting})
	w.hears() // it waits still
	w.delete("revocations/"+id, nil)
	w.hears("oidcexchange/revocation-stopped debt=1 exposed=0 matched=1 path=revocations/" + id + " revoked=0")
	w.delete("revocations/"+id, nil)
	w.hears()
}

func TestEventsOfRotations(t *testing.T) {
	w := newWorld(t).withStatic()
	w.hears("oidcexchange/static-key-rotate data_path=static-creds/ci modified=true path=static-creds/ci")
	w.withGitLab()
	w.write("rotate-root/gitlab", nil)
	w.hears("oidcexchange/credential-rotate data_path=targets/gitlab modified=true path=targets/gitlab")
}

// A server that has no events, or takes none, issues all the same.
func TestNoEvents(t *testing.T) {
	w := newWorld(t)
	w.events.fault = errors.New("the bus is full")
	w.revoke(w.issue("deploy"))
	if !strings.Contains(w.logs.String(), "the bus is full") {
		t.Error("nothing in the log")
	}
	w.events = nil
	w.restart()
	w.revoke(w.issue("deploy"))

	w.system.PluginEnvironment = &logical.PluginEnvironment{VaultVersion: "1.21.2"} // the community's
	w.events = &bus{}
	w.restart()
	w.revoke(w.issue("deploy"))
	w.hears()
}

// sender is the server's bus, for one that has events.
func (w *world) sender() logical.EventSender {
	if w.events == nil {
		return nil
	}
	return w.events
}
