// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"encoding/json"
	"net/http"
	"os"
	"testing"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target/targettest"
)

// bootstrap/targets/pocketbase.yaml against what PocketBase answers; the acceptance tests have PocketBase itself.
func TestPocketBase(t *testing.T) {
	profile, err := os.ReadFile("../../bootstrap/targets/pocketbase.yaml")
	if err != nil {
		t.Fatal(err)
	}
	targettest.Run(t, targettest.Suite{
		Config: target.Config{Driver: "http", Profile: string(profile)}, Params: map[string]any{"user": "u1u2u3u4u5u6u7u"},
		Caps: target.Caps{Check: true}, Credential: []string{"token"},
		Denied: []int{400, 401, 403, 404}, Header: "Authorization", HeaderValue: asBearer,
		Wire: targettest.Wire{
			Read: func(r *http.Request, body []byte) targettest.Call {
				c := targettest.Call{Credential: map[string]string{"token": bearer(r)}}
				var in struct{ Duration int }
				switch r.Method + " " + r.URL.RequestURI() {
				case "POST /api/collections/users/impersonate/u1u2u3u4u5u6u7u":
					if json.Unmarshal(body, &in) == nil && in.Duration == 3600 { // the suite asks for leases of an hour
						c.Op = targettest.Exchange
					}
				case "GET /api/settings":
					c.Op = targettest.Check
				}
				return c
			},
			Write: func(op targettest.Op, keys []targettest.Key) (int, any) {
				if op == targettest.Exchange {
					return 200, map[string]any{"token": keys[0].Secret, "record": map[string]any{"id": "u1u2u3u4u5u6u7u"}}
				}
				return 200, map[string]any{"meta": map[string]any{"appName": "x"}}
			},
		},
	})
}
