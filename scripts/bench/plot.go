// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"fmt"
	"html"
	"strings"
)

const (
	plotWidth = 760
	barLeft   = 170 // where bars begin
	barRight  = 560 // where the longest whisker ends
	rowHeight = 18
)

// plot draws each way's rate as a bar, with a line from the lowest to the highest rate; there is a panel for each group and
// number of clients.
func plot(about string, all []group) string {
	var b strings.Builder
	y := 30
	text := func(x int, weight, s string) {
		fmt.Fprintf(&b, `<text x="%d" y="%d" font-weight="%s">%s</text>`+"\n", x, y, weight, html.EscapeString(s))
	}
	text(10, "normal", about)
	for _, g := range all {
		for _, clients := range g.clients {
			y += 2 * rowHeight
			text(10, "bold", fmt.Sprintf("%s a second, %s", g.what, plural(clients, "client")))
			longest := 0.0
			for _, name := range g.ways {
				longest = max(longest, g.rates(name, clients).most)
			}
			at := func(rate float64) int { return barLeft + int(rate/longest*(barRight-barLeft)) }
			for _, name := range g.ways {
				y += rowHeight
				rates := g.rates(name, clients)
				text(10, "normal", name)
				fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%d" height="12" fill="%s"/>`+"\n", barLeft, y-10, at(rates.median)-barLeft, colour(name))
				fmt.Fprintf(&b, `<path d="M%d %dH%d" stroke="black" stroke-width="2"/>`+"\n", at(rates.least), y-4, at(rates.most))
				text(barRight+10, "normal", fmt.Sprintf("%.0f (%.0f–%.0f)", rates.median, rates.least, rates.most))
			}
		}
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n"+
		`<rect width="100%%" height="100%%" fill="white"/>`+"\n%s</svg>\n", plotWidth, y+rowHeight, b.String())
}

// colour distinguishes the ways to compare with from the plugin's.
func colour(name string) string {
	for _, by := range ways {
		if by.name == name && by.engine == pluginName {
			return "#4a7fb5"
		}
	}
	return "#bbbbbb"
}
