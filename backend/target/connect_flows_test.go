// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

const (
	wellKnown  = "GET /.well-known/oauth-authorization-server"
	tokenPath  = "POST /oauth/v1/token"
	federated  = "POST /__api__/v1/oauth/integrations/credentials"
	whose      = "GET /__api__/v1/user"
	metadata   = `{"token_endpoint": "$URL/oauth/v1/token"}`
	aKey       = `{"access_token": "k3y", "expires_in": 600}`
	service    = `{"code": 22, "error": "You don't have permission to perform this operation."}`
	loginPage  = "<!DOCTYPE html><h1>Sign in</h1>"
	noMetadata = "denied by the target: it refused: it has no OAuth metadata; flow oauth needs Connect 2026.07.0 or newer with its OAuth server switched on (status 404)"
)

var aPage404 = line{404, "<!DOCTYPE html><h1>Not found</h1>", http.Header{"Content-Type": {"text/html"}}}

// Whatever goes wrong before the token is sent, nothing was issued, and the token is as good as before.
func TestConnectDiscovery(t *testing.T) {
	token := []line{{200, aKey, nil}}
	for name, c := range map[string]struct {
		path  string
		lines map[string][]line
		want  string
		asked string
	}{
		"as the suite has it": {"", map[string][]line{wellKnown: {{200, metadata, nil}}}, "", wellKnown + ", " + tokenPath + ", " + whose},
		"slash at the end":    {"/", map[string][]line{wellKnown: {{200, metadata, nil}}}, "", wellKnown + ", " + tokenPath + ", " + whose},
		"below the server's path": {"/connect", map[string][]line{
			"GET /connect/.well-known/oauth-authorization-server": {{200, metadata, nil}}, "GET /connect/__api__/v1/user": {{403, service, nil}},
		}, "", "GET /connect/.well-known/oauth-authorization-server, " + tokenPath + ", GET /connect/__api__/v1/user"},
		"where RFC 8414 has them": {"/connect/", map[string][]line{
			wellKnown + "/connect": {{200, metadata, nil}}, "GET /connect/__api__/v1/user": {{403, service, nil}},
		}, "", "GET /connect/.well-known/oauth-authorization-server, " + wellKnown + "/connect, " + tokenPath + ", GET /connect/__api__/v1/user"},
		"where RFC 8414 has them, and a page elsewhere": {"/connect", map[string][]line{
			"GET /connect/.well-known/oauth-authorization-server": {aPage404},
			wellKnown + "/connect":                                {{200, metadata, nil}}, "GET /connect/__api__/v1/user": {{403, service, nil}},
		}, "", "GET /connect/.well-known/oauth-authorization-server, " + wellKnown + "/connect, " + tokenPath + ", GET /connect/__api__/v1/user"},
		"nowhere, but pages": {"/a", map[string][]line{"GET /a/.well-known/oauth-authorization-server": {aPage404}, wellKnown + "/a": {aPage404}}, noMetadata, "GET /a/.well-known/oauth-authorization-server, " + wellKnown + "/a"},
		"nowhere":            {"", nil, noMetadata, wellKnown},
		"nowhere, path":      {"/a", nil, noMetadata, "GET /a/.well-known/oauth-authorization-server, " + wellKnown + "/a"},
		"exchange is there":  {"", map[string][]line{wellKnown: {{200, `{"token_endpoint": "$URL/oauth/v1/token", "grant_types_supported": ["x", "urn:ietf:params:oauth:grant-type:token-exchange"]}`, nil}}}, "", wellKnown + ", " + tokenPath + ", " + whose},
		"exchange is not":    {"", map[string][]line{wellKnown: {{200, `{"token_endpoint": "$URL/oauth/v1/token", "grant_types_supported": ["authorization_code"]}`, nil}}}, "denied by the target: its OAuth server does not support the exchange of tokens", wellKnown},
		"login page":         {"", map[string][]line{wellKnown: {{200, loginPage, nil}}}, "denied by the target: its OAuth metadata name no token endpoint; is a login page in front of the server?", wellKnown},
		"no endpoint":        {"", map[string][]line{wellKnown: {{200, `{"token_endpoint": 7}`, nil}}}, "denied by the target: its OAuth metadata name no token endpoint; is a login page in front of the server?", wellKnown},
		"two documents":      {"", map[string][]line{wellKnown: {{200, metadata + metadata, nil}}}, "denied by the target: its OAuth metadata name no token endpoint; is a login page in front of the server?", wellKnown},
		"another host":       {"", map[string][]line{wellKnown: {{200, `{"token_endpoint": "http://127.0.0.1:9/oauth/v1/token"}`, nil}}}, "denied by the target: its token endpoint is not on the target's own origin; correct the target's url", wellKnown},
		"a user":             {"", map[string][]line{wellKnown: {{200, `{"token_endpoint": "http://u@127.0.0.1/oauth/v1/token"}`, nil}}}, "denied by the target: its token endpoint is not on the target's own origin; correct the target's url", wellKnown},
		"no address":         {"", map[string][]line{wellKnown: {{200, `{"token_endpoint": "/oauth/v1/token"}`, nil}}}, "denied by the target: its token endpoint is not on the target's own origin; correct the target's url", wellKnown},
		"redirect":           {"", map[string][]line{wellKnown: {{302, "", http.Header{"Location": {"/login"}}}}}, "denied by the target: it redirects, and redirects are not followed; correct the target's url (status 302)", wellKnown},
		"broken":             {"", map[string][]line{wellKnown: {{500, "", nil}}}, "target is busy: it answered otherwise than expected (status 500)", wellKnown},
		"busy":               {"", map[string][]line{wellKnown: {{503, "", nil}}}, "target is busy: try again later (status 503)", wellKnown},
	} {
		t.Run(name, func(t *testing.T) {
			lines := map[string][]line{tokenPath: token, whose: {{403, service, nil}}}
			for request, answers := range c.lines {
				lines[request] = answers
			}
			s := scripted(t, lines)
			o := s.open(t, c.path, target.Config{Driver: "connect"})
			k, err := o.Exchange(t.Context(), ask(t, o, "t0ken", nil))
			wantTold(t, err, c.want, false)
			if got := s.requests(); got != c.asked {
				t.Errorf("asked %s\nwant  %s", got, c.asked)
			}
			if err == nil && k.Secret != "k3y" {
				t.Errorf("got %v", k)
			}
		})
	}
}

// A connection that breaks while the metadata are asked for (net/http may ask again) has cost nothing.
func TestConnectDiscoveryCut(t *testing.T) {
	s := scripted(t, map[string][]line{wellKnown: {cut}})
	o := s.open(t, "", target.Config{Driver: "connect"})
	_, err := o.Exchange(t.Context(), ask(t, o, "t0ken", nil))
	wantTold(t, err, "target is busy: the connection failed", false)
}

// A key that was issued and not confirmed is not handed out, and may live whatever became of the question.
func TestConnectConfirms(t *testing.T) {
	const unsaid = "target's answer makes no sense: the server does not say whose the key is"
	for name, c := range map[string]struct {
		line line
		want string
	}{
		"service principal":  {line{403, service, nil}, ""},
		"user":               {line{200, `{"guid": "g", "username": "alice"}`, nil}, ""},
		"not its key":        {line{401, `{"code": 30, "error": "Invalid login."}`, nil}, "target's answer makes no sense: the server does not take the key that it issued"},
		"another refusal":    {line{403, `{"code": 23, "error": "x"}`, nil}, unsaid},
		"code as text":       {line{403, `{"code": "22"}`, nil}, unsaid},
		"a proxy's refusal":  {line{403, loginPage, nil}, unsaid},
		"login page":         {line{200, loginPage, nil}, unsaid},
		"nobody":             {line{200, `{}`, nil}, unsaid},
		"name holds the key": {line{200, `{"username": "k3y"}`, nil}, "target's answer makes no sense: a field is not printable ASCII of at most 512 bytes, or holds the key"},
		"not there":          {line{404, "", nil}, "outcome is unknown: it answered otherwise than expected (status 404)"},
		"busy":               {line{429, "", http.Header{"Retry-After": {"9"}}}, "outcome is unknown: try again later (status 429)"},
		"broken":             {line{500, "", nil}, "outcome is unknown: it answered otherwise than expected (status 500)"},
		"redirect":           {line{302, "", nil}, "outcome is unknown: it redirects, and redirects are not followed; correct the target's url (status 302)"},
		"cut":                {cut, "outcome is unknown: the connection failed"},
	} {
		t.Run(name, func(t *testing.T) {
			s := scripted(t, map[string][]line{federated: {{200, aKey, nil}}, whose: {c.line}})
			o := s.open(t, "", target.Config{Driver: "connect"})
			k, err := o.Exchange(t.Context(), ask(t, o, "t0ken", map[string]any{"flow": "federation"}))
			wantTold(t, err, c.want, c.want != "")
			if err != nil && cmp.Diff(target.Key{}, k) != "" {
				t.Error("an error and a key")
			}
			if err == nil && k.Header != "Key k3y" {
				t.Errorf("header %q", k.Header)
			}
		})
	}
}

// What a refusal means is told in words that help, and what the server says beside them.
func TestConnectHints(t *testing.T) {
	const refused = "denied by the target: it refused"
	for name, c := range map[string]struct {
		flow string
		line line
		want string
	}{
		"ambiguous":            {"oauth", line{400, `{"error": "invalid_grant", "error_description": "Ambiguous match"}`, nil}, refused + `: more than one trusted publisher or user matches the token; make their conditions exclude each other; it says "invalid_grant: Ambiguous match" (status 400)`},
		"verification":         {"oauth", line{400, `{"error": "invalid_grant", "error_description": "could not verify token signature"}`, nil}, refused + ": it could not verify the token; compare the clocks, and the issuer that it trusts with the token's" + `; it says "invalid_grant: could not verify token signature" (status 400)`},
		"no match":             {"oauth", line{400, `{"error": "invalid_grant", "error_description": "no service principal found"}`, nil}, refused + `: no trusted publisher matches the token; check the content's access and audience; it says "invalid_grant: no service principal found" (status 400)`},
		"no description":       {"oauth", line{400, `{"error": "invalid_grant"}`, nil}, refused + `: no trusted publisher matches the token; check the content's access and audience; it says "invalid_grant" (status 400)`},
		"no user":              {"federation", line{400, `{"error": "invalid_grant", "error_description": "x"}`, nil}, refused + `: no user matches the token; check the integration's match claim and audience, users are not made; it says "invalid_grant: x" (status 400)`},
		"no such audience":     {"federation", line{400, `{"error": "invalid_target"}`, nil}, refused + `: it has no such audience; check the parameter integration; it says "invalid_target" (status 400)`},
		"no such grant":        {"oauth", line{400, `{"error": "unsupported_grant_type"}`, nil}, refused + `: it does not support this exchange of tokens; it says "unsupported_grant_type" (status 400)`},
		"a client is wanted":   {"oauth", line{401, `{"error": "invalid_client"}`, nil}, refused + `: it wants a client to identify itself, which this exchange does not do; it says "invalid_client" (status 401)`},
		"federation is off":    {"federation", line{404, `{"code": 4, "error": "x"}`, nil}, refused + `: identity federation is switched off there, or the integration is unknown; it says "x" (status 404)`},
		"another code":         {"oauth", line{400, `{"error": "another"}`, nil}, refused + `: it says "another" (status 400)`},
		"a code that is a map": {"oauth", line{400, `{"error": {"a": 1}}`, nil}, refused + " (status 400)"},
		"the token in it":      {"oauth", line{400, `{"error": "another", "error_description": "t0ken"}`, nil}, refused + " (status 400)"},
		"a list":               {"oauth", line{400, `["another"]`, nil}, refused + ": the answer is not Connect's; is a login page in front of the server? (status 400)"},
		"html":                 {"oauth", line{403, loginPage, nil}, refused + ": the answer is not Connect's; is a login page in front of the server? (status 403)"},
		"an older server":      {"oauth", line{404, "", nil}, refused + ": its token endpoint is not there; flow oauth needs Connect 2026.07.0 or newer with its OAuth server switched on (status 404)"},
	} {
		t.Run(name, func(t *testing.T) {
			s := scripted(t, map[string][]line{wellKnown: {{200, metadata, nil}}, tokenPath: {c.line}, federated: {c.line}})
			o := s.open(t, "", target.Config{Driver: "connect"})
			_, err := o.Exchange(t.Context(), ask(t, o, "t0ken", map[string]any{"flow": c.flow}))
			wantTold(t, err, c.want, false)
		})
	}
}

// A key's end is what the answer says, else the token's, else what the target was told, else a guess.
func TestConnectExpiry(t *testing.T) {
	payload := func(claims string) string {
		return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
	}
	tokenEnd := scriptTime.Add(7 * time.Minute)
	withEnd := payload(fmt.Sprintf(`{"exp": %d.5}`, tokenEnd.Unix()))
	for name, c := range map[string]struct {
		answer, token string
		lifetime      time.Duration
		want          time.Duration // from now; 0 = refused
	}{
		"answer":               {`{"access_token": "k3y", "expires_in": 600}`, withEnd, time.Minute, 10 * time.Minute},
		"token":                {`{"access_token": "k3y"}`, withEnd, time.Minute, 7 * time.Minute},
		"null, token":          {`{"access_token": "k3y", "expires_in": null}`, withEnd, 0, 7 * time.Minute},
		"configured":           {`{"access_token": "k3y"}`, "opaque", 20 * time.Minute, 20 * time.Minute},
		"no exp":               {`{"access_token": "k3y"}`, payload(`{"sub": "x"}`), 20 * time.Minute, 20 * time.Minute},
		"exp is text":          {`{"access_token": "k3y"}`, payload(fmt.Sprintf(`{"exp": "%d"}`, tokenEnd.Unix())), 20 * time.Minute, 20 * time.Minute},
		"not base64":           {`{"access_token": "k3y"}`, "a.!.c", 20 * time.Minute, 20 * time.Minute},
		"guess":                {`{"access_token": "k3y"}`, "opaque", 0, time.Hour},
		"token has expired":    {`{"access_token": "k3y"}`, payload(fmt.Sprintf(`{"exp": %d}`, scriptTime.Unix())), 0, 0},
		"zero":                 {`{"access_token": "k3y", "expires_in": 0}`, withEnd, 0, 0},
		"negative":             {`{"access_token": "k3y", "expires_in": -600}`, withEnd, 0, 0},
		"fraction":             {`{"access_token": "k3y", "expires_in": 600.5}`, withEnd, 0, 0},
		"more than a year":     {`{"access_token": "k3y", "expires_in": 31622401}`, withEnd, 0, 0},
		"more than fits":       {`{"access_token": "k3y", "expires_in": 99999999999999999999}`, withEnd, 0, 0},
		"not an API key":       {`{"access_token": "k3y", "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"}`, withEnd, 0, 0},
		"what was asked for":   {`{"access_token": "k3y", "issued_token_type": "urn:posit:connect:api-key"}`, withEnd, 0, 7 * time.Minute},
		"an unusual, long one": {`{"access_token": "k3y", "expires_in": 31622400}`, withEnd, 0, 366 * 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			s := scripted(t, map[string][]line{federated: {{200, c.answer, nil}}, whose: {{403, service, nil}}})
			o := s.open(t, "", target.Config{Driver: "connect", Lifetime: c.lifetime})
			k, err := o.Exchange(t.Context(), ask(t, o, c.token, map[string]any{"flow": "federation"}))
			if c.want == 0 {
				if text, lives := told(err); text == "" || !lives {
					t.Errorf("got %v, may live %v; want a refusal, and that a key may live", err, lives)
				}
				return
			}
			if want := scriptTime.Add(c.want); err != nil || !k.Expiry.Equal(want) || k.Expiry.Location() != time.UTC {
				t.Errorf("got %v, %v; want %v", k.Expiry, err, want)
			}
		})
	}
}

// Connect's own clients take any status of success.
func TestConnectSuccess(t *testing.T) {
	for _, status := range []int{200, 201, 202, 203} {
		s := scripted(t, map[string][]line{federated: {{status, aKey, nil}}, whose: {{403, service, nil}}})
		o := s.open(t, "", target.Config{Driver: "connect"})
		if _, err := o.Exchange(t.Context(), ask(t, o, "t0ken", map[string]any{"flow": "federation"})); err != nil {
			t.Errorf("%d: %v", status, err)
		}
	}
}

func TestConnectIntegrationIsForFederation(t *testing.T) {
	s := scripted(t, nil)
	o := s.open(t, "", target.Config{Driver: "connect"})
	_, err := o.Params(map[string]any{"integration": "0b5a"})
	if err == nil || err.Error() != "parameters.integration: is for flow federation only" {
		t.Errorf("got %v", err)
	}
}

// What a target can do hangs on its credential, and so do the parameters that it takes.
func TestConnectKinds(t *testing.T) {
	s := scripted(t, nil)
	withKey := map[string]string{"api_key": "adm1n"}
	for name, c := range map[string]struct {
		config target.Config
		params map[string]any
		want   string
	}{
		"exchange":                {target.Config{}, nil, ""},
		"exchange, user":          {target.Config{}, map[string]any{"user": "g"}, "parameters.user: not a parameter of this target; it has flow, integration"},
		"exchange, user's flow":   {target.Config{}, map[string]any{"flow": "user_key"}, "parameters.flow: does not match the target's pattern for it"},
		"integration is a path":   {target.Config{}, map[string]any{"integration": "a/b"}, "parameters.integration: does not match the target's pattern for it"},
		"user keys":               {target.Config{Credential: withKey}, map[string]any{"user": "g"}, ""},
		"user keys, no user":      {target.Config{Credential: withKey}, nil, "parameters.user: is required"},
		"user keys, other flow":   {target.Config{Credential: withKey}, map[string]any{"user": "g", "flow": "oauth"}, "parameters.flow: does not match the target's pattern for it"},
		"user keys, dots":         {target.Config{Credential: withKey}, map[string]any{"user": ".."}, "parameters.user: does not match the target's pattern for it"},
		"user keys, role":         {target.Config{Credential: withKey}, map[string]any{"user": "g", "user_role": "owner"}, "parameters.user_role: does not match the target's pattern for it"},
		"user keys, token":        {target.Config{Credential: withKey, Source: target.SourceRequest}, nil, "subject_token_source: want none: with a credential, no token is exchanged"},
		"user keys, empty key":    {target.Config{Credential: map[string]string{"api_key": ""}}, nil, `credential: field "api_key" is missing or longer than 16384 bytes; give credential=api_key=VALUE, or credential=@FILE with JSON`},
		"user keys, line break":   {target.Config{Credential: map[string]string{"api_key": "k\n"}}, nil, `credential: field "api_key" is not printable ASCII; has it a line break?`},
		"operator's, line break":  {target.Config{Driver: "git-proxy-java", Credential: map[string]string{"api_key": "k\n"}}, nil, `credential: field "api_key" is not printable ASCII; has it a line break?`},
		"user keys, lifetime":     {target.Config{Credential: withKey, Lifetime: time.Hour}, nil, "lifetime: this kind of target knows how long its keys live"},
		"exchange, no token":      {target.Config{Source: target.SourceNone}, nil, "subject_token_source: is none, but this kind of target wants a subject token"},
		"exchange, lifetime":      {target.Config{Lifetime: 367 * 24 * time.Hour}, nil, "lifetime: want a duration of at most a year"},
		"exchange, life negative": {target.Config{Lifetime: -1}, nil, "lifetime: want a duration of at most a year"},
		"another kind, lifetime":  {target.Config{Driver: "nuget", Lifetime: time.Hour}, nil, "lifetime: this kind of target knows how long its keys live"},
	} {
		t.Run(name, func(t *testing.T) {
			c.config.URL = "https://connect.example"
			if c.config.Driver == "" {
				c.config.Driver = "connect"
			}
			o, err := target.Open(c.config)
			if err == nil {
				_, err = o.Params(c.params)
			}
			if got := fieldError(t, err); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
	if got := s.requests(); got != "" {
		t.Errorf("asked %s", got)
	}
}

func TestConnectCheck(t *testing.T) {
	const settings = "GET /__api__/server_settings"
	for name, c := range map[string]struct {
		key  bool
		line line
		want string
	}{
		"there":                   {false, line{200, `{"version": "2026.07.0"}`, nil}, ""},
		"login page":              {false, line{200, loginPage, nil}, "target's answer makes no sense: the answer is not Connect's; is a login page in front of the server?"},
		"not there":               {false, line{404, "", nil}, "denied by the target: it refused (status 404)"},
		"key":                     {true, line{200, `{"username": "engine"}`, nil}, ""},
		"key, login page":         {true, line{200, loginPage, nil}, "target's answer makes no sense: the answer is not Connect's; is a login page in front of the server?"},
		"key has expired":         {true, line{401, `{"code": 30}`, nil}, "denied by the target: it refused: the credential is wrong or has expired (status 401)"},
		"service principal's key": {true, line{403, service, nil}, "denied by the target: it refused: the credential is a service principal's key, which can make no keys (status 403)"},
	} {
		t.Run(name, func(t *testing.T) {
			s := scripted(t, map[string][]line{settings: {c.line}, whose: {c.line}})
			config := target.Config{Driver: "connect"}
			if c.key {
				config.Credential = map[string]string{"api_key": "adm1n"}
			}
			err := s.open(t, "", config).Check(t.Context())
			if text, _ := told(err); text != c.want {
				t.Errorf("got  %s\nwant %s", text, c.want)
			}
		})
	}
}
