// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package expr

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func eval(t *testing.T, src string, want Type, variables map[string]any) (any, error) {
	t.Helper()
	names := make([]string, 0, len(variables))
	for name := range variables {
		names = append(names, name)
	}
	p, err := Compile(src, want, names...)
	if err != nil {
		t.Fatalf("Compile(%q): %v", src, err)
	}
	return p.Eval(NewBudget(), variables)
}

func TestEval(t *testing.T) {
	claims := Value(map[string]any{
		"repository": "Acme/Widget", "id": json.Number("9007199254740993"), "list": []any{"a", "b"},
		"big": json.Number("99999999999999999999999"), "pi": json.Number("3.5"), "none": nil, "bigs": []any{json.Number("1"), json.Number("99999999999999999999999")},
	})
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	vars := map[string]any{"claims": claims, "now": at}
	for src, want := range map[string]any{
		`claims.repository.lower()`:                      "acme/widget",
		`lower(claims.repository)`:                       "acme/widget",
		`claims.id == 9007199254740993`:                  true,
		`claims.id == 9007199254740992`:                  false,
		`"  a ".trim()`:                                  "a",
		`claims.list.join(", ")`:                         "a, b",
		`claims.repository.replace("/", ".")`:            "Acme.Widget",
		`claims.repository.substring(5)`:                 "Widget",
		`claims.repository.substring(0, 4)`:              "Acme",
		`string(claims["id"])`:                           "9007199254740993",
		`int(claims["list"].size()) == 2`:                true,
		`string(claims["list"][0])`:                      "a",
		`has(claims.bigs)`:                               false,
		`has(claims.big)`:                                false, // no float stands in for it
		`claims.pi > 3`:                                  true,
		`claims.none == null`:                            true,
		`claims.list.exists(x, x == "b")`:                true,
		`claims.exists(x, x == "pi")`:                    true, // of names
		`claims.list.filter(x, x > "a").map(x, x + x)`:   []any{"bb"},
		`[].map(x, x)`:                                   []any{},
		`now + duration("1h")`:                           at.Add(time.Hour),
		`{"name": claims.list, "n": 1}`:                  map[string]any{"name": []any{"a", "b"}, "n": int64(1)},
		`base64.encode(b"a:b")`:                          "YTpi",
		`claims.repository.split("/")[0]`:                "Acme",
		`string(claims.id)`:                              "9007199254740993",
		`duration("90s")`:                                90 * time.Second,
		`timestamp("2024-10-11T10:33:00.0000000+00:00")`: time.Date(2024, 10, 11, 10, 33, 0, 0, time.UTC),
	} {
		got, err := eval(t, src, Any, vars)
		if err != nil {
			t.Errorf("%s: %v", src, err)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", src, diff)
		}
	}
}

func TestCompileSaysWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		src  string
		want Type
		err  string
	}{
		"empty":        {" ", Any, "expression is empty"},
		"long":         {strings.Repeat("a", MaxSource+1), Any, "expression has 4097 bytes; at most 4096 are allowed"},
		"undeclared":   {"claims.a == b", Bool, "line 1, column 13: undeclared reference to 'b'"},
		"second line":  {"claims.a ==\n b", Bool, "line 2, column 2: undeclared reference to 'b'"},
		"not a bool":   {`"x"`, Bool, "yields string; want bool"},
		"not a string": {`1 < 2`, String, "yields bool; want string"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Compile(c.src, c.want, "claims")
			if err == nil || err.Error() != c.err {
				t.Errorf("got %v; want %s", err, c.err)
			}
		})
	}
}

// A value that an expression has looked at may be a key or a token: none may stand in its error.
func TestEvalErrorsHoldNoValues(t *testing.T) {
	vars := map[string]any{"claims": map[string]any{"secret": "hunter2", "list": []any{"hunter2"}}}
	for src, want := range map[string]string{
		`claims.missing == "x"`:                    `"missing" is missing`,
		`claims[claims.secret] == "x"`:             "a value is missing or of another type than the expression needs",
		`int(claims.secret) == 1`:                  "a value is missing or of another type than the expression needs",
		`timestamp(claims.secret) == timestamp(0)`: "a value is missing or of another type than the expression needs",
		`claims.secret`:                            "yielded string; want bool",
		`claims.list`:                              "yielded list; want bool",
		`claims.filter(c, true) == []`:             "a value is missing or of another type than the expression needs",
		`claims.map(c, c) == []`:                   "a value is missing or of another type than the expression needs",
		`claims.map(c, true, c) == []`:             "a value is missing or of another type than the expression needs",
		`{}.filter(c, true) == []`:                 "a value is missing or of another type than the expression needs",
		`claims.secret.filter(c, true) == []`:      "a value is missing or of another type than the expression needs",
	} {
		_, err := eval(t, src, Bool, vars)
		if err == nil || err.Error() != want {
			t.Errorf("%s: got %v; want %s", src, err, want)
		}
	}
}

func TestEvalIsBounded(t *testing.T) {
	long := strings.Repeat("x", 16<<10)
	many := make([]any, 2000)
	for i := range many {
		many[i] = "x"
	}
	vars := map[string]any{"s": long, "l": many}
	for name, c := range map[string]struct{ src, err string }{
		"loops":       {`l.all(a, l.all(b, l.all(c, a == b && b == c)))`, "costs more than 100000 units"},
		"repeats":     {"[" + strings.Repeat("s,", 20) + "s]", "yields more than 65536 bytes"},
		"concatenate": {strings.Repeat("(s+s)+", 5) + "s", "yields more than 65536 bytes"},
		"replace": {strings.Repeat(`s.replace("x", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx")`, 1) +
			strings.Repeat(`.replace("x", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx")`, 20), "yields more than 65536 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := eval(t, c.src, Any, vars)
			if err == nil || err.Error() != c.err {
				t.Errorf("got %v; want %s", err, c.err)
			}
		})
	}
}

// What a macro builds element by element must not be charged as if each step copied it: find reads long lists.
func TestLongListsFit(t *testing.T) {
	list := make([]any, 2000)
	for i := range list {
		list[i] = map[string]any{"name": "x", "id": int64(i)}
	}
	got, err := eval(t, `l.filter(k, k.name == "x").map(k, string(k.id)).size()`, Any, map[string]any{"l": list})
	if err != nil || got != int64(2000) {
		t.Errorf("%v %v", got, err)
	}
}

func TestBudgetIsShared(t *testing.T) {
	p, err := Compile(`l.all(a, l.all(b, a == b))`, Bool, "l")
	if err != nil {
		t.Fatal(err)
	}
	list := make([]any, 100)
	for i := range list {
		list[i] = "x"
	}
	budget := NewBudget()
	for range 1000 {
		if _, err = p.Eval(budget, map[string]any{"l": list}); err != nil {
			break
		}
	}
	if want := "the request's expressions cost too much together"; err == nil || err.Error() != want {
		t.Errorf("got %v; want %s", err, want)
	}
}

func TestMembers(t *testing.T) {
	for src, want := range map[string]struct {
		names []string
		whole bool
	}{
		`claims.b == "x" && claims.a.deep == "y"`:          {[]string{"a", "b"}, false},
		`claims["https://x/y"] == "x" && has(claims.opt)`:  {[]string{"https://x/y", "opt"}, false},
		`"k" in claims || claims.list.exists(x, x == "b")`: {[]string{"k", "list"}, false},
		`claims == {}`:               {nil, true},
		`claims[now] == "x"`:         {nil, true},
		`claims.exists(k, k == "x")`: {nil, true},
		`now == "x"`:                 {nil, false},
		`[claims.a].map(c, {"k": c + claims.b}) == []`:      {[]string{"a", "b"}, false},
		`claims.a.startsWith(claims.b) ? true : claims.c`:   {[]string{"a", "b", "c"}, false},
		`claims.list.all(x, x in claims.other && x != now)`: {[]string{"list", "other"}, false},
	} {
		p, err := Compile(src, Any, "claims", "now")
		if err != nil {
			t.Fatalf("%s: %v", src, err)
		}
		names, whole := p.Members("claims")
		if diff := cmp.Diff(want.names, names); diff != "" || whole != want.whole {
			t.Errorf("%s: whole %v, names (-want +got):\n%s", src, whole, diff)
		}
	}
}
