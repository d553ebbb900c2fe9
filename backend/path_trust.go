// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"fmt"
	"slices"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/trust"
)

// trustRecord is a trust policy as its operator writes it.
type trustRecord struct {
	Issuer              string            `json:"issuer"`
	BoundAudiences      []string          `json:"bound_audiences"`
	AllowExtraAudiences bool              `json:"allow_extra_audiences"`
	BoundSubject        string            `json:"bound_subject"`
	BoundClaims         map[string]any    `json:"bound_claims"`
	BoundClaimsType     string            `json:"bound_claims_type"`
	Condition           string            `json:"condition"`
	BindCaller          string            `json:"bind_caller"`
	AcceptAnySubject    bool              `json:"accept_any_subject"`
	Enabled             bool              `json:"enabled"`
	Revision            int               `json:"revision"`
	Description         string            `json:"description"`
	CustomMetadata      map[string]string `json:"custom_metadata"`
}

// policy is a trust policy as the engine uses it.
type policy struct {
	trustRecord
	name     string
	compiled *trust.Policy
}

var trustFields = described(map[string]*framework.FieldSchema{
	"issuer":                {Type: framework.TypeString, Description: "Name of the issuer whose subjects this policy judges."},
	"bound_audiences":       {Type: framework.TypeCommaStringSlice, Description: "Accepted values of aud; a token must have exactly one audience, and it must be listed here. Required for issuers of tokens."},
	"allow_extra_audiences": {Type: framework.TypeBool, Description: "Accept tokens that have further audiences too; their azp must then be listed in bound_audiences."},
	"bound_subject":         {Type: framework.TypeString, Description: "The exact subject: the token's sub, or the login's alias name."},
	"bound_claims":          {Type: framework.TypeMap, Description: "Claim (or JSON pointer) -> the value that it must have, or a list of values of which one must match."},
	"bound_claims_type":     {Type: framework.TypeString, Description: "string (default): values are exact. glob: * matches within a segment between ':' and '/', ** across."},
	"condition":             {Type: framework.TypeString, Description: "CEL expression over claims, vault and now that must be true."},
	"bind_caller":           {Type: framework.TypeString, Description: "Claim whose value must be the name of one of the caller's aliases, so that a stolen token is useless to another Vault client."},
	"accept_any_subject":    {Type: framework.TypeBool, Description: "Must be true to save a policy that accepts every subject of its issuer."},
	"enabled":               {Type: framework.TypeBool, Description: "Kill switch: false stops issue and renew under this policy; revoking goes on."},
})

func (b *engine) newTrustNoun() noun[trustRecord] {
	return noun[trustRecord]{
		table: table[trustRecord]{prefix: "trust/", defaults: func() trustRecord {
			return trustRecord{BoundAudiences: []string{}, BoundClaims: map[string]any{}, BoundClaimsType: "string", Enabled: true, CustomMetadata: map[string]string{}}
		}},
		what:   "trust policy",
		suffix: "trust-policy",
		plural: "trust-policies",
		help: "A trust policy says which subjects of one issuer may have a key. All conditions that are given must hold, and a missing claim never satisfies a condition. " +
			"The policy's revision rises with each change, also across deletion and re-creation, and is recorded with every key.",
		fields: trustFields,
		check:  b.checkTrust,
		clear:  func(field string) bool { return field == "description" || field == "custom_metadata" },
		remove: func(ctx context.Context, s logical.Storage, name string, record *trustRecord, _ *framework.FieldData) ([]string, bool, error) {
			found, err := users(ctx, s, b.roleNoun.table, "role", func(r *roleRecord) bool { return slices.Contains(r.Trust, name) })
			if err == nil && len(found) == 0 {
				err = formerPolicies.put(ctx, s, name, &formerPolicy{Revision: record.Revision})
			}
			return found, false, err
		},
		changed: b.policies.drop,
	}
}

// formerPolicy is what is kept of a deleted policy. A new policy with the same name continues its revisions, because keys
// have recorded them.
type formerPolicy struct {
	Revision int `json:"revision"`
}

var formerPolicies = table[formerPolicy]{prefix: "former-trust/"}

// nextRevision returns the revision that a write gives the policy; old is nil if there is no such policy now.
func nextRevision(ctx context.Context, s logical.Storage, name string, old *trustRecord) (int, error) {
	if old != nil {
		return old.Revision + 1, nil
	}
	former, err := formerPolicies.get(ctx, s, name)
	if err != nil || former == nil {
		return 1, err
	}
	return former.Revision + 1, nil
}

func (b *engine) checkTrust(ctx context.Context, s logical.Storage, name string, record, old *trustRecord, d *framework.FieldData) ([]string, error) {
	var err error
	if record.Revision, err = nextRevision(ctx, s, name, old); err != nil {
		return nil, err
	}
	if old != nil && switchesOff(d) {
		return nil, nil
	}
	if record.Issuer == "" {
		return nil, badField("issuer", "missing; name an issuer, see: vault list <mount>/issuers")
	}
	iss, err := b.issuer(ctx, s, record.Issuer)
	if err != nil {
		return nil, err
	}
	if iss == nil {
		return nil, badField("issuer", "there is no issuer %q", record.Issuer)
	}
	made, err := newPolicy(name, record, iss.Type)
	if err != nil {
		return nil, err
	}
	if iss.Type != issuerOIDC {
		return nil, nil
	}
	return trust.Lint(made.spec(), iss.Issuer), nil
}

func newPolicy(name string, r *trustRecord, issuerType string) (*policy, error) {
	made := &policy{trustRecord: *r, name: name}
	var err error
	made.compiled, err = trust.New(made.spec(), identityKind(issuerType))
	return made, err
}

func (r *trustRecord) spec() trust.Spec {
	return trust.Spec{
		BoundAudiences: r.BoundAudiences, AllowExtraAudiences: r.AllowExtraAudiences, BoundSubject: r.BoundSubject,
		BoundClaims: r.BoundClaims, BoundClaimsType: r.BoundClaimsType, Condition: r.Condition,
		BindCaller: r.BindCaller, AcceptAnySubject: r.AcceptAnySubject,
	}
}

// policy returns a trust policy ready for use, or nil if there is none of that name.
func (b *engine) policy(ctx context.Context, s logical.Storage, name string) (*policy, error) {
	made, _, err := b.policies.get(name, func() (*policy, bool, error) {
		record, err := b.trustNoun.table.get(ctx, s, name)
		if err != nil || record == nil {
			return nil, false, err
		}
		iss, err := b.issuer(ctx, s, record.Issuer)
		if err != nil {
			return nil, false, err
		}
		if iss == nil {
			return nil, false, storageError(fmt.Errorf("trust policy %q names issuer %q, which is missing", name, record.Issuer))
		}
		made, err := newPolicy(name, record, iss.Type)
		if err != nil { // it was valid when it was written
			return nil, false, storageError(fmt.Errorf("trust policy %q is not valid in this version of the plugin, write it again: %v", name, err))
		}
		return made, true, nil
	})
	return made, err
}
