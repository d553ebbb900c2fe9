// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// wantSettled checks the invariant after things settle: what lives at the target is what Vault holds leases for.
func (w *world) wantSettled(leases ...*logical.Response) {
	w.t.Helper()
	want := map[string]bool{}
	for _, resp := range leases {
		want[resp.Data["accessor"].(string)] = true
	}
	for _, key := range w.keys.Live() {
		if !want[key.ID] {
			w.t.Errorf("key %s lives and nobody holds it", key.ID)
		}
		delete(want, key.ID)
	}
	for id := range want {
		w.t.Errorf("key %s was revoked while its lease lives", id)
	}
	if entries := w.ledgerEntries(); len(entries) != len(leases) {
		w.t.Errorf("the ledger has %v; want %d keys", entries, len(leases))
	}
}

// Every write of an issue fails once, and every write from one on: no key may live unseen, and a delivered one must live.
func TestIssueWithFailingStorage(t *testing.T) {
	errDisk := errors.New("disk full")
	for _, lasting := range []bool{false, true} {
		for n := 1; ; n++ {
			reached := false
			t.Run(fmt.Sprintf("write %d, lasting %v", n, lasting), func(t *testing.T) {
				w := newWorld(t)
				w.issue("deploy") // the instance exists
				w.clock.advance(time.Minute)
				writes := 0
				w.store.set(func(op, _ string) error {
					if op == "get" {
						return nil
					}
					if writes++; writes == n || lasting && writes > n {
						reached = true
						return errDisk
					}
					return nil
				})
				resp, err := w.exchange("deploy", w.token(nil))
				w.store.set(nil)
				var leases []*logical.Response
				if reason, _ := reasonOf(resp, err); reason == "" {
					leases = append(leases, resp)
				} else if reason != reasonStorage {
					t.Errorf("refused for %s", reason)
				}
				w.revokeFirst()
				w.settleAll()
				w.wantSettled(leases...)
			})
			if !reached {
				break // there is no n-th write
			}
		}
	}
}

// A write before the exchange is done and said to have failed: nothing was asked for, so no key is shown, not even where the
// target could not find one, and the token is as good as before.
func TestWriteBeforeTheExchangeThatIsDoneAndFails(t *testing.T) {
	for _, write := range []string{"put " + usedTokens, "put " + openEntries} {
		w := newWorld(t).withNuGet()
		token := w.issuer.Token(map[string]any{"aud": "https://www.nuget.org"})
		late := &lateStorage{Storage: w.store, fails: write}
		resp, err := w.HandleRequest(t.Context(), &logical.Request{ID: "late", Operation: logical.UpdateOperation, Path: "creds/publish", Storage: late,
			Data: map[string]any{"subject_token": token}})
		if reason, _ := reasonOf(resp, err); reason != reasonStorage || late.fails != "" {
			t.Fatalf("%s: refused for %q", write, reason)
		}
		w.settleAll()
		if entries := w.ledgerEntries(); len(entries) != 0 {
			t.Errorf("%s: the ledger has %v", write, entries)
		}
		if reason, _ := reasonOf(w.exchange("publish", token)); reason != "" {
			t.Errorf("%s: the token is refused for %s", write, reason)
		}
	}
}

// revokeFirst ends the key that newWorld's caller issued before the fault.
func (w *world) revokeFirst() {
	w.t.Helper()
	live := w.keys.Live()
	oldest := live[0]
	for _, key := range live {
		if key.ExpiresAt.Before(oldest.ExpiresAt) {
			oldest = key
		}
	}
	for _, id := range w.list("keys") {
		record := w.read("keys/" + id)
		if record["accessor"] == oldest.ID {
			e, err := w.ledger.get(context.Background(), w.store, id)
			if err != nil {
				w.t.Fatal(err)
			}
			if err := w.revokeAt(context.Background(), w.store, "acme", e.Handle, e.ExpiresAt); err != nil {
				w.t.Fatal(err)
			}
			if err := w.ledger.delete(context.Background(), w.store, e); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

func (w *world) list(path string) []string {
	w.t.Helper()
	resp, err := w.do(logical.ListOperation, path+"/", nil)
	if err != nil || resp.IsError() {
		w.t.Fatalf("listing %s: %v %v", path, err, resp)
	}
	keys, _ := resp.Data["keys"].([]string)
	return keys
}

func TestIssueWithFailingTarget(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault  lab.Fault
		reason string
		status int
		again  bool // the same token may be presented again, for nothing was issued
	}{
		"denied":            {lab.Fault{Kind: lab.KindStatus, Status: 403}, reasonTargetDenied, 422, true},
		"busy":              {lab.Fault{Kind: lab.KindStatus, Status: 429}, reasonTargetBusy, 503, true},
		"500 before":        {lab.Fault{Kind: lab.KindStatus, Status: 500}, reasonOutcomeUnknown, 422, false},
		"500 after":         {lab.Fault{Kind: lab.KindStatus, Status: 500, After: true}, reasonOutcomeUnknown, 422, false},
		"cut before":        {lab.Fault{Kind: lab.KindCut}, reasonOutcomeUnknown, 422, false},
		"cut after":         {lab.Fault{Kind: lab.KindCut, After: true}, reasonOutcomeUnknown, 422, false},
		"truncated":         {lab.Fault{Kind: lab.KindTruncate}, reasonOutcomeUnknown, 422, false},
		"rubbish":           {lab.Fault{Kind: lab.KindHTML}, reasonTargetProtocol, 422, false},
		"wrong types":       {lab.Fault{Kind: lab.KindWrongTypes}, reasonTargetProtocol, 422, false},
		"no secret":         {lab.Fault{Kind: lab.KindNoSecret}, reasonTargetProtocol, 422, false},
		"huge":              {lab.Fault{Kind: lab.KindHuge, Size: 2}, reasonTargetProtocol, 422, false},
		"redirect":          {lab.Fault{Kind: lab.KindRedirect, Status: 307, Location: "https://127.0.0.1:1/"}, reasonOutcomeUnknown, 422, false},
		"never, then found": {lab.Fault{Kind: lab.KindHang, After: true}, reasonOutcomeUnknown, 422, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			var leases []*logical.Response
			if c.fault.Kind == lab.KindHang {
				w.write("config", map[string]any{"request_timeout": "1s"})
				leases = append(leases, w.issue("deploy")) // so that the time is not spent on connecting
			}
			c.fault.Count = 1
			w.keys.Fault("create", c.fault)
			token := w.token(nil)
			reason, status := reasonOf(w.exchange("deploy", token))
			if reason != c.reason || status != c.status {
				t.Errorf("got %s, status %d; want %s, %d\n%s", reason, status, c.reason, c.status, w.logs)
			}
			again, err := w.exchange("deploy", token)
			if reason, _ := reasonOf(again, err); c.again && reason == "" {
				leases = append(leases, again)
			} else if c.again || reason != reasonReplayed {
				t.Errorf("presenting the token again: %q", reason)
			}
			w.settleAll()
			w.wantSettled(leases...)
			if strings.Contains(w.logs.String(), adminToken) {
				t.Error("the log holds the credential")
			}
		})
	}
}

// A key whose caller has gone gets no lease from Vault, so it must not live.
func TestIssueForACallerWhoLeft(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	w.keys.OnRequest(func(op string, stage lab.Stage) {
		if op == "create" && stage == lab.StageDone {
			cancel()
		}
	})
	req := &logical.Request{ID: "r", Operation: logical.UpdateOperation, Path: "creds/deploy", Storage: w.store, Data: map[string]any{"subject_token": w.token(nil)}}
	if reason, _ := reasonOf(w.HandleRequest(ctx, req)); reason != reasonOutcomeUnknown {
		t.Errorf("refused for %q; want %s", reason, reasonOutcomeUnknown)
	}
	w.settleAll()
	w.wantSettled()
}

// Nor may it when the target cannot revoke it at once.
func TestIssueForACallerWhoLeftWhileTheTargetFails(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	w.keys.Fault("revoke", lab.Fault{Kind: lab.KindStatus, Status: 503, Count: 1})
	w.store.set(func(op, key string) error {
		if op == "delete" && strings.HasPrefix(key, openEntries) {
			cancel() // after the key was filed
		}
		return nil
	})
	req := &logical.Request{ID: "r", Operation: logical.UpdateOperation, Path: "creds/deploy", Storage: w.store, Data: map[string]any{"subject_token": w.token(nil)}}
	if reason, _ := reasonOf(w.HandleRequest(ctx, req)); reason != reasonOutcomeUnknown {
		t.Errorf("refused for %q; want %s", reason, reasonOutcomeUnknown)
	}
	w.store.set(nil)
	if len(w.keys.Live()) != 1 {
		t.Fatal("the revocation did not fail")
	}
	w.settleAll()
	w.wantSettled()
}

// Vault's core tries a failed revocation six times over some minutes and then gives the lease up: before that the ledger
// must take the debt over, and not sooner.
func TestRevokeWhileTheTargetIsDown(t *testing.T) {
	w := newWorld(t)
	resp := w.issue("deploy")
	w.keys.Fault("revoke", lab.Fault{Kind: lab.KindStatus, Status: 503})
	for _, minutes := range []int{0, 1, 4} {
		w.clock.advance(time.Duration(minutes) * time.Minute / 2)
		if got, err := w.lease(logical.RevokeOperation, resp); err == nil && !got.IsError() {
			t.Fatalf("revoke succeeded after %d minutes while the key lives", minutes)
		}
	}
	id := resp.Data["id"].(string)
	if record := w.read("keys/" + id); record["state"] != stateDebt {
		t.Errorf("the ledger says %v", record["state"])
	}
	if reason, _ := reasonOf(w.lease(logical.RenewOperation, resp)); reason != reasonTrustChanged {
		t.Errorf("renewing a debt: %q", reason)
	}

	w.clock.advance(5 * time.Minute)
	w.system.TaintedVal = true
	if _, err := w.lease(logical.RevokeOperation, resp); err == nil {
		t.Error("revoke succeeded while the mount is being disabled and the key lives")
	}
	w.system.TaintedVal = false
	w.revoke(resp)
	if len(w.keys.Live()) != 1 || w.read("keys/" + id)["state"] != stateDebt {
		t.Error("the debt is gone and the key lives")
	}
	w.keys.ClearFaults()
	w.restart() // the breaker and the pause of the limiter are gone with the process, the debt is not
	w.settleAll()
	w.wantSettled()
}

// Only "not found" says that a key is gone; a refusal of the engine's own credential does not.
func TestRevokeWithABadCredentialIsNoSuccess(t *testing.T) {
	w := newWorld(t)
	resp := w.issue("deploy")
	w.keys.Fault("revoke", lab.Fault{Kind: lab.KindStatus, Status: 401})
	if _, err := w.lease(logical.RevokeOperation, resp); err == nil {
		t.Fatal("a 401 passed for success")
	} else if strings.Contains(err.Error(), http.StatusText(http.StatusUnauthorized)) || !strings.Contains(err.Error(), reasonTargetDenied) {
		t.Errorf("got %v", err)
	}
	w.keys.ClearFaults()
	w.revoke(resp)
	w.wantSettled()
}

// Revoke needs nothing but the lease and the target.
func TestRevokeWithoutRoleAndPolicy(t *testing.T) {
	w := newWorld(t)
	resp := w.issue("deploy")
	for _, path := range []string{"roles/deploy", "trust/main", "trust/alice", "issuers/github"} {
		if _, err := w.do(logical.DeleteOperation, path, nil); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := w.do(logical.DeleteOperation, "targets/acme", nil); err != nil || !got.IsError() {
		t.Errorf("deleting a target that a live key needs: %v %v", got, err)
	}
	if got, err := w.do(logical.DeleteOperation, "targets/acme", map[string]any{"force": true}); err != nil || got.IsError() {
		t.Errorf("deleting it by force: %v %v", got, err)
	}
	if got, err := w.do(logical.ReadOperation, "targets/acme", nil); got != nil || err != nil {
		t.Errorf("the deleted target is read: %v %v", got, err)
	}
	w.restart()
	w.revoke(resp)
	w.wantSettled()
	w.clock.advance(4 * time.Hour) // past the latest end that a key there could have
	w.settleAll()
	if left := w.stored("targets/"); len(left) != 0 {
		t.Errorf("the tombstone outlives the last key: %v", left)
	}
}

// A lease that Vault lost (it died before writing it, or was restored from an older copy) leaves a key that nobody will
// revoke: its latest end passes, and the sweeper does.
func TestKeyThatLostItsLease(t *testing.T) {
	w := newWorld(t)
	w.issue("deploy")
	w.clock.advance(2 * time.Hour) // past the lease's end, before the key's own
	w.settleAll()
	w.clock.advance(66 * time.Minute) // past the hour of that end, wherever in it the end lies
	w.write("sweep", nil)
	w.wantSettled()
}

// A key that cannot be revoked is filed by its own end, which the target chooses. One that was filed and never answered with
// is found there, and has one entry.
func TestUndeliveredKeyThatCannotBeRevoked(t *testing.T) {
	w := newWorld(t)
	profile, _, _ := strings.Cut(acme, "renew:")
	short := strings.Replace(profile, `"expires_at": not_after}`, `"expires_at": timestamp(int(not_after) - 72000)}`, 1)
	w.write("targets/plain", map[string]any{"driver": "http", "url": w.keysURL, "profile": short + "lifetime: 24h\n", "ca_pem": w.ca, "credential": "token=" + adminToken, "allowed_roles": "*"})
	w.write("roles/plain", map[string]any{"trust": "main", "target": "plain", "parameters": "project=widget"})
	w.store.set(func(op, key string) error {
		if op == "delete" && strings.HasPrefix(key, openEntries) {
			return errors.New("disk full")
		}
		return nil
	})
	if reason, _ := reasonOf(w.exchange("plain", w.token(nil))); reason != reasonStorage {
		t.Fatalf("refused for %q", reason)
	}
	w.store.set(nil)
	want := w.keys.Live()[0].ExpiresAt.Format(time.RFC3339)
	for range 2 {
		ids := w.list("keys")
		if len(ids) != 1 {
			t.Fatalf("one key has the entries %q", ids)
		}
		if record := w.read("keys/" + ids[0]); record["expires_at"] != want {
			t.Errorf("the key ends at %v, the record has %v", want, record["expires_at"])
		}
		w.settleAll()
	}
	w.clock.advance(6 * time.Hour)
	w.settleAll()
	w.wantSettled()
}
