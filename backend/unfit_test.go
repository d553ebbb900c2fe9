// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// An issuer that config no longer allows refuses its own subjects; roles that have others beside it work on.
func TestUnfitIssuerRefusesItsOwnSubjectsAlone(t *testing.T) {
	w := newWorld(t)
	const corp = "https://10.0.0.7"
	w.write("config", map[string]any{"allow_private": "127.0.0.0/8,10.0.0.0/8"})
	w.write("issuers/corp", map[string]any{"oidc_discovery_url": corp})
	w.write("trust/corp", map[string]any{"issuer": "corp", "bound_audiences": audience, "bound_claims": map[string]any{"repository": "acme/widget"}})
	w.write("roles/deploy", map[string]any{"trust": "corp,main,alice"})
	lease := w.issue("deploy")
	w.write("config", map[string]any{"allow_private": "127.0.0.0/8"})

	w.issue("deploy")
	if resp, err := w.do(logical.ReadOperation, "creds/deploy", nil); err != nil || resp.IsError() {
		t.Errorf("a login: %v %v", resp, err)
	}
	if reason, _ := reasonOf(w.lease(logical.RenewOperation, lease)); reason != "" {
		t.Errorf("renewing the key of another issuer: %q", reason)
	}
	if reason, status := reasonOf(w.exchange("deploy", w.token(map[string]any{"iss": corp}))); reason != reasonEgress || status != 403 {
		t.Errorf("a token of the issuer itself: %q %d", reason, status)
	}
	if n := strings.Count(w.logs.String(), "an issuer no longer fits config"); n != 1 {
		t.Errorf("the log says it %d times; want once", n)
	}
	if health := w.issuerHealth("corp"); !strings.Contains(health["last_error"].(string), "no longer fits config") || health["type"] != "oidc" {
		t.Errorf("status: %v", health)
	}
	if reason, _ := reasonOf(w.do(logical.UpdateOperation, "refresh/corp", nil)); reason != reasonEgress {
		t.Errorf("refreshing it: %q", reason)
	}
	for _, one := range w.write("explain/deploy", map[string]any{"subject_token": w.token(nil)}).Data["issuers"].([]map[string]any) {
		if want := map[string]string{"corp": reasonEgress, "github": "", "people": "token_required"}[one["issuer"].(string)]; one["reason"] != want {
			t.Errorf("explain: %v; want %q", one, want)
		}
	}
	sample := map[string]any{"issuer": "corp", "claims": map[string]any{"sub": "x", "repository": "acme/widget"}}
	if got := w.write("explain/deploy", sample).Data; got["accepted"] != false || got["reason"] != reasonEgress {
		t.Errorf("sample claims: %v", got)
	}
}

// Whatever config says of an issuer or a target, it stays switched off when config is changed again.
func TestUnfitIsSwitchedOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	paths := map[string]map[string]any{"issuers/github": {"oidc_discovery_url": w.issuerURL}, "targets/acme": {"url": w.keysURL}}
	w.write("config", map[string]any{"egress_hosts": "nowhere.example"})
	for path, other := range paths {
		for field, value := range other {
			w.refused(path, map[string]any{"enabled": false, field: value}, field) // what else is written is checked
		}
		w.write(path, map[string]any{"enabled": "false"})
	}
	w.write("config", map[string]any{"egress_hosts": []any{}})
	for path := range paths {
		if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonDisabled {
			t.Errorf("before %s is switched on: %q; want %s", path, reason, reasonDisabled)
		}
		w.write(path, map[string]any{"enabled": true})
	}
	w.issue("deploy")
	for path, field := range map[string]string{"issuers/new": "issuer", "trust/new": "issuer", "targets/new": "driver", "roles/new": "trust"} {
		w.refused(path, map[string]any{"enabled": false}, field) // it is no way to make one that nobody checked
	}
	w.refused("trust/main", map[string]any{"enabled": false, "condition": "claims."}, "condition")
	w.refused("roles/deploy", map[string]any{"enabled": false, "trust": "none"}, "trust")
}

// A login issuer can be unfit too: the rules of a later version may refuse what is stored.
func TestUnfitLogin(t *testing.T) {
	w := newWorld(t)
	record, err := w.issuerNoun.table.get(t.Context(), w.store.Storage, "people")
	if err == nil {
		record.MountAccessor = ""
		err = w.issuerNoun.table.put(t.Context(), w.store.Storage, "people", record)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.issuers.drop("people")
	before := len(w.store.seen)
	if reason, _ := reasonOf(w.do(logical.ReadOperation, "creds/deploy", nil)); reason != reasonEgress {
		t.Errorf("creds: %q", reason)
	}
	for _, did := range w.store.seen[before:] {
		if strings.HasPrefix(did, "put ") {
			t.Errorf("it was refused after %s", did)
		}
	}
	if told := w.write("explain/deploy", nil).Data; told["reason"] != reasonEgress {
		t.Errorf("explain: %v %v", told["reason"], told["detail"])
	}
}

// A later version may have rules that a stored policy or role does not meet. That is no fault of a caller, who hears nothing of it.
func TestUnfitPolicyAndRole(t *testing.T) {
	for name, spoil := range map[string]func(w *world) error{
		"policy": func(w *world) error {
			record, err := w.trustNoun.table.get(t.Context(), w.store.Storage, "main")
			if err != nil {
				return err
			}
			record.BoundClaimsType, record.BoundClaims = "glob", map[string]any{"repository": "canary" + strings.Repeat("/*", 20)}
			defer w.policies.drop("main")
			return w.trustNoun.table.put(t.Context(), w.store.Storage, "main", record)
		},
		"role": func(w *world) error {
			record, err := w.roleNoun.table.get(t.Context(), w.store.Storage, "deploy")
			if err != nil {
				return err
			}
			record.LeasePath = "canary"
			defer w.roles.drop("deploy")
			return w.roleNoun.table.put(t.Context(), w.store.Storage, "deploy", record)
		},
	} {
		w := newWorld(t)
		lease := w.issue("deploy")
		if err := spoil(w); err != nil {
			t.Fatal(err)
		}
		resp, err := w.exchange("deploy", w.token(nil))
		if reason, status := reasonOf(resp, err); reason != reasonStorage || status != 500 || strings.Contains(err.Error(), "bound_claims") || strings.Contains(err.Error(), "lease_path") {
			t.Errorf("%s: %v %v", name, resp, err)
		}
		if !strings.Contains(w.logs.String(), "is not valid in this version") {
			t.Errorf("%s: the log does not say what is wrong:\n%s", name, w.logs)
		}
		if reason, _ := reasonOf(w.lease(logical.RenewOperation, lease)); reason != reasonStorage {
			t.Errorf("%s: renewing: %q", name, reason)
		}
		path := map[string]string{"policy": "trust/main", "role": "roles/deploy"}[name]
		before := w.read(path)
		w.write(path, map[string]any{"enabled": false})
		if after := w.read(path); after["enabled"] != false || name == "policy" && fmt.Sprint(after["revision"]) == fmt.Sprint(before["revision"]) {
			t.Errorf("%s: switched off: %v", name, after)
		}
		w.revoke(lease)
	}
}

// Its keys are not renewed, and a subject that was verified before is refused at the last moment.
func TestKeysOfAnUnfitIssuer(t *testing.T) {
	w := newWorld(t)
	lease := w.issue("deploy")
	unfit := func() {
		record, err := w.issuerNoun.table.get(t.Context(), w.store.Storage, "github")
		if err == nil {
			record.OIDCDiscoveryURL = "https://10.0.0.7"
			err = w.issuerNoun.table.put(t.Context(), w.store.Storage, "github", record)
		}
		if err != nil {
			t.Fatal(err)
		}
		w.issuers.drop("github")
	}
	token := w.token(nil)
	once := false
	w.store.set(func(op, key string) error {
		if op == "put" && strings.HasPrefix(key, openEntries) && !once {
			once = true
			unfit()
		}
		return nil
	})
	if reason, _ := reasonOf(w.exchange("deploy", token)); reason != reasonEgress || len(w.keys.Live()) != 1 {
		t.Errorf("verified just before: %q; %d keys live", reason, len(w.keys.Live()))
	}
	w.clock.advance(time.Minute)
	if reason, _ := reasonOf(w.lease(logical.RenewOperation, lease)); reason != reasonEgress {
		t.Errorf("renewing: %q", reason)
	}
	w.revoke(lease)
}
