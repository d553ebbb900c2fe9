// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

const renewalPrefix = "renewal/" // precedes a key's id in nameLocks

// extend moves the key's own expiry past the lease's latest end, where that is needed and the target can. The ledger gets
// the later expiry first: a key long past its recorded expiry counts as dead, so if the target's answer is lost, the later
// one must be recorded. Of targets that cannot move an expiry but can tell whether a key is active, every renewal asks that.
func (b *engine) extend(ctx context.Context, s logical.Storage, t *openTarget, e *entry, l *lease) error {
	switch {
	case !t.Caps().Renew:
		return nil
	case t.RenewAsks():
		return b.stillActive(ctx, s, t, e, l)
	case l.ExpiresAt.IsZero() || l.ExpiresAt.After(l.LastEnd):
		return nil
	}
	release, ok := b.nameLocks.try(renewalPrefix + e.ID) // else, on a failure, this renewal could undo another's later expiry
	if !ok {
		return refuse(reasonTargetBusy, "key %q is being renewed", e.ID)
	}
	defer release()
	var before time.Time
	until := l.LastEnd.Add(expirySlack)
	err := b.updateExpiry(ctx, s, e.ID, func(at time.Time) time.Time { before = at; return until })
	if err != nil {
		return err
	}
	got, err := t.Renew(ctx, l.Handle, until)
	switch {
	case err == nil:
		l.ExpiresAt = got.UTC()
		return b.setExpiry(ctx, s, e.ID, l.ExpiresAt)
	case target.MayLive(err): // the target may have moved the expiry, so the later one stays recorded
		return err
	}
	return errors.Join(err, b.setExpiry(ctx, s, e.ID, before))
}

// stillActive asks the target whether the key is active, and until when. A key that it calls inactive is not renewed and
// becomes a debt: the answer may only mean that the target does not tell us (RFC 7662, section 2.2), so it is revoked too.
func (b *engine) stillActive(ctx context.Context, s logical.Storage, t *openTarget, e *entry, l *lease) error {
	end, err := t.Renew(ctx, l.Handle, l.LastEnd)
	switch {
	case errors.Is(err, target.ErrInactive):
		if _, owed := b.ensureDebt(context.WithoutCancel(ctx), s, *l); !owed {
			return storageError(fmt.Errorf("recording that key %q is no longer active", l.ID))
		}
		return refuse(reasonTrustChanged, "the target reports that key %q is no longer active", l.ID)
	case err != nil || end.IsZero() || end.Equal(l.ExpiresAt):
		return asked(err)
	}
	l.ExpiresAt = end.UTC()
	return b.setExpiry(ctx, s, e.ID, l.ExpiresAt)
}

// setExpiry records a key's own expiry.
func (b *engine) setExpiry(ctx context.Context, s logical.Storage, id string, at time.Time) error {
	return b.updateExpiry(ctx, s, id, func(time.Time) time.Time { return at })
}

// updateExpiry records a key's own expiry, computed from the recorded one. It refuses if the key was revoked meanwhile.
func (b *engine) updateExpiry(ctx context.Context, s logical.Storage, id string, other func(time.Time) time.Time) error {
	found, err := b.ledger.update(ctx, s, id, func(e *entry) { e.ExpiresAt = other(e.ExpiresAt).UTC() })
	if err == nil && !found {
		return refuse(reasonTrustChanged, "key %q was revoked meanwhile", id)
	}
	return err
}
