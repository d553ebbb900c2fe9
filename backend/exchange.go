// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

const (
	issueTimeout   = 30 * time.Second // of an issue up to the key; Vault gives a handler no deadline of its own
	cleanupTimeout = 10 * time.Second // of what must be done although the request has ended
	expirySlack    = 5 * time.Minute  // a key's own end at its target comes this long after its lease's latest end
)

// ask is what a request for a key says.
type ask struct {
	role, path string
	token      string
	ttl        time.Duration
	parameters map[string]any
}

// issue is the way of one key, in this order: nothing reaches a target before the ledger knows, and nothing is issued
// that the ledger does not know.
func (b *engine) issue(ctx context.Context, req *logical.Request, a ask) (*logical.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	budget := expr.NewBudget()

	r, t, err := b.open(ctx, req.Storage, a.role)
	if err != nil {
		return nil, err
	}
	who, err := b.identify(ctx, req, r, a.token, nil, budget)
	if err != nil {
		return nil, err
	}
	o, err := b.order(ctx, req, r, t, who, a, budget)
	if err != nil {
		return nil, err
	}
	crashpoint("decided")
	e, err := b.intent(ctx, req, o)
	if err != nil {
		return nil, err
	}
	replaced, err := b.ledger.admit(e, r.ceilings())
	if err != nil {
		return nil, err
	}
	defer b.ledger.land(e)
	release, err := b.begin(ctx, req, who, e)
	if err != nil {
		b.ledger.withdraw(e, replaced)
		return nil, err
	}
	token, err := b.ready(ctx, req.Storage, o, replaced)
	if err != nil {
		return nil, b.failed(ctx, req.Storage, e, release, err)
	}
	key, err := t.Exchange(ctx, o.request(e, token))
	crashpoint("exchanged")
	if err != nil {
		return nil, b.failed(ctx, req.Storage, e, release, err)
	}
	if err := b.issued(ctx, req.Storage, t, e, key); err != nil {
		return nil, err
	}
	return b.leased(ctx, req.Storage, o, e, key)
}

// begin makes the first writes: the token is used, and the ledger knows what is about to be asked for. release gives the
// token back.
func (b *engine) begin(ctx context.Context, req *logical.Request, who *subject, e *entry) (release func(context.Context), err error) {
	if release, err = b.replay.claim(ctx, req, who); err != nil {
		return nil, err
	}
	crashpoint("claimed")
	if err := b.ledger.intend(ctx, req.Storage, e); err != nil { // it may have been written all the same
		return nil, b.failed(ctx, req.Storage, e, release, err)
	}
	crashpoint("intended")
	return release, nil
}

// ready does what must come between the intent and the exchange. An error means that no key was asked for.
func (b *engine) ready(ctx context.Context, s logical.Storage, o *order, replaced []*held) (token string, err error) {
	// A target that was deleted or switched off meanwhile is not asked; from here on the intent keeps it.
	now, _, err := b.open(ctx, s, o.role.name)
	if err == nil && now.Target != o.role.Target {
		err = refuse(reasonTargetBusy, "role %q has another target now", now.name)
	}
	if err == nil {
		err = b.unchanged(ctx, s, o.who)
	}
	if err == nil { // a revocation blocks before it looks for keys: it meets the intent, or this meets the block
		err = b.unblocked(ctx, s, o.draft)
	}
	if err == nil {
		token, err = b.present(ctx, o)
	}
	if err == nil { // last, for it cannot be taken back
		err = b.replace(ctx, s, o, replaced)
	}
	if err != nil {
		b.ledger.keep(replaced)
	}
	return token, err
}

// unchanged refuses a subject whose issuer or policy was switched off since it was judged, or whose issuer verifies by other
// rules now, or whose policy was changed and does not accept it any more: verifying may have waited long for the issuer's keys,
// and those may be what the change took away.
func (b *engine) unchanged(ctx context.Context, s logical.Storage, who *subject) error {
	p, err := b.policy(ctx, s, who.policy.name)
	if err != nil {
		return err
	}
	iss, err := b.issuer(ctx, s, who.issuer.name)
	switch {
	case err != nil:
		return err
	case iss == nil || p == nil:
		return refuse(reasonTrustChanged, "trust policy %q or its issuer was deleted meanwhile", who.policy.name)
	case iss.usable() != nil:
		return iss.usable()
	case iss != who.issuer && !reflect.DeepEqual(iss.rules(), who.issuer.rules()):
		return refuse(reasonTrustChanged, "issuer %q was changed meanwhile", iss.name)
	case !p.Enabled:
		return refuse(reasonDisabled, "trust policy %q is disabled", p.name)
	case p.Revision != who.policy.Revision && (p.Issuer != iss.name || !p.compiled.Evaluate(who.Identity, expr.NewBudget()).Allowed):
		return refuse(reasonTrustChanged, "trust policy %q was changed meanwhile and does not accept the subject any more", p.name)
	}
	return nil
}

// replace revokes the keys whose place the new one takes. Their leases end by themselves, harmlessly.
func (b *engine) replace(ctx context.Context, s logical.Storage, o *order, replaced []*held) error {
	for _, h := range replaced {
		e, err := b.ledger.filed(ctx, s, h.id)
		if err == nil && e == nil { // it has ended already
			b.ledger.remove(h.rand())
			continue
		}
		if err == nil {
			err = b.revokeAt(ctx, s, e.Target, e.Handle, e.ExpiresAt)
		}
		if err == nil {
			err = b.recordRevoked(ctx, s, e)
		}
		if err != nil {
			return refuse(reasonTargetBusy, "revoking key %q, whose place the new one takes: %v", h.id, err)
		}
		b.Logger().Info("revoked a key for a newer one", "id", h.id, "role", o.role.name, "target", o.role.Target)
		o.warnings = append(o.warnings, fmt.Sprintf("key %s was revoked: with it the role's ceiling would have been passed", h.id))
	}
	return nil
}

// open returns a role and its target, both enabled and meant for each other.
func (b *engine) open(ctx context.Context, s logical.Storage, name string) (*role, *openTarget, error) {
	r, err := b.role(ctx, s, name)
	if err != nil {
		return nil, nil, err
	}
	if r == nil {
		return nil, nil, refuse(reasonUnknownRole, "there is no role %q", name)
	}
	t, err := b.target(ctx, s, r.Target)
	switch {
	case err != nil:
		return nil, nil, err
	case t == nil || t.record.DeletedUntil != nil:
		return nil, nil, storageError(fmt.Errorf("target %q of role %q is missing", r.Target, name))
	case !r.Enabled:
		return nil, nil, refuse(reasonDisabled, "role %q is disabled", name)
	case !t.record.Enabled:
		return nil, nil, refuse(reasonDisabled, "target %q is disabled", r.Target)
	case !t.allows(name):
		return nil, nil, refuse(reasonRoleNotAllowed, "target %q does not list role %q", r.Target, name)
	case r.RequireRevocable && !t.Caps().Revoke:
		return nil, nil, refuse(reasonNotRevocable, "target %q cannot revoke", r.Target)
	}
	return r, t, nil
}

// intent is the ledger's entry for the key that is about to be asked for.
func (b *engine) intent(ctx context.Context, req *logical.Request, o *order) (*entry, error) {
	conf, err := b.configWithInstance(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	now := b.now().UTC()
	notAfter := now.Add(o.max + expirySlack)
	if !o.target.Caps().Revoke {
		notAfter = now.Add(o.target.Lifetime()) // nothing but its own expiry ends it
	}
	e := &entry{
		ID: newID(notAfter), Role: o.role.name, LeasePath: o.path, Target: o.role.Target,
		Issuer: o.who.issuer.name, Subject: o.who.Subject, Trust: o.who.policy.name, Revision: o.who.policy.Revision,
		Entity: req.EntityID, DisplayName: o.who.Caller.DisplayName, RemoteAddress: o.who.Caller.RemoteAddress,
		JTI: o.who.jti, Revocable: o.target.Caps().Revoke, IssuedAt: now, NotAfter: notAfter, RequestID: req.ID,
	}
	o.who.record(o.role, e)
	e.Name = leasedName + conf.Instance + "-" + e.rand()
	e.Handle = target.Handle{Name: e.Name, Params: o.params}
	return e, nil
}

func (o *order) request(e *entry, token string) target.Request {
	subject := map[string]any{"issuer": o.who.issuer.id(), "subject": o.who.Subject}
	for _, name := range o.target.SubjectClaims() {
		if value, ok := o.who.Claims[name]; ok {
			subject[name] = value
		}
	}
	notAfter := e.NotAfter
	if life := o.target.Lifetime(); life > 0 && notAfter.After(e.IssuedAt.Add(life)) { // for so long the ledger shows a lost key
		notAfter = e.IssuedAt.Add(life)
	}
	return target.Request{Name: e.Name, Params: o.params, Subject: subject, SubjectToken: token, NotAfter: notAfter, TTL: o.ttl}
}

// failed ends an exchange that yielded no key. If the target may have made one all the same, the intent stays for the
// sweeper and the token stays used.
func (b *engine) failed(ctx context.Context, s logical.Storage, e *entry, release func(context.Context), err error) error {
	if r := (*refusal)(nil); !errors.As(err, &r) && target.MayLive(err) {
		b.Logger().Warn("outcome of an exchange is unknown", "id", e.ID, "target", e.Target, "role", e.Role, "request_id", e.RequestID)
		return err
	}
	release(ctx)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
	defer cancel()
	if settleErr := b.ledger.void(ctx, s, e.rand()); settleErr != nil {
		b.Logger().Error("an intent without a key stays for the sweeper", "id", e.ID, "error", settleErr)
	}
	return err
}

// issued records a key that now lives and ends its intent, in this order: an intent that is still there although its key
// is filed tells the sweeper that the answer was never sent. If either cannot be written, or nobody waits for the key any
// more, the key is revoked at once; if that fails too, the sweeper does it.
func (b *engine) issued(ctx context.Context, s logical.Storage, t *openTarget, e *entry, key target.Key) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	e.ExpiresAt = key.Expiry.UTC()
	if !e.Revocable {
		if err := b.refile(ctx, s, t, e); err != nil {
			return err
		}
	}
	e.State, e.Accessor, e.Handle = stateIssued, key.Accessor, key.Handle
	if err := b.ledger.file(ctx, s, e); err != nil {
		b.undo(ctx, s, t, e, false)
		return err
	}
	crashpoint("issued")
	if err := b.ledger.settle(ctx, s, e.rand()); err != nil {
		b.undo(ctx, s, t, e, true)
		return err
	}
	return nil
}

// refile gives a key that nothing but its own expiry ends the id of that hour. The intent must bear it first: by its id the
// sweeper finds what was filed.
func (b *engine) refile(ctx context.Context, s logical.Storage, t *openTarget, e *entry) error {
	if e.ExpiresAt.IsZero() {
		e.ExpiresAt = e.IssuedAt.Add(t.Lifetime())
	}
	e.NotAfter = e.ExpiresAt
	id := hourOf(e.NotAfter) + "-" + e.rand()
	if id == e.ID {
		return nil
	}
	e.ID = id
	return b.ledger.intend(ctx, s, e)
}

// undo revokes a key that was made and cannot be delivered. If that fails, what is open is left for the sweeper: the
// intent, or a debt if the key was filed.
func (b *engine) undo(ctx context.Context, s logical.Storage, t *openTarget, e *entry, filed bool) {
	if !e.Revocable {
		return // the ledger shows it until it expires
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	err := t.Revoke(ctx, e.Handle)
	if err == nil {
		err = b.recordRevoked(ctx, s, e)
	}
	if err == nil {
		return
	}
	b.Logger().Error("a key that was not delivered stays for the sweeper", "id", e.ID, "target", e.Target, "error", err)
	if filed {
		e.DebtSince, e.NextTry = b.now().UTC(), b.now().UTC()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
		defer cancel()
		if err := b.recordDebt(ctx, s, e); err != nil {
			b.Logger().Error("recording a debt", "id", e.ID, "error", err)
		}
	}
}

// leased makes the response. Its lease never outlives the key.
func (b *engine) leased(ctx context.Context, s logical.Storage, o *order, e *entry, key target.Key) (*logical.Response, error) {
	now := b.now()
	l := lease{
		ID: e.ID, Role: e.Role, Target: e.Target, Trust: e.Trust, Issuer: e.Issuer, Revocable: e.Revocable,
		Handle: key.Handle, ExpiresAt: e.ExpiresAt, LastEnd: now.Add(o.max),
	}
	switch {
	case ctx.Err() != nil: // Vault gives no lease to a caller who has left, so the key must not live
		b.undo(ctx, s, o.target, e, true)
		return nil, refuse(reasonOutcomeUnknown, "the request ended before its key could be delivered")
	case l.remaining(now) < time.Second: // Vault would take no time for its default
		b.undo(ctx, s, o.target, e, true)
		return nil, refuse(reasonTargetProtocol, "the key's expiry leaves no time for a lease")
	}
	data := map[string]any{
		"api_key": key.Secret, "id": e.ID, "accessor": key.Accessor, "expires_at": timeOrNil(e.ExpiresAt), "revocable": e.Revocable,
		"header_name": o.target.HeaderName(), "target": e.Target, "issuer": e.Issuer, "subject": e.Subject, "trust": e.Trust,
	}
	if key.Header != "" {
		data["header_value"] = key.Header
	}
	for name, value := range key.Fields {
		data[name] = value
	}
	b.meters.issued.WithLabelValues(e.Target).Inc()
	b.sendKeyEvent(ctx, eventIssued, e)
	resp := b.Secret(secretType).Response(data, l.internal())
	resp.Warnings = o.warnings
	resp.Secret.TTL = min(o.ttl, l.remaining(now))
	resp.Secret.MaxTTL = o.max
	resp.Secret.Renewable = l.renewable(o.target)
	if !resp.Secret.Renewable {
		resp.Secret.MaxTTL = min(o.max, l.remaining(now))
	}
	if resp.Secret.TTL < o.ttl {
		resp.AddWarning(fmt.Sprintf("the key ends at %s, so the lease is shorter than asked", e.ExpiresAt.Format(time.RFC3339)))
	}
	if !e.Revocable {
		resp.AddWarning("the target cannot revoke keys: this key lives until it expires, whatever becomes of its lease")
	}
	return resp, nil
}

func timeOrNil(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC().Format(time.RFC3339)
}
