// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
)

// Each entry stands beside a good one in a set; the good one must stay usable and the other be skipped for the right reason.
func TestUnusableKeys(t *testing.T) {
	private := func(k any) json.RawMessage { return must(jose.JSONWebKey{Key: k, KeyID: "x"}.MarshalJSON()) }
	rsaWith := func(extra fields) json.RawMessage { return jwk(otherRSA().Public(), "x", "", extra) }
	weak := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1023), E: 65537}
	large := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 8192), E: 65537}
	for _, tt := range []struct {
		name  string
		entry json.RawMessage
		want  string // reason; "" for usable
	}{
		{"good", rsaWith(nil), ""},
		{"use sig", rsaWith(fields{"use": "sig"}), ""},
		{"key_ops verify", rsaWith(fields{"key_ops": []string{"verify"}}), ""},
		{"symmetric", []byte(`{"kty":"oct","kid":"x","k":"c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"}`), "a symmetric key"},
		{"private RSA key", private(otherRSA()), "a private key"},
		{"private EC key", private(ecKey()), "a private key"},
		{"private Ed25519 key", private(edKey()), "a private key"},
		{"public key with d", rsaWith(fields{"d": "AQAB"}), "a private key"},
		{"use enc", rsaWith(fields{"use": "enc"}), "not for signatures"},
		{"use a number", rsaWith(fields{"use": 1}), "not for signatures"},
		{"use in capitals", rsaWith(fields{"use": "SIG"}), "not for signatures"},
		{"key_ops encrypt", rsaWith(fields{"key_ops": []string{"encrypt"}}), "not for signatures"},
		{"key_ops empty", rsaWith(fields{"key_ops": []string{}}), "not for signatures"},
		{"key_ops a string", rsaWith(fields{"key_ops": "verify"}), "not for signatures"},
		{"RSA of 1024 bits", jwk(weak, "x", "", nil), "an RSA key outside 2048 to 8192 bits"},
		{"RSA of 8193 bits", jwk(large, "x", "", nil), "malformed"},
		{"RSA exponent 1", rsaWith(fields{"e": "AQ"}), "malformed"},
		{"RSA exponent even", rsaWith(fields{"e": "AQAA"}), "an RSA key with an unsafe exponent"},
		{"RSA exponent huge", rsaWith(fields{"e": "AQAAAAAAAAAB"}), "an RSA key with an unsafe exponent"},
		{"RSA without n", []byte(`{"kty":"RSA","kid":"x","e":"AQAB"}`), "malformed"},
		{"RSA without e", rsaWith(fields{"e": nil}), "malformed"},
		{"RSA with broken base64", rsaWith(fields{"n": "!!"}), "malformed"},
		{"RSA with certificates that cannot be read", rsaWith(fields{"x5c": []string{"AAAA"}}), ""},
		{"RSA with no list of certificates", rsaWith(fields{"x5c": ""}), ""},
		{"RSA with another certificate's thumbprint", rsaWith(fields{"x5t": "QzczNUNGNzFEMzQ0REU0M0MxNEY0N0M5M0FGRDVERjkyQzRBM0UzMg", "x5t#S256": "AA"}), ""},
		{"RSA with an address that is none", rsaWith(fields{"x5u": "://"}), ""},
		{"EC off the curve", jwk(ecKey().Public(), "x", "", fields{"y": b64(strings.Repeat("\x01", 32))}), "malformed"},
		{"EC on secp256k1", jwk(ecKey().Public(), "x", "", fields{"crv": "secp256k1"}), "malformed"},
		{"EC on a curve nobody knows", jwk(ecKey().Public(), "x", "", fields{"crv": "P-999"}), "malformed"},
		{"OKP on Ed448", []byte(`{"kty":"OKP","kid":"x","crv":"Ed448","x":"AA"}`), "a key of an unsupported kind"},
		{"X25519", []byte(`{"kty":"OKP","kid":"x","crv":"X25519","x":"AA"}`), "a key of an unsupported kind"},
		{"post-quantum key", []byte(`{"kty":"AKP","kid":"x","alg":"ML-DSA-44","pub":"AA"}`), "a key of an unsupported kind"},
		{"unknown kty", []byte(`{"kty":"XYZ","kid":"x"}`), "a key of an unsupported kind"},
		{"kty missing", []byte(`{"kid":"x"}`), "malformed"},
		{"kid a number", rsaWith(fields{"kid": 7}), "malformed"},
		{"kid with a line end", rsaWith(fields{"kid": "a\nb"}), "malformed"},
		{"kid too long", rsaWith(fields{"kid": strings.Repeat("k", 257)}), "malformed"},
		{"member twice", []byte(`{"kty":"RSA","kty":"oct","kid":"x"}`), "malformed"},
		{"nested too deeply", []byte(`{"kty":"RSA","x":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `}`), "malformed"},
		{"good but for its nesting", rsaWith(fields{"deep": json.RawMessage(strings.Repeat("[", 20) + strings.Repeat("]", 20))}), "malformed"},
		{"good but for a second kid in capitals", rsaWith(fields{"KID": "y"}), "malformed"},
		{"good but for a number too long", rsaWith(fields{"n1": json.RawMessage(strings.Repeat("9", 65))}), "malformed"},
		{"not an object", []byte(`"x"`), "malformed"},
		{"null", []byte(`null`), "malformed"},
		{"alg none", rsaWith(fields{"alg": "none"}), "an algorithm that is unsupported or not of the key's kind"},
		{"alg HS256", rsaWith(fields{"alg": "HS256"}), "an algorithm that is unsupported or not of the key's kind"},
		{"alg for encryption", rsaWith(fields{"alg": "RSA-OAEP"}), "an algorithm that is unsupported or not of the key's kind"},
		{"alg of another kind", rsaWith(fields{"alg": "ES256"}), "an algorithm that is unsupported or not of the key's kind"},
		{"alg of another curve", jwk(ecKey().Public(), "x", "ES384", nil), "an algorithm that is unsupported or not of the key's kind"},
		{"alg a number", rsaWith(fields{"alg": 1}), "malformed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			set, err := parseKeys([]byte(jwks(tt.entry, firstKey())), limits100)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]int{}
			if tt.want != "" {
				want[tt.want] = 1
			}
			if diff := cmp.Diff(want, set.skipped); diff != "" {
				t.Errorf("skipped (-want +got):\n%s", diff)
			}
			_, good := set.named["k1"]
			if _, x := set.named["x"]; !good || x != (tt.want == "") || len(set.unnamed) > 0 {
				t.Errorf("k1 usable: %t, the entry: %t", good, x)
			}
		})
	}
}

// limits100 are the limits of a set of an OpenID provider.
var limits100 = setLimits{bytes: 1 << 20, keys: 100, uses: []string{"", "sig"}}

func TestRepeatedKeyID(t *testing.T) {
	same := jwk(otherRSA().Public(), "x", "RS256", nil)
	for name, entries := range map[string][]json.RawMessage{
		"two keys":               {jwk(rsaKey().Public(), "x", "RS256", nil), same, firstKey()},
		"one key twice":          {same, same, firstKey()},
		"beside an unusable one": {same, jwk(rsaKey().Public(), "x", "", fields{"use": "enc"}), firstKey()},
	} {
		set, err := parseKeys([]byte(jwks(entries...)), limits100)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := set.named["x"]; ok || len(set.named) != 1 || set.skipped["repeated kid"] == 0 {
			t.Errorf("%s: keys %v, skipped %v; want k1 alone", name, set.named, set.skipped)
		}
	}
}

// A body that is not exactly one JSON object with one list of keys is not a key set, even if it contains a usable key.
func TestNoKeySet(t *testing.T) {
	k := string(firstKey())
	if _, err := parseKeys([]byte(`{"keys":[`+k+`],"x":1}`), limits100); err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{
		"nothing":              ``,
		"a key":                k,
		"a list of keys":       `[` + k + `]`,
		"a list of the parts":  `["keys",[` + k + `]]`,
		"cut before its end":   `{"keys":[` + k + `]`,
		"text after it":        `{"keys":[` + k + `]}x`,
		"two sets":             `{"keys":[` + k + `]}{"keys":[]}`,
		"keys in an object":    `{"keys":{"a":` + k + `}}`,
		"keys as text":         `{"keys":"` + b64(k) + `"}`,
		"keys twice":           `{"keys":[` + k + `],"keys":[` + k + `]}`,
		"keys in two cases":    `{"keys":[` + k + `],"KEYS":[]}`,
		"another member twice": `{"x":1,"keys":[` + k + `],"x":2}`,
		"keys in capitals":     `{"KEYS":[` + k + `]}`,
		"keys null":            `{"keys":null}`,
	} {
		if set, err := parseKeys([]byte(body), limits100); err == nil || err.Error() != "the answer is not a JWK set" {
			t.Errorf("%s: %v, %v; want no key set", name, set, err)
		}
	}
}

func TestKeySetLimits(t *testing.T) {
	entries := []json.RawMessage{firstKey()}
	for n := range 99 {
		entries = append(entries, json.RawMessage(fmt.Sprintf(`{"kty":"oct","kid":"%d","k":"AA"}`, n)))
	}
	if _, err := parseKeys([]byte(jwks(entries...)), limits100); err != nil {
		t.Errorf("100 keys: %v, want nil", err)
	}
	_, err := parseKeys([]byte(jwks(append(entries, secondKey())...)), limits100)
	if want := "the key set has more than 100 keys"; err == nil || err.Error() != want {
		t.Errorf("101 keys: %v, want %q", err, want)
	}
	unnamed := make([]json.RawMessage, maxUnnamed+2)
	for n := range unnamed {
		unnamed[n] = jwk(ecKey().Public(), "", "", nil)
	}
	set, err := parseKeys([]byte(jwks(unnamed...)), limits100)
	if err != nil || len(set.unnamed) != maxUnnamed || set.skipped["too many without kid"] != 2 {
		t.Errorf("keys without kid: %v, %v; want %d and two skipped", set, err, maxUnnamed)
	}
	_, err = parseKeys([]byte(`{"keys":[{"kty":"oct"},{"kty":"oct"},1]}`), limits100)
	if want := "the key set has no usable key; a symmetric key: 2; malformed: 1"; err == nil || err.Error() != want {
		t.Errorf("no usable key: %v, want %q", err, want)
	}
}

func TestFits(t *testing.T) {
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	p521 := must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	want := map[string][]string{
		"RSA":   {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"},
		"P-256": {"ES256"}, "P-384": {"ES384"}, "P-521": {"ES512"}, "Ed25519": {"EdDSA"}, "RSA for PS256": {"PS256"},
	}
	for name, k := range map[string]key{
		"RSA": {public: rsaKey().Public()}, "P-256": {public: ecKey().Public()}, "P-384": {public: p384.Public()},
		"P-521": {public: p521.Public()}, "Ed25519": {public: edKey().Public()}, "RSA for PS256": {public: rsaKey().Public(), alg: "PS256"},
	} {
		var got []string
		for _, alg := range append([]string{"none", "HS256"}, asymmetric...) {
			if k.fits(alg) {
				got = append(got, alg)
			}
		}
		if diff := cmp.Diff(want[name], got); diff != "" {
			t.Errorf("%s fits (-want +got):\n%s", name, diff)
		}
	}
}

func FuzzKeys(f *testing.F) {
	f.Add([]byte(`{"keys":[]}`))
	f.Add([]byte(jwks(jwk(edKey().Public(), "d", "EdDSA", nil), jwk(ecKey().Public(), "", "", nil))))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQ","e":"AQAB"},{"kty":"EC","crv":"P-256","x":"","y":""}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		set, err := parseKeys(body, setLimits{keys: 10, uses: limits100.uses})
		if err != nil {
			return
		}
		for id, k := range set.named {
			if id != k.id || !isKeyID(id) || weakness(k.public) != "" {
				t.Errorf("key %q was taken: %+v", id, k)
			}
		}
		if len(set.named)+len(set.unnamed) == 0 {
			t.Error("a set without keys was taken")
		}
	})
}
