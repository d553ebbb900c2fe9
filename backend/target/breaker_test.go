// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// meet makes n calls that all end like this, and wants each to be let through.
func meet(t *testing.T, l *Limiter, n int, h health) {
	t.Helper()
	for range n {
		leave, err := l.enter(t.Context(), "revoke", true)
		if err != nil {
			t.Fatal(err)
		}
		leave(h)
	}
}

// wantShut wants every kind of call to be refused at once, and returns for how long.
func wantShut(t *testing.T, l *Limiter) (left time.Duration) {
	t.Helper()
	start := time.Now()
	for op, urgent := range map[string]bool{"exchange": false, "renew": false, "check": false, "revoke": true} {
		_, err := l.enter(t.Context(), op, urgent)
		e := (*Error)(nil)
		if !errors.As(err, &e) || !errors.Is(err, ErrBusy) {
			t.Fatalf("%s: %v; want ErrBusy", op, err)
		}
		left = e.RetryAfter
	}
	if took := time.Since(start); took != 0 {
		t.Errorf("the refusals took %v", took)
	}
	return left
}

func TestBreakerOpensAndProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(0, 0, 10)
		meet(t, l, breakerTrips-1, healthDead)
		meet(t, l, 1, healthAlive)
		meet(t, l, breakerTrips, healthDead) // in a row: what was before does not count
		for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
			if left := wantShut(t, l); left != want*time.Second {
				t.Fatalf("the pause is %v; want %v", left, want*time.Second)
			}
			time.Sleep(want * time.Second)
			leave, err := l.enter(t.Context(), "revoke", true)
			if err != nil {
				t.Fatalf("no probe after the pause: %v", err)
			}
			wantShut(t, l) // one at a time
			leave(healthDead)
		}
		time.Sleep(breakerMost)
		meet(t, l, 3, healthAlive)
		if s := l.state(); s != (State{}) {
			t.Errorf("after success: %+v", s)
		}
		meet(t, l, breakerTrips, healthDead)
		if left := wantShut(t, l); left != breakerFirst {
			t.Errorf("the pause begins with %v; want %v", left, breakerFirst)
		}
	})
}

// A success of one kind of call must not set another, which goes on failing, free to hammer.
func TestBreakerOnProbation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(0, 0, 10)
		meet(t, l, breakerTrips, healthDead)
		for _, want := range []time.Duration{1, 2, 4} {
			if left := wantShut(t, l); left != want*time.Second {
				t.Fatalf("the pause is %v; want %v", left, want*time.Second)
			}
			time.Sleep(want * time.Second)
			meet(t, l, 1, healthAlive)
			meet(t, l, 1, healthDead)
		}
	})
}

// Calls that began before the breaker opened say nothing of the pause; that one of them was answered closes it.
func TestBreakerAndEarlierCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(0, 0, 20)
		var leaves []func(health)
		for range breakerTrips + 3 {
			leave, err := l.enter(t.Context(), "revoke", true)
			if err != nil {
				t.Fatal(err)
			}
			leaves = append(leaves, leave)
		}
		for _, leave := range leaves[:breakerTrips+2] {
			leave(healthDead)
		}
		if left := wantShut(t, l); left != breakerFirst {
			t.Errorf("the pause is %v; want %v", left, breakerFirst)
		}
		leaves[breakerTrips+2](healthAlive)
		meet(t, l, 1, healthAlive)
	})
}

// A probe that is given up leaves its place to the next call.
func TestBreakerAndAProbeThatIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(0, 0, 10)
		meet(t, l, breakerTrips, healthDead)
		time.Sleep(breakerFirst)
		meet(t, l, 1, healthUnknown)
		if s := l.state(); !s.Open {
			t.Errorf("nobody knows that it lives: %+v", s)
		}
		meet(t, l, 1, healthAlive)
	})
}

// A target whose probe breaks with its own error is there: else one whose check always does would stay shut for good.
func TestBreakerAndAProbeThatBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(0, 0, 10)
		meet(t, l, 2*breakerTrips, healthFaulty) // opens nothing
		meet(t, l, breakerTrips, healthDead)
		time.Sleep(breakerFirst)
		meet(t, l, 1, healthFaulty)
		if s := l.state(); s.Open {
			t.Errorf("it has answered: %+v", s)
		}
		meet(t, l, 1, healthDead)
		if left := wantShut(t, l); left != 2*breakerFirst {
			t.Errorf("on probation the pause is %v; want %v", left, 2*breakerFirst)
		}
	})
}

// While something waits that ends keys, nothing that may use up a token is the probe.
func TestRevocationProbesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(0, 0, 1)
		slow, err := l.enter(t.Context(), "renew", false)
		if err != nil {
			t.Fatal(err)
		}
		l.breaker = breaker{open: true, failures: breakerTrips} // its pause is over
		ended := make(chan string, 2)
		for _, op := range []string{"exchange", "revoke"} { // the exchange has the turn, and waits for the only slot
			go func() {
				leave, err := l.enter(t.Context(), op, op == "revoke")
				if err != nil {
					ended <- op + " is refused"
					return
				}
				ended <- op + " probes"
				leave(healthDead)
			}()
			synctest.Wait()
		}
		slow(healthUnknown)
		synctest.Wait()
		if first, second := <-ended, <-ended; first != "exchange is refused" || second != "revoke probes" {
			t.Errorf("%s, %s", first, second)
		}
	})
}

func TestHealth(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Hour))
	defer cancel()
	here := t.Context()
	for name, c := range map[string]struct {
		ctx  context.Context
		err  *Error
		want health
	}{
		"refusal":                {here, &Error{Status: 401, outcome: ErrDenied}, healthAlive},
		"refusal by 500":         {here, &Error{Status: 500, outcome: ErrDenied}, healthAlive},
		"too many":               {here, &Error{Status: 429, outcome: ErrBusy}, healthAlive},
		"unavailable":            {here, &Error{Status: 503, outcome: ErrBusy}, healthDead},
		"no server":              {here, &Error{Status: 502, outcome: ErrUnknown}, healthDead},
		"no server in time":      {here, &Error{Status: 504, outcome: ErrUnknown}, healthDead},
		"server's error":         {here, &Error{Status: 500, outcome: ErrUnknown}, healthFaulty},
		"redirect":               {here, &Error{Status: 302, outcome: ErrUnknown}, healthAlive},
		"nonsense":               {here, &Error{outcome: ErrProtocol}, healthAlive},
		"no connection":          {here, &Error{outcome: ErrBusy}, healthDead},
		"no answer":              {here, &Error{outcome: ErrUnknown}, healthDead},
		"no answer in our time":  {late, &Error{outcome: ErrUnknown, cause: context.DeadlineExceeded}, healthDead},
		"the caller has left":    {gone, &Error{outcome: ErrUnknown, cause: context.Canceled}, healthUnknown},
		"forbidden by the rules": {here, &Error{outcome: ErrEgress}, healthUnknown},
	} {
		if got := healthOf(c.ctx, c.err); got != c.want {
			t.Errorf("%s: %v; want %v", name, got, c.want)
		}
	}
	if healthOf(here, nil) != healthAlive {
		t.Error("success is no sign of life")
	}
}

func TestLimitsChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1, 2, 1)
		enter(t, l, true)()
		enter(t, l, true)()
		l.set(limits{1, 2, 1}) // as after a write that leaves them
		start := time.Now()
		enter(t, l, true)()
		if took := time.Since(start); took != time.Second {
			t.Errorf("the bucket was filled by setting the same limits: the third call waited %v; want 1s", took)
		}
		l.set(limits{10, 1, 1})
		start = time.Now()
		enter(t, l, true)()
		if took := time.Since(start); took != 100*time.Millisecond {
			t.Errorf("at ten a second a call waited %v", took)
		}
		l.set(limits{0, 0, 1})
		leave := enter(t, l, true)
		waiting := make(chan func(), 1)
		go func() { waiting <- enter(t, l, true) }()
		synctest.Wait()
		if len(waiting) > 0 {
			t.Fatal("two calls run at a time; want one")
		}
		l.set(limits{0, 0, 2})
		synctest.Wait()
		if len(waiting) == 0 {
			t.Fatal("a second call may run now, and waits")
		}
		l.set(limits{0, 0, 1})
		leave()
		go func() { waiting <- enter(t, l, true) }()
		synctest.Wait()
		if len(waiting) > 1 {
			t.Error("one call runs, and another is let in; want one at a time again")
		}
		(<-waiting)()
		(<-waiting)()
	})
}
