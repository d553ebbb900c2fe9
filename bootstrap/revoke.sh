#!/usr/bin/env bash
# Copyright (c) the oidcexchange authors
# SPDX-License-Identifier: MPL-2.0
#
# Revokes the keys that a filter matches. It shows what would be revoked, asks, starts the revocation, and shows its progress
# until nothing is left that can be revoked.
#
#   bootstrap/revoke.sh oidcexchange claim=repository=acme/widget
#
# The first word is the mount's path. The others are fields of PATH/revocations (see: vault path-help PATH/revocations).
# VAULT_ADDR and VAULT_TOKEN name the Vault. Interrupting the script does not stop the revocation.
# Exit status: 0 nothing is left, 1 nothing was started, 2 some keys have not ended.
set -euo pipefail

die() { printf 'revoke.sh: %s\n' "$*" >&2; exit 1; }

if (($# < 2)); then
	die "usage: revoke.sh PATH FIELD=VALUE…, such as: revoke.sh oidcexchange claim=repository=acme/widget"
fi
readonly path=${1%/}
shift
blocked='their holders'
for word in "$@"; do
	[[ $word == *=* ]] || die "$word is no FIELD=VALUE"
	[[ $word != block=false ]] || blocked=nobody
	[[ $word != dry_run=* ]] || die "leave dry_run out; the script shows the keys before it revokes anything"
done
command -v vault >/dev/null || die "the vault command is missing; put it on PATH"

# field prints one field of Vault's answer in table form.
field() { awk -v name="$1" '$1 == name { sub(/^[^ ]+ +/, ""); print; exit }' <<<"$2"; }

would=$(vault write "$path/revocations" "$@") || die "nothing was started; see above"
printf '%s\n' "$would"
matched=$(field matched "$would")
if (($(field unrecorded "$would") > 0)); then
	echo "Nobody knows whether the filter matches the unrecorded keys. include_unrecorded=true revokes them too."
fi
if (($(field unreadable "$would") > 0)); then
	echo "Nobody knows whose the unreadable keys are, and they are not revoked: see bootstrap/install.md."
fi
if ((matched == 0)); then
	echo "No key matches. If one should, check the spelling of the filter. To see what the ledger has: vault read -format=json $path/keys limit=20"
fi
read -rp "This revokes $matched keys and blocks $blocked. Type $matched to go on: " answer || answer=
[[ $answer == "$matched" ]] || die "nothing was started"

started=$(vault write "$path/revocations" "$@" dry_run=false) || die "nothing was started, unless this lists a revocation: vault list $path/revocations; see above"
id=$(field id "$started")
readonly id
printf 'Revocation %s has started; its block is %s.\n' "$id" "$(field block "$started")"

# watch shows the progress: on a terminal in one line that changes, elsewhere in a line for each change.
watch() {
	local now line last='' end='\n'
	[[ ! -t 1 ]] || end='\r'
	while :; do
		if now=$(vault read "$path/revocations/$id"); then
			state=$(field state "$now")
			line=$(printf '%s: %s of %s revoked, %s owed, %s exposed' "$state" "$(field revoked "$now")" "$(field matched "$now")" "$(field debt "$now")" "$(field exposed "$now")")
			# shellcheck disable=SC2059 # the end is part of the format
			[[ $line == "$last" ]] || printf "%s   $end" "$line"
			last=$line
			[[ $state == running || $state == waiting ]] || break
			if [[ $state == waiting && $(field debt "$now") == 0 ]]; then break; fi # for a record that cannot be read
		fi # if the read failed, the revocation goes on all the same
		sleep 1
	done
	[[ $end == '\n' ]] || echo
	exposed=$(field exposed "$now")
	until=$(field exposed_until "$now")
	unrecorded=$(field unrecorded "$now")
	unreadable=$(field unreadable "$now")
}

watch
if [[ $state == waiting ]]; then
	echo "$unreadable records of the ledger cannot be read, and their keys live: see bootstrap/install.md."
elif [[ $state != "done" ]]; then
	echo "Somebody stopped the revocation. Keys that are left are alive."
	exit 2
fi
if ((exposed > 0)); then
	echo "$exposed keys cannot be revoked here and live until $until at the latest. End them at their API, see bootstrap/runbook.md."
fi
if ((unrecorded > 0)); then
	echo "$unrecorded keys could not be judged, and live. Filter by another claim, see bootstrap/runbook.md."
fi
((exposed == 0 && unrecorded == 0 && unreadable == 0)) || exit 2
echo "Nothing is left."
