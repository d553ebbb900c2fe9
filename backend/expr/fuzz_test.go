// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package expr

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// An expression that compiles ends soon, yields no more than it may, keeps what it saw out of its error, and reads no more
// members than it says.
func FuzzExpression(f *testing.F) {
	for _, seed := range []string{
		`claims.repository == "acme/widget" && claims.ref.startsWith("refs/tags/")`, `claims["a"].map(x, x + x).join("/").lower()`,
		`has(claims.deep.n) && claims.deep.n > 6 || "k" in claims`, `vault.groups.exists(g, g == "deployers") && now < timestamp("2030-01-01T00:00:00Z")`,
		`{"a": claims.list, "b": [claims]}`, `claims.list.all(a, claims.list.all(b, claims.list.all(c, a == b && b == c)))`,
		`claims.text.replace("x", claims.text).replace("x", claims.text)`, `claims.text.split("")`, `[claims.text, claims.text].join(claims.text)`,
		`base64.decode(claims.text)`, `claims.text.substring(1, 2)`, `timestamp(claims.text)`, `duration("1h") + now`, `claims.text.matches("(x+x+)+y")`,
		`string(claims.list[0]) + b"a"`, `size(claims)`, `1/0`, `9223372036854775807 + 1`, `[1, 2].map(claims, claims).size()`, `((((`, `claims.`, "\x00",
		`claims[now] == {1: 2}`, `type(claims.text)`, `dyn(claims).text`, strings.Repeat("[", 70), strings.Repeat("!", 300) + "true",
	} {
		f.Add(seed)
	}
	const canary = "hunter2"
	all := map[string]any{
		"repository": "acme/widget", "ref": "refs/tags/v1", "list": slices.Repeat([]any{"x", int64(1)}, 50), "deep": map[string]any{"n": int64(7), "s": canary},
		"text": strings.Repeat("x", 4<<10), "a": []any{"b", "c"}, "secret": canary,
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f.Fuzz(func(t *testing.T, src string) {
		p, err := Compile(src, Any, "claims", "vault", "now")
		if err != nil {
			if (len(src) > MaxSource) != strings.Contains(err.Error(), "at most 4096 are allowed") {
				t.Errorf("source of %d bytes: %v", len(src), err)
			}
			return
		}
		eval := func(claims map[string]any) (any, error) {
			return p.Eval(NewBudget(), map[string]any{"claims": claims, "vault": map[string]any{"groups": []string{"deployers"}}, "now": at})
		}
		began := time.Now()
		got, err := eval(all)
		if took := time.Since(began); took > 10*time.Second { // far above what MaxCost allows, also on a busy machine
			t.Errorf("took %v", took)
		}
		if err != nil && strings.Contains(err.Error(), canary) && !strings.Contains(src, canary) {
			t.Errorf("the error has a value of a claim: %v", err)
		}
		if raw, err := json.Marshal(got); err == nil && len(raw) > 8*MaxOutput { // a byte may take six in JSON
			t.Errorf("yields %d bytes", len(raw))
		}
		names, whole := p.Members("claims")
		if whole {
			return
		}
		kept := maps.Clone(all)
		maps.DeleteFunc(kept, func(name string, _ any) bool { return !slices.Contains(names, name) })
		again, errAgain := eval(kept)
		if diff := cmp.Diff(got, again); diff != "" || (err == nil) != (errAgain == nil) {
			t.Errorf("with %q alone: %v, with all claims: %v (-all +named):\n%s", names, errAgain, err, diff)
		}
	})
}
