// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// The states of a revocation.
const (
	runRunning = "running" // going through the ledger
	runWaiting = "waiting" // every key was tried; the sweeper retries what is left, or a record cannot be read
	runDone    = "done"    // no key is left that can be revoked
	runStopped = "stopped" // by an operator
)

const (
	runSaveEvery = 500         // keys between two saves: a crash loses the count of at most this many
	clockSkew    = time.Minute // how far the clock of a previously active node may have run ahead
)

// revocation ends all keys that a filter matches and that were requested before it started. Its progress need not be stored,
// because keys that have ended are no longer in the ledger: when it is resumed, it goes through the ledger again.
type revocation struct {
	Filter            filter    `json:"filter"`
	IncludeUnrecorded bool      `json:"include_unrecorded"`
	Block             string    `json:"block"` // the block for the same filter; "" = none
	State             string    `json:"state"`
	StartedAt         time.Time `json:"started_at"`
	FinishedAt        time.Time `json:"finished_at"`
	Counted           bool      `json:"counted"` // Matched is complete: one scan went through the whole ledger
	census
}

var revocationTable = table[revocation]{prefix: "revocations/"}

// means reports whether the revocation covers a key for which its filter has the verdict v.
func (r *revocation) means(e *entry, v verdict) bool {
	return (v == matched || v == unjudged && r.IncludeUnrecorded) && r.precedes(e)
}

// precedes reports whether a key was requested before the revocation started. With a block, no matching key can be newer: one
// that seems to be, by up to clockSkew, was dated by a clock that ran ahead.
func (r *revocation) precedes(e *entry) bool {
	until := r.StartedAt
	if r.Block != "" {
		until = until.Add(clockSkew)
	}
	return !e.IssuedAt.After(until)
}

func (r *revocation) over() bool { return r.State == runDone || r.State == runStopped }

// runs are the revocations that this process is working on, by id.
type runs struct {
	mu     sync.Mutex
	active map[string]*run
}

// run is this process's work on one revocation.
type run struct {
	*engine
	s    logical.Storage
	id   string
	was  string // the revocation's state when this run began
	stop context.CancelFunc
	over chan struct{} // closed when this process has stopped working on it

	mu      sync.Mutex
	rec     revocation
	fault   faults // of this round
	unread  unread // open records of this round that may match
	counts  bool   // this round counts what matches
	unsaved int    // keys counted since the last save
}

// resume continues every revocation that has not ended. It is called after a start and by each tick.
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

// work continues a revocation in the background, unless it has ended or a run is working on it.
func (b *engine) work(ctx context.Context, s logical.Storage, id string) error {
	b.runs.mu.Lock() // before the read: a run stores the end of its revocation before it leaves runs
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

// round tries to revoke every key that is left. A revocation is done when a scan of the whole ledger has found no key that can
// be revoked. Until then, keys that could not be revoked are debts, so while waiting it is enough to scan the open records.
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

// waits reports whether another scan of the whole ledger would find nothing new: the records that cannot be read are those that
// the last one could not read, or there are still debts.
func (r *run) waits(ctx context.Context) bool {
	r.mu.Lock()
	known, left := r.rec.Unread, r.rec.Debt > 0 || r.fault.n > 0
	named := r.rec.Unreadable == len(known)
	news := slices.ContainsFunc(r.unread.names, func(rand string) bool {
		return !slices.ContainsFunc(known, func(name string) bool { return name == rand || strings.HasSuffix(name, "-"+rand) })
	})
	r.mu.Unlock()
	switch {
	case news || !named:
		return false
	case len(known) > 0:
		return r.ledger.unreadable(ctx, r.s, known)
	}
	return left
}

// conclude computes the result of a round, stores it, and sends an event if the state has changed.
func (r *run) conclude(ctx context.Context) error {
	send := func() {}
	defer func() { send() }() // deferred first, so that it runs after r.mu is unlocked
	r.mu.Lock()
	defer r.mu.Unlock()
	if ctx.Err() != nil || r.rec.State == runStopped {
		return ctx.Err()
	}
	r.rec.Matched = max(r.rec.Matched, r.rec.Debt+r.rec.Exposed)
	r.rec.Revoked = r.rec.Matched - r.rec.Debt - r.rec.Exposed
	if r.rec.Counted { // what cannot be read any more may be among the matched
		r.rec.Revoked = max(0, r.rec.Revoked-r.rec.Unreadable)
	}
	switch {
	case r.fault.n > 0: // after a storage error, a key that is left may have no open record
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

// ledgerScan calls visit for all keys that the filter matches or cannot judge. openScan does so for the open records only.
func (r *run) ledgerScan(ctx context.Context, f *filter, visit func(*entry, verdict) bool) error {
	r.resetCounts(false)
	bad, err := r.ledger.scan(ctx, r.s, f, "", visit)
	if bad.n > 0 {
		r.Logger().Error("reading records of the ledger; their keys are not revoked", "revocation", r.id, "records", bad.n, "error", bad.err())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rec.Unreadable, r.rec.Unread = bad.n, bad.names
	r.rec.Counted = r.rec.Counted || err == nil && bad.n == 0
	return err
}

func (r *run) openScan(ctx context.Context, f *filter, visit func(*entry, verdict) bool) error {
	r.resetCounts(true)
	bad, err := r.ledger.eachOpen(ctx, r.s, func(e *entry) (bool, error) { return visit(e, f.judge(e)), ctx.Err() })
	bad.names = slices.DeleteFunc(bad.names, func(rand string) bool { return r.ledger.rulesOut(rand, f) })
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unread = bad
	return err // of unreadable records that are new, ledgerScan tells
}

// pass revokes the keys that a scan finds, with all targets in parallel, so that a target that does not answer delays no other.
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
	for e, flight := range flights { // these exchanges were decided before the block was in effect, and end within issueTimeout
		select {
		case <-flight:
		case <-ctx.Done():
		}
		id := r.ledger.id(e.rand()) // the key may have been filed under another hour, and so have another id
		if id == "" {
			id = e.ID
		}
		all.lane(ctx, e.Target).push(id)
	}
}

// resetCounts resets the counts that the next scan, of the whole ledger or of the open records only, will compute. Until one
// scan of the ledger is complete, that includes Matched, which restarts at the number of keys already revoked.
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

// countMet counts a key that a scan has found, and reports whether to revoke it.
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

// endKey revokes one key, or counts it as left and returns why.
func (r *run) endKey(ctx context.Context, id string) (whyLeft error) {
	left, whyLeft, err := r.ended(ctx, id)
	if ctx.Err() != nil {
		return nil // not counted: the next run finds the key again
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil: // it is not known whether the key has ended
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

// ended revokes a key. If that is not possible now, left is the key's entry, and why says what the target answered; the key
// is then a debt. err is an error of storage.
func (r *run) ended(ctx context.Context, id string) (left *entry, why, err error) {
	defer r.recovered(&err)
	e, err := r.ledger.filed(ctx, r.s, id)
	if err == nil && e == nil {
		e, err = r.ledger.get(ctx, r.s, id) // an intent: the sweeper will find out whether there is a key
		if e != nil && e.State == stateDebt {
			e = nil // a debt without a filed entry: the key has ended, only the removal of the debt had failed
		}
	}
	switch {
	case err != nil || e == nil: // nil: the key has ended meanwhile
		return nil, nil, err
	case !e.Revocable && e.State != statePending && e.expired(r.now()):
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

// recordNewDebt makes a key a debt, unless it is one already or has ended.
func (r *run) recordNewDebt(ctx context.Context, e *entry) error {
	known, err := r.ledger.get(ctx, r.s, e.ID)
	if err != nil || known == nil || known.State == stateDebt {
		return err
	}
	e.State, e.DebtSince, e.NextTry = stateDebt, r.now().UTC(), r.now().UTC().Add(time.Minute)
	return r.recordDebt(ctx, r.s, e)
}

// halt stops the run, marks the revocation as stopped so that no process resumes it, and returns its record.
func (r *run) halt(ctx context.Context) (*revocation, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stop()
	r.rec.State, r.rec.FinishedAt = runStopped, r.now().UTC()
	rec := r.rec
	return &rec, r.save(ctx)
}

// save stores the revocation's record. The caller holds r.mu.
func (r *run) save(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	r.unsaved = 0
	return revocationTable.put(ctx, r.s, r.id, &r.rec)
}
