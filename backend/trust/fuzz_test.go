// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package trust

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A pointer finds exactly the member that it is the one name of, and finds it as well where only the claim that it
// leads into was kept.
func FuzzLookup(f *testing.F) {
	for _, name := range []string{"a", "/a/0", "/a~1b", "/~01", "/", "//", "/a/00", "/a/-", "/c/d/1/e"} {
		f.Add(`{"a": ["x", null], "a/b": 1, "~1": 2, "": {"": 3}, "/": 4, "c": {"d": [[], {"e": true}]}}`, name)
	}
	f.Fuzz(func(t *testing.T, document, name string) {
		decoder := json.NewDecoder(bytes.NewReader([]byte(document)))
		decoder.UseNumber()
		var claims map[string]any
		if decoder.Decode(&claims) != nil || CheckName(name) != nil {
			return
		}
		want := claims[name]
		if name[0] == '/' {
			all := map[string]any{}
			pointers(claims, "", all)
			want = all[name]
		}
		got, found := Lookup(claims, name)
		if diff := cmp.Diff(want, got); diff != "" || found != (want != nil) {
			t.Errorf("%q: found %v (-want +got):\n%s", name, found, diff)
		}
		kept := map[string]any{Root(name): claims[Root(name)]}
		if again, _ := Lookup(kept, name); !cmp.Equal(got, again) {
			t.Errorf("%q: %v in all claims, %v in %q alone", name, got, again, Root(name))
		}
	})
}

// pointers collects every value below v by its JSON pointer.
func pointers(v any, at string, into map[string]any) {
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			name = strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
			into[at+"/"+name] = member
			pointers(member, at+"/"+name, into)
		}
	case []any:
		for i, element := range v {
			into[at+"/"+strconv.Itoa(i)] = element
			pointers(element, at+"/"+strconv.Itoa(i), into)
		}
	}
}

// A glob matches what a plain matcher matches, and without two stars only what has as many segments as itself.
func FuzzGlob(f *testing.F) {
	for _, seed := range [][2]string{
		{"repo:acme/*", "repo:acme/x:pull_request"}, {"repo:acme/*:ref:**", "repo:acme/x:ref:refs/heads/a/b"}, {"a*b*c", "aXbbYc"},
		{"**", "a:b"}, {"*/**/*", "a/b/c"}, {"a***", "a"}, {"a.c|.*", "abc"}, {"[a-z]\\d", "a1"}, {"", ""}, {"é*", "é\u202e"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, text string) {
		bound, err := newBoundClaim("claim", pattern, true)
		if bad := checkText(pattern, maxPattern) != nil || strings.Contains(pattern, "***"); bad != (err != nil) {
			t.Fatalf("%q: %v", pattern, err)
		}
		if err != nil || len(text) > 1000 {
			return
		}
		got := bound.matches(text)
		if want := text != "" && printable(text) && plainGlob(pattern, text); got != want {
			t.Errorf("%q, %q: got %v; want %v", pattern, text, got, want)
		}
		if got && !strings.Contains(pattern, "**") && delimiters(pattern) != delimiters(text) {
			t.Errorf("%q matches %q, which has another number of segments", pattern, text)
		}
		if checkText(text, maxPattern) == nil && !strings.Contains(text, "*") {
			if exact, err := newBoundClaim("claim", text, true); err != nil || !exact.matches(text) || exact.matches(text+"x") {
				t.Errorf("%q as a pattern does not match just itself (%v)", text, err)
			}
		}
	})
}

func delimiters(text string) int { return strings.Count(text, ":") + strings.Count(text, "/") }

// plainGlob matches byte by byte: ends[i] says whether the pattern so far can end before text[i].
func plainGlob(pattern, text string) bool {
	ends := make([]bool, len(text)+1)
	ends[0] = true
	for pattern != "" {
		next := make([]bool, len(text)+1)
		crosses := strings.HasPrefix(pattern, "**")
		for i := range next {
			switch {
			case pattern[0] != '*':
				next[i] = i > 0 && ends[i-1] && text[i-1] == pattern[0]
			case i > 0 && next[i-1] && (crosses || text[i-1] != ':' && text[i-1] != '/'):
				next[i] = true
			default:
				next[i] = ends[i]
			}
		}
		if crosses {
			pattern = pattern[1:]
		}
		ends, pattern = next, pattern[1:]
	}
	return ends[len(text)]
}

// Two numbers are the same if they have the same digits once needless zeros are gone; nothing but a number equals
// another text.
func FuzzSameNumber(f *testing.F) {
	for _, seed := range [][2]string{
		{"1", "1.0"}, {"-0", "0"}, {"9007199254740993", "9007199254740992"}, {"1e3", "1000"}, {"0.10", "0.1"}, {"01", "1"}, {"1/2", "0.5"}, {"", "0"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		got := sameNumber(a, b)
		if got != sameNumber(b, a) || !sameNumber(a, a) || !sameNumber(b, b) {
			t.Fatalf("%q, %q: not the same both ways, or not the same as itself", a, b)
		}
		if !jsonNumber(a) || !jsonNumber(b) {
			return // no decoder yields it
		}
		want := a == b
		if len(a) <= maxDigits && len(b) <= maxDigits && !strings.ContainsAny(a+b, "eE") {
			want = digits(a) == digits(b)
		}
		if got != want {
			t.Errorf("%q, %q: got %v; want %v", a, b, got, want)
		}
	})
}

func jsonNumber(text string) bool {
	return text != "" && strings.Trim(text, "-+.eE0123456789") == "" && json.Valid([]byte(text))
}

func digits(text string) string {
	whole, fraction, _ := strings.Cut(strings.TrimPrefix(text, "-"), ".")
	whole, fraction = strings.TrimLeft(whole, "0"), strings.TrimRight(fraction, "0")
	if strings.HasPrefix(text, "-") && whole+fraction != "" {
		whole = "-" + whole
	}
	return whole + "." + fraction
}
