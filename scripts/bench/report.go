// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// spread is a median with the smallest and the largest value.
type spread struct{ median, least, most float64 }

func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	median := sorted[middle]
	if len(sorted)%2 == 0 {
		median = (sorted[middle-1] + median) / 2
	}
	return spread{median, sorted[0], sorted[len(sorted)-1]}
}

func windows(all []group) (list []window) {
	for _, g := range all {
		list = append(list, g.windows...)
	}
	return list
}

// of returns the windows of a way, in the order of the rounds.
func (g *group) of(name string, clients int) (list []window) {
	for _, w := range g.windows {
		if w.Way == name && w.Clients == clients {
			list = append(list, w)
		}
	}
	return list
}

// rates returns the spread of a way's operations per second.
func (g *group) rates(name string, clients int) spread {
	var rates []float64
	for _, w := range g.of(name, clients) {
		rates = append(rates, w.rate())
	}
	return spreadOf(rates)
}

// paired returns the spread of the ratios of two ways' rates, each within one round.
func (g *group) paired(r ratio, clients int) spread {
	var ratios []float64
	to := g.of(r.to, clients)
	for i, w := range g.of(r.of, clients) {
		ratios = append(ratios, w.rate()/to[i].rate())
	}
	return spreadOf(ratios)
}

// cost returns the CPU time of a process in milliseconds per operation, over all rounds.
func (g *group) cost(name string, clients int, process string) float64 {
	var used, ops float64
	for _, w := range g.of(name, clients) {
		used, ops = used+w.CPU[process], ops+float64(w.Ops)
	}
	return 1000 * used / ops
}

// cpu compares the CPU time that two ways take, over all processes and rounds. It is steadier than their rates if the
// machine has other work.
func (g *group) cpu(r ratio, clients int) float64 {
	all := func(name string) (sum float64) {
		for _, process := range processes {
			sum += g.cost(name, clients, process)
		}
		return sum
	}
	return all(r.of) / all(r.to)
}

// report prints the measurements.
func (g *group) report(to io.Writer) {
	for _, clients := range g.clients {
		fmt.Fprintf(to, "\n%s a second, %s, %d rounds of %d: median (least–most)\n", g.what, plural(clients, "client"), g.rounds, g.size(clients))
		table := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
		fmt.Fprint(table, "\ta second\t\tCPU ms each: Vault\tengine\tlab\n")
		for _, name := range g.ways {
			rates := g.rates(name, clients)
			fmt.Fprintf(table, "%s\t%.0f\t(%.0f–%.0f)", name, rates.median, rates.least, rates.most)
			for _, process := range processes {
				fmt.Fprintf(table, "\t%.2f", g.cost(name, clients, process))
			}
			fmt.Fprintln(table)
		}
		_ = table.Flush()
		fmt.Fprintln(to)
		for _, r := range g.ratios {
			ratios := g.paired(r, clients)
			fmt.Fprintf(table, "%s\t/ %s\t%.2f\t(%.2f–%.2f)\tCPU %.2f\t%s\n", r.of, r.to, ratios.median, ratios.least, ratios.most, g.cpu(r, clients), r.verdict(ratios.median))
		}
		_ = table.Flush()
	}
}

func (r ratio) verdict(median float64) string {
	switch {
	case r.aim == 0:
		return ""
	case median >= r.aim:
		return fmt.Sprintf("aim %.2f: reached", r.aim)
	default:
		return fmt.Sprintf("aim %.2f: MISSED", r.aim)
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
