// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/trust"
)

// subject is a verified caller and the policy that accepted it.
type subject struct {
	*trust.Identity
	issuer *issuer
	policy *policy
	token  *identity.Token // nil for a login
	raw    string          // the token as presented, for targets that want it
	jti    string          // the token's own id, if it has one
}

// identify verifies the caller and evaluates the role's trust policies in order; the first that accepts decides. With a
// token it evaluates only the policies of token issuers, without one only those of login issuers. A trail, if not nil,
// records every verdict for explain, and then all policies are evaluated.
func (b *engine) identify(ctx context.Context, req *logical.Request, r *role, token string, trail *trail, budget *expr.Budget) (*subject, error) {
	policies, err := b.policiesOf(ctx, req.Storage, r)
	if err != nil {
		return nil, err
	}
	if token == "" {
		return b.identifyLogin(ctx, req, policies, trail, budget)
	}
	return b.identifyToken(ctx, req, r, policies, token, trail, budget)
}

func (b *engine) policiesOf(ctx context.Context, s logical.Storage, r *role) ([]*policy, error) {
	policies := make([]*policy, len(r.Trust))
	for i, name := range r.Trust {
		var err error
		if policies[i], err = b.policy(ctx, s, name); err != nil {
			return nil, err
		}
		if policies[i] == nil { // unexpected: a policy that a role names cannot be deleted
			return nil, storageError(fmt.Errorf("trust policy %q of role %q is missing", name, r.name))
		}
	}
	return policies, nil
}

func (b *engine) identifyToken(ctx context.Context, req *logical.Request, r *role, policies []*policy, token string, trail *trail, budget *expr.Budget) (*subject, error) {
	conf, err := b.config(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	peeked, err := identity.Peek(token, identity.Limits{TokenBytes: conf.MaxTokenBytes, Claims: conf.MaxClaims, Depth: maxDepth})
	if err == nil {
		err = b.notOwn(ctx, req.Storage, peeked.Claimed)
	}
	if err != nil {
		trail.unreadable(err)
		return nil, err
	}
	// Only issuers of the role's policies are considered; the unverified iss of the token picks one of them.
	iss, err := b.issuerOf(ctx, req.Storage, policies, peeked.Claimed)
	if err != nil {
		return nil, err
	}
	var verified *identity.Token
	if policies, err = iss.among(policies); err == nil {
		verified, err = iss.verifier.VerifyPeeked(ctx, peeked)
	}
	trail.asked(iss, err)
	if err != nil {
		return nil, err
	}
	who := &subject{issuer: iss, token: verified, raw: token, Identity: &trust.Identity{
		Kind: trust.Token, Subject: verified.Subject, Claims: verified.Claims, Now: b.now(),
	}}
	if who.jti, err = tokenID(verified.Claims[iss.JTIClaim]); err != nil {
		return nil, err
	}
	readsCaller := r.readsCaller() || slices.ContainsFunc(policies, func(p *policy) bool { return p.compiled.ReadsCaller() })
	if who.Caller, _, err = b.caller(req, readsCaller); err != nil {
		return nil, err
	}
	return who.decide(policies, trail, budget)
}

// tokenID returns the id that makes a token unique; "" if it has none. An unusable id is refused, not ignored: ignoring it
// would weaken the replay check.
func tokenID(claim any) (string, error) {
	id := ""
	switch claim := claim.(type) {
	case nil:
	case string:
		id = claim
	case json.Number:
		id = claim.String()
	default:
		return "", refuse(identity.TokenMalformed, "the claim that jti_claim names is neither a string nor a number")
	}
	if len(id) > maxJTI {
		return "", refuse(identity.TokenMalformed, "the claim that jti_claim names has more than %d bytes", maxJTI)
	}
	return id, nil
}

// issuerOf returns the issuer that a token claims to come from, among the issuers of policies. If the token matches both an
// OpenID provider (by iss) and a SPIFFE trust domain (by sub), the provider wins: a token that names a provider must be
// signed with that provider's keys. There is at most one of each, because iss and trust domain are unique in a mount.
func (b *engine) issuerOf(ctx context.Context, s logical.Storage, policies []*policy, claimed identity.Claimed) (*issuer, error) {
	var iss *issuer
	for _, p := range policies {
		candidate, err := b.issuer(ctx, s, p.Issuer)
		if err != nil {
			return nil, err
		}
		if candidate == nil || !candidate.claimedBy(claimed) {
			continue
		}
		if iss == nil || candidate.Type == issuerOIDC {
			iss = candidate
		}
	}
	if iss == nil {
		return nil, refuse(identity.UnknownIssuer, "the role has no trust policy for the token's issuer")
	}
	return iss, nil
}

// among returns those of policies that are for this issuer. It refuses if there are none, or if the issuer is not usable.
func (i *issuer) among(policies []*policy) ([]*policy, error) {
	var own []*policy
	for _, p := range policies {
		if p.Issuer == i.name {
			own = append(own, p)
		}
	}
	if own == nil {
		return nil, refuse(identity.UnknownIssuer, "the role has no trust policy for issuer %q", i.name)
	}
	return own, i.usable()
}

// usable refuses if the issuer is disabled, or no longer fits config.
func (i *issuer) usable() error {
	if !i.Enabled {
		return refuse(reasonDisabled, "issuer %q is disabled", i.name)
	}
	return i.unfit
}

// identifyLogin evaluates the policies of login issuers, each for the alias that the caller has on that issuer's auth mount.
func (b *engine) identifyLogin(ctx context.Context, req *logical.Request, policies []*policy, trail *trail, budget *expr.Budget) (*subject, error) {
	var (
		caller trust.Caller
		entity *logical.Entity
	)
	var accepted *subject
	best := refuse(reasonTokenRequired, "the role has no trust policy of a login issuer")
	for _, p := range policies {
		iss, err := b.issuer(ctx, req.Storage, p.Issuer)
		if err != nil {
			return nil, err
		}
		if iss == nil || iss.Type != issuerLogin {
			continue
		}
		if entity == nil {
			if req.EntityID == "" {
				return nil, refuse(reasonNoEntity, "the request's Vault token has no entity")
			}
			if caller, entity, err = b.caller(req, true); err != nil {
				return nil, err
			}
		}
		who, err := b.loginSubject(iss, caller, entity)
		trail.asked(iss, err)
		if err == nil {
			who, err = who.decide([]*policy{p}, trail, budget)
		}
		switch {
		case err == nil && trail == nil:
			return who, nil
		case err == nil && accepted == nil:
			accepted, budget = who, expr.NewBudget() // only explain evaluates further policies
		case err != nil && (asRefusal(err).reason == reasonInternal || asRefusal(err).reason == reasonStorage):
			return nil, err
		case err != nil:
			best = further(best, err)
		}
	}
	if accepted != nil {
		trail.judges(accepted)
		return accepted, nil
	}
	return nil, best
}

// further returns the refusal that got further in the checks, which says best what is missing.
func further(a, b error) error {
	order := []string{reasonTokenRequired, reasonDisabled, reasonEgress, reasonNoAlias, trust.NotTrusted}
	if slices.Index(order, asRefusal(b).reason) >= slices.Index(order, asRefusal(a).reason) {
		return b
	}
	return a
}

// loginSubject returns the caller as a subject of a login issuer: the one alias that the entity has on the issuer's mount.
func (b *engine) loginSubject(iss *issuer, caller trust.Caller, entity *logical.Entity) (*subject, error) {
	if err := iss.usable(); err != nil {
		return nil, err
	}
	var (
		found  []*logical.Alias
		mounts []string
	)
	for _, alias := range entity.Aliases {
		mounts = append(mounts, alias.MountAccessor)
		if alias.MountAccessor == iss.MountAccessor {
			found = append(found, alias)
		}
	}
	if len(found) != 1 {
		// With several aliases on one mount, it is not known which one logged in. With none, the accessor may be misspelt: Vault
		// tells no plugin which mounts there are.
		return nil, refuse(reasonNoAlias, "entity %q has %d aliases on an auth mount with the accessor of issuer %q, %q; want one. The accessors of its aliases: %q",
			entity.ID, len(found), iss.name, iss.MountAccessor, mounts)
	}
	alias := &trust.Alias{Name: found[0].Name, CustomMetadata: found[0].CustomMetadata, Metadata: map[string]string{}}
	for _, key := range iss.StableMetadata {
		// Other metadata is that of the alias's last login, which may not be the login of this Vault token.
		if value, ok := found[0].Metadata[key]; ok {
			alias.Metadata[key] = value
		}
	}
	caller.Alias = alias
	return &subject{issuer: iss, Identity: &trust.Identity{Kind: trust.Login, Subject: alias.Name, Caller: caller, Now: b.now()}}, nil
}

// caller describes the Vault client of the request. With details, it also asks Vault for the client's entity and groups.
func (b *engine) caller(req *logical.Request, details bool) (caller trust.Caller, entity *logical.Entity, err error) {
	caller.DisplayName = req.DisplayName
	if req.Connection != nil {
		caller.RemoteAddress = req.Connection.RemoteAddr
	}
	if req.EntityID != "" && details {
		entity, err = b.describe(&caller, req.EntityID)
	}
	return caller, entity, err
}

// describe adds what Vault knows about an entity to caller.
func (b *engine) describe(caller *trust.Caller, entityID string) (*logical.Entity, error) {
	entity, err := b.entity(entityID)
	if err != nil {
		return nil, err
	}
	groups, err := b.System().GroupsForEntity(entityID)
	if err != nil {
		return nil, refuse(reasonInternal, "reading the groups of entity %q: %v", entityID, err)
	}
	caller.EntityID, caller.EntityName, caller.EntityMetadata = entity.ID, entity.Name, entity.Metadata
	for _, alias := range entity.Aliases {
		caller.Aliases = append(caller.Aliases, alias.Name)
	}
	caller.Groups = []string{}
	for _, group := range groups {
		caller.Groups = append(caller.Groups, group.Name)
	}
	return entity, nil
}

func (b *engine) entity(id string) (*logical.Entity, error) {
	entity, err := b.System().EntityInfo(id)
	switch {
	case err != nil:
		return nil, refuse(reasonInternal, "reading entity %q: %v", id, err)
	case entity == nil || entity.Disabled:
		return nil, refuse(reasonNoEntity, "entity %q does not exist or is disabled", id)
	}
	return entity, nil
}

// decide evaluates policies and records the first that accepts the subject. With a trail, it evaluates all of them.
func (who *subject) decide(policies []*policy, trail *trail, budget *expr.Budget) (*subject, error) {
	trail.judges(who)
	best := refuse(reasonDisabled, "every trust policy that could accept the subject is disabled")
	for _, p := range policies {
		if !p.Enabled {
			trail.add(p, trust.Decision{Reason: reasonDisabled})
			continue
		}
		spent := budget
		if who.policy != nil {
			spent = expr.NewBudget() // only explain evaluates more policies after the first that accepts
		}
		d := p.compiled.Evaluate(who.Identity, spent)
		trail.add(p, d)
		if d.Allowed && who.policy == nil {
			who.policy = p
		}
		if who.policy != nil && trail == nil {
			break
		}
		err := refuse(d.Reason, "trust policy %q: unmet: %v", p.name, d.Unmet())
		if before := asRefusal(best).reason; before == reasonDisabled || before == trust.Audience || d.Reason == trust.CallerMismatch {
			best = err
		}
	}
	if who.policy == nil {
		return nil, best
	}
	return who, nil
}

// record copies claims of the subject into its key's entry, as far as they fit: those that the policy and the role's
// expressions read, so that a renewal can decide again, and those in the issuer's record_claims. It notes absent ones too.
func (who *subject) record(r *role, e *entry) {
	if who.token == nil {
		return
	}
	wanted, whole := who.policy.compiled.Reads()
	for _, program := range r.programs() {
		members, all := program.Members("claims")
		wanted, whole = append(wanted, members...), whole || all
	}
	wanted = append(wanted, who.issuer.RecordClaims...)
	room := maxRecorded // record_claims may have any length
	for _, name := range wanted {
		if _, found := who.Claims[name]; found || len(name) > room || slices.Contains(e.ClaimsAbsent, name) {
			continue
		}
		room -= len(name)
		e.ClaimsAbsent = append(e.ClaimsAbsent, name)
	}
	if whole {
		for name := range who.Claims {
			wanted = append(wanted, name)
		}
	}
	e.Claims, e.ClaimsPartial = pick(who.Claims, wanted, maxRecorded)
	e.ClaimsWhole = len(e.Claims) == len(who.Claims)
}

const (
	maxRecorded = 4 << 10 // bytes of claims kept with one key
	maxJTI      = 256     // bytes of a token's id
)

// pick returns the named claims, in the order of names, as far as their JSON fits into limit bytes. partial reports that
// some did not fit.
func pick(claims map[string]any, names []string, limit int) (picked map[string]any, partial bool) {
	picked = map[string]any{}
	for _, name := range names {
		value, found := claims[name]
		if _, twice := picked[name]; !found || twice {
			continue
		}
		raw, err := json.Marshal(value)
		size := len(name) + len(raw) + len(`"":,`)
		if err != nil || size > limit {
			partial = true
			continue
		}
		limit -= size
		picked[name] = value
	}
	return picked, partial
}
