// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/trust"
)

// Policies as somebody could write them, each with one token: whether it may be saved, and what it then decides.
func TestCatalogueOfPolicies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"trust": "main"})
	type m = map[string]any
	claims := func(pairs ...any) m {
		out := m{}
		for n := 0; n < len(pairs); n += 2 {
			out[pairs[n].(string)] = pairs[n+1]
		}
		return out
	}
	raw := func(text string) json.RawMessage { return json.RawMessage(text) }
	bound := func(name string, want any) m { return m{"bound_claims": m{name: want}} }
	glob := func(name string, want any) m { return m{"bound_claims": m{name: want}, "bound_claims_type": "glob"} }
	cel := func(source string) m { return m{"bound_claims": m{}, "condition": source} }
	const no, yes = trust.NotTrusted, ""
	for name, c := range map[string]struct {
		policy, claims m
		want           string // a reason, or "field " and a field for a policy that is refused
	}{
		// exact values and their types
		"text":                            {bound("repository", "acme/widget"), nil, yes},
		"text in another case":            {bound("repository", "Acme/widget"), nil, no},
		"text with a space":               {bound("repository", "acme/widget "), nil, no},
		"composed and decomposed":         {bound("x", "caf\u00e9"), claims("x", "cafe\u0301"), no},
		"Greek omicron":                   {bound("x", "acme"), claims("x", "acm\u0435"), no},
		"full-width":                      {bound("x", "acme"), claims("x", "\uff41cme"), no},
		"number for text":                 {bound("x", "7"), claims("x", 7), no},
		"text for a number":               {bound("x", raw("7")), claims("x", "7"), no},
		"number":                          {bound("x", raw("7")), claims("x", 7), yes},
		"number written otherwise":        {bound("x", raw("7")), claims("x", raw("7.0")), yes},
		"number with an exponent":         {bound("x", raw("70")), claims("x", raw("7e1")), no},
		"number above 2^53":               {bound("x", raw("9007199254740993")), claims("x", raw("9007199254740992")), no},
		"number above 2^64":               {bound("x", raw("36893488147419103233")), claims("x", raw("36893488147419103232")), no},
		"negative zero":                   {bound("x", raw("0")), claims("x", raw("-0")), yes},
		"true":                            {bound("x", true), claims("x", true), yes},
		"true and its text":               {bound("x", true), claims("x", "true"), no},
		"text true and true":              {bound("x", "true"), claims("x", true), no},
		"true and one":                    {bound("x", true), claims("x", 1), no},
		"false and missing":               {bound("x", false), nil, no},
		"false and null":                  {bound("x", false), claims("x", nil), no},
		"text null and null":              {bound("x", "null"), claims("x", nil), no},
		"null is no value":                {bound("x", nil), nil, "field bound_claims.x"},
		"empty is no value":               {bound("x", ""), nil, "field bound_claims.x"},
		"an object is no value":           {bound("x", m{"a": 1}), nil, "field bound_claims.x"},
		"a list in a list is none":        {bound("x", []any{[]any{"a"}}), nil, "field bound_claims.x"},
		"no values":                       {bound("x", []any{}), nil, "field bound_claims.x"},
		"invisible value":                 {bound("x", "a\u200b"), nil, "field bound_claims.x"},
		"number with an exponent, wanted": {bound("x", raw("1e9")), nil, "field bound_claims.x"},
		"one of many":                     {bound("x", []any{"a", "b"}), claims("x", "b"), yes},
		"one of a list":                   {bound("x", "b"), claims("x", []any{"a", "b"}), yes},
		"list in a list":                  {bound("x", "b"), claims("x", []any{[]any{"b"}}), no},
		"empty list":                      {bound("x", "b"), claims("x", []any{}), no},
		"name of an object":               {bound("x", "b"), claims("x", m{"b": true}), no},
		// pointers
		"pointer":                    {bound("/x/y", "b"), claims("x", m{"y": "b"}), yes},
		"pointer into a list":        {bound("/x/1", "b"), claims("x", []any{"a", "b"}), yes},
		"pointer with a zero before": {bound("/x/01", "b"), claims("x", []any{"a", "b"}), no},
		"pointer past the end":       {bound("/x/-", "b"), claims("x", []any{"b"}), no},
		"pointer with a sign":        {bound("/x/+0", "b"), claims("x", []any{"b"}), no},
		"pointer with a huge index":  {bound("/x/18446744073709551616", "b"), claims("x", []any{"b"}), no},
		"pointer to digits by name":  {bound("/x/0", "b"), claims("x", m{"0": "b"}), yes},
		"escaped slash":              {bound("/a~1b", "c"), claims("a/b", "c"), yes},
		"escaped tilde and one":      {bound("/a~01b", "c"), claims("a~1b", "c", "a/b", "d"), yes},
		"bad escape":                 {bound("/a~2", "c"), nil, "field bound_claims./a~2"},
		"escape cut short":           {bound("/a~", "c"), nil, "field bound_claims./a~"},
		"pointer through a text":     {bound("/sub/0", "r"), nil, no},
		"pointer to an empty name":   {bound("/", "c"), claims("", "c"), yes},
		"name with a dot":            {bound("kubernetes.io", "c"), claims("kubernetes.io", "c"), yes},
		"dot is no path":             {bound("x.y", "c"), claims("x", m{"y": "c"}), no},
		// globs
		"star in a segment":         {glob("sub", "repo:acme/*:ref:refs/heads/main"), nil, yes},
		"star and a slash":          {glob("sub", "repo:*:ref:refs/heads/main"), nil, no},
		"star and a colon":          {glob("sub", "repo:acme/*"), nil, no},
		"two stars":                 {glob("sub", "repo:acme/**"), nil, yes},
		"two stars, another owner":  {glob("sub", "repo:acme/**"), claims("sub", "repo:acme-evil/x:ref:y"), no},
		"three stars":               {glob("sub", "repo:acme/***"), nil, "field bound_claims.sub"},
		"dot is a dot":              {glob("x", "a.b*"), claims("x", "axbc"), no},
		"brackets are brackets":     {glob("x", "[ab]*"), claims("x", "a"), no},
		"question mark is itself":   {glob("x", "a?*"), claims("x", "ab"), no},
		"star takes a line end not": {glob("x", "a*"), claims("x", "a\nb"), no},
		"star takes no zero width":  {glob("x", "a*"), claims("x", "a\u200bb"), no},
		"stars alone, empty value":  {glob("repository", []any{"acme/widget", "**"}), claims("repository", ""), "field accept_any_subject"},
		"star for a number":         {glob("x", "7*"), claims("x", 7), no},
		"a star that is not a glob": {bound("repository", "acme/*"), nil, no},
		// audiences
		"other audience":            {nil, claims("aud", "https://vault.example/"), trust.Audience},
		"no audience":               {nil, claims("aud", []any{}), trust.Audience},
		"audience twice":            {nil, claims("aud", []any{audience, audience}), trust.Audience},
		"list of the one":           {nil, claims("aud", []any{audience}), yes},
		"extra audience":            {nil, claims("aud", []any{audience, "x"}), trust.Audience},
		"extra allowed, no azp":     {m{"allow_extra_audiences": true}, claims("aud", []any{audience, "x"}), trust.Audience},
		"extra allowed, azp a list": {m{"allow_extra_audiences": true}, claims("aud", []any{audience, "x"}, "azp", []any{audience}), trust.Audience},
		"extra allowed, other azp":  {m{"allow_extra_audiences": true}, claims("aud", []any{audience, "x"}, "azp", "x"), trust.Audience},
		"extra allowed, azp bound":  {m{"allow_extra_audiences": true}, claims("aud", []any{audience, "x"}, "azp", audience), yes},
		"azp bound, no audience":    {m{"allow_extra_audiences": true}, claims("aud", []any{}, "azp", audience), trust.Audience},
		"no audiences wanted":       {m{"bound_audiences": ""}, nil, "field bound_audiences"},
		// callers
		"bind_caller":                {m{"bind_caller": "sub"}, nil, yes},
		"bind_caller, another":       {m{"bind_caller": "actor"}, claims("actor", "bob"), trust.CallerMismatch},
		"bind_caller, empty":         {m{"bind_caller": "actor"}, claims("actor", ""), trust.CallerMismatch},
		"bind_caller, a list":        {m{"bind_caller": "actor"}, claims("actor", []any{"alice"}), trust.CallerMismatch},
		"bind_caller, missing":       {m{"bind_caller": "nobody"}, nil, trust.CallerMismatch},
		"bind_caller by pointer":     {m{"bind_caller": "/a/0"}, claims("a", []any{"alice"}), yes},
		"bind_caller, the entity id": {m{"bind_caller": "actor"}, claims("actor", "entity-1"), trust.CallerMismatch},
		"bind_caller, other case":    {m{"bind_caller": "actor"}, claims("actor", "Alice"), trust.CallerMismatch},
		// subjects
		"subject":                  {m{"bound_claims": m{}, "bound_subject": "s"}, claims("sub", "s"), yes},
		"subject's prefix":         {m{"bound_claims": m{}, "bound_subject": "s"}, claims("sub", "ss"), no},
		"no subject star":          {m{"bound_claims": m{}, "bound_subject": "*", "bound_claims_type": "glob"}, claims("sub", "s"), no},
		"nobody in particular":     {m{"bound_claims": m{}}, nil, "field accept_any_subject"},
		"token's own claims alone": {bound("/iss", "x"), nil, "field accept_any_subject"},
		"times alone":              {cel(`now < timestamp("2999-01-01T00:00:00Z") && claims.exp > 0`), nil, "field accept_any_subject"},
		// conditions
		"missing, not equal":         {cel(`claims.nobody != "x"`), nil, no},
		"missing, not":               {cel(`!(claims.nobody == "x")`), nil, no},
		"null, not equal":            {cel(`claims.x != "x"`), claims("x", nil), no},
		"null within":                {cel(`claims.x.y != "x"`), claims("x", m{"y": nil}), no},
		"list with null":             {cel(`!("evil" in claims.x)`), claims("x", []any{"a", nil}), no},
		"has of null":                {cel(`has(claims.x) || claims.sub == ""`), claims("x", nil), no},
		"missing on one side":        {cel(`claims.nobody == "x" || claims.repository == "acme/widget"`), nil, yes},
		"number as text":             {cel(`claims.x == "7"`), claims("x", 7), no},
		"whole and fraction":         {cel(`claims.x == 7.0`), claims("x", 7), yes},
		"above 2^53":                 {cel(`claims.x == 9007199254740993`), claims("x", raw("9007199254740992")), no},
		"above 2^53, exact":          {cel(`claims.x == 9007199254740993`), claims("x", raw("9007199254740993")), yes},
		"above 2^64":                 {cel(`claims.x > 5`), claims("x", raw("36893488147419103232")), no},
		"1e400":                      {cel(`claims.x > 5.0`), claims("x", raw("1e400")), no},
		"in a text":                  {cel(`"acme" in claims.repository`), nil, no},
		"text for a list":            {cel(`claims.roles.exists(r, r == "a")`), claims("roles", "a"), no},
		"all of a missing list":      {cel(`claims.roles.all(r, r == "a")`), nil, no},
		"index beyond":               {cel(`claims.roles[1] != "a"`), claims("roles", []any{"a"}), no},
		"negative index":             {cel(`claims.roles[-1] != "b"`), claims("roles", []any{"a"}), no},
		"name by a claim":            {cel(`claims[claims.x] == "acme/widget"`), claims("x", "repository"), yes},
		"name by a number":           {cel(`claims[1] == 1 || claims.sub == ""`), nil, no},
		"timestamp":                  {cel(`timestamp(claims.x) > now && claims.sub != ""`), claims("x", "2999-01-01T00:00:00Z"), yes},
		"timestamp that is none":     {cel(`timestamp(claims.x) > now && claims.sub != ""`), claims("x", "2999-02-30T00:00:00Z"), no},
		"leap second":                {cel(`timestamp(claims.x) > now && claims.sub != ""`), claims("x", "2998-12-31T23:59:60Z"), no},
		"zone from a claim":          {cel(`now.getHours(claims.x) >= 0 && claims.sub != ""`), claims("x", "../../../etc/passwd"), no},
		"pattern":                    {cel(`claims.repository.matches("^acme/[a-z]+$")`), nil, yes},
		"pattern and a line end":     {cel(`claims.x.matches("^a$")`), claims("x", "a\n"), no},
		"pattern from a claim":       {cel(`claims.repository.matches(claims.x)`), claims("x", strings.Repeat(".{0,1000}", 500)), no},
		"pattern that is none":       {cel(`claims.repository.matches(")")`), nil, "field condition"},
		"not a condition":            {cel(`claims.repository`), nil, no},
		"a text for a condition":     {cel(`"true"`), nil, "field condition"},
		"another variable":           {cel(`request.id == ""`), nil, "field condition"},
		"costly":                     {cel(`[0,1,2,3,4,5,6,7,8,9].all(a, [0,1,2,3,4,5,6,7,8,9].all(b, [0,1,2,3,4,5,6,7,8,9].all(c, [0,1,2,3,4,5,6,7,8,9].all(d, [0,1,2,3,4,5,6,7,8,9].all(e, claims.sub != "")))))`), nil, no},
		"group":                      {cel(`"deployers" in vault.groups`), nil, yes},
		"alias, of a token's caller": {cel(`vault.alias.name != "x"`), nil, no},
		"metadata that is missing":   {cel(`vault.entity.metadata.nobody != "x"`), nil, no},
		"address":                    {cel(`vault.remote_address == "192.0.2.7"`), nil, yes},
	} {
		t.Run(name, func(t *testing.T) {
			w.t = t
			policy := m{"issuer": "github", "bound_audiences": audience, "bound_claims": m{"repository": "acme/widget"}, "bound_claims_type": "string",
				"bound_subject": "", "condition": "", "bind_caller": "", "allow_extra_audiences": false}
			for field, value := range c.policy {
				policy[field] = value
			}
			encoded, err := json.Marshal(policy)
			if err != nil {
				t.Fatal(err)
			}
			var sent m // numbers as they come from Vault
			if err := decodeJSON(encoded, &sent); err != nil {
				t.Fatal(err)
			}
			if field, refused := strings.CutPrefix(c.want, "field "); refused {
				w.refused("trust/main", sent, field)
				return
			}
			w.write("trust/main", sent)
			if got, _ := reasonOf(w.exchange("deploy", w.token(c.claims))); got != c.want {
				t.Errorf("%q; want %q", got, c.want)
			}
		})
	}
	w.t = t
}
