// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// What a fault meets: each in turn, in a run of its own.
const (
	ofCalls  = "call"  // a call to the target
	ofWrites = "write" // a write or delete in storage
	ofReads  = "read"
	ofDoor   = "door"   // every connection to the target while the step lasts
	ofAnswer = "answer" // the first write once a key lives at the target
)

// matrixFault is a fault of the matrix.
type matrixFault struct {
	name    string
	of      string
	call    lab.Fault
	lasting bool // storage fails from then on until the step has ended
	dies    bool // the process ends there, and nothing that it still does has any effect
	late    bool // the target does its work only when nobody waits for the answer any more
	whole   bool // takes long, so only the whole matrix has it
}

var matrixFaults = []matrixFault{
	{name: "cut before the request", of: ofDoor},
	{name: "cut inside the request", of: ofCalls, call: lab.Fault{Kind: lab.KindCut}},
	{name: "answer lost", of: ofCalls, call: lab.Fault{Kind: lab.KindCut, After: true}},
	{name: "cut inside the answer", of: ofCalls, call: lab.Fault{Kind: lab.KindTruncate}},
	{name: "answer past the deadline", of: ofCalls, call: lab.Fault{Kind: lab.KindHang, After: true}, whole: true},
	{name: "work past the deadline", of: ofCalls, late: true, whole: true},
	{name: "500 instead", of: ofCalls, call: lab.Fault{Kind: lab.KindStatus, Status: 500}},
	{name: "500 once done", of: ofCalls, call: lab.Fault{Kind: lab.KindStatus, Status: 500, After: true}},
	{name: "502 once done", of: ofCalls, call: lab.Fault{Kind: lab.KindStatus, Status: 502, After: true}},
	{name: "429", of: ofCalls, call: lab.Fault{Kind: lab.KindStatus, Status: 429, RetryAfter: time.Second}},
	{name: "a page for JSON", of: ofCalls, call: lab.Fault{Kind: lab.KindHTML}},
	{name: "JSON of other types", of: ofCalls, call: lab.Fault{Kind: lab.KindWrongTypes}},
	{name: "JSON without the key", of: ofCalls, call: lab.Fault{Kind: lab.KindNoSecret}},
	{name: "process ends before a call", of: ofCalls, call: lab.Fault{Kind: lab.KindCut}, dies: true},
	{name: "process ends after a call", of: ofCalls, call: lab.Fault{Kind: lab.KindCut, After: true}, dies: true},
	{name: "a read fails", of: ofReads, whole: true},
	{name: "a write fails", of: ofWrites},
	{name: "all writes from one on fail", of: ofWrites, lasting: true},
	{name: "process ends before a write", of: ofWrites, dies: true},
	{name: "process ends after a write", of: ofWrites, dies: true, lasting: true},
}

// matrixStep is a step in the life of a key. before brings it about, act is what meets the fault.
type matrixStep struct {
	name   string
	before func(*trial)
	act    func(*trial)
}

var matrixSteps = []matrixStep{
	{"issue", func(*trial) {}, (*trial).issue},
	{"renew", (*trial).mustIssue, func(r *trial) {
		if resp, err := r.lease(logical.RenewOperation, r.held); err == nil && !resp.IsError() && !r.dead() {
			r.held.Secret = resp.Secret // what a renewal returns Vault keeps
		}
	}},
	{"revoke", (*trial).mustIssue, (*trial).revokeOnce},
	{"sweep of an unknown outcome", func(r *trial) {
		r.arm(matrixFault{of: ofAnswer, dies: true}, 1)
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

// wholeDeadline is config's default for a call to a target, which only the faults of the deadline shorten.
const wholeDeadline = int64(20)

// trial is one run of a step under a fault.
type trial struct {
	*matrixTarget
	held *logical.Response // a lease that a caller has
	owed *logical.Response // a lease that Vault is still revoking

	mu      sync.Mutex
	seen    map[string]int // what a fault could have met
	met     bool
	ended   bool          // the process
	unheard chan struct{} // closed when nobody waits for a late answer any more
	worked  chan struct{} // closed when the work behind it is done; nil = there is none
}

func (r *trial) dead() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended
}

func (r *trial) issue() {
	if resp, err := r.ask(); err == nil && !resp.IsError() && !r.dead() {
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
	if got, err := r.lease(logical.RevokeOperation, resp); err == nil && !got.IsError() && !r.dead() {
		r.owed = nil
	}
}

func (r *trial) sweep() {
	_, _ = r.do(logical.UpdateOperation, "sweep", nil) // what fails is swept again
}

// arm lets the n-th of what the fault is of meet it; with n 0 they are only counted.
func (r *trial) arm(f matrixFault, n int) {
	r.mu.Lock()
	r.seen, r.met, r.ended, r.unheard = map[string]int{}, f.of == ofDoor, false, make(chan struct{})
	r.mu.Unlock()
	if f.of == ofDoor {
		r.doors[r.api].shut.Store(true)
		r.configChanged() // drops connections from before
	}
	if f.call.Kind == lab.KindHang || f.late {
		r.write("config", map[string]any{"request_timeout": "1s"})
	}
	if f.late {
		f.call = lab.Fault{Kind: lab.KindDelay, Until: r.unheard}
	}
	r.api.OnRequest(func(op string, stage lab.Stage) { r.onCall(f, n, op, stage) })
	r.store.set(func(op, _ string) error {
		of := ofWrites
		if op == "get" {
			of = ofReads
		}
		return r.onStorage(f, n, of)
	})
}

func (r *trial) onCall(f matrixFault, n int, op string, stage lab.Stage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if stage == lab.StageDone {
		if r.worked != nil && f.of == ofCalls && r.seen[ofCalls] >= n {
			close(r.worked)
			r.worked = nil
		}
		return
	}
	r.seen[ofCalls]++
	switch {
	case r.ended: // by a process that is no more
		r.api.Fault(op, lab.Fault{Kind: lab.KindCut, Count: 1})
	case f.of == ofCalls && r.seen[ofCalls] == n:
		r.met, r.ended = true, f.dies
		f.call.Count = 1
		if f.late {
			r.worked = make(chan struct{})
		}
		r.api.Fault(op, f.call)
	}
}

func (r *trial) onStorage(f matrixFault, n int, of string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		runtime.Goexit()
	}
	r.seen[of]++
	if f.of == ofAnswer && of == ofWrites && r.living() > 0 {
		r.ended = true
		runtime.Goexit()
	}
	if f.of != of || n == 0 || r.seen[of] < n || r.seen[of] > n && !f.lasting {
		return nil
	}
	r.met = true
	if f.dies {
		r.ended = true
		if !f.lasting {
			runtime.Goexit()
		}
		return nil // this write is the last thing that it did
	}
	return errors.New("disk full")
}

// run does what meets the fault, in a goroutine that ends where the process would, and mends everything.
func (r *trial) run(act func(*trial)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		act(r)
	}()
	<-done
	r.mu.Lock()
	worked := r.worked
	r.mu.Unlock()
	close(r.unheard)
	if worked != nil {
		<-worked
	}
	r.api.OnRequest(nil)
	r.api.ClearFaults()
	r.store.set(nil)
	r.doors[r.api].shut.Store(false)
	if r.read("config")["request_timeout"] != wholeDeadline {
		r.write("config", map[string]any{"request_timeout": wholeDeadline})
	}
	if r.dead() {
		r.configChanged()
		r.restart()
		r.mu.Lock()
		r.ended = false
		r.mu.Unlock()
	}
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
	awaited int // the process ended between the record of the key and its answer: they end at their latest end
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
func (r *trial) settled(died bool) (o outcome) {
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
	o.exposed = states[stateExposed]
	o.awaited = states[stateIssued] - held
	o.expect(o.awaited == 0 || o.awaited == 1 && died, "the ledger has %v for %d leases", states, held)
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

// matrixRow adds up the trials of a step under a fault.
type matrixRow struct {
	target, step, fault           string
	runs, alive, exposed, awaited int
	wrong                         []string
}

func (row *matrixRow) verdict() string {
	switch {
	case row.alive > 0 || len(row.wrong) > 0:
		return "WRONG"
	case row.exposed > 0:
		return "shown until its own end"
	case row.awaited > 0:
		return "ends at its latest end"
	}
	return "none left"
}

// matrix tries steps of one target under all faults.
type matrix struct {
	t     *testing.T
	name  string
	open  func(*testing.T) *matrixTarget
	world *matrixTarget // nil = to be opened
	rows  []*matrixRow
}

// trial begins a run in a world where nothing is left of the one before.
func (m *matrix) trial() *trial {
	if m.world == nil {
		m.world = m.open(m.t)
	}
	return &trial{matrixTarget: m.world}
}

func (m *matrix) try(step matrixStep, f matrixFault, n int) *trial {
	r := m.trial()
	step.before(r)
	r.arm(f, n)
	r.run(step.act)
	return r
}

// step tries each fault at each place that it can meet.
func (m *matrix) step(step matrixStep, faults []matrixFault) {
	r := m.try(step, matrixFault{}, 0)
	places := r.seen
	places[ofDoor] = min(1, places[ofCalls])
	o := r.settled(false)
	if r.end(&o); len(o.wrong)+o.alive > 0 {
		m.t.Fatalf("%s without a fault: %q, %d keys left", step.name, o.wrong, o.alive)
	}
	for _, f := range faults {
		row := &matrixRow{target: m.name, step: step.name, fault: f.name}
		for n := 1; n <= places[f.of]; n++ {
			r := m.try(step, f, n)
			if !r.met {
				continue // another way was taken this time
			}
			row.runs++
			o := r.settled(f.dies)
			r.end(&o)
			row.alive, row.exposed, row.awaited = row.alive+o.alive, row.exposed+o.exposed, row.awaited+o.awaited
			if o.alive > 0 || len(o.wrong) > 0 {
				row.wrong = append(row.wrong, fmt.Sprintf("%s %d of %d: %d left, %q", f.of, n, places[f.of], o.alive, o.wrong))
				m.world = nil
			}
		}
		if row.runs > 0 {
			m.rows = append(m.rows, row)
		}
	}
}

// TestFaultMatrix tries every step in the life of a key under every fault, at every call and every access to storage that the
// step takes, and counts what is left alive once things have settled. With FAULTS=all (make faults) it does so for every target
// and prints the table; else for few, without what takes long.
func TestFaultMatrix(t *testing.T) {
	all, targets := os.Getenv("FAULTS") == "all", matrixTargets()
	faults := slices.DeleteFunc(slices.Clone(matrixFaults), func(f matrixFault) bool { return f.whole && !all })
	names := []string{"http, extending", "git-proxy-java", "connect publisher"}
	if all {
		names = slices.Sorted(maps.Keys(targets))
	}
	rows := make([][]*matrixRow, len(names))
	t.Run("targets", func(t *testing.T) {
		for i, name := range names {
			t.Run(name, func(t *testing.T) {
				if !strings.HasPrefix(name, "oauth") { // which sets the environment
					t.Parallel() // most of the time is waited for deadlines
				}
				m := &matrix{t: t, name: name, open: targets[name]}
				defer func() { rows[i] = m.rows }()
				for _, step := range matrixSteps {
					m.step(step, faults)
				}
			})
		}
	})
	sum := matrixRow{}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TARGET\tSTEP\tFAULT\tRUNS\tLEFT ALIVE\tEXPOSED\tAWAITED\tVERDICT")
	for _, row := range slices.Concat(rows...) {
		fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\n", row.target, row.step, row.fault, row.runs, row.alive, row.exposed, row.awaited, row.verdict())
		sum.runs, sum.alive, sum.exposed, sum.awaited = sum.runs+row.runs, sum.alive+row.alive, sum.exposed+row.exposed, sum.awaited+row.awaited
		for _, wrong := range row.wrong {
			t.Errorf("%s, %s, %s, %s", row.target, row.step, row.fault, wrong)
		}
	}
	if all {
		_ = table.Flush()
		fmt.Printf("%d targets, %d runs: %d left alive, %d shown as exposed until their own end, %d awaited at their latest end\n", len(names), sum.runs, sum.alive, sum.exposed, sum.awaited)
	}
}
