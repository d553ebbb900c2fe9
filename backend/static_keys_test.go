// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// Whoever goes back to the key before the last one keeps it.
func TestImportOfThePredecessor(t *testing.T) {
	w := newWorld(t)
	g := w.withStaticGitLab()
	w.write("static-roles/widget", map[string]any{"overlap": "1h"})
	first := w.read("static-creds/widget")["api_key"].(string)
	w.write("rotate-role/widget", nil)
	second := w.read("static-creds/widget")["api_key"].(string)
	w.write("static-roles/widget", map[string]any{"import": first})
	w.pass(2 * time.Hour)
	if got := w.read("static-creds/widget"); got["api_key"] != first || !g.Valid(first) || g.Valid(second) {
		t.Errorf("read is the first one: %v; it lives: %v, the one after it: %v", got["api_key"] == first, g.Valid(first), g.Valid(second))
	}
}

// What something else of this engine holds, or will end, is nobody's static key.
func TestImportOfWhatIsHeldElsewhere(t *testing.T) {
	w := newWorld(t)
	g := w.withStaticGitLab()
	w.write("targets/gitlab", map[string]any{"allowed_roles": "gitlab,static/*"})
	role := map[string]any{"target": "gitlab", "rotation_period": "720h", "overlap": "1h",
		"parameters": map[string]any{"kind": "project", "id": "1", "scopes": "read_repository", "access_level": "reporter"}}
	w.write("static-roles/third", role)
	owed := w.read("static-creds/third")["api_key"].(string)
	w.write("rotate-role/third", nil)
	g.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 503, Count: 100})
	w.pass(61 * time.Minute)
	w.write("static-roles/widget", map[string]any{"overlap": "1h"})
	before := w.read("static-creds/widget")["api_key"].(string)
	w.write("rotate-role/widget", nil)
	own := w.read("static-creds/widget")["api_key"].(string)
	for name, value := range map[string]string{"a leased key": w.issue("gitlab").Data["api_key"].(string), "a key that must die": owed, "another static role's": own, "another's before that": before} {
		role["import"] = value
		if resp, err := w.do(logical.UpdateOperation, "static-roles/other", role); err != nil || !resp.IsError() || !g.Valid(value) || !strings.HasPrefix(resp.Error().Error(), "bad_request: import: it") && !strings.HasPrefix(resp.Error().Error(), "bad_request: import: static role") {
			t.Errorf("%s (it lives: %v): %v %v", name, g.Valid(value), resp, err)
		}
	}
	w.write("static-roles/widget", map[string]any{"import": own}) // its own, again
	role["import"] = w.issue("gitlab").Data["api_key"]
	w.write("config", map[string]any{"instance": "another"})
	if resp, err := w.do(logical.UpdateOperation, "static-roles/other", role); err != nil || !resp.IsError() || !strings.HasPrefix(resp.Error().Error(), "bad_request: import: it was made for a lease") {
		t.Errorf("a leased key, since the instance was changed: %v %v", resp, err)
	}

	w = newWorld(t)
	w.withImport(0)
	resp, err := w.do(logical.UpdateOperation, "static-roles/own", map[string]any{"import": w.credential("gitlab")})
	if err != nil || !resp.IsError() || !strings.HasPrefix(resp.Error().Error(), "bad_request: import: it is the engine's own") {
		t.Errorf("the engine's credential: %v %v", resp, err)
	}
}

// A key that another role lets go just then is met all the same: in that role's state, or in the ledger.
func TestImportBesideAHandover(t *testing.T) {
	for _, between := range []string{"list " + openEntries, "get " + staticStates + "widget"} {
		w := newWorld(t)
		w.withStaticGitLab()
		w.write("static-roles/widget", map[string]any{"overlap": "1h"})
		w.write("rotate-role/widget", nil)
		w.clock.advance(time.Hour)
		state, err := staticTable.get(t.Context(), w.store, "widget")
		if err != nil || len(state.Old) != 1 {
			t.Fatal(state, err)
		}
		over := target.Key{Accessor: state.Old[0].Handle.Accessor, Handle: state.Old[0].Handle}
		gitlab, err := w.target(t.Context(), w.store, "gitlab")
		if err != nil {
			t.Fatal(err)
		}
		handed := sync.OnceFunc(func() {
			if err := w.tendStatic(t.Context(), w.store, "widget"); err != nil || len(w.ledgerEntries()) == 0 {
				t.Error(err, w.ledgerEntries())
			}
		})
		slow := &slowStorage{Storage: w.store, after: func(op, key string) {
			if op+" "+key == between {
				handed()
			}
		}}
		if err := w.unclaimed(t.Context(), slow, "other", gitlab, over); err == nil {
			t.Errorf("after %s: it is taken", between)
		}
		handed()
	}
}

// What bears a name by which the sweeper is about to end keys, or may be told to, is nobody's static key.
func TestImportOfWhatIsLookedFor(t *testing.T) {
	other := map[string]any{"target": "gitlab", "rotation_period": "720h", "parameters": map[string]any{"kind": "project", "id": "1", "scopes": "read_repository", "access_level": "reporter"}}
	for name, c := range map[string]struct {
		after func(*world) (value string) // what is known of a key by then
		role  string
	}{
		"by the ledger": {func(w *world) string {
			before := w.read("static-creds/widget")["api_key"].(string)
			w.write("rotate-role/widget", nil) // a new one is made, and what is left of the old one is to be ended
			return before
		}, "widget"},
		"perhaps, by another role's rotation": {func(w *world) string {
			state, err := staticTable.get(t.Context(), w.store, "widget")
			if err != nil {
				t.Fatal(err)
			}
			value := state.Current.Secret
			state.Current.Secret, state.Current.Accessor = "glpat-former", "0" // as if the target had rotated it
			if err := staticTable.put(t.Context(), w.store, "widget", state); err != nil {
				t.Fatal(err)
			}
			return value
		}, "other"},
	} {
		w := newWorld(t)
		g := w.withStaticGitLab()
		w.write("targets/gitlab", map[string]any{"allowed_roles": "static/*"})
		g.Fault(lab.OpRotate, lab.Fault{Kind: lab.KindCut, Count: 1}) // in doubt from now on
		_, _ = w.do(logical.UpdateOperation, "rotate-role/widget", nil)
		other["import"] = c.after(w)
		if resp, err := w.do(logical.UpdateOperation, "static-roles/"+c.role, other); err != nil || !resp.IsError() || !strings.HasPrefix(resp.Error().Error(), "bad_request: import: ") {
			t.Errorf("%s: %v %v", name, resp, err)
		}
		w.write("rotate-role/widget", nil)
		w.pass(10 * time.Minute)
		if key := w.read("static-creds/widget")["api_key"].(string); !g.Valid(key) || len(g.Live()) != 1 {
			t.Errorf("%s: the key that is read lives: %v, at the target %v", name, g.Valid(key), g.Live())
		}
	}
}

// A static role can be switched off whatever is wrong with its target.
func TestSwitchingOffAStaticRole(t *testing.T) {
	for name, change := range map[string]map[string]any{
		"config": {"egress_hosts": "elsewhere.example"}, "targets/acme": {"allowed_roles": "*"},
	} {
		w := newWorld(t).withStatic()
		w.write(name, change)
		w.write("static-roles/ci", map[string]any{"enabled": false})
		if reason, _ := reasonOf(w.do(logical.ReadOperation, "static-creds/ci", nil)); reason != reasonDisabled {
			t.Errorf("%s: %q", name, reason)
		}
		if resp, err := w.do(logical.UpdateOperation, "static-roles/ci", map[string]any{"enabled": true}); err == nil && !resp.IsError() {
			t.Errorf("%s: it is switched on again", name)
		}
	}
}

// A static role's key whose answer was lost, and that nobody can find, is shown for as long as it lives.
func TestLostStaticKeyThatNobodyFinds(t *testing.T) {
	for name, withTarget := range map[string]func() (*world, func() time.Time){
		"a profile without find": func() (*world, func() time.Time) {
			w := newWorld(t)
			profile := w.profile(acme[strings.Index(acme, "find:"):strings.Index(acme, "check:")], "lifetime: 5h\n")
			w.write("targets/blind", map[string]any{"driver": "http", "url": w.keysURL, "profile": profile, "ca_pem": w.ca, "credential": "token=" + adminToken, "allowed_roles": "static/*"})
			w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
			w.write("static-roles/lost", map[string]any{"target": "blind", "parameters": "project=widget", "rotation_period": "720h", "overlap": "1h"})
			return w, func() time.Time { return w.keys.Live()[0].ExpiresAt }
		},
		"a token that ends itself": func() (*world, func() time.Time) {
			m := gitlabTarget(t, gitlabSelf, true)
			w, g := m.world, m.api.(*lab.GitLab)
			all := maps.Clone(gitlabSelf)
			all["scopes"] = "read_api"
			w.write("targets/gitlab", map[string]any{"allowed_roles": "static/*"})
			g.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
			w.write("static-roles/lost", map[string]any{"target": "gitlab", "parameters": all, "rotation_period": "720h", "overlap": "1h"})
			return w, func() time.Time { end, _ := time.Parse(time.DateOnly, g.Live()[0].ExpiresAt); return end }
		},
	} {
		w, end := withTarget()
		lost := end()
		w.clock.advance(5 * time.Minute)
		w.write("sweep", nil)
		ids := w.list("keys")
		if len(ids) != 1 {
			t.Errorf("%s: the ledger has %q", name, ids)
			continue
		}
		shown := w.read("keys/" + ids[0])
		if until, err := time.Parse(time.RFC3339, shown["not_after"].(string)); err != nil || shown["state"] != stateExposed || until.Before(lost) {
			t.Errorf("%s: %v until %v; the key lives until %v", name, shown["state"], shown["not_after"], lost)
		}
	}
}

// Where no key can be found, none is replaced in place: if that answer were lost, nothing would get on from there.
func TestNoRotationInPlaceWithoutFind(t *testing.T) {
	w := newWorld(t)
	rotate := `rotate:
  method: POST
  path: '["v1", "projects", params.project, "keys", accessor, "rotate"]'
  ok: [200]
  key: {secret: response.json.secret, accessor: string(response.json.id)}
`
	profile := w.profile(acme[strings.Index(acme, "find:"):strings.Index(acme, "check:")], rotate+"lifetime: 5h\n")
	w.write("targets/blind", map[string]any{"driver": "http", "url": w.keysURL, "profile": profile, "ca_pem": w.ca, "credential": "token=" + adminToken, "allowed_roles": "static/*"})
	w.write("static-roles/ci", map[string]any{"target": "blind", "parameters": "project=widget", "rotation_period": "1h", "overlap": 0})
	first := w.read("static-creds/ci")["accessor"]
	w.write("rotate-role/ci", nil)
	w.pass(2 * time.Minute)
	got := w.read("static-creds/ci")
	if live := w.keys.Live(); got["accessor"] == first || got["predecessor"] != first || len(live) != 1 || live[0].ID != got["accessor"] {
		t.Errorf("live: %v, read: %v after %v", live, got["accessor"], first)
	}
}

// However often a key is rotated, and however long the overlap is: one key beside the one in use lives.
func TestOnePredecessorLives(t *testing.T) {
	w := newWorld(t).withStatic()
	for range 4 {
		w.write("rotate-role/ci", nil)
	}
	w.periodic()
	got := w.read("static-creds/ci")
	want := []string{got["predecessor"].(string), got["accessor"].(string)}
	live := w.liveKeys()
	slices.Sort(want)
	slices.Sort(live)
	if diff := cmp.Diff(want, live); diff != "" {
		t.Errorf("(-want +live):\n%s", diff)
	}
	w.pass(time.Hour)
	if live := w.liveKeys(); len(live) != 1 || len(w.ledgerEntries()) != 0 {
		t.Errorf("after the overlap: live %q, ledger %q", live, w.ledgerEntries())
	}
}

// What may live of a rotation that a process did not take to its end is looked for where it was asked for, wherever the role has
// its keys made by now.
func TestLostStaticKeyOfOtherParameters(t *testing.T) {
	w := newWorld(t).withStatic()
	w.clock.advance(24 * time.Hour)
	states := 0
	w.store.set(func(op, key string) error {
		if op == "put" && strings.HasPrefix(key, staticStates) {
			states++
		}
		if op == "put" && states > 1 { // after the intent
			return errors.New("disk full")
		}
		return nil
	})
	w.periodic()
	w.store.set(nil)
	w.restart()
	if live := len(w.liveKeys()); live != 2 {
		t.Fatalf("%d keys live; want the old one and the lost one", live)
	}
	w.write("static-roles/ci", map[string]any{"parameters": "project=gadget"})
	w.pass(80 * time.Minute)
	if live := w.keys.Live(); len(live) != 1 || live[0].Project != "gadget" || len(w.ledgerEntries()) != 0 {
		t.Errorf("live: %v, ledger %q", live, w.ledgerEntries())
	}
}
