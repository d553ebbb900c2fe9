// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package trust

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

func mustNew(t testing.TB, spec Spec, kind Kind) *Policy {
	t.Helper()
	policy, err := New(spec, kind)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	return policy
}

// Every condition is weighed and told, in the order of the fields, with what it wanted and what it saw.
func TestEvaluateTellsEveryCondition(t *testing.T) {
	spec := Spec{
		BoundAudiences: []string{"vault"},
		BoundSubject:   "s",
		BoundClaims:    map[string]any{"b": json.Number("1"), "a": "x", "/deep/0": true},
		Condition:      "claims.env != 'prod'",
		BindCaller:     "actor",
	}
	wanted := map[string]any{
		"bound_audiences": []string{"vault"}, "bound_subject": "s", "bound_claims./deep/0": true, "bound_claims.a": "x", "bound_claims.b": json.Number("1"),
		"condition": "claims.env != 'prod'", "bind_caller": []string{"me"},
	}
	for name, c := range map[string]struct {
		claims string
		want   Decision
	}{
		"allowed": {`{"aud": "vault", "sub": "s", "a": "x", "b": 1, "deep": [true], "env": "dev", "actor": "me"}`,
			Decision{Allowed: true, Conditions: []Condition{
				{Name: "bound_audiences", Holds: true, Saw: "vault"},
				{Name: "bound_subject", Holds: true, Saw: "s"},
				{Name: "bound_claims./deep/0", Holds: true, Saw: true},
				{Name: "bound_claims.a", Holds: true, Saw: "x"},
				{Name: "bound_claims.b", Holds: true, Saw: json.Number("1")},
				{Name: "condition", Holds: true},
				{Name: "bind_caller", Holds: true, Saw: "me"},
			}}},
		"nothing holds": {`{"aud": ["a", "b"], "sub": "t", "a": ["y"], "b": "1", "deep": {"0": null}, "actor": "you"}`,
			Decision{Reason: "audience", Conditions: []Condition{
				{Name: "bound_audiences", Saw: []any{"a", "b"}, Why: "want one audience alone, unless allow_extra_audiences is on"},
				{Name: "bound_subject", Saw: "t"},
				{Name: "bound_claims./deep/0"},
				{Name: "bound_claims.a", Saw: []any{"y"}},
				{Name: "bound_claims.b", Saw: "1"},
				{Name: "condition", Why: `"env" is missing`},
				{Name: "bind_caller", Saw: "you"},
			}}},
		"empty token": {`{}`,
			Decision{Reason: "audience", Conditions: []Condition{
				{Name: "bound_audiences"}, {Name: "bound_subject"}, {Name: "bound_claims./deep/0"}, {Name: "bound_claims.a"},
				{Name: "bound_claims.b"}, {Name: "condition", Why: `"env" is missing`}, {Name: "bind_caller"},
			}}},
		"condition": {`{"aud": "vault", "sub": "s", "a": "x", "b": 1, "deep": [true], "env": "prod", "actor": "you"}`,
			Decision{Reason: "not_trusted", Conditions: []Condition{
				{Name: "bound_audiences", Holds: true, Saw: "vault"},
				{Name: "bound_subject", Holds: true, Saw: "s"},
				{Name: "bound_claims./deep/0", Holds: true, Saw: true},
				{Name: "bound_claims.a", Holds: true, Saw: "x"},
				{Name: "bound_claims.b", Holds: true, Saw: json.Number("1")},
				{Name: "condition"},
				{Name: "bind_caller", Saw: "you"},
			}}},
	} {
		t.Run(name, func(t *testing.T) {
			id := tokenOf(claimsOf(t, c.claims))
			id.Caller.Aliases = []string{"me"}
			for i, condition := range c.want.Conditions {
				c.want.Conditions[i].Wanted = wanted[condition.Name]
			}
			got := mustNew(t, spec, Token).Evaluate(id, expr.NewBudget())
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// With several audiences the values alone do not show why they are refused.
func TestEvaluateTellsWhyOfSeveralAudiences(t *testing.T) {
	spec := Spec{BoundAudiences: []string{"vault"}, BoundSubject: "s", AllowExtraAudiences: true}
	for azp, why := range map[string]string{"vault": "", "other": "of several audiences azp must be wanted too"} {
		id := tokenOf(map[string]any{"aud": []any{"vault", "other"}, "azp": azp, "sub": "s"})
		got := mustNew(t, spec, Token).Evaluate(id, expr.NewBudget()).Conditions[0]
		want := Condition{Name: "bound_audiences", Holds: why == "", Wanted: spec.BoundAudiences, Saw: id.Claims["aud"], Why: why}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("azp %q (-want +got):\n%s", azp, diff)
		}
	}
}

func TestUnmet(t *testing.T) {
	d := Decision{Conditions: []Condition{{Name: "a"}, {Name: "b", Holds: true}, {Name: "c"}}}
	if diff := cmp.Diff([]string{"a", "c"}, d.Unmet()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestZeroValuesRefuse(t *testing.T) {
	open := Spec{BoundAudiences: []string{"vault"}, AcceptAnySubject: true}
	anyToken := mustNew(t, open, Token)
	anyLogin := mustNew(t, Spec{AcceptAnySubject: true}, Login)
	good := func() *Identity { return tokenOf(map[string]any{"aud": "vault", "sub": "s"}) }
	login := func() *Identity { return &Identity{Kind: Login, Subject: "me"} }
	nobody := []Condition{{Name: "bound_audiences", Wanted: open.BoundAudiences}, {Name: "bound_subject", Wanted: ""}}
	for name, c := range map[string]struct {
		policy *Policy
		id     *Identity
		want   Decision
	}{
		"no policy":            {nil, good(), Decision{Reason: "not_trusted"}},
		"zero policy":          {&Policy{}, good(), Decision{Reason: "not_trusted"}},
		"policy without New":   {&Policy{spec: open, kind: Token}, good(), Decision{Reason: "not_trusted"}},
		"no identity":          {anyToken, nil, Decision{Reason: "not_trusted"}},
		"zero identity":        {anyToken, &Identity{}, Decision{Reason: "audience", Conditions: nobody}},
		"zero login":           {anyLogin, &Identity{Kind: Login}, Decision{Reason: "not_trusted", Conditions: nobody[1:]}},
		"zero, no identity":    {&Policy{}, nil, Decision{Reason: "not_trusted"}},
		"login, policy: token": {anyToken, login(), Decision{Reason: "not_trusted"}},
		"token, policy: login": {anyLogin, good(), Decision{Reason: "not_trusted"}},
		"another kind":         {anyToken, &Identity{Kind: 2, Subject: "s"}, Decision{Reason: "not_trusted"}},
		"token as it should be": {anyToken, good(), Decision{Allowed: true, Conditions: []Condition{
			{Name: "bound_audiences", Holds: true, Wanted: open.BoundAudiences, Saw: "vault"}}}},
		"login as it should be": {anyLogin, login(), Decision{Allowed: true}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, c.policy.Evaluate(c.id, expr.NewBudget())); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if (Decision{}).Allowed {
		t.Error("the zero Decision allows")
	}
}

// What a login's identity carries as claims, by whatever mistake, is not looked at.
func TestLoginHasNoAudience(t *testing.T) {
	policy := mustNew(t, Spec{BoundSubject: "me"}, Login)
	got := policy.Evaluate(&Identity{Kind: Login, Subject: "me", Claims: map[string]any{"aud": "other"}}, expr.NewBudget())
	want := Decision{Allowed: true, Conditions: []Condition{{Name: "bound_subject", Holds: true, Wanted: "me", Saw: "me"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestConditionThatFailsSaysWhyWithoutValues(t *testing.T) {
	spec := Spec{BoundAudiences: []string{"vault"}, Condition: "int(claims.sub) == 1"}
	got := mustNew(t, spec, Token).Evaluate(tokenOf(claimsOf(t, `{"aud": "vault", "sub": "hunter2"}`)), expr.NewBudget())
	want := Condition{Name: "condition", Wanted: spec.Condition, Why: "a value is missing or of another type than the expression needs"}
	if diff := cmp.Diff(want, got.Conditions[1]); diff != "" || got.Allowed || got.Reason != NotTrusted {
		t.Errorf("reason %q, condition (-want +got):\n%s", got.Reason, diff)
	}
}

// A condition takes its work from the request's budget, and refuses once that is used up.
func TestBudgetIsTheRequests(t *testing.T) {
	spec := Spec{BoundAudiences: []string{"vault"}, Condition: "claims.l.all(a, claims.l.all(b, a == b))"}
	policy := mustNew(t, spec, Token)
	claims := claimsOf(t, `{"aud": "vault", "sub": "s"}`)
	claims["l"] = strings.Split(strings.Repeat("x", 100), "")
	budget := expr.NewBudget()
	first := policy.Evaluate(tokenOf(claims), budget)
	last := first
	for range 1000 {
		last = policy.Evaluate(tokenOf(claims), budget)
	}
	if !first.Allowed || last.Allowed || last.Conditions[1].Why != "the request's expressions cost too much together" {
		t.Errorf("first %+v, last %+v; want allowed, then refused for want of budget", first, last)
	}
}

func TestValues(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, c := range map[string]struct {
		id   Identity
		want map[string]any
	}{
		"nothing is known": {Identity{}, map[string]any{"claims": map[string]any{}, "vault": map[string]any{}}},
		"everything is": {
			Identity{
				Claims: map[string]any{
					"n": json.Number("7"), "null": nil, "deep": map[string]any{"null": nil, "l": []any{nil, map[string]any{"null": nil}}},
				},
				Now: now,
				Caller: Caller{
					EntityID: "e", EntityName: "ci", EntityMetadata: map[string]string{"a": "b"}, Aliases: []string{"x"},
					Alias:  &Alias{Name: "x", Metadata: map[string]string{"c": "d"}, CustomMetadata: map[string]string{"e": "f"}},
					Groups: []string{"g"}, DisplayName: "d", RemoteAddress: "192.0.2.1",
				},
			},
			map[string]any{
				"claims": map[string]any{"n": int64(7), "deep": map[string]any{}},
				"now":    now,
				"vault": map[string]any{
					"entity": map[string]any{"id": "e", "name": "ci", "metadata": map[string]string{"a": "b"}},
					"alias": map[string]any{
						"name": "x", "metadata": map[string]string{"c": "d"}, "custom_metadata": map[string]string{"e": "f"},
					},
					"groups": []string{"g"}, "display_name": "d", "remote_address": "192.0.2.1",
				},
			},
		},
		"entity and alias without metadata": {
			Identity{Caller: Caller{EntityID: "e", Alias: &Alias{}}},
			map[string]any{"claims": map[string]any{}, "vault": map[string]any{
				"entity": map[string]any{"id": "e", "metadata": map[string]string{}},
				"alias":  map[string]any{"metadata": map[string]string{}, "custom_metadata": map[string]string{}},
				"groups": []string(nil),
			}},
		},
		"groups without an entity": {
			Identity{Caller: Caller{Groups: []string{"g"}, EntityName: "ci", EntityMetadata: map[string]string{"a": "b"}}},
			map[string]any{"claims": map[string]any{}, "vault": map[string]any{}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, c.id.Values()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// The claims of an identity are looked at by other code too: making values of them must not change them.
func TestValuesLeavesTheClaimsAlone(t *testing.T) {
	text := `{"a": null, "l": [{"b": null}], "n": 7}`
	id := tokenOf(claimsOf(t, text))
	if diff := cmp.Diff(id.Values(), id.Values()); diff != "" {
		t.Errorf("second time (-first +second):\n%s", diff)
	}
	if diff := cmp.Diff(claimsOf(t, text), id.Claims); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestReads(t *testing.T) {
	audience := []string{"vault"}
	for name, c := range map[string]struct {
		spec  Spec
		kind  Kind
		names []string
		whole bool
	}{
		"subject": {Spec{BoundAudiences: audience, BoundSubject: "s"}, Token, []string{"aud", "azp", "sub"}, false},
		"all fields": {Spec{
			BoundAudiences: audience, BoundClaims: map[string]any{"a": "x", "/b~1c/d": "y", "/e": "z"},
			Condition: "claims.f.g == 1 && claims['h'] == 2 && 'i' in claims && claims.a == 'x'", BindCaller: "/j/0",
		}, Token, []string{"a", "aud", "azp", "b/c", "e", "f", "h", "i", "j", "sub"}, false},
		"any claim":         {Spec{BoundAudiences: audience, Condition: "claims.exists(c, c == 'x')"}, Token, []string{"aud", "azp", "sub"}, true},
		"login":             {Spec{BoundSubject: "s", Condition: "'g' in vault.groups"}, Login, nil, false},
		"vault is no claim": {Spec{BoundAudiences: audience, Condition: "vault.entity.name == 'x'"}, Token, []string{"aud", "azp", "sub"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			names, whole := mustNew(t, c.spec, c.kind).Reads()
			if diff := cmp.Diff(c.names, names); diff != "" || whole != c.whole {
				t.Errorf("whole %v; want %v; names (-want +got):\n%s", whole, c.whole, diff)
			}
		})
	}
}

func TestReadsCaller(t *testing.T) {
	for name, c := range map[string]struct {
		spec Spec
		kind Kind
		want bool
	}{
		"claims alone": {Spec{BoundAudiences: []string{"vault"}, BoundClaims: map[string]any{"a": "x"}, Condition: "claims.b == 'y'"}, Token, false},
		"condition":    {Spec{BoundAudiences: []string{"vault"}, Condition: "has(vault.entity)"}, Token, true},
		"no condition": {Spec{BoundAudiences: []string{"vault"}, BoundSubject: "s"}, Token, false},
		"bind_caller":  {Spec{BoundAudiences: []string{"vault"}, BoundSubject: "s", BindCaller: "a"}, Token, true},
		"login":        {Spec{BoundSubject: "s"}, Login, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := mustNew(t, c.spec, c.kind).ReadsCaller(); got != c.want {
				t.Errorf("got %v; want %v", got, c.want)
			}
		})
	}
}

// Who keeps only the claims that Reads names gets the same decision of them later.
func TestReadsIsEnough(t *testing.T) {
	spec := Spec{
		BoundAudiences: []string{"vault"}, AllowExtraAudiences: true, BoundSubject: "s",
		BoundClaims: map[string]any{"/deep/list/1": "y", "repository": []any{"a", "b"}},
		Condition:   "claims.ref == 'main' && !has(claims.fork) && ('k' in claims || claims.deep.n > 6)",
		BindCaller:  "actor",
	}
	policy := mustNew(t, spec, Token)
	names, whole := policy.Reads()
	for _, text := range []string{
		`{"aud": ["vault", "x"], "azp": "vault", "sub": "s", "deep": {"list": ["x", "y"], "n": 7}, "repository": "b", "ref": "main", "actor": "me", "more": 1}`,
		`{"aud": ["vault", "x"], "azp": "other", "sub": "s", "deep": {"list": ["x", "y"]}, "k": 1, "repository": "c", "ref": "main", "actor": "me"}`,
		`{"aud": "vault", "sub": "t", "deep": {"list": ["x"]}, "repository": "b", "ref": "main", "fork": true, "actor": "you"}`,
	} {
		all := claimsOf(t, text)
		kept := map[string]any{}
		for _, name := range names {
			if value, found := all[name]; found {
				kept[name] = value
			}
		}
		decide := func(claims map[string]any) Decision {
			id := tokenOf(claims)
			id.Caller.Aliases = []string{"me"}
			return policy.Evaluate(id, expr.NewBudget())
		}
		if diff := cmp.Diff(decide(all), decide(kept)); diff != "" || whole {
			t.Errorf("%s: whole %v; decision (-all +kept):\n%s", text, whole, diff)
		}
	}
}

// What the operator's record does later must not reach a policy made of it.
func TestPolicyDoesNotShareTheSpec(t *testing.T) {
	spec := Spec{
		BoundAudiences: []string{"vault"},
		BoundClaims:    map[string]any{"sub": []any{"s"}},
	}
	policy := mustNew(t, spec, Token)
	spec.BoundAudiences[0] = "evil"
	spec.BoundClaims["sub"].([]any)[0] = "evil"
	delete(spec.BoundClaims, "sub")
	for claims, want := range map[string]bool{
		`{"aud": "vault", "sub": "s"}`: true, `{"aud": "evil", "sub": "s"}`: false, `{"aud": "vault", "sub": "evil"}`: false,
	} {
		if d := policy.Evaluate(tokenOf(claimsOf(t, claims)), expr.NewBudget()); d.Allowed != want {
			t.Errorf("%s: allowed %v; want %v", claims, d.Allowed, want)
		}
	}
}

func TestPolicyIsSafeToShare(t *testing.T) {
	policy := mustNew(t, Spec{
		BoundAudiences: []string{"vault"}, BoundClaims: map[string]any{"sub": "s*"}, BoundClaimsType: "glob",
		Condition: "claims.n == 1",
	}, Token)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			claims := map[string]any{"aud": "vault", "sub": "s1", "n": json.Number("1")}
			if i%2 == 1 {
				claims["n"] = json.Number("2")
			}
			for range 50 {
				if d := policy.Evaluate(tokenOf(claims), expr.NewBudget()); d.Allowed != (i%2 == 0) {
					t.Errorf("n = %v: allowed %v", claims["n"], d.Allowed)
				}
			}
		})
	}
	wg.Wait()
}

// A policy full of globs would make each decision slow.
func TestGlobsAreBounded(t *testing.T) {
	globs := func(n int) map[string]any {
		list := make([]any, n/2)
		for i := range list {
			list[i] = "acme/*"
		}
		return map[string]any{"a": list, "b": list}
	}
	spec := Spec{BoundAudiences: []string{"v"}, BoundClaimsType: "glob", BoundClaims: globs(maxGlobs)}
	if _, err := New(spec, Token); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	spec.BoundClaims = globs(maxGlobs + 2)
	if _, err := New(spec, Token); err == nil || err.Error() != "bound_claims: at most 256 globs are allowed, all claims together" {
		t.Errorf("over the limit: %v", err)
	}
}
