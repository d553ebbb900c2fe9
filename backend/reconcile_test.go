// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// snapshot copies what is stored; restore puts a copy in its place, under an engine that starts on it.
func (w *world) snapshot() map[string][]byte {
	w.t.Helper()
	copied := map[string][]byte{}
	for _, key := range w.stored("") {
		entry, err := w.store.Storage.Get(w.t.Context(), key)
		if err != nil {
			w.t.Fatal(err)
		}
		copied[key] = entry.Value
	}
	return copied
}

func (w *world) restore(snapshot map[string][]byte) {
	w.t.Helper()
	w.store.Storage = &logical.InmemStorage{}
	for key, value := range snapshot {
		if err := w.store.Storage.Put(w.t.Context(), &logical.StorageEntry{Key: key, Value: value}); err != nil {
			w.t.Fatal(err)
		}
	}
	w.restart()
}

// plant makes a key at the key API, as somebody else does.
func (w *world) plant(project, name string) {
	w.t.Helper()
	body, err := json.Marshal(map[string]any{"name": name, "scopes": []string{}, "expires_at": w.clock.now().Add(time.Hour)})
	if err != nil {
		w.t.Fatal(err)
	}
	req := httptest.NewRequest(http.MethodPost, "/v1/projects/"+project+"/keys", bytes.NewReader(body))
	req.Header.Set("Authorization", "Bearer "+adminToken)
	req.Header.Set("Content-Type", "application/json")
	answer := httptest.NewRecorder()
	w.keys.ServeHTTP(answer, req)
	if answer.Code != http.StatusCreated {
		w.t.Fatalf("planting %q: %d", name, answer.Code)
	}
}

// nth is a name that this mount could have given.
func (w *world) nth(n int) string {
	return fmt.Sprintf("oidcx-%s-%s%s", w.instance(), strings.Repeat("a", 22), strings.NewReplacer("0", "q", "1", "r", "8", "s", "9", "t").Replace(fmt.Sprintf("%04d", n)))
}

func (w *world) instance() string { return w.read("config")["instance"].(string) }

// namesOf are the names of the keys that an answer has, or of those that live.
func namesOf(keys any) []string {
	names := []string{}
	switch keys := keys.(type) {
	case []map[string]any:
		for _, k := range keys {
			names = append(names, k["name"].(string))
		}
	case []lab.Key:
		for _, k := range keys {
			names = append(names, k.Name)
		}
	}
	slices.Sort(names)
	return names
}

// unwilling wants a refusal for bad input that says a text.
func (w *world) unwilling(name string, data map[string]any, text string) {
	w.t.Helper()
	resp, err := w.do(logical.UpdateOperation, "reconcile/"+name, data)
	if reason, _ := reasonOf(resp, err); reason != reasonBadRequest || !strings.Contains(resp.Error().Error(), text) {
		w.t.Errorf("reconcile/%s %v: %v %v; want %q", name, data, resp, err, text)
	}
}

// confirm revokes what was found.
func (w *world) confirm(count int) map[string]any {
	w.t.Helper()
	return w.write("reconcile/acme", map[string]any{"confirm": count, "instance": w.instance()}).Data
}

// What was issued after the snapshot is found and ended, and nothing else is: no key that the ledger or a static role has, none
// of another instance, and nothing that only looks alike.
func TestReconcile(t *testing.T) {
	w := newWorld(t).withStatic()
	kept := w.issue("deploy")
	before := w.snapshot()
	w.issue("deploy")
	lost := w.keys.Live()[2]
	instance := w.instance()
	end := strings.Repeat("a", 26)
	for _, name := range []string{
		"oidcx-another1-" + end, "oidcx-" + instance + "x-" + end, "oidcx-" + instance + end, "oidcx-" + instance + "-" + end[1:], "oidcx-" + instance + "-" + end + "a",
		"oidcx-" + instance + "-" + strings.ToUpper(end), "oidcx-" + instance + "-" + end[1:] + "-", "oidcs-another1-" + end, "oidcc-" + instance + "-" + end,
		"x-oidcx-" + instance + "-" + end, "by hand",
	} {
		w.plant("widget", name)
	}
	all := namesOf(w.keys.Live())
	w.restore(before)
	if ids := w.list("keys"); len(ids) != 1 {
		t.Fatalf("the restored ledger has %q", ids)
	}

	w.store.set(nil)
	told := w.read("reconcile/acme")
	want := map[string]any{
		"dry_run": true, "target": "acme", "instance": instance, "count": 1, "revoke": true, "whole": true,
		"keys":       []map[string]any{{"name": lost.Name, "accessor": lost.ID, "parameters": map[string]any{"project": "widget"}}},
		"places":     []map[string]any{{"parameters": map[string]any{"project": "widget"}, "whole": true, "state": "ok", "reason": "", "hint": ""}},
		"open_roles": []string{}, "credential": map[string]any{"state": "ok", "reason": "", "hint": ""},
		"static_keys": map[string]any{"ci": "known"}, "static_strays": []map[string]any{}, "replay_seconds": 3630,
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if again := w.write("reconcile/acme", nil).Data; again["dry_run"] != true || again["count"] != 1 {
		t.Errorf("a write without confirm: %v", again)
	}
	for _, op := range w.store.seen {
		if !strings.HasPrefix(op, "get ") && !strings.HasPrefix(op, "list ") {
			t.Errorf("a dry run did %s", op)
		}
	}
	for field, data := range map[string]map[string]any{
		"confirm: is 2, and 1 keys are lost": {"confirm": 2, "instance": instance}, "confirm: is 0": {"confirm": 0, "instance": instance}, "confirm: want a whole number of at least 0": {"confirm": -1, "instance": instance},
		"confirm: is required with instance": {"instance": instance}, "confirm: null": {"confirm": nil, "instance": instance},
		"instance: is required with confirm": {"confirm": 1}, "instance: is not this mount's": {"confirm": 1, "instance": "another1"}, "instance: null": {"confirm": 1, "instance": nil},
		"parameters: null": {"parameters": nil, "confirm": 1, "instance": instance}, "parameters: want the parameters that name a place, and no others: project": {"parameters": map[string]any{"project": "widget", "scopes": "read"}},
		"parameters: want the parameters that name a place": {"parameters": map[string]any{"project": "../secrets"}},
	} {
		w.unwilling("acme", data, field)
	}
	if reason, _ := reasonOf(w.do(logical.ReadOperation, "reconcile/acme", map[string]any{"confirm": 1, "instance": instance})); reason != reasonBadRequest {
		t.Errorf("a read that confirms: %q", reason)
	}
	if diff := cmp.Diff(all, namesOf(w.keys.Live())); diff != "" {
		t.Fatalf("what was refused changed what lives (-before +now):\n%s", diff)
	}

	done := w.confirm(1)
	for name, want := range map[string]any{"dry_run": false, "count": 1, "revoked": 1, "failed": 0, "left": 0, "whole": true} {
		if done[name] != want {
			t.Errorf("%s is %v; want %v", name, done[name], want)
		}
	}
	if key := done["keys"].([]map[string]any)[0]; key["name"] != lost.Name || key["state"] != "revoked" {
		t.Errorf("what became of it: %v", key)
	}
	if diff := cmp.Diff(slices.DeleteFunc(all, func(name string) bool { return name == lost.Name }), namesOf(w.keys.Live())); diff != "" {
		t.Errorf("what lives (-want +got):\n%s", diff)
	}
	if renewed, err := w.lease(logical.RenewOperation, kept); err != nil || renewed.IsError() {
		t.Errorf("renewing what was not lost: %v %v", renewed, err)
	}
	if done := w.confirm(0); done["count"] != 0 || len(w.list("keys")) != 1 || len(w.stored(openEntries)) != 0 {
		t.Errorf("a second time: %v; the ledger has %q", done, w.list("keys"))
	}
	w.revoke(kept)
}

// What this process is asking for lives at the target before it is filed, and what is owed or unsettled is the sweeper's: none
// of it is lost.
func TestReconcileLeavesWhatIsUnderWay(t *testing.T) {
	w := newWorld(t)
	seen := 0
	w.keys.OnRequest(func(op string, stage lab.Stage) {
		if op == lab.OpCreate && stage == lab.StageDone {
			seen++
			if told := w.read("reconcile/acme"); told["count"] != 0 || len(w.keys.Live()) != 1 {
				t.Errorf("of %d keys that live one is lost: %v", len(w.keys.Live()), told["keys"])
			}
		}
	})
	w.revoke(w.issue("deploy"))
	w.keys.OnRequest(nil)
	w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	if _, err := w.exchange("deploy", w.token(nil)); err == nil {
		t.Fatal("the answer is not lost")
	}
	owed := w.issue("deploy")
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 500, Count: 1})
	if _, err := w.lease(logical.RevokeOperation, owed); err == nil {
		t.Fatal("the key is revoked")
	}
	if told := w.read("reconcile/acme"); told["count"] != 0 || seen != 1 || len(w.keys.Live()) != 2 {
		t.Errorf("one of %d keys is lost: %v", len(w.keys.Live()), told["keys"])
	}
	w.settleAll()
	if living := w.keys.Live(); len(living) != 0 {
		t.Errorf("%v live on", living)
	}
}

// A key that cannot be ended now is in the ledger from then on, and the sweeper ends it. What the target says of it stays out of
// the answer.
func TestReconcileOwesWhatFails(t *testing.T) {
	w := newWorld(t)
	w.write("config", nil)
	w.plant("widget", w.nth(1))
	w.plant("widget", w.nth(2))
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 403, Count: 1})
	done := w.confirm(2)
	if done["revoked"] != 1 || done["failed"] != 1 || done["left"] != 0 {
		t.Errorf("%v", done)
	}
	for _, key := range done["keys"].([]map[string]any) {
		if failed := key["state"] == "failed"; failed != (key["reason"] == reasonTargetDenied) || failed != (key["hint"] != nil) {
			t.Errorf("%v", key)
		}
	}
	if text := fmt.Sprint(done); strings.Contains(text, "injected fault") || strings.Contains(text, adminToken) {
		t.Errorf("the answer has what the target said, or the credential: %s", text)
	}
	ids := w.list("keys")
	if len(ids) != 1 {
		t.Fatalf("the ledger has %q; want what failed", ids)
	}
	if e := w.read("keys/" + ids[0]); e["state"] != stateDebt || e["role"] != "reconcile/acme" || e["name"] != w.keys.Live()[0].Name {
		t.Errorf("%v", e)
	}
	if told := w.read("reconcile/acme"); told["count"] != 0 {
		t.Errorf("what the ledger owes is lost: %v", told["keys"])
	}
	w.settleAll()
	if living := w.keys.Live(); len(living) != 0 || len(w.ledgerEntries()) != 0 {
		t.Errorf("%v live on; the ledger has %q", living, w.ledgerEntries())
	}
}

// Nothing is revoked that the ledger did not take over before.
func TestReconcileRecordsFirst(t *testing.T) {
	for _, prefix := range []string{plainKeys, openEntries} {
		w := newWorld(t)
		w.write("config", nil)
		w.plant("widget", w.nth(1))
		w.store.set(func(op, key string) error {
			if op == "put" && strings.HasPrefix(key, prefix) {
				return errors.New("no")
			}
			return nil
		})
		if done := w.confirm(1); done["failed"] != 1 || len(w.keys.Live()) != 1 || w.keys.Calls(lab.OpRevoke) != 0 {
			t.Errorf("%s: %v; %d keys live after %d calls", prefix, done, len(w.keys.Live()), w.keys.Calls(lab.OpRevoke))
		}
	}
}

// unlisted is storage of which one folder cannot be listed.
type unlisted struct {
	logical.Storage
	prefix string
}

func (s unlisted) List(ctx context.Context, prefix string) ([]string, error) {
	if prefix == s.prefix {
		return nil, errors.New("no")
	}
	return s.Storage.List(ctx, prefix)
}

// What the ledger has must be known in full: nothing is lost as long as it cannot be read.
func TestReconcileNeedsTheLedger(t *testing.T) {
	w := newWorld(t).withStatic()
	w.issue("deploy")
	whole := w.store.Storage
	for _, prefix := range []string{openEntries, plainKeys, sealedKeys, staticStates} {
		w.store.Storage = unlisted{whole, prefix}
		for _, data := range []map[string]any{nil, {"confirm": 0, "instance": w.instance()}} {
			if reason, status := reasonOf(w.do(logical.UpdateOperation, "reconcile/acme", data)); reason != reasonStorage || status != 500 {
				t.Errorf("without a list of %s: %q, %d", prefix, reason, status)
			}
		}
	}
}

// One request does a bounded part, and says what is left; the next one does the rest.
func TestReconcileGoesOn(t *testing.T) {
	w := newWorld(t)
	w.write("config", nil)
	for n := range reconcileKeys + 1 {
		w.plant("widget", w.nth(n))
	}
	if told := w.read("reconcile/acme"); told["count"] != reconcileKeys+1 || len(told["keys"].([]map[string]any)) != reconcileKeys {
		t.Fatalf("%v are lost, %d are shown", told["count"], len(told["keys"].([]map[string]any)))
	}
	if done := w.confirm(reconcileKeys + 1); done["revoked"] != reconcileKeys || done["left"] != 1 || len(w.keys.Live()) != 1 {
		t.Errorf("%v were revoked, %v are left, %d live", done["revoked"], done["left"], len(w.keys.Live()))
	}
	w.unwilling("acme", map[string]any{"confirm": reconcileKeys + 1, "instance": w.instance()}, "confirm")
	if done := w.confirm(1); done["revoked"] != 1 || done["left"] != 0 || len(w.keys.Live()) != 0 || len(w.ledgerEntries()) != 0 {
		t.Errorf("%v; %d live, the ledger has %q", done, len(w.keys.Live()), w.ledgerEntries())
	}
}

// Keys are looked for where roles, static roles and the ledger's keys have theirs; roles that leave the place to their callers
// are named, and other places can be given.
func TestReconcilePlaces(t *testing.T) {
	w := newWorld(t).withStatic()
	w.write("roles/free", map[string]any{"trust": "main", "target": "acme", "allowed_parameters": "project"})
	w.write("roles/mapped", map[string]any{"trust": "main", "target": "acme", "parameters_from": map[string]any{"project": "claims.repository"}})
	w.write("roles/scoped", map[string]any{"trust": "main", "target": "acme", "parameters": "project=gadget", "allowed_parameters": "scopes"})
	w.write("static-roles/ci2", map[string]any{"target": "acme", "parameters": "project=static", "rotation_period": "24h"})
	if resp, err := w.do(logical.UpdateOperation, "creds/free", map[string]any{"subject_token": w.token(nil), "parameters": "project=known"}); err != nil || resp.IsError() {
		t.Fatal(resp, err)
	}
	all := []string{"widget", "gadget", "static", "known", "elsewhere"}
	for i, project := range all {
		w.plant(project, w.nth(i))
	}
	told := w.read("reconcile/acme")
	places := []string{}
	for _, place := range told["places"].([]map[string]any) {
		places = append(places, place["parameters"].(map[string]any)["project"].(string))
	}
	slices.Sort(places)
	if diff := cmp.Diff([]string{"gadget", "known", "static", "widget"}, places); diff != "" || told["count"] != 4 {
		t.Errorf("%v are lost (-want +got):\n%s", told["count"], diff)
	}
	if diff := cmp.Diff([]string{"role free", "role mapped"}, told["open_roles"]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	data := map[string]any{"parameters": "project=elsewhere"}
	if told := w.write("reconcile/acme", data).Data; told["count"] != 1 || len(told["places"].([]map[string]any)) != 1 {
		t.Errorf("%v are lost in %v", told["count"], told["places"])
	}
	maps.Copy(data, map[string]any{"confirm": 1, "instance": w.instance()})
	if done := w.write("reconcile/acme", data).Data; done["revoked"] != 1 || done["keys"].([]map[string]any)[0]["name"] != w.nth(4) {
		t.Errorf("%v", done)
	}
	if done := w.confirm(4); done["revoked"] != 4 || len(w.keys.Live()) != 3 {
		t.Errorf("%v; %d live", done, len(w.keys.Live()))
	}
}

// A list that is not seen to its end is never taken for whole, and one that fails says why.
func TestReconcileOfWhatIsNotSeen(t *testing.T) {
	w := newWorld(t)
	w.write("config", nil)
	w.write("roles/gadget", map[string]any{"trust": "main", "target": "acme", "parameters": "project=gadget"})
	w.plant("widget", w.nth(1))
	w.plant("gadget", w.nth(2))
	w.keys.Fault(lab.OpFind, lab.Fault{Kind: lab.KindStatus, Status: 403, Count: 1})
	told := w.read("reconcile/acme")
	if told["whole"] != false || told["count"] != 1 {
		t.Errorf("whole is %v, %v are lost", told["whole"], told["count"])
	}
	failed, good := told["places"].([]map[string]any)[0], told["places"].([]map[string]any)[1]
	if failed["state"] != "failed" || failed["reason"] != reasonTargetDenied || failed["hint"] == "" || failed["whole"] != false || good["state"] != "ok" || good["whole"] != true {
		t.Errorf("%v, %v", failed, good)
	}
	if text := fmt.Sprint(told, w.logs); strings.Contains(text, "injected fault") || strings.Contains(text, adminToken) {
		t.Errorf("the answer or the log has what the target said, or the credential: %s", text)
	}
	w.unwilling("acme", map[string]any{"confirm": 1, "instance": w.instance()}, "confirm: is 1, and 2 keys are lost")

	endless := w.profile("  listed: 'response.json.keys.map(k, {\"name\": k.name, \"accessor\": string(k.id)})'\n  next: '{}'", "  listed: 'response.json.keys.map(k, {\"name\": k.name, \"accessor\": string(k.id)})'\n  next: '{\"page\": page + 1}'")
	w.write("targets/acme", map[string]any{"profile": endless, "credential": "token=" + adminToken})
	if told := w.read("reconcile/acme"); told["whole"] != false || told["count"] != 2 || told["places"].([]map[string]any)[0]["whole"] != false {
		t.Errorf("of a list without an end: %v", told)
	}
}

// A target that cannot list says so, and how long what is lost there can live.
func TestReconcileWhereNothingIsListed(t *testing.T) {
	w := newWorld(t).withNuGet()
	by := w.clock.now().Add(time.Hour).UTC().Format(time.RFC3339)
	w.unwilling("nuget", nil, `target: "nuget" cannot list keys by name`)
	w.unwilling("nuget", nil, "all have expired by "+by)
	start := strings.Index(acme, "\nlist:")
	profile := acme[:start] + acme[start+strings.Index(acme[start:], "\ncheck:"):]
	w.write("targets/acme", map[string]any{"profile": profile, "credential": "token=" + adminToken})
	w.unwilling("acme", nil, "their expiry is not known here")
	if resp, err := w.do(logical.ReadOperation, "reconcile/nobody", nil); resp != nil || err != nil {
		t.Errorf("a target that does not exist: %v, %v; want neither, which is a 404", resp, err)
	}
}

// A restore rolls back more than leased keys: what the target knows better is told.
func TestReconcileTellsWhatElseIsOld(t *testing.T) {
	w := newWorld(t).withStatic()
	before := w.snapshot()
	w.pass(24*time.Hour + 2*time.Hour) // the key is rotated, and the old one revoked
	rotated := w.keys.Live()
	if len(rotated) != 1 {
		t.Fatalf("%v live; want the new key", rotated)
	}
	w.restore(before)
	w.keys.Fault(lab.OpCheck, lab.Fault{Kind: lab.KindStatus, Status: 401, Count: 1})
	told := w.read("reconcile/acme")
	if diff := cmp.Diff(map[string]any{"ci": "unknown"}, told["static_keys"]); diff != "" || told["count"] != 0 {
		t.Errorf("%v are lost; static keys (-want +got):\n%s", told["count"], diff)
	}
	if strays := told["static_strays"].([]map[string]any); len(strays) != 1 || strays[0]["name"] != rotated[0].Name || strays[0]["accessor"] != rotated[0].ID {
		t.Errorf("strays are %v; want %v", strays, rotated[0])
	}
	if credential := told["credential"].(map[string]any); credential["state"] != "failed" || credential["reason"] != reasonTargetDenied || credential["hint"] == "" {
		t.Errorf("the credential: %v", credential)
	}
	w.write("issuers/github", map[string]any{"single_use": false})
	if told := w.read("reconcile/acme"); told["replay_seconds"] != 0 {
		t.Errorf("tokens are good again for %v s; none is for one use", told["replay_seconds"])
	}
	w.keys.Fault(lab.OpFind, lab.Fault{Kind: lab.KindStatus, Status: 500, Count: 1})
	if told := w.read("reconcile/acme"); told["static_keys"].(map[string]any)["ci"] != "unclear" {
		t.Errorf("without a list the key is %v", told["static_keys"])
	}
}

// However many static roles there are and however long the target takes, their keys are asked for within a bound; the rest is
// unclear. The limiter's waits are by the bubble's clock, and a connection that is closed at once takes none of it.
func TestReconcileAsksForStaticKeysInTime(t *testing.T) {
	w := newWorld(t)
	g := w.withStaticGitLab()
	w.write("targets/gitlab", map[string]any{"allowed_roles": "static/*"})
	want := map[string]any{"widget": "unclear", "second": "unclear", "third": "unclear", "fourth": "unclear"}
	for name := range want {
		w.write("static-roles/"+name, map[string]any{"target": "gitlab", "rotation_period": "720h", "parameters": w.read("static-roles/widget")["parameters"]})
	}
	w.write("targets/gitlab", map[string]any{"rate": 0.125})
	w.doors[g].shut.Store(true)
	synctest.Test(t, func(t *testing.T) {
		w.restart()
		defer w.Cleanup(t.Context())
		at, err := w.target(t.Context(), w.store, "gitlab")
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		fates, err := (&reconciling{engine: w.engine, s: w.store, target: at}).staticFates(t.Context())
		if diff := cmp.Diff(want, fates); diff != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
		if took := time.Since(start); took < 8*time.Second || took > reconcileFates {
			t.Errorf("asking took %v; want at most %v, and the turns of two keys", took, reconcileFates)
		}
	})
}

// Clusters that share a mount share its instance, and none has the others' ledger: nothing is revoked there.
func TestReconcileOfASharedMount(t *testing.T) {
	w := newWorld(t)
	w.write("config", nil)
	w.plant("widget", w.nth(1))
	data := map[string]any{"confirm": 1, "instance": w.instance()}
	for _, state := range []consts.ReplicationState{consts.ReplicationPerformancePrimary, consts.ReplicationPerformanceSecondary} {
		w.system.ReplicationStateVal = state
		if resp := w.write("reconcile/acme", nil); resp.Data["count"] != 1 || !strings.Contains(fmt.Sprint(resp.Warnings), "other clusters") {
			t.Errorf("%v %q", resp.Data, resp.Warnings)
		}
		w.unwilling("acme", data, "confirm: is refused: Vault replicates this mount")
	}
	w.system.ReplicationStateVal = consts.ReplicationPerformanceStandby // it has no ledger in memory, and may not write
	for _, op := range []logical.Operation{logical.ReadOperation, logical.UpdateOperation} {
		if _, err := w.do(op, "reconcile/acme", nil); !errors.Is(err, logical.ErrReadOnly) {
			t.Errorf("on a standby: %v", err)
		}
	}
	w.system.ReplicationStateVal, w.system.LocalMountVal = consts.ReplicationPerformancePrimary, true
	if done := w.confirm(1); done["revoked"] != 1 {
		t.Errorf("of a mount that is local to its cluster: %v", done)
	}
}

// A copy that took another instance never sees the keys of the mount that it was copied from.
func TestReconcileByAnotherInstance(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	w.issue("deploy")
	w.restore(before)
	was := w.instance()
	w.write("config", map[string]any{"instance": "copy1"})
	if told := w.read("reconcile/acme"); told["count"] != 0 || told["instance"] != "copy1" {
		t.Errorf("%v", told)
	}
	w.write("config", map[string]any{"instance": was})
	if told := w.read("reconcile/acme"); told["count"] != 1 {
		t.Errorf("under the instance that it was issued under: %v", told)
	}
}
