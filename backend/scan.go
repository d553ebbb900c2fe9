// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/vault/sdk/logical"
)

// hours lists the hours under which keys are filed, in order of time.
func (l *ledger) hours(ctx context.Context, s logical.Storage, sealed bool) ([]string, error) {
	prefix := plainKeys
	if sealed {
		prefix = sealedKeys
	}
	found, err := s.List(ctx, prefix)
	if err != nil {
		return nil, storageError(err)
	}
	hours := found[:0]
	for _, hour := range found {
		if hour, isFolder := strings.CutSuffix(hour, "/"); isFolder {
			hours = append(hours, hour)
		}
	}
	return hours, nil
}

// each calls visit for the id of every key that comes after an id, in order, until it returns false; open says that the
// key is perhaps not settled. It lists what it comes to, and reads no entry that is filed. What cannot be listed or read
// keeps it from nothing else; it is told in the end.
func (l *ledger) each(ctx context.Context, s logical.Storage, after string, visit func(id string, open bool) (bool, error)) error {
	open, fault := l.openIDs(ctx, s) // first: what is open now and filed later is met all the same
	hours := map[string][]string{}   // the open ids of each
	for id := range open {
		hour, _, _ := splitID(id)
		hours[hour] = append(hours[hour], id)
	}
	for _, sealed := range []bool{false, true} {
		found, err := l.hours(ctx, s, sealed)
		if err != nil {
			return err
		}
		for _, hour := range found {
			if _, known := hours[hour]; !known {
				hours[hour] = nil
			}
		}
	}
	for _, hour := range slices.Sorted(maps.Keys(hours)) {
		if hour+"-~" < after { // as all its ids are
			continue
		}
		ids, err := l.idsOf(ctx, s, hour, hours[hour])
		if err != nil {
			fault.add(err)
		}
		for _, id := range ids {
			if id <= after {
				continue
			}
			if goOn, err := visit(id, open[id]); err != nil || !goOn {
				return err
			}
		}
	}
	return fault.err()
}

// idsOf lists the keys that end in one hour, in order; open are those of them that are perhaps not filed yet.
func (l *ledger) idsOf(ctx context.Context, s logical.Storage, hour string, open []string) (ids []string, err error) {
	ids = open
	for _, sealed := range []bool{false, true} {
		rands, listErr := keyTable(hour, sealed).list(ctx, s)
		if listErr != nil {
			err = listErr
		}
		for _, rand := range rands {
			ids = append(ids, hour+"-"+rand)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), err
}

// openIDs lists the ids of what is not settled. It reads those that are not counted yet.
func (l *ledger) openIDs(ctx context.Context, s logical.Storage) (ids map[string]bool, fault faults) {
	ids = map[string]bool{}
	rands, err := openTable.list(ctx, s)
	if err != nil {
		fault.add(err)
	}
	for _, rand := range rands {
		if id := l.id(rand); id != "" {
			ids[id] = true
			continue
		}
		if e, err := openTable.get(ctx, s, rand); err != nil {
			fault.add(err)
		} else if e != nil { // else it was settled meanwhile
			ids[e.ID] = true
		}
	}
	return ids, fault
}

// eachOpen calls visit for what is not settled, until it returns false. What cannot be read keeps it from nothing else; it is
// told in the end.
func (l *ledger) eachOpen(ctx context.Context, s logical.Storage, visit func(*entry) (bool, error)) error {
	rands, err := openTable.list(ctx, s)
	if err != nil {
		return err
	}
	var fault faults
	for _, rand := range rands {
		e, err := openTable.get(ctx, s, rand)
		if err != nil {
			fault.add(err)
			continue
		}
		if e == nil {
			continue
		}
		if goOn, err := visit(e); err != nil || !goOn {
			return err
		}
	}
	return fault.err()
}

// scan calls visit for every key after an id that a filter matches or cannot judge, in order, until it returns false. Keys
// that memory rules out are not read. What cannot be read keeps it from nothing else; it is told in the end.
func (l *ledger) scan(ctx context.Context, s logical.Storage, f *filter, after string, visit func(*entry, verdict) bool) error {
	var fault faults
	err := l.each(ctx, s, after, func(id string, open bool) (bool, error) {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		if _, rand, _ := splitID(id); l.rulesOut(rand, f) {
			return true, nil
		}
		read := l.filed
		if open {
			read = l.get
		}
		e, err := read(ctx, s, id)
		switch {
		case err != nil:
			fault.add(err)
			return true, nil
		case e == nil: // it died while we looked
			return true, nil
		}
		if v := f.judge(e); v != unmatched {
			return visit(e, v), nil
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	return fault.err()
}

// faults are errors of work that goes on: the first of them, and how many there are.
type faults struct {
	first error
	n     int
}

func (f *faults) add(err error) {
	if f.first == nil {
		f.first = err
	}
	f.n++
}

func (f *faults) err() error {
	if f.n < 2 {
		return f.first
	}
	return fmt.Errorf("%w (and %d more errors)", f.first, f.n-1)
}
