// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target/targettest"
)

// gitlabKind is one kind of token: the parameters, and the path where its tokens are made. listed and ended are where they
// are listed and ended, if that is elsewhere.
type gitlabKind struct {
	params              map[string]any
	made, listed, ended string
	rotated             string // where they are rotated, if that is elsewhere than ended
	gone                string
}

var gitlabKinds = map[string]gitlabKind{
	"project": {
		params: map[string]any{"kind": "project", "id": "acme/sub.group/widget", "scopes": "read_api,write_repository", "access_level": "developer"},
		made:   "/api/v4/projects/acme%2Fsub%2Egroup%2Fwidget/access_tokens",
		gone:   "404 project Access Token Not Found",
	},
	"project in older versions": {
		params: map[string]any{"kind": "project", "id": "7", "scopes": "read_api,write_repository", "access_level": "developer"},
		made:   "/api/v4/projects/7/access_tokens",
		gone:   "404 Could not find project access token with token_id: 1 Not Found",
	},
	"group": {
		params: map[string]any{"kind": "group", "id": "acme/sub", "scopes": "read_api,write_repository", "access_level": "developer"},
		made:   "/api/v4/groups/acme%2Fsub/access_tokens",
		gone:   "404 group Access Token Not Found",
	},
	"personal": {
		params: map[string]any{"kind": "personal", "id": "42", "scopes": "read_api,write_repository"},
		made:   "/api/v4/users/42/personal_access_tokens",
		listed: "/api/v4/personal_access_tokens",
		ended:  "/api/v4/personal_access_tokens",
		gone:   "404 Not Found",
	},
	"impersonation": {
		params:  map[string]any{"kind": "impersonation", "id": "42", "scopes": "read_api,write_repository"},
		made:    "/api/v4/users/42/impersonation_tokens",
		rotated: "/api/v4/personal_access_tokens",
		gone:    "404 Impersonation Token Not Found",
	},
	"service account": {
		params: map[string]any{"kind": "service_account", "id": "acme", "user": "42", "scopes": "read_api,write_repository"},
		made:   "/api/v4/groups/acme/service_accounts/42/personal_access_tokens",
		gone:   "404 Personal Access Token Not Found",
	},
}

func TestGitLab(t *testing.T) {
	for name, k := range gitlabKinds {
		t.Run(name, func(t *testing.T) {
			targettest.Run(t, targettest.Suite{
				Config:     target.Config{Driver: "gitlab"},
				Params:     k.params,
				Caps:       target.Caps{Revoke: true, Find: true, List: true, Check: true, Rotate: true, Identify: true, RotateRoot: true},
				Credential: []string{"token"}, Rotated: "token",
				Accessor: true, Numeric: true, Expiry: true,
				Denied: []int{400, 401, 403, 404, 405, 422},
				Header: "PRIVATE-TOKEN",
				End: func(asked time.Time) time.Time {
					return time.Date(asked.Year(), asked.Month(), asked.Day()+1, 0, 0, 0, 0, time.UTC)
				},
				Gone: targettest.Answer{Status: 404, Body: map[string]any{"message": k.gone}},
				Wire: targettest.Wire{Read: k.read, Write: k.write, Page: k.page},
			})
		})
	}
}

func (k gitlabKind) read(r *http.Request, body []byte) targettest.Call {
	c := targettest.Call{Credential: map[string]string{"token": r.Header.Get("PRIVATE-TOKEN")}}
	if r.Header.Get("Authorization") != "" || strings.Contains(r.RequestURI, "credential") {
		return c
	}
	var in struct {
		Name        string
		Scopes      []string
		AccessLevel int    `json:"access_level"`
		ExpiresAt   string `json:"expires_at"`
	}
	path, _, _ := strings.Cut(r.RequestURI, "?")
	listed, ended := k.made, k.made
	if k.listed != "" {
		listed, ended = k.listed, k.ended
	}
	id, isToken := strings.CutPrefix(path, ended+"/")
	rotated, isRotated := strings.CutSuffix(id, "/rotate")
	if k.rotated != "" {
		rotated, isRotated = strings.CutSuffix(strings.TrimPrefix(path, k.rotated+"/"), "/rotate")
	}
	if strings.HasSuffix(path, "/rotate") {
		if json.Unmarshal(body, &in) != nil || r.Header.Get("Content-Type") != "application/json" {
			return c
		}
		c.NotAfter, _ = time.Parse(time.DateOnly, in.ExpiresAt)
	}
	switch {
	case r.Method == http.MethodPost && path == "/api/v4/personal_access_tokens/self/rotate":
		c.Op = targettest.RotateCredential
	case r.Method == http.MethodPost && isRotated:
		c.Op, c.Key = targettest.Rotate, rotated
	case r.Method == http.MethodPost && path == k.made:
		wantLevel := 0
		if k.params["access_level"] != nil {
			wantLevel = 30
		}
		if json.Unmarshal(body, &in) != nil || r.Header.Get("Content-Type") != "application/json" ||
			strings.Join(in.Scopes, " ") != "read_api write_repository" || in.AccessLevel != wantLevel {
			return c
		}
		day, _, _ := strings.Cut(in.ExpiresAt, "T") // GitLab takes the date of an instant
		c.NotAfter, _ = time.Parse(time.DateOnly, day)
		c.Op, c.Name = targettest.Exchange, in.Name
	case r.Method == http.MethodGet && path == listed && r.URL.Query().Get("state") == "active" && r.URL.Query().Get("per_page") == "100":
		c.Op = targettest.Find
		c.Page, _ = strconv.Atoi(r.URL.Query().Get("page"))
	case r.Method == http.MethodGet && path == "/api/v4/personal_access_tokens/self" && strings.HasPrefix(c.Credential["token"], "key-"):
		c.Op, c.Key, c.Credential = targettest.Identify, c.Credential["token"], nil
	case r.Method == http.MethodGet && path == "/api/v4/personal_access_tokens/self":
		c.Op = targettest.Check
	case r.Method == http.MethodDelete && isToken:
		c.Op, c.Key = targettest.Revoke, id
	}
	return c
}

func (k gitlabKind) write(op targettest.Op, keys []targettest.Key) (int, any) {
	list := []map[string]any{}
	for _, key := range keys {
		if key.Name == "" {
			key.Name = "engine"
		}
		id, _ := strconv.Atoi(key.Accessor)
		list = append(list, map[string]any{
			"id": id, "name": key.Name, "revoked": false, "active": true, "user_id": 42, "last_used_at": nil, "description": nil,
			"scopes": []string{"read_api", "write_repository"}, "created_at": "2023-08-01T15:00:00.000Z", "expires_at": key.Expiry.Format(time.DateOnly),
		})
	}
	switch op {
	case targettest.Exchange:
		list[0]["token"] = keys[0].Secret
		return 201, list[0]
	case targettest.Rotate, targettest.RotateCredential:
		list[0]["token"] = keys[0].Secret
		return 200, list[0]
	case targettest.Identify:
		return 200, list[0]
	case targettest.Find:
		return 200, list
	case targettest.Revoke:
		return 204, nil
	}
	return 200, map[string]any{"id": 1, "name": "engine", "active": true, "revoked": false, "scopes": []string{"api"}, "expires_at": "2031-08-15"}
}

func (k gitlabKind) page(keys []targettest.Key, next int) targettest.Answer {
	status, body := k.write(targettest.Find, keys)
	h := http.Header{"X-Next-Page": {""}}
	if next > 0 {
		h.Set("X-Next-Page", strconv.Itoa(next))
	}
	return targettest.Answer{Status: status, Header: h, Body: body}
}
