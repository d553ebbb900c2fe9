// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"errors"
	"testing"
	"time"
)

// Whatever Connect answers, what comes of it is a key that can be presented and ended, or a fault after which one may live.
func FuzzConnectAnswer(f *testing.F) {
	for _, seed := range []string{
		`{"access_token":"k","expires_in":600,"issued_token_type":"urn:posit:connect:api-key"}`, `{"access_token":"k","expires_in":-1e9}`,
		`{"id":"7","key":"k","expires_at":"2031-05-06T07:08:09Z"}`, `{"id":7.5e3,"key":"k\n"}`, `{"id":"..","key":"k"}`, `[]`, `{}{}`,
	} {
		f.Add([]byte(seed), "e30.eyJleHAiOjE5MzYzMjkzMDl9.c2ln")
	}
	now := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	d := &connectDriver{api: &api{now: func() time.Time { return now }}, lifetime: time.Hour}
	f.Fuzz(func(t *testing.T, body []byte, token string) {
		a := answer{status: 200, body: body}
		traded, err := d.tradedKey("exchange", a, Request{Name: "n", SubjectToken: token, Params: map[string]any{"flow": flowFederation}}, now)
		judge(t, traded, err, now)
		if err == nil && traded.Expiry.IsZero() {
			t.Error("a key that nobody can end does not end by itself")
		}
		created, err := createdKey("exchange", a, Request{Name: "n"}, now)
		judge(t, created, err, now)
		if err == nil && !validAccessor(created.Handle.Accessor) {
			t.Errorf("nobody can end the key with id %q", created.Handle.Accessor)
		}
	})
}

// judge checks what came of an answer.
func judge(t *testing.T, k Key, err error, now time.Time) {
	t.Helper()
	switch {
	case err != nil && !errors.Is(err, ErrProtocol):
		t.Errorf("error %v", err)
	case err != nil && (k.Secret != "" || !MayLive(err)):
		t.Errorf("error %v, and a key %v", err, k.Secret != "")
	case err == nil && (k.check(now) != "" || k.Header != "Key "+k.Secret):
		t.Errorf("a key that is none: %s", k.check(now))
	}
}
