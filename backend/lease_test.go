// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// request is do for many goroutines at once: it shares nothing but the engine.
func (w *world) request(ctx context.Context, id string, op logical.Operation, path string, data map[string]any) (*logical.Response, error) {
	return w.HandleRequest(ctx, &logical.Request{ID: id, Operation: op, Path: path, Data: data, Storage: w.store, EntityID: "entity-1"})
}

func (w *world) delete(path string, data map[string]any) {
	w.t.Helper()
	if resp, err := w.do(logical.DeleteOperation, path, data); err != nil || resp.IsError() {
		w.t.Fatalf("deleting %s: %v %v", path, err, resp)
	}
}

// periodic is Vault's periodic call.
func (w *world) periodic() {
	w.t.Helper()
	if _, err := w.HandleRequest(w.t.Context(), &logical.Request{Operation: logical.RollbackOperation, Storage: w.store}); err != nil {
		w.t.Fatal(err)
	}
}

// extended is the lease that comes of a renewal in Vault's core, which applies the client's increment itself: after the
// engine has answered, nothing but Secret.MaxTTL bounds it.
func (w *world) extended(resp *logical.Response, issued time.Time, increment time.Duration) time.Duration {
	w.t.Helper()
	secret := *resp.Secret
	secret.IssueTime, secret.Increment = issued, increment
	renewed, err := w.HandleRequest(w.t.Context(), &logical.Request{Operation: logical.RenewOperation, Storage: w.store, Secret: &secret})
	if err != nil || renewed.IsError() {
		w.t.Fatalf("renewing: %v %v", err, renewed)
	}
	ttl, _, err := framework.CalculateTTL(w.system, increment, renewed.Secret.TTL, 0, renewed.Secret.MaxTTL, 0, issued)
	if err != nil {
		w.t.Fatal(err)
	}
	return ttl
}

// Vault prints a renewal's error as it is, but of a response that tells one its Go value; and it warns by itself of what an
// increment asks for in vain.
func TestWhatRenewingSays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	resp := w.issue("deploy")
	secret := *resp.Secret
	secret.IssueTime, secret.Increment = w.clock.now(), 1000*time.Hour
	renewed, err := w.HandleRequest(t.Context(), &logical.Request{Operation: logical.RenewOperation, Storage: w.store, Secret: &secret})
	if err != nil || renewed.IsError() || len(renewed.Warnings) > 0 {
		t.Errorf("renewing: %v %v", renewed, err)
	}
	if _, err := w.do(logical.DeleteOperation, "roles/deploy", nil); err != nil {
		t.Fatal(err)
	}
	renewed, err = w.lease(logical.RenewOperation, resp)
	if reason, status := reasonOf(renewed, err); renewed != nil || err == nil || reason != reasonUnknownRole || status != http.StatusBadRequest {
		t.Errorf("renewing without the role: %v %v", renewed, err)
	}
}

func TestIncrementNeverOutlivesTheKey(t *testing.T) {
	w := newWorld(t)
	issued := w.clock.now()
	short := w.profile(`"expires_at": not_after}`, `"expires_at": timestamp(int(not_after) - 7200)}`) // 5 minutes
	w.write("targets/acme", map[string]any{"profile": short, "credential": "token=" + adminToken})
	resp := w.issue("deploy")
	left := w.keys.Live()[0].ExpiresAt.Sub(w.clock.now())
	if got := w.extended(resp, issued, time.Hour); got > left {
		t.Errorf("the key has %v left, its lease %v", left, got)
	}
}

func TestIncrementNeverPassesTheRolesMaximum(t *testing.T) {
	w := newWorld(t)
	issued := w.clock.now()
	resp := w.issue("deploy")
	w.write("roles/deploy", map[string]any{"max_ttl": "20m"})
	if got := w.extended(resp, issued, time.Hour); got > 20*time.Minute {
		t.Errorf("the role allows 20m, the lease has %v", got)
	}
}

// A revocation removes the filed key first and the debt then; what comes between leaves a debt without a key.
func TestDebtOfADeadKeyIsSettled(t *testing.T) {
	w := newWorld(t)
	resp := w.issue("deploy")
	w.keys.Fault("revoke", lab.Fault{Kind: lab.KindStatus, Status: 503, Count: 1})
	if _, err := w.lease(logical.RevokeOperation, resp); err == nil {
		t.Fatal("a 503 passed for success")
	}
	w.store.set(func(op, key string) error {
		if op == "delete" && strings.HasPrefix(key, openEntries) {
			return errors.New("disk full")
		}
		return nil
	})
	if _, err := w.lease(logical.RevokeOperation, resp); err == nil {
		t.Fatal("the lost delete passed for success")
	}
	w.store.set(nil)
	w.settleAll()
	w.wantSettled()
}

// Disabling a mount wipes its ledger after one last periodic call: what could be ended is ended in it, due or not.
func TestLastTickOfADisabledMount(t *testing.T) {
	w := newWorld(t)
	resp := w.issue("deploy")
	w.keys.Fault("revoke", lab.Fault{Kind: lab.KindStatus, Status: 503})
	if _, err := w.lease(logical.RevokeOperation, resp); err == nil {
		t.Fatal("a 503 passed for success")
	}
	w.clock.advance(6 * time.Minute)
	w.periodic()   // tries in vain, and waits
	w.revoke(resp) // from here on no lease stands for the key
	w.keys.ClearFaults()
	w.keys.Fault("create", lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonOutcomeUnknown {
		t.Fatalf("refused for %q", reason)
	}
	w.system.TaintedVal = true
	w.periodic()
	w.wantSettled()
}

// A key that the target has ended by itself needs nobody to end it.
func TestDebtEndsWithItsKey(t *testing.T) {
	w := newWorld(t)
	resp := w.issue("deploy")
	w.keys.Fault("revoke", lab.Fault{Kind: lab.KindStatus, Status: 401})
	if _, err := w.lease(logical.RevokeOperation, resp); err == nil {
		t.Fatal("a 401 passed for success")
	}
	w.clock.advance(6*time.Hour + deadAfter)
	if live := w.keys.Live(); len(live) != 0 {
		t.Fatalf("%v live", live)
	}
	w.settleAll()
	w.wantSettled()
}

// A node whose clock is an hour ahead takes no key for dead that its target does not end, and goes on asking.
func TestClockThatRunsAheadEndsNoKey(t *testing.T) {
	w := newWorld(t)
	resp := w.issue("deploy")
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 500})
	w.ahead(w.keys.Live()[0].ExpiresAt.Add(time.Hour).Sub(w.clock.now()))
	if got, err := w.lease(logical.RevokeOperation, resp); err == nil && !got.IsError() {
		t.Error("revoking says that the key is dead")
	}
	for range 3 {
		w.clock.advance(time.Minute)
		w.write("sweep", nil)
	}
	if record, _ := w.do(logical.ReadOperation, "keys/"+resp.Data["id"].(string), nil); len(w.keys.Live()) != 1 || record == nil || record.Data["state"] != stateDebt {
		t.Fatalf("at the target %v, in the ledger %v", w.keys.Live(), record)
	}
	w.keys.ClearFaults()
	w.write("sweep", nil)
	w.wantSettled()
}

// Whoever deletes a target while an exchange is on its way there meets its intent, or the exchange does not happen.
func TestTargetThatIsDeletedDuringAnIssue(t *testing.T) {
	w := newWorld(t)
	var once sync.Once
	w.issuer.OnRequest(func(op string, stage lab.Stage) {
		if op != lab.OpJWKS || stage != lab.StageReceived {
			return
		}
		once.Do(func() {
			for _, path := range []string{"roles/deploy", "targets/acme"} {
				if _, err := w.request(context.Background(), "", logical.DeleteOperation, path, nil); err != nil {
					t.Errorf("deleting %s: %v", path, err)
				}
			}
		})
	})
	resp, err := w.exchange("deploy", w.token(nil))
	if reason, _ := reasonOf(resp, err); reason == "" {
		w.revoke(resp)
	}
	w.settleAll()
	w.wantSettled()
}

// A caller who leaves while the answer is being recorded gets no lease either.
func TestIssueForACallerWhoLeavesLate(t *testing.T) {
	w := newWorld(t)
	w.issue("deploy") // the instance exists
	ctx, cancel := context.WithCancel(t.Context())
	w.store.set(func(op, key string) error {
		if op == "put" && strings.HasPrefix(key, plainKeys) {
			cancel()
		}
		return nil
	})
	resp, err := w.request(ctx, "r", logical.UpdateOperation, "creds/deploy", map[string]any{"subject_token": w.token(nil)})
	if reason, _ := reasonOf(resp, err); reason != reasonOutcomeUnknown {
		t.Errorf("refused for %q; want %s", reason, reasonOutcomeUnknown)
	}
	w.store.set(nil)
	w.revokeFirst()
	w.settleAll()
	w.wantSettled()
}

func TestRevokeDuringARenewal(t *testing.T) {
	w := newWorld(t)
	short := w.profile(`"expires_at": not_after}`, `"expires_at": timestamp(int(not_after) - 7200)}`)
	w.write("targets/acme", map[string]any{"profile": short, "credential": "token=" + adminToken})
	resp := w.issue("deploy")
	w.keys.OnRequest(func(op string, stage lab.Stage) {
		if op == lab.OpExtend && stage == lab.StageDone {
			secret := *resp.Secret
			if _, err := w.HandleRequest(context.Background(), &logical.Request{Operation: logical.RevokeOperation, Storage: w.store, Secret: &secret}); err != nil {
				t.Errorf("revoking: %v", err)
			}
		}
	})
	if _, err := w.lease(logical.RenewOperation, resp); err != nil {
		t.Logf("renewing: %v", err) // either answer will do
	}
	if w.keys.Calls("extend") != 1 {
		t.Fatal("the renewal did not reach the target")
	}
	w.wantSettled()
}

// A renewal that the target has made and the engine has not recorded gave the key another end: it is not taken for dead at the
// end that it had before.
func TestRenewalThatWasNotRecorded(t *testing.T) {
	for name, lose := range map[string]func(*world){
		"answer": func(w *world) { w.keys.Fault(lab.OpExtend, lab.Fault{Kind: lab.KindCut, After: true, Count: 1}) },
		"write": func(w *world) {
			w.keys.OnRequest(func(op string, stage lab.Stage) {
				if op == lab.OpExtend && stage == lab.StageDone {
					w.store.set(func(op, _ string) error {
						if op == "put" {
							return errors.New("disk full")
						}
						return nil
					})
				}
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			short := strings.Replace(acme, `"expires_at": not_after}`, `"expires_at": timestamp(int(not_after) - 3600)}`, 1) // until it is renewed
			w.write("targets/acme", map[string]any{"profile": short, "credential": "token=" + adminToken})
			resp := w.issue("deploy")
			first := w.keys.Live()[0].ExpiresAt
			lose(w)
			if got, err := w.lease(logical.RenewOperation, resp); err == nil && !got.IsError() {
				t.Fatal("the renewal was recorded")
			}
			w.store.set(nil)
			w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 500})
			w.ahead(first.Add(deadAfter + time.Minute).Sub(w.clock.now()))
			if _, err := w.lease(logical.RevokeOperation, resp); err == nil {
				t.Error("revoking says that the key is dead")
			}
			if len(w.keys.Live()) != 1 || len(w.ledgerEntries()) == 0 {
				t.Fatalf("at the target %v, in the ledger %v", w.keys.Live(), w.ledgerEntries())
			}
			w.keys.ClearFaults()
			w.clock.advance(10 * time.Minute)
			w.settleAll()
			w.wantSettled()
		})
	}
}

// A renewal that the target has refused leaves the end that the key had, also in the record.
func TestRenewalThatWasRefused(t *testing.T) {
	w := newWorld(t)
	short := strings.Replace(acme, `"expires_at": not_after}`, `"expires_at": timestamp(int(not_after) - 3600)}`, 1)
	w.write("targets/acme", map[string]any{"profile": short, "credential": "token=" + adminToken})
	resp := w.issue("deploy")
	w.keys.Fault(lab.OpExtend, lab.Fault{Kind: lab.KindStatus, Status: 403, Count: 1})
	if reason, _ := reasonOf(w.lease(logical.RenewOperation, resp)); reason != reasonTargetDenied {
		t.Errorf("renewing: %q", reason)
	}
	if got := w.read("keys/" + resp.Data["id"].(string))["expires_at"]; got != resp.Data["expires_at"] {
		t.Errorf("the record has %v, the key %v", got, resp.Data["expires_at"])
	}
}

// Of two renewals of one key at once the second is told to come again: refused by the target, it would take back the end that
// the first has moved.
func TestRenewalsOfOneKeyTakeTurns(t *testing.T) {
	w := newWorld(t)
	short := strings.Replace(acme, `"expires_at": not_after}`, `"expires_at": timestamp(int(not_after) - 3600)}`, 1)
	w.write("targets/acme", map[string]any{"profile": short, "credential": "token=" + adminToken})
	resp := w.issue("deploy")
	gate := make(chan struct{})
	w.keys.Fault(lab.OpExtend, lab.Fault{Kind: lab.KindDelay, Until: gate, Count: 1})
	var reason string
	var wait sync.WaitGroup
	wait.Go(func() { reason, _ = reasonOf(w.lease(logical.RenewOperation, resp)) })
	for w.keys.Calls(lab.OpExtend) == 0 {
		runtime.Gosched()
	}
	w.keys.Fault(lab.OpExtend, lab.Fault{Kind: lab.KindStatus, Status: 403, Count: 1})
	second, _ := reasonOf(w.lease(logical.RenewOperation, resp))
	w.keys.ClearFaults()
	close(gate)
	wait.Wait()
	if reason != "" || second != reasonTargetBusy {
		t.Errorf("the first: %q, the second: %q", reason, second)
	}
	if got := w.read("keys/" + resp.Data["id"].(string))["expires_at"]; got != w.keys.Live()[0].ExpiresAt.UTC().Format(time.RFC3339) {
		t.Errorf("the record has %v, the key %v", got, w.keys.Live()[0].ExpiresAt)
	}
	if reason, _ := reasonOf(w.lease(logical.RenewOperation, resp)); reason != "" {
		t.Errorf("a renewal after them: %q", reason)
	}
}

// Whoever writes targets names host, authorities and proxy: forward_to must hold for the way that the token takes.
func TestTokensAreNotForwardedToAStrangersProxy(t *testing.T) {
	w := newWorld(t).withNuGet()
	var seen atomic.Int32
	collector := w.serve(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ey") {
			seen.Add(1)
		}
	}))
	proxy := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		to, err := net.Dial("tcp", strings.TrimPrefix(collector, "https://"))
		if err != nil {
			return
		}
		rw.WriteHeader(http.StatusOK)
		from, _, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			return
		}
		go func() { _, _ = io.Copy(to, from); _ = to.Close() }()
		_, _ = io.Copy(from, to)
		_ = from.Close()
	}))
	defer proxy.Close()
	w.write("targets/nuget", map[string]any{"proxy_url": proxy.URL, "ca_pem": w.ca})
	reason, _ := reasonOf(w.exchange("publish", w.issuer.Token(map[string]any{"aud": "https://www.nuget.org"})))
	if reason != reasonNotForwardable || seen.Load() != 0 {
		t.Errorf("refused for %q; %d tokens were collected by a host that forward_to does not list", reason, seen.Load())
	}
}

// One token yields one key, however many present it at once.
func TestTokenWorksOnceAtOnce(t *testing.T) {
	w := newWorld(t)
	token := w.token(nil)
	var issued atomic.Int32
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			resp, err := w.request(t.Context(), fmt.Sprint(i), logical.UpdateOperation, "creds/deploy", map[string]any{"subject_token": token})
			switch reason, _ := reasonOf(resp, err); reason {
			case "":
				issued.Add(1)
			case reasonReplayed:
			default:
				t.Errorf("refused for %q", reason)
			}
		})
	}
	all.Wait()
	if issued.Load() != 1 || w.keys.Calls("create") != 1 {
		t.Errorf("%d keys delivered, %d made", issued.Load(), w.keys.Calls("create"))
	}
}

// Issuing, sweeping, renewing, revoking and writing at once: what was delivered lives, what was revoked does not.
func TestEverythingAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.issue("deploy")
	w.revokeFirst()
	var (
		all  sync.WaitGroup
		mu   sync.Mutex
		live []string
	)
	for worker := range 4 {
		tokens := make([]string, 6)
		for i := range tokens {
			tokens[i] = w.token(nil)
		}
		all.Go(func() {
			for i, token := range tokens {
				resp, err := w.request(t.Context(), fmt.Sprintf("%d-%d", worker, i), logical.UpdateOperation, "creds/deploy", map[string]any{"subject_token": token})
				if reason, _ := reasonOf(resp, err); reason != "" {
					t.Errorf("refused for %q", reason)
					continue
				}
				secret := *resp.Secret
				secret.IssueTime = w.clock.now()
				op := logical.Operation(logical.RenewOperation)
				if i%2 == 0 {
					op = logical.RevokeOperation
				}
				if _, err := w.HandleRequest(t.Context(), &logical.Request{Operation: op, Storage: w.store, Secret: &secret}); err != nil {
					t.Errorf("%s: %v", op, err)
				}
				if i%2 != 0 {
					mu.Lock()
					live = append(live, resp.Data["accessor"].(string))
					mu.Unlock()
				}
			}
		})
	}
	all.Go(func() {
		for i := range 10 {
			_, err := w.sweep(t.Context(), w.store, true)
			if err != nil {
				t.Errorf("sweeping: %v", err)
			}
			path := []string{"roles/deploy", "targets/acme", "trust/main", "issuers/github"}[i%4]
			if resp, err := w.request(t.Context(), "w", logical.UpdateOperation, path, map[string]any{"description": fmt.Sprint(i)}); err != nil || resp.IsError() {
				t.Errorf("writing %s: %v %v", path, err, resp)
			}
			w.InvalidateKey(t.Context(), path)
		}
	})
	all.Wait()
	w.settleAll()
	var got []string
	for _, key := range w.keys.Live() {
		got = append(got, key.ID)
	}
	if diff := cmp.Diff(live, got, cmpopts.SortSlices(strings.Compare)); diff != "" {
		t.Errorf("keys (-delivered +living):\n%s", diff)
	}
	if entries := w.ledgerEntries(); len(entries) != len(live) {
		t.Errorf("the ledger has %d entries; want %d", len(entries), len(live))
	}
}

func TestShortestLease(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"ttl": "1s", "max_ttl": "1s"})
	w.keys.OnRequest(func(string, lab.Stage) { w.clock.advance(10 * time.Millisecond) })
	if resp := w.issue("deploy"); resp.Secret.TTL != time.Second {
		t.Errorf("lease %v; want what was asked", resp.Secret.TTL)
	}
}

// Vault gives a renewal no request id: nothing empty is shown for it, and the log has the key's.
func TestRefusedRenewalIsFoundByItsKey(t *testing.T) {
	w := newWorld(t)
	resp := w.issue("deploy")
	w.write("roles/deploy", map[string]any{"enabled": false})
	_, err := w.lease(logical.RenewOperation, resp)
	if err == nil || strings.Contains(err.Error(), "request") {
		t.Errorf("got %v", err)
	}
	if id := resp.Data["id"].(string); !strings.Contains(w.logs.String(), "id="+id) {
		t.Error("the log does not name the key")
	}
}

// A key is ended by the parameters that it was made with: a profile that has another name for one cannot end it.
func TestProfileThatWantsOtherParameters(t *testing.T) {
	w := newWorld(t)
	lease := w.issue("deploy")
	renamed := strings.ReplaceAll(strings.ReplaceAll(acme, "params.project", "params.team"), "  project: {", "  team: {")
	w.refused("targets/acme", map[string]any{"profile": renamed, "credential": "token=" + adminToken}, "profile")
	w.revoke(lease)
	w.write("targets/acme", map[string]any{"profile": renamed, "credential": "token=" + adminToken})
}

// A profile whose revoke wants what the leases have not kept would leave nobody to end their keys.
func TestProfileThatWantsOtherHandles(t *testing.T) {
	w := newWorld(t)
	lease := w.issue("deploy")
	byKey := strings.ReplaceAll(w.profile(acme[strings.Index(acme, "find:"):strings.Index(acme, "check:")], "lifetime: 2h\n"), `"keys", accessor]`, `"keys", key.secret]`)
	change := map[string]any{"profile": byKey, "credential": "token=" + adminToken}
	w.refused("targets/acme", change, "profile")
	w.revoke(lease)
	w.write("targets/acme", map[string]any{"allowed_roles": "*,static/*"})
	w.write("static-roles/ci", map[string]any{"target": "acme", "parameters": "project=widget", "rotation_period": "24h"})
	w.refused("targets/acme", change, "profile")
	w.delete("static-roles/ci", nil)
	w.write("targets/acme", change)
}

// The end of a key that was settled by this process costs one delete; where something may stand in open/, that goes, too.
func TestEndOfAKeyRemovesWhatThereIs(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		meanwhile func(*world, *logical.Response)
		deletes   int
	}{
		"settled":                             {func(*world, *logical.Response) {}, 1},
		"issued by a process before this one": {func(w *world, _ *logical.Response) { w.restart() }, 2},
		"owed": {func(w *world, resp *logical.Response) {
			w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 503, Count: 1})
			if _, err := w.lease(logical.RevokeOperation, resp); err == nil {
				w.t.Fatal("the key counts as revoked")
			}
		}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			resp := w.issue("deploy")
			c.meanwhile(w, resp)
			w.store.set(nil)
			w.revoke(resp)
			deletes := slices.DeleteFunc(slices.Clone(w.store.seen), func(access string) bool { return !strings.HasPrefix(access, "delete ") })
			if len(deletes) != c.deletes || len(w.ledgerEntries()) != 0 {
				t.Errorf("%q, want %d; the ledger has %q", deletes, c.deletes, w.ledgerEntries())
			}
		})
	}
}
