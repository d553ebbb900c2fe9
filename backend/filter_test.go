// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

func TestFindKeys(t *testing.T) {
	w := newWorld(t)
	first := w.issue("deploy")
	w.clock.advance(time.Minute)
	between := w.clock.now().Format(time.RFC3339)
	w.clock.advance(time.Minute)
	w.write("trust/main", map[string]any{"description": "a second revision"})
	w.issue("deploy")
	if _, err := w.do(logical.ReadOperation, "creds/deploy", nil); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		data                map[string]any
		matched, unrecorded int
	}{
		"all":               {nil, 3, 0},
		"role":              {map[string]any{"role": "deploy"}, 3, 0},
		"other role":        {map[string]any{"role": "other"}, 0, 0},
		"trust":             {map[string]any{"trust": "main"}, 2, 0},
		"login":             {map[string]any{"issuer": "people", "subject": "alice"}, 1, 0},
		"claim":             {map[string]any{"claim": "repository=acme/widget"}, 2, 0},
		"other claim":       {map[string]any{"claim": "repository=acme/gadget"}, 0, 0},
		"claim not kept":    {map[string]any{"claim": "workflow_sha=x", "trust": "main"}, 0, 2},
		"former revision":   {map[string]any{"trust": "main", "revision_before": "2"}, 1, 0},
		"earlier":           {map[string]any{"issued_before": between}, 1, 0},
		"later":             {map[string]any{"issued_after": between}, 2, 0},
		"one page":          {map[string]any{"limit": "1"}, 1, 0},
		"entity":            {map[string]any{"entity": "entity-1"}, 3, 0},
		"one key":           {map[string]any{"accessor": first.Data["accessor"]}, 1, 0},
		"another key":       {map[string]any{"accessor": "key-0"}, 0, 0},
		"ruled out already": {map[string]any{"claim": "workflow_sha=x", "trust": "other"}, 0, 0},
	} {
		resp, err := w.do(logical.ReadOperation, "keys", c.data)
		if err != nil || resp.IsError() {
			t.Errorf("%s: %v %v", name, resp, err)
			continue
		}
		if resp.Data["matched"] != c.matched || resp.Data["unrecorded"] != c.unrecorded {
			t.Errorf("%s: %v matched, %v unrecorded; want %d, %d", name, resp.Data["matched"], resp.Data["unrecorded"], c.matched, c.unrecorded)
		}
	}
	if resp, err := w.do(logical.ReadOperation, "keys", map[string]any{"subject": ""}); err != nil || !resp.IsError() {
		t.Errorf("an empty condition: %v %v", resp, err)
	}
}

// The time of a key is the one that read-outs show, in whole seconds: an operator has no other.
func TestFilterByTheTimeThatIsShown(t *testing.T) {
	w := newWorld(t)
	w.clock.advance(400 * time.Millisecond)
	shown, err := time.Parse(time.RFC3339, w.read("keys/" + w.issue("deploy").Data["id"].(string))["issued_at"].(string))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		field   string
		at      time.Time
		matched int
	}{
		"before itself":           {"issued_before", shown, 0},
		"after itself":            {"issued_after", shown, 0},
		"before the next second":  {"issued_before", shown.Add(time.Second), 1},
		"after the last second":   {"issued_after", shown.Add(-time.Second), 1},
		"before, with a fraction": {"issued_before", shown.Add(900 * time.Millisecond), 0},
		"after, with a fraction":  {"issued_after", shown.Add(-100 * time.Millisecond), 1},
	} {
		resp, err := w.do(logical.ReadOperation, "keys", map[string]any{c.field: c.at.Format(time.RFC3339Nano)})
		if err != nil || resp.IsError() || resp.Data["matched"] != c.matched {
			t.Errorf("%s: %v %v; want %d", name, resp, err, c.matched)
		}
	}
}

// One record that cannot be read hides no other, whether its key was delivered or not; and no answer looks whole without it.
func TestFindKeysBesideAnUnreadableRecord(t *testing.T) {
	w := newWorld(t)
	bad := filedAt(w.deploys(3, nil)[1])
	w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonOutcomeUnknown {
		t.Fatalf("refused for %q", reason)
	}
	open := w.stored(openEntries)[0]
	for _, keys := range [][]string{{bad}, {bad, open}} {
		w.spoil(keys[len(keys)-1])
		for _, counted := range []bool{true, false} {
			if !counted {
				w.engine.ledger.tally = tally{}
			}
			for field, value := range map[string]any{"claim": "repository=acme/widget", "accessor": "x", "limit": 2} {
				resp, err := w.do(logical.ReadOperation, "keys", map[string]any{field: value})
				matched := map[string]int{"claim": 4 - len(keys), "limit": 2}[field]
				if err != nil || resp.IsError() {
					t.Fatalf("%s: %v %v", field, resp, err)
				}
				if n := resp.Data["unreadable"]; resp.Data["matched"] != matched || n != len(keys) && field != "limit" || len(resp.Warnings) != min(n.(int), 1) {
					t.Errorf("%s, %d unreadable, counted %v: %v", field, len(keys), counted, resp)
				}
			}
		}
	}
	resp, err := w.do(logical.ListOperation, "keys/", nil)
	if err != nil || len(resp.Data["keys"].([]string)) != 3 || len(resp.Warnings) != 1 { // the id of what is open is not known
		t.Errorf("a list: %v %v", resp, err)
	}
}

// Of a key that the ledger has lost and its lease has brought back no claim is known: it is not taken for a login's. When it was
// issued Vault knows.
func TestFilterJudgesNoRestoredKey(t *testing.T) {
	w := newWorld(t)
	resp := w.issue("deploy")
	before := w.clock.now().Add(-time.Minute).Format(time.RFC3339)
	w.emptyLedger()
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 500})
	if _, err := w.lease(logical.RevokeOperation, resp); err == nil {
		t.Fatal("revoking works although the target is down")
	}
	w.wantFound(map[string]any{"claim": "repository=acme/widget"}, 0, 1)
	w.wantFound(map[string]any{"issued_after": before}, 1, 0)
	w.wantFound(map[string]any{"issued_before": before}, 0, 0)
}

// Nor is it guessed when a key was issued of which nobody knows.
func TestFilterGuessesNoTime(t *testing.T) {
	w := newWorld(t).withStatic()
	w.write("static-roles/ci", map[string]any{"overlap": 0})
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 500})
	w.write("rotate-role/ci", nil)
	w.pass(2 * time.Minute) // what was replaced is owed
	now := w.clock.now().Format(time.RFC3339)
	for _, field := range []string{"issued_after", "issued_before"} {
		w.wantFound(map[string]any{field: now}, 0, 1)
		w.wantFound(map[string]any{field: now, "role": "other"}, 0, 0)
	}
}

// emptyLedger takes out all that the ledger has.
func (w *world) emptyLedger() {
	w.t.Helper()
	for _, key := range w.ledgerEntries() {
		if err := w.store.Storage.Delete(w.t.Context(), key); err != nil {
			w.t.Fatal(err)
		}
	}
}

// wantFound wants so many keys to match a filter, and so many not to be judged by it.
func (w *world) wantFound(filter map[string]any, matched, unrecorded int) {
	w.t.Helper()
	found, err := w.do(logical.ReadOperation, "keys", filter)
	if err != nil || found.IsError() || found.Data["matched"] != matched || found.Data["unrecorded"] != unrecorded {
		w.t.Errorf("%v: %v %v; want %d matched, %d unrecorded", filter, err, found, matched, unrecorded)
	}
}

// In an emergency a mistyped name must not pass for "nothing is out".
func TestMistypedNamesAreTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.issue("deploy")
	for _, c := range []struct {
		filter map[string]any
		want   []string
	}{
		{map[string]any{"role": "deploy", "target": "acme", "trust": "main", "issuer": "github"}, nil},
		{map[string]any{"role": "static/ci"}, nil},
		{map[string]any{"role": "Deploy", "target": "acne"}, []string{"there is no role", "there is no target"}},
		{map[string]any{"trust": "mian", "issuer": "gihtub"}, []string{"there is no trust policy", "there is no issuer"}},
	} {
		for path, op := range map[string]logical.Operation{"keys": logical.ReadOperation, "revocations": logical.UpdateOperation, "blocks/b": logical.UpdateOperation} {
			resp, err := w.do(op, path, maps.Clone(c.filter))
			if err != nil || resp.IsError() {
				t.Fatalf("%s %v: %v %v", path, c.filter, resp, err)
			}
			var got []string
			if resp != nil {
				got = resp.Warnings
			}
			if len(got) != len(c.want) {
				t.Errorf("%s %v warns %q; want %q", path, c.filter, got, c.want)
				continue
			}
			for i, want := range c.want {
				if !strings.HasPrefix(got[i], want+" of the name in the filter") { // audit devices show it as it is: without the name
					t.Errorf("%s %v warns %q; want %q", path, c.filter, got[i], want)
				}
			}
		}
		if _, err := w.do(logical.DeleteOperation, "blocks/b", nil); err != nil {
			t.Fatal(err)
		}
	}

	// Keys outlive their role.
	if _, err := w.do(logical.DeleteOperation, "roles/deploy", nil); err != nil {
		t.Fatal(err)
	}
	resp, err := w.do(logical.UpdateOperation, "revocations", map[string]any{"role": "deploy"})
	if err != nil || resp.Data["matched"] != 1 || len(resp.Warnings) != 1 {
		t.Errorf("a role that was deleted: %v %v", resp, err)
	}
}
