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

// bootstrap/targets/verdaccio.yaml against what Verdaccio answers; the acceptance tests have Verdaccio itself.
func TestVerdaccio(t *testing.T) {
	profile, err := os.ReadFile("../../bootstrap/targets/verdaccio.yaml")
	if err != nil {
		t.Fatal(err)
	}
	targettest.Run(t, targettest.Suite{
		Config: target.Config{Driver: "http", Profile: string(profile)},
		Caps:   target.Caps{Check: true}, Credential: []string{"username", "password"}, Accessor: true,
		Denied: []int{400, 401, 403, 404, 422}, Header: "Authorization", HeaderValue: asBearer,
		Wire: targettest.Wire{
			Read: func(r *http.Request, body []byte) targettest.Call {
				user, password, _ := r.BasicAuth()
				c := targettest.Call{Credential: map[string]string{"username": user, "password": password}}
				var in struct {
					Password string
					Readonly bool
					CIDR     []string `json:"cidr_whitelist"`
				}
				switch r.Method + " " + r.URL.RequestURI() {
				case "POST /-/npm/v1/tokens":
					if json.Unmarshal(body, &in) == nil && in.Password == password && in.Readonly && in.CIDR != nil {
						c.Op = targettest.Exchange
					}
				case "GET /-/npm/v1/tokens":
					c.Op = targettest.Check
				}
				return c
			},
			Write: func(op targettest.Op, keys []targettest.Key) (int, any) {
				if op == targettest.Exchange {
					return 200, map[string]any{"token": keys[0].Secret, "user": "ci", "key": keys[0].Accessor, "cidr": []string{}, "readonly": true}
				}
				return 200, map[string]any{"objects": []any{}, "urls": map[string]any{"next": ""}}
			},
		},
	})
}
