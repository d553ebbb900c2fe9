// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"net/http"
	"testing"

	"github.com/hashicorp/vault/api"
)

// Between issue and revoke, Vault or the plugin is killed, reloaded or sealed: leases still renew, and still end keys.
func testRestarts(t *testing.T, shared *server) {
	s := startServer(t, shared.bin, shared.built) // for this harms all of Vault
	w := newWorld(t, s, pluginName)
	for _, harm := range []struct {
		name string
		do   func()
	}{
		{"Vault killed", func() {
			s.kill(t)
			s.launch(t)
			s.unseal(t)
		}},
		{"plugin killed", func() {
			s.killPlugin(t, pluginName)
			w.recovered(t)
		}},
		{"plugin reloaded", func() { s.must(t, s.root.Token(), "plugin", "reload", "-plugin="+pluginName) }},
		{"mount reloaded", func() { w.rootWrite(t, "sys/plugins/reload/backend", map[string]any{"mounts": w.path}) }},
		{"Vault sealed", func() {
			if err := s.root.Sys().SealWithContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.unseal(t)
		}},
	} {
		w.wantSurvival(t, harm.name, harm.do)
	}
	s.wantClean(t)
}

// wantSurvival issues keys, does harm, and checks that everything goes on as before.
func (w *world) wantSurvival(t *testing.T, harm string, do func()) {
	t.Helper()
	token := w.token(nil)
	byToken, err := w.exchange(t, "deploy", token)
	if err != nil {
		t.Fatalf("%s: issuing before: %v", harm, err)
	}
	byLogin, err := w.user.Logical().ReadWithContext(t.Context(), w.path+"/creds/deploy")
	if err != nil {
		t.Fatalf("%s: issuing before: %v", harm, err)
	}
	w.hold(byLogin)

	do()

	w.wantConsistent(t)
	for _, secret := range []*api.Secret{byToken, byLogin} {
		renewed, err := w.user.Sys().RenewWithContext(t.Context(), secret.LeaseID, 1200)
		if err != nil || renewed.LeaseDuration != 1200 {
			t.Errorf("%s: renewing: %v %v", harm, renewed, err)
		}
		if status := w.use(t, secret.Data["api_key"].(string)); status != http.StatusOK {
			t.Errorf("%s: the target answers the key with %d", harm, status)
		}
	}
	_, err = w.exchange(t, "deploy", token)
	wantRefused(t, err, http.StatusForbidden, "replayed")
	w.issue(t, "deploy")
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", byToken.LeaseID)
	if status := w.use(t, byToken.Data["api_key"].(string)); status != http.StatusUnauthorized {
		t.Errorf("%s: the target answers a dead key with %d", harm, status)
	}
	w.wantConsistent(t)
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds")
	w.wantNone(t)
}
