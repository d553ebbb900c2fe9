#!/usr/bin/env bash
# Copyright (c) the oidcexchange authors
# SPDX-License-Identifier: MPL-2.0
#
# release.sh VERSION [PLATFORM...]: builds the static binaries of the checked-out commit into bin/release/VERSION, with a
# list of what is in each (CycloneDX) and SHA256SUMS. Each binary is built twice, the second time in another folder and with
# an empty build cache, and both must be identical: so anybody with the same commit and the same go gets the same binaries.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly name=vault-plugin-secrets-oidcexchange
readonly package=github.com/oidcexchange/$name
readonly version=$1
shift
platforms=("$@")
((${#platforms[@]} > 0)) || platforms=({linux,darwin,windows}/{amd64,arm64})
readonly out=$PWD/bin/release/$version

die() { printf 'release.sh: %s\n' "$*" >&2; exit 1; }

# Environment variables that could change the files. An older or newer go command changes them too.
export CGO_ENABLED=0 GOFLAGS=-mod=readonly GOEXPERIMENT= GOAMD64=v1 GOARM64=v8.0 GOWORK=off GOFIPS140=off

# A version that is not a pre-release needs a section in the changelog.
check_version() {
	[[ $version =~ ^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$ ]] || die "VERSION=$version is no version like v1.2.3 or v1.2.3-rc1"
	[[ $version == *-* ]] || grep -qxF "## ${version#v}" CHANGELOG.md || die "CHANGELOG.md has no section \"## ${version#v}\""
}

check_tree() {
	[[ -z $(git status --porcelain) ]] || die "the tree has changes; a release is a commit"
	go mod verify >/dev/null || die "a module differs from its sum, see above"
}

# build compiles the commit for all platforms into the folder $1, in a clone at $2, because go can tell the commit of a
# clone, but not of every working tree.
build() {
	local platform suffix
	git clone -q --no-local . "$2"
	for platform in "${platforms[@]}"; do
		suffix=
		[[ ${platform%/*} != windows ]] || suffix=.exe
		printf '  %s\n' "$platform"
		(cd "$2" && GOOS=${platform%/*} GOARCH=${platform#*/} go build -trimpath -buildvcs=true \
			-ldflags "-s -w -buildid= -X $package/backend.Version=$version" \
			-o "$1/${name}_${version}_${platform/\//_}$suffix" "./cmd/$name")
	done
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

check_version
check_tree
rm -rf "$out"
mkdir -p "$out" "$scratch/again"
printf '%s %s, commit %s, %s\n' "$name" "$version" "$(git rev-parse HEAD)" "$(go version)"
build "$out" "$scratch/clone"
printf 'Once more, in another folder and with an empty build cache:\n'
GOCACHE=$scratch/cache build "$scratch/again" "$scratch/another/clone"
diff -r "$out" "$scratch/again" || die "two builds of the same commit differ"

for binary in "$out"/*; do
	GOFLAGS= go tool -modfile=scripts/tools/go.mod cyclonedx-gomod bin -json -std -noserial -notimestamp -version "$version" \
		-output "${binary%.exe}.cdx.json" "$binary" 2>/dev/null || die "no bill of materials of $binary"
done
cp LICENSE CHANGELOG.md "$out"
cd "$out"
sha256sum -- * >"$scratch/SHA256SUMS"
mv "$scratch/SHA256SUMS" .
printf 'The same. In bin/release/%s:\n' "$version"
cat SHA256SUMS
