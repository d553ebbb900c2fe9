// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package trust

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	openText  = "the policy would accept every subject of its issuer; add bound_subject, bound_claims or a condition, or set accept_any_subject=true"
	loginText = "a login issuer has no token; use bound_subject (the alias name) or condition over vault"
	seenText  = "holds a character that cannot be seen; type the value anew"
)

// token returns a spec for tokens that is fine but for what change does to it.
func token(change func(*Spec)) Spec {
	spec := Spec{BoundAudiences: []string{"vault"}, BoundSubject: "s"}
	change(&spec)
	return spec
}

func claim(name string, want any) Spec {
	return token(func(s *Spec) { s.BoundClaims = map[string]any{name: want} })
}

func glob(name string, want any) Spec {
	spec := claim(name, want)
	spec.BoundSubject, spec.BoundClaimsType = "", "glob"
	return spec
}

// repeat returns n different values.
func repeat[T any](n int, value func(i int) T) []T {
	out := make([]T, n)
	for i := range out {
		out[i] = value(i)
	}
	return out
}

func number(i int) string { return fmt.Sprint("v", i) }

func claims(n int) map[string]any {
	out := map[string]any{}
	for _, name := range repeat(n, number) {
		out[name] = "x"
	}
	return out
}

// diffField compares what New answers with the wanted error; none is wanted if field is empty.
func diffField(spec Spec, kind Kind, field, text string) string {
	var got, want *FieldError
	if field != "" {
		want = &FieldError{Field: field, Text: text}
	}
	policy, err := New(spec, kind)
	if err != nil && !errors.As(err, &got) {
		return fmt.Sprintf("%v; want a *FieldError", err)
	}
	if (policy == nil) != (err != nil) {
		return fmt.Sprintf("policy %v together with error %v", policy, err)
	}
	return cmp.Diff(want, got)
}

func TestNewNamesTheField(t *testing.T) {
	for name, c := range map[string]struct {
		spec        Spec
		kind        Kind
		field, text string
	}{
		"fine":                  {token(func(*Spec) {}), Token, "", ""},
		"zero spec":             {Spec{}, Token, "bound_audiences", "missing; name the audience that tokens for this engine carry"},
		"zero spec, login":      {Spec{}, Login, "accept_any_subject", openText},
		"audiences: empty list": {token(func(s *Spec) { s.BoundAudiences = []string{} }), Token, "bound_audiences", "missing; name the audience that tokens for this engine carry"},
		"audiences: empty":      {token(func(s *Spec) { s.BoundAudiences = []string{"vault", ""} }), Token, "bound_audiences", "want a text of 1 to 2048 bytes"},
		"audiences: invisible":  {token(func(s *Spec) { s.BoundAudiences = []string{"vault\n"} }), Token, "bound_audiences", seenText},
		"subject: invisible":    {token(func(s *Spec) { s.BoundSubject = "s\u200b" }), Token, "bound_subject", seenText},
		"subject: no UTF-8":     {token(func(s *Spec) { s.BoundSubject = "s\xff" }), Token, "bound_subject", seenText},
		"claims: no name":       {claim("", "x"), Token, "bound_claims.", "a claim's name has 1 to 256 bytes"},
		"claims: tilde at end":  {claim("/a~", "x"), Token, "bound_claims./a~", "is no JSON pointer: ~ must be written ~0 and / within a name ~1"},
		"claims: tilde":         {claim("/a~2", "x"), Token, "bound_claims./a~2", "is no JSON pointer: ~ must be written ~0 and / within a name ~1"},
		"claims: tildes":        {claim("/a~0b~1c", "x"), Token, "", ""},
		"claims: tilde in name": {claim("a~2", "x"), Token, "", ""},
		"claims: empty":         {claim("a", ""), Token, "bound_claims.a", "want a text of 1 to 256 bytes"},
		"claims: empty in list": {claim("a", []any{"x", ""}), Token, "bound_claims.a", "want a text of 1 to 256 bytes"},
		"claims: empty list":    {claim("a", []any{}), Token, "bound_claims.a", "want one value, or a list of 1 to 256"},
		"claims: null":          {claim("a", nil), Token, "bound_claims.a", "want a string, number or boolean, or a list of these"},
		"claims: null in list":  {claim("a", []any{nil}), Token, "bound_claims.a", "want a string, number or boolean, or a list of these"},
		"claims: object":        {claim("a", map[string]any{"b": "c"}), Token, "bound_claims.a", "want a string, number or boolean, or a list of these"},
		"claims: list in list":  {claim("a", []any{[]any{"x"}}), Token, "bound_claims.a", "want a string, number or boolean, or a list of these"},
		"claims: float":         {claim("a", 1.5), Token, "bound_claims.a", "want a string, number or boolean, or a list of these"},
		"claims: exponent":      {claim("a", json.Number("1e3")), Token, "bound_claims.a", "want a number of at most 64 digits without an exponent"},
		"claims: no number":     {claim("a", json.Number("")), Token, "bound_claims.a", "want a number of at most 64 digits without an exponent"},
		"claims: hexadecimal":   {claim("a", json.Number("0x10")), Token, "bound_claims.a", "want a number of at most 64 digits without an exponent"},
		"claims: fraction":      {claim("a", json.Number("1/3")), Token, "bound_claims.a", "want a number of at most 64 digits without an exponent"},
		"claims: invisible":     {claim("a", "x\u202e"), Token, "bound_claims.a", seenText},
		"claims: three stars":   {glob("a", "x***"), Token, "bound_claims.a", "want * (within a segment) or ** (across segments)"},
		"claims: four stars":    {glob("a", "****x"), Token, "bound_claims.a", "want * (within a segment) or ** (across segments)"},
		"claims: stars, exact":  {claim("a", "***"), Token, "", ""},
		"claims: first by name": {token(func(s *Spec) { s.BoundClaims = map[string]any{"b": "", "a": nil, "c": ""} }), Token, "bound_claims.a", "want a string, number or boolean, or a list of these"},
		"type: unknown":         {token(func(s *Spec) { s.BoundClaimsType = "regex" }), Token, "bound_claims_type", `"regex" is unknown; want string or glob`},
		"type: string":          {token(func(s *Spec) { s.BoundClaimsType = "string" }), Token, "", ""},
		"condition: blank":      {token(func(s *Spec) { s.Condition = " " }), Token, "condition", "expression is empty"},
		"condition: a value":    {token(func(s *Spec) { s.Condition = "'x'" }), Token, "condition", "yields string; want bool"},
		"condition: unknown":    {token(func(s *Spec) { s.Condition = "claims.a == b" }), Token, "condition", "line 1, column 13: undeclared reference to 'b'"},
		"caller: pointer":       {token(func(s *Spec) { s.BindCaller = "/~" }), Token, "bind_caller", "is no JSON pointer: ~ must be written ~0 and / within a name ~1"},

		"login: audiences":  {Spec{BoundSubject: "s", BoundAudiences: []string{"vault"}}, Login, "bound_audiences", loginText},
		"login: claims":     {Spec{BoundSubject: "s", BoundClaims: map[string]any{"a": "x"}}, Login, "bound_claims", loginText},
		"login: caller":     {Spec{BoundSubject: "s", BindCaller: "sub"}, Login, "bind_caller", loginText},
		"login: extra":      {Spec{BoundSubject: "s", AllowExtraAudiences: true}, Login, "allow_extra_audiences", loginText},
		"login: condition":  {Spec{Condition: "claims.sub == 'x'"}, Login, "condition", "uses claims; a login issuer has no token, use vault"},
		"login: all claims": {Spec{Condition: "size(claims) > 0"}, Login, "condition", "uses claims; a login issuer has no token, use vault"},
		"login: fine":       {Spec{Condition: "'g' in vault.groups"}, Login, "", ""},
		"another kind":      {token(func(*Spec) {}), Kind(2), "bound_audiences", loginText},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := diffField(c.spec, c.kind, c.field, c.text); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	text := func(n int) string { return strings.Repeat("x", n) }
	digits := func(n int) json.Number { return json.Number(strings.Repeat("1", n)) }
	for name, c := range map[string]struct {
		limit       int
		spec        func(n int) Spec
		field, text string
	}{
		"audiences": {64, func(n int) Spec { return token(func(s *Spec) { s.BoundAudiences = repeat(n, number) }) },
			"bound_audiences", "at most 64 values are allowed"},
		"audience": {2048, func(n int) Spec { return token(func(s *Spec) { s.BoundAudiences = []string{text(n)} }) },
			"bound_audiences", "want a text of 1 to 2048 bytes"},
		"subject": {2048, func(n int) Spec { return token(func(s *Spec) { s.BoundSubject = text(n) }) },
			"bound_subject", "want a text of 1 to 2048 bytes"},
		"claims": {32, func(n int) Spec { return token(func(s *Spec) { s.BoundClaims = claims(n) }) },
			"bound_claims", "at most 32 claims are allowed"},
		"values": {256, func(n int) Spec { return claim("a", repeat(n, func(i int) any { return number(i) })) },
			"bound_claims.a", "want one value, or a list of 1 to 256"},
		"value":  {256, func(n int) Spec { return claim("a", text(n)) }, "bound_claims.a", "want a text of 1 to 256 bytes"},
		"glob":   {256, func(n int) Spec { return glob("a", text(n-1)+"*") }, "bound_claims.a", "want a text of 1 to 256 bytes"},
		"number": {64, func(n int) Spec { return claim("a", digits(n)) }, "bound_claims.a", "want a number of at most 64 digits without an exponent"},
		"name":   {256, func(n int) Spec { return claim(text(n), "x") }, "", "a claim's name has 1 to 256 bytes"},
		"caller": {256, func(n int) Spec { return token(func(s *Spec) { s.BindCaller = text(n) }) },
			"bind_caller", "a claim's name has 1 to 256 bytes"},
		"condition": {4096, func(n int) Spec {
			return token(func(s *Spec) { s.Condition = "claims.a == 'x'" + strings.Repeat(" ", n-15) })
		}, "condition", "expression has 4097 bytes; at most 4096 are allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := diffField(c.spec(c.limit), Token, "", ""); diff != "" {
				t.Errorf("at the limit (-want +got):\n%s", diff)
			}
			field := c.field
			if name == "name" {
				field = "bound_claims." + text(c.limit+1)
			}
			if diff := diffField(c.spec(c.limit+1), Token, field, c.text); diff != "" {
				t.Errorf("one over (-want +got):\n%s", diff)
			}
		})
	}
}

// A policy that tells no subject of its issuer from another is refused, unless its author says that this is meant.
func TestOpenPoliciesAreRefused(t *testing.T) {
	cond := func(src string) Spec {
		return token(func(s *Spec) { s.BoundSubject, s.Condition = "", src })
	}
	exact := func(name string, want any) Spec {
		return token(func(s *Spec) { s.BoundSubject, s.BoundClaims = "", map[string]any{name: want} })
	}
	for name, c := range map[string]struct {
		spec Spec
		kind Kind
		open bool
	}{
		"audience alone":           {token(func(s *Spec) { s.BoundSubject = "" }), Token, true},
		"caller alone":             {token(func(s *Spec) { s.BoundSubject, s.BindCaller = "", "sub" }), Token, true},
		"subject":                  {token(func(*Spec) {}), Token, false},
		"issuer":                   {exact("iss", "https://idp"), Token, true},
		"issuer by pointer":        {exact("/iss", "https://idp"), Token, true},
		"audience by pointer":      {exact("/aud/0", "vault"), Token, true},
		"version":                  {exact("ver", "2.0"), Token, true},
		"claim":                    {exact("repository_id", "74"), Token, false},
		"claim like a common one":  {exact("/issuer", "x"), Token, false},
		"star":                     {glob("sub", "*"), Token, true},
		"two stars":                {glob("sub", "**"), Token, true},
		"stars between colons":     {glob("sub", "*:*/*:**"), Token, true},
		"stars around punctuation": {glob("email", "*@*.*"), Token, true},
		"a star among others":      {glob("sub", []any{"repo:acme/x:ref:refs/heads/main", "**"}), Token, true},
		"a star before others":     {glob("sub", []any{"**", "repo:acme/x:ref:refs/heads/main"}), Token, true},
		"star and common": {token(func(s *Spec) {
			s.BoundSubject, s.BoundClaimsType, s.BoundClaims = "", "glob", map[string]any{"sub": "*", "iss": "https://idp"}
		}), Token, true},
		"star and claim": {token(func(s *Spec) {
			s.BoundSubject, s.BoundClaimsType, s.BoundClaims = "", "glob", map[string]any{"sub": "*", "team": "a"}
		}), Token, false},
		"star in a text":             {exact("sub", "*"), Token, false},
		"glob":                       {glob("sub", "repo:acme/*"), Token, false},
		"glob of digits":             {glob("repository_id", "7*"), Token, false},
		"condition: constant":        {cond("true"), Token, true},
		"condition: audience":        {cond("'vault' in claims.aud"), Token, true},
		"condition: time":            {cond("now < timestamp('2027-01-01T00:00:00Z')"), Token, true},
		"condition: token alone":     {cond("claims.iss == 'x' && claims['exp'] > 1 && has(claims.jti) && claims.azp != 'y'"), Token, true},
		"condition: its own claims":  {cond("[{'iss': 1}].all(c, c.iss == 1)"), Token, true},
		"condition: claim":           {cond("claims.iss == 'x' && claims.team == 'a'"), Token, false},
		"condition: any claim":       {cond("claims.exists(c, c == 'team')"), Token, false},
		"condition: caller":          {cond("vault.entity.name == 'ci'"), Token, false},
		"login: constant":            {Spec{Condition: "true"}, Login, true},
		"login: time":                {Spec{Condition: "now > timestamp('2026-01-01T00:00:00Z')"}, Login, true},
		"login: group":               {Spec{Condition: "'g' in vault.groups"}, Login, false},
		"login: alias":               {Spec{BoundSubject: "me"}, Login, false},
		"condition and vacuous glob": {token(func(s *Spec) { *s = glob("sub", "**"); s.Condition = "claims.exp > 1" }), Token, true},
	} {
		t.Run(name, func(t *testing.T) {
			field, text := "", ""
			if c.open {
				field, text = "accept_any_subject", openText
			}
			if diff := diffField(c.spec, c.kind, field, text); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			c.spec.AcceptAnySubject = true
			if diff := diffField(c.spec, c.kind, "", ""); diff != "" {
				t.Errorf("with accept_any_subject (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFieldErrorText(t *testing.T) {
	if got, want := (&FieldError{"bound_claims.a", "missing"}).Error(), "bound_claims.a: missing"; got != want {
		t.Errorf("got %q; want %q", got, want)
	}
}
