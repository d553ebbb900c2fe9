// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package trust

import (
	"regexp"
	"slices"
	"strings"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

// Lint returns warnings about a policy that New accepts: what it trusts more than its author may think. issuer is the
// exact iss of the policy's issuer, or empty for a login. A warning says what to write instead and holds no value.
func Lint(spec Spec, issuer string) []string {
	v := viewOf(spec, issuer)
	var warnings []string
	for _, check := range checks {
		if (len(check.hosts) == 0 || slices.Contains(check.hosts, v.host)) && check.risky(v) {
			warnings = append(warnings, check.text)
		}
	}
	return warnings
}

// check is one risk. It is looked for at the issuers on hosts, or at all if there are none.
type check struct {
	hosts []string
	risky func(view) bool
	text  string
}

var (
	atGitHub = []string{"token.actions.githubusercontent.com"}
	atGoogle = []string{"accounts.google.com"}
	atEntra  = []string{"login.microsoftonline.com", "login.microsoftonline.us", "login.partner.microsoftonline.cn", "sts.windows.net"}
)

// repositoryLike are claims whose value starts with the name of an owner.
var repositoryLike = []string{
	"repository", "repository_owner", "job_workflow_ref", "workflow_ref", "project_path", "namespace_path", "ci_config_ref_uri", "sub",
}

// changeable are Entra's claims that administrators, and some that users, can change.
var changeable = []string{"email", "upn", "preferred_username", "unique_name"}

// untrustedEvents start a workflow at GitHub on the word of somebody who need not have any right in the repository.
var untrustedEvents = []string{
	"pull_request", "pull_request_target", "pull_request_review", "pull_request_review_comment", "workflow_run", "issues",
	"issue_comment", "discussion", "discussion_comment", "fork", "watch",
}

var checks = []check{
	{atGitHub, nameWithoutID("repository", "repository_id"),
		"repository is a name that somebody else can own one day; bind repository_id beside it (a string of digits in the token)"},
	{atGitHub, nameWithoutID("repository_owner", "repository_owner_id", "repository_id"),
		"repository_owner is a name that somebody else can own one day; bind repository_owner_id beside it (a string of digits in the token)"},
	{atGitHub, view.oneFormOfSub,
		"sub is bound in one of its two forms, repo:OWNER/NAME:... and repo:OWNER@ID/NAME@ID:... (repositories made or renamed since 2026-07-15); " +
			"bind repository_id, repository_owner_id and ref or environment instead, or list both forms in bound_claims.sub"},
	{atGitHub, view.acceptsUntrustedEvent,
		"event_name admits runs that outsiders can start or feed (pull_request_target and others); " +
			"bind event_name to what you release from, such as push, release or workflow_dispatch"},
	{atGitHub, view.anyEvent,
		"every event is accepted, pull_request_target among them; bind event_name (push, release, workflow_dispatch) or an environment with protection rules"},
	{atGitHub, audience("https://github.com/"),
		"the audience is the one that GitHub gives to all who ask for none; let jobs ask for an audience that only this engine has, and bind that"},
	{nil, nameWithoutID("project_path", "project_id"),
		"project_path is a name that somebody else can own one day; bind project_id beside it (a string of digits in the token)"},
	{nil, nameWithoutID("namespace_path", "namespace_id", "project_id"),
		"namespace_path is a name that somebody else can own one day; bind namespace_id beside it (a string of digits in the token)"},
	{nil, view.gitLabSubWithoutID,
		"sub holds the path of a project, which somebody else can own one day; bind project_id and ref or environment instead of it, or beside it"},
	{atEntra, func(v view) bool { return !v.binds("tid") },
		"tid is not bound; bind it to your tenant's id, and oid to the service principal's"},
	{atEntra, func(v view) bool { return !slices.ContainsFunc([]string{"oid", "sub", "azp", "appid"}, v.binds) },
		"no one application is bound, so that others of the tenant are accepted too; bind oid to the service principal's id"},
	{atEntra, func(v view) bool {
		return slices.ContainsFunc(changeable, v.binds) && !v.binds("oid") && !v.binds("sub")
	},
		"email, upn, preferred_username and unique_name can be changed and given to somebody else; bind oid instead of them, or beside them"},
	{atGoogle, nameWithoutID("email", "sub"),
		"email can be given to another account one day; bind sub beside it, which is the account's own for ever"},
	{nil, view.starInOwner,
		"a star stands where the owner's name is, and anybody can register an owner that fits; write the owner in full and put stars behind its slash (acme/*)"},
	{nil, audience("https://kubernetes.default.svc", "kubernetes.default.svc"),
		"the audience is the API server's own, which every pod's token has; project a token with an audience that only this engine has, and bind that"},
	{nil, func(v view) bool { return slices.Contains(v.spec.BoundAudiences, v.issuer) },
		"the audience is the issuer itself, as in tokens that are meant for it; use one that only this engine has"},
}

// view is a policy as the checks look at it.
type view struct {
	spec         Spec
	issuer, host string
	claims       map[string][]string // top-level claim -> the texts that it is compared with, as far as they are known
}

func viewOf(spec Spec, issuer string) view {
	v := view{spec: spec, issuer: issuer, claims: map[string][]string{}}
	_, rest, _ := strings.Cut(issuer, "://")
	v.host, _, _ = strings.Cut(rest, "/")
	if condition, err := expr.Compile(spec.Condition, expr.Bool, Variables...); err == nil {
		names, _ := condition.Members("claims")
		for _, name := range names {
			v.claims[name] = nil
		}
		if slices.Contains(names, "sub") {
			for _, literal := range subLiteral.FindAllString(spec.Condition, -1) {
				v.claims["sub"] = append(v.claims["sub"], literal[1:])
			}
		}
	}
	if spec.BoundSubject != "" {
		v.claims["sub"] = append(v.claims["sub"], spec.BoundSubject)
	}
	for name, want := range spec.BoundClaims {
		if name == "" {
			continue
		}
		list, isList := want.([]any)
		if !isList {
			list = []any{want}
		}
		v.claims[Root(name)] = append(v.claims[Root(name)], texts(list)...)
	}
	return v
}

// subLiteral finds a subject of GitHub or GitLab in the source of a condition.
var subLiteral = regexp.MustCompile(`["'](?:repo|project_path):[^"']*`)

func texts(list []any) []string {
	var out []string
	for _, value := range list {
		if text, ok := value.(string); ok {
			out = append(out, text)
		}
	}
	return out
}

func (v view) binds(claim string) bool {
	_, bound := v.claims[claim]
	return bound
}

func (v view) glob() bool { return v.spec.BoundClaimsType == "glob" }

// nameWithoutID finds a bound name that can be given to somebody else later, where no claim with a permanent id is bound too.
func nameWithoutID(name string, ids ...string) func(view) bool {
	return func(v view) bool { return v.binds(name) && !slices.ContainsFunc(ids, v.binds) }
}

// audience finds a bound audience that starts with one of the prefixes.
func audience(prefixes ...string) func(view) bool {
	return func(v view) bool {
		return slices.ContainsFunc(v.spec.BoundAudiences, func(audience string) bool {
			return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(audience, prefix) })
		})
	}
}

// oneFormOfSub tells the forms apart by the owner: OWNER or OWNER@ID. A star in it may stand for either.
func (v view) oneFormOfSub() bool {
	var names, ids bool
	for _, sub := range v.claims["sub"] {
		rest, ok := strings.CutPrefix(sub, "repo:")
		if !ok {
			continue
		}
		owner, _, _ := strings.Cut(rest, "/")
		star := v.glob() && strings.Contains(owner, "*")
		ids = ids || star || strings.Contains(owner, "@")
		names = names || star || !strings.Contains(owner, "@")
	}
	return names != ids
}

func (v view) acceptsUntrustedEvent() bool {
	return slices.ContainsFunc(v.claims["event_name"], func(want string) bool {
		if !v.glob() {
			return slices.Contains(untrustedEvents, want)
		}
		re, err := compileGlob(want)
		return err == nil && slices.ContainsFunc(untrustedEvents, re.MatchString)
	})
}

// anyEvent finds a policy that does not restrict the event. Binding an environment restricts it too, because GitHub's rules for
// the environment say what may run.
func (v view) anyEvent() bool {
	subs := v.claims["sub"]
	other := func(sub string) bool { return !strings.Contains(sub, ":environment:") }
	inEnvironment := len(subs) > 0 && !slices.ContainsFunc(subs, other)
	return !v.binds("event_name") && !v.binds("environment") && !inEnvironment
}

func (v view) gitLabSubWithoutID() bool {
	path := func(sub string) bool { return strings.HasPrefix(sub, "project_path:") }
	return slices.ContainsFunc(v.claims["sub"], path) && !v.binds("project_id") && !v.binds("namespace_id")
}

func (v view) starInOwner() bool {
	return v.glob() && slices.ContainsFunc(repositoryLike, func(claim string) bool {
		return slices.ContainsFunc(v.claims[claim], func(want string) bool {
			if claim == "sub" {
				want = afterPrefix(want)
			}
			owner, _, _ := strings.Cut(want, "/")
			return strings.Contains(owner, "*")
		})
	})
}

// afterPrefix returns what follows the prefix of a GitHub or GitLab subject, or nothing of one of another shape.
func afterPrefix(sub string) string {
	for _, prefix := range []string{"repo:", "project_path:"} {
		if rest, ok := strings.CutPrefix(sub, prefix); ok {
			return rest
		}
	}
	if strings.HasPrefix(sub, "*") {
		return sub
	}
	return ""
}
