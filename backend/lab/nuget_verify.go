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
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// nugetClockSkew is what the gallery's token library grants by default.
const nugetClockSkew = 5 * time.Minute

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

// time returns a claim that is a number of seconds, else false.
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

func (c tokenClaims) mismatch(name string) string {
	return fmt.Sprintf("The JSON Web Token claim '%s' has value '%s' which does not match the policy.", name, c.text(name))
}

// verify makes the checks of a token that come before the policies and returns its claims.
func (g *NuGet) verify(ctx context.Context, token string) (tokenClaims, *nugetError) {
	claims, ok := parseClaims(token)
	if !ok {
		return nil, unauthorized("The bearer token could not be parsed as a JSON web token.")
	}
	aud := claims.audiences()
	if len(aud) != 1 {
		return nil, unauthorized("The JSON web token must have exactly one aud claim value.")
	}
	if s, ok := aud[0].(string); !ok || strings.TrimSpace(s) == "" {
		return nil, unauthorized("The JSON web token must have an aud claim.")
	}
	issuer, refused := g.issuer(claims.text("iss"))
	if refused != nil {
		return nil, refused
	}
	if claims.text("jti") == "" {
		return nil, unauthorized("The JSON web token must have a jti claim.")
	}
	if refused := g.verifySignature(ctx, issuer, token); refused != nil {
		return nil, refused
	}
	now := g.now()
	exp, hasExp := claims.time("exp")
	nbf, hasNbf := claims.time("nbf")
	switch {
	case !hasExp:
		return nil, unauthorized("The JSON web token could not be validated.")
	case hasNbf && nbf.After(now.Add(nugetClockSkew)):
		return nil, unauthorized("The JSON web token is not yet valid.")
	case exp.Before(now.Add(-nugetClockSkew)):
		return nil, unauthorized("The JSON web token has expired.")
	case aud[0] != g.o.Audience:
		return nil, unauthorized("The JSON web token has an incorrect audience.")
	case claims.text("iss") != issuer:
		return nil, unauthorized("The JSON web token could not be validated.")
	}
	return claims, nil
}

// parseClaims reads the claims of a compact JWS without believing them.
func parseClaims(token string) (tokenClaims, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, false
	}
	var claims tokenClaims
	for _, part := range parts[:2] { // the header, then over it the claims: both must be JSON objects
		raw, err := base64.RawURLEncoding.DecodeString(part)
		claims = nil
		if err != nil || json.Unmarshal(raw, &claims) != nil || claims == nil {
			return nil, false
		}
	}
	return claims, true
}

// issuer finds the trusted issuer that `iss` means. Only the host decides here; the full text is compared when the token has
// been verified. An issuer without https can be trusted too, so that the lab can do without TLS.
func (g *NuGet) issuer(iss string) (string, *nugetError) {
	if iss == "" {
		return "", unauthorized("The JSON web token must have an iss claim.")
	}
	if slices.Contains(g.o.Issuers, iss) {
		return iss, nil
	}
	u, err := url.Parse(iss)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return "", unauthorized("The JSON web token iss claim must be a valid HTTPS URL.")
	}
	for _, trusted := range g.o.Issuers {
		if t, err := url.Parse(trusted); err == nil && strings.EqualFold(t.Host, u.Host) {
			return trusted, nil
		}
	}
	return "", unauthorized("The JSON web token iss claim is not supported.")
}

// verifySignature checks the token against the keys that the issuer publishes now. As in the gallery it comes before the
// claims are weighed, so a forged token is told nothing about them.
func (g *NuGet) verifySignature(ctx context.Context, issuer, token string) *nugetError {
	keys, err := g.fetchKeys(ctx, issuer)
	if err != nil {
		return unauthorized("The JSON web token could not be validated.")
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{
		jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512})
	if err == nil {
		for _, k := range keys.Keys {
			kid := jws.Signatures[0].Protected.KeyID
			if kid != "" && kid != k.KeyID {
				continue
			}
			if _, err := jws.Verify(k); err == nil {
				return nil
			}
		}
	}
	return unauthorized("The JSON web token has an invalid signature.")
}

// fetchKeys fetches the issuer's key set by way of its discovery document, each time anew.
func (g *NuGet) fetchKeys(ctx context.Context, issuer string) (jose.JSONWebKeySet, error) {
	var document struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	var keys jose.JSONWebKeySet
	if err := g.fetch(ctx, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration", &document); err != nil {
		return keys, err
	}
	if document.Issuer != issuer {
		return keys, errors.New("discovery document of another issuer")
	}
	err := g.fetch(ctx, document.JWKSURI, &keys)
	return keys, err
}

func (g *NuGet) fetch(ctx context.Context, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := g.o.Client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	return json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(into)
}
