// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package trust

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	gitHub = "https://token.actions.githubusercontent.com"
	gitLab = "https://gitlab.com"
	entra  = "https://login.microsoftonline.com/72f988bf-0000-4000-8000-000000000002/v2.0"
	other  = "https://idp.example"
)

// The first words of the warnings, which say what is wrong; what to write instead follows.
const (
	repositoryName = "repository is a name that somebody else can own one day; bind repository_id beside it"
	ownerName      = "repository_owner is a name that somebody else can own one day; bind repository_owner_id beside it"
	oneForm        = "sub is bound in one of its two forms"
	badEvent       = "event_name admits runs that outsiders can start"
	anyEvent       = "every event is accepted, pull_request_target among them"
	gitHubDefault  = "the audience is the one that GitHub gives to all who ask for none"
	projectName    = "project_path is a name that somebody else can own one day; bind project_id beside it"
	namespaceName  = "namespace_path is a name that somebody else can own one day; bind namespace_id beside it"
	gitLabSub      = "sub holds the path of a project"
	noTenant       = "tid is not bound"
	noApplication  = "no one application is bound"
	entraName      = "email, upn, preferred_username and unique_name can be changed"
	googleEmail    = "email can be given to another account one day"
	ownerStar      = "a star stands where the owner's name is"
	apiAudience    = "the audience is the API server's own"
	issuerAudience = "the audience is the issuer itself"
)

func bind(pairs ...any) Spec {
	spec := Spec{BoundAudiences: []string{"vault"}, BoundClaims: map[string]any{}}
	for i := 0; i < len(pairs); i += 2 {
		spec.BoundClaims[pairs[i].(string)] = pairs[i+1]
	}
	return spec
}

func globs(pairs ...any) Spec {
	spec := bind(pairs...)
	spec.BoundClaimsType = "glob"
	return spec
}

func when(condition string) Spec {
	return Spec{BoundAudiences: []string{"vault"}, Condition: condition}
}

func subject(sub string) Spec {
	return Spec{BoundAudiences: []string{"vault"}, BoundSubject: sub}
}

func aud(audience string) Spec {
	return Spec{BoundAudiences: []string{"vault", audience}, BoundSubject: "s"}
}

func TestLint(t *testing.T) {
	for name, c := range map[string]struct {
		spec   Spec
		issuer string
		want   []string
	}{
		"GitHub, as it should be":       {bind("repository", "acme/x", "repository_id", "74", "repository_owner", "acme", "repository_owner_id", "65", "event_name", "push"), gitHub, nil},
		"GitHub, ids alone":             {bind("repository_id", "74", "event_name", []any{"push", "release"}), gitHub, nil},
		"GitHub, of an enterprise":      {bind("repository", "acme/x", "event_name", "push"), gitHub + "/acme", []string{repositoryName}},
		"GitHub, look-alike issuer":     {bind("repository", "acme/x"), "https://token.actions.githubusercontent.com.example", nil},
		"repository":                    {bind("repository", "acme/x", "event_name", "push"), gitHub, []string{repositoryName}},
		"repository with owner's id":    {bind("repository", "acme/x", "repository_owner_id", "65", "event_name", "push"), gitHub, []string{repositoryName}},
		"repository by pointer":         {bind("/repository", "acme/x", "event_name", "push"), gitHub, []string{repositoryName}},
		"repository in a condition":     {when("claims.repository == 'acme/x' && claims.event_name == 'push'"), gitHub, []string{repositoryName}},
		"repository, id in a condition": {when("claims.repository == 'acme/x' && claims.repository_id == '74' && claims.event_name == 'push'"), gitHub, nil},
		"owner":                         {bind("repository_owner", "acme", "event_name", "push"), gitHub, []string{ownerName}},
		"owner with repository's id":    {bind("repository_owner", "acme", "repository_id", "74", "event_name", "push"), gitHub, nil},
		"repository elsewhere":          {bind("repository", "acme/x"), other, nil},

		"sub by names":            {subject("repo:acme/x:environment:prod"), gitHub, []string{oneForm}},
		"sub by ids":              {subject("repo:acme@65/x@74:environment:prod"), gitHub, []string{oneForm}},
		"sub in both forms":       {bind("sub", []any{"repo:acme/x:environment:prod", "repo:acme@65/x@74:environment:prod"}), gitHub, nil},
		"sub in the other order":  {bind("sub", []any{"repo:acme@65/x@74:environment:prod", "repo:acme/x:environment:prod"}), gitHub, nil},
		"sub with a star in it":   {bind("sub", "repo:acme*/x:environment:prod"), gitHub, []string{oneForm}},
		"sub glob by names":       {globs("sub", "repo:acme/*:environment:prod"), gitHub, []string{oneForm}},
		"sub glob for both":       {globs("sub", "repo:acme*/x*:environment:prod"), gitHub, []string{ownerStar}},
		"sub globs in both forms": {globs("sub", []any{"repo:acme/*:environment:prod", "repo:acme@65/*:environment:prod"}), gitHub, nil},
		"sub in a condition":      {when(`claims.sub.startsWith("repo:acme/x:environment:")`), gitHub, []string{oneForm}},
		"sub in both, condition":  {when(`claims.sub in ["repo:acme/x:environment:prod", "repo:acme@65/x@74:environment:prod"]`), gitHub, nil},
		"sub of another template": {subject("repository_id:74:environment:prod:environment:prod"), gitHub, nil},
		"sub of names elsewhere":  {subject("repo:acme/x:environment:prod"), other, nil},

		"pull_request_target":        {bind("repository_id", "74", "event_name", "pull_request_target"), gitHub, []string{badEvent}},
		"workflow_run among others":  {bind("repository_id", "74", "event_name", []any{"push", "workflow_run"}), gitHub, []string{badEvent}},
		"events by glob":             {globs("repository_id", "74", "event_name", "pull*"), gitHub, []string{badEvent}},
		"any event by glob":          {globs("repository_id", "74", "event_name", "*"), gitHub, []string{badEvent}},
		"push by glob":               {globs("repository_id", "74", "event_name", "pu*h"), gitHub, nil},
		"star that is none":          {bind("repository_id", "74", "event_name", "pull*"), gitHub, nil},
		"any event":                  {bind("repository_id", "74", "ref", "refs/heads/main"), gitHub, []string{anyEvent}},
		"any event, main":            {bind("repository_id", "74", "sub", []any{"repo:a/x:ref:refs/heads/main", "repo:a@1/x@2:environment:p"}), gitHub, []string{anyEvent}},
		"any event in environment":   {bind("repository_id", "74", "environment", "prod"), gitHub, nil},
		"event in a condition":       {when("claims.repository_id == '74' && claims.event_name != 'pull_request_target'"), gitHub, nil},
		"pull_request_target abroad": {bind("project_id", "74", "event_name", "pull_request_target"), other, nil},
		"GitHub's default audience":  {Spec{BoundAudiences: []string{"https://github.com/acme"}, BoundClaims: bind("repository_id", "74", "environment", "p").BoundClaims}, gitHub, []string{gitHubDefault}},

		"GitLab, as it should be":    {bind("project_path", "acme/x", "project_id", "22", "namespace_path", "acme", "namespace_id", "72"), gitLab, nil},
		"project":                    {bind("project_path", "acme/x"), gitLab, []string{projectName}},
		"project with namespace's":   {bind("project_path", "acme/x", "namespace_id", "72"), gitLab, []string{projectName}},
		"namespace":                  {bind("namespace_path", "acme"), gitLab, []string{namespaceName}},
		"namespace with project's":   {bind("namespace_path", "acme", "project_id", "22"), gitLab, nil},
		"both at one's own server":   {bind("project_path", "acme/x", "namespace_path", "acme"), other, []string{projectName, namespaceName}},
		"project in a condition":     {when("claims['project_path'] == 'acme/x'"), gitLab, []string{projectName}},
		"GitLab's sub":               {subject("project_path:acme/x:ref_type:branch:ref:main"), gitLab, []string{gitLabSub}},
		"GitLab's sub with id":       {Spec{BoundAudiences: []string{"vault"}, BoundSubject: "project_path:acme/x:ref_type:branch:ref:main", BoundClaims: map[string]any{"project_id": "22"}}, other, nil},
		"GitLab's sub, namespace":    {globs("sub", "project_path:acme/*:ref_type:branch:ref:main", "namespace_id", "72"), gitLab, nil},
		"GitLab's sub, condition":    {when("claims.sub == 'project_path:acme/x:ref_type:branch:ref:main'"), gitLab, []string{gitLabSub}},
		"GitLab's text, other claim": {when("claims.title == 'project_path:acme/x'"), gitLab, nil},

		"Entra, as it should be": {bind("tid", "t", "oid", "o"), entra, nil},
		"no tenant":              {bind("oid", "o"), entra, []string{noTenant}},
		"no tenant, v1":          {bind("oid", "o"), "https://sts.windows.net/t/", []string{noTenant}},
		"no application":         {bind("tid", "t", "idtyp", "app"), entra, []string{noApplication}},
		"tenant in a condition":  {when("claims.tid == 't' && claims.oid == 'o'"), entra, nil},
		"no tenant elsewhere":    {bind("oid", "o"), other, nil},
		"a person's email":       {bind("tid", "t", "azp", "a", "email", "x@acme.example"), entra, []string{entraName}},
		"a person's upn":         {bind("tid", "t", "azp", "a", "upn", "x@acme.example"), entra, []string{entraName}},
		"a preferred name":       {when("claims.tid == 't' && claims.azp == 'a' && claims.preferred_username == 'x'"), entra, []string{entraName}},
		"a unique name":          {bind("tid", "t", "appid", "a", "unique_name", "x"), "https://sts.windows.net/t/", []string{entraName}},
		"email beside oid":       {bind("tid", "t", "oid", "o", "email", "x@acme.example"), entra, nil},
		"email beside sub":       {bind("tid", "t", "sub", "s", "email", "x@acme.example"), entra, nil},
		"email at Google":        {bind("email", "x@p.iam.gserviceaccount.com"), "https://accounts.google.com", []string{googleEmail}},
		"email and sub, Google":  {bind("email", "x@p.iam.gserviceaccount.com", "sub", "1"), "https://accounts.google.com", nil},
		"email elsewhere":        {bind("email", "x@acme.example"), other, nil},

		"owner is a star":           {globs("repository", "*/x", "repository_id", "74", "environment", "p"), gitHub, []string{ownerStar}},
		"owner starts with a star":  {globs("repository", "*acme/x", "repository_id", "74", "environment", "p"), gitHub, []string{ownerStar}},
		"owner ends with a star":    {globs("repository", "acme*/x", "repository_id", "74", "environment", "p"), gitHub, []string{ownerStar}},
		"owner crosses":             {globs("job_workflow_ref", "**/release.yml@refs/heads/main"), other, []string{ownerStar}},
		"owner alone":               {globs("namespace_path", "acme*", "namespace_id", "72"), gitLab, []string{ownerStar}},
		"star in a list":            {globs("project_path", []any{"acme/x", "*/x"}, "project_id", "22"), gitLab, []string{ownerStar}},
		"star in a sub":             {globs("sub", "repo:*/x:environment:p"), gitHub, []string{ownerStar}},
		"star in GitLab's sub":      {globs("sub", "project_path:*/x:ref_type:branch:ref:main", "project_id", "22"), gitLab, []string{ownerStar}},
		"star for all of a sub":     {globs("sub", "**/x:environment:p"), gitHub, []string{ownerStar}},
		"star behind the slash":     {globs("repository", "acme/*", "repository_owner_id", "65", "repository_id", "7*", "environment", "p"), gitHub, nil},
		"star that is a character":  {bind("repository", "*/x", "repository_id", "74", "environment", "p"), gitHub, nil},
		"star in another claim":     {globs("email", "*@acme.example", "team", "*/x"), other, nil},
		"star for a namespace":      {globs("sub", "system:serviceaccount:*:deploy"), other, nil},
		"star in another sub":       {globs("sub", "spiffe://acme.example/ns/*/sa/x"), other, nil},
		"Kubernetes, own audience":  {aud("https://kubernetes.default.svc.cluster.local"), other, []string{apiAudience}},
		"Kubernetes, no scheme":     {aud("kubernetes.default.svc"), other, []string{apiAudience}},
		"issuer as audience":        {aud(other), other, []string{issuerAudience}},
		"Kubernetes, issuer":        {aud("https://kubernetes.default.svc"), "https://kubernetes.default.svc", []string{apiAudience, issuerAudience}},
		"issuer of another":         {aud(gitLab), other, nil},
		"login":                     {Spec{BoundSubject: "deploy", Condition: "'g' in vault.groups"}, "", nil},
		"zero spec":                 {Spec{}, "", nil},
		"policies that New refuses": {Spec{BoundClaims: map[string]any{"": 1, "repository": 7}, Condition: "((", BoundClaimsType: "glob"}, other, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := Lint(c.spec, c.issuer)
			if len(got) == len(c.want) {
				for i := range got {
					if strings.HasPrefix(got[i], c.want[i]) {
						got[i] = c.want[i]
					}
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Each event that somebody without rights in the repository can cause is warned of, alone and among others.
func TestLintUntrustedEvents(t *testing.T) {
	for _, event := range []string{
		"pull_request", "pull_request_target", "pull_request_review", "pull_request_review_comment", "workflow_run", "issues", "issue_comment",
		"discussion", "discussion_comment", "fork", "watch",
	} {
		for _, events := range []any{event, []any{"push", event}} {
			got := Lint(bind("repository_id", "74", "event_name", events), gitHub)
			if len(got) != 1 || !strings.HasPrefix(got[0], badEvent) {
				t.Errorf("%v: %q; want the warning on events", events, got)
			}
		}
	}
	for _, event := range []string{"push", "release", "workflow_dispatch", "schedule"} {
		if got := Lint(bind("repository_id", "74", "event_name", event), gitHub); got != nil {
			t.Errorf("%s: %q; want no warning", event, got)
		}
	}
}

// A warning names no value of the policy, so that it can be logged, and says what to write.
func TestLintTexts(t *testing.T) {
	seen := map[string]bool{}
	for _, check := range checks {
		if seen[check.text] {
			t.Errorf("%q stands there twice", check.text)
		}
		seen[check.text] = true
		if !strings.Contains(check.text, "bind ") && !strings.Contains(check.text, "write ") && !strings.Contains(check.text, "use ") {
			t.Errorf("%q does not say what to write instead", check.text)
		}
	}
}
