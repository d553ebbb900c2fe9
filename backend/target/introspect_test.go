// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"errors"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// A server need not say when a token ends (RFC 7662 section 2.2); what it says must make sense.
func TestIntrospectionAnswers(t *testing.T) {
	for body, want := range map[string]struct {
		end      time.Time
		inactive bool
		text     string
	}{
		`{"active": true, "exp": 1935820800}`: {end: time.Unix(1935820800, 0).UTC()},
		`{"active": true}`:                    {},
		`{"active": true, "exp": "soon"}`:     {text: "target's answer makes no sense: the answer does not say when the active token ends"},
		`{"active": true, "exp": 1}`:          {text: "target's answer makes no sense: the answer does not say when the active token ends"},
		`{"active": false}`:                   {inactive: true, text: "denied by the target: the token is no longer active"},
		`{}`:                                  {text: "target's answer makes no sense: the answer does not say whether the token is active"},
	} {
		s := scripted(t, map[string][]line{"POST /i": {{status: 200, body: body}}})
		to := s.open(t, "", target.Config{Driver: "oauth", OAuth: target.OAuth{TokenURL: s.url + "/t", RevocationURL: s.url + "/r", IntrospectionURL: s.url + "/i"}, Audience: "a"})
		if !to.RenewAsks() {
			t.Fatal("the target does not say that renewing only asks")
		}
		end, err := to.Renew(t.Context(), target.Handle{Name: "oidcx-1", Secret: "key"}, scriptTime.Add(time.Hour))
		if text, _ := told(err); text != want.text || !end.Equal(want.end) || errors.Is(err, target.ErrInactive) != want.inactive {
			t.Errorf("%s: %v, %q", body, end, text)
		}
	}
}
