// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// The states of a revocation.
const (
	runRunning = "running" // goes through the ledger
	runWaiting = "waiting" // all was tried; what is left is the sweeper's, or a record that cannot be read
	runDone    = "done"    // nothing that could be revoked is left
	runStopped = "stopped" // by an operator
)

const (
	runSaveEvery = 500         // keys; a process that ends forgets to have counted at most so many
	clockSkew    = time.Minute // that the clock of a node which was active before may have run ahead
)

// revocation ends all keys that a filter matches and that were asked for before it started. What of it is done need not be
// stored, for a key that has ended is not in the ledger: one that is resumed goes through the ledger anew.
type revocation struct {
	Filter            filter    `json:"filter"`
	IncludeUnrecorded bool      `json:"include_unrecorded"`
	Block             string    `json:"block"` // the block for the same filter; "" = none
	State             string    `json:"state"`
	StartedAt         time.Time `json:"started_at"`
	FinishedAt        time.Time `json:"finished_at"`
	Counted           bool      `json:"counted"` // Matched is whole: the ledger was gone through once
	census
}

var revocationTable = table[revocation]{prefix: "revocations/"}

// means reports whether the revocation is to end a key of which its filter says v.
func (r *revocation) means(e *entry, v verdict) bool {
	return (v == matched || v == unjudged && r.IncludeUnrecorded) && r.precedes(e)
}

// precedes reports whether a key was asked for before the revocation started. While its block stands no other can have been, so
// one that is said to be younger was dated by a clock that ran ahead.
func (r *revocation) precedes(e *entry) bool {
	until := r.StartedAt
	if r.Block != "" {
		until = until.Add(clockSkew)
	}
	return !e.IssuedAt.After(until)
}

func (r *revocation) over() bool { return r.State == runDone || r.State == runStopped }

// runs are the revocations that this process works on.
type runs struct {
	mu     sync.Mutex
	active map[string]*run
}

// run is one of them.
type run struct {
	*engine
	s    logical.Storage
	id   string
	was  string // its state when this process took it up
	stop context.CancelFunc
	over chan struct{} // closed when this process has stopped working on it

	mu      sync.Mutex
	rec     revocation
	fault   faults // of this round
	counts  bool   // it counts what matches
	unsaved int
}

// resume goes on with every revocation that has not ended: after a start, and with each tick.
func (b *engine) resume(s logical.Storage) {
	if b.readsOnly() {
		return
	}
	ctx, cancel := context.WithTimeout(b.background, storageTimeout)
	defer cancel()
	ids, err := revocationTable.list(ctx, s)
	for _, id := range ids {
		if workErr := b.work(ctx, s, id); workErr != nil {
			err = workErr
		}
	}
	if err != nil && b.background.Err() == nil {
		b.Logger().Error("resuming revocations, which the next tick tries again", "error", err)
	}
}

// work goes on with a revocation in the background, unless it has ended or is being worked on.
func (b *engine) work(ctx context.Context, s logical.Storage, id string) error {
	b.runs.mu.Lock() // across the read: who works on it stores its end before it leaves
	defer b.runs.mu.Unlock()
	if b.runs.active[id] != nil {
		return nil
	}
	rec, err := revocationTable.get(ctx, s, id)
	if err != nil || rec == nil || rec.over() {
		return err
	}
	life, stop := context.WithCancel(b.background)
	r := &run{engine: b, s: s, id: id, was: rec.State, stop: stop, over: make(chan struct{}), rec: *rec}
	if b.runs.active == nil {
		b.runs.active = map[string]*run{}
	}
	b.runs.active[id] = r
	go func() {
		defer close(r.over)
		defer b.runs.leave(id)
		defer stop()
		defer r.recovered(new(error))
		if err := r.round(life); err != nil && life.Err() == nil {
			b.Logger().Error("a revocation goes on with the next tick", "revocation", id, "error", err)
		}
	}()
	return nil
}

func (rs *runs) leave(id string) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	delete(rs.active, id)
}

func (r *run) recovered(err *error) {
	r.engine.recovered(&logical.Request{Path: revocationTable.prefix + r.id}, nil, err)
}

func (r *run) state() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rec.State
}

// round tries once whatever is left. A revocation is done when going through the whole ledger has met nothing that can be
// revoked; until then what had to be left is open, so the rounds between need look no further.
func (r *run) round(ctx context.Context) error {
	if r.state() == runWaiting {
		r.pass(ctx, r.openScan)
		if r.waits(ctx) {
			return r.conclude(ctx)
		}
	}
	r.pass(ctx, r.ledgerScan)
	return r.conclude(ctx)
}

// waits reports whether going through the whole ledger would meet nothing new: what could not be read still cannot, or there is
// still a debt.
func (r *run) waits(ctx context.Context) bool {
	r.mu.Lock()
	unread, left := r.rec.Unread, r.rec.Debt > 0 || r.fault.n > 0
	r.mu.Unlock()
	if unread != "" {
		return r.ledger.unreadable(ctx, r.s, unread)
	}
	return left
}

// conclude counts, and stores, what a round has come to.
func (r *run) conclude(ctx context.Context) error {
	send := func() {}
	defer func() { send() }() // under no lock
	r.mu.Lock()
	defer r.mu.Unlock()
	if ctx.Err() != nil || r.rec.State == runStopped {
		return ctx.Err()
	}
	r.rec.Matched = max(r.rec.Matched, r.rec.Debt+r.rec.Exposed)
	r.rec.Revoked = r.rec.Matched - r.rec.Debt - r.rec.Exposed
	switch {
	case r.fault.n > 0: // what storage kept from being recorded is perhaps nowhere open
		r.rec.State = runRunning
	case r.rec.Debt > 0 || r.rec.Unreadable > 0:
		r.rec.State = runWaiting
	default:
		r.rec.State, r.rec.FinishedAt = runDone, r.now().UTC()
	}
	r.Logger().Info("a revocation has tried what was left", "revocation", r.id, "state", r.rec.State,
		"matched", r.rec.Matched, "revoked", r.rec.Revoked, "debt", r.rec.Debt, "exposed", r.rec.Exposed, "unrecorded", r.rec.Unrecorded, "unreadable", r.rec.Unreadable)
	err := r.save(ctx)
	if state, counts := r.rec.State, r.rec.census; err == nil && state != r.was {
		send = func() { r.sendRevocationEvent(ctx, r.id, state, &counts) }
	}
	return errors.Join(r.fault.err(), err)
}

// ledgerScan calls visit for all that the filter may mean, and openScan for what of it is not settled.
func (r *run) ledgerScan(ctx context.Context, f *filter, visit func(*entry, verdict) bool) error {
	r.resetCounts(false)
	bad, err := r.ledger.scan(ctx, r.s, f, "", visit)
	if bad.n > 0 {
		r.Logger().Error("records of the ledger cannot be read, and their keys not be revoked", "revocation", r.id, "records", bad.n, "error", bad.err())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rec.Unreadable, r.rec.Unread = bad.n, bad.name
	r.rec.Counted = r.rec.Counted || err == nil && bad.n == 0
	return err
}

func (r *run) openScan(ctx context.Context, f *filter, visit func(*entry, verdict) bool) error {
	r.resetCounts(true)
	_, err := r.ledger.eachOpen(ctx, r.s, func(e *entry) (bool, error) { return visit(e, f.judge(e)), ctx.Err() })
	return err // before a revocation is done, ledgerScan tells what cannot be read
}

// pass ends what a scan meets, target by target at once: one that does not answer holds up no other.
func (r *run) pass(ctx context.Context, scan func(context.Context, *filter, func(*entry, verdict) bool) error) {
	all := &lanes{run: r, of: map[string]*lane{}}
	defer all.finish()
	flights := map[*entry]<-chan struct{}{}
	err := scan(ctx, &r.rec.Filter, func(e *entry, v verdict) bool {
		if !r.countMet(e, v) {
			return true
		}
		if flight := r.ledger.flight(e.rand()); flight != nil {
			flights[e] = flight
		} else {
			all.lane(ctx, e.Target).push(e.ID)
		}
		return true
	})
	if err != nil {
		r.mu.Lock()
		r.fault.add(err)
		r.mu.Unlock()
	}
	for e, flight := range flights { // they were decided before the block stood, and end within issueTimeout
		select {
		case <-flight:
		case <-ctx.Done():
		}
		id := r.ledger.id(e.rand()) // a key may be filed under another hour than it was asked for
		if id == "" {
			id = e.ID
		}
		all.lane(ctx, e.Target).push(id)
	}
}

// resetCounts counts anew what is left, of all keys or of the open ones alone. Until the ledger was gone through once, what was
// matched are those that were revoked and those that will be met.
func (r *run) resetCounts(openAlone bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault, r.rec.Debt, r.counts = faults{}, 0, !openAlone && !r.rec.Counted
	if r.rec.State != runStopped {
		r.rec.State = runRunning
	}
	if openAlone {
		return
	}
	r.rec.Exposed, r.rec.Until, r.rec.Endless = 0, time.Time{}, false
	if r.counts {
		r.rec.Matched, r.rec.Unrecorded = r.rec.Revoked, 0
	}
}

// countMet counts a key that a scan met, and reports whether it is to end.
func (r *run) countMet(e *entry, v verdict) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.rec.means(e, v):
		r.rec.addPrefix(e)
		if r.counts {
			r.rec.Matched++
		}
		return true
	case v == unjudged && r.counts && r.rec.precedes(e):
		r.rec.Unrecorded++
	}
	return false
}

// endKey ends one key, or counts it as left.
func (r *run) endKey(ctx context.Context, id string) (whyLeft error) {
	left, whyLeft, err := r.ended(ctx, id)
	if ctx.Err() != nil {
		return nil // whoever goes on meets the key again
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil: // nobody knows that it is dead
		r.fault.add(err)
		r.rec.Debt++
	case left != nil:
		r.rec.countLeft(left)
	default:
		r.rec.Revoked++
	}
	if r.unsaved++; r.unsaved >= runSaveEvery {
		if err := r.save(ctx); err != nil {
			r.fault.add(err)
		}
	}
	return whyLeft
}

// ended revokes a key. If that is not possible now the ledger owes it, and left is its entry.
func (r *run) ended(ctx context.Context, id string) (left *entry, why, err error) {
	defer r.recovered(&err)
	e, err := r.ledger.filed(ctx, r.s, id)
	if err == nil && e == nil {
		e, err = r.ledger.get(ctx, r.s, id) // what is open: the sweeper finds out whether there is a key
		if e != nil && e.State == stateDebt {
			e = nil // that it is paid was recorded in part
		}
	}
	switch {
	case err != nil || e == nil: // somebody else has ended it
		return nil, nil, err
	case !e.Revocable && e.State != statePending && r.now().After(e.NotAfter):
		return nil, nil, nil
	case !e.Revocable || e.State == statePending:
		return e, nil, nil
	}
	call, cancel := context.WithTimeout(ctx, revokeTimeout)
	defer cancel()
	why = r.revokeAt(call, r.s, e.Target, e.Handle, e.ExpiresAt)
	writing, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	if why == nil {
		return nil, nil, r.recordRevoked(writing, r.s, e)
	}
	if ctx.Err() == nil {
		err = r.recordNewDebt(writing, e)
	}
	return e, why, err
}

// recordNewDebt makes a key a debt, unless it is one.
func (r *run) recordNewDebt(ctx context.Context, e *entry) error {
	known, err := r.ledger.get(ctx, r.s, e.ID)
	if err != nil || known == nil || known.State == stateDebt {
		return err
	}
	e.State, e.DebtSince, e.NextTry = stateDebt, r.now().UTC(), r.now().UTC().Add(time.Minute)
	return r.recordDebt(ctx, r.s, e)
}

// halt ends the work of this process, and of every later one, and returns the record as it is then.
func (r *run) halt(ctx context.Context) (*revocation, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stop()
	r.rec.State, r.rec.FinishedAt = runStopped, r.now().UTC()
	rec := r.rec
	return &rec, r.save(ctx)
}

// save stores how far the revocation is. The caller holds r.mu.
func (r *run) save(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	r.unsaved = 0
	return revocationTable.put(ctx, r.s, r.id, &r.rec)
}
