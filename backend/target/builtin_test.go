// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target/targettest"
)

// wire is an API by example: what its server looks for, and what it answers.
type wire struct {
	exchange string // method and URI
	token    string // member of the body that holds the subject token; "" = it is the bearer
	status   int
	answer   func(targettest.Key) map[string]any
}

func (w wire) read(r *http.Request, body []byte) targettest.Call {
	if r.Method+" "+r.URL.RequestURI() != w.exchange {
		return targettest.Call{}
	}
	if w.token == "" {
		return targettest.Call{Op: targettest.Exchange, Token: bearer(r)}
	}
	var in map[string]string
	if json.Unmarshal(body, &in) != nil || len(in) != 1 || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Authorization") != "" {
		return targettest.Call{}
	}
	return targettest.Call{Op: targettest.Exchange, Token: in[w.token]}
}

func (w wire) write(_ targettest.Op, keys []targettest.Key) (int, any) {
	return w.status, w.answer(keys[0])
}

// registry is the suite of an API that takes a subject token and cannot end keys.
func registry(driver string, w wire) targettest.Suite {
	return targettest.Suite{
		Config: target.Config{Driver: driver}, Token: true, Expiry: true, Denied: []int{400, 401, 403, 404, 422},
		Header: "Authorization", HeaderValue: asBearer, Wire: targettest.Wire{Read: w.read, Write: w.write},
	}
}

func asBearer(secret string) string { return "Bearer " + secret }

func TestPyPI(t *testing.T) {
	s := registry("pypi", wire{"POST /_/oidc/mint-token", "token", 200, func(k targettest.Key) map[string]any {
		return map[string]any{"success": true, "token": k.Secret, "expires": k.Expiry.Unix()}
	}})
	s.Fields, s.MayLack = map[string]string{"username": "__token__"}, true
	s.HeaderValue = func(secret string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte("__token__:"+secret))
	}
	targettest.Run(t, s)
}

func TestCratesIO(t *testing.T) {
	w := wire{"POST /api/v1/trusted_publishing/tokens", "jwt", 200, func(k targettest.Key) map[string]any {
		return map[string]any{"token": k.Secret}
	}}
	s := registry("crates-io", w)
	s.Expiry, s.NeedsKey, s.Gone, s.Caps = false, true, targettest.Answer{Status: 204}, target.Caps{Revoke: true}
	s.Wire.Read = func(r *http.Request, body []byte) targettest.Call {
		if r.Method == http.MethodDelete && r.URL.RequestURI() == "/api/v1/trusted_publishing/tokens" && len(body) == 0 {
			return targettest.Call{Op: targettest.Revoke, Key: bearer(r)}
		}
		return w.read(r, body)
	}
	s.Wire.Write = func(op targettest.Op, keys []targettest.Key) (int, any) {
		if op == targettest.Revoke {
			return 204, nil
		}
		return w.write(op, keys)
	}
	targettest.Run(t, s)
}

func TestRubyGems(t *testing.T) {
	answer := func(k targettest.Key) map[string]any {
		return map[string]any{"rubygems_api_key": k.Secret, "name": "ci", "scopes": []string{"push_rubygem"}, "expires_at": k.Expiry.Format(time.RFC3339)}
	}
	t.Run("trusted publisher", func(t *testing.T) {
		s := registry("rubygems", wire{"POST /api/v1/oidc/trusted_publisher/exchange_token", "jwt", 201, answer})
		s.HeaderValue = nil
		targettest.Run(t, s)
	})
	t.Run("role", func(t *testing.T) {
		s := registry("rubygems", wire{"POST /api/v1/oidc/api_key_roles/rg_oidc_akr_x7/assume_role", "jwt", 201, answer})
		s.Params, s.HeaderValue = map[string]any{"role_token": "rg_oidc_akr_x7"}, nil
		targettest.Run(t, s)
	})
}

func TestNPM(t *testing.T) {
	for form, expires := range map[string]func(time.Time) any{
		"RFC 3339": func(at time.Time) any { return at.Format(time.RFC3339) },
		"seconds":  func(at time.Time) any { return at.Unix() },
	} {
		t.Run(form, func(t *testing.T) {
			s := registry("npm", wire{"POST /-/npm/v1/oidc/token/exchange/package/@acme%2Fwidget", "", 201, func(k targettest.Key) map[string]any {
				return map[string]any{"token_type": "oidc", "token": k.Secret, "expires": expires(k.Expiry)}
			}})
			s.Params = map[string]any{"package": "@acme/widget"}
			targettest.Run(t, s)
		})
	}
}

// secondsLeft is how APIs tell an end that is a time from now.
func secondsLeft(at time.Time) int64 { return int64(at.Sub(targettest.Start) / time.Second) }

func TestArtifactory(t *testing.T) {
	const grant, idToken = "urn:ietf:params:oauth:grant-type:token-exchange", "urn:ietf:params:oauth:token-type:id_token"
	s := registry("artifactory", wire{status: 200, answer: func(k targettest.Key) map[string]any {
		return map[string]any{"access_token": k.Secret, "expires_in": secondsLeft(k.Expiry), "token_type": "Bearer", "username": "ci"}
	}})
	s.Config.Audience = "jfrog"
	s.Params = map[string]any{"provider_name": "github", "project_key": "web"}
	s.Fields = map[string]string{"username": "ci"}
	s.Wire.Read = func(r *http.Request, body []byte) targettest.Call {
		var in map[string]string
		if r.Method+r.URL.RequestURI() != "POST/access/api/v1/oidc/token" || json.Unmarshal(body, &in) != nil || in["grant_type"] != grant ||
			in["subject_token_type"] != idToken || in["provider_name"] != "github" || in["project_key"] != "web" || in["identity_mapping_name"] != "" || len(in) != 6 {
			return targettest.Call{}
		}
		return targettest.Call{Op: targettest.Exchange, Token: in["subject_token"]}
	}
	targettest.Run(t, s)
}

func TestArtifactoryAdmin(t *testing.T) {
	const tokens = "/access/api/v1/tokens"
	targettest.Run(t, targettest.Suite{
		Config: target.Config{Driver: "artifactory"}, Params: map[string]any{"username": "ci"},
		Caps: target.Caps{Revoke: true, Find: true, List: true, Check: true}, Credential: []string{"token"}, Accessor: true, Expiry: true, Doubts: 1,
		Denied: []int{400, 401, 403, 404, 422}, Header: "Authorization", HeaderValue: asBearer, Fields: map[string]string{"username": "ci"},
		Wire: targettest.Wire{
			Read: func(r *http.Request, body []byte) targettest.Call {
				c := targettest.Call{Credential: map[string]string{"token": bearer(r)}}
				var in struct {
					Username, Scope, Description string
					ExpiresIn                    int64 `json:"expires_in"`
					Refreshable                  *bool
					ForceRevocable               bool `json:"force_revocable"`
				}
				id, isKey := strings.CutPrefix(r.URL.Path, tokens+"/")
				switch {
				case r.Method == http.MethodPost && r.URL.Path == tokens:
					if json.Unmarshal(body, &in) == nil && in.Username == "ci" && in.Scope == "applied-permissions/user" && in.ForceRevocable && in.Refreshable != nil && !*in.Refreshable {
						c.Op, c.Name, c.NotAfter = targettest.Exchange, in.Description, targettest.Start.Add(time.Duration(in.ExpiresIn)*time.Second)
					}
				case r.Method == http.MethodDelete && isKey:
					c.Op, c.Key = targettest.Revoke, id
				case r.Method == http.MethodGet && r.URL.RequestURI() == tokens+"?description=oidcx-check":
					c.Op = targettest.Check
				case r.Method == http.MethodGet && r.URL.Path == tokens && strings.HasPrefix(r.URL.Query().Get("description"), "oidcx-"):
					c.Op = targettest.Find
				}
				return c
			},
			Write: func(op targettest.Op, keys []targettest.Key) (int, any) {
				list := []map[string]any{{"token_id": "of-someone", "subject": "jfac@1/users/x"}} // without a description
				for _, k := range keys {
					list = append(list, map[string]any{"token_id": k.Accessor, "description": k.Name})
				}
				if op == targettest.Exchange {
					return 200, map[string]any{"token_id": keys[0].Accessor, "access_token": keys[0].Secret, "expires_in": secondsLeft(keys[0].Expiry), "scope": "x"}
				}
				return 200, map[string]any{"tokens": list}
			},
		},
	})
}

func TestGitea(t *testing.T) {
	const tokens = "/api/v1/users/ci/tokens"
	targettest.Run(t, targettest.Suite{
		Config: target.Config{Driver: "gitea"}, Params: map[string]any{"username": "ci", "scopes": "read:repository,write:issue"},
		Caps: target.Caps{Revoke: true, Find: true, List: true, Check: true}, Credential: []string{"username", "password"}, Accessor: true, ByName: true, Blank: true, Doubts: 1,
		Denied: []int{400, 401, 403, 404, 422}, Header: "Authorization", HeaderValue: func(secret string) string { return "token " + secret },
		Fields: map[string]string{"username": "ci"},
		Wire: targettest.Wire{
			Read: func(r *http.Request, body []byte) targettest.Call {
				var c targettest.Call
				if name, password, ok := r.BasicAuth(); ok {
					c.Credential = map[string]string{"username": name, "password": password}
				}
				var in struct {
					Name   string
					Scopes []string
				}
				name, isKey := strings.CutPrefix(r.URL.Path, tokens+"/")
				switch sudo := r.Header.Get("Sudo"); {
				case r.Method == http.MethodGet && r.URL.Path == "/api/v1/user" && sudo == "":
					c.Op = targettest.Check
				case r.Method == http.MethodGet && r.URL.Path == "/api/v1/users/ci" && sudo == "": // of a token that is gone
					c.Op = targettest.Check
				case sudo != "ci": // the credential is another user's
				case r.Method == http.MethodPost && r.URL.Path == tokens:
					if json.Unmarshal(body, &in) == nil && strings.Join(in.Scopes, " ") == "read:repository write:issue" {
						c.Op, c.Name = targettest.Exchange, in.Name
					}
				case r.Method == http.MethodDelete && isKey:
					c.Op, c.Key = targettest.Revoke, name
				case r.Method == http.MethodGet && r.URL.Path == tokens && r.URL.Query().Get("limit") == "50":
					c.Op = targettest.List
					c.Page, _ = strconv.Atoi(r.URL.Query().Get("page"))
				}
				return c
			},
			Page: func(keys []targettest.Key, _ int) targettest.Answer {
				list := []map[string]any{}
				for _, k := range keys {
					list = append(list, map[string]any{"id": k.Accessor, "name": k.Name, "sha1": "", "scopes": nil})
				}
				return targettest.Answer{Status: 200, Body: list}
			},
			Write: func(op targettest.Op, keys []targettest.Key) (int, any) {
				switch op {
				case targettest.Exchange:
					return 201, map[string]any{"id": keys[0].Accessor, "name": keys[0].Name, "sha1": keys[0].Secret, "token_last_eight": "12345678"}
				case targettest.Revoke:
					return 204, nil
				}
				return 200, map[string]any{"login": "vault"}
			},
		},
	})
}

func openFault(t *testing.T, c target.Config) string {
	t.Helper()
	_, err := target.Open(c)
	return fieldError(t, err)
}

// What a target needs to be told, and what it is without.
func TestBuiltInProfiles(t *testing.T) {
	type facts struct {
		URL, Source, Audience string
		Lifetime              time.Duration
	}
	for driver, want := range map[string]facts{
		"nuget":             {"https://www.nuget.org", target.SourceRequest, "https://www.nuget.org", time.Hour},
		"pypi":              {"https://pypi.org", target.SourceRequest, "pypi", 15 * time.Minute},
		"crates-io":         {"https://crates.io", target.SourceRequest, "crates.io", 30 * time.Minute},
		"rubygems":          {"https://rubygems.org", target.SourceRequest, "rubygems.org", 24 * time.Hour},
		"npm":               {"https://registry.npmjs.org", target.SourceRequest, "npm:registry.npmjs.org", time.Hour},
		"artifactory":       {"", target.SourceRequest, "jfrog", 24 * time.Hour},
		"artifactory, with": {"", target.SourceNone, "", 0}, // a credential
		"gitea":             {"", target.SourceNone, "", 0},
	} {
		name, _, _ := strings.Cut(driver, ",")
		c := target.Config{Driver: name, Credential: map[string]string{}}
		for _, field := range map[string][]string{"artifactory, with": {"token"}, "gitea": {"username", "password"}}[driver] {
			c.Credential[field] = "x"
		}
		if want.URL == "" {
			if got := openFault(t, c); got != "url: is required: the driver has no default" {
				t.Errorf("%s without url: %s", driver, got)
			}
			c.URL, want.URL = "https://on.example/prem", "https://on.example/prem"
		}
		if driver == "artifactory" {
			if got := openFault(t, c); got != "audience: is required with subject_token_source request" {
				t.Errorf("%s without audience: %s", driver, got)
			}
			c.Audience = want.Audience
		}
		opened, err := target.Open(c)
		if err != nil {
			t.Errorf("%s: %v", driver, err)
			continue
		}
		if diff := cmp.Diff(want, facts{opened.URL(), opened.Source(), opened.Audience(), opened.Lifetime()}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", driver, diff)
		}
	}
}
