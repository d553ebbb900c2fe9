// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package expr

import (
	"runtime"
	"strings"
	"testing"
)

const tooCostly = "costs more than 100000 units"

// A list that holds one list twice costs two pointers to make and doubles what a comparison walks through: forty steps
// would be compared for days, by a source of 600 bytes, and nothing can interrupt that.
func TestHostileSharedLists(t *testing.T) {
	vars := map[string]any{"claims": map[string]any{"sub": "s", "list": []any{"s", "s", "s", "s", "s", "s", "s", "s"}}}
	for name, src := range map[string]string{
		"equal":     `[[claims.sub]]` + strings.Repeat(`.map(x, [x, x])`, 18) + `.exists(y, y == y)`,
		"not equal": `[[claims.sub]]` + strings.Repeat(`.map(x, [x, x])`, 18) + `.all(y, !(y != y))`,
		"in":        `[[claims.sub]]` + strings.Repeat(`.map(x, [x, x])`, 18) + `.exists(y, y in [y])`,
		"objects":   `[[claims.sub]]` + strings.Repeat(`.map(x, {"a": x, "b": x})`, 18) + `.exists(y, y == y)`,
		"nested":    `[claims.list]` + strings.Repeat(`.map(x, claims.list.map(y, x))`, 6) + `.exists(y, y == y)`,
		"appended":  `[[claims.list]]` + strings.Repeat(`.map(x, [x + x, x + x])`, 12) + `.exists(y, y == y)`,
	} {
		if _, err := eval(t, src, Bool, vars); err == nil || err.Error() != tooCostly {
			t.Errorf("%s: %v; want %s", name, err, tooCostly)
		}
	}
}

// Each step doubles the type that CEL's checker works out: twenty of them are gigabytes before anything is evaluated, and a
// write that checks a policy holds up every other write of the mount.
func TestHostileTypes(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := Compile(`[1]`+strings.Repeat(`.map(x, {x: x})`, 11)+`.size() > 0`, Bool)
	runtime.ReadMemStats(&after)
	if made := after.TotalAlloc - before.TotalAlloc; made > 16<<20 {
		t.Errorf("165 bytes of source made %d bytes (%v)", made, err)
	}
}

// A pattern of a few bytes can be a program of a million steps, each of which is tried at each character of a text.
func TestHostileRegexp(t *testing.T) {
	vars := map[string]any{"claims": map[string]any{"text": strings.Repeat("x", 16<<10), "short": "x"}}
	if _, err := Compile(`claims.short.matches("`+strings.Repeat(".{0,1000}", 100)+`")`, Bool, "claims"); err == nil {
		t.Error("a pattern of 900 bytes that is a program of 200,000 steps compiles")
	}
	for name, c := range map[string]struct{ src, want string }{
		"pattern made in the expression": {`!claims.short.matches("` + strings.Repeat(".{1000}", 100) + `" + "y")`, tooCostly},
		"the same, its error passed by":  {`[1, 2].all(i, claims.short.matches("` + strings.Repeat(".{1000}", 100) + `" + "y") || true)`, tooCostly},
		"long text":                      {`!claims.text.matches("x{0,400}y")`, tooCostly},
		"pattern that is none":           {`claims.short.matches("(" + claims.short)`, "a value is missing or of another type than the expression needs"},
	} {
		if _, err := eval(t, c.src, Bool, vars); err == nil || err.Error() != c.want {
			t.Errorf("%s: %v; want %s", name, err, c.want)
		}
	}
	for _, src := range []string{
		`claims.short.matches("^x$")`, `matches(claims.short, "x|y")`, `claims.text.matches("^x+$")`, `claims.short.matches("^" + claims.short + "$")`,
		`!claims.short.matches("^acme/[a-z0-9._-]{1,100}/.github/workflows/[a-z]+[.]ya?ml@refs/tags/v[0-9]+([.][0-9]+){0,2}$")`,
	} {
		if got, err := eval(t, src, Bool, vars); got != true {
			t.Errorf("%s: %v %v", src, got, err)
		}
	}
}

// The Kelvin sign and the dotted capital I become k and i in lower case. Who may choose a name with one would be taken for
// the owner of the plain name, in a condition as in a lease path.
func TestHostileLower(t *testing.T) {
	for text, want := range map[string]string{"ACME/\u212aIT": "acme/\u212ait", "\u0130NFRA": "\u0130nfra", "ÄCME": "Äcme"} {
		got, err := eval(t, `claims.owner.lower()`, String, map[string]any{"claims": map[string]any{"owner": text}})
		if err != nil || got != want {
			t.Errorf("%+q: %+q %v; want %+q", text, got, err, want)
		}
	}
}
