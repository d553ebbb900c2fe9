// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"sync"
)

// lanes are the keys that a revocation is to revoke, in one queue per target, so that a slow target delays no other.
type lanes struct {
	run  *run
	of   map[string]*lane
	work sync.WaitGroup
}

// lane is the queue of one target. It is unbounded, so that a target that does not answer does not block the scan.
type lane struct {
	target string
	mu     sync.Mutex
	change sync.Cond
	ids    []string // of keys in the ledger
	closed bool     // no more keys will be pushed
	left   faults   // why keys could not be revoked
}

// lane returns the lane of a target. For a new lane it starts as many workers as the target takes calls at once.
func (ls *lanes) lane(ctx context.Context, target string) *lane {
	if l := ls.of[target]; l != nil {
		return l
	}
	l := &lane{target: target}
	l.change.L = &l.mu
	ls.of[target] = l
	for range ls.run.width(ctx, target) {
		ls.work.Go(func() {
			for id := l.next(); id != "" && ctx.Err() == nil; id = l.next() {
				if why := ls.run.endKey(ctx, id); why != nil {
					l.note(why)
				}
			}
		})
	}
	return l
}

// width returns how many keys to revoke at once at a target: as many as its limits allow, but not so many that a call could
// time out while it waits for its turn.
func (r *run) width(ctx context.Context, name string) int {
	t, err := r.target(ctx, r.s, name)
	if err != nil || t == nil {
		return 1
	}
	return t.Width(revokeTimeout / 2)
}

// finish waits until all lanes are empty.
func (ls *lanes) finish() {
	for _, l := range ls.of {
		l.close()
	}
	ls.work.Wait()
	for _, l := range ls.of {
		if err := l.left.err(); err != nil {
			ls.run.Logger().Warn("keys could not be revoked; they are debts in the ledger, which the sweeper retries", "revocation", ls.run.id, "target", l.target, "keys", l.left.n, "error", err)
		}
	}
}

func (l *lane) push(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ids = append(l.ids, id)
	l.change.Signal()
}

func (l *lane) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.change.Broadcast()
}

// next waits for a key; "" means that no more will come.
func (l *lane) next() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.ids) == 0 && !l.closed {
		l.change.Wait()
	}
	if len(l.ids) == 0 {
		return ""
	}
	id := l.ids[0]
	l.ids = l.ids[1:]
	return id
}

func (l *lane) note(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left.add(why)
}
