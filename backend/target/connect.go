// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The values of the parameter flow: how a key is obtained from Posit Connect.
const (
	flowOAuth      = "oauth"      // a key of a service principal, from the OAuth server
	flowFederation = "federation" // a key of an existing user, by identity federation
	flowUserKey    = "user_key"   // a key of the credential's own user, by the API
)

// The names of RFC 8693, and Connect's own.
const (
	tokenExchangeGrant = "urn:ietf:params:oauth:grant-type:token-exchange"
	idTokenType        = "urn:ietf:params:oauth:token-type:id_token"
	accessTokenType    = "urn:ietf:params:oauth:token-type:access_token"
	connectKeyType     = "urn:posit:connect:api-key"
)

// Codes of the errors of Connect's API.
const codeNoPermission = 22

// connectLifetime is assumed for a key if neither the answer nor the subject token states its expiry. Connect calls such keys
// short-lived and publishes no number. If the guess is too long, a key is shown as exposed that has expired; if it is too
// short, a valid key is not shown.
const connectLifetime = time.Hour

const guid = "[0-9A-Za-z-]{1,64}"

// connectDriver speaks to Posit Connect, which issues keys in three ways. Keys that are exchanged for a subject token have
// no id and end by themselves; keys of the API have one, and are ended by it.
type connectDriver struct {
	api      *api
	apiKey   string        // credential; "" = keys are exchanged
	lifetime time.Duration // of an exchanged key whose expiry is not stated
}

// connectKind returns the kind of target that c describes. It depends only on whether c has a credential: with one, a target
// issues only keys that can be revoked, and without one, only keys that cannot.
func connectKind(c Config) (facts, func(*Target) driver, error) {
	kind := facts{
		name: "connect", source: SourceRequest, audience: "connect", wantsToken: true,
		optional: []string{"api_key"}, lifetime: connectLifetime, guessed: true, headerName: "Authorization",
		params: parameters{
			{name: "flow", kind: kindString, pattern: exactly(flowOAuth + "|" + flowFederation), def: flowOAuth},
			{name: "integration", kind: kindString, pattern: exactly(guid)},
		},
		together: connectTogether,
	}
	if c.Credential["api_key"] == "" {
		return kind, func(t *Target) driver {
			d := &connectDriver{api: t.api, lifetime: t.kind.lifetime}
			return driver{exchange: d.trade, check: d.greet}
		}, nil
	}
	if c.Source != "" && c.Source != SourceNone {
		return facts{}, nil, fieldErrorf("subject_token_source", "want none: with a credential, no token is exchanged")
	}
	if err := checkAPIKey(c); err != nil {
		return facts{}, nil, err
	}
	kind.source, kind.audience, kind.wantsToken, kind.lifetime, kind.guessed = SourceNone, "", false, 0, false
	kind.together = nil
	kind.params = parameters{
		{name: "flow", kind: kindString, pattern: exactly(flowUserKey), def: flowUserKey},
		{name: "user", kind: kindString, required: true, pattern: exactly(guid)},
		{name: "user_role", kind: kindString, pattern: exactly("administrator|publisher|viewer")},
	}
	kind.placed = []string{"user"}
	return kind, func(t *Target) driver {
		d := &connectDriver{api: t.api, apiKey: t.credential["api_key"]}
		return driver{exchange: d.create, revoke: d.delete, find: d.find, list: d.list, check: d.checkCredential}
	}, nil
}

func connectTogether(params map[string]any) *FieldError {
	if _, given := params["integration"]; given && params["flow"] != flowFederation {
		return fieldErrorf("parameters.integration", "is for flow %s only", flowFederation)
	}
	return nil
}

// checkAPIKey refuses a credential that cannot stand in a header, usually because it has the line break of its file.
func checkAPIKey(c Config) error {
	if !printable(c.Credential["api_key"]) {
		return fieldErrorf("credential", `field "api_key" is not printable ASCII; has it a line break?`)
	}
	return nil
}

// exactly makes a pattern that the whole of a text must match.
func exactly(pattern string) *regexp.Regexp { return regexp.MustCompile(`\A(?:` + pattern + `)\z`) }

// call makes a call of Connect's API.
func (d *connectDriver) call(op, method, key string, path ...string) call {
	c := call{op: op, method: method, segments: append([]string{"__api__"}, path...), header: http.Header{}, busy: []int{429, 503}}
	if key != "" {
		c.header.Set("Authorization", "Key "+key)
	}
	return c
}

// trade exchanges the subject token for a key, and confirms the key. The token may be good only once.
func (d *connectDriver) trade(ctx context.Context, r Request) (Key, error) {
	const op = "exchange"
	c, err := d.exchangeCall(ctx, op, r)
	if err != nil {
		return Key{}, err
	}
	sent := d.api.now()
	answered, err := d.api.do(ctx, c)
	if err != nil {
		return Key{}, err
	}
	k, err := d.tradedKey(op, answered, r, sent)
	if err != nil {
		return Key{}, err
	}
	username, err := d.confirm(ctx, op, k.Secret)
	if err != nil {
		return Key{}, err
	}
	if username != "" {
		k.Fields = map[string]string{"username": username}
	}
	if fault := k.check(d.api.now()); fault != "" { // checks the username too
		return Key{}, protocol(op, "%s", fault)
	}
	return k, nil
}

// exchangeCall builds the call that sends the token. After an error, nothing was issued.
func (d *connectDriver) exchangeCall(ctx context.Context, op string, r Request) (call, error) {
	flow, _ := r.Params["flow"].(string)
	form := url.Values{
		"grant_type": {tokenExchangeGrant}, "subject_token_type": {idTokenType}, "subject_token": {r.SubjectToken},
	}
	c := d.call(op, http.MethodPost, "", "v1", "oauth", "integrations", "credentials")
	if flow == flowFederation {
		form.Set("requested_token_type", connectKeyType)
		if integration, _ := r.Params["integration"].(string); integration != "" {
			form.Set("audience", integration)
		}
	} else {
		endpoint, err := d.discover(ctx, op)
		if err != nil {
			return call{}, beforehand(err)
		}
		form.Set("requested_token_type", accessTokenType)
		c.url = endpoint
	}
	c.body = []byte(form.Encode())
	c.header.Set("Content-Type", "application/x-www-form-urlencoded")
	c.ok, c.denied, c.wantBody = anySuccess, []int{400, 401, 403, 404, 405, 415, 422}, true
	c.hint = func(a answer) string { return exchangeHint(flow, a, r.SubjectToken) }
	return c, nil
}

// discover asks the server for its token endpoint. Connect has its OAuth metadata below the server's own path. If they are not
// there, discover tries the address of RFC 8414 section 3.1, which has that path after the well-known one.
func (d *connectDriver) discover(ctx context.Context, op string) (*url.URL, error) {
	c := call{
		op: op, method: http.MethodGet, segments: []string{".well-known", "oauth-authorization-server"}, header: http.Header{},
		ok: []int{200}, busy: []int{429, 503}, denied: []int{401, 403, 404, 405, 410, 501}, wantBody: true,
		hint: func(answer) string {
			return "it has no OAuth metadata; flow oauth needs Connect 2026.07.0 or newer with its OAuth server switched on"
		},
	}
	path := strings.Trim(d.api.base.EscapedPath(), "/")
	if path != "" {
		c.absent = func(a answer) bool { return a.status == http.StatusNotFound } // even if it is a web page
	}
	answered, err := d.api.do(ctx, c)
	if err == nil && answered.status == http.StatusNotFound {
		c.url, err = d.api.base.Parse("/.well-known/oauth-authorization-server/" + path)
		if err != nil {
			return nil, protocol(op, "the target's url has no well-known address")
		}
		c.absent = nil
		answered, err = d.api.do(ctx, c)
	}
	if err != nil {
		return nil, err
	}
	return d.endpoint(op, answered)
}

// endpoint reads the token endpoint from the metadata. It may have any path and query, but must be on the server's own origin:
// otherwise whoever writes the metadata could collect tokens.
func (d *connectDriver) endpoint(op string, a answer) (*url.URL, error) {
	metadata := object(a.body)
	text, _ := metadata["token_endpoint"].(string)
	if text == "" {
		return nil, protocol(op, "its OAuth metadata name no token endpoint; is a login page in front of the server?")
	}
	if grants, isList := metadata["grant_types_supported"].([]any); isList && !slices.Contains(grants, any(tokenExchangeGrant)) {
		return nil, protocol(op, "its OAuth server does not support the exchange of tokens")
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != d.api.base.Scheme || u.Host != d.api.base.Host || u.User != nil || u.Fragment != "" {
		return nil, protocol(op, "its token endpoint is not on the target's own origin; correct the target's url")
	}
	return u, nil
}

// exchangeHint says what to correct after a refused exchange, and what the server says about it.
func exchangeHint(flow string, a answer, token string) string {
	refusal := object(a.body)
	code, _ := refusal["error"].(string)
	about, _ := refusal["error_description"].(string)
	hint := exchangeCause(flow, a.status, code, strings.ToLower(about))
	if hint == "" && refusal == nil {
		hint = "the answer is not Connect's; is a login page in front of the server?"
	}
	return withSaid(hint, []string{token}, code, about)
}

// exchangeCause says what to correct after a refusal, "" if that is unknown. The server's texts that it looks for come from the
// tests of Connect's clients.
func exchangeCause(flow string, status int, code, about string) string {
	switch {
	case code == "invalid_grant" && strings.Contains(about, "ambiguous"):
		return "more than one trusted publisher or user matches the token; make their conditions exclude each other"
	case code == "invalid_grant" && strings.Contains(about, "verif"):
		return "it could not verify the token; compare the clocks, and the issuer that it trusts with the token's"
	case code == "invalid_grant" && flow == flowFederation:
		return "no user matches the token; check the integration's match claim and audience, users are not made"
	case code == "invalid_grant":
		return "no trusted publisher matches the token; check the content's access and audience"
	case code == "invalid_target":
		return "it has no such audience; check the parameter integration"
	case code == "unsupported_grant_type" || code == "unsupported_token_type":
		return "it does not support this exchange of tokens"
	case code == "invalid_client" || code == "unauthorized_client":
		return "it wants a client to identify itself, which this exchange does not do"
	case flow == flowFederation && (status == http.StatusNotFound || status == http.StatusForbidden):
		return "identity federation is switched off there, or the integration is unknown"
	case status == http.StatusNotFound || status == http.StatusMethodNotAllowed:
		return "its token endpoint is not there; flow oauth needs Connect 2026.07.0 or newer with its OAuth server switched on"
	}
	return ""
}

// tradedKey reads the key from an answer. From here on a key exists, so every fault is ErrProtocol.
func (d *connectDriver) tradedKey(op string, a answer, r Request, sent time.Time) (Key, error) {
	body := object(a.body)
	secret, _ := body["access_token"].(string)
	if issued, given := body["issued_token_type"]; given && r.Params["flow"] == flowFederation && issued != connectKeyType {
		return Key{}, protocol(op, "what was issued is not an API key")
	}
	expiry, err := d.tradedExpiry(op, body["expires_in"], r.SubjectToken, sent)
	if err != nil {
		return Key{}, err
	}
	k := Key{Secret: secret, Expiry: expiry, Header: "Key " + secret, Handle: Handle{Name: r.Name, Params: r.Params}}
	if fault := k.check(d.api.now()); fault != "" {
		return Key{Expiry: expiry}, protocol(op, "%s", fault)
	}
	return k, nil
}

// tradedExpiry returns when a key ends: as the answer says; if it does not, with the subject token, as Connect's own clients
// assume; if that has no expiry, after the target's lifetime.
func (d *connectDriver) tradedExpiry(op string, expiresIn any, token string, sent time.Time) (time.Time, error) {
	if expiresIn == nil {
		if end := tokenExpiry(token); !end.IsZero() {
			return end, nil
		}
		return sent.Add(d.lifetime).UTC(), nil
	}
	number, _ := expiresIn.(json.Number)
	seconds, err := number.Int64()
	if err != nil || seconds > int64(maxKeyLifetime/time.Second) {
		return time.Time{}, protocol(op, "expires_in is not a number of seconds within a year")
	}
	return sent.Add(time.Duration(max(seconds, 0)) * time.Second).UTC(), nil
}

// tokenExpiry returns the exp of a token, zero if it has none. It does not verify the token, which others have done.
func tokenExpiry(token string) time.Time {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}
	}
	number, _ := object(payload)["exp"].(json.Number)
	seconds, err := number.Float64()
	if err != nil || seconds < 1 || seconds > math.MaxInt32*4 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0).UTC()
}

// confirm asks the server who has the key: a user, whose name it returns, or a service principal, which it reports by a
// particular refusal. A key that is neither is not handed out.
func (d *connectDriver) confirm(ctx context.Context, op, key string) (username string, err error) {
	c := d.call(op, http.MethodGet, key, "v1", "user")
	c.ok, c.wantBody = []int{200, 401, 403}, true
	a, err := d.api.do(ctx, c)
	if err != nil {
		return "", afterwards(err)
	}
	body := object(a.body)
	username, _ = body["username"].(string)
	switch {
	case a.status == http.StatusOK && username != "":
		return username, nil
	case a.status == http.StatusForbidden && connectCode(a) == codeNoPermission:
		return "", nil
	case a.status == http.StatusUnauthorized:
		return "", protocol(op, "the server does not take the key that it issued")
	}
	return "", protocol(op, "the server does not say whose the key is")
}

// greet checks that the server is up. It needs no key.
func (d *connectDriver) greet(ctx context.Context) error {
	const op = "check"
	c := d.call(op, http.MethodGet, "", "server_settings")
	c.ok, c.denied, c.wantBody = []int{200}, []int{401, 403, 404}, true
	a, err := d.api.do(ctx, c)
	if err != nil {
		return err
	}
	if object(a.body) == nil {
		return protocol(op, "the answer is not Connect's; is a login page in front of the server?")
	}
	return nil
}

// object decodes a JSON object, nil if the text is something else.
func object(text []byte) map[string]any {
	value, ok := decodeJSON(text)
	members, isObject := value.(map[string]any)
	if !ok || !isObject {
		return nil
	}
	return members
}

// connectCode is the code of an error of Connect's API, 0 if there is none.
func connectCode(a answer) int64 {
	number, _ := object(a.body)["code"].(json.Number)
	code, _ := number.Int64()
	return code
}
