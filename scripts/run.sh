#!/usr/bin/env bash
# Copyright (c) the oidcexchange authors
# SPDX-License-Identifier: MPL-2.0
#
# Runs a dev Vault, in memory, with the plugin $1 mounted at $2, until interrupted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

vault=$(scripts/vault.sh)
dir=$(mktemp -d "${TMPDIR:-/tmp}/oidcexchange.XXXXXX")
server=
cleanup() {
	[[ -z $server ]] || { kill "$server" 2>/dev/null && wait "$server"; } || true
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

mkdir "$dir/plugins"
unset "${!VAULT_@}"
export VAULT_ADDR=http://127.0.0.1:8200 VAULT_TOKEN=root PATH=${vault%/*}:$PATH
answer=0
vault status >/dev/null 2>&1 || answer=$?
((answer == 1)) || { echo "run.sh: a Vault answers at $VAULT_ADDR already, and would be changed; stop it first" >&2; exit 1; }
vault server -dev -dev-no-store-token -dev-root-token-id=root -dev-plugin-dir="$dir/plugins" >"$dir/log" 2>&1 &
server=$!
until vault status >/dev/null 2>&1; do
	kill -0 "$server" 2>/dev/null || { cat "$dir/log" >&2; exit 1; }
	sleep 0.2
done
bootstrap/configure.sh "$dir/plugins" "$1" "$2"
printf '\nIn another shell:\n  export VAULT_ADDR=%s VAULT_TOKEN=%s PATH=%q:$PATH\n' "$VAULT_ADDR" "$VAULT_TOKEN" "${vault%/*}"
wait "$server"
