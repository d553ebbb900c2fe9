// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target/targettest"
)

// keyHeader is the key of "Authorization: Key …".
func keyHeader(r *http.Request) string {
	key, found := strings.CutPrefix(r.Header.Get("Authorization"), "Key ")
	if !found {
		return ""
	}
	return key
}

func is(r *http.Request, method, uri string) bool {
	return r.Method == method && r.URL.RequestURI() == uri
}

// connectUser answers whose key a request presents: nobody's, a service principal's, or alice's.
func connectUser(r *http.Request, living []targettest.Key, service bool) *targettest.Answer {
	switch {
	case !slices.ContainsFunc(living, func(k targettest.Key) bool { return k.Secret == keyHeader(r) }):
		return &targettest.Answer{Status: 401, Body: map[string]any{"code": 30, "error": "Invalid login."}}
	case service:
		return &targettest.Answer{Status: 403, Body: map[string]any{"code": 22, "error": "You don't have permission to perform this operation."}}
	}
	return &targettest.Answer{Status: 200, Body: map[string]any{"guid": "g-1", "username": "alice"}}
}

// exchanged says whether a request is a token exchange with exactly these members beside the token, which it returns.
func exchanged(r *http.Request, body []byte, want url.Values) (string, bool) {
	form, err := url.ParseQuery(string(body))
	token := form.Get("subject_token")
	form.Del("subject_token")
	if err != nil || r.Method != http.MethodPost || r.Header.Get("Authorization") != "" || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" || form.Encode() != want.Encode() {
		return "", false
	}
	return token, true
}

func traded(_ targettest.Op, keys []targettest.Key) (int, any) {
	if len(keys) == 0 {
		return 200, map[string]any{"version": "2026.07.0"}
	}
	return 200, map[string]any{"access_token": keys[0].Secret, "token_type": "Key", "issued_token_type": "urn:posit:connect:api-key",
		"expires_in": int(keys[0].Expiry.Sub(targettest.Start) / time.Second)}
}

func TestConnectOAuth(t *testing.T) {
	const uri = "/oauth/v1/token?tenant=a%2Fb"
	targettest.Run(t, targettest.Suite{
		Config: target.Config{Driver: "connect"},
		Caps:   target.Caps{Check: true},
		Token:  true, Expiry: true, MayLack: true, Optional: []string{"api_key"},
		Denied: []int{400, 401, 403, 404, 405, 415, 422}, Quotes: true,
		Header: "Authorization", HeaderValue: func(key string) string { return "Key " + key },
		Wire: targettest.Wire{
			Read: func(r *http.Request, body []byte) targettest.Call {
				if is(r, "GET", "/__api__/server_settings") {
					return targettest.Call{Op: targettest.Check}
				}
				token, ok := exchanged(r, body, url.Values{
					"grant_type":           {"urn:ietf:params:oauth:grant-type:token-exchange"},
					"subject_token_type":   {"urn:ietf:params:oauth:token-type:id_token"},
					"requested_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
				})
				if !ok || r.URL.RequestURI() != uri {
					return targettest.Call{}
				}
				return targettest.Call{Op: targettest.Exchange, Token: token}
			},
			Write: traded,
			Aside: func(r *http.Request, _ []byte, living []targettest.Key) *targettest.Answer {
				switch {
				case is(r, "GET", "/.well-known/oauth-authorization-server"):
					return &targettest.Answer{Status: 200, Body: map[string]any{"token_endpoint": "http://" + r.Host + uri}}
				case is(r, "GET", "/__api__/v1/user"):
					return connectUser(r, living, true)
				}
				return nil
			},
		},
	})
}

func TestConnectFederation(t *testing.T) {
	targettest.Run(t, targettest.Suite{
		Config: target.Config{Driver: "connect"},
		Params: map[string]any{"flow": "federation", "integration": "0b5a-1"},
		Caps:   target.Caps{Check: true},
		Token:  true, Expiry: true, MayLack: true, Optional: []string{"api_key"},
		Denied: []int{400, 401, 403, 404, 405, 415, 422}, Quotes: true,
		Header: "Authorization", HeaderValue: func(key string) string { return "Key " + key }, Fields: map[string]string{"username": "alice"},
		Wire: targettest.Wire{
			Read: func(r *http.Request, body []byte) targettest.Call {
				if is(r, "GET", "/__api__/server_settings") {
					return targettest.Call{Op: targettest.Check}
				}
				token, ok := exchanged(r, body, url.Values{
					"grant_type":           {"urn:ietf:params:oauth:grant-type:token-exchange"},
					"subject_token_type":   {"urn:ietf:params:oauth:token-type:id_token"},
					"requested_token_type": {"urn:posit:connect:api-key"},
					"audience":             {"0b5a-1"},
				})
				if !ok || r.URL.RequestURI() != "/__api__/v1/oauth/integrations/credentials" {
					return targettest.Call{}
				}
				return targettest.Call{Op: targettest.Exchange, Token: token}
			},
			Write: traded,
			Aside: func(r *http.Request, _ []byte, living []targettest.Key) *targettest.Answer {
				if is(r, "GET", "/__api__/v1/user") {
					return connectUser(r, living, false)
				}
				return nil
			},
		},
	})
}

func TestConnectUserKey(t *testing.T) {
	const keys = "/__api__/v1/users/5e-2/keys"
	targettest.Run(t, targettest.Suite{
		Config:     target.Config{Driver: "connect"},
		Params:     map[string]any{"user": "5e-2", "user_role": "viewer"},
		Caps:       target.Caps{Revoke: true, Find: true, List: true, Check: true},
		Credential: []string{"api_key"},
		Accessor:   true, Expiry: true, MayLack: true, Doubts: 1,
		Denied: []int{400, 401, 403, 404, 422},
		Header: "Authorization", HeaderValue: func(key string) string { return "Key " + key },
		Wire: targettest.Wire{
			Read: func(r *http.Request, body []byte) targettest.Call {
				c := targettest.Call{Credential: map[string]string{"api_key": keyHeader(r)}}
				id, isKey := strings.CutPrefix(r.URL.Path, keys+"/")
				switch {
				case is(r, "POST", keys):
					var in struct {
						Name      string    `json:"name"`
						UserRole  string    `json:"user_role"`
						ExpiresAt time.Time `json:"expires_at"`
					}
					if json.Unmarshal(body, &in) == nil && in.UserRole == "viewer" && !in.ExpiresAt.IsZero() && r.Header.Get("Content-Type") == "application/json" {
						c.Op, c.Name, c.NotAfter = targettest.Exchange, in.Name, in.ExpiresAt
					}
				case is(r, "GET", keys):
					c.Op = targettest.Find
				case r.Method == http.MethodDelete && isKey:
					c.Op, c.Key = targettest.Revoke, id
				case is(r, "GET", "/__api__/v1/user"):
					c.Op = targettest.Check
				}
				return c
			},
			Write: func(op targettest.Op, keys []targettest.Key) (int, any) {
				list := []map[string]any{}
				for _, k := range keys {
					list = append(list, map[string]any{"id": k.Accessor, "name": k.Name, "user_role": "viewer", "key": "cut off"})
				}
				switch op {
				case targettest.Exchange:
					return 200, map[string]any{"id": keys[0].Accessor, "name": keys[0].Name, "key": keys[0].Secret, "expires_at": keys[0].Expiry}
				case targettest.Find:
					return 200, list
				case targettest.Revoke:
					return 204, nil
				}
				return 200, map[string]any{"guid": "5e-2", "username": "engine"}
			},
		},
	})
}
