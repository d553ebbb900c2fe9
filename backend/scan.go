// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/vault/sdk/logical"
)

// hours lists the hours under which keys are filed, oldest first.
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

// each calls visit for the id of every key in the ledger that sorts after the given id, in order, until visit returns false.
// open says that the key may have a record in open/. It lists one hour at a time and reads no filed entry. If something
// cannot be listed, it goes on with the rest and returns the error at the end; unread are the records of open/ that it could
// not read, and whose ids it does not know.
func (l *ledger) each(ctx context.Context, s logical.Storage, after string, visit func(id string, open bool) (bool, error)) (bad unread, err error) {
	open, bad, err := l.openIDs(ctx, s) // first, so that a key that is open now and filed during the scan is not missed
	var fault faults
	if err != nil {
		fault.add(err)
	}
	hours := map[string][]string{} // open ids by hour
	for id := range open {
		hour, _, _ := splitID(id)
		hours[hour] = append(hours[hour], id)
	}
	for _, sealed := range []bool{false, true} {
		found, err := l.hours(ctx, s, sealed)
		if err != nil {
			return bad, err
		}
		for _, hour := range found {
			if _, known := hours[hour]; !known {
				hours[hour] = nil
			}
		}
	}
	for _, hour := range slices.Sorted(maps.Keys(hours)) {
		if hour+"-~" < after { // all ids of this hour sort before after
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
				return bad, cmp.Or(err, fault.err())
			}
		}
	}
	return bad, fault.err()
}

// idsOf lists the ids of the keys of one hour, in order; open are those that may not be filed yet.
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

// openIDs lists the ids of all records in open/. It reads only the records of keys that are not in the tally yet.
func (l *ledger) openIDs(ctx context.Context, s logical.Storage) (ids map[string]bool, bad unread, err error) {
	ids = map[string]bool{}
	rands, err := openTable.list(ctx, s)
	for _, rand := range rands {
		if id := l.id(rand); id != "" {
			ids[id] = true
			continue
		}
		if e, err := openTable.get(ctx, s, rand); err != nil {
			bad.add(rand, err)
		} else if e != nil { // nil: it was settled meanwhile
			ids[e.ID] = true
		}
	}
	return ids, bad, err
}

// eachOpen calls visit for every record in open/, until visit returns false. Those that it cannot read it returns.
func (l *ledger) eachOpen(ctx context.Context, s logical.Storage, visit func(*entry) (bool, error)) (bad unread, err error) {
	rands, err := openTable.list(ctx, s)
	if err != nil {
		return bad, err
	}
	for _, rand := range rands {
		e, err := openTable.get(ctx, s, rand)
		if err != nil {
			bad.add(rand, err)
			continue
		}
		if e == nil {
			continue
		}
		if goOn, err := visit(e); err != nil || !goOn {
			return bad, err
		}
	}
	return bad, nil
}

// scan calls visit for every key after the given id that a filter matches or cannot judge, in order, until visit returns
// false. It does not read keys that the tally rules out. The records that it cannot read it returns: of their keys nothing is
// known.
func (l *ledger) scan(ctx context.Context, s logical.Storage, f *filter, after string, visit func(*entry, verdict) bool) (unread, error) {
	var filed unread
	open, err := l.each(ctx, s, after, func(id string, open bool) (bool, error) {
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
			filed.add(id, err)
			return true, nil
		case e == nil: // it ended meanwhile
			return true, nil
		}
		if v := f.judge(e); v != unmatched {
			return visit(e, v), nil
		}
		return true, nil
	})
	return open.and(filed), err
}

const maxUnread = 100 // so many records that cannot be read are known by name

// unread are the records that a scan could not read.
type unread struct {
	faults
	names []string // of the first: a record's id, or its rand if it is in open/ and the id is not known
}

func (u *unread) add(name string, err error) {
	u.faults.add(err)
	if len(u.names) < maxUnread {
		u.names = append(u.names, name)
	}
}

func (u unread) and(more unread) unread {
	names := slices.Concat(u.names, more.names)
	return unread{faults{cmp.Or(u.first, more.first), u.n + more.n}, names[:min(len(names), maxUnread)]}
}

// unreadable reports whether none of the records can be read still; names are those that unread has. While none can, another scan
// would meet no more than the last one did.
func (l *ledger) unreadable(ctx context.Context, s logical.Storage, names []string) bool {
	return !slices.ContainsFunc(names, func(name string) bool {
		read := l.get
		if _, _, isID := splitID(name); !isID {
			read = openTable.get
		}
		_, err := read(ctx, s, name)
		return err == nil
	})
}

// warnUnread is what an answer says that lacks what could not be read.
func warnUnread(n int, names []string) string {
	return fmt.Sprintf("%d records of the ledger cannot be read, %s is the first: nothing is known of their keys, which are neither shown nor revoked; see \"A record that cannot be read\" in bootstrap/install.md", n, names[0])
}

// faults collects the errors of work that goes on after one: the first error, and how many there were.
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
