// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"errors"
	"net/url"
	"testing"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
)

// A refused connection is told from a lost one: nothing was sent.
func TestEgressRefuses(t *testing.T) {
	opened, saw := serve(t, base, 201, "{}")
	client, err := egress.Policy{}.Client(egress.Options{})
	if err != nil {
		t.Fatal(err)
	}
	opened.api.client = client // as if the name had been pointed at loopback after it was configured
	_, err = opened.Exchange(t.Context(), request(nil))
	if !errors.Is(err, ErrEgress) || MayLive(err) || saw.Method != "" {
		t.Errorf("got %v; want ErrEgress, nothing sent", err)
	}
}

// A secret in an address would be in errors of net/http.
func TestLostNeverShowsTheURL(t *testing.T) {
	err := lost(t.Context(), "revoke", true, &url.Error{Op: "Delete", URL: "https://x/s3cret", Err: errors.New("s3cret")})
	if want := "revoke: outcome is unknown: the connection failed"; err.Error() != want {
		t.Errorf("got %v; want %s", err, want)
	}
}
