// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// attack is a token and the reason for which Verify must refuse it, or none.
type attack struct {
	name  string
	token string
	want  string // reason; "" for accepted
}

// door returns a verifier with keys of each kind, and its issuer. Keys p1 and e2 are for one algorithm only; the id twice
// occurs twice.
func door(t *testing.T) (*Verifier, *fakeIssuer) {
	t.Helper()
	twice := jwk(rsaKey().Public(), "twice", "RS256", nil)
	i := newIssuer(t, jwks(firstKey(), jwk(ecKey().Public(), "e1", "", nil), jwk(edKey().Public(), "d1", "EdDSA", nil),
		jwk(otherRSA().Public(), "p1", "PS256", nil), jwk(p384Key().Public(), "e2", "", nil), twice, twice))
	v := newVerifier(t, i.config(newClock()))
	wantReason(t, v, token(claims(i.URL, start)), "")
	return v, i
}

// run tries attacks on a verifier that has its keys, and checks that none causes a call to the issuer unless fetches says
// so.
func run(t *testing.T, v *Verifier, i *fakeIssuer, attacks []attack) {
	t.Helper()
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) { wantReason(t, v, a.token, a.want) })
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	want := map[string]int{wellKnown: 1, "/keys": 1}
	if diff := cmp.Diff(want, i.asked); diff != "" {
		t.Errorf("what the issuer was asked (-want +got):\n%s", diff)
	}
}

func TestVerify(t *testing.T) {
	v, i := door(t)
	c := claims(i.URL, start)
	got, err := v.Verify(t.Context(), token(c))
	if err != nil {
		t.Fatal(err)
	}
	number := func(t time.Time) json.Number { return json.Number(fmt.Sprint(t.Unix())) }
	want := &Token{
		Subject:  "repo:acme/widget:ref:refs/heads/main",
		Audience: []string{"https://vault.example.com"},
		ID:       "j-1",
		Claims: map[string]any{
			"iss": i.URL, "sub": "repo:acme/widget:ref:refs/heads/main", "aud": "https://vault.example.com", "jti": "j-1",
			"iat": number(start), "nbf": number(start), "exp": number(start.Add(10 * time.Minute)),
			"repository_id": json.Number("9007199254740993"), "nested": map[string]any{"a": []any{"x", true, nil}},
		},
		IssuedAt: start,
		Expiry:   start.Add(10 * time.Minute),
		Digest:   got.Digest,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("token (-want +got):\n%s", diff)
	}
	run(t, v, i, []attack{
		{"ES256", compact("ES256", ecKey(), headerE.String(), c.String()), ""},
		{"EdDSA", compact("EdDSA", edKey(), fields{"alg": "EdDSA", "kid": "d1"}.String(), c.String()), ""},
		{"PS256", compact("PS256", otherRSA(), fields{"alg": "PS256", "kid": "p1"}.String(), c.String()), ""},
	})
}

// Headers that providers send besides alg and kid: each token of GitHub Actions, Azure Pipelines, AD FS and Entra version
// 1.0 has a thumbprint of the key's certificate.
func TestHeadersOfProviders(t *testing.T) {
	v, i := door(t)
	c := claims(i.URL, start).String()
	rs := func(header string) string { return compact("RS256", rsaKey(), header, c) }
	run(t, v, i, []attack{
		{"kid and alg alone", rs(`{"alg":"RS256","kid":"k1"}`), ""},
		{"GitHub Actions", rs(`{"alg":"RS256","kid":"k1","typ":"JWT","x5t":"ykNaY4qM_ta4k2TgZOCEYLkcYlA"}`), ""},
		{"x5t#S256", rs(`{"alg":"RS256","kid":"k1","typ":"JWT","x5t#S256":"` + b64(strings.Repeat("x", 32)) + `"}`), ""},
		{"a member of the provider's own", rs(`{"alg":"RS256","kid":"k1","typ":"JWT","pi.atm":"1"}`), ""},
	})
}

func TestHeaderAttacks(t *testing.T) {
	v, i := door(t)
	c := claims(i.URL, start).String()
	rs := func(header string) string { return compact("RS256", rsaKey(), header, c) }
	unsigned := func(header string) string { return b64(header) + "." + b64(c) + "." }
	good := rs(header1.String())
	parts := strings.Split(good, ".")
	attacker := jwk(otherRSA().Public(), "k1", "RS256", nil)

	attacks := []attack{
		{"alg missing", rs(`{"kid":"k1"}`), Algorithm},
		{"alg missing, unsigned", unsigned(`{"kid":"k1"}`), Algorithm},
		{"alg empty", rs(`{"alg":"","kid":"k1"}`), Algorithm},
		{"alg null", rs(`{"alg":null,"kid":"k1"}`), TokenMalformed},
		{"alg a number", rs(`{"alg":256,"kid":"k1"}`), TokenMalformed},
		{"alg in lower case", rs(`{"alg":"rs256","kid":"k1"}`), Algorithm},
		{"alg asymmetric but not permitted", rs(`{"alg":"RS384","kid":"k1"}`), Algorithm},
		{"HMAC with the RSA key's PEM", compact("HS256", []byte(publicPEM(rsaKey().Public())), `{"alg":"HS256","kid":"k1"}`, c), Algorithm},
		{"HMAC with the RSA key's DER", compact("HS256", must(x509.MarshalPKIXPublicKey(rsaKey().Public())), `{"alg":"HS256","kid":"k1"}`, c), Algorithm},
		{"HMAC with the RSA key's PKCS #1", compact("HS256", x509.MarshalPKCS1PublicKey(&rsaKey().PublicKey), `{"alg":"HS256","kid":"k1"}`, c), Algorithm},
		{"HMAC with the JWK", compact("HS256", []byte(firstKey()), `{"alg":"HS256","kid":"k1"}`, c), Algorithm},
		{"HMAC under alg RS256", compact("HS256", []byte(publicPEM(rsaKey().Public())), header1.String(), c), BadSignature},
		{"embedded jwk", compact("RS256", otherRSA(), header1.with("jwk", attacker).String(), c), TokenMalformed},
		{"embedded jwk without kid", compact("RS256", otherRSA(), header1.without("kid").with("jwk", attacker).String(), c), TokenMalformed},
		{"embedded jwk with an unknown kid", compact("RS256", otherRSA(), header1.with("kid", "k9").with("jwk", attacker).String(), c), TokenMalformed},
		{"jku, attacker's signature", compact("RS256", otherRSA(), header1.with("jku", i.URL+"/evil").String(), c), TokenMalformed},
		{"jku, right signature", rs(header1.with("jku", i.URL+"/evil").String()), TokenMalformed},
		{"x5u, attacker's signature", compact("RS256", otherRSA(), header1.with("x5u", i.URL+"/evil").String(), c), TokenMalformed},
		{"x5u, right signature", rs(header1.with("x5u", i.URL+"/evil").String()), TokenMalformed},
		{"x5c", rs(header1.with("x5c", []string{"AA"}).String()), TokenMalformed},
		{"x5t in place of kid", rs(header1.without("kid").with("x5t", "k1").String()), UnknownKey},
		{"x5t a list", rs(header1.with("x5t", []string{"AA"}).String()), TokenMalformed},
		{"x5t#S256 null", rs(header1.with("x5t#S256", nil).String()), TokenMalformed},
		{"x5t, attacker's signature", compact("RS256", otherRSA(), header1.with("x5t", "AA").String(), c), BadSignature},
		{"kid a path", rs(header1.with("kid", "../../dev/null").String()), UnknownKey},
		{"kid SQL", rs(header1.with("kid", "' OR 1=1").String()), UnknownKey},
		{"kid of 256 bytes", rs(header1.with("kid", strings.Repeat("k", 256)).String()), UnknownKey},
		{"kid of 257 bytes", rs(header1.with("kid", strings.Repeat("k", 257)).String()), TokenMalformed},
		{"kid of 10 KB", rs(header1.with("kid", strings.Repeat("k", 10000)).String()), TokenMalformed},
		{"kid with NUL", rs(header1.with("kid", "k1\x00").String()), TokenMalformed},
		{"kid not ASCII", rs(header1.with("kid", "k\u00e9").String()), TokenMalformed},
		{"kid a number", rs(header1.with("kid", 1).String()), TokenMalformed},
		{"kid null", rs(header1.with("kid", nil).String()), TokenMalformed},
		{"kid empty", rs(header1.with("kid", "").String()), TokenMalformed},
		{"kid absent", rs(header1.without("kid").String()), UnknownKey},
		{"kid of two keys of the set", rs(header1.with("kid", "twice").String()), UnknownKey},
		{"kid in another case", rs(header1.with("kid", "K1").String()), UnknownKey},
		{"same kid, other key", tokenBy(otherRSA(), "k1", claims(i.URL, start)), BadSignature},
		{"PS256 with a key for RS256", compact("PS256", rsaKey(), header1.with("alg", "PS256").String(), c), Algorithm},
		{"RS256 with a key for PS256", compact("RS256", otherRSA(), header1.with("kid", "p1").String(), c), Algorithm},
		{"ES256 naming a P-384 key", compact("ES256", ecKey(), headerE.with("kid", "e2").String(), c), Algorithm},
		{"ES256 naming an RSA key", compact("ES256", ecKey(), headerE.with("kid", "k1").String(), c), Algorithm},
		{"RS256 naming an EC key", rs(header1.with("kid", "e1").String()), Algorithm},
		{"crit unknown", rs(header1.with("crit", []string{"x"}).with("x", 1).String()), TokenMalformed},
		{"crit b64", rs(header1.with("crit", []string{"b64"}).with("b64", false).String()), TokenMalformed},
		{"b64 alone", rs(header1.with("b64", true).String()), TokenMalformed},
		{"alg twice", rs(`{"alg":"none","alg":"RS256","kid":"k1"}`), TokenMalformed},
		{"kid twice", rs(`{"alg":"RS256","kid":"k1","kid":"k1"}`), TokenMalformed},
		{"alg folded", rs(`{"alg":"RS256","ALG":"none","kid":"k1"}`), TokenMalformed},
		{"kid folded with the Kelvin sign", rs(`{"alg":"RS256","kid":"k1","\u212aid":"k2"}`), TokenMalformed},
		{"JWK folded", rs(`{"alg":"RS256","kid":"k1","JWK":{}}`), TokenMalformed},
		{"x5t#S256 folded", rs(`{"alg":"RS256","kid":"k1","X5T#s256":"AA"}`), TokenMalformed},
		{"zip", rs(header1.with("zip", "DEF").String()), TokenMalformed},
		{"enc", rs(header1.with("enc", "A256GCM").String()), TokenMalformed},
		{"cty JWT, token in token", compact("RS256", rsaKey(), header1.with("cty", "JWT").String(), good), TokenMalformed},
		{"token in token", compact("RS256", rsaKey(), header1.String(), good), TokenMalformed},
		{"header an array", rs(`["RS256"]`), TokenMalformed},
		{"header null", rs(`null`), TokenMalformed},
		{"header not JSON", rs(`alg=RS256`), TokenMalformed},
		{"header with text after it", rs(header1.String() + "{}"), TokenMalformed},
		{"header not UTF-8", rs("{\"alg\":\"RS256\",\"kid\":\"k1\",\"x\":\"\xff\"}"), TokenMalformed},
		{"header nested 4,000 deep", rs(`{"alg":"RS256","kid":"k1","x":` + strings.Repeat("[", 4000) + strings.Repeat("]", 4000) + `}`), TokenMalformed},
		{"signature of zero bytes", parts[0] + "." + parts[1] + ".", TokenMalformed},
		{"signature of another payload", parts[0] + "." + b64(claims(i.URL, start).with("sub", "evil").String()) + "." + parts[2], BadSignature},
		{"signature cut", parts[0] + "." + parts[1] + "." + b64(string(must(base64.RawURLEncoding.DecodeString(parts[2]))[:255])), BadSignature},
		{"unknown header parameter", rs(header1.with("x-vendor", 1).String()), ""},
	}
	for _, alg := range []string{"none", "None", "NONE", "nOnE"} {
		h := header1.with("alg", alg).String()
		attacks = append(attacks, attack{"alg " + alg, rs(h), Algorithm}, attack{"alg " + alg + ", unsigned", unsigned(h), Algorithm})
	}
	run(t, v, i, attacks)
}

func TestTypeAttacks(t *testing.T) {
	v, i := door(t)
	typed := func(typ any) string {
		return compact("RS256", rsaKey(), header1.with("typ", typ).String(), claims(i.URL, start).String())
	}
	run(t, v, i, []attack{
		{"absent", compact("RS256", rsaKey(), header1.without("typ").String(), claims(i.URL, start).String()), ""},
		{"JWT", typed("JWT"), ""},
		{"jwt", typed("jwt"), ""},
		{"application/jwt", typed("application/JWT"), ""},
		{"empty", typed(""), TokenType},
		{"the word for absent", typed(Absent), TokenType},
		{"access token", typed("at+jwt"), TokenType},
		{"application/at+jwt", typed("application/at+jwt"), TokenType},
		{"logout token", typed("logout+jwt"), TokenType},
		{"security event", typed("secevent+jwt"), TokenType},
		{"DPoP proof", typed("dpop+jwt"), TokenType},
		{"JOSE", typed("JOSE"), TokenType},
		{"text/JWT", typed("text/JWT"), TokenType},
		{"application/x/JWT", typed("application/x/JWT"), TokenType},
		{"a number", typed(1), TokenMalformed},
		{"null", typed(nil), TokenMalformed},
	})
	cfg := i.config(newClock())
	cfg.AllowedTypes = []string{"at+jwt"}
	only := newVerifier(t, cfg)
	wantReason(t, only, typed("at+jwt"), "")
	wantReason(t, only, typed("Application/AT+jwt"), "")
	wantReason(t, only, typed("JWT"), TokenType)
	wantReason(t, only, compact("RS256", rsaKey(), header1.without("typ").String(), claims(i.URL, start).String()), TokenType)
	cfg.AllowedTypes = []string{"kwt"}
	wantReason(t, newVerifier(t, cfg), typed("\u212awt"), TokenType) // the Kelvin sign folds to k
}

func TestSpellingAttacks(t *testing.T) {
	v, i := door(t)
	good := token(claims(i.URL, start))
	p := strings.Split(good, ".")
	flattened := fields{"protected": p[0], "payload": p[1], "signature": p[2]}
	twice := []fields{{"protected": p[0], "signature": p[2]}, {"protected": p[0], "signature": p[2]}}
	oneBad := []fields{twice[0], {"protected": p[0], "signature": b64("bad")}}
	std := base64.StdEncoding.EncodeToString(must(base64.RawURLEncoding.DecodeString(p[2])))

	attacks := []attack{
		{"empty", "", TokenMalformed},
		{"one part", p[0], TokenMalformed},
		{"two parts", p[0] + "." + p[1], TokenMalformed},
		{"four parts", good + "." + p[2], TokenMalformed},
		{"five parts, as an encrypted token", good + "." + p[2] + "." + p[2], TokenMalformed},
		{"dots alone", "..", TokenMalformed},
		{"header empty", "." + p[1] + "." + p[2], TokenMalformed},
		{"payload empty, detached", p[0] + ".." + p[2], TokenMalformed},
		{"flattened JSON", flattened.String(), TokenMalformed},
		{"flattened JSON with a space before", " " + flattened.String(), TokenMalformed},
		{"flattened JSON, alg unprotected", flattened.with("header", fields{"alg": "RS256"}).String(), TokenMalformed},
		{"flattened JSON, kid unprotected", flattened.with("header", fields{"kid": "k1"}).String(), TokenMalformed},
		{"general JSON", fields{"payload": p[1], "signatures": twice[:1]}.String(), TokenMalformed},
		{"general JSON, two signatures", fields{"payload": p[1], "signatures": twice}.String(), TokenMalformed},
		{"general JSON, a good and a bad signature", fields{"payload": p[1], "signatures": oneBad}.String(), TokenMalformed},
		{"general JSON, a bad and a good signature", fields{"payload": p[1], "signatures": []fields{oneBad[1], oneBad[0]}}.String(), TokenMalformed},
		{"JSON string", `"` + good + `"`, TokenMalformed},
		{"Bearer before", "Bearer " + good, TokenMalformed},
		{"line end after", good + "\n", TokenMalformed},
		{"line end before", "\n" + good, TokenMalformed},
		{"space before", " " + good, TokenMalformed},
		{"space after", good + " ", TokenMalformed},
		{"tab after", good + "\t", TokenMalformed},
		{"NUL after", good + "\x00", TokenMalformed},
		{"no-break space after", good + "\u00a0", TokenMalformed},
		{"padding", good + "==", TokenMalformed},
		{"standard base64", p[0] + "." + p[1] + "." + strings.TrimRight(std, "=") + "+", TokenMalformed},
		{"loose last bits of the header", signed(loosen(b64(uneven(header1))), p[1]), TokenMalformed},
		{"loose last bits of the payload", signed(p[0], loosen(b64(uneven(claims(i.URL, start))))), TokenMalformed},
		{"tight last bits of both", signed(b64(uneven(header1)), b64(uneven(claims(i.URL, start)))), ""},
		{"loose last bits of the signature", p[0] + "." + p[1] + "." + loosen(p[2]), TokenMalformed},
		{"impossible length", p[0] + "." + p[1] + "." + p[2][:len(p[2])-1], TokenMalformed},
	}
	for _, space := range []string{"\n", "\r", "\r\n", " ", "\t"} {
		for at, name := range []string{"header", "payload", "signature"} {
			broken := []string{p[0], p[1], p[2]}
			broken[at] = broken[at][:4] + space + broken[at][4:]
			attacks = append(attacks, attack{fmt.Sprintf("%q inside the %s", space, name), strings.Join(broken, "."), TokenMalformed})
		}
	}
	run(t, v, i, attacks)
}

// signed signs the first two parts of a token exactly as given.
func signed(header, payload string) string {
	return header + "." + payload + "." + b64(string(signature("RS256", rsaKey(), header+"."+payload)))
}

// uneven encodes fields so that the last base64 character has unused bits.
func uneven(f fields) string {
	text := f.String()
	return text + strings.Repeat(" ", (4-len(text)%3)%3)
}

// loosen flips an unused bit of the last character, which lax decoders ignore.
func loosen(segment string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	at := strings.IndexByte(alphabet, segment[len(segment)-1])
	return segment[:len(segment)-1] + alphabet[at^1:][:1]
}

// A second spelling of an ECDSA signature verifies too. The digest is the same for both, so replay protection sees one
// token.
func TestMalleableSignatureHasOneDigest(t *testing.T) {
	v, i := door(t)
	good := compact("ES256", ecKey(), headerE.String(), claims(i.URL, start).String())
	p := strings.Split(good, ".")
	sig := must(base64.RawURLEncoding.DecodeString(p[2]))
	s := new(big.Int).Sub(elliptic.P256().Params().N, new(big.Int).SetBytes(sig[32:]))
	twin := p[0] + "." + p[1] + "." + b64(string(append(sig[:32:32], s.FillBytes(make([]byte, 32))...)))
	one, err := v.Verify(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	two, err := v.Verify(t.Context(), twin)
	if err != nil {
		t.Fatal(err)
	}
	if one.Digest != two.Digest || good == twin {
		t.Error("two spellings of one token must have one digest")
	}
	other, err := v.Verify(t.Context(), compact("ES256", ecKey(), headerE.String(), claims(i.URL, start).with("x", 1).String()))
	if err != nil || other.Digest == one.Digest {
		t.Errorf("another token: %v; want another digest", err)
	}
}

// Values that are no signatures, but that some library once accepted as one.
func TestForgedSignatures(t *testing.T) {
	v, i := door(t)
	c := claims(i.URL, start).String()
	with := func(header fields, signature []byte) string {
		return b64(header.String()) + "." + b64(c) + "." + b64(string(signature))
	}
	sign := func(alg string, key any, header fields) []byte {
		return signature(alg, key, b64(header.String())+"."+b64(c))
	}
	n := elliptic.P256().Params().N
	es := sign("ES256", ecKey(), headerE)
	r, s := new(big.Int).SetBytes(es[:32]), new(big.Int).SetBytes(es[32:])
	pair := func(r, s *big.Int, width int) []byte {
		return append(r.FillBytes(make([]byte, width)), s.FillBytes(make([]byte, width))...)
	}
	headerD := fields{"alg": "EdDSA", "kid": "d1"}
	ed := sign("EdDSA", edKey(), headerD)
	order, _ := new(big.Int).SetString("1000000000000000000000000000000014def9dea2f79cd65812631a5cf5d3ed", 16)
	raised := slices.Clone(ed) // S + L: the other spelling of the same signature (RFC 8032 section 8.4)
	slices.Reverse(raised[32:])
	new(big.Int).Add(new(big.Int).SetBytes(raised[32:]), order).FillBytes(raised[32:])
	slices.Reverse(raised[32:])

	run(t, v, i, []attack{
		{"ES256", with(headerE, pair(r, s, 32)), ""},
		{"ES256 in DER", with(headerE, must(asn1.Marshal(struct{ R, S *big.Int }{r, s}))), BadSignature},
		{"ES256 of zeros", with(headerE, make([]byte, 64)), BadSignature},
		{"ES256, r is 0", with(headerE, pair(new(big.Int), s, 32)), BadSignature},
		{"ES256, s is 0", with(headerE, pair(r, new(big.Int), 32)), BadSignature},
		{"ES256, r and s are the order", with(headerE, pair(n, n, 32)), BadSignature},
		{"ES256, r and s are 1", with(headerE, pair(big.NewInt(1), big.NewInt(1), 32)), BadSignature},
		{"ES256 in the width of ES384", with(headerE, pair(r, s, 48)), BadSignature},
		{"ES256, r and s the other way", with(headerE, pair(s, r, 32)), BadSignature},
		{"ES256 with a byte more", with(headerE, append(pair(r, s, 32), 0)), BadSignature},
		{"EdDSA", with(headerD, ed), ""},
		{"EdDSA of zeros", with(headerD, make([]byte, 64)), BadSignature},
		{"EdDSA, S raised by the order", with(headerD, raised), BadSignature},
		{"EdDSA with a byte more", with(headerD, append(slices.Clone(ed), 0)), BadSignature},
		{"RS256 of zeros", with(header1, make([]byte, 256)), BadSignature},
		{"RS256 of one", with(header1, append(make([]byte, 255), 1)), BadSignature},
		{"RS256 with a zero before", with(header1, append([]byte{0}, sign("RS256", rsaKey(), header1)...)), BadSignature},
		{"PS256 under alg RS256", with(header1, sign("PS256", rsaKey(), header1)), BadSignature},
	})
}

func TestSizeLimits(t *testing.T) {
	_, i := door(t)
	good := token(claims(i.URL, start))
	cfg := i.config(newClock())
	cfg.MaxTokenBytes = len(good)
	wantReason(t, newVerifier(t, cfg), good, "")
	cfg.MaxTokenBytes = len(good) - 1
	wantReason(t, newVerifier(t, cfg), good, TokenMalformed)

	v := newVerifier(t, i.config(newClock()))
	wantReason(t, v, strings.Repeat("A", 20<<20), TokenMalformed)
	nest := func(depth int) string {
		c := claims(i.URL, start).String()
		return compact("RS256", rsaKey(), header1.String(), strings.TrimSuffix(c, "}")+`,"deep":`+strings.Repeat("[", depth)+strings.Repeat("]", depth)+"}")
	}
	wantReason(t, v, nest(15), "")
	wantReason(t, v, nest(16), TokenMalformed)
	cfg.MaxTokenBytes = hardTokenBytes
	wantReason(t, newVerifier(t, cfg), nest(20_000), TokenMalformed)

	wide := func(members int) string {
		c := claims(i.URL, start) // nine members, and one in the nested object
		for n := range members - 10 {
			c[fmt.Sprintf("c%d", n)] = n
		}
		return token(c)
	}
	wantReason(t, v, wide(256), "")
	wantReason(t, v, wide(257), TokenMalformed)
}
