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

// replay makes each token of a single_use issuer work only once per cluster. Vault's storage has no compare-and-set, so this
// relies on there being one active node, and on a lock per stripe of token hashes.
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

var usedTable = table[use]{prefix: usedTokens + "token/"} // by tokenHash

// claim marks the subject's token as used by this request. release undoes that; call it only when the target has certainly
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
		// Vault itself repeats a request, with the same id, if the plugin's process dies while serving it.
		if req.ID == "" || before.RequestID != req.ID || before.Resent {
			return nil, refuse(reasonReplayed, "request %q used the token", before.RequestID)
		}
		now.Resent = true
	}
	release = func(ctx context.Context) {
		if now.Resent {
			return // the first attempt may have yielded a key
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
		defer cancel()
		_ = usedTable.delete(ctx, req.Storage, name) // on failure the token stays used, which is safe
	}
	r.ends.add(hash, hourOf(now.Until)) // before the write, so that even a record whose write failed halfway gets deleted in time
	if err := usedTable.put(ctx, req.Storage, name, now); err != nil {
		release(ctx) // the record may be stored despite the error
		return nil, err
	}
	return release, nil
}

// check returns the refusal that claim would give a new request, and changes nothing.
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

// tokenHash identifies a token: by the id that its issuer gave it or, if it has none, by its signed content. The signature is
// left out, because an ECDSA signature can be rewritten without the key and still verify.
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

// hourMargin exceeds the largest clock_skew_leeway of an issuer.
const hourMargin = 5 * time.Minute

// nextPassed returns when the next hour will have passed, in the sense of passed.
func nextPassed(now time.Time) time.Time {
	return now.Add(-hourMargin).Truncate(time.Hour).Add(time.Hour + hourMargin)
}

// passed reports whether the hour has ended at least hourMargin ago.
func passed(hour string, now time.Time) bool {
	start, err := time.Parse(hourLayout, hour)
	return err == nil && now.After(start.Add(time.Hour+hourMargin))
}
