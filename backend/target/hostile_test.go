// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
)

func hostileTarget(t *testing.T, profile string, h http.HandlerFunc) *Target {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	o, err := Open(Config{Driver: "http", Profile: profile, URL: s.URL, Credential: map[string]string{"token": "t"}, Egress: egress.Policy{AllowHTTPLoopback: true}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	return o
}

// An accessor that can stand in no path makes a key that is delivered and can never be revoked.
func TestHostileAccessorIsDots(t *testing.T) {
	for _, accessor := range []string{"..", ".", "a/../b"} {
		o := hostileTarget(t, base, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(201)
			_, _ = io.WriteString(w, `{"secret":"s3cret","id":"`+accessor+`"}`)
		})
		k, err := o.Exchange(t.Context(), Request{Name: "n", Params: map[string]any{"project": "p"}})
		if !errors.Is(err, ErrProtocol) {
			t.Errorf("accessor %q: exchange: %v; revoke: %v", accessor, err, o.Revoke(t.Context(), k.Handle))
		}
	}
}

// "A target that gives the key away as its own id is refused: accessors are shown and logged."
func TestHostileAccessorHoldsKey(t *testing.T) {
	const secret = "acme_5f0e2b1c9d7a4e6f8b3c"
	for name, body := range map[string]string{
		"as a part":   `{"secret":"` + secret + `","id":"id:` + secret + `"}`,
		"with spaces": `{"secret":"` + secret + `","id":"` + secret + ` "}`,
	} {
		o := hostileTarget(t, base, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(201)
			_, _ = io.WriteString(w, body)
		})
		if _, err := o.Exchange(t.Context(), Request{Name: "n", Params: map[string]any{"project": "p"}}); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The zero instant of other languages (.NET's DateTime.MinValue) is long past, not "never".
func TestHostileZeroExpiry(t *testing.T) {
	p := strings.Replace(base, "accessor: response.json.id}", "accessor: response.json.id, expires: timestamp(response.json.e)}", 1)
	o := hostileTarget(t, p, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(201)
		_, _ = io.WriteString(w, `{"secret":"s3cret","id":"a","e":"0001-01-01T00:00:00Z"}`)
	})
	k, err := o.Exchange(t.Context(), Request{Name: "n", Params: map[string]any{"project": "p"}})
	if !errors.Is(err, ErrProtocol) {
		t.Errorf("%v, expiry %v: an expired key is taken for one that never ends", err, k.Expiry)
	}
}

// What a status has decided must not wait for a body that nobody reads.
func TestHostileDrip(t *testing.T) {
	o := hostileTarget(t, base, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	start := time.Now()
	o.api.timeout = 2 * time.Second
	err := o.Revoke(t.Context(), Handle{Name: "n", Accessor: "a", Params: map[string]any{"project": "p"}})
	if took := time.Since(start); took > time.Second {
		t.Errorf("%v after %v", err, took)
	}
}
