// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/api"
)

// A user with no right but to creds/ reads a key, and Vault's own commands look up, renew and revoke the lease.
func testKeyByLogin(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	secret, err := w.user.Logical().ReadWithContext(t.Context(), w.path+"/creds/deploy")
	if err != nil {
		t.Fatal(err)
	}
	w.hold(secret)
	key := secret.Data["api_key"].(string)
	if status := w.use(t, key); status != http.StatusOK {
		t.Errorf("the target answers the key with %d", status)
	}
	if !secret.Renewable || secret.LeaseDuration != 15*60 || !strings.HasPrefix(secret.LeaseID, w.path+"/creds/deploy/") {
		t.Errorf("lease %s of %d s, renewable %v", secret.LeaseID, secret.LeaseDuration, secret.Renewable)
	}
	if diff := cmp.Diff(map[string]any{
		"api_key": key, "id": w.list(t, w.path+"/keys")[0], "accessor": w.live()[0], "expires_at": secret.Data["expires_at"], "revocable": true,
		"header_name": "X-Acme-Key", "target": "acme", "issuer": "people", "subject": w.path, "trust": "login",
	}, secret.Data); diff != "" {
		t.Errorf("response: %s", diff)
	}
	w.wantExpiry(t, secret)

	token := w.user.Token()
	if out := w.must(t, token, "lease", "lookup", secret.LeaseID); !strings.Contains(out, secret.LeaseID) {
		t.Errorf("lookup:\n%s", out)
	}
	var renewed struct {
		LeaseID       string `json:"lease_id"`
		LeaseDuration int    `json:"lease_duration"`
		Renewable     bool   `json:"renewable"`
		Data          any    `json:"data"`
	}
	if err := json.Unmarshal([]byte(w.must(t, token, "lease", "renew", "-format=json", "-increment=20m", secret.LeaseID)), &renewed); err != nil {
		t.Fatal(err)
	}
	if renewed.LeaseID != secret.LeaseID || renewed.LeaseDuration != 20*60 || !renewed.Renewable || renewed.Data != nil {
		t.Errorf("renewed: %+v", renewed)
	}
	w.wantConsistent(t)

	w.must(t, w.root.Token(), "lease", "revoke", secret.LeaseID)
	w.wantNone(t)
	if status := w.use(t, key); status != http.StatusUnauthorized {
		t.Errorf("the target answers a dead key with %d", status)
	}
}

// wantExpiry checks that the key expires after the lease's latest end, but soon: so the key ends even if Vault is lost.
func (w *world) wantExpiry(t *testing.T, secret *api.Secret) {
	t.Helper()
	expires, err := time.Parse(time.RFC3339, secret.Data["expires_at"].(string))
	if left := time.Until(expires); err != nil || left < 2*time.Hour || left > 3*time.Hour {
		t.Errorf("expires_at %v: %v", secret.Data["expires_at"], err)
	}
}

// A token from a file is exchanged with Vault's command line.
func testKeyByToken(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	file := filepath.Join(t.TempDir(), "id.jwt")
	if err := os.WriteFile(file, []byte(w.token(nil)+"\n"), 0o600); err != nil { // as echo and editors leave it
		t.Fatal(err)
	}
	out := w.must(t, w.user.Token(), "write", "-format=json", w.path+"/creds/deploy", "subject_token=@"+file, "ttl=10m")
	var secret api.Secret
	if err := json.Unmarshal([]byte(out), &secret); err != nil {
		t.Fatal(err)
	}
	w.hold(&secret)
	if secret.LeaseDuration != 10*60 || len(secret.Warnings) != 0 {
		t.Errorf("lease of %d s, warnings %q", secret.LeaseDuration, secret.Warnings)
	}
	if status := w.use(t, secret.Data["api_key"].(string)); status != http.StatusOK {
		t.Errorf("the target answers the key with %d", status)
	}
	id := strings.TrimSpace(strings.Join(w.list(t, w.path+"/keys"), " "))
	if out := w.must(t, w.root.Token(), "list", w.path+"/keys"); !slices.Contains(strings.Fields(out), id) {
		t.Errorf("vault list keys:\n%s", out)
	}
	record := w.read(t, "keys/"+id)
	for field, want := range map[string]any{
		"id": secret.Data["id"], "state": "issued", "role": "deploy", "target": "acme", "issuer": "github", "trust": "main",
		"subject": "repo:acme/widget:ref:refs/heads/main", "accessor": secret.Data["accessor"], "display_name": "userpass-" + w.path,
		"revision": json.Number("1"), "claims_partial": false,
	} {
		if record[field] != want {
			t.Errorf("ledger: %s is %v; want %v", field, record[field], want)
		}
	}
	if claims := record["claims"].(map[string]any); claims["repository"] != "acme/widget" || claims["run_id"] == nil {
		t.Errorf("ledger: claims %v", claims)
	}
	if slices.Contains(slices.Sorted(maps.Keys(record)), "handle") || strings.Contains(mustJSON(t, record), secret.Data["api_key"].(string)) {
		t.Errorf("the ledger shows the key: %v", record)
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", secret.LeaseID)
	w.wantNone(t)
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// Revoking by prefix ends the keys of one role, or of one lease path, and no others.
func testRevokePrefix(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	w.write(t, "trust/any", map[string]any{"issuer": "github", "bound_audiences": audience, "bound_claims": map[string]any{"repository_owner": "acme"}})
	w.write(t, "roles/release", map[string]any{"trust": "any", "target": "acme", "parameters": map[string]any{"project": "p"}, "lease_path": "claims.repository"})
	deploy := []*api.Secret{w.issue(t, "deploy"), w.issue(t, "deploy")}
	widget, err := w.exchange(t, "release/acme/widget", w.token(nil))
	if err != nil {
		t.Fatal(err)
	}
	gadget, err := w.exchange(t, "release/acme/gadget", w.token(map[string]any{"repository": "acme/gadget"}))
	if err != nil {
		t.Fatal(err)
	}
	want := func(alive ...*api.Secret) {
		t.Helper()
		var accessors []string
		for _, secret := range alive {
			accessors = append(accessors, secret.Data["accessor"].(string))
		}
		slices.Sort(accessors)
		eventually(t, "the end of the keys below the prefix", func() (bool, string) {
			return slices.Equal(w.live(), accessors) && len(w.leases(t, "creds/")) == len(accessors), strings.Join(w.live(), " ")
		})
		w.wantConsistent(t)
	}
	want(deploy[0], deploy[1], widget, gadget)
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds/release/acme/gadget")
	want(deploy[0], deploy[1], widget)
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds/deploy")
	want(widget)
	for _, secret := range deploy {
		if status := w.use(t, secret.Data["api_key"].(string)); status != http.StatusUnauthorized {
			t.Errorf("the target answers a dead key with %d", status)
		}
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds")
	want()
}

// An operator finds out who has keys.
func testLedger(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	byToken := w.issue(t, "deploy")
	byLogin, err := w.user.Logical().ReadWithContext(t.Context(), w.path+"/creds/deploy")
	if err != nil {
		t.Fatal(err)
	}
	w.hold(byLogin)
	for query, want := range map[string][]*api.Secret{
		"":                                   {byToken, byLogin},
		"role=deploy target=acme":            {byToken, byLogin},
		"role=other":                         nil,
		"issuer=people":                      {byLogin},
		"subject=" + w.path:                  {byLogin},
		"claim=repository=acme/widget":       {byToken},
		"trust=main claim=ref=refs/heads/x":  nil,
		"issued_before=2020-01-01T00:00:00Z": nil,
	} {
		args := append([]string{"read", "-format=json", w.path + "/keys"}, strings.Fields(query)...)
		var answer struct {
			Data struct {
				Keys []struct{ ID string }
			}
		}
		if err := json.Unmarshal([]byte(w.must(t, w.root.Token(), args...)), &answer); err != nil {
			t.Fatal(err)
		}
		got, ids := []string{}, []string{}
		for _, key := range answer.Data.Keys {
			got = append(got, key.ID)
		}
		for _, secret := range want {
			ids = append(ids, secret.Data["id"].(string))
		}
		slices.Sort(got)
		slices.Sort(ids)
		if !slices.Equal(got, ids) {
			t.Errorf("keys %s: %q; want %q", query, got, ids)
		}
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds")
	w.wantNone(t)
}

// A key ends with the login that asked for it.
func testEndOfLogin(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	secret := w.issue(t, "deploy")
	w.must(t, w.root.Token(), "token", "revoke", w.user.Token())
	w.wantNone(t)
	if status := w.use(t, secret.Data["api_key"].(string)); status != http.StatusUnauthorized {
		t.Errorf("the target answers a dead key with %d", status)
	}
}

// If a target makes a key's life shorter than its lease may be, each renewal asks for more.
func testRenewalExtendsKey(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	profile := strings.Replace(acmeProfile(t), `"expires_at": not_after`, `"expires_at": timestamp(int(not_after) - 7200)`, 1)
	w.write(t, "targets/acme", map[string]any{"profile": profile, "credential": map[string]any{"token": w.admin}})
	secret := w.issue(t, "deploy")
	if ttl := secret.LeaseDuration; ttl < 4*60 || ttl > 5*60 || len(secret.Warnings) != 1 || !strings.Contains(secret.Warnings[0], "shorter than requested") {
		t.Errorf("a key of 5 minutes has a lease of %d s, warnings %q", ttl, secret.Warnings)
	}
	renewed, err := w.user.Sys().RenewWithContext(t.Context(), secret.LeaseID, 600)
	if err != nil || renewed.LeaseDuration != 600 {
		t.Fatalf("renewed: %v %v", renewed, err)
	}
	expires := w.keys.Live()[0].ExpiresAt
	if left := time.Until(expires); left < 2*time.Hour {
		t.Errorf("the key ends in %s", left)
	}
	if record := w.read(t, "keys/"+secret.Data["id"].(string)); record["expires_at"] != expires.Format(time.RFC3339) {
		t.Errorf("the ledger says %v; want %v", record["expires_at"], expires)
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", secret.LeaseID)
	w.wantNone(t)
}

// A refusal says why, with status, reason and request id, and nothing reaches a target.
func testRefusals(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	w.write(t, "roles/bytoken", map[string]any{"trust": "main", "target": "acme", "parameters": map[string]any{"project": "widget"}})
	w.write(t, "roles/off", map[string]any{"trust": "main,login", "target": "acme", "parameters": map[string]any{"project": "widget"}, "enabled": false})
	file := filepath.Join(t.TempDir(), "id.jwt")
	start := len(s.log(t, 0))
	for name, c := range map[string]struct {
		args   []string
		token  string
		code   string // of the HTTP answer, as the command line prints it
		reason string
	}{
		"fork":           {[]string{"write", "creds/deploy"}, w.token(map[string]any{"repository": "evil/widget"}), "403", "not_trusted"},
		"other audience": {[]string{"write", "creds/deploy"}, w.token(map[string]any{"aud": "https://elsewhere.example"}), "403", "audience"},
		"expired":        {[]string{"write", "creds/deploy"}, w.token(map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}), "403", "expired"},
		"no JWT":         {[]string{"write", "creds/deploy"}, "canary-that-is-no-token", "403", "token_malformed"},
		"other issuer":   {[]string{"write", "creds/deploy"}, w.token(map[string]any{"iss": "https://evil.example"}), "403", "unknown_issuer"},
		"unknown role":   {[]string{"read", "creds/none"}, "", "400", "unknown_role"},
		"role off":       {[]string{"read", "creds/off"}, "", "403", "disabled"},
		"token needed":   {[]string{"read", "creds/bytoken"}, "", "400", "token_required"},
		"lease path":     {[]string{"read", "creds/deploy/elsewhere"}, "", "400", "lease_path"},
	} {
		args := []string{c.args[0], w.path + "/" + c.args[1]}
		if c.token != "" {
			w.canary(c.token)
			if err := os.WriteFile(file, []byte(c.token), 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, "subject_token=@"+file)
		}
		r := w.cli(t, w.user.Token(), args...)
		if r.code != 2 || !strings.Contains(r.stderr, "Code: "+c.code) || !refusalText(c.reason).MatchString(r.stderr) {
			t.Errorf("%s: exit status %d; want code %s, %s:\n%s", name, r.code, c.code, c.reason, r.stderr)
		}
		if c.token != "" && strings.Contains(r.stderr, c.token) {
			t.Errorf("%s: the answer holds the token", name)
		}
		w.wantLogged(t, start, r.stderr, c.reason)
	}
	_, err := w.user.Logical().ReadWithDataWithContext(t.Context(), w.path+"/creds/deploy", map[string][]string{"subject_token": {w.issuer.Token(nil)}})
	wantRefused(t, err, http.StatusBadRequest, "token_in_url")
	_, err = w.root.Logical().ReadWithContext(t.Context(), w.path+"/creds/deploy")
	wantRefused(t, err, http.StatusForbidden, "no_entity")
	if _, err := w.user.Logical().ReadWithContext(t.Context(), w.path+"/keys/x"); err == nil {
		t.Error("a user without the right reads the ledger")
	}
	if made := w.keys.Calls("create"); made != 0 {
		t.Errorf("%d calls reached the target", made)
	}
	w.wantNone(t)
}

// wantLogged checks that Vault's log has the details of a refusal, under the id that the caller was given.
func (w *world) wantLogged(t *testing.T, from int, refused, reason string) {
	t.Helper()
	found := regexp.MustCompile(`\(request ([0-9a-f-]{36})\)`).FindStringSubmatch(refused)
	if found == nil {
		return // and so it was reported already
	}
	for line := range bytes.Lines(w.log(t, from)) {
		var event map[string]any
		if json.Unmarshal(line, &event) == nil && event["request_id"] == found[1] {
			if detail, _ := event["detail"].(string); detail == "" || event["reason"] != reason || event["mount"] != w.path+"/" {
				t.Errorf("logged of %s: %s", reason, line)
			}
			return
		}
	}
	t.Errorf("Vault's log has nothing of request %s, refused for %s", found[1], reason)
}

// Many callers at once get one key each, and one token yields exactly one key.
func testConcurrency(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	const callers = 64
	one := w.token(nil)
	var wait sync.WaitGroup
	var mu sync.Mutex
	reasons := map[string]int{}
	for range callers {
		wait.Go(func() {
			if _, err := w.exchange(t, "deploy", w.token(nil)); err != nil {
				t.Errorf("issuing: %v", err)
			}
		})
		wait.Go(func() {
			_, err := w.exchange(t, "deploy", one)
			mu.Lock()
			defer mu.Unlock()
			reasons[reasonOf(err)]++
		})
	}
	wait.Wait()
	if diff := cmp.Diff(map[string]int{"": 1, "replayed": callers - 1}, reasons); diff != "" {
		t.Errorf("one token by many: %s", diff)
	}
	if live := w.live(); len(live) != callers+1 {
		t.Errorf("%d keys live; want %d", len(live), callers+1)
	}
	w.wantConsistent(t)
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds/deploy")
	w.wantNone(t)
}
