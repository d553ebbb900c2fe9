// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"net/http/httptest"
	"testing"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// A user who is given another name takes the tokens along. By the former name Gitea says to an administrator what it says of a
// token that is gone; the key is ended when the name is back, and with its user.
func TestGiteaUserIsRenamed(t *testing.T) {
	g := lab.NewGitea()
	server := httptest.NewServer(g)
	t.Cleanup(server.Close)
	g.SetUser(lab.GiteaUser{Name: "root1", Password: "s3cret", Admin: true})
	g.SetUser(lab.GiteaUser{Name: "ci", Password: "0ther"})
	opened, err := target.Open(target.Config{Driver: "gitea", URL: server.URL, Egress: egress.Policy{AllowHTTPLoopback: true},
		Credential: map[string]string{"username": "root1", "password": "s3cret"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(opened.Close)
	issue := func(name string) target.Key {
		t.Helper()
		r := ask(t, opened, "", map[string]any{"username": "ci", "scopes": "read:user"})
		r.Name = name
		key, err := opened.Exchange(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	key, other := issue("oidcx-1"), issue("oidcx-2")
	g.Rename("ci", "cd")
	wantTold(t, opened.Revoke(t.Context(), key.Handle), "outcome is unknown: it redirects, and redirects are not followed; correct the target's url (status 307)", true)
	if !g.Valid(key.Secret) {
		t.Error("the key is gone: then this proves nothing")
	}
	g.Rename("cd", "ci")
	for range 2 { // what is gone is gone
		if err := opened.Revoke(t.Context(), key.Handle); err != nil || g.Valid(key.Secret) {
			t.Errorf("Revoke: %v; it lives: %v", err, g.Valid(key.Secret))
		}
	}
	g.RemoveUser("ci")
	if err := opened.Revoke(t.Context(), other.Handle); err != nil || g.Valid(other.Secret) {
		t.Errorf("with its user: %v", err)
	}
}
