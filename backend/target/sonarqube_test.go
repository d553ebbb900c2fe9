// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"net/http"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target/targettest"
)

// This is all that tests bootstrap/targets/sonarqube.yaml: forms in place of JSON, names in place of ids, ends that are days.
func TestSonarQube(t *testing.T) {
	profile, err := os.ReadFile("../../bootstrap/targets/sonarqube.yaml")
	if err != nil {
		t.Fatal(err)
	}
	zone := time.FixedZone("", 2*60*60) // the server's
	targettest.Run(t, targettest.Suite{
		Config: target.Config{Driver: "http", Profile: string(profile)}, Params: map[string]any{"login": "ci@acme"},
		Caps: target.Caps{Revoke: true, Find: true, List: true, Check: true}, Credential: []string{"token"}, Accessor: true, Named: true, ByName: true, Expiry: true,
		End: func(asked time.Time) time.Time {
			day := asked.Add(48 * time.Hour)
			return time.Date(day.Year(), day.Month(), day.Day(), 0, 0, 0, 0, zone).UTC()
		},
		Gone:   targettest.Answer{Status: http.StatusNoContent},
		Denied: []int{400, 401, 403, 404}, Header: "Authorization", HeaderValue: asBearer, Fields: map[string]string{"login": "ci@acme"},
		Wire: targettest.Wire{
			Read: func(r *http.Request, body []byte) targettest.Call {
				var c targettest.Call
				if token, password, ok := r.BasicAuth(); ok && password == "" {
					c.Credential = map[string]string{"token": token}
				}
				form, err := url.ParseQuery(string(body))
				isForm := err == nil && r.Header.Get("Content-Type") == "application/x-www-form-urlencoded" && form.Get("login") == "ci@acme"
				switch request := r.Method + " " + r.URL.RequestURI(); {
				case request == "POST /api/user_tokens/generate" && isForm:
					c.Op, c.Name = targettest.Exchange, form.Get("name")
					c.NotAfter, _ = time.ParseInLocation(time.DateOnly, form.Get("expirationDate"), zone)
				case request == "POST /api/user_tokens/revoke" && isForm:
					c.Op, c.Key = targettest.Revoke, form.Get("name")
				case request == "GET /api/user_tokens/search?login=ci%40acme":
					c.Op = targettest.List
				case request == "GET /api/user_tokens/search" && len(body) == 0:
					c.Op = targettest.Check
				}
				return c
			},
			Write: func(op targettest.Op, keys []targettest.Key) (int, any) {
				const withoutColon = "2006-01-02T15:04:05-0700"
				switch op {
				case targettest.Exchange:
					return 200, map[string]any{"login": "ci@acme", "name": keys[0].Name, "token": keys[0].Secret, "type": "USER_TOKEN",
						"createdAt": "2031-08-01T10:00:00+0200", "expirationDate": keys[0].Expiry.In(zone).Format(withoutColon)}
				case targettest.Revoke:
					return 204, nil
				case targettest.List:
					list := []map[string]any{}
					for _, k := range keys {
						list = append(list, map[string]any{"name": k.Name, "type": "USER_TOKEN", "isExpired": false})
					}
					return 200, map[string]any{"login": "ci@acme", "userTokens": list}
				}
				return 200, map[string]any{"login": "engine", "userTokens": []any{}}
			},
		},
	})
}
