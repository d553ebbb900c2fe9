// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package trust

import (
	"errors"
	"testing"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

// The verdict on one case, as New and Evaluate give it.
const (
	accepted = "accepted"
	refused  = "refused"
	invalid  = "invalid" // New refuses the policy
)

func verdict(t *testing.T, boundType, bound, claims string) string {
	t.Helper()
	spec := Spec{
		BoundAudiences: []string{"vault"}, BoundClaimsType: boundType, BoundClaims: claimsOf(t, bound), AcceptAnySubject: true,
	}
	policy, err := New(spec, Token)
	var field *FieldError
	if errors.As(err, &field) {
		return invalid
	} else if err != nil {
		t.Fatalf("New: %v; want a *FieldError", err)
	}
	id := tokenOf(claimsOf(t, claims))
	id.Subject, id.Claims["aud"] = "s", "vault"
	if policy.Evaluate(id, expr.NewBudget()).Allowed {
		return accepted
	}
	return refused
}

// bound_claims means what it means in Vault's JWT auth method: these are the cases of TestValidateBoundClaims in
// hashicorp/vault-plugin-auth-jwt (claims_test.go, v0.25.0) with the same verdicts. Its cases of Go types that JSON
// does not have (float32, float64, int) are here as the JSON that they stand for.
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
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := verdict(t, c.boundType, c.bound, c.claims); got != c.want {
				t.Errorf("got %s; want %s", got, c.want)
			}
		})
	}
}

// Where ours is stricter. All but the last row are accepted by the JWT auth method.
func TestBoundClaimsStricterThanAuthJWT(t *testing.T) {
	for _, c := range []struct{ why, boundType, bound, claims, want string }{
		{"a star stays between colons: a pull request is no branch", "glob", `{"sub": "repo:acme/*"}`, `{"sub": "repo:acme/x:pull_request"}`, refused},
		{"a star stays between slashes: acme-evil is not acme", "glob", `{"sub": "repo:acme*"}`, `{"sub": "repo:acme-evil/x"}`, refused},
		{"a lone star too", "glob", `{"sub": "*"}`, `{"sub": "a/b"}`, refused},
		{"a glob does not match what cannot be seen", "glob", `{"team": "a*"}`, `{"team": "a\u202eb"}`, refused},
		{"a glob does not match an empty value", "glob", `{"team": "*"}`, `{"team": ""}`, refused},
		{"three stars are a slip", "glob", `{"team": "a***"}`, `{"team": "ab"}`, invalid},
		{"numbers keep their fraction, which auth-jwt cuts off", "string", `{"level": 1}`, `{"level": 1.9}`, refused},
		{"numbers keep all digits, which a float loses", "string", `{"id": 9007199254740992}`, `{"id": 9007199254740993}`, refused},
		{"exponents are not worked out", "string", `{"id": 1000}`, `{"id": 1e3}`, refused},
		{"an index has no leading zero (RFC 6901 section 4)", "string", `{"/l/01": "b"}`, `{"l": ["a", "b"]}`, refused},
		{"an empty value is a slip", "string", `{"team": ""}`, `{"team": ""}`, invalid},
		{"a value that cannot be seen is a slip", "string", `{"team": "a\u200b"}`, `{"team": "a\u200b"}`, invalid},
		{"auth-jwt saves an empty list, which nothing satisfies", "string", `{"team": []}`, `{"team": []}`, invalid},
	} {
		t.Run(c.why, func(t *testing.T) {
			if got := verdict(t, c.boundType, c.bound, c.claims); got != c.want {
				t.Errorf("got %s; want %s", got, c.want)
			}
		})
	}
}

// Where ours accepts and the JWT auth method does not. No other value gets in by it: types are still not converted.
func TestBoundClaimsBeyondAuthJWT(t *testing.T) {
	for _, c := range []struct{ why, boundType, bound, claims string }{
		{"auth-jwt fails on a glob list that holds a number", "glob", `{"level": ["x*", 42]}`, `{"level": 42}`},
		{"auth-jwt reads a number in a token's list as a float, which equals nothing", "string", `{"level": 42}`, `{"level": [42]}`},
	} {
		t.Run(c.why, func(t *testing.T) {
			if got := verdict(t, c.boundType, c.bound, c.claims); got != accepted {
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
