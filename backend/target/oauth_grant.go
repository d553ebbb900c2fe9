// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxHops      = 4
	maxLife      = 10 * 365 * 24 * time.Hour // a longer one is cut to this
	spiffeScheme = "spiffe://"
)

var (
	scopeToken    = regexp.MustCompile(`\A[\x21\x23-\x5B\x5D-\x7E]+\z`)                    // RFC 6749 section 3.3
	resourceURI   = regexp.MustCompile(`\A[A-Za-z][A-Za-z0-9+.-]*:[\x21\x22\x24-\x7E]+\z`) // RFC 8707 section 2: absolute, no fragment
	clientRefuses = []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden}
)

// hop is one request to a token endpoint.
type hop struct {
	grant             string
	endpoint          *url.URL // nil = the target's
	assertionAudience string
	spiffeID          string // as which the engine makes it
	audience          string
	resource, scopes  []string
	requested         string // URN of the type of token that is wanted
	actorSource       string // "" = no actor token
	label             string // "" if there is only one hop
}

// writtenHop is a hop before the last one, as OAuth.Chain has it.
type writtenHop struct {
	TokenURL           string   `json:"token_url"`            // default the target's
	AssertionAudience  string   `json:"assertion_audience"`   // default the hop's token_url, or the target's
	SPIFFEID           string   `json:"spiffe_id"`            // default the target's
	Audience           string   `json:"audience"`             // of the token that it yields; default the next hop's spiffe_id
	Resource           []string `json:"resource"`             //
	Scopes             []string `json:"scopes"`               //
	RequestedTokenType string   `json:"requested_token_type"` // default access_token
}

// setHops makes the hops.
func (o *oauth) setHops(a OAuth, issuer string) error {
	switch {
	case a.SubjectTokenType != "" && a.Grant != grantTokenExchange && a.Chain == "":
		return fieldErrorf("subject_token_type", "is for token exchanges; grant is %s", a.Grant)
	case a.SubjectTokenType != "" && !tokenType.MatchString(a.SubjectTokenType):
		return fieldErrorf("subject_token_type", "want jwt, id_token, access_token, or a URN")
	case a.Chain != "" && a.Grant == grantClientCredentials:
		return fieldErrorf("chain", "yields a subject token, and grant client_credentials sends none")
	case len(a.AssertionAudience) > maxTextBytes || !printable(a.AssertionAudience):
		return fieldErrorf("assertion_audience", "want printable ASCII of at most %d bytes", maxTextBytes)
	case a.SPIFFEID != "" && !strings.HasPrefix(a.SPIFFEID, spiffeScheme):
		return fieldErrorf("spiffe_id", "want spiffe://<trust domain>/<path>")
	}
	o.subjectType = typeURN(a.SubjectTokenType, tokenTypes+"jwt")
	last := hop{
		grant: a.Grant, spiffeID: a.SPIFFEID, requested: typeAccessToken,
		// Never an address from the issuer's document: a server could name another server there, and use the engine's assertion
		// at it.
		assertionAudience: cmp.Or(a.AssertionAudience, a.TokenURL, issuer),
	}
	chain, err := o.readChain(a.Chain, last)
	if err != nil {
		return fieldErrorf("chain", "%v", err)
	}
	o.hops = append(chain, last)
	for i := range o.hops {
		if len(o.hops) > 1 {
			o.hops[i].label = fmt.Sprintf("hop %d of %d: ", i+1, len(o.hops))
		}
		if o.discovery != nil && o.hops[i].endpoint == nil && o.fixed.token == nil {
			o.discovery.grants = append(o.discovery.grants, o.hops[i].grant)
		}
	}
	return nil
}

// readChain reads the hops before the last one.
func (o *oauth) readChain(text string, last hop) ([]hop, error) {
	if text == "" {
		return nil, nil
	}
	var written []writtenHop
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if d.Decode(&written) != nil || len(written) == 0 || len(written) >= maxHops {
		return nil, fmt.Errorf("want a JSON list of 1 to %d objects with token_url, assertion_audience, spiffe_id, audience, resource, scopes, requested_token_type, or some of them", maxHops-1)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("has text after the list")
	}
	hops := make([]hop, len(written))
	next := last
	for i := len(written) - 1; i >= 0; i-- {
		var err error
		if hops[i], err = o.readHop(written[i], last, next); err != nil {
			return nil, fmt.Errorf("hop %d: %v", i+1, err)
		}
		next = hops[i]
	}
	return hops, nil
}

// readHop fills in a hop's defaults. Server and identity are those of the last hop; the audience of its token is the identity
// that makes the next hop.
func (o *oauth) readHop(w writtenHop, last, next hop) (hop, error) {
	h := hop{
		grant:             grantTokenExchange,
		assertionAudience: cmp.Or(w.AssertionAudience, w.TokenURL, last.assertionAudience),
		spiffeID:          cmp.Or(w.SPIFFEID, last.spiffeID),
		audience:          cmp.Or(w.Audience, next.spiffeID),
		resource:          w.Resource,
		scopes:            w.Scopes,
		requested:         typeURN(w.RequestedTokenType, typeAccessToken),
	}
	if w.TokenURL != "" {
		var err error
		if h.endpoint, err = o.endpoint(w.TokenURL); err != nil {
			return hop{}, fmt.Errorf("token_url: %v", err)
		}
	}
	return h, h.check()
}

func (h hop) check() error {
	switch {
	case h.audience == "":
		return errors.New("audience: is required where the next hop has no spiffe_id")
	case !printable(h.audience) || !printable(h.assertionAudience) || len(h.audience)+len(h.assertionAudience) > maxTextBytes:
		return fmt.Errorf("audience, assertion_audience: want printable ASCII of at most %d bytes", maxTextBytes)
	case h.spiffeID != "" && !strings.HasPrefix(h.spiffeID, spiffeScheme):
		return errors.New("spiffe_id: want spiffe://<trust domain>/<path>")
	case !tokenType.MatchString(h.requested):
		return errors.New("requested_token_type: want access_token, jwt, or a URN")
	case len(h.resource)+len(h.scopes) > maxParamElements:
		return fmt.Errorf("resource, scopes: want at most %d", maxParamElements)
	}
	for _, r := range h.resource {
		if !resourceURI.MatchString(r) || len(r) > maxParamBytes {
			return errors.New("resource: want absolute URIs without fragment")
		}
	}
	for _, s := range h.scopes {
		if !scopeToken.MatchString(s) || len(s) > maxParamBytes {
			return errors.New("scopes: want printable ASCII without spaces, quotes and backslashes")
		}
	}
	return nil
}

// asked returns the last hop with what a role asks for.
func (h hop) asked(params map[string]any) hop {
	list := func(name string) (out []string) {
		elements, _ := params[name].([]any)
		for _, element := range elements {
			text, _ := element.(string)
			out = append(out, text)
		}
		return out
	}
	h.audience, _ = params["audience"].(string)
	h.resource, h.scopes = list("resource"), list("scopes")
	if requested, _ := params["requested_token_type"].(string); requested != "" {
		h.requested = typeURN(requested, "")
	}
	if h.actorSource, _ = params["actor_token_source"].(string); h.actorSource == "none" {
		h.actorSource = ""
	}
	return h
}

// form returns the form of a hop's request, without the client's authentication.
func (h hop) form(subject, subjectType string) url.Values {
	form := url.Values{"grant_type": {grantTypes[h.grant]}}
	switch h.grant {
	case grantTokenExchange:
		form.Set("subject_token", subject)
		form.Set("subject_token_type", subjectType)
		form.Set("requested_token_type", h.requested)
	case grantJWTBearer:
		form.Set("assertion", subject)
	}
	if h.audience != "" {
		form.Set("audience", h.audience)
	}
	if len(h.scopes) > 0 {
		form.Set("scope", strings.Join(h.scopes, " "))
	}
	for _, r := range h.resource {
		form.Add("resource", r)
	}
	return form
}

// granted is what a token endpoint returned.
type granted struct {
	token, scope string
	life         time.Duration // 0 = not stated; less = it is over
	sent         time.Time
}

// exchange makes the hops in order. If a later hop fails, the token of an earlier one is not a lost key: nobody was given it,
// and it expires by itself.
func (o *oauth) exchange(ctx context.Context, r Request) (Key, error) {
	const op = "exchange"
	to, err := o.locate(ctx, op, false)
	if err != nil {
		return Key{}, err
	}
	var got granted
	token, kind, last := r.SubjectToken, o.subjectType, len(o.hops)-1
	for i, h := range o.hops {
		if i == last {
			h = h.asked(r.Params)
		}
		if h.endpoint == nil {
			h.endpoint = to.token
		}
		got, err = o.grant(ctx, op, h, token, kind)
		if err != nil && i > 0 {
			err = spent(err)
		}
		switch {
		case err != nil && i < last:
			return Key{}, err
		case err != nil:
			return Key{Handle: o.handle(got, r), Expiry: got.end()}, err
		}
		token, kind = got.token, h.requested
	}
	return o.key(op, got, r)
}

// end returns the expiry that the server stated; zero = none.
func (g granted) end() time.Time {
	if g.life <= 0 {
		return time.Time{}
	}
	return g.sent.Add(g.life).UTC()
}

// handle returns what is needed to revoke the token, or to ask whether it is active.
func (o *oauth) handle(got granted, r Request) Handle {
	h := Handle{Name: r.Name, Params: r.Params}
	if o.revokes || o.introspects {
		h.Secret = got.token
	}
	return h
}

// grant makes one request. If it refuses the answer, it returns the error with the token of the answer, if there is one.
func (o *oauth) grant(ctx context.Context, op string, h hop, subject, subjectType string) (granted, error) {
	form := h.form(subject, subjectType)
	if h.actorSource != "" {
		actor, err := o.own(ctx, op, h.actorSource, h)
		if err != nil {
			return granted{}, err
		}
		form.Set("actor_token", actor)
		form.Set("actor_token_type", tokenTypes+"jwt")
	}
	c := call{
		op: op, url: h.endpoint, wantBody: true,
		ok: anySuccess, busy: []int{429, 503}, denied: slices.Concat(clientRefuses, []int{404, 405, 413, 415, 422}),
	}
	if err := o.prepare(ctx, &c, h, form); err != nil {
		return granted{}, err
	}
	sent := o.api.now()
	answered, err := o.api.do(ctx, c)
	if e := (*Error)(nil); errors.As(err, &e) {
		e.Text = h.label + e.Text
		return granted{}, e
	}
	got, fault := readGrant(answered.body, h)
	got.sent = sent
	if fault != "" {
		return got, protocol(op, "%s%s", h.label, fault)
	}
	return got, nil
}

// prepare completes a call that posts a form as the engine's client.
func (o *oauth) prepare(ctx context.Context, c *call, h hop, form url.Values) error {
	c.method, c.header = http.MethodPost, http.Header{}
	c.header.Set("Content-Type", "application/x-www-form-urlencoded")
	if err := o.authenticate(ctx, c.op, h, form, c.header); err != nil {
		return err
	}
	c.body = []byte(form.Encode())
	sent := []string{o.secret, url.QueryEscape(o.secret), c.header.Get("Authorization"), c.url.RawQuery}
	for _, name := range secretMembers {
		sent = append(sent, form.Get(name))
	}
	c.hint = func(a answer) string { return errorHint(a, sent) }
	return nil
}

// readGrant reads an answer of a token endpoint (RFC 6749 section 5.1, RFC 8693 section 2.2.1). fault says what is wrong, if
// anything is. Even with a fault a token exists, and got has it, unless the fault is the token's own.
func readGrant(body []byte, h hop) (got granted, fault string) {
	object := objectOf(body)
	if object == nil {
		return got, "the answer is no JSON object"
	}
	life, timed := lifeOf(object["expires_in"])
	got.life = life
	token, _ := object["access_token"].(string)
	switch {
	case token == "":
		return got, "no access_token in the answer"
	case !token68.MatchString(token) || len(token) > maxSecretBytes:
		return got, fmt.Sprintf("access_token is no bearer token of at most %d bytes", maxSecretBytes)
	}
	if issued, has := object["issued_token_type"]; has && issued != any(h.requested) {
		// Not returned to be ended: revocation answers 200 even for an unknown token (RFC 7009 section 2.2), as this may be.
		return got, "issued_token_type is not what was requested"
	}
	got.token = token
	got.scope, _ = object["scope"].(string)
	kind, hasKind := object["token_type"]
	kindText, _ := kind.(string)
	switch {
	case !timed:
		return got, "expires_in is no number of seconds"
	// The key is presented as a bearer token, so a token that needs more (a proof, a certificate) is of no use.
	case hasKind && !strings.EqualFold(kindText, "Bearer") && !(h.requested != typeAccessToken && strings.EqualFold(kindText, "N_A")):
		return got, "token_type is not Bearer"
	}
	return got, ""
}

// objectOf decodes exactly one JSON object; nil = the body is something else.
func objectOf(body []byte) map[string]any {
	value, ok := decodeJSON(body)
	object, _ := value.(map[string]any)
	if !ok {
		return nil
	}
	return object
}

// secondsOf reads a number of seconds, which some servers write as a text.
func secondsOf(value any) (seconds float64, ok bool) {
	text, _ := value.(string)
	if number, isNumber := value.(json.Number); isNumber {
		text = string(number)
	}
	seconds, err := strconv.ParseFloat(text, 64)
	return math.Floor(seconds), err == nil && !math.IsNaN(seconds) && !math.IsInf(seconds, 0)
}

// lifeOf reads expires_in: 0 = there is none, less = the token has expired. ok is false if it is not a number of seconds.
func lifeOf(value any) (life time.Duration, ok bool) {
	if value == nil {
		return 0, true
	}
	seconds, ok := secondsOf(value)
	if seconds <= 0 {
		return -1, ok
	}
	return time.Duration(min(seconds, maxLife.Seconds())) * time.Second, ok
}

// key makes a key of the last hop's token.
func (o *oauth) key(op string, got granted, r Request) (Key, error) {
	if got.life == 0 {
		got.life = o.lifetime
	}
	h := o.handle(got, r)
	if got.life == 0 {
		return Key{Handle: h}, protocol(op, "the answer has no expires_in; set the target's lifetime to what the server documents")
	}
	k := Key{Secret: got.token, Header: "Bearer " + got.token, Expiry: got.sent.Add(got.life).UTC(), Handle: h}
	if got.scope != "" && len(got.scope) <= maxAccessorBytes && printable(got.scope) && !strings.Contains(got.scope, got.token) {
		k.Fields = map[string]string{"scope": got.scope}
	}
	if fault := k.check(o.api.now()); fault != "" {
		return Key{Handle: h, Expiry: got.end()}, protocol(op, "%s", fault)
	}
	return k, nil
}
