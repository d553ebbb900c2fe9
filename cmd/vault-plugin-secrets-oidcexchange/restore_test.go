// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/api"
)

// neighbour mounts the plugin once more, for the same API and with the same credential, and returns its path.
func (w *world) neighbour(t *testing.T) string {
	t.Helper()
	path := w.path + "-beside"
	if err := w.root.Sys().MountWithContext(t.Context(), path, &api.MountInput{Type: pluginName}); err != nil {
		t.Fatal(err)
	}
	for _, record := range []struct {
		name string
		data map[string]any
	}{
		{"config", map[string]any{"allow_private": "127.0.0.0/8"}},
		{"issuers/github", map[string]any{"oidc_discovery_url": w.issuerURL, "ca_pem": w.ca}},
		{"trust/main", map[string]any{"issuer": "github", "bound_audiences": audience, "bound_subject": "repo:acme/widget:ref:refs/heads/main"}},
		{"targets/acme", map[string]any{"driver": "http", "profile": acmeProfile(t), "url": w.keysURL, "ca_pem": w.ca, "credential": map[string]any{"token": w.admin}, "allowed_roles": "*"}},
		{"roles/deploy", map[string]any{"trust": "main", "target": "acme", "parameters": map[string]any{"project": "widget"}}},
	} {
		w.rootWrite(t, path+"/"+record.name, record.data)
	}
	return path
}

// found is the answer of reconcile.
type found struct {
	Data struct {
		Count, Revoked, Failed, Left int
		Instance                     string
		Whole                        bool
		Keys                         []struct{ Name, Accessor, State string }
		StaticKeys                   map[string]string `json:"static_keys"`
		Credential                   struct{ State string }
	}
}

func parseFound(t *testing.T, text string) found {
	t.Helper()
	var f found
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	return f
}

// A Vault that is restored from a snapshot has forgotten the key that was issued since. An operator who follows the runbook
// finds exactly that key at the target and ends it, and not the key in the ledger, a static role's key, the credential, or
// another mount's key.
func testRestore(t *testing.T, shared *server) {
	s := startServer(t, shared.bin, shared.built)
	w := newWorld(t, s, pluginName)
	beside := w.neighbour(t)
	w.write(t, "targets/acme", map[string]any{"allowed_roles": "*,static/*"})
	w.write(t, "static-roles/ci", map[string]any{"target": "acme", "parameters": map[string]any{"project": "widget"}, "rotation_period": "720h"})
	_, part, _ := strings.Cut(runbookText(t), afterRestore)
	r := newPart(t, w, part)
	snapshot := filepath.Join(t.TempDir(), "vault.snap")

	kept := w.issue(t, "deploy")
	w.must(t, w.root.Token(), "operator", "raft", "snapshot", "save", snapshot)
	token := w.token(nil)
	lost, err := w.exchange(t, "deploy", token)
	if err != nil {
		t.Fatal(err)
	}
	others := w.rootWrite(t, beside+"/creds/deploy", map[string]any{"subject_token": w.token(nil)})
	w.canary(others.Data["api_key"].(string))
	before := w.live()

	r.follow(t, w.root.Token(), "", "vault.snap", snapshot)
	eventually(t, "the restored mount", func() (bool, string) {
		status, err := w.root.Logical().ReadWithContext(t.Context(), w.path+"/status")
		return err == nil && status != nil, fmt.Sprint(err)
	})
	if leases, ledger := w.leases(t, "creds/"), w.ledger(t); len(leases) != 1 || !slices.Equal(ledger, []string{kept.Data["accessor"].(string)}) {
		t.Fatalf("Vault has the leases %q, and the ledger %q; want the first key's alone", leases, ledger)
	}
	if status := w.use(t, lost.Data["api_key"].(string)); status != http.StatusOK {
		t.Fatalf("the target answers the lost key with %d", status)
	}

	told := parseFound(t, r.follow(t, w.root.Token(), "")).Data
	if told.Count != 1 || len(told.Keys) != 1 || told.Keys[0].Accessor != lost.Data["accessor"] || !told.Whole ||
		told.StaticKeys["ci"] != "known" || told.Credential.State != "ok" {
		t.Fatalf("what is lost: %+v; want %v alone", told, lost.Data["accessor"])
	}
	for count, instance := range map[string]string{"2": told.Instance, "0": told.Instance, "1": "another1"} {
		out, code := r.run(t, w.root.Token(), "", strings.NewReplacer("COUNT", count, "INSTANCE", instance).Replace(r.blocks[0]))
		if code == 0 || !strings.Contains(out, "bad_request: ") {
			t.Errorf("confirm=%s instance=%s: exit status %d\n%s", count, instance, code, out)
		}
	}
	if diff := cmp.Diff(before, w.live()); diff != "" {
		t.Fatalf("before anything is confirmed (-lived +lives):\n%s", diff)
	}
	done := parseFound(t, r.follow(t, w.root.Token(), "", "COUNT", "1", "INSTANCE", told.Instance)).Data
	if done.Revoked != 1 || done.Failed+done.Left != 0 || done.Keys[0].State != "revoked" {
		t.Errorf("what became of it: %+v", done)
	}
	if diff := cmp.Diff(slices.DeleteFunc(before, func(id string) bool { return id == lost.Data["accessor"] }), w.live()); diff != "" {
		t.Errorf("what lives now (-want +got):\n%s", diff)
	}
	w.wantOnly(t, kept, token)

	r.follow(t, w.root.Token(), "") // as for a copy: it ends nobody's key
	revoked := w.cli(t, w.root.Token(), "lease", "revoke", "-sync", kept.LeaseID)
	if status := w.use(t, kept.Data["api_key"].(string)); revoked.code == 0 || status != http.StatusOK || len(r.blocks) != 0 {
		t.Errorf("a mount that dials nobody revokes with exit status %d, and the target answers the key with %d; not run: %q", revoked.code, status, r.blocks)
	}
	s.wantClean(t)
}

// wantOnly checks that the key that was not lost still works, and that a token used since the snapshot is accepted again, as
// the runbook says.
func (w *world) wantOnly(t *testing.T, kept *api.Secret, used string) {
	t.Helper()
	if renewed, err := w.user.Sys().RenewWithContext(t.Context(), kept.LeaseID, 1200); err != nil || renewed.LeaseDuration != 1200 {
		t.Errorf("renewing: %v %v", renewed, err)
	}
	again, err := w.exchange(t, "deploy", used)
	if err != nil {
		t.Errorf("a token that was used since the snapshot: %v", errors.Unwrap(err))
		return
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", again.LeaseID)
	if leases, ledger := w.leases(t, "creds/"), w.ledger(t); !slices.Equal(leases, []string{kept.LeaseID}) || !slices.Equal(ledger, []string{kept.Data["accessor"].(string)}) {
		t.Errorf("Vault has the leases %q, and the ledger %q; want the first key's alone", leases, ledger)
	}
}
