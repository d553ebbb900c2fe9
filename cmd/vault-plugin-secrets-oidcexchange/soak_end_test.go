// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// figures are what a process uses while there is no load.
type figures struct {
	when                   string
	plugin, lab            int     // goroutines
	pluginBytes, heapBytes float64 // of the plugin's process, and of the lab's heap
}

// measure waits until no key is asked for, and measures the plugin and the lab, which runs in this process.
func (s *soak) measure(t *testing.T, when string) {
	t.Helper()
	s.gate.Lock()
	defer s.gate.Unlock()
	_, text := s.scrape(t, s.root.Token())
	value := func(name string) (v float64) {
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, name+" "); ok {
				v, _ = strconv.ParseFloat(strings.TrimSpace(rest), 64)
			}
		}
		return v
	}
	runtime.GC()
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	f := figures{when, int(value("go_goroutines")), runtime.NumGoroutine(), value("process_resident_memory_bytes"), float64(memory.HeapAlloc)}
	if f.plugin == 0 {
		t.Errorf("the plugin tells no goroutines: %.200s", text)
	}
	s.figures = append(s.figures, f)
}

// grown lists the figures that have grown more than they may: an idle process needs no more than after the start, and the
// process that lived through the last third no more than before it, except for connections and caches.
func (s *soak) grown() (wrong []string) {
	end := s.figures[len(s.figures)-1]
	for _, before := range s.figures[:len(s.figures)-1] {
		for _, of := range []struct {
			what           string
			was, is, slack float64
		}{
			{"goroutines of the plugin", float64(before.plugin), float64(end.plugin), 50},
			{"goroutines of the lab", float64(before.lab), float64(end.lab), 50},
			{"memory of the plugin", before.pluginBytes, end.pluginBytes, before.pluginBytes/2 + 64<<20},
			{"memory of the lab", before.heapBytes, end.heapBytes, 128 << 20},
		} {
			if of.is > of.was+of.slack {
				wrong = append(wrong, fmt.Sprintf("%s: %.0f at the %s, %.0f at the end", of.what, of.was, before.when, of.is))
			}
		}
	}
	return wrong
}

// settleAll waits until nothing is open, all revocations are done, and only leases that are meant to be kept are left.
func (s *soak) settleAll(t *testing.T) {
	t.Helper()
	within(t, 10*time.Minute, "everything to settle", func() (bool, string) {
		rest(t.Context(), time.Second)
		answer := s.sweep(t)
		var left []string
		for _, id := range s.runs {
			if run := s.read(t, "revocations/"+id); run["state"] != "done" {
				left = append(left, fmt.Sprint(run))
			}
		}
		for _, role := range []string{"deploy", "brief", "stolen"} {
			left = append(left, s.leases(t, "creds/"+role+"/")...)
		}
		return answer["pending"] == "0" && answer["debt"] == "0" && len(left) == 0, fmt.Sprint(answer, left)
	})
	s.write(t, "static-roles/ci", map[string]any{"overlap": 0})
	s.write(t, "rotate-role/ci", nil)                                              // goes on from where a process that ended has left a rotation
	within(t, 3*time.Minute, "the end of old static keys", func() (bool, string) { // which a tick hands to the sweeper
		rest(t.Context(), time.Second)
		answer := s.sweep(t)
		static, known := s.static(t), 0
		for _, accessor := range s.live() {
			if slices.Contains(static, accessor) {
				known++
			}
		}
		return answer["debt"] == "0" && known == 1, fmt.Sprint(answer, static)
	})
}

// findings describe the keys, the ledger and the leases in the end.
type findings struct {
	live, static, leases, ledger, debts, races int
	lost, ended                                int       // keys of which nobody heard and that have no lease: those that live, and those that ended by themselves
	until                                      time.Time // when the last of the lost ones ends by itself
	wrong, grown                               []string
}

func (f *findings) bad(format string, args ...any) {
	f.wrong = append(f.wrong, fmt.Sprintf(format, args...))
}

// inspect compares the live keys, the ledger, Vault's leases, and what the callers know.
func (s *soak) inspect(t *testing.T) *findings {
	t.Helper()
	f := &findings{}
	static, live := s.static(t), map[string]bool{}
	for _, accessor := range s.live() {
		live[accessor] = true
		if slices.Contains(static, accessor) {
			f.static++
			delete(live, accessor)
		}
	}
	leases := s.leases(t, "creds/")
	records := s.read(t, "keys")["keys"].([]any)
	f.live, f.leases, f.ledger = len(live), len(leases), len(records)
	if counted := s.read(t, "status")["ledger"].(map[string]any)["keys"]; fmt.Sprint(counted) != fmt.Sprint(f.ledger) {
		f.bad("the ledger has %d entries, and counts %v", f.ledger, counted)
	}
	doubtful := 0 // of whose keys no caller heard; some have leases
	for _, record := range records {
		record := record.(map[string]any)
		end, _ := time.Parse(time.RFC3339, record["expires_at"].(string))
		heard, lives := s.judge(f, record, live, leases), live[record["accessor"].(string)]
		switch {
		case heard:
		case lives:
			doubtful++
			if end.After(f.until) {
				f.until = end
			}
		case time.Now().After(end): // the ledger has it until its hour has passed
			f.ended++
		default:
			f.bad("the ledger has key %s as issued, and it is dead at the target", record["id"])
		}
		delete(live, record["accessor"].(string))
	}
	for accessor := range live {
		f.bad("orphaned: key %s lives, and the ledger does not have it", accessor)
	}
	f.lost = doubtful - s.heldOf(f, records, leases)
	if f.lost < 0 {
		f.bad("%d leases have no key", -f.lost)
	}
	return f
}

// judge judges an entry of the ledger, and reports whether a caller has heard of its key.
func (s *soak) judge(f *findings, record map[string]any, live map[string]bool, leases []string) (heard bool) {
	a, accessor := s.books.asked[record["jti"].(string)], record["accessor"].(string)
	if record["state"] != "issued" {
		f.debts++
		f.bad("key %s is not settled: %v since %v", record["id"], record["state"], record["issued_at"])
		return true
	}
	if claims, _ := record["claims"].(map[string]any); a != nil && a.role == "stolen" && claims["ref"] != groupRef(s.group.Load()) {
		f.bad("key %s of %v has outlived the revocation of its group", record["id"], claims["ref"])
	}
	switch {
	case a == nil:
		f.bad("the ledger has key %s of role %v, which was refused or has ended", record["id"], record["role"])
	case a.answered && !live[accessor]:
		f.bad("the ledger has key %s of role %s as issued, and it is dead at the target", record["id"], a.role)
	case a.answered && !slices.Contains(leases, a.lease):
		f.bad("orphaned: key %s of role %s lives, and its lease has ended", record["id"], a.role)
	case !a.answered && !s.books.wasSilent(a):
		f.bad("orphaned: key %s of role %s got no answer, and nothing had happened to the cluster from %s to %s", record["id"], a.role, a.from.Format(time.TimeOnly), a.to.Format(time.TimeOnly))
	}
	return a == nil || a.answered
}

// heldOf returns how many leases no caller has heard of. Every other lease must have a live key, and no lease may be missing
// that its caller keeps.
func (s *soak) heldOf(f *findings, records []any, leases []string) (unheard int) {
	known := map[string]*asked{}
	for _, a := range s.books.asked {
		if a.answered {
			known[a.lease] = a
		}
		if a.answered && a.role == "kept" && !slices.Contains(leases, a.lease) {
			f.bad("Vault has lost lease %s, which its caller has", a.lease)
		}
	}
	for _, lease := range leases {
		a := known[lease]
		switch {
		case a == nil:
			unheard++
		case !s.keys.Valid(a.key) || !slices.ContainsFunc(records, func(r any) bool { return r.(map[string]any)["accessor"] == a.accessor }):
			f.bad("key %s of role %s died, or the ledger lost it, while its lease lives", a.accessor, a.role)
		}
	}
	return unheard
}

// wasSilent reports whether an answer may have been lost.
func (b *books) wasSilent(a *asked) bool {
	return slices.ContainsFunc(b.silence, func(s [2]time.Time) bool { return a.from.Before(s[1]) && a.to.After(s[0]) })
}

// endAll ends everything: by a revocation, which reaches keys without leases too, and by Vault.
func (s *soak) endAll(t *testing.T, f *findings) {
	t.Helper()
	run := s.write(t, "revocations", map[string]any{"issuer": "github", "dry_run": false})
	s.finished(t, run.Data["id"].(string))
	s.must(t, s.root.Token(), "lease", "revoke", "-prefix", s.path+"/creds")
	within(t, 5*time.Minute, "the end of all leases", func() (bool, string) {
		leases := s.leases(t, "creds/")
		return len(leases) == 0, fmt.Sprint(len(leases))
	})
	if live, ledger := s.live(), s.ledger(t); len(live) != f.static || len(ledger) != 0 {
		f.bad("after the revocation of all keys live %q, and the ledger has %q", live, ledger)
	}
}

// report prints what was done and what was found.
func (s *soak) report(f *findings) {
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	row := func(name string, value any) { fmt.Fprintf(out, "%s\t%v\n", name, value) }
	did := s.books.tally()
	row("keys issued", did.issued)
	row("leases renewed", did.renewed)
	row("leases revoked", did.revoked)
	row("refused", did.refused)
	row("unanswered", did.unanswered)
	for _, name := range slices.Sorted(maps.Keys(s.harmed)) {
		row(name, s.harmed[name])
	}
	row("faults at the target", s.faults.Load())
	row("keys alive at the target", fmt.Sprintf("%d, and %d static", f.live, f.static))
	row("live leases", f.leases)
	row("ledger entries", f.ledger)
	row("debts", f.debts)
	lost := fmt.Sprint(f.lost + f.ended)
	if f.lost > 0 {
		lost = fmt.Sprintf("%s, %d of them alive until %s", lost, f.lost, f.until.UTC().Format(time.RFC3339))
	}
	row("keys whose Vault or plugin died before their lease was written", lost)
	for _, m := range s.figures {
		row(m.when, fmt.Sprintf("plugin %d goroutines, %.0f MiB; lab %d goroutines, %.0f MiB", m.plugin, m.pluginBytes/(1<<20), m.lab, m.heapBytes/(1<<20)))
	}
	row("races", f.races)
	row("wrong", len(f.wrong)+len(f.grown))
	_ = out.Flush()
}
