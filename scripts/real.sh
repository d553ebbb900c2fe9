#!/usr/bin/env bash
# Copyright (c) the oidcexchange authors
# SPDX-License-Identifier: MPL-2.0
#
# Prints the folder of another project's server, for the acceptance tests, and nothing else; progress goes to stderr. The
# server is built from its published module or package, at the version below, once per machine.
#
# usage: real.sh pocketbase|spire|gitea|unleash|verdaccio
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
# shellcheck source=scripts/once.sh
source "$here/once.sh"

require() {
	local tool
	for tool; do
		command -v "$tool" >/dev/null || die "$tool is missing; install it"
	done
}

# from_module builds packages of a module, each given by its path in the module. It uses the module's own requirements, sums
# and replacements, because go install accepts no module with replacements, and asks for lists of versions that may not be
# available.
from_module() {
	local name=$1 module=$2 version=$3
	shift 3
	local commands=("${@/#/$module}")
	require go cc
	make_module() {
		local work=$1 out=$1/$name-$version source
		say "Building $name $version, once per machine."
		source=$(cd "$work" && GOWORK=off go mod download -json "$module@$version" | sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p') ||
			die "$module@$version cannot be had"
		mkdir "$work/module" "$out"
		cp "$source/go.mod" "$source/go.sum" "$work/module"
		chmod u+w "$work/module"/*
		(cd "$work/module" && GOWORK=off go mod edit -module=real -require="$module@$version")
		logged "$work/module" "$work/log" env GOFLAGS= GOWORK=off GOTMPDIR="$work" \
			go build -mod=mod -v -trimpath -buildvcs=false -tags 'sqlite sqlite_unlock_notify' -o "$out/" "${commands[@]}"
		if [[ $name == gitea ]]; then # it needs these files at run time
			cp -r "$source/templates" "$source/options" "$source/public" "$out"
			chmod -R u+w "$out"
		fi
	}
	once "$name" "$cache/$name-$version" make_module
	printf '%s\n' "$cache/$name-$version"
}

# from_package installs an npm package; $3 is its overrides in JSON.
from_package() {
	local name=$1 version=$2 overrides=$3
	require node npm
	make_package() {
		local out=$1/$name-$version
		say "Installing $name $version, once per machine."
		mkdir "$out"
		printf '{"private": true, "dependencies": {"%s": "%s"}, "overrides": %s}\n' "$name" "$version" "$overrides" >"$out/package.json"
		logged "$out" "$1/log" npm install --ignore-scripts --no-audit --no-fund --loglevel=http
	}
	once "$name" "$cache/$name-$version" make_package
	printf '%s\n' "$cache/$name-$version"
}

case ${1-} in
pocketbase) from_module pocketbase github.com/pocketbase/pocketbase v0.36.9 /examples/base ;;
spire) from_module spire github.com/spiffe/spire v1.13.0 /cmd/spire-server /cmd/spire-agent ;;
gitea) from_module gitea code.gitea.io/gitea v1.26.2 '' ;;
unleash) from_package unleash-server 6.4.1 '{}' ;;
# One of verdaccio's packages requires node-fetch by a tag that no longer exists.
verdaccio) from_package verdaccio 6.5.0 '{"node-fetch": "2.7.0"}' ;;
*) die "usage: real.sh pocketbase|spire|gitea|unleash|verdaccio" ;;
esac
