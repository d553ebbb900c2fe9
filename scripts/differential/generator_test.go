// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package differential

import (
	"crypto"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// generator makes good tokens and mutates most of them. One seed gives the same tokens, except for keys and signatures.
type generator struct {
	*rand.Rand
	keys []key
}

func newGenerator(seed uint64, keys []key) *generator {
	return &generator{rand.New(rand.NewPCG(seed, 0)), keys}
}

// draft is a token in the making: header and payload as lists of members in JSON text, and changes to the whole token.
type draft struct {
	header, payload members
	signer          key
	alg             string // signature algorithm; empty for HMAC with the public key
	after           func(token string) string
}

// members are the members of an object, in order; a name may occur twice.
type members []member

type member struct{ name, value string }

func (m members) String() string {
	parts := make([]string, len(m))
	for i, member := range m {
		parts[i] = quote(member.name) + ":" + member.value
	}
	return "{" + strings.Join(parts, ",") + "}"
}

func quote(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

// pick returns one element of the list.
func pick[T any](g *generator, list ...T) T { return list[g.IntN(len(list))] }

// token makes a token, and describes how it was made.
func (g *generator) token() (token, how string) {
	d := g.good()
	names := []string{}
	for range pick(g, 0, 1, 1, 1, 1, 2, 2, 3) {
		m := pick(g, mutations...)
		m.apply(g, d)
		names = append(names, m.name)
	}
	return d.sign(), strings.Join(names, ", ")
}

func (g *generator) good() *draft {
	k := pick(g, g.keys...)
	at := func(seconds int64) string { return fmt.Sprint(start.Unix() + seconds) }
	return &draft{
		header: members{{"alg", quote(k.alg)}, {"kid", quote(k.id)}, {"typ", `"JWT"`}},
		payload: members{
			{"iss", quote(issuer)}, {"sub", `"repo:acme/widget:ref:refs/heads/main"`}, {"aud", `"vault"`}, {"jti", `"j-1"`},
			{"iat", at(0)}, {"nbf", at(0)}, {"exp", at(600)}, {"repository_id", `"74"`}, {"nested", `{"a":["x",true,null,1.5]}`},
		},
		signer: k, alg: k.alg, after: func(token string) string { return token },
	}
}

func (d *draft) sign() string {
	var token string
	var err error
	if d.alg == "" {
		token, err = forge(d.signer.signer.Public(), d.header.String(), d.payload.String()), nil
	} else {
		token, err = lab.Compact(d.alg, d.signer.signer, []byte(d.header.String()), []byte(d.payload.String()))
	}
	if err != nil {
		panic(err)
	}
	return d.after(token)
}

// mutation changes a draft; about a third of the mutations leave it good.
type mutation struct {
	name  string
	apply func(g *generator, d *draft)
}

// values are JSON values of all kinds, ordinary and odd.
var values = []string{
	"null", "true", "0", "1", "-1", "1.5", "1e3", "9007199254740993", "253402300799", "8589934592", `""`, `"x"`, `"JWT"`, `"at+jwt"`, `[]`, `[""]`, `["x","y"]`,
	`[["x"]]`, `{}`, `{"a":1}`, `"` + issuer + `/"`, `"HTTPS://ID.EXAMPLE.COM"`, `"a\u0000b"`, `"a\u202eb"`, `"\ud800"`, `"b\u00fccher"`, `"https://evil.example"`,
}

var headerNames = []string{"alg", "kid", "typ", "cty", "crit", "b64", "zip", "enc", "jwk", "jku", "x5u", "x5c", "x5t", "x5t#S256", "nonce", "url", "x-vendor"}

var claimNames = []string{"iss", "sub", "aud", "jti", "iat", "nbf", "exp", "azp", "nonce", "acr", "amr", "cnf", "scope", "repository", "_claim_names", "_claim_sources"}

var mutations = []mutation{
	{"header value", func(g *generator, d *draft) { d.header.set(g, pick(g, headerNames...), pick(g, values...)) }},
	{"header member gone", func(g *generator, d *draft) { d.header.remove(g) }},
	{"header member twice", func(g *generator, d *draft) { d.header.repeat(g) }},
	{"header name folded", func(g *generator, d *draft) { d.header.fold(g) }},
	{"header order", func(g *generator, d *draft) {
		g.Shuffle(len(d.header), func(i, j int) { d.header[i], d.header[j] = d.header[j], d.header[i] })
	}},
	{"type", func(g *generator, d *draft) {
		d.header.set(g, "typ", pick(g, `"JWT"`, `"jwt"`, `"application/jwt"`, `"at+jwt"`, `"logout+jwt"`, `"JOSE"`, `""`))
	}},
	{"algorithm named", func(g *generator, d *draft) {
		d.header.set(g, "alg", quote(pick(g, "none", "None", "HS256", "RS256", "RS384", "PS256", "ES256", "ES384", "EdDSA", "rs256", "")))
	}},
	{"key named", func(g *generator, d *draft) {
		d.header.set(g, "kid", quote(pick(g, "r1", "p1", "e1", "d1", "k9", "R1", "", "../r1", strings.Repeat("k", 300))))
	}},
	{"another key signs", func(g *generator, d *draft) { d.signer = pick(g, g.keys...); d.alg = d.signer.alg }},
	{"another key signs and is named", func(g *generator, d *draft) {
		d.signer = pick(g, g.keys...)
		d.alg = d.signer.alg
		d.header.set(g, "alg", quote(d.alg))
		d.header.set(g, "kid", quote(d.signer.id))
	}},
	{"HMAC with the public key", func(g *generator, d *draft) { d.alg = ""; d.header.set(g, "alg", `"HS256"`) }},
	{"claim value", func(g *generator, d *draft) { d.payload.set(g, pick(g, claimNames...), pick(g, values...)) }},
	{"claim gone", func(g *generator, d *draft) { d.payload.remove(g) }},
	{"claim twice", func(g *generator, d *draft) { d.payload.repeat(g) }},
	{"claim name folded", func(g *generator, d *draft) { d.payload.fold(g) }},
	{"claim order", func(g *generator, d *draft) {
		g.Shuffle(len(d.payload), func(i, j int) { d.payload[i], d.payload[j] = d.payload[j], d.payload[i] })
	}},
	{"times", func(g *generator, d *draft) {
		for _, name := range []string{"iat", "nbf", "exp"} {
			d.payload.set(g, name, fmt.Sprint(start.Unix()+int64(g.IntN(7200)-3600)))
		}
	}},
	{"times at the edge", func(g *generator, d *draft) {
		d.payload.set(g, pick(g, "iat", "nbf"), fmt.Sprint(start.Unix()+pick(g, int64(-3601), -3600, 0, 29, 30, 31, 59, 60, 61)))
		d.payload.set(g, "exp", fmt.Sprint(start.Unix()+pick(g, int64(-31), -30, -29, -1, 0, 1, 86400, 86401)))
	}},
	{"audience", func(g *generator, d *draft) {
		d.payload.set(g, "aud", pick(g, `"vault"`, `["vault"]`, `["a","b"]`, `["a",1]`, `[]`, `""`, `"a b"`))
	}},
	{"more claims", func(g *generator, d *draft) {
		for range g.IntN(300) {
			d.payload = append(d.payload, member{fmt.Sprintf("c%d", g.Uint32()), pick(g, values...)})
		}
	}},
	{"nesting", func(g *generator, d *draft) {
		depth := g.IntN(20)
		d.payload = append(d.payload, member{"deep", strings.Repeat("[", depth) + strings.Repeat("]", depth)})
	}},
	{"character inserted", func(g *generator, d *draft) {
		d.then(func(token string) string {
			at := g.IntN(len(token) + 1)
			return token[:at] + pick(g, " ", "\n", "\t", "=", ".", "+", "A", "\x00", "\u00a0") + token[at:]
		})
	}},
	{"character changed", func(g *generator, d *draft) {
		d.then(func(token string) string {
			at := g.IntN(len(token))
			return token[:at] + pick(g, "A", "B", "_", "-", "/", "=", ".") + token[at+1:]
		})
	}},
	{"cut", func(g *generator, d *draft) { d.then(func(token string) string { return token[:g.IntN(len(token))] }) }},
	{"padded", func(g *generator, d *draft) { d.then(func(token string) string { return token + "==" }) }},
	{"last bits", func(g *generator, d *draft) { d.then(lastBits) }},
	{"other form of the signature", func(g *generator, d *draft) { d.then(otherForm) }},
	{"signature gone", func(g *generator, d *draft) {
		d.then(func(token string) string { return token[:strings.LastIndexByte(token, '.')+1] })
	}},
	{"JSON form", func(g *generator, d *draft) { d.then(func(token string) string { return jsonForm(g, token) }) }},
	{"around it", func(g *generator, d *draft) {
		d.then(func(token string) string {
			return pick(g, " ", "\n", "", "\"", "Bearer ") + token + pick(g, " ", "\n", "", "\"")
		})
	}},
}

// then adds one more change to the whole token.
func (d *draft) then(do func(string) string) {
	before := d.after
	d.after = func(token string) string {
		if token = before(token); token == "" {
			return token
		}
		return do(token)
	}
}

func (m *members) set(g *generator, name, value string) {
	at := slices.IndexFunc(*m, func(member member) bool { return member.name == name })
	if at < 0 {
		*m = append(*m, member{name, value})
		return
	}
	(*m)[at].value = value
}

func (m *members) remove(g *generator) {
	if len(*m) > 0 {
		at := g.IntN(len(*m))
		*m = slices.Delete(*m, at, at+1)
	}
}

// repeat repeats a member, with the same value or another.
func (m *members) repeat(g *generator) {
	if len(*m) > 0 {
		again := pick(g, *m...)
		if g.IntN(2) == 0 {
			again.value = pick(g, values...)
		}
		*m = slices.Insert(*m, g.IntN(len(*m)+1), again)
	}
}

// fold adds a member whose name differs from another's only in case, or renames the other one so.
func (m *members) fold(g *generator) {
	if len(*m) == 0 {
		return
	}
	at := g.IntN(len(*m))
	twin := (*m)[at]
	twin.name = pick(g, strings.ToUpper(twin.name), strings.Replace(twin.name, "s", "\u017f", 1), strings.Replace(twin.name, "k", "\u212a", 1),
		strings.ToUpper(twin.name[:1])+twin.name[1:])
	if g.IntN(2) == 0 {
		(*m)[at] = twin
		return
	}
	twin.value = pick(g, twin.value, pick(g, values...))
	*m = slices.Insert(*m, g.IntN(len(*m)+1), twin)
}

// forge signs with a key that everybody has.
func forge(public crypto.PublicKey, header, payload string) string {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		panic(err)
	}
	input := b64(header) + "." + b64(payload)
	mac := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	mac.Write([]byte(input))
	return input + "." + b64(string(mac.Sum(nil)))
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// lastBits flips a bit of the last character; a lax decoder often ignores this bit.
func lastBits(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	at := strings.IndexByte(alphabet, token[len(token)-1])
	if at < 0 {
		return token
	}
	return token[:len(token)-1] + alphabet[at^1:][:1]
}

// otherForm replaces (r, s) by (r, n-s), which also verifies if the signature is one of P-256.
func otherForm(token string) string {
	at := strings.LastIndexByte(token, '.') + 1
	sig, err := base64.RawURLEncoding.DecodeString(token[at:])
	if err != nil || len(sig) != 64 {
		return token
	}
	s := new(big.Int).SetBytes(sig[32:])
	if s.Sub(elliptic.P256().Params().N, s); s.Sign() < 0 {
		return token
	}
	s.FillBytes(sig[32:])
	return token[:at] + b64(string(sig))
}

// jsonForm returns a token in one of the JSON forms of RFC 7515 section 7.2.
func jsonForm(g *generator, token string) string {
	p := strings.SplitN(token, ".", 3)
	if len(p) != 3 {
		return token
	}
	signature := map[string]any{"protected": p[0], "signature": p[2]}
	if g.IntN(2) == 0 {
		signature["header"] = map[string]any{"kid": "r1"}
	}
	if g.IntN(2) == 0 {
		signature["payload"] = p[1]
		return quote(signature)
	}
	return quote(map[string]any{"payload": p[1], "signatures": slices.Repeat([]any{signature}, pick(g, 1, 2))})
}
