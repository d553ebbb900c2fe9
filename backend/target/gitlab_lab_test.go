// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// gitLab is a GitLab with people in it, and targets there.
type gitLab struct {
	*lab.GitLab
	*testing.T
	url  string
	now  time.Time
	root string // the administrator's token
	ana  int64  // a maintainer of the project 1, acme/widget, and owner of the group 2, acme/sub
	bob  int64  // a developer of the project
	bot  int64  // a service account of the group
}

func newGitLab(t *testing.T, o lab.GitLabOptions) *gitLab {
	t.Helper()
	g := &gitLab{T: t, now: time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC), root: "glpat-root"}
	o.Now, o.AdminToken = func() time.Time { return g.now }, g.root
	g.GitLab = lab.NewGitLab(o)
	server := httptest.NewServer(g.GitLab)
	t.Cleanup(server.Close)
	g.url = server.URL
	g.ana, g.bob = g.AddUser(lab.GitLabUser{Name: "ana"}), g.AddUser(lab.GitLabUser{Name: "bob"})
	g.bot = g.AddUser(lab.GitLabUser{Name: "deployer", Group: "acme/sub"})
	g.AddProject("acme/widget", map[string]int{"ana": 40, "bob": 30})
	g.AddGroup("acme/sub", map[string]int{"ana": 50, "bob": 40})
	return g
}

// open opens a target with a credential.
func (g *gitLab) open(token string) *Target {
	g.Helper()
	opened, err := Open(Config{
		Driver: "gitlab", URL: g.url, Credential: map[string]string{"token": token}, Now: func() time.Time { return g.now },
		Egress: egress.Policy{AllowHTTPLoopback: true},
	})
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(opened.Close)
	return opened
}

func (g *gitLab) request(t *Target, name string, params map[string]any) Request {
	g.Helper()
	checked, err := t.Params(params)
	if err != nil {
		g.Fatal(err)
	}
	return Request{Name: name, Params: checked, NotAfter: g.now.Add(2 * time.Hour)}
}

// text is an error as text, "" for none.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

var ofProject1 = map[string]any{"kind": "project", "id": "1", "scopes": "read_api", "access_level": "reporter"}

func TestGitLabParameters(t *testing.T) {
	opened := newGitLab(t, lab.GitLabOptions{}).open("t0p")
	for name, c := range map[string]struct{ params, want string }{
		"project":               {"kind=project id=acme/sub.group/wid-get_1 scopes=read_api,write_repository access_level=planner", ""},
		"group by number":       {"kind=group id=17 scopes=api access_level=owner", ""},
		"user by name":          {"kind=personal id=ana.b-c scopes=api", ""},
		"account":               {"kind=service_account id=acme user=deployer scopes=api", ""},
		"no kind":               {"id=1 scopes=api", "parameters.kind: is required"},
		"no id":                 {"kind=project scopes=api access_level=guest", "parameters.id: is required"},
		"no scopes":             {"kind=project id=1 access_level=guest", "parameters.scopes: is required"},
		"unknown kind":          {"kind=deploy id=1 scopes=api", "parameters.kind: does not match the target's pattern for it"},
		"two kinds":             {"kind=personal|project id=1 scopes=api", "parameters.kind: does not match the target's pattern for it"},
		"level by number":       {"kind=project id=1 scopes=api access_level=30", "parameters.access_level: does not match the target's pattern for it"},
		"project without level": {"kind=project id=1 scopes=api", "parameters.access_level: is required for kind project"},
		"group without level":   {"kind=group id=1 scopes=api", "parameters.access_level: is required for kind group"},
		"user with level":       {"kind=personal id=1 scopes=api access_level=guest", "parameters.access_level: is for kinds project and group only"},
		"account without user":  {"kind=service_account id=1 scopes=api", "parameters.user: is the service account, required for kind service_account and for no other"},
		"project with user":     {"kind=project id=1 scopes=api access_level=guest user=ana", "parameters.user: is the service account, required for kind service_account and for no other"},
		"user by path":          {"kind=impersonation id=acme/ana scopes=api", "parameters.id: want the number or name of a user for kind impersonation"},
		"dot segments":          {"kind=project id=acme/../widget scopes=api access_level=guest", "parameters.id: does not match the target's pattern for it"},
		"escaped":               {"kind=project id=acme%2Fwidget scopes=api access_level=guest", "parameters.id: does not match the target's pattern for it"},
		"empty segment":         {"kind=project id=acme//widget scopes=api access_level=guest", "parameters.id: does not match the target's pattern for it"},
		"ended by itself":       {"kind=service_account id=acme user=deployer scopes=api revoke_by=self", ""},
		"ended by what":         {"kind=project id=1 scopes=api access_level=guest revoke_by=me", "parameters.revoke_by: does not match the target's pattern for it"},
		"impersonation by self": {"kind=impersonation id=ana scopes=api revoke_by=self", "parameters.revoke_by: is not self for kind impersonation: GitLab lets no such token end itself"},
		"impersonation by id":   {"kind=impersonation id=ana scopes=api revoke_by=id", ""},
		"scope with a bracket":  {"kind=project id=1 scopes=api[] access_level=guest", "parameters.scopes: does not match the target's pattern for it"},
		"unknown":               {"kind=project id=1 scopes=api access_level=guest ttl=1", "parameters.ttl: not a parameter of this target; it has access_level, id, kind, revoke_by, scopes, user"},
	} {
		given := map[string]any{}
		for word := range strings.FieldsSeq(c.params) {
			name, value, _ := strings.Cut(word, "=")
			given[name] = value
		}
		if _, err := opened.Params(given); text(err) != c.want {
			t.Errorf("%s: got %q; want %q", name, text(err), c.want)
		}
	}
}

// A key of each kind lives until it is revoked, and is found by its name when its answer was lost. What is kept of it has
// numbers for users, whatever the role says.
func TestGitLabKeysOfEachKind(t *testing.T) {
	for kind, c := range map[string]struct {
		params map[string]any
		of     string
		kept   map[string]any // of the parameters, what is kept otherwise than given
	}{
		"personal":        {map[string]any{"id": "Bob"}, "bob", map[string]any{"id": "3"}},
		"impersonation":   {map[string]any{"id": "bob"}, "bob", map[string]any{"id": "3"}},
		"project":         {map[string]any{"id": "acme/widget", "access_level": "reporter"}, "acme/widget", nil},
		"group":           {map[string]any{"id": "2", "access_level": "reporter"}, "acme/sub", nil},
		"service_account": {map[string]any{"id": "acme/sub", "user": "deployer"}, "deployer", map[string]any{"user": "4"}},
	} {
		t.Run(kind, func(t *testing.T) {
			g := newGitLab(t, lab.GitLabOptions{})
			opened := g.open(g.root)
			c.params["kind"], c.params["scopes"] = kind, "read_api,read_repository"
			r := g.request(opened, "oidcx-1", c.params)
			key, err := opened.Exchange(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			wantLive := lab.GitLabToken{ID: 2, Kind: kind, Of: c.of, Name: "oidcx-1", Scopes: []string{"read_api", "read_repository"}, ExpiresAt: "2031-05-07"}
			if c.params["access_level"] != nil {
				wantLive.Level = 20
			}
			if diff := cmp.Diff([]lab.GitLabToken{wantLive}, g.Live()); diff != "" || !g.Valid(key.Secret) {
				t.Errorf("live (-want +got):\n%s", diff)
			}
			kept := map[string]any{}
			for name, value := range r.Params {
				kept[name] = value
			}
			for name, value := range c.kept {
				kept[name] = value
			}
			want := Key{Secret: key.Secret, Accessor: "2", Expiry: time.Date(2031, 5, 7, 0, 0, 0, 0, time.UTC), Handle: Handle{Name: "oidcx-1", Accessor: "2", Params: kept}}
			if diff := cmp.Diff(want, key); diff != "" {
				t.Errorf("key (-want +got):\n%s", diff)
			}
			found, err := opened.Find(t.Context(), Handle{Name: "oidcx-1", Params: r.Params})
			if diff := cmp.Diff([]Handle{key.Handle}, found); err != nil || diff != "" {
				t.Errorf("find: %v (-want +got):\n%s", err, diff)
			}
			users := g.Calls(lab.OpUsers)
			for range 2 { // the second time it is gone
				if err := opened.Revoke(t.Context(), key.Handle); err != nil {
					t.Errorf("revoke: %v", err)
				}
			}
			if len(g.Live()) != 0 || g.Calls(lab.OpUsers) != users {
				t.Errorf("after revoke: live %v, %d users were looked for", g.Live(), g.Calls(lab.OpUsers)-users)
			}
			if found, err := opened.Find(t.Context(), key.Handle); err != nil || len(found) != 0 {
				t.Errorf("find after revoke: %v, %v", found, err)
			}
		})
	}
}

// Every refusal says what to do, in words of ours.
func TestGitLabRefusals(t *testing.T) {
	const denied = "exchange: denied by the target: "
	user := map[string]any{"kind": "impersonation", "id": "3", "scopes": "read_api"}
	with := func(name string, value any) map[string]any {
		out := map[string]any{}
		for k, v := range ofProject1 {
			out[k] = v
		}
		out[name] = value
		return out
	}
	for name, c := range map[string]struct {
		token  func(*gitLab) string
		params map[string]any
		days   int // from now to the latest end
		want   string
	}{
		"unknown credential":              {func(*gitLab) string { return "glpat-x" }, ofProject1, 1, "it refused: the credential is not known there, or its user may not manage these tokens: tokens of a project need a Maintainer of it (an Owner, for access_level owner), and Premium on gitlab.com (status 401)"},
		"expired credential":              {func(g *gitLab) string { return g.AddToken(g.ana, 0, "api") }, ofProject1, 1, "it refused: the credential has expired; write a new one (status 401)"},
		"credential without api":          {func(g *gitLab) string { return g.AddToken(g.ana, 9, "read_api") }, ofProject1, 1, "it refused: the credential lacks the scope api (status 403)"},
		"not an administrator":            {func(g *gitLab) string { return g.AddToken(g.ana, 9, "api") }, user, 1, "it refused: the credential's user may not do this: tokens of users need an administrator's credential (with the scope admin_mode too, where Admin Mode is on), which gitlab.com gives nobody (status 403)"},
		"only a developer":                {func(g *gitLab) string { return g.AddToken(g.bob, 9, "api") }, ofProject1, 1, "it refused: the credential's user may not create such tokens there, or they are not offered: tokens of a project need a Maintainer of it (an Owner, for access_level owner), and Premium on gitlab.com (status 400)"},
		"level above own":                 {func(g *gitLab) string { return g.AddToken(g.ana, 9, "api") }, with("access_level", "owner"), 1, "it refused: access_level is above that of the credential's user (status 400)"},
		"scope not for this kind":         {func(g *gitLab) string { return g.root }, with("scopes", "sudo"), 1, "it refused: the instance does not offer one of the scopes for this kind of token (status 400)"},
		"unknown project":                 {func(g *gitLab) string { return g.root }, with("id", "acme/nobody"), 1, "it refused: there is no such project, group, user or token, or it is hidden from the credential; a path changes when it is moved or renamed, a number does not (status 404)"},
		"hidden project":                  {func(g *gitLab) string { return g.AddToken(g.bot, 9, "api") }, ofProject1, 1, "it refused: there is no such project, group, user or token, or it is hidden from the credential; a path changes when it is moved or renamed, a number does not (status 404)"},
		"past the maximum":                {func(g *gitLab) string { return g.root }, ofProject1, 30, "it refused: the expiry is past the instance's maximum lifetime; lower the role's max_ttl (status 400)"},
		"not of the group":                {func(g *gitLab) string { return g.root }, map[string]any{"kind": "service_account", "id": "2", "user": "3", "scopes": "api"}, 1, "it refused: the user is no service account (status 400)"},
		"account past the maximum":        {func(g *gitLab) string { return g.root }, map[string]any{"kind": "service_account", "id": "2", "user": "4", "scopes": "api"}, 30, "it refused: the expiry is past the instance's maximum lifetime; lower the role's max_ttl (status 422)"},
		"no owner of the account's group": {func(g *gitLab) string { return g.AddToken(g.bob, 9, "api") }, map[string]any{"kind": "service_account", "id": "2", "user": "4", "scopes": "api"}, 1, "it refused: the credential's user may not do this: tokens of a service account need an Owner of its group; before GitLab 17.11 nobody can list them or end them by id: set revoke_by to self (status 403)"},
		"unknown user":                    {func(g *gitLab) string { return g.root }, map[string]any{"kind": "personal", "id": "nobody", "scopes": "api"}, 1, "there is no user of that name, or the credential may not see it"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGitLab(t, lab.GitLabOptions{MaxLifetime: 14})
			opened := g.open(c.token(g))
			r := g.request(opened, "oidcx-1", c.params)
			r.NotAfter = g.now.AddDate(0, 0, c.days)
			_, err := opened.Exchange(t.Context(), r)
			if text(err) != denied+c.want || !errors.Is(err, ErrDenied) || MayLive(err) {
				t.Errorf("got  %v\nwant %s%s", err, denied, c.want)
			}
			if live := g.Live(); len(live) != 0 {
				t.Errorf("live: %v", live)
			}
		})
	}
	g := newGitLab(t, lab.GitLabOptions{Free: true})
	opened := g.open(g.root)
	_, err := opened.Exchange(t.Context(), g.request(opened, "oidcx-1", ofProject1))
	if want := denied + "it refused: the credential's user may not create such tokens there, or they are not offered: tokens of a project need a Maintainer of it (an Owner, for access_level owner), and Premium on gitlab.com (status 400)"; text(err) != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// A 404 about the project says nothing of the token, which lives on: the project was moved, or is hidden from the credential.
func TestGitLabMovedProjectIsNotAKeyThatIsGone(t *testing.T) {
	g := newGitLab(t, lab.GitLabOptions{})
	opened := g.open(g.root)
	byPath := map[string]any{"kind": "project", "id": "acme/widget", "scopes": "read_api", "access_level": "reporter"}
	moved, err := opened.Exchange(t.Context(), g.request(opened, "oidcx-1", byPath))
	if err != nil {
		t.Fatal(err)
	}
	fixed, err := opened.Exchange(t.Context(), g.request(opened, "oidcx-2", ofProject1))
	if err != nil {
		t.Fatal(err)
	}
	g.Move(1, "acme/gadget")
	if err := opened.Revoke(t.Context(), moved.Handle); !errors.Is(err, ErrDenied) {
		t.Errorf("revoking by the old path: %v; want ErrDenied", err)
	}
	if found, err := opened.Find(t.Context(), moved.Handle); !errors.Is(err, ErrDenied) {
		t.Errorf("finding by the old path: %v, %v; want ErrDenied", found, err)
	}
	if err := opened.Revoke(t.Context(), fixed.Handle); err != nil || len(g.Live()) != 1 {
		t.Errorf("revoking by number: %v, live %v; want the other alone", err, g.Live())
	}
	for body, want := range map[string]bool{
		`{"message":"404 project Access Token Not Found"}`:                                 true,
		`{"message":"404 Could not find project access token with token_id: 2 Not Found"}`: true,
		`{"message":"404 Project Not Found"}`:                                              false,
		`{"message":"404 Not Found"}`:                                                      false,
		`{"message":"404 group Access Token Not Found"}`:                                   false,
		`{"error":"404 project Access Token Not Found"}`:                                   false,
		`404 project Access Token Not Found`:                                               false,
		`{"message":{"404 project Access Token Not Found":1}}`:                             false,
		``: false,
	} {
		if got := gitlabKinds["project"].gone.MatchString(gitlabMessage([]byte(body))); got != want {
			t.Errorf("%s: gone %v; want %v", body, got, want)
		}
	}
	for kind, want := range map[string]bool{"personal": true, "impersonation": false, "group": false, "service_account": false} {
		if got := gitlabKinds[kind].gone.MatchString("404 Not Found"); got != want {
			t.Errorf("%s: a bare 404 is gone: %v; want %v", kind, got, want)
		}
	}
}

// The list is read to its end, and each call waits for its turn like all others.
func TestGitLabFindReadsAllPages(t *testing.T) {
	g := newGitLab(t, lab.GitLabOptions{})
	opened := g.open(g.root)
	for i := range 201 {
		if _, err := opened.Exchange(t.Context(), g.request(opened, fmt.Sprintf("oidcx-%d", i), ofProject1)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]struct {
		accessors []string
		calls     int
	}{"oidcx-0": {[]string{"2"}, 3}, "oidcx-200": {[]string{"202"}, 3}, "oidcx-20": {[]string{"22"}, 3}, "oidcx-": {nil, 6}} {
		before := g.Calls(lab.OpFind)
		found, err := opened.Find(t.Context(), Handle{Name: name, Params: ofProject1})
		var accessors []string
		for _, h := range found {
			accessors = append(accessors, h.Accessor)
		}
		if diff := cmp.Diff(want.accessors, accessors); err != nil || diff != "" || g.Calls(lab.OpFind)-before != want.calls {
			t.Errorf("%s: %v, %d calls; want %d (-want +got):\n%s", name, err, g.Calls(lab.OpFind)-before, want.calls, diff)
		}
	}

	// A key that comes to stand on a page that was read is found the second time.
	first := g.Live()[0]
	done := 0
	g.OnRequest(func(op string, stage lab.Stage) {
		if op == lab.OpFind && stage == lab.StageDone {
			if done++; done == 1 {
				if err := opened.Revoke(t.Context(), Handle{Accessor: fmt.Sprint(first.ID), Params: ofProject1}); err != nil {
					t.Errorf("revoke: %v", err)
				}
			}
		}
	})
	if found, err := opened.Find(t.Context(), Handle{Name: "oidcx-100", Params: ofProject1}); err != nil || len(found) != 1 {
		t.Errorf("a key that slipped between pages: %v, %v; want it found", found, err)
	}
}

// Calls that end keys pass those that make them.
func TestGitLabRevokesFirst(t *testing.T) {
	g := newGitLab(t, lab.GitLabOptions{})
	opened := g.open(g.root)
	opened.api.limiter.ordinary <- struct{}{} // a call that makes a key has its turn for ever
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	params := map[string]any{"kind": "personal", "id": "bob", "scopes": []any{"api"}}
	if _, err := opened.Find(ctx, Handle{Name: "n", Params: params}); err != nil {
		t.Errorf("find: %v", err)
	}
	if err := opened.Revoke(ctx, Handle{Accessor: "99", Params: params}); err != nil {
		t.Errorf("revoke: %v", err)
	}
}
