// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// A workload exchanges its JWT-SVID, which the plugin verifies with the bundle from its own Workload API.
func testSPIFFE(t *testing.T, s *server) {
	const id = "spiffe://example.org/ns/acme/sa/widget"
	socket := filepath.Join(t.TempDir(), "agent.sock")
	agent := lab.NewWorkloadAPI(lab.WorkloadAPIOptions{IDs: []string{id}})
	if err := agent.Start(socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(agent.Stop)
	s.register(t, "spiffe", s.built.plain, "SPIFFE_ENDPOINT_SOCKET=unix://"+socket)
	w := newWorld(t, s, "spiffe")
	w.write(t, "config", map[string]any{"jwks_min_refresh": "1s"})
	domain := map[string]any{"type": "spiffe", "trust_domain": "example.org", "workload_api": true, "verify": true}
	w.write(t, "issuers/domain", domain)
	w.write(t, "trust/workload", map[string]any{"issuer": "domain", "bound_audiences": audience, "bound_subject": id})
	w.write(t, "roles/deploy", map[string]any{"trust": "main,workload"})

	workload, err := workloadapi.New(t.Context(), workloadapi.WithAddr("unix://"+socket))
	if err != nil {
		t.Fatal(err)
	}
	defer workload.Close()
	svid := func() string {
		t.Helper()
		got, err := workload.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: audience})
		if err != nil {
			t.Fatal(err)
		}
		return w.secret(got.Marshal())
	}
	first := svid()
	for range 2 { // an agent gives the same one until it expires
		secret, err := w.exchange(t, "deploy", first)
		if err != nil {
			t.Fatal(err)
		}
		if secret.Data["issuer"] != "domain" || secret.Data["subject"] != id || w.use(t, secret.Data["api_key"].(string)) != http.StatusOK {
			t.Errorf("key: %v", secret.Data)
		}
		if renewed, err := w.user.Sys().RenewWithContext(t.Context(), secret.LeaseID, 1200); err != nil || renewed.LeaseDuration != 1200 {
			t.Errorf("renewing: %v %v", renewed, err)
		}
	}

	own := agent.Domain("example.org")
	old, _ := own.Key()
	own.Rotate()
	own.Retire(old)
	eventually(t, "the new key", func() (bool, string) {
		_, err := w.exchange(t, "deploy", svid())
		return err == nil, reasonOf(err)
	})
	_, err = w.exchange(t, "deploy", first)
	wantRefused(t, err, http.StatusForbidden, "unknown_key")

	foreign := map[string]any{"sub": "spiffe://other.example/ns/acme/sa/widget", "aud": audience}
	_, err = w.exchange(t, "deploy", w.secret(agent.SVID(foreign)))
	wantRefused(t, err, http.StatusForbidden, "unknown_issuer")
	_, err = w.exchange(t, "deploy", w.secret(agent.SVID(map[string]any{"sub": "spiffe://example.org/ns/evil/sa/widget", "aud": audience})))
	wantRefused(t, err, http.StatusForbidden, "not_trusted")
	w.issue(t, "deploy") // a token of the OpenID provider beside them

	// Without the variable the plugin says how to register it.
	plain := newWorld(t, s, pluginName)
	_, err = plain.root.Logical().WriteWithContext(t.Context(), plain.path+"/issuers/domain", domain)
	if status, text := refusal(err); status != http.StatusBadRequest || !strings.Contains(text, "vault plugin register -env=SPIFFE_ENDPOINT_SOCKET=unix:///") {
		t.Errorf("without the variable: %d %s", status, text)
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds")
	w.wantNone(t)
}
