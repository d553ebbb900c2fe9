// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

const (
	minRSABits = 2048
	maxRSABits = 8192 // larger ones only cost time
	// maxUnnamed bounds the keys without an id: each is tried for every token.
	maxUnnamed = 8
)

// asymmetric lists every algorithm that an issuer may have. It has no HMAC, because whoever can verify an HMAC can also make
// one.
var asymmetric = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

// setLimits bound a key set.
type setLimits struct {
	bytes int64
	keys  int
	uses  []string // values of use that make a key one for verifying tokens; "" for a key without use
}

// jwkLimits bound one key of a set.
var jwkLimits = limits{depth: 8, members: 64}

// key is a public key that may verify tokens.
type key struct {
	id     string
	alg    string // as published; empty permits every algorithm of the key's kind
	public any    // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
}

// fits says whether a signature by alg may be verified with k. One key must not serve two algorithms (RFC 8725 section 3.1).
func (k key) fits(alg string) bool {
	return (k.alg == "" || k.alg == alg) && fitsKind(k.public, alg)
}

func fitsKind(public any, alg string) bool {
	switch public := public.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(alg, "RS") || strings.HasPrefix(alg, "PS")
	case *ecdsa.PublicKey:
		return alg == curveAlgorithm(public.Curve)
	case ed25519.PublicKey:
		return alg == "EdDSA"
	}
	return false
}

func curveAlgorithm(c elliptic.Curve) string {
	switch c {
	case elliptic.P256():
		return "ES256"
	case elliptic.P384():
		return "ES384"
	case elliptic.P521():
		return "ES512"
	}
	return ""
}

// weakness says why a key must not be used, "" if it may.
func weakness(public any) string {
	switch public := public.(type) {
	case *rsa.PublicKey:
		bits := public.N.BitLen()
		if bits < minRSABits || bits > maxRSABits {
			return fmt.Sprintf("an RSA key outside %d to %d bits", minRSABits, maxRSABits)
		}
		if public.E < 3 || public.E%2 == 0 {
			return "an RSA key with an unsafe exponent"
		}
	case *ecdsa.PublicKey:
		if curveAlgorithm(public.Curve) == "" {
			return "a key of an unsupported kind"
		}
	case ed25519.PublicKey:
	default:
		return "a key of an unsupported kind"
	}
	return ""
}

// keys is the usable part of a key set; it does not change once made.
type keys struct {
	named   map[string]key
	unnamed []key
	skipped map[string]int // why entries are not used, and how many; our words
}

// members reads the members of a JSON object. It refuses an object that has a name twice or in two spellings, because parsers
// differ in which of the two they use.
func members(body []byte) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(body))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil, errors.New("not an object")
	}
	out, folded := map[string]json.RawMessage{}, map[string]bool{}
	for d.More() {
		var value json.RawMessage
		name, err := d.Token()
		if err != nil || d.Decode(&value) != nil {
			return nil, errors.New("not an object")
		}
		text, _ := name.(string)
		if folded[strings.ToLower(text)] {
			return nil, errors.New("a name stands twice")
		}
		folded[strings.ToLower(text)], out[text] = true, value
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("trailing data")
	}
	return out, nil
}

// parseKeys reads a JWK set entry by entry: an entry that cannot be used is skipped and counted, so that one odd key does
// not take the issuer down (RFC 7517 section 5). A set without any usable key is an error.
func parseKeys(body []byte, l setLimits) (*keys, error) {
	var entries []json.RawMessage
	doc, err := members(body)
	if err != nil || json.Unmarshal(doc["keys"], &entries) != nil || entries == nil {
		return nil, errors.New("the answer is not a JWK set")
	}
	if len(entries) > l.keys {
		return nil, fmt.Errorf("the key set has more than %d keys", l.keys)
	}
	seen := make(map[string]int)
	list := make([]parsedKey, len(entries))
	for i, entry := range entries {
		list[i] = parseKey(entry, l.uses)
		seen[list[i].id]++
	}
	set := &keys{named: make(map[string]key), skipped: make(map[string]int)}
	for _, k := range list {
		switch {
		case k.fault != "":
			set.skipped[k.fault]++
		case k.id != "" && seen[k.id] > 1: // which of them vouches would depend on their order
			set.skipped["repeated kid"]++
		case k.id != "":
			set.named[k.id] = k.key
		case len(set.unnamed) == maxUnnamed:
			set.skipped["too many without kid"]++
		default:
			set.unnamed = append(set.unnamed, k.key)
		}
	}
	if len(set.named)+len(set.unnamed) == 0 {
		return nil, fmt.Errorf("the key set has no usable key%s", set.explain())
	}
	return set, nil
}

// explain lists what was skipped, in a fixed order.
func (s *keys) explain() string {
	var b strings.Builder
	for _, fault := range slices.Sorted(maps.Keys(s.skipped)) {
		fmt.Fprintf(&b, "; %s: %d", fault, s.skipped[fault])
	}
	return b.String()
}

// parsedKey is one entry of a key set: a key, or why it is not used. Its id is known even then, if it can be.
type parsedKey struct {
	key
	fault string
}

func parseKey(entry []byte, uses []string) parsedKey {
	m, err := parseObject(string(entry), jwkLimits)
	if err != nil {
		return parsedKey{fault: "malformed"}
	}
	id, named, ok := stringMember(m, "kid")
	if !ok || named && !isKeyID(id) {
		return parsedKey{fault: "malformed"}
	}
	k := key{id: id}
	fault := purpose(m, uses)
	if fault == "" {
		fault = k.read(m)
	}
	return parsedKey{key: k, fault: fault}
}

// keyMembers are the members of a JWK that make a key (RFC 7518 section 6, RFC 8037), and alg. Certificates are not among them:
// nothing here looks at them, and some issuers publish ones that go-jose cannot read, or thumbprints of others.
var keyMembers = []string{"kty", "crv", "n", "e", "x", "y", "alg"}

// read takes the key itself out of an entry's members, and returns why it must not be used, if so.
func (k *key) read(m map[string]any) string {
	if e, _ := m["e"].(string); len(e) > 6 { // go-jose would cut an exponent of more than four bytes down
		return "an RSA key with an unsafe exponent"
	}
	maps.DeleteFunc(m, func(name string, _ any) bool { return !slices.Contains(keyMembers, name) })
	var jwk jose.JSONWebKey
	entry, err := json.Marshal(m)
	if err == nil {
		err = jwk.UnmarshalJSON(entry)
	}
	switch {
	case errors.Is(err, jose.ErrUnsupportedKeyType):
		return "a key of an unsupported kind"
	case err != nil: // its text may quote the entry
		return "malformed"
	}
	if fault := weakness(jwk.Key); fault != "" {
		return fault
	}
	if jwk.Algorithm != "" && (!slices.Contains(asymmetric, jwk.Algorithm) || !fitsKind(jwk.Key, jwk.Algorithm)) {
		return "an algorithm that is unsupported or not of the key's kind"
	}
	k.alg, k.public = jwk.Algorithm, jwk.Key
	return ""
}

// purpose refuses entries that are not public keys for verifying signatures.
func purpose(m map[string]any, uses []string) string {
	if m["kty"] == "oct" {
		return "a symmetric key"
	}
	for _, name := range [...]string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"} {
		if _, ok := m[name]; ok { // published, so anybody may sign with it
			return "a private key"
		}
	}
	if use, _, ok := stringMember(m, "use"); !ok || !slices.Contains(uses, use) {
		return "not for signatures"
	}
	ops, hasOps := m["key_ops"]
	list, _ := ops.([]any)
	if hasOps && !slices.Contains(list, any("verify")) {
		return "not for signatures"
	}
	return ""
}

// parsePEMKeys reads configured public keys.
func parsePEMKeys(texts []string) (*keys, error) {
	if len(texts) > maxUnnamed {
		return nil, fmt.Errorf("more than %d keys", maxUnnamed)
	}
	set := &keys{}
	for i, text := range texts {
		public, err := parsePEMKey(text)
		if err != nil {
			return nil, fmt.Errorf("key %d: %v", i+1, err)
		}
		set.unnamed = append(set.unnamed, key{public: public})
	}
	return set, nil
}

func parsePEMKey(text string) (any, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || strings.TrimSpace(string(rest)) != "" {
		return nil, errors.New("not exactly one public key in PEM")
	}
	var public any
	var err error
	switch block.Type {
	case "PUBLIC KEY":
		public, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		public, err = x509.ParsePKCS1PublicKey(block.Bytes)
	default: // not a certificate either: it would suggest that its dates and chain are checked
		return nil, errors.New(`want a block of type "PUBLIC KEY" or "RSA PUBLIC KEY"`)
	}
	if err != nil {
		return nil, errors.New("not a public key")
	}
	if fault := weakness(public); fault != "" {
		return nil, errors.New(fault)
	}
	return public, nil
}
