// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/trust"
)

// roleRecord joins trust policies and a target: who gets which key, and for how long.
type roleRecord struct {
	Trust             []string          `json:"trust"`
	Target            string            `json:"target"`
	Parameters        map[string]any    `json:"parameters"`
	ParametersFrom    map[string]string `json:"parameters_from"`
	AllowedParameters []string          `json:"allowed_parameters"`
	TTL               seconds           `json:"ttl"`
	MaxTTL            seconds           `json:"max_ttl"`
	LeasePath         string            `json:"lease_path"`
	MaxKeys           int               `json:"max_keys"`
	MaxKeysPerSubject int               `json:"max_keys_per_subject"`
	OnLimit           string            `json:"on_limit"`
	RequireRevocable  bool              `json:"require_revocable"`
	Enabled           bool              `json:"enabled"`
	Description       string            `json:"description"`
	CustomMetadata    map[string]string `json:"custom_metadata"`
}

// role is a role as the engine uses it.
type role struct {
	roleRecord
	name           string
	leasePath      *expr.Program
	parametersFrom map[string]*expr.Program
}

const (
	maxPolicies   = 32 // trust policies of one role
	maxParameters = 64
)

// The values of on_limit.
const (
	onLimitRefuse = "refuse"
	onLimitRevoke = "revoke_oldest"
)

var roleFields = described(map[string]*framework.FieldSchema{
	"trust":                {Type: framework.TypeCommaStringSlice, Description: "Trust policies that may use this role; the first that accepts the caller counts."},
	"target":               {Type: framework.TypeString, Description: "Target that issues the keys; it must list the role in allowed_roles."},
	"parameters":           {Type: framework.TypeMap, Description: "Parameters to send to the target. They are fixed, except that those which allowed_parameters also lists are defaults."},
	"parameters_from":      {Type: framework.TypeKVPairs, Description: "Parameter -> CEL expression over claims, vault and now that computes its value."},
	"allowed_parameters":   {Type: framework.TypeCommaStringSlice, Description: "Parameters that a request may set (default none). The request's value takes precedence over parameters."},
	"ttl":                  {Type: framework.TypeDurationSecond, Description: "Lease duration of a key; default the mount's."},
	"max_ttl":              {Type: framework.TypeDurationSecond, Description: "Maximum lease duration of a key, renewals included; default the mount's."},
	"lease_path":           {Type: framework.TypeString, Description: "CEL expression that computes the path which a request must have after creds/<role>, and so the prefix of its lease."},
	"max_keys":             {Type: framework.TypeInt, Description: "Maximum number of keys of this role at a time, including keys that could not be revoked yet, and keys that cannot be revoked until two hours after they expire at the latest; 0 (default) = no limit."},
	"max_keys_per_subject": {Type: framework.TypeInt, Description: "Maximum number of keys of this role that one subject of one issuer may have at a time; 0 (default) = no limit."},
	"on_limit":             {Type: framework.TypeString, Description: "What to do when max_keys or max_keys_per_subject is reached: refuse (default), or revoke_oldest, which revokes the oldest key before it requests the new one."},
	"require_revocable":    {Type: framework.TypeBool, Description: "Refuse to issue keys if the target cannot revoke them."},
	"enabled":              {Type: framework.TypeBool, Description: "Kill switch: false stops issue and renew; revoking goes on."},
})

func (b *engine) newRoleNoun() noun[roleRecord] {
	return noun[roleRecord]{
		table: table[roleRecord]{prefix: "roles/", defaults: func() roleRecord {
			return roleRecord{
				Trust: []string{}, Parameters: map[string]any{}, ParametersFrom: map[string]string{},
				AllowedParameters: []string{}, OnLimit: onLimitRefuse, Enabled: true, CustomMetadata: map[string]string{},
			}
		}},
		what:   "role",
		suffix: "role",
		plural: "roles",
		help: "A role combines trust policies and a target: reading creds/<role> issues a key of the target to a caller whom one of the policies accepts. " +
			"Changing or deleting a role does not affect keys that were already issued.",
		fields: roleFields,
		check:  b.checkRole,
		clear: func(field string) bool {
			return !slices.Contains([]string{"trust", "target", "lease_path", "max_keys", "max_keys_per_subject", "require_revocable"}, field)
		},
		remove: func(context.Context, logical.Storage, string, *roleRecord, *framework.FieldData) ([]string, bool, error) {
			return nil, false, nil
		},
		changed: b.roles.drop,
	}
}

func (b *engine) checkRole(ctx context.Context, s logical.Storage, name string, record, old *roleRecord, d *framework.FieldData) ([]string, error) {
	if old != nil && switchesOff(d) {
		return nil, nil
	}
	if _, err := newRole(name, record); err != nil {
		return nil, err
	}
	for _, p := range record.Trust {
		if existing, err := b.trustNoun.table.get(ctx, s, p); err != nil {
			return nil, err
		} else if existing == nil {
			return nil, badField("trust", "there is no trust policy %q", p)
		}
	}
	existing, err := b.target(ctx, s, record.Target)
	if err != nil {
		return nil, err
	}
	if existing == nil || existing.record.DeletedUntil != nil {
		return nil, badField("target", "there is no target %q", record.Target)
	}
	if record.OnLimit == onLimitRevoke && !existing.Caps().Revoke {
		return nil, badField("on_limit", "target %q cannot revoke keys", record.Target)
	}
	if err := record.checkNames(existing); err != nil {
		return nil, err
	}
	if len(record.ParametersFrom) == 0 && len(record.AllowedParameters) == 0 {
		if _, err := existing.Params(record.Parameters); err != nil {
			return nil, err
		}
	}
	return b.roleWarnings(name, record, existing), nil
}

// checkNames refuses parameters that the target does not have: nobody could set them, or nobody would get a key.
func (r *roleRecord) checkNames(t *openTarget) error {
	has := t.ParamNames()
	for _, name := range r.AllowedParameters {
		if !slices.Contains(has, name) {
			return badField("allowed_parameters", "%q is no parameter of target %q; it has %q", name, r.Target, has)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.ParametersFrom)) {
		if !slices.Contains(has, name) {
			return badField("parameters_from."+name, "no parameter of target %q; it has %q", r.Target, has)
		}
	}
	return nil
}

func (b *engine) roleWarnings(name string, record *roleRecord, t *openTarget) []string {
	var warnings []string
	warn := func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }
	if !t.allows(name) {
		warn("target %q does not list this role in allowed_roles; issuing is refused until it does", record.Target)
	}
	switch {
	case t.Caps().Revoke:
	case record.RequireRevocable:
		warn("target %q cannot revoke keys; issuing is refused, as require_revocable demands", record.Target)
	default:
		warn("target %q cannot revoke keys: a lease's end does not end the key, which lives until it expires by itself", record.Target)
	}
	limit := b.System().MaxLeaseTTL()
	for field, ttl := range map[string]seconds{"ttl": record.TTL, "max_ttl": record.MaxTTL} {
		if ttl.duration() > limit {
			warn("%s is above the mount's maximum of %s, which applies", field, limit)
		}
	}
	slices.Sort(warnings)
	return warnings
}

// newRole checks a record as far as that is possible without other records, and compiles its expressions.
func newRole(name string, r *roleRecord) (*role, error) {
	made := &role{roleRecord: *r, name: name, parametersFrom: map[string]*expr.Program{}}
	switch {
	case len(r.Trust) == 0:
		return nil, badField("trust", "missing; name the trust policies that may use this role")
	case len(r.Trust) > maxPolicies:
		return nil, badField("trust", "at most %d trust policies are allowed", maxPolicies)
	case r.Target == "":
		return nil, badField("target", "missing; name the target that issues the keys")
	case r.MaxTTL > 0 && r.TTL > r.MaxTTL:
		return nil, badField("ttl", "is above max_ttl")
	case r.MaxKeys < 0:
		return nil, badField("max_keys", "is negative; 0 means no limit")
	case r.MaxKeysPerSubject < 0:
		return nil, badField("max_keys_per_subject", "is negative; 0 means no limit")
	case r.OnLimit != onLimitRefuse && r.OnLimit != onLimitRevoke:
		return nil, badField("on_limit", "want %s or %s", onLimitRefuse, onLimitRevoke)
	case r.OnLimit == onLimitRevoke && r.MaxKeys == 0 && r.MaxKeysPerSubject == 0:
		return nil, badField("on_limit", "needs max_keys or max_keys_per_subject")
	case len(r.Parameters)+len(r.ParametersFrom)+len(r.AllowedParameters) > maxParameters:
		return nil, badField("parameters", "at most %d parameters are allowed", maxParameters)
	}
	if r.LeasePath != "" {
		program, err := expr.Compile(r.LeasePath, expr.String, trust.Variables...)
		if err != nil {
			return nil, badField("lease_path", "%v", err)
		}
		made.leasePath = program
	}
	for _, param := range slices.Sorted(maps.Keys(r.ParametersFrom)) {
		program, err := expr.Compile(r.ParametersFrom[param], expr.Any, trust.Variables...)
		if err != nil {
			return nil, badField("parameters_from."+param, "%v", err)
		}
		if _, fixed := r.Parameters[param]; fixed {
			return nil, badField("parameters_from."+param, "is also in parameters; give it in one of them")
		}
		made.parametersFrom[param] = program
	}
	for _, param := range r.AllowedParameters {
		if _, computed := r.ParametersFrom[param]; computed {
			return nil, badField("allowed_parameters", "%q is set by parameters_from; a request may not set it", param)
		}
	}
	return made, nil
}

func (r *role) ceilings() ceilings {
	return ceilings{role: r.MaxKeys, subject: r.MaxKeysPerSubject, replace: r.OnLimit == onLimitRevoke}
}

// programs returns the role's expressions, all of which may read the caller's claims.
func (r *role) programs() []*expr.Program {
	all := slices.Collect(maps.Values(r.parametersFrom))
	if r.leasePath != nil {
		all = append(all, r.leasePath)
	}
	return all
}

func (r *role) readsCaller() bool {
	return slices.ContainsFunc(r.programs(), func(p *expr.Program) bool { return p.Uses("vault") })
}

// role returns a role ready for use, or nil if there is none of that name.
func (b *engine) role(ctx context.Context, s logical.Storage, name string) (*role, error) {
	made, _, err := b.roles.get(name, func() (*role, bool, error) {
		record, err := b.roleNoun.table.get(ctx, s, name)
		if err != nil || record == nil {
			return nil, false, err
		}
		made, err := newRole(name, record)
		if err != nil { // it was valid when it was written
			return nil, false, storageError(fmt.Errorf("role %q is not valid in this version of the plugin, write it again: %v", name, err))
		}
		return made, true, nil
	})
	return made, err
}
