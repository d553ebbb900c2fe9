// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// The caller's own token goes to the gallery, and nobody can revoke the key that it is exchanged for.
func testNuGet(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	token := w.token(map[string]any{"aud": nugetAudience})
	secret, err := w.exchange(t, "publish", token)
	if err != nil {
		t.Fatal(err)
	}
	key := secret.Data["api_key"].(string)
	if !w.nuget.Valid(key) {
		t.Error("the gallery does not know the key")
	}
	if secret.Renewable || secret.Data["revocable"] != false || secret.Data["header_name"] != "X-NuGet-ApiKey" || secret.LeaseDuration > 3600 {
		t.Errorf("renewable %v, lease of %d s, data %v", secret.Renewable, secret.LeaseDuration, secret.Data)
	}
	if len(secret.Warnings) == 0 || !strings.Contains(strings.Join(secret.Warnings, "\n"), "the target cannot revoke keys") {
		t.Errorf("warnings %q", secret.Warnings)
	}
	if r := w.cli(t, w.root.Token(), "lease", "renew", secret.LeaseID); r.code != 2 || !strings.Contains(r.stderr, "not renewable") {
		t.Errorf("renewing: exit status %d\n%s", r.code, r.stderr)
	}

	_, err = w.exchange(t, "publish", token)
	wantRefused(t, err, http.StatusForbidden, "replayed")
	_, err = w.exchange(t, "publish", w.token(map[string]any{"aud": nugetAudience, "repository": "evil/widget", "repository_owner": "evil"}))
	wantRefused(t, err, http.StatusForbidden, "not_trusted")
	_, err = w.exchange(t, "publish", w.token(nil))
	wantRefused(t, err, http.StatusForbidden, "audience")
	// The engine trusts this one, the gallery does not: it keeps its own policy.
	_, err = w.exchange(t, "publish", w.token(map[string]any{"aud": nugetAudience, "job_workflow_ref": "acme/widget/.github/workflows/other.yml@refs/heads/main"}))
	wantRefused(t, err, http.StatusUnprocessableEntity, "target_denied")
	if calls := w.nuget.Calls("token"); calls != 2 {
		t.Errorf("%d calls reached the gallery; want 2", calls)
	}

	w.must(t, w.root.Token(), "lease", "revoke", "-sync", secret.LeaseID)
	if left := w.leases(t, "creds/"); len(left) != 0 {
		t.Errorf("leases %q", left)
	}
	record := w.read(t, "keys/"+secret.Data["id"].(string))
	if record["state"] != "exposed" || record["revocable"] != false || record["expires_at"] != w.nuget.Live()[0].ExpiresAt.Format(time.RFC3339) {
		t.Errorf("ledger after revoke: %v", record)
	}
	if !w.nuget.Valid(key) {
		t.Error("the gallery's key ended: then this stand-in proves nothing")
	}
}
