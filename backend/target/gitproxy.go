// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"bytes"
	"context"
	"crypto/rand"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// gitProxyDriver speaks to git-proxy-java. There, a user has one key, which has no id and no expiry, and which only the user
// can create, when logged in. So each key gets its own user: it is created with the operator's key, logs in once to create its
// key, and is deleted to end the key. The user has the key's name, so what a crash leaves behind is found by that name.
type gitProxyDriver struct {
	api    *api
	apiKey string
}

// The header of all keys, and what Spring's defence against forged requests compares.
const (
	gitProxyHeader = "X-Api-Key"
	csrfCookie     = "XSRF-TOKEN"
	csrfHeader     = "X-XSRF-TOKEN"
)

// maxCookies bounds how many cookies of a login are sent back.
const maxCookies = 8

func gitProxyKind(c Config) (facts, func(*Target) driver, error) {
	if err := checkAPIKey(c); err != nil {
		return facts{}, nil, err
	}
	kind := facts{
		name: "git-proxy-java", source: SourceNone, credential: []string{"api_key"}, headerName: gitProxyHeader,
		params: parameters{
			{name: "roles", kind: kindList, pattern: exactly("[A-Z][A-Z0-9_]{0,63}"), def: []any{"USER", "SELF_CERTIFY"}},
		},
	}
	return kind, func(t *Target) driver {
		d := &gitProxyDriver{api: t.api, apiKey: t.credential["api_key"]}
		return driver{exchange: d.exchange, revoke: d.revoke, find: d.find, list: d.list, check: d.check}
	}, nil
}

// call makes a call with the operator's key.
func (d *gitProxyDriver) call(op, method string, path ...string) call {
	c := call{op: op, method: method, segments: path, header: http.Header{}, busy: []int{429, 503}, denied: []int{401, 403, 501}, hint: gitProxyHint}
	c.header.Set(gitProxyHeader, d.apiKey)
	return c
}

func gitProxyHint(a answer) string {
	switch a.status {
	case http.StatusUnauthorized:
		return "the credential is not the server's operator key"
	case http.StatusForbidden:
		return "the credential is not an administrator's"
	case http.StatusNotImplemented:
		return "its user store is read-only; users can be made with a JDBC or MongoDB store"
	}
	return ""
}

// exchange makes the user, logs in and makes the key. If a later step is refused, it deletes the user. Only if that succeeds
// does it report the refusal; otherwise the outcome is unknown, and find returns the user.
func (d *gitProxyDriver) exchange(ctx context.Context, r Request) (Key, error) {
	const op = "exchange"
	if !validAccessor(r.Name) {
		return Key{}, unbuildable(op, "the key has no name that a user could have")
	}
	password := rand.Text()
	if err := d.createUser(ctx, op, r, password); err != nil {
		return Key{}, err
	}
	k, err := d.keyOf(ctx, op, r, password)
	switch {
	case err == nil:
		return k, nil
	case MayLive(err):
		return Key{}, err
	case d.deleteUser(ctx, op, r.Name) != nil:
		return Key{}, afterwards(err)
	}
	return Key{}, err
}

func (d *gitProxyDriver) createUser(ctx context.Context, op string, r Request, password string) error {
	c := d.call(op, http.MethodPost, "api", "users")
	var err error
	if c.body, err = encodeJSON(map[string]any{"username": r.Name, "password": password, "roles": r.Params["roles"]}); err != nil {
		return unbuildable(op, "%v", err)
	}
	c.header.Set("Content-Type", "application/json")
	c.ok, c.wantBody = []int{201}, true
	c.denied = append(c.denied, 400, 404, 415, 422)
	a, err := d.api.do(ctx, c)
	if err != nil {
		return err
	}
	if username, _ := object(a.body)["username"].(string); username != r.Name {
		return protocol(op, "the answer does not name the user that was asked for")
	}
	return nil
}

// keyOf logs the user in and makes its key.
func (d *gitProxyDriver) keyOf(ctx context.Context, op string, r Request, password string) (Key, error) {
	cookies, err := d.login(ctx, op, r.Name, password)
	if err != nil {
		return Key{}, err
	}
	c := call{op: op, method: http.MethodPost, segments: []string{"api", "me", "api-key"}, header: http.Header{}, wantBody: true,
		ok: []int{200}, busy: []int{429, 503}, denied: []int{401, 403, 404, 405, 501}, hint: gitProxyKeyHint}
	// The server compares a cookie with a header and stores neither, so the client may choose the token.
	csrf := rand.Text()
	c.header.Set(csrfHeader, csrf)
	c.header.Set("Cookie", strings.Join(append(cookies, csrfCookie+"="+csrf), "; "))
	a, err := d.api.do(ctx, c)
	if err != nil {
		return Key{}, err
	}
	k := Key{Accessor: r.Name, Handle: Handle{Name: r.Name, Accessor: r.Name, Params: r.Params}}
	k.Secret, _ = object(a.body)["key"].(string)
	if fault := k.check(d.api.now()); fault != "" {
		return Key{}, protocol(op, "%s", fault)
	}
	return k, nil
}

func gitProxyKeyHint(a answer) string {
	switch a.status {
	case http.StatusUnauthorized:
		return "the new user could not log in; the server's auth.provider must be local"
	case http.StatusForbidden:
		if !bytes.Contains(a.body, []byte("SELF_CERTIFY")) {
			return "the request counts as forged there; a proxy before the server may drop cookies or the header X-XSRF-TOKEN"
		}
		return "users without the role SELF_CERTIFY make no keys there; add it to the parameter roles"
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return "this version of it has no keys for users"
	}
	return gitProxyHint(a)
}

// login returns the cookies of the new user's session. The form is answered with a redirect, either to the dashboard or
// back to the form.
func (d *gitProxyDriver) login(ctx context.Context, op, username, password string) (cookies []string, err error) {
	refused := &Error{Op: op, Text: "it refused: the new user could not log in; the server's auth.provider must be local", outcome: ErrDenied}
	c := call{op: op, method: http.MethodPost, segments: []string{"login"}, header: http.Header{},
		body: []byte(url.Values{"username": {username}, "password": {password}}.Encode()),
		ok:   []int{200, 204, 302, 303}, busy: []int{429, 503}, denied: []int{400, 401, 403, 404, 405},
		hint: func(answer) string { return "the new user could not log in; the server's auth.provider must be local" }}
	c.header.Set("Content-Type", "application/x-www-form-urlencoded")
	a, err := d.api.do(ctx, c)
	if err != nil {
		return nil, err
	}
	if to, err := url.Parse(a.header.Get("Location")); err != nil || to.Query().Has("error") {
		return nil, refused
	}
	for _, line := range a.header.Values("Set-Cookie") {
		if cookie, err := http.ParseSetCookie(line); err == nil && cookie.Value != "" && cookie.MaxAge >= 0 && cookie.Name != csrfCookie {
			cookies = append(cookies, cookie.Name+"="+cookie.Value)
		}
	}
	if len(cookies) == 0 || len(cookies) > maxCookies {
		return nil, refused
	}
	return cookies, nil
}

// revoke deletes the user, and the key with it.
func (d *gitProxyDriver) revoke(ctx context.Context, h Handle) error {
	const op = "revoke"
	if !validAccessor(h.Accessor) {
		return unbuildable(op, "the key has no user")
	}
	return d.deleteUser(ctx, op, h.Accessor)
}

func (d *gitProxyDriver) deleteUser(ctx context.Context, op, username string) error {
	c := d.call(op, http.MethodDelete, "api", "users", username)
	c.ok, c.gone, c.urgent = []int{200, 204}, []int{404}, true
	a, err := d.api.do(ctx, c)
	if err == nil && a.status == http.StatusNotFound {
		err = d.inquire(ctx, op)
	}
	return err
}

// find asks for the user of the key's name.
func (d *gitProxyDriver) find(ctx context.Context, h Handle) ([]Handle, error) {
	const op = "find"
	if !validAccessor(h.Name) {
		return nil, unbuildable(op, "the key has no name that a user could have")
	}
	c := d.call(op, http.MethodGet, "api", "users", h.Name)
	c.ok, c.gone, c.wantBody, c.urgent = []int{200}, []int{404}, true, true
	a, err := d.api.do(ctx, c)
	switch {
	case err != nil:
		return nil, err
	case a.status == http.StatusNotFound:
		return nil, d.inquire(ctx, op)
	}
	if username, _ := object(a.body)["username"].(string); username != h.Name {
		return nil, protocol(op, "the answer is about another user than was asked for")
	}
	return []Handle{{Name: h.Name, Accessor: h.Name, Params: h.Params}}, nil
}

// list asks for all users.
func (d *gitProxyDriver) list(ctx context.Context, _ string, _ map[string]any) ([]Handle, bool, error) {
	const op = "list"
	c := d.call(op, http.MethodGet, "api", "users")
	c.ok, c.wantBody, c.urgent = []int{200}, true, true
	a, err := d.api.do(ctx, c)
	if err != nil {
		return nil, false, err
	}
	value, ok := decodeJSON(a.body)
	list, isList := value.([]any)
	if !ok || !isList {
		return nil, false, protocol(op, "the answer is not a list of users")
	}
	keys := make([]Handle, len(list))
	for i, element := range list {
		user, _ := element.(map[string]any)
		username, isText := user["username"].(string)
		if !isText {
			return nil, false, protocol(op, "a user has no username")
		}
		keys[i] = Handle{Name: username, Accessor: username}
	}
	return keys, true, nil
}

func (d *gitProxyDriver) check(ctx context.Context) error { return d.inquire(ctx, "check") }

// inquire asks what the operator's key may do. The server says by the status alone that a user does not exist, as a proxy does
// of an unknown path, so that is believed only if the server knows the operator.
func (d *gitProxyDriver) inquire(ctx context.Context, op string) error {
	c := d.call(op, http.MethodGet, "api", "me")
	c.ok, c.wantBody, c.urgent = []int{200}, true, op != "check"
	a, err := d.api.do(ctx, c)
	if err != nil {
		return err
	}
	authorities, isList := object(a.body)["authorities"].([]any)
	switch {
	case !isList:
		return protocol(op, "the answer does not say what the credential may do")
	case !slices.Contains(authorities, any("ROLE_ADMIN")):
		return &Error{Op: op, Status: a.status, Text: "the credential is not an administrator's", outcome: ErrDenied}
	}
	return nil
}
