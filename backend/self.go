// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxSelfTTL = 5 * time.Minute  // longest life of a token; also the default
	minSelfTTL = 30 * time.Second // a call to a target can take that long
	selfSkew   = 30 * time.Second // how far a target's clock may be behind ours
	keysMaxAge = 5 * time.Minute  // how long a verifier may cache the published documents
	keyLead    = 2 * keysMaxAge   // a key is published at least this long before it signs
	keyMargin  = 10 * time.Minute // a key stays published this long after its last token has expired
)

// selfAlgorithms are the values of algorithm, the default first.
var selfAlgorithms = []string{string(jose.ES256), string(jose.RS256), string(jose.EdDSA)}

// ring has the signing keys of this mount as an OpenID provider; the zero ring has none. Each key goes through three stages,
// so that a verifier that caches the published keys for keysMaxAge has the key of every token that it gets:
//
//	next      published, does not sign yet
//	current   published, signs
//	previous  only its public part is kept, and published for as long as a token signed with it may be valid
type ring struct {
	Next     *signingKey   `json:"next"`
	Current  *signingKey   `json:"current"`
	Previous []previousKey `json:"previous"`
}

// signingKey is a private key. Its id is its thumbprint (RFC 7638), so no two keys ever share an id.
type signingKey struct {
	Key         jose.JSONWebKey `json:"key"`
	PublishedAt time.Time       `json:"published_at"`
}

// previousKey is the public part of a key that no longer signs. Until it is dropped, notOwn recognizes its tokens.
type previousKey struct {
	Key       jose.JSONWebKey `json:"key"`
	Until     time.Time       `json:"until"`
	Withdrawn bool            `json:"withdrawn"` // not published, because the provider was switched off
}

// turn brings the ring up to date: it drops previous keys whose time is over, makes a next key of algorithm alg if there is
// none, and makes next the current key once that is due. Even if it is called late, it advances by only one stage, because
// a key must be published before it signs. It reports whether anything changed; after an error nothing has.
func (r *ring) turn(alg string, period time.Duration, now time.Time) (changed bool, err error) {
	was := *r
	defer func() {
		if err != nil {
			*r = was
		}
	}()
	if r.Current == nil { // nobody can have cached keys yet, so this one may sign at once
		if r.Current, err = newSigningKey(alg, now); err != nil {
			return false, err
		}
		changed = true
	}
	if r.Next == nil || r.Next.Key.Algorithm != alg {
		if r.Next, err = newSigningKey(alg, now); err != nil {
			return false, err
		}
		changed = true
	}
	if !now.Before(r.due(period)) {
		r.retire(now)
		r.Current = r.Next
		if r.Next, err = newSigningKey(alg, now); err != nil {
			return false, err
		}
		changed = true
	}
	return r.drop(now) || changed, nil
}

// due returns when next becomes current: after it was published for a period or, if it has another algorithm than the
// current key, for keyLead.
func (r *ring) due(period time.Duration) time.Time {
	if r.Next.Key.Algorithm != r.Current.Key.Algorithm {
		period = keyLead
	}
	return r.Next.PublishedAt.Add(period)
}

// idle reports whether turn would change nothing. It assumes that next has the configured algorithm.
func (r *ring) idle(period time.Duration, now time.Time) bool {
	dropped := func(k previousKey) bool { return !now.Before(k.Until) }
	return (r.Next == nil || now.Before(r.due(period))) && !slices.ContainsFunc(r.Previous, dropped)
}

// stop deletes every private key and publishes no key. It keeps the public keys of tokens that may still be valid, so that
// notOwn recognizes them.
func (r *ring) stop(now time.Time) {
	r.retire(now)
	r.Current, r.Next = nil, nil
	for i := range r.Previous {
		r.Previous[i].Withdrawn = true
	}
	r.drop(now)
}

// retire makes the current key a previous one.
func (r *ring) retire(now time.Time) {
	if r.Current == nil {
		return
	}
	// Its tokens may have had any ttl up to the maximum.
	last := previousKey{Key: r.Current.Key.Public(), Until: now.Add(maxSelfTTL + keyMargin)}
	r.Previous = append(slices.Clone(r.Previous), last)
}

// drop removes previous keys whose time is over, and reports whether there were any.
func (r *ring) drop(now time.Time) (changed bool) {
	before := len(r.Previous)
	r.Previous = slices.DeleteFunc(slices.Clone(r.Previous), func(k previousKey) bool { return !now.Before(k.Until) })
	return len(r.Previous) < before
}

// published returns the public keys that are published, beginning with the one that signs.
func (r *ring) published() []jose.JSONWebKey {
	keys := []jose.JSONWebKey{}
	for _, k := range []*signingKey{r.Current, r.Next} {
		if k != nil {
			keys = append(keys, k.Key.Public())
		}
	}
	for _, k := range r.Previous {
		if !k.Withdrawn {
			keys = append(keys, k.Key)
		}
	}
	return keys
}

// has reports whether a key of the ring, published or not, has the id.
func (r *ring) has(keyID string) bool {
	return slices.ContainsFunc(r.published(), func(k jose.JSONWebKey) bool { return k.KeyID == keyID }) ||
		slices.ContainsFunc(r.Previous, func(k previousKey) bool { return k.Key.KeyID == keyID })
}

func (r *ring) sign(c selfClaims) (string, error) {
	options := (&jose.SignerOptions{}).WithType("JWT")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(r.Current.Key.Algorithm), Key: r.Current.Key}, options)
	if err != nil {
		return "", fmt.Errorf("preparing to sign: %w", err)
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encoding claims: %w", err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("signing: %w", err)
	}
	return signed.CompactSerialize()
}

func newSigningKey(alg string, now time.Time) (*signingKey, error) {
	var (
		private crypto.Signer
		err     error
	)
	switch jose.SignatureAlgorithm(alg) {
	case jose.ES256:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.RS256:
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	case jose.EdDSA:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	default:
		return nil, fmt.Errorf("unknown algorithm %q", alg)
	}
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	key := jose.JSONWebKey{Key: private, Algorithm: alg, Use: "sig"}
	public := key.Public()
	sum, err := public.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("making a key's id: %w", err)
	}
	key.KeyID = base64.RawURLEncoding.EncodeToString(sum)
	return &signingKey{Key: key, PublishedAt: now}, nil
}

// selfClaims are all the claims of a token of this mount. Each was verified or made by the engine; none comes from a request
// or a template.
type selfClaims struct {
	Issuer          string `json:"iss"`
	Subject         string `json:"sub"`
	Audience        string `json:"aud"`
	IssuedAt        int64  `json:"iat"`
	NotBefore       int64  `json:"nbf"`
	Expiry          int64  `json:"exp"`
	ID              string `json:"jti"`
	Role            string `json:"role"`
	Mount           string `json:"mount"`
	EntityID        string `json:"entity_id,omitempty"`
	EntityName      string `json:"entity_name,omitempty"`
	SubjectIssuer   string `json:"subject_issuer"` // name of the issuer record that verified the caller
	VerifiedSubject string `json:"subject"`
}

// selfClaimNames are the names of selfClaims, as the discovery document lists them.
var selfClaimNames = []string{
	"iss", "sub", "aud", "iat", "nbf", "exp", "jti", "role", "mount", "entity_id", "entity_name", "subject_issuer", "subject",
}

// at returns the claims with the times and a fresh id of a token made now.
func (c selfClaims) at(now time.Time, ttl time.Duration) selfClaims {
	c.IssuedAt, c.NotBefore, c.Expiry = now.Unix(), now.Add(-selfSkew).Unix(), now.Add(ttl).Unix()
	c.ID = rand.Text()
	return c
}

// The paths of the published documents, relative to issuer_url and to this mount's oidc.
const (
	discoveryPath = "/.well-known/openid-configuration"
	keysPath      = "/.well-known/keys"
)

// discoveryDocument returns the metadata that OpenID Connect Discovery 1.0, section 3, requires of a provider whose only
// endpoint is its key set. It lists all algorithms, not just the configured one, because a verifier may cache the document
// for longer than a change of algorithm takes.
func discoveryDocument(issuerURL string) ([]byte, error) {
	return json.Marshal(map[string]any{
		"issuer":                                issuerURL,
		"jwks_uri":                              issuerURL + keysPath,
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": selfAlgorithms,
		"claims_supported":                      selfClaimNames,
	})
}
