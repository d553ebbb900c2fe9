// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// withStatic adds a static role ci at the key API, rotated daily.
func (w *world) withStatic() *world {
	w.t.Helper()
	w.write("targets/acme", map[string]any{"allowed_roles": "*,static/*"})
	w.write("static-roles/ci", map[string]any{"target": "acme", "parameters": "project=widget", "rotation_period": "24h", "overlap": "1h"})
	return w
}

// pass moves the clock minute by minute, with Vault's periodic call in each.
func (w *world) pass(d time.Duration) {
	w.t.Helper()
	for ; d > 0; d -= time.Minute {
		w.clock.advance(time.Minute)
		w.periodic()
	}
}

// liveKeys are the ids of the keys that live at the key API.
func (w *world) liveKeys() []string {
	ids := []string{}
	for _, key := range w.keys.Live() {
		ids = append(ids, key.ID)
	}
	return ids
}

// staticHealth is what status says of a static role.
func (w *world) staticHealth(name string) map[string]any {
	w.t.Helper()
	known, _ := w.read("status")["static_roles"].(map[string]any)[name].(map[string]any)
	return known
}

func TestStaticRole(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withStatic()
	first := w.read("static-creds/ci")
	name := w.keys.Live()[0].Name
	if !strings.HasPrefix(name, "oidcs-") {
		t.Errorf("the key's name is %q; want one that no search for leased keys finds", name)
	}
	want := map[string]any{
		"api_key": first["api_key"], "accessor": "key-0001", "predecessor": "", "target": "acme", "header_name": "X-Acme-Key",
		"expires_at":          w.clock.now().Add(49 * time.Hour).UTC().Format(time.RFC3339), // the next rotation, a day for one that fails, the overlap
		"last_vault_rotation": w.clock.now().UTC().Format(time.RFC3339),
		"ttl":                 int64(24 * 3600), "rotation_period": int64(24 * 3600), "rotation_schedule": "", "rotation_window": int64(0),
	}
	want["accessor"] = w.keys.Live()[0].ID
	if diff := cmp.Diff(want, first); diff != "" || !w.keys.Valid(first["api_key"].(string)) {
		t.Errorf("(-want +got):\n%s", diff)
	}

	w.clock.advance(24*time.Hour - time.Second)
	w.periodic()
	if again := w.read("static-creds/ci"); again["api_key"] != first["api_key"] || again["ttl"] != int64(leastTTL/time.Second) {
		t.Errorf("before it is due: accessor %v, ttl %v", again["accessor"], again["ttl"])
	}
	w.clock.advance(time.Second)
	w.periodic()
	second := w.read("static-creds/ci")
	if second["api_key"] == first["api_key"] || second["predecessor"] != first["accessor"] || second["ttl"] != int64(24*3600) {
		t.Errorf("after it was due: %v is followed by %v", first["accessor"], second["accessor"])
	}
	w.pass(59 * time.Minute)
	if !w.keys.Valid(first["api_key"].(string)) || !w.keys.Valid(second["api_key"].(string)) {
		t.Error("one of the two keys is dead within the overlap")
	}
	w.pass(time.Minute)
	if diff := cmp.Diff([]string{second["accessor"].(string)}, w.liveKeys()); diff != "" || len(w.ledgerEntries()) != 0 {
		t.Errorf("after the overlap, ledger %q (-want +live):\n%s", w.ledgerEntries(), diff)
	}

	resp := w.write("rotate-role/ci", nil)
	if resp.Data["predecessor"] != second["accessor"] || resp.Data["api_key"] != nil || w.read("static-creds/ci")["accessor"] != resp.Data["accessor"] {
		t.Errorf("rotate-role answers %v", resp.Data)
	}
	record := w.read("static-roles/ci")
	if record["rotation_period"].(interface{ String() string }).String() != "86400" || record["api_key"] != nil {
		t.Errorf("the role reads %v", record)
	}
	if _, shown := record["import_set"]; shown {
		t.Error("the role says of an import whether it is set, and keeps none")
	}
	for _, secret := range []any{first["api_key"], second["api_key"]} {
		if strings.Contains(w.logs.String(), secret.(string)) || strings.Contains(fmt.Sprint(w.read("status")), secret.(string)) {
			t.Error("a key is in the log or in status")
		}
	}
}

// Every write of a rotation fails once, and every write from one on, in a process that ends then: there is always a key
// that lives to be read, in the end no other lives, and the rotation came about once.
func TestRotationWithFailingStorage(t *testing.T) {
	t.Parallel()
	eachWriteFails(t, func(t *testing.T, _ int, arm func(*world)) {
		w := newWorld(t).withStatic()
		first := w.read("static-creds/ci")["accessor"]
		w.clock.advance(24 * time.Hour)
		arm(w)
		w.periodic()
		w.store.set(nil)
		w.restart()
		if !w.keys.Valid(w.read("static-creds/ci")["api_key"].(string)) {
			t.Error("the key that is read is dead")
		}
		w.pass(75 * time.Minute)
		got := w.read("static-creds/ci")
		if diff := cmp.Diff([]string{got["accessor"].(string)}, w.liveKeys()); diff != "" || got["predecessor"] != first {
			t.Errorf("%v follows %v, with %d asked for (-read +live):\n%s", got["accessor"], got["predecessor"], w.keys.Calls(lab.OpCreate), diff)
		}
		if len(w.ledgerEntries()) != 0 {
			t.Errorf("the ledger has %q", w.ledgerEntries())
		}
	})
}

// Whatever the target does with the call for a new key: the old one stays good, nobody asks twice under one name, and what
// may have been made is ended.
func TestRotationWithFailingTarget(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]lab.Fault{
		"denied":      {Kind: lab.KindStatus, Status: 403},
		"busy":        {Kind: lab.KindStatus, Status: 429},
		"500 after":   {Kind: lab.KindStatus, Status: 500, After: true},
		"cut before":  {Kind: lab.KindCut},
		"cut after":   {Kind: lab.KindCut, After: true},
		"rubbish":     {Kind: lab.KindHTML},
		"wrong types": {Kind: lab.KindWrongTypes},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t).withStatic()
			first := w.read("static-creds/ci")
			fault.Count = 2
			w.keys.Fault(lab.OpCreate, fault)
			w.clock.advance(24 * time.Hour)
			w.periodic()
			got := w.read("static-creds/ci")
			delete(first, "ttl")
			delete(got, "ttl")
			if diff := cmp.Diff(first, got); diff != "" || !w.keys.Valid(got["api_key"].(string)) || w.staticHealth("ci")["last_error"] == "" {
				t.Errorf("after a failure: last_error %v (-before +now):\n%s", w.staticHealth("ci")["last_error"], diff)
			}
			w.pass(80 * time.Minute)
			got = w.read("static-creds/ci")
			if diff := cmp.Diff([]string{got["accessor"].(string)}, w.liveKeys()); diff != "" || got["predecessor"] != first["accessor"] || w.staticHealth("ci")["last_error"] != "" || w.keys.Calls(lab.OpCreate) != 4 {
				t.Errorf("%v after %d calls, last_error %v (-read +live):\n%s", got["accessor"], w.keys.Calls(lab.OpCreate), w.staticHealth("ci")["last_error"], diff)
			}
			if len(w.ledgerEntries()) != 0 {
				t.Errorf("the ledger has %q", w.ledgerEntries())
			}
		})
	}
}

// withStaticGitLab adds a static role of a project's token, which GitLab itself replaces.
func (w *world) withStaticGitLab() *lab.GitLab {
	w.t.Helper()
	g := w.withGitLab()
	w.write("targets/gitlab", map[string]any{"allowed_roles": "static/widget"})
	w.write("static-roles/widget", map[string]any{"target": "gitlab", "rotation_period": "720h", "overlap": 0,
		"parameters": map[string]any{"kind": "project", "id": "1", "scopes": "read_repository", "access_level": "reporter"}})
	return g
}

func TestRotationInPlace(t *testing.T) {
	w := newWorld(t)
	g := w.withStaticGitLab()
	first := w.read("static-creds/widget")
	w.clock.advance(30 * 24 * time.Hour)
	w.periodic()
	second := w.read("static-creds/widget")
	if g.Valid(first["api_key"].(string)) || !g.Valid(second["api_key"].(string)) || g.Calls(lab.OpRotate) != 1 || g.Calls(lab.OpCreate) != 1 || len(g.Live()) != 1 {
		t.Errorf("%v follows %v after %d rotations and %d creations", second["accessor"], first["accessor"], g.Calls(lab.OpRotate), g.Calls(lab.OpCreate))
	}
	// What the role asks for now is not what the key has, and rotating would not change that.
	w.write("static-roles/widget", map[string]any{"parameters": map[string]any{"kind": "project", "id": "1", "scopes": "read_api", "access_level": "reporter"}})
	w.write("rotate-role/widget", nil)
	w.pass(2 * time.Minute)
	if live := g.Live(); len(live) != 1 || live[0].Scopes[0] != "read_api" || g.Calls(lab.OpRotate) != 1 {
		t.Errorf("live: %v after %d rotations", live, g.Calls(lab.OpRotate))
	}
}

// The answer to a rotation in place is lost. The old key is never rotated again, for GitLab would take that for theft: a new
// one is made with the credential, and whatever lives under the old one's name is ended.
func TestLostRotationInPlace(t *testing.T) {
	for name, fault := range map[string]lab.Fault{
		"done":     {Kind: lab.KindCut, After: true},
		"not done": {Kind: lab.KindCut},
		"nonsense": {Kind: lab.KindHTML},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			g := w.withStaticGitLab()
			first := w.read("static-creds/widget")["accessor"]
			fault.Count = 1
			g.Fault(lab.OpRotate, fault)
			w.clock.advance(30 * 24 * time.Hour)
			w.periodic()
			resp, err := w.do(logical.ReadOperation, "static-creds/widget", nil)
			if err != nil || len(resp.Warnings) != 1 || resp.Data["accessor"] != first {
				t.Errorf("in doubt: %v %v", resp, err)
			}
			w.pass(10 * time.Minute)
			got := w.read("static-creds/widget")
			if len(g.Live()) != 1 || !g.Valid(got["api_key"].(string)) || got["predecessor"] != first || g.Calls(lab.OpRotate) != 1 {
				t.Errorf("live: %v, read: %v, after %d rotations", g.Live(), got["accessor"], g.Calls(lab.OpRotate))
			}
			if len(w.ledgerEntries()) != 0 {
				t.Errorf("the ledger has %q", w.ledgerEntries())
			}
		})
	}
}

// withImport adds a static role of a token that exists already: the engine's user's own.
func (w *world) withImport(overlap any) (g *lab.GitLab, imported string) {
	w.t.Helper()
	g = w.withGitLab()
	imported = g.AddToken(1, 90, "read_api")
	w.write("targets/gitlab", map[string]any{"allowed_roles": "static/own", "condition": ""})
	w.write("static-roles/own", map[string]any{"target": "gitlab", "rotation_period": "720h", "overlap": overlap, "import": imported + "\n", // from a file that an editor wrote
		"parameters": map[string]any{"kind": "personal", "id": "1", "scopes": "read_api"}})
	return g, imported
}

func TestImport(t *testing.T) {
	w := newWorld(t)
	g, imported := w.withImport(0)
	if got := w.read("static-creds/own"); got["api_key"] != imported || got["accessor"] != "2" || g.Calls(lab.OpRotate)+g.Calls(lab.OpCreate) != 0 {
		t.Errorf("read: %v", got["accessor"])
	}
	w.clock.advance(30 * 24 * time.Hour)
	w.periodic()
	if got := w.read("static-creds/own"); got["predecessor"] != "2" || !g.Valid(got["api_key"].(string)) || g.Valid(imported) {
		t.Errorf("after a rotation: %v follows %v", got["accessor"], got["predecessor"])
	}

	// What is none of the keys that parameters name must not be taken: the engine would end others by its id.
	bob := g.AddUser(lab.GitLabUser{Name: "bob"})
	for name, value := range map[string]string{"no key": "glpat-nobody", "another's": g.AddToken(bob, 90, "read_api"), "dead": imported} {
		before := w.read("static-creds/own")["api_key"]
		resp, err := w.do(logical.UpdateOperation, "static-roles/own", map[string]any{"import": value, "description": name})
		if reason, _ := reasonOf(resp, err); reason != reasonBadRequest || w.read("static-creds/own")["api_key"] != before || w.read("static-roles/own")["description"] != "" {
			t.Errorf("%s: %v %v", name, resp, err)
		}
	}
	// A question makes no key, so nobody is told that one may live.
	for _, op := range []string{lab.OpCheck, lab.OpFind} {
		g.Fault(op, lab.Fault{Kind: lab.KindStatus, Status: 500, Count: 1})
		resp, err := w.do(logical.UpdateOperation, "static-roles/own", map[string]any{"import": g.AddToken(1, 90, "read_api")})
		if reason, _ := reasonOf(resp, err); reason != reasonTargetBusy {
			t.Errorf("%s failed: %v %v; want %s", op, resp, err, reasonTargetBusy)
		}
	}
	if strings.Contains(w.logs.String(), imported) {
		t.Error("the imported key is in the log")
	}
}

// Others may have tokens of an imported one's name, so after a lost rotation nothing is ended by it: the role stops, says so,
// and goes on with the next value that is imported.
func TestLostRotationOfAnImport(t *testing.T) {
	w := newWorld(t)
	g, _ := w.withImport(0)
	g.Fault(lab.OpRotate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	w.clock.advance(30 * 24 * time.Hour)
	w.pass(40 * time.Minute)
	if resp, err := w.do(logical.UpdateOperation, "rotate-role/own", nil); g.Calls(lab.OpRotate) != 1 || g.Calls(lab.OpCreate) != 0 {
		t.Errorf("%d rotations, %d creations; rotate-role: %v %v", g.Calls(lab.OpRotate), g.Calls(lab.OpCreate), resp, err)
	} else if reason, status := reasonOf(resp, err); reason != reasonOutcomeUnknown || status != http.StatusUnprocessableEntity {
		t.Errorf("rotate-role: %s, %d", reason, status)
	}
	static := w.staticHealth("own")
	if static["rotation"] != "unknown" || !strings.Contains(w.logs.String(), "an operator must act") {
		t.Errorf("status: %v", static)
	}
	fresh := g.AddToken(1, 90, "read_api")
	w.write("static-roles/own", map[string]any{"import": fresh})
	w.clock.advance(30 * 24 * time.Hour)
	w.periodic()
	if state := w.staticHealth("own")["rotation"]; state != "idle" || g.Calls(lab.OpRotate) != 2 || !g.Valid(w.read("static-creds/own")["api_key"].(string)) {
		t.Errorf("after an import: %v", state)
	}
}

func TestStaticRolesThatAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withNuGet().withStatic()
	w.write("targets/nuget", map[string]any{"allowed_roles": "static/*"})
	whole := map[string]any{"target": "acme", "parameters": "project=widget", "rotation_period": "24h"}
	for name, c := range map[string]struct {
		change map[string]any
		field  string
	}{
		"no target":             {map[string]any{"target": "nobody"}, "target"},
		"no schedule":           {map[string]any{"rotation_period": 0}, "rotation_period"},
		"a period too short":    {map[string]any{"rotation_period": "30s"}, "rotation_period"},
		"a bad schedule":        {map[string]any{"rotation_period": 0, "rotation_schedule": "daily"}, "rotation_schedule"},
		"overlap of a period":   {map[string]any{"overlap": "24h"}, "overlap"},
		"parameters":            {map[string]any{"parameters": "name=widget"}, "parameters.name"},
		"a target that can't":   {map[string]any{"target": "nuget", "parameters": "username=jim"}, "target"},
		"import, none can tell": {map[string]any{"import": "key-canary"}, "import"},
	} {
		data := map[string]any{}
		for _, from := range []map[string]any{whole, c.change} {
			for field, value := range from {
				data[field] = value
			}
		}
		resp, err := w.do(logical.UpdateOperation, "static-roles/new", data)
		if err != nil || !resp.IsError() || !strings.HasPrefix(resp.Error().Error(), "bad_request: "+c.field+": ") {
			t.Errorf("%s: %v %v; want field %s", name, resp, err, c.field)
		}
	}
	w.write("targets/acme", map[string]any{"allowed_roles": "*"}) // which is for roles alone
	if resp, err := w.do(logical.UpdateOperation, "static-roles/new", whole); err != nil || !resp.IsError() {
		t.Errorf("a target that does not list it: %v %v", resp, err)
	}
	w.write("targets/acme", map[string]any{"allowed_roles": "static/*"})
	if resp, err := w.do(logical.UpdateOperation, "static-roles/ci", map[string]any{"target": "nuget"}); err != nil || !resp.IsError() {
		t.Errorf("another target: %v %v", resp, err)
	}
	if live := len(w.liveKeys()); live != 1 {
		t.Errorf("%d keys live; want the one", live)
	}
	if reason, _ := reasonOf(w.do(logical.ReadOperation, "static-creds/nobody", nil)); reason != reasonUnknownRole {
		t.Errorf("a role that does not exist: %s", reason)
	}
	w.write("static-roles/ci", map[string]any{"enabled": false})
	w.pass(25 * time.Hour)
	if reason, _ := reasonOf(w.do(logical.ReadOperation, "static-creds/ci", nil)); reason != reasonDisabled || w.keys.Calls(lab.OpCreate) != 1 {
		t.Errorf("a role that is disabled: %s, %d keys", reason, w.keys.Calls(lab.OpCreate))
	}
	w.write("static-roles/ci", map[string]any{"enabled": true})
	for want, change := range map[string]map[string]any{reasonDisabled: {"enabled": false}, reasonRoleNotAllowed: {"enabled": true, "allowed_roles": "*"}} {
		w.write("targets/acme", change)
		if reason, _ := reasonOf(w.do(logical.ReadOperation, "static-creds/ci", nil)); reason != want {
			t.Errorf("a target with %v: %q; want %s", change, reason, want)
		}
	}
	// A target that config no longer allows cannot be used, but its key is here.
	w.write("targets/acme", map[string]any{"enabled": true, "allowed_roles": "static/*"})
	w.write("config", map[string]any{"egress_hosts": "elsewhere.example"})
	if got := w.read("static-creds/ci"); !w.keys.Valid(got["api_key"].(string)) {
		t.Error("the key that is read is dead")
	}
}

// What nobody shall have any more ends, whatever the target does meanwhile; the key itself only if that is wanted.
func TestDeletingStaticRoles(t *testing.T) {
	for _, revoke := range []bool{false, true} {
		w := newWorld(t).withStatic()
		if reason, _ := reasonOf(w.do(logical.DeleteOperation, "targets/acme", map[string]any{"force": true})); reason != reasonBadRequest {
			t.Errorf("deleting the target: %q", reason)
		}
		w.write("static-roles/ci", map[string]any{"revoke_on_delete": revoke})
		w.write("rotate-role/ci", nil)
		w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
		if reason, _ := reasonOf(w.do(logical.UpdateOperation, "rotate-role/ci", nil)); reason != reasonOutcomeUnknown || len(w.liveKeys()) != 3 {
			t.Fatalf("a lost answer: %q, %d keys live", reason, len(w.liveKeys()))
		}
		current := w.read("static-creds/ci")["accessor"].(string)
		w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 503, Count: 2})
		if resp, err := w.do(logical.DeleteOperation, "static-roles/ci", nil); err != nil || resp.IsError() {
			t.Fatalf("deleting: %v %v", resp, err)
		}
		w.pass(30 * time.Minute)
		want := []string{current}
		if revoke {
			want = []string{}
		}
		if diff := cmp.Diff(want, w.liveKeys()); diff != "" || len(w.ledgerEntries()) != 0 || len(w.stored(staticStates)) != 0 {
			t.Errorf("revoke %v: ledger %q, states %q (-want +live):\n%s", revoke, w.ledgerEntries(), w.stored(staticStates), diff)
		}
	}
}

// A write that ends beside a delete makes no key: nothing would know of it once the role is gone.
func TestWritingBesideADelete(t *testing.T) {
	w := newWorld(t).withStatic()
	w.write("static-roles/ci", map[string]any{"revoke_on_delete": true})
	written := false
	endWrite := func() {
		written = true
		d := &framework.FieldData{Raw: map[string]any{"name": "ci"}, Schema: staticFields}
		if _, err := w.savedStatic(t.Context(), w.store, "ci", d); err != nil {
			t.Error(err)
		}
	}
	slow := &slowStorage{Storage: w.store, after: func(op, key string) {
		if op != "delete" || key != "static-roles/ci" {
			return
		}
		if release, ok := w.nameLocks.try("static/ci"); ok { // else the write would wait
			release()
			endWrite()
		}
	}}
	resp, err := w.HandleRequest(t.Context(), &logical.Request{ID: "slow", Operation: logical.DeleteOperation, Path: "static-roles/ci", Storage: slow})
	if err != nil || resp.IsError() {
		t.Fatalf("deleting: %v %v", resp, err)
	}
	if !written {
		endWrite()
	}
	w.pass(2 * time.Minute)
	if live := w.liveKeys(); len(live) != 0 || len(w.stored(staticStates)) != 0 || len(w.stored("static-roles/")) != 0 {
		t.Errorf("roles %q, states %q, keys that live %q", w.stored("static-roles/"), w.stored(staticStates), live)
	}
}

// A role whose state is gone is being deleted, or its write was cut off. A key that were made for it now might belong to nobody.
func TestRotatingARoleWithoutState(t *testing.T) {
	w := newWorld(t).withStatic()
	if err := w.store.Delete(t.Context(), staticStates+"ci"); err != nil {
		t.Fatal(err)
	}
	before := w.liveKeys()
	if reason, _ := reasonOf(w.do(logical.UpdateOperation, "rotate-role/ci", nil)); reason != reasonBadRequest {
		t.Errorf("rotating: %q", reason)
	}
	if diff := cmp.Diff(before, w.liveKeys()); diff != "" || len(w.stored(staticStates)) != 0 {
		t.Errorf("states %q (-want +live):\n%s", w.stored(staticStates), diff)
	}
	w.write("static-roles/ci", nil)
	w.write("rotate-role/ci", nil)
}

// The nodes that may not write the role do not rotate it.
func TestOnlyOneNodeRotates(t *testing.T) {
	w := newWorld(t).withStatic()
	for _, state := range []consts.ReplicationState{consts.ReplicationPerformanceStandby, consts.ReplicationPerformanceSecondary, consts.ReplicationDRSecondary} {
		w.clock.advance(24 * time.Hour)
		w.system.ReplicationStateVal = state
		w.periodic()
		w.system.ReplicationStateVal = 0
		if w.keys.Calls(lab.OpCreate) != 1 {
			t.Fatalf("a node in state %v rotates", state)
		}
	}
	release, _ := w.nameLocks.try("static/ci")
	if reason, _ := reasonOf(w.do(logical.UpdateOperation, "rotate-role/ci", nil)); reason != reasonTargetBusy {
		t.Errorf("while it is rotated: %q", reason)
	}
	w.periodic()
	release()
	if w.keys.Calls(lab.OpCreate) != 1 {
		t.Error("it was rotated twice at a time")
	}
	w.periodic()
	if w.keys.Calls(lab.OpCreate) != 2 {
		t.Error("it was not rotated afterwards")
	}
}
