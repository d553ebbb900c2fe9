// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
)

// configRecord has the limits of the mount, and the rules for where it may connect.
type configRecord struct {
	Instance          string   `json:"instance"`
	MaxTokenBytes     int      `json:"max_token_bytes"`
	MaxClaims         int      `json:"max_claims"`
	MaxJWKSBytes      int      `json:"max_jwks_bytes"`
	JWKSMinRefresh    seconds  `json:"jwks_min_refresh"`
	JWKSMaxAge        seconds  `json:"jwks_max_age"`
	JWKSMaxStale      seconds  `json:"jwks_max_stale"`
	HTTPTimeout       seconds  `json:"http_timeout"`
	RequestTimeout    seconds  `json:"request_timeout"`
	MaxResponseBytes  int      `json:"max_response_bytes"`
	SweepGrace        seconds  `json:"sweep_grace"`
	AllowPrivate      []string `json:"allow_private"`
	AllowHTTPLoopback bool     `json:"allow_http_loopback"`
	EgressHosts       []string `json:"egress_hosts"`
}

const (
	configName = "config"
	maxDepth   = 16  // nesting of a token's claims
	maxKeys    = 100 // keys of one key set
)

var configTable = table[configRecord]{defaults: defaultConfig}

func defaultConfig() configRecord {
	return configRecord{
		MaxTokenBytes: 16 << 10, MaxClaims: 256, MaxJWKSBytes: 512 << 10,
		JWKSMinRefresh: 30, JWKSMaxAge: 600, JWKSMaxStale: 3600,
		HTTPTimeout: 10, RequestTimeout: 20, MaxResponseBytes: 1 << 20, SweepGrace: 180,
		AllowPrivate: []string{}, EgressHosts: []string{},
	}
}

// settings is the config as the engine uses it.
type settings struct {
	configRecord
	egress egress.Policy
}

var configFields = map[string]*framework.FieldSchema{
	"instance":            {Type: framework.TypeString, Description: "Part of the names of this mount's keys at targets; chosen at random when the mount is first used. On a copy of a Vault, set another one before the copy is used."},
	"max_token_bytes":     {Type: framework.TypeInt, Description: "Maximum size of a subject token, in bytes (default 16384)."},
	"max_claims":          {Type: framework.TypeInt, Description: "Maximum number of members in a token's claims, all levels together (default 256)."},
	"max_jwks_bytes":      {Type: framework.TypeInt, Description: "Maximum size of an issuer's key set, in bytes (default 524288)."},
	"jwks_min_refresh":    {Type: framework.TypeDurationSecond, Description: "Minimum time between two fetches of an issuer's keys (default 30s)."},
	"jwks_max_age":        {Type: framework.TypeDurationSecond, Description: "Age at which an issuer's keys are fetched again (default 10m)."},
	"jwks_max_stale":      {Type: framework.TypeDurationSecond, Description: "How long an issuer's keys stay in use while fetching them fails (default 1h)."},
	"http_timeout":        {Type: framework.TypeDurationSecond, Description: "Timeout of one call to an issuer (default 10s)."},
	"request_timeout":     {Type: framework.TypeDurationSecond, Description: "Timeout of one call to a target (default 20s)."},
	"max_response_bytes":  {Type: framework.TypeInt, Description: "Maximum size of a target's answer, in bytes (default 1048576)."},
	"sweep_grace":         {Type: framework.TypeDurationSecond, Description: "Age at which the sweeper settles an exchange whose outcome was not recorded (default 3m)."},
	"allow_private":       {Type: framework.TypeCommaStringSlice, Description: "Private address ranges (CIDR) to which the engine may connect. Link-local and metadata addresses are always refused."},
	"allow_http_loopback": {Type: framework.TypeBool, Description: "Allow issuers and targets on this machine's loopback, by http or https. For tests."},
	"egress_hosts":        {Type: framework.TypeCommaStringSlice, Description: "Hosts to which the engine may connect (globs; a star matches within one label); empty allows every public host."},
}

func (b *engine) configPath() *framework.Path {
	display := func(verb string) *framework.DisplayAttributes {
		return &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: verb, OperationSuffix: "configuration"}
	}
	write := &framework.PathOperation{Callback: b.handle(b.writeConfig), Summary: "Change limits and egress rules; fields that are not named keep their value.", DisplayAttrs: display("write"), ForwardPerformanceStandby: true, ForwardPerformanceSecondary: true}
	patch := *write
	patch.DisplayAttrs = display("patch")
	return &framework.Path{
		Pattern: "config$",
		Fields:  configFields,
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   &framework.PathOperation{Callback: b.handle(b.readConfig), Summary: "Read limits and egress rules.", DisplayAttrs: display("read")},
			logical.UpdateOperation: write,
			logical.PatchOperation:  &patch,
		},
		HelpSynopsis:    "Limits of this mount, and where it may connect.",
		HelpDescription: "All limits have defaults; null resets a field to its default. Public hosts are called by https only; private addresses must be listed in allow_private.",
	}
}

func (b *engine) readConfig(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	record, err := b.config(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	data, err := view(record.configRecord, configFields)
	if err != nil {
		return nil, err
	}
	return &logical.Response{Data: data}, nil
}

func (b *engine) writeConfig(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	b.writes.Lock()
	defer b.writes.Unlock()
	old, err := configTable.get(ctx, req.Storage, configName)
	if err != nil {
		return nil, err
	}
	if old == nil {
		fresh := defaultConfig()
		fresh.Instance = newInstance()
		old = &fresh
	}
	reset := defaultConfig()
	reset.Instance = old.Instance // null keeps it: the names of keys at targets contain it
	if given, named := d.Raw["egress_hosts"]; named && given == nil {
		return nil, badField("egress_hosts", "null would allow every public host; write an empty list if that is meant")
	}
	record, err := overlay(*old, reset, d)
	if err != nil {
		return nil, err
	}
	if err := record.check(); err != nil {
		return nil, err
	}
	defer b.configChanged() // even after an error: the write may have been done
	if err := configTable.put(ctx, req.Storage, configName, &record); err != nil {
		return nil, err
	}
	var resp logical.Response
	if record.AllowHTTPLoopback {
		resp.AddWarning("allow_http_loopback lets issuers and targets be reached without TLS on this machine; it is meant for tests")
	}
	if record.SweepGrace < 60 {
		resp.AddWarning("sweep_grace is shorter than an issue can take: after a failover the sweeper may look for a key that does not exist yet")
	}
	if record.Instance != old.Instance {
		resp.AddWarning("keys that were issued under the former instance keep it in their names at targets; reconcile finds only keys of the present instance")
	}
	if len(resp.Warnings) == 0 {
		return nil, nil
	}
	return &resp, nil
}

var instances = regexp.MustCompile(`\A[a-z0-9]{4,16}\z`)

func newInstance() string { return strings.ToLower(rand.Text()[:8]) }

func (c *configRecord) check() error {
	if !instances.MatchString(c.Instance) {
		return badField("instance", "want 4 to 16 lower-case letters and digits")
	}
	for _, limit := range []struct {
		field     string
		value     int64
		low, high int64
	}{
		{"max_token_bytes", int64(c.MaxTokenBytes), 1 << 10, 64 << 10},
		{"max_claims", int64(c.MaxClaims), 16, 4096},
		{"max_jwks_bytes", int64(c.MaxJWKSBytes), 4 << 10, 4 << 20},
		{"jwks_min_refresh", int64(c.JWKSMinRefresh), 1, 3600},
		{"jwks_max_age", int64(c.JWKSMaxAge), int64(c.JWKSMinRefresh), 24 * 3600},
		{"jwks_max_stale", int64(c.JWKSMaxStale), int64(c.JWKSMaxAge), 7 * 24 * 3600},
		{"http_timeout", int64(c.HTTPTimeout), 1, 20},
		{"request_timeout", int64(c.RequestTimeout), 1, 20},
		{"max_response_bytes", int64(c.MaxResponseBytes), 4 << 10, 16 << 20},
		{"sweep_grace", int64(c.SweepGrace), 1, 3600},
	} {
		if limit.value < limit.low || limit.value > limit.high {
			return badField(limit.field, "want %d to %d", limit.low, limit.high)
		}
	}
	_, err := c.egress()
	return err
}

func (c *configRecord) egress() (egress.Policy, error) {
	p := egress.Policy{AllowHTTPLoopback: c.AllowHTTPLoopback, Hosts: c.EgressHosts}
	for _, text := range c.AllowPrivate {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return p, badField("allow_private", "%q is not an address range; want for example 10.0.0.0/8", text)
		}
		p.AllowPrivate = append(p.AllowPrivate, prefix.Masked())
	}
	if err := p.Validate(); err != nil {
		return p, namedField(err)
	}
	return p, nil
}

// config returns the mount's settings, defaults where nothing was written.
func (b *engine) config(ctx context.Context, s logical.Storage) (*settings, error) {
	loaded, _, err := b.settings.get(configName, func() (*settings, bool, error) {
		record, err := configTable.get(ctx, s, configName)
		if err != nil {
			return nil, false, err
		}
		if record == nil {
			fresh := defaultConfig()
			record = &fresh
		}
		policy, err := record.egress()
		if err != nil {
			return nil, false, fmt.Errorf("reading config: %w", err)
		}
		return &settings{configRecord: *record, egress: policy}, true, nil
	})
	return loaded, err
}

// configWithInstance returns the settings, and first makes the mount's instance if it has none yet.
func (b *engine) configWithInstance(ctx context.Context, s logical.Storage) (*settings, error) {
	conf, err := b.config(ctx, s)
	if err != nil || conf.Instance != "" {
		return conf, err
	}
	b.writes.Lock()
	defer b.writes.Unlock()
	record, err := configTable.get(ctx, s, configName)
	if err != nil {
		return nil, err
	}
	if record == nil {
		fresh := defaultConfig()
		fresh.Instance = newInstance()
		if err := configTable.put(ctx, s, configName, &fresh); err != nil {
			return nil, err
		}
	}
	b.settings.clear()
	return b.config(ctx, s)
}

// storageTimeout bounds work on Vault's storage that no request waits for.
const storageTimeout = 5 * time.Second
