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

// A target is one file and one call of the suite: this is all that tests bootstrap/targets/grafana.yaml.
func TestGrafana(t *testing.T) {
	profile, err := os.ReadFile("../../bootstrap/targets/grafana.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const tokens = "/api/serviceaccounts/7/tokens"
	targettest.Run(t, targettest.Suite{
		Config: target.Config{Driver: "http", Profile: string(profile)}, Params: map[string]any{"service_account": 7},
		Caps: target.Caps{Revoke: true, Find: true, List: true, Check: true}, Doubts: 1, Credential: []string{"token"}, Accessor: true, Asked: true,
		Denied: []int{400, 401, 403, 404}, Header: "Authorization", HeaderValue: asBearer,
		Wire: targettest.Wire{
			Read: func(r *http.Request, body []byte) targettest.Call {
				c := targettest.Call{Credential: map[string]string{"token": bearer(r)}}
				var in struct {
					Name          string
					SecondsToLive int64
				}
				id, isKey := strings.CutPrefix(r.URL.RequestURI(), tokens+"/")
				switch {
				case r.Method == http.MethodPost && r.URL.RequestURI() == tokens && json.Unmarshal(body, &in) == nil:
					c.Op, c.Name, c.NotAfter = targettest.Exchange, in.Name, targettest.Start.Add(time.Duration(in.SecondsToLive)*time.Second)
				case r.Method == http.MethodDelete && isKey:
					c.Op, c.Key = targettest.Revoke, id
				case r.Method == http.MethodGet && r.URL.RequestURI() == tokens:
					c.Op = targettest.Find
				case r.Method == http.MethodGet && r.URL.RequestURI() == "/api/serviceaccounts/search?perpage=1":
					c.Op = targettest.Check
				}
				return c
			},
			Write: func(op targettest.Op, keys []targettest.Key) (int, any) {
				switch op {
				case targettest.Exchange:
					return 200, map[string]any{"id": keys[0].Accessor, "name": keys[0].Name, "key": keys[0].Secret}
				case targettest.Find:
					list := []map[string]any{}
					for _, k := range keys {
						list = append(list, map[string]any{"id": k.Accessor, "name": k.Name, "hasExpired": false})
					}
					return 200, list
				}
				return 200, map[string]any{"message": "API key deleted"}
			},
		},
	})
}
