#!/usr/bin/env bash
# Copyright (c) the oidcexchange authors
# SPDX-License-Identifier: MPL-2.0
#
# Prints the path of a Vault to test against, and nothing else; progress goes to stderr.
# That is vault from PATH if it is new enough, else the community server built from its published module (vault/ beside
# this script), once per machine: the binary stays in the user's cache folder.
set -euo pipefail

readonly min_major=1 min_minor=16
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/vault" && pwd)
readonly source_dir
readonly cache=${XDG_CACHE_HOME:-$HOME/.cache}/oidcexchange

say() { printf '%s\n' "$*" >&2; }
die() { say "vault.sh: $*"; exit 1; }

# from_path prints the vault on PATH if it is new enough.
from_path() {
	local found version
	found=$(command -v vault) || return 1
	version=$("$found" version 2>/dev/null) || version=
	if [[ ! $version =~ ^Vault\ v([0-9]+)\.([0-9]+)\. ]]; then
		say "$found does not tell a version; it is not used"
		return 1
	fi
	if ((BASH_REMATCH[1] < min_major || (BASH_REMATCH[1] == min_major && BASH_REMATCH[2] < min_minor))); then
		say "$found is older than $min_major.$min_minor (${version%%,*}); it is not used"
		return 1
	fi
	printf '%s\n' "$found"
}

# require names what is missing before a long build starts.
require() {
	local tool
	for tool in go git; do
		command -v "$tool" >/dev/null || die "$tool is missing; install it, or put a vault $min_major.$min_minor or newer on PATH"
	done
	# go switches to the toolchain that go.mod asks for, or says why it cannot.
	(cd "$source_dir" && GOWORK=off go env GOVERSION) >/dev/null ||
		die "this go is too old and may not fetch a newer one; install Go from https://go.dev/dl, or set GOTOOLCHAIN=auto"
}

# lock waits until nobody else builds $binary. A link is made with its content at once, so its owner is never unknown.
# Fails if meanwhile somebody else has built it.
lock() {
	local owner told=
	until ln -sn "$$" "$binary.lock" 2>/dev/null; do
		owner=$(readlink "$binary.lock") || continue
		if ! kill -0 "$owner" 2>/dev/null; then
			rm -f "$binary.lock" # its owner has died
			continue
		fi
		[[ $told ]] || say "process $owner is building Vault already; waiting for it"
		told=1
		sleep 2
	done
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	trap cleanup EXIT
	[[ ! -x $binary ]]
}

cleanup() {
	[[ -z $builder ]] || kill "$builder" 2>/dev/null || true
	rm -rf "$binary.building"
	rm -f "$binary.lock"
}

# build makes $binary. It appears there whole or not at all.
build() {
	local work=$binary.building
	rm -rf "$work" # of a build that was killed
	mkdir "$work"
	say "Building Vault $(module_version). That takes about 25 CPU minutes, once per machine."
	say "(A vault $min_major.$min_minor or newer on PATH would be used instead.)"
	# The user's own settings could change what is built, or forbid to build it.
	(cd "$source_dir" && GOFLAGS=-mod=readonly GOWORK=off CGO_ENABLED=0 GOTMPDIR=$work exec \
		go build -v -trimpath -buildvcs=false -tags minimal -o "$work/vault" . >"$work/log" 2>&1) &
	builder=$!
	watch "$work/log" || { tail -n 20 "$work/log" >&2; die "building Vault failed, see above"; }
	"$work/vault" version >&2 || die "the Vault that was built does not run"
	mv "$work/vault" "$binary"
}

# watch waits for the builder and tells every 20 seconds how far it is by its log $1.
watch() {
	local log=$1 start=$SECONDS next=20 status=0
	while kill -0 "$builder" 2>/dev/null; do
		sleep 1
		if ((SECONDS - start >= next)); then
			say "  $next s: $(grep -c '^go: downloading ' "$log" || true) modules fetched, $(grep -vc '^go: ' "$log" || true) packages built"
			next=$((next + 20))
		fi
	done
	wait "$builder" || status=$?
	builder=
	return "$status"
}

module_version() { awk '$1 == "github.com/hashicorp/vault" { print $2; exit }' "$source_dir/go.mod"; }

main() {
	from_path && return
	require
	local hash
	hash=$(cd "$source_dir" && cat go.mod go.sum main.go | git hash-object --stdin)
	binary=$cache/vault-$(module_version)-${hash:0:12}/vault
	if [[ ! -x $binary ]]; then
		mkdir -p "${binary%/*}"
		if lock; then
			build
		fi
	fi
	printf '%s\n' "$binary"
}

binary= # where the cached Vault is
builder= # the process that builds it
main
