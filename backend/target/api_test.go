// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
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

// A body that ends because our time is up is no whole one, whatever it looks like: what the target did is not known.
func TestBodyCutByTheDeadline(t *testing.T) {
	opened, _ := serve(t, base, 201, "{}")
	ctx, cancel := context.WithCancel(t.Context())
	opened.api.client = &http.Client{Transport: answering(func(*http.Request) *http.Response {
		cut := readerFunc(func([]byte) (int, error) { cancel(); return 0, io.EOF })
		return &http.Response{StatusCode: 201, Body: io.NopCloser(io.MultiReader(strings.NewReader(`{"sec`), cut))}
	})}
	_, err := opened.Exchange(ctx, request(nil))
	if !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v; want an unknown outcome", err)
	}
}

// answering answers every request by itself.
type answering func(*http.Request) *http.Response

func (a answering) RoundTrip(r *http.Request) (*http.Response, error) { return a(r), nil }

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A secret in an address would be in errors of net/http.
func TestLostNeverShowsTheURL(t *testing.T) {
	err := lost(t.Context(), "revoke", true, &url.Error{Op: "Delete", URL: "https://x/s3cret", Err: errors.New("s3cret")})
	if want := "revoke: outcome is unknown: the connection failed"; err.Error() != want {
		t.Errorf("got %v; want %s", err, want)
	}
}

// An address that a call brings goes out with its query as it is written, whatever the base URL is.
func TestAddressOfACall(t *testing.T) {
	base := &url.URL{Scheme: "https", Host: "api.example", Path: "/v1"}
	own, err := url.Parse("https://id.example/token?b=%2f&a&b=1")
	if err != nil {
		t.Fatal(err)
	}
	a := &api{base: base}
	if got := a.address(call{url: own}).String(); got != own.String() {
		t.Errorf("got %s", got)
	}
	if got, want := a.address(call{segments: []string{"a/b"}, query: url.Values{"q": {"1"}}}).String(), "https://api.example/v1/a%2Fb?q=1"; got != want {
		t.Errorf("got %s; want %s", got, want)
	}
}
