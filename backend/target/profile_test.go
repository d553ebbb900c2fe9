// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
)

// base is a valid profile, a member on each line, that the tests below change.
const base = `name: acme
url: https://api.acme.example
params:
  project: {required: true}
  id: {type: int, default: 7}
credential: [token]
claims: [repository]
header: {name: X-Acme-Key, value: "key.secret"}
exchange:
  method: POST
  path: '["keys"]'
  headers: {Authorization: '"Bearer " + credential.token'}
  json: '{"name": name}'
  ok: [201]
  key: {secret: response.json.secret, accessor: response.json.id}
revoke:
  method: DELETE
  path: '["keys", accessor]'
  gone: [404]
find:
  method: GET
  path: '["keys"]'
  found: response.json.map(k, k.id)
  next: '{}'
`

func TestBaseProfileIsValid(t *testing.T) {
	if _, err := parseProfile(base); err != nil {
		t.Fatal(err)
	}
}

// What the README shows as the whole grammar is a profile.
func TestDocumentedProfile(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "\n## Profiles\n")
	_, after, _ = strings.Cut(after, "```yaml\n")
	profile, _, found := strings.Cut(after, "```\n")
	if !found {
		t.Fatal("the README shows no profile")
	}
	p, err := parseProfile(profile)
	if err != nil {
		t.Fatal(err)
	}
	if p.renew == nil || p.revoke == nil || p.absent == nil || p.find == nil || p.check == nil || len(p.made.fields) == 0 || len(p.exchange.hints) == 0 {
		t.Error("the README does not show every operation, fields and hints")
	}
}

// Every fault of a profile is named by its line and its member.
func TestProfileFaults(t *testing.T) {
	for name, c := range map[string]struct{ from, to, want string }{
		"empty":           {base, "", "line 1: profile: is empty"},
		"comment":         {base, "# nothing\n", "line 1: profile: is empty"},
		"not a mapping":   {base, "- a\n", "line 1: profile: want a mapping, name: value; a file is given as profile=@FILE"},
		"not YAML":        {"url: https", "url: [", "line 1: profile: is not YAML: did not find expected node content"},
		"tab":             {"  path: '[\"keys\"]'\n  headers", "\tpath: x\n  headers", "line 10: profile: is not YAML: found a tab character that violates indentation"},
		"not UTF-8":       {"acme\n", "acm\xe9\n", "line 1: profile: is not UTF-8"},
		"too long":        {base, base + "#" + strings.Repeat("x", 64<<10), "line 1: profile: has 66095 bytes; at most 65536 are allowed"},
		"two documents":   {base, base + "---\nname: x\n", "line 25: profile: goes on after its end; want one document"},
		"anchor":          {"name: acme", "name: &a acme", "line 1: profile: has an anchor or an alias; write the value out"},
		"alias":           {"name: acme", "name: &a acme\naudience: *a", "line 1: profile: has an anchor or an alias; write the value out"},
		"merge":           {"gone: [404]", "<<: {gone: [404]}", "line 19: revoke.<<: is not known here; known are method, path, query, headers, json, form, ok, busy, only_if, hints, gone"},
		"tag":             {"name: acme", "name: !!binary acme", "line 1: profile: has a tag; leave it out"},
		"deep":            {"name: acme", "name: [[[[[[[a]]]]]]]", "line 1: profile: nests deeper than 6 levels"},
		"duplicate":       {"url: https", "name: b\nurl: https", "line 2: name: stands here twice"},
		"duplicate below": {"  method: DELETE", "  method: DELETE\n  method: GET", "line 18: revoke.method: stands here twice"},
		"complex name":    {"name: acme", "? [a]\n: b", "line 1: profile: has a member whose name is not plain text"},
		"unknown":         {"url: https", "uri: https", "line 2: uri: is not known here; known are name, url, subject_token_source, audience, audience_from, params, credential, claims, lifetime, header, exchange, renew, revoke, absent, find, list, check, rotate, identify, rotate_credential, retire_credential"},
		"unknown below":   {"{secret:", "{secert:", "line 15: exchange.key.secert: is not known here; known are secret, accessor, expires, fields"},
		"no name":         {"name: acme\n", "", "line 1: name: want 1 to 64 of a-z, 0-9 and hyphens"},
		"name":            {"acme\n", "Acme Inc\n", "line 1: name: want 1 to 64 of a-z, 0-9 and hyphens"},
		"url list":        {"https://api.acme.example", "[x]", "line 2: url: want a value"},
		"source":          {"url: ", "subject_token_source: elsewhere\nurl: ", "line 2: subject_token_source: want one of none, request, self, file, client_credentials, svid"},
		"lifetime":        {"url: ", "lifetime: soon\nurl: ", "line 2: lifetime: want a time such as 90s or 1h, more than 0"},
		"lifetime 0":      {"url: ", "lifetime: 0\nurl: ", "line 2: lifetime: want a time such as 90s or 1h, more than 0"},

		"param name":      {"  project:", "  Project:", "line 4: params.Project: want a name of a-z, 0-9 and _ that begins with a letter"},
		"param member":    {"{required: true}", "{require: true}", "line 4: params.project.require: is not known here; known are type, required, pattern, default"},
		"param required":  {"{required: true}", "{required: 'yes'}", "line 4: params.project.required: want true or false"},
		"param type":      {"type: int", "type: float", "line 5: params.id.type: want one of [string list int bool]"},
		"param pattern":   {"{required: true}", "{pattern: '['}", "line 4: params.project.pattern: is not a regular expression (RE2)"},
		"pattern group":   {"{required: true}", "{pattern: 'a)|(b'}", "line 4: params.project.pattern: is not a regular expression (RE2)"},
		"pattern of int":  {"default: 7", "pattern: x", "line 5: params.id.pattern: is for strings and lists only"},
		"default type":    {"default: 7", "default: x", "line 5: params.id.default: want a whole number"},
		"default pattern": {"{required: true}", "{pattern: '[a-z]', default: A}", "line 4: params.project.default: does not match the target's pattern for it"},
		"default unused":  {"{required: true}", "{required: true, default: a}", "line 4: params.project.default: is never used: the parameter is required"},
		"default map":     {"{required: true}", "{default: {}}", "line 4: params.project.default: want a value"},
		"param text":      {"{required: true}", "yes", "line 4: params.project: want a mapping, name: value"},

		"credential":       {"[token]", "token", "line 6: credential: want a list of names"},
		"credential name":  {"[token]", "[To ken]", `line 6: credential: has a name that does not match \A[a-z][a-z0-9_]{0,63}\z`},
		"credential twice": {"[token]", "[token, token]", `line 6: credential: has "token" twice`},
		"claims":           {"[repository]", "[issuer]", "line 7: claims: has issuer or subject, which are there without being named"},
		"claims map":       {"[repository]", "{a: b}", "line 7: claims: want a list of names"},

		"header name":  {"name: X-Acme-Key", "name: 'X Acme'", "line 8: header.name: want the name of a header"},
		"header value": {`value: "key.secret"`, "value: credential.token", `line 8: header.value: "credential" cannot be used here; what can is key`},
		"header type":  {`value: "key.secret"`, "value: 1 < 2", "line 8: header.value: yields bool; want string"},

		"no exchange":      {"exchange:", "check:", "line 1: exchange: is missing"},
		"nothing":          {base, "name: x\n", "line 1: exchange: is missing"},
		"exchange list":    {"exchange:\n  method: POST", "exchange: []\nrenew:\n  method: POST", "line 9: exchange: want a mapping, name: value"},
		"no method":        {"  method: POST\n", "", "line 9: exchange.method: want one of POST, PUT, PATCH"},
		"exchange by GET":  {"method: POST", "method: GET", "line 10: exchange.method: want one of POST, PUT, PATCH"},
		"method":           {"method: DELETE", "method: delete", "line 17: revoke.method: want one of POST, PUT, PATCH, GET, DELETE"},
		"GET with body":    {"  found:", "  json: name\n  found:", "line 21: find.method: is GET, which has no body"},
		"json and form":    {"  json:", "  form: '{}'\n  json:", "line 13: exchange.form: stands beside json; want one of them"},
		"no path":          {"  path: '[\"keys\"]'\n  headers", "  headers", "line 9: exchange.path: is missing"},
		"path":             {`path: '["keys", accessor]'`, `path: '["keys", accessor'`, "line 18: revoke.path: line 1, column 18: Syntax error: mismatched input '<EOF>' expecting {']', ','}"},
		"path undeclared":  {`["keys", accessor]`, `["keys", accesor]`, "line 18: revoke.path: line 1, column 10: undeclared reference to 'accesor' (did you mean 'accessor'?)"},
		"no secret":        {"secret: response.json.secret, ", "", "line 15: exchange.key.secret: is missing"},
		"secret undefined": {"secret: response.json.secret", "secret: body.secret", "line 15: exchange.key.secret: line 1, column 1: undeclared reference to 'body'"},
		"no next":          {"  next: '{}'\n", "", ""},
		"no found":         {"  found: response.json.map(k, k.id)\n", "", "line 20: find.found: is missing"},
		"renew, no expiry": {"find:", "renew: {method: PUT, path: '[accessor]'}\nfind:", "line 20: renew.expires: is missing"},

		"token in path":         {`path: '["keys"]'` + "\n  headers", `path: '["keys", subject_token]'` + "\n  headers", `line 11: exchange.path: "subject_token" cannot be used here; what can is params, subject, name, not_after, ttl, now`},
		"token with a dot":      {`path: '["keys"]'` + "\n  headers", `path: '["keys", .subject_token]'` + "\n  headers", `line 11: exchange.path: ".subject_token" cannot be used here; what can is params, subject, name, not_after, ttl, now`},
		"credential in path":    {`path: '["keys"]'` + "\n  headers", `path: '["keys", credential.token]'` + "\n  headers", `line 11: exchange.path: "credential" cannot be used here; what can is params, subject, name, not_after, ttl, now`},
		"credential in query":   {"  headers:", "  query: {t: credential.token}\n  headers:", `line 12: exchange.query.t: "credential" cannot be used here; what can is params, subject, name, not_after, ttl, now`},
		"token in query":        {"  headers:", "  query: {t: subject_token}\n  headers:", `line 12: exchange.query.t: "subject_token" cannot be used here; what can is params, subject, name, not_after, ttl, now`},
		"credential in find":    {"  found:", "  query: {t: credential.token}\n  found:", `line 23: find.query.t: "credential" cannot be used here; what can is params, name`},
		"key in exchange":       {`'{"name": name}'`, `'{"name": key.secret}'`, `line 13: exchange.json: "key" cannot be used here; what can is params, subject, name, not_after, ttl, now, credential, subject_token`},
		"key in find":           {"  found:", "  query: {k: key.secret}\n  found:", `line 23: find.query.k: "key" cannot be used here; what can is params, name`},
		"response in request":   {`'{"name": name}'`, `'{"name": response.status}'`, `line 13: exchange.json: "response" cannot be used here; what can is params, subject, name, not_after, ttl, now, credential, subject_token`},
		"credential in key":     {"response.json.secret", "credential.token", `line 15: exchange.key.secret: "credential" cannot be used here; what can is response, params, subject, name, not_after, ttl`},
		"credential in found":   {"response.json.map(k, k.id)", "'[credential.token]'", `line 23: find.found: "credential" cannot be used here; what can is response, params, name`},
		"token in revoke":       {"  gone:", "  headers: {A: subject_token}\n  gone:", `line 19: revoke.headers.A: "subject_token" cannot be used here; what can is params, name, accessor, key, credential`},
		"params in check":       {"find:", "check: {method: GET, path: '[params.project]'}\nfind:", `line 20: check.path: "params" cannot be used here, nor any other variable`},
		"inherited headers":     {`credential.token'}`, `subject_token'}`, `line 12: revoke.headers (from exchange).Authorization: "subject_token" cannot be used here; what can is params, name, accessor, key, credential`},
		"undeclared field":      {"+ credential.token", "+ credential.password", "line 12: exchange.headers.Authorization: uses credential.password, which is not declared"},
		"credential as a whole": {`'{"name": name}'`, `'{"name": credential}'`, "line 13: exchange.json: uses credential as a whole; want credential.<name>"},
		"undeclared claim":      {`'{"name": name}'`, `'{"name": subject.actor}'`, "line 13: exchange.json: uses subject.actor, which is not declared"},
		"subject as a whole":    {`'{"name": name}'`, `'{"name": subject}'`, "line 13: exchange.json: uses subject as a whole; want subject.<name>"},
		"undeclared param":      {`'{"name": name}'`, `'{"name": params.user}'`, "line 13: exchange.json: uses params.user, which is not declared"},

		"own header":        {"{Authorization:", "{Host:", "line 12: exchange.headers.Host: cannot be set by a profile"},
		"own header, case":  {"{Authorization:", "{content-LENGTH:", "line 12: exchange.headers.content-LENGTH: cannot be set by a profile"},
		"header twice":      {"{Authorization:", "{authorization: name, Authorization:", "line 12: exchange.headers.Authorization: stands here twice"},
		"header with space": {"{Authorization:", "{'A B':", "line 12: exchange.headers.A B: cannot be set by a profile"},
		"header number":     {`'"Bearer " + credential.token'`, "'1'", "line 12: exchange.headers.Authorization: yields int; want string"},

		"no ok":             {"  ok: [201]\n", "", "line 9: exchange.ok: is missing: the statuses of success"},
		"ok empty":          {"ok: [201]", "ok: []", "line 14: exchange.ok: is empty"},
		"ok redirect":       {"ok: [201]", "ok: [201, 302]", "line 14: exchange.ok: want statuses from 200 to 299"},
		"ok text":           {"ok: [201]", "ok: [created]", "line 14: exchange.ok: want statuses from 200 to 299"},
		"ok scalar":         {"ok: [201]", "ok: 201", "line 14: exchange.ok: want a list of statuses"},
		"status twice":      {"ok: [201]", "ok: [201]\n  busy: [409]\n  denied: [409]", "line 16: exchange.denied: has 409, which stands in busy already"},
		"status repeated":   {"ok: [201]", "ok: [201, 201]", "line 14: exchange.ok: has 201, which stands in ok already"},
		"gone by 401":       {"gone: [404]", "gone: [404, 401]", "line 19: revoke.gone: has 401, which refuses the credential and says nothing of the key"},
		"gone by 403":       {"gone: [404]", "gone: [403]", "line 19: revoke.gone: has 403, which refuses the credential and says nothing of the key"},
		"gone by 500":       {"gone: [404]", "gone: [500]", "line 19: revoke.gone: want statuses from 400 to 499"},
		"absent of nothing": {"  gone: [404]\n", "absent: {method: GET, path: '[name]', ok: [200]}\n", "line 19: absent: is of no use: revoke has no gone"},
		"gone elsewhere":    {"ok: [201]", "ok: [201]\n  gone: [404]", "line 15: exchange.gone: is not known here; known are method, path, query, headers, json, form, ok, busy, only_if, hints, denied, key"},

		"hint of a credential":   {"ok: [201]", "ok: [201]\n  hints: {mend it: credential.token == \"x\"}", `line 15: exchange.hints.mend it: "credential" cannot be used here; what can is response`},
		"hint that is no test":   {"ok: [201]", "ok: [201]\n  hints: {mend it: '\"x\"'}", "line 15: exchange.hints.mend it: yields string; want bool"},
		"hint not plain":         {"ok: [201]", "ok: [201]\n  hints: {ümend: 'true'}", "line 15: exchange.hints: has a member whose name is not plain text"},
		"field of the engine":    {"accessor: response.json.id", "accessor: response.json.id, fields: {api_key: name}", "line 15: exchange.key.fields.api_key: cannot be the name of a field of its own"},
		"field name":             {"accessor: response.json.id", "accessor: response.json.id, fields: {User: name}", "line 15: exchange.key.fields.User: cannot be the name of a field of its own"},
		"credential in field":    {"accessor: response.json.id", "accessor: response.json.id, fields: {user: credential.token}", `line 15: exchange.key.fields.user: "credential" cannot be used here; what can is response, params, subject, name, not_after, ttl`},
		"two audiences":          {"url: ", "audience: a\naudience_from: hostname\nurl: ", "line 3: audience_from: stands beside audience; want one of them"},
		"audience of params":     {"url: ", "audience_from: params.project\nurl: ", `line 2: audience_from: "params" cannot be used here; what can is hostname`},
		"no find, by name":       {`"keys", accessor]'` + "\n  gone: [404]\nfind:\n  method: GET\n  path: '[\"keys\"]'\n  found: response.json.map(k, k.id)\n  next: '{}'\n", `"keys", name]'` + "\n", ""},
		"no find, by nothing":    {`"keys", accessor]'` + "\n  gone: [404]\nfind:\n  method: GET\n  path: '[\"keys\"]'\n  found: response.json.map(k, k.id)\n  next: '{}'\n", `"keys"]'` + "\n", "line 1: lifetime: is missing: without find and revoke, a key that was lost lives that long"},
		"no lifetime, no find":   {"find:\n  method: GET\n  path: '[\"keys\"]'\n  found: response.json.map(k, k.id)\n  next: '{}'\n", "", "line 1: lifetime: is missing: without find and revoke, a key that was lost lives that long"},
		"no accessor":            {", accessor: response.json.id", "", "line 9: exchange: key.accessor is missing: renew, revoke or rotate uses it"},
		"no accessor, by key":    {`"keys", accessor]'` + "\n  gone: [404]", `"keys", key.accessor]'` + "\n  gone: [404]", ""},
		"find without use":       {`"keys", accessor]`, `"keys", key.secret]`, "line 20: find: is of no use: what it finds are accessors, but renew or revoke needs the key itself"},
		"token but source none":  {`'{"name": name}'`, `'{"name": subject_token}'`, "line 1: subject_token_source: is none, but exchange uses subject_token"},
		"long expression":        {`'{"name": name}'`, `'"` + strings.Repeat("x", 5000) + `"'`, "line 13: exchange.json: expression has 5002 bytes; at most 4096 are allowed"},
		"second line of a block": {`  json: '{"name": name}'`, "  json: |\n    {\"name\": name,\n     \"x\": nam}", "line 13: exchange.json: line 2, column 7: undeclared reference to 'nam' (did you mean 'name'?)"},

		"rotate":                     {"find:", "rotate: {method: POST, path: '[accessor]', json: key.secret, ok: [200], key: {secret: response.json.secret, accessor: response.json.id}}\nfind:", ""},
		"rotate by GET":              {"find:", "rotate: {method: GET, path: '[accessor]', ok: [200], key: {secret: response.json.secret, accessor: response.json.id}}\nfind:", "line 20: rotate.method: want one of POST, PUT, PATCH"},
		"rotate, key in path":        {"find:", "rotate: {method: POST, path: '[key.secret]', ok: [200], key: {secret: response.json.secret, accessor: response.json.id}}\nfind:", `line 20: rotate.path: "key" cannot be used here; what can is params, name, not_after, accessor`},
		"rotate, no accessor":        {"find:", "rotate: {method: POST, path: '[name]', ok: [200], key: {secret: response.json.secret}}\nfind:", "line 20: rotate: key.accessor is missing: renew, revoke or rotate uses it"},
		"rotate, no secret":          {"find:", "rotate: {method: POST, path: '[name]', ok: [200], key: {accessor: response.json.id}}\nfind:", "line 20: rotate.key.secret: is missing"},
		"identify without the key":   {"find:", "identify: {method: GET, path: '[\"me\"]', key: {accessor: response.json.id}}\nfind:", "line 20: identify: does not present key.secret, so the API cannot tell which key is meant"},
		"identify, key in path":      {"find:", "identify: {method: GET, path: '[key.secret]', key: {accessor: response.json.id}}\nfind:", `line 20: identify.path: "key" cannot be used here; what can is params`},
		"identify, no accessor":      {"find:", "identify: {method: GET, path: '[\"me\"]', headers: {K: key.secret}}\nfind:", "line 20: identify: key.accessor is missing: renew, revoke or rotate uses it"},
		"credential of other fields": {"find:", "rotate_credential: {method: POST, path: '[name]', ok: [200], credential: {secret: response.json.secret}}\nfind:", "line 20: rotate_credential.credential.secret: is no field of the credential"},
		"credential of none":         {"find:", "rotate_credential: {method: POST, path: '[name]', ok: [200]}\nfind:", "line 20: rotate_credential.credential: is missing: the fields that are new"},
		"credential in rotation url": {"find:", "rotate_credential: {method: POST, path: '[credential.token]', ok: [200], credential: {token: response.json.secret}}\nfind:", `line 20: rotate_credential.path: "credential" cannot be used here; what can is name, not_after`},
		"retire alone":               {"find:", "retire_credential: {method: DELETE, path: '[\"me\"]', gone: [401]}\nfind:", "line 20: retire_credential: is of no use without rotate_credential"},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(base, c.from) {
				t.Fatalf("the base profile does not have %q", c.from)
			}
			_, err := parseProfile(strings.Replace(base, c.from, c.to, 1))
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// Defaults leave to what is written.
func TestStatusDefaults(t *testing.T) {
	text := strings.Replace(base, "ok: [201]", "ok: [201]\n  denied: [400, 429]", 1)
	p, err := parseProfile(strings.Replace(text, "gone: [404]", "gone: [404]\n  ok: [202]", 1))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2][]int{
		"exchange.ok":     {p.exchange.ok, {201}},
		"exchange.busy":   {p.exchange.busy, {503}},
		"exchange.denied": {p.exchange.denied, {400, 429}},
		"revoke.ok":       {p.revoke.ok, {202}},
		"revoke.gone":     {p.revoke.gone, {404}},
		"revoke.busy":     {p.revoke.busy, {429, 503}},
		"revoke.denied":   {p.revoke.denied, {401, 403}},
		"find.ok":         {p.find.ok, {200, 204}},
	} {
		if diff := cmp.Diff(c[1], c[0]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// sent is what a server saw of one request.
type sent struct {
	Method, URI, Body string
	Header            http.Header
}

// serve opens the profile at a server that answers every request with status and body, and returns what it sees.
func serve(t *testing.T, profile string, status int, body string, header ...string) (*Target, *sent) {
	t.Helper()
	saw := &sent{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		*saw = sent{r.Method, r.RequestURI, string(text), r.Header}
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(server.Close)
	opened, err := Open(Config{
		Driver: "http", Profile: profile, URL: server.URL + "/base%20path/", Credential: map[string]string{"token": "t0p"},
		Egress: egress.Policy{AllowHTTPLoopback: true}, Now: func() time.Time { return time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(opened.Close)
	return opened, saw
}

func request(params map[string]any) Request {
	return Request{
		Name: "oidcx-1", Params: params, NotAfter: time.Date(2030, 1, 1, 2, 0, 0, 999, time.FixedZone("", 3600)), TTL: 90 * time.Minute,
		Subject: map[string]any{"issuer": "https://i", "subject": "s", "repository": "acme/widget", "secret_claim": "no"},
	}
}

// Each value has one form in a request.
func TestRequestIsBuilt(t *testing.T) {
	path := `path: '["keys"]'` + "\n  headers"
	for name, c := range map[string]struct{ from, to, uri, body, contentType string }{
		"as it is":         {"", "", "/base%20path/keys", `{"name":"oidcx-1"}`, "application/json"},
		"escaped segments": {path, `path: '["a b", "c/d?e#f;g%2f", params.project, 7, 18446744073709551615u]'` + "\n  headers", "/base%20path/a%20b/c%2Fd%3Fe%23f%3Bg%252f/%C3%BC&=+:@/7/18446744073709551615", `{"name":"oidcx-1"}`, "application/json"},
		"no segment":       {path, "path: '[]'\n  headers", "/base%20path/", `{"name":"oidcx-1"}`, "application/json"},
		"query": {"  headers:", "  query: {a: 'params.project + \"&b=c\"', l: '[1, 2]', n: 'null', t: not_after, d: ttl, b: 'true'}\n  headers:",
			"/base%20path/keys?a=%C3%BC%26%3D%2B%3A%40%26b%3Dc&b=true&d=5400&l=1&l=2&t=2030-01-01T01%3A00%3A00Z", `{"name":"oidcx-1"}`, "application/json"},
		"json": {`json: '{"name": name}'`, `json: '{"t": not_after, "d": ttl, "n": null, "l": [1, 2.5, true], "b": b"hi", "s": "<&>", "c": subject.repository, "i": subject.issuer}'`,
			"/base%20path/keys", `{"b":"aGk=","c":"acme/widget","d":5400,"i":"https://i","l":[1,2.5,true],"n":null,"s":"<&>","t":"2030-01-01T01:00:00Z"}`, "application/json"},
		"time left": {`json: '{"name": name}'`, `json: '{"at": now, "seconds": not_after - now}'`, "/base%20path/keys", `{"at":"2030-01-01T00:00:00Z","seconds":3600}`, "application/json"},
		"form": {`json: '{"name": name}'`, `form: '{"name": name, "scope": ["a", "b&c"], "x": null, "t": credential.token}'`,
			"/base%20path/keys", "name=oidcx-1&scope=a&scope=b%26c&t=t0p", "application/x-www-form-urlencoded"},
		"no body":  {`  json: '{"name": name}'` + "\n", "", "/base%20path/keys", "", ""},
		"own type": {"headers: {", `headers: {content-type: '"application/vnd.acme+json"', `, "/base%20path/keys", `{"name":"oidcx-1"}`, "application/vnd.acme+json"},
	} {
		t.Run(name, func(t *testing.T) {
			opened, saw := serve(t, strings.Replace(base, c.from, c.to, 1), 201, `{"secret": "s3cret", "id": "id-1"}`)
			if _, err := opened.Exchange(t.Context(), request(map[string]any{"project": "ü&=+:@", "id": int64(7)})); err != nil {
				t.Fatal(err)
			}
			want := sent{Method: "POST", URI: c.uri, Body: c.body}
			got := sent{Method: saw.Method, URI: saw.URI, Body: saw.Body}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			for header, want := range map[string]string{"Content-Type": c.contentType, "Authorization": "Bearer t0p", "Accept": "application/json", "User-Agent": "oidcexchange", "Idempotency-Key": ""} {
				if got := saw.Header.Get(header); got != want {
					t.Errorf("%s is %q; want %q", header, got, want)
				}
			}
		})
	}
}

// What cannot be built is refused before anything is sent, and its error holds no value.
func TestRequestCannotBeBuilt(t *testing.T) {
	path := `path: '["keys"]'` + "\n  headers"
	for name, c := range map[string]struct{ from, to, want string }{
		"dot segment":         {path, `path: '["keys", ".."]'` + "\n  headers", "path: segment 2 is empty, a dot segment, or not text"},
		"one dot":             {path, `path: '["."]'` + "\n  headers", "path: segment 1 is empty, a dot segment, or not text"},
		"empty segment":       {path, `path: '["", "keys"]'` + "\n  headers", "path: segment 1 is empty, a dot segment, or not text"},
		"escape by a slash":   {path, `path: '["keys", params.project + "/../admin"]'` + "\n  headers", "path: segment 2 is empty, a dot segment, or not text"},
		"escape by a \\":      {path, `path: '["keys", "x\\..\\admin"]'` + "\n  headers", "path: segment 2 is empty, a dot segment, or not text"},
		"control in path":     {path, `path: '["keys", "a\nb"]'` + "\n  headers", "path: segment 2 is empty, a dot segment, or not text"},
		"segment list":        {path, `path: '["keys", []]'` + "\n  headers", "path: segment 2 is empty, a dot segment, or not text"},
		"path no list":        {path, `path: '"keys"'` + "\n  headers", "path: yields no list"},
		"header line break":   {`'"Bearer " + credential.token'`, `'"x\r\nEvil: 1"'`, "headers.Authorization: yields no printable ASCII of at most 32768 bytes"},
		"header not ASCII":    {`'"Bearer " + credential.token'`, `'"ü"'`, "headers.Authorization: yields no printable ASCII of at most 32768 bytes"},
		"header missing":      {`'"Bearer " + credential.token'`, "params.project", `headers.Authorization: "project" is missing`},
		"query object":        {"  headers:", "  query: {q: '{}'}\n  headers:", "query.q: yields neither text, number, bool, timestamp nor a list of them"},
		"query missing":       {"  headers:", "  query: {q: params.project}\n  headers:", `query.q: "project" is missing`},
		"form no map":         {`json: '{"name": name}'`, "form: name", "form: yields no map"},
		"form object":         {`json: '{"name": name}'`, `form: '{"a": {"b": 1}}'`, "form: yields neither text, number, bool, timestamp nor a list of them"},
		"json missing":        {`json: '{"name": name}'`, `json: '{"a": params.project}'`, `json: "project" is missing`},
		"json costs too much": {`json: '{"name": name}'`, `json: '[1,2,3,4,5,6,7,8].map(a, [1,2,3,4,5,6,7,8].map(b, [1,2,3,4,5,6,7,8].map(c, [1,2,3,4,5,6,7,8].map(d, [1,2,3,4,5,6,7,8].map(e, a+b+c+d+e)))))'`, "json: costs more than 100000 units"},
	} {
		t.Run(name, func(t *testing.T) {
			opened, saw := serve(t, strings.Replace(base, c.from, c.to, 1), 201, `{"secret": "s3cret", "id": "id-1"}`)
			r := request(map[string]any{})
			if name == "escape by a slash" {
				r.Params["project"] = "x"
			}
			_, err := opened.Exchange(t.Context(), r)
			if want := "exchange: request cannot be made: " + c.want; err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			if !errors.Is(err, ErrParameter) || MayLive(err) || saw.Method != "" {
				t.Errorf("%v: want ErrParameter, nothing sent", err)
			}
		})
	}
}

// What a key is and when it ends is read in several forms.
func TestKeyIsRead(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	key := "{secret: response.json.secret, accessor: response.json.id}"
	handle := Handle{Name: "oidcx-1", Accessor: "id-1", Params: map[string]any{"id": int64(7)}}
	for name, c := range map[string]struct {
		from, to string
		want     Key
	}{
		"never ends": {"", "", Key{Secret: "s3cret", Accessor: "id-1", Handle: handle}},
		"instant":    {key, "{secret: response.json.secret, accessor: response.json.id, expires: 'timestamp(response.json.at)'}", Key{Secret: "s3cret", Accessor: "id-1", Expiry: now.Add(time.Minute), Handle: handle}},
		"seconds":    {key, `{secret: response.json.secret, accessor: response.json.id, expires: 'duration(string(response.json.expires_in) + "s")'}`, Key{Secret: "s3cret", Accessor: "id-1", Expiry: now.Add(time.Hour), Handle: handle}},
		"epoch":      {key, "{secret: response.json.secret, accessor: response.json.id, expires: timestamp(response.json.epoch)}", Key{Secret: "s3cret", Accessor: "id-1", Expiry: time.Unix(1893456060, 0).UTC(), Handle: handle}},
		"as asked":   {key, "{secret: response.json.secret, accessor: response.json.id, expires: not_after}", Key{Secret: "s3cret", Accessor: "id-1", Expiry: now.Add(time.Hour), Handle: handle}},
		"lifetime":   {"credential: [token]", "credential: [token]\nlifetime: 30m", Key{Secret: "s3cret", Accessor: "id-1", Expiry: now.Add(30 * time.Minute), Handle: handle}},
		"in headers": {key, `{secret: 'response.headers["x-key"]', accessor: string(response.status)}`, Key{Secret: "from-header", Accessor: "201", Handle: Handle{Name: "oidcx-1", Accessor: "201", Params: handle.Params}}},
		"fields": {key, `{secret: response.json.secret, accessor: response.json.id, fields: {project: 'params.id == 7 ? "seven" : ""', none: '""'}}`,
			Key{Secret: "s3cret", Accessor: "id-1", Fields: map[string]string{"project": "seven"}, Handle: handle}},
		"header": {`value: "key.secret"`, `value: '"Bearer " + key.secret'`, Key{Secret: "s3cret", Accessor: "id-1", Header: "Bearer s3cret", Handle: handle}},
	} {
		t.Run(name, func(t *testing.T) {
			const body = `{"secret": "s3cret", "id": "id-1", "at": "2030-01-01T01:01:00+01:00", "expires_in": 3600, "epoch": 1893456060}`
			opened, _ := serve(t, strings.Replace(base, c.from, c.to, 1), 201, body, "X-Key", "from-header")
			got, err := opened.Exchange(t.Context(), request(map[string]any{"id": int64(7)}))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// A field is shown to all who may see the key's record, so it never holds the key.
func TestFieldsAreJudged(t *testing.T) {
	for name, source := range map[string]string{
		"the key": "response.json.secret", "within": `"x" + response.json.secret + "y"`, "line break": `"a\nb"`, "long": `name + "` + strings.Repeat("x", 512) + `"`,
	} {
		text := strings.Replace(base, "accessor: response.json.id", "accessor: response.json.id, fields: {f: '"+source+"'}", 1)
		opened, _ := serve(t, text, 201, `{"secret": "s3cret", "id": "id-1"}`)
		_, err := opened.Exchange(t.Context(), request(nil))
		const want = "exchange: target's answer makes no sense: a field is not printable ASCII of at most 512 bytes, or holds the key"
		if err == nil || err.Error() != want {
			t.Errorf("%s: got %v; want %s", name, err, want)
		}
	}
}

// A refusal is explained in the profile's words, never in those of the answer, and stays one whatever the answer is.
func TestHints(t *testing.T) {
	text := strings.Replace(base, "ok: [201]", `ok: [201]
  hints:
    the token was used: response.json.errors.exists(e, e.code == "reuse")
    the project is unknown: response.status == 404
    ask for a header: '"x-why" in response.headers'`, 1)
	for name, c := range map[string]struct {
		status       int
		body, header string
		want         string
	}{
		"by code":          {422, `{"errors": [{"code": "other"}, {"code": "reuse"}]}`, "A", "denied by the target: it refused: the token was used (status 422)"},
		"by status":        {404, `not JSON`, "A", "denied by the target: it refused: the project is unknown (status 404)"},
		"first that holds": {404, `{"errors": [{"code": "reuse"}]}`, "A", "denied by the target: it refused: the token was used (status 404)"},
		"by header":        {400, ``, "X-Why", "denied by the target: it refused: ask for a header (status 400)"},
		"none":             {400, `{"errors": "reuse"}`, "A", "denied by the target: it refused (status 400)"},
		"too large":        {422, strings.Repeat(" ", 64<<10) + `{"errors": [{"code": "reuse"}]}`, "A", "denied by the target: it refused (status 422)"},
		"no refusal":       {500, `{"errors": [{"code": "reuse"}]}`, "A", "outcome is unknown: it answered otherwise than expected (status 500)"},
		"busy":             {503, `{"errors": [{"code": "reuse"}]}`, "A", "target is busy: try again later (status 503)"},
	} {
		opened, _ := serve(t, text, c.status, c.body, c.header, "1")
		_, err := opened.Exchange(t.Context(), request(nil))
		if want := "exchange: " + c.want; err == nil || err.Error() != want {
			t.Errorf("%s: got %v; want %s", name, err, want)
		}
	}
}

// The audience that an API derives from its own address follows the target's url; what the operator writes stands.
func TestAudienceFromHost(t *testing.T) {
	text := "audience_from: '\"npm:\" + hostname'\nsubject_token_source: request\n" + strings.Replace(base, `"name": name`, `"token": subject_token`, 1)
	for want, c := range map[string]Config{
		"npm:api.acme.example": {},
		"npm:other.example":    {URL: "https://other.example:8443/base"},
		"mine":                 {URL: "https://other.example", Audience: "mine"},
	} {
		c.Driver, c.Profile, c.Credential = "http", text, map[string]string{"token": "t0p"}
		opened, err := Open(c)
		if err != nil {
			t.Errorf("%s: %v", want, err)
		} else if got := opened.Audience(); got != want {
			t.Errorf("audience %q; want %q", got, want)
		}
	}
}

// A key that can only be ended with itself is in its handle, and may stand in the path that ends it. The error of such a
// call has no URL.
func TestRevokeByTheKeyItself(t *testing.T) {
	text := strings.Replace(base, `"keys", accessor]`, `"keys", key.secret]`, 1)
	text = "lifetime: 1h\n" + text[:strings.Index(text, "find:")]
	opened, saw := serve(t, text, 500, `{}`)
	err := opened.Revoke(t.Context(), Handle{Secret: "s3cret/x"})
	if want := "revoke: outcome is unknown: it answered otherwise than expected (status 500)"; err == nil || err.Error() != want {
		t.Errorf("got %v; want %s", err, want)
	}
	if saw.URI != "/base%20path/keys/s3cret%2Fx" {
		t.Errorf("the server was asked for %q", saw.URI)
	}
	opened, _ = serve(t, text, 201, `{"secret": "s3cret", "id": "id-1"}`)
	key, err := opened.Exchange(t.Context(), request(nil))
	if err != nil || key.Handle.Secret != "s3cret" || key.Handle.Accessor != "" {
		t.Errorf("got accessor %q, secret set %v, %v; want the key alone in the handle", key.Handle.Accessor, key.Handle.Secret != "", err)
	}
}

// A key without a name is no key, not every key.
func TestRevokeWithoutAName(t *testing.T) {
	text := "lifetime: 1h\n" + strings.Replace(base[:strings.Index(base, "find:")], `path: '["keys", accessor]'`, `path: '["keys"]'`+"\n  query: {name: name}", 1)
	opened, saw := serve(t, text, 204, "")
	err := opened.Revoke(t.Context(), Handle{})
	if want := `revoke: request cannot be made: query.name: a value is missing or of another type than the expression needs`; err == nil || err.Error() != want || saw.Method != "" {
		t.Errorf("got %v, sent %q; want %s, nothing sent", err, saw.Method, want)
	}
}

// Parameters come back from storage as JSON has them.
func TestHandleParametersKeepTheirNumbers(t *testing.T) {
	text := strings.Replace(base, `"keys", accessor]`, `"keys", params.id, accessor]`, 1)
	for _, id := range []any{int64(7), float64(7)} {
		opened, saw := serve(t, text, 204, "")
		err := opened.Revoke(t.Context(), Handle{Accessor: "id-1", Params: map[string]any{"id": id}})
		if err != nil || saw.URI != "/base%20path/keys/7/id-1" {
			t.Errorf("%T: the server was asked for %q, %v", id, saw.URI, err)
		}
	}
}
