// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
)

// order is everything that was decided about one exchange before the first write.
type order struct {
	who      *subject
	draft    *entry // the ledger entry that this would become, but with all claims: blocks judge it
	role     *role
	target   *openTarget
	params   map[string]any
	self     *assertion // the token that this mount will sign for the caller; nil if the target wants none
	path     string     // lease path
	ttl, max time.Duration
	warnings []string
}

// order works out what to ask the target for. It writes nothing and makes no network calls.
func (b *engine) order(ctx context.Context, req *logical.Request, r *role, t *openTarget, who *subject, a ask, budget *expr.Budget) (*order, error) {
	o := &order{who: who, role: r, target: t, path: a.path}
	o.draft = &entry{
		Role: r.name, Target: r.Target, Trust: who.policy.name, Revision: who.policy.Revision, Issuer: who.issuer.name,
		Subject: who.Subject, Entity: req.EntityID, JTI: who.jti, Claims: who.Claims, ClaimsWhole: true, IssuedAt: b.now(),
	}
	if err := b.unblocked(ctx, req.Storage, o.draft); err != nil {
		return nil, err
	}
	if err := checkLeasePath(r, who, a.path, budget); err != nil {
		return nil, err
	}
	params, err := r.params(who, a.parameters, budget)
	if err != nil {
		return nil, err
	}
	if o.params, err = t.Params(params); err != nil {
		return nil, &refusal{reason: reasonParameter, text: err.Error(), detail: err.Error()}
	}
	if err := t.forwardable(who); err != nil {
		return nil, err
	}
	if o.self, err = b.assert(ctx, req, o); err != nil {
		return nil, err
	}
	times := b.leaseTimes.of(b.System(), b.now())
	o.max = times.MaxLeaseTTL()
	if most := r.MaxTTL.duration(); most > 0 {
		o.max = min(o.max, most)
	}
	o.ttl, o.warnings, err = framework.CalculateTTL(times, a.ttl, r.TTL.duration(), 0, r.MaxTTL.duration(), 0, time.Time{})
	if err != nil {
		return nil, badField("ttl", "%v", err)
	}
	if who.token != nil && b.now().After(who.token.Expiry.Add(who.issuer.ClockSkewLeeway.duration())) {
		return nil, refuse(identity.Expired, "the token expired while the request was served")
	}
	return o, nil
}

// params merges the role's fixed parameters, its computed ones, and those that the request may set.
func (r *role) params(who *subject, given map[string]any, budget *expr.Budget) (map[string]any, error) {
	params := make(map[string]any, len(r.Parameters)+len(r.parametersFrom)+len(given))
	for name, value := range r.Parameters {
		params[name] = value
	}
	for name, program := range r.parametersFrom {
		value, err := program.Eval(budget, who.Values())
		if err != nil {
			return nil, refuse(reasonParameter, "parameters_from.%s: %v", name, err)
		}
		params[name] = value
	}
	for name, value := range given {
		if !slices.Contains(r.AllowedParameters, name) {
			text := fmt.Sprintf("parameters.%s: the role does not allow a request to set it", name)
			return nil, &refusal{reason: reasonParameter, text: text, detail: text}
		}
		if value == nil { // null would remove the role's value and so select the target's own default
			text := fmt.Sprintf("parameters.%s: null is refused; leave the parameter out", name)
			return nil, &refusal{reason: reasonParameter, text: text, detail: text}
		}
		params[name] = value
	}
	return params, nil
}

// leasePaths is the grammar of the path after creds/<role>, which becomes part of lease ids and of ACL paths.
var leasePaths = regexp.MustCompile(`\A[A-Za-z0-9._@:~-]+(/[A-Za-z0-9._@:~-]+)*\z`)

const maxLeasePath = 256

// wantedPath returns the path that this subject's requests must have after creds/<role>; "" if the role has no lease_path.
func (r *role) wantedPath(who *subject, budget *expr.Budget) (string, error) {
	if r.leasePath == nil {
		return "", nil
	}
	value, err := r.leasePath.Eval(budget, who.Values())
	if err != nil {
		return "", refuse(reasonLeasePath, "lease_path: %v", err)
	}
	path := value.(string)
	if !leasePaths.MatchString(path) || len(path) > maxLeasePath || slices.Contains(strings.Split(path, "/"), ".") || strings.Contains(path, "..") {
		return "", refuse(reasonLeasePath, "lease_path must yield at most %d bytes of segments of letters, digits and ._@:~- separated by /", maxLeasePath)
	}
	return path, nil
}

func checkLeasePath(r *role, who *subject, got string, budget *expr.Budget) error {
	want, err := r.wantedPath(who, budget)
	if err != nil || got == want {
		return err
	}
	path := "creds/" + r.name
	if want != "" {
		path += "/" + want
	}
	text := fmt.Sprintf("lease_path: request <mount>/%s", path)
	return &refusal{reason: reasonLeasePath, text: text, detail: "the request's path differs from what the role's lease_path yields"}
}
