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

// The engine itself rotates two kinds of secrets: keys of static roles (static.go) and its credentials at targets (root.go).
// Both follow the steps in rotate. Each step is stored before the next one begins, so that after a crash the next tick
// continues there, and a step that may have had an effect is never repeated.
//
//	""        no rotation is under way
//	asking    the new secret is about to be requested, or it was requested and the outcome is not recorded
//	made      the new secret is stored beside the old one, but not in use yet
//	unknown   the outcome of the request cannot be found out: an operator has to act
const (
	turnIdle    = ""
	turnAsking  = "asking"
	turnMade    = "made"
	turnUnknown = "unknown"
)

// turn is the stored state of a secret's rotations.
type turn struct {
	State        string    `json:"state"`
	Since        time.Time `json:"since"`         // when State became asking, made or unknown
	LastRotation time.Time `json:"last_rotation"` // zero = never
	NextTry      time.Time `json:"next_try"`      // after a failure: no new try before then
	Tries        int       `json:"tries"`         // failed tries since the last success
	Fault        string    `json:"fault"`         // reason code of the last failure; "" = none since the last success
}

// rotating is a secret that rotate can rotate: a *root or a *staticRole. old and new below are the secret in use and its
// successor. Only save and commit store the secret's state.
type rotating interface {
	what() string                  // names the secret in logs and errors
	event() (kind, path string)    // of the event that reports a rotation; path is where the new key is read, or the target
	labels() (kind, target string) // of its metrics
	turn() *turn
	save(context.Context) error

	prepare(context.Context) error // decides how to request the new one, and by what name
	ask(context.Context) error     // requests it, once; target.MayLive says whether an error may leave one behind
	// lost is called when ask had an unknown outcome. It leaves what may exist to the sweeper (handed), or reports that nothing
	// can end it.
	lost(context.Context) (handed bool, err error)
	verify(context.Context) error  // tries the new one, if the old one stays valid meanwhile; target.ErrDenied: it does not work
	discard(context.Context) error // gives up a new one that does not work
	commit(context.Context) error  // puts the new one in use, and stores that
}

// tend calls due for each of the names, under its lock. It goes on after an error, and skips names that are locked.
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

// rotate continues a rotation from its stored state to the end. It goes on even if ctx is cancelled, because an interrupted
// call could leave a secret that nobody has. The caller holds the secret's lock and has decided that a rotation is due.
func (b *engine) rotate(ctx context.Context, r rotating) (err error) {
	defer func() {
		kind, target := r.labels()
		b.meters.rotated.WithLabelValues(kind, target, outcomeOf(err)).Inc()
	}()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rotateTimeout)
	defer cancel()
	t := r.turn()
	if t.State == turnAsking { // the process ended before it recorded the outcome
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
		b.Logger().Error("the target rejects the secret that it has just made; the old one stays in use", "of", r.what(), "error", err)
		if err := r.discard(ctx); err != nil {
			return err
		}
		return b.failedTurn(ctx, r, turnIdle, refuse(reasonTargetProtocol, "the target rejects the new secret that it has made"))
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

// askFor stores that the new secret is about to be requested, requests it, and stores the outcome.
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
	// The outcome must be stored even if ctx's time is over.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
	defer cancel()
	var own *refusal
	switch {
	case err == nil:
		t.State, t.Since = turnMade, b.now().UTC()
		if err := r.save(ctx); err != nil {
			t.State = turnAsking // as in storage; the new secret in memory is lost
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

// loseTrack handles a request with an unknown outcome. If the sweeper can end what may exist, the rotation can begin again;
// otherwise the state becomes unknown.
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
	b.Logger().Error("the outcome of a rotation is unknown; it will not be repeated, and an operator must act, see: vault read <mount>/status", "of", r.what())
	if err := r.save(ctx); err != nil {
		return err
	}
	return unknownTurn(r)
}

func unknownTurn(r rotating) error {
	text := "the outcome of the last rotation of " + r.what() + " is unknown, so it is not repeated: the README's section on rotation says what to do"
	return &refusal{reason: reasonOutcomeUnknown, text: text, detail: text}
}

// failedTurn stores that a try failed, and when to try again. It returns err.
func (b *engine) failedTurn(ctx context.Context, r rotating, state string, err error) error {
	t := r.turn()
	t.State, t.Fault = state, asRefusal(err).reason
	t.Tries++
	t.NextTry = b.now().UTC().Add(min(maxBackoff, time.Minute<<min(t.Tries-1, 6)))
	b.Logger().Warn("a rotation failed; it is tried again", "of", r.what(), "error", err, "next_try", t.NextTry)
	return errors.Join(err, r.save(ctx))
}

// isDue reports whether a tick must call rotate: a rotation is due, or one was interrupted.
func (t *turn) isDue(due, now time.Time) bool {
	return t.State != turnUnknown && !putOff(t.NextTry, now) && (t.State != turnIdle || !due.IsZero() && !now.Before(due))
}

// view returns the state of a secret's rotations as operators read it.
func (t *turn) view(due time.Time) map[string]any {
	state := t.State
	if state == turnIdle {
		state = "idle"
	}
	return map[string]any{
		"rotation": state, "last_vault_rotation": timeOrNil(t.LastRotation), "next_vault_rotation": timeOrNil(due), "last_error": t.Fault,
	}
}

// rotateDue does the rotations that are due, and continues those that were interrupted. Only a node that may write does; the
// others see its records.
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
	rotateTimeout = 30 * time.Second // for one rotation
	beginTimeout  = 10 * time.Second // a tick begins no rotation after this time
)

// locks are mutexes by name; see engine.nameLocks.
type locks struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// try takes the lock of a name if it is free.
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
