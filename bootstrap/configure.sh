#!/usr/bin/env bash
# Copyright (c) the oidcexchange authors
# SPDX-License-Identifier: MPL-2.0
#
# Installs the plugin in an existing Vault: copies bin/PLUGIN_NAME (make dev) into PLUGIN_DIR, registers it with its sha256 and
# version, and mounts it at PLUGIN_PATH. A mount that exists moves to this version and keeps its data. The script can be run
# again at any time. It disables nothing, and Vault restarts no process but the plugin's.
#
# VAULT_ADDR and VAULT_TOKEN name the Vault. The token needs sudo on sys/plugins/catalog and rights on sys/mounts. Vault runs on
# this machine, or every node of Vault has PLUGIN_DIR with the same binary.
#
# PLUGIN_ENV, if set, holds words NAME=VALUE, the plugin's whole environment: PLUGIN_ENV="SPIFFE_ENDPOINT_SOCKET=unix:///run/agent.sock".
# A run without a variable removes it.
# PLUGIN_CONFIG, if set, holds words to write to the mount's config: PLUGIN_CONFIG="allow_private=10.0.0.0/8"
set -euo pipefail

die() { printf 'configure.sh: %s\n' "$*" >&2; exit 1; }

if (($# != 3)) || [[ -z $1 || -z $2 || -z $3 ]]; then
	die "usage: configure.sh PLUGIN_DIR PLUGIN_NAME PLUGIN_PATH
  PLUGIN_DIR   the plugin_directory of Vault's configuration
  PLUGIN_NAME  vault-plugin-secrets-oidcexchange
  PLUGIN_PATH  where to mount it, such as oidcexchange"
fi
readonly dir=$1 name=$2 path=${3%/}
binary=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/bin/$name
readonly binary

# check_vault makes sure that Vault answers and that we are logged in.
check_vault() {
	command -v vault >/dev/null || die "the vault command is missing; put it on PATH"
	local status=0
	vault status >/dev/null 2>&1 || status=$?
	case $status in
	0) ;;
	2) die "the Vault at ${VAULT_ADDR:-https://127.0.0.1:8200} is sealed; unseal it first" ;;
	*) die "no Vault answers at ${VAULT_ADDR:-https://127.0.0.1:8200}; set VAULT_ADDR (and VAULT_CACERT)" ;;
	esac
	vault token lookup >/dev/null 2>&1 || die "not logged in; set VAULT_TOKEN, or use vault login"
}

# check_dir compares PLUGIN_DIR with Vault's own plugin_directory, if Vault lets us read it.
check_dir() {
	[[ -d $dir ]] || die "PLUGIN_DIR $dir is not a directory on this machine; it must be the plugin_directory of Vault's configuration"
	local told
	told=$(vault read -field=plugin_directory sys/config/state/sanitized 2>/dev/null) || return 0
	# Vault does not tell a directory from a dev server's flag, and a relative one counts from where the server was started.
	[[ $told != /* || $(real "$told") == $(real "$dir") ]] ||
		die "this Vault's plugin_directory is $told, not $dir; give that as PLUGIN_DIR"
}

real() { (cd "$1" 2>/dev/null && pwd -P) || printf '%s\n' "$1"; }

# copy replaces the file in one step: a running plugin keeps the file that it was started from.
copy() {
	cp "$binary" "$dir/.$command.$$" || die "cannot write to $dir"
	chmod 0755 "$dir/.$command.$$"
	mv -f "$dir/.$command.$$" "$dir/$command"
}

sha256() {
	if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

register() {
	local words=() env=() word
	read -ra words <<<"${PLUGIN_ENV:-}"
	for word in ${words[@]+"${words[@]}"}; do
		env+=("-env=$word")
	done
	vault plugin register -sha256="$(sha256 "$binary")" -version="$version" -command="$command" ${env[@]+"${env[@]}"} secret "$name" ||
		die "Vault did not accept the plugin, see above; is $dir the plugin_directory of its configuration?"
}

mount_plugin() {
	local type
	if ! type=$(vault read -field=type "sys/mounts/$path" 2>/dev/null); then
		vault secrets enable -path="$path" -plugin-version="$version" -description="API keys for verified identities" "$name"
		return
	fi
	[[ $type == "$name" ]] || die "$path/ is taken by a secrets engine of type $type; choose another PLUGIN_PATH"
	vault secrets tune -plugin-version="$version" "$path/"
	vault plugin reload -plugin="$name"
}

write_config() {
	[[ -n ${PLUGIN_CONFIG:-} ]] || return 0
	local words
	read -ra words <<<"$PLUGIN_CONFIG"
	vault write "$path/config" "${words[@]}"
}

[[ -x $binary ]] || die "bin/$name is missing; run: make dev"
check_vault
check_dir
version=$("$binary" -version) || die "bin/$name does not run on this machine; build it here: make dev"
read -r _ version _ <<<"$version" # NAME VERSION (commit …, go…)
# Each version has a file of its own, so that mounts of another version still find theirs.
command=${name}_$version
copy
register
mount_plugin
write_config
cat <<END

$name $version is mounted at $path/. Next:
  vault path-help $path                  what there is
  vault read $path/config                limits, and where it may connect
  vault write $path/issuers/NAME …       who vouches for callers
  vault write $path/trust/NAME …         which of them are trusted
  vault write $path/targets/NAME …       an API that gives out keys
  vault write $path/roles/NAME …         who gets which key
  vault read $path/creds/NAME            a key
END
