// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	maxWait  = 10 * time.Second // the longest that an ordinary call waits for its turn
	maxPause = 5 * time.Minute  // a longer Retry-After is cut to this
)

// Limiter limits the calls to one target: how many per second, how many at a time, none while the target asks for a pause
// (Retry-After), and few while it is down (see breaker). Urgent calls, those that end keys, go first. A Limiter outlives the
// Targets that share it, so that a reopened Target does not forget what was learned.
type Limiter struct {
	ordinary chan struct{} // capacity 1: all ordinary calls but one wait here, out of the way of urgent ones
	turn     chan struct{} // capacity 1: its holder waits for a rate token and a slot; at most one ordinary call is ahead of an urgent one
	freed    chan struct{} // capacity 1: signals that more calls may run than before
	now      func() time.Time

	mu      sync.Mutex
	rate    *rate.Limiter // nil = no bound
	most    int           // calls that may run at a time
	running int
	waiting int       // calls that wait for their turn
	urgent  int       // the urgent ones among them
	until   time.Time // the target asked for no calls until then
	breaker breaker
}

// limits are how many calls may be made.
type limits struct {
	perSecond   float64 // 0 = no bound
	burst       int     // how many of them may come at once; 0 = those of one second
	concurrency int     // at a time
}

// NewLimiter returns a Limiter with the default limits, for Config.Limiter.
func NewLimiter(now func() time.Time) *Limiter {
	return &Limiter{
		ordinary: make(chan struct{}, 1), turn: make(chan struct{}, 1), freed: make(chan struct{}, 1),
		now: now, most: defaultConcurrency,
	}
}

// set changes the limits from the next call on. Calls that were counted against the rate stay counted.
func (l *Limiter) set(to limits) {
	if to.burst == 0 {
		to.burst = int(math.Ceil(to.perSecond))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case to.perSecond == 0:
		l.rate = nil
	case l.rate == nil:
		l.rate = rate.NewLimiter(rate.Limit(to.perSecond), to.burst)
	default:
		l.rate.SetLimit(rate.Limit(to.perSecond))
		l.rate.SetBurst(to.burst)
	}
	l.most = to.concurrency
	l.signal()
}

// width returns how many calls may be made at once so that none waits longer than patience for its turn.
func (l *Limiter) width(patience time.Duration) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == nil {
		return l.most
	}
	return min(l.most, max(1, int(float64(l.rate.Limit())*patience.Seconds())))
}

// enter waits for the call's turn. After a nil error the caller must call leave when the call is over. The only errors are
// ErrBusy: the target is down, it is paused (an urgent call waits for the end of the pause if ctx lasts that long), ctx ended,
// or an ordinary call has waited for maxWait.
func (l *Limiter) enter(ctx context.Context, op string, urgent bool) (leave func(health), err error) {
	l.mu.Lock()
	err = l.refuses(op, urgent)
	l.mu.Unlock()
	if err != nil {
		return nil, err
	}
	l.waits(urgent, 1)
	defer l.waits(urgent, -1)
	outer := ctx
	if !urgent {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, maxWait)
		defer cancel()
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
	if bound := l.bound(); bound != nil && bound.Wait(ctx) != nil {
		return nil, tooLong(outer, op)
	}
	if !l.slot(ctx) {
		return nil, tooLong(outer, op)
	}
	return l.begin(op, urgent)
}

// refuses returns why a call may not be made, nil if it may. It is used before a call waits for its turn, and again when the
// turn comes. The caller holds mu.
func (l *Limiter) refuses(op string, urgent bool) error {
	if e := l.broken(op, urgent); e != nil {
		return e
	}
	if e := l.paused(op); e != nil && !urgent {
		return e
	}
	return nil
}

// begin starts the call, unless the target was found to be down, or asked for a pause, while the call waited. The caller has a
// slot, which is freed if the call may not start.
func (l *Limiter) begin(op string, urgent bool) (leave func(health), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.refuses(op, urgent); err != nil {
		l.running--
		l.signal()
		return nil, err
	}
	probe := l.breaker.begin()
	return func(h health) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.running--
		l.breaker.end(l.now(), probe, h)
		l.signal()
	}, nil
}

// sitOut lets an urgent call wait for the end of a pause, however often it is prolonged; an ordinary call does not wait.
func (l *Limiter) sitOut(ctx context.Context, op string, urgent bool) error {
	for {
		l.mu.Lock()
		pause := l.paused(op)
		l.mu.Unlock()
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

// paused returns ErrBusy during a pause that the target asked for. The caller holds mu.
func (l *Limiter) paused(op string) *Error {
	if left := l.until.Sub(l.now()); left > 0 {
		return &Error{Op: op, Text: "the target asked to be left alone", RetryAfter: left, outcome: ErrBusy}
	}
	return nil
}

// broken returns ErrBusy while the target is down. An exchange or a rotation is not the probe while an urgent call waits,
// because it may use up a token or a key for nothing. The caller holds mu.
func (l *Limiter) broken(op string, urgent bool) *Error {
	left, shut := l.breaker.shut(l.now())
	spends := op == "exchange" && !urgent || op == "rotate"
	if !shut && !(l.breaker.open && spends && l.urgent > 0) {
		return nil
	}
	text := fmt.Sprintf("the last %d calls failed, so it is asked again only after a while", l.breaker.failures)
	return &Error{Op: op, Text: text, RetryAfter: left, outcome: ErrBusy}
}

// pause keeps calls away from the target for d, at most maxPause; it never shortens a pause.
func (l *Limiter) pause(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if until := l.now().Add(min(d, maxPause)); until.After(l.until) {
		l.until = until
	}
}

// slot waits until a further call may run, and counts it as running. It returns false if ctx ends first. The caller holds turn,
// so only one call at a time waits here.
func (l *Limiter) slot(ctx context.Context) bool {
	for ctx.Err() == nil {
		l.mu.Lock()
		free := l.running < l.most
		if free {
			l.running++
		}
		l.mu.Unlock()
		if free {
			return true
		}
		select {
		case <-l.freed:
		case <-ctx.Done():
		}
	}
	return false
}

// signal wakes the call that waits for a slot.
func (l *Limiter) signal() {
	select {
	case l.freed <- struct{}{}:
	default:
	}
}

func (l *Limiter) waits(urgent bool, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting += n
	if urgent {
		l.urgent += n
	}
}

func (l *Limiter) bound() *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rate
}

// Use applies the limits of t's Config to its Limiter, which other Targets may share.
func (t *Target) Use() { t.api.limiter.set(t.api.limits) }

// State describes a Limiter, and what it has observed of its target.
type State struct {
	Running  int       // calls under way
	Waiting  int       // calls that wait for their turn
	Paused   bool      // the target asked for a pause, which has not ended
	Failures int       // calls in a row that had no answer, or a gateway's answer that there is none
	Open     bool      // there were so many failures that the target is asked only now and then
	Next     time.Time // no call is made before; zero = calls are made
}

// State returns the state of the target's Limiter.
func (t *Target) State() State { return t.api.limiter.state() }

func (l *Limiter) state() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	s := State{Running: l.running, Waiting: l.waiting, Paused: l.until.After(now), Failures: l.breaker.failures, Open: l.breaker.open}
	for _, until := range []time.Time{l.until, l.breaker.until} {
		if until.After(now) && until.After(s.Next) {
			s.Next = until
		}
	}
	return s
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
