// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	maxWait  = 10 * time.Second // a call that is not urgent waits no longer for its turn
	maxPause = 5 * time.Minute  // a longer Retry-After is cut to this
)

// limiter bounds the calls to one target: how many a second, how many at a time, and none while the target asks to be
// left alone. Urgent calls, those that end keys, go first.
type limiter struct {
	ordinary chan struct{} // holds one: all other ordinary calls wait here, out of the way of urgent ones
	turn     chan struct{} // holds one: its holder waits for a token and a slot; an urgent call has at most one ordinary before it
	slots    chan struct{} // as many as calls may run at a time
	rate     *rate.Limiter // nil = no bound
	now      func() time.Time

	mu    sync.Mutex
	until time.Time // the target asks for quiet until then
}

// newLimiter takes calls a second (0 = no bound), how many of them may come at once (0 = those of one second), and how
// many may run at a time.
func newLimiter(perSecond float64, burst, concurrency int, now func() time.Time) *limiter {
	l := &limiter{
		ordinary: make(chan struct{}, 1),
		turn:     make(chan struct{}, 1),
		slots:    make(chan struct{}, concurrency),
		now:      now,
	}
	if perSecond > 0 {
		if burst == 0 {
			burst = int(math.Ceil(perSecond))
		}
		l.rate = rate.NewLimiter(rate.Limit(perSecond), burst)
	}
	return l
}

// enter waits for the call's turn. After a nil error the caller must call leave when the call is over. The only errors are
// ErrBusy: the target is paused (an urgent call waits for the end of the pause if ctx lasts that long), ctx ended, or an
// ordinary call has waited for maxWait.
func (l *limiter) enter(ctx context.Context, op string, urgent bool) (leave func(), err error) {
	outer := ctx
	if !urgent {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, maxWait)
		defer cancel()
		if err := l.paused(op); err != nil {
			return nil, err
		}
		if !take(ctx, l.ordinary) {
			return nil, tooLong(outer, op)
		}
		defer release(l.ordinary)
	}
	if !take(ctx, l.turn) {
		return nil, tooLong(outer, op)
	}
	defer release(l.turn)
	if err := l.sitOut(ctx, op, urgent); err != nil {
		return nil, err
	}
	if l.rate != nil && l.rate.Wait(ctx) != nil {
		return nil, tooLong(outer, op)
	}
	if !take(ctx, l.slots) {
		return nil, tooLong(outer, op)
	}
	return func() { release(l.slots) }, nil
}

// sitOut lets an urgent call wait for the end of a pause, however often it is prolonged; an ordinary call does not wait.
func (l *limiter) sitOut(ctx context.Context, op string, urgent bool) error {
	for {
		pause := l.paused(op)
		if pause == nil {
			return nil
		}
		if deadline, ok := ctx.Deadline(); !urgent || ok && time.Until(deadline) < pause.RetryAfter {
			return pause
		}
		timer := time.NewTimer(pause.RetryAfter)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return tooLong(ctx, op)
		}
	}
}

// paused returns ErrBusy while the target has asked to be left alone.
func (l *limiter) paused(op string) *Error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if left := l.until.Sub(l.now()); left > 0 {
		return &Error{Op: op, Text: "the target asked to be left alone", RetryAfter: left, outcome: ErrBusy}
	}
	return nil
}

// pause keeps calls away from the target for d, at most maxPause; it never shortens a pause.
func (l *limiter) pause(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if until := l.now().Add(min(d, maxPause)); until.After(l.until) {
		l.until = until
	}
}

func tooLong(ctx context.Context, op string) *Error {
	return &Error{Op: op, Text: "no turn in time", outcome: ErrBusy, cause: ctx.Err()}
}

// take puts a token in c, or reports false if ctx ends first.
func take(ctx context.Context, c chan struct{}) bool {
	if ctx.Err() != nil {
		return false
	}
	select {
	case c <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func release(c chan struct{}) { <-c }
