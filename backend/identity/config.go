// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
)

const (
	defaultTokenBytes = 16 << 10
	defaultClaims     = 256
	defaultDepth      = 16
	hardTokenBytes    = 64 << 10
	hardClaims        = 4096
	hardDepth         = 64
	maxIssuerConns    = 4
	// maxLeeway stays below half of the five minutes of leeway that go-oidc has for nbf: Verify moves go-oidc's clock back by our
	// leeway for exp, which shortens that.
	maxLeeway = 2 * time.Minute
	// iatLeeway is how far iat may always lie in the future: a token is often used within the second in which it was made.
	iatLeeway = time.Minute
)

// complete fills in defaults and checks all that needs no keys.
func (c *Config) complete() error {
	if c.Now == nil {
		c.Now = time.Now
	}
	if err := c.bound(); err != nil {
		return err
	}
	if err := c.checkLists(); err != nil {
		return err
	}
	if err := c.checkTrustDomain(); err != nil {
		return err
	}
	c.Issuer = cmp.Or(c.Issuer, c.DiscoveryURL)
	if c.Issuer == "" && c.TrustDomain != "" {
		return nil
	}
	if c.Issuer == "" {
		return errors.New("issuer: missing; want the exact iss of the tokens, or oidc_discovery_url if that is it")
	}
	if err := CheckIssuer(c.Issuer, c.Egress.AllowHTTPLoopback); err != nil {
		return fmt.Errorf("issuer: %w", err)
	}
	return nil
}

// bound applies defaults and limits to the numbers.
func (c *Config) bound() error {
	hours := func(n time.Duration) int64 { return int64(n * time.Hour) }
	for _, b := range []struct {
		name           string
		get            *int64
		standard, most int64
	}{
		{"clock_skew_leeway", (*int64)(&c.Leeway), 0, int64(maxLeeway)},
		{"max_age", (*int64)(&c.MaxAge), hours(1), hours(10 * 366 * 24)},
		{"max_token_lifetime", (*int64)(&c.MaxTokenLifetime), hours(24), hours(10 * 366 * 24)},
		{"http_timeout", (*int64)(&c.HTTPTimeout), int64(10 * time.Second), int64(time.Minute)},
		{"jwks_min_refresh", (*int64)(&c.MinRefresh), int64(30 * time.Second), hours(1)},
		{"jwks_max_age", (*int64)(&c.KeysMaxAge), int64(10 * time.Minute), hours(24)},
		{"jwks_max_stale", (*int64)(&c.KeysMaxStale), hours(1), hours(24 * 7)},
		{"max_jwks_bytes", &c.MaxJWKSBytes, 512 << 10, 8 << 20},
	} {
		if *b.get = cmp.Or(*b.get, b.standard); *b.get < 0 || *b.get > b.most {
			return fmt.Errorf("%s: negative or too large", b.name)
		}
	}
	for _, b := range []struct {
		name           string
		get            *int
		standard, most int
	}{
		{"max_token_bytes", &c.MaxTokenBytes, defaultTokenBytes, hardTokenBytes},
		{"max_claims", &c.MaxClaims, defaultClaims, hardClaims},
		{"max_depth", &c.MaxDepth, defaultDepth, hardDepth},
		{"max_keys", &c.MaxKeys, 100, 1000},
	} {
		if *b.get = cmp.Or(*b.get, b.standard); *b.get < 0 || *b.get > b.most {
			return fmt.Errorf("%s: negative, or more than %d", b.name, b.most)
		}
	}
	if c.KeysMaxStale < c.KeysMaxAge {
		return errors.New("jwks_max_stale: shorter than jwks_max_age")
	}
	return nil
}

func (c *Config) checkLists() error {
	if len(c.Algorithms) == 0 {
		c.Algorithms = []string{"RS256", "ES256"}
	}
	if len(c.AllowedTypes) == 0 {
		c.AllowedTypes = []string{Absent, "JWT"}
		if c.TrustDomain != "" {
			c.AllowedTypes = append(c.AllowedTypes, "JOSE")
		}
	}
	c.Algorithms, c.AllowedTypes = slices.Clone(c.Algorithms), slices.Clone(c.AllowedTypes) // the caller's stay the caller's
	for _, alg := range c.Algorithms {
		if !slices.Contains(asymmetric, alg) {
			return fmt.Errorf("jwt_supported_algs: %q is not an asymmetric signature algorithm; want %s",
				alg, strings.Join(asymmetric, ", "))
		}
	}
	for _, typ := range c.AllowedTypes {
		if !isKeyID(typ) || strings.Contains(typ, " ") {
			return fmt.Errorf("allowed_types: %q is not a media type; want for example JWT, at+jwt, or %s for none", typ, Absent)
		}
	}
	if err := CheckHosts(c.JWKSHosts); err != nil {
		return fmt.Errorf("jwks_hosts: %w", err)
	}
	return nil
}

// CheckHosts refuses hosts that are not spelt as in a URL, because they would never match one.
func CheckHosts(hosts []string) error {
	for _, host := range hosts {
		u, err := parseAnywhere("https://"+host, true)
		if err != nil || u.Host != host {
			return fmt.Errorf("%q is not a host; want a name in lower case, with a port only if not 443", host)
		}
	}
	return nil
}

// parseAnywhere checks how a URL is spelt, but not where it leads: it is not called, or another check follows.
func parseAnywhere(raw string, httpLoopback bool) (*url.URL, error) {
	everywhere := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	return egress.Policy{AllowPrivate: everywhere, AllowHTTPLoopback: httpLoopback}.ParseURL(raw)
}

// CheckIssuer refuses an issuer URL that is not in its plain spelling, or that stands for many issuers. It does not check
// whether the URL may be called.
func CheckIssuer(issuer string, httpLoopback bool) error {
	if len(issuer) > maxNameBytes {
		return fmt.Errorf("longer than %d bytes", maxNameBytes)
	}
	u, err := parseAnywhere(issuer, httpLoopback)
	if err != nil {
		return err
	}
	return checkEntra(u)
}

// checkEntra refuses the addresses at which Entra serves all tenants: their keys verify tokens of any tenant.
func checkEntra(u *url.URL) error {
	switch u.Hostname() {
	case "login.microsoftonline.com", "login.windows.net", "login.microsoft.com", "sts.windows.net",
		"login.microsoftonline.us", "login.usgovcloudapi.net", "login-us.microsoftonline.com",
		"login.partner.microsoftonline.cn", "login.chinacloudapi.cn":
	default:
		return nil
	}
	tenant, _, _ := strings.Cut(strings.TrimLeft(u.Path, "/"), "/")
	switch strings.ToLower(tenant) {
	case "", "common", "organizations", "consumers", "9188040d-6c67-4c5b-b112-36a304b66dad": // the tenant of all personal accounts
		return errors.New("serves every Entra tenant; want the address of one, with its id")
	}
	return nil
}

// sameKeys says whether the keys of other are those of c: they come from the same place, by the same way, and as much is demanded
// of them. When they are fetched and how long they are used is another question, and so is what is demanded of tokens.
func (c Config) sameKeys(other Config) bool {
	same := (c.Bundle == nil) == (other.Bundle == nil) // a process has one Workload API
	for _, one := range []*Config{&c, &other} {
		one.Bundle, one.Now, one.HTTPTimeout = nil, nil, 0
		one.MinRefresh, one.KeysMaxAge, one.KeysMaxStale = 0, 0, 0
		one.Algorithms, one.AllowedTypes, one.Leeway, one.MaxAge, one.MaxTokenLifetime = nil, nil, 0, 0, 0
		one.MaxTokenBytes, one.MaxClaims, one.MaxDepth = 0, 0, 0
	}
	return same && reflect.DeepEqual(c, other)
}

// keySet makes the key set of the one key source that is configured.
func (c *Config) keySet() (*keySet, error) {
	set := &keySet{
		now: c.Now, floor: c.MinRefresh, maxAge: c.KeysMaxAge, maxStale: c.KeysMaxStale,
		timeout: 2 * c.HTTPTimeout, patience: patience, stock: &stock{},
	}
	for _, alg := range c.Algorithms {
		set.algorithms = append(set.algorithms, jose.SignatureAlgorithm(alg))
	}
	if err := c.checkSources(); err != nil {
		return nil, err
	}
	client, err := c.Egress.Client(egress.Options{
		CAPEM: c.CAPEM, ProxyURL: c.ProxyURL, Timeout: c.HTTPTimeout, MaxConns: maxIssuerConns,
	})
	if err != nil {
		return nil, err
	}
	if len(c.PublicKeys) > 0 {
		if set.current, err = parsePEMKeys(c.PublicKeys); err != nil {
			return nil, fmt.Errorf("jwt_validation_pubkeys: %v", err)
		}
		return set, nil
	}
	limits := setLimits{bytes: c.MaxJWKSBytes, keys: c.MaxKeys, uses: []string{"", "sig"}}
	if c.TrustDomain != "" {
		limits.uses = append(limits.uses, "jwt-svid")
	}
	if c.Bundle != nil {
		set.source = &bundleSource{ask: c.Bundle, trustDomain: c.TrustDomain, limits: limits}
		return set, nil
	}
	web := &webSource{
		client: client, policy: c.Egress, issuer: c.Issuer,
		discoveryURL: c.DiscoveryURL, keysURL: c.JWKSURL, limits: limits,
	}
	set.source = web
	return set, c.locate(web)
}

// checkSources wants one source of keys.
func (c *Config) checkSources() error {
	given := 0
	for _, is := range []bool{c.DiscoveryURL != "", c.JWKSURL != "", len(c.PublicKeys) > 0, c.Bundle != nil} {
		if is {
			given++
		}
	}
	sources := "oidc_discovery_url, jwks_url, jwt_validation_pubkeys"
	if c.TrustDomain != "" {
		sources = "workload_api, " + sources
	}
	switch given {
	case 0:
		return errors.New(sources + ": want one of them")
	case 1:
		return nil
	}
	return errors.New(sources + ": want one of them alone; what a write does not name stays, so empty the former one, as in jwks_url=''")
}

// locate checks the addresses that will be called, and lists the hosts that may serve keys.
func (c *Config) locate(s *webSource) error {
	if c.JWKSURL != "" {
		at, err := c.Egress.ParseEndpoint(c.JWKSURL) // with a query some issuers choose among their key sets
		if err == nil {
			err = checkEntra(at)
		}
		if err != nil {
			return fmt.Errorf("jwks_url: %w", err)
		}
		return nil
	}
	u, err := c.Egress.ParseURL(c.DiscoveryURL)
	if err != nil {
		return fmt.Errorf("oidc_discovery_url: %w", err)
	}
	if strings.HasSuffix(c.DiscoveryURL, wellKnown) {
		return fmt.Errorf("oidc_discovery_url: leave out %s", wellKnown)
	}
	if err := checkEntra(u); err != nil {
		return fmt.Errorf("oidc_discovery_url: %w", err)
	}
	issuer, err := url.Parse(c.Issuer)
	if err != nil {
		return errors.New("issuer: not a URL")
	}
	s.keyHosts = append([]string{hostPort(u), hostPort(issuer)}, c.JWKSHosts...)
	return nil
}
