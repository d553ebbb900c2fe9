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

const renewalPrefix = "renewal/" // of a key's id among locks

// extend moves the key's own end past the lease's latest end, if it comes before that and the target can. The ledger
// learns of it first: a key whose recorded end has long passed counts as dead, so if the answer is lost the later end must stand.
// A target that moves no end is asked each time whether the key lives; one that moves it only where that is needed.
func (b *engine) extend(ctx context.Context, s logical.Storage, t *openTarget, e *entry, l *lease) error {
	switch {
	case !t.Caps().Renew:
		return nil
	case t.RenewAsks():
		return b.stillActive(ctx, s, t, e, l)
	case l.ExpiresAt.IsZero() || l.ExpiresAt.After(l.LastEnd):
		return nil
	}
	release, ok := b.nameLocks.try(renewalPrefix + e.ID) // another one may move the end that this one would take back
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
	case target.MayLive(err): // and perhaps longer
		return err
	}
	return errors.Join(err, b.setExpiry(ctx, s, e.ID, before))
}

// stillActive asks the target whether the key lives, and until when. One that it calls inactive is not renewed, and is owed
// from then on: the answer may only mean that the target does not tell us.
func (b *engine) stillActive(ctx context.Context, s logical.Storage, t *openTarget, e *entry, l *lease) error {
	end, err := t.Renew(ctx, l.Handle, l.LastEnd)
	switch {
	case errors.Is(err, target.ErrInactive):
		if _, owed := b.ensureDebt(context.WithoutCancel(ctx), s, *l); !owed {
			return storageError(fmt.Errorf("recording that key %q is no longer active", l.ID))
		}
		return refuse(reasonTrustChanged, "the target says that key %q is no longer active", l.ID)
	case errors.Is(err, target.ErrUnknown): // a question changes nothing
		return &refusal{reason: reasonTargetBusy, detail: err.Error(), cause: err}
	case err != nil || end.IsZero() || end.Equal(l.ExpiresAt):
		return err
	}
	l.ExpiresAt = end.UTC()
	return b.setExpiry(ctx, s, e.ID, l.ExpiresAt)
}

// setExpiry records a key's own end.
func (b *engine) setExpiry(ctx context.Context, s logical.Storage, id string, at time.Time) error {
	return b.updateExpiry(ctx, s, id, func(time.Time) time.Time { return at })
}

// updateExpiry records another end of a key than the one that it has.
func (b *engine) updateExpiry(ctx context.Context, s logical.Storage, id string, other func(time.Time) time.Time) error {
	found, err := b.ledger.update(ctx, s, id, func(e *entry) { e.ExpiresAt = other(e.ExpiresAt).UTC() })
	if err == nil && !found {
		return refuse(reasonTrustChanged, "key %q was revoked meanwhile", id)
	}
	return err
}
