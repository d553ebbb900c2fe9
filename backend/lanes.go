// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"sync"
)

// lanes are the keys that must die, by target.
type lanes struct {
	run  *run
	of   map[string]*lane
	work sync.WaitGroup
}

// lane is the queue of one target. It has no bound, so that a target that does not answer does not stop the scan.
type lane struct {
	target string
	mu     sync.Mutex
	change sync.Cond
	ids    []string
	closed bool
	left   faults // why keys were left
}

// lane returns the lane of a target, and lets as many keys end at once as the target takes.
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

// width is how many keys are ended at once at a target: as many as it may be called, but not so many that one waits for its
// turn until its time is over.
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
			ls.run.Logger().Warn("keys could not be revoked; the ledger owes them", "revocation", ls.run.id, "target", l.target, "keys", l.left.n, "error", err)
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

// next waits for a key; "" means that none comes any more.
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
