// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// The values of OAuth.ClientAuth: how the engine authenticates to an authorization server. Both svid methods send a JWT-SVID as
// the client assertion, and differ in the assertion's type.
const (
	authNone       = "none"
	authBasic      = "client_secret_basic" // RFC 6749 section 2.3.1
	authPost       = "client_secret_post"
	authPrivateKey = "private_key_jwt" // RFC 7523 section 2.2
	authSVIDBearer = "svid_jwt_bearer"
	authSVIDSpiffe = "svid_jwt_spiffe"
	authTLS        = "tls_client_auth" // RFC 8705 section 2.1: the target's client_cert
)

var authMethods = []string{authNone, authBasic, authPost, authPrivateKey, authSVIDBearer, authSVIDSpiffe, authTLS}

const (
	assertionTypes = "urn:ietf:params:oauth:client-assertion-type:"
	assertionLife  = time.Minute // of an assertion that the engine signs
	minRSABits     = 2048
)

// client is the engine as a client of an authorization server.
type client struct {
	auth, id, secret string
	signer           jose.Signer // of private_key_jwt
	ownToken         func(ctx context.Context, source, spiffeID, audience string) (string, error)
	now              func() time.Time
}

// newClient requires exactly the fields that the method needs: whoever sets another field believes that it is used.
func newClient(c Config) (client, error) {
	a := c.OAuth
	method, err := oneOf("client_auth", a.ClientAuth, authMethods...)
	if err != nil {
		return client{}, err
	}
	secret, key := method == authBasic || method == authPost, method == authPrivateKey
	switch {
	case a.ClientID == "" && (secret || key || method == authTLS):
		return client{}, fieldErrorf("client_id", "is required with client_auth %s", method)
	case len(a.ClientID) > maxTextBytes || !printable(a.ClientID):
		return client{}, fieldErrorf("client_id", "want printable ASCII of at most %d bytes", maxTextBytes)
	case secret != (a.ClientSecret != ""):
		return client{}, fieldErrorf("client_secret", "is for client_auth %s and %s, which need it; client_auth is %s", authBasic, authPost, method)
	case len(a.ClientSecret) > maxCredentialBytes:
		return client{}, fieldErrorf("client_secret", "want at most %d bytes", maxCredentialBytes)
	case key != (a.PrivateKey != ""):
		return client{}, fieldErrorf("private_key", "is for client_auth %s, which needs it; client_auth is %s", authPrivateKey, method)
	case !key && a.KeyID != "":
		return client{}, fieldErrorf("private_key_id", "is for client_auth %s; client_auth is %s", authPrivateKey, method)
	case method == authTLS && c.ClientCert == "":
		return client{}, fieldErrorf("client_cert", "is required with client_auth %s", method)
	}
	made := client{auth: method, id: a.ClientID, secret: a.ClientSecret, ownToken: a.OwnToken, now: c.Now}
	if made.now == nil {
		made.now = time.Now
	}
	if key {
		if made.signer, err = signerOf(a.PrivateKey, a.KeyID); err != nil {
			return client{}, err
		}
	}
	return made, nil
}

// signerOf reads a private key; the type of the key determines the algorithm.
func signerOf(text, id string) (jose.Signer, error) {
	const field = "private_key"
	if len(id) > maxTextBytes || !printable(id) {
		return nil, fieldErrorf("private_key_id", "want printable ASCII of at most %d bytes", maxTextBytes)
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, fieldErrorf(field, "want one private key in PEM, not encrypted")
	}
	options := (&jose.SignerOptions{}).WithType("JWT")
	if id != "" {
		options.WithHeader("kid", id)
	}
	var algorithm jose.SignatureAlgorithm
	switch key := key.(type) {
	case *rsa.PrivateKey:
		if key.N.BitLen() < minRSABits {
			return nil, fieldErrorf(field, "want an RSA key of at least %d bits", minRSABits)
		}
		algorithm = jose.RS256
	case *ecdsa.PrivateKey:
		algorithm = map[int]jose.SignatureAlgorithm{256: jose.ES256, 384: jose.ES384, 521: jose.ES512}[key.Curve.Params().BitSize]
	case ed25519.PrivateKey:
		algorithm = jose.EdDSA
	}
	if algorithm == "" {
		return nil, fieldErrorf(field, "want a key of RSA, of P-256, P-384 or P-521, or of Ed25519")
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, options)
	if err != nil {
		return nil, fieldErrorf(field, "is no key that can sign")
	}
	return signer, nil
}

func parseKey(text string) (any, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || strings.TrimSpace(string(rest)) != "" {
		return nil, errors.New("not one block")
	}
	switch block.Type {
	case "PRIVATE KEY":
		return x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		return x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		return x509.ParseECPrivateKey(block.Bytes)
	}
	return nil, errors.New("not a private key")
}

// authenticate adds the engine's client authentication to a request. After an error, the request must not be sent.
func (c client) authenticate(ctx context.Context, op string, h hop, form url.Values, header http.Header) error {
	var assertion string
	var err error
	kind := "jwt-bearer"
	switch c.auth {
	case authBasic:
		// RFC 6749 section 2.3.1 wants both form-encoded, so that a colon or another character cannot confuse the server.
		pair := url.QueryEscape(c.id) + ":" + url.QueryEscape(c.secret)
		header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(pair)))
		return nil
	case authPost:
		form.Set("client_secret", c.secret)
	case authPrivateKey:
		assertion, err = c.sign(op, h.assertionAudience)
	case authSVIDSpiffe:
		kind = "jwt-spiffe"
		fallthrough
	case authSVIDBearer:
		assertion, err = c.own(ctx, op, SourceSVID, h)
	}
	if err != nil {
		return err
	}
	if c.id != "" { // with an assertion too: some servers look for it there
		form.Set("client_id", c.id)
	}
	if assertion != "" {
		form.Set("client_assertion_type", assertionTypes+kind)
		form.Set("client_assertion", assertion)
	}
	return nil
}

// sign makes an assertion for one request: it has one audience and a fresh id, and lives for assertionLife.
func (c client) sign(op, audience string) (string, error) {
	now := c.now()
	claims, err := json.Marshal(map[string]any{
		"iss": c.id, "sub": c.id, "aud": audience, "jti": rand.Text(), "iat": now.Unix(), "exp": now.Add(assertionLife).Unix(),
	})
	if err != nil {
		panic(err) // cannot happen: these are texts and numbers
	}
	signed, err := c.signer.Sign(claims)
	if err != nil {
		return "", unbuildable(op, "the private key does not sign")
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		return "", unbuildable(op, "the private key does not sign")
	}
	return text, nil
}

// own returns a token of the engine's own, for the server of a hop.
func (c client) own(ctx context.Context, op, source string, h hop) (string, error) {
	if c.ownToken == nil {
		return "", unbuildable(op, "the engine has no token of its own here")
	}
	token, err := c.ownToken(ctx, source, h.spiffeID, h.assertionAudience)
	if err == nil {
		return token, nil
	}
	e := &Error{Op: op, Text: fmt.Sprintf("no token of the engine's own from %s", source), outcome: ErrParameter, cause: err}
	if errors.Is(err, ErrBusy) {
		e.outcome = ErrBusy
	}
	return "", e
}
