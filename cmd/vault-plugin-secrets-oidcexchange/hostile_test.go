// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// answer is a raw answer of Vault.
type answer struct {
	status int
	body   string
	data   map[string]any
}

// raw sends a request as it is; redirects are not followed.
func (w *world) raw(t *testing.T, method, path, body string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, w.addr+"/v1/"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Vault-Token", w.root.Token())
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{status: resp.StatusCode, body: string(raw)}
	var envelope struct {
		Data map[string]any `json:"data"`
	}
	if json.Unmarshal(raw, &envelope) == nil {
		a.data = envelope.Data
	}
	return a
}

// nouns are the paths of the mount that take fields, each with its pattern in OpenAPI documents.
var nouns = map[string]string{
	"config": "config", "issuers/github": "issuers/{name}", "trust/main": "trust/{name}", "targets/acme": "targets/{name}",
	"roles/deploy": "roles/{name}", "creds/deploy": "creds/{role}", "self": "self",
}

// document is the part of Vault's OpenAPI document that the tests read.
type document struct {
	Paths      map[string]map[string]json.RawMessage
	Components struct {
		Schemas map[string]struct {
			Properties map[string]struct{ Type, Format string }
		}
	}
}

// operation returns the name of an operation, "" if there is none.
func (d document) operation(t *testing.T, path, method string) string {
	t.Helper()
	var operation struct{ OperationID string }
	if raw := d.Paths[path][method]; raw != nil {
		if err := json.Unmarshal(raw, &operation); err != nil {
			t.Fatal(err)
		}
	}
	return operation.OperationID
}

func (w *world) document(t *testing.T) (d document) {
	t.Helper()
	if err := json.Unmarshal([]byte(w.raw(t, http.MethodGet, "sys/internal/specs/openapi", "").body), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// fields returns the types of each noun's fields, as Vault documents them: "boolean", "string duration".
func (w *world) fields(t *testing.T) map[string]map[string]string {
	t.Helper()
	d, types := w.document(t), map[string]map[string]string{}
	for path, pattern := range nouns {
		schema := "" // is named after the operation: its words with capitals
		for word := range strings.SplitSeq(d.operation(t, "/"+w.path+"/"+pattern, "post")+"-request", "-") {
			schema += strings.ToUpper(word[:1]) + word[1:]
		}
		types[path] = map[string]string{}
		for name, property := range d.Components.Schemas[schema].Properties {
			types[path][name] = strings.TrimSpace(property.Type + " " + property.Format)
		}
		if len(types[path]) == 0 {
			t.Fatalf("%s: no fields are documented under %s", path, schema)
		}
	}
	return types
}

// wrong lists JSON values that are not of a type.
var wrong = map[string][]string{
	"string":          {`7`, `true`, `["a"]`, `{"a": "b"}`},
	"string duration": {`"soon"`, `1.5`, `-1`, `"-5m"`, `1e300`, `"9999999h"`, `true`, `[]`, `{}`},
	"boolean":         {`"perhaps"`, `7`, `[]`, `{}`},
	"integer":         {`"x"`, `"1.5"`, `-1`, `1.5`, `1e300`, `99999999999999999999`, `[]`, `{}`},
	"number float":    {`"x"`, `-1`, `1e308`, `[]`, `{}`},
	"array":           {`7`, `true`, `[7]`, `[{}]`, `[null]`, `{"a": 1}`},
	"object map":      {`7`, `true`, `"nonsense"`, `"{"`, `["x"]`, `[7]`, `["a=1", "a=2"]`},
	"object kvpairs":  {`7`, `true`, `"nonsense"`, `"{"`, `["x"]`, `[7]`, `{"a": 7}`, `{"a": {"b": "c"}}`, `{"a": null}`},
}

// Every field of every path refuses a value of another type, with the field's name, and nothing changes.
func testWrongTypes(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	for path, fields := range w.fields(t) {
		for field, kind := range fields {
			if len(wrong[kind]) == 0 {
				t.Errorf("%s: field %q has type %q, of which this test knows nothing wrong", path, field, kind)
			}
			for i, value := range wrong[kind] {
				body := fmt.Sprintf(`{%q: %s}`, field, value)
				w.wantNamed(t, http.MethodPost, path, body, field)
				if path != "creds/deploy" && i == 0 {
					w.wantNamed(t, http.MethodPatch, path, body, field)
				}
			}
		}
		w.wantNamed(t, http.MethodPost, path, `{"no_such_field": "x"}`, "no_such_field")
	}
	w.issue(t, "deploy")
	if record := w.read(t, "trust/main"); record["revision"] != json.Number("1") {
		t.Errorf("what was refused changed the policy: revision %v", record["revision"])
	}
}

// wantNamed checks that a request gets a 400 that names the field.
func (w *world) wantNamed(t *testing.T, method, path, body, field string) {
	t.Helper()
	got := w.raw(t, method, w.path+"/"+path, body)
	named := regexp.MustCompile(`bad_request: ` + field + `\b.*\(request [0-9a-f-]{36}\)`)
	if got.status != http.StatusBadRequest || !named.MatchString(got.body) {
		t.Errorf("%s %s %s: %d %s; want 400 and the field", method, path, body, got.status, strings.TrimSpace(got.body))
	}
}

// No value of the right type, however odd, causes a server error.
func testOddValues(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	long := strings.Repeat("x", 20_000)
	deep := strings.Repeat(`{"a":`, 200) + `1` + strings.Repeat(`}`, 200)
	odd := map[string][]any{
		"string":          {"", long, "a\x00b", "a\r\nb: c", "\u202e{{.}}${x}%s%n", "https://[::1", "https://169.254.169.254/", "http://x@y:99999/", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"},
		"string duration": {"0", "87840h"},
		"boolean":         {"true"},
		"integer":         {0, 316_224_000},
		"number float":    {0, 1e300, 1e-300},
		"array":           {[]string{}, []string{""}, []string{long}, []string{"a\x00b", "a\nb"}, "[", ",,,"},
		"object map":      {map[string]any{}, map[string]any{"": ""}, map[string]any{"\x00": nil, "/a/~9": []any{}}, map[string]any{"a": json.RawMessage(deep)}, map[string]any{long: long}},
		"object kvpairs":  {map[string]any{}, map[string]any{"": ""}, map[string]any{"\x00": "\n"}, map[string]any{long: long}},
	}
	sane := func(path, body string) {
		t.Helper()
		if got := w.raw(t, http.MethodPost, w.path+"/"+path, body); got.status >= 500 || got.status >= 300 && got.status < 400 {
			t.Errorf("%s %.80s: %d %.300s", path, body, got.status, got.body)
		}
	}
	for path, fields := range w.fields(t) {
		for field, kind := range fields {
			for _, value := range append(odd[kind], nil) {
				body, err := json.Marshal(map[string]any{field: value})
				if err != nil {
					t.Fatal(err)
				}
				sane(path, string(body))
			}
		}
		// Of what is no JSON, Vault itself says 500.
		for _, body := range []string{``, `null`, `[]`, `"x"`, `7`, deep, `{"name": "other"}`, `{"": ""}`} {
			sane(path, body)
		}
		sane(path+"-fresh", `{}`)
	}
}

// Fields in a query are checked like fields in a body.
func testQueries(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	for _, c := range []struct{ path, field, query string }{
		{"keys", "limit", "limit=-1"}, {"keys", "limit", "limit=x"}, {"keys", "issued_before", "issued_before=soon"}, {"keys", "issued_after", "issued_after=1e99"},
		{"keys", "revision_before", "revision_before=1.5"}, {"keys", "claim", "claim=nonsense"}, {"keys", "no_such", "no_such=1"},
		{"roles", "limit", "list=true&limit=-1"}, {"roles", "limit", "list=true&limit=99999999999999999999"}, {"creds/deploy", "ttl", "ttl=soon"},
	} {
		w.wantNamed(t, http.MethodGet, c.path+"?"+c.query, "", c.field)
	}
	for _, query := range []string{"after=%00", "after=..", "role=" + strings.Repeat("x", 5000), "claim=%7B%7D", "subject=%0A", "limit="} {
		if got := w.raw(t, http.MethodGet, w.path+"/keys?"+query, ""); got.status >= 500 {
			t.Errorf("keys?%.60s: %d %s", query, got.status, got.body)
		}
	}
}

// null resets a field to its default, but is refused if that would trust more callers.
func testNull(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	refused := map[string][]string{
		"issuers/github": {"issuer", "mount_accessor"},
		"targets/acme":   {"driver", "condition", "allowed_roles"},
		"roles/deploy":   {"trust", "target", "lease_path", "max_keys", "max_keys_per_subject", "require_revocable"},
		"creds/deploy":   {"parameters", "subject_token", "ttl"},
		"self":           {"issuer_url"},
	}
	for field := range w.fields(t)["trust/main"] {
		if field != "description" && field != "custom_metadata" {
			refused["trust/main"] = append(refused["trust/main"], field)
		}
	}
	for path, fields := range refused {
		for _, field := range fields {
			w.wantNamed(t, http.MethodPost, path, fmt.Sprintf(`{%q: null}`, field), field)
			if !strings.HasPrefix(path, "creds/") {
				w.wantNamed(t, http.MethodPatch, path, fmt.Sprintf(`{%q: null}`, field), field)
			}
		}
	}
	for path, c := range map[string]struct{ body, want string }{
		"roles/deploy": {`{"ttl": null, "description": null}`, `"ttl":0`}, "config": {`{"request_timeout": null}`, `"request_timeout":20`},
		"self":           {`{"ttl": null, "algorithm": null}`, `"ttl":300`},
		"issuers/github": {`{"max_age": null}`, `"max_age":3600`},
	} {
		if got := w.raw(t, http.MethodPatch, w.path+"/"+path, c.body); got.status >= 300 {
			t.Errorf("%s %s: %d %s", path, c.body, got.status, got.body)
		}
		if got := w.raw(t, http.MethodGet, w.path+"/"+path, ""); !strings.Contains(got.body, c.want) {
			t.Errorf("%s: want %s: %s", path, c.want, got.body)
		}
	}
}

// A name that is not spelt like the stored one is refused, never folded.
func testNames(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	bad := []string{"Deploy", "MAIN", "a..b", "a b", " a", "a ", "-a", "a-", ".a", "a.", "é", "a%b", "a?b", "a*", "a\\b", strings.Repeat("a", 129), strings.Repeat("a", 300)}
	byVault := []string{"..", ".", "a\nb", "a\x00b"} // Vault refuses these itself, in more than one way
	for _, kind := range []string{"issuers/", "trust/", "targets/", "roles/"} {
		for _, name := range append(bad, byVault...) {
			for method, body := range map[string]string{http.MethodPost: `{"description": "x"}`, http.MethodPatch: `{"description": "x"}`, http.MethodGet: "", http.MethodDelete: ""} {
				got := w.raw(t, method, w.path+"/"+kind+escape(name), body)
				named := got.status == http.StatusBadRequest && strings.Contains(got.body, "bad_request: name: want ")
				if slices.Contains(bad, name) && !named || got.status < 300 || got.status >= 500 {
					t.Errorf("%s %s%q: %d %s", method, kind, name, got.status, strings.TrimSpace(got.body))
				}
			}
		}
	}
	for _, name := range bad {
		if got := w.raw(t, http.MethodPost, w.path+"/creds/"+escape(name), `{}`); got.status != http.StatusBadRequest || !strings.Contains(got.body, "unknown_role: ") {
			t.Errorf("creds/%q: %d %s", name, got.status, got.body)
		}
		if got := w.raw(t, http.MethodGet, w.path+"/keys/"+escape(name), ""); got.status != http.StatusNotFound {
			t.Errorf("keys/%q: %d %s", name, got.status, got.body)
		}
	}
}

func escape(name string) string {
	return strings.ReplaceAll(url.PathEscape(name), ".", "%2E")
}

// The verbs behave alike on every noun: for what is absent, needed or still in use.
func testVerbs(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	for path, users := range map[string]string{"issuers/github": "trust policy main", "trust/main": "role deploy", "targets/acme": "role deploy"} {
		got := w.raw(t, http.MethodDelete, w.path+"/"+path, "")
		if got.status != http.StatusBadRequest || !strings.Contains(got.body, users) {
			t.Errorf("deleting %s: %d %s; want 400 and %q", path, got.status, got.body, users)
		}
	}
	for _, kind := range []string{"issuers", "trust", "targets", "roles"} {
		for method, want := range map[string]int{http.MethodDelete: 204, http.MethodGet: 404, http.MethodPatch: 404} {
			if got := w.raw(t, method, w.path+"/"+kind+"/absent", `{"description": "x"}`); got.status != want {
				t.Errorf("%s %s/absent: %d %s; want %d", method, kind, got.status, got.body, want)
			}
		}
		if got := w.raw(t, "LIST", w.path+"/"+kind, ""); got.status != 200 || len(got.data["keys"].([]any)) == 0 {
			t.Errorf("LIST %s: %d %s", kind, got.status, got.body)
		}
		if got := w.raw(t, http.MethodGet, w.path+"/"+kind+"?list=true&limit=1", ""); got.status != 200 || len(got.data["keys"].([]any)) != 1 {
			t.Errorf("GET %s?list=true&limit=1: %d %s", kind, got.status, got.body)
		}
	}
	w.issue(t, "deploy")
	w.raw(t, http.MethodDelete, w.path+"/roles/deploy", "")
	if got := w.raw(t, http.MethodDelete, w.path+"/targets/acme", ""); got.status != 400 || !strings.Contains(got.body, "keys that live there") {
		t.Errorf("deleting a target that live keys need: %d %s", got.status, got.body)
	}
	if got := w.raw(t, http.MethodDelete, w.path+"/targets/acme?force=true", ""); got.status != 204 {
		t.Errorf("deleting it by force: %d %s", got.status, got.body)
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds")
	w.wantNone(t)
}

// A write keeps the fields that it does not name. A read returns typed values, and never a secret.
func testRecords(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	root := w.root.Token()
	w.must(t, root, "write", w.path+"/roles/r1", "trust=main,login", "target=acme", "parameters=project=one", "allowed_parameters=scopes",
		"ttl=90s", "max_ttl=3600", "custom_metadata=team=red", "custom_metadata=tier=1", "description=first")
	w.must(t, root, "write", w.path+"/roles/r1", `parameters={"project": "two", "scopes": ["read", "push"]}`)
	w.must(t, root, "patch", w.path+"/roles/r1", "ttl=2m")
	want := `{"allowed_parameters":["scopes"],"custom_metadata":{"team":"red","tier":"1"},"description":"first","enabled":true,"lease_path":"","max_keys":0,"max_keys_per_subject":0,"max_ttl":3600,"on_limit":"refuse",` +
		`"parameters":{"project":"two","scopes":["read","push"]},"parameters_from":{},"require_revocable":false,"target":"acme","trust":["main","login"],"ttl":120}`
	if got := w.raw(t, http.MethodGet, w.path+"/roles/r1", ""); !strings.Contains(got.body, want) {
		t.Errorf("roles/r1: %s; want %s", got.body, want)
	}

	got := w.raw(t, http.MethodGet, w.path+"/targets/acme", "")
	if _, shown := got.data["credential"]; shown || got.data["credential_set"] != true || strings.Contains(got.body, w.admin) {
		t.Errorf("targets/acme: %s", got.body)
	}
	if got := w.raw(t, http.MethodGet, w.path+"/targets/nuget", ""); got.data["credential_set"] != false {
		t.Errorf("targets/nuget: %s", got.body)
	}
	for path, fields := range map[string][]string{
		"config":         {"http_timeout", "jwks_max_age", "jwks_max_stale", "jwks_min_refresh", "request_timeout", "sweep_grace"},
		"issuers/github": {"clock_skew_leeway", "max_age", "max_token_lifetime"},
		"roles/deploy":   {"ttl", "max_ttl"},
		"targets/acme":   {"request_timeout"},
		"self":           {"rotation_period", "ttl"},
	} {
		data := w.raw(t, http.MethodGet, w.path+"/"+path, "").data
		for _, field := range fields {
			if seconds, ok := data[field].(float64); !ok || seconds != float64(int(seconds)) {
				t.Errorf("%s: %s is %v; want whole seconds", path, field, data[field])
			}
		}
	}
	for body, field := range map[string]string{`{"url": "https://127.0.0.1:1"}`: "url", `{"driver": "nuget"}`: "driver", `{"ca_pem": ""}`: "credential"} {
		w.wantNamed(t, http.MethodPost, "targets/acme", body, field)
	}
}

// Every path has help and a stable name in OpenAPI documents.
func testDocumented(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	d := w.document(t)
	names := map[string]string{}
	for path := range d.Paths {
		pattern, ours := strings.CutPrefix(path, "/"+w.path+"/")
		if !ours {
			continue
		}
		for _, method := range []string{"get", "post", "patch", "delete"} {
			if d.Paths[path][method] == nil {
				continue
			}
			name := d.operation(t, path, method)
			if first, twice := names[name]; twice {
				t.Errorf("%s is the name of %s and of %s %s", name, first, method, pattern)
			}
			names[name] = method + " " + pattern
			if !regexp.MustCompile(`^oidcexchange(-[a-z]+)+$`).MatchString(name) {
				t.Errorf("%s %s has the name %q", method, pattern, name)
			}
		}
		example := strings.NewReplacer("{name}", "x", "{role}", "x", "{path}", "y", "{id}", "2026010100-x", "{issuer}", "x", "{target}", "x").Replace(strings.TrimSuffix(pattern, "/"))
		if strings.Contains(example, "{") {
			t.Errorf("path %s has a part that this test does not know", pattern)
		}
		if out := w.must(t, w.root.Token(), "path-help", w.path+"/"+example); !strings.Contains(out, "DESCRIPTION") {
			t.Errorf("help of %s:\n%s", pattern, out)
		}
	}
	for _, path := range []string{"config", "issuers/{name}", "trust/{name}", "targets/{name}", "roles/{name}", "creds/{role}", "creds/{role}/{path}", "keys/", "keys/{id}", "explain/{role}", "status", "refresh/{issuer}", "check/{target}", "sweep", "self", "oidc/.well-known/openid-configuration", "oidc/.well-known/keys"} {
		if d.Paths["/"+w.path+"/"+path] == nil {
			t.Errorf("%s is not documented", path)
		}
	}
}
