#!/usr/bin/env bash
# Copyright (c) the oidcexchange authors
# SPDX-License-Identifier: MPL-2.0
#
# Runs each fuzz function of each package for the given time, such as 30s. An input that fails is saved below testdata/fuzz
# of its package, and is a test case from then on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# fuzz runs one function. By default go spends up to a minute on minimizing each new input, and tries no others meanwhile.
# go before 1.27 may fail at the end of the time with its own deadline although nothing was found (go.dev/issue/75804).
fuzz() {
	go test -run '^$' -fuzz "^$3\$" -fuzztime "$1" -fuzzminimizetime 10x "$2" 2>&1 | tee "$log" && return
	grep -q '^    context deadline exceeded$' "$log" && ! grep -q 'Failing input written' "$log"
}

# go test lists the functions of a package, then a line "ok PACKAGE TIME".
targets=$(go test -list '^Fuzz' ./... |
	awk '/^Fuzz/ { names = names " " $1 } $1 == "ok" { split(names, all); for (i in all) print $2, all[i]; names = "" }' | sort)
[[ -n $targets ]] || { echo "fuzz.sh: there is no fuzz function" >&2; exit 1; }

while read -r package name; do
	printf '== %s %s\n' "$package" "$name"
	fuzz "$1" "$package" "$name"
done <<<"$targets"
