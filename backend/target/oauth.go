// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"cmp"
	"context"
	"errors"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
)

// DriverOAuth is the driver that OAuth is for.
const DriverOAuth = "oauth"

// The values of OAuth.Grant: how a key, here an access token, is asked for.
const (
	grantTokenExchange     = "token_exchange"     // RFC 8693
	grantClientCredentials = "client_credentials" // RFC 6749 section 4.4
	grantJWTBearer         = "jwt_bearer"         // RFC 7523 section 2.1
)

// The values of RevocationURL and IntrospectionURL that are no address.
const (
	endpointDiscover = "discover" // as the issuer's document says; if that lacks it, nothing is issued
	endpointNone     = "none"     // there is none
)

// OAuth is the part of a Config for the driver oauth. Where no default is named, "" is none. Without Config.Lifetime, an answer
// that does not say how long its token lives is refused.
type OAuth struct {
	TokenURL         string   // the token endpoint, with its query; "" = as the document of the issuer at Config.URL says
	RevocationURL    string   // an address, "discover" or "none"; "" = "discover" where the token endpoint is discovered
	IntrospectionURL string   // the same; "" = "none"
	TokenHosts       []string // hosts that endpoints may be on, besides Config.URL's

	Grant            string // token_exchange, client_credentials or jwt_bearer; "" = the first
	SubjectTokenType string // the last part of the type's URN, or all of it; "" = jwt
	Chain            string // token exchanges before the grant, each of the token that the previous one returned: a JSON list of objects, see writtenHop

	ClientAuth             string // one of the authMethods; "" = none
	ClientID, ClientSecret string
	PrivateKey, KeyID      string // PEM, and the kid by which the server knows it
	AssertionAudience      string // aud of the engine's own assertions and tokens; "" = the token endpoint if that is configured, otherwise the issuer
	SPIFFEID               string // the one that the engine uses, of those that its agent has; "" = the first

	// OwnToken returns a token that identifies the engine. source is SourceFile or SourceSVID; spiffeID is for SourceSVID only.
	// An error that wraps ErrBusy means that a later call may succeed. nil = the engine has no such tokens.
	OwnToken func(ctx context.Context, source, spiffeID, audience string) (string, error)
}

var grantTypes = map[string]string{
	grantTokenExchange:     "urn:ietf:params:oauth:grant-type:token-exchange",
	grantClientCredentials: "client_credentials",
	grantJWTBearer:         "urn:ietf:params:oauth:grant-type:jwt-bearer",
}

const (
	tokenTypes      = "urn:ietf:params:oauth:token-type:"
	typeAccessToken = tokenTypes + "access_token"
	lostLifetime    = 24 * time.Hour // assumed for a token whose answer was lost
)

var (
	// token68 is the form of a bearer token (RFC 6750 section 2.1). It has no character that could start another header.
	token68   = regexp.MustCompile(`\A[A-Za-z0-9._~+/-]+=*\z`)
	tokenType = regexp.MustCompile(`\A([a-z0-9_]{1,40}|[A-Za-z][A-Za-z0-9+.-]*:[\x21-\x7E]{1,200})\z`)
)

// oauth speaks to an OAuth 2.0 authorization server. Keys are its tokens. They have no name and no id, so a token whose answer
// was lost cannot be found, and a token can be ended only by presenting it.
type oauth struct {
	client
	origins
	hops                 []hop // the last one is the grant that yields the key
	subjectType          string
	lifetime             time.Duration // of a token whose answer does not say; 0 = such an answer is refused
	revokes, introspects bool
	fixed                endpoints  // those that are configured
	discovery            *discovery // of the others; nil = there are none
	api                  *api
}

// endpoints are the addresses of an authorization server; nil = the server does not have it, or the target does not use it.
type endpoints struct{ token, revocation, introspection *url.URL }

// openOAuth checks the part of a Config that is the driver's own.
func openOAuth(c Config) (facts, func(*Target) driver, error) {
	a := &c.OAuth
	var err error
	if a.Grant, err = oneOf("grant", a.Grant, grantTokenExchange, grantClientCredentials, grantJWTBearer); err != nil {
		return facts{}, nil, err
	}
	o := &oauth{lifetime: c.Lifetime}
	issuer, err := o.setOrigins(c)
	if err != nil {
		return facts{}, nil, err
	}
	if err := o.setEndpoints(*a, issuer); err != nil {
		return facts{}, nil, err
	}
	if o.client, err = newClient(c); err != nil {
		return facts{}, nil, err
	}
	if err := o.setHops(*a, issuer.String()); err != nil {
		return facts{}, nil, err
	}
	switch {
	case c.Source == SourceClientCredentials:
		return facts{}, nil, fieldErrorf("subject_token_source", "cannot be client_credentials with this driver: token_url and client_id are the driver's own here")
	case a.Grant == grantClientCredentials && c.Source != "" && c.Source != SourceNone:
		return facts{}, nil, fieldErrorf("subject_token_source", "want none: grant client_credentials sends no subject token")
	}
	return o.facts(a.Grant, issuer), o.connect, nil
}

// facts returns what is known about the target without calling it.
func (o *oauth) facts(grant string, issuer *url.URL) facts {
	k := facts{
		name: DriverOAuth, url: issuer.String(), source: SourceRequest, audience: o.hops[0].assertionAudience,
		params: oauthParams(grant), lifetime: lostLifetime, guessed: true, headerName: "Authorization",
		wantsToken: true, subjectHosts: o.hosts,
	}
	if grant == grantClientCredentials {
		k.source, k.wantsToken = SourceNone, false
	}
	if first := cmp.Or(o.hops[0].endpoint, o.fixed.token); first != nil {
		k.subjectHosts = []string{first.Host}
	}
	return k
}

// connect makes the driver of an opened target.
func (o *oauth) connect(t *Target) driver {
	o.api = t.api
	d := driver{exchange: o.exchange}
	if o.revokes {
		d.revoke = o.revoke
	}
	if o.introspects {
		d.renew, d.renewAsks = o.renew, true
	}
	if o.discovery != nil {
		o.discovery.api = t.api
	}
	if o.revokes || o.introspects || o.discovery != nil {
		d.check = o.check
	}
	return d
}

// setOrigins sets the hosts that endpoints may be on, and returns the issuer. Without url, that is the origin of token_url.
func (o *oauth) setOrigins(c Config) (*url.URL, error) {
	var issuer *url.URL
	var err error
	switch {
	case c.URL != "":
		if issuer, err = c.Egress.ParseURL(c.URL); err != nil {
			return nil, fieldErrorf("url", "%v", err)
		}
	case c.OAuth.TokenURL != "":
		if issuer, err = c.Egress.ParseEndpoint(c.OAuth.TokenURL); err != nil {
			return nil, fieldErrorf("token_url", "%v", err)
		}
		issuer = &url.URL{Scheme: issuer.Scheme, Host: issuer.Host}
	default:
		return nil, fieldErrorf("url", "is required without token_url")
	}
	for _, host := range c.OAuth.TokenHosts {
		if u, err := c.Egress.ParseURL("https://" + host); err != nil || u.Host != host {
			return nil, fieldErrorf("token_hosts", "want names in lower case that may be called, each with a port only if it is not 443")
		}
	}
	o.origins = origins{c.Egress, append([]string{issuer.Host}, c.OAuth.TokenHosts...)}
	return issuer, nil
}

// setEndpoints sets the endpoints that are configured, and which ones to read from the issuer's document.
func (o *oauth) setEndpoints(a OAuth, issuer *url.URL) error {
	d := &discovery{origins: o.origins, issuer: issuer, mtls: a.ClientAuth == authTLS, lock: make(chan struct{}, 1), token: a.TokenURL == ""}
	if d.token && a.RevocationURL == "" {
		a.RevocationURL = endpointDiscover
	}
	if !d.token {
		var err error
		if o.fixed.token, err = o.endpoint(a.TokenURL); err != nil {
			return fieldErrorf("token_url", "%v", err)
		}
	}
	for _, each := range []struct {
		field, given     string
		to               **url.URL
		discovered, have *bool
	}{
		{"revocation_url", a.RevocationURL, &o.fixed.revocation, &d.revocation, &o.revokes},
		{"introspection_url", a.IntrospectionURL, &o.fixed.introspection, &d.introspection, &o.introspects},
	} {
		*each.have = each.given != "" && each.given != endpointNone
		*each.discovered = each.given == endpointDiscover
		if !*each.have || *each.discovered {
			continue
		}
		var err error
		if *each.to, err = o.endpoint(each.given); err != nil {
			return fieldErrorf(each.field, "%v; want %s, %s, or an address", err, endpointDiscover, endpointNone)
		}
	}
	if d.token || d.revocation || d.introspection {
		o.discovery = d
	}
	return nil
}

// locate returns all endpoints that the target uses. After an error nothing was sent, except perhaps the request for the
// document.
func (o *oauth) locate(ctx context.Context, op string, urgent bool) (endpoints, error) {
	if o.discovery == nil {
		return o.fixed, nil
	}
	found, problem := o.discovery.get(ctx, op, urgent)
	if problem != nil {
		return endpoints{}, problem
	}
	return endpoints{
		token:         cmp.Or(o.fixed.token, found.token),
		revocation:    cmp.Or(o.fixed.revocation, found.revocation),
		introspection: cmp.Or(o.fixed.introspection, found.introspection),
	}, nil
}

// origins are the hosts that endpoints may be on, whether the configuration or the issuer's document names them.
type origins struct {
	policy egress.Policy
	hosts  []string
}

// endpoint parses and checks the address of an endpoint. It checks the host first, because the errors of the other checks may
// repeat the host.
func (o origins) endpoint(raw string) (*url.URL, error) {
	if u, err := url.Parse(raw); err == nil && !slices.Contains(o.hosts, u.Host) {
		return nil, errors.New("is not on url's host, nor on one of token_hosts")
	}
	return o.policy.ParseEndpoint(raw)
}

// oauthParams returns the parameters that a role may have with a grant.
func oauthParams(grant string) parameters {
	text := func(pattern string) *regexp.Regexp { return regexp.MustCompile(`\A(?:` + pattern + `)\z`) }
	all := parameters{
		{name: "actor_token_source", kind: kindString, pattern: text(`none|file|svid`)},
		{name: "audience", kind: kindString, pattern: text(`[\x20-\x7E]+`)},
		{name: "requested_token_type", kind: kindString, pattern: tokenType},
		{name: "resource", kind: kindList, pattern: resourceURI},
		{name: "scopes", kind: kindList, pattern: scopeToken},
	}
	if grant == grantTokenExchange {
		return all
	}
	return slices.DeleteFunc(all, func(p parameter) bool {
		return p.name == "actor_token_source" || p.name == "requested_token_type"
	})
}

// typeURN returns the URN of a token type, and otherwise if the name is empty.
func typeURN(name, otherwise string) string {
	switch {
	case name == "":
		return otherwise
	case strings.Contains(name, ":"):
		return name
	}
	return tokenTypes + name
}

// oneOf returns value, or the first of values if it is empty. Any other value is an error.
func oneOf(field, value string, values ...string) (string, error) {
	if value == "" {
		value = values[0]
	}
	if !slices.Contains(values, value) {
		return "", fieldErrorf(field, "want one of %s", strings.Join(values, ", "))
	}
	return value, nil
}
