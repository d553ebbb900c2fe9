# shellcheck shell=bash
# Copyright (c) the oidcexchange authors
# SPDX-License-Identifier: MPL-2.0
#
# Sourced by scripts that build something slow: it is built once per machine, and stays in the user's cache folder. Progress
# goes to stderr.

readonly cache=${XDG_CACHE_HOME:-$HOME/.cache}/oidcexchange
product= # what is made
builder= # the process that makes it

say() { printf '%s\n' "$*" >&2; }
die() { say "${0##*/}: $*"; exit 1; }

# once makes $2, a file or folder, unless it exists; $1 is its name in words. The function $3 is called with a folder to
# work in, and leaves the result there under the base name of $2. The result appears whole or not at all.
once() {
	local what=$1 make=$3
	product=$2
	[[ ! -e $product ]] || return 0
	mkdir -p "${product%/*}"
	lock "$what" || return 0
	rm -rf "$product.building" # left by a build that was killed
	mkdir "$product.building"
	"$make" "$product.building"
	mv "$product.building/${product##*/}" "$product"
}

# lock waits until nobody else is making $product. It fails if somebody else has made it in the meantime. The lock is a
# symbolic link, which is created together with its content, so that its owner is always known.
lock() {
	local owner told=
	until ln -sn "$$" "$product.lock" 2>/dev/null; do
		owner=$(readlink "$product.lock") || continue
		if ! kill -0 "$owner" 2>/dev/null; then
			rm -f "$product.lock" # its owner has ended
			continue
		fi
		[[ $told ]] || say "process $owner is building $1 already; waiting for it"
		told=1
		sleep 2
	done
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	trap cleanup EXIT
	[[ ! -e $product ]]
}

cleanup() {
	[[ -z $builder ]] || kill "$builder" 2>/dev/null || true
	rm -rf "$product.building"
	rm -f "$product.lock"
}

# logged runs a build in the folder $1 and logs its output to $2, the end of which is shown if the build fails. Every 20
# seconds it prints the progress of go or npm.
logged() {
	local dir=$1 log=$2 start=$SECONDS next=20 status=0
	shift 2
	(cd "$dir" && exec "$@" >"$log" 2>&1) &
	builder=$!
	while kill -0 "$builder" 2>/dev/null; do
		sleep 1
		if ((SECONDS - start >= next)); then
			say "  $next s: $(grep -Ec '^(go: downloading|npm http fetch) ' "$log" || true) modules fetched, $(grep -Evc '^(go: |npm )' "$log" || true) packages built"
			next=$((next + 20))
		fi
	done
	wait "$builder" || status=$?
	builder=
	((status == 0)) || { tail -n 20 "$log" >&2; die "the build failed, see above"; }
}
