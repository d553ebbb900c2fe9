// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func svidBy2(c *clock) string { return tokenBy(otherRSA(), "k2", svidClaims(c.now())) }

func TestBundleRotation(t *testing.T) {
	v, a, c := trusting(t, nil)
	svid := func() string { return token(svidClaims(c.now())) }
	wantReason(t, v, svid(), "")
	a.publish(firstKey(), secondKey())
	wantReason(t, v, svidBy2(c), UnknownKey) // within the floor
	a.wantCalls(t, 1)
	c.advance(30 * time.Second)
	wantReason(t, v, svidBy2(c), "")
	wantReason(t, v, svid(), "")
	a.wantCalls(t, 2)

	a.publish(secondKey())
	c.advance(10 * time.Minute)
	wantReason(t, v, svid(), "") // and starts the refresh
	settle(v)
	wantReason(t, v, svid(), UnknownKey)
	wantReason(t, v, svidBy2(c), "")
	a.wantCalls(t, 3)
}

func TestBundleIsFetchedOnce(t *testing.T) {
	v, a, c := trusting(t, nil)
	hold := make(chan struct{})
	a.set(func(a *workloadAPI) { a.hold = hold })
	good := token(svidClaims(c.now()))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { wantReason(t, v, good, "") })
	}
	close(hold)
	wg.Wait()
	for n := range 1000 {
		wantReason(t, v, unsigned(fmt.Sprint(n), svidClaims(c.now())), UnknownKey)
	}
	a.wantCalls(t, 1)
}

func TestWorkloadAPIDown(t *testing.T) {
	v, a, c := trusting(t, nil)
	svid := func() string { return token(svidClaims(c.now())) }
	wantReason(t, v, svid(), "")
	a.set(func(a *workloadAPI) { a.err = errors.New("down") })
	for range 6 {
		c.advance(10 * time.Minute)
		wantReason(t, v, svid(), "")
		settle(v)
	}
	if got, want := v.Status().LastError, "bundle: down"; got != want {
		t.Errorf("Status has error %q, want %q", got, want)
	}
	c.advance(time.Second) // older than an hour
	wantReason(t, v, svid(), IssuerUnavailable)
	a.set(func(a *workloadAPI) { a.err = nil })
	c.advance(30 * time.Second)
	wantReason(t, v, svid(), "")
}

// An answer without a usable key of the domain withdraws its keys at once: they do not stay in use until they are stale.
func TestBundleWithdrawn(t *testing.T) {
	for name, change := range map[string]func(*workloadAPI){
		"domain missing": func(a *workloadAPI) { a.bundles = map[string]string{"other.example": jwks(firstKey())} },
		"empty bundle":   func(a *workloadAPI) { a.bundles["example.org"] = jwks() },
		"nothing":        func(a *workloadAPI) { a.bundles["example.org"] = "" },
		"no set":         func(a *workloadAPI) { a.bundles["example.org"] = "<html>" },
		"unusable keys":  func(a *workloadAPI) { a.bundles["example.org"] = `{"keys":[{"kty":"oct","k":"AA"}]}` },
		"X.509 keys alone": func(a *workloadAPI) {
			a.bundles["example.org"] = jwks(jwk(rsaKey().Public(), "k1", "", fields{"use": "x509-svid"}))
		},
		"too many keys": func(a *workloadAPI) {
			a.bundles["example.org"] = jwks(append(make([]json.RawMessage, 100), firstKey())...)
		},
		"too large": func(a *workloadAPI) { a.bundles["example.org"] = jwks(firstKey()) + strings.Repeat(" ", 512<<10) },
	} {
		t.Run(name, func(t *testing.T) {
			v, a, c := trusting(t, nil)
			svid := func() string { return token(svidClaims(c.now())) }
			wantReason(t, v, svid(), "")
			a.set(change)
			if got := reason(t, v.Probe(t.Context())); got != IssuerUnavailable {
				t.Errorf("Probe: %q, want %s", got, IssuerUnavailable)
			}
			wantReason(t, v, svid(), "") // nobody has asked for the tokens' sake
			c.advance(10 * time.Minute)
			wantReason(t, v, svid(), "") // and starts the refresh
			settle(v)
			for range 3 {
				wantReason(t, v, svid(), IssuerUnavailable)
			}
			a.wantCalls(t, 3)
			if st := v.Status(); st.Keys != 0 || !strings.HasSuffix(st.LastError, ErrWithdrawn.Error()) {
				t.Errorf("status %+v", st)
			}
			a.publish(firstKey())
			c.advance(30 * time.Second)
			wantReason(t, v, svid(), "")
		})
	}
}

// One unusable key does not take the domain down.
func TestPoisonInABundle(t *testing.T) {
	v, a, _ := trusting(t, nil)
	a.publish(
		json.RawMessage(`{"kty":"AKP","alg":"ML-DSA-44","kid":"p1","pub":"AA"}`), json.RawMessage(`{"kty":"RSA","kid":"p2","n":"AQ","e":"AQAB"}`),
		json.RawMessage(`1`), jwk(otherRSA().Public(), "p3", "", fields{"d": "AA"}), firstKey(),
		jwk(otherRSA().Public(), "p4", "", nil), jwk(ecKey().Public(), "p4", "", nil),
	)
	wantReason(t, v, token(svidClaims(start)), "")
	wantReason(t, v, tokenBy(otherRSA(), "p4", svidClaims(start)), UnknownKey) // which of two keys it names is open
	want := Status{Fetched: start, Tried: start, Fetches: 1, Keys: 1, KeyIDs: []string{"k1"}, Skipped: map[string]int{
		"a key of an unsupported kind": 1, "an RSA key outside 2048 to 8192 bits": 1, "malformed": 1, "a private key": 1, "repeated kid": 2,
	}}
	if diff := cmp.Diff(want, v.Status()); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

func TestBundleRefresh(t *testing.T) {
	v, a, c := trusting(t, nil)
	wantReason(t, v, token(svidClaims(c.now())), "")
	a.publish(secondKey())
	if err := v.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantReason(t, v, token(svidClaims(c.now())), UnknownKey)
	wantReason(t, v, svidBy2(c), "")
	a.set(func(a *workloadAPI) { a.bundles = nil })
	if got := reason(t, v.Refresh(t.Context())); got != IssuerUnavailable {
		t.Errorf("Refresh: %q, want %s", got, IssuerUnavailable)
	}
	a.publish(firstKey())
	c.advance(30 * time.Second)
	wantReason(t, v, token(svidClaims(c.now())), "")
}

// A call that never ends delays nobody for longer than its caller waits.
func TestWorkloadAPIHangs(t *testing.T) {
	v, a, c := trusting(t, nil)
	hold := make(chan struct{})
	a.set(func(a *workloadAPI) { a.hold = hold })
	v.keys.timeout = time.Millisecond
	wantReason(t, v, token(svidClaims(c.now())), IssuerUnavailable)
	close(hold)
}
