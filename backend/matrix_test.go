// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
)

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

// trial begins a run in a world where nothing is left of the one before, by an engine that has cached nothing: so each takes
// the same calls and accesses.
func (m *matrix) trial() *trial {
	if m.world == nil {
		m.world = m.open(m.t)
	}
	m.world.restart()
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
		for n, last := 1, places[f.of]; n <= last; n++ {
			r := m.try(step, f, n)
			last = max(last, r.seen[f.of]) // this time it may have taken another way
			o := r.settled(f.gone)
			if r.met {
				row.runs++
			}
			r.end(&o)
			row.alive, row.exposed, row.awaited = row.alive+o.alive, row.exposed+o.exposed, row.awaited+o.awaited
			if o.alive > 0 || len(o.wrong) > 0 {
				row.wrong = append(row.wrong, fmt.Sprintf("%s %d of %d: %d left, %q", f.of, n, places[f.of], o.alive, o.wrong))
				m.world = nil
			}
		}
		if places[f.of] == 0 {
			continue // the step takes nothing that the fault is of
		}
		if row.runs == 0 {
			row.wrong = append(row.wrong, "nothing met it")
		}
		m.rows = append(m.rows, row)
	}
}

// legend ends the table.
const legend = `
EXPOSED: a key that may live and that its target cannot end: its answer or its lease is lost or over. keys/ shows it until its own end.
AWAITED: the engine was gone after its last write and before Vault had the lease. The sweeper ends the key at the latest end that its lease could have had.
An engine that is gone is left where it stands, in this process, and a new one starts on the same storage. SIGKILL of a plugin's
process, in a real Vault and at each step of its own, is in the acceptance tests CrashWhileIssuing, CrashWhileRevoking, CrashOfLostKeys,
CrashWhileRotating and KilledDuringCall.
%d targets, %d runs: %d left alive, %d exposed, %d awaited
`

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
	if !all { // oauth's targets set the environment
		t.Parallel()
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
	tried := len(slices.DeleteFunc(slices.Clone(rows), func(of []*matrixRow) bool { return len(of) == 0 }))
	for _, row := range slices.Concat(rows...) {
		fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\n", row.target, row.step, row.fault, row.runs, row.alive, row.exposed, row.awaited, row.verdict())
		sum.runs, sum.alive, sum.exposed, sum.awaited = sum.runs+row.runs, sum.alive+row.alive, sum.exposed+row.exposed, sum.awaited+row.awaited
		for _, wrong := range row.wrong {
			t.Errorf("%s, %s, %s, %s", row.target, row.step, row.fault, wrong)
		}
	}
	if all {
		_ = table.Flush()
		fmt.Printf(legend, tried, sum.runs, sum.alive, sum.exposed, sum.awaited)
	}
}
