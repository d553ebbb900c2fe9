// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"container/list"
	"slices"
	"strings"
	"sync"
	"time"
	"unique"
)

// tally is an index of the ledger in memory, so that ceilings cost no storage call. It has the keys of each role and of each
// of its subjects, oldest first, and the number of keys that each target has. It follows every change that this process
// makes to the ledger, and learns what was there before from a scan (ledger.count). Until that scan is complete, ceilings
// cannot be decided, and roles with ceilings refuse.
type tally struct {
	mu       sync.Mutex
	ready    bool            // a scan is complete
	unread   []string        // the records that the last scan could not read, see unread.names
	fault    error           // why the last scan was not
	gone     map[string]bool // by rand: removed before a scan is complete, so that the scan does not add it again
	keys     map[string]*held
	roles    map[unique.Handle[string]]*list.List // of *held, oldest first
	subjects map[unique.Handle[holder]]*list.List
	targets  map[unique.Handle[string]]int // number of keys by target
	hours    map[string]int                // number of keys by the hour under which they are filed

	first, last int64 // places of the oldest and the newest key, see held.place
}

// holder is one subject of one issuer, using one role.
type holder struct{ role, issuer, subject string }

// held is what the tally has of one entry.
type held struct {
	id             string
	role, target   unique.Handle[string]
	holder         unique.Handle[holder]
	needsTarget    bool          // may have to be revoked at its target
	revocable      bool          // can be revoked there
	issued         bool          // a lease holds it, or is about to
	closed         bool          // has no record in open/: this process has removed it
	flight         chan struct{} // not nil while a request of this process is obtaining the key; closed when that ends. The sweeper skips such a key
	place          int64         // rank by age among all keys, so that a key that was unlisted can return to its place
	ofRole, ofUser *list.Element
}

// ceilings are the most keys that a role, and each subject of the role, may have in the ledger; 0 = no limit.
type ceilings struct {
	role, subject int
	replace       bool // revoke the oldest instead of refusing
}

// maxReplaced bounds the keys that one issue may replace. Only after a ceiling was lowered can more be above it.
const maxReplaced = 8

// admit counts a key that is about to be requested, and marks it as in flight, unless that would exceed a ceiling. replaced
// are the keys that must be revoked first. They no longer count, so that no other request chooses them too.
func (t *tally) admit(e *entry, c ceilings) (replaced []*held, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if replaced, err = t.room(e, c); err != nil {
		return nil, err
	}
	for _, h := range replaced {
		t.unlist(h)
	}
	t.add(e).flight = make(chan struct{})
	return replaced, nil
}

// check returns the refusal that admit would give, and changes nothing.
func (t *tally) check(e *entry, c ceilings) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, err := t.room(e, c)
	return err
}

// room returns the keys that must be replaced to make room for e, or refuses if a ceiling leaves none. The caller holds t.mu.
func (t *tally) room(e *entry, c ceilings) (replaced []*held, err error) {
	if c.role == 0 && c.subject == 0 {
		return nil, nil
	}
	if err := t.uncounted(); err != nil {
		return nil, err
	}
	for _, scope := range []struct {
		name string
		keys *list.List
		most int
	}{
		{"max_keys_per_subject", t.subjects[e.holder()], c.subject}, {"max_keys", t.roles[unique.Make(e.Role)], c.role},
	} {
		if scope.most == 0 || scope.keys == nil {
			continue
		}
		over := scope.keys.Len() + 1 - len(replaced) - scope.most
		if over <= 0 {
			continue
		}
		if c.replace && over <= maxReplaced {
			more := oldest(scope.keys, over, replaced)
			replaced, over = append(replaced, more...), over-len(more)
		}
		if over > 0 {
			return nil, refuse(reasonLimit, "role %q has %d keys, and %s is %d", e.Role, scope.keys.Len(), scope.name, scope.most)
		}
	}
	return replaced, nil
}

// oldest returns the n oldest keys that can be replaced, or fewer. Keys in flight, and keys that cannot be revoked, cannot be
// replaced.
func oldest(keys *list.List, n int, except []*held) (found []*held) {
	for at := keys.Front(); at != nil && len(found) < n; at = at.Next() {
		if h := at.Value.(*held); h.issued && h.needsTarget && h.flight == nil && !slices.Contains(except, h) {
			found = append(found, h)
		}
	}
	return found
}

// withdraw undoes admit.
func (t *tally) withdraw(e *entry, replaced []*held) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop(e.rand())
	t.putBack(replaced)
}

// keep counts again the keys that were to be replaced but were not revoked.
func (t *tally) keep(replaced []*held) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.putBack(replaced)
}

func (t *tally) putBack(replaced []*held) {
	for _, h := range replaced {
		if t.keys[h.rand()] == h && h.ofRole == nil {
			t.list(h)
		}
	}
}

// land ends a key's flight: the request that was obtaining it is over.
func (t *tally) land(e *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.keys[e.rand()]; h != nil {
		h.endFlight()
	}
}

func (h *held) endFlight() {
	if h.flight != nil {
		close(h.flight)
		h.flight = nil
	}
}

func (t *tally) inFlight(rand string) bool { return t.flight(rand) != nil }

// flight returns a channel that is closed when the request that is obtaining the key has ended; nil if there is none.
func (t *tally) flight(rand string) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.keys[rand]; h != nil {
		return h.flight
	}
	return nil
}

// id returns the id of a counted key by its rand; "" if it is not counted.
func (t *tally) id(rand string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.keys[rand]; h != nil {
		return h.id
	}
	return ""
}

// rulesOut reports whether the tally alone shows that a filter does not match a key, so that its entry need not be read.
func (t *tally) rulesOut(rand string, f *filter) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.keys[rand]
	if h == nil {
		return false
	}
	who := h.holder.Value()
	differs := func(want, is string) bool { return want != "" && want != is }
	return differs(f.Role, who.role) || differs(f.Target, h.target.Value()) || differs(f.Issuer, who.issuer) || differs(f.Subject, who.subject)
}

// put counts an entry that the ledger is about to write.
func (t *tally) put(e *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.add(e)
}

// remove stops counting what the ledger no longer has.
func (t *tally) remove(rand string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop(rand)
}

func (t *tally) drop(rand string) {
	if !t.ready {
		if t.gone == nil {
			t.gone = map[string]bool{}
		}
		t.gone[rand] = true
	}
	if h := t.keys[rand]; h != nil {
		t.unlist(h)
		t.addTotals(h, -1)
		h.endFlight()
		delete(t.keys, rand)
	}
}

// add counts an entry, or updates one that is counted. The caller holds t.mu.
func (t *tally) add(e *entry) *held {
	h := t.keys[e.rand()]
	if h != nil {
		t.addTotals(h, -1)
		h.update(e)
		t.addTotals(h, 1)
		return h
	}
	h = newHeld(e)
	t.last++
	h.place = t.last
	t.insert(h)
	return h
}

func newHeld(e *entry) *held {
	h := &held{role: unique.Make(e.Role), target: unique.Make(e.Target), holder: e.holder()}
	h.update(e)
	return h
}

// update copies those fields of an entry that change during its life.
func (h *held) update(e *entry) {
	h.id, h.issued, h.needsTarget, h.revocable = e.ID, e.State == stateIssued, e.State == statePending || e.Revocable, e.Revocable
}

func (h *held) rand() string { _, r, _ := strings.Cut(h.id, "-"); return r }
func (h *held) hour() string { hour, _, _ := strings.Cut(h.id, "-"); return hour }

func (t *tally) insert(h *held) {
	if t.keys == nil {
		t.keys = map[string]*held{}
		t.roles, t.subjects = map[unique.Handle[string]]*list.List{}, map[unique.Handle[holder]]*list.List{}
		t.targets, t.hours = map[unique.Handle[string]]int{}, map[string]int{}
	}
	t.keys[h.rand()] = h
	t.addTotals(h, 1)
	t.list(h)
}

func (t *tally) list(h *held) {
	if t.roles[h.role] == nil {
		t.roles[h.role] = list.New()
	}
	if t.subjects[h.holder] == nil {
		t.subjects[h.holder] = list.New()
	}
	h.ofRole, h.ofUser = h.among(t.roles[h.role]), h.among(t.subjects[h.holder])
}

// among inserts the key at its place in keys. For the newest and the oldest key that takes one step.
func (h *held) among(keys *list.List) *list.Element {
	if last := keys.Back(); last == nil || last.Value.(*held).place < h.place {
		return keys.PushBack(h)
	}
	at := keys.Front()
	for at.Value.(*held).place < h.place {
		at = at.Next()
	}
	return keys.InsertBefore(h, at)
}

func (t *tally) unlist(h *held) {
	if h.ofRole == nil {
		return
	}
	if of := t.roles[h.role]; of.Remove(h.ofRole) != nil && of.Len() == 0 {
		delete(t.roles, h.role)
	}
	if of := t.subjects[h.holder]; of.Remove(h.ofUser) != nil && of.Len() == 0 {
		delete(t.subjects, h.holder)
	}
	h.ofRole, h.ofUser = nil, nil
}

// setClosed notes whether a key has no record in open/, which saves looking for it there and removing it.
func (t *tally) setClosed(rand string, closed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.keys[rand]; h != nil {
		h.closed = closed
	}
}

func (t *tally) isClosed(rand string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.keys[rand]
	return h != nil && h.closed
}

// addTotals adds n to the number of keys of h's target, and to that of its hour.
func (t *tally) addTotals(h *held, n int) {
	if t.targets[h.target] += n; t.targets[h.target] == 0 {
		delete(t.targets, h.target)
	}
	if t.hours[h.hour()] += n; t.hours[h.hour()] == 0 {
		delete(t.hours, h.hour())
	}
}

// perTarget returns how many keys each target has.
func (t *tally) perTarget() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := map[string]int{}
	for target, keys := range t.targets {
		n[target.Value()] = keys
	}
	return n
}

// firstHour returns the earliest hour under which counted keys are filed; "" if there is none.
func (t *tally) firstHour() (first string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for hour := range t.hours {
		if first == "" || hour < first {
			first = hour
		}
	}
	return first
}

// revocable counts the keys that may live at a target and can be revoked there.
func (t *tally) revocable(target string) (n int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.uncounted(); err != nil {
		return 0, err
	}
	of := unique.Make(target)
	for _, h := range t.keys {
		if h.target == of && h.revocable {
			n++
		}
	}
	return n, nil
}

// lastEnd returns a time by which every key that may have to be revoked at a target has ended; zero if there are none.
func (t *tally) lastEnd(target string) (last time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.uncounted(); err != nil {
		return last, err
	}
	of := unique.Make(target)
	for _, h := range t.keys {
		if h.target != of || !h.needsTarget {
			continue
		}
		if start, err := time.Parse(hourLayout, h.hour()); err == nil && start.Add(time.Hour).After(last) {
			last = start.Add(time.Hour)
		}
	}
	return last, nil
}
