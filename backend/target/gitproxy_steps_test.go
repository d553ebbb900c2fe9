// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

const (
	makeUser  = "POST /api/users"
	theUser   = " /api/users/oidcx-1"
	login     = "POST /login"
	makeKey   = "POST /api/me/api-key"
	whoAmI    = "GET /api/me"
	noLogin   = "denied by the target: it refused: the new user could not log in; the server's auth.provider must be local"
	noCertify = `{"error": "API key generation requires the SELF_CERTIFY role"}`
	threeCall = makeUser + ", " + login + ", " + makeKey
)

// A refusal after the user was made is told as a refusal only when the user is gone again: then nothing lives. What is not
// a refusal is left to whoever settles unknown outcomes, who finds the user by its name.
func TestGitProxySteps(t *testing.T) {
	made := line{201, `{"username": "oidcx-1"}`, nil}
	loggedIn := line{302, "", http.Header{"Location": {"/dashboard/"}, "Set-Cookie": {"SESSION=s; Path=/"}}}
	key := line{200, `{"key": "gp_1"}`, nil}
	gone := line{204, "", nil}
	for name, c := range map[string]struct {
		login, key, delete line
		want               string
		mayLive            bool
		asked              string
	}{
		"issued":                     {loggedIn, key, gone, "", false, threeCall},
		"login without redirect":     {line{200, "", loggedIn.header}, key, gone, "", false, threeCall},
		"login fails":                {line{302, "", http.Header{"Location": {"/login.html?error"}, "Set-Cookie": {"SESSION=s"}}}, key, gone, noLogin, false, makeUser + ", " + login + ", DELETE" + theUser},
		"login is refused":           {line{401, "", nil}, key, gone, noLogin + " (status 401)", false, makeUser + ", " + login + ", DELETE" + theUser},
		"no cookie":                  {line{302, "", http.Header{"Set-Cookie": {"SESSION=; Max-Age=0", "XSRF-TOKEN=x"}}}, key, gone, noLogin, false, makeUser + ", " + login + ", DELETE" + theUser},
		"too many cookies":           {line{302, "", http.Header{"Set-Cookie": {"a=1", "b=1", "c=1", "d=1", "e=1", "f=1", "g=1", "h=1", "i=1"}}}, key, gone, noLogin, false, makeUser + ", " + login + ", DELETE" + theUser},
		"no SELF_CERTIFY":            {loggedIn, line{403, noCertify, nil}, gone, "denied by the target: it refused: users without the role SELF_CERTIFY make no keys there; add it to the parameter roles (status 403)", false, threeCall + ", DELETE" + theUser},
		"session is not taken":       {loggedIn, line{401, "", nil}, gone, noLogin + " (status 401)", false, threeCall + ", DELETE" + theUser},
		"no keys for users":          {loggedIn, line{404, "", nil}, gone, "denied by the target: it refused: this version of it has no keys for users (status 404)", false, threeCall + ", DELETE" + theUser},
		"store is read-only":         {loggedIn, line{501, `{"error": "Profile mutations are not supported with the current user store backend"}`, nil}, gone, "denied by the target: it refused: its user store is read-only; users can be made with a JDBC or MongoDB store (status 501)", false, threeCall + ", DELETE" + theUser},
		"busy":                       {loggedIn, line{503, "", nil}, gone, "target is busy: try again later (status 503)", false, threeCall + ", DELETE" + theUser},
		"takes it for forged":        {loggedIn, line{403, "", nil}, gone, "denied by the target: it refused: the request counts as forged there; a proxy before the server may drop cookies or the header X-XSRF-TOKEN (status 403)", false, threeCall + ", DELETE" + theUser},
		"user is gone already":       {loggedIn, line{403, noCertify, nil}, line{404, "", nil}, "denied by the target: it refused: users without the role SELF_CERTIFY make no keys there; add it to the parameter roles (status 403)", false, threeCall + ", DELETE" + theUser + ", " + whoAmI},
		"user stays":                 {loggedIn, line{403, noCertify, nil}, line{500, "", nil}, "outcome is unknown: it refused: users without the role SELF_CERTIFY make no keys there; add it to the parameter roles (status 403)", true, threeCall + ", DELETE" + theUser},
		"user stays, login refused":  {line{401, "", nil}, key, line{409, "", nil}, "outcome is unknown: it refused: the new user could not log in; the server's auth.provider must be local (status 401)", true, makeUser + ", " + login + ", DELETE" + theUser},
		"login breaks":               {line{500, "", nil}, key, gone, "outcome is unknown: it answered otherwise than expected (status 500)", true, makeUser + ", " + login},
		"key breaks":                 {loggedIn, line{500, "", nil}, gone, "outcome is unknown: it answered otherwise than expected (status 500)", true, threeCall},
		"key redirects":              {loggedIn, line{302, "", nil}, gone, "outcome is unknown: it redirects, and redirects are not followed; correct the target's url (status 302)", true, threeCall},
		"connection breaks at login": {cut, key, gone, "outcome is unknown: the connection failed", true, makeUser + ", " + login},
		"connection breaks at key":   {loggedIn, cut, gone, "outcome is unknown: the connection failed", true, threeCall},
		"a page for a key":           {loggedIn, line{200, loginPage, nil}, gone, "target's answer makes no sense: no key in the answer", true, threeCall},
	} {
		t.Run(name, func(t *testing.T) {
			s := scripted(t, map[string][]line{makeUser: {made}, login: {c.login}, makeKey: {c.key}, "DELETE" + theUser: {c.delete}, whoAmI: {{200, `{"authorities": ["ROLE_ADMIN"]}`, nil}}})
			o := s.open(t, "", target.Config{Driver: "git-proxy-java", Credential: map[string]string{"api_key": "0perator"}})
			k, err := o.Exchange(t.Context(), ask(t, o, "", nil))
			wantTold(t, err, c.want, c.mayLive)
			if got := s.requests(); got != c.asked {
				t.Errorf("asked %s\nwant  %s", got, c.asked)
			}
			if (err == nil) != (k.Secret == "gp_1") {
				t.Errorf("error %v and key %v", err, k)
			}
			s.wantKept(t, err, k)
		})
	}
}

// wantKept wants what the throw-away user logs in with, and its session, in no form of an error, and in nothing that is kept
// of a key.
func (s *script) wantKept(t *testing.T, err error, k target.Key) {
	t.Helper()
	var made struct{ Password string }
	if json.Unmarshal([]byte(s.bodies[0]), &made) != nil || len(made.Password) < 16 {
		t.Fatalf("the user is made by %q", s.bodies[0])
	}
	k.Secret = "" // it is for the caller
	kept, _ := json.Marshal(k)
	shown := []string{string(kept)}
	for e := err; e != nil; e = errors.Unwrap(e) {
		shown = append(shown, fmt.Sprintf("%v %+v %#v %q", e, e, e, e))
	}
	var told *target.Error
	if errors.As(err, &told) {
		shown = append(shown, fmt.Sprintf("%+v", *told))
	}
	for _, secret := range []string{made.Password, "SESSION=s", "0perator"} {
		if text := strings.Join(shown, "\n"); strings.Contains(text, secret) {
			t.Errorf("%q is in %s", secret, text)
		}
	}
}

func TestGitProxyTellsWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		line line
		want string
	}{
		"not the operator's": {line{401, "", nil}, "denied by the target: it refused: the credential is not the server's operator key (status 401)"},
		"no administrator":   {line{403, "", nil}, "denied by the target: it refused: the credential is not an administrator's (status 403)"},
		"read-only store":    {line{501, "", nil}, "denied by the target: it refused: its user store is read-only; users can be made with a JDBC or MongoDB store (status 501)"},
		"name is taken":      {line{409, "", nil}, "outcome is unknown: it answered otherwise than expected (status 409)"}, // an earlier call did make it
		"another name":       {line{201, `{"username": "OIDCX-1"}`, nil}, "target's answer makes no sense: the answer does not name the user that was asked for"},
	} {
		t.Run(name, func(t *testing.T) {
			s := scripted(t, map[string][]line{makeUser: {c.line}})
			o := s.open(t, "", target.Config{Driver: "git-proxy-java", Credential: map[string]string{"api_key": "0perator"}})
			_, err := o.Exchange(t.Context(), ask(t, o, "", nil))
			wantTold(t, err, c.want, c.line.status == 409 || c.line.status == 201)
			if got := s.requests(); got != makeUser {
				t.Errorf("asked %s", got)
			}
		})
	}
}

func TestGitProxyCheck(t *testing.T) {
	for name, c := range map[string]struct{ body, want string }{
		"operator":   {`{"authorities": ["ROLE_USER", "ROLE_ADMIN"]}`, ""},
		"user":       {`{"authorities": ["ROLE_USER", "ROLE_SELF_CERTIFY"]}`, "denied by the target: the credential is not an administrator's (status 200)"},
		"login page": {loginPage, "target's answer makes no sense: the answer does not say what the credential may do"},
	} {
		t.Run(name, func(t *testing.T) {
			s := scripted(t, map[string][]line{"GET /api/me": {{200, c.body, nil}}})
			err := s.open(t, "", target.Config{Driver: "git-proxy-java", Credential: map[string]string{"api_key": "k"}}).Check(t.Context())
			if text, _ := told(err); text != c.want {
				t.Errorf("got  %s\nwant %s", text, c.want)
			}
		})
	}
}

// A name that cannot be a path's segment must not be sent: another user would be found, or deleted.
func TestGitProxyNames(t *testing.T) {
	s := scripted(t, nil)
	o := s.open(t, "", target.Config{Driver: "git-proxy-java", Credential: map[string]string{"api_key": "k"}})
	for _, name := range []string{"", "..", "a/../b"} {
		r := ask(t, o, "", nil)
		r.Name = name
		_, err := o.Exchange(t.Context(), r)
		wantTold(t, err, "request cannot be made: the key has no name that a user could have", false)
		_, err = o.Find(t.Context(), target.Handle{Name: name})
		wantTold(t, err, "request cannot be made: the key has no name that a user could have", false)
	}
	if got := s.requests(); got != "" {
		t.Errorf("asked %s", got)
	}
}
