// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// credential is the engine's credential at a target, as it is stored.
func (w *world) credential(target string) string {
	w.t.Helper()
	record, err := w.targetNoun.table.get(w.t.Context(), w.store, target)
	if err != nil || record == nil {
		w.t.Fatalf("target %s: %v", target, err)
	}
	return record.Credential["token"]
}

// rotation is what status tells of a target's credential.
func (w *world) rotation(target string) map[string]any {
	w.t.Helper()
	known, _ := w.read("status")["targets"].(map[string]any)[target].(map[string]any)["credential"].(map[string]any)
	return known
}

func TestRotateRoot(t *testing.T) {
	w := newWorld(t)
	g := w.withGitLab()
	first := w.credential("gitlab")
	lease := w.issue("gitlab")
	resp := w.write("rotate-root/gitlab", nil)
	second := w.credential("gitlab")
	if second == first || g.Valid(first) || !g.Valid(second) {
		t.Fatal("the credential is the one before, or does not live")
	}
	want := map[string]any{
		"rotation": "idle", "last_vault_rotation": w.clock.now().UTC().Format(time.RFC3339), "next_vault_rotation": nil, "last_error": "", "retiring": false,
		"expires_at": w.clock.now().UTC().Add(unscheduled).Truncate(24 * time.Hour).Add(24 * time.Hour).Format(time.RFC3339),
	}
	for from, got := range map[string]map[string]any{"the answer": resp.Data, "status": w.rotation("gitlab")} {
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", from, diff)
		}
	}
	w.revoke(lease)
	w.issue("gitlab")
	w.write("rotate-root/gitlab", nil)
	if g.Calls(lab.OpRotate) != 2 || !g.Valid(w.credential("gitlab")) {
		t.Errorf("after another: %d rotations", g.Calls(lab.OpRotate))
	}
	for _, secret := range []string{first, second, w.credential("gitlab")} {
		if strings.Contains(w.logs.String(), secret) || strings.Contains(fmt.Sprint(resp.Data), secret) {
			t.Error("a credential is in the log or in an answer")
		}
	}
	for name, want := range map[string]string{"acme": "the engine cannot rotate", "nobody": "there is no target"} {
		resp, err := w.do(logical.UpdateOperation, "rotate-root/"+name, nil)
		if reason, _ := reasonOf(resp, err); reason != reasonBadRequest || !strings.Contains(resp.Error().Error(), want) {
			t.Errorf("%s: %q %v", name, reason, resp)
		}
	}
	if reason, _ := reasonOf(w.do(logical.UpdateOperation, "targets/acme", map[string]any{"rotation_period": "24h"})); reason != reasonBadRequest {
		t.Errorf("a schedule where nothing rotates: %q", reason)
	}
}

// writtenAnew has an operator write a credential of his own. He is told if it takes the place of one that the engine made.
func (w *world) writtenAnew(g *lab.GitLab, leavesOne bool) {
	w.t.Helper()
	resp := w.write("targets/gitlab", map[string]any{"credential": "token=" + g.AddToken(1, 90, "api")})
	told := resp != nil && strings.Contains(strings.Join(resp.Warnings, ""), "that the engine made may live on")
	if told != leavesOne {
		w.t.Errorf("a new credential is written; the word on the engine's: %v, want %v", told, leavesOne)
	}
}

func TestWritingACredentialInPlaceOfTheEngines(t *testing.T) {
	w := newWorld(t)
	g := w.withGitLab()
	w.writtenAnew(g, false)
	w.write("rotate-root/gitlab", nil)
	w.writtenAnew(g, true)
	w.writtenAnew(g, false)
}

func TestCredentialsRotateByThemselves(t *testing.T) {
	w := newWorld(t)
	g := w.withGitLab()
	w.write("targets/gitlab", map[string]any{"rotation_period": "240h", "disable_automated_rotation": true})
	w.clock.advance(240 * time.Hour)
	w.periodic()
	if g.Calls(lab.OpRotate) != 0 {
		t.Fatal("it is rotated although that is switched off")
	}
	w.write("targets/gitlab", map[string]any{"disable_automated_rotation": false})
	w.periodic()
	if g.Calls(lab.OpRotate) != 1 || w.rotation("gitlab")["next_vault_rotation"] != w.clock.now().Add(240*time.Hour).UTC().Format(time.RFC3339) {
		t.Fatalf("%d rotations when it was due: %v", g.Calls(lab.OpRotate), w.rotation("gitlab"))
	}
	w.clock.advance(240*time.Hour - time.Second)
	w.periodic()
	if g.Calls(lab.OpRotate) != 1 {
		t.Fatal("it is rotated before it is due")
	}
	w.restart()
	w.clock.advance(time.Second)
	w.periodic()
	if g.Calls(lab.OpRotate) != 2 {
		t.Fatal("it is not rotated when it is due")
	}
	g.Fault(lab.OpRotate, lab.Fault{Kind: lab.KindStatus, Status: 503, Count: 2})
	w.clock.advance(240 * time.Hour)
	w.pass(2 * time.Minute)
	if g.Calls(lab.OpRotate) != 4 || w.rotation("gitlab")["last_error"] != reasonTargetBusy {
		t.Errorf("%d rotations while it is busy: %v", g.Calls(lab.OpRotate), w.rotation("gitlab"))
	}
	w.pass(3 * time.Minute)
	if g.Calls(lab.OpRotate) != 5 || w.rotation("gitlab")["last_error"] != "" {
		t.Errorf("%d rotations after that: %v", g.Calls(lab.OpRotate), w.rotation("gitlab"))
	}
	w.issue("gitlab")
}

// The answer to the credential's rotation is lost. Rotating it again would end its successor, so nothing but an operator's
// new credential goes on from there.
func TestLostRotationOfACredential(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]lab.Fault{
		"done": {Kind: lab.KindCut, After: true}, "not done": {Kind: lab.KindCut}, "nonsense": {Kind: lab.KindHTML}, "500": {Kind: lab.KindStatus, Status: 500},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			g := w.withGitLab()
			w.write("targets/gitlab", map[string]any{"rotation_period": "24h"})
			fault.Count = 1
			g.Fault(lab.OpRotate, fault)
			for range 3 {
				reason, status := reasonOf(w.do(logical.UpdateOperation, "rotate-root/gitlab", nil))
				if reason != reasonOutcomeUnknown || status != http.StatusUnprocessableEntity {
					t.Errorf("rotate-root: %s, %d", reason, status)
				}
				w.restart()
				w.clock.advance(25 * time.Hour)
				w.periodic()
			}
			if g.Calls(lab.OpRotate) != 1 || w.rotation("gitlab")["rotation"] != "unknown" || !strings.Contains(w.logs.String(), "an operator must act") {
				t.Errorf("%d rotations: %v", g.Calls(lab.OpRotate), w.rotation("gitlab"))
			}
			w.writtenAnew(g, true)
			if w.rotation("gitlab")["rotation"] != "idle" {
				t.Errorf("after a new credential: %v", w.rotation("gitlab"))
			}
			w.write("rotate-root/gitlab", nil)
			w.issue("gitlab")
		})
	}
}

// Every write of a rotation of the credential fails once, and every write from one on, in a process that ends then: it is
// asked for once at most, and what is in use is good, or said to be unknown.
func TestCredentialRotationWithFailingStorage(t *testing.T) {
	t.Parallel()
	eachWriteFails(t, func(t *testing.T, n int, arm func(*world)) {
		w := newWorld(t)
		g := w.withGitLab()
		arm(w)
		_, err := w.do(logical.UpdateOperation, "rotate-root/gitlab", nil)
		w.store.set(nil)
		w.restart()
		w.pass(5 * time.Minute)
		asked, state := g.Calls(lab.OpRotate), w.rotation("gitlab")["rotation"]
		switch {
		case asked > 1:
			t.Errorf("it was asked for %d times", asked)
		case state == "unknown" && n != 2: // the write that would have kept the new one, after the intent's
			t.Errorf("unknown after %v", err)
		case state != "unknown" && !g.Valid(w.credential("gitlab")):
			t.Errorf("the credential in use is dead, and said to be %v", state)
		}
	})
}

// credentials is an API that makes credentials beside the old one, which its owner ends.
type credentials struct {
	mu     sync.Mutex
	good   []string
	made   int
	broken bool   // what it makes is not good
	check  int    // status of a check by what it has made; 0 = that it may do
	retire int    // status of what ends itself; 0 = it does
	during func() // while one is made; nil = nothing
	strays int    // requests by a good one to no path of the API
	proxy  bool   // something before the API lets nobody pass
}

func (c *credentials) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	mine := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if c.proxy || !slices.Contains(c.good, mine) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	switch r.Method + " " + r.URL.Path {
	case "POST /v1/credentials":
		c.made++
		fresh := fmt.Sprintf("canary-credential-%d", c.made)
		if !c.broken {
			c.good = append(c.good, fresh)
		}
		if c.during != nil {
			c.during()
		}
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(map[string]string{"secret": fresh})
	case "DELETE /v1/credentials/mine":
		if c.retire != 0 {
			w.WriteHeader(c.retire)
			return
		}
		c.good = slices.DeleteFunc(c.good, func(one string) bool { return one == mine })
		w.WriteHeader(http.StatusNoContent)
	case "GET /v1/whoami":
		if c.check != 0 && mine != "canary-credential-0" {
			w.WriteHeader(c.check)
			return
		}
		w.WriteHeader(http.StatusOK)
	default:
		c.strays++
		w.WriteHeader(http.StatusNotFound)
	}
}

func (c *credentials) list() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.good)
}

// withCredentials adds a target whose credential is rotated with an overlap.
func (w *world) withCredentials() *credentials {
	w.t.Helper()
	c := &credentials{good: []string{"canary-credential-0"}}
	profile := w.profile("check:\n", `rotate_credential: {method: POST, path: '["v1", "credentials"]', json: '{"name": name}', ok: [201], credential: {token: response.json.secret}}
retire_credential: {method: DELETE, path: '["v1", "credentials", "mine"]', gone: [401]}
check:
`)
	w.write("targets/overlap", map[string]any{"driver": "http", "url": w.serve(c), "profile": profile, "ca_pem": w.ca, "credential": "token=canary-credential-0"})
	return c
}

func TestCredentialWithOverlap(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.withCredentials()
	w.write("rotate-root/overlap", nil)
	if diff := cmp.Diff([]string{"canary-credential-0", "canary-credential-1"}, c.list()); diff != "" || w.credential("overlap") != "canary-credential-1" {
		t.Errorf("in use is %s (-want +good):\n%s", w.credential("overlap"), diff)
	}
	if reason, _ := reasonOf(w.do(logical.DeleteOperation, "targets/overlap", nil)); reason != reasonBadRequest {
		t.Errorf("deleting it while the old one lives: %q", reason)
	}
	w.pass(time.Minute)
	if diff := cmp.Diff([]string{"canary-credential-1"}, c.list()); diff != "" {
		t.Errorf("a minute later (-want +good):\n%s", diff)
	}

	// One that does not work is not put in use.
	c.broken = true
	if reason, _ := reasonOf(w.do(logical.UpdateOperation, "rotate-root/overlap", nil)); reason != reasonTargetProtocol {
		t.Errorf("one that does not work: %q", reason)
	}
	w.pass(5 * time.Minute)
	if diff := cmp.Diff([]string{"canary-credential-1"}, c.list()); diff != "" || w.credential("overlap") != "canary-credential-1" {
		t.Errorf("in use is %s (-want +good):\n%s", w.credential("overlap"), diff)
	}

	// What an operator writes meanwhile stays, and what was made for nothing is ended.
	c.broken = false
	c.good = append(c.good, "canary-written")
	c.during = func() {
		record, err := w.targetNoun.table.get(t.Context(), w.store, "overlap")
		if err == nil {
			record.Credential = maps.Clone(record.Credential)
			record.Credential["token"] = "canary-written"
			err = w.targetNoun.table.put(t.Context(), w.store, "overlap", record)
		}
		if err != nil {
			t.Error(err)
		}
		w.targets.drop("overlap")
	}
	w.write("rotate-root/overlap", nil)
	w.pass(2 * time.Minute)
	if diff := cmp.Diff([]string{"canary-credential-1", "canary-written"}, c.list()); diff != "" || w.credential("overlap") != "canary-written" {
		t.Errorf("in use is %s (-want +good):\n%s", w.credential("overlap"), diff)
	}
	if reason, _ := reasonOf(w.do(logical.DeleteOperation, "targets/overlap", nil)); reason != "" || len(w.stored(rootStates)) != 0 {
		t.Errorf("deleting it: %q, %q", reason, w.stored(rootStates))
	}
}

// A proxy that lets nobody pass says of each credential what the API says of a dead one. It ends none.
func TestProxyEndsNoCredential(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.withCredentials()
	w.write("rotate-root/overlap", nil)
	c.proxy = true
	w.pass(time.Minute)
	for _, again := range []string{"", "a rotation is asked for"} {
		if again != "" {
			_, _ = w.do(logical.UpdateOperation, "rotate-root/overlap", nil)
		}
		if reason, _ := reasonOf(w.do(logical.DeleteOperation, "targets/overlap", nil)); reason != reasonBadRequest {
			t.Errorf("%s: deleting the target while the old credential may live: %q", again, reason)
		}
	}
	c.proxy = false
	w.pass(10 * time.Minute)
	if diff := cmp.Diff([]string{w.credential("overlap")}, c.list()); diff != "" || c.strays != 0 {
		t.Errorf("without the proxy, the credentials that live (-want +got):\n%s", diff)
	}

	// What ended meanwhile by other means is gone, for the one in use is good.
	w.write("rotate-root/overlap", nil)
	c.good = []string{w.credential("overlap")}
	w.pass(time.Minute)
	if reason, _ := reasonOf(w.do(logical.DeleteOperation, "targets/overlap", nil)); reason != "" {
		t.Errorf("deleting the target: %q", reason)
	}
}

// Where nothing tells whether the one in use is good, that the old one is taken no more is all that can be known.
func TestRetiredWithoutACheck(t *testing.T) {
	w := newWorld(t)
	c := &credentials{good: []string{"canary-credential-0"}}
	profile := acme[:strings.Index(acme, "check:\n")] + `rotate_credential: {method: POST, path: '["v1", "credentials"]', json: '{"name": name}', ok: [201], credential: {token: response.json.secret}}
retire_credential: {method: DELETE, path: '["v1", "credentials", "mine"]', gone: [401]}
`
	w.write("targets/overlap", map[string]any{"driver": "http", "url": w.serve(c), "profile": profile, "ca_pem": w.ca, "credential": "token=canary-credential-0"})
	w.write("rotate-root/overlap", nil)
	c.good = []string{w.credential("overlap")}
	w.pass(time.Minute)
	if got := w.rotation("overlap"); got["retiring"] != false || got["last_error"] != "" {
		t.Errorf("%v", got)
	}
}

// Whatever cannot be written while the old credential lives on: what is in use is good, and no other is in the end, but one
// whose answer could not be kept.
func TestOverlapWithFailingStorage(t *testing.T) {
	t.Parallel()
	eachWriteFails(t, func(t *testing.T, _ int, arm func(*world)) {
		w := newWorld(t)
		c := w.withCredentials()
		arm(w)
		_, _ = w.do(logical.UpdateOperation, "rotate-root/overlap", nil)
		w.restart()
		w.pass(5 * time.Minute)
		w.store.set(nil)
		w.pass(2 * time.Hour)
		if c.made > 1 || !slices.Contains(c.list(), w.credential("overlap")) {
			t.Errorf("%d were made, good are %q, in use is %s", c.made, c.list(), w.credential("overlap"))
		}
		if state := w.rotation("overlap")["rotation"]; len(c.list()) != 1 && state != "unknown" {
			t.Errorf("good are %q, and the rotation is %v", c.list(), state)
		}
	})
}
