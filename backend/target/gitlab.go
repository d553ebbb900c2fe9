// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	gitlab "gitlab.com/gitlab-org/api/client-go/v2"
)

const gitlabName = "gitlab"

// gitlabParams are the parameters of a request for a GitLab token. The segments of a path must begin with a letter, digit or
// underscore, so that none is a dot segment. A project or group whose path differs must be given by its number.
var gitlabParams = parameters{
	{name: "access_level", kind: kindString, pattern: regexp.MustCompile(`\A(guest|planner|reporter|developer|maintainer|owner)\z`)},
	{name: "id", kind: kindString, required: true, pattern: regexp.MustCompile(`\A[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*\z`)},
	{name: "kind", kind: kindString, required: true, pattern: regexp.MustCompile(`\A(personal|impersonation|project|group|service_account)\z`)},
	{name: "revoke_by", kind: kindString, pattern: regexp.MustCompile(`\A(id|self)\z`)},
	{name: "scopes", kind: kindList, required: true, pattern: regexp.MustCompile(`\A[a-z][a-z0-9_]*\z`)},
	{name: "user", kind: kindString, pattern: regexp.MustCompile(`\A[A-Za-z0-9_][A-Za-z0-9_.-]*\z`)},
}

var gitlabLevels = map[string]gitlab.AccessLevelValue{
	"guest": gitlab.GuestPermissions, "planner": gitlab.PlannerPermissions, "reporter": gitlab.ReporterPermissions,
	"developer": gitlab.DeveloperPermissions, "maintainer": gitlab.MaintainerPermissions, "owner": gitlab.OwnerPermissions,
}

// gitlabTogether checks parameters that depend on each other. A project's or group's token needs an access level, because
// GitLab's default is maintainer.
func gitlabTogether(params map[string]any) *FieldError {
	kind, id := params["kind"].(string), params["id"].(string)
	_, level := params["access_level"]
	_, user := params["user"]
	isResource := kind == "project" || kind == "group"
	switch {
	case isResource && !level:
		return fieldErrorf("parameters.access_level", "is required for kind %s", kind)
	case !isResource && level:
		return fieldErrorf("parameters.access_level", "is for kinds project and group only")
	case user != (kind == "service_account"):
		return fieldErrorf("parameters.user", "is the service account, required for kind service_account and for no other")
	case (kind == "personal" || kind == "impersonation") && strings.Contains(id, "/"):
		return fieldErrorf("parameters.id", "want the number or name of a user for kind %s", kind)
	case kind == "impersonation" && params["revoke_by"] == "self":
		return fieldErrorf("parameters.revoke_by", "is not self for kind impersonation: GitLab lets no such token end itself")
	}
	return nil
}

// gitlabFacts refuses a base URL whose path has escapes: with such a URL, GitLab's client drops the escapes of everything that
// it appends, such as a project's path.
func gitlabFacts(c Config) (facts, func(*Target) driver, error) {
	if u, err := url.Parse(c.URL); err == nil && u.EscapedPath() != u.Path {
		return facts{}, nil, fieldErrorf("url", "has a path with escapes; GitLab has none")
	}
	return facts{
		name: gitlabName, url: "https://gitlab.com", source: SourceNone, params: gitlabParams, together: gitlabTogether,
		placed:     []string{"id", "kind", "user"},
		credential: []string{"token"}, headerName: "PRIVATE-TOKEN",
	}, connectGitLab, nil
}

// gitlabDriver speaks to a GitLab instance through GitLab's own client, over our transport.
type gitlabDriver struct {
	api    *api
	client *gitlab.Client
	spent  atomic.Bool // the credential was rotated, or may have been
}

// unlimited replaces the client's own rate limiter: the transport below applies the target's.
type unlimited struct{}

func (unlimited) Wait(context.Context) error { return nil }

func connectGitLab(t *Target) driver {
	g := newGitLabDriver(t)
	return driver{
		exchange: g.exchange, revoke: g.revoke, find: g.find, list: g.list, check: g.check,
		rotate: g.rotateKey, identify: g.identify, rotateCredential: g.rotateCredential,
	}
}

func newGitLabDriver(t *Target) *gitlabDriver {
	client, err := gitlab.NewClient(t.credential["token"],
		gitlab.WithURLWarningLogger(slog.New(slog.DiscardHandler)), gitlab.WithBaseURL(t.url.String()),
		gitlab.WithHTTPClient(&http.Client{Transport: carrier{t.api}}), gitlab.WithoutRetries(), gitlab.WithCustomLimiter(unlimited{}))
	if err != nil {
		panic(err) // it fails only for a URL that cannot be parsed, and this one was
	}
	return &gitlabDriver{api: t.api, client: client}
}

// gitlabPlace is where a token belongs.
type gitlabPlace struct {
	id   string // project or group, by number or path
	user int64  // the number of the token's user, for kinds personal, impersonation and service_account
}

// gitlabOrder has the properties of a token that is to be made.
type gitlabOrder struct {
	name   string
	scopes []string
	level  gitlab.AccessLevelValue
	until  gitlab.ISOTime
}

// gitlabCall returns a call with the statuses that are common to this API. A status in none of the lists means that the outcome
// is unknown. needs says what the credential must be for the call.
func gitlabCall(op string, ok int, needs string) call {
	return call{op: op, ok: []int{ok}, busy: []int{429, 503}, denied: []int{400, 401, 403, 404, 405, 422}, wantBody: true, hint: gitlabHint(needs)}
}

// midnight is the first midnight (UTC) that is not before t. GitLab ends a token when the day of its expires_at begins.
func midnight(t time.Time) time.Time {
	day := t.UTC().Truncate(24 * time.Hour)
	if day.Before(t) {
		day = day.Add(24 * time.Hour)
	}
	return day
}

func (g *gitlabDriver) exchange(ctx context.Context, r Request) (Key, error) {
	const op = "exchange"
	if r.NotAfter.IsZero() {
		return Key{}, unbuildable(op, "no end is given, and a token without one lives for ever")
	}
	kind, at, err := g.place(ctx, op, r.Params)
	if err != nil {
		return Key{}, beforehand(err)
	}
	o := gitlabOrder{name: r.Name, until: gitlab.ISOTime(midnight(r.NotAfter))}
	for _, scope := range r.Params["scopes"].([]any) {
		o.scopes = append(o.scopes, scope.(string))
	}
	if level, ok := r.Params["access_level"].(string); ok {
		o.level = gitlabLevels[level]
	}
	made, err := g.one(ctx, gitlabCall(op, http.StatusCreated, kind.needs), func(with gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error) {
		return kind.create(g.client, at, o, with)
	})
	if err != nil {
		return Key{}, err
	}
	h := Handle{Name: r.Name, Params: at.within(r.Params)}
	k, err := g.key(op, made, h)
	if err != nil && endsItself(h) {
		h.Secret = made.Token
		return Key{Handle: h}, err
	}
	return k, err
}

// endsItself reports whether a key is ended by presenting the key itself instead of the credential.
func endsItself(h Handle) bool { return h.Params["revoke_by"] == "self" }

// key makes a Key of a new token. It refuses a token without an expiry, which would outlive everything that knows of it.
func (g *gitlabDriver) key(op string, made *gitlab.PersonalAccessToken, h Handle) (Key, error) {
	if made.ID <= 0 || made.ExpiresAt == nil {
		return Key{}, protocol(op, "the token has no id, or no end")
	}
	k := Key{
		Secret: made.Token, Accessor: strconv.FormatInt(made.ID, 10),
		Expiry: time.Time(*made.ExpiresAt).UTC().Truncate(24 * time.Hour),
	}
	if fault := k.check(g.api.now()); fault != "" {
		return Key{}, protocol(op, "%s", fault)
	}
	h.Accessor = k.Accessor
	if endsItself(h) {
		h.Secret = k.Secret
	}
	k.Handle = h
	return k, nil
}

// revoke ends a token: with the token itself if the handle has it, otherwise by its id, with the credential. The handles that
// find returns never have the token.
func (g *gitlabDriver) revoke(ctx context.Context, h Handle) error {
	const op = "revoke"
	if h.Secret != "" {
		return g.revokeSelf(ctx, op, h.Secret)
	}
	return selfEnding(h, g.revokeByID(ctx, op, h))
}

// selfEnding turns ErrDenied into ErrUnsupported for a key with revoke_by=self that nobody has: the credential may not be
// allowed to end it, and whoever chose revoke_by=self has accepted that.
func selfEnding(h Handle, err error) error {
	e := (*Error)(nil)
	if !endsItself(h) || !errors.As(err, &e) || e.outcome != ErrDenied {
		return err
	}
	told := *e
	told.outcome = ErrUnsupported
	return &told
}

func (g *gitlabDriver) revokeByID(ctx context.Context, op string, h Handle) error {
	id, err := tokenID(op, h)
	if err != nil {
		return err
	}
	kind, at, err := g.place(ctx, op, h.Params)
	if err != nil {
		return err
	}
	c := gitlabCall(op, http.StatusNoContent, kind.needs)
	c.urgent, c.wantBody, c.absent = true, false, func(a answer) bool {
		return a.status == http.StatusNotFound && kind.gone.MatchString(gitlabMessage(a.body))
	}
	return g.api.lend(ctx, c, func(ctx context.Context) error { return kind.revoke(g.client, at, id, gitlab.WithContext(ctx)) })
}

// revokeSelf makes a key end itself. The credential is not used, so a refusal concerns the key: one that GitLab does not know,
// or calls expired or revoked, is gone.
func (g *gitlabDriver) revokeSelf(ctx context.Context, op, key string) error {
	c := gitlabCall(op, http.StatusNoContent, "")
	c.urgent, c.wantBody, c.hint = true, false, gitlabSelfHint
	c.absent = func(a answer) bool { return a.status == http.StatusUnauthorized && gitlabDead(a.body) }
	return g.api.lend(ctx, c, func(ctx context.Context) error {
		_, err := g.client.PersonalAccessTokens.RevokePersonalAccessTokenSelf(gitlab.WithToken(gitlab.PrivateToken, key), gitlab.WithContext(ctx))
		return err
	})
}

func tokenID(op string, h Handle) (int64, error) {
	id, err := strconv.ParseInt(h.Accessor, 10, 64)
	if err != nil || id <= 0 {
		return 0, unbuildable(op, "the handle has no id of a token")
	}
	return id, nil
}

// check asks GitLab about the credential itself; every token may ask about itself.
func (g *gitlabDriver) check(ctx context.Context) error {
	const op = "check"
	self, err := g.self(ctx, op)
	switch {
	case err != nil:
		return err
	case self.Revoked || !self.Active || self.ExpiresAt != nil && !time.Time(*self.ExpiresAt).After(g.api.now()):
		return &Error{Op: op, Text: "the credential is revoked or has expired; write a new one", outcome: ErrDenied}
	case !slices.Contains(self.Scopes, "api"):
		return &Error{Op: op, Text: "the credential lacks the scope api", outcome: ErrDenied}
	}
	return nil
}

// self returns what GitLab says of the credential: scopes, expiry, state.
func (g *gitlabDriver) self(ctx context.Context, op string) (*gitlab.PersonalAccessToken, error) {
	return g.one(ctx, gitlabCall(op, http.StatusOK, ""), func(with gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error) {
		self, _, err := g.client.PersonalAccessTokens.GetSinglePersonalAccessToken(with)
		return self, err
	})
}

// one makes a call whose answer is one token.
func (g *gitlabDriver) one(ctx context.Context, c call, use func(gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error)) (*gitlab.PersonalAccessToken, error) {
	var got *gitlab.PersonalAccessToken
	err := g.api.lend(ctx, c, func(ctx context.Context) (err error) {
		if got, err = use(gitlab.WithContext(ctx)); err == nil && got == nil {
			err = errors.New("null")
		}
		return err
	})
	return got, err
}

// place returns where the token of these parameters belongs. If a user is given by name, it looks up the number. A key is
// stored with the number, because the name may later belong to somebody else.
func (g *gitlabDriver) place(ctx context.Context, op string, params map[string]any) (gitlabKind, gitlabPlace, error) {
	text := func(name string) string { s, _ := params[name].(string); return s }
	kind, ok := gitlabKinds[text("kind")]
	if !ok || text("id") == "" {
		return gitlabKind{}, gitlabPlace{}, unbuildable(op, "the handle does not say where its token belongs")
	}
	at := gitlabPlace{id: text("id")}
	if kind.userIn == "" {
		return kind, at, nil
	}
	var err error
	at.user, err = g.userNumber(ctx, op, text(kind.userIn))
	return kind, at, err
}

func (g *gitlabDriver) userNumber(ctx context.Context, op, user string) (int64, error) {
	if number, err := strconv.ParseInt(user, 10, 64); err == nil && number > 0 {
		return number, nil
	}
	c := gitlabCall(op, http.StatusOK, "")
	c.urgent = op != "exchange"
	var users []*gitlab.User
	err := g.api.lend(ctx, c, func(ctx context.Context) (err error) {
		users, _, err = g.client.Users.ListUsers(&gitlab.ListUsersOptions{Username: &user}, gitlab.WithContext(ctx))
		return err
	})
	if err != nil {
		return 0, err
	}
	users = slices.DeleteFunc(users, func(u *gitlab.User) bool { return u == nil || u.ID <= 0 || !strings.EqualFold(u.Username, user) })
	if len(users) != 1 {
		return 0, &Error{Op: op, Text: "there is no user of that name, or the credential may not see it", outcome: ErrDenied}
	}
	return users[0].ID, nil
}

// within returns the parameters with the user's number in place of the name.
func (at gitlabPlace) within(params map[string]any) map[string]any {
	out := maps.Clone(params)
	if kind := gitlabKinds[params["kind"].(string)]; kind.userIn != "" {
		out[kind.userIn] = strconv.FormatInt(at.user, 10)
	}
	return out
}
