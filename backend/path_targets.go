// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/source"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// targetRecord is a target as its operator writes it: an API that issues keys.
type targetRecord struct {
	Driver             string            `json:"driver"`
	URL                string            `json:"url"`
	Profile            string            `json:"profile"`
	Credential         map[string]string `json:"credential"`
	AllowedRoles       []string          `json:"allowed_roles"`
	Condition          string            `json:"condition"`
	SubjectTokenSource string            `json:"subject_token_source"`
	Audience           string            `json:"audience"`
	SelfSubject        string            `json:"self_subject"`
	TokenFile          string            `json:"token_file"`
	TokenURL           string            `json:"token_url"`
	ClientID           string            `json:"client_id"`
	ClientSecret       string            `json:"client_secret"`
	TokenAuth          string            `json:"token_auth"`
	TokenScopes        []string          `json:"token_scopes"`
	TokenParams        map[string]string `json:"token_params"`
	SPIFFEID           string            `json:"spiffe_id"`
	Lifetime           seconds           `json:"lifetime"`
	CAPEM              string            `json:"ca_pem"`
	ClientCert         string            `json:"client_cert"`
	ClientKey          string            `json:"client_key"`
	ProxyURL           string            `json:"proxy_url"`
	RequestTimeout     seconds           `json:"request_timeout"`
	Rate               float64           `json:"rate"`
	Burst              int               `json:"burst"`
	Concurrency        int               `json:"concurrency"`
	Enabled            bool              `json:"enabled"`
	DeletedUntil       *time.Time        `json:"deleted_until,omitempty"` // set in a tombstone only: the latest time at which a key there can end
	Description        string            `json:"description"`
	CustomMetadata     map[string]string `json:"custom_metadata"`

	DisableAutomatedRotation bool `json:"disable_automated_rotation"`

	schedule
	oauthRecord
}

// openTarget is a target as the engine uses it.
type openTarget struct {
	*target.Target
	name      string
	meters    *meters
	record    targetRecord
	source    *source.Source // of the engine's own tokens; nil if the target uses none
	sourceErr error          // why the source could not be opened: no key is issued, but revoking needs no source
}

var targetFields = scheduled("the credential", described(map[string]*framework.FieldSchema{
	"driver":                     {Type: framework.TypeString, Description: "Name of a built-in driver or profile, or http with a profile of your own. Cannot be changed."},
	"url":                        {Type: framework.TypeString, Description: "Base address of the API; known public APIs have a default. Its origin cannot be changed."},
	"profile":                    {Type: framework.TypeString, Description: "http: the profile, as YAML."},
	"credential":                 {Type: framework.TypeKVPairs, DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}, Description: "What the driver needs to administer the API. Never read back."},
	"allowed_roles":              {Type: framework.TypeCommaStringSlice, Description: "Roles that may use this target, as globs (default none). A static role is listed as static/<name>; a star does not match a slash."},
	"condition":                  {Type: framework.TypeString, Description: "CEL expression over params that must be true for every request, whoever the caller is."},
	"subject_token_source":       {Type: framework.TypeString, Description: "What to send as the subject token: request (the caller's token), self (a token that this mount signs for the caller), none, or a token of the engine itself: file, client_credentials or svid. The default depends on the driver."},
	"audience":                   {Type: framework.TypeString, Description: "The aud that the API expects in a subject token; the default depends on the driver. A token with further audiences is not sent. Optional with client_credentials: without it the token need not be a JWT."},
	"self_subject":               {Type: framework.TypeString, Description: "With subject_token_source=self, the token's sub: role (default) gives role:<role>, entity gives entity:<id of the caller's entity>."},
	"token_file":                 {Type: framework.TypeString, Description: "file, and oauth for roles with actor_token_source=file: absolute path of the token, read for each key. It must be below a directory that is listed in OIDCEXCHANGE_TOKEN_DIRS in the plugin's registered environment."},
	"token_url":                  {Type: framework.TypeString, Description: "client_credentials: the token endpoint. oauth: the same, and its query is kept as it is; default: from the discovery document of the issuer at url."},
	"client_id":                  {Type: framework.TypeString, Description: "client_credentials, oauth: the engine's client id there."},
	"client_secret":              {Type: framework.TypeString, DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}, Description: "client_credentials, oauth: the secret of client_id. Never read back; a change of where it is sent must include it again."},
	"token_auth":                 {Type: framework.TypeString, Description: "client_credentials: how the secret is sent, basic (default) or post."},
	"token_scopes":               {Type: framework.TypeCommaStringSlice, Description: "client_credentials: scopes to ask for."},
	"token_params":               {Type: framework.TypeKVPairs, Description: "client_credentials: further parameters of the token request, such as resource or audience. They are read back, so put no secrets here."},
	"spiffe_id":                  {Type: framework.TypeString, Description: "svid, and oauth where the engine authenticates with an SVID: which SPIFFE id to use, of those that the agent has for the plugin; default the first."},
	"grant":                      {Type: framework.TypeString, Description: "oauth: token_exchange (default), client_credentials or jwt_bearer."},
	"client_auth":                {Type: framework.TypeString, Description: "oauth: how the engine authenticates as a client: none (default), client_secret_basic, client_secret_post, private_key_jwt, svid_jwt_bearer or svid_jwt_spiffe (its JWT-SVID as an assertion of either type), or tls_client_auth (client_cert)."},
	"private_key":                {Type: framework.TypeString, DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}, Description: "oauth: key for private_key_jwt (PEM; RSA, P-256, P-384, P-521 or Ed25519). Never read back; a change of where its signature is sent must include it again."},
	"private_key_id":             {Type: framework.TypeString, Description: "oauth: kid of private_key at the server; default: no kid is sent."},
	"assertion_audience":         {Type: framework.TypeString, Description: "oauth: aud of the assertion with which the engine authenticates; default token_url, or the issuer if token_url is discovered."},
	"subject_token_type":         {Type: framework.TypeString, Description: "oauth: type of the subject token: jwt (default), id_token, access_token, or a URN."},
	"chain":                      {Type: framework.TypeString, Description: "oauth: token exchanges before the grant, each with the token of the one before: a JSON list of at most three objects. Each may have token_url, assertion_audience, spiffe_id, audience (default the next hop's spiffe_id), resource, scopes and requested_token_type."},
	"revocation_url":             {Type: framework.TypeString, Description: "oauth: where to revoke tokens (RFC 7009): an address, discover (default if the token endpoint is discovered; if the server then has no revocation endpoint, nothing is issued), or none."},
	"introspection_url":          {Type: framework.TypeString, Description: "oauth: where each renewal asks whether a token is active, and until when (RFC 7662): an address, discover, or none (default)."},
	"token_hosts":                {Type: framework.TypeCommaStringSlice, Description: "oauth: further hosts, besides that of url, on which endpoints may be, whether configured or discovered."},
	"lifetime":                   {Type: framework.TypeDurationSecond, Description: "connect without a credential, oauth: lifetime of a key if the target's answer does not state it; default 1h for connect; oauth by default refuses such an answer. A key whose answer was lost is shown as exposed for this long (oauth: by default for a day)."},
	"ca_pem":                     {Type: framework.TypeString, Description: "Certificate authorities to trust for the API's server, instead of the system's (PEM)."},
	"client_cert":                {Type: framework.TypeString, Description: "Client certificate (PEM) for mutual TLS."},
	"client_key":                 {Type: framework.TypeString, DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}, Description: "Key (PEM) of client_cert. Never read back."},
	"proxy_url":                  {Type: framework.TypeString, Description: "HTTP proxy to reach the API; the environment's proxy variables are not used."},
	"request_timeout":            {Type: framework.TypeDurationSecond, Description: "Timeout of one call; default and maximum config's request_timeout."},
	"rate":                       {Type: framework.TypeFloat, Description: "Maximum calls per second; 0 = no limit."},
	"burst":                      {Type: framework.TypeInt, Description: "How many calls may exceed rate for a moment."},
	"concurrency":                {Type: framework.TypeInt, Description: "Maximum number of calls at a time; default 10."},
	"enabled":                    {Type: framework.TypeBool, Description: "Kill switch: false stops issue and renew; revoking goes on."},
	"force":                      {Type: framework.TypeBool, Query: true, Description: "On delete: delete the target although keys are valid there. The engine keeps what it needs to revoke them until they are gone."},
	"disable_automated_rotation": {Type: framework.TypeBool, Description: "Rotate the credential only by rotate-root. The schedule still decides how long a new credential is valid."},
}))

func (b *engine) newTargetNoun() noun[targetRecord] {
	return noun[targetRecord]{
		table: table[targetRecord]{prefix: "targets/", defaults: func() targetRecord {
			return targetRecord{Credential: map[string]string{}, AllowedRoles: []string{}, TokenScopes: []string{}, TokenParams: map[string]string{}, oauthRecord: oauthRecord{TokenHosts: []string{}}, Enabled: true, CustomMetadata: map[string]string{}}
		}},
		what:   "target",
		suffix: "target",
		plural: "targets",
		help: "A target is an API that issues keys: its address, the driver or profile that speaks its protocol, and the engine's own credential there if it needs one. " +
			"A target serves only the roles that it lists in allowed_roles.",
		fields:     targetFields,
		check:      b.checkTarget,
		probe:      b.beforeTarget,
		clear:      func(field string) bool { return field != "driver" && field != "condition" && field != "allowed_roles" },
		lockPrefix: rootPrefix,
		remove:     b.removeTarget,
		saved:      b.savedTarget,
		changed:    b.targets.drop,
		hidden:     func(t *targetRecord) bool { return t.DeletedUntil != nil },
	}
}

func (b *engine) checkTarget(ctx context.Context, s logical.Storage, name string, record, old *targetRecord, d *framework.FieldData) ([]string, error) {
	if old != nil && old.Driver != record.Driver {
		return nil, badField("driver", "cannot be changed; make another target")
	}
	if old != nil && switchesOff(d) {
		return nil, nil
	}
	for _, pattern := range record.AllowedRoles {
		if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
			return nil, badField("allowed_roles", "%q is not a name or glob", pattern)
		}
	}
	conf, err := b.config(ctx, s)
	if err != nil {
		return nil, err
	}
	made, err := b.openTarget(name, record, conf, nil)
	if err != nil {
		return nil, err
	}
	made.Close()
	if err := record.schedule.check(); err != nil {
		return nil, err
	}
	if record.set() && !made.Caps().RotateRoot {
		return nil, badField("rotation_period", "this kind of target cannot rotate its credential")
	}
	if err := record.checkSourceFields(made.Source()); err != nil {
		return nil, err
	}
	if made.sourceErr != nil && record.Enabled { // a target can be disabled whatever is wrong with its source
		return nil, namedField(made.sourceErr)
	}
	if err := b.checkOAuth(record, conf.egress); err != nil && record.Enabled {
		return nil, err
	}
	record.URL = made.URL()
	warnings, err := b.checkSelfSubject(ctx, s, made)
	warnings = slices.Concat(warnings, made.Advice(), likeFiles(record.Credential))
	if record.RequestTimeout > conf.RequestTimeout {
		warnings = append(warnings, fmt.Sprintf("request_timeout is above config's of %s, which holds", conf.RequestTimeout.duration()))
	}
	if err != nil || old == nil {
		return warnings, err
	}
	// old may be a tombstone, which serves the keys that are still valid: only the same target may replace it.
	if origin(old.URL) != origin(record.URL) {
		return nil, badField("url", "its origin cannot be changed, because the credential and the keys belong to it; make another target")
	}
	// Where a credential is optional, it says which keys a target gives out and who can end them.
	if old.Profile == "" && (len(old.Credential) == 0) != (len(record.Credential) == 0) {
		return nil, badField("credential", "can be changed, but neither added nor removed, because existing keys depend on it; make another target")
	}
	if err := checkSecretDestination(record, old, d); err != nil {
		return nil, err
	}
	return warnings, b.checkStranded(ctx, s, name, record, old, made)
}

// checkStranded refuses a change after which keys that may be valid at the target could no longer be revoked.
func (b *engine) checkStranded(ctx context.Context, s logical.Storage, name string, record, old *targetRecord, made *openTarget) error {
	if made.Caps().Revoke {
		return b.checkHandlesKept(ctx, s, name, record, old, made)
	}
	for _, field := range []struct {
		name    string
		changed bool
	}{
		{"profile", record.Profile != old.Profile},
		{"revocation_url", record.RevocationURL != old.RevocationURL},
		{"token_url", record.TokenURL != old.TokenURL}, // decides whether revocation_url is discovered by default
	} {
		if !field.changed {
			continue
		}
		if n, err := b.ledger.revocable(name); err != nil || n > 0 {
			return cmp.Or(err, badField(field.name, "after this change, %d keys that may be valid at the target could no longer be revoked; revoke them first", n))
		}
	}
	return nil
}

// checkHandlesKept refuses a new profile whose renew, revoke or find needs data about a key that the old profile did not keep,
// while there are such keys.
func (b *engine) checkHandlesKept(ctx context.Context, s logical.Storage, name string, record, old *targetRecord, made *openTarget) error {
	if record.Profile == old.Profile {
		return nil
	}
	conf, err := b.config(ctx, s)
	if err != nil {
		return err
	}
	before, err := b.openTarget(name, old, conf, nil)
	if err == nil {
		defer before.Close()
		if made.TakesHandlesOf(before.Target) {
			return nil
		}
	}
	static, err := users(ctx, s, b.staticNoun.table, "static role", func(r *staticRecord) bool { return r.Target == name })
	if err != nil {
		return err
	}
	if n, err := b.ledger.revocable(name); err != nil || n+len(static) > 0 {
		return cmp.Or(err, badField("profile", "for %d keys that may be valid at the target, the old profile has not kept the data that this profile's renew, revoke or find needs; revoke them first", n+len(static)))
	}
	return nil
}

// checkSecretDestination refuses a write that changes where or how a stored secret is sent without giving the secret again:
// otherwise whoever may write targets could collect it.
func checkSecretDestination(record, old *targetRecord, d *framework.FieldData) error {
	changed := map[string]bool{
		"url": old.URL != record.URL, "ca_pem": old.CAPEM != record.CAPEM, "proxy_url": old.ProxyURL != record.ProxyURL,
		"profile": old.Profile != record.Profile, "client_cert": old.ClientCert != record.ClientCert, "token_url": old.TokenURL != record.TokenURL,
	}
	maps.Copy(changed, record.changed(old.oauthRecord))
	toTarget := []string{"url", "ca_pem", "proxy_url", "profile", "client_cert"}
	for _, secret := range []struct {
		field       string
		kept        bool
		destination []string
	}{
		{"credential", len(old.Credential) > 0, toTarget},
		{"client_key", old.ClientKey != "" && record.ClientKey != "", toTarget},
		{"client_secret", old.ClientSecret != "" && record.ClientSecret != "", record.secretDestinationFields()},
		{"private_key", old.PrivateKey != "" && record.PrivateKey != "", record.secretDestinationFields()},
	} {
		if _, given := d.GetOk(secret.field); given || !secret.kept {
			continue
		}
		for _, field := range secret.destination {
			if changed[field] {
				return badField(secret.field, "must be given again to change %s; give both in one write", field)
			}
		}
	}
	return nil
}

// secretDestinationFields returns the fields that decide where client_secret and private_key are used.
func (r *targetRecord) secretDestinationFields() []string {
	if r.Driver == target.DriverOAuth {
		return oauthDestinationFields
	}
	return []string{"token_url", "ca_pem", "proxy_url"}
}

// hostOf returns the host of a URL, with its port if it has one; "" for what is not a URL.
func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return u.Host
}

// origin returns scheme, host and port of a URL (RFC 6454).
func origin(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	return u.Scheme + "://" + u.Host
}

func (b *engine) openTarget(name string, r *targetRecord, conf *settings, limiter *target.Limiter) (*openTarget, error) {
	timeout := r.RequestTimeout
	if timeout == 0 || timeout > conf.RequestTimeout {
		timeout = conf.RequestTimeout
	}
	made, err := target.Open(target.Config{
		Name: name, Driver: r.Driver, URL: r.URL, Profile: r.Profile, Credential: r.Credential,
		Source: r.SubjectTokenSource, Audience: r.Audience, Condition: r.Condition, Lifetime: r.Lifetime.duration(), OAuth: b.oauth(*r, conf.egress),
		CAPEM: r.CAPEM, ClientCert: r.ClientCert, ClientKey: r.ClientKey, ProxyURL: r.ProxyURL,
		RequestTimeout: timeout.duration(), MaxResponseBytes: int64(conf.MaxResponseBytes),
		Rate: r.Rate, Burst: r.Burst, Concurrency: r.Concurrency, Limiter: limiter,
		Egress: conf.egress, UserAgent: "vault-plugin-secrets-oidcexchange/" + strings.TrimPrefix(Version, "v"), Now: b.now,
	})
	if err != nil {
		return nil, err
	}
	t := &openTarget{Target: made, name: name, meters: b.meters, record: *r}
	t.source, t.sourceErr = b.openSource(made.Source(), made.Audience(), r, conf.egress, egress.Options{
		CAPEM: r.CAPEM, ClientCert: r.ClientCert, ClientKey: r.ClientKey, ProxyURL: r.ProxyURL, Timeout: timeout.duration(),
	})
	return t, nil
}

// allows reports whether the target lists the role.
func (t *openTarget) allows(role string) bool {
	return slices.ContainsFunc(t.record.AllowedRoles, func(pattern string) bool {
		matched, err := path.Match(pattern, role)
		return err == nil && matched
	})
}

// target returns a target ready for use, or nil if there is none of that name. It also returns a tombstone, which revoking
// needs: callers that issue must check for it.
func (b *engine) target(ctx context.Context, s logical.Storage, name string) (*openTarget, error) {
	made, _, err := b.targets.get(name, func() (*openTarget, bool, error) {
		record, err := b.targetNoun.table.get(ctx, s, name)
		if err != nil || record == nil {
			return nil, false, err
		}
		conf, err := b.config(ctx, s)
		if err != nil {
			return nil, false, err
		}
		made, err := b.openTarget(name, record, conf, b.limiters.of(name, origin(record.URL), b.now))
		if err != nil { // it was valid when it was written
			return nil, false, refuse(reasonEgress, "target %q no longer fits config: %v", name, err)
		}
		return made, true, nil
	})
	return made, err
}
