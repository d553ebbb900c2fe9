// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// Limits of one sweep. Vault allows the periodic function 90 seconds, and holds a lock of its core while it runs.
const (
	sweepTimeout = 30 * time.Second
	sweepEntries = 1000   // open records read in one sweep; the next sweep continues where this one stopped
	sweepForget  = 20_000 // records of used tokens read in one sweep
	maxBackoff   = time.Hour
	clocksApart  = 5 * time.Minute // assumed maximum difference between the clocks of two nodes
)

// swept is what a sweep did.
type swept struct {
	Settled int // intents whose outcome is known now
	Revoked int // keys revoked because no lease holds them, or because they were debts
	Expired int // entries of keys that have expired
}

// sweepReport says when the last sweep ended, and whether it completed without an error.
type sweepReport struct {
	at       time.Time
	complete bool
}

// sweeper is one sweep. A target that does not answer is not called again in the same sweep. If its breaker is open, its
// entries are not put off, so that they are settled as soon as the target is back. Any other entry that fails is put off, each
// time for longer, so that it does not delay the target's other entries.
type sweeper struct {
	*engine
	s      logical.Storage
	grace  time.Duration
	eager  bool            // also try entries that were put off
	down   map[string]bool // targets that did not answer in this sweep
	isOpen map[string]bool // rands of all records in open/
	left   bool            // a passed hour had keys when it was listed
	done   swept
	faults []error
}

// tick is Vault's periodic call, about once a minute on each node that may write.
func (b *engine) tick(ctx context.Context, req *logical.Request) error {
	if b.readsOnly() {
		return nil
	}
	b.rotateSelf(ctx, req)
	b.rotateDue(ctx, req) // before the sweep, which ends the old keys that a rotation leaves to it
	defer b.recovered(req, nil, new(error))
	b.count(req.Storage)
	defer b.resume(req.Storage) // after the sweep, which may have revoked the keys that a revocation waits for
	if !b.sweeps.TryLock() {
		return nil // another sweep is running; waiting for it would hold Vault's lock
	}
	defer b.sweeps.Unlock()
	// A mount that is being disabled gets its last tick: try everything that is open, whatever its age.
	if _, err := b.sweep(ctx, req.Storage, b.System().Tainted()); err != nil {
		b.Logger().Error("sweeping", "error", err) // Vault drops what a periodic function returns
	}
	return nil
}

// sweep settles intents that are older than sweep_grace, retries debts, and revokes keys that have outlived their lease. It
// reads only the open records and the hours that have passed. The caller holds b.sweeps.
func (b *engine) sweep(ctx context.Context, s logical.Storage, eager bool) (swept, error) {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	conf, err := b.config(ctx, s)
	if err != nil {
		return swept{}, err
	}
	w := &sweeper{engine: b, s: s, grace: conf.SweepGrace.duration(), eager: eager, down: map[string]bool{}, isOpen: map[string]bool{}}
	if b.System().Tainted() {
		w.grace = 0
	}
	rands, err := openTable.list(ctx, s)
	if err != nil {
		return swept{}, err
	}
	for _, rand := range rands {
		w.isOpen[rand] = true
	}
	// Each sweep begins with a different part, because one that meets a slow target may use up all the time.
	parts := []func(context.Context) error{w.open, w.passedHours, w.forget}
	for i := range parts {
		if err := parts[(b.turn+i)%len(parts)](ctx); err != nil {
			w.faults = append(w.faults, err)
		}
	}
	b.turn++
	b.lastSweep.Store(&sweepReport{at: b.now(), complete: len(w.faults) == 0})
	b.meters.sweep(w.done)
	if w.done != (swept{}) {
		b.Logger().Info("swept", "settled", w.done.Settled, "revoked", w.done.Revoked, "expired", w.done.Expired)
	}
	return w.done, errors.Join(w.faults...)
}

// forget deletes records of expired tokens, and tombstones that no key needs.
func (w *sweeper) forget(ctx context.Context) error {
	if err := w.replay.forget(ctx, w.s, sweepForget); err != nil {
		return err
	}
	return w.buryTargets(ctx, w.s)
}

// open goes through the records in open/, from where the last sweep stopped.
func (w *sweeper) open(ctx context.Context) error {
	rands := slices.Sorted(maps.Keys(w.isOpen))
	start, found := slices.BinarySearch(rands, w.sweptTo)
	if found {
		start++
	}
	rands = append(rands[start:], rands[:start]...)
	var fault error
	silent := "" // the first entry whose target did not answer
	for _, rand := range rands[:min(len(rands), sweepEntries)] {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		w.sweptTo = rand
		if w.ledger.inFlight(rand) {
			continue
		}
		e, err := openTable.get(ctx, w.s, rand)
		if err != nil { // only this record is unreadable
			fault = err
			continue
		}
		if e == nil || w.down[e.Target] {
			continue
		}
		w.note(e, w.openEntry(ctx, e))
		if silent == "" && w.down[e.Target] {
			silent = rand
		}
	}
	if silent != "" && len(rands) <= sweepEntries {
		w.sweptTo = silent // the next sweep begins after this entry: if only this one gets no answer, the others get their turn
	}
	return fault
}

// note records the error of one entry, and whether its target is down.
func (w *sweeper) note(e *entry, err error) {
	if err == nil {
		return
	}
	if unanswered(err) {
		w.down[e.Target] = true
	}
	w.faults = append(w.faults, fmt.Errorf("key %s at target %q: %w", e.ID, e.Target, err))
}

// unanswered reports whether an error means that a target is down: it gave no answer, or a gateway answered in its place. A
// refusal or a server error, in contrast, may concern one entry only.
func unanswered(err error) bool {
	told := (*target.Error)(nil)
	return errors.Is(err, target.ErrBusy) || errors.Is(err, target.ErrUnknown) && errors.As(err, &told) &&
		(told.Status == 0 || told.Status == http.StatusBadGateway || told.Status == http.StatusGatewayTimeout)
}

// openEntry retries a debt or settles an intent, if that is due, and puts it off if that fails.
func (w *sweeper) openEntry(ctx context.Context, e *entry) error {
	now := w.now()
	if !w.eager && putOff(e.NextTry, now) {
		return nil
	}
	var err error
	switch {
	case e.State == stateDebt:
		err = w.pay(ctx, e)
	case e.State == statePending && !putOff(e.IssuedAt.Add(w.grace), now):
		err = w.settle(ctx, e)
	}
	if err == nil || unanswered(err) && w.foundDead(ctx, e.Target) {
		return err
	}
	return errors.Join(err, w.postpone(ctx, e.rand()))
}

// foundDead reports whether a target's breaker is open: it has failed so often that it is called only now and then.
func (w *sweeper) foundDead(ctx context.Context, name string) bool {
	t, err := w.target(ctx, w.s, name)
	return err == nil && t != nil && t.State().Open
}

// putOff reports whether something must wait until a time. Nothing is ever put off for longer than maxBackoff, so a time
// further away, by more than clocks may differ, was written by a clock that ran ahead, and is ignored.
func putOff(until, now time.Time) bool {
	left := until.Sub(now)
	return left > 0 && left <= maxBackoff+clocksApart
}

// postpone puts off the next try of an open record, unless it was settled meanwhile.
func (w *sweeper) postpone(ctx context.Context, rand string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout) // the try may have used up ctx's time
	defer cancel()
	defer w.ledger.change(rand).Unlock()
	e, err := openTable.get(ctx, w.s, rand)
	if err != nil || e == nil {
		return err
	}
	e.Tries++
	e.NextTry = w.now().UTC().Add(min(maxBackoff, time.Minute<<min(e.Tries, 6)))
	return openTable.put(ctx, w.s, rand, e)
}

// pay tries once more to revoke the key of a debt.
func (w *sweeper) pay(ctx context.Context, debt *entry) error {
	filed, err := w.ledger.filed(ctx, w.s, debt.ID)
	if err != nil {
		return err
	}
	if filed == nil {
		return w.ledger.void(ctx, w.s, debt.rand()) // the key is gone; only the debt's removal had failed
	}
	if err := w.revokeAt(ctx, w.s, filed.Target, filed.Handle, filed.ExpiresAt); err != nil {
		return err
	}
	w.done.Revoked++
	return w.recordRevoked(ctx, w.s, filed)
}

// settle finds out the outcome of an exchange that was not recorded. A key that exists is revoked, because no lease holds it.
func (w *sweeper) settle(ctx context.Context, e *entry) error {
	filed, err := w.ledger.filed(ctx, w.s, e.ID)
	if err != nil {
		return err
	}
	if filed != nil {
		return w.undelivered(ctx, filed)
	}
	t, err := w.target(ctx, w.s, e.Target)
	if err != nil {
		return err
	}
	if t == nil {
		return refuse(reasonStorage, "target %q is missing", e.Target)
	}
	switch err := w.endLost(ctx, t, e.Handle); {
	case errors.Is(err, target.ErrUnsupported): // the target cannot find or revoke keys, or not this one
		return w.giveUp(ctx, t, e)
	case err != nil:
		return err
	}
	w.done.Settled++
	return w.ledger.void(ctx, w.s, e.rand())
}

// endLost revokes all keys that exist under the name of a handle.
func (w *sweeper) endLost(ctx context.Context, t *openTarget, h target.Handle) error {
	if !t.Caps().Revoke {
		return target.ErrUnsupported
	}
	handles, err := t.Find(ctx, h)
	if err != nil {
		return err
	}
	for _, h := range handles {
		if err := t.Revoke(ctx, h); err != nil {
			return err
		}
		w.done.Revoked++
	}
	return nil
}

// undelivered revokes a key that was filed but never delivered: the process ended in between. A key that cannot be revoked is
// marked as exposed.
func (w *sweeper) undelivered(ctx context.Context, e *entry) error {
	if !e.Revocable {
		e.State = stateExposed
		if err := w.ledger.file(ctx, w.s, e); err != nil {
			return err
		}
		w.done.Settled++
		return w.ledger.settle(ctx, w.s, e.rand())
	}
	if err := w.revokeAt(ctx, w.s, e.Target, e.Handle, e.ExpiresAt); err != nil {
		return err
	}
	w.done.Revoked++
	w.done.Settled++
	return w.recordRevoked(ctx, w.s, e)
}

// giveUp files an intent as exposed: its key may exist, and can be neither found nor revoked. The entry stays until the key
// must have expired.
func (w *sweeper) giveUp(ctx context.Context, t *openTarget, e *entry) error {
	end := e.ExpiresAt // as the target told it
	switch {
	case !end.IsZero():
	case t.Lifetime() > 0:
		end = e.IssuedAt.Add(t.Lifetime())
	default: // the request asked for an expiry at NotAfter, which an API may round up to a whole day
		end = e.NotAfter.Add(24 * time.Hour)
	}
	e.State, e.Revocable = stateExposed, false
	if end.Before(lastHour) {
		end = end.Add(w.grace)
	}
	e.ExpiresAt = end
	e.fileByExpiry()
	if err := w.ledger.file(ctx, w.s, e); err != nil {
		return err
	}
	w.done.Settled++
	return w.ledger.settle(ctx, w.s, e.rand())
}

// passedHours goes through the keys whose latest end has passed. Their leases should have ended them, so these keys have lost
// theirs.
//
// Listing the hours makes Vault's storage walk over all keys. So once no passed hour has keys, the next listing is due only
// when the next hour has passed; a key that is filed late, under a passed hour, waits until then too.
func (w *sweeper) passedHours(ctx context.Context) error {
	due := nextPassed(w.now())
	if !w.eager && w.hoursDue.Equal(due) {
		return nil
	}
	for _, sealed := range []bool{false, true} {
		hours, err := w.ledger.hours(ctx, w.s, sealed)
		if err != nil {
			return err
		}
		for _, hour := range hours {
			if !passed(hour, w.now()) {
				continue
			}
			if err := w.passedHour(ctx, keyTable(hour, sealed)); ctx.Err() != nil {
				return ctx.Err()
			} else if err != nil { // only this hour failed
				w.faults = append(w.faults, err)
			}
		}
	}
	if !w.left {
		w.hoursDue = due
	}
	return nil
}

// passedHour goes through the keys of one hour. It returns the error of an unreadable record, but first sweeps the others.
func (w *sweeper) passedHour(ctx context.Context, keys table[entry]) error {
	rands, err := keys.list(ctx, w.s)
	w.left = w.left || err != nil || len(rands) > 0
	if err != nil {
		return err
	}
	var fault error
	for _, rand := range rands {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if w.isOpen[rand] || w.ledger.inFlight(rand) {
			continue // handled by open, or by the request that is obtaining it
		}
		e, err := keys.get(ctx, w.s, rand)
		if err != nil {
			fault = err
			continue
		}
		if e == nil || w.down[e.Target] {
			continue
		}
		w.note(e, w.outlived(ctx, e))
	}
	return fault
}

// outlived ends one key that has outlived its lease, or records it as a debt.
func (w *sweeper) outlived(ctx context.Context, e *entry) error {
	if !e.Revocable {
		if !e.expired(w.now()) {
			return nil
		}
		w.done.Expired++
		return w.ledger.delete(ctx, w.s, e)
	}
	err := w.revokeAt(ctx, w.s, e.Target, e.Handle, e.ExpiresAt)
	if err == nil {
		w.done.Revoked++
		return w.recordRevoked(ctx, w.s, e)
	}
	e.State, e.DebtSince, e.NextTry = stateDebt, w.now().UTC(), w.now().UTC().Add(time.Minute)
	return errors.Join(err, w.recordDebt(ctx, w.s, e))
}
