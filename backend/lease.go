// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/trust"
)

const (
	secretType    = "oidcexchange_key"
	revokeTimeout = 15 * time.Second // for one revocation; Vault itself sets no deadline
	debtPatience  = 5 * time.Minute  // how long Vault is asked to retry before the ledger takes over
	keySkew       = time.Minute      // a lease ends this long before its key
	deadAfter     = 2 * time.Hour    // after its expiry a key counts as dead whatever its target answers: no clock is off by that much
)

func (b *engine) keySecret() *framework.Secret {
	return &framework.Secret{
		Type:   secretType,
		Fields: map[string]*framework.FieldSchema{"api_key": {Type: framework.TypeString, Description: "The API key.", DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}}},
		Renew:  b.renew,
		Revoke: b.revoke,
	}
}

// lease is the data that Vault keeps with a lease. It has all that renew and revoke need to find the key, so that neither
// fails because a role or policy was changed or deleted.
type lease struct {
	ID, Role, Target, Trust, Issuer string
	Revocable                       bool
	Handle                          target.Handle
	ExpiresAt                       time.Time // the key's own expiry; zero = never
	LastEnd                         time.Time // the latest time to which the lease can be renewed, fixed at issue
	IssuedAt                        time.Time // when Vault registered the lease, which Vault itself keeps; zero = not yet
}

// internal encodes the lease as strings only, because Vault returns numbers with a different type than was stored.
func (l lease) internal() map[string]any {
	handle, err := json.Marshal(l.Handle)
	if err != nil {
		panic(err) // impossible: a Handle has only strings, and parameters that were decoded from JSON
	}
	return map[string]any{
		"version": "1", "id": l.ID, "role": l.Role, "target": l.Target, "trust": l.Trust, "issuer": l.Issuer,
		"revocable": fmt.Sprint(l.Revocable), "handle": string(handle),
		"expires_at": formatTime(l.ExpiresAt), "last_end": formatTime(l.LastEnd),
	}
}

func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func parseLease(secret *logical.Secret) (lease, error) {
	text := func(name string) string { s, _ := secret.InternalData[name].(string); return s }
	if version := text("version"); version != "1" {
		return lease{}, fmt.Errorf("lease has version %q; this plugin knows 1, so run the plugin that wrote it", version)
	}
	l := lease{
		ID: text("id"), Role: text("role"), Target: text("target"), Trust: text("trust"), Issuer: text("issuer"),
		Revocable: text("revocable") == "true", IssuedAt: secret.IssueTime.UTC(),
	}
	if err := decodeJSON([]byte(text("handle")), &l.Handle); err != nil {
		return lease{}, fmt.Errorf("decoding the lease's handle: %w", err)
	}
	for name, to := range map[string]*time.Time{"expires_at": &l.ExpiresAt, "last_end": &l.LastEnd} {
		if text(name) == "" {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, text(name))
		if err != nil {
			return lease{}, fmt.Errorf("decoding the lease's %s: %w", name, err)
		}
		*to = at
	}
	return l, nil
}

// remaining returns how long the lease may still run: until its latest end, and never longer than the key.
func (l lease) remaining(now time.Time) time.Duration {
	left := l.LastEnd.Sub(now)
	if l.ExpiresAt.IsZero() {
		return max(left, 0)
	}
	own := l.ExpiresAt.Sub(now)
	own -= min(keySkew, own/10)
	return max(min(left, own), 0)
}

// renewable reports whether a renewal can ever give the lease more time than it has.
func (l lease) renewable(t *openTarget) bool {
	return l.Revocable && (l.ExpiresAt.IsZero() || l.ExpiresAt.After(l.LastEnd) || t.Caps().Renew)
}

// renew decides again, by the current policy and the recorded claims, whether the caller may keep the key. If the key would
// expire before the lease's latest end, it extends the key at the target. It never replaces the key.
func (b *engine) renew(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	resp, err := b.renewed(ctx, req)
	if err != nil {
		return b.respond(req, err)
	}
	return resp, nil
}

func (b *engine) renewed(ctx context.Context, req *logical.Request) (*logical.Response, error) {
	l, err := parseLease(req.Secret)
	if err != nil {
		return nil, err
	}
	r, t, err := b.open(ctx, req.Storage, l.Role)
	if err != nil {
		return nil, err
	}
	if r.Target != l.Target {
		return nil, refuse(reasonTrustChanged, "role %q has another target now", l.Role)
	}
	e, err := b.ledger.get(ctx, req.Storage, l.ID)
	if err != nil {
		return nil, err
	}
	if e == nil || e.State != stateIssued {
		return nil, refuse(reasonTrustChanged, "key %q is not in the ledger as issued: it was revoked, or is about to be", l.ID)
	}
	if err := b.stillTrusted(ctx, req.Storage, r, e); err != nil {
		return nil, err
	}
	if err := b.unblocked(ctx, req.Storage, e); err != nil {
		return nil, err
	}
	// Vault applies the client's increment to the TTL returned here, so only MaxTTL is a hard limit. It also warns of what that
	// cuts off.
	issued := req.Secret.IssueTime
	ttl, _, err := framework.CalculateTTL(b.leaseTimes.of(b.System(), b.now()), req.Secret.Increment, r.TTL.duration(), 0, r.MaxTTL.duration(), 0, issued)
	if err != nil {
		return nil, badField("increment", "%v", err)
	}
	if err := b.extend(ctx, req.Storage, t, e, &l); err != nil {
		return nil, err
	}
	left := l.remaining(b.now())
	if left <= 0 {
		return nil, refuse(reasonTrustChanged, "the key or its lease has reached its end")
	}
	b.sendKeyEvent(ctx, eventRenewed, e)
	// Return the whole Secret: Vault stores what a renewal returns, and revoke needs InternalData.
	resp := &logical.Response{Secret: req.Secret}
	resp.Secret.InternalData = l.internal()
	resp.Secret.InternalData["secret_type"] = secretType
	resp.Secret.TTL = min(ttl, left)
	resp.Secret.MaxTTL = b.now().Sub(issued) + left
	if most := r.MaxTTL.duration(); most > 0 {
		resp.Secret.MaxTTL = min(resp.Secret.MaxTTL, most)
	}
	return resp, nil
}

// stillTrusted refuses unless the role still names the key's trust policy, and that policy, as it is now, accepts the
// recorded claims and the caller's current entity.
func (b *engine) stillTrusted(ctx context.Context, s logical.Storage, r *role, e *entry) error {
	p, err := b.policy(ctx, s, e.Trust)
	if err != nil {
		return err
	}
	if p == nil {
		return refuse(reasonTrustChanged, "trust policy %q was deleted", e.Trust)
	}
	iss, err := b.issuer(ctx, s, p.Issuer)
	switch {
	case err != nil:
		return err
	case iss == nil || p.Issuer != e.Issuer:
		return refuse(reasonTrustChanged, "trust policy %q has another issuer now", e.Trust)
	case iss.usable() != nil:
		return iss.usable()
	case !p.Enabled:
		return refuse(reasonDisabled, "trust policy %q is disabled", p.name)
	}
	for _, name := range r.Trust {
		if name == e.Trust {
			return b.judgeAgain(iss, p, e)
		}
	}
	return refuse(reasonTrustChanged, "role %q no longer names trust policy %q", r.name, e.Trust)
}

// judgeAgain evaluates the policy for the claims that were recorded with the key and for its entity as it is now.
func (b *engine) judgeAgain(iss *issuer, p *policy, e *entry) error {
	if iss.Type != issuerLogin {
		if err := p.knowsAll(e); err != nil {
			return err
		}
	}
	id := &trust.Identity{Kind: identityKind(iss.Type), Subject: e.Subject, Claims: e.Claims, Now: e.IssuedAt,
		Caller: trust.Caller{DisplayName: e.DisplayName, RemoteAddress: e.RemoteAddress}}
	var entity *logical.Entity
	if e.Entity != "" && p.compiled.ReadsCaller() {
		var err error
		if entity, err = b.describe(&id.Caller, e.Entity); err != nil {
			return err
		}
	}
	if iss.Type == issuerLogin {
		if entity == nil {
			return refuse(reasonNoEntity, "no entity was recorded with the key")
		}
		who, err := b.loginSubject(iss, id.Caller, entity)
		if err != nil {
			return err
		}
		if who.Subject != e.Subject {
			return refuse(reasonTrustChanged, "the entity has a different alias on the mount of issuer %q now", iss.name)
		}
		id.Caller = who.Caller
	}
	if d := p.compiled.Evaluate(id, expr.NewBudget()); !d.Allowed {
		return refuse(reasonTrustChanged, "trust policy %q no longer accepts the recorded claims: unmet: %v", p.name, d.Unmet())
	}
	return nil
}

// knowsAll refuses if the policy reads a claim that was not recorded with the key: if treated as absent, it could satisfy a
// condition.
func (p *policy) knowsAll(e *entry) error {
	names, whole := p.compiled.Reads()
	if whole && !e.ClaimsWhole {
		return refuse(reasonTrustChanged, "trust policy %q reads all claims, and not all were recorded with the key", p.name)
	}
	for _, name := range names {
		if !e.recorded(name) {
			return refuse(reasonTrustChanged, "trust policy %q reads claim %q, which was not recorded with the key", p.name, name)
		}
	}
	return nil
}

// revoke ends a key. On an error Vault retries six times over some minutes and then gives the lease up as irrevocable.
// Before that, once the debt is older than debtPatience, revoke reports success and the ledger keeps the key as a debt,
// which the sweeper goes on trying to revoke.
func (b *engine) revoke(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, revokeTimeout)
	defer cancel()
	l, err := parseLease(req.Secret)
	if err != nil {
		return nil, errors.New("the lease's data cannot be decoded")
	}
	if !l.Revocable {
		return nil, b.hideClass(b.expose(ctx, req.Storage, l))
	}
	err = b.revokeAt(ctx, req.Storage, l.Target, l.Handle, b.knownExpiry(ctx, req.Storage, l))
	crashpoint("revoked")
	if err == nil {
		return nil, b.hideClass(b.recordRevoked(ctx, req.Storage, &entry{ID: l.ID, Role: l.Role, Target: l.Target, Handle: l.Handle}))
	}
	b.Logger().Warn("revoking a key", "id", l.ID, "target", l.Target, "error", err)
	since, owed := b.ensureDebt(context.WithoutCancel(ctx), req.Storage, l)
	if owed && b.now().Sub(since) >= debtPatience && !b.System().Tainted() {
		b.Logger().Warn("the lease ends although its key could not be revoked; the sweeper will retry", "id", l.ID, "target", l.Target)
		return nil, nil
	}
	// Nothing from the target's answer: Vault shows this text to operators and stores it with the lease.
	return nil, fmt.Errorf("key %s at target %q is not revoked yet: %s", l.ID, l.Target, asRefusal(err).reason)
}

// hideClass logs an error and returns one without its class, because some classes make Vault give up a lease at once.
func (b *engine) hideClass(err error) error {
	if err == nil {
		return nil
	}
	b.Logger().Error("revoking a key", "error", err)
	return errors.New(asRefusal(err).reason)
}

// expose records that a lease has ended whose key cannot be revoked. The ledger shows the key until it expires.
func (b *engine) expose(ctx context.Context, s logical.Storage, l lease) error {
	b.Logger().Info("a lease ended, but its target cannot revoke; the key stays valid until it expires", "id", l.ID, "target", l.Target, "expires_at", l.ExpiresAt)
	found, err := b.ledger.update(ctx, s, l.ID, func(e *entry) { e.State = stateExposed })
	if err != nil || found {
		return err
	}
	e := l.entry(b.now().UTC())
	e.State = stateExposed
	if e.fileByExpiry(); e.expired(b.now()) {
		return nil
	}
	return b.ledger.file(ctx, s, e) // the ledger has lost it, and the lease knows enough
}

// revokeAt revokes a key at its target, even if that is disabled or deleted. Once a key has been past expiresAt for longer
// than deadAfter, it counts as dead even if revoking fails. A zero expiresAt means that the key never expires.
func (b *engine) revokeAt(ctx context.Context, s logical.Storage, name string, h target.Handle, expiresAt time.Time) error {
	t, err := b.target(ctx, s, name)
	if err == nil && t == nil {
		err = refuse(reasonStorage, "target %q is missing", name)
	}
	if err == nil {
		err = t.Revoke(ctx, h)
	}
	if err != nil && !expiresAt.IsZero() && b.now().After(expiresAt.Add(deadAfter)) {
		return nil
	}
	return err
}

// knownExpiry returns the key's own expiry. If the lease's has passed, the ledger's counts: it knows of renewals whose answer
// did not reach the lease. Zero means that no expiry is known to have passed.
func (b *engine) knownExpiry(ctx context.Context, s logical.Storage, l lease) time.Time {
	if l.ExpiresAt.IsZero() || b.now().Before(l.ExpiresAt) {
		return l.ExpiresAt
	}
	e, err := b.ledger.filed(ctx, s, l.ID)
	switch {
	case err != nil:
		return time.Time{}
	case e != nil:
		return e.ExpiresAt
	}
	return l.ExpiresAt
}

// ensureDebt records that the lease's key is a debt, unless it is one already, and returns since when. owed is false if
// that could not be stored.
func (b *engine) ensureDebt(ctx context.Context, s logical.Storage, l lease) (since time.Time, owed bool) {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	e, err := b.ledger.get(ctx, s, l.ID)
	if err == nil && e == nil {
		e = l.entry(b.now().UTC()) // the ledger was restored from an older snapshot; the lease has enough to rebuild the entry
		err = b.ledger.file(ctx, s, e)
	}
	if err == nil && e.State != stateDebt {
		e.State, e.DebtSince, e.NextTry = stateDebt, b.now().UTC(), b.now().UTC().Add(debtPatience)
		err = b.recordDebt(ctx, s, e)
	}
	if err != nil {
		b.Logger().Error("recording a debt", "id", l.ID, "error", err)
		return time.Time{}, false
	}
	return e.DebtSince, true
}

// entry rebuilds a ledger entry from the lease, for a ledger that has lost it.
func (l lease) entry(now time.Time) *entry {
	return &entry{
		ID: l.ID, Name: l.Handle.Name, State: stateIssued, Role: l.Role, Target: l.Target, Trust: l.Trust, Issuer: l.Issuer,
		Accessor: l.Handle.Accessor, Revocable: l.Revocable, IssuedAt: l.IssuedAt, NotAfter: now, ExpiresAt: l.ExpiresAt, Handle: l.Handle,
		Claims: map[string]any{}, // unknown; nil would mean a login, which has no claims
	}
}
