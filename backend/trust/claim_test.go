// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package trust

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestLookup starts with the document of RFC 6901 section 5.
func TestLookup(t *testing.T) {
	const rfc = `{"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, "k\"l": 6, " ": 7, "m~n": 8}`
	const own = `{"a": {"b": [{"c": "x"}, ["y"], null]}, "/lead": 1, "a/b": 2, "~1": 3, "/": 4, "null": null, "01": 5, "": {"": 6},
		"https://acme.example/team": "t", "text": "abc", "true": true, "é": 7}`
	n := func(text string) any { return json.Number(text) }
	for _, c := range []struct {
		claims, name string
		want         any // nil: not found
	}{
		{rfc, "/foo", []any{"bar", "baz"}},
		{rfc, "/foo/0", "bar"},
		{rfc, "/", n("0")},
		{rfc, "/a~1b", n("1")},
		{rfc, "/c%d", n("2")},
		{rfc, "/e^f", n("3")},
		{rfc, "/g|h", n("4")},
		{rfc, `/i\j`, n("5")},
		{rfc, `/k"l`, n("6")},
		{rfc, "/ ", n("7")},
		{rfc, "/m~0n", n("8")},

		{own, "a", map[string]any{"b": []any{map[string]any{"c": "x"}, []any{"y"}, nil}}}, // a name, not a pointer
		{own, "a/b", n("2")},
		{own, "/a/b/0/c", "x"},
		{own, "/a/b/1/0", "y"},
		{own, "https://acme.example/team", "t"},
		{own, "/https:~1~1acme.example~1team", "t"},
		{own, "/~01", n("3")}, // ~01 is ~1, not a slash
		{own, "/~1", n("4")},
		{own, "/~1lead", n("1")},
		{own, "//", n("6")},
		{own, "/01", n("5")}, // an object's member may have any name
		{own, "/é", n("7")},

		{own, "/a/b/3", nil},
		{own, "/a/b/-", nil},
		{own, "/a/b/-1", nil},
		{own, "/a/b/+0", nil},
		{own, "/a/b/00", nil},
		{own, "/a/b/0x0", nil},
		{own, "/a/b/0_0", nil},
		{own, "/a/b/ 0", nil},
		{own, "/a/b/٠", nil}, // a digit, but not one of JSON's
		{own, "/a/b/", nil},
		{own, "/a/b/c", nil},
		{own, "/a/b/4294967296", nil},
		{own, "/a/b/18446744073709551616", nil},
		{own, "/a/b/2", nil}, // null is as good as absent
		{own, "null", nil},
		{own, "/null", nil},
		{own, "/null/x", nil},
		{own, "/text/0", nil},
		{own, "/text/length", nil},
		{own, "/true/x", nil},
		{own, "/A", nil},
		{own, "/a/b/0/c/", nil},
		{own, "nope", nil},
		{own, "a.b", nil},
		{own, "#/a", nil},
		{`{}`, "/", nil},
		{`null`, "a", nil},
		{`null`, "/a", nil},
	} {
		got, found := Lookup(claimsOf(t, c.claims), c.name)
		if diff := cmp.Diff(c.want, got); diff != "" || found != (c.want != nil) {
			t.Errorf("%s: found %v (-want +got):\n%s", c.name, found, diff)
		}
	}
}

func TestRoot(t *testing.T) {
	for name, want := range map[string]string{
		"a": "a", "/a": "a", "/a/b": "a", "a/b": "a/b", "/a~1b/c": "a/b", "/~01/c": "~1", "/": "", "//a": "", "~0": "~0",
	} {
		if got := Root(name); got != want {
			t.Errorf("%s: got %q; want %q", name, got, want)
		}
	}
}

func TestSameNumber(t *testing.T) {
	digits := strings.Repeat("9", 64)
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"1", "1", true}, {"1", "1.0", true}, {"0", "-0", true}, {"0.10", "0.1", true}, {"-7", "-7.00", true},
		{"9007199254740993", "9007199254740993.0", true},
		{"9007199254740993", "9007199254740992", false},
		{"18446744073709551616", "18446744073709551617", false},
		{"0.1", "0.1000000000000000055511151231257827", false},
		{"1", "-1", false}, {"1", "10", false}, {"12", "21", false},
		{digits, digits, true},
		{digits, "0" + digits, false},                                          // one byte too long to be compared by value
		{"1000", "1e3", false}, {"1e3", "1000", false}, {"1e3", "10e2", false}, // exponents are not worked out
		{"1", "1e999999999", false},
		{"1", "0x1", false}, {"1", "1/1", false}, {"1", "+1", false}, {"10", "1_0", false}, {"0", "", false},
	} {
		if got := sameNumber(c.a, c.b); got != c.want {
			t.Errorf("%s, %s: got %v; want %v", c.a, c.b, got, c.want)
		}
	}
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"abc", "abc", true}, {"abc", "abcd", false}, {"abc", "xabc", false}, {"abc", "ABC", false},
		{"a*", "a", true}, {"a*", "abc", true}, {"*c", "abc", true}, {"a*c", "abbc", true}, {"a*b*c", "aXbYc", true}, {"a*b", "abc", false},
		{"*", "abc", true}, {"*", "a/b", false}, {"*", "a:b", false}, {"*/*", "a/b", true}, {"*/*", "a/b/c", false}, {"*:*", "a/b", false},
		{"repo:acme/*", "repo:acme/x", true}, {"repo:acme/*", "repo:acme/x:pull_request", false}, {"repo:acme/*", "repo:acme/x/y", false},
		{"repo:acme/*:ref:refs/heads/*", "repo:acme/x:ref:refs/heads/main", true},
		{"repo:acme/*:ref:refs/heads/*", "repo:acme/x:ref:refs/heads/a/b", false},
		{"repo:acme/*:ref:refs/heads/**", "repo:acme/x:ref:refs/heads/a/b", true},
		{"repo:acme*", "repo:acme-evil/x", false}, {"repo:acme**", "repo:acme-evil/x", true},
		{"**", "a:b/c", true}, {"a**", "a", true}, {"a/**", "a", false}, {"a/**/z", "a/z", false}, {"a/**/z", "a/b/c/z", true}, {"**/z", "x/y/z", true},
		{"acme/*", "acme/wid-get_1.0@x", true}, // a segment is all between two delimiters
		{"a.c", "abc", false}, {"a?c", "abc", false}, {"[a]", "a", false}, {"(a|b)", "a", false}, {`\d`, "1", false}, {"^a$", "a", false}, {"a+", "aa", false},
		{"a*", "a\n", false}, {"a**", "a\nb", false}, {"**", "\x00", false}, {"a*", "a\u202eb", false}, {"a*", "a\xff", false}, {"a*", "a\ufffd", false},
		{"a*", "aé", true}, {"a*", "a b", true},
		{"*", "", false}, {"**", "", false}, // an empty claim has no value
	} {
		bound, err := newBoundClaim("a", c.pattern, true)
		if err != nil {
			t.Errorf("%s: %v", c.pattern, err)
		} else if got := bound.matches(c.text); got != c.want {
			t.Errorf("%s, %q: got %v; want %v", c.pattern, c.text, got, c.want)
		}
	}
}

// Beside patterns a glob list may hold numbers and booleans, which are compared as they are.
func TestGlobList(t *testing.T) {
	list := []any{"x*", json.Number("42"), true}
	bound, err := newBoundClaim("a", list, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		claim string
		want  bool
	}{
		{`"xy"`, true}, {`42`, true}, {`42.0`, true}, {`true`, true}, {`["y", "xy"]`, true},
		{`"42"`, false}, {`"true"`, false}, {`"x*y/z"`, false}, {`false`, false}, {`[]`, false}, {`[["xy"]]`, false}, {`{"a": "xy"}`, false},
	} {
		claims := claimsOf(t, `{"a": `+c.claim+`}`)
		want := Condition{Name: "bound_claims.a", Holds: c.want, Wanted: list, Saw: claims["a"]}
		if diff := cmp.Diff(want, bound.judge(claims)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.claim, diff)
		}
	}
}
