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

// tokenEnds knows when used tokens can no longer be presented, so that forgetting them costs an issue no write and a tick no
// walk. Nothing is decided by it: a record that it lacks, which a process before this one wrote or for which it had no room,
// is found by a walk over all of them.
type tokenEnds struct {
	mu    sync.Mutex
	hours map[string][]tokenHash
	n     int
	whole bool // it lacks none, or the walk will find those

	// Of the walk. sweeps guards them.
	left   []string  // records that it has not come to
	walked time.Time // the hour in which it began; it begins once an hour at most
}

const maxTokenEnds = 1 << 20 // of 32 bytes each

// add files a token under the hour of its end.
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

// take removes a token whose hour has passed; false if there is none.
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

// setWhole says whether it lacks none, and returns what was said before.
func (t *tokenEnds) setWhole(whole bool) (was bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was, t.whole = t.whole, whole
	return was
}

// forget deletes the records of tokens that can no longer be presented; it looks at limit of them at most.
func (r *replay) forget(ctx context.Context, s logical.Storage, limit int) error {
	looked, err := r.walk(ctx, s, limit)
	return errors.Join(err, r.forgetKnown(ctx, s, limit-looked))
}

// walk goes through all records, if some are not known here.
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
			t.left = append(t.left, name) // last: one that cannot be read keeps no other waiting
			return looked, err
		}
	}
	return looked, nil
}

// walkTo forgets a token, or notes when that can be done.
func (r *replay) walkTo(ctx context.Context, s logical.Storage, name string) error {
	used, err := r.forgetPassed(ctx, s, name)
	if err != nil || used == nil {
		return err
	}
	hash, err := hex.DecodeString(name)
	if err != nil || len(hash) != len(tokenHash{}) {
		return storageError(fmt.Errorf("%s%q is no token's hash", usedTable.prefix, name))
	}
	r.ends.add(tokenHash(hash), hourOf(used.Until))
	return nil
}

// forgetKnown goes through what is known to have passed.
func (r *replay) forgetKnown(ctx context.Context, s logical.Storage, limit int) error {
	for ; limit > 0; limit-- {
		hash, hour, ok := r.ends.take(r.now())
		if !ok {
			return nil
		}
		if _, err := r.forgetPassed(ctx, s, hash.String()); err != nil {
			r.ends.add(hash, hour) // behind the others of its hour
			return err
		}
	}
	return nil
}

// forgetPassed deletes a record if its token's hour has passed, and returns it if not. Of one id a token may have been used
// since that lives longer.
func (r *replay) forgetPassed(ctx context.Context, s logical.Storage, name string) (*use, error) {
	used, err := usedTable.get(ctx, s, name)
	if err != nil || used == nil || !passed(hourOf(used.Until), r.now()) {
		return used, err
	}
	return nil, usedTable.delete(ctx, s, name)
}
