// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// count completes the tally with what the ledger had when this process began: at once, for only then their ages are known.
func (l *ledger) count(ctx context.Context, s logical.Storage) error {
	var found []counted
	var fault faults
	err := l.each(ctx, s, "", func(id string, _ bool) (bool, error) {
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
			fault.add(err)
		case e != nil: // else it died while we looked
			found = append(found, counted{newHeld(e), e.IssuedAt})
		}
		return true, nil
	})
	if err == nil {
		err = fault.err()
	}
	if err != nil {
		l.uncountable(err)
		return err
	}
	l.complete(found)
	return nil
}

// counted is an entry that a scan has come across.
type counted struct {
	*held
	at time.Time // when it was issued
}

// complete takes in what a scan has found, which is older than all that was counted since.
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
	t.ready, t.fault, t.gone = true, nil, nil
}

// uncountable notes why a scan did not meet all.
func (t *tally) uncountable(fault error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fault = fault
}

// counting reports whether everything that the ledger has is counted, and if not, what the last scan could not read.
func (t *tally) counting() (ready bool, fault error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ready, t.fault
}

// uncounted refuses what needs a whole count as long as there is none.
func (t *tally) uncounted() error {
	switch {
	case t.ready:
		return nil
	case t.fault != nil:
		return refuse(reasonTargetBusy, "the ledger could not be counted, and that is tried again: %v", t.fault)
	}
	return refuse(reasonTargetBusy, "the ledger is still being counted after a start")
}
