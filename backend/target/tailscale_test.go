// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target/targettest"
)

// This is all that tests bootstrap/targets/tailscale.yaml.
func TestTailscale(t *testing.T) {
	profile, err := os.ReadFile("../../bootstrap/targets/tailscale.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const keysPath = "/tailnet/-/keys"
	targettest.Run(t, targettest.Suite{
		Config: target.Config{Driver: "http", Profile: string(profile)}, Params: map[string]any{"tags": "tag:ci"},
		Caps: target.Caps{Revoke: true, Check: true}, Credential: []string{"token"}, Accessor: true, Expiry: true, Doubts: 1, Denied: []int{400, 401, 403, 404},
		Wire: targettest.Wire{
			Read: func(r *http.Request, body []byte) targettest.Call {
				c := targettest.Call{Credential: map[string]string{"token": bearer(r)}}
				var in struct {
					Description   string
					ExpirySeconds int64
					Capabilities  struct {
						Devices struct {
							Create struct {
								Reusable, Ephemeral, Preauthorized bool
								Tags                               []string
							}
						}
					}
				}
				id, isKey := strings.CutPrefix(r.URL.RequestURI(), keysPath+"/")
				switch {
				case r.Method == http.MethodPost && r.URL.RequestURI() == keysPath && json.Unmarshal(body, &in) == nil:
					if create := in.Capabilities.Devices.Create; create.Reusable || !create.Ephemeral || !create.Preauthorized || !slices.Equal(create.Tags, []string{"tag:ci"}) {
						return c
					}
					c.Op, c.Name, c.NotAfter = targettest.Exchange, in.Description, targettest.Start.Add(time.Duration(in.ExpirySeconds)*time.Second)
				case r.Method == http.MethodDelete && isKey:
					c.Op, c.Key = targettest.Revoke, id
				case r.Method == http.MethodGet && r.URL.RequestURI() == keysPath:
					c.Op = targettest.Check
				}
				return c
			},
			Write: func(op targettest.Op, keys []targettest.Key) (int, any) {
				if op != targettest.Exchange {
					return 200, nil
				}
				return 200, map[string]any{"id": keys[0].Accessor, "key": keys[0].Secret, "description": keys[0].Name, "created": targettest.Start, "expires": keys[0].Expiry}
			},
		},
	})
}
