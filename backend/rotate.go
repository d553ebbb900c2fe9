// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// The engine keeps two kinds of secrets that it replaces by new ones itself: keys of static roles, and its credentials at
// targets. Both go the same way. Each step is stored before the next one, so whatever ends this process, the next tick goes
// on from there; and what may have been done is never done again.
//
//	asking    about to ask for the new one, or it was asked for and nobody has recorded what came of it
//	made      the new one is stored beside the old one, and not in use yet
//	""        nothing is under way
//	unknown   nobody can tell what became of the new one: an operator has to help
const (
	turnIdle    = ""
	turnAsking  = "asking"
	turnMade    = "made"
	turnUnknown = "unknown"
)

// turn is how far a rotation is.
type turn struct {
	State        string    `json:"state"`
	Since        time.Time `json:"since"`         // of asking, made, unknown
	LastRotation time.Time `json:"last_rotation"` // zero = never
	NextTry      time.Time `json:"next_try"`      // not before then, after something failed
	Tries        int       `json:"tries"`         // that failed, since the last that did not
	Fault        string    `json:"fault"`         // reason of the last that failed; "" = none since
}

// rotating is one secret, as the way of a rotation sees it. Its methods store nothing but by save.
type rotating interface {
	what() string                  // for the log
	event() (kind, path string)    // that tells of a rotation: where the new one is read, or its target
	labels() (kind, target string) // for the metrics
	turn() *turn
	save(context.Context) error

	prepare(context.Context) error // settles under what name the new one is asked for
	ask(context.Context) error     // asks for it, once; see target.MayLive for what an error leaves behind
	// lost is told that an ask had an unknown outcome: it hands what may live to who ends it, or reports that nobody can.
	lost(context.Context) (handed bool, err error)
	verify(context.Context) error  // tries the new one, if the old one lives on; target.ErrDenied: it is no good
	discard(context.Context) error // gives the new one up
	commit(context.Context) error  // puts it in the old one's place, and stores that
}

// tend does what is due for each of the names, under its lock. One that fails keeps no other from its turn, and one that
// somebody else works on is left to that.
func (b *engine) tend(ctx context.Context, names []string, prefix, what string, due func(name string) error) error {
	var faults []error
	for _, name := range names {
		if ctx.Err() != nil {
			return errors.Join(append(faults, ctx.Err())...)
		}
		release, ok := b.nameLocks.try(prefix + name)
		if !ok {
			continue
		}
		err := due(name)
		release()
		if err != nil {
			faults = append(faults, fmt.Errorf("%s %q: %w", what, name, err))
		}
	}
	return errors.Join(faults...)
}

// rotate takes a rotation to its end, from wherever it is, whether or not its caller waits: a call that is cut off would leave
// what nobody has. The caller holds its lock and has decided that it is due.
func (b *engine) rotate(ctx context.Context, r rotating) (err error) {
	defer func() {
		kind, target := r.labels()
		b.meters.rotated.WithLabelValues(kind, target, outcomeOf(err)).Inc()
	}()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rotateTimeout)
	defer cancel()
	t := r.turn()
	if t.State == turnAsking { // its process ended before it could tell
		if err := b.loseTrack(ctx, r); err != nil {
			return err
		}
	}
	if t.State == turnUnknown {
		return unknownTurn(r)
	}
	if t.State == turnIdle {
		if err := b.askFor(ctx, r); err != nil {
			return err
		}
	}
	switch err := r.verify(ctx); {
	case errors.Is(err, target.ErrDenied):
		b.Logger().Error("the target does not take what it made; the old one stays in use", "of", r.what(), "error", err)
		if err := r.discard(ctx); err != nil {
			return err
		}
		return b.failedTurn(ctx, r, turnIdle, refuse(reasonTargetProtocol, "what the target made anew is not good there"))
	case err != nil: // the next tick tries again
		return b.failedTurn(ctx, r, turnMade, err)
	}
	t.LastRotation, t.NextTry, t.Tries, t.Fault = b.now().UTC(), time.Time{}, 0, ""
	if err := r.commit(ctx); err != nil {
		return err
	}
	crashpoint("rotation-committed")
	b.sendRotated(ctx, r)
	return nil
}

func (b *engine) sendRotated(ctx context.Context, r rotating) {
	b.Logger().Info("rotated", "of", r.what())
	kind, path := r.event()
	b.sendEvent(ctx, kind, path, logical.EventMetadataDataPath, path, logical.EventMetadataModified, "true")
}

// askFor asks for the new one, after it was stored that this is about to be done.
func (b *engine) askFor(ctx context.Context, r rotating) error {
	if err := r.prepare(ctx); err != nil {
		return err
	}
	t := r.turn()
	t.State, t.Since = turnAsking, b.now().UTC()
	if err := r.save(ctx); err != nil {
		return err
	}
	crashpoint("rotation-intended")
	err := r.ask(ctx)
	crashpoint("rotation-asked")
	// What is known now must be stored, although the time may be over.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
	defer cancel()
	var own *refusal
	switch {
	case err == nil:
		t.State, t.Since = turnMade, b.now().UTC()
		if err := r.save(ctx); err != nil {
			t.State = turnAsking // that is what storage says, and what is in memory is gone
			return err
		}
		crashpoint("rotation-made")
		return nil
	case errors.As(err, &own), !target.MayLive(err):
		return b.failedTurn(ctx, r, turnIdle, err)
	}
	if lostErr := b.loseTrack(ctx, r); lostErr != nil {
		return lostErr
	}
	return b.failedTurn(ctx, r, turnIdle, err)
}

// loseTrack ends an ask whose outcome is not known: with what may live in good hands, or not at all.
func (b *engine) loseTrack(ctx context.Context, r rotating) error {
	t := r.turn()
	handed, err := r.lost(ctx)
	if err != nil {
		return err
	}
	if handed {
		t.State = turnIdle
		return r.save(ctx)
	}
	t.State, t.Since = turnUnknown, b.now().UTC()
	b.Logger().Error("the outcome of a rotation is unknown; it is not repeated, and an operator must act, see: vault read <mount>/status", "of", r.what())
	if err := r.save(ctx); err != nil {
		return err
	}
	return unknownTurn(r)
}

func unknownTurn(r rotating) error {
	text := "the outcome of the last rotation of " + r.what() + " is unknown and it is not repeated: the README's section on rotation says what to do"
	return &refusal{reason: reasonOutcomeUnknown, text: text, detail: text}
}

// failedTurn stores that a try failed, and when the next may come.
func (b *engine) failedTurn(ctx context.Context, r rotating, state string, err error) error {
	t := r.turn()
	t.State, t.Fault = state, asRefusal(err).reason
	t.Tries++
	t.NextTry = b.now().UTC().Add(min(maxBackoff, time.Minute<<min(t.Tries-1, 6)))
	b.Logger().Warn("a rotation failed; it is tried again", "of", r.what(), "error", err, "next_try", t.NextTry)
	return errors.Join(err, r.save(ctx))
}

// isDue reports whether a tick has something to do: a rotation is due, or one is under way.
func (t *turn) isDue(due, now time.Time) bool {
	return t.State != turnUnknown && !putOff(t.NextTry, now) && (t.State != turnIdle || !due.IsZero() && !now.Before(due))
}

// view is what operators see of a rotation.
func (t *turn) view(due time.Time) map[string]any {
	state := t.State
	if state == turnIdle {
		state = "idle"
	}
	return map[string]any{
		"rotation": state, "last_vault_rotation": timeOrNil(t.LastRotation), "next_vault_rotation": timeOrNil(due), "last_error": t.Fault,
	}
}

// rotateDue takes what is due, and what a process that ended has left, one step further. Only a node that may write the
// records does; the others are told by them.
func (b *engine) rotateDue(ctx context.Context, req *logical.Request) {
	defer b.recovered(req, nil, new(error))
	if !b.WriteSafeReplicationState() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, beginTimeout)
	defer cancel()
	for _, all := range []func(context.Context, logical.Storage) error{b.rotateRoots, b.rotateStatic} {
		if err := all(ctx, req.Storage); err != nil {
			b.Logger().Error("rotating", "error", err) // Vault drops what a periodic function returns
		}
	}
}

const (
	rotateTimeout = 30 * time.Second // of one rotation
	beginTimeout  = 10 * time.Second // what a tick has not begun by then waits for the next one
)

// locks lets one rotation of a secret be under way at a time.
type locks struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// try takes the lock of a name, or says that somebody has it.
func (l *locks) try(name string) (release func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[name] != nil {
		return nil, false
	}
	if l.held == nil {
		l.held = map[string]chan struct{}{}
	}
	done := make(chan struct{})
	l.held[name] = done
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.held, name)
		close(done)
	}, true
}

// take waits for the lock of a name.
func (l *locks) take(ctx context.Context, name string) (release func(), err error) {
	for {
		if release, ok := l.try(name); ok {
			return release, nil
		}
		l.mu.Lock()
		done := l.held[name]
		l.mu.Unlock()
		if done == nil {
			continue
		}
		select {
		case <-done:
		case <-ctx.Done():
			return nil, refuse(reasonTargetBusy, "a rotation of %s is under way", name)
		}
	}
}
