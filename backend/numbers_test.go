// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"
)

// received is a response's data as Vault's core has it.
func received(t *testing.T, data map[string]any) string {
	t.Helper()
	raw, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	var there map[string]any
	if err := json.Unmarshal(raw, &there); err != nil {
		t.Fatalf("Vault cannot take the response: %v", err)
	}
	raw, err = json.Marshal(there)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// Vault makes a float of a number on the way to a plugin: who binds one id must not get another.
func TestRoundedNumbersAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, bound := range []any{map[string]any{"run_id": float64(9007199254740993)}, map[string]any{"a": []any{"x", float64(-1 << 60)}}} {
		w.refused("trust/main", map[string]any{"bound_claims": bound}, "bound_claims")
	}
	w.refused("explain/deploy", map[string]any{"issuer": "github", "claims": map[string]any{"sub": "x", "run_id": float64(1 << 53)}}, "claims")
	w.write("trust/main", map[string]any{"bound_claims": map[string]any{"run_id": float64(1<<53 - 1)}})
}

func TestLongNumbersAreReadAsTheyAre(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("trust/main", map[string]any{"bound_claims": `{"run_id": [9007199254740993, 5]}`})
	read := w.read("trust/main")["bound_claims"]
	if got := received(t, map[string]any{"read": read}); !strings.Contains(got, "9007199254740993") {
		t.Errorf("read back as %s", got)
	}
	w.write("trust/main", map[string]any{"bound_claims": read}) // and it may be written as it was read

	ask := func(id string) map[string]any {
		return map[string]any{"subject_token": w.token(map[string]any{"run_id": json.Number(id)})}
	}
	for id, accepted := range map[string]bool{"9007199254740993": true, "9007199254740992": false} {
		resp, err := w.do(logical.UpdateOperation, "explain/deploy", ask(id))
		if err != nil || resp.Data["accepted"] != accepted {
			t.Fatalf("%s: %v %v", id, err, resp)
		}
		if got := received(t, resp.Data); strings.Count(got, `"`+id+`"`) != 2 { // in ids, and what the condition saw
			t.Errorf("%s is not shown: %s", id, got)
		}
	}
	resp, err := w.do(logical.UpdateOperation, "creds/deploy", ask("9007199254740993"))
	if err != nil || resp.IsError() {
		t.Fatal(err, resp)
	}
	if got := received(t, w.read("keys/"+resp.Data["id"].(string))); !strings.Contains(got, "9007199254740993") {
		t.Errorf("the key's record has %s", got)
	}
}

func TestCarried(t *testing.T) {
	t.Parallel()
	for number, want := range map[json.Number]any{
		"5": json.Number("5"), "-0.25": json.Number("-0.25"), "9007199254740991": json.Number("9007199254740991"),
		"9007199254740992": "9007199254740992", "-9007199254740993": "-9007199254740993", "0.12345678901234567": "0.12345678901234567", "1e400": "1e400",
	} {
		if got := carried(number); got != want {
			t.Errorf("%s: %#v; want %#v", number, got, want)
		}
	}
}

// A token whose claim is more than any float would otherwise keep operators from reading the ledger.
func TestHugeNumberSpoilsNoReadOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	token := w.token(map[string]any{"run_id": json.Number("1e400"), "actor_id": map[string]any{"deep": []any{json.Number("-1e999")}}})
	explained, err := w.do(logical.UpdateOperation, "explain/deploy", map[string]any{"subject_token": token})
	if err != nil {
		t.Fatal(err)
	}
	received(t, explained.Data)
	if resp, err := w.exchange("deploy", token); err != nil || resp.IsError() {
		t.Fatal(err, resp)
	}
	if got := received(t, w.read("keys")); !strings.Contains(got, `"1e400"`) {
		t.Errorf("the ledger reads %s", got)
	}
}
