// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// Package identity verifies subject tokens. It does not decide who is trusted, not even by audience: trust policies do.
//
// A token passes these checks in this order. Each is cheaper than the ones after it, and relies on the ones before it having
// left only one way to read the token:
//
//	spelling   compact form, one spelling only                         split
//	header     strict JSON; no foreign keys                            parseHeader
//	payload    strict JSON into the one map of claims                  parsePayload
//	kind       alg and typ are permitted                               checkHeader
//	issuer     iss, or the trust domain of sub, is this issuer's       Config.claimed
//	time       exp, iat, nbf, age and lifetime                         inTime
//	signature  go-oidc, over the issuer's keys                         keySet
//	agreement  go-oidc read the same iss, sub, aud and exp as we did   agree
//
// Nothing before the signature check uses the network, so a token that names no configured issuer causes no call.
package identity

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
)

// Absent in Config.AllowedTypes stands for a token without a typ header.
const Absent = "absent"

// Config describes one issuer of tokens: an OpenID provider, or a SPIFFE trust domain. Limits and durations that are 0 take
// the default named beside them.
type Config struct {
	// Issuer is the exact iss of its tokens; empty means DiscoveryURL. It is compared byte by byte and never normalised.
	// Tokens of a trust domain need no iss; with Issuer those that have one must have this.
	Issuer string
	// TrustDomain is the name of a SPIFFE trust domain; if set, the issuer accepts JWT-SVIDs of the domain's workloads.
	TrustDomain string

	// Exactly one of these says where its keys come from: a discovery document below DiscoveryURL, a JWK set at JWKSURL,
	// public keys in PEM, one each, or for a trust domain a call that brings its JWK set.
	DiscoveryURL string
	JWKSURL      string
	PublicKeys   []string
	Bundle       Bundle
	// JWKSHosts are hosts ("host", or "host:port" if not the default) that a discovery document may name for the keys,
	// beside those of the issuer and of DiscoveryURL.
	JWKSHosts []string

	Algorithms   []string // asymmetric JWS algorithms; default RS256, ES256
	AllowedTypes []string // typ headers, and Absent for none; default Absent and JWT, for JWT-SVIDs JOSE too. Compared as media types are

	// Leeway forgives clocks that differ: a token is valid until exp plus Leeway, and from nbf less Leeway on. 0 is none;
	// at most 2 minutes. iat may always lie up to a minute ahead.
	Leeway           time.Duration
	MaxAge           time.Duration // since iat; default 1 h
	MaxTokenLifetime time.Duration // from iat to exp; default 24 h

	CAPEM    string        // certificates that replace the system's roots
	ProxyURL string        // see egress.Options
	Egress   egress.Policy // which addresses may be called
	// HTTPTimeout bounds each call, and a fetch of keys (discovery and key set) to twice this; default 10 s.
	HTTPTimeout time.Duration

	MaxTokenBytes int   // default 16 KiB, at most 64 KiB
	MaxClaims     int   // members of all objects together; default 256, at most 4096
	MaxDepth      int   // of nesting; default 16, at most 64
	MaxJWKSBytes  int64 // default 512 KiB, at most 8 MiB
	MaxKeys       int   // default 100, at most 1000

	MinRefresh   time.Duration // between two fetches of keys; default 30 s
	KeysMaxAge   time.Duration // keys in use are refreshed at this age; default 10 min
	KeysMaxStale time.Duration // keys that cannot be refreshed are used up to this age; default 1 h

	Now func() time.Time // nil means time.Now
}

// Verifier verifies the tokens of one issuer. It may be shared; New makes one.
type Verifier struct {
	cfg    Config // with defaults filled in
	limits limits
	keys   *keySet
	oidc   oidc.Config
}

// Status is what is known of an issuer's keys at a moment.
type Status struct {
	Fetched   time.Time      // when the keys in use were asked for; zero if there are none, or they are configured
	Tried     time.Time      // when keys were last asked for
	Keys      int            // how many are usable
	KeyIDs    []string       // their ids, sorted; configured keys have none
	Skipped   map[string]int // entries of the set that are not used, by reason
	LastError string         // why the last fetch failed; empty if it succeeded. Never contains a part of an answer
	Fetches   uint64         // how often keys were fetched since New, failures among them
	Failures  uint64         // how many of the fetches brought nothing
}

// New checks everything about c and does no I/O. Its errors name the API field that is wrong and never quote a key.
func New(c Config) (*Verifier, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	set, err := c.keySet()
	if err != nil {
		return nil, err
	}
	v := &Verifier{cfg: c, limits: limits{depth: c.MaxDepth, members: c.MaxClaims}, keys: set}
	v.oidc = oidc.Config{
		SupportedSigningAlgs: c.Algorithms,
		// The audience is decided by the trust policy: which values are right depends on the role, not on the issuer.
		SkipClientIDCheck: true,
		// A JWT-SVID need not have an iss; Config.claimed has looked at it, and at the trust domain.
		SkipIssuerCheck: c.TrustDomain != "",
		// go-oidc has no leeway for exp; moving its clock back gives it ours. It looks at nbf with five minutes of leeway,
		// less this; inTime is stricter.
		Now: func() time.Time { return c.Now().Add(-c.Leeway) },
	}
	return v, nil
}

// Inherit makes v use the keys that former has fetched, if both fetch keys from the same place and make the same demands on
// them. Call it before any other use of v. former may be in use, and may be nil.
func (v *Verifier) Inherit(former *Verifier) {
	if former != nil && v.cfg.sameKeys(former.cfg) {
		v.keys.stock = former.keys.stock
	}
}

// Verify returns the verified token, or an *Error whose Reason says what is wrong with it. The reason IssuerUnavailable is
// the only one that is not the token's fault. A key that is not known yet may be fetched; Verify returns when ctx ends.
func (v *Verifier) Verify(ctx context.Context, token string) (*Token, error) {
	u, err := read(token, v.cfg.MaxTokenBytes, v.limits)
	if err != nil {
		return nil, err
	}
	return v.verify(ctx, u)
}

// VerifyPeeked is Verify for a token that Peek has read.
func (v *Verifier) VerifyPeeked(ctx context.Context, p *Peeked) (*Token, error) {
	if p.token.limits != v.limits || len(p.token.token) > v.cfg.MaxTokenBytes {
		return v.Verify(ctx, p.token.token)
	}
	return v.verify(ctx, p.token)
}

func (v *Verifier) verify(ctx context.Context, u *unverified) (*Token, error) {
	if err := v.checkHeader(u.header, u.parts); err != nil {
		return nil, err
	}
	if err := v.cfg.claimed(Claimed{Issuer: u.iss, Subject: u.sub}); err != nil {
		return nil, err
	}
	if err := v.inTime(u.payload, v.cfg.Now()); err != nil {
		return nil, err
	}
	if err := v.checkSignature(ctx, u.token, u.payload); err != nil {
		return nil, err
	}
	return newToken(u.parts, u.payload), nil
}

func (v *Verifier) checkHeader(h header, s segments) error {
	if !slices.Contains(v.cfg.Algorithms, h.alg) {
		return refuse(Algorithm, "alg is not in jwt_supported_algs")
	}
	if !typeAllowed(h, v.cfg.AllowedTypes) {
		return refuse(TokenType, "typ is not in allowed_types")
	}
	if v.cfg.TrustDomain != "" && !h.hasKid {
		return refuse(UnknownKey, "it has no kid, which a JWT-SVID must have here")
	}
	if s.signature == 0 {
		return refuse(TokenMalformed, "it has no signature")
	}
	return nil
}

// inTime checks everything that depends on the clock.
func (v *Verifier) inTime(p payload, now time.Time) error {
	issued, expiry := time.Unix(p.iat, 0), time.Unix(p.exp, 0)
	switch {
	case !now.Before(expiry.Add(v.cfg.Leeway)):
		return refuse(Expired, "exp has passed")
	case issued.After(now.Add(max(v.cfg.Leeway, iatLeeway))):
		return refuse(NotYetValid, "iat lies in the future")
	case p.nbf != 0 && time.Unix(p.nbf, 0).After(now.Add(v.cfg.Leeway)):
		return refuse(NotYetValid, "nbf lies in the future")
	case !issued.Before(expiry):
		return refuse(Lifetime, "exp is not after iat")
	case p.nbf >= p.exp:
		return refuse(Lifetime, "exp is not after nbf")
	case now.Sub(issued) > v.cfg.MaxAge:
		return refuse(TooOld, "iat is longer ago than max_age")
	case expiry.Sub(issued) > v.cfg.MaxTokenLifetime:
		return refuse(Lifetime, "exp is later after iat than max_token_lifetime")
	}
	return nil
}

// checkSignature lets go-oidc verify the token with this issuer's keys, and compares what it read with what we did.
func (v *Verifier) checkSignature(ctx context.Context, token string, p payload) error {
	once := &call{keys: v.keys}
	id, err := oidc.NewVerifier(v.cfg.Issuer, once, &v.oidc).Verify(ctx, token)
	if once.err != nil {
		return once.err
	}
	if expired := (*oidc.TokenExpiredError)(nil); errors.As(err, &expired) { // while the keys were fetched
		return refuse(Expired, "exp has passed")
	}
	if err != nil { // its text quotes the token
		return refuse(TokenMalformed, "go-oidc refuses it")
	}
	if !agree(p, id) {
		return refuse(TokenMalformed, "two parsers read it differently")
	}
	return nil
}

// call carries the key set's error past go-oidc, which keeps only its text.
type call struct {
	keys *keySet
	err  error
}

// VerifySignature implements oidc.KeySet.
func (c *call) VerifySignature(ctx context.Context, token string) (payload []byte, err error) {
	payload, c.err = c.keys.VerifySignature(ctx, token)
	return payload, c.err
}

// agree refuses a token that go-oidc has read differently than this package. The strict parse should make that impossible. If
// it ever happens, the token is refused, instead of being judged by one reading and recorded by another.
func agree(p payload, id *oidc.IDToken) bool {
	return id.Issuer == p.iss && id.Subject == p.sub && slices.Equal(id.Audience, p.aud) && id.Expiry.Unix() == p.exp
}

// Refresh drops all fetched keys and fetches them again, however recent the last fetch was; configured keys stay. If the fetch
// fails, the error is an *Error, no key is accepted, and Verify tries again after MinRefresh.
func (v *Verifier) Refresh(ctx context.Context) error { return v.keys.refresh(ctx) }

// Probe checks whether the issuer's keys can be fetched now, and changes nothing. The error is an *Error.
func (v *Verifier) Probe(ctx context.Context) error { return v.keys.probe(ctx) }

// Status returns the state of the issuer's keys. It uses no network.
func (v *Verifier) Status() Status { return v.keys.status() }
