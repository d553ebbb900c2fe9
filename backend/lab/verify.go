// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// tokenClaims are the claims of a token as encoding/json decodes them.
type tokenClaims map[string]any

// text returns a claim that is a string and not blank, else "".
func (c tokenClaims) text(name string) string {
	s, _ := c[name].(string)
	if strings.TrimSpace(s) == "" {
		return ""
	}
	return s
}

// time returns a claim that is a number of seconds; it returns false for any other claim.
func (c tokenClaims) time(name string) (time.Time, bool) {
	seconds, ok := c[name].(float64)
	return time.Unix(int64(seconds), 0), ok
}

// audiences returns the values of `aud`, one or a list.
func (c tokenClaims) audiences() []any {
	switch aud := c["aud"].(type) {
	case nil:
		return nil
	case []any:
		return aud
	default:
		return []any{aud}
	}
}

// parseClaims reads the claims of a compact JWS without verifying it.
func parseClaims(token string) (tokenClaims, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, false
	}
	var claims tokenClaims
	for _, part := range parts[:2] { // the header, then the claims in its place: both must be JSON objects
		raw, err := base64.RawURLEncoding.DecodeString(part)
		claims = nil
		if err != nil || json.Unmarshal(raw, &claims) != nil || claims == nil {
			return nil, false
		}
	}
	return claims, true
}

// asymmetric are the algorithms that the stand-ins accept.
var asymmetric = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512,
}

// fetchTimeout is how long a server waits for the keys of an issuer.
const fetchTimeout = 10 * time.Second

// errSignature means that no key of the issuer made the signature.
var errSignature = errors.New("bad signature")

// checkSignature checks a token against the keys that the issuer publishes now; client fetches them. An error other than
// errSignature means that the keys could not be fetched. It ignores the cancellation of ctx: a server that has read a
// request goes on with it even if the caller leaves.
func checkSignature(ctx context.Context, client *http.Client, issuer, token string, algorithms []jose.SignatureAlgorithm) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
	defer cancel()
	keys, err := fetchKeys(ctx, client, issuer)
	if err != nil {
		return err
	}
	if !signedBy(keys, token, algorithms) {
		return errSignature
	}
	return nil
}

// signedBy reports whether one of the keys has signed the token.
func signedBy(keys jose.JSONWebKeySet, token string, algorithms []jose.SignatureAlgorithm) bool {
	jws, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return false
	}
	for _, k := range keys.Keys {
		kid := jws.Signatures[0].Protected.KeyID
		if kid != "" && kid != k.KeyID {
			continue
		}
		if _, err := jws.Verify(k); err == nil {
			return true
		}
	}
	return false
}

// fetchKeys fetches the issuer's key set through its discovery document, each time anew.
func fetchKeys(ctx context.Context, client *http.Client, issuer string) (jose.JSONWebKeySet, error) {
	var document struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	var keys jose.JSONWebKeySet
	if err := fetch(ctx, client, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration", &document); err != nil {
		return keys, err
	}
	if document.Issuer != issuer {
		return keys, errors.New("discovery document of another issuer")
	}
	err := fetch(ctx, client, document.JWKSURI, &keys)
	return keys, err
}

func fetch(ctx context.Context, client *http.Client, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	return json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(into)
}
