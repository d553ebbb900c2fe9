// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"errors"
	"runtime"
	"time"

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
	gone    bool // the engine is gone there: nothing that it still does has any effect, and a new one starts on the same storage
	late    bool // the target does its work only when nobody waits for the answer any more
	whole   bool // only the whole matrix has it: it takes long, or is much like another
}

var matrixFaults = []matrixFault{
	{name: "cut before the request", of: ofDoor},
	{name: "cut inside the request", of: ofCalls, call: lab.Fault{Kind: lab.KindCut}},
	{name: "answer lost", of: ofCalls, call: lab.Fault{Kind: lab.KindCut, After: true}},
	{name: "cut inside the answer", of: ofCalls, call: lab.Fault{Kind: lab.KindTruncate}},
	{name: "answer past the deadline", of: ofCalls, call: lab.Fault{Kind: lab.KindHang, After: true}, whole: true},
	{name: "work past the deadline", of: ofCalls, late: true, whole: true},
	{name: "500 instead", of: ofCalls, call: lab.Fault{Kind: lab.KindStatus, Status: 500}, whole: true},
	{name: "500 once done", of: ofCalls, call: lab.Fault{Kind: lab.KindStatus, Status: 500, After: true}},
	{name: "502 once done", of: ofCalls, call: lab.Fault{Kind: lab.KindStatus, Status: 502, After: true}, whole: true},
	{name: "401", of: ofCalls, call: lab.Fault{Kind: lab.KindStatus, Status: 401}},
	{name: "429", of: ofCalls, call: lab.Fault{Kind: lab.KindStatus, Status: 429}},
	{name: "429, retry after", of: ofCalls, call: lab.Fault{Kind: lab.KindStatus, Status: 429, RetryAfter: time.Second}, whole: true}, // the clock stands, so what waits for it waits for its deadline
	{name: "a page for JSON", of: ofCalls, call: lab.Fault{Kind: lab.KindHTML}},
	{name: "JSON of other types", of: ofCalls, call: lab.Fault{Kind: lab.KindWrongTypes}, whole: true},
	{name: "JSON without the key", of: ofCalls, call: lab.Fault{Kind: lab.KindNoSecret}},
	{name: "engine gone before a call", of: ofCalls, call: lab.Fault{Kind: lab.KindCut}, gone: true},
	{name: "engine gone after a call", of: ofCalls, call: lab.Fault{Kind: lab.KindCut, After: true}, gone: true},
	{name: "a read fails", of: ofReads, whole: true},
	{name: "a write fails", of: ofWrites},
	{name: "all writes from one on fail", of: ofWrites, lasting: true},
	{name: "engine gone before a write", of: ofWrites, gone: true},
	{name: "engine gone after a write", of: ofWrites, gone: true, lasting: true},
}

// wholeDeadline is config's default for a call to a target, which only the faults of the deadline shorten.
const wholeDeadline = int64(20)

// arm lets the n-th of what the fault is of meet it; with n 0 they are only counted.
func (r *trial) arm(f matrixFault, n int) {
	r.mu.Lock()
	r.seen, r.met, r.gone, r.unheard = map[string]int{}, f.of == ofDoor, false, make(chan struct{})
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
		if f.late {
			r.working.Done()
		}
		return
	}
	if f.late { // which keeps no call from its work, so each comes to StageDone
		r.working.Add(1)
	}
	r.seen[ofCalls]++
	switch {
	case r.gone: // by an engine that is no more
		r.api.Fault(op, lab.Fault{Kind: lab.KindCut, Count: 1})
	case f.of == ofCalls && r.seen[ofCalls] == n:
		r.met, r.gone = true, f.gone
		f.call.Count = 1
		r.api.Fault(op, f.call)
	}
}

func (r *trial) onStorage(f matrixFault, n int, of string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone {
		runtime.Goexit()
	}
	r.seen[of]++
	if f.of == ofAnswer && of == ofWrites && r.living() > 0 {
		r.gone = true
		runtime.Goexit()
	}
	if f.of != of || n == 0 || r.seen[of] < n || r.seen[of] > n && !f.lasting {
		return nil
	}
	r.met = true
	if f.gone {
		r.gone = true
		if !f.lasting {
			runtime.Goexit()
		}
		return nil // this write is the last thing that it did
	}
	return errors.New("disk full")
}

// run does what meets the fault, in a goroutine that ends where the engine is gone, and mends everything.
func (r *trial) run(act func(*trial)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		act(r)
	}()
	<-done
	close(r.unheard)
	r.working.Wait() // before anything is swept: what is late comes to be now
	r.api.OnRequest(nil)
	r.api.ClearFaults()
	r.store.set(nil)
	r.doors[r.api].shut.Store(false)
	if r.read("config")["request_timeout"] != wholeDeadline {
		r.write("config", map[string]any{"request_timeout": wholeDeadline})
	}
	if r.isGone() {
		r.configChanged()
		r.restart()
		r.mu.Lock()
		r.gone = false
		r.mu.Unlock()
	}
}
