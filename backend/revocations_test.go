// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// starts starts a revocation and returns its id.
func (w *world) starts(filter map[string]any) string {
	w.t.Helper()
	filter["dry_run"] = false
	return w.write("revocations", filter).Data["id"].(string)
}

// works waits until this process has done what it can for a revocation, and reads it.
func (w *world) works(id string) map[string]any {
	w.t.Helper()
	w.runs.mu.Lock()
	r := w.runs.active[id]
	w.runs.mu.Unlock()
	if r != nil {
		select {
		case <-r.over:
		case <-time.After(time.Minute):
			w.t.Fatalf("the revocation does not come to an end\n%s", w.logs)
		}
	}
	return w.read("revocations/" + id)
}

// wantRun compares some members of a revocation.
func (w *world) wantRun(got map[string]any, want map[string]any) {
	w.t.Helper()
	for name, value := range want {
		if !cmp.Equal(got[name], value) {
			w.t.Errorf("%s is %v; want %v", name, got[name], value)
		}
	}
}

// deploys issues n keys to the subject of a token with further claims.
func (w *world) deploys(n int, claims map[string]any) (issued []*logical.Response) {
	w.t.Helper()
	for range n {
		resp, err := w.exchange("deploy", w.token(claims))
		if err != nil || resp.IsError() {
			w.t.Fatalf("issuing: %v %v", err, resp)
		}
		issued = append(issued, resp)
	}
	return issued
}

func TestDryRunOfARevocation(t *testing.T) {
	w := newWorld(t).withNuGet()
	w.write("roles/deploy", map[string]any{"lease_path": "claims.repository"})
	exchange := func(path string, claims map[string]any) {
		t.Helper()
		if resp, err := w.exchange(path, w.token(claims)); err != nil || resp.IsError() {
			t.Fatal(err, resp)
		}
	}
	for range 3 {
		exchange("deploy/acme/widget", nil)
	}
	exchange("publish", map[string]any{"aud": "https://www.nuget.org"})
	before := w.stored("")
	told := w.write("revocations", map[string]any{"claim": "repository=acme/widget"}).Data
	w.wantRun(told, map[string]any{
		"dry_run": true, "matched": 4, "unrecorded": 0, "exposed": 1, "filter": map[string]any{"claim": map[string]string{"repository": "acme/widget"}},
		"prefixes": []string{"oidcexchange/creds/deploy/acme/widget", "oidcexchange/creds/publish"}, "id": nil, "state": nil, "revoked": nil,
	})
	if until := told["exposed_until"].(string); until != w.read("keys/" + w.exposed())["expires_at"] {
		t.Errorf("exposed_until %s", until)
	}
	w.wantRun(w.write("revocations", map[string]any{"claim": "workflow_sha=x"}).Data, map[string]any{"matched": 0, "unrecorded": 4})
	w.wantRun(w.write("revocations", map[string]any{"claim": "workflow_sha=x", "include_unrecorded": true}).Data, map[string]any{"matched": 4, "unrecorded": 0})
	if after := w.stored(""); !cmp.Equal(before, after) {
		t.Errorf("a dry run changes what is stored: %v", cmp.Diff(before, after))
	}
}

// Who revokes what a target gave out is told of the keys there that no revocation ends, and revokes although they cannot be read.
func TestRevocationTellsOfStaticRoles(t *testing.T) {
	w := newWorld(t).withStatic().withNuGet()
	for filter, want := range map[string]string{"target=acme": "disable static role ci", "target=nuget": "", "role=deploy": ""} {
		field, value, _ := strings.Cut(filter, "=")
		for _, dry := range []bool{true, false} {
			warnings := strings.Join(w.write("revocations", map[string]any{field: value, "dry_run": dry}).Warnings, "\n")
			if !strings.Contains(warnings, want) || want == "" && warnings != "" {
				t.Errorf("%s, dry run %v: warnings %q; want %q", filter, dry, warnings, want)
			}
		}
	}
	w.store.set(func(op, key string) error {
		if op == "get" && strings.HasPrefix(key, "static-roles/") {
			return errors.New("broken")
		}
		return nil
	})
	resp := w.write("revocations", map[string]any{"target": "acme", "dry_run": false})
	if resp.Data["id"] == nil || !strings.Contains(strings.Join(resp.Warnings, ""), "could not be read") {
		t.Errorf("where they cannot be read: %v, warnings %q", resp.Data["id"], resp.Warnings)
	}
}

// exposed is the id of the one key that cannot be revoked.
func (w *world) exposed() string {
	w.t.Helper()
	for _, id := range w.list("keys") {
		if w.read("keys/" + id)["revocable"] == false {
			return id
		}
	}
	w.t.Fatal("there is none")
	return ""
}

func TestRevocation(t *testing.T) {
	w := newWorld(t).withBeta()
	w.write("trust/main", map[string]any{"bound_claims": map[string]any{"repository": []string{"acme/widget", "acme/other"}}})
	leases := w.deploys(30, nil)
	spared := w.deploys(2, map[string]any{"repository": "acme/other"})[1]
	beta := w.issue("beta")
	id := w.starts(map[string]any{"claim": "repository=acme/widget"})
	got := w.works(id)
	w.wantRun(got, map[string]any{
		"id": id, "state": runDone, "matched": 31, "revoked": 31, "debt": 0, "exposed": 0, "exposed_until": nil, "unrecorded": 0, "block": "revocation-" + id,
		"started_at": w.clock.now().Format(time.RFC3339), "finished_at": w.clock.now().Format(time.RFC3339),
	})
	if live := len(w.keys.Live()); live != 2 || len(w.ledgerEntries()) != 2 {
		t.Errorf("%d keys live", live)
	}
	if block := w.read("blocks/revocation-" + id); block["reason"] != "revocation "+id {
		t.Errorf("the block: %v", block)
	}
	for claims, want := range map[string]string{"acme/widget": reasonBlocked, "acme/other": ""} {
		if reason, _ := reasonOf(w.exchange("deploy", w.token(map[string]any{"repository": claims}))); reason != want {
			t.Errorf("issuing to %s: %q", claims, reason)
		}
	}
	if reason, _ := reasonOf(w.lease(logical.RenewOperation, spared)); reason != "" {
		t.Errorf("renewing another's key: %q", reason)
	}
	calls := w.keys.Calls(lab.OpRevoke)
	for _, lease := range append(leases, beta) { // they end later, harmlessly
		w.revoke(lease)
	}
	if calls != 31 || w.read("revocations/" + id)["state"] != runDone {
		t.Errorf("31 keys were revoked by %d calls", calls)
	}
	if ids := w.list("revocations"); !cmp.Equal(ids, []string{id}) {
		t.Errorf("%v", ids)
	}
	w.delete("revocations/"+id, nil)
	if resp, err := w.do(logical.ReadOperation, "revocations/"+id, nil); resp != nil || err != nil {
		t.Errorf("%v %v", resp, err)
	}
	w.read("blocks/revocation-" + id) // it stays
}

func TestRevocationFields(t *testing.T) {
	w := newWorld(t)
	w.issue("deploy")
	for _, dry := range []bool{true, false} {
		for name, c := range map[string]struct {
			fields map[string]any
			want   string
		}{
			"nothing":            {map[string]any{}, "role"},
			"unrecorded alone":   {map[string]any{"include_unrecorded": true}, "role"},
			"no claim":           {map[string]any{"claim": map[string]any{}}, "claim"},
			"empty":              {map[string]any{"role": "deploy", "subject": ""}, "subject"},
			"null":               {map[string]any{"role": "deploy", "block": nil}, "block"},
			"no claim's name":    {map[string]any{"claim": map[string]any{"/a~2": "x"}}, "claim"},
			"a part of the keys": {map[string]any{"role": "deploy", "limit": 10}, "limit"},
			"unknown field":      {map[string]any{"rolle": "deploy"}, "rolle"},
		} {
			t.Run(name, func(t *testing.T) {
				c.fields["dry_run"] = dry
				w.refused("revocations", c.fields, c.want)
			})
		}
	}
	w.refused("revocations", map[string]any{"role": "deploy", "dry_run": nil}, "dry_run")
	if len(w.keys.Live()) != 1 || len(w.list("revocations"))+len(w.list("blocks")) != 0 {
		t.Error("what was refused has done something")
	}
}

// Without a block issuing goes on, and what was asked for after the start is not meant.
func TestRevocationWithoutBlock(t *testing.T) {
	w := newWorld(t)
	w.deploys(3, nil)
	gate := make(chan struct{})
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindDelay, Until: gate})
	id := w.starts(map[string]any{"role": "deploy", "block": false})
	w.clock.advance(time.Second)
	late := w.issue("deploy")
	w.keys.ClearFaults()
	close(gate)
	w.wantRun(w.works(id), map[string]any{"state": runDone, "matched": 3, "revoked": 3, "block": ""})
	w.restart()
	w.wantSettled(late)
	if blocks := w.list("blocks"); len(blocks) != 0 {
		t.Errorf("%v", blocks)
	}
}

func TestRevocationOfWhatCannotBeJudged(t *testing.T) {
	w := newWorld(t)
	w.deploys(3, nil)
	w.wantRun(w.works(w.starts(map[string]any{"claim": "workflow_sha=x"})), map[string]any{"state": runDone, "matched": 0, "unrecorded": 3})
	if len(w.keys.Live()) != 3 {
		t.Error("keys that could not be judged were revoked")
	}
	w.wantRun(w.works(w.starts(map[string]any{"claim": "workflow_sha=x", "include_unrecorded": true})), map[string]any{"state": runDone, "matched": 3, "revoked": 3, "unrecorded": 0})
	w.wantSettled()
}

// A key whose issue was decided before the block stands does not slip through: it is refused before anything is asked for,
// or the revocation meets it, whatever its issue was doing.
func TestRevocationMeetsIssuesInFlight(t *testing.T) {
	for place, want := range map[string]string{"put ledger/open/": reasonBlocked, "put ledger/keys/": "", "delete ledger/open/": ""} {
		t.Run(place, func(t *testing.T) {
			w := newWorld(t)
			w.issue("deploy")
			arrived, gate := make(chan struct{}), make(chan struct{})
			once := sync.OnceFunc(func() { close(arrived); <-gate })
			req := &logical.Request{ID: "flying", Operation: logical.UpdateOperation, Path: "creds/deploy", Data: map[string]any{"subject_token": w.token(nil)},
				Storage: &pausingStorage{Storage: w.store, at: place, pause: once}}
			var reason string
			var wait sync.WaitGroup
			wait.Go(func() { reason, _ = reasonOf(w.HandleRequest(context.Background(), req)) })
			<-arrived
			met := make(chan struct{})
			first := sync.OnceFunc(func() { close(met) })
			w.store.set(func(op, key string) error {
				if op == "get" && strings.HasSuffix(key, w.flying()) {
					first()
				}
				return nil
			})
			id := w.starts(map[string]any{"claim": "repository=acme/widget"})
			<-met
			close(gate)
			wait.Wait()
			w.wantRun(w.works(id), map[string]any{"state": runDone, "debt": 0})
			if reason != want {
				t.Errorf("the issue in flight: %q, want %q", reason, want)
			}
			w.wantSettled()
		})
	}
}

// flying is the key that a request asks for now.
func (w *world) flying() string {
	w.ledger.mu.Lock()
	defer w.ledger.mu.Unlock()
	for rand, h := range w.ledger.keys {
		if h.flight != nil {
			return rand
		}
	}
	return "nothing"
}

// pausingStorage waits after the writes of one kind.
type pausingStorage struct {
	logical.Storage
	at    string
	pause func()
}

func (s *pausingStorage) Put(ctx context.Context, e *logical.StorageEntry) error {
	err := s.Storage.Put(ctx, e)
	if strings.HasPrefix("put "+e.Key, s.at) {
		s.pause()
	}
	return err
}

func (s *pausingStorage) Delete(ctx context.Context, key string) error {
	err := s.Storage.Delete(ctx, key)
	if strings.HasPrefix("delete "+key, s.at) {
		s.pause()
	}
	return err
}

// withGamma adds a target at a server of its own.
func (w *world) withGamma() *lab.KeyAPI {
	w.t.Helper()
	gamma := lab.NewKeyAPI(lab.KeyAPIOptions{AdminToken: adminToken, Now: w.clock.now})
	w.write("targets/gamma", map[string]any{"driver": "http", "url": w.serve(gamma), "profile": acme, "ca_pem": w.ca, "credential": "token=" + adminToken, "allowed_roles": "*"})
	w.write("roles/gamma", map[string]any{"trust": "main", "target": "gamma", "parameters": "project=widget", "max_ttl": "2h"})
	return gamma
}

// A target that does not answer holds up no other. What cannot be revoked is owed; the sweeper pays, and the revocation ends.
func TestRevocationBesideADeadTarget(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	gamma := w.withGamma()
	for range 30 {
		w.issue("gamma")
		w.issue("deploy")
	}
	gate := make(chan struct{})
	gamma.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindDelay, Until: gate})
	var ended atomic.Int32
	others := make(chan struct{})
	w.keys.OnRequest(func(op string, stage lab.Stage) {
		if op == lab.OpRevoke && stage == lab.StageDone && ended.Add(1) == 30 {
			close(others)
		}
	})
	id := w.starts(map[string]any{"issuer": "github"})
	select {
	case <-others:
	case <-time.After(time.Minute):
		t.Fatal("a dead target holds up the keys of another")
	}
	gamma.ClearFaults()
	gamma.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 500})
	close(gate)
	got := w.works(id)
	left := len(gamma.Live())
	w.wantRun(got, map[string]any{"state": runWaiting, "matched": 60, "revoked": 60 - left, "debt": left, "exposed": 0, "exposed_until": w.clock.now().Add(2*time.Hour + expirySlack).Format(time.RFC3339)})
	if left < 20 {
		t.Fatalf("%d keys are left", left)
	}
	w.periodic()
	w.wantRun(w.works(id), map[string]any{"state": runWaiting, "debt": left})
	gamma.ClearFaults()
	w.restart() // what the process knew of the target is gone, the debts are not
	w.settleAll()
	w.wantRun(w.works(id), map[string]any{"state": runDone, "matched": 60, "revoked": 60, "debt": 0, "exposed_until": nil})
	if len(gamma.Live()) != 0 {
		t.Error("keys live")
	}
	w.wantSettled()
}

// A process that ends in the middle leaves a revocation that the next one goes on with, without ending twice what has ended.
func TestRevocationResumes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deploys(60, nil)
	var done atomic.Int32
	w.keys.OnRequest(func(op string, stage lab.Stage) {
		if op == lab.OpRevoke && stage == lab.StageDone && done.Add(1) == 20 {
			w.stopBackground()
		}
	})
	id := w.starts(map[string]any{"role": "deploy"})
	w.works(id)
	if live := len(w.keys.Live()); live == 0 || live > 40 {
		t.Fatalf("%d keys live after the process has ended", live)
	}
	w.restart()
	if err := w.Initialize(t.Context(), &logical.InitializationRequest{Storage: w.store}); err != nil {
		t.Fatal(err)
	}
	w.wantRun(w.works(id), map[string]any{"state": runDone, "debt": 0})
	if calls := w.keys.Calls(lab.OpRevoke); calls > 60+10 { // those that were under way are not known to have ended
		t.Errorf("60 keys were revoked by %d calls", calls)
	}
	if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonBlocked {
		t.Errorf("issuing: %q", reason)
	}
	w.wantSettled()
}

// The counts that are stored say at most a step less than what was done.
func TestRevocationStoresItsProgress(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.seed("acme", "deploy", runSaveEvery+20)
	var done atomic.Int32
	w.keys.OnRequest(func(op string, stage lab.Stage) {
		if op == lab.OpRevoke && stage == lab.StageDone && done.Add(1) == runSaveEvery+10 {
			w.stopBackground()
		}
	})
	id := w.starts(map[string]any{"role": "deploy"})
	w.works(id)
	w.restart()
	if stored := w.read("revocations/" + id)["revoked"].(int); stored < runSaveEvery {
		t.Errorf("%d are stored as revoked", stored)
	}
	w.periodic()
	got := w.works(id)
	w.wantRun(got, map[string]any{"state": runDone})
	if matched := got["matched"].(int); matched < 20 || matched > runSaveEvery+20 || matched != got["revoked"] {
		t.Errorf("%d matched, %d revoked", matched, got["revoked"])
	}
}

// seed files n keys of a role, which end within a day, and that their target need not know: ending one that is gone is success.
func (w *world) seed(target, role string, n int) {
	w.t.Helper()
	for i := range n {
		now := w.clock.now().UTC()
		end := now.Add(time.Duration(1+i%24) * time.Hour)
		e := &entry{
			ID: newID(end), State: stateIssued, Role: role, Target: target, Issuer: "github", Subject: fmt.Sprint("s", i%100), Trust: "main",
			Claims: map[string]any{"repository": "acme/widget"}, Revocable: true, IssuedAt: now, NotAfter: end, ExpiresAt: end.Add(24 * time.Hour),
		}
		e.Handle.Accessor, e.Handle.Params = fmt.Sprint("key-", i), map[string]any{"project": "widget"}
		if err := w.ledger.file(w.t.Context(), w.store, e); err != nil {
			w.t.Fatal(err)
		}
	}
}

// Vault revokes the same keys at the same time.
func TestRevocationBesideLeases(t *testing.T) {
	w := newWorld(t)
	leases := w.deploys(40, nil)
	id := w.starts(map[string]any{"role": "deploy"})
	var wait sync.WaitGroup
	for _, lease := range leases {
		req := &logical.Request{Operation: logical.RevokeOperation, Storage: w.store, Secret: lease.Secret}
		wait.Go(func() {
			if resp, err := w.HandleRequest(context.Background(), req); err != nil || resp.IsError() {
				t.Errorf("%v %v", resp, err)
			}
		})
	}
	wait.Wait()
	w.wantRun(w.works(id), map[string]any{"state": runDone, "debt": 0})
	w.wantSettled()
}

func TestRevocationIsStopped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deploys(40, nil)
	arrived := make(chan struct{})
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindHang}) // a call ends with its caller, and has done nothing
	first := sync.OnceFunc(func() { close(arrived) })
	w.keys.OnRequest(func(op string, _ lab.Stage) {
		if op == lab.OpRevoke {
			first()
		}
	})
	id := w.starts(map[string]any{"role": "deploy"})
	<-arrived
	resp, err := w.do(logical.DeleteOperation, "revocations/"+id, nil)
	if err != nil || len(resp.Warnings) != 1 {
		t.Fatal(resp, err)
	}
	w.wantRun(w.works(id), map[string]any{"state": runStopped, "debt": 0})
	w.restart()
	w.periodic()
	w.wantRun(w.works(id), map[string]any{"state": runStopped}) // one that went on would hang
	if live := len(w.keys.Live()); live != 40 {
		t.Errorf("%d keys live; want all 40", live)
	}
	w.delete("revocations/"+id, nil)
	if ids := w.list("revocations"); len(ids) != 0 {
		t.Errorf("%v", ids)
	}

	// One that waits is stopped as well.
	w.keys.ClearFaults()
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 500})
	id = w.starts(map[string]any{"role": "deploy", "block": false})
	w.wantRun(w.works(id), map[string]any{"state": runWaiting})
	w.delete("revocations/"+id, nil)
	w.periodic()
	w.wantRun(w.works(id), map[string]any{"state": runStopped})
}

// Whatever fails in storage, the revocation goes on with the other keys, and is not done before all are dead.
func TestRevocationWithFailingStorage(t *testing.T) {
	t.Parallel()
	for _, place := range []string{"get ledger/keys/", "put ledger/open/", "delete ledger/keys/", "put revocations/"} {
		t.Run(place, func(t *testing.T) {
			w := newWorld(t)
			w.deploys(12, nil)
			w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 403, Count: 1})
			gate := make(chan struct{})
			w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindDelay, Until: gate, Count: 1})
			id := w.starts(map[string]any{"claim": "repository=acme/widget"})
			failed := 0
			w.store.set(func(op, key string) error {
				if strings.HasPrefix(op+" "+key, place) && failed < 3 {
					failed++
					return errors.New("disk full")
				}
				return nil
			})
			close(gate)
			w.works(id)
			for range 6 {
				w.settleAll()
				w.works(id)
			}
			if failed == 0 {
				t.Fatal("nothing failed")
			}
			w.wantRun(w.works(id), map[string]any{"state": runDone, "debt": 0})
			w.wantSettled()
		})
	}
}

// A key that could be neither revoked nor owed is not called revoked, and is tried again although others wait for their target.
func TestRevocationOfWhatCouldNotBeOwed(t *testing.T) {
	w := newWorld(t)
	gamma := w.withGamma()
	w.issue("gamma")
	_, rand, _ := splitID(w.issue("deploy").Data["id"].(string))
	gamma.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 403})
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 403, Count: 1})
	w.store.set(func(op, key string) error {
		if op == "put" && key == openEntries+rand {
			return errors.New("disk full")
		}
		return nil
	})
	id := w.starts(map[string]any{"issuer": "github"})
	w.wantRun(w.works(id), map[string]any{"state": runRunning, "matched": 2, "revoked": 0, "debt": 2})
	w.store.set(nil)
	w.periodic()
	w.wantRun(w.works(id), map[string]any{"state": runWaiting, "matched": 2, "revoked": 1, "debt": 1})
	if len(w.keys.Live()) != 0 {
		t.Error("the key lives")
	}
}

// While its block stands, a revocation means also what a node whose clock ran ahead has dated after its start.
func TestRevocationAfterAClockThatRanAhead(t *testing.T) {
	for _, blocks := range []bool{false, true} {
		w := newWorld(t)
		id := w.issue("deploy").Data["id"].(string)
		if _, err := w.ledger.update(t.Context(), w.store, id, func(e *entry) { e.IssuedAt = e.IssuedAt.Add(30 * time.Second) }); err != nil {
			t.Fatal(err)
		}
		w.wantRun(w.works(w.starts(map[string]any{"role": "deploy", "block": blocks})), map[string]any{"state": runDone, "matched": map[bool]int{true: 1}[blocks]})
	}
}

// A condition that was written and is empty, as by a script whose variable is, narrows nothing and is refused.
func TestEmptyConditions(t *testing.T) {
	w := newWorld(t)
	for field, value := range map[string]any{"role": "", "subject": "", "revision_before": 0, "claim": map[string]any{}} {
		filter := map[string]any{"issuer": "github", field: value}
		w.refused("revocations", filter, field)
		w.refused("blocks/one", filter, field)
	}
}

// A record that cannot be read stops nothing. The revocation does not call itself done, and goes through the ledger again only when
// the record can be read: then its key is revoked, though another target still owes.
func TestRevocationBesideAnUnreadableRecord(t *testing.T) {
	w := newWorld(t)
	w.write("trust/main", map[string]any{"bound_claims": map[string]any{"repository": []string{"acme/widget", "acme/other"}}})
	gamma := w.withGamma()
	gamma.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 403})
	w.issue("gamma")
	spared := filedAt(w.deploys(1, map[string]any{"repository": "acme/other"})[0])
	bad := filedAt(w.deploys(5, nil)[2])
	mend := w.spoil(bad)
	filter := map[string]any{"claim": "repository=acme/widget"}
	if told := w.write("revocations", filter); told.Data["matched"] != 5 || told.Data["unreadable"] != 1 || len(told.Warnings) != 1 {
		t.Errorf("a dry run: %v", told)
	}
	id := w.starts(filter)
	waits := map[string]any{"state": runWaiting, "matched": 5, "revoked": 4, "debt": 1, "unreadable": 1}
	w.wantRun(w.works(id), waits)
	resp, err := w.do(logical.ReadOperation, "revocations/"+id, nil)
	_, rand, _ := strings.Cut(strings.TrimPrefix(bad, plainKeys), "/")
	if err != nil || len(resp.Warnings) != 1 || !strings.Contains(resp.Warnings[0], rand) || !strings.Contains(w.logs.String(), "their keys are not revoked") {
		t.Errorf("%v %v\n%s", resp, err, w.logs)
	}
	for range 2 {
		w.store.set(nil)
		w.pass(time.Minute)
		w.wantRun(w.works(id), waits)
		if slices.Contains(w.store.seen, "get "+spared) {
			t.Error("it goes through the ledger again")
		}
	}
	mend()
	w.pass(time.Minute)
	w.wantRun(w.works(id), map[string]any{"state": runWaiting, "matched": 6, "revoked": 5, "debt": 1, "unreadable": 0})
	if live := len(w.keys.Live()); live != 1 {
		t.Errorf("%d keys live; want the one that does not match", live)
	}
	gamma.ClearFaults()
	w.pass(2 * time.Hour)
	w.wantRun(w.works(id), map[string]any{"state": runDone, "matched": 6, "revoked": 6, "debt": 0})
}

// Of several records that cannot be read each is met as soon as it can be, whichever was the first: the others may have been
// unreadable for a moment only.
func TestRevocationMeetsEachMendedRecord(t *testing.T) {
	w := newWorld(t)
	var mends []func()
	for _, issued := range w.deploys(5, nil)[:3] {
		mends = append(mends, w.spoil(filedAt(issued)))
	}
	id := w.starts(map[string]any{"issuer": "github"})
	w.wantRun(w.works(id), map[string]any{"state": runWaiting, "matched": 2, "revoked": 2, "unreadable": 3})
	for i, mend := range slices.Backward(mends) {
		mend()
		w.pass(time.Minute)
		if w.works(id); len(w.keys.Live()) != i {
			t.Errorf("%d keys live; want the %d that cannot be read", len(w.keys.Live()), i)
		}
	}
	w.wantRun(w.works(id), map[string]any{"state": runDone, "matched": 5, "revoked": 5, "unreadable": 0})
}

// A debt whose record cannot be read any more is not called revoked because another debt is left.
func TestRevocationBesideAnUnreadableDebt(t *testing.T) {
	w := newWorld(t)
	gamma := w.withGamma()
	gamma.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 403})
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 500})
	w.issue("gamma")
	_, rand, _ := splitID(w.issue("deploy").Data["id"].(string))
	id := w.starts(map[string]any{"issuer": "github"})
	w.wantRun(w.works(id), map[string]any{"state": runWaiting, "matched": 2, "revoked": 0, "debt": 2, "unreadable": 0})
	mend := w.spoil(openEntries + rand)
	w.keys.ClearFaults()
	for range 2 {
		w.pass(time.Minute)
		w.wantRun(w.works(id), map[string]any{"state": runWaiting, "matched": 2, "revoked": 0, "debt": 1, "unreadable": 1})
	}
	mend()
	w.pass(time.Minute)
	w.wantRun(w.works(id), map[string]any{"state": runWaiting, "matched": 2, "revoked": 1, "debt": 1, "unreadable": 0})
	if len(w.keys.Live()) != 0 {
		t.Error("it lives on")
	}
}

// Of more records than are known by name each is met too.
func TestRevocationBesideManyUnreadableRecords(t *testing.T) {
	w := newWorld(t)
	issued := w.deploys(maxUnread+1, nil)
	slices.SortFunc(issued, func(a, b *logical.Response) int { return strings.Compare(a.Data["id"].(string), b.Data["id"].(string)) })
	var mends []func()
	for _, one := range issued {
		mends = append(mends, w.spoil(filedAt(one)))
	}
	id := w.starts(map[string]any{"role": "deploy"})
	w.wantRun(w.works(id), map[string]any{"state": runWaiting, "unreadable": maxUnread + 1})
	mends[maxUnread]()
	w.pass(time.Minute)
	w.wantRun(w.works(id), map[string]any{"state": runWaiting, "unreadable": maxUnread, "revoked": 1})
}

// filedAt is where the ledger has a key.
func filedAt(resp *logical.Response) string {
	hour, rand, _ := splitID(resp.Data["id"].(string))
	return plainKeys + hour + "/" + rand
}

// spoil makes a stored record unreadable, until it is mended.
func (w *world) spoil(key string) (mend func()) {
	w.t.Helper()
	kept, err := w.store.Storage.Get(w.t.Context(), key)
	if err == nil {
		err = w.store.Storage.Put(w.t.Context(), &logical.StorageEntry{Key: key, Value: []byte("rubbish")})
	}
	if err != nil || kept == nil {
		w.t.Fatal(key, err)
	}
	return func() {
		w.t.Helper()
		if err := w.store.Storage.Put(w.t.Context(), kept); err != nil {
			w.t.Fatal(err)
		}
	}
}

// What cannot be revoked is told, with the time at which it ends; an exchange whose outcome is not known is no success.
func TestRevocationOfKeysThatOutliveIt(t *testing.T) {
	w := newWorld(t).withNuGet()
	if resp, err := w.exchange("publish", w.token(map[string]any{"aud": "https://www.nuget.org"})); err != nil || resp.IsError() {
		t.Fatal(err, resp)
	}
	w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonOutcomeUnknown {
		t.Fatalf("refused for %q", reason)
	}
	until := w.read("keys/" + w.exposed())["expires_at"]
	id := w.starts(map[string]any{"issuer": "github"})
	w.wantRun(w.works(id), map[string]any{"state": runWaiting, "matched": 2, "revoked": 0, "debt": 1, "exposed": 1})
	w.settleAll()
	w.wantRun(w.works(id), map[string]any{"state": runDone, "matched": 2, "revoked": 1, "debt": 0, "exposed": 1, "exposed_until": until})
	if len(w.keys.Live()) != 0 {
		t.Error("the key of an unknown outcome lives")
	}
}

// Keys that never end by themselves are not said to.
func TestRevocationOfEndlessKeys(t *testing.T) {
	w := newWorld(t)
	w.write("targets/acme", map[string]any{"profile": w.profile("accessor: string(response.json.id)\n    expires: timestamp(response.json.expires_at)", "accessor: string(response.json.id)"), "credential": "token=" + adminToken})
	w.issue("deploy")
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 500})
	w.wantRun(w.works(w.starts(map[string]any{"role": "deploy"})), map[string]any{"state": runWaiting, "debt": 1, "exposed_until": nil})
}

// The ledger is a cluster's own, blocks are not: a secondary cluster revokes its keys, and says where the block is written.
func TestRevocationOnASecondary(t *testing.T) {
	w := newWorld(t)
	w.deploys(2, nil)
	w.system.ReplicationStateVal = consts.ReplicationPerformanceSecondary
	w.refused("revocations", map[string]any{"role": "deploy", "dry_run": false}, "block")
	w.wantRun(w.works(w.starts(map[string]any{"role": "deploy", "block": false})), map[string]any{"state": runDone, "revoked": 2})
	w.wantSettled()

	w.system.ReplicationStateVal = consts.ReplicationPerformanceStandby // forwards whatever is asked
	for _, op := range []logical.Operation{logical.UpdateOperation} {
		if _, err := w.do(op, "revocations", map[string]any{"role": "deploy", "dry_run": false}); !errors.Is(err, logical.ErrReadOnly) {
			t.Errorf("on a standby: %v", err)
		}
	}
	w.resume(w.store)
	if len(w.list("revocations")) != 1 || len(w.runs.active) != 0 {
		t.Error("a standby works on a revocation")
	}
}

func TestOldRevocationsMakeRoom(t *testing.T) {
	w := newWorld(t)
	put := func(id, state string) {
		if err := revocationTable.put(t.Context(), w.store, id, &revocation{State: state}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range maxRevocations {
		put(fmt.Sprintf("2020010%dt000000-%02d", i%2+1, i/2), []string{runDone, runRunning}[i%2])
	}
	id := w.starts(map[string]any{"role": "deploy"})
	w.works(id)
	ids := w.list("revocations")
	if len(ids) != maxRevocations || slices.Contains(ids, "20200101t000000-00") || !slices.Contains(ids, "20200101t000000-01") {
		t.Errorf("%d are kept: %v", len(ids), ids)
	}
	for _, id := range ids {
		put(id, runRunning)
	}
	w.refused("revocations", map[string]any{"role": "deploy", "dry_run": false}, "dry_run")
}

// Of many lease prefixes the roles' are told.
func TestRevocationPrefixes(t *testing.T) {
	var c census
	for i := range maxPrefixes + 5 {
		c.addPrefix(&entry{Role: fmt.Sprint("r", i%3), LeasePath: fmt.Sprint("p", i)})
		if i == 1 && !cmp.Equal(c.Prefixes, []string{"creds/r0/p0", "creds/r1/p1"}) {
			t.Errorf("%v", c.Prefixes)
		}
	}
	c.addPrefix(&entry{Role: "other", LeasePath: "x"})
	c.addPrefix(&entry{Role: "static/ci"}) // which has no lease
	if !cmp.Equal(c.Prefixes, []string{"creds/other", "creds/r0", "creds/r1", "creds/r2"}) {
		t.Errorf("%v", c.Prefixes)
	}
}

// Of a debt that was paid, and whose removal was lost, nothing is left to revoke: what is open has no handle.
func TestRevocationMeetsAPaidDebt(t *testing.T) {
	w := newWorld(t)
	lease := w.issue("deploy")
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 403, Count: 1})
	if _, err := w.lease(logical.RevokeOperation, lease); err == nil {
		t.Fatal("revoking works")
	}
	w.store.set(func(op, key string) error {
		if op == "delete" && strings.HasPrefix(key, openEntries) {
			return errors.New("disk full")
		}
		return nil
	})
	if _, err := w.lease(logical.RevokeOperation, lease); err == nil {
		t.Fatal("the debt is removed")
	}
	w.store.set(nil)
	calls := w.keys.Calls(lab.OpRevoke)
	for _, restarted := range []bool{false, true} { // the key is not counted any more, or it is
		if restarted {
			w.restart()
		}
		w.wantRun(w.works(w.starts(map[string]any{"role": "deploy", "block": false})), map[string]any{"state": runDone, "debt": 0})
	}
	if n := w.keys.Calls(lab.OpRevoke) - calls; n != 0 || len(w.stored(openEntries)) != 1 {
		t.Errorf("%d calls; open are %v", n, w.stored(openEntries))
	}
	w.settleAll()
	w.wantSettled()
}
