// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestNuGetPolicies(t *testing.T) {
	t.Parallel()
	permanent := func(p *Policy) { p.OwnerID, p.RepositoryID = "90210", "710042" }
	production := func(p *Policy) { permanent(p); p.Environment = "Production" }
	const workflows = "acme/widget/.github/workflows/"
	for name, c := range map[string]struct {
		policy func(*Policy)
		claims map[string]any
		text   string // empty = accepted
	}{
		"temporary":                 {nil, nil, ""},
		"permanent":                 {permanent, nil, ""},
		"case of names":             {nil, map[string]any{"repository": "Acme/Widget", "repository_owner": "ACME", "job_workflow_ref": "ACME/widget/.github/workflows/Release.yml@x"}, ""},
		"environment":               {production, map[string]any{"environment": "production"}, ""},
		"no repository":             {nil, map[string]any{"repository": nil}, "The JSON Web Token is missing the required claim 'repository'."},
		"blank owner":               {nil, map[string]any{"repository_owner": " "}, "The JSON Web Token is missing the required claim 'repository_owner'."},
		"no owner id":               {nil, map[string]any{"repository_owner_id": nil}, "The JSON Web Token is missing the required claim 'repository_owner_id'."},
		"number as repository id":   {nil, map[string]any{"repository_id": 710042}, "The JSON Web Token is missing the required claim 'repository_id'."},
		"no event":                  {nil, map[string]any{"event_name": nil}, "The JSON Web Token is missing the required claim 'event_name'."},
		"no workflow":               {nil, map[string]any{"job_workflow_ref": nil}, "The JSON Web Token is missing the required claim 'job_workflow_ref'."},
		"other owner":               {nil, map[string]any{"repository_owner": "evil"}, noDemoPolicy},
		"other repository":          {nil, map[string]any{"repository": "acme/gadget"}, noDemoPolicy},
		"other owner id":            {permanent, map[string]any{"repository_owner_id": "1"}, noDemoPolicy},
		"other repository id":       {permanent, map[string]any{"repository_id": "1"}, noDemoPolicy},
		"banned event":              {nil, map[string]any{"event_name": "pull_request_TARGET"}, "The GitHub Actions event 'pull_request_TARGET' is not allowed."},
		"other workflow":            {permanent, map[string]any{"job_workflow_ref": workflows + "ci.yml@x"}, "Workflow mismatch for policy 'release': expected 'release.yml', actual 'ci.yml'"},
		"other workflow, temporary": {nil, map[string]any{"job_workflow_ref": workflows + "ci.yml@x"}, noDemoPolicy},
		"reusable workflow": {permanent, map[string]any{"job_workflow_ref": "acme/shared/.github/workflows/release.yml@x"},
			"Claim 'job_workflow_ref' has value 'acme/shared/.github/workflows/release.yml@x' which does not start with " + workflows + "."},
		"no environment":    {production, nil, "Environment mismatch for policy 'release': expected 'Production', actual ''"},
		"other environment": {production, map[string]any{"environment": "test"}, "Environment mismatch for policy 'release': expected 'Production', actual 'test'"},
		"other user":        {func(p *Policy) { p.User = "someone" }, nil, noDemoPolicy},
	} {
		g := newGallery(t, NuGetOptions{BannedEvents: []string{"pull_request_target"}})
		g.addPolicy(c.policy)
		r := g.exchange(t, g.token(c.claims))
		if c.text != "" {
			wantError(t, name, r, 401, c.text)
		} else if r.status != 200 {
			t.Errorf("%s: %d %s; want 200", name, r.status, r.body)
		}
	}
}

func TestNuGetFirstUsePinsIDs(t *testing.T) {
	t.Parallel()
	g := newGallery(t, NuGetOptions{})
	g.addPolicy(nil)
	if got, want := g.Policies()[0].ValidateBy, time.Date(2026, 3, 12, 13, 0, 0, 0, time.UTC); !got.Equal(want) {
		t.Errorf("temporary policy validates by %s; want %s", got, want)
	}
	// A token that is refused must not bind the policy.
	r := g.exchange(t, g.token(map[string]any{"repository_id": "666", "job_workflow_ref": "acme/widget/.github/workflows/ci.yml@x"}))
	wantError(t, "other workflow", r, 401, noDemoPolicy)
	if p := g.Policies()[0]; p.OwnerID != "" || p.RepositoryID != "" {
		t.Errorf("policy bound to %q and %q by a refused token", p.OwnerID, p.RepositoryID)
	}
	if r := g.exchange(t, g.token(nil)); r.status != 200 {
		t.Fatalf("first use: %d %s; want 200", r.status, r.body)
	}
	if p := g.Policies()[0]; p.OwnerID != "90210" || p.RepositoryID != "710042" || !p.ValidateBy.IsZero() {
		t.Errorf("policy after first use %+v; want the token's ids and no end", p)
	}
	// The same names under other ids: someone took over the name.
	wantError(t, "new ids", g.exchange(t, g.token(map[string]any{"repository_id": "666"})), 401, noDemoPolicy)
	g.clock.Advance(30 * 24 * time.Hour)
	if r := g.exchange(t, g.token(nil)); r.status != 200 {
		t.Errorf("a month later: %d %s; want 200", r.status, r.body)
	}
}

func TestNuGetTemporaryPolicyEnds(t *testing.T) {
	t.Parallel()
	g := newGallery(t, NuGetOptions{})
	g.addPolicy(func(p *Policy) { p.ValidateBy = start })
	g.clock.Advance(time.Second)
	wantError(t, "late", g.exchange(t, g.token(nil)), 401,
		"The policy 'release' has expired. Sign in and renew the trust policy on the Trusted Publishing page.")
}

func TestNuGetOldestPolicyWins(t *testing.T) {
	t.Parallel()
	g := newGallery(t, NuGetOptions{})
	g.addPolicy(func(p *Policy) { p.Name, p.Created = "young", start.Add(-time.Hour) })
	g.addPolicy(func(p *Policy) { p.Name, p.Created = "old", start.Add(-2*time.Hour) })
	g.addPolicy(func(p *Policy) { p.Name, p.Created, p.Repository = "oldest", start.Add(-3*time.Hour), "gadget" })
	if r := g.exchange(t, g.token(nil)); r.status != 200 {
		t.Fatalf("exchange: %d %s; want 200", r.status, r.body)
	}
	if got := g.Live()[0].Policy; got != "old" {
		t.Errorf("policy %q won; want old", got)
	}
	// What may be told of all policies is told, in their order.
	h := newGallery(t, NuGetOptions{})
	for _, name := range []string{"a", "b"} {
		h.addPolicy(func(p *Policy) { p.Name, p.ValidateBy = name, start.Add(-time.Hour) })
	}
	wantError(t, "two reasons", h.exchange(t, h.token(nil)), 401,
		"The policy 'a' has expired. Sign in and renew the trust policy on the Trusted Publishing page.. "+
			"The policy 'b' has expired. Sign in and renew the trust policy on the Trusted Publishing page.")
}

func TestNuGetUsers(t *testing.T) {
	t.Parallel()
	g := newGallery(t, NuGetOptions{})
	g.addPolicy(func(p *Policy) { p.PackageOwner = "org" })
	wantError(t, "no owner", g.exchange(t, g.token(nil)), 400, "The package owner of the match federated credential trust policy not longer exists.")
	good, org := User{Name: "demo"}, User{Name: "org", Organization: true}
	for text, users := range map[string][]User{
		"Generating fetching tokens directly for organizations is not supported. The federated credential trust policy is created on the " +
			"profile of one of the organization's administrators and is scoped to the organization in the policy.": {{Name: "demo", Organization: true}, org},
		"The user 'demo' is deleted.":                                     {{Name: "demo", Deleted: true}, org},
		"The user 'demo' is locked.":                                      {{Name: "demo", Locked: true}, org},
		"The user 'demo' does not have a confirmed email address.":        {{Name: "demo", Unconfirmed: true}, org},
		"The organization 'org' is deleted.":                              {good, {Name: "org", Organization: true, Deleted: true}},
		"The organization 'org' is locked.":                               {good, {Name: "org", Organization: true, Locked: true}},
		"The organization 'org' does not have a confirmed email address.": {good, {Name: "org", Organization: true, Unconfirmed: true}},
	} {
		for _, u := range users {
			g.SetUser(u)
		}
		wantError(t, text, g.exchange(t, g.token(nil)), 400, text)
		// The state of a user is told only to a token that a policy accepts.
		wantError(t, "untrusted: "+text, g.exchange(t, g.token(map[string]any{"repository": "acme/gadget"})), 401, noDemoPolicy)
	}
}

// If the connection is cut after the work, the key lives and nobody knows it: trusted publishing cannot undo that.
func TestNuGetFaults(t *testing.T) {
	t.Parallel()
	g := newGallery(t, NuGetOptions{})
	g.addPolicy(nil)
	g.Fault(OpToken, Fault{Kind: KindNoSecret, Count: 1})
	if r := g.exchange(t, g.token(nil)); r.status != 200 || strings.Contains(r.body, "apiKey") || len(g.Live()) != 1 {
		t.Errorf("without key: %d %s, %d live; want 200, no key, 1", r.status, r.body, len(g.Live()))
	}
	g.Fault(OpPush, Fault{Kind: KindStatus, Status: 503})
	if r := do(t, "PUT", serve(t, g.NuGet)+"/api/v2/package", ""); r.status != 503 {
		t.Errorf("push: %d; want 503", r.status)
	}
}

// A request that was read is carried out even if its client has left: the key lives and nobody knows it.
func TestNuGetWhenTheClientHasLeft(t *testing.T) {
	t.Parallel()
	g := newGallery(t, NuGetOptions{})
	g.addPolicy(nil)
	ctx, leave := context.WithCancel(t.Context())
	leave()
	r := httptest.NewRequestWithContext(ctx, "POST", "/api/v2/token", strings.NewReader(`{"username":"demo","tokenType":"ApiKey"}`))
	r.Header.Set("Authorization", "Bearer "+g.token(nil))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "test")
	if got := handleRequest(g, r); got.status != 200 || len(g.Live()) != 1 {
		t.Errorf("%d %s, %d live; want 200 and 1", got.status, got.body, len(g.Live()))
	}
}
