// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
)

const (
	maxDiscoveryBytes = 256 << 10
	wellKnown         = "/.well-known/openid-configuration"
	// rediscoverAfter and rediscoverFailures say when to read the address of the keys from the discovery document again. After
	// rediscoverAfter the old address is not used without a new answer: an issuer that has given the address up, perhaps to
	// somebody else, can say so nowhere but in that document.
	rediscoverAfter    = 24 * time.Hour
	rediscoverFailures = 3
)

var discoveryLimits = limits{depth: 16, members: 1024}

// source knows how to get an issuer's keys. It keeps nothing between calls. Its errors are in our own words: what an
// issuer answers is never repeated.
type source interface {
	// fetch gets the keys, from where they were last found. The place it returns is for the next call, also after an error.
	fetch(ctx context.Context, p place, now time.Time) (*keys, place, error)
}

// webSource gets keys by https.
type webSource struct {
	client       *http.Client
	policy       egress.Policy
	issuer       string
	discoveryURL string   // empty if the address of the keys is configured
	keysURL      string   // empty if it is discovered
	keyHosts     []string // host, or host:port, that a discovery document may name for the keys
	limits       setLimits
}

// place is where an issuer's keys were last found.
type place struct {
	url      string
	found    time.Time
	failures int // fetches in a row that failed there
}

// fetch gets the keys, and first their address if that is unknown, old, or has failed repeatedly. If the discovery document
// cannot be fetched either, an address that has failed but is not old is tried once more.
func (s *webSource) fetch(ctx context.Context, p place, now time.Time) (*keys, place, error) {
	unknown := p.url == "" || now.Sub(p.found) >= rediscoverAfter
	if s.discoveryURL == "" {
		p.url = s.keysURL
	} else if unknown || p.failures >= rediscoverFailures {
		u, err := s.discover(ctx)
		if err != nil && unknown {
			return nil, p, fmt.Errorf("discovery: %v", err)
		}
		if err == nil {
			p = place{url: u, found: now}
		}
	}
	set, err := s.fetchKeys(ctx, p.url)
	if err != nil {
		p.failures++
		return nil, p, fmt.Errorf("keys: %v", err)
	}
	p.failures = 0
	return set, p, nil
}

// discover returns the address of the keys from the discovery document.
func (s *webSource) discover(ctx context.Context) (string, error) {
	body, err := s.get(ctx, strings.TrimSuffix(s.discoveryURL, "/")+wellKnown, maxDiscoveryBytes)
	if err != nil {
		return "", err
	}
	doc, err := parseObject(string(body), discoveryLimits)
	if err != nil {
		return "", errors.New("the answer is not a discovery document")
	}
	// OpenID Connect Discovery 4.3: without this, one issuer could answer for another.
	if doc["issuer"] != any(s.issuer) {
		return "", errors.New("the document is of another issuer; it must repeat the configured issuer exactly")
	}
	raw, _ := doc["jwks_uri"].(string)
	u, err := url.Parse(raw)
	if err != nil || raw == "" || s.policy.Check(u) != nil {
		return "", errors.New("jwks_uri is missing or not an address that may be called")
	}
	if !slices.Contains(s.keyHosts, hostPort(u)) {
		return "", errors.New("jwks_uri is on a host that is neither the issuer's nor in jwks_hosts")
	}
	return raw, nil
}

func (s *webSource) fetchKeys(ctx context.Context, address string) (*keys, error) {
	body, err := s.get(ctx, address, s.limits.bytes)
	if err != nil {
		return nil, err
	}
	return parseKeys(body, s.limits)
}

// get reads an answer of status 200 up to limit bytes. It neither requests nor checks a content type: issuers on plain file
// hosting send all kinds, Kubernetes' API server serves its keys only as application/jwk-set+json, and the parsers decide.
func (s *webSource) get(ctx context.Context, address string, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, errors.New("not an address")
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, errors.New(egress.Cause(err))
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the issuer answered with status %d, want 200", resp.StatusCode)
	}
	body, err := egress.ReadAll(resp.Body, limit)
	if errors.Is(err, egress.ErrTooLarge) {
		return nil, fmt.Errorf("the answer is larger than %d bytes", limit)
	}
	if err != nil {
		return nil, errors.New(egress.Cause(err))
	}
	return body, nil
}

// hostPort is a URL's host, with the port unless it is the scheme's default.
func hostPort(u *url.URL) string {
	if u.Scheme == "https" {
		return strings.TrimSuffix(u.Host, ":443")
	}
	return strings.TrimSuffix(u.Host, ":80")
}
