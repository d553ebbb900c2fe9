// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/trust"
)

// The id alone names a token: another one with the same id, but an exp in another hour, is a replay.
func TestHostileSameIDOtherHour(t *testing.T) {
	w := newWorld(t)
	now := w.clock.now()
	var got []string
	for _, life := range []time.Duration{30 * time.Minute, 95 * time.Minute} {
		resp, err := w.exchange("deploy", w.token(map[string]any{"jti": "same", "exp": now.Add(life).Unix()}))
		reason, _ := reasonOf(resp, err)
		got = append(got, reason)
	}
	if got[0] != "" || got[1] != reasonReplayed {
		t.Errorf("got %q, want the second to be replayed", got)
	}
}

// The first attempt of a request that Vault sent again has an unknown outcome; a definite refusal of the second must not
// make the token good once more.
func TestHostileResentRelease(t *testing.T) {
	store := &logical.InmemStorage{}
	r := &replay{now: time.Now}
	who := &subject{issuer: &issuer{issuerRecord: issuerRecord{Issuer: "https://i", SingleUse: true}}, jti: "a",
		token: &identity.Token{Expiry: time.Now().Add(time.Minute)}}
	claim := func(id string) (func(), error) {
		release, err := r.claim(t.Context(), &logical.Request{ID: id, Storage: store}, who)
		return func() { release(t.Context()) }, err
	}
	if _, err := claim("r1"); err != nil { // and the process dies in it
		t.Fatal(err)
	}
	release, err := claim("r1")
	if err != nil {
		t.Fatal(err)
	}
	release() // the target definitely refused the second attempt
	if _, err := claim("r2"); err == nil {
		t.Error("a third use is accepted though the first attempt's outcome is unknown")
	}
}

// "An expression must not take one identifier for another because a float rounded it."
func TestHostileFraction(t *testing.T) {
	p, err := expr.Compile("claims.id == 123", expr.Bool, "claims")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"123.00000000000000001"} {
		v, _ := p.Eval(expr.NewBudget(), map[string]any{"claims": expr.Value(map[string]any{"id": json.Number(n)})})
		if v == true {
			t.Errorf("%s is taken for 123", n)
		}
	}
}

// "A null claim is as good as none, also for a condition with !=."
func TestHostileNullElement(t *testing.T) {
	p, err := trust.New(trust.Spec{BoundAudiences: []string{"a"}, Condition: `claims.roles[0] != "guest"`}, trust.Token)
	if err != nil {
		t.Fatal(err)
	}
	d := p.Evaluate(&trust.Identity{Subject: "s", Claims: map[string]any{"aud": "a", "roles": []any{nil}}}, expr.NewBudget())
	if d.Allowed {
		t.Error("a null element satisfies !=")
	}
}

// lower() must cost what it works on, as the strings extension's functions do.
func TestHostileLowerCostsNothing(t *testing.T) {
	big := strings.Repeat("A", 100<<10)
	list := make([]any, 1000)
	for i := range list {
		list[i] = int64(i)
	}
	for _, f := range []string{"lower", "trim"} {
		p, err := expr.Compile("l.all(x, s."+f+"().size() > 0)", expr.Bool, "s", "l")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Eval(expr.NewBudget(), map[string]any{"s": big, "l": list}); err == nil {
			t.Errorf("%s: 100 MB of work stay below %d units", f, expr.MaxCost)
		}
	}
}

// A claim that is there but no text must not quietly be as good as absent.
func TestHostileNumericJTIClaim(t *testing.T) {
	w := newWorld(t)
	w.write("issuers/github", map[string]any{"jti_claim": "pipeline"})
	var got []string
	for range 2 {
		resp, err := w.exchange("deploy", w.token(map[string]any{"pipeline": 7}))
		reason, _ := reasonOf(resp, err)
		got = append(got, reason)
	}
	if got[1] == "" {
		t.Errorf("got %q: two tokens with the same jti_claim (a number) both work", got)
	}
}

// A few bytes of source must not make megabytes: here + and format double a text of unknown type sixteen times.
func TestHostileDoubling(t *testing.T) {
	for name, step := range map[string]string{"concat": ".map(x, x + x)", "join": `.map(x, [x, x].join(""))`} {
		p, err := expr.Compile("[s]"+strings.Repeat(step, 16)+"[0].size() > 0", expr.Bool, "s")
		if err != nil {
			t.Fatal(err)
		}
		b := expr.NewBudget()
		if _, err := p.Eval(b, map[string]any{"s": strings.Repeat("a", 128)}); err == nil {
			t.Errorf("%s: a text of 8 MB stays below %d units (%v left)", name, expr.MaxCost, b)
		}
	}
}

// One call whose result is the product of its operands is charged only once it has been made.
func TestHostileReplaceAllocatesFirst(t *testing.T) {
	p, err := expr.Compile(`s.replace("a", s).size() > 0`, expr.Bool, "s")
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err = p.Eval(expr.NewBudget(), map[string]any{"s": strings.Repeat("a", 4<<10)})
	runtime.ReadMemStats(&after)
	if made := after.TotalAlloc - before.TotalAlloc; made > 4<<20 {
		t.Errorf("4 KiB became %d bytes in one call before the limit was asked (%v)", made, err)
	}
}

// A parameter is fixed unless the operator says of that very name that a request may set it.
func TestHostileFixedParameter(t *testing.T) {
	w := newWorld(t)
	ask := map[string]any{"subject_token": w.token(nil), "parameters": "project=other"}
	if reason, _ := reasonOf(w.do(logical.UpdateOperation, "creds/deploy", ask)); reason != reasonParameter {
		t.Errorf("a fixed parameter: %q", reason)
	}
	w.write("roles/deploy", map[string]any{"allowed_parameters": "project"})
	if reason, _ := reasonOf(w.do(logical.UpdateOperation, "creds/deploy", ask)); reason != "" || w.keys.Live()[0].Project != "other" {
		t.Errorf("an allowed one: %q", reason)
	}
}

// A request that may set a parameter may not take it away: the target's own default could be more than any value that the
// parameter may have.
func TestHostileNullParameter(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"parameters": map[string]any{"project": "widget", "scopes": "push"}, "allowed_parameters": "scopes"})
	ask := map[string]any{"subject_token": w.token(nil), "parameters": map[string]any{"scopes": nil}}
	resp, err := w.do(logical.UpdateOperation, "creds/deploy", ask)
	if reason, _ := reasonOf(resp, err); reason != reasonParameter || !strings.Contains(resp.Error().Error(), "parameters.scopes") {
		t.Errorf("null in place of the role's value: %q, and there are %v", reason, w.keys.Live())
	}
}
