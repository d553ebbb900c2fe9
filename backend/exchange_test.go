// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

func TestKeyLivesAsLongAsItsLease(t *testing.T) {
	w := newWorld(t)
	resp := w.issue("deploy")
	data := resp.Data
	if len(w.keys.Live()) != 1 || !w.keys.Valid(data["api_key"].(string)) {
		t.Fatalf("the key does not live at the target: %v", w.keys.Live())
	}
	if got, want := resp.Secret.TTL, 15*time.Minute; got != want || !resp.Secret.Renewable || resp.Secret.MaxTTL != 2*time.Hour {
		t.Errorf("lease %v, max %v, renewable %v", got, resp.Secret.MaxTTL, resp.Secret.Renewable)
	}
	for field, want := range map[string]any{"revocable": true, "header_name": "X-Acme-Key", "target": "acme", "issuer": "github",
		"trust": "main", "subject": "repo:acme/widget:ref:refs/heads/main", "accessor": w.keys.Live()[0].ID} {
		if data[field] != want {
			t.Errorf("%s is %v; want %v", field, data[field], want)
		}
	}
	end := w.clock.now().Add(2*time.Hour + expirySlack)
	if got := w.keys.Live()[0].ExpiresAt; !got.Equal(end) {
		t.Errorf("the key ends at %v; want the lease's latest end and slack, %v", got, end)
	}
	if entries := w.ledgerEntries(); len(entries) != 1 || !strings.HasPrefix(entries[0], plainKeys) {
		t.Errorf("ledger has %v; want one filed key", entries)
	}
	record := w.read("keys/" + data["id"].(string))
	if record["state"] != stateIssued || record["role"] != "deploy" || record["claims"].(map[string]any)["repository"] != "acme/widget" {
		t.Errorf("ledger says %v", record)
	}

	w.clock.advance(10 * time.Minute)
	renewed, err := w.lease(logical.RenewOperation, resp)
	if err != nil || renewed.IsError() || renewed.Secret.TTL != 15*time.Minute || renewed.Data != nil {
		t.Fatalf("renewing: %v %v", renewed, err)
	}
	w.revoke(renewed)
	if len(w.keys.Live()) != 0 || len(w.ledgerEntries()) != 0 {
		t.Errorf("after revoke %v live, ledger has %v", w.keys.Live(), w.ledgerEntries())
	}
	w.revoke(resp) // again is success
}

func TestLoginNeedsNoToken(t *testing.T) {
	w := newWorld(t)
	resp, err := w.do(logical.ReadOperation, "creds/deploy", nil)
	if err != nil || resp.IsError() {
		t.Fatalf("%v %v", resp, err)
	}
	if resp.Data["issuer"] != "people" || resp.Data["subject"] != "alice" || resp.Data["trust"] != "alice" {
		t.Errorf("got %v", resp.Data)
	}
}

func TestNuGetKeyIsExposedUntilItExpires(t *testing.T) {
	w := newWorld(t).withNuGet()
	resp, err := w.exchange("publish", w.issuer.Token(map[string]any{"aud": "https://www.nuget.org"}))
	if err != nil || resp.IsError() {
		t.Fatalf("%v %v", resp, err)
	}
	if resp.Secret.Renewable || resp.Data["revocable"] != false || len(resp.Warnings) == 0 {
		t.Errorf("renewable %v, data %v, warnings %v", resp.Secret.Renewable, resp.Data["revocable"], resp.Warnings)
	}
	if id := resp.Data["id"].(string); !strings.HasPrefix(id, hourOf(w.clock.now().Add(time.Hour+clockAhead))) {
		t.Errorf("id %s is not filed by the key's own end, an hour from now, with a margin", id)
	}
	w.revoke(resp)
	if record := w.read("keys/" + resp.Data["id"].(string)); record["state"] != stateExposed {
		t.Errorf("after revoke the ledger says %v; the key lives", record)
	}
	w.clock.advance(4 * time.Hour)
	w.settleAll()
	if len(w.nuget.Live()) != 0 || len(w.ledgerEntries()) != 0 {
		t.Errorf("%v live, ledger has %v", w.nuget.Live(), w.ledgerEntries())
	}
}

// A key that the ledger has lost and nobody can revoke is brought back by its lease, for as long as it may be valid.
func TestLeaseBringsBackAnExposedKey(t *testing.T) {
	w := newWorld(t).withNuGet()
	resp, err := w.exchange("publish", w.token(map[string]any{"aud": "https://www.nuget.org"}))
	if err != nil || resp.IsError() {
		t.Fatal(resp, err)
	}
	w.emptyLedger()
	w.revoke(resp)
	w.wantFound(map[string]any{"target": "nuget"}, 1, 0)
	if record := w.read("keys/" + resp.Data["id"].(string)); record["state"] != stateExposed || record["expires_at"] != resp.Data["expires_at"] {
		t.Errorf("the ledger says %v", record)
	}
	w.emptyLedger()
	w.clock.advance(3 * time.Hour)
	w.revoke(resp)
	if left := w.ledgerEntries(); len(left) != 0 {
		t.Errorf("of a key that has expired the ledger has %v", left)
	}
}

// A node whose clock is an hour ahead forgets no key that is valid, nor does a revocation there call it ended: neither one that
// was delivered, nor one whose answer was lost.
func TestExposedKeysOnANodeThatIsAhead(t *testing.T) {
	w := newWorld(t).withNuGet()
	w.clock.advance(w.clock.now().Truncate(time.Hour).Add(110 * time.Minute).Sub(w.clock.now())) // ten minutes to the hour
	if resp, err := w.exchange("publish", w.token(map[string]any{"aud": "https://www.nuget.org"})); err != nil || resp.IsError() {
		t.Fatal(resp, err)
	}
	w.nuget.Fault(lab.OpToken, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	if reason, _ := reasonOf(w.exchange("publish", w.token(map[string]any{"aud": "https://www.nuget.org"}))); reason != reasonOutcomeUnknown {
		t.Fatalf("refused for %q", reason)
	}
	w.settleAll()
	w.ahead(time.Hour)
	w.clock.advance(55 * time.Minute)
	w.write("sweep", nil)
	if valid, known := len(w.nuget.Live()), len(w.list("keys")); valid != 2 || known != valid {
		t.Errorf("%d keys are valid, the ledger has %d", valid, known)
	}
	w.wantRun(w.works(w.starts(map[string]any{"role": "publish"})), map[string]any{"state": runDone, "matched": 2, "revoked": 0, "exposed": 2})
	w.clock.advance(2 * time.Hour)
	w.write("sweep", nil)
	if left := w.ledgerEntries(); len(left) != 0 {
		t.Errorf("left are %v", left)
	}
}

// What a profile adds to an answer stands beside what the engine says, never in its place.
func TestProfileCannotSpeakForTheEngine(t *testing.T) {
	w := newWorld(t)
	with := func(field string) map[string]any {
		return map[string]any{"profile": w.profile("accessor: string(response.json.id)", "fields: {"+field+": params.project}\n    accessor: string(response.json.id)"), "credential": "token=" + adminToken}
	}
	fields := w.issue("deploy").Data
	for _, field := range append(slices.Sorted(maps.Keys(fields)), "header_value") { // the one that not every key has
		w.refused("targets/acme", with(field), "profile")
	}
	w.write("targets/acme", with("project"))
	if got := w.issue("deploy").Data; got["project"] != "widget" || len(got) != len(fields)+1 {
		t.Errorf("got %v", got)
	}
}

// While a key was being decided upon its role got another target, and the former one was deleted: nothing is asked of what
// nobody could ask to revoke.
func TestTargetIsDeletedBeforeTheIntent(t *testing.T) {
	w := newWorld(t)
	w.write("targets/other", map[string]any{"driver": "http", "url": w.keysURL, "profile": acme, "ca_pem": w.ca, "credential": "token=" + adminToken, "allowed_roles": "*"})
	w.restart()
	once := sync.OnceFunc(func() {
		w.write("roles/deploy", map[string]any{"target": "other"})
		if resp, err := w.do(logical.DeleteOperation, "targets/acme", nil); err != nil || resp.IsError() {
			t.Error(err, resp)
		}
	})
	slow := &slowStorage{Storage: w.store, after: func(op, key string) {
		if op == "get" && key == "trust/main" {
			once()
		}
	}}
	resp, err := w.HandleRequest(t.Context(), &logical.Request{ID: "slow", Operation: logical.UpdateOperation, Path: "creds/deploy", Storage: slow,
		Data: map[string]any{"subject_token": w.token(nil)}})
	if reason, status := reasonOf(resp, err); reason != reasonTargetBusy || status != 503 {
		t.Errorf("%q, status %d", reason, status)
	}
	w.wantSettled()
	w.issue("deploy")
}
