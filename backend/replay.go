// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

const usedTokens = "used/"

// replay lets each token of a single-use issuer work once per cluster. Vault's storage has no compare-and-set, so this
// rests on the one active node and a lock per stripe of hashes.
type replay struct {
	now   func() time.Time
	locks [64]sync.Mutex
	ends  tokenEnds
}

// use is the record of a token that was used.
type use struct {
	RequestID string    `json:"request_id"`
	Resent    bool      `json:"resent"`
	Until     time.Time `json:"until"` // the token's end
}

var usedTable = table[use]{prefix: usedTokens + "token/"} // by their hash

// claim takes a subject's token for this request. release gives it back; it is called when the target has definitely
// issued nothing.
func (r *replay) claim(ctx context.Context, req *logical.Request, who *subject) (release func(context.Context), err error) {
	if who.token == nil || !who.issuer.SingleUse {
		return func(context.Context) {}, nil
	}
	hash := who.tokenHash()
	name := hash.String()
	lock := &r.locks[int(hash[0])%len(r.locks)]
	lock.Lock()
	defer lock.Unlock()
	before, err := usedTable.get(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	now := &use{RequestID: req.ID, Until: who.token.Expiry}
	if before != nil {
		// Vault itself sends a request again, under the same id, when the plugin's process dies in it.
		if req.ID == "" || before.RequestID != req.ID || before.Resent {
			return nil, refuse(reasonReplayed, "request %q used the token", before.RequestID)
		}
		now.Resent = true
	}
	release = func(ctx context.Context) {
		if now.Resent {
			return // what became of the first sending is not known
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
		defer cancel()
		_ = usedTable.delete(ctx, req.Storage, name) // kept, the token stays used: safe
	}
	r.ends.add(hash, hourOf(now.Until)) // first: what may have been written is to be forgotten
	if err := usedTable.put(ctx, req.Storage, name, now); err != nil {
		release(ctx) // it may have been written all the same
		return nil, err
	}
	return release, nil
}

// check tells what claim would say to a new request, and changes nothing.
func (r *replay) check(ctx context.Context, s logical.Storage, who *subject) error {
	if who.token == nil || !who.issuer.SingleUse {
		return nil
	}
	before, err := usedTable.get(ctx, s, who.tokenHash().String())
	if err == nil && before != nil {
		err = refuse(reasonReplayed, "request %q used the token", before.RequestID)
	}
	return err
}

// tokenHash names a token: by the id that its issuer gave it, or else by what was signed. The signature is not part of
// it, for a signature can be rewritten so that it still verifies.
type tokenHash [sha256.Size]byte

// String is the name of the token's record.
func (h tokenHash) String() string { return hex.EncodeToString(h[:]) }

func (who *subject) tokenHash() tokenHash {
	h := sha256.New()
	h.Write([]byte(who.issuer.Issuer))
	h.Write([]byte{0})
	if who.jti != "" {
		h.Write([]byte("id\x00" + who.jti))
	} else {
		h.Write([]byte("digest\x00"))
		h.Write(who.token.Digest[:])
	}
	return tokenHash(h.Sum(nil))
}

// hourMargin is more than the largest leeway of clocks.
const hourMargin = 5 * time.Minute

// nextPassed is when the next hour will have passed, with its margin.
func nextPassed(now time.Time) time.Time {
	return now.Add(-hourMargin).Truncate(time.Hour).Add(time.Hour + hourMargin)
}

// passed reports whether the whole hour, and a margin for the largest leeway of clocks, lies before now.
func passed(hour string, now time.Time) bool {
	start, err := time.Parse(hourLayout, hour)
	return err == nil && now.After(start.Add(time.Hour+hourMargin))
}
