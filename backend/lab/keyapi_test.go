// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const adminHeader = "Bearer admin-token"

// keyAPI is a KeyAPI under test.
type keyAPI struct {
	*KeyAPI
	url   string
	clock *testClock
}

func newKeyAPI(t *testing.T) *keyAPI {
	t.Helper()
	clock := newClock()
	api := NewKeyAPI(KeyAPIOptions{AdminToken: "admin-token", Now: clock.Now})
	return &keyAPI{api, serve(t, api), clock}
}

func (a *keyAPI) do(t *testing.T, method, path, body string) reply {
	t.Helper()
	return do(t, method, a.url+path, body, "Authorization", adminHeader, "Content-Type", "application/json")
}

// create asks for a key that lives an hour.
func (a *keyAPI) create(t *testing.T, name string) reply {
	t.Helper()
	expires := a.clock.Now().Add(time.Hour).Format(time.RFC3339)
	return a.do(t, "POST", "/v1/projects/p1/keys", `{"name":"`+name+`","scopes":["read"],"expires_at":"`+expires+`"}`)
}

// mustCreate returns id and secret of a new key.
func (a *keyAPI) mustCreate(t *testing.T, name string) (id, secret string) {
	t.Helper()
	r := a.create(t, name)
	if r.status != http.StatusCreated {
		t.Fatalf("create: %d %s; want 201", r.status, r.body)
	}
	object := r.object(t)
	return object["id"].(string), object["secret"].(string)
}

func (a *keyAPI) use(t *testing.T, secret string) int {
	t.Helper()
	return do(t, "GET", a.url+"/v1/data", "", "X-Acme-Key", secret).status
}

func TestKeyAPILifeOfAKey(t *testing.T) {
	t.Parallel()
	api := newKeyAPI(t)
	r := api.create(t, "n1")
	made := r.object(t)
	id, secret := made["id"].(string), made["secret"].(string)
	want := map[string]any{"id": id, "name": "n1", "secret": secret, "expires_at": "2026-03-05T14:30:45Z"}
	if diff := cmp.Diff(want, made); r.status != http.StatusCreated || diff != "" {
		t.Fatalf("create: status %d, -want +got:\n%s", r.status, diff)
	}
	live := []Key{{ID: id, Project: "p1", Name: "n1", Scopes: []string{"read"}, ExpiresAt: start.Add(time.Hour)}}
	if diff := cmp.Diff(live, api.Live()); diff != "" {
		t.Errorf("live, -want +got:\n%s", diff)
	}
	if got := api.use(t, secret); got != http.StatusOK || !api.Valid(secret) {
		t.Errorf("use: %d, valid %v; want 200, true", got, api.Valid(secret))
	}
	inventory := do(t, "GET", api.url+"/lab/keys", "")
	if !strings.Contains(inventory.body, id) || strings.Contains(inventory.body, secret) {
		t.Errorf("inventory %s: want the id and not the secret", inventory.body)
	}

	if r := api.do(t, "PATCH", "/v1/projects/p1/keys/"+id, `{"expires_at":"2026-03-05T16:00:00Z"}`); r.status != http.StatusOK {
		t.Errorf("extend: %d %s; want 200", r.status, r.body)
	} else if diff := cmp.Diff(map[string]any{"id": id, "expires_at": "2026-03-05T16:00:00Z"}, r.object(t)); diff != "" {
		t.Errorf("extend, -want +got:\n%s", diff)
	}
	api.clock.Advance(time.Hour)
	if got := api.use(t, secret); got != http.StatusOK {
		t.Errorf("use of the extended key after its first end: %d; want 200", got)
	}

	if r := api.do(t, "DELETE", "/v1/projects/p1/keys/"+id, ""); r.status != http.StatusNoContent || r.body != "" {
		t.Errorf("revoke: %d %q; want 204 without body", r.status, r.body)
	}
	if r := api.do(t, "DELETE", "/v1/projects/p1/keys/"+id, ""); r.status != http.StatusNotFound {
		t.Errorf("second revoke: %d; want 404", r.status)
	}
	if got := api.use(t, secret); got != http.StatusUnauthorized || api.Valid(secret) || len(api.Live()) != 0 {
		t.Errorf("use after revoke: %d, valid %v, %d live; want 401, false, 0", got, api.Valid(secret), len(api.Live()))
	}
}

func TestKeyAPIKeysEndByTheClock(t *testing.T) {
	t.Parallel()
	api := newKeyAPI(t)
	id, secret := api.mustCreate(t, "n1")
	api.clock.Advance(time.Hour - time.Nanosecond)
	if got := api.use(t, secret); got != http.StatusOK {
		t.Errorf("use just before the end: %d; want 200", got)
	}
	api.clock.Advance(time.Nanosecond)
	if got := api.use(t, secret); got != http.StatusUnauthorized || len(api.Live()) != 0 {
		t.Errorf("use at the end: %d, %d live; want 401, 0", got, len(api.Live()))
	}
	for _, method := range []string{"PATCH", "DELETE"} {
		if r := api.do(t, method, "/v1/projects/p1/keys/"+id, `{"expires_at":"2027-01-01T00:00:00Z"}`); r.status != http.StatusNotFound {
			t.Errorf("%s of the expired key: %d; want 404", method, r.status)
		}
	}
	api.mustCreate(t, "n1") // the name is free again
}

func TestKeyAPIFind(t *testing.T) {
	t.Parallel()
	api := newKeyAPI(t)
	id1, _ := api.mustCreate(t, "n1")
	id2, _ := api.mustCreate(t, "n2")
	entry := func(id, name string) any {
		return map[string]any{"id": id, "name": name, "expires_at": "2026-03-05T14:30:45Z"}
	}
	for path, want := range map[string][]any{
		"/v1/projects/p1/keys?name=n1": {entry(id1, "n1")},
		"/v1/projects/p1/keys?name=n":  {},
		"/v1/projects/p1/keys?name=":   {},
		"/v1/projects/p1/keys":         {entry(id1, "n1"), entry(id2, "n2")},
		"/v1/projects/p2/keys":         {},
	} {
		r := api.do(t, "GET", path, "")
		if diff := cmp.Diff(map[string]any{"keys": want}, r.object(t)); r.status != http.StatusOK || diff != "" {
			t.Errorf("%s: status %d, -want +got:\n%s", path, r.status, diff)
		}
	}
}

func TestKeyAPIRefusals(t *testing.T) {
	t.Parallel()
	const keys, future = "/v1/projects/p1/keys", `"expires_at":"2026-03-05T14:00:00Z"`
	api := newKeyAPI(t)
	id, _ := api.mustCreate(t, "taken")
	for name, c := range map[string]struct {
		method, path, body, auth, media string
		status                          int
		text                            string
	}{
		"no admin token":     {"GET", "/v1/whoami", "", "", "", 401, "the bearer token is missing or wrong"},
		"wrong admin token":  {"GET", "/v1/whoami", "", "Bearer admin-toke", "", 401, "the bearer token is missing or wrong"},
		"find unauthorized":  {"GET", keys, "", "Bearer x", "", 401, "the bearer token is missing or wrong"},
		"make unauthorized":  {"POST", keys, "", "Bearer x", "", 401, "the bearer token is missing or wrong"},
		"renew unauthorized": {"PATCH", keys + "/" + id, "", "Bearer x", "", 401, "the bearer token is missing or wrong"},
		"end unauthorized":   {"DELETE", keys + "/" + id, "", "Bearer x", "", 401, "the bearer token is missing or wrong"},
		"bad project":        {"POST", "/v1/projects/P1/keys", "{}", adminHeader, "application/json", 404, "no such project"},
		"long project":       {"GET", "/v1/projects/" + strings.Repeat("a", 41) + "/keys", "", adminHeader, "", 404, "no such project"},
		"form":               {"POST", keys, "name=n", adminHeader, "application/x-www-form-urlencoded", 415, "want Content-Type application/json"},
		"not JSON":           {"POST", keys, "{", adminHeader, "application/json", 400, "the body is not the JSON object that was asked for"},
		"two objects":        {"POST", keys, `{"name":"n",` + future + `}{}`, adminHeader, "application/json", 400, "the body is not the JSON object that was asked for"},
		"unknown member":     {"POST", keys, `{"name":"n","ttl":5,` + future + `}`, adminHeader, "application/json", 400, "the body is not the JSON object that was asked for"},
		"wrong type":         {"POST", keys, `{"name":"n","scopes":"read",` + future + `}`, adminHeader, "application/json", 400, "the body is not the JSON object that was asked for"},
		"empty name":         {"POST", keys, `{"name":"",` + future + `}`, adminHeader, "application/json", 400, "name: missing"},
		"no expiry":          {"POST", keys, `{"name":"n"}`, adminHeader, "application/json; charset=utf-8", 400, "expires_at: want a time in the future"},
		"expiry now":         {"POST", keys, `{"name":"n","expires_at":"2026-03-05T13:30:45Z"}`, adminHeader, "application/json", 400, "expires_at: want a time in the future"},
		"name in use":        {"POST", keys, `{"name":"taken",` + future + `}`, adminHeader, "application/json", 409, "name: in use"},
		"extend to the past": {"PATCH", keys + "/" + id, `{"expires_at":"2026-03-05T13:00:00Z"}`, adminHeader, "application/json", 400, "expires_at: want a time in the future"},
		"extend unknown":     {"PATCH", keys + "/x", `{` + future + `}`, adminHeader, "application/json", 404, "no such key"},
		"other project":      {"DELETE", "/v1/projects/p2/keys/" + id, "", adminHeader, "", 404, "no such key"},
		"use without key":    {"GET", "/v1/data", "", adminHeader, "", 401, "the key is missing, unknown or has ended"},
	} {
		r := do(t, c.method, api.url+c.path, c.body, "Authorization", c.auth, "Content-Type", c.media)
		if want := `{"error":"` + c.text + `"}`; r.status != c.status || r.body != want {
			t.Errorf("%s: %d %s; want %d %s", name, r.status, r.body, c.status, want)
		}
	}
	if got := len(api.Live()); got != 1 {
		t.Errorf("%d keys live; want the first alone", got)
	}
	if r := api.do(t, "POST", "/v1/projects/p2/keys", `{"name":"taken",`+future+`}`); r.status != http.StatusCreated {
		t.Errorf("same name in another project: %d %s; want 201", r.status, r.body)
	}
	if r := api.do(t, "GET", "/v1/whoami", ""); r.status != http.StatusOK {
		t.Errorf("whoami: %d; want 200", r.status)
	}
	wantPanic(t, "lab: key API without an admin token", func() { NewKeyAPI(KeyAPIOptions{}) })
}
