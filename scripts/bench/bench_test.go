// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestSpread(t *testing.T) {
	for name, c := range map[string]struct {
		values []float64
		want   spread
	}{
		"odd":  {[]float64{3, 1, 9}, spread{3, 1, 9}},
		"even": {[]float64{4, 1, 2, 9}, spread{3, 1, 9}},
		"none": {nil, spread{}},
	} {
		if got := spreadOf(c.values); got != c.want {
			t.Errorf("%s: %+v; want %+v", name, got, c.want)
		}
	}
}

// twoRounds is a group in which the plugin is half as fast as the floor in one round, and as fast in the next.
func twoRounds() group {
	g := group{name: "issue", what: "keys <issued>", ways: []string{"floor", "RS256"}, clients: []int{8}, rounds: 2, size: some(1, 100), ratios: []ratio{{"RS256", "floor", 0.8}}}
	for round, seconds := range []struct{ floor, plugin float64 }{{1, 2}, {4, 4}} {
		g.windows = append(g.windows,
			window{Way: "RS256", Clients: 8, Round: round + 1, Ops: 100, Seconds: seconds.plugin, CPU: map[string]float64{"vault": 0.1, "engine": 0.3}},
			window{Way: "floor", Clients: 8, Round: round + 1, Ops: 100, Seconds: seconds.floor, CPU: map[string]float64{"vault": 0.1}},
			window{Way: "floor", Clients: 1, Round: round + 1, Ops: 100, Seconds: 50})
	}
	return g
}

func TestRatiosAreOfOneRound(t *testing.T) {
	g := twoRounds()
	if got, want := g.paired(g.ratios[0], 8), (spread{0.75, 0.5, 1}); got != want {
		t.Errorf("ratios %+v; want %+v", got, want)
	}
	if got, want := g.rates("floor", 8), (spread{62.5, 25, 100}); got != want {
		t.Errorf("rates %+v; want %+v", got, want)
	}
	if got := g.cost("RS256", 8, "engine"); got != 3 {
		t.Errorf("%v ms of CPU each; want 3", got)
	}
	if got := g.cpu(g.ratios[0], 8); got != 4 {
		t.Errorf("%v times the CPU; want 4", got)
	}
}

func TestReport(t *testing.T) {
	var b strings.Builder
	g := twoRounds()
	g.report(&b)
	for _, want := range []string{"2 rounds of 100", "RS256  38", "(0.50–1.00)", "aim 0.80: MISSED"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, b.String())
		}
	}
}

func TestPlotIsXML(t *testing.T) {
	d := xml.NewDecoder(strings.NewReader(plot("2 cores & more", []group{twoRounds()})))
	bars := 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "path" {
			bars++
		}
	}
	if bars != 2 {
		t.Errorf("%d bars have a spread; want 2", bars)
	}
}

func TestEachCallsEverythingOnce(t *testing.T) {
	var mu sync.Mutex
	seen := map[int]int{}
	err := each(100, 8, func(i int) error {
		mu.Lock()
		defer mu.Unlock()
		seen[i]++
		return nil
	})
	if err != nil || len(seen) != 100 {
		t.Errorf("%v; %d of 100 were called", err, len(seen))
	}
	for i, n := range seen {
		if n != 1 {
			t.Errorf("%d was called %d times", i, n)
		}
	}
	broken := errors.New("broken")
	if err := each(100, 8, func(i int) error { return map[int]error{50: broken}[i] }); !errors.Is(err, broken) {
		t.Errorf("error %v; want that of call 50", err)
	}
}

// This process uses CPU until it sees its own figure rise.
func TestCPUTimeRises(t *testing.T) {
	me := map[string]int{"me": os.Getpid()}
	first, err := cpuTimes(me)
	if err != nil {
		t.Skipf("no /proc of Linux: %v", err)
	}
	for until := time.Now().Add(time.Minute); time.Now().Before(until); {
		if now, err := cpuTimes(me); err != nil || now["me"] > first["me"] {
			return
		}
	}
	t.Errorf("still %s s", strconv.FormatFloat(first["me"], 'f', 2, 64))
}

// Every group names only existing ways, and compares only ways that it measures.
func TestGroups(t *testing.T) {
	known := map[string]bool{}
	for _, by := range ways {
		known[by.name] = true
	}
	for name, g := range groups {
		measured := map[string]bool{}
		for _, way := range g.ways {
			measured[way] = true
			if !known[way] || g.name != name {
				t.Errorf("group %q: way %q", name, way)
			}
		}
		for _, r := range g.ratios {
			if !measured[r.of] || !measured[r.to] {
				t.Errorf("group %q compares %q and %q, and does not measure both", name, r.of, r.to)
			}
		}
		if g.rounds < 5 {
			t.Errorf("group %q has %d rounds", name, g.rounds)
		}
	}
}
