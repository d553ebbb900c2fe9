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
