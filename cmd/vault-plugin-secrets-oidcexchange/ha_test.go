// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// pause is a call that waits at the key API.
type pause struct {
	met    chan struct{} // closed when a call has come
	worked chan struct{} // closed when its work is done
	resume func()
}

// pause makes the next call of op wait at a stage.
func (w *world) pause(t testing.TB, op string, stage lab.Stage) *pause {
	goOn := make(chan struct{})
	p := &pause{met: make(chan struct{}), worked: make(chan struct{}), resume: sync.OnceFunc(func() { close(goOn) })}
	t.Cleanup(p.resume)
	var met, worked atomic.Bool
	w.keys.OnRequest(func(got string, at lab.Stage) {
		if got != op {
			return
		}
		if at == stage && met.CompareAndSwap(false, true) {
			close(p.met)
			<-goOn
		}
		if at == lab.StageDone && met.Load() && worked.CompareAndSwap(false, true) {
			close(p.worked)
		}
	})
	return p
}

// wait waits until a channel is closed.
func wait(t testing.TB, what string, closed <-chan struct{}) {
	t.Helper()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatalf("waited %s for %s", patience, what)
	}
}

// available is a world in a cluster whose servers are lost one after another.
type available struct {
	*world
	c cluster
}

// lose loses the active server while a call that ask has caused waits at the target. Then the target goes on, and another
// server takes over; finally the lost one comes back.
func (a *available) lose(t *testing.T, harm func(*server, testing.TB), op string, stage lab.Stage, ask func(user, root *api.Client)) {
	t.Helper()
	p := a.pause(t, op, stage)
	old, user, root := a.server, a.user, a.root
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		ask(user, root)
	}()
	wait(t, "the call of "+op, p.met)
	harm(old, t)
	wait(t, "the end of what was asked of the lost server", asked)
	p.resume()
	wait(t, "the target's work", p.worked)
	a.keys.OnRequest(nil)
	a.c.takeOver(t, a.world, old)
	old.rejoin(t)
}

// wantWhole checks the invariant, and that each of the servers issues keys.
func (a *available) wantWhole(t *testing.T) {
	t.Helper()
	a.settle(t)
	a.wantConsistent(t)
	for _, s := range a.c {
		user, err := s.client(a.user.Token())
		if err != nil {
			t.Fatal(err)
		}
		secret, err := user.Logical().WriteWithContext(t.Context(), a.path+"/creds/deploy", map[string]any{"subject_token": a.token(nil)})
		if err != nil {
			t.Fatalf("issuing at %s: %v", s.id, err)
		}
		a.hold(secret)
		if status := a.use(t, secret.Data["api_key"].(string)); status != http.StatusOK {
			t.Errorf("the target answers a key from %s with %d", s.id, status)
		}
	}
	a.wantConsistent(t)
}

// The active server is lost in the middle of each thing that it does. The next one keeps its promises and ends what it has
// begun: after each step exactly the leased keys live.
func testHighAvailability(t *testing.T, shared *server) {
	c := startCluster(t, shared.bin, shared.built, 3)
	a := &available{newWorld(t, c[0], pluginName), c}
	a.write(t, "config", map[string]any{"sweep_grace": "1s"})
	a.write(t, "targets/acme", map[string]any{"allowed_roles": "*,static/*"})
	a.lostIssuing(t)
	a.lostAnswering(t)
	a.lostRenewing(t)
	a.lostSweeping(t)
	a.lostInRevocation(t)
	a.lostRotating(t)
	a.sealedIssuing(t)
	a.must(t, a.root.Token(), "lease", "revoke", "-prefix", a.path+"/creds")
	a.wantNone(t)
	for _, s := range c {
		s.wantClean(t)
	}
}

// issueLost returns a function that asks for a key, the answer to which is lost.
func (a *available) issueLost(t *testing.T) func(user, root *api.Client) {
	data := map[string]any{"subject_token": a.token(nil)}
	return func(user, _ *api.Client) {
		if _, err := user.Logical().WriteWithContext(t.Context(), a.path+"/creds/deploy", data); err == nil {
			t.Error("a server that was lost has answered")
		}
	}
}

// Used tokens stay used, limits hold, and a key that is made after all is ended.
func (a *available) lostIssuing(t *testing.T) {
	a.write(t, "roles/deploy", map[string]any{"max_keys": 3})
	used := a.token(nil)
	first, err := a.exchange(t, "deploy", used)
	if err != nil {
		t.Fatal(err)
	}
	second := a.issue(t, "deploy")

	a.lose(t, (*server).crash, lab.OpCreate, lab.StageReceived, a.issueLost(t))

	if n := len(a.live()); n != 3 {
		t.Errorf("%d keys live; want 3, or this test proves nothing", n)
	}
	a.settle(t)
	a.wantConsistent(t)
	_, err = a.exchange(t, "deploy", used)
	wantRefused(t, err, http.StatusForbidden, "replayed")
	if renewed, err := a.user.Sys().RenewWithContext(t.Context(), first.LeaseID, 1200); err != nil || renewed.LeaseDuration != 1200 {
		t.Errorf("renewing: %v %v", renewed, err)
	}
	eventually(t, "the count of the ledger", func() (bool, string) {
		ledger := a.read(t, "status")["ledger"].(map[string]any)
		return ledger["counted"] == true, fmt.Sprint(ledger)
	})
	a.issue(t, "deploy")
	_, err = a.exchange(t, "deploy", a.token(nil))
	wantRefused(t, err, http.StatusForbidden, "limit")
	a.must(t, a.root.Token(), "lease", "revoke", "-sync", second.LeaseID)
	if status := a.use(t, second.Data["api_key"].(string)); status != http.StatusUnauthorized {
		t.Errorf("the target answers a revoked key with %d", status)
	}
	a.write(t, "roles/deploy", map[string]any{"max_keys": 0})
	a.wantWhole(t)
}

// The plugin outlives its Vault, and gets a key that it can neither record nor return.
func (a *available) lostAnswering(t *testing.T) {
	before := a.keys.Calls(lab.OpCreate)
	a.lose(t, (*server).kill, lab.OpCreate, lab.StageDone, a.issueLost(t))
	if n := a.keys.Calls(lab.OpCreate) - before; n != 1 {
		t.Errorf("%d keys were asked for; want 1", n)
	}
	a.wantWhole(t)
}

// The target moves the key's end, and the answer is lost: the ledger has the later end already.
func (a *available) lostRenewing(t *testing.T) {
	a.write(t, "targets/brief", map[string]any{"driver": "http", "url": a.keysURL, "ca_pem": a.ca, "allowed_roles": "*", "credential": map[string]any{"token": a.admin},
		"profile": strings.Replace(acmeProfile(t), `"expires_at": not_after`, `"expires_at": timestamp(int(not_after) - 7200)`, 1)})
	a.write(t, "roles/brief", map[string]any{"trust": "main", "target": "brief", "parameters": map[string]any{"project": "widget"}, "ttl": "2m", "max_ttl": "2h"})
	secret := a.issue(t, "brief")
	end := func() (at time.Time) {
		for _, key := range a.keys.Live() {
			if key.ID == secret.Data["accessor"] {
				at = key.ExpiresAt
			}
		}
		return at
	}
	before := end()

	a.lose(t, (*server).crash, lab.OpExtend, lab.StageDone, func(user, _ *api.Client) {
		if _, err := user.Sys().RenewWithContext(t.Context(), secret.LeaseID, 600); err == nil {
			t.Error("a server that was lost has answered")
		}
	})

	if !end().After(before) {
		t.Errorf("the key ends at %s, as before: then this test proves nothing", before)
	}
	recorded, err := time.Parse(time.RFC3339, a.read(t, "keys/"+secret.Data["id"].(string))["expires_at"].(string))
	if err != nil || recorded.Before(end().Truncate(time.Second)) {
		t.Errorf("the key ends at %s, and the ledger says %s, %v", end(), recorded, err)
	}
	if renewed, err := a.user.Sys().RenewWithContext(t.Context(), secret.LeaseID, 600); err != nil || renewed.LeaseDuration != 600 {
		t.Errorf("renewing again: %v %v", renewed, err)
	}
	a.wantWhole(t)
}

func (a *available) lostSweeping(t *testing.T) {
	before := len(a.live())
	a.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	_, err := a.exchange(t, "deploy", a.token(nil))
	wantRefused(t, err, http.StatusUnprocessableEntity, "outcome_unknown")

	a.lose(t, (*server).crash, lab.OpRevoke, lab.StageReceived, func(_, root *api.Client) {
		for err := error(nil); err == nil; { // until the grace has passed, and the server is lost
			_, err = root.Logical().WriteWithContext(t.Context(), a.path+"/sweep", nil)
		}
	})

	a.settle(t)
	if live := a.live(); len(live) != before {
		t.Errorf("%d keys live; want %d: %q", len(live), before, live)
	}
	a.wantWhole(t)
}

// The revocation goes on by itself, and issuing stays blocked until it is done.
func (a *available) lostInRevocation(t *testing.T) {
	a.write(t, "roles/stolen", map[string]any{"trust": "main", "target": "acme", "parameters": map[string]any{"project": "widget"}})
	stolen := func() string { return a.token(map[string]any{"ref": "refs/heads/stolen"}) }
	var keys []string
	for range 10 {
		secret, err := a.exchange(t, "stolen", stolen())
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, secret.Data["api_key"].(string))
	}
	var id string

	a.lose(t, (*server).kill, lab.OpRevoke, lab.StageReceived, func(_, root *api.Client) {
		secret, err := root.Logical().WriteWithContext(t.Context(), a.path+"/revocations", map[string]any{"claim": "ref=refs/heads/stolen", "dry_run": false})
		if err != nil {
			t.Errorf("starting a revocation: %v", err)
			return
		}
		id = secret.Data["id"].(string)
	})

	_, err := a.exchange(t, "stolen", stolen())
	wantRefused(t, err, http.StatusForbidden, "blocked")
	a.finished(t, id)
	for _, key := range keys {
		if a.keys.Valid(key) {
			t.Error("a stolen key lives")
		}
	}
	a.must(t, a.root.Token(), "lease", "revoke", "-prefix", a.path+"/creds/stolen") // Vault's leases of them
	eventually(t, "the end of the leases", func() (bool, string) {
		leases := a.leases(t, "creds/stolen/")
		return len(leases) == 0, strings.Join(leases, " ")
	})
	a.wantWhole(t)
}

// The new key of a static role is made, and the answer is lost: the key is ended, and another one is made.
func (a *available) lostRotating(t *testing.T) {
	a.write(t, "static-roles/ci", map[string]any{"target": "acme", "parameters": "project=widget", "rotation_period": "24h", "revoke_on_delete": true})
	before := a.read(t, "static-creds/ci")

	a.lose(t, (*server).crash, lab.OpCreate, lab.StageDone, func(_, root *api.Client) {
		if _, err := root.Logical().WriteWithContext(t.Context(), a.path+"/rotate-role/ci", nil); err == nil {
			t.Error("a server that was lost has answered")
		}
	})

	if now := a.read(t, "static-creds/ci"); now["accessor"] != before["accessor"] || !a.keys.Valid(now["api_key"].(string)) {
		t.Errorf("%v is read; want %v, and it must live", now["accessor"], before["accessor"])
	}
	a.write(t, "rotate-role/ci", nil)
	if now := a.read(t, "static-creds/ci"); now["predecessor"] != before["accessor"] || !a.keys.Valid(now["api_key"].(string)) {
		t.Errorf("%v is read, which follows %v; want it to follow %v, and to live", now["accessor"], now["predecessor"], before["accessor"])
	}
	a.wantWhole(t)
	a.must(t, a.root.Token(), "delete", a.path+"/static-roles/ci")
	a.settle(t)
	a.wantConsistent(t)
}

// Vault waits for the call before it seals; the call ends with its own deadline.
func (a *available) sealedIssuing(t *testing.T) {
	a.write(t, "config", map[string]any{"request_timeout": "1s"})
	before := a.keys.Calls(lab.OpCreate)
	a.lose(t, (*server).seal, lab.OpCreate, lab.StageReceived, a.issueLost(t))
	if n := a.keys.Calls(lab.OpCreate) - before; n != 1 {
		t.Errorf("%d keys were asked for; want 1", n)
	}
	a.wantWhole(t)
}
