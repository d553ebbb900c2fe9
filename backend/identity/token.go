// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	maxKeyIDBytes   = 256
	maxTokenIDBytes = 256
	maxNameBytes    = 1024 // of iss, sub, and each aud
	maxTime         = 1 << 33
)

// registeredHeaders are the header parameters that some JOSE library acts on.
var registeredHeaders = []string{"alg", "kid", "typ", "cty", "crit", "b64", "zip", "enc", "jwk", "jku", "x5u", "x5c", "x5t",
	"x5t#S256", "nonce", "url", "epk", "apu", "apv", "iv", "tag", "p2s", "p2c"}

// refusedHeaders would let a token bring its own key, hide what is signed, or be something else than a plain signed JWT. x5t
// and x5t#S256 are not among them: they bring nothing, kid alone names the key, and every token of GitHub Actions has one.
var refusedHeaders = []string{"jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "enc", "cty"}

// registeredClaims are the claims that a library or the engine itself acts on.
var registeredClaims = []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "azp", "nonce", "at_hash", "c_hash",
	"auth_time", "acr", "amr", "act", "may_act", "cnf", "client_id", "scope", "events", "_claim_names", "_claim_sources"}

// segments are the decoded parts of a compact token.
type segments struct {
	header, payload string
	signed          string // the first two parts as they stand in the token: what the signature covers
	signature       int    // bytes
}

// unverified is a token that was parsed but not verified. Every parser reads it the same way.
type unverified struct {
	token  string
	limits limits // under which it was read
	parts  segments
	header
	payload
}

func read(token string, maxBytes int, l limits) (*unverified, error) {
	s, err := split(token, maxBytes)
	if err != nil {
		return nil, err
	}
	h, err := parseHeader(s.header, l)
	if err != nil {
		return nil, err
	}
	p, err := parsePayload(s.payload, l)
	if err != nil {
		return nil, err
	}
	return &unverified{token: token, limits: l, parts: s, header: h, payload: p}, nil
}

// split takes a token apart if it is one in JWS compact form and spelt in the only way that its bytes can be: exactly two
// dots, the base64url alphabet and nothing else, no padding, no stray trailing bits. One identity then has one spelling,
// and nothing is left for a laxer parser to strip.
func split(token string, maxBytes int) (segments, error) {
	if len(token) > maxBytes {
		return segments{}, refuse(TokenMalformed, "larger than "+strconv.Itoa(maxBytes)+" bytes")
	}
	var dots [2]int
	n := 0
	for i := range len(token) {
		switch c := token[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		case c == '.' && n < len(dots):
			dots[n] = i
			n++
		default:
			return segments{}, refuse(TokenMalformed, "not three base64url parts with dots between them")
		}
	}
	if n < len(dots) || dots[0] == 0 || dots[1] == dots[0]+1 {
		return segments{}, refuse(TokenMalformed, "not three base64url parts with dots between them")
	}
	return decode(token, dots)
}

func decode(token string, dots [2]int) (segments, error) {
	strict := base64.RawURLEncoding.Strict()
	buf := make([]byte, 0, len(token))
	var ends [3]int
	for i, part := range [...]string{token[:dots[0]], token[dots[0]+1 : dots[1]], token[dots[1]+1:]} {
		var err error
		if buf, err = strict.AppendDecode(buf, []byte(part)); err != nil {
			return segments{}, refuse(TokenMalformed, "not canonical base64url")
		}
		ends[i] = len(buf)
	}
	text := string(buf[:ends[1]])
	return segments{
		header:    text[:ends[0]],
		payload:   text[ends[0]:],
		signed:    token[:dots[1]],
		signature: ends[2] - ends[1],
	}, nil
}

// header has the parts of a token's header that are used. All others are refused or have no effect.
type header struct {
	alg, kid, typ string
	hasKid        bool
	hasTyp        bool
}

func parseHeader(text string, l limits) (header, error) {
	m, err := parseObject(text, l)
	if err != nil {
		return header{}, refuse(TokenMalformed, "header: "+err.Error())
	}
	if imitates(m, registeredHeaders) {
		return header{}, refuse(TokenMalformed, "header: a name that differs from a registered one in case alone")
	}
	for _, name := range refusedHeaders {
		if _, ok := m[name]; ok {
			return header{}, refuse(TokenMalformed, "header: "+name+" is not accepted")
		}
	}
	for _, name := range [...]string{"x5t", "x5t#S256"} { // not used here, but other parsers refuse what is no text
		if _, _, ok := stringMember(m, name); !ok {
			return header{}, refuse(TokenMalformed, "header: "+name+" is not a string")
		}
	}
	var h header
	var hasAlg, ok bool
	if h.alg, hasAlg, ok = stringMember(m, "alg"); !ok {
		return header{}, refuse(TokenMalformed, "header: alg is not a string")
	}
	if !hasAlg {
		return header{}, refuse(Algorithm, "header: alg is missing")
	}
	if h.typ, h.hasTyp, ok = stringMember(m, "typ"); !ok {
		return header{}, refuse(TokenMalformed, "header: typ is not a string")
	}
	if h.kid, h.hasKid, ok = stringMember(m, "kid"); !ok || h.hasKid && !isKeyID(h.kid) {
		return header{}, refuse(TokenMalformed, "header: kid is not a string of 1 to 256 printable ASCII characters")
	}
	return h, nil
}

// stringMember reads a member that is absent or a string.
func stringMember(m map[string]any, name string) (value string, present, ok bool) {
	v, present := m[name]
	if !present {
		return "", false, true
	}
	value, ok = v.(string)
	return value, true, ok
}

// isKeyID keeps key ids fit for logs and status pages; it serves tokens and key sets alike.
func isKeyID(s string) bool {
	if s == "" || len(s) > maxKeyIDBytes {
		return false
	}
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// payload is a token's payload: the members that verification needs, and all of them as a map. Only after the signature was
// verified may they be treated as claims.
type payload struct {
	iss, sub, jti string // iss and jti are "" if absent
	aud           []string
	iat, exp, nbf int64 // Unix seconds; nbf is 0 if absent
	all           map[string]any
}

func parsePayload(text string, l limits) (payload, error) {
	m, err := parseObject(text, l)
	if err != nil {
		return payload{}, refuse(TokenMalformed, "payload: "+err.Error())
	}
	if imitates(m, registeredClaims) {
		return payload{}, refuse(TokenMalformed, "payload: a name that differs from a registered one in case alone")
	}
	// Claims by reference (OpenID Connect Core 5.6.2) would have to be fetched from where the token says.
	for _, name := range [...]string{"_claim_names", "_claim_sources"} {
		if _, ok := m[name]; ok {
			return payload{}, refuse(TokenMalformed, "payload: "+name+" is not accepted")
		}
	}
	p := payload{all: m}
	if err := p.names(m); err != nil {
		return payload{}, err
	}
	if err := p.times(m); err != nil {
		return payload{}, err
	}
	return p, nil
}

const badIssuer = "payload: iss is not a string of 1 to 1024 printable characters"

// names reads the claims that name somebody. They end up in logs, policies and storage, so they hold no character that
// cannot be seen. iss may be absent here: a JWT-SVID need not have one.
func (p *payload) names(m map[string]any) error {
	var present, ok bool
	if p.iss, present, ok = stringMember(m, "iss"); !ok || present && !isName(p.iss) {
		return refuse(TokenMalformed, badIssuer)
	}
	if p.sub, ok = m["sub"].(string); !ok || !isName(p.sub) {
		return refuse(TokenMalformed, "payload: sub is not a string of 1 to 1024 printable characters")
	}
	if p.jti, present, ok = stringMember(m, "jti"); !ok || present && (!isName(p.jti) || len(p.jti) > maxTokenIDBytes) {
		return refuse(TokenMalformed, "payload: jti is not a string of 1 to 256 printable characters")
	}
	if p.aud, ok = audience(m); !ok {
		return refuse(TokenMalformed, "payload: aud is not a string or a list of strings of printable characters")
	}
	return nil
}

// audience reads aud. Whether it may be absent or empty is for the trust policy to say.
func audience(m map[string]any) ([]string, bool) {
	switch v := m["aud"].(type) {
	case string:
		return []string{v}, isPrintable(v)
	case []any:
		list := make([]string, len(v))
		for i, entry := range v {
			s, ok := entry.(string)
			if !ok || !isPrintable(s) {
				return nil, false
			}
			list[i] = s
		}
		return list, true
	}
	_, present := m["aud"]
	return nil, !present
}

func (p *payload) times(m map[string]any) error {
	for _, t := range [...]struct {
		name     string
		to       *int64
		required bool
	}{{"exp", &p.exp, true}, {"iat", &p.iat, true}, {"nbf", &p.nbf, false}} {
		v, present := m[t.name]
		if !present && !t.required {
			continue
		}
		var ok bool
		if *t.to, ok = unixTime(v); !ok {
			return refuse(TokenMalformed, "payload: "+t.name+" is not a time in whole seconds")
		}
	}
	return nil
}

// unixTime wants a number literal without sign, fraction and exponent, between 0 and the year 2242: strings and floats
// mean different instants to different parsers, and huge ones overflow.
func unixTime(v any) (int64, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	t, err := strconv.ParseUint(string(n), 10, 63)
	return int64(t), err == nil && 0 < t && t < maxTime
}

// isName wants 1 to 1024 bytes that can be seen.
func isName(s string) bool { return s != "" && len(s) <= maxNameBytes && isPrintable(s) }

// isPrintable refuses control and format characters (line ends, bidirectional overrides, zero-width marks), what is
// printed as nothing (fillers, variation selectors), all spaces but the ASCII one, and U+FFFD, into which other parsers turn what was not text.
func isPrintable(s string) bool {
	for _, r := range s {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
			return false
		}
	}
	return len(s) <= maxNameBytes
}

// typeAllowed compares as media types are compared: without regard to ASCII case, and "application/" may be left out
// (RFC 7515 section 4.1.9).
func typeAllowed(h header, allowed []string) bool {
	for _, a := range allowed {
		if a == Absent {
			if !h.hasTyp {
				return true
			}
			continue
		}
		if equalASCIIFold(mediaType(h.typ), mediaType(a)) {
			return true
		}
	}
	return false
}

func mediaType(typ string) string {
	const prefix = "application/"
	if len(typ) > len(prefix) && equalASCIIFold(typ[:len(prefix)], prefix) && !strings.Contains(typ[len(prefix):], "/") {
		return typ[len(prefix):]
	}
	return typ
}

// equalASCIIFold is strings.EqualFold for text of which only ASCII can be equal; without it the Kelvin sign would be a k.
func equalASCIIFold(a, b string) bool {
	return len(a) == len(b) && strings.EqualFold(a, b)
}

// Token is a verified token.
type Token struct {
	Subject  string   // sub; never empty
	Audience []string // aud as it was sent; empty if there was none. Nobody has judged it yet: the trust policy must
	ID       string   // jti, or "" if there was none
	// Claims are all claims, from the one strict parse; numbers are json.Number. No other code parses the token.
	Claims           map[string]any
	IssuedAt, Expiry time.Time // UTC, whole seconds
	// Digest is the SHA-256 of what the signature covers. It tells uses of one token apart from another's where there is no
	// jti; the whole token would not, since a signature can be spelt in more than one way.
	Digest [sha256.Size]byte
}

func newToken(s segments, p payload) *Token {
	return &Token{
		Subject:  p.sub,
		Audience: p.aud,
		ID:       p.jti,
		Claims:   p.all,
		IssuedAt: time.Unix(p.iat, 0).UTC(),
		Expiry:   time.Unix(p.exp, 0).UTC(),
		Digest:   sha256.Sum256([]byte(s.signed)),
	}
}

// Addressed returns the audience and the expiry of a token that the engine is to present elsewhere. It does not verify the
// token, but refuses (with an [Error]) one that parsers could read in two ways, and one without exp. maxBytes bounds the token.
// It uses no network.
func Addressed(token string, maxBytes int) (aud []string, expiry time.Time, err error) {
	s, err := split(token, maxBytes)
	if err != nil {
		return nil, time.Time{}, err
	}
	if s.signature == 0 {
		return nil, time.Time{}, refuse(TokenMalformed, "it has no signature")
	}
	l := limits{depth: hardDepth, members: hardClaims}
	if _, err := parseObject(s.header, l); err != nil {
		return nil, time.Time{}, refuse(TokenMalformed, "header: "+err.Error())
	}
	m, err := parseObject(s.payload, l)
	if err != nil {
		return nil, time.Time{}, refuse(TokenMalformed, "payload: "+err.Error())
	}
	aud, ok := audience(m)
	if !ok {
		return nil, time.Time{}, refuse(TokenMalformed, "payload: aud is not a string or a list of strings of printable characters")
	}
	exp, ok := unixTime(m["exp"])
	if !ok {
		return nil, time.Time{}, refuse(TokenMalformed, "payload: exp is not a time in whole seconds")
	}
	return aud, time.Unix(exp, 0).UTC(), nil
}
