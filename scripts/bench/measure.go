// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// window is one measurement: a number of operations, done by a number of clients as fast as they get answers.
type window struct {
	Group   string             `json:"group"`
	Way     string             `json:"way"`
	Clients int                `json:"clients"`
	Round   int                `json:"round"`
	Ops     int                `json:"ops"`
	Seconds float64            `json:"seconds"`
	CPU     map[string]float64 `json:"cpu_seconds"` // by process
}

// processes are the processes whose CPU time is measured.
var processes = []string{"vault", "engine", "lab"}

func (w window) rate() float64 { return float64(w.Ops) / w.Seconds }

// measure runs the group's rounds: in each, every way has its turn; the order alternates between forwards and backwards.
// After an error the group keeps the numbers of clients whose rounds are complete.
func (w *world) measure(ctx context.Context, g *group) error {
	var contenders []way
	for _, by := range ways {
		if slices.Contains(g.ways, by.name) {
			contenders = append(contenders, by)
		}
	}
	todo := g.clients
	g.clients = nil
	for _, clients := range todo {
		for round := range g.rounds + 1 {
			n := g.size(clients)
			if round == 0 { // warms up caches and connections; not counted
				n = min(n, 100)
			}
			for _, by := range contenders {
				one, err := w.window(ctx, g, by, n, clients)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", by.name, plural(clients, "client"), err)
				}
				one.Round = round
				if round > 0 {
					g.windows = append(g.windows, one)
				}
			}
			slices.Reverse(contenders)
			fmt.Fprintf(os.Stderr, "%s, %s: round %d of %d\n", g.name, plural(clients, "client"), round, g.rounds)
		}
		g.clients = append(g.clients, clients)
	}
	return nil
}

func (w *world) window(ctx context.Context, g *group, by way, n, clients int) (window, error) {
	work, err := g.prepare(w, ctx, by, n, clients)
	if err != nil {
		return window{}, err
	}
	engine, err := w.child(by.engine)
	if err != nil {
		return window{}, err
	}
	pids := map[string]int{"vault": w.processes["vault"].cmd.Process.Pid, "engine": engine, "lab": w.processes["lab"].cmd.Process.Pid}
	before, err := cpuTimes(pids)
	if err != nil {
		return window{}, err
	}
	began := time.Now()
	if err := work(); err != nil {
		return window{}, err
	}
	took := time.Since(began)
	used, err := cpuTimes(pids)
	for name := range used {
		used[name] -= before[name]
	}
	return window{Group: g.name, Way: by.name, Clients: clients, Ops: n, Seconds: took.Seconds(), CPU: used}, err
}

// child finds the process of a plugin that Vault has started.
func (w *world) child(name string) (pid int, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	vault := strconv.Itoa(w.processes["vault"].cmd.Process.Pid)
	for _, dir := range dirs {
		command, _ := os.ReadFile(dir + "/cmdline") // fails if the process has ended since
		program, _, _ := bytes.Cut(command, []byte{0})
		if filepath.Base(string(program)) != name {
			continue
		}
		if fields, err := procStat(dir); err == nil && fields[1] == vault {
			return strconv.Atoi(filepath.Base(dir))
		}
	}
	return 0, fmt.Errorf("plugin %q has no process below Vault", name)
}

// cpuTimes returns the CPU seconds that processes have used so far.
func cpuTimes(pids map[string]int) (map[string]float64, error) {
	const ticks = 100 // a second; the kernel's USER_HZ
	used := map[string]float64{}
	for name, pid := range pids {
		fields, err := procStat("/proc/" + strconv.Itoa(pid))
		if err != nil {
			return nil, err
		}
		for _, field := range fields[11:13] { // utime, stime
			n, err := strconv.ParseFloat(field, 64)
			if err != nil {
				return nil, err
			}
			used[name] += n / ticks
		}
	}
	return used, nil
}

// procStat returns the fields of /proc/<pid>/stat from the third on; the second, the program's name, may contain blanks.
func procStat(dir string) ([]string, error) {
	raw, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 13 {
		return nil, errors.New(dir + "/stat has another form")
	}
	return fields, nil
}
