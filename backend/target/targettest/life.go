// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package targettest

import (
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// stored returns a handle as it comes back from storage.
func (b *bench) stored(h target.Handle) target.Handle {
	b.Helper()
	text, err := json.Marshal(h)
	if err != nil {
		b.Fatal(err)
	}
	var out target.Handle
	if err := json.Unmarshal(text, &out); err != nil {
		b.Fatal(err)
	}
	return out
}

// stranger returns the same target with a credential that the server does not accept.
func (b *bench) stranger() *target.Target {
	b.Helper()
	c := b.config
	c.Credential = maps.Clone(c.Credential)
	for name := range c.Credential {
		c.Credential[name] += "-wrong"
	}
	opened, err := target.Open(c)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(opened.Close)
	return opened
}

func (s Suite) testRevoke(t *testing.T) {
	if !s.Caps.Revoke {
		b := s.start(t)
		b.expect(b.target.Revoke(t.Context(), b.issue().Handle), target.ErrUnsupported)
		return
	}
	b := s.start(t)
	first, second := b.issue(), b.issue()
	before := b.fake.requests()
	b.expect(b.target.Revoke(t.Context(), b.stored(first.Handle)), nil)
	b.once(before)
	if living := b.fake.living(); len(living) != 1 || living[0].Secret != second.Secret {
		t.Fatalf("after revoking the first of two keys %d live", len(living))
	}
	before = b.fake.requests()
	b.expect(b.target.Revoke(t.Context(), first.Handle), nil) // the key is gone: Revoke succeeds, and still asks the server
	b.times(1+s.Doubts, before)
	if s.Doubts > 0 {
		b.fake.suffer(after(1, cutBefore))
		b.expect(b.target.Revoke(t.Context(), first.Handle), target.ErrUnknown)
		b.fake.suffer(b.fake.status(http.StatusNotFound)) // a proxy answers so for all addresses that it does not know
		if b.target.Revoke(t.Context(), second.Handle) == nil {
			t.Error("a server that knows no address is believed that the key is gone")
		}
		if s.Named {
			_, err := b.target.Find(t.Context(), second.Handle)
			b.expect(err, target.ErrUnknown)
		}
		b.fake.suffer(nil)
	}

	unknown, empty := second.Handle, target.Handle{Name: second.Handle.Name, Params: second.Handle.Params}
	if s.ByName {
		unknown.Name, empty.Name = "oidcx-nobody", ""
	}
	if unknown.Accessor != "" {
		unknown.Accessor = s.accessor(9999)
	}
	if unknown.Secret != "" {
		unknown.Secret = keyCanary + "9999"
	}
	b.expect(b.target.Revoke(t.Context(), unknown), nil)
	b.expect(b.target.Revoke(t.Context(), empty), target.ErrParameter)
	if len(s.Credential) > 0 {
		b.expect(b.stranger().Revoke(t.Context(), second.Handle), target.ErrDenied)
	}
	if got := len(b.fake.living()); got != 1 {
		t.Errorf("%d keys live; want the second one still", got)
	}
}

func (s Suite) testRenew(t *testing.T) {
	if !s.Caps.Renew {
		b := s.start(t)
		_, err := b.target.Renew(t.Context(), b.issue().Handle, b.clock.now().Add(time.Hour))
		b.expect(err, target.ErrUnsupported)
		return
	}
	b := s.start(t)
	key := b.issue()
	before := b.fake.requests()
	asked := b.clock.now().Add(5 * time.Hour)
	end := s.end(asked)
	got, err := b.target.Renew(t.Context(), b.stored(key.Handle), asked)
	b.expect(err, nil)
	b.once(before)
	if s.Fixed {
		end = key.Expiry
	}
	if !got.Equal(end) || !b.fake.living()[0].Expiry.Equal(end) || !s.Fixed && !b.fake.last().NotAfter.Equal(end) {
		t.Errorf("Renew says %v, the server was told %v and has %v; want %v", got, b.fake.last().NotAfter, b.fake.living()[0].Expiry, end)
	}
	b.fake.ends(time.Hour) // less than asked for: Renew must return the key's real end
	if got, err = b.target.Renew(t.Context(), key.Handle, end); err != nil || !got.Equal(b.clock.now().Add(time.Hour)) {
		t.Errorf("Renew says %v, %v; the server gave one hour", got, err)
	}
	b.fake.ends(-time.Hour)
	_, err = b.target.Renew(t.Context(), key.Handle, end)
	b.expect(err, target.ErrProtocol)
	b.fake.ends(0)
	gone := b.issue()
	b.fake.kill(b.fake.made().Accessor)
	if got, err := b.target.Renew(t.Context(), gone.Handle, end); err == nil {
		t.Errorf("Renew of a key that is gone says %v", got)
	}
	if len(s.Credential) > 0 {
		_, err = b.stranger().Renew(t.Context(), key.Handle, end)
		b.expect(err, target.ErrDenied)
	}
}

func (s Suite) testFind(t *testing.T) {
	if !s.Caps.Find {
		b := s.start(t)
		_, err := b.target.Find(t.Context(), b.issue().Handle)
		b.expect(err, target.ErrUnsupported)
		return
	}
	if s.ByName {
		s.testFindByName(t)
		return
	}
	b := s.start(t)
	b.issue()
	key := b.issue()
	b.findsOnly(target.Handle{Name: key.Handle.Name, Params: key.Handle.Params}, key.Accessor)
	b.findsOnly(target.Handle{Name: "oidcx-nobody", Params: key.Handle.Params})
	if len(s.Credential) > 0 {
		_, err := b.stranger().Find(t.Context(), key.Handle)
		b.expect(err, target.ErrDenied)
	}

	// An answer is lost. The key is found by the name in the request, and can be ended.
	r := b.request()
	b.fake.suffer(cutAfter)
	_, err := b.target.Exchange(t.Context(), r)
	b.expect(err, target.ErrUnknown)
	b.fake.suffer(nil)
	lost := b.fake.living()[2]
	handles := b.findsOnly(b.stored(target.Handle{Name: r.Name, Params: r.Params}), lost.Accessor)
	if !s.Caps.Revoke || len(handles) != 1 {
		return
	}
	b.expect(b.target.Revoke(t.Context(), b.stored(handles[0])), nil)
	b.findsOnly(target.Handle{Name: r.Name, Params: r.Params})
}

// testPages checks that a list of several pages is read to its end, and that Find fails if a page cannot be read.
func (s Suite) testPages(t *testing.T) {
	if s.Wire.Page == nil || !s.asks(Find) {
		return
	}
	start := func() (*bench, []target.Key) {
		b, keys := s.start(t), make([]target.Key, 2*pageSize+1)
		for i := range keys {
			keys[i] = b.issue()
		}
		return b, keys
	}
	by := func(key target.Key) target.Handle {
		return target.Handle{Name: key.Handle.Name, Params: key.Handle.Params}
	}
	b, keys := start()
	for _, key := range keys {
		before := b.fake.requests()
		b.findsOnly(by(key), key.Accessor)
		b.times(3, before)
	}
	nobody := target.Handle{Name: "oidcx-nobody", Params: keys[0].Handle.Params}
	b.findsOnly(nobody)

	for name, hurt := range map[string]fault{"500": b.fake.status(500), "429": b.fake.status(429), "cut": cutBefore, "truncated": truncated, "no list": raw(func([]byte) string { return "{}" })} {
		for page := range int64(3) {
			b.fake.suffer(after(page, hurt))
			if found, err := b.target.Find(t.Context(), nobody); err == nil {
				t.Errorf("page %d is lost (%s), and Find says %v", page+1, name, found)
			}
		}
	}
	b.fake.suffer(nil)
	b.fake.goesOn()
	b.expect(b.promptly(func() error { _, err := b.target.Find(t.Context(), nobody); return err }), target.ErrProtocol)

	// A key before ours ends while the list is read, and ours moves to a page that was read already.
	b, keys = start()
	first, third := b.fake.living()[0], b.fake.living()[pageSize]
	b.fake.suffer(func(w http.ResponseWriter, act func() Answer) {
		write(w, act())
		b.fake.kill(first.Accessor)
	})
	key := keys[slices.IndexFunc(keys, func(k target.Key) bool { return k.Accessor == third.Accessor })]
	b.findsOnly(by(key), key.Accessor)
}

// testFindByName checks that a key whose answer was lost is ended by its name, without a request for the server's list. That
// revoking a key that was never made succeeds is checked with revoke.
func (s Suite) testFindByName(t *testing.T) {
	b := s.start(t)
	b.issue()
	r := b.request()
	b.fake.suffer(cutAfter)
	_, err := b.target.Exchange(t.Context(), r)
	b.expect(err, target.ErrUnknown)
	b.fake.suffer(nil)
	before := b.fake.requests()
	handles := b.findsOnly(b.stored(target.Handle{Name: r.Name, Params: r.Params}), "")
	b.times(0, before) // Find needs no request, because Revoke takes the name
	for _, h := range handles {
		b.expect(b.target.Revoke(t.Context(), b.stored(h)), nil)
	}
	if living := b.fake.living(); len(living) != 1 || living[0].Name == r.Name {
		t.Errorf("%d keys live; want the other one alone", len(living))
	}
}

func (b *bench) findsOnly(h target.Handle, accessors ...string) []target.Handle {
	b.Helper()
	got, err := b.target.Find(b.Context(), h)
	b.expect(err, nil)
	var want []target.Handle
	for _, accessor := range accessors {
		want = append(want, target.Handle{Name: h.Name, Accessor: accessor, Params: h.Params})
	}
	if diff := cmp.Diff(want, got); diff != "" && len(want)+len(got) > 0 {
		b.Errorf("Find (-want +got):\n%s", diff)
	}
	return got
}

func (s Suite) testCheck(t *testing.T) {
	b := s.start(t)
	if !s.Caps.Check {
		b.expect(b.target.Check(t.Context()), target.ErrUnsupported)
		return
	}
	b.expect(b.target.Check(t.Context()), nil)
	b.once(0)
	if len(s.Credential) > 0 {
		b.expect(b.stranger().Check(t.Context()), target.ErrDenied)
	}
}

// testSecrets checks that no value that holds a secret shows it, however the value is printed or logged.
func (s Suite) testSecrets(t *testing.T) {
	b := s.start(t)
	r, key := b.request(), b.issue()
	key.Handle.Secret = key.Secret
	for _, v := range []any{
		b.config, &b.config, b.target, r, &r, key, &key, key.Handle, &key.Handle, []target.Key{key}, map[string]target.Handle{"h": key.Handle},
	} {
		b.clean(v)
		var logged strings.Builder
		slog.New(slog.NewTextHandler(&logged, nil)).Info("message", "value", v)
		slog.New(slog.NewTextHandler(&logged, nil)).Info("message", slog.Group("group", "value", v))
		b.clean(errors.New(logged.String()))
	}
}

// testConcurrency uses one target from many goroutines, for the race detector.
func (s Suite) testConcurrency(t *testing.T) {
	const workers, rounds = 8, 5
	b := s.start(t)
	var (
		mu   sync.Mutex
		seen = map[string]bool{}
		wg   sync.WaitGroup
	)
	for range workers {
		wg.Go(func() {
			for range rounds {
				key, err := b.target.Exchange(t.Context(), b.request())
				if err != nil {
					t.Errorf("Exchange: %v", err)
					return
				}
				mu.Lock()
				if seen[key.Secret] {
					t.Error("two requests got the same key")
				}
				seen[key.Secret] = true
				mu.Unlock()
				for _, op := range []Op{Check, Renew, Find, Revoke} {
					if s.supports(op) {
						if err := b.call(t.Context(), op, key); err != nil {
							t.Errorf("%s: %v", op, err)
						}
					}
				}
			}
		})
	}
	wg.Wait()
	want := workers * rounds
	if s.Caps.Revoke {
		want = 0
	}
	if got := len(b.fake.living()); got != want {
		t.Errorf("%d keys live; want %d", got, want)
	}
}
