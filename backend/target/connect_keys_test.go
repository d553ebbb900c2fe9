// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

const (
	keysPath = " /__api__/v1/users/g-1/keys"
	keyPath  = keysPath + "/7"
)

func userKeys(t *testing.T, lines map[string][]line) (*script, *target.Target) {
	t.Helper()
	s := scripted(t, lines)
	return s, s.open(t, "", target.Config{Driver: "connect", Credential: map[string]string{"api_key": "adm1n"}})
}

var handle7 = target.Handle{Name: "oidcx-1", Accessor: "7", Params: map[string]any{"user": "g-1"}}

func TestConnectCreates(t *testing.T) {
	const refused = "denied by the target: it refused: "
	for name, c := range map[string]struct {
		line line
		want string
		ends time.Time
	}{
		"with an end":    {line{200, `{"id": "7", "key": "k3y", "expires_at": "2031-05-06T10:08:09+02:00"}`, nil}, "", scriptTime.Add(time.Hour)},
		"older server":   {line{200, `{"id": "7", "key": "k3y"}`, nil}, "", time.Time{}},
		"for ever":       {line{201, `{"id": 7, "key": "k3y", "expires_at": null}`, nil}, "", time.Time{}},
		"year 1":         {line{200, `{"id": "7", "key": "k3y", "expires_at": "0001-01-01T00:00:00Z"}`, nil}, "target's answer makes no sense: expires_at is not a time", time.Time{}},
		"another's user": {line{403, `{"code": 22}`, nil}, refused + "Connect makes keys for the credential's own user alone; check the parameter user, and that user_role is not above the user's (status 403)", time.Time{}},
		"no such user":   {line{404, `{"code": 4}`, nil}, refused + "it has no such user; check the parameter user, and the path in the target's url (status 404)", time.Time{}},
		"expired":        {line{401, `{"code": 30}`, nil}, refused + "the credential is wrong or has expired (status 401)", time.Time{}},
		"parameters":     {line{400, `{"code": 3}`, nil}, refused + "it does not take these parameters; user_role must not be above the role of the credential's user (status 400)", time.Time{}},
	} {
		t.Run(name, func(t *testing.T) {
			_, o := userKeys(t, map[string][]line{"POST" + keysPath: {c.line}})
			k, err := o.Exchange(t.Context(), ask(t, o, "", map[string]any{"user": "g-1"}))
			wantTold(t, err, c.want, c.line.status < 400 && c.want != "")
			if err != nil {
				return
			}
			want := target.Key{Secret: "k3y", Accessor: "7", Expiry: c.ends, Header: "Key k3y", Handle: handle7}
			want.Handle.Params = map[string]any{"user": "g-1", "flow": "user_key"}
			if diff := cmp.Diff(want, k); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// "Not found" is said of others' keys too, so it is believed only of a user whose keys may be listed.
func TestConnectBelievesNotFoundOfOwnKeysAlone(t *testing.T) {
	gone := []line{{404, `{"code": 4}`, nil}}
	for name, c := range map[string]struct {
		list line
		want string
	}{
		"no key":         {line{200, `[]`, nil}, ""},
		"others":         {line{200, `[{"id": "70", "name": "oidcx-1"}]`, nil}, ""},
		"it is there":    {line{200, `[{"id": 7, "name": "x"}]`, nil}, "target's answer makes no sense: the server lists the key that it does not find"},
		"another's user": {line{404, `{"code": 4}`, nil}, "denied by the target: it refused: it has no such user; check the parameter user, and the path in the target's url (status 404)"},
		"a proxy's page": {line{200, loginPage, nil}, "target's answer makes no sense: the answer is not a list of keys"},
		"nameless":       {line{200, `[{"id": "8"}]`, nil}, "target's answer makes no sense: the answer is not a list of keys with id and name"},
		"busy":           {line{503, ``, nil}, "target is busy: try again later (status 503)"},
	} {
		t.Run(name, func(t *testing.T) {
			s, o := userKeys(t, map[string][]line{"DELETE" + keyPath: gone, "GET" + keysPath: {c.list}})
			err := o.Revoke(t.Context(), handle7)
			if text, _ := told(err); text != c.want {
				t.Errorf("got  %s\nwant %s", text, c.want)
			}
			if got, want := s.requests(), "DELETE"+keyPath+", GET"+keysPath; got != want {
				t.Errorf("asked %s\nwant  %s", got, want)
			}
		})
	}
}

func TestConnectNeedsTheUser(t *testing.T) {
	s, o := userKeys(t, nil)
	wantTold(t, o.Revoke(t.Context(), target.Handle{Name: "n", Accessor: "7"}), "request cannot be made: the key has no id or no user", false)
	_, err := o.Find(t.Context(), target.Handle{Name: "n"})
	wantTold(t, err, "request cannot be made: the key has no user", false)
	if got := s.requests(); got != "" {
		t.Errorf("asked %s", got)
	}
}
