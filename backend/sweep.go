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

// Bounds of one sweep. Vault gives the periodic function 90 seconds, and holds a lock of its core while it runs.
const (
	sweepTimeout = 30 * time.Second
	sweepEntries = 1000   // open entries read in one sweep; the next one goes on where it stopped
	sweepForget  = 20_000 // records of used tokens deleted in one sweep
	maxBackoff   = time.Hour
	clocksApart  = 5 * time.Minute // as far as the clocks of two nodes may be
)

// swept is what a sweep did.
type swept struct {
	Settled int // intents whose outcome is known now
	Revoked int // keys that were revoked because nobody held them any more, or because they were owed
	Expired int // entries of keys that have expired by themselves
}

// sweepReport says of the last sweep when it ended and whether it got through everything.
type sweepReport struct {
	at       time.Time
	complete bool
}

// sweeper is one sweep. A target that does not answer is left alone for the rest of it, and found dead it puts nothing off: what
// is owed there is paid as soon as it is back. An entry that fails by itself is put off, each time for longer, and takes no
// turn from the target's others.
type sweeper struct {
	*engine
	s      logical.Storage
	grace  time.Duration
	eager  bool            // try what was put off, too
	down   map[string]bool // targets that did not answer in this sweep
	isOpen map[string]bool // what is in open/
	left   bool            // a passed hour had keys when it was looked at
	done   swept
	faults []error
}

// tick is Vault's periodic call, about once a minute on each node that may write.
func (b *engine) tick(ctx context.Context, req *logical.Request) error {
	if b.readsOnly() {
		return nil
	}
	b.rotateSelf(ctx, req)
	b.rotateDue(ctx, req) // before the sweep, which ends what that hands over
	defer b.recovered(req, nil, new(error))
	b.count(req.Storage)
	defer b.resume(req.Storage) // after the sweep, which may have paid what one waits for
	if !b.sweeps.TryLock() {
		return nil // one is running, and this one would hold Vault's lock while it waits
	}
	defer b.sweeps.Unlock()
	// The tick of a mount that is being disabled is the last one: what is open is tried whatever its age.
	if _, err := b.sweep(ctx, req.Storage, b.System().Tainted()); err != nil {
		b.Logger().Error("sweeping", "error", err) // Vault drops what a periodic function returns
	}
	return nil
}

// sweep brings the ledger and the targets together: it settles intents past their grace, pays debts, and revokes what
// has outlived its lease. It reads what is open and the hours that have passed, nothing else. The caller holds b.sweeps.
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
	// Each sweep begins with another part, for one that meets a slow target may use up the time of all.
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

func (w *sweeper) forget(ctx context.Context) error {
	if err := w.replay.forget(ctx, w.s, sweepForget); err != nil {
		return err
	}
	return w.buryTargets(ctx, w.s)
}

// open goes through what is not settled, from where the last sweep stopped.
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
		if err != nil { // of one record; the others can be settled
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
		w.sweptTo = silent // the next sweep begins after it: if it is that entry which is never answered, the others have their turn
	}
	return fault
}

// note keeps the error of one entry and goes on with the next.
func (w *sweeper) note(e *entry, err error) {
	if err == nil {
		return
	}
	if unanswered(err) {
		w.down[e.Target] = true
	}
	w.faults = append(w.faults, fmt.Errorf("key %s at target %q: %w", e.ID, e.Target, err))
}

// unanswered reports whether an error says that a target is not there: it gave no answer, or a gateway gave one in its place.
// A refusal, or a server's own error, may be about one entry alone.
func unanswered(err error) bool {
	told := (*target.Error)(nil)
	return errors.Is(err, target.ErrBusy) || errors.Is(err, target.ErrUnknown) && errors.As(err, &told) &&
		(told.Status == 0 || told.Status == http.StatusBadGateway || told.Status == http.StatusGatewayTimeout)
}

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

// foundDead reports whether a target has failed so often that it is asked only now and then.
func (w *sweeper) foundDead(ctx context.Context, name string) bool {
	t, err := w.target(ctx, w.s, name)
	return err == nil && t != nil && t.State().Open
}

// putOff reports whether something waits for a time. Nothing waits longer than maxBackoff: a time further away than clocks may
// be apart was written by one that ran ahead.
func putOff(until, now time.Time) bool {
	left := until.Sub(now)
	return left > 0 && left <= maxBackoff+clocksApart
}

// postpone puts off the next try of what is open, unless that was settled meanwhile.
func (w *sweeper) postpone(ctx context.Context, rand string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout) // a try may have taken all the time there was
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

// pay tries once more to revoke a key that must die.
func (w *sweeper) pay(ctx context.Context, debt *entry) error {
	filed, err := w.ledger.filed(ctx, w.s, debt.ID)
	if err != nil {
		return err
	}
	if filed == nil {
		return w.ledger.void(ctx, w.s, debt.rand()) // paid; only the debt's removal was lost
	}
	if err := w.revokeAt(ctx, w.s, filed.Target, filed.Handle, filed.ExpiresAt); err != nil {
		return err
	}
	w.done.Revoked++
	return w.recordRevoked(ctx, w.s, filed)
}

// settle finds out what became of an exchange whose answer was never recorded. A key that lives is revoked, for nobody
// holds it.
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
	case errors.Is(err, target.ErrUnsupported): // by the target, or for this key
		return w.giveUp(ctx, t, e)
	case err != nil:
		return err
	}
	w.done.Settled++
	return w.ledger.void(ctx, w.s, e.rand())
}

// endLost ends all keys that live under the name of a handle.
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

// undelivered ends a key that was recorded and never answered with: its process ended between the two.
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

// giveUp shows as exposed what may live and can be neither found nor revoked, until it must have expired.
func (w *sweeper) giveUp(ctx context.Context, t *openTarget, e *entry) error {
	rand := e.rand()
	end := e.IssuedAt.Add(t.Lifetime())
	if t.Lifetime() == 0 { // it was asked to end then, of an API that may know whole days only
		end = e.NotAfter.Add(24 * time.Hour)
	}
	e.State, e.Revocable = stateExposed, false
	e.ExpiresAt = end.Add(w.grace)
	e.NotAfter = e.ExpiresAt
	e.ID = hourOf(e.NotAfter) + "-" + rand
	if err := w.ledger.file(ctx, w.s, e); err != nil {
		return err
	}
	w.done.Settled++
	return w.ledger.settle(ctx, w.s, rand)
}

// passedHours goes through the keys whose latest end has passed. A lease would have ended them, so whoever is still here
// has lost its lease.
//
// Vault's storage finds the hours by walking over all keys that live. Once no passed hour has a key, the next walk is due when
// the next hour has passed; what is filed late, under an hour of the past, waits for that too.
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
			} else if err != nil { // of one hour; the others have keys that live
				w.faults = append(w.faults, err)
			}
		}
	}
	if !w.left {
		w.hoursDue = due
	}
	return nil
}

// passedHour goes through one hour. A record that cannot be read is told, and keeps no other from being swept.
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
			continue // settled where it is open
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

func (w *sweeper) outlived(ctx context.Context, e *entry) error {
	if !e.Revocable {
		if w.now().Before(e.NotAfter) {
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
