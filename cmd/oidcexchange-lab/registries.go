// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"net/http"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// publisher matches the issuer's default claims, as a trusted publisher of the package widget.
var publisher = lab.Publisher{Package: "widget", Owner: "acme", OwnerID: "90210", Repository: "widget", Workflow: "release.yml"}

// registry is a stand-in for a registry with trusted publishing.
type registry interface {
	http.Handler
	AddPublisher(lab.Publisher)
}

// trustingIssuer makes a registry that trusts the issuer's tokens.
func trustingIssuer(r registry) http.Handler {
	r.AddPublisher(publisher)
	return r
}

func (s setup) registry() lab.RegistryOptions {
	return lab.RegistryOptions{Issuers: []string{s.urls["issuer"]}, Client: s.client}
}

func newPyPI(s setup) http.Handler     { return trustingIssuer(lab.NewPyPI(s.registry())) }
func newCratesIO(s setup) http.Handler { return trustingIssuer(lab.NewCratesIO(s.registry())) }
func newRubyGems(s setup) http.Handler { return trustingIssuer(lab.NewRubyGems(s.registry())) }
func newNPM(s setup) http.Handler      { return trustingIssuer(lab.NewNPM(s.registry())) }

// newArtifactory makes a platform with the provider demo, whose tokens are exchanged for access tokens of the user demo for
// an hour.
func newArtifactory(s setup) http.Handler {
	a := lab.NewArtifactory(lab.ArtifactoryOptions{AdminToken: s.adminToken, Client: s.client})
	a.AddMapping(lab.IdentityMapping{
		Provider: "demo", Issuer: s.urls["issuer"], Audience: "jfrog", Name: "demo", Claims: map[string]string{"repository": "acme/widget"},
		Username: "demo", Scope: "applied-permissions/user", TTL: time.Hour,
	})
	return a
}

// newGitea makes a Gitea with the user demo, and the administrator vault whose password is the admin token.
func newGitea(s setup) http.Handler {
	g := lab.NewGitea()
	g.SetUser(lab.GiteaUser{Name: "vault", Password: s.adminToken, Admin: true})
	g.SetUser(lab.GiteaUser{Name: "demo", Password: s.adminToken})
	return g
}
