// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// enter enters or fails the test.
func enter(t *testing.T, l *Limiter, urgent bool) func() {
	t.Helper()
	leave, err := l.enter(t.Context(), "exchange", urgent)
	if err != nil {
		t.Fatal(err)
	}
	return func() { leave(healthAlive) }
}

func newLimiter(perSecond float64, burst, concurrency int) *Limiter {
	l := NewLimiter(time.Now)
	l.set(limits{perSecond, burst, concurrency})
	return l
}

// While all slots are taken, calls queue up. When they are freed one by one, urgent calls get them before ordinary ones
// that came earlier; only the one ordinary call whose turn it is already goes before.
func TestUrgentCallsGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(0, 0, 1)
		leave := enter(t, l, false)
		order := make(chan string, 6)
		wait := func(name string, urgent bool) {
			go func() {
				leave, err := l.enter(t.Context(), name, urgent)
				if err != nil {
					t.Error(err)
					return
				}
				order <- name
				leave(healthAlive)
			}()
			synctest.Wait()
		}
		for range 3 {
			wait("issue", false)
		}
		for range 3 {
			wait("revoke", true)
		}
		leave()
		synctest.Wait()
		close(order)
		got := []string{}
		for name := range order {
			got = append(got, name)
		}
		// The first ordinary call had its turn when the urgent ones came.
		if diff := cmp.Diff([]string{"issue", "revoke", "revoke", "revoke", "issue", "issue"}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestConcurrencyIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(0, 0, 3)
		var running, entered atomic.Int64
		for range 20 {
			go func() {
				leave := enter(t, l, false)
				entered.Add(1)
				if n := running.Add(1); n > 3 {
					t.Errorf("%d run at a time; want at most 3", n)
				}
				time.Sleep(time.Second)
				running.Add(-1)
				leave()
			}()
		}
		synctest.Wait()
		if n := running.Load(); n != 3 {
			t.Errorf("%d run at first; want 3", n)
		}
		time.Sleep(8 * time.Second) // of the test's clock
		synctest.Wait()
		if n := entered.Load(); n != 20 {
			t.Errorf("%d had their turn; want 20", n)
		}
	})
}

func TestRateIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(2, 1, 10)
		start := time.Now()
		for range 5 {
			enter(t, l, true)()
		}
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("five calls at two a second took %v; want 2s", took)
		}
	})
}

func TestWaitIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(0, 0, 1)
		defer enter(t, l, false)()
		start := time.Now()
		_, err := l.enter(t.Context(), "exchange", false)
		if took := time.Since(start); !errors.Is(err, ErrBusy) || took != maxWait {
			t.Errorf("an ordinary call waited %v and got %v; want ErrBusy after %v", took, err, maxWait)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		start = time.Now()
		_, err = l.enter(ctx, "revoke", true)
		if took := time.Since(start); !errors.Is(err, ErrBusy) || !errors.Is(err, context.DeadlineExceeded) || took != time.Hour {
			t.Errorf("an urgent call waited %v and got %v; want ErrBusy when its context ends", took, err)
		}
	})
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(0, 0, 1)
		l.pause(time.Hour)
		l.pause(time.Second) // does not shorten it
		_, err := l.enter(t.Context(), "exchange", false)
		var e *Error
		if !errors.As(err, &e) || !errors.Is(err, ErrBusy) || e.RetryAfter != maxPause {
			t.Errorf("an ordinary call got %v; want ErrBusy, %v to go", err, maxPause)
		}
		start := time.Now()
		enter(t, l, true)()
		if took := time.Since(start); took != maxPause {
			t.Errorf("an urgent call waited %v; want %v", took, maxPause)
		}
		l.pause(time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		_, err = l.enter(ctx, "revoke", true)
		if took := time.Since(start); !errors.Is(err, ErrBusy) || took != 0 {
			t.Errorf("an urgent call that cannot wait long enough waited %v and got %v; want ErrBusy at once", took, err)
		}
	})
}

// A call that waits for a slot when the target asks to be left alone is not made any more, unless it ends keys.
func TestPauseWhileACallWaits(t *testing.T) {
	for urgent, refused := range map[bool]bool{false: true, true: false} {
		synctest.Test(t, func(t *testing.T) {
			l := newLimiter(0, 0, 1)
			leave := enter(t, l, false)
			done := make(chan error, 1)
			go func() {
				leave, err := l.enter(t.Context(), "exchange", urgent)
				if err == nil {
					leave(healthAlive)
				}
				done <- err
			}()
			synctest.Wait()
			l.pause(time.Minute)
			leave()
			if err := <-done; errors.Is(err, ErrBusy) != refused {
				t.Errorf("urgent %v: got %v", urgent, err)
			}
			time.Sleep(time.Minute) // of the test's clock
			if diff := cmp.Diff(State{}, l.state()); diff != "" {
				t.Errorf("urgent %v: when all are over (-want +got):\n%s", urgent, diff)
			}
		})
	}
}

// What a limiter does shows while it does it, and what it has done leaves nothing behind.
func TestLimiterState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(0, 0, 1)
		leave := enter(t, l, false)
		for _, urgent := range []bool{true, false, false} {
			go func() { enter(t, l, urgent)() }()
		}
		synctest.Wait()
		if diff := cmp.Diff(State{Running: 1, Waiting: 3}, l.state()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		leave()
		synctest.Wait()
		if diff := cmp.Diff(State{}, l.state()); diff != "" {
			t.Errorf("when all are over (-want +got):\n%s", diff)
		}
		l.pause(time.Minute)
		if diff := cmp.Diff(State{Paused: true, Next: time.Now().Add(time.Minute)}, l.state()); diff != "" {
			t.Errorf("in a pause (-want +got):\n%s", diff)
		}
		time.Sleep(time.Minute) // of the test's clock
		if diff := cmp.Diff(State{}, l.state()); diff != "" {
			t.Errorf("after the pause (-want +got):\n%s", diff)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "0": 0, "1": time.Second, "300": 5 * time.Minute, "301": 5 * time.Minute, "2147483647": 5 * time.Minute,
		"-1": 0, "1.5": 0, "99999999999999999999": 0, "soon": 0,
		"Wed, 02 Jan 2030 03:04:15 GMT": 10 * time.Second, "Wed, 02 Jan 2030 03:04:00 GMT": 0, "Wed, 02 Jan 2030 13:04:00 GMT": 5 * time.Minute,
	} {
		if got := retryAfter(http.Header{"Retry-After": {text}}, now); got != want {
			t.Errorf("%q: got %v; want %v", text, got, want)
		}
	}
}
