// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"encoding/json"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target/targettest"
)

func bearer(r *http.Request) string {
	token, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !found {
		return ""
	}
	return token
}

func TestNuGet(t *testing.T) {
	targettest.Run(t, targettest.Suite{
		Config: target.Config{Driver: "nuget"},
		Params: map[string]any{"username": "jim"},
		Token:  true, Expiry: true,
		Denied: []int{400, 401, 403, 404, 415, 422},
		Header: "X-NuGet-ApiKey",
		Wire: targettest.Wire{
			Read: func(r *http.Request, body []byte) targettest.Call {
				var in struct{ Username, TokenType string }
				if r.Method != http.MethodPost || r.URL.RequestURI() != "/api/v2/token" || json.Unmarshal(body, &in) != nil ||
					in.Username != "jim" || in.TokenType != "ApiKey" || r.Header.Get("Content-Type") != "application/json" {
					return targettest.Call{}
				}
				return targettest.Call{Op: targettest.Exchange, Token: bearer(r)}
			},
			Write: func(_ targettest.Op, keys []targettest.Key) (int, any) {
				const dotNet = "2006-01-02T15:04:05.0000000-07:00"
				return 200, map[string]any{"tokenType": "ApiKey", "expires": keys[0].Expiry.Format(dotNet), "apiKey": keys[0].Secret}
			},
		},
	})
}

// acme is the example of the profile grammar, with renew added.
const acme = `
name: acme
url: https://api.acme.example
subject_token_source: none
params:
  project: {required: true, pattern: "[a-z0-9-]{1,40}"}
  scopes:  {type: list, default: [read]}
credential: [token]
header: {name: X-Acme-Key, value: "key.secret"}
exchange:
  method: POST
  path: '["v1", "projects", params.project, "keys"]'
  headers: {Authorization: '"Bearer " + credential.token'}
  json: '{"name": name, "scopes": params.scopes, "expires_at": not_after}'
  ok: [201]
  busy: [429, 503]
  denied: [400, 401, 403, 404, 415, 422]
  key: {secret: response.json.secret, accessor: string(response.json.id), expires: timestamp(response.json.expires_at)}
renew:
  method: PATCH
  path: '["v1", "projects", params.project, "keys", accessor]'
  json: '{"expires_at": not_after}'
  ok: [200]
  expires: timestamp(response.json.expires_at)
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
  found: 'response.json.keys.filter(k, k.name == name).map(k, string(k.id))'
  next: '"x-next" in response.headers ? {"page": page + 1} : {}'
list:
  method: GET
  path: '["v1", "projects", params.project, "keys"]'
  query: {name: prefix}
  ok: [200]
  listed: 'response.json.keys.map(k, {"name": k.name, "accessor": string(k.id)})'
  next: '"x-next" in response.headers ? {"page": page + 1} : {}'
check: {method: GET, path: '["v1", "whoami"]', headers: {Authorization: '"Bearer " + credential.token'}, ok: [200]}
rotate:
  method: POST
  path: '["v1", "projects", params.project, "keys", accessor, "rotate"]'
  json: '{"expires_at": not_after}'
  ok: [200]
  denied: [400, 401, 403, 404, 415, 422]
  key: {secret: response.json.secret, accessor: string(response.json.id), expires: timestamp(response.json.expires_at)}
identify:
  method: GET
  path: '["v1", "key"]'
  headers: {X-Acme-Key: key.secret}
  ok: [200]
  key: {name: response.json.name, accessor: string(response.json.id), expires: timestamp(response.json.expires_at)}
rotate_credential:
  method: POST
  path: '["v1", "credentials"]'
  json: '{"name": name, "expires_at": not_after}'
  ok: [201]
  denied: [400, 401, 403, 404, 415, 422]
  credential: {token: response.json.secret}
  expires: timestamp(response.json.expires_at)
retire_credential: {method: DELETE, path: '["v1", "credentials", "mine"]', ok: [204], gone: [401]}
`

// acmeSuite is the suite of a profile that speaks to that API. alone says that an exchange presents a subject token, and the
// other calls the credential.
func acmeSuite(profile string, alone bool) targettest.Suite {
	const keys = "/v1/projects/widget/keys"
	return targettest.Suite{
		Config:     target.Config{Driver: "http", Profile: profile},
		Params:     map[string]any{"project": "widget"},
		Caps:       target.Caps{Revoke: true, Renew: true, Find: true, List: true, Check: !alone},
		Credential: []string{"token"}, Token: alone, Alone: alone,
		Accessor: true, Expiry: true,
		Denied: []int{400, 401, 403, 404, 415, 422},
		Header: "X-Acme-Key",
		Wire: targettest.Wire{
			Read: func(r *http.Request, body []byte) targettest.Call {
				c := targettest.Call{Credential: map[string]string{"token": bearer(r)}}
				var in struct {
					Name      string
					Scopes    []string
					ExpiresAt time.Time `json:"expires_at"`
				}
				if len(body) > 0 && (json.Unmarshal(body, &in) != nil || r.Header.Get("Content-Type") != "application/json") {
					return c
				}
				id, isKey := strings.CutPrefix(r.URL.Path, keys+"/")
				old, isRotated := strings.CutSuffix(id, "/rotate")
				switch {
				case r.Method == http.MethodPost && isKey && isRotated:
					c.Op, c.Key, c.NotAfter = targettest.Rotate, old, in.ExpiresAt
				case r.Method == http.MethodGet && r.URL.Path == "/v1/key":
					c.Op, c.Key, c.Credential = targettest.Identify, r.Header.Get("X-Acme-Key"), nil
				case r.Method == http.MethodPost && r.URL.Path == "/v1/credentials":
					c.Op, c.Name, c.NotAfter = targettest.RotateCredential, in.Name, in.ExpiresAt
				case r.Method == http.MethodDelete && r.URL.Path == "/v1/credentials/mine":
					c.Op = targettest.Retire
				case r.Method == http.MethodPost && r.URL.Path == keys && len(in.Scopes) == 1 && in.Scopes[0] == "read":
					c.Op, c.Name, c.NotAfter = targettest.Exchange, in.Name, in.ExpiresAt
					if alone {
						c.Token, c.Credential = bearer(r), nil
					}
				case r.Method == http.MethodPatch && isKey:
					c.Op, c.Key, c.NotAfter = targettest.Renew, id, in.ExpiresAt
				case r.Method == http.MethodDelete && isKey:
					c.Op, c.Key = targettest.Revoke, id
				case r.Method == http.MethodGet && r.URL.Path == keys && (!r.URL.Query().Has("name") || strings.HasPrefix(r.URL.Query().Get("name"), "oidcx-")):
					c.Op = targettest.Find
					c.Page, _ = strconv.Atoi(r.URL.Query().Get("page"))
				case r.Method == http.MethodGet && r.URL.Path == "/v1/whoami":
					c.Op = targettest.Check
				}
				return c
			},
			Write: func(op targettest.Op, keys []targettest.Key) (int, any) {
				list := []map[string]any{}
				for _, k := range keys {
					list = append(list, map[string]any{"id": k.Accessor, "name": k.Name, "expires_at": k.Expiry})
				}
				switch op {
				case targettest.Exchange, targettest.RotateCredential:
					list[0]["secret"] = keys[0].Secret
					return 201, list[0]
				case targettest.Rotate:
					list[0]["secret"] = keys[0].Secret
					return 200, list[0]
				case targettest.Find:
					return 200, map[string]any{"keys": list}
				case targettest.Renew, targettest.Identify:
					return 200, list[0]
				case targettest.Revoke, targettest.Retire:
					return 204, nil
				}
				return 200, map[string]any{"name": "engine"}
			},
		},
	}
}

func TestProfileOfOnesOwn(t *testing.T) {
	s := acmeSuite(acme, false)
	s.Doubts = 1
	s.Caps.Rotate, s.Caps.Identify, s.Caps.RotateRoot, s.Caps.Retire, s.Rotated = true, true, true, true, "token"
	s.Wire.Page = func(keys []targettest.Key, next int) targettest.Answer {
		status, body := s.Wire.Write(targettest.Find, keys)
		a := targettest.Answer{Status: status, Header: http.Header{}, Body: body}
		if next > 0 {
			a.Header.Set("X-Next", "yes")
		}
		return a
	}
	targettest.Run(t, s)
}

// An API whose 404 is believed only if it says itself what is not there.
func TestProfileOfWhatTheAPISays(t *testing.T) {
	const gone = "  ok: [204]\n  gone: [404]\n"
	profile := strings.Replace(acme, gone, gone+"  only_if: 'response.status == 204 || response.json.error == \"no such key\"'\n", 1)
	s := acmeSuite(profile, false)
	s.Caps.Rotate, s.Caps.Identify, s.Caps.RotateRoot, s.Caps.Retire, s.Rotated = true, true, true, true, "token"
	s.Gone = targettest.Answer{Status: 404, Body: map[string]any{"error": "no such key"}}
	targettest.Run(t, s)
}

func TestExampleProfiles(t *testing.T) {
	for name, alone := range map[string]bool{"acme": false, "federated": true} {
		t.Run(name, func(t *testing.T) {
			profile, err := os.ReadFile("../../bootstrap/targets/" + name + ".yaml")
			if err != nil {
				t.Fatal(err)
			}
			s := acmeSuite(string(profile), alone)
			if alone {
				s.Config.Audience = "https://api.federated.example"
			} else {
				s.Doubts = 1 // the other has no check
			}
			targettest.Run(t, s)
		})
	}
}
