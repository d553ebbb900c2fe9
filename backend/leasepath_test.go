// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"path"
	"strings"
	"testing"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/trust"
)

// pathOf is what a role whose lease_path is a claim wants of a subject, or the reason why it wants nothing.
func pathOf(t testing.TB, program *expr.Program, claim string) (path, reason string) {
	t.Helper()
	r := &role{name: "deploy", leasePath: program}
	who := &subject{Identity: &trust.Identity{Claims: map[string]any{"p": claim}}}
	path, err := r.wantedPath(who, expr.NewBudget())
	if err != nil {
		return "", asRefusal(err).reason
	}
	return path, ""
}

func leasePathProgram(t testing.TB) *expr.Program {
	t.Helper()
	program, err := expr.Compile("claims.p", expr.String, trust.Variables...)
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// A claim becomes part of a lease id and of a path under an ACL: what could lead elsewhere, or be read in two ways, is
// refused.
func TestLeasePathGrammar(t *testing.T) {
	program := leasePathProgram(t)
	for name, c := range map[string]struct {
		claim string
		ok    bool
	}{
		"one segment":            {"acme", true},
		"two segments":           {"acme/widget", true},
		"every character":        {"AZaz09._@:~-/x", true},
		"dots inside":            {"a.b/.github", true},
		"256 bytes":              {strings.Repeat("a", 256), true},
		"257 bytes":              {strings.Repeat("a", 257), false},
		"nothing":                {"", false},
		"slash":                  {"/", false},
		"slash before":           {"/acme", false},
		"slash after":            {"acme/", false},
		"empty segment":          {"acme//widget", false},
		"dot":                    {".", false},
		"dot segment":            {"acme/./widget", false},
		"dot segment at the end": {"acme/.", false},
		"dots":                   {"..", false},
		"dots as a segment":      {"acme/../widget", false},
		"dots in a segment":      {"acme/a..b", false},
		"three dots":             {"...", false},
		"escaped slash":          {"acme%2Fwidget", false},
		"backslash":              {`acme\widget`, false},
		"space":                  {"acme widget", false},
		"line end":               {"acme\n", false},
		"line between":           {"acme\nwidget", false},
		"NUL":                    {"acme\x00", false},
		"star":                   {"acme/*", false},
		"plus":                   {"acme/+", false},
		"question mark":          {"acme?list=true", false},
		"fragment":               {"acme#x", false},
		"braces":                 {"{{identity.entity.id}}", false},
		"another script":         {"\u0430cme", false},
		"not UTF-8":              {"acme\xff", false},
	} {
		t.Run(name, func(t *testing.T) {
			want, reason := c.claim, ""
			if !c.ok {
				want, reason = "", reasonLeasePath
			}
			if got, gotReason := pathOf(t, program, c.claim); got != want || gotReason != reason {
				t.Errorf("got %q, reason %q; want %q, reason %q", got, gotReason, want, reason)
			}
		})
	}
}

// What the grammar accepts stays below its role, whoever cleans, joins or splits it.
func FuzzLeasePath(f *testing.F) {
	program := leasePathProgram(f)
	for _, seed := range []string{"acme/widget", "a/../b", "./a", "a//b", "a/", "..", "a..b", "~/.ssh", "a%2f..", "a\n", "repo:acme@1/x@2", strings.Repeat("a/", 128) + "a"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, claim string) {
		got, reason := pathOf(t, program, claim)
		if reason == "" && got != claim || reason != "" && (got != "" || reason != reasonLeasePath) {
			t.Fatalf("%q: %q, reason %q", claim, got, reason)
		}
		safe := claim != "" && len(claim) <= 256 && !strings.Contains(claim, "..") &&
			strings.Trim(claim, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@:~-/") == ""
		for segment := range strings.SplitSeq(claim, "/") {
			safe = safe && segment != "" && segment != "."
		}
		if safe != (reason == "") {
			t.Errorf("%q: reason %q, want it accepted: %t", claim, reason, safe)
		}
		if full := "creds/deploy/" + got; reason == "" && path.Clean(full) != full {
			t.Errorf("%q does not clean to itself", full)
		}
	})
}
