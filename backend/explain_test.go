// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/trust"
)

func TestExplain(t *testing.T) {
	w := newWorld(t)
	w.write("trust/main", map[string]any{"condition": `claims.ref == "refs/heads/main"`})
	w.write("roles/deploy", map[string]any{"lease_path": "claims.repository", "trust": "main"})
	sample := func(ref string) map[string]any {
		return map[string]any{"sub": "s", "aud": audience, "repository": "acme/widget", "repository_id": "7", "ref": ref}
	}
	for name, c := range map[string]struct {
		data   map[string]any
		reason string
		unmet  []string
	}{
		"token":                {map[string]any{"subject_token": w.token(nil)}, "", nil},
		"token with a line":    {map[string]any{"subject_token": w.token(nil) + "\n"}, "", nil},
		"token of a fork":      {map[string]any{"subject_token": w.token(map[string]any{"repository": "evil/widget", "ref": "x"})}, trust.NotTrusted, []string{"bound_claims.repository", "condition"}},
		"token of nobody":      {map[string]any{"subject_token": "rubbish"}, identity.TokenMalformed, nil},
		"sample":               {map[string]any{"issuer": "github", "claims": sample("refs/heads/main")}, "", nil},
		"sample of a branch":   {map[string]any{"issuer": "github", "claims": sample("refs/heads/x")}, trust.NotTrusted, []string{"condition"}},
		"login without policy": {map[string]any{}, reasonTokenRequired, nil},
	} {
		before := w.stored("")
		resp := w.write("explain/deploy", c.data)
		if got := resp.Data["reason"]; got != c.reason || resp.Data["accepted"] != (c.reason == "") {
			t.Errorf("%s: %v %v", name, got, resp.Data["detail"])
		}
		var unmet []string
		for _, p := range resp.Data["policies"].([]map[string]any) {
			for _, condition := range p["conditions"].([]map[string]any) {
				if condition["holds"] == false {
					unmet = append(unmet, condition["condition"].(string))
				}
			}
		}
		if diff := cmp.Diff(c.unmet, unmet); diff != "" {
			t.Errorf("%s: unmet (-want +got):\n%s", name, diff)
		}
		if c.reason == "" && (resp.Data["path"] != "creds/deploy/acme/widget" || !cmp.Equal(resp.Data["parameters"].(map[string]any)["project"], "widget")) {
			t.Errorf("%s: %v", name, resp.Data)
		}
		if ids, _ := resp.Data["ids"].(map[string]any); resp.Data["subject"] != nil && ids["repository_id"] == nil {
			t.Errorf("%s: the ids are missing: %v", name, ids)
		}
		if diff := cmp.Diff(before, w.stored("")); diff != "" || len(w.keys.Live()) != 0 {
			t.Errorf("%s: had side effects: %s", name, diff)
		}
	}
	w.refused("explain/deploy", map[string]any{"claims": sample("x"), "subject_token": "x"}, "claims")
	w.refused("explain/deploy", map[string]any{"claims": sample("x")}, "issuer")
	w.refused("explain/deploy", map[string]any{"issuer": "github"}, "issuer")
	w.refused("explain/deploy", map[string]any{"issuer": "github", "claims": map[string]any{"aud": audience}}, "claims")
	whole := sample("refs/heads/main")
	whole["iss"] = "https://other.example"
	w.refused("explain/deploy", map[string]any{"issuer": "github", "claims": whole}, "claims")
	whole["iss"] = w.issuerURL
	if told := w.write("explain/deploy", map[string]any{"issuer": "github", "claims": whole}).Data; told["accepted"] != true {
		t.Errorf("a sample with the issuer's own iss: %v %v", told["reason"], told["detail"])
	}
	token := w.token(nil)
	w.write("explain/deploy", map[string]any{"subject_token": token})
	if reason, _ := reasonOf(w.exchange("deploy/acme/widget", token)); reason != "" {
		t.Errorf("explaining used the token up: %s", reason)
	}
	if told := w.write("explain/deploy", map[string]any{"subject_token": token}).Data; told["reason"] != reasonReplayed {
		t.Errorf("explaining a used token: %v", told["reason"])
	}
	w.write("roles/deploy", map[string]any{"trust": "alice", "lease_path": `"x"`})
	if got := w.write("explain/deploy", nil).Data; got["accepted"] != true || got["subject"] != "alice" {
		t.Errorf("own login: %v", got)
	}
}

// Each issuer says for itself whether it vouches, and an operator sees what the token says of itself, readable or not.
func TestExplainIssuers(t *testing.T) {
	w := newWorld(t)
	w.write("issuers/other", map[string]any{"issuer": "https://other.example", "jwks_url": "https://other.example/keys"})
	w.write("trust/other", map[string]any{"issuer": "other", "bound_audiences": audience, "bound_subject": "s"})
	w.write("issuers/mesh", map[string]any{"type": "spiffe", "trust_domain": "acme.example", "jwks_url": "https://mesh.example/keys"})
	w.write("trust/mesh", map[string]any{"issuer": "mesh", "bound_audiences": audience, "bound_subject": "spiffe://acme.example/ci"})
	w.write("roles/deploy", map[string]any{"trust": "other,main,alice,mesh"})
	now := w.clock.now()
	verdicts := func(data map[string]any) map[string]string {
		told := w.write("explain/deploy", data).Data
		all := map[string]string{"": told["reason"].(string)}
		for _, one := range told["issuers"].([]map[string]any) {
			all[one["issuer"].(string)] = one["reason"].(string) + " " + one["detail"].(string)
			if one["accepted"] != (one["reason"] == "") {
				t.Errorf("%v", one)
			}
		}
		return all
	}
	unheard := map[string]string{"other": "token_required this issuer verifies tokens, and none was presented", "mesh": "token_required this issuer verifies tokens, and none was presented"}
	unheard["github"] = unheard["mesh"]
	for name, c := range map[string]struct {
		data map[string]any
		want map[string]string
	}{
		"token": {map[string]any{"subject_token": w.token(nil)}, map[string]string{
			"": "", "github": " ",
			"other":  `unknown_issuer this issuer's iss is "https://other.example", the token's is "` + w.issuerURL + `"`,
			"mesh":   `unknown_issuer this issuer's trust domain is "acme.example", the token's sub is "repo:acme/widget:ref:refs/heads/main"`,
			"people": "token_required a token was presented, so the Vault login does not count",
		}},
		"expired": {map[string]any{"subject_token": w.token(map[string]any{"exp": now.Add(-time.Hour).Unix()})}, map[string]string{
			"": identity.Expired, "github": "expired exp has passed",
		}},
		"rubbish": {map[string]any{"subject_token": "rubbish"}, map[string]string{
			"": identity.TokenMalformed, "github": "token_malformed not three base64url parts with dots between them", "mesh": "token_malformed not three base64url parts with dots between them",
			"people": "token_required a token was presented, so the Vault login does not count",
		}},
		"without iat": {map[string]any{"subject_token": w.token(map[string]any{"iat": nil})}, map[string]string{
			"": identity.TokenMalformed, "github": "token_malformed payload: iat is not a time in whole seconds",
		}},
		"without iss": {map[string]any{"subject_token": w.token(map[string]any{"iss": nil, "sub": "spiffe://other.example/ci"})}, map[string]string{
			"": identity.UnknownIssuer, "github": `unknown_issuer this issuer's iss is "` + w.issuerURL + `", the token's is ""`,
		}},
		"sample": {map[string]any{"issuer": "github", "claims": map[string]any{"sub": "s", "aud": audience}}, map[string]string{
			"": trust.NotTrusted, "github": " ", "other": `unknown_issuer the sample claims are for issuer "github"`,
		}},
		"login": {nil, map[string]string{"": "", "people": " ", "github": unheard["github"], "other": unheard["other"]}},
	} {
		got := verdicts(c.data)
		for of, want := range c.want {
			if got[of] != want {
				t.Errorf("%s: %q says %q, want %q", name, of, got[of], want)
			}
		}
		if len(got) != 5 {
			t.Errorf("%s: %v", name, got)
		}
	}
	w.write("issuers/github", map[string]any{"enabled": false})
	if got := verdicts(map[string]any{"subject_token": w.token(nil)})["github"]; got != `disabled issuer "github" is disabled` {
		t.Errorf("a disabled issuer: %q", got)
	}
	w.write("issuers/github", map[string]any{"enabled": true})
	w.write("refresh/github", nil)
	w.issuer.Fault(lab.OpAny, lab.Fault{Kind: lab.KindStatus, Status: 500})
	w.clock.advance(2 * time.Hour)
	if got := verdicts(map[string]any{"subject_token": w.token(nil)}); got["github"] != "issuer_unavailable no keys of the issuer: keys: the issuer answered with status 500, want 200" {
		t.Errorf("an issuer that is down: %q", got)
	}

	kid, _ := w.issuer.Key()
	token := w.token(map[string]any{"exp": now.Add(-time.Hour).Unix(), "iat": now.Add(-2 * time.Hour).Unix(), "nbf": now.Unix()})
	told := w.write("explain/deploy", map[string]any{"subject_token": token}).Data
	want := map[string]any{
		"alg": "ES256", "typ": "JWT", "kid": kid, "iss": w.issuerURL, "sub": "repo:acme/widget:ref:refs/heads/main", "aud": audience,
		"exp": json.Number(fmt.Sprint(now.Add(-time.Hour).Unix())), "iat": json.Number(fmt.Sprint(now.Add(-2 * time.Hour).Unix())), "nbf": json.Number(fmt.Sprint(now.Unix())),
	}
	if diff := cmp.Diff(want, told["token"]); diff != "" || told["now"] != w.clock.now().Unix() {
		t.Errorf("what the token says (-want +got):\n%s now %v", diff, told["now"])
	}
}

// Sample claims are judged as a token with these claims would be, also where the target wants to have the token.
func TestExplainSampleForATargetThatWantsTheToken(t *testing.T) {
	w := newWorld(t).withNuGet()
	for name, c := range map[string]struct {
		claims map[string]any
		reason string
	}{
		"text":           {map[string]any{"aud": "https://www.nuget.org"}, ""},
		"list":           {map[string]any{"aud": []any{"https://www.nuget.org"}}, ""},
		"other audience": {map[string]any{"aud": audience}, reasonNotForwardable},
		"two audiences":  {map[string]any{"aud": []any{"https://www.nuget.org", audience}, "azp": audience}, reasonNotForwardable},
	} {
		w.write("trust/nuget", map[string]any{"bound_audiences": "https://www.nuget.org," + audience, "allow_extra_audiences": true})
		c.claims["sub"], c.claims["repository"] = "s", "acme/widget"
		got := w.write("explain/publish", map[string]any{"issuer": "github", "claims": c.claims}).Data
		if got["reason"] != c.reason {
			t.Errorf("%s: %v %v; want %q", name, got["reason"], got["detail"], c.reason)
		}
		if reason, _ := reasonOf(w.exchange("publish", w.token(c.claims))); c.reason != "" && reason != c.reason {
			t.Errorf("%s: a token with these claims: %q; want %q", name, reason, c.reason)
		}
	}
	w.write("roles/publish", map[string]any{"trust": "nuget,alice"})
	if got := w.write("explain/publish", nil).Data; got["reason"] != reasonNotForwardable {
		t.Errorf("a login: %v", got["reason"])
	}
}

// What explain looks at beyond what creds does costs the verdict nothing.
func TestExplainHasBudgetEnough(t *testing.T) {
	t.Parallel()
	const ten = "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"
	w := newWorld(t)
	var all []string
	for i := range 20 {
		name := fmt.Sprintf("costly-%d", i)
		all = append(all, name)
		w.write("trust/"+name, map[string]any{"issuer": "github", "bound_audiences": audience,
			"condition": `claims.repository == "acme/widget" && ` + ten + ".all(a, " + ten + ".all(b, " + ten + ".all(c, [0, 1, 2, 3, 4, 5].all(d, a + b + c + d < 99))))"})
	}
	w.write("roles/deploy", map[string]any{"trust": strings.Join(all, ","), "lease_path": "claims.repository"})
	token := w.token(nil)
	told := w.write("explain/deploy", map[string]any{"subject_token": token}).Data
	if told["accepted"] != true || len(told["policies"].([]map[string]any)) != len(all) {
		t.Errorf("explain says %v of %d policies", told["detail"], len(told["policies"].([]map[string]any)))
	}
	if reason, _ := reasonOf(w.exchange("deploy/acme/widget", token)); reason != "" {
		t.Errorf("refused for %q", reason)
	}
}

// Every policy is shown, those of logins too; the first that accepts decides.
func TestExplainShowsAllLogins(t *testing.T) {
	w := newWorld(t)
	w.write("trust/bob", map[string]any{"issuer": "people", "bound_subject": "bob"})
	w.write("trust/both", map[string]any{"issuer": "people", "condition": "vault.alias.name in ['alice', 'bob']"})
	w.write("roles/deploy", map[string]any{"trust": "bob,alice,both"})
	told := w.write("explain/deploy", nil).Data
	verdicts := map[any]any{}
	for _, p := range told["policies"].([]map[string]any) {
		verdicts[p["trust"]] = p["accepted"]
	}
	if diff := cmp.Diff(map[any]any{"bob": false, "alice": true, "both": true}, verdicts); diff != "" || told["trust"] != "alice" || told["accepted"] != true {
		t.Errorf("by %v, %v (-want +got):\n%s", told["trust"], told["reason"], diff)
	}
}

// Sample claims are judged as a token with them would be, also for a target that wants that token.
// Nobody can tell a misspelt accessor before a caller comes; then it stands beside those that the caller has.
func TestMisspeltMountAccessor(t *testing.T) {
	w := newWorld(t)
	w.write("issuers/people", map[string]any{"mount_accessor": "auth_userpas_1"})
	want := `entity "entity-1" has 0 aliases on an auth mount with the accessor of issuer "people", "auth_userpas_1"; want one. The accessors of its aliases: ["auth_userpass_1" "auth_jwt_1"]`
	told := w.write("explain/deploy", nil).Data
	if told["reason"] != reasonNoAlias || told["detail"] != want {
		t.Errorf("explain: %v %v", told["reason"], told["detail"])
	}
	reason, _ := reasonOf(w.do(logical.ReadOperation, "creds/deploy", nil))
	if reason != reasonNoAlias || !strings.Contains(w.logs.String(), `The accessors of its aliases: [\"auth_userpass_1\" \"auth_jwt_1\"]`) {
		t.Errorf("creds: %q\n%s", reason, w.logs)
	}
}

func TestExplainShowsWhatWasWanted(t *testing.T) {
	w := newWorld(t)
	w.write("trust/main", map[string]any{"condition": `claims.ref == "x"`, "bind_caller": "actor"})
	token := w.token(map[string]any{"actor": "mallory", "repository": "acme/gadget"})
	got := map[string]any{}
	for _, p := range w.write("explain/deploy", map[string]any{"subject_token": token}).Data["policies"].([]map[string]any) {
		for _, c := range p["conditions"].([]map[string]any) {
			got[c["condition"].(string)] = []any{c["wanted"], c["saw"]}
		}
	}
	want := map[string]any{
		"bound_audiences":         []any{[]string{audience}, audience},
		"bound_claims.repository": []any{"acme/widget", "acme/gadget"},
		"condition":               []any{`claims.ref == "x"`, nil},
		"bind_caller":             []any{[]string{"alice", "repo:acme/widget:ref:refs/heads/main"}, "mallory"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("wanted and saw (-want +got):\n%s", diff)
	}
}

func TestExplainSampleForForwarding(t *testing.T) {
	w := newWorld(t).withNuGet()
	for aud, want := range map[any]string{"https://www.nuget.org": "", audience: reasonNotForwardable} {
		w.write("trust/nuget", map[string]any{"bound_audiences": []any{aud}})
		told := w.write("explain/publish", map[string]any{"issuer": "github", "claims": map[string]any{"sub": "s", "aud": aud, "repository": "acme/widget"}}).Data
		reason, _ := reasonOf(w.exchange("publish", w.token(map[string]any{"aud": aud})))
		if told["reason"] != want || reason != want {
			t.Errorf("%v: explain says %q (%v), creds %q; want %q", aud, told["reason"], told["detail"], reason, want)
		}
	}
}

// Where several things refuse, explain names the one that creds names.
func TestExplainSaysWhatCredsSays(t *testing.T) {
	t.Parallel()
	faults := []struct {
		name   string
		path   string // of what is written
		data   map[string]any
		claims map[string]any // of the token
	}{
		{"role switched off", "roles/deploy", map[string]any{"enabled": false}, nil},
		{"target switched off", "targets/acme", map[string]any{"enabled": false}, nil},
		{"role not allowed", "targets/acme", map[string]any{"allowed_roles": "other"}, nil},
		{"issuer switched off", "issuers/github", map[string]any{"enabled": false}, nil},
		{"policy switched off", "trust/main", map[string]any{"enabled": false}, nil},
		{"expired", "", nil, map[string]any{"exp": 1e9}},
		{"fork", "", nil, map[string]any{"repository": "evil/widget"}},
		{"blocked", "blocks/b", map[string]any{"role": "deploy"}, nil},
		{"no lease path", "roles/deploy", map[string]any{"lease_path": "claims.missing"}, nil},
		{"lease path that is none", "roles/deploy", map[string]any{"lease_path": "'..'"}, nil},
		{"no parameter", "roles/deploy", map[string]any{"parameters_from": map[string]any{"scopes": "claims.missing"}}, nil},
	}
	for i, one := range faults {
		for _, other := range faults[i:] {
			w := newWorld(t)
			claims := map[string]any{}
			for _, fault := range []struct {
				path   string
				data   map[string]any
				claims map[string]any
			}{{one.path, one.data, one.claims}, {other.path, other.data, other.claims}} {
				if fault.path != "" {
					w.write(fault.path, fault.data)
				}
				maps.Copy(claims, fault.claims)
			}
			told := w.write("explain/deploy", map[string]any{"subject_token": w.token(claims)}).Data
			reason, _ := reasonOf(w.exchange("deploy", w.token(claims)))
			if reason == "" || told["reason"] != reason {
				t.Errorf("%s, %s: explain says %q (%v), creds %q", one.name, other.name, told["reason"], told["detail"], reason)
			}
			if one.name == "role switched off" && other.name == "fork" && len(told["policies"].([]map[string]any)) == 0 {
				t.Error("of a role that is switched off the policies are not shown")
			}
		}
	}
}

// An empty token is a slip of a script, not a wish to hear of one's own login.
func TestExplainOfAnEmptyToken(t *testing.T) {
	w := newWorld(t)
	for _, token := range []any{"", "\n", nil} {
		w.refused("explain/deploy", map[string]any{"subject_token": token}, "subject_token")
	}
}

// Sample claims have an id as a token has, and a block may be for it.
func TestExplainSampleWithAnID(t *testing.T) {
	w := newWorld(t)
	w.write("blocks/b", map[string]any{"jti": "j-1"})
	sample := func(jti any) map[string]any {
		return map[string]any{"issuer": "github", "claims": map[string]any{"sub": "s", "aud": audience, "repository": "acme/widget", "jti": jti}}
	}
	for jti, want := range map[any]string{"j-1": reasonBlocked, "j-2": "", true: identity.TokenMalformed} {
		if told := w.write("explain/deploy", sample(jti)).Data; told["reason"] != want {
			t.Errorf("%v: %v %v; want %q", jti, told["reason"], told["detail"], want)
		}
	}
}

// Counts are kept where keys are issued: a standby would say busy for ever.
func TestExplainIsForwarded(t *testing.T) {
	w := newWorld(t)
	w.system.ReplicationStateVal = consts.ReplicationPerformanceStandby
	if resp, err := w.do(logical.UpdateOperation, "explain/deploy", nil); !errors.Is(err, logical.ErrReadOnly) {
		t.Errorf("%v %v", resp, err)
	}
}
