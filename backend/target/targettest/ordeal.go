// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package targettest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// reads reports whether a call takes more from its answer than the status.
func reads(op Op) bool { return !slices.Contains([]Op{Revoke, Check, Retire}, op) }

// makes reports whether a call makes something that stays valid if its answer is lost.
func makes(op Op) bool { return slices.Contains([]Op{Exchange, Rotate, RotateCredential}, op) }

// testFaults checks what every call of a target has in common.
func (s Suite) testFaults(t *testing.T, op Op) {
	t.Run("statuses", func(t *testing.T) { s.testStatuses(t, op) })
	t.Run("refusals", func(t *testing.T) { s.testRefusals(t, op) })
	t.Run("retry-after", func(t *testing.T) { s.testRetryAfter(t, op) })
	t.Run("urgent", func(t *testing.T) { s.testUrgent(t, op) })
	t.Run("connections", func(t *testing.T) { s.testConnections(t, op) })
	t.Run("redirects", func(t *testing.T) { s.testRedirects(t, op) })
	t.Run("deadline and cancel", func(t *testing.T) { s.testEnds(t, op) })
	if reads(op) {
		t.Run("bodies", func(t *testing.T) { s.testBodies(t, op) })
	}
}

// ready returns a bench with a live key and a connection that has been used before: if such a connection breaks, net/http
// repeats some requests by itself.
func (s Suite) ready(t *testing.T, change ...func(*target.Config)) (*bench, target.Key) {
	t.Helper()
	b := s.start(t, change...)
	return b, b.issue()
}

// testStatuses tries every 4xx and 5xx status that has a name, and two that have none.
func (s Suite) testStatuses(t *testing.T, op Op) {
	b, key := s.ready(t)
	for status := 400; status < 600; status++ {
		want := s.outcomes(op, status)
		if http.StatusText(status) == "" && status%100 != 99 || len(want) == 0 {
			continue
		}
		if slices.Contains([]Op{Rotate, RotateCredential, Retire}, op) { // the call before used up what this one needs
			b, key = s.ready(t)
		}
		before := b.fake.requests()
		b.fake.suffer(b.fake.status(status))
		err := b.call(t.Context(), op, key)
		var e *target.Error
		if !errors.As(err, &e) || e.Status != status || e.Op != string(op) {
			t.Fatalf("%d: got %v; want an error of this operation and status", status, err)
		}
		if !slices.ContainsFunc(want, func(outcome error) bool { return errors.Is(err, outcome) }) {
			t.Errorf("%d: got %v; want one that is %v", status, err, want)
		}
		b.clean(err)
		b.once(before)
		if makes(op) && target.MayLive(err) != errors.Is(err, target.ErrUnknown) {
			t.Errorf("MayLive(%v) is %v", err, target.MayLive(err))
		}
		b.fake.suffer(nil)
		if op == RotateCredential && target.MayLive(err) { // a target may know that the call must not be repeated
			continue
		}
		if err := b.call(t.Context(), op, key); err != nil {
			t.Fatalf("after %d: %v", status, err)
		}
	}
}

// outcomes returns the errors that a status may lead to; none if it means success.
func (s Suite) outcomes(op Op, status int) []error {
	switch {
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		return []error{target.ErrBusy}
	case op == Retire && status == http.StatusUnauthorized: // the credential has ended, which is what Retire is for
		return nil
	case makes(op) && slices.Contains(s.Denied, status), status == http.StatusUnauthorized, status == http.StatusForbidden:
		return []error{target.ErrDenied}
	case op == Revoke && status == s.gone().Status && s.Gone.Body == nil, op == Find && s.Named && status == http.StatusNotFound:
		return nil
	case makes(op), status >= 500 && status != http.StatusNotImplemented:
		return []error{target.ErrUnknown}
	}
	return []error{target.ErrUnknown, target.ErrDenied} // either is right, because no caller treats them differently
}

// testRefusals checks that the status alone makes a refusal: whatever the body is, the outcome is the same and the call is
// not repeated.
func (s Suite) testRefusals(t *testing.T, op Op) {
	text := func(text string) fault {
		return func(w http.ResponseWriter, _ func() Answer) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, text)
		}
	}
	for name, hurt := range map[string]fault{
		"no body": text(""), "html": text("<html>" + wireCanary), "list": text(`["` + wireCanary + `"]`), "null": text("null"),
		"deep": text(strings.Repeat(`{"error":`, 1<<12)), "huge": text(`"` + strings.Repeat(wireCanary, 1<<16) + `"`),
		"truncated": func(w http.ResponseWriter, _ func() Answer) {
			truncated(w, func() Answer { return Answer{Status: http.StatusForbidden, Body: wireCanary} })
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, key := s.ready(t)
			before := b.fake.requests()
			b.fake.suffer(hurt)
			b.expect(b.call(t.Context(), op, key), target.ErrDenied)
			b.once(before)
		})
	}
	t.Run("endless", func(t *testing.T) {
		b, key := s.ready(t)
		b.target = s.hasty(b)
		b.fake.suffer(func(w http.ResponseWriter, _ func() Answer) {
			half(w, func() Answer { return Answer{Status: http.StatusForbidden, Body: wireCanary} })
			<-b.fake.released
		})
		err := b.promptly(func() error { return b.call(t.Context(), op, key) })
		if errors.Is(err, target.ErrProtocol) || err == nil { // not ErrDenied, because on a slow machine the status may come too late
			t.Errorf("got %v; want a refusal", err)
		}
	})
}

// hasty returns the same target with a deadline that falls within the call under test, however slow the machine.
func (s Suite) hasty(b *bench) *target.Target {
	b.Helper()
	c := b.config
	c.RequestTimeout = 50 * time.Millisecond
	opened, err := target.Open(c)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(opened.Close)
	return opened
}

// testRetryAfter checks that a target makes no call while the server has asked for a pause, in whatever form it gave the
// time.
func (s Suite) testRetryAfter(t *testing.T, op Op) {
	end := Start.Add(7 * time.Second)
	for _, header := range [][]string{
		{"Retry-After", "7"}, {"Retry-After", end.Format(http.TimeFormat)}, {"RateLimit-Reset", fmt.Sprint(end.Unix())},
	} {
		b, key := s.ready(t)
		b.fake.suffer(b.fake.status(429, header...))
		err := b.call(t.Context(), op, key)
		b.expect(err, target.ErrBusy)
		var e *target.Error
		if errors.As(err, &e) && e.RetryAfter != 7*time.Second {
			t.Errorf("RetryAfter is %v; want 7s", e.RetryAfter)
		}
		b.fake.suffer(nil)
		before := b.fake.requests()
		b.clock.advance(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // shorter than the rest of the pause
		defer cancel()
		err = b.promptly(func() error { return b.call(ctx, op, key) })
		b.expect(err, target.ErrBusy)
		if errors.As(err, &e) && (e.RetryAfter != 6*time.Second || ctx.Err() != nil) {
			t.Errorf("during the pause: RetryAfter %v, context %v; want 6s at once", e.RetryAfter, ctx.Err())
		}
		b.times(0, before)
		b.clock.advance(6 * time.Second)
		b.expect(b.call(t.Context(), op, key), nil)
	}
}

// testUrgent checks that calls that end keys, or look for keys to end, have priority: while the server has asked for a pause
// they wait for its end and are then made; others are refused at once.
func (s Suite) testUrgent(t *testing.T, op Op) {
	b, key := s.ready(t)
	b.fake.suffer(b.fake.status(429, "Retry-After", "1"))
	b.expect(b.call(t.Context(), op, key), target.ErrBusy)
	b.fake.suffer(nil)
	b.clock.advance(time.Second - time.Millisecond)
	b.clock.leapAfter(20, time.Millisecond)
	before := b.fake.requests()
	err := b.promptly(func() error { return b.call(t.Context(), op, key) })
	if op == Revoke || op == Find || op == List {
		b.expect(err, nil)
		b.times(s.requests(op), before)
		return
	}
	b.expect(err, target.ErrBusy)
	b.times(0, before)
}

func (s Suite) testConnections(t *testing.T, op Op) {
	for name, hurt := range map[string]fault{"cut before": cutBefore, "cut after": cutAfter} {
		t.Run(name, func(t *testing.T) {
			b, key := s.ready(t)
			lived, before := len(b.fake.living()), b.fake.requests()
			b.fake.suffer(hurt)
			err := b.call(t.Context(), op, key)
			b.expect(err, target.ErrUnknown)
			if op != Find && op != List && op != Check && op != Identify { // the calls excepted change nothing, and net/http may repeat them
				b.once(before)
			}
			if op == Exchange && !target.MayLive(err) {
				t.Error("MayLive says that no key can exist")
			}
			want := lived
			if name == "cut after" {
				want += map[Op]int{Exchange: 1, Revoke: -1}[op]
			}
			if got := len(b.fake.living()); got != want {
				t.Errorf("%d keys live; want %d", got, want)
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		b, key := s.ready(t)
		b.fake.server.CloseClientConnections()
		b.fake.server.Listener.Close()
		b.target.Close()
		err := b.call(t.Context(), op, key)
		b.expect(err, target.ErrBusy)
		if target.MayLive(err) {
			t.Error("MayLive says that a key may exist; nothing was sent")
		}
	})
}

func (s Suite) testRedirects(t *testing.T, op Op) {
	var followed atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed.Add(1) }))
	defer elsewhere.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, location := range []string{elsewhere.URL + "/" + wireCanary, "/" + wireCanary} {
			b, key := s.ready(t)
			before := b.fake.requests()
			b.fake.suffer(b.fake.status(status, "Location", location))
			b.expect(b.call(t.Context(), op, key), target.ErrUnknown)
			b.once(before)
		}
	}
	if got := followed.Load(); got != 0 {
		t.Errorf("%d redirects were followed to another server", got)
	}
}

// testEnds checks that the call ends with its own deadline and with its context, wherever the server stops.
func (s Suite) testEnds(t *testing.T, op Op) {
	places := map[string]func(*fake, func()) fault{"before the answer": (*fake).blocked}
	if reads(op) {
		places["in the answer"] = (*fake).stuck
	}
	for place, stop := range places {
		t.Run("deadline "+place, func(t *testing.T) {
			b, key := s.ready(t) // made by a target with a long deadline
			b.fake.suffer(stop(b.fake, func() {}))
			before := b.fake.requests()
			b.target = s.hasty(b)
			err := b.promptly(func() error { return b.call(t.Context(), op, key) })
			if errors.Is(err, target.ErrBusy) && b.fake.requests() == before {
				return // the machine was too slow to connect in time
			}
			b.expect(err, target.ErrUnknown)
		})
		t.Run("cancel "+place, func(t *testing.T) {
			b, key := s.ready(t)
			before := b.fake.requests()
			ctx, cancel := context.WithCancel(t.Context())
			b.fake.suffer(stop(b.fake, cancel))
			err := b.promptly(func() error { return b.call(ctx, op, key) })
			b.expect(err, target.ErrUnknown)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%v does not say that the context was cancelled", err)
			}
			b.once(before)
		})
	}
	t.Run("cancelled before", func(t *testing.T) {
		b, key := s.ready(t)
		before := b.fake.requests()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		b.expect(b.call(ctx, op, key), target.ErrBusy)
		b.times(0, before)
	})
}

// testBodies checks the bodies that are read: whatever is wrong with one, the call may have happened.
func (s Suite) testBodies(t *testing.T, op Op) {
	text := func(text string) fault { return raw(func([]byte) string { return text }) }
	pad := func(n int) func([]byte) string {
		return func(good []byte) string { return string(good) + string(slices.Repeat([]byte{' '}, n-len(good))) }
	}
	cases := map[string]struct {
		hurt fault
		want error
	}{
		"empty":             {text(""), target.ErrProtocol},
		"html":              {text("<html>" + wireCanary + "</html>"), target.ErrProtocol},
		"not an object":     {text(`"` + wireCanary + `"`), target.ErrProtocol},
		"a list":            {text(`["` + wireCanary + `"]`), target.ErrProtocol},
		"null":              {text("null"), target.ErrProtocol},
		"deep":              {text(strings.Repeat("[", 1<<14) + strings.Repeat("]", 1<<14)), target.ErrProtocol},
		"goes on":           {raw(func(good []byte) string { return string(good) + "{}" }), target.ErrProtocol},
		"ends early":        {raw(func(good []byte) string { return string(good[:len(good)-1]) }), target.ErrProtocol},
		"as large as may":   {raw(pad(maxBytes)), nil},
		"larger than may":   {raw(pad(maxBytes + 1)), target.ErrProtocol},
		"huge but valid":    {raw(pad(64 * maxBytes)), target.ErrProtocol},
		"truncated":         {truncated, target.ErrUnknown},
		"another ok status": {func(w http.ResponseWriter, act func() Answer) { write(w, Answer{Status: 206, Body: act().Body}) }, target.ErrUnknown},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b, key := s.ready(t)
			before := b.fake.requests()
			b.fake.suffer(c.hurt)
			err := b.call(t.Context(), op, key)
			b.expect(err, c.want)
			if err != nil && !target.MayLive(err) {
				t.Errorf("MayLive(%v) says that no key can exist", err)
			}
			if c.want == nil {
				b.times(s.requests(op), before)
				return
			}
			b.once(before)
		})
	}
}
