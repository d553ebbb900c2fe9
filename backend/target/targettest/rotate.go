// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package targettest

import (
	"errors"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// testRotate checks that a new key replaces the old one, once, and that a new key whose answer was lost is found.
func (s Suite) testRotate(t *testing.T) {
	if !s.Caps.Rotate {
		b := s.start(t)
		_, err := b.target.Rotate(t.Context(), whole(b.issue()), b.clock.now().Add(time.Hour))
		b.expect(err, target.ErrUnsupported)
		return
	}
	b := s.start(t)
	other, old := b.issue(), b.issue()
	before := b.fake.requests()
	asked := b.clock.now().Add(5 * time.Hour)
	got, err := b.target.Rotate(t.Context(), b.stored(whole(old)), asked)
	b.expect(err, nil)
	b.once(before)
	living := b.fake.living()
	if len(living) != 2 || living[0].Secret != other.Secret || living[1].Secret != got.Secret || got.Secret == old.Secret {
		t.Fatalf("after rotating one of two keys %d live; want the other and the new one", len(living))
	}
	want := old
	want.Secret, want.Header, want.Expiry = got.Secret, got.Header, s.end(asked)
	if s.Accessor {
		want.Accessor = living[1].Accessor
	}
	if want.Handle.Accessor != "" {
		want.Handle.Accessor = living[1].Accessor
	}
	if want.Handle.Secret != "" {
		want.Handle.Secret = got.Secret
	}
	if diff := cmp.Diff(want, got); diff != "" || living[1].Name != old.Handle.Name {
		t.Errorf("the new key, named %q (-want +got):\n%s", living[1].Name, diff)
	}
	_, err = b.target.Rotate(t.Context(), whole(old), asked) // the old key has ended
	b.expect(err, target.ErrDenied)
	if len(s.Credential) > 0 {
		_, err = b.stranger().Rotate(t.Context(), whole(got), asked)
		b.expect(err, target.ErrDenied)
	}

	b.fake.suffer(cutAfter)
	_, err = b.target.Rotate(t.Context(), whole(got), asked)
	b.expect(err, target.ErrUnknown)
	b.fake.suffer(nil)
	if s.Caps.Find && s.Caps.Revoke && !s.ByName {
		handles := b.findsOnly(target.Handle{Name: got.Handle.Name, Params: got.Handle.Params}, b.fake.living()[1].Accessor)
		b.expect(b.target.Revoke(t.Context(), handles[0]), nil)
	}
}

// testIdentify checks that Identify returns the key that it is given, and refuses unknown and ended keys.
func (s Suite) testIdentify(t *testing.T) {
	b := s.start(t)
	b.issue()
	key := b.issue()
	before := b.fake.requests()
	got, err := b.target.Identify(t.Context(), key.Secret, key.Handle.Params)
	if !s.Caps.Identify {
		b.expect(err, target.ErrUnsupported)
		return
	}
	b.expect(err, nil)
	b.once(before)
	if diff := cmp.Diff(key, got); diff != "" {
		t.Errorf("(-issued +identified):\n%s", diff)
	}
	_, err = b.target.Identify(t.Context(), keyCanary+"9999", key.Handle.Params)
	b.expect(err, target.ErrDenied)
	if s.Caps.Revoke {
		b.expect(b.target.Revoke(t.Context(), b.stored(got.Handle)), nil)
		_, err = b.target.Identify(t.Context(), key.Secret, key.Handle.Params)
		b.expect(err, target.ErrDenied)
	}
}

// testRotateCredential checks that the new credential is good, and that the old one stays good for as long as it should.
func (s Suite) testRotateCredential(t *testing.T) {
	b := s.start(t)
	before := b.fake.requests()
	asked := b.clock.now().Add(5 * time.Hour)
	got, err := b.target.RotateCredential(t.Context(), "oidcx-credential", asked)
	if !s.Caps.RotateRoot {
		b.expect(err, target.ErrUnsupported)
		_, err = b.target.RetireCredential(t.Context())
		b.expect(err, target.ErrUnsupported)
		return
	}
	b.expect(err, nil)
	b.once(before)
	want := maps.Clone(b.fake.credential)
	want[s.Rotated] = credentialCanary + s.Rotated + "-1"
	if diff := cmp.Diff(want, got.Fields); diff != "" || !got.Expiry.Equal(s.end(asked)) || !b.fake.last().NotAfter.Equal(s.end(asked)) {
		t.Errorf("it ends at %v, asked for was %v (-want +got):\n%s", got.Expiry, b.fake.last().NotAfter, diff)
	}
	b.clean(got)
	b.clean(&got)
	var logged strings.Builder
	slog.New(slog.NewTextHandler(&logged, nil)).Info("message", "value", got)
	b.clean(errors.New(logged.String()))

	old := b.target
	c := b.config
	c.Credential = got.Fields
	if b.target, err = target.Open(c); err != nil {
		t.Fatalf("Open with the new credential: %v", err)
	}
	t.Cleanup(b.target.Close)
	b.issue()
	if s.Caps.Retire {
		_, err = old.Exchange(t.Context(), b.request())
		b.expect(err, nil)
		for _, again := range []bool{false, true} { // the second time it is no longer a credential
			doubtful, err := old.RetireCredential(t.Context())
			b.expect(err, nil)
			if doubtful != again {
				t.Errorf("that it is gone is doubtful: %t; want %t", doubtful, again)
			}
		}
	} else {
		_, err = b.target.RetireCredential(t.Context())
		b.expect(err, target.ErrUnsupported)
	}
	_, err = old.Exchange(t.Context(), b.request())
	b.expect(err, target.ErrDenied)
	b.issue()
}
