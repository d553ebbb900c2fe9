// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"maps"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRelying(t *testing.T) {
	t.Parallel()
	clock := newClock()
	issuer, other := NewIssuer(IssuerOptions{Now: clock.Now, Algorithm: "ES256"}), NewIssuer(IssuerOptions{Now: clock.Now, Algorithm: "ES256"})
	url := serve(t, issuer)
	other.SetURL(url)
	r := &Relying{Issuer: url, Audience: "https://api.example", Subject: "role:deploy", Now: clock.Now}
	right := map[string]any{"aud": "https://api.example", "sub": "role:deploy", "jti": "one"}
	with := func(name string, value any) map[string]any {
		claims := maps.Clone(right)
		claims["jti"] = "two"
		claims[name] = value
		return claims
	}

	early := other.Token(right)
	if r.Accepts(early) {
		t.Error("accepts before its provider can be discovered")
	}
	issuer.SetURL(url)
	token := issuer.Token(right)
	if !r.Accepts(token) {
		t.Error("refuses the right token")
	}
	for name, refused := range map[string]string{
		"used before":        token,
		"another's":          other.Token(with("jti", "three")),
		"another audience":   issuer.Token(with("aud", "https://other.example")),
		"a further audience": issuer.Token(with("aud", []string{"https://api.example", "https://other.example"})),
		"another subject":    issuer.Token(with("sub", "role:other")),
		"no id":              issuer.Token(with("jti", nil)),
		"expired":            issuer.Token(with("exp", clock.Now().Add(-time.Second).Unix())),
		"tampered":           token[:len(token)-4] + "AAAA",
		"nothing":            "",
	} {
		if r.Accepts(refused) {
			t.Errorf("accepts a token that is %s", name)
		}
	}
	issuer.Rotate()
	if !r.Accepts(issuer.Token(with("jti", "four"))) {
		t.Error("refuses a token by a new key")
	}
	if got := r.Presented(); !cmp.Equal(got[:2], []string{early, token}) || len(got) != 12 {
		t.Errorf("%d presented, first %q", len(got), got[:2])
	}
}
