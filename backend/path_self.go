// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
)

// selfRecord is this mount as an OpenID provider. Settings and keys share one record, so that a crash cannot leave them
// inconsistent.
type selfRecord struct {
	selfSettings
	Ring ring `json:"ring"`
}

// selfSettings are what operators write, and read back.
type selfSettings struct {
	IssuerURL      string  `json:"issuer_url"` // "" = off
	Algorithm      string  `json:"algorithm"`
	RotationPeriod seconds `json:"rotation_period"`
	TTL            seconds `json:"ttl"`
}

const (
	selfName          = "self"
	maxRotationPeriod = 365 * 24 * time.Hour
)

var selfTable = table[selfRecord]{defaults: defaultSelf}

func defaultSelf() selfRecord {
	return selfRecord{
		selfSettings: selfSettings{Algorithm: selfAlgorithms[0], RotationPeriod: 24 * 3600, TTL: seconds(maxSelfTTL / time.Second)},
		Ring:         ring{Previous: []previousKey{}},
	}
}

var selfFields = map[string]*framework.FieldSchema{
	"issuer_url":      {Type: framework.TypeString, Description: "Public address of this mount's oidc/, such as https://vault.example.com:8200/v1/oidcexchange/oidc: the iss of its tokens. Empty switches the provider off and deletes its keys."},
	"algorithm":       {Type: framework.TypeString, Description: "ES256 (default), RS256 or EdDSA. A change takes effect once a key for it has been published for 10 minutes."},
	"rotation_period": {Type: framework.TypeDurationSecond, Description: "How long a key signs, and how long it is published before that (default 24h; 10m to 365 days)."},
	"ttl":             {Type: framework.TypeDurationSecond, Description: "Lifetime of a token (default and maximum 5m, at least 30s)."},
}

func (b *engine) selfPaths() []*framework.Path {
	display := func(verb, suffix string) *framework.DisplayAttributes {
		return &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: verb, OperationSuffix: suffix}
	}
	write := &framework.PathOperation{Callback: b.handle(b.writeSelf), Summary: "Switch the provider on or off, or change it; fields that are not named keep their value.", DisplayAttrs: display("write", "self"), ForwardPerformanceStandby: true, ForwardPerformanceSecondary: true}
	patch := *write
	patch.DisplayAttrs = display("patch", "self")
	document := func(name, suffix, what string, of func(*provider) []byte) *framework.Path {
		return &framework.Path{
			Pattern: strings.ReplaceAll("oidc"+name, ".", `\.`) + "$",
			// Clients add query parameters to bypass caches; refusing them would let anybody fill the log.
			TakesArbitraryInput: true,
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: &framework.PathOperation{Callback: b.handle(b.publish(of)), Summary: "Read the " + what + ".", DisplayAttrs: display("read", suffix)},
			},
			HelpSynopsis:    "The " + what + " of this mount as an OpenID provider.",
			HelpDescription: "Plain JSON, readable without a Vault token. 404 while self has no issuer_url.",
		}
	}
	return []*framework.Path{{
		Pattern: "self$",
		Fields:  selfFields,
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   &framework.PathOperation{Callback: b.handle(b.readSelf), Summary: "Read the settings, key_ids (the published keys, the one that signs first) and next_rotation.", DisplayAttrs: display("read", "self")},
			logical.UpdateOperation: write,
			logical.PatchOperation:  &patch,
		},
		HelpSynopsis: "This mount as an OpenID provider.",
		HelpDescription: "With an issuer_url, this mount signs a short-lived token for the caller if the target has subject_token_source=self. The target verifies it like the token of any OpenID provider. " +
			"The set of claims is fixed: no role, request or template changes it. Keys rotate automatically and are never shown. This mount accepts no token of its own.",
	},
		document(discoveryPath, "openid-configuration", "discovery document", func(p *provider) []byte { return p.discovery }),
		document(keysPath, "openid-keys", "key set", func(p *provider) []byte { return p.keys }),
	}
}

func (b *engine) readSelf(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	p, err := b.provider(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	data, err := view(p.selfSettings, selfFields)
	if err != nil {
		return nil, err
	}
	maps.Copy(data, p.health())
	return &logical.Response{Data: data}, nil
}

// health returns the state of the provider as operators read it.
func (p *provider) health() map[string]any {
	ids := []string{}
	for _, key := range p.Ring.published() {
		ids = append(ids, key.KeyID)
	}
	known := map[string]any{"issuer_url": p.IssuerURL, "key_ids": ids, "next_rotation": nil}
	if p.on() {
		known["next_rotation"] = timeOrNil(p.Ring.due(p.RotationPeriod.duration()))
	}
	return known
}

func (b *engine) writeSelf(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	b.writes.Lock()
	defer b.writes.Unlock()
	old, err := loadSelf(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	if given, named := d.Raw["issuer_url"]; named && given == nil {
		return nil, badField("issuer_url", "null would delete the keys; write an empty string if that is meant")
	}
	record, err := overlay(*old, defaultSelf(), d)
	if err != nil {
		return nil, err
	}
	if err := b.checkSelf(ctx, req.Storage, &record.selfSettings); err != nil {
		return nil, err
	}
	now := b.now().UTC()
	if record.IssuerURL == "" {
		record.Ring.stop(now)
	} else if _, err := record.Ring.turn(record.Algorithm, record.RotationPeriod.duration(), now); err != nil {
		return nil, err
	}
	defer b.self.clear() // even after an error: the write may have been done
	if err := selfTable.put(ctx, req.Storage, selfName, &record); err != nil {
		return nil, err
	}
	if warnings := record.warnings(); len(warnings) > 0 {
		return &logical.Response{Warnings: warnings}, nil
	}
	return nil, nil
}

func (b *engine) checkSelf(ctx context.Context, s logical.Storage, r *selfSettings) error {
	switch {
	case !slices.Contains(selfAlgorithms, r.Algorithm):
		return badField("algorithm", "want one of %s", strings.Join(selfAlgorithms, ", "))
	case r.RotationPeriod.duration() < keyLead || r.RotationPeriod.duration() > maxRotationPeriod:
		return badField("rotation_period", "want 10m to 365 days")
	case r.TTL.duration() < minSelfTTL || r.TTL.duration() > maxSelfTTL:
		return badField("ttl", "want 30s to 5m")
	case r.IssuerURL == "":
		return nil
	}
	conf, err := b.config(ctx, s)
	if err != nil {
		return err
	}
	if err := identity.CheckIssuer(r.IssuerURL, conf.AllowHTTPLoopback); err != nil {
		return badField("issuer_url", "%v", err)
	}
	if strings.HasSuffix(r.IssuerURL, "/") || strings.Contains(r.IssuerURL, "/.well-known") {
		return badField("issuer_url", "leave out what follows oidc")
	}
	entries, err := users(ctx, s, b.issuerNoun.table, "issuer", func(entry *issuerRecord) bool { return entry.Issuer == r.IssuerURL })
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return badField("issuer_url", "%s has it; this mount accepts no token of its own", strings.Join(entries, ", "))
	}
	return nil
}

func (r *selfRecord) warnings() []string {
	if r.IssuerURL == "" {
		return nil
	}
	var all []string
	if !strings.HasSuffix(r.IssuerURL, "/oidc") {
		all = append(all, "issuer_url does not end in /oidc, so a proxy in front of Vault must map it there: verifiers fetch "+r.IssuerURL+discoveryPath)
	}
	if now, next := r.Ring.Current.Key.Algorithm, r.Ring.Next.Key.Algorithm; now != next {
		all = append(all, fmt.Sprintf("tokens are signed with %s until %s, because the key for %s must be published before it signs",
			now, r.Ring.due(0).Format(time.RFC3339), next))
	}
	return all
}

// publish answers with a document of the provider. Anybody may read it without a Vault token, so it comes from memory and
// writes nothing.
func (b *engine) publish(document func(*provider) []byte) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
		p, err := b.provider(ctx, req.Storage)
		if err != nil {
			return nil, err
		}
		status, body, caching := http.StatusOK, document(p), fmt.Sprintf("public, max-age=%d", int(keysMaxAge/time.Second))
		if !p.on() {
			status, body, caching = http.StatusNotFound, []byte(`{"errors":["this mount is not an OpenID provider: self has no issuer_url"]}`), "no-store"
		}
		return &logical.Response{Data: map[string]any{
			logical.HTTPContentType: "application/json", logical.HTTPStatusCode: status, logical.HTTPRawBody: body, logical.HTTPCacheControlHeader: caching,
		}}, nil
	}
}

func loadSelf(ctx context.Context, s logical.Storage) (*selfRecord, error) {
	record, err := selfTable.get(ctx, s, selfName)
	if err == nil && record == nil {
		fresh := defaultSelf()
		record = &fresh
	}
	return record, err
}
