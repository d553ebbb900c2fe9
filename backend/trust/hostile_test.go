// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package trust

import (
	"errors"
	"strings"
	"testing"
)

// Every star is tried at every character of a claim: 256 globs of a hundred stars took half a minute for one token.
func TestHostileStars(t *testing.T) {
	for pattern, want := range map[string]string{
		"acme" + strings.Repeat("/*", 10):     "",
		"acme" + strings.Repeat("/**", 10):    "",
		"acme" + strings.Repeat("/*", 11):     "want at most 10 stars",
		"acme" + strings.Repeat("/**a/*b", 6): "want at most 10 stars",
	} {
		_, err := New(Spec{BoundAudiences: []string{"a"}, BoundClaims: map[string]any{"x": pattern}, BoundClaimsType: "glob"}, Token)
		var field *FieldError
		if got := errors.As(err, &field); got != (want != "") || got && field.Text != want {
			t.Errorf("%s: %v; want %q", pattern, err, want)
		}
	}
}
