// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"
)

const (
	breakerTrips = 5               // failures in a row that open a breaker
	breakerFirst = time.Second     // its first pause; each further one is twice as long
	breakerMost  = 1 * time.Minute // and none longer
)

// health is what a call has shown of its target.
type health int

const (
	healthUnknown health = iota // nothing: the call was cancelled, or never sent
	healthFaulty                // it answered with a server error, which may concern this call only
	healthAlive                 // it answered, if only to refuse
	healthDead                  // no connection, no answer in time, or a gateway reports one of these
)

// gateways are the statuses that say that there is no server, whatever it was asked.
var gateways = []int{http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}

// healthOf judges a call by its error; ctx is its caller's. Server errors such as 500 do not open the breaker: one caller's
// parameters may cause them, and must not lock out all other callers.
func healthOf(ctx context.Context, err error) health {
	e := (*Error)(nil)
	switch {
	case err == nil, errors.Is(err, ErrDenied), errors.Is(err, ErrProtocol):
		return healthAlive
	case errors.As(err, &e) && slices.Contains(gateways, e.Status):
		return healthDead
	case errors.As(err, &e) && e.Status >= http.StatusInternalServerError:
		return healthFaulty
	case errors.As(err, &e) && e.Status != 0:
		return healthAlive
	case errors.Is(err, ErrEgress), errors.Is(ctx.Err(), context.Canceled):
		return healthUnknown
	}
	return healthDead
}

// breaker is a circuit breaker: it keeps calls away from a target that is down. After breakerTrips failures in a row it is
// open: no call is made until a pause has passed, and then only one, the probe. If the probe fails, the pause doubles. If it
// succeeds, the breaker closes on probation: until a second success, the next failure opens it again, with a longer pause. So a
// target where only one kind of call works is not flooded with the others. The zero breaker is closed. It has no lock of its
// own.
type breaker struct {
	failures int // in a row
	open     bool
	probing  bool          // the probe is under way
	pause    time.Duration // the last one; 0 = none since a success
	until    time.Time     // of the pause
}

// shut reports whether no call may be made now; left is for how long at least.
func (b *breaker) shut(now time.Time) (left time.Duration, shut bool) {
	if !b.open {
		return 0, false
	}
	left = max(b.until.Sub(now), 0)
	return left, b.probing || left > 0
}

// begin is called for each call that is made, and reports whether that is the probe.
func (b *breaker) begin() (probe bool) {
	b.probing = b.open
	return b.open
}

// end is called with the result of each call. While the breaker is open, only the probe's failure counts: other calls began
// before it opened.
func (b *breaker) end(now time.Time, probe bool, h health) {
	if probe {
		b.probing = false
	}
	switch {
	case (h == healthAlive || h == healthFaulty) && b.open: // it is there
		b.open, b.failures = false, breakerTrips-1
	case h == healthAlive:
		b.failures, b.pause = 0, 0
	case h == healthDead && (probe || !b.open):
		b.failures++
		if b.failures >= breakerTrips {
			b.open, b.pause = true, min(max(2*b.pause, breakerFirst), breakerMost)
			b.until = now.Add(b.pause)
		}
	}
}

// answers probes a target whose breaker is open with a call that has no side effect, if it has one: otherwise an exchange would
// be the probe, and could use up a token for nothing. An error means that nothing else was sent.
func (t *Target) answers(ctx context.Context, op string) error {
	if t.driver.check == nil || !t.State().Open {
		return nil
	}
	err := t.driver.check(ctx)
	if err == nil || !t.State().Open { // it answers, whatever it says
		return nil
	}
	return &Error{Op: op, Text: "the target was found dead, and still is", outcome: ErrBusy, cause: ctx.Err()}
}
