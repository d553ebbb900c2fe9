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

// issuer is an issuer as the engine uses it; verifier is nil for a login issuer, and if unfit is set.
type issuer struct {
	issuerRecord
	name     string
	verifier *identity.Verifier
	unfit    error // why its subjects are refused: config was changed and no longer permits the record
}

// rules returns the record without enabled, which is checked separately, and without fields that only describe it.
func (r issuerRecord) rules() issuerRecord {
	r.Enabled, r.Description, r.CustomMetadata = false, "", nil
	return r
}

// claimedBy reports whether a token with the unverified content c claims to come from this issuer.
func (i *issuer) claimedBy(c identity.Claimed) bool {
	if i.Type == issuerLogin {
		return false
	}
	return (&identity.Config{Issuer: i.Issuer, TrustDomain: i.TrustDomain}).ClaimedBy(c)
}

// id returns the identifier of the issuer that targets are given.
func (i *issuer) id() string {
	if i.Type == issuerSPIFFE {
		return "spiffe://" + i.TrustDomain // an SVID's iss may have any value, or be missing
	}
	return i.Issuer
}

var issuerFields = described(map[string]*framework.FieldSchema{
	"type":                   {Type: framework.TypeString, Description: "oidc (default): tokens of an OpenID provider. spiffe: JWT-SVIDs of a SPIFFE trust domain. login: the caller's Vault login. It cannot be changed. A field that has no effect for the type is refused."},
	"issuer":                 {Type: framework.TypeString, Description: "The exact iss of its tokens; default the discovery URL. Unique in the mount. spiffe: optional; if set, a token that has an iss must have this one."},
	"trust_domain":           {Type: framework.TypeString, Description: "spiffe: name of the trust domain whose workloads it vouches for, such as example.org. Unique in the mount."},
	"workload_api":           {Type: framework.TypeBool, Description: "spiffe: key source: the SPIFFE Workload API at SPIFFE_ENDPOINT_SOCKET in the plugin's registered environment, a Unix socket."},
	"oidc_discovery_url":     {Type: framework.TypeString, Description: "Key source: the issuer's base URL, without /.well-known."},
	"jwks_url":               {Type: framework.TypeString, Description: "Key source: the URL of the key set (JWKS)."},
	"jwt_validation_pubkeys": {Type: framework.TypeCommaStringSlice, Description: "Key source: public keys in PEM."},
	"ca_pem":                 {Type: framework.TypeString, Description: "Certificate authorities to trust for the issuer's server, instead of the system's (PEM)."},
	"proxy_url":              {Type: framework.TypeString, Description: "HTTP proxy to reach the issuer; the environment's proxy variables are not used."},
	"jwks_hosts":             {Type: framework.TypeCommaStringSlice, Description: "Further hosts that may serve the keys, beside the issuer's own."},
	"jwt_supported_algs":     {Type: framework.TypeCommaStringSlice, Description: "Accepted signature algorithms, only asymmetric ones (default RS256, ES256)."},
	"allowed_types":          {Type: framework.TypeCommaStringSlice, Description: "Accepted values of the typ header; the value absent accepts tokens without one (default absent, JWT). For spiffe always absent, JWT, JOSE."},
	"clock_skew_leeway":      {Type: framework.TypeDurationSecond, Description: "How far the issuer's clock may be off (default 30s)."},
	"max_age":                {Type: framework.TypeDurationSecond, Description: "Maximum age of a token, counted from its iat (default 1h)."},
	"max_token_lifetime":     {Type: framework.TypeDurationSecond, Description: "Maximum lifetime of a token, exp minus iat (default 24h)."},
	"single_use":             {Type: framework.TypeBool, Description: "A token works only once (default true). Set false only for tokens that are meant to be presented repeatedly. For spiffe always false: agents present an SVID until it expires."},
	"jti_claim":              {Type: framework.TypeString, Description: "Claim that identifies a token (default jti); a token without this claim is identified by its hash."},
	"record_claims":          {Type: framework.TypeCommaStringSlice, Description: "Claims to record with each key, in addition to those that the policy reads (default: well-known ids)."},
	"forward_to":             {Type: framework.TypeCommaStringSlice, Description: "Hosts to which a caller's token may be forwarded (default none)."},
	"mount_accessor":         {Type: framework.TypeString, Description: "login: accessor of the auth mount where callers log in, see: vault auth list. The engine cannot check that it exists; explain with such a login shows it."},
	"stable_metadata":        {Type: framework.TypeCommaStringSlice, Description: "login: alias metadata that never changes for an alias, and so may be used in decisions."},
	"enabled":                {Type: framework.TypeBool, Description: "Kill switch: false stops issue and renew; revoking goes on."},
	"verify":                 {Type: framework.TypeBool, Description: "Fetch the issuer's keys before saving, and refuse if that fails."},
})

// defaultRecordClaims are ids that later show whose a key was.
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
			b.policies.clear() // a compiled policy depends on its issuer's type
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
		return badField("verify", "fetching the issuer's keys: %v", err)
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
	followed := old != nil && old.Issuer == old.OIDCDiscoveryURL && !named // issuer has its default, so it follows a new discovery URL
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
	if record.WorkloadAPI { // checked only here, not in newIssuer: a stored issuer stays valid on a node without a Workload API
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
		warnings = append(warnings, "single_use is off: whoever gets hold of a token can use it until it expires; bind_caller in the trust policy limits that")
	}
	return warnings, nil
}

// checkGiven refuses values that would have no effect: an empty value means the default, which a read would not show, and only
// top-level claims can be recorded.
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
			return badField("record_claims", "%q is not a top-level claim; name the top-level claim that contains it", name)
		}
	}
	return nil
}

// fieldsOfTypes lists the fields that only some types of issuers use; all types use the others.
var fieldsOfTypes = []struct{ types, fields []string }{
	{[]string{issuerOIDC, issuerSPIFFE}, []string{
		"issuer", "oidc_discovery_url", "jwks_url", "jwt_validation_pubkeys", "ca_pem", "proxy_url", "jwks_hosts",
		"jwt_supported_algs", "clock_skew_leeway", "max_age", "max_token_lifetime", "record_claims", "forward_to",
	}},
	{[]string{issuerOIDC}, []string{"allowed_types", "single_use", "jti_claim"}},
	{[]string{issuerSPIFFE}, []string{"trust_domain", "workload_api"}},
	{[]string{issuerLogin}, []string{"mount_accessor", "stable_metadata"}},
}

// checkFields refuses a value for a field that the issuer's type does not use, unless that is the value which a read shows, so
// that what was read can be written back. old is nil for a new record.
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

// standardize sets the fields that the JWT-SVID standard fixes. An agent presents the same JWT-SVID until it expires, so it
// cannot be single-use.
func (r *issuerRecord) standardize() {
	if r.Type == issuerSPIFFE {
		r.AllowedTypes, r.JTIClaim, r.SingleUse = []string{identity.Absent, "JWT", "JOSE"}, "jti", false
	}
}

// uniqueIssuer refuses a second issuer with the same iss, trust domain or auth mount: it would be random which of the two sets
// of rules applies to a caller.
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

// newIssuer checks a record and makes an issuer of it, without I/O. Errors name the field.
func newIssuer(name string, r *issuerRecord, conf *settings, b *engine) (*issuer, error) {
	made := &issuer{issuerRecord: *r, name: name}
	if err := r.checkType(); err != nil {
		return nil, err
	}
	switch {
	case r.Type == issuerLogin && r.MountAccessor == "":
		return nil, badField("mount_accessor", "missing; want the accessor of an auth mount, see: vault auth list")
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
			return nil, badField("oidc_discovery_url", "%s", strings.TrimSpace(rest)) // the field that the operator wrote
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
		if err != nil { // it was valid when it was written. An issuer that refuses, instead of an error, because roles may have other issuers too
			b.Logger().Warn("an issuer no longer fits config, so that its subjects are refused", "issuer", name, "error", err)
			made = &issuer{issuerRecord: *record, name: name, unfit: refuse(reasonEgress, "issuer %q no longer fits config: %v", name, err)}
		}
		b.verifiers.inherit(made)
		return made, true, nil
	})
	return made, err
}
