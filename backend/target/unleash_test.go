// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target/targettest"
)

// bootstrap/targets/unleash.yaml against what Unleash answers; the acceptance tests have Unleash itself.
func TestUnleash(t *testing.T) {
	profile, err := os.ReadFile("../../bootstrap/targets/unleash.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const tokens = "/api/admin/api-tokens"
	targettest.Run(t, targettest.Suite{
		Config: target.Config{Driver: "http", Profile: string(profile)}, Params: map[string]any{"environment": "production", "projects": "default"},
		Caps: target.Caps{Revoke: true, Check: true}, Credential: []string{"token"}, Expiry: true, NeedsKey: true, KeyInURL: true,
		Gone: targettest.Answer{Status: http.StatusOK}, Denied: []int{400, 401, 403, 404}, Header: "Authorization",
		Wire: targettest.Wire{
			Read: func(r *http.Request, body []byte) targettest.Call {
				c := targettest.Call{Credential: map[string]string{"token": r.Header.Get("Authorization")}}
				var in struct {
					TokenName, Type, Environment string
					Projects                     []string
					ExpiresAt                    time.Time
				}
				key, isKey := strings.CutPrefix(r.URL.RequestURI(), tokens+"/")
				switch {
				case r.Method == http.MethodPost && r.URL.RequestURI() == tokens && json.Unmarshal(body, &in) == nil:
					if in.Type == "client" && in.Environment == "production" && len(in.Projects) == 1 {
						c.Op, c.Name, c.NotAfter = targettest.Exchange, in.TokenName, in.ExpiresAt
					}
				case r.Method == http.MethodDelete && isKey:
					c.Op, c.Key = targettest.Revoke, key
				case r.Method == http.MethodGet && r.URL.RequestURI() == "/api/admin/projects":
					c.Op = targettest.Check
				}
				return c
			},
			Write: func(op targettest.Op, keys []targettest.Key) (int, any) {
				switch op {
				case targettest.Exchange:
					return 201, map[string]any{"tokenName": keys[0].Name, "secret": keys[0].Secret, "expiresAt": keys[0].Expiry.Format("2006-01-02T15:04:05.000Z07:00")}
				case targettest.Revoke:
					return 200, nil
				}
				return 200, map[string]any{"projects": []any{}}
			},
		},
	})
}
