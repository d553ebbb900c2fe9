// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package trust

import (
	"errors"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

// The verdict on one case, as New and Evaluate give it.
const (
	accepted = "accepted"
	refused  = "refused"
	invalid  = "invalid" // New refuses the policy
)

// verdict makes a policy of spec and weighs claims, to which it adds what every token has.
func verdict(t *testing.T, spec Spec, claims string) string {
	t.Helper()
	policy, err := New(spec, Token)
	var field *FieldError
	if errors.As(err, &field) {
		return invalid
	} else if err != nil {
		t.Fatalf("New: %v; want a *FieldError", err)
	}
	id := tokenOf(map[string]any{"aud": "vault", "sub": "s"})
	maps.Copy(id.Claims, claimsOf(t, claims))
	if policy.Evaluate(id, expr.NewBudget()).Allowed {
		return accepted
	}
	return refused
}

// bound is a policy that bound_claims alone decides.
func bound(t *testing.T, boundType, claims string) Spec {
	t.Helper()
	return Spec{BoundAudiences: []string{"vault"}, BoundClaimsType: boundType, BoundClaims: claimsOf(t, claims), AcceptAnySubject: true}
}

// bound_claims means what it means in Vault's JWT auth method: these are the cases of TestValidateBoundClaims in
// hashicorp/vault-plugin-auth-jwt (claims_test.go, v0.26.1), in their order and with the same verdicts, then those of its
// tests of pointers, logins, roles and providers. Its cases of Go types that JSON does not have (float32, float64, int) are
// here as the JSON that they stand for.
func TestBoundClaimsAsInAuthJWT(t *testing.T) {
	for _, c := range []struct{ name, boundType, bound, claims, want string }{
		{"valid", "string", `{"foo": "a", "bar": "b"}`, `{"foo": "a", "bar": "b"}`, accepted},
		{"non-string claim", "string", `{"foo": [42]}`, `{"foo": [42]}`, accepted},
		{"boolean claim", "string", `{"email_verified": [false]}`, `{"email_verified": [false]}`, accepted},
		{"match within list", "string", `{"foo": "a"}`, `{"foo": ["a", "b"]}`, accepted},
		{"list against list", "string", `{"foo": ["a", "b", "c"]}`, `{"foo": ["c", "d"]}`, accepted},
		{"number", "string", `{"foo": 123}`, `{"foo": 123}`, accepted},
		{"number with a fraction of zero", "string", `{"foo": 123}`, `{"foo": 123.0}`, accepted},
		{"other number", "string", `{"foo": 456}`, `{"foo": 123}`, refused},
		{"other number with a fraction of zero", "string", `{"foo": 123}`, `{"foo": 456.0}`, refused},
		{"no match within list", "string", `{"foo": "c"}`, `{"foo": ["a", "b"]}`, refused},
		{"no match list against list", "string", `{"foo": ["a", "b", "c"]}`, `{"foo": ["d", "e"]}`, refused},
		{"extra data", "string", `{"foo": "a", "bar": "b"}`, `{"foo": "a", "bar": "b", "color": "green"}`, accepted},
		{"mismatched value", "string", `{"foo": "a", "bar": "b"}`, `{"foo": "a", "bar": "wrong"}`, refused},
		{"missing claim", "string", `{"foo": "a", "bar": "b"}`, `{"foo": "a"}`, refused},
		{"JSON pointer", "string", `{"foo": "a", "/bar/baz/1": "y"}`, `{"foo": "a", "bar": {"baz": ["x", "y", "z"]}}`, accepted},
		{"JSON pointer, other value", "string", `{"foo": "a", "/bar/baz/1": "q"}`, `{"foo": "a", "bar": {"baz": ["x", "y", "z"]}}`, refused},
		{"JSON pointer, not found", "string", `{"foo": "a", "/bar/XXX/1243": "q"}`, `{"foo": "a", "bar": {"baz": ["x", "y", "z"]}}`, refused},
		{"alternates", "string", `{"email": ["a", "b", "c"], "color": "green"}`, `{"email": "c", "color": "green"}`, accepted},
		{"no alternate", "string", `{"email": ["a", "b", "c"], "color": "green"}`, `{"email": "d", "color": "green"}`, refused},
		{"number wanted, text", "string", `{"email": 42}`, `{"email": "d"}`, refused},
		{"boolean wanted, text", "string", `{"email_verified": true}`, `{"email_verified": "true"}`, refused},
		{"text wanted, number", "string", `{"email": "d"}`, `{"email": 42}`, refused},
		{"glob", "glob", `{"email": "4*"}`, `{"email": "42"}`, accepted},
		{"glob, number", "glob", `{"email": "4*"}`, `{"email": 42}`, refused},
		{"glob, other start", "glob", `{"email": "4*"}`, `{"email": "d42"}`, refused},
		{"glob, other end", "glob", `{"email": "*2"}`, `{"email": "42x"}`, refused},
		{"glob in list", "glob", `{"email": ["4*d", "42*"]}`, `{"email": "42x"}`, accepted},
		{"no glob in list", "glob", `{"email": ["4*d", "42*"]}`, `{"email": "43x"}`, refused},
		{"number as glob", "glob", `{"email": 42}`, `{"email": "42x"}`, refused},
		{"complex glob", "glob", `{"email": "*@*.com"}`, `{"email": "test@example.com"}`, accepted},
		{"no glob without the type", "", `{"email": "r*@*.com"}`, `{"email": "test@example.com"}`, refused},

		{"pointer to a member", "string", `{"/a": 42}`, `{"a": 42}`, accepted},
		{"pointer to a number", "string", `{"/c/d": 95}`, `{"c": {"d": 95}}`, accepted},
		{"pointer into a list", "string", `{"/c/e/1": "cat"}`, `{"c": {"e": ["dog", "cat", "bird"]}}`, accepted},
		{"pointer through two objects", "string", `{"/c/f/g": "zebra"}`, `{"c": {"f": {"g": "zebra"}}}`, accepted},
		{"no such claim", "string", `{"nope": "x"}`, `{"c": {"f": {"g": "zebra"}}}`, refused},
		{"no such member", "string", `{"/c/f/h": "x"}`, `{"c": {"f": {"g": "zebra"}}}`, refused},
		{"a backslash is a name", "string", `{"\\": "x"}`, `{"c": "x"}`, refused},
		{"an object is no value", "string", `{"c": "x"}`, `{"c": {"x": "x"}}`, refused},
		{"an object wanted", "string", `{"c": {"x": "x"}}`, `{"c": {"x": "x"}}`, invalid},
		{"null wanted", "string", `{"c": null}`, `{"c": null}`, invalid},
		{"text and number of a login", "string", `{"color": "green", "pnum": 123}`, `{"color": "green", "pnum": 123, "first_name": "jeff2"}`, accepted},
		{"login without them", "string", `{"color": "green", "pnum": 123}`, `{"first_name": "jeff2", "org": {"primary": "engineering"}}`, refused},
		{"group and schema of a provider", "string", `{"groups": "group1@example.com", "/Preferences/shirt_size": "medium"}`,
			`{"groups": ["group1@example.com"], "Preferences": {"shirt_size": "medium"}}`, accepted},
		{"unknown type", "invalid", `{"foo": 10, "bar": "baz"}`, `{"foo": 10, "bar": "baz"}`, invalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := verdict(t, bound(t, c.boundType, c.bound), c.claims); got != c.want {
				t.Errorf("got %s; want %s", got, c.want)
			}
		})
	}
}

// unlike is a point in which ours and the JWT auth method differ, in the words of the README, and cases that show it.
type unlike struct {
	point string
	cases []unlikeCase
}

type unlikeCase struct {
	why    string
	spec   Spec
	claims string
	want   string // what ours says
}

// stricter are the points in which the JWT auth method saves a policy, or accepts a token, that ours does not.
func stricter(t *testing.T) []unlike {
	t.Helper()
	exact := func(claims string) Spec { return bound(t, "string", claims) }
	glob := func(claims string) Spec { return bound(t, "glob", claims) }
	return []unlike{
		{"`bound_audiences` is required. A token's `aud` must be exactly one of them; with `allow_extra_audiences` it may hold others too, and `azp` must then be a bound audience.", []unlikeCase{
			{"no audience", Spec{BoundSubject: "s"}, `{}`, invalid},
			{"a token that another service could present", Spec{BoundAudiences: []string{"vault"}, BoundSubject: "s"}, `{"aud": ["vault", "other"]}`, refused},
			{"one that was issued to another party", Spec{BoundAudiences: []string{"vault"}, BoundSubject: "s", AllowExtraAudiences: true}, `{"aud": ["vault", "other"], "azp": "other"}`, refused},
		}},
		{"A policy that would accept every subject of its issuer is refused, unless `accept_any_subject` says that this is meant.", []unlikeCase{
			{"audience alone", Spec{BoundAudiences: []string{"vault"}}, `{}`, invalid},
			{"a star for the subject", Spec{BoundAudiences: []string{"vault"}, BoundClaimsType: "glob", BoundClaims: map[string]any{"sub": "*"}}, `{}`, invalid},
		}},
		{"A glob's `*` stays within a segment between `:` and `/`, so `repo:acme/*` matches neither a pull request nor another path. `**` crosses segments; `***` is refused.", []unlikeCase{
			{"a pull request is no branch", glob(`{"sub": "repo:acme/*"}`), `{"sub": "repo:acme/x:pull_request"}`, refused},
			{"acme-evil is not acme", glob(`{"sub": "repo:acme*"}`), `{"sub": "repo:acme-evil/x"}`, refused},
			{"a lone star too", glob(`{"sub": "*"}`), `{"sub": "a/b"}`, refused},
			{"three stars are a slip", glob(`{"team": "a***"}`), `{"team": "ab"}`, invalid},
		}},
		{"A glob matches neither an empty value nor one with an invisible character.", []unlikeCase{
			{"empty", glob(`{"team": "*"}`), `{"team": ""}`, refused},
			{"right-to-left override", glob(`{"team": "a*"}`), `{"team": "a\u202eb"}`, refused},
		}},
		{"Numbers compare exactly, with their fraction and all their digits. A number with an exponent equals only itself.", []unlikeCase{
			{"auth-jwt cuts the fraction off", exact(`{"level": 1}`), `{"level": 1.9}`, refused},
			{"a float loses digits", exact(`{"id": 9007199254740992}`), `{"id": 9007199254740993}`, refused},
			{"exponents are not worked out", exact(`{"id": 1000}`), `{"id": 1e3}`, refused},
		}},
		{"An index in a JSON pointer has no leading zero (RFC 6901).", []unlikeCase{
			{"leading zero", exact(`{"/l/01": "b"}`), `{"l": ["a", "b"]}`, refused},
		}},
		{"An expected value must not be empty, be an empty list, or hold an invisible character.", []unlikeCase{
			{"empty", exact(`{"team": ""}`), `{"team": ""}`, invalid},
			{"zero-width space", exact(`{"team": "a\u200b"}`), `{"team": "a\u200b"}`, invalid},
			{"empty list", exact(`{"team": []}`), `{"team": []}`, invalid}, // nothing satisfies it there
		}},
	}
}

func TestStricterThanAuthJWT(t *testing.T) {
	for _, d := range stricter(t) {
		for _, c := range d.cases {
			t.Run(c.why, func(t *testing.T) {
				if got := verdict(t, c.spec, c.claims); got != c.want {
					t.Errorf("got %s; want %s", got, c.want)
				}
			})
		}
	}
}

// What the README lists is what the cases show, neither more nor less.
func TestREADMEListsWhereWeAreStricter(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, found := strings.Cut(string(text), "**Trust policies** use the names of Vault's JWT auth method")
	list, _, end := strings.Cut(list, "\n\n**")
	if !found || !end {
		t.Fatal("the README has no paragraph on trust policies")
	}
	var got, want []string
	for line := range strings.Lines(list) {
		if point, ok := strings.CutPrefix(strings.TrimSpace(line), "- "); ok {
			got = append(got, point)
		}
	}
	for _, d := range stricter(t) {
		want = append(want, d.point)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the README's list (-cases +README):\n%s", diff)
	}
}

// Where ours accepts and the JWT auth method does not. No other value gets in by it: types are still not converted.
func TestBoundClaimsBeyondAuthJWT(t *testing.T) {
	for _, c := range []struct{ why, boundType, bound, claims string }{
		{"auth-jwt does not save a glob policy with a number", "glob", `{"bar": "baz", "foo": 25}`, `{"bar": "baz", "foo": 25}`},
		{"nor with a number in a list", "glob", `{"level": ["x*", 42]}`, `{"level": 42}`},
		{"auth-jwt reads a number in a token's list as a float, which equals nothing", "string", `{"level": 42}`, `{"level": [42]}`},
	} {
		t.Run(c.why, func(t *testing.T) {
			if got := verdict(t, bound(t, c.boundType, c.bound), c.claims); got != accepted {
				t.Errorf("got %s; want %s", got, accepted)
			}
		})
	}
}

// TestValidateAudience of the same file, where ours differs in two rows: no bound audience is invalid, and a token for
// several services is refused.
func TestAudiencesAsInAuthJWT(t *testing.T) {
	for _, c := range []struct {
		name  string
		bound []string
		aud   any
		want  string
	}{
		{"same", []string{"a"}, []any{"a"}, accepted},
		{"other", []string{"a"}, []any{"b"}, refused},
		{"empty", []string{"a"}, []any{""}, refused},
		{"none bound", nil, []any{"a"}, invalid},
		{"first of two", []string{"a", "b"}, []any{"a"}, accepted},
		{"second of two", []string{"a", "b"}, []any{"b"}, accepted},
		{"several", []string{"a", "b"}, []any{"a", "b", "c"}, refused},
		{"several others", []string{"a", "b"}, []any{"c", "d"}, refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := refused
			policy, err := New(Spec{BoundAudiences: c.bound, AcceptAnySubject: true}, Token)
			if err != nil {
				got = invalid
			} else if policy.Evaluate(tokenOf(map[string]any{"aud": c.aud, "sub": "s"}), expr.NewBudget()).Allowed {
				got = accepted
			}
			if got != c.want {
				t.Errorf("got %s; want %s", got, c.want)
			}
		})
	}
}
