// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"strings"
)

// algorithm is what an `alg` requires of the key.
type algorithm struct {
	hash  crypto.Hash
	curve elliptic.Curve // ES*
}

var algorithms = map[string]algorithm{
	"RS256": {hash: crypto.SHA256}, "RS384": {hash: crypto.SHA384}, "RS512": {hash: crypto.SHA512},
	"PS256": {hash: crypto.SHA256}, "PS384": {hash: crypto.SHA384}, "PS512": {hash: crypto.SHA512},
	"ES256": {crypto.SHA256, elliptic.P256()}, "ES384": {crypto.SHA384, elliptic.P384()}, "ES512": {crypto.SHA512, elliptic.P521()},
	"EdDSA": {},
}

// Compact signs header and payload, both unchanged, and returns the compact JWS. alg decides which signature is made; the
// header may name another. It is an error if the key (RSA, ECDSA or Ed25519) cannot make alg's signature.
func Compact(alg string, key crypto.Signer, header, payload []byte) (string, error) {
	input := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(payload)
	signature, err := sign(alg, key, []byte(input))
	if err != nil {
		return "", err
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// fits reports whether key can make signatures of alg.
func fits(alg string, key crypto.Signer) bool {
	a, known := algorithms[alg]
	switch k := key.(type) {
	case *rsa.PrivateKey:
		return known && (strings.HasPrefix(alg, "RS") || strings.HasPrefix(alg, "PS"))
	case *ecdsa.PrivateKey:
		return known && a.curve == k.Curve
	case ed25519.PrivateKey:
		return alg == "EdDSA"
	}
	return false
}

// sign makes a signature by RFC 7518 section 3 or RFC 8037.
func sign(alg string, key crypto.Signer, input []byte) ([]byte, error) {
	if !fits(alg, key) {
		return nil, fmt.Errorf("signing with %q: the key does not fit; got %T", alg, key)
	}
	hash := algorithms[alg].hash
	digest := input
	if hash != 0 {
		h := hash.New()
		h.Write(input)
		digest = h.Sum(nil)
	}
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, k, digest)
		if err != nil {
			return nil, err
		}
		size := (k.Curve.Params().BitSize + 7) / 8 // JWS requires r and s of fixed length, not ASN.1
		return append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...), nil
	case *rsa.PrivateKey:
		if strings.HasPrefix(alg, "PS") {
			return k.Sign(rand.Reader, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash})
		}
	}
	return key.Sign(rand.Reader, digest, hash)
}

// generateKey makes a key for alg. It panics if alg is unknown, which is a programming error.
func generateKey(alg string) crypto.Signer {
	var key crypto.Signer
	var err error
	switch a, known := algorithms[alg]; {
	case !known:
		panic(fmt.Sprintf("lab: algorithm %q: unknown", alg))
	case alg == "EdDSA":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case a.curve != nil:
		key, err = ecdsa.GenerateKey(a.curve, rand.Reader)
	default:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		panic("lab: generating a key: " + err.Error())
	}
	return key
}
