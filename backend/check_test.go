// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// wantCheck wants the state and the reason of a target's check, and that no secret is in its answer. It returns the detail.
func (w *world) wantCheck(name, state, reason string) string {
	w.t.Helper()
	got := w.read("check/" + name)
	if got["state"] != state || got["reason"] != reason || (got["hint"] == "") != (state == checkOK) {
		w.t.Errorf("check of %s: %v; want %s for %q", name, got, state, reason)
	}
	if text := fmt.Sprint(got, w.logs); strings.Contains(text, adminToken) || strings.Contains(text, "injected fault") {
		w.t.Errorf("the answer or the log holds the credential, or what the target said: %s", text)
	}
	return got["detail"].(string)
}

func TestCheck(t *testing.T) {
	w := newWorld(t).withNuGet()
	want := map[string]any{
		"target": "acme", "driver": "http", "enabled": true, "deleted": false, "revoke": true, "renew": true, "find": true, "check": true, "list": true, "rotate": false, "identify": false, "rotate_root": false,
		"subject_token": nil, "state": "ok", "reason": "", "hint": "", "detail": "",
	}
	w.store.set(nil)
	if diff := cmp.Diff(want, w.read("check/acme")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, op := range w.store.seen {
		if !strings.HasPrefix(op, "get ") {
			t.Errorf("checking did %s", op)
		}
	}
	if n := w.keys.Calls(lab.OpCheck); n != 1 || len(w.keys.Live()) != 0 {
		t.Errorf("the target was asked %d times; %d keys live", n, len(w.keys.Live()))
	}
	if got := w.read("check/nuget"); got["state"] != "unsupported" || got["hint"] == "" || got["revoke"] != false || got["subject_token"].(map[string]any)["state"] != "unsupported" {
		t.Errorf("a target that cannot be asked: %v", got)
	}
	if resp, err := w.do(logical.ReadOperation, "check/nobody", nil); resp != nil || err != nil {
		t.Errorf("a target that does not exist: %v, %v; want neither, which is a 404", resp, err)
	}
	if resp, err := w.do(logical.ReadOperation, "check/..", nil); resp != nil || err != nil {
		t.Errorf("no name: %v, %v", resp, err)
	}
}

func TestCheckOfWhatFails(t *testing.T) {
	for name, c := range map[string]struct {
		fault  lab.Fault
		reason string
		detail string
	}{
		"error":      {lab.Fault{Kind: lab.KindStatus, Status: 500}, reasonTargetBusy, "it answered otherwise than expected (status 500)"},
		"busy":       {lab.Fault{Kind: lab.KindStatus, Status: 503}, reasonTargetBusy, "try again later (status 503)"},
		"no answer":  {lab.Fault{Kind: lab.KindCut}, reasonTargetBusy, "the connection failed"},
		"refusal":    {lab.Fault{Kind: lab.KindStatus, Status: 403}, reasonTargetDenied, "it refused (status 403)"},
		"other API":  {lab.Fault{Kind: lab.KindStatus, Status: 405}, reasonTargetProtocol, "it answered otherwise than expected (status 405)"},
		"login page": {lab.Fault{Kind: lab.KindRedirect, Location: "https://elsewhere.example"}, reasonTargetProtocol, "it redirects, and redirects are not followed; correct the target's url (status 302)"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.keys.Fault(lab.OpCheck, c.fault)
			if got := w.wantCheck("acme", "failed", c.reason); got != c.detail {
				t.Errorf("detail %q; want %q", got, c.detail)
			}
			if !strings.Contains(w.logs.String(), "a target failed its check") {
				t.Error("nothing is logged")
			}
		})
	}
}

func TestCheckOfACredential(t *testing.T) {
	w := newWorld(t)
	w.write("targets/acme", map[string]any{"credential": "token=canary-wrong"})
	if got := w.wantCheck("acme", "failed", reasonTargetDenied); got != "it refused (status 401)" || strings.Contains(w.logs.String(), "canary-wrong") {
		t.Errorf("detail %q", got)
	}
	w.write("targets/acme", map[string]any{"credential": "token=" + adminToken, "enabled": false})
	w.wantCheck("acme", "ok", "")
}

// A target that is deleted while keys live there has to take revocations, so that can still be asked.
func TestCheckOfATombstone(t *testing.T) {
	w := newWorld(t)
	w.issue("deploy")
	w.delete("roles/deploy", nil)
	w.delete("targets/acme", map[string]any{"force": true})
	if got := w.read("check/acme"); got["deleted"] != true || got["state"] != "ok" {
		t.Errorf("%v", got)
	}
}

func TestCheckByTheRules(t *testing.T) {
	w := newWorld(t)
	w.write("config", map[string]any{"allow_private": ""})
	if got := w.wantCheck("acme", "failed", reasonEgress); !strings.Contains(got, "allow_private") {
		t.Errorf("detail %q", got)
	}
	w.write("config", map[string]any{"allow_private": "127.0.0.0/8", "egress_hosts": "elsewhere.example"})
	w.wantCheck("acme", "failed", reasonEgress)
}

// A check has its turn like every other call: a target that asked to be left alone is.
func TestCheckIsNoWayRoundTheLimiter(t *testing.T) {
	w := newWorld(t)
	w.keys.Fault(lab.OpCheck, lab.Fault{Kind: lab.KindStatus, Status: http.StatusTooManyRequests, RetryAfter: time.Minute, Count: 1})
	w.wantCheck("acme", "failed", reasonTargetBusy)
	if got := w.wantCheck("acme", "failed", reasonTargetBusy); !strings.Contains(got, "left alone") || w.keys.Calls(lab.OpCheck) != 1 {
		t.Errorf("detail %q after %d calls", got, w.keys.Calls(lab.OpCheck))
	}
	w.clock.advance(time.Minute)
	w.wantCheck("acme", "ok", "")
}

func TestCheckOfTheEnginesOwnToken(t *testing.T) {
	w := newOwned(t, "file")
	verdictOf := func() map[string]any {
		t.Helper()
		got := w.read("check/own")
		if got["state"] != "ok" {
			t.Errorf("the target itself: %v", got)
		}
		return got["subject_token"].(map[string]any)
	}
	want := map[string]any{"source": "file", "state": "ok", "reason": "", "hint": "", "detail": ""}
	if diff := cmp.Diff(want, verdictOf()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	w.writeToken(map[string]any{"aud": "https://other.example"})
	if got := verdictOf(); got["state"] != "failed" || got["reason"] != reasonNotForwardable || got["hint"] == "" || got["detail"] == "" {
		t.Errorf("a token for another audience: %v", got)
	}
	w.wantUnseen()
	if len(w.presented) > 0 {
		t.Errorf("%d tokens were sent", len(w.presented))
	}
}

func TestCheckOfATokenEndpoint(t *testing.T) {
	w := newOwned(t, "client_credentials")
	w.endpoint.Fault(lab.OpGrant, lab.Fault{Kind: lab.KindStatus, Status: 503, Count: 1})
	if got := w.read("check/own")["subject_token"].(map[string]any); got["reason"] != reasonTargetBusy {
		t.Errorf("an endpoint that is down: %v", got)
	}
	if got := w.read("check/own")["subject_token"].(map[string]any); got["state"] != "ok" {
		t.Errorf("an endpoint that is up again: %v", got)
	}
	w.wantUnseen()
}

func TestCheckOfSelf(t *testing.T) {
	w := newOwned(t, "self")
	if got := w.read("check/own")["subject_token"].(map[string]any); got["state"] != "failed" || got["reason"] != reasonDisabled {
		t.Errorf("while self is off: %v", got)
	}
	w.write("self", map[string]any{"issuer_url": "https://vault.example/v1/oidcexchange/oidc"})
	if got := w.read("check/own")["subject_token"].(map[string]any); got["state"] != "ok" {
		t.Errorf("while self is on: %v", got)
	}
}

func TestCheckWhileStorageFails(t *testing.T) {
	for _, key := range []string{"targets/acme", "config"} {
		w := newWorld(t)
		w.configChanged()
		w.store.set(func(op, at string) error {
			if op == "get" && at == key {
				return errors.New("disk full")
			}
			return nil
		})
		if reason, status := reasonOf(w.do(logical.ReadOperation, "check/acme", nil)); reason != reasonStorage || status != 500 {
			t.Errorf("%s cannot be read: %q, status %d; want an error, for nothing is known of the target", key, reason, status)
		}
	}
}
