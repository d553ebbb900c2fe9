// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// count completes the tally with the entries that the ledger had before this process began. It adds them all at once,
// because their order by age is known only when all were read. After an error nothing is added.
func (l *ledger) count(ctx context.Context, s logical.Storage) error {
	if unread, fault := l.stuck(); len(unread) > 0 && l.unreadable(ctx, s, unread) {
		return fault // going through all that can be read again would change nothing
	}
	var found []counted
	var filed unread
	open, err := l.each(ctx, s, "", func(id string, _ bool) (bool, error) {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		_, rand, _ := splitID(id)
		e, err := l.filed(ctx, s, id)
		if err == nil && e == nil {
			e, err = openTable.get(ctx, s, rand)
		}
		switch {
		case err != nil:
			filed.add(id, err)
		case e != nil: // nil: it ended meanwhile
			found = append(found, counted{newHeld(e), e.IssuedAt})
		}
		return true, nil
	})
	bad := open.and(filed)
	if err = cmp.Or(err, bad.err()); err != nil {
		l.uncountable(bad.names, err)
		return err
	}
	l.complete(found)
	return nil
}

// counted is an entry that count has read.
type counted struct {
	*held
	at time.Time // when it was issued
}

// complete adds what a scan has found, all of it older than what this process has counted itself.
func (t *tally) complete(found []counted) {
	slices.SortFunc(found, func(a, b counted) int { return b.at.Compare(a.at) })
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range found {
		if rand := c.rand(); !t.gone[rand] && t.keys[rand] == nil {
			t.first--
			c.place = t.first
			t.insert(c.held)
		}
	}
	t.ready, t.unread, t.fault, t.gone = true, nil, nil, nil
}

// uncountable notes why a scan was not complete, and which records it could not read, if that was the reason.
func (t *tally) uncountable(unread []string, fault error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unread, t.fault = unread, fault
}

// stuck returns what uncountable has noted.
func (t *tally) stuck() (unread []string, fault error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.unread, t.fault
}

// counting reports whether the whole ledger is counted, and if not, what the last scan could not read.
func (t *tally) counting() (ready bool, fault error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ready, t.fault
}

// uncounted refuses while the ledger is not fully counted. The caller holds t.mu.
func (t *tally) uncounted() error {
	switch {
	case t.ready:
		return nil
	case t.fault != nil:
		return refuse(reasonTargetBusy, "the ledger could not be counted yet; the engine tries again every minute: %v", t.fault)
	}
	return refuse(reasonTargetBusy, "the ledger is still being counted after the start")
}
