// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// usedTokens holds the records of tokens that were used, token/<hash>, and beside them hour/<hour>/<hash>, filed by the hour
// in which the token can no longer be presented, so that forgetting them needs no scan.
const usedTokens = "used/"

// replay lets each token of a single-use issuer work once per cluster. Vault's storage has no compare-and-set, so this
// rests on the one active node and a lock per stripe of hashes.
type replay struct {
	now   func() time.Time
	locks [64]sync.Mutex
	due   time.Time // nothing is to be forgotten before the next hour has passed, which is then; sweeps guards it
}

// use is the record of a token that was used.
type use struct {
	RequestID string    `json:"request_id"`
	Resent    bool      `json:"resent"`
	Until     time.Time `json:"until"` // the token's end
}

var usedTable = table[use]{prefix: usedTokens + "token/"}

func hourTable(hour string) table[struct{}] {
	return table[struct{}]{prefix: usedTokens + "hour/" + hour + "/"}
}

// claim takes a subject's token for this request. release gives it back; it is called when the target has definitely
// issued nothing.
func (r *replay) claim(ctx context.Context, req *logical.Request, who *subject) (release func(context.Context), err error) {
	if who.token == nil || !who.issuer.SingleUse {
		return func(context.Context) {}, nil
	}
	hash := who.tokenHash()
	name := hex.EncodeToString(hash[:])
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
	// The hour first: a record that is never forgotten would be one too many, an hour without a record is none.
	if err := hourTable(hourOf(now.Until)).put(ctx, req.Storage, name, &struct{}{}); err != nil {
		return nil, err
	}
	if err := usedTable.put(ctx, req.Storage, name, now); err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		if now.Resent {
			return // what became of the first sending is not known
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
		defer cancel()
		_ = usedTable.delete(ctx, req.Storage, name) // kept, the token stays used: safe
	}, nil
}

// check tells what claim would say to a new request, and changes nothing.
func (r *replay) check(ctx context.Context, s logical.Storage, who *subject) error {
	if who.token == nil || !who.issuer.SingleUse {
		return nil
	}
	hash := who.tokenHash()
	before, err := usedTable.get(ctx, s, hex.EncodeToString(hash[:]))
	if err == nil && before != nil {
		err = refuse(reasonReplayed, "request %q used the token", before.RequestID)
	}
	return err
}

// tokenHash names a token: by the id that its issuer gave it, or else by what was signed. The signature is not part of
// it, for a signature can be rewritten so that it still verifies.
func (who *subject) tokenHash() [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(who.issuer.Issuer))
	h.Write([]byte{0})
	if who.jti != "" {
		h.Write([]byte("id\x00" + who.jti))
	} else {
		h.Write([]byte("digest\x00"))
		h.Write(who.token.Digest[:])
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// forget deletes at most limit records of tokens that can no longer be presented.
func (r *replay) forget(ctx context.Context, s logical.Storage, limit int) error {
	due := nextPassed(r.now())
	if r.due.Equal(due) {
		return nil
	}
	hours, err := s.List(ctx, usedTokens+"hour/") // a walk over all of them in Vault's storage
	if err != nil {
		return storageError(err)
	}
	for _, hour := range hours {
		hour = strings.TrimSuffix(hour, "/")
		if !passed(hour, r.now()) {
			continue
		}
		names, err := hourTable(hour).list(ctx, s)
		if err != nil {
			return err
		}
		for _, name := range names {
			if limit--; limit < 0 {
				return nil
			}
			if err := r.forgetOne(ctx, s, hour, name); err != nil {
				return err
			}
		}
	}
	r.due = due
	return nil
}

// forgetOne forgets a token, unless another one with its id was used that lives longer.
func (r *replay) forgetOne(ctx context.Context, s logical.Storage, hour, name string) error {
	used, err := usedTable.get(ctx, s, name)
	if err != nil {
		return err
	}
	if used != nil && passed(hourOf(used.Until), r.now()) {
		if err := usedTable.delete(ctx, s, name); err != nil {
			return err
		}
	}
	return hourTable(hour).delete(ctx, s, name)
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
