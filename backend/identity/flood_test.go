// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// Attackers send tokens that fail as fast as they can, from many connections, while an honest caller wants to be served.
// Whatever they name and however they sign, the issuer is asked for its keys once per interval at most.
func TestFloods(t *testing.T) {
	const callers, intervals = 8, 4
	const interval = 30 * time.Second
	random := rand.New(rand.NewPCG(1, 2))
	for _, tt := range []struct {
		name    string
		tokens  int
		kid     func() string
		want    string
		fetches int // of keys, in all intervals
	}{
		{"random key ids", 10_000, func() string { return fmt.Sprintf("%016x%016x", random.Uint64(), random.Uint64()) }, UnknownKey, intervals},
		{"one unknown key id", 2000, func() string { return "k9" }, UnknownKey, 3}, // after 30 s, 60 s and 120 s
		{"bad signatures by a known key", 10_000, func() string { return "d1" }, BadSignature, 0},
		{"bad signatures by a key of another kind", 2000, func() string { return "k1" }, Algorithm, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := newIssuer(t, jwks(firstKey(), jwk(edKey().Public(), "d1", "EdDSA", nil)))
			c := newClock()
			v := newVerifier(t, i.config(c))
			honest := func() string {
				return compact("EdDSA", edKey(), fields{"alg": "EdDSA", "kid": "d1"}.String(), claims(i.URL, c.now()).String())
			}
			wantReason(t, v, honest(), "")
			i.wantHits(t, "/keys", 1)
			for n := range intervals {
				c.advance(interval)
				payload := b64(claims(i.URL, c.now()).String())
				flood := make([]string, tt.tokens/intervals)
				for n := range flood {
					flood[n] = b64(fields{"alg": "EdDSA", "kid": tt.kid()}.String()) + "." + payload + "." + b64(fmt.Sprintf("%064d", n))
				}
				before := i.hits("/keys")
				var wg sync.WaitGroup
				for caller := range callers {
					wg.Go(func() {
						for n := caller; n < len(flood); n += callers {
							wantReason(t, v, flood[n], tt.want)
						}
					})
				}
				good := honest()
				wg.Go(func() {
					for range 50 {
						wantReason(t, v, good, "")
					}
				})
				wg.Wait()
				if asked := i.hits("/keys") - before; asked > 1 {
					t.Errorf("interval %d: the keys were asked for %d times, want once at most", n, asked)
				}
			}
			i.wantHits(t, "/keys", 1+tt.fetches)
			i.wantHits(t, wellKnown, 1)
			if n := len(v.keys.misses); n > maxMisses {
				t.Errorf("%d key ids remembered, want at most %d", n, maxMisses)
			}
		})
	}
}
