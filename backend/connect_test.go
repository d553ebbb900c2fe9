// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

const connectAdmin = "canary-connect-admin"

// connected is a world with a Posit Connect server below a path: role publish gets keys of a service principal, role visit
// those of the user bob, role report those that the API makes for the engine's own user.
type connected struct {
	*world
	connect *lab.Connect
}

func newConnected(t *testing.T, o lab.ConnectOptions) *connected {
	t.Helper()
	w := &connected{world: newWorld(t)}
	o.Issuers, o.Client, o.Now, o.Path = []string{w.issuerURL}, w.client(), w.clock.now, "/rsc"
	w.connect = lab.NewConnect(o)
	w.connect.AddPublisher(lab.ConnectPublisher{Name: "widget", Claims: map[string]string{"repository": "acme/widget"}})
	w.connect.AddIntegration(lab.ConnectIntegration{GUID: "i-1", Audience: "connect", MatchClaim: "actor"})
	w.connect.AddUser(lab.ConnectUser{GUID: "g-bob", Username: "octocat"}, "")
	w.connect.AddUser(lab.ConnectUser{GUID: "g-engine", Username: "vault", Role: "administrator"}, connectAdmin)
	server := w.serve(w.connect)
	w.write("issuers/github", map[string]any{"forward_to": strings.TrimPrefix(server, "https://")})
	w.write("trust/connect", map[string]any{"issuer": "github", "bound_audiences": "connect", "bound_claims": map[string]any{"repository": "acme/widget"}})
	w.write("targets/connect", map[string]any{"driver": "connect", "url": server + "/rsc", "ca_pem": w.ca, "allowed_roles": "*", "lifetime": "30m"})
	w.write("targets/connect-keys", map[string]any{"driver": "connect", "url": server + "/rsc", "ca_pem": w.ca, "allowed_roles": "*", "credential": "api_key=" + connectAdmin})
	w.write("roles/publish", map[string]any{"trust": "connect", "target": "connect"})
	w.write("roles/visit", map[string]any{"trust": "connect", "target": "connect", "parameters": map[string]any{"flow": "federation", "integration": "i-1"}})
	w.write("roles/report", map[string]any{"trust": "main", "target": "connect-keys", "parameters": map[string]any{"user": "g-engine", "user_role": "viewer"}, "ttl": "15m", "max_ttl": "2h"})
	return w
}

func (w *connected) forConnect() string { return w.token(map[string]any{"aud": "connect"}) }

// wantKeys checks which keys live beside the engine's own, by name or service principal.
func (w *connected) wantKeys(want ...string) {
	w.t.Helper()
	got := []string{}
	for _, k := range w.connect.Live()[1:] {
		got = append(got, k.Name+k.Principal)
	}
	if diff := cmp.Diff(append([]string{}, want...), got); diff != "" {
		w.t.Errorf("keys at Connect (-want +got):\n%s", diff)
	}
}

func (w *connected) refuses(role, token, reason string, status int) {
	w.t.Helper()
	if gotReason, gotStatus := reasonOf(w.exchange(role, token)); gotReason != reason || gotStatus != status {
		w.t.Errorf("%s: %s, %d; want %s, %d", role, gotReason, gotStatus, reason, status)
	}
}

// Keys that are exchanged end by themselves, whatever becomes of their lease.
func TestConnectExchanges(t *testing.T) {
	for role, username := range map[string]any{"publish": nil, "visit": "octocat"} {
		t.Run(role, func(t *testing.T) {
			w := newConnected(t, lab.ConnectOptions{})
			resp, err := w.exchange(role, w.forConnect())
			if err != nil || resp.IsError() {
				t.Fatalf("%v %v\n%s", err, resp, w.logs)
			}
			key := resp.Data["api_key"].(string)
			end := w.clock.now().Add(15 * time.Minute)
			got := []any{resp.Data["header_name"], resp.Data["header_value"], resp.Data["username"], resp.Data["accessor"], resp.Data["revocable"], resp.Data["expires_at"], resp.Secret.Renewable, resp.Secret.TTL}
			want := []any{"Authorization", "Key " + key, username, "", false, end.UTC().Format(time.RFC3339), false, 14 * time.Minute}
			if diff := cmp.Diff(want, got); diff != "" || !w.connect.Valid(key) {
				t.Errorf("-want +got:\n%s", diff)
			}
			w.revoke(resp)
			if record := w.read("keys/" + resp.Data["id"].(string)); record["state"] != "exposed" || !w.connect.Valid(key) {
				t.Errorf("after its lease's end the key is %v", record)
			}
			w.clock.advance(4 * time.Hour) // its end has passed for sure
			w.write("sweep", nil)
			if left := w.ledgerEntries(); len(left) != 0 || w.connect.Valid(key) {
				t.Errorf("left are %v", left)
			}
		})
	}
}

// A refusal leaves nothing, and the token is good for another try; the log says what to mend, in no word of the server's.
func TestConnectRefuses(t *testing.T) {
	w := newConnected(t, lab.ConnectOptions{})
	token := w.token(map[string]any{"aud": "connect", "actor": "stranger"})
	w.refuses("visit", token, reasonTargetDenied, http.StatusUnprocessableEntity)
	w.connect.AddPublisher(lab.ConnectPublisher{Name: "second"})
	w.refuses("publish", token, reasonTargetDenied, http.StatusUnprocessableEntity)
	for _, want := range []string{"no user matches the token", "more than one trusted publisher", "invalid_grant: ambiguous match"} {
		if !strings.Contains(w.logs.String(), want) {
			t.Errorf("the log does not say %q", want)
		}
	}
	w.connect.Fault(lab.OpDiscovery, lab.Fault{Kind: lab.KindStatus, Status: 502, Count: 1})
	w.refuses("publish", token, reasonTargetBusy, http.StatusServiceUnavailable)
	w.connect.Fault(lab.OpDiscovery, lab.Fault{Kind: lab.KindHTML, Count: 1})
	w.refuses("publish", token, reasonTargetDenied, http.StatusUnprocessableEntity)
	w.refused("roles/publish", map[string]any{"parameters": "integration=i-1"}, "parameters.integration")
	w.wantKeys()
	if left := w.ledgerEntries(); len(left) != 0 || w.connect.Calls(lab.OpToken) != 1 {
		t.Errorf("left are %v; %d exchanges were tried", left, w.connect.Calls(lab.OpToken))
	}
	old := newConnected(t, lab.ConnectOptions{NoOAuth: true})
	old.refuses("publish", old.forConnect(), reasonTargetDenied, http.StatusUnprocessableEntity)
}

// A key whose answer was lost, or that could not be confirmed, cannot be found: the ledger shows it for as long as the target's
// keys may live.
func TestConnectUnknownOutcome(t *testing.T) {
	for name, fault := range map[string]func(*lab.Connect){
		"answer lost":      func(c *lab.Connect) { c.Fault(lab.OpToken, lab.Fault{Kind: lab.KindCut, After: true, Count: 1}) },
		"answer spoilt":    func(c *lab.Connect) { c.Fault(lab.OpToken, lab.Fault{Kind: lab.KindTruncate, Count: 1}) },
		"not confirmed":    func(c *lab.Connect) { c.Fault(lab.OpWhoami, lab.Fault{Kind: lab.KindStatus, Status: 503, Count: 1}) },
		"confirmation cut": func(c *lab.Connect) { c.Fault(lab.OpWhoami, lab.Fault{Kind: lab.KindCut, Count: 2}) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newConnected(t, lab.ConnectOptions{})
			fault(w.connect)
			token := w.forConnect()
			w.refuses("publish", token, reasonOutcomeUnknown, http.StatusUnprocessableEntity)
			w.refuses("publish", token, reasonReplayed, http.StatusForbidden)
			w.wantKeys("widget")
			asked := w.clock.now()
			w.settleAll()
			ids := w.list("keys")
			if len(ids) != 1 {
				t.Fatalf("the ledger has %v", ids)
			}
			record := w.read("keys/" + ids[0])
			if want := asked.Add(33 * time.Minute).UTC().Format(time.RFC3339); record["state"] != "exposed" || record["expires_at"] != want {
				t.Errorf("state %v until %v; want exposed until %v", record["state"], record["expires_at"], want)
			}
			w.clock.advance(4 * time.Hour)
			w.write("sweep", nil)
			if left := w.ledgerEntries(); len(left) != 0 {
				t.Errorf("left are %v", left)
			}
		})
	}
	w := newConnected(t, lab.ConnectOptions{})
	w.connect.Fault(lab.OpToken, lab.Fault{Kind: lab.KindNoSecret, Count: 1})
	w.refuses("publish", w.forConnect(), reasonTargetProtocol, http.StatusUnprocessableEntity)
}

func TestConnectUserKeys(t *testing.T) {
	w := newConnected(t, lab.ConnectOptions{})
	resp := w.issue("report")
	key := w.connect.Live()[1]
	end := w.clock.now().Add(2*time.Hour + expirySlack)
	got := []any{resp.Data["accessor"], resp.Data["revocable"], resp.Data["expires_at"], resp.Secret.Renewable, resp.Secret.TTL, key.User, key.Role, key.ExpiresAt}
	want := []any{key.ID, true, end.UTC().Format(time.RFC3339), true, 15 * time.Minute, "g-engine", "viewer", end.UTC()}
	if diff := cmp.Diff(want, got); diff != "" || !w.connect.Valid(resp.Data["api_key"].(string)) {
		t.Errorf("-want +got:\n%s", diff)
	}
	if renewed, err := w.lease(logical.RenewOperation, resp); err != nil || renewed.IsError() || renewed.Secret.TTL != 15*time.Minute {
		t.Errorf("renewing: %v %v", err, renewed)
	}
	w.revoke(resp)
	w.revoke(resp) // Vault may ask twice
	w.wantKeys()
	if left := w.ledgerEntries(); len(left) != 0 {
		t.Errorf("left are %v", left)
	}

	w.connect.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	w.refuses("report", w.token(nil), reasonOutcomeUnknown, http.StatusUnprocessableEntity)
	if len(w.connect.Live()) != 2 {
		t.Fatal("the lost key does not live: then this test proves nothing")
	}
	w.settleAll()
	w.wantKeys()
	if left := w.ledgerEntries(); len(left) != 0 {
		t.Errorf("left are %v", left)
	}

	w.write("roles/report", map[string]any{"parameters": "user=g-bob"})
	w.refuses("report", w.token(nil), reasonTargetDenied, http.StatusUnprocessableEntity)
	if want := "Connect makes keys for the credential's own user alone"; !strings.Contains(w.logs.String(), want) {
		t.Errorf("the log does not say %q", want)
	}
	w.refused("targets/connect-keys", map[string]any{"credential": map[string]any{}}, "credential")
	w.refused("targets/connect", map[string]any{"credential": "api_key=" + connectAdmin, "lifetime": 0}, "credential")
	w.refused("targets/connect", map[string]any{"lifetime": "400d"}, "lifetime")
	if strings.Contains(w.logs.String(), connectAdmin) {
		t.Error("the log has the credential")
	}
}
