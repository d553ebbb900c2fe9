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
	revokeTimeout = 15 * time.Second // of one revocation; Vault gives it no deadline of its own
	debtPatience  = 5 * time.Minute  // how long Vault is told to try again before the ledger takes a debt over
	keySkew       = time.Minute      // a lease ends this long before its key
	deadAfter     = 2 * time.Hour    // its own end: a key is dead then whatever its target answers, for no clock is ahead by so much
)

func (b *engine) keySecret() *framework.Secret {
	return &framework.Secret{
		Type:   secretType,
		Fields: map[string]*framework.FieldSchema{"api_key": {Type: framework.TypeString, Description: "The API key.", DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}}},
		Renew:  b.renew,
		Revoke: b.revoke,
	}
}

// lease is all that Vault keeps for renew and revoke, so that neither depends on a role or policy that has changed.
type lease struct {
	ID, Role, Target, Trust, Issuer string
	Revocable                       bool
	Handle                          target.Handle
	ExpiresAt                       time.Time // the key's own end; zero = never
	LastEnd                         time.Time // the lease's latest end, fixed at issue
}

// internal returns the lease as texts alone: numbers come back from storage as another type than they went in.
func (l lease) internal() map[string]any {
	handle, err := json.Marshal(l.Handle)
	if err != nil {
		panic(err) // a Handle holds texts and parameters that were decoded from JSON
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

func parseLease(internal map[string]any) (lease, error) {
	text := func(name string) string { s, _ := internal[name].(string); return s }
	if version := text("version"); version != "1" {
		return lease{}, fmt.Errorf("lease has version %q; this plugin knows 1, so run the plugin that wrote it", version)
	}
	l := lease{
		ID: text("id"), Role: text("role"), Target: text("target"), Trust: text("trust"), Issuer: text("issuer"),
		Revocable: text("revocable") == "true",
	}
	if err := decodeJSON([]byte(text("handle")), &l.Handle); err != nil {
		return lease{}, fmt.Errorf("lease has no handle: %w", err)
	}
	for name, to := range map[string]*time.Time{"expires_at": &l.ExpiresAt, "last_end": &l.LastEnd} {
		if text(name) == "" {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, text(name))
		if err != nil {
			return lease{}, fmt.Errorf("lease has no %s: %w", name, err)
		}
		*to = at
	}
	return l, nil
}

// remaining is how long a lease may still run: until its latest end, and never longer than the key.
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

// renew asks again whether the key may be had, and extends the key at its target where it ends before the lease could.
// It never changes the key.
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
	l, err := parseLease(req.Secret.InternalData)
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
		return nil, refuse(reasonTrustChanged, "the ledger does not have key %q as issued", l.ID)
	}
	if err := b.stillTrusted(ctx, req.Storage, r, e); err != nil {
		return nil, err
	}
	if err := b.unblocked(ctx, req.Storage, e); err != nil {
		return nil, err
	}
	// Vault applies the client's increment to what is returned here by itself, so it is MaxTTL that binds it.
	issued := req.Secret.IssueTime
	ttl, warnings, err := framework.CalculateTTL(b.leaseTimes.of(b.System(), b.now()), req.Secret.Increment, r.TTL.duration(), 0, r.MaxTTL.duration(), 0, issued)
	if err != nil {
		return nil, badField("increment", "%v", err)
	}
	if err := b.extend(ctx, req.Storage, t, e, &l); err != nil {
		return nil, err
	}
	left := l.remaining(b.now())
	if left <= 0 {
		return nil, refuse(reasonTrustChanged, "the key or its lease is at its end")
	}
	b.sendKeyEvent(ctx, eventRenewed, e)
	// The whole Secret goes back: Vault keeps what a renewal returns, and revoking needs InternalData.
	resp := &logical.Response{Secret: req.Secret, Warnings: warnings}
	resp.Secret.InternalData = l.internal()
	resp.Secret.InternalData["secret_type"] = secretType
	resp.Secret.TTL = min(ttl, left)
	resp.Secret.MaxTTL = b.now().Sub(issued) + left
	if most := r.MaxTTL.duration(); most > 0 {
		resp.Secret.MaxTTL = min(resp.Secret.MaxTTL, most)
	}
	return resp, nil
}

// stillTrusted judges the recorded claims, and the entity as it now is, by the policy as it now is.
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
			return refuse(reasonTrustChanged, "the entity's alias on the mount of issuer %q is another one now", iss.name)
		}
		id.Caller = who.Caller
	}
	if d := p.compiled.Evaluate(id, expr.NewBudget()); !d.Allowed {
		return refuse(reasonTrustChanged, "trust policy %q no longer accepts the recorded claims: unmet: %v", p.name, d.Unmet())
	}
	return nil
}

// knowsAll refuses to judge by claims that were not recorded with a key: taken for absent, they could satisfy a condition.
func (p *policy) knowsAll(e *entry) error {
	names, whole := p.compiled.Reads()
	if whole && !e.ClaimsWhole {
		return refuse(reasonTrustChanged, "trust policy %q looks at all claims, and not all were recorded with the key", p.name)
	}
	for _, name := range names {
		if !e.recorded(name) {
			return refuse(reasonTrustChanged, "trust policy %q looks at claim %q, which was not recorded with the key", p.name, name)
		}
	}
	return nil
}

// revoke ends a key. Any error makes Vault try again, six times over some minutes; after that Vault would give the lease
// up, so once the debt is older than debtPatience revoke answers success and the ledger keeps the key as a debt.
func (b *engine) revoke(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, revokeTimeout)
	defer cancel()
	l, err := parseLease(req.Secret.InternalData)
	if err != nil {
		return nil, errors.New("the lease's data cannot be read")
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
		b.Logger().Warn("the ledger takes over what Vault could not revoke", "id", l.ID, "target", l.Target)
		return nil, nil
	}
	// In our own words alone: Vault shows the text to operators and keeps it with the lease.
	return nil, fmt.Errorf("key %s at target %q is not revoked yet: %s", l.ID, l.Target, asRefusal(err).reason)
}

// hideClass hides the class of an error: some classes make Vault give a lease up at once.
func (b *engine) hideClass(err error) error {
	if err == nil {
		return nil
	}
	b.Logger().Error("revoking a key", "error", err)
	return errors.New(asRefusal(err).reason)
}

// expose records the end of a lease whose key nobody can end: the ledger shows it until it expires.
func (b *engine) expose(ctx context.Context, s logical.Storage, l lease) error {
	b.Logger().Info("a lease ended; its key lives until it expires", "id", l.ID, "target", l.Target, "expires_at", l.ExpiresAt)
	_, err := b.ledger.update(ctx, s, l.ID, func(e *entry) { e.State = stateExposed })
	return err
}

// revokeAt ends a key at its target, enabled or not, deleted or not. A key whose own expiry has long passed is dead whatever
// its target answers; zero means that it never ends by itself.
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

// knownExpiry is the key's own end: the ledger's, which knows of renewals that the lease has not heard of. Zero = none that has
// passed for sure.
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

// ensureDebt records the debt, or reads since when it stands; owed means that the ledger is sure to know.
func (b *engine) ensureDebt(ctx context.Context, s logical.Storage, l lease) (since time.Time, owed bool) {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	e, err := b.ledger.get(ctx, s, l.ID)
	if err == nil && e == nil {
		e = l.entry(b.now().UTC()) // restored from elsewhere: the lease knows enough
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

// entry is what the lease knows of its key, for a ledger that has lost it.
func (l lease) entry(now time.Time) *entry {
	return &entry{
		ID: l.ID, Name: l.Handle.Name, State: stateIssued, Role: l.Role, Target: l.Target, Trust: l.Trust, Issuer: l.Issuer,
		Accessor: l.Handle.Accessor, Revocable: l.Revocable, NotAfter: now, ExpiresAt: l.ExpiresAt, Handle: l.Handle,
		Claims: map[string]any{}, // not nil, which is a login's: nothing is known of them
	}
}
