// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// refused wants a bad request that names the field first.
func (w *world) refused(path string, data map[string]any, field string) {
	w.t.Helper()
	resp, err := w.do(logical.UpdateOperation, path, data)
	if reason, status := reasonOf(resp, err); reason != reasonBadRequest || status != 400 {
		w.t.Errorf("%s %v: got %q %d; want %s naming %s", path, data, reason, status, reasonBadRequest, field)
		return
	}
	if text := resp.Error().Error(); !strings.HasPrefix(text, reasonBadRequest+": "+field+":") {
		w.t.Errorf("%s %v: %q does not name %s", path, data, text, field)
	}
}

func TestBadInputNamesItsField(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	long := strings.Repeat("x", 5000)
	for _, c := range []struct {
		path  string
		data  map[string]any
		field string
	}{
		{"issuers/Upper", map[string]any{"oidc_discovery_url": "https://i.example"}, "name"},
		{"issuers/a..b", nil, "name"},
		{"issuers/" + strings.Repeat("a", 300), nil, "name"},
		{"issuers/a b", nil, "name"},
		{"issuers/a\nb", nil, "name"},
		{"trust/-a", nil, "name"},
		{"issuers/i", map[string]any{"nonsense": 1}, "nonsense"},
		{"issuers/i", map[string]any{"type": "saml"}, "type"},
		{"issuers/i", map[string]any{"oidc_discovery_url": "http://i.example"}, "oidc_discovery_url"},
		{"issuers/i", map[string]any{"oidc_discovery_url": "https://10.0.0.1"}, "oidc_discovery_url"},
		{"issuers/i", map[string]any{"oidc_discovery_url": []any{"https://i.example"}}, "oidc_discovery_url"},
		{"issuers/i", map[string]any{"oidc_discovery_url": "https://i.example", "jwt_supported_algs": "HS256"}, "jwt_supported_algs"},
		{"issuers/i", map[string]any{"oidc_discovery_url": "https://i.example", "jwt_supported_algs": "none"}, "jwt_supported_algs"},
		{"issuers/i", map[string]any{"oidc_discovery_url": "https://i.example", "max_age": "-1s"}, "max_age"},
		{"issuers/i", map[string]any{"oidc_discovery_url": "https://i.example", "max_age": json.Number("1e30")}, "max_age"},
		{"issuers/i", map[string]any{"oidc_discovery_url": "https://i.example", "max_age": "99999999999999999999h"}, "max_age"},
		{"issuers/i", map[string]any{"oidc_discovery_url": "https://i.example", "single_use": "perhaps"}, "single_use"},
		{"issuers/i", map[string]any{"oidc_discovery_url": "https://i.example", "custom_metadata": map[string]any{"a": 1}}, "custom_metadata"},
		{"issuers/i", map[string]any{"oidc_discovery_url": "https://i.example", "mount_accessor": "auth_x"}, "mount_accessor"},
		{"issuers/i", map[string]any{"issuer": w.issuerURL, "jwks_url": w.issuerURL + "/jwks"}, "issuer"}, // another entry has it
		{"issuers/i", map[string]any{"type": "login", "mount_accessor": "auth_userpass_1"}, "mount_accessor"},
		{"issuers/i", map[string]any{"type": "login"}, "mount_accessor"},
		{"issuers/i", map[string]any{"type": "login", "mount_accessor": "a", "jwks_url": "https://x.example"}, "jwks_url"},
		{"issuers/github", map[string]any{"type": "login"}, "type"},
		{"issuers/github", map[string]any{"forward_to": "api.example,https://other.example"}, "forward_to"}, // what can match no host
		{"issuers/github", map[string]any{"forward_to": "Api.example"}, "forward_to"},
		{"issuers/github", map[string]any{"forward_to": "api.example:443"}, "forward_to"},
		{"issuers/github", map[string]any{"issuer": nil}, "issuer"},
		{"issuers/i", map[string]any{"jwks_url": "https://i.example/keys"}, "issuer"},
		{"issuers/github", map[string]any{"max_age": 0}, "max_age"}, // the default would hold, and a read would say 0
		{"issuers/github", map[string]any{"max_token_lifetime": "0s"}, "max_token_lifetime"},
		{"issuers/github", map[string]any{"jwt_supported_algs": []any{}}, "jwt_supported_algs"},
		{"issuers/github", map[string]any{"allowed_types": ""}, "allowed_types"},
		{"issuers/github", map[string]any{"record_claims": "repository,/kubernetes.io/pod"}, "record_claims"}, // members of the token alone are kept
		{"issuers/github", map[string]any{"record_claims": []any{""}}, "record_claims"},
		{"trust/p", map[string]any{}, "issuer"},
		{"trust/p", map[string]any{"issuer": "none"}, "issuer"},
		{"trust/p", map[string]any{"issuer": "github"}, "bound_audiences"},
		{"trust/p", map[string]any{"issuer": "github", "bound_audiences": "a"}, "accept_any_subject"},
		{"trust/p", map[string]any{"issuer": "github", "bound_audiences": "a", "bound_claims": "repository"}, "bound_claims"},
		{"trust/p", map[string]any{"issuer": "github", "bound_audiences": "a", "bound_claims": "{broken"}, "bound_claims"},
		{"trust/p", map[string]any{"issuer": "github", "bound_audiences": "a", "bound_claims": []any{"a=1", "a=2"}}, "bound_claims"},
		{"trust/p", map[string]any{"issuer": "github", "bound_audiences": "a", "bound_claims": map[string]any{"a": nil}}, "bound_claims.a"},
		{"trust/p", map[string]any{"issuer": "github", "bound_audiences": "a", "condition": "claims.a =="}, "condition"},
		{"trust/p", map[string]any{"issuer": "github", "bound_audiences": "a", "condition": long}, "condition"},
		{"trust/main", map[string]any{"bound_claims": nil}, "bound_claims"},
		{"trust/main", map[string]any{"bound_audiences": nil}, "bound_audiences"},
		{"trust/main", map[string]any{"revision": 7}, "revision"},
		{"targets/t", map[string]any{"driver": "ftp"}, "driver"},
		{"targets/t", map[string]any{"driver": "http", "url": "https://a.example", "profile": "name: ["}, "profile"},
		{"targets/t", map[string]any{"driver": "http", "url": "https://user@a.example", "profile": acme, "credential": "token=x"}, "url"},
		{"targets/t", map[string]any{"driver": "http", "url": "https://a.example", "profile": acme}, "credential"},
		{"targets/t", map[string]any{"driver": "http", "url": "https://a.example", "profile": acme, "credential": "token=x", "condition": "params."}, "condition"},
		{"targets/t", map[string]any{"driver": "http", "url": "https://a.example", "profile": acme, "credential": "token=x", "allowed_roles": "["}, "allowed_roles"},
		{"targets/acme", map[string]any{"driver": "nuget"}, "driver"},
		{"targets/acme", map[string]any{"url": "https://127.0.0.1:1"}, "url"},
		{"targets/acme", map[string]any{"ca_pem": ""}, "credential"},
		{"targets/acme", map[string]any{"profile": acme + "\n# changed"}, "credential"},
		{"roles/r", map[string]any{"target": "acme"}, "trust"},
		{"roles/r", map[string]any{"trust": "main"}, "target"},
		{"roles/r", map[string]any{"trust": "none", "target": "acme", "parameters": "project=x"}, "trust"},
		{"roles/r", map[string]any{"trust": "main", "target": "none"}, "target"},
		{"roles/r", map[string]any{"trust": "main", "target": "acme"}, "parameters.project"},
		{"roles/r", map[string]any{"trust": "main", "target": "acme", "parameters": "project=UPPER"}, "parameters.project"},
		{"roles/r", map[string]any{"trust": "main", "target": "acme", "parameters": map[string]any{"project": "x", "other": "y"}}, "parameters.other"},
		{"roles/r", map[string]any{"trust": "main", "target": "acme", "parameters": "project=x", "ttl": "2h", "max_ttl": "1h"}, "ttl"},
		{"roles/r", map[string]any{"trust": "main", "target": "acme", "parameters": "project=x", "lease_path": "1"}, "lease_path"},
		{"roles/r", map[string]any{"trust": "main", "target": "acme", "parameters_from": "project=claims."}, "parameters_from.project"},
		{"roles/r", map[string]any{"trust": "main", "target": "acme", "parameters": "project=x", "allowed_parameters": "scopes,*"}, "allowed_parameters"},
		{"roles/r", map[string]any{"trust": "main", "target": "acme", "parameters": "project=x", "parameters_from": "scope=claims.scope"}, "parameters_from.scope"},
		{"roles/deploy", map[string]any{"lease_path": nil}, "lease_path"},
		{"roles/r", map[string]any{"trust": "a..b", "target": "acme", "parameters": "project=x"}, "trust"},
		{"roles/r", map[string]any{"trust": "main", "target": "a..b", "parameters": "project=x"}, "target"},
		{"trust/p", map[string]any{"issuer": "a..b"}, "issuer"},
		{"targets/acme", map[string]any{"burst": json.Number("1.5")}, "burst"},
		{"targets/acme", map[string]any{"concurrency": 1.5}, "concurrency"},
		{"roles/deploy", map[string]any{"ttl": json.Number("1.5")}, "ttl"},
		{"roles/deploy", map[string]any{"ttl": "1500ms"}, "ttl"},
		{"roles/deploy", map[string]any{"ttl": json.Number("1e2")}, "ttl"},
		{"blocks/b", map[string]any{"reason": "x"}, "subject"},
		{"blocks/b", map[string]any{"subject": "s", "expires_at": "soon"}, "expires_at"},
		{"blocks/b", map[string]any{"claim": "repository"}, "claim"},
		{"blocks/b", map[string]any{"subject": "s", "issued_after": "1h"}, "issued_after"},
		{"config", map[string]any{"allow_private": "ten"}, "allow_private"},
		{"config", map[string]any{"egress_hosts": nil}, "egress_hosts"}, // the default would allow every public host
		{"roles/deploy", map[string]any{"custom_metadata": map[string]any{"a": strings.Repeat("x", maxText)}}, "custom_metadata"},
		{"roles/deploy", map[string]any{"description": strings.Repeat("x", maxText)}, "description"},
		{"targets/acme", map[string]any{"allowed_roles": []any{strings.Repeat("x", maxText)}}, "allowed_roles"},
		{"config", map[string]any{"egress_hosts": "https://x"}, "egress_hosts"},
		{"config", map[string]any{"instance": "UPPER"}, "instance"},
		{"config", map[string]any{"max_token_bytes": 1}, "max_token_bytes"},
		{"config", map[string]any{"max_token_bytes": "x"}, "max_token_bytes"},
		{"config", map[string]any{"jwks_max_stale": "1s"}, "jwks_max_stale"},
	} {
		w.refused(c.path, c.data, c.field)
	}
	if strings.Contains(w.logs.String(), "panic") {
		t.Error(w.logs)
	}
}

func TestWritesKeepWhatTheyDoNotName(t *testing.T) {
	w := newWorld(t)
	before := w.read("roles/deploy")
	w.write("roles/deploy", map[string]any{"description": "for deploys", "ttl": json.Number("600")})
	after := w.read("roles/deploy")
	before["description"], before["ttl"] = "for deploys", json.Number("600")
	if diff := cmp.Diff(before, after); diff != "" {
		t.Error(diff)
	}
	if _, err := w.do(logical.PatchOperation, "roles/deploy", map[string]any{"max_ttl": nil, "parameters": map[string]any{"project": "other"}}); err != nil {
		t.Fatal(err)
	}
	after = w.read("roles/deploy")
	if after["max_ttl"] != json.Number("0") || !cmp.Equal(after["parameters"], map[string]any{"project": "other"}) {
		t.Errorf("null did not reset, or a map was not replaced whole: %v", after)
	}
	if _, err := w.do(logical.PatchOperation, "roles/none", map[string]any{"ttl": "1m"}); err == nil || !strings.Contains(err.Error(), `there is no role "none"`) {
		t.Errorf("patching what is absent: %v", err)
	}
	if got := w.read("trust/main")["revision"]; got != json.Number("1") {
		t.Errorf("revision %v", got)
	}
	w.write("trust/main", map[string]any{"description": "x"})
	if got := w.read("trust/main")["revision"]; got != json.Number("2") {
		t.Errorf("revision %v after a change", got)
	}
}

// Keys bear the revision of their policy, so one that was deleted and made anew must not begin anew: revision_before would
// miss the keys of the former, and an exchange that was judged by the former would pass for judged by this one.
func TestARevisionIsNeverUsedTwice(t *testing.T) {
	w := newWorld(t)
	made := map[string]any{"issuer": "github", "bound_audiences": "vault", "bound_subject": "x"}
	w.write("trust/other", made)
	w.write("trust/other", map[string]any{"description": "x"})
	for _, want := range []json.Number{"3", "4"} {
		if _, err := w.do(logical.DeleteOperation, "trust/other", nil); err != nil {
			t.Fatal(err)
		}
		w.write("trust/other", made)
		if got := w.read("trust/other")["revision"]; got != want {
			t.Errorf("made anew with revision %v, want %s", got, want)
		}
	}
	if got := w.read("trust/main")["revision"]; got != json.Number("1") {
		t.Errorf("another policy's revision is %v", got)
	}
}

// Vault hands a JSON number to a plugin as a float, whole or not.
func TestNumbersAsVaultHandsThem(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"max_ttl": float64(30 * 24 * 3600), "max_keys": float64(1_000_000)})
	if r := w.read("roles/deploy"); r["max_ttl"] != json.Number("2592000") || r["max_keys"] != json.Number("1000000") {
		t.Errorf("max_ttl %v, max_keys %v", r["max_ttl"], r["max_keys"])
	}
	w.refused("roles/deploy", map[string]any{"max_ttl": 2592000.5}, "max_ttl")
	w.refused("roles/deploy", map[string]any{"max_keys": 1e30}, "max_keys")
}

// An empty text is what is left of a variable that was not set: taken for 0 it would lift the very limit that was to be set. And
// a number has one reading, without octal digits.
func TestTextsThatAreNoNumbers(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{"max_keys": "10", "max_ttl": "1h"})
	w.write("targets/acme", map[string]any{"rate": "0.5"})
	before := []map[string]any{w.read("roles/deploy"), w.read("targets/acme")}
	for path, fields := range map[string][]string{"roles/deploy": {"max_keys", "max_keys_per_subject", "ttl", "max_ttl"}, "targets/acme": {"rate", "burst", "request_timeout"}} {
		for _, field := range fields {
			w.refused(path, map[string]any{field: ""}, field)
		}
	}
	for _, text := range []string{"010", "0x10", "0b11", "+7", "1_0"} {
		w.refused("roles/deploy", map[string]any{"max_keys": text}, "max_keys")
	}
	if diff := cmp.Diff(before, []map[string]any{w.read("roles/deploy"), w.read("targets/acme")}); diff != "" {
		t.Error(diff)
	}
}

func TestSecretsNeverComeBack(t *testing.T) {
	w := newWorld(t)
	target := w.read("targets/acme")
	if _, shown := target["credential"]; shown || target["credential_set"] != true || target["client_key_set"] != false {
		t.Errorf("read shows %v", target)
	}
	raw, err := json.Marshal(target)
	if err != nil || strings.Contains(string(raw), adminToken) {
		t.Errorf("%v %s", err, raw)
	}
}

func TestDeletingAndListing(t *testing.T) {
	w := newWorld(t)
	for path, user := range map[string]string{"issuers/github": "trust policy main", "trust/main": "role deploy", "targets/acme": "role deploy"} {
		resp, err := w.do(logical.DeleteOperation, path, nil)
		if err != nil || !resp.IsError() || !strings.Contains(resp.Error().Error(), user) {
			t.Errorf("deleting %s: %v %v; want a refusal that names %s", path, resp, err, user)
		}
	}
	for _, path := range []string{"roles/deploy", "roles/deploy", "targets/acme", "trust/main", "issuers/github", "issuers/none"} {
		if resp, err := w.do(logical.DeleteOperation, path, nil); err != nil || resp.IsError() {
			t.Errorf("deleting %s: %v %v", path, resp, err)
		}
	}
	if got := w.list("trust"); !cmp.Equal(got, []string{"alice"}) {
		t.Errorf("list: %v", got)
	}
	if resp, err := w.do(logical.ReadOperation, "trust/main", nil); resp != nil || err != nil {
		t.Errorf("reading what is absent: %v %v", resp, err)
	}
	w.write("issuers/b", map[string]any{"jwks_url": "https://b.example/jwks", "issuer": "https://b.example"})
	w.write("issuers/a", map[string]any{"jwks_url": "https://a.example/jwks", "issuer": "https://a.example"})
	resp, err := w.do(logical.ListOperation, "issuers/", map[string]any{"after": "a", "limit": "1"})
	if err != nil || !cmp.Equal(resp.Data["keys"], []string{"b"}) {
		t.Errorf("page: %v %v", resp, err)
	}
}

// What another node wrote is used from the next request on, and nothing else is dropped.
func TestInvalidateDropsWhatChanged(t *testing.T) {
	w := newWorld(t)
	w.issue("deploy")
	kept, _ := w.engine.target(t.Context(), w.store, "acme")
	record, err := w.roleNoun.table.get(t.Context(), w.store, "deploy")
	if err != nil {
		t.Fatal(err)
	}
	record.Enabled = false
	if err := w.roleNoun.table.put(t.Context(), w.store, "deploy", record); err != nil {
		t.Fatal(err)
	}
	if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != "" {
		t.Fatalf("the role is not cached: %s", reason)
	}
	w.InvalidateKey(t.Context(), "roles/deploy")
	if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonDisabled {
		t.Errorf("after Invalidate: %q", reason)
	}
	if same, _ := w.engine.target(t.Context(), w.store, "acme"); same != kept {
		t.Error("a target that did not change was opened anew")
	}
}

// A record of a later version is refused: fields that this version does not know could have narrowed it.
func TestStoredVersions(t *testing.T) {
	w := newWorld(t)
	raw, err := w.store.Get(t.Context(), "trust/main")
	if err != nil {
		t.Fatal(err)
	}
	raw.Value = []byte(strings.Replace(string(raw.Value), `"version":1`, `"version":2`, 1))
	if err := w.store.Put(t.Context(), raw); err != nil {
		t.Fatal(err)
	}
	w.InvalidateKey(t.Context(), "trust/main")
	if reason, _ := reasonOf(w.exchange("deploy", w.token(nil))); reason != reasonStorage {
		t.Errorf("a policy of a later version: %q", reason)
	}
	upgraded := table[roleRecord]{upgrades: []func(json.RawMessage) (json.RawMessage, error){
		func(json.RawMessage) (json.RawMessage, error) { return json.RawMessage(`{"target":"new"}`), nil },
	}}
	if r, err := upgraded.decode([]byte(`{"version":1,"record":{"target":"old"}}`)); err != nil || r.Target != "new" {
		t.Errorf("upgrade: %v %v", r, err)
	}
}

// Every stored form that was ever shipped must load for ever. The files have no zero field, for one that is dropped
// would go unnoticed.
func TestStoredFormsLoad(t *testing.T) {
	b := newEngine(nil)
	check := func(name string, decode func([]byte) (any, error)) {
		raw, err := os.ReadFile(filepath.Join("testdata", "v1", name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		record, err := decode(raw)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		var want struct{ Record map[string]any }
		got := map[string]any{}
		again, err := json.Marshal(record)
		if err != nil || json.Unmarshal(raw, &want) != nil || json.Unmarshal(again, &got) != nil {
			t.Fatalf("%s: %v", name, err)
		}
		maps.DeleteFunc(got, func(field string, value any) bool { // a field that came later is nothing in what came before
			_, stored := want.Record[field]
			return !stored && slices.Contains([]any{nil, "", false, float64(0), "0001-01-01T00:00:00Z"}, value)
		})
		if diff := cmp.Diff(want.Record, got); diff != "" {
			t.Errorf("%s (-stored +loaded):\n%s", name, diff)
		}
	}
	check("config", func(raw []byte) (any, error) { return configTable.decode(raw) })
	check("issuer", func(raw []byte) (any, error) { return b.issuerNoun.table.decode(raw) })
	check("issuer-spiffe", func(raw []byte) (any, error) { return b.issuerNoun.table.decode(raw) })
	check("trust", func(raw []byte) (any, error) { return b.trustNoun.table.decode(raw) })
	check("trust-former", func(raw []byte) (any, error) { return formerPolicies.decode(raw) })
	check("target", func(raw []byte) (any, error) { return b.targetNoun.table.decode(raw) })
	check("role", func(raw []byte) (any, error) { return b.roleNoun.table.decode(raw) })
	check("block", func(raw []byte) (any, error) { return b.blockNoun.table.decode(raw) })
	check("entry", func(raw []byte) (any, error) { return openTable.decode(raw) })
	check("self", func(raw []byte) (any, error) { return selfTable.decode(raw) })
	check("static-role", func(raw []byte) (any, error) { return b.staticNoun.table.decode(raw) })
	check("static-state", func(raw []byte) (any, error) { return staticTable.decode(raw) })
	check("root-state", func(raw []byte) (any, error) { return rootTable.decode(raw) })
	check("use", func(raw []byte) (any, error) { return usedTable.decode(raw) })
}

// Help and OpenAPI are made from the schemas: each path has both, names are unique, and secrets are marked.
func TestEveryPathIsDescribed(t *testing.T) {
	w := newWorld(t)
	seen := map[string]bool{}
	for _, path := range w.Paths {
		if path.HelpSynopsis == "" || path.HelpDescription == "" {
			t.Errorf("%s has no help", path.Pattern)
		}
		for op, handler := range path.Operations {
			attrs := handler.Properties().DisplayAttrs
			if attrs == nil || attrs.OperationPrefix != operationPrefix || attrs.OperationVerb == "" {
				t.Errorf("%s %s has no OpenAPI name", op, path.Pattern)
				continue
			}
			name := attrs.OperationVerb + " " + attrs.OperationSuffix
			if seen[name] && op != logical.UpdateOperation && op != logical.CreateOperation {
				t.Errorf("%s is the name of two operations", name)
			}
			seen[name] = true
		}
		for name, field := range path.Fields {
			secret := name == "credential" || name == "client_key" || name == "client_secret" || name == "private_key" || name == "subject_token" || name == "import"
			if marked := field.DisplayAttrs != nil && field.DisplayAttrs.Sensitive; marked != secret {
				t.Errorf("%s %s: marked sensitive: %v", path.Pattern, name, marked)
			}
			if field.Description == "" || field.Type == framework.TypeInvalid {
				t.Errorf("%s %s is not described", path.Pattern, name)
			}
		}
	}
}

// An issuer that was never written is the discovery URL, also after that was changed.
func TestIssuerFollowsDiscovery(t *testing.T) {
	w := newWorld(t)
	w.write("issuers/i", map[string]any{"oidc_discovery_url": "https://one.example"})
	w.write("issuers/i", map[string]any{"oidc_discovery_url": "https://two.example"})
	if got := w.read("issuers/i")["issuer"]; got != "https://two.example" {
		t.Errorf("issuer: %v", got)
	}
	w.write("issuers/i", map[string]any{"issuer": "https://iss.example"})
	w.write("issuers/i", map[string]any{"oidc_discovery_url": "https://three.example"})
	if got := w.read("issuers/i")["issuer"]; got != "https://iss.example" {
		t.Errorf("issuer that was written: %v", got)
	}
	w.write("issuers/j", map[string]any{"oidc_discovery_url": "https://four.example"})
	w.write("issuers/j", map[string]any{"oidc_discovery_url": "", "jwt_validation_pubkeys": []any{w.issuerPEM()}})
	if got := w.read("issuers/j")["issuer"]; got != "https://four.example" {
		t.Errorf("issuer without discovery: %v", got)
	}
}

// A profile that cannot revoke must not take the place of one whose keys live.
func TestProfileWithoutRevoke(t *testing.T) {
	w := newWorld(t)
	lease := w.issue("deploy")
	start := strings.Index(acme, "\nrevoke:")
	end := start + 1 + strings.Index(acme[start+1:], "\nfind:")
	without := map[string]any{"profile": acme[:start] + acme[end:] + "lifetime: 1h\n", "credential": "token=" + adminToken}
	w.refused("targets/acme", without, "profile")
	w.revoke(lease)
	w.write("targets/acme", without)
}

// What is given twice, in a file and beside it, comes as a list; the refusal says so.
func TestFieldGivenTwice(t *testing.T) {
	w := newWorld(t)
	for field, values := range map[string]any{"issuer": []any{"github", "people"}, "enabled": []any{true, "false"}} {
		resp, err := w.do(logical.UpdateOperation, "trust/main", map[string]any{field: values})
		if err != nil || !resp.IsError() || !strings.Contains(resp.Error().Error(), "given twice (in @file and beside it)") {
			t.Errorf("%s: %v %v", field, resp, err)
		}
	}
	w.write("trust/main", map[string]any{"bound_audiences": []any{"a", "b"}})
	resp, err := w.do(logical.UpdateOperation, "targets/acme", map[string]any{"chain": []any{map[string]any{"audience": "a"}}})
	if err != nil || !resp.IsError() || !strings.Contains(resp.Error().Error(), "write the list as a JSON string") {
		t.Errorf("a list of objects: %v %v", resp, err)
	}
}

// An operator learns what a target takes for granted.
func TestProfileThatTakesOnePageForAll(t *testing.T) {
	w := newWorld(t)
	for profile, want := range map[string]int{acme: 0, w.profile("  next: '{}'                      # there is only one page\n", ""): 1} {
		if got := w.write("targets/acme", map[string]any{"profile": profile, "credential": "token=" + adminToken}); got == nil && want != 0 || got != nil && len(got.Warnings) != want {
			t.Errorf("got %v; want %d warnings", got, want)
		}
	}
}

// The name of a file inside a credential is no file: the CLI would have read it only where the whole field begins with @.
// The line break at the end of a file is no part of a secret; what else stands at its end is.
func TestSecretsFromFiles(t *testing.T) {
	w := newWorld(t)
	for given, want := range map[string]string{"a\n": "a", "a\r\n": "a", "a\n\n": "a\n", " a ": " a "} {
		d := &logical.Request{Data: map[string]any{"client_secret": given, "credential": map[string]any{"token": given}, "description": given}}
		path := &framework.Path{Fields: w.targetNoun.fields}
		if err := normalize(d, path); err != nil {
			t.Fatal(err)
		}
		wanted := map[string]any{"client_secret": want, "credential": map[string]any{"token": want}, "description": given}
		if diff := cmp.Diff(wanted, d.Data); diff != "" {
			t.Errorf("%q (-want +got):\n%s", given, diff)
		}
	}
}

func TestCredentialLikeAFile(t *testing.T) {
	w := newWorld(t)
	resp := w.write("targets/acme", map[string]any{"credential": "token=@token.txt"})
	if resp == nil || len(resp.Warnings) != 1 || !strings.Contains(resp.Warnings[0], "credential.token begins with @") || strings.Contains(resp.Warnings[0], "token.txt") {
		t.Errorf("got %v; want a warning that does not show the value", resp)
	}
}
