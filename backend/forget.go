// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// tokenEnds remembers when used tokens expire, so that their records can be deleted without an index in storage and without
// listing all records in every tick. It is only an optimization: a record that it lacks, because an earlier process wrote
// it or because tokenEnds was full, is found by a walk over all records.
type tokenEnds struct {
	mu    sync.Mutex
	hours map[string][]tokenHash // by the hour of the token's expiry
	n     int                    // number of hashes in hours
	whole bool                   // it has every record, or the current walk will find the rest

	// State of the walk, guarded by engine.sweeps.
	left   []string  // records still to visit
	walked time.Time // the hour in which the walk began; at most one begins per hour
}

const maxTokenEnds = 1 << 20 // of 32 bytes each

// add files a token under the hour of its expiry.
func (t *tokenEnds) add(hash tokenHash, hour string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n >= maxTokenEnds {
		t.whole = false
		return
	}
	if t.hours == nil {
		t.hours = map[string][]tokenHash{}
	}
	t.hours[hour] = append(t.hours[hour], hash)
	t.n++
}

// take removes and returns a token whose hour has passed; ok is false if there is none.
func (t *tokenEnds) take(now time.Time) (hash tokenHash, hour string, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for hour, hashes := range t.hours {
		if !passed(hour, now) {
			continue
		}
		if t.hours[hour] = hashes[1:]; len(hashes) == 1 {
			delete(t.hours, hour)
		}
		t.n--
		return hashes[0], hour, true
	}
	return hash, "", false
}

// setWhole sets whole and returns its previous value.
func (t *tokenEnds) setWhole(whole bool) (was bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was, t.whole = t.whole, whole
	return was
}

// forget deletes the records of tokens that have expired and so can no longer be presented; it looks at most at limit records.
func (r *replay) forget(ctx context.Context, s logical.Storage, limit int) error {
	looked, err := r.walk(ctx, s, limit)
	return errors.Join(err, r.forgetKnown(ctx, s, limit-looked))
}

// walk visits all records, over as many calls as that takes, if tokenEnds may lack some.
func (r *replay) walk(ctx context.Context, s logical.Storage, limit int) (looked int, err error) {
	t := &r.ends
	if len(t.left) == 0 {
		hour := nextPassed(r.now())
		if t.walked.Equal(hour) || t.setWhole(true) {
			return 0, nil
		}
		if t.left, err = usedTable.list(ctx, s); err != nil {
			t.setWhole(false)
			return 0, err
		}
		t.walked = hour
	}
	for ; looked < limit && len(t.left) > 0; looked++ {
		name := t.left[0]
		t.left = t.left[1:]
		if err := r.walkTo(ctx, s, name); err != nil {
			t.left = append(t.left, name) // at the end, so that an unreadable record does not delay the others
			return looked, err
		}
	}
	return looked, nil
}

// walkTo deletes the record of an expired token, or adds the token to tokenEnds.
func (r *replay) walkTo(ctx context.Context, s logical.Storage, name string) error {
	used, err := r.forgetPassed(ctx, s, name)
	if err != nil || used == nil {
		return err
	}
	hash, err := hex.DecodeString(name)
	if err != nil || len(hash) != len(tokenHash{}) {
		return storageError(fmt.Errorf("%s%q is not the hash of a token", usedTable.prefix, name))
	}
	r.ends.add(tokenHash(hash), hourOf(used.Until))
	return nil
}

// forgetKnown deletes the records of tokens that tokenEnds knows to have expired.
func (r *replay) forgetKnown(ctx context.Context, s logical.Storage, limit int) error {
	for ; limit > 0; limit-- {
		hash, hour, ok := r.ends.take(r.now())
		if !ok {
			return nil
		}
		if _, err := r.forgetPassed(ctx, s, hash.String()); err != nil {
			r.ends.add(hash, hour) // at the end of its hour
			return err
		}
	}
	return nil
}

// forgetPassed deletes a record if the hour of its token's expiry has passed, and returns the record if not: since it was
// noted, another token with the same id and a later expiry may have been used.
func (r *replay) forgetPassed(ctx context.Context, s logical.Storage, name string) (*use, error) {
	used, err := usedTable.get(ctx, s, name)
	if err != nil || used == nil || !passed(hourOf(used.Until), r.now()) {
		return used, err
	}
	return nil, usedTable.delete(ctx, s, name)
}
