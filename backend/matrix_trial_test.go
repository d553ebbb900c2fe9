// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// matrixStep is a step in the life of a key. before brings it about, act is what meets the fault.
type matrixStep struct {
	name   string
	before func(*trial)
	act    func(*trial)
}

var matrixSteps = []matrixStep{
	{"issue", func(*trial) {}, (*trial).issue},
	{"renew", (*trial).mustIssue, func(r *trial) {
		if resp, err := r.lease(logical.RenewOperation, r.held); err == nil && !resp.IsError() && !r.isGone() {
			r.held.Secret = resp.Secret // what a renewal returns Vault keeps
		}
	}},
	{"revoke", (*trial).mustIssue, (*trial).revokeOnce},
	{"sweep of an unknown outcome", func(r *trial) {
		r.arm(matrixFault{of: ofAnswer, gone: true}, 1)
		r.run((*trial).issue)
		r.clock.advance(4 * time.Minute)
	}, (*trial).sweep},
	{"sweep of a debt", func(r *trial) {
		r.mustIssue()
		r.doors[r.api].shut.Store(true)
		r.restart() // without connections from before
		r.revokeOnce()
		r.doors[r.api].shut.Store(false)
		r.restart()
		r.owed = nil // Vault has given the lease up
		r.clock.advance(6 * time.Minute)
	}, (*trial).sweep},
	{"sweep of a lost lease", func(r *trial) {
		r.mustIssue()
		r.held = nil
		r.toTheHour()
	}, (*trial).sweep},
}

// trial is one run of a step under a fault.
type trial struct {
	*matrixTarget
	held *logical.Response // a lease that a caller has
	owed *logical.Response // a lease that Vault is still revoking

	mu      sync.Mutex
	seen    map[string]int // what a fault could have met
	met     bool
	gone    bool           // the engine is
	unheard chan struct{}  // closed when nobody waits for a late answer any more
	working sync.WaitGroup // calls that are not done, of a fault that is late
}

func (r *trial) isGone() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.gone
}

func (r *trial) issue() {
	if resp, err := r.ask(); err == nil && !resp.IsError() && !r.isGone() {
		r.held = resp
	}
}

// mustIssue issues a key that the step needs.
func (r *trial) mustIssue() {
	r.t.Helper()
	if r.issue(); r.held == nil {
		r.t.Fatalf("no key is issued without a fault\n%s", r.logs)
	}
}

func (r *trial) revokeOnce() {
	resp := cmp.Or(r.held, r.owed)
	r.held, r.owed = nil, resp
	if got, err := r.lease(logical.RevokeOperation, resp); err == nil && !got.IsError() && !r.isGone() {
		r.owed = nil
	}
}

func (r *trial) sweep() {
	_, _ = r.do(logical.UpdateOperation, "sweep", nil) // what fails is swept again
}

// entries are the ledger's, by the random part of their ids.
func (r *trial) entries() int {
	rands := map[string]bool{}
	for _, key := range r.ledgerEntries() {
		rands[path.Base(key)] = true
	}
	return len(rands)
}

// states counts the records of the ledger by state.
func (r *trial) states() map[string]int {
	counted := map[string]int{}
	for _, record := range r.read("keys/")["keys"].([]map[string]any) {
		counted[record["state"].(string)]++
	}
	return counted
}

// toTheHour goes on to when the next of the ledger's keys has outlived its latest end.
func (r *trial) toTheHour() {
	ids := r.list("keys")
	if len(ids) == 0 {
		return
	}
	hour, _, _ := splitID(slices.Min(ids))
	start, err := time.Parse(hourLayout, hour)
	if err != nil {
		r.t.Fatal(err)
	}
	if wait := start.Add(time.Hour + hourMargin + time.Second).Sub(r.clock.now()); wait > 0 {
		r.clock.advance(wait)
	}
}

// outcome is what a trial left once things had settled.
type outcome struct {
	alive   int // at the target, and no lease or record accounts for them
	exposed int // can be neither found nor revoked, and the ledger shows them
	awaited int // the engine was gone between the record of the key and its answer: they end at their latest end
	wrong   []string
}

func (o *outcome) expect(ok bool, format string, args ...any) {
	if !ok {
		o.wrong = append(o.wrong, fmt.Sprintf(format, args...))
	}
}

// revokeAgain does what Vault's core does when a lease could not be revoked.
func (r *trial) revokeAgain(o *outcome) {
	for wait := 20 * time.Second; r.owed != nil && wait < 10*time.Minute; wait *= 2 {
		r.clock.advance(wait)
		r.revokeOnce()
	}
	o.expect(r.owed == nil, "Vault cannot revoke the lease")
}

// settled waits as the design says, and counts what lives.
func (r *trial) settled(gone bool) (o outcome) {
	o.expect(r.living() <= r.entries(), "at once, %d keys live and the ledger has %d", r.living(), r.entries())
	r.revokeAgain(&o)
	r.clock.advance(4 * time.Minute)
	for range 3 {
		r.sweep()
	}
	states, held := r.states(), 0
	if r.held != nil {
		held = 1
		valid := r.api.(interface{ Valid(string) bool }).Valid(r.held.Data["api_key"].(string))
		o.expect(valid, "a key was ended while its lease lives")
	}
	o.expect(states[statePending]+states[stateDebt] == 0, "the ledger has open %v", states)
	o.expect(r.entries() <= 1, "one key was asked for, and the ledger has %v", states)
	o.exposed = states[stateExposed]
	o.awaited = states[stateIssued] - held
	o.expect(o.awaited == 0 || o.awaited == 1 && gone, "the ledger has %v for %d leases", states, held)
	o.alive = max(0, r.living()-held-o.exposed-o.awaited)
	return o
}

// end ends all leases, and waits for what ends by itself. No key outlives its record.
func (r *trial) end(o *outcome) {
	if r.held != nil {
		r.revokeOnce()
		r.revokeAgain(o)
	}
	for range 5 {
		r.sweep()
		if living, entries := r.living(), r.entries(); living > entries {
			o.alive += living - entries
			o.expect(false, "%d keys live and the ledger has %d", living, entries)
		}
		r.toTheHour()
	}
	o.expect(r.entries() == 0 && r.living() == 0, "at last %d keys live and the ledger has %d", r.living(), r.entries())
}
