#!/usr/bin/env bash
# Copyright (c) the oidcexchange authors
# SPDX-License-Identifier: MPL-2.0
#
# Prints the path of a Vault to test against, and nothing else; progress goes to stderr. It is the vault on PATH if that is
# new enough, else the community server built from its published module (vault/ beside this script), once per machine: the
# binary stays in the user's cache folder.
set -euo pipefail

readonly min_major=1 min_minor=16
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/vault" && pwd)
readonly source_dir
# shellcheck source=scripts/once.sh
source "$source_dir/../once.sh"

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

# require fails before a long build starts, and names what is missing.
require() {
	local tool
	for tool in go git; do
		command -v "$tool" >/dev/null || die "$tool is missing; install it, or put a vault $min_major.$min_minor or newer on PATH"
	done
	# go switches to the toolchain that go.mod requires, or says why it cannot.
	(cd "$source_dir" && GOWORK=off go env GOVERSION) >/dev/null ||
		die "this go is too old and may not fetch a newer one; install Go from https://go.dev/dl, or set GOTOOLCHAIN=auto"
}

# build builds the server in the folder $1, without the user's own go settings, which could change what is built or make the
# build fail.
build() {
	say "Building Vault $(module_version). That takes about 25 CPU minutes, once per machine."
	say "(A vault $min_major.$min_minor or newer on PATH would be used instead.)"
	logged "$source_dir" "$1/log" env GOFLAGS=-mod=readonly GOWORK=off CGO_ENABLED=0 GOTMPDIR="$1" \
		go build -v -trimpath -buildvcs=false -tags minimal -o "$1/vault" .
	"$1/vault" version >&2 || die "the Vault that was built does not run"
}

module_version() { awk '$1 == "github.com/hashicorp/vault" { print $2; exit }' "$source_dir/go.mod"; }

main() {
	from_path && return
	require
	local hash binary
	hash=$(cd "$source_dir" && cat go.mod go.sum main.go | git hash-object --stdin)
	binary=$cache/vault-$(module_version)-${hash:0:12}/vault
	once Vault "$binary" build
	printf '%s\n' "$binary"
}

main
