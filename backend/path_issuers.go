// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"reflect"
	"slices"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
)

// The types of issuers.
const (
	issuerOIDC   = "oidc"
	issuerSPIFFE = "spiffe"
	issuerLogin  = "login"
)

// issuerRecord says who vouches for callers.
type issuerRecord struct {
	Type                 string            `json:"type"`
	Issuer               string            `json:"issuer"`
	TrustDomain          string            `json:"trust_domain"`
	WorkloadAPI          bool              `json:"workload_api"`
	OIDCDiscoveryURL     string            `json:"oidc_discovery_url"`
	JWKSURL              string            `json:"jwks_url"`
	JWTValidationPubkeys []string          `json:"jwt_validation_pubkeys"`
	CAPEM                string            `json:"ca_pem"`
	ProxyURL             string            `json:"proxy_url"`
	JWKSHosts            []string          `json:"jwks_hosts"`
	JWTSupportedAlgs     []string          `json:"jwt_supported_algs"`
	AllowedTypes         []string          `json:"allowed_types"`
	ClockSkewLeeway      seconds           `json:"clock_skew_leeway"`
	MaxAge               seconds           `json:"max_age"`
	MaxTokenLifetime     seconds           `json:"max_token_lifetime"`
	SingleUse            bool              `json:"single_use"`
	JTIClaim             string            `json:"jti_claim"`
	RecordClaims         []string          `json:"record_claims"`
	ForwardTo            []string          `json:"forward_to"`
	MountAccessor        string            `json:"mount_accessor"`
	StableMetadata       []string          `json:"stable_metadata"`
	Enabled              bool              `json:"enabled"`
	Description          string            `json:"description"`
	CustomMetadata       map[string]string `json:"custom_metadata"`
}

// issuer is an issuer as the engine uses it; verifier is nil for a login issuer, and for one that is unfit.
type issuer struct {
	issuerRecord
	name     string
	verifier *identity.Verifier
	unfit    error // why it vouches for nobody: config has changed since it was written
}

// rules are the entry without its switch, which is looked at by itself, and without what only describes it.
func (r issuerRecord) rules() issuerRecord {
	r.Enabled, r.Description, r.CustomMetadata = false, "", nil
	return r
}

// claimedBy says whether a token that claims c says to be of this issuer.
func (i *issuer) claimedBy(c identity.Claimed) bool {
	if i.Type == issuerLogin {
		return false
	}
	return (&identity.Config{Issuer: i.Issuer, TrustDomain: i.TrustDomain}).ClaimedBy(c)
}

// id is what targets are told of who vouched.
func (i *issuer) id() string {
	if i.Type == issuerSPIFFE {
		return "spiffe://" + i.TrustDomain // the token's iss may be anything, or missing
	}
	return i.Issuer
}

var issuerFields = described(map[string]*framework.FieldSchema{
	"type":                   {Type: framework.TypeString, Description: "oidc (default): tokens of an OpenID provider. spiffe: JWT-SVIDs of a SPIFFE trust domain. login: the caller's Vault login. It cannot be changed. A field that has no effect for the type is refused."},
	"issuer":                 {Type: framework.TypeString, Description: "The exact iss of its tokens; default the discovery URL. Unique in the mount. spiffe: may be left out; if set, an iss that a token has must be this."},
	"trust_domain":           {Type: framework.TypeString, Description: "spiffe: name of the trust domain whose workloads it vouches for, such as example.org. Unique in the mount."},
	"workload_api":           {Type: framework.TypeBool, Description: "spiffe: key source: the SPIFFE Workload API at SPIFFE_ENDPOINT_SOCKET in the plugin's registered environment, a Unix socket."},
	"oidc_discovery_url":     {Type: framework.TypeString, Description: "Key source: the issuer's base URL, without /.well-known."},
	"jwks_url":               {Type: framework.TypeString, Description: "Key source: the URL of its key set."},
	"jwt_validation_pubkeys": {Type: framework.TypeCommaStringSlice, Description: "Key source: public keys in PEM."},
	"ca_pem":                 {Type: framework.TypeString, Description: "Certificate authorities of the issuer's server, in place of the system's."},
	"proxy_url":              {Type: framework.TypeString, Description: "HTTP proxy to reach the issuer; the environment's proxy variables are not used."},
	"jwks_hosts":             {Type: framework.TypeCommaStringSlice, Description: "Further hosts that may serve the keys, beside the issuer's own."},
	"jwt_supported_algs":     {Type: framework.TypeCommaStringSlice, Description: "Signature algorithms that are accepted, asymmetric ones only (default RS256, ES256)."},
	"allowed_types":          {Type: framework.TypeCommaStringSlice, Description: "Values of the typ header that are accepted, absent among them for a token without one (default absent, JWT). For spiffe always absent, JWT, JOSE."},
	"clock_skew_leeway":      {Type: framework.TypeDurationSecond, Description: "How far the issuer's clock may be off (default 30s)."},
	"max_age":                {Type: framework.TypeDurationSecond, Description: "Oldest token that is accepted, from its iat (default 1h)."},
	"max_token_lifetime":     {Type: framework.TypeDurationSecond, Description: "Longest life of a token that is accepted, exp less iat (default 24h)."},
	"single_use":             {Type: framework.TypeBool, Description: "A token works once (default true). Switch off only for tokens that are meant to be presented again. For spiffe always off: agents present an SVID until it expires."},
	"jti_claim":              {Type: framework.TypeString, Description: "Claim that makes a token unique (default jti); without it the token's hash does."},
	"record_claims":          {Type: framework.TypeCommaStringSlice, Description: "Claims kept with each key, beside those that the policy reads (default: well-known ids)."},
	"forward_to":             {Type: framework.TypeCommaStringSlice, Description: "Hosts to which a caller's token may be forwarded (default none)."},
	"mount_accessor":         {Type: framework.TypeString, Description: "login: accessor of the auth mount that vouches, see: vault auth list. Whether there is such a mount no engine can know; explain by such a login tells."},
	"stable_metadata":        {Type: framework.TypeCommaStringSlice, Description: "login: alias metadata that never changes for one alias and may be used in decisions."},
	"enabled":                {Type: framework.TypeBool, Description: "Kill switch: false stops issue and renew; revoking goes on."},
	"verify":                 {Type: framework.TypeBool, Description: "Fetch the issuer's keys before saving, and refuse if that fails."},
})

// defaultRecordClaims are the ids that say later whose key a key is.
var defaultRecordClaims = []string{
	"actor_id", "environment", "job_id", "job_workflow_ref", "namespace_id", "namespace_path", "oid", "organization_id",
	"pipeline_id", "project_id", "project_path", "ref", "repository", "repository_id", "repository_owner_id", "run_id",
	"tid", "user_id", "workflow_ref",
}

func defaultIssuer() issuerRecord {
	return issuerRecord{
		Type: issuerOIDC, JWTSupportedAlgs: []string{"RS256", "ES256"}, AllowedTypes: []string{identity.Absent, "JWT"},
		ClockSkewLeeway: 30, MaxAge: 3600, MaxTokenLifetime: 24 * 3600, SingleUse: true, JTIClaim: "jti",
		RecordClaims: slices.Clone(defaultRecordClaims), JWTValidationPubkeys: []string{}, JWKSHosts: []string{},
		ForwardTo: []string{}, StableMetadata: []string{}, Enabled: true, CustomMetadata: map[string]string{},
	}
}

func (b *engine) newIssuerNoun() noun[issuerRecord] {
	return noun[issuerRecord]{
		table:  table[issuerRecord]{prefix: "issuers/", defaults: defaultIssuer},
		what:   "issuer",
		suffix: "issuer",
		plural: "issuers",
		help: "An issuer vouches for callers: an OpenID provider by its tokens (type oidc), a SPIFFE trust domain by its JWT-SVIDs (type spiffe), or an auth mount of this Vault by the caller's login (type login). " +
			"An issuer only verifies; which of its subjects are trusted is written in trust policies.",
		fields: issuerFields,
		check:  b.checkIssuer,
		probe:  b.probeIssuer,
		clear:  func(field string) bool { return field != "issuer" && field != "mount_accessor" },
		remove: func(ctx context.Context, s logical.Storage, name string, _ *issuerRecord, _ *framework.FieldData) ([]string, bool, error) {
			found, err := users(ctx, s, b.trustNoun.table, "trust policy", func(t *trustRecord) bool { return t.Issuer == name })
			if err == nil && len(found) == 0 {
				b.verifiers.forget(name)
			}
			return found, false, err
		},
		changed: func(name string) {
			b.issuers.drop(name)
			b.policies.clear() // a policy's kind is its issuer's
		},
	}
}

// probeIssuer fetches the issuer's keys if the request asks for that.
func (b *engine) probeIssuer(ctx context.Context, s logical.Storage, record *issuerRecord, d *framework.FieldData) error {
	if !d.Get("verify").(bool) {
		return nil
	}
	if record.Type == issuerLogin {
		return badField("verify", "an issuer of type login has no keys")
	}
	conf, err := b.config(ctx, s)
	if err != nil {
		return err
	}
	made, err := newIssuer("", record, conf, b)
	if err != nil {
		return err
	}
	if err := made.verifier.Probe(ctx); err != nil {
		return badField("verify", "the issuer's keys cannot be had: %v", err)
	}
	return nil
}

func (b *engine) checkIssuer(ctx context.Context, s logical.Storage, name string, record, old *issuerRecord, d *framework.FieldData) ([]string, error) {
	if old != nil && old.Type != record.Type {
		return nil, badField("type", "cannot be changed; make another issuer")
	}
	if old != nil && switchesOff(d) {
		return nil, nil
	}
	if err := record.checkFields(old, d); err != nil {
		return nil, err
	}
	record.standardize()
	_, named := d.Raw["issuer"]
	followed := old != nil && old.Issuer == old.OIDCDiscoveryURL && !named // it was never written
	if (record.Issuer == "" || followed && record.OIDCDiscoveryURL != "") && record.Type != issuerLogin {
		record.Issuer = record.OIDCDiscoveryURL
	}
	if err := record.checkGiven(d); err != nil {
		return nil, err
	}
	conf, err := b.config(ctx, s)
	if err != nil {
		return nil, err
	}
	if _, err := newIssuer(name, record, conf, b); err != nil {
		return nil, err
	}
	if err := identity.CheckHosts(record.ForwardTo); err != nil {
		return nil, badField("forward_to", "%v", err)
	}
	if record.WorkloadAPI { // what is stored stays good on a node without one: there its keys cannot be had
		if err := b.workload.check(); err != nil {
			return nil, badField("workload_api", "%v", err)
		}
	}
	if err := b.uniqueIssuer(ctx, s, name, record); err != nil {
		return nil, err
	}
	if err := b.notSelf(ctx, s, record); err != nil {
		return nil, err
	}
	var warnings []string
	if record.Type == issuerOIDC && !record.SingleUse {
		warnings = append(warnings, "single_use is off: whoever sees a token can use it until it expires; bind_caller in the trust policy narrows that")
	}
	return warnings, nil
}

// checkGiven refuses values that would not be followed: for none the default holds, which a read would not show, and only
// top-level claims are recorded.
func (r *issuerRecord) checkGiven(d *framework.FieldData) error {
	for field, none := range map[string]bool{
		"max_age": r.MaxAge == 0, "max_token_lifetime": r.MaxTokenLifetime == 0,
		"jwt_supported_algs": len(r.JWTSupportedAlgs) == 0, "allowed_types": len(r.AllowedTypes) == 0,
	} {
		if none && d.Raw[field] != nil {
			return badField(field, "want a value; null sets it to its default")
		}
	}
	if d.Raw["record_claims"] == nil {
		return nil
	}
	for _, name := range r.RecordClaims {
		if name == "" || strings.HasPrefix(name, "/") {
			return badField("record_claims", "%q is no claim of the token itself; name that which it lies in", name)
		}
	}
	return nil
}

// fieldsOfTypes says which fields are for which types of issuers alone; the others are for all.
var fieldsOfTypes = []struct{ types, fields []string }{
	{[]string{issuerOIDC, issuerSPIFFE}, []string{
		"issuer", "oidc_discovery_url", "jwks_url", "jwt_validation_pubkeys", "ca_pem", "proxy_url", "jwks_hosts",
		"jwt_supported_algs", "clock_skew_leeway", "max_age", "max_token_lifetime", "record_claims", "forward_to",
	}},
	{[]string{issuerOIDC}, []string{"allowed_types", "single_use", "jti_claim"}},
	{[]string{issuerSPIFFE}, []string{"trust_domain", "workload_api"}},
	{[]string{issuerLogin}, []string{"mount_accessor", "stable_metadata"}},
}

// checkFields refuses to set what would have no effect. What was read may be written back.
func (r *issuerRecord) checkFields(old *issuerRecord, d *framework.FieldData) error {
	if err := r.checkType(); err != nil {
		return err
	}
	before := defaultIssuer()
	if old != nil {
		before = *old
	}
	before.Type = r.Type
	before.standardize()
	was, err := view(before, nil)
	if err != nil {
		return err
	}
	is, err := view(r, nil)
	if err != nil {
		return err
	}
	for _, part := range fieldsOfTypes {
		for _, field := range part.fields {
			if !slices.Contains(part.types, r.Type) && d.Raw[field] != nil && !reflect.DeepEqual(is[field], was[field]) {
				return badField(field, "is for issuers of type %s", strings.Join(part.types, " or "))
			}
		}
	}
	return nil
}

func (r *issuerRecord) checkType() error {
	if !slices.Contains([]string{issuerOIDC, issuerSPIFFE, issuerLogin}, r.Type) {
		return badField("type", "%q is unknown; want oidc, spiffe or login", r.Type)
	}
	return nil
}

// standardize sets what the JWT-SVID standard decides. An agent keeps a JWT-SVID and presents it until it expires, so that none
// is for one use.
func (r *issuerRecord) standardize() {
	if r.Type == issuerSPIFFE {
		r.AllowedTypes, r.JTIClaim, r.SingleUse = []string{identity.Absent, "JWT", "JOSE"}, "jti", false
	}
}

// uniqueIssuer refuses a second entry for the same iss, trust domain or auth mount: which of two sets of rules a caller met
// would be chance.
func (b *engine) uniqueIssuer(ctx context.Context, s logical.Storage, name string, record *issuerRecord) error {
	all, err := b.issuerNoun.table.list(ctx, s)
	if err != nil {
		return err
	}
	for _, other := range all {
		if other == name {
			continue
		}
		existing, err := b.issuerNoun.table.get(ctx, s, other)
		if err != nil {
			return err
		}
		if existing == nil {
			continue
		}
		for _, unique := range []struct{ field, ours, theirs string }{
			{"issuer", record.Issuer, existing.Issuer},
			{"trust_domain", record.TrustDomain, existing.TrustDomain},
			{"mount_accessor", record.MountAccessor, existing.MountAccessor},
		} {
			if unique.ours != "" && unique.ours == unique.theirs {
				return badField(unique.field, "issuer %q already has it", other)
			}
		}
	}
	return nil
}

// newIssuer checks a record whole and makes it usable, without I/O.
func newIssuer(name string, r *issuerRecord, conf *settings, b *engine) (*issuer, error) {
	made := &issuer{issuerRecord: *r, name: name}
	if err := r.checkType(); err != nil {
		return nil, err
	}
	switch {
	case r.Type == issuerLogin && r.MountAccessor == "":
		return nil, badField("mount_accessor", "missing; name the auth mount that vouches, see: vault auth list")
	case r.Type == issuerLogin:
		return made, nil
	case r.Type == issuerSPIFFE && r.TrustDomain == "":
		return nil, badField("trust_domain", "missing; want the name of the SPIFFE trust domain, such as example.org")
	case r.JTIClaim == "":
		return nil, badField("jti_claim", "want the name of a claim")
	}
	var bundle identity.Bundle
	if r.WorkloadAPI {
		bundle = b.workload.bundle
	}
	var err error
	made.verifier, err = identity.New(identity.Config{
		Issuer: r.Issuer, TrustDomain: r.TrustDomain, Bundle: bundle, DiscoveryURL: r.OIDCDiscoveryURL, JWKSURL: r.JWKSURL, PublicKeys: r.JWTValidationPubkeys,
		JWKSHosts: r.JWKSHosts, Algorithms: r.JWTSupportedAlgs, AllowedTypes: r.AllowedTypes,
		Leeway: r.ClockSkewLeeway.duration(), MaxAge: r.MaxAge.duration(), MaxTokenLifetime: r.MaxTokenLifetime.duration(),
		CAPEM: r.CAPEM, ProxyURL: r.ProxyURL, Egress: conf.egress, HTTPTimeout: conf.HTTPTimeout.duration(),
		MaxTokenBytes: conf.MaxTokenBytes, MaxClaims: conf.MaxClaims, MaxDepth: maxDepth,
		MaxJWKSBytes: int64(conf.MaxJWKSBytes), MaxKeys: maxKeys,
		MinRefresh: conf.JWKSMinRefresh.duration(), KeysMaxAge: conf.JWKSMaxAge.duration(), KeysMaxStale: conf.JWKSMaxStale.duration(),
		Now: b.now,
	})
	if err != nil {
		if rest, isIssuer := strings.CutPrefix(err.Error(), "issuer:"); isIssuer && r.Issuer != "" && r.Issuer == r.OIDCDiscoveryURL {
			return nil, badField("oidc_discovery_url", "%s", strings.TrimSpace(rest)) // where the issuer came from
		}
		return nil, namedField(err)
	}
	return made, nil
}

// issuer returns an issuer ready for use, or nil if there is none of that name.
func (b *engine) issuer(ctx context.Context, s logical.Storage, name string) (*issuer, error) {
	made, _, err := b.issuers.get(name, func() (*issuer, bool, error) {
		record, err := b.issuerNoun.table.get(ctx, s, name)
		if err != nil || record == nil {
			return nil, false, err
		}
		conf, err := b.config(ctx, s)
		if err != nil {
			return nil, false, err
		}
		made, err := newIssuer(name, record, conf, b)
		if err != nil { // it was sound when it was written, by the rules of that time; roles have other issuers too
			b.Logger().Warn("an issuer no longer fits config, so that its subjects are refused", "issuer", name, "error", err)
			made = &issuer{issuerRecord: *record, name: name, unfit: refuse(reasonEgress, "issuer %q no longer fits config: %v", name, err)}
		}
		b.verifiers.inherit(made)
		return made, true, nil
	})
	return made, err
}
