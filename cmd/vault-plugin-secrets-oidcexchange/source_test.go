// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

const ownAudience = "https://keys.example"

// withOwnToken adds the target own, which makes keys for callers with a token that mayCreate accepts, and the role own. All
// other calls there use the engine's credential.
func (w *world) withOwnToken(t *testing.T, mayCreate func(string) bool, source map[string]any) {
	t.Helper()
	const credential = `  headers: {Authorization: '"Bearer " + credential.token'}` + "\n"
	profile := strings.NewReplacer("subject_token_source: none", "subject_token_source: file",
		credential, strings.Replace(credential, "credential.token", "subject_token", 1),
		"  method: PATCH\n", "  method: PATCH\n"+credential,
		"  method: DELETE\n", "  method: DELETE\n"+credential,
		"  method: GET\n", "  method: GET\n"+credential,
	).Replace(acmeProfile(t))
	w.keys = lab.NewKeyAPI(lab.KeyAPIOptions{AdminToken: w.admin, MayCreate: mayCreate})
	w.keysURL = w.serve(t, w.keys)
	target := map[string]any{"driver": "http", "profile": profile, "url": w.keysURL, "ca_pem": w.ca, "credential": map[string]any{"token": w.admin},
		"allowed_roles": "own", "audience": ownAudience}
	maps.Copy(target, source)
	w.write(t, "targets/own", target)
	w.write(t, "roles/own", map[string]any{"trust": "main,login", "target": "own", "parameters": map[string]any{"project": "widget"}})
}

// ownToken is a token of the engine's own.
func (w *world) ownToken(claims map[string]any) string {
	all := map[string]any{"aud": ownAudience, "exp": time.Now().Add(time.Hour).Unix()}
	maps.Copy(all, claims)
	return w.token(all)
}

// The plugin reads its token from where its registration allows, every time, and from nowhere else.
func testOwnTokenFromFile(t *testing.T, s *server) {
	dir := t.TempDir()
	s.register(t, "with-tokens", s.built.plain, "OIDCEXCHANGE_TOKEN_DIRS="+dir)
	w := newWorld(t, s, "with-tokens")
	file := filepath.Join(dir, "token")
	write := func(token string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var good string
	w.withOwnToken(t, func(token string) bool { return token == good }, map[string]any{"subject_token_source": "file", "token_file": file})
	for range 2 {
		good = w.ownToken(nil)
		write(good)
		secret := w.issue(t, "own")
		if status := w.use(t, secret.Data["api_key"].(string)); status != http.StatusOK || secret.Data["subject"] == "engine" {
			t.Errorf("the key's status is %d; it is of %v", status, secret.Data["subject"])
		}
	}
	write(w.ownToken(map[string]any{"aud": []string{ownAudience, "https://other.example"}}))
	caller := w.token(nil)
	_, err := w.exchange(t, "own", caller)
	wantRefused(t, err, http.StatusForbidden, "not_forwardable")
	write(good)
	if _, err := w.exchange(t, "own", caller); err != nil {
		t.Errorf("the caller's token is not as good as before: %v", err)
	}
	w.wantNamed(t, http.MethodPost, "targets/own", `{"token_file": "/etc/passwd"}`, "token_file")
	w.wantConsistent(t)
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds/own")
	w.wantNone(t)

	plain := newWorld(t, s, pluginName) // registered without directories
	plain.wantNamed(t, http.MethodPost, "targets/file", `{"driver": "nuget", "subject_token_source": "file", "token_file": "`+file+`"}`, "token_file")
}

// The plugin gets its token from a token endpoint, and reuses it.
func testOwnTokenFromEndpoint(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	secret := "canary-client-secret-" + w.path
	s.canary(secret)
	endpoint := lab.NewTokenEndpoint(lab.TokenEndpointOptions{Issuer: w.issuer, ClientID: "vault", ClientSecret: secret, Audience: ownAudience})
	w.withOwnToken(t, func(token string) bool {
		issued := endpoint.Issued()
		return len(issued) == 1 && token == issued[0]
	}, map[string]any{"subject_token_source": "client_credentials", "token_url": w.serve(t, endpoint) + "/token", "client_id": "vault", "client_secret": secret})
	w.issue(t, "own")
	w.issue(t, "own")
	parts := strings.Split(endpoint.Issued()[0], ".")
	s.canary(parts[1], parts[2])
	if shown := w.read(t, "targets/own"); shown["client_secret_set"] != true || shown["client_secret"] != nil {
		t.Errorf("read shows %v", shown)
	}
	w.write(t, "targets/own", map[string]any{"description": "x"}) // drops the token
	endpoint.Fault(lab.OpGrant, lab.Fault{Kind: lab.KindStatus, Status: http.StatusServiceUnavailable, Count: 1})
	_, err := w.exchange(t, "own", w.token(nil))
	wantRefused(t, err, http.StatusServiceUnavailable, "target_busy")
	endpoint.Fault(lab.OpGrant, lab.Fault{Kind: lab.KindStatus, Status: http.StatusUnauthorized, Count: 1})
	_, err = w.exchange(t, "own", w.token(nil))
	wantRefused(t, err, http.StatusForbidden, "not_forwardable")
	w.wantConsistent(t)
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds/own")
	w.wantNone(t)
}
