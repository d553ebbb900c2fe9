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
	issueTimeout   = 30 * time.Second // for one issue, up to the key; Vault itself sets handlers no deadline
	cleanupTimeout = 10 * time.Second // for work that must be done even if the request has ended
	expirySlack    = 5 * time.Minute  // from a lease's latest end to the expiry that its key gets at the target
)

// ask is a request for a key, as the caller wrote it.
type ask struct {
	role, path string
	token      string
	ttl        time.Duration
	parameters map[string]any
}

// issue verifies the caller, decides, and obtains and leases one key. The order matters: the intent is in the ledger
// before the target is called, and the key is in the ledger before it is returned. So a key that lives at a target is
// always in the ledger.
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

// begin makes the first writes: it claims a single-use token and records the intent. release gives the token back.
func (b *engine) begin(ctx context.Context, req *logical.Request, who *subject, e *entry) (release func(context.Context), err error) {
	if release, err = b.replay.claim(ctx, req, who); err != nil {
		return nil, err
	}
	crashpoint("claimed")
	if err := b.ledger.intend(ctx, req.Storage, e); err != nil { // the intent may be stored despite the error
		return nil, b.failed(ctx, req.Storage, e, release, err)
	}
	crashpoint("intended")
	return release, nil
}

// ready does what must come between the intent and the exchange: it checks again what may have changed since the
// decision, gets the token to present, and revokes the keys that this one replaces. An error means that the target was not
// asked for a key.
func (b *engine) ready(ctx context.Context, s logical.Storage, o *order, replaced []*held) (token string, err error) {
	// The target may have been deleted or disabled meanwhile. From here on the intent prevents its deletion.
	now, _, err := b.open(ctx, s, o.role.name)
	if err == nil && now.Target != o.role.Target {
		err = refuse(reasonTargetBusy, "role %q has another target now", now.name)
	}
	if err == nil {
		err = b.unchanged(ctx, s, o.who)
	}
	if err == nil { // a revocation writes its block before it scans: either its scan meets this intent, or this meets the block
		err = b.unblocked(ctx, s, o.draft)
	}
	if err == nil {
		token, err = b.present(ctx, o)
	}
	if err == nil { // last, because it cannot be undone
		err = b.replace(ctx, s, o, replaced)
	}
	if err != nil {
		b.ledger.keep(replaced)
	}
	return token, err
}

// unchanged refuses a subject if, since it was judged, its issuer or policy was disabled or deleted, its issuer's rules were
// changed, or its policy was changed and no longer accepts it. Verifying may have waited a long time for the issuer's keys,
// and the change may have withdrawn just those keys.
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

// replace revokes the keys that the new key replaces. Their leases run out later; revoking those then finds nothing to do.
func (b *engine) replace(ctx context.Context, s logical.Storage, o *order, replaced []*held) error {
	for _, h := range replaced {
		e, err := b.ledger.filed(ctx, s, h.id)
		if err == nil && e == nil { // already ended
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
			return refuse(reasonTargetBusy, "revoking key %q, which the new key replaces: %v", h.id, err)
		}
		b.Logger().Info("revoked a key for a newer one", "id", h.id, "role", o.role.name, "target", o.role.Target)
		o.warnings = append(o.warnings, fmt.Sprintf("key %s was revoked to keep the role within its ceiling", h.id))
	}
	return nil
}

// open returns a role and its target. It refuses if either is missing or disabled, or if the target does not allow the role.
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

// intent makes the ledger entry for the key that is about to be requested.
func (b *engine) intent(ctx context.Context, req *logical.Request, o *order) (*entry, error) {
	conf, err := b.configWithInstance(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	now := b.now().UTC()
	notAfter := now.Add(o.max + expirySlack)
	until := notAfter
	if !o.target.Caps().Revoke {
		notAfter = now.Add(o.target.Lifetime()) // only its own expiry ends it
		until = notAfter.Add(clockAhead)
	}
	e := &entry{
		ID: newID(until), Role: o.role.name, LeasePath: o.path, Target: o.role.Target,
		Issuer: o.who.issuer.name, Subject: o.who.Subject, Trust: o.who.policy.name, Revision: o.who.policy.Revision,
		Entity: req.EntityID, DisplayName: o.who.Caller.DisplayName, RemoteAddress: o.who.Caller.RemoteAddress,
		JTI: o.who.jti, Revocable: o.target.Caps().Revoke, IssuedAt: now, NotAfter: notAfter, RequestID: req.ID,
	}
	o.who.record(o.role, e)
	e.Name = leasedName + conf.Instance + "-" + e.rand()
	e.Handle = target.Handle{Name: e.Name, Params: o.params}
	return e, nil
}

// request makes the target's request of an order and its intent. token is the subject token to present, if any.
func (o *order) request(e *entry, token string) target.Request {
	subject := map[string]any{"issuer": o.who.issuer.id(), "subject": o.who.Subject}
	for _, name := range o.target.SubjectClaims() {
		if value, ok := o.who.Claims[name]; ok {
			subject[name] = value
		}
	}
	notAfter := e.NotAfter
	if life := o.target.Lifetime(); life > 0 && notAfter.After(e.IssuedAt.Add(life)) { // the ledger shows a lost key for only that long
		notAfter = e.IssuedAt.Add(life)
	}
	return target.Request{Name: e.Name, Params: o.params, Subject: subject, SubjectToken: token, NotAfter: notAfter, TTL: o.ttl}
}

// failed cleans up after an exchange that returned no key: it removes the intent and releases the token. If the target may
// have made a key anyway, it keeps both: the sweeper settles the intent, and the token stays used. It returns err.
func (b *engine) failed(ctx context.Context, s logical.Storage, e *entry, release func(context.Context), err error) error {
	if r := (*refusal)(nil); !errors.As(err, &r) && target.MayLive(err) {
		b.Logger().Warn("outcome of an exchange is unknown", "id", e.ID, "target", e.Target, "role", e.Role, "request_id", e.RequestID)
		b.keepEnd(ctx, s, e, err)
		return err
	}
	release(ctx)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
	defer cancel()
	if settleErr := b.ledger.void(ctx, s, e.rand()); settleErr != nil {
		b.Logger().Error("removing an intent that yielded no key; the sweeper will remove it", "id", e.ID, "error", settleErr)
	}
	return err
}

// keepEnd records with an intent when the key that may live ends by itself, if the target has told.
func (b *engine) keepEnd(ctx context.Context, s logical.Storage, e *entry, err error) {
	var told *target.Error
	if !errors.As(err, &told) || told.KeyEnd.IsZero() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
	defer cancel()
	e.ExpiresAt = told.KeyEnd
	if err := b.ledger.intend(ctx, s, e); err != nil {
		b.Logger().Error("recording when a key that may live ends; without that it is shown for its target's lifetime", "id", e.ID, "error", err)
	}
}

// issued records the new key and then removes its intent. The order matters: an intent beside a filed key tells the
// sweeper that the key was never delivered. If either write fails, the key is revoked at once; if that fails too, the
// sweeper revokes it.
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

// refile changes the id of a key that only its own expiry ends, so that it is filed under the hour of that expiry. The intent
// is rewritten first, because the sweeper finds the filed key by the id in the intent.
func (b *engine) refile(ctx context.Context, s logical.Storage, t *openTarget, e *entry) error {
	if e.ExpiresAt.IsZero() {
		e.ExpiresAt = e.IssuedAt.Add(t.Lifetime())
	}
	id := e.ID
	if e.fileByExpiry(); e.ID == id {
		return nil
	}
	return b.ledger.intend(ctx, s, e)
}

// undo revokes a key that cannot be delivered. If that fails, the sweeper finds it by its intent or, if the key was filed
// and the intent removed (filed is true), by a debt.
func (b *engine) undo(ctx context.Context, s logical.Storage, t *openTarget, e *entry, filed bool) {
	if !e.Revocable {
		return // it stays in the ledger until it expires
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
	b.Logger().Error("revoking a key that could not be delivered; the sweeper will retry", "id", e.ID, "target", e.Target, "error", err)
	if filed {
		e.DebtSince, e.NextTry = b.now().UTC(), b.now().UTC()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
		defer cancel()
		if err := b.recordDebt(ctx, s, e); err != nil {
			b.Logger().Error("recording a debt", "id", e.ID, "error", err)
		}
	}
}

// leased makes the response with the key and a lease that never outlives it. If the caller has left, or the key would
// expire at once, it revokes the key and refuses.
func (b *engine) leased(ctx context.Context, s logical.Storage, o *order, e *entry, key target.Key) (*logical.Response, error) {
	now := b.now()
	l := lease{
		ID: e.ID, Role: e.Role, Target: e.Target, Trust: e.Trust, Issuer: e.Issuer, Revocable: e.Revocable,
		Handle: key.Handle, ExpiresAt: e.ExpiresAt, LastEnd: now.Add(o.max),
	}
	switch {
	case ctx.Err() != nil: // Vault makes no lease for a caller who has left, so nothing would end the key
		b.undo(ctx, s, o.target, e, true)
		return nil, refuse(reasonOutcomeUnknown, "the request ended before its key could be delivered")
	case l.remaining(now) < time.Second: // Vault reads a TTL of 0 as the mount's default
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
		resp.AddWarning(fmt.Sprintf("the key expires at %s, so its lease is shorter than requested", e.ExpiresAt.Format(time.RFC3339)))
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
