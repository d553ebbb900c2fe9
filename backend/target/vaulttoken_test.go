// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"encoding/json"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target/targettest"
)

// bootstrap/targets/vault-token.yaml against what Vault's token API answers; the acceptance tests have the API itself.
func TestVaultToken(t *testing.T) {
	profile, err := os.ReadFile("../../bootstrap/targets/vault-token.yaml")
	if err != nil {
		t.Fatal(err)
	}
	targettest.Run(t, targettest.Suite{
		Config: target.Config{Driver: "http", Profile: string(profile)}, Params: map[string]any{"role": "ci", "policies": "read"},
		Caps: target.Caps{Revoke: true, Renew: true, Check: true}, Credential: []string{"token"}, Accessor: true, Expiry: true,
		Gone: targettest.Answer{Status: http.StatusOK}, Denied: []int{400, 401, 403, 404, 405}, Header: "X-Vault-Token",
		Wire: targettest.Wire{
			Read: func(r *http.Request, body []byte) targettest.Call {
				c := targettest.Call{Credential: map[string]string{"token": r.Header.Get("X-Vault-Token")}}
				var in struct {
					Type, Accessor string
					DisplayName    string `json:"display_name"`
					Policies       []string
					TTL, Increment time.Duration
					ExplicitMaxTTL time.Duration `json:"explicit_max_ttl"`
					Meta           map[string]string
				}
				if len(body) > 0 && json.Unmarshal(body, &in) != nil {
					return c
				}
				switch r.Method + " " + r.URL.RequestURI() {
				case "POST /v1/auth/token/create/ci":
					if in.Type == "service" && in.TTL == in.ExplicitMaxTTL && len(in.Policies) == 1 && in.Meta["name"] == in.DisplayName {
						c.Op, c.Name, c.NotAfter = targettest.Exchange, in.DisplayName, targettest.Start.Add(in.TTL*time.Second)
					}
				case "POST /v1/auth/token/renew-accessor":
					c.Op, c.Key, c.NotAfter = targettest.Renew, in.Accessor, targettest.Start.Add(in.Increment*time.Second)
				case "POST /v1/auth/token/revoke-accessor":
					c.Op, c.Key = targettest.Revoke, in.Accessor
				case "GET /v1/auth/token/lookup-self":
					c.Op = targettest.Check
				}
				return c
			},
			Write: func(op targettest.Op, keys []targettest.Key) (int, any) {
				switch op {
				case targettest.Exchange, targettest.Renew:
					left := int64(keys[0].Expiry.Sub(targettest.Start) / time.Second)
					return 200, map[string]any{"auth": map[string]any{"client_token": keys[0].Secret, "accessor": keys[0].Accessor, "lease_duration": left}}
				case targettest.Revoke:
					return 204, nil
				}
				return 200, map[string]any{"data": map[string]any{"accessor": "a"}}
			},
		},
	})
}
