// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// contract is the example by which the grammar was settled, to the letter: operators' profiles are written like it.
const contract = `
name: acme                      # any REST API that makes and deletes keys
url: https://api.acme.example   # default address, may be left out
subject_token_source: none      # or request, self, …
params:                         # what roles may ask for, with checks
  project: {required: true, pattern: "[a-z0-9-]{1,40}"}
  scopes:  {type: list, default: [read]}
credential: [token]             # fields that the target's credential has
header: {name: X-Acme-Key, value: "key.secret"}     # how a key is presented
exchange:
  method: POST
  path: '["v1", "projects", params.project, "keys"]'           # CEL list: segments, escaped
  headers: {Authorization: '"Bearer " + credential.token'}
  json: '{"name": name, "scopes": params.scopes, "expires_at": not_after}'   # or form:
  ok: [201]
  busy: [429, 503]              # nothing happened
  denied: [400, 401, 403, 404, 422]                             # all else is an unknown outcome
  key: {secret: response.json.secret, accessor: string(response.json.id), expires: timestamp(response.json.expires_at)}
revoke:
  method: DELETE
  path: '["v1", "projects", params.project, "keys", accessor]'
  ok: [204]
  gone: [404]
find:
  method: GET
  path: '["v1", "projects", params.project, "keys"]'
  query: {name: name}
  ok: [200]
  found: 'response.json.filter(k, k.name == name).map(k, string(k.id))'
check: {method: GET, path: '["v1", "whoami"]', headers: {Authorization: '"Bearer " + credential.token'}, ok: [200]}
`

func TestProfileOfTheContract(t *testing.T) {
	params := map[string]any{"project": "widget", "scopes": []any{"read"}}
	opened, saw := serve(t, contract, 201, `{"secret":"s3cret","id":7,"expires_at":"2030-01-01T01:00:00Z"}`)
	if given, err := opened.Params(map[string]any{"project": "widget"}); err != nil || !cmp.Equal(given, params) {
		t.Fatalf("parameters are %v, %v; want %v", given, err, params)
	}
	key, err := opened.Exchange(t.Context(), request(params))
	const body = `{"expires_at":"2030-01-01T01:00:00Z","name":"oidcx-1","scopes":["read"]}`
	if want := (sent{"POST", "/base%20path/v1/projects/widget/keys", body, saw.Header}); err != nil || !cmp.Equal(want, *saw) || saw.Header.Get("Authorization") != "Bearer t0p" {
		t.Errorf("sent %+v, %v; want %+v", saw, err, want)
	}
	if key.Secret != "s3cret" || key.Accessor != "7" || !key.Expiry.Equal(time.Date(2030, 1, 1, 1, 0, 0, 0, time.UTC)) {
		t.Errorf("got %q, %q, %v", key.Secret, key.Accessor, key.Expiry)
	}
	var asked []string
	gone, _ := serve(t, contract, 0, "")
	gone.api.client = &http.Client{Transport: answering(func(r *http.Request) *http.Response {
		asked = append(asked, r.Method+" "+r.URL.EscapedPath())
		return &http.Response{StatusCode: map[string]int{"DELETE": 404, "GET": 200}[r.Method], Body: http.NoBody}
	})}
	want := []string{"DELETE /base%20path/v1/projects/widget/keys/7", "GET /base%20path/v1/whoami"} // who says that it is gone?
	if err := gone.Revoke(t.Context(), key.Handle); err != nil || !cmp.Equal(want, asked) {
		t.Errorf("revoke: %v after %s", err, asked)
	}
	listing, saw := serve(t, contract, 200, `[{"name":"other","id":6},{"name":"oidcx-1","id":7}]`)
	found, err := listing.Find(t.Context(), Handle{Name: "oidcx-1", Params: params})
	if err != nil || len(found) != 1 || found[0].Accessor != "7" || saw.URI != "/base%20path/v1/projects/widget/keys?name=oidcx-1" {
		t.Errorf("found %v, %v by %s", found, err, saw.URI)
	}
	if err := listing.Check(t.Context()); err != nil || saw.URI != "/base%20path/v1/whoami" {
		t.Errorf("check: %v by %s", err, saw.URI)
	}
}
