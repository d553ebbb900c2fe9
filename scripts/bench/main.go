// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// Bench measures the plugin in a real Vault and compares it with what its users would do without it. Everything runs in one
// Vault, in turn: in each round every contender does the same number of operations, and figures are compared within a round,
// so that other load on the machine affects all alike. scripts/bench.sh builds what is needed and starts it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// options are the flags of the program.
type options struct {
	vault, plugin, null, lab string // binaries
	out                      string // directory for the results
	storage                  string // of Vault: raft or inmem
	groups                   string
	quick                    bool
}

func main() {
	var o options
	flag.StringVar(&o.vault, "vault", "", "Vault's `binary`")
	flag.StringVar(&o.plugin, "plugin", "", "the plugin's `binary`")
	flag.StringVar(&o.null, "null", "", "the null engine's `binary`")
	flag.StringVar(&o.lab, "lab", "", "the lab's `binary`")
	flag.StringVar(&o.out, "out", ".", "`directory` for report.txt, raw.json and plot.svg")
	flag.StringVar(&o.storage, "storage", "raft", "Vault's storage: raft, on the disk of TMPDIR, or inmem")
	flag.StringVar(&o.groups, "groups", "issue,renew,revoke", "what to measure")
	flag.BoolVar(&o.quick, "quick", false, "a run of two minutes, to see that all works")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.storage != "raft" && o.storage != "inmem" {
		return fmt.Errorf("storage %q: want raft or inmem", o.storage)
	}
	w, err := newWorld()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.build(ctx, o); err != nil {
		return err
	}
	var all []group
	for name := range strings.SplitSeq(o.groups, ",") {
		g, ok := groups[name]
		if !ok {
			return fmt.Errorf("group %q: want some of issue, renew, revoke", name)
		}
		if o.quick {
			g.rounds, g.size = 2, g.quick
		}
		err := w.measure(ctx, &g)
		all = append(all, g)
		if err != nil { // publish the groups that are complete all the same
			return errors.Join(fmt.Errorf("%s: %w", name, err), publish(o, w.about(o), all))
		}
	}
	return publish(o, w.about(o), all)
}

// about describes the machine and versions that were measured.
func (w *world) about(o options) string {
	return fmt.Sprintf("%s, %d cores of %s, %s, Vault %s, storage %s, file audit device", time.Now().UTC().Format(time.DateOnly),
		runtime.NumCPU(), cpuModel(), runtime.Version(), w.version, o.storage)
}

func cpuModel() string {
	raw, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(raw)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// publish prints the report, and writes it with the raw figures and the plot.
func publish(o options, about string, all []group) error {
	file, err := os.Create(filepath.Join(o.out, "report.txt"))
	if err != nil {
		return err
	}
	defer file.Close()
	to := io.MultiWriter(os.Stdout, file)
	fmt.Fprintf(to, "%s\n", about)
	for _, g := range all {
		g.report(to)
	}
	raw, err := json.MarshalIndent(map[string]any{"about": about, "windows": windows(all)}, "", "\t")
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(o.out, "raw.json"), append(raw, '\n'), 0o644),
		os.WriteFile(filepath.Join(o.out, "plot.svg"), []byte(plot(about, all)), 0o644),
	)
}
