// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

const operatorKey = "canary-operator-key"

// proxied is a world with a git-proxy-java, and role push for its keys.
type proxied struct {
	*world
	proxy *lab.GitProxy
}

func newProxied(t *testing.T, o lab.GitProxyOptions) *proxied {
	t.Helper()
	w := &proxied{world: newWorld(t)}
	o.OperatorKey = operatorKey
	w.proxy = lab.NewGitProxy(o)
	w.write("targets/proxy", map[string]any{"driver": "git-proxy-java", "url": w.serve(w.proxy), "ca_pem": w.ca, "credential": "api_key=" + operatorKey,
		"allowed_roles": "push", "condition": `!("ADMIN" in params.roles)`})
	w.write("roles/push", map[string]any{"trust": "main", "target": "proxy", "ttl": "15m", "max_ttl": "2h"})
	return w
}

// wantNothing checks that neither target nor ledger has anything left, and that what the users logged in with was seen by
// nobody.
func (w *proxied) wantNothing() {
	w.t.Helper()
	w.wantUnseen()
	if users, entries := w.proxy.Users(), w.ledgerEntries(); len(users)+len(entries) > 0 {
		w.t.Errorf("left are the users %v and the entries %v", users, entries)
	}
}

// wantUnseen wants no password and no session of a user in the log, in storage, or in what else was said.
func (w *proxied) wantUnseen(said ...any) {
	w.t.Helper()
	texts := map[string]string{"the log": w.logs.String(), "an answer": fmt.Sprintf("%+v", said)}
	for _, path := range w.stored("") {
		entry, err := w.store.Storage.Get(w.t.Context(), path)
		if err != nil {
			w.t.Fatal(err)
		}
		texts[path] = string(entry.Value)
	}
	for where, text := range texts {
		for _, secret := range w.proxy.Secrets() {
			if strings.Contains(text, secret) {
				w.t.Errorf("%s has a password or a session of a user", where)
			}
		}
	}
}

func TestGitProxyLifeOfAKey(t *testing.T) {
	w := newProxied(t, lab.GitProxyOptions{})
	resp := w.issue("push")
	users := w.proxy.Users()
	if len(users) != 1 {
		t.Fatalf("users %v", users)
	}
	name := users[0].Username
	if diff := cmp.Diff([]lab.GitProxyUser{{Username: name, Roles: []string{"USER", "SELF_CERTIFY"}, HasKey: true}}, users); diff != "" {
		t.Error(diff)
	}
	got := []any{resp.Data["accessor"], resp.Data["header_name"], resp.Data["revocable"], resp.Data["expires_at"], resp.Secret.Renewable, resp.Secret.TTL}
	want := []any{name, "X-Api-Key", true, nil, true, 15 * time.Minute}
	if diff := cmp.Diff(want, got); diff != "" || !strings.HasPrefix(name, "oidcx-") || !w.proxy.Valid(resp.Data["api_key"].(string)) {
		t.Errorf("-want +got:\n%s", diff)
	}
	w.wantUnseen(resp.Data, resp.Secret.InternalData)
	second := w.issue("push") // two leases have two users: neither ends the other's key
	if renewed, err := w.lease(logical.RenewOperation, resp); err != nil || renewed.IsError() || renewed.Secret.TTL != 15*time.Minute {
		t.Errorf("renewing: %v %v", err, renewed)
	}
	w.revoke(resp)
	w.revoke(resp)
	if w.proxy.Valid(resp.Data["api_key"].(string)) || !w.proxy.Valid(second.Data["api_key"].(string)) {
		t.Error("another key was ended than the one that was revoked")
	}
	w.revoke(second)
	w.wantNothing()
}

func TestGitProxyRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		options lab.GitProxyOptions
		roles   string
		reason  string
		status  int
		logged  string
	}{
		"no SELF_CERTIFY":    {lab.GitProxyOptions{}, "USER", reasonTargetDenied, 422, "add it to the parameter roles"},
		"an identity broker": {lab.GitProxyOptions{Provider: "oidc"}, "USER,SELF_CERTIFY", reasonTargetDenied, 422, "auth.provider must be local"},
		"read-only store":    {lab.GitProxyOptions{ReadOnly: true}, "USER,SELF_CERTIFY", reasonTargetDenied, 422, "its user store is read-only"},
		"older version":      {lab.GitProxyOptions{NoUserKeys: true}, "USER,SELF_CERTIFY", reasonTargetDenied, 422, "has no keys for users"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newProxied(t, c.options)
			w.write("roles/push", map[string]any{"parameters": map[string]any{"roles": c.roles}})
			token := w.token(nil)
			for range 2 { // the token is released
				resp, err := w.exchange("push", token)
				w.wantUnseen(resp, err)
				if reason, status := reasonOf(resp, err); reason != c.reason || status != c.status {
					t.Errorf("%s, %d; want %s, %d", reason, status, c.reason, c.status)
				}
			}
			if !strings.Contains(w.logs.String(), c.logged) {
				t.Errorf("the log does not say %q", c.logged)
			}
			w.wantNothing()
			if strings.Contains(w.logs.String(), operatorKey) {
				t.Error("the log has the credential")
			}
		})
	}
	w := newProxied(t, lab.GitProxyOptions{})
	w.refused("roles/push", map[string]any{"parameters": map[string]any{"roles": "USER,SELF_CERTIFY,ADMIN"}}, "condition")
	w.write("targets/proxy", map[string]any{"credential": "api_key=wrong"})
	if reason, status := reasonOf(w.exchange("push", w.token(nil))); reason != reasonTargetDenied || status != http.StatusUnprocessableEntity {
		t.Errorf("%s, %d", reason, status)
	}
	w.wantNothing()
}

// Wherever the way breaks, what is left at the server is a user that the sweeper finds by its name and deletes.
func TestGitProxyUnknownOutcome(t *testing.T) {
	for _, op := range []string{lab.OpCreate, lab.OpLogin, lab.OpMakeKey} {
		for kind, fault := range map[string]lab.Fault{
			"lost":   {Kind: lab.KindCut, After: true, Count: 1},
			"broken": {Kind: lab.KindStatus, Status: 500, After: true, Count: 1},
		} {
			t.Run(op+" "+kind, func(t *testing.T) {
				w := newProxied(t, lab.GitProxyOptions{})
				w.proxy.Fault(op, fault)
				if reason, status := reasonOf(w.exchange("push", w.token(nil))); reason != reasonOutcomeUnknown || status != http.StatusUnprocessableEntity {
					t.Errorf("%s, %d", reason, status)
				}
				if len(w.proxy.Users()) != 1 {
					t.Fatal("no user is left: then this test proves nothing")
				}
				w.settleAll()
				w.wantNothing()
			})
		}
	}
	t.Run("refused, and the user stays", func(t *testing.T) {
		w := newProxied(t, lab.GitProxyOptions{})
		w.write("roles/push", map[string]any{"parameters": "roles=USER"})
		w.proxy.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindCut, Count: 2})
		if reason, _ := reasonOf(w.exchange("push", w.token(nil))); reason != reasonOutcomeUnknown || len(w.proxy.Users()) != 1 {
			t.Errorf("%s, users %v", reason, w.proxy.Users())
		}
		w.proxy.ClearFaults()
		w.settleAll()
		w.wantNothing()
	})
}

// The process ends while the new user logs in.
func TestGitProxyCrashBetweenSteps(t *testing.T) {
	w := newProxied(t, lab.GitProxyOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	w.proxy.Fault(lab.OpLogin, lab.Fault{Kind: lab.KindHang, Count: 1})
	w.proxy.OnRequest(func(op string, _ lab.Stage) {
		if op == lab.OpLogin {
			cancel()
		}
	})
	_, err := w.request(ctx, "crash", logical.UpdateOperation, "creds/push", map[string]any{"subject_token": w.token(nil)})
	if reason, _ := reasonOf(nil, err); reason != reasonOutcomeUnknown {
		t.Errorf("refused for %v", err)
	}
	w.restart()
	if users := w.proxy.Users(); len(users) != 1 || users[0].HasKey {
		t.Fatalf("users %v; want one without a key", users)
	}
	w.settleAll()
	w.wantNothing()
}
