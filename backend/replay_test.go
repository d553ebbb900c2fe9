// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"crypto/elliptic"
	"encoding/base64"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// respell writes an ECDSA signature in its other form (r, n-s), which verifies as well.
func respell(t *testing.T, token string) string {
	t.Helper()
	at := strings.LastIndexByte(token, '.') + 1
	sig, err := base64.RawURLEncoding.DecodeString(token[at:])
	if err != nil || len(sig) != 64 {
		t.Fatalf("a signature of %d bytes, %v; want ES256", len(sig), err)
	}
	s := new(big.Int).SetBytes(sig[32:])
	s.Sub(elliptic.P256().Params().N, s).FillBytes(sig[32:])
	return token[:at] + base64.RawURLEncoding.EncodeToString(sig)
}

// A used token stays used in another spelling of its signature, with an id of its own or without.
func TestUsedTokenInAnotherSpelling(t *testing.T) {
	t.Parallel()
	for name, jti := range map[string]any{"by its id": "j-1", "without an id": nil} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			token := w.token(map[string]any{"jti": jti})
			other := respell(t, token)
			if reason, _ := reasonOf(w.exchange("deploy", other)); reason != "" || other == token {
				t.Fatalf("the other spelling is refused for %q: the test has lost its point", reason)
			}
			if reason, status := reasonOf(w.exchange("deploy", token)); reason != reasonReplayed || status != 403 {
				t.Errorf("the first spelling: %q %d, want %s", reason, status, reasonReplayed)
			}
			if made := w.keys.Calls("create"); made != 1 {
				t.Errorf("%d keys were made, want 1", made)
			}
		})
	}
}

// Two tokens of one id are one token, whatever else they say; of another id they are two.
func TestTokenIsKnownByItsID(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct{ jti, run, want string }{{"a", "1", ""}, {"a", "2", reasonReplayed}, {"b", "1", ""}} {
		if reason, _ := reasonOf(w.exchange("deploy", w.token(map[string]any{"jti": c.jti, "run_id": c.run}))); reason != c.want {
			t.Errorf("id %s, run %s: %q, want %q", c.jti, c.run, reason, c.want)
		}
	}
}

// Records of a hundred thousand tokens go a part at a time, and all of them; one that can still be presented stays.
func TestUsedTokensAreForgottenInParts(t *testing.T) {
	t.Parallel()
	const tokens, part = 1000, 200
	w := newWorld(t)
	s, ctx := &logical.InmemStorage{}, context.Background()
	put := func(name string, until time.Time) {
		t.Helper()
		if err := usedTable.put(ctx, s, name, &use{Until: until}); err != nil {
			t.Fatal(err)
		}
	}
	now := w.clock.now()
	for n := range tokens {
		put(fmt.Sprintf("%064x", n), now.Add(-3*time.Hour))
	}
	put(strings.Repeat("f", 64), now.Add(time.Minute))
	for left := tokens; left > 0; {
		left -= part
		if err := w.replay.forget(ctx, s, part); err != nil {
			t.Fatal(err)
		}
		names, err := usedTable.list(ctx, s)
		if err != nil || len(names) != left+1 {
			t.Fatalf("%d records left, %v; want %d", len(names), err, left+1)
		}
	}
}
