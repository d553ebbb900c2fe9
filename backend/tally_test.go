// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// asLogin issues to the Vault login alice instead of a token's subject.
func (w *world) asLogin(role string) (*logical.Response, error) {
	w.t.Helper()
	return w.do(logical.ReadOperation, "creds/"+role, nil)
}

// wantLimit wants a refusal for the ceiling, and the same from explain.
func (w *world) wantLimit(role string) {
	w.t.Helper()
	resp, err := w.exchange(role, w.token(nil))
	if reason, status := reasonOf(resp, err); reason != reasonLimit || status != 403 {
		w.t.Errorf("issuing over the ceiling: %q, status %d", reason, status)
	}
	if told := w.write("explain/"+role, map[string]any{"subject_token": w.token(nil)}).Data; told["reason"] != reasonLimit {
		w.t.Errorf("explain says %v", told["reason"])
	}
}

func (w *world) accessors() []string {
	var all []string
	for _, key := range w.keys.Live() {
		all = append(all, key.ID)
	}
	return all
}

func TestCeilingOfARole(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"max_keys": 2})
	w.write("roles/other", map[string]any{"trust": "main", "target": "acme", "parameters": "project=widget"})
	first := w.issue("deploy")
	if resp, err := w.asLogin("deploy"); err != nil || resp.IsError() {
		t.Fatalf("the second key: %v %v", err, resp)
	}
	w.wantLimit("deploy")
	w.issue("other") // has a ceiling of its own: none
	w.restart()
	w.wantLimit("deploy")
	w.revoke(first)
	w.revoke(first) // Vault may say it twice; the key counts once
	w.issue("deploy")
	w.wantLimit("deploy")
	w.write("roles/deploy", map[string]any{"max_keys": 0})
	w.issue("deploy")
}

func TestCeilingOfASubject(t *testing.T) {
	w := newWorld(t)
	w.write("issuers/second", map[string]any{"issuer": "https://second.example", "jwks_url": w.issuerURL + "/jwks", "ca_pem": w.ca})
	w.write("trust/second", map[string]any{"issuer": "second", "bound_audiences": audience, "bound_claims": "repository=acme/widget"})
	w.write("roles/deploy", map[string]any{"max_keys_per_subject": 1, "trust": "main,second,alice"})
	w.issue("deploy")
	w.wantLimit("deploy")
	for name, claims := range map[string]map[string]any{
		"another subject":                    {"sub": "repo:acme/widget:ref:refs/heads/other"},
		"the same subject of another issuer": {"iss": "https://second.example"},
	} {
		if resp, err := w.exchange("deploy", w.token(claims)); err != nil || resp.IsError() {
			t.Errorf("%s: %v %v", name, err, resp)
		}
	}
	if resp, err := w.asLogin("deploy"); err != nil || resp.IsError() {
		t.Errorf("a login: %v %v", err, resp)
	}
}

// At a ceiling with revoke_oldest there are never more keys than the ceiling, at the target or in the ledger.
func TestOldestKeyMakesRoom(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"max_keys_per_subject": 2, "on_limit": "revoke_oldest"})
	var issued []string
	for range 4 {
		w.clock.advance(time.Minute)
		resp := w.issue("deploy")
		issued = append(issued, resp.Data["accessor"].(string))
		if n := len(issued); (n > 2) != strings.Contains(strings.Join(resp.Warnings, " "), "was revoked") {
			t.Errorf("key %d has warnings %q", n, resp.Warnings)
		}
	}
	if got := w.accessors(); !slices.Equal(got, issued[2:]) {
		t.Errorf("alive are %v, issued were %v", got, issued)
	}
	w.restart() // the order outlives the process
	w.clock.advance(time.Minute)
	issued = append(issued, w.issue("deploy").Data["accessor"].(string))
	if got := w.accessors(); !slices.Equal(got, issued[3:]) {
		t.Errorf("after a restart alive are %v, issued were %v", got, issued)
	}
	if told := w.write("explain/deploy", map[string]any{"subject_token": w.token(nil)}).Data; told["accepted"] != true || len(w.accessors()) != 2 {
		t.Errorf("explain says %v and leaves %v", told, w.accessors())
	}
}

// The revoked key's lease is still there: renewing it is refused, its end does no harm.
func TestReplacedKeysLease(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"max_keys": 1, "on_limit": "revoke_oldest"})
	old := w.issue("deploy")
	young := w.issue("deploy")
	if reason, _ := reasonOf(w.lease(logical.RenewOperation, old)); reason != reasonTrustChanged {
		t.Errorf("renewing the replaced key: %q", reason)
	}
	w.revoke(old)
	w.wantSettled(young)
	w.write("roles/deploy", map[string]any{"on_limit": "refuse"})
	w.wantLimit("deploy") // the replaced key's lease gave nothing back that was not its own
}

// A key that cannot be revoked keeps its place, and the new one is not asked for.
func TestReplacingFails(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"max_keys": 1, "on_limit": "revoke_oldest"})
	old := w.issue("deploy")
	for _, fault := range []lab.Fault{{Kind: lab.KindStatus, Status: 403}, {Kind: lab.KindStatus, Status: 500}, {Kind: lab.KindStatus, Status: 429}} {
		w.keys.Fault(lab.OpRevoke, fault)
		token := w.token(nil)
		if reason, status := reasonOf(w.exchange("deploy", token)); reason != reasonTargetBusy || status != 503 {
			t.Errorf("%v: %q, status %d", fault, reason, status)
		}
		w.wantSettled(old)
		w.keys.ClearFaults()
		w.clock.advance(10 * time.Minute) // a Retry-After
		fresh, err := w.exchange("deploy", w.token(nil))
		if err != nil || fresh.IsError() {
			t.Fatalf("after %v: %v %v", fault, err, fresh)
		}
		w.wantSettled(fresh)
		old = fresh
	}
}

func TestCeilingsUnderRace(t *testing.T) {
	for name, role := range map[string]map[string]any{
		"refuse":        {"max_keys": 5},
		"subject":       {"max_keys_per_subject": 5},
		"revoke_oldest": {"max_keys": 5, "on_limit": "revoke_oldest"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.write("roles/deploy", role)
			most := 0
			var mu sync.Mutex
			w.keys.OnRequest(func(op string, stage lab.Stage) {
				if op == lab.OpCreate && stage == lab.StageDone {
					mu.Lock()
					defer mu.Unlock()
					most = max(most, len(w.keys.Live()))
				}
			})
			if name == "revoke_oldest" {
				for range 5 {
					w.issue("deploy")
				}
			}
			issued, limited := w.race(64)
			if got := len(w.keys.Live()); got != 5 || most > 5 {
				t.Errorf("%d keys live, at most %d did; want 5", got, most)
			}
			if name == "revoke_oldest" && (issued < 5 || w.keys.Calls(lab.OpRevoke) != issued) || name != "revoke_oldest" && (issued != 5 || limited != 59) {
				t.Errorf("%d were issued and %d refused", issued, limited)
			}
			if got := len(w.ledgerEntries()); got != 5 {
				t.Errorf("the ledger has %d entries", got)
			}
		})
	}
}

// race asks for n keys at once, each with a token of its own, and counts what was answered.
func (w *world) race(n int) (issued, limited int) {
	w.t.Helper()
	var (
		mu   sync.Mutex
		wait sync.WaitGroup
	)
	for i := range n {
		req := &logical.Request{ID: fmt.Sprintf("race-%d", i), Operation: logical.UpdateOperation, Path: "creds/deploy", Storage: w.store,
			Data: map[string]any{"subject_token": w.token(nil)}}
		wait.Go(func() {
			reason, _ := reasonOf(w.HandleRequest(context.Background(), req))
			mu.Lock()
			defer mu.Unlock()
			switch reason {
			case "":
				issued++
			case reasonLimit:
				limited++
			default:
				w.t.Errorf("refused for %s", reason)
			}
		})
	}
	wait.Wait()
	return issued, limited
}

// What may live counts: an exchange whose outcome is unknown, until the sweeper has settled it, and a debt until it is paid.
func TestCeilingsCountWhatMayLive(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"max_keys": 1})
	w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonOutcomeUnknown {
		t.Fatalf("refused for %q", reason)
	}
	w.wantLimit("deploy")
	w.settleAll()
	lease := w.issue("deploy")
	w.keys.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 500})
	if _, err := w.lease(logical.RevokeOperation, lease); err == nil {
		t.Fatal("revoking works although the target is down")
	}
	w.wantLimit("deploy")
	w.keys.ClearFaults()
	w.clock.advance(2 * time.Hour)
	w.settleAll()
	w.issue("deploy")
}

// What came to nothing does not count: refusals before and at the target, and writes that fail.
func TestRefusalsDoNotCount(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"max_keys": 1})
	w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindStatus, Status: 403, Count: 1})
	if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonTargetDenied {
		t.Errorf("refused for %q", reason)
	}
	for _, prefix := range []string{"put used/", "put ledger/open/", "put ledger/keys/", "delete ledger/open/"} {
		w.store.set(func(op, key string) error {
			if strings.HasPrefix(op+" "+key, prefix) {
				w.store.fail = nil // once; the lock is held
				return errors.New("disk full")
			}
			return nil
		})
		if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonStorage {
			t.Errorf("%s fails: %q", prefix, reason)
		}
	}
	w.issue("deploy")
	w.wantLimit("deploy")
}

// slowStorage lets something happen after a read, or before a delete.
type slowStorage struct {
	logical.Storage
	after func(op, key string)
}

func (s *slowStorage) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	e, err := s.Storage.Get(ctx, key)
	s.after("get", key)
	return e, err
}

func (s *slowStorage) List(ctx context.Context, prefix string) ([]string, error) {
	names, err := s.Storage.List(ctx, prefix)
	s.after("list", prefix)
	return names, err
}

func (s *slowStorage) Delete(ctx context.Context, key string) error {
	s.after("delete", key)
	return s.Storage.Delete(ctx, key)
}

// What is being delivered, or may not even be, makes no room for another.
func TestWhatCannotBeReplaced(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"max_keys": 1, "on_limit": "revoke_oldest"})
	reason := "not asked"
	slow := &slowStorage{Storage: w.store, after: func(op, key string) {
		if op == "delete" && strings.HasPrefix(key, openEntries) && reason == "not asked" { // the key is filed, and not answered with
			reason = ""
			reason, _ = reasonOf(w.exchange("deploy", w.token(nil)))
		}
	}}
	resp, err := w.HandleRequest(t.Context(), &logical.Request{ID: "slow", Operation: logical.UpdateOperation, Path: "creds/deploy", Storage: slow,
		Data: map[string]any{"subject_token": w.token(nil)}})
	if err != nil || resp.IsError() || reason != reasonLimit {
		t.Errorf("%v %v; beside it %q", err, resp, reason)
	}
	w.wantSettled(resp)
	w.revoke(resp)
	w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonOutcomeUnknown {
		t.Fatalf("refused for %q", reason)
	}
	w.wantLimit("deploy")
}

// A key of a target that the role had before and that cannot revoke stays, and makes no room.
func TestKeyOfAnotherTargetIsNotReplaced(t *testing.T) {
	w := newWorld(t).withNuGet()
	w.write("targets/acme", map[string]any{"allowed_roles": "*"})
	w.write("roles/publish", map[string]any{"trust": "nuget,main"})
	if resp, err := w.exchange("publish", w.token(map[string]any{"aud": "https://www.nuget.org"})); err != nil || resp.IsError() {
		t.Fatal(err, resp)
	}
	w.write("roles/publish", map[string]any{"target": "acme", "parameters": "project=widget", "max_keys": 1, "on_limit": "revoke_oldest"})
	w.wantLimit("publish")
	w.write("roles/publish", map[string]any{"max_keys": 2})
	w.issue("publish")
	w.issue("publish")
	if n := len(w.keys.Live()); n != 1 {
		t.Errorf("%d keys live", n)
	}
}

// Without a token to present nothing is asked for, so no key has to make room.
func TestNoTokenReplacesNoKey(t *testing.T) {
	w := newOwned(t, "file")
	w.write("roles/own", map[string]any{"max_keys": 1, "on_limit": "revoke_oldest"})
	old := w.issue("own")
	if err := os.Remove(w.file); err != nil {
		t.Fatal(err)
	}
	if reason, _ := reasonOf(w.exchange("own", w.token(nil))); reason != reasonNotForwardable {
		t.Errorf("refused for %q", reason)
	}
	w.wantSettled(old)
}

// One key makes room under both ceilings, if it can.
func TestBothCeilings(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"max_keys": 2, "max_keys_per_subject": 1, "on_limit": "revoke_oldest"})
	other, err := w.asLogin("deploy")
	if err != nil || other.IsError() {
		t.Fatal(err, other)
	}
	w.issue("deploy")
	w.wantSettled(other, w.issue("deploy"))
}

func TestCeilingFields(t *testing.T) {
	w := newWorld(t).withNuGet()
	for name, c := range map[string]struct {
		fields map[string]any
		want   string
	}{
		"negative":          {map[string]any{"max_keys": -1}, "max_keys"},
		"subject negative":  {map[string]any{"max_keys_per_subject": -1}, "max_keys_per_subject"},
		"on_limit":          {map[string]any{"max_keys": 1, "on_limit": "revoke"}, "on_limit"},
		"nothing to limit":  {map[string]any{"on_limit": "revoke_oldest"}, "on_limit"},
		"null":              {map[string]any{"max_keys": nil}, "max_keys"},
		"cannot be revoked": {map[string]any{"target": "nuget", "max_keys": 1, "on_limit": "revoke_oldest", "parameters": "username=jim"}, "on_limit"},
	} {
		resp, err := w.do(logical.UpdateOperation, "roles/deploy", c.fields)
		if reason, _ := reasonOf(resp, err); reason != reasonBadRequest || !strings.HasPrefix(resp.Error().Error(), "bad_request: "+c.want+":") {
			t.Errorf("%s: %v %v", name, err, resp)
		}
	}
}

// A key that cannot be revoked counts until it has expired.
func TestCeilingsCountKeysThatOutliveTheirLease(t *testing.T) {
	w := newWorld(t).withNuGet()
	w.write("roles/publish", map[string]any{"max_keys": 1})
	token := func() string { return w.token(map[string]any{"aud": "https://www.nuget.org"}) }
	resp, err := w.exchange("publish", token())
	if err != nil || resp.IsError() {
		t.Fatalf("%v %v", err, resp)
	}
	w.revoke(resp)
	if reason, _ := reasonOf(w.exchange("publish", token())); reason != reasonLimit {
		t.Errorf("refused for %q", reason)
	}
	w.clock.advance(4 * time.Hour)
	w.settleAll()
	if resp, err := w.exchange("publish", token()); err != nil || resp.IsError() {
		t.Errorf("%v %v", err, resp)
	}
}

// A sweep that ends a key and cannot end what is open of it leaves nothing that counts for good.
func TestSweepThatFailsHalfwayDoesNotCount(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"max_keys": 1})
	w.issue("deploy") // and its lease is lost
	w.restart()       // now it is not known that nothing of it is open
	w.clock.advance(5 * time.Hour)
	w.store.set(func(op, key string) error {
		if op == "delete" && strings.HasPrefix(key, openEntries) {
			w.store.fail = nil // once; the lock is held
			return errors.New("disk full")
		}
		return nil
	})
	w.settleAll()
	w.wantSettled()
	w.issue("deploy")
}

// A key whose replacement failed after its entry was gone is out of the count at the next try, and the target can go.
func TestReplacedKeyWithoutAnEntry(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"max_keys": 1, "on_limit": "revoke_oldest"})
	w.issue("deploy")
	w.store.Storage = &lateStorage{Storage: w.store.Storage, fails: "delete " + plainKeys}
	if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonTargetBusy {
		t.Errorf("refused for %q", reason)
	}
	resp := w.issue("deploy")
	if len(resp.Warnings) > 0 {
		t.Errorf("warnings %q; nothing had to be revoked", resp.Warnings)
	}
	w.wantSettled(resp)
	if n := w.ledger.perTarget()["acme"]; n != 1 {
		t.Errorf("%d keys are counted", n)
	}
}

// lateStorage does once what begins so, "put " or "delete " and a key, and says that it did not.
type lateStorage struct {
	logical.Storage
	fails string
}

func (s *lateStorage) late(what string, err error) error {
	if s.fails != "" && strings.HasPrefix(what, s.fails) {
		s.fails = ""
		return errors.New("no answer in time")
	}
	return err
}

func (s *lateStorage) Put(ctx context.Context, e *logical.StorageEntry) error {
	return s.late("put "+e.Key, s.Storage.Put(ctx, e))
}

func (s *lateStorage) Delete(ctx context.Context, key string) error {
	return s.late("delete "+key, s.Storage.Delete(ctx, key))
}

// Requests that choose the oldest keys and come to nothing leave them in their order.
func TestOrderOutlivesFailures(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"max_keys": 3, "on_limit": "revoke_oldest"})
	var issued []string
	for range 3 {
		issued = append(issued, w.issue("deploy").Data["accessor"].(string))
	}
	var entries [2]*entry
	var replaced [2][]*held
	for i := range entries {
		var err error
		entries[i] = &entry{ID: newID(w.clock.now()), Role: "deploy", State: statePending}
		if replaced[i], err = w.ledger.admit(entries[i], ceilings{role: 3, replace: true}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range entries {
		w.ledger.withdraw(entries[i], replaced[i])
	}
	want := append(issued[1:], w.issue("deploy").Data["accessor"].(string))
	if got := w.accessors(); !slices.Equal(got, want) {
		t.Errorf("alive are %v; want %v", got, want)
	}
}

// A key that only expires is filed anew once its end is known.
func TestHoursFollowAKeyThatIsFiledAnew(t *testing.T) {
	l := &ledger{}
	rand := strings.Repeat("a", 26)
	for _, hour := range []string{"2026010203", "2026010205", "2026010204"} {
		l.put(&entry{ID: hour + "-" + rand, State: stateIssued, Role: "deploy", Target: "acme"})
		if got := l.firstHour(); got != hour {
			t.Errorf("filed under %s, the first hour is %s", hour, got)
		}
	}
	l.remove(rand)
	if got := l.firstHour(); got != "" {
		t.Errorf("with no key the first hour is %s", got)
	}
}
