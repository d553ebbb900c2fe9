// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"cmp"
	"errors"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Claimed is what an unverified token claims about its origin. Use it only to refuse, or to pick the issuer whose VerifyPeeked
// then decides.
type Claimed struct {
	Issuer  string // iss; "" if there is none
	Subject string // sub
	KeyID   string // kid; "" if there is none
}

// Peeked is a token that Peek has read.
type Peeked struct {
	Claimed
	token *unverified
}

// Limits bound a token; 0 stands for the defaults of a Config.
type Limits struct{ TokenBytes, Claims, Depth int }

// Peek reads a token without verifying it. It refuses, with an [Error], only tokens that no issuer with these limits would
// accept. It does not use the network.
func Peek(token string, l Limits) (*Peeked, error) {
	u, err := read(token, cmp.Or(l.TokenBytes, defaultTokenBytes), limits{depth: cmp.Or(l.Depth, defaultDepth), members: cmp.Or(l.Claims, defaultClaims)})
	if err != nil {
		return nil, err
	}
	if _, isWorkload := trustDomainOf(u.sub); u.iss == "" && !isWorkload {
		return nil, refuse(TokenMalformed, badIssuer)
	}
	return &Peeked{Claimed: Claimed{Issuer: u.iss, Subject: u.sub, KeyID: u.kid}, token: u}, nil
}

// Describe returns, of the unverified alg, typ, kid, iss, sub, aud, iat, nbf and exp of a token, those that can be read.
// They prove nothing; show them only to whoever presented the token.
func Describe(token string, maxBytes int) map[string]any {
	said := map[string]any{}
	if maxBytes <= 0 {
		maxBytes = defaultTokenBytes
	}
	s, err := split(token, maxBytes)
	if err != nil {
		return said
	}
	for text, names := range map[string][]string{s.header: {"alg", "typ", "kid"}, s.payload: {"iss", "sub", "aud", "iat", "nbf", "exp"}} {
		m, err := parseObject(text, limits{depth: hardDepth, members: hardClaims})
		if err != nil {
			continue
		}
		for _, name := range names {
			if value, ok := m[name]; ok {
				said[name] = value
			}
		}
	}
	return said
}

// ClaimedBy reports whether a token claims to come from the issuer that c describes, by Issuer and TrustDomain only. Verify
// refuses every other token.
func (c *Config) ClaimedBy(by Claimed) bool { return c.claimed(by) == nil }

// claimed refuses a token that does not claim to come from this issuer.
func (c *Config) claimed(by Claimed) error {
	if c.TrustDomain == "" {
		switch by.Issuer {
		case c.Issuer:
			return nil
		case "":
			return refuse(TokenMalformed, badIssuer)
		}
		return refuse(UnknownIssuer, "iss is not exactly this issuer's")
	}
	domain, isWorkload := trustDomainOf(by.Subject)
	switch {
	case !isWorkload:
		return refuse(TokenMalformed, "payload: sub is not the SPIFFE ID of a workload")
	case domain != c.TrustDomain: // whose keys must not vouch for it
		return refuse(UnknownIssuer, "sub is of another trust domain")
	case c.Issuer != "" && by.Issuer != "" && by.Issuer != c.Issuer:
		return refuse(UnknownIssuer, "iss is not exactly this issuer's")
	}
	return nil
}

// trustDomainOf returns the trust domain of a workload's SPIFFE ID. An ID without a path names a trust domain, not a workload.
func trustDomainOf(sub string) (name string, isWorkload bool) {
	id, err := spiffeid.FromString(sub)
	return id.TrustDomain().Name(), err == nil && id.Path() != ""
}

// maxTrustDomainBytes is the limit of the SPIFFE standard (SPIFFE-ID section 2.3).
const maxTrustDomainBytes = 255

func (c *Config) checkTrustDomain() error {
	if c.TrustDomain == "" {
		if c.Bundle != nil {
			return errors.New("workload_api: is for issuers of type spiffe")
		}
		return nil
	}
	// The parser takes a SPIFFE ID too; two spellings of one domain would be two issuers.
	domain, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	if err != nil || domain.Name() != c.TrustDomain || len(c.TrustDomain) > maxTrustDomainBytes {
		return errors.New("trust_domain: want the name of a SPIFFE trust domain in lower case, such as example.org, without spiffe://")
	}
	return nil
}
