// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

func TestBlock(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		block                    map[string]any
		byToken, byLogin, renews string // reasons
	}{
		"repository":       {map[string]any{"claim": "repository=acme/widget"}, reasonBlocked, "", reasonBlocked},
		"other repository": {map[string]any{"claim": "repository=acme/other"}, "", "", ""},
		"subject":          {map[string]any{"issuer": "people", "subject": "alice"}, "", reasonBlocked, ""},
		"issuer":           {map[string]any{"issuer": "github"}, reasonBlocked, "", reasonBlocked},
		"entity":           {map[string]any{"entity": "entity-1"}, reasonBlocked, reasonBlocked, reasonBlocked},
		"role":             {map[string]any{"role": "deploy"}, reasonBlocked, reasonBlocked, reasonBlocked},
		"both must match":  {map[string]any{"role": "deploy", "subject": "nobody"}, "", "", ""},
		"not recorded":     {map[string]any{"claim": "workflow_sha=x"}, "", "", reasonBlocked}, // what cannot be judged is not renewed
		"has ended":        {map[string]any{"role": "deploy", "expires_at": "2020-01-01T00:00:00Z"}, "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			resp := w.issue("deploy")
			w.write("blocks/b", c.block)
			if got, _ := reasonOf(w.exchange("deploy", w.token(nil))); got != c.byToken {
				t.Errorf("by token: %q; want %q", got, c.byToken)
			}
			if got, _ := reasonOf(w.do(logical.ReadOperation, "creds/deploy", nil)); got != c.byLogin {
				t.Errorf("by login: %q; want %q", got, c.byLogin)
			}
			if got, _ := reasonOf(w.lease(logical.RenewOperation, resp)); got != c.renews {
				t.Errorf("renew: %q; want %q", got, c.renews)
			}
			w.revoke(resp) // a block never stops revocation
			if _, err := w.do(logical.DeleteOperation, "blocks/b", nil); err != nil {
				t.Fatal(err)
			}
			if got, _ := reasonOf(w.exchange("deploy", w.token(nil))); got != "" {
				t.Errorf("after the block was deleted: %q", got)
			}
		})
	}
}

// null clears what a block need not have.
func TestBlockFieldsAreCleared(t *testing.T) {
	w := newWorld(t)
	w.write("blocks/b", map[string]any{"role": "deploy", "reason": "x", "custom_metadata": map[string]any{"ticket": "7"}})
	w.write("blocks/b", map[string]any{"reason": nil, "custom_metadata": nil})
	if got := w.read("blocks/b"); got["reason"] != "" || got["role"] != "deploy" || !empty(got["custom_metadata"]) {
		t.Errorf("got %v", got)
	}
}

// A filter names a claim as a policy does: what bound_claims can demand, a block can refuse.
func TestBlockByPointer(t *testing.T) {
	const uid = "/kubernetes.io/serviceaccount/uid"
	w := newWorld(t)
	w.write("trust/main", map[string]any{"bound_claims": map[string]any{uid: "u1"}})
	exchange := func(role string) (*logical.Response, error) {
		return w.exchange(role, w.token(map[string]any{"kubernetes.io": map[string]any{"serviceaccount": map[string]any{"uid": "u1"}}}))
	}
	resp, err := exchange("deploy")
	if err != nil || resp.IsError() {
		t.Fatal(err, resp)
	}
	for value, want := range map[string]string{"u1": reasonBlocked, "u2": ""} {
		w.write("blocks/b", map[string]any{"claim": uid + "=" + value})
		if got, _ := reasonOf(exchange("deploy")); got != want {
			t.Errorf("%s: issuing: %q; want %q", value, got, want)
		}
		if got, _ := reasonOf(w.lease(logical.RenewOperation, resp)); got != want {
			t.Errorf("%s: renewing: %q; want %q", value, got, want)
		}
	}
	found, err := w.do(logical.ReadOperation, "keys", map[string]any{"claim": uid + "=u1"})
	if err != nil || found.IsError() || found.Data["matched"] != 2 || found.Data["unrecorded"] != 0 {
		t.Errorf("keys: %v %v", found, err)
	}
	for _, name := range []string{"", "/a~2", strings.Repeat("x", 300)} {
		w.refused("blocks/b", map[string]any{"claim": map[string]any{name: "x"}}, "claim")
		if found, err := w.do(logical.ReadOperation, "keys", map[string]any{"claim": map[string]any{name: "x"}}); err != nil || !found.IsError() {
			t.Errorf("keys by claim %q: %v %v", name, found, err)
		}
	}
}

// A key of a login was issued without claims: a filter by claim can judge it, and it does not match.
func TestClaimsOfALogin(t *testing.T) {
	w := newWorld(t)
	resp, err := w.asLogin("deploy")
	if err != nil || resp.IsError() {
		t.Fatal(err, resp)
	}
	w.issue("deploy")
	w.write("blocks/b", map[string]any{"claim": "workflow_sha=x"})
	if got, _ := reasonOf(w.lease(logical.RenewOperation, resp)); got != "" {
		t.Errorf("renewing: %q", got)
	}
	found, err := w.do(logical.ReadOperation, "keys", map[string]any{"claim": "workflow_sha=x"})
	if err != nil || found.Data["matched"] != 0 || found.Data["unrecorded"] != 1 {
		t.Errorf("%v %v; want the token's key alone to be unrecorded", err, found)
	}
}

// A policy that has changed since the key was issued is not satisfied by what was not recorded of the token.
func TestRenewKnowsWhatWasRecorded(t *testing.T) {
	for name, c := range map[string]struct {
		policy map[string]any
		want   string
	}{
		"not recorded":              {map[string]any{"condition": "!has(claims.build_tag)"}, reasonTrustChanged},
		"not recorded, by index":    {map[string]any{"condition": `claims["build_tag"] != "v2"`}, reasonTrustChanged},
		"bound but not recorded":    {map[string]any{"bound_claims": map[string]any{"repository": "acme/widget", "build_tag": "v1"}}, reasonTrustChanged},
		"all claims":                {map[string]any{"condition": "claims.all(name, name != \"evil\")"}, reasonTrustChanged},
		"recorded":                  {map[string]any{"condition": `claims.ref == "refs/heads/main"`}, ""},
		"recorded, and another now": {map[string]any{"condition": `claims.ref == "refs/heads/other"`}, reasonTrustChanged},
		"known to have been absent": {map[string]any{"condition": `!has(claims.environment) || claims.environment == "prod"`, "description": "changed"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.write("trust/main", map[string]any{"condition": `!has(claims.environment) || claims.environment == "prod"`})
			resp, err := w.exchange("deploy", w.token(map[string]any{"build_tag": "v1"}))
			if err != nil || resp.IsError() {
				t.Fatal(err, resp)
			}
			w.write("trust/main", c.policy)
			if got, _ := reasonOf(w.lease(logical.RenewOperation, resp)); got != c.want {
				t.Errorf("renewing: %q, want %q", got, c.want)
			}
		})
	}
}

// What the issuer's entry says to record and the token did not have is known too: a block for it refuses nobody else.
func TestAbsentClaimsThatWereToBeRecorded(t *testing.T) {
	w := newWorld(t) // environment is one of the claims that are recorded by default
	without := w.issue("deploy")
	with, err := w.exchange("deploy", w.token(map[string]any{"environment": "prod"}))
	if err != nil || with.IsError() {
		t.Fatal(err, with)
	}
	w.write("blocks/b", map[string]any{"claim": "environment=prod"})
	if got, _ := reasonOf(w.lease(logical.RenewOperation, without)); got != "" {
		t.Errorf("renewing the key of a token without it: %q", got)
	}
	if got, _ := reasonOf(w.lease(logical.RenewOperation, with)); got != reasonBlocked {
		t.Errorf("renewing the key of a token with it: %q", got)
	}
	found, err := w.do(logical.ReadOperation, "keys", map[string]any{"claim": "environment=prod"})
	if err != nil || found.Data["matched"] != 1 || found.Data["unrecorded"] != 0 {
		t.Errorf("%v %v", err, found)
	}

	var many []string // and no token makes a record grow without bound
	for i := range 1000 {
		many = append(many, fmt.Sprintf("claim_%d", i))
	}
	w.write("issuers/github", map[string]any{"record_claims": strings.Join(many, ",")})
	last := w.issue("deploy").Data["id"].(string)
	if got := w.read("keys/" + last)["claims_absent"].([]string); len(strings.Join(got, "")) > maxRecorded {
		t.Errorf("%d absent claims are recorded", len(got))
	}
}

// A claim that was too long to be recorded is not taken for absent either.
func TestRenewKnowsWhatWasTooLong(t *testing.T) {
	w := newWorld(t)
	w.write("trust/main", map[string]any{"condition": `size(claims.long) > 0`})
	resp, err := w.exchange("deploy", w.token(map[string]any{"long": strings.Repeat("x", maxRecorded)}))
	if err != nil || resp.IsError() {
		t.Fatal(err, resp)
	}
	w.write("trust/main", map[string]any{"condition": `!has(claims.long)`})
	if got, _ := reasonOf(w.lease(logical.RenewOperation, resp)); got != reasonTrustChanged {
		t.Errorf("renewing: %q", got)
	}
	if record := w.read("keys/" + resp.Data["id"].(string)); record["claims_partial"] != true || record["claims_whole"] != false {
		t.Errorf("%v", record)
	}
}

// With a policy that reads everything all is recorded, and a later policy can judge by what was not there.
func TestRenewKnowsAll(t *testing.T) {
	w := newWorld(t)
	w.write("trust/main", map[string]any{"condition": `claims.all(name, name != "evil")`})
	resp := w.issue("deploy")
	w.write("trust/main", map[string]any{"condition": `!has(claims.evil)`})
	if got, _ := reasonOf(w.lease(logical.RenewOperation, resp)); got != "" {
		t.Errorf("renewing: %q", got)
	}
	w.write("blocks/b", map[string]any{"claim": "evil=yes"})
	if got, _ := reasonOf(w.lease(logical.RenewOperation, resp)); got != "" {
		t.Errorf("renewing beside a block for what the token did not have: %q", got)
	}
}

func TestBlockEndsByItself(t *testing.T) {
	w := newWorld(t)
	w.write("blocks/b", map[string]any{"role": "deploy", "expires_at": w.clock.now().Add(time.Hour).Format(time.RFC3339)})
	if got, _ := reasonOf(w.exchange("deploy", w.token(nil))); got != reasonBlocked {
		t.Errorf("%q", got)
	}
	w.clock.advance(time.Hour)
	if got, _ := reasonOf(w.exchange("deploy", w.token(nil))); got != "" {
		t.Errorf("after its end: %q", got)
	}
	if resp := w.write("blocks/b", map[string]any{"reason": "late"}); resp == nil || len(resp.Warnings) != 1 {
		t.Errorf("a block whose end has passed is written without a word: %v", resp)
	}
}
