// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// nugetClockSkew is the default clock skew of the gallery's token library.
const nugetClockSkew = 5 * time.Minute

func (c tokenClaims) mismatch(name string) string {
	return fmt.Sprintf("The JSON Web Token claim '%s' has value '%s' which does not match the policy.", name, c.text(name))
}

// verify makes the checks that come before the policies and returns the token's claims.
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
	// As in the gallery, the signature is checked before the claims, so that the refusal of a forged token tells nothing
	// about them.
	switch err := checkSignature(ctx, g.o.Client, issuer, token, asymmetric); {
	case errors.Is(err, errSignature):
		return nil, unauthorized("The JSON web token has an invalid signature.")
	case err != nil:
		return nil, unauthorized("The JSON web token could not be validated.")
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

// issuer finds the trusted issuer that `iss` means. Here only the host decides; the full text is compared once the token is
// verified. An issuer without https can be trusted too, so that the lab works without TLS.
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
