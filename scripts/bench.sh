#!/usr/bin/env bash
# Copyright (c) the oidcexchange authors
# SPDX-License-Identifier: MPL-2.0
#
# Measures the plugin in a real Vault and compares it with what its users would do without it, see scripts/bench/main.go.
# Takes about a quarter of an hour on two cores, or two minutes with BENCH_QUICK=1. Results go to bin/bench.
# BENCH_STORAGE=inmem uses storage in memory instead of the disk; BENCH_GROUPS=issue,renew,revoke selects groups.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly out=$PWD/bin/bench plugin=vault-plugin-secrets-oidcexchange
vault=$(scripts/vault.sh)
mkdir -p "$out"
export CGO_ENABLED=0
go build -trimpath -o "$out/$plugin" "./cmd/$plugin"
go build -trimpath -o "$out/lab" ./cmd/oidcexchange-lab
(cd scripts/bench && go build -trimpath -o "$out/" . ./null)
unset "${!VAULT_@}"
quick=false
[[ ${BENCH_QUICK:-} != 1 ]] || quick=true
exec "$out/bench" -vault "$vault" -plugin "$out/$plugin" -null "$out/null" -lab "$out/lab" -out "$out" \
	-quick="$quick" -storage "${BENCH_STORAGE:-raft}" -groups "${BENCH_GROUPS:-issue,renew,revoke}"
