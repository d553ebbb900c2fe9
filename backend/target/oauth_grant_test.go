// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestReadGrant(t *testing.T) {
	t.Parallel()
	jwt := tokenTypes + "jwt"
	for name, c := range map[string]struct {
		body      string
		requested string // "" = an access token
		life      time.Duration
		want      string // the fault
	}{
		"all":                  {`{"access_token":"a","token_type":"Bearer","expires_in":60,"issued_token_type":"` + typeAccessToken + `"}`, "", time.Minute, ""},
		"as little as it may":  {`{"access_token":"a"}`, "", 0, ""},
		"token68":              {`{"access_token":"aZ09-._~+/=="}`, "", 0, ""},
		"any case":             {`{"access_token":"a","token_type":"bEARER"}`, "", 0, ""},
		"no access token":      {`{"access_token":"a","token_type":"N_A","issued_token_type":"` + jwt + `"}`, jwt, 0, ""},
		"seconds as a text":    {`{"access_token":"a","expires_in":"60"}`, "", time.Minute, ""},
		"a fraction":           {`{"access_token":"a","expires_in":60.9}`, "", time.Minute, ""},
		"for ever":             {`{"access_token":"a","expires_in":1e300}`, "", maxLife, ""},
		"over":                 {`{"access_token":"a","expires_in":0}`, "", -1, ""},
		"less than over":       {`{"access_token":"a","expires_in":-5}`, "", -1, ""},
		"null is none":         {`{"access_token":"a","expires_in":null}`, "", 0, ""},
		"seconds in words":     {`{"access_token":"a","expires_in":"soon"}`, "", 0, "expires_in is no number of seconds"},
		"seconds not a number": {`{"access_token":"a","expires_in":"NaN"}`, "", 0, "expires_in is no number of seconds"},
		"seconds without end":  {`{"access_token":"a","expires_in":"Inf"}`, "", 0, "expires_in is no number of seconds"},
		"seconds in a list":    {`{"access_token":"a","expires_in":[60]}`, "", 0, "expires_in is no number of seconds"},
		"a number as token":    {`{"access_token":7}`, "", 0, "no access_token in the answer"},
		"empty":                {`{"access_token":""}`, "", 0, "no access_token in the answer"},
		"header injection":     {`{"access_token":"a\r\nX-Evil: 1"}`, "", 0, "access_token is no bearer token of at most 8192 bytes"},
		"a space":              {`{"access_token":"a b"}`, "", 0, "access_token is no bearer token of at most 8192 bytes"},
		"a comma":              {`{"access_token":"a,b"}`, "", 0, "access_token is no bearer token of at most 8192 bytes"},
		"padding alone":        {`{"access_token":"=="}`, "", 0, "access_token is no bearer token of at most 8192 bytes"},
		"too long":             {`{"access_token":"` + strings.Repeat("a", maxSecretBytes+1) + `"}`, "", 0, "access_token is no bearer token of at most 8192 bytes"},
		"DPoP":                 {`{"access_token":"a","token_type":"DPoP"}`, "", 0, "token_type is not Bearer"},
		"N_A as access token":  {`{"access_token":"a","token_type":"N_A"}`, "", 0, "token_type is not Bearer"},
		"type is a list":       {`{"access_token":"a","token_type":["Bearer"]}`, "", 0, "token_type is not Bearer"},
		"issued another":       {`{"access_token":"a","issued_token_type":"` + jwt + `"}`, "", 0, "issued_token_type is not what was requested"},
		"issued a refresh":     {`{"access_token":"a","issued_token_type":"` + tokenTypes + `refresh_token"}`, jwt, 0, "issued_token_type is not what was requested"},
		"issued null":          {`{"access_token":"a","issued_token_type":null}`, "", 0, "issued_token_type is not what was requested"},
		"case of a member":     {`{"Access_Token":"a"}`, "", 0, "no access_token in the answer"},
		"a list":               {`["a"]`, "", 0, "the answer is no JSON object"},
		"null":                 {`null`, "", 0, "the answer is no JSON object"},
		"two values":           {`{"access_token":"a"} {}`, "", 0, "the answer is no JSON object"},
		"html":                 {`<html>`, "", 0, "the answer is no JSON object"},
	} {
		h := hop{requested: c.requested}
		if c.requested == "" {
			h.requested = typeAccessToken
		}
		got, fault := readGrant([]byte(c.body), h)
		if fault != c.want || fault == "" && got.life != c.life {
			t.Errorf("%s: %q, life %v; want %q, %v", name, fault, got.life, c.want, c.life)
		}
	}
}

// Without expires_in a token lives as long as the operator says; without a word of him it is not given out.
func TestLifeThatIsNotSaid(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for lifetime, want := range map[time.Duration]string{
		time.Hour: "", 0: "exchange: target's answer makes no sense: the answer has no expires_in; set the target's lifetime to what the server documents",
	} {
		o := &oauth{lifetime: lifetime, api: &api{now: func() time.Time { return now }}}
		key, err := o.key("exchange", granted{token: "t0ken", sent: now}, Request{})
		if got := errorText(err); got != want || err == nil && !key.Expiry.Equal(now.Add(lifetime)) {
			t.Errorf("%v: %q, until %v; want %q", lifetime, got, key.Expiry, want)
		}
	}
}

// A token that is refused is revoked although its caller has left.
func TestRefusedTokenIsRevokedForNobody(t *testing.T) {
	t.Parallel()
	opened, err := Open(Config{Driver: DriverOAuth, Audience: "x", OAuth: OAuth{TokenURL: "https://id.example/token", RevocationURL: "https://id.example/revoke"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(t.Context())
	asked := ""
	opened.api.client = &http.Client{Transport: answering(func(r *http.Request) *http.Response {
		asked += r.URL.Path
		return &http.Response{StatusCode: 200, Body: closing{strings.NewReader(`{"access_token":"t0ken","token_type":"DPoP"}`), leave}}
	})}
	_, err = opened.Exchange(ctx, Request{SubjectToken: "x"})
	if !errors.Is(err, ErrProtocol) || !errors.Is(err, ErrEnded) || MayLive(err) || ctx.Err() == nil || asked != "/token/revoke" {
		t.Errorf("got %v after %s; want a token that is revoked", err, asked)
	}
}

// closing is a body that says when it is closed.
type closing struct {
	io.Reader
	closed func()
}

func (c closing) Close() error { c.closed(); return nil }

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// What a server says of a token's scope is shown only if it can be, and never with the token in it.
func TestScopeThatIsShown(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for scope, shown := range map[string]bool{"read write": true, "": false, "a\nb": false, "x t0ken x": false, strings.Repeat("s", maxAccessorBytes+1): false} {
		o := &oauth{api: &api{now: func() time.Time { return now }}}
		key, err := o.key("exchange", granted{token: "t0ken", scope: scope, life: time.Minute, sent: now}, Request{})
		if _, there := key.Fields["scope"]; err != nil || there != shown {
			t.Errorf("%.20q: %v, shown: %v", scope, err, there)
		}
	}
}

// FuzzOAuthAnswer: whatever document and answer a server gives, what comes of them is a key that keeps every rule, or an error
// that holds nothing of either; and no endpoint is on a host that nobody allowed.
func FuzzOAuthAnswer(f *testing.F) {
	f.Add(`{"issuer":"https://id.example","token_endpoint":"https://id.example/t","revocation_endpoint":"https://id.example/r"}`, `{"access_token":"t0ken-t0ken-t0ken","expires_in":60}`)
	f.Add(`{"issuer":"https://id.example","token_endpoint":"https://evil.example/t"}`, `{"error":"invalid_grant"}`)
	f.Add(`[]`, `{"access_token":"a b"}`)
	now := func() time.Time { return time.Unix(0, 0) }
	f.Fuzz(func(t *testing.T, document, body string) {
		opened, err := Open(Config{Driver: DriverOAuth, URL: "https://id.example", Now: now})
		if err != nil {
			t.Fatal(err)
		}
		opened.api.client = &http.Client{Transport: twoAnswers{t, document, body}}
		key, err := opened.Exchange(context.Background(), Request{SubjectToken: "x"})
		if err == nil {
			if fault := key.check(now()); fault != "" || !token68.MatchString(key.Secret) || key.Expiry.IsZero() || key.Handle.Secret != key.Secret {
				t.Fatalf("%q yields %v: %s", body, key, fault)
			}
			return
		}
		for _, text := range []string{document, body} {
			if len(text) > 24 && strings.Contains(err.Error(), text) {
				t.Fatalf("the error repeats the answer: %v", err)
			}
		}
	})
}

// twoAnswers answers questions for the document and everything else.
type twoAnswers struct {
	t              *testing.T
	document, body string
}

func (a twoAnswers) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host != "id.example" || r.URL.Scheme != "https" {
		a.t.Errorf("a request goes to %s", r.URL)
	}
	if strings.HasPrefix(r.URL.Path, "/.well-known/") && r.Method == http.MethodGet {
		return canned{200, a.document}.RoundTrip(r)
	}
	return canned{200, a.body}.RoundTrip(r)
}
