#!/usr/bin/env bash
# Copyright (c) the oidcexchange authors
# SPDX-License-Identifier: MPL-2.0
#
# The main job on a real Vault, step by step: each command as a user types it, then its own output, which is checked. It
# runs in a directory of its own; at the end the directory and every process that it has started are gone.
#
# shellcheck disable=SC2016 # commands are shown unexpanded, and expanded when they run
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly repo plugin=vault-plugin-secrets-oidcexchange
dir=  # where the commands run
pids= # of the started programs, each after a blank; the latest comes last
checks=0

say() { printf '%s\n' "$*"; }

fail() {
	say "demo: $*" >&2
	[[ ! -s $dir/vault.log ]] || { say "The end of Vault's log:" >&2; tail -n 15 "$dir/vault.log" >&2; }
	exit 1
}

# title starts a step.
title() { printf '\n# %s\n' "$*"; }

# run shows a command, runs it in this shell, shows its output and keeps the output in a file.
run() {
	say "\$ $1"
	local status=0
	eval "$1" >"$dir/out" 2>&1 || status=$?
	cat "$dir/out"
	((status == 0)) || fail "the command ended with status $status"
}

# refused is like run, for a command that must fail.
refused() {
	say "\$ $1"
	if eval "$1" >"$dir/out" 2>&1; then
		cat "$dir/out"
		fail "the command was to be refused"
	fi
	cat "$dir/out"
}

# await repeats a command until its output has $2, for at most 45 seconds, then shows the output.
await() {
	local until=$((SECONDS + 45))
	until eval "$1" >"$dir/out" 2>&1 && grep -Eq -- "$2" "$dir/out"; do
		((SECONDS < until)) || { say "\$ $1"; cat "$dir/out"; fail "the output never had: $2"; }
		sleep 0.2
	done
	say "\$ $1"
	cat "$dir/out"
	checks=$((checks + 1))
}

# expect checks that the last output matches each of the patterns.
expect() {
	local pattern
	for pattern; do
		grep -Eq -- "$pattern" "$dir/out" || fail "the output lacks: $pattern"
		checks=$((checks + 1))
	done
}

# field prints a value from the last output, which is a table of Vault's.
field() { awk -v name="$1" '$1 == name { print $2; exit }' "$dir/out"; }

# background shows a command and starts it, with its output in a file.
background() {
	say "\$ $1 > $2 2>&1 &"
	eval "exec $1" >"$2" 2>&1 &
	pids+=" $!"
}

# running waits until a started program is ready, which is when the command $2 succeeds. If that fails, it shows the
# program's output $1.
running() {
	local until=$((SECONDS + 30))
	until eval "$2" >/dev/null 2>&1; do
		kill -0 "${pids##* }" 2>/dev/null || { cat "$1" >&2; fail "the program has ended, see above"; }
		((SECONDS < until)) || { cat "$1" >&2; fail "the program does not get ready, see above"; }
		sleep 0.2
	done
}

# stop ends the program that was started last.
stop() {
	kill "${pids##* }" 2>/dev/null || true
	wait "${pids##* }" 2>/dev/null || true
	pids=${pids% *}
}

# cleanup ends the programs that still run, latest first, and removes all files.
cleanup() {
	while [[ -n $pids ]]; do
		stop
	done
	cd /
	rm -rf "$dir"
}

# free_port prints a loopback port on which nobody listens.
free_port() {
	local port
	for port in $(seq 8200 10 8900); do
		(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { say "$port"; return; }
	done
	fail "no free port from 8200 to 8900"
}

# prepare builds what is needed and makes the directory in which the commands run.
prepare() {
	local tool vault
	for tool in go git curl; do
		command -v "$tool" >/dev/null || fail "$tool is missing; install it"
	done
	[[ -x $repo/bin/$plugin ]] || fail "bin/$plugin is missing; run: make demo"
	vault=$("$repo/scripts/vault.sh")
	say "Building the lab."
	(cd "$repo" && CGO_ENABLED=0 go build -trimpath -o bin/oidcexchange-lab ./cmd/oidcexchange-lab)

	dir=$(mktemp -d "${TMPDIR:-/tmp}/oidcexchange.XXXXXX")
	trap cleanup EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	cd "$dir"
	ln -s "$repo/bin" "$repo/bootstrap" .
	mkdir plugins
	# Ignore the user's own Vault settings, and any proxy between programs of this machine.
	unset "${!VAULT_@}"
	export HOME=$dir PATH=${vault%/*}:$PATH no_proxy=127.0.0.1 NO_PROXY=127.0.0.1
	cat >vault.hcl <<END
storage "inmem" {}
listener "tcp" {
  address     = "127.0.0.1:$(free_port)"
  tls_disable = true # this demo only
}
plugin_directory = "plugins"
disable_mlock    = true
END
}

start_vault() {
	title "A Vault server, as its operator has it"
	run 'cat vault.hcl'
	run "export VAULT_ADDR=http://$(sed -n 's/.*"\(127[^"]*\)"/\1/p' vault.hcl)"
	background 'vault server -config=vault.hcl' vault.log
	running vault.log 'vault operator init -status || (($? == 2))'
	run 'vault operator init -key-shares=1 -key-threshold=1 > init.txt'
	run "vault operator unseal \$(awk '/Unseal Key/ { print \$4 }' init.txt) | grep -E 'Sealed|Version'"
	expect 'Sealed +false'
	run "export VAULT_TOKEN=\$(awk '/Root Token/ { print \$4 }' init.txt)"

	title "The plugin is copied, registered by its sha256 and mounted (make configure)"
	run "bootstrap/configure.sh plugins $plugin oidcexchange"
	expect 'Registered plugin' 'Enabled the .* secrets engine'
}

start_lab() {
	title "The lab: an OpenID provider with tokens like those of GitHub Actions, a NuGet gallery, and an API that makes keys"
	background 'bin/oidcexchange-lab -dir . issuer nuget keyapi' lab.log
	running lab.log '[[ -s issuer.url && -s nuget.url && -s keyapi.url ]]'
	run 'cat lab.log'
	run 'ISSUER=$(cat issuer.url) NUGET=$(cat nuget.url) KEYAPI=$(cat keyapi.url)'
	run 'export CURL_CA_BUNDLE=$PWD/ca.pem'
}

configure_logins() {
	title "Three callers: ana by password, a CI job by its token, an agent by AppRole; none may do more than ask for its keys"
	run "echo 'path \"oidcexchange/creds/deploy\" { capabilities = [\"read\"] }' | vault policy write deploy -"
	run "echo 'path \"oidcexchange/creds/agent\" { capabilities = [\"read\"] }' | vault policy write agent -"
	run "echo 'path \"oidcexchange/creds/release/*\" { capabilities = [\"update\"] }
        path \"oidcexchange/creds/nuget\" { capabilities = [\"update\"] }' | vault policy write ci -"
	run 'vault auth enable userpass'
	run 'vault write auth/userpass/users/ana password=a-long-password token_policies=deploy'
	run 'vault auth enable approle'
	run 'vault write auth/approle/role/billing role_id=billing token_policies=agent'
	run 'vault auth enable jwt'
	run 'vault write auth/jwt/config oidc_discovery_url=$ISSUER oidc_discovery_ca_pem=@ca.pem'
	run 'vault write auth/jwt/role/ci role_type=jwt user_claim=repository bound_audiences=vault token_policies=ci'
}

configure_engine() {
	title "Issuers say who vouches for a caller"
	run 'vault write oidcexchange/config allow_private=127.0.0.0/8'
	run 'vault write oidcexchange/issuers/github oidc_discovery_url=$ISSUER ca_pem=@ca.pem forward_to=${NUGET#https://} verify=true'
	run 'vault write oidcexchange/issuers/staff type=login mount_accessor=$(vault read -field=accessor sys/auth/userpass)'
	run 'vault write oidcexchange/issuers/machines type=login mount_accessor=$(vault read -field=accessor sys/auth/approle)'

	title "Trust policies say which of them are trusted; bind_caller makes a stolen token useless to another Vault client"
	run 'vault write oidcexchange/trust/ana issuer=staff bound_subject=ana'
	run 'vault write oidcexchange/trust/billing issuer=machines bound_subject=billing'
	run "vault write oidcexchange/trust/widget issuer=github bound_audiences=oidcexchange,https://www.nuget.org \\
    bound_claims='{\"repository_id\": \"710042\", \"ref\": \"refs/heads/main\"}' bind_caller=repository"

	title "Targets are the APIs that give out keys, roles say who gets which key and for how long"
	run 'vault write oidcexchange/targets/acme driver=http profile=@bootstrap/targets/acme.yaml url=$KEYAPI ca_pem=@ca.pem \
    credential=token=$(cat keyapi.token) allowed_roles=deploy,release,agent'
	run 'vault write oidcexchange/targets/nuget driver=nuget url=$NUGET ca_pem=@ca.pem allowed_roles=nuget'
	run 'vault write oidcexchange/roles/deploy trust=ana target=acme parameters=project=web ttl=15m max_ttl=1h'
	run 'vault write oidcexchange/roles/agent trust=billing target=acme parameters=project=billing ttl=10s max_ttl=10s'
	run 'vault write oidcexchange/roles/release trust=widget target=acme parameters=project=widget ttl=15m max_ttl=1h \
    lease_path=claims.repository'
	run 'vault write oidcexchange/roles/nuget trust=widget target=nuget parameters=username=demo ttl=15m'
	expect 'cannot revoke keys'
}

read_by_login() {
	title "Ana reads a key; her Vault login is her identity"
	run 'ANA=$(vault login -method=userpass -token-only username=ana password=a-long-password)'
	run 'VAULT_TOKEN=$ANA vault read oidcexchange/creds/deploy'
	expect '^api_key +acme_' '^subject +ana$' '^lease_duration +15m$' '^revocable +true$'
	ana_key=$(field api_key) ana_lease=$(field lease_id)

	title "The key works at the API"
	run "curl -s -w ' %{http_code}\\n' -H 'X-Acme-Key: $ana_key' \$KEYAPI/v1/data"
	expect '200$'

	title "It is a lease like any other of Vault's"
	run "VAULT_TOKEN=\$ANA vault lease lookup $ana_lease"
	expect '^renewable +true$'
	run "VAULT_TOKEN=\$ANA vault lease renew -increment=30m $ana_lease"
	expect '^lease_duration +30m$' "^api_key +$ana_key\$|^lease_id +$ana_lease\$"
}

write_by_token() {
	title "A CI job logs in to Vault with one token of its issuer and exchanges another"
	run "curl -s \$ISSUER/lab/token -d '{\"aud\": \"vault\"}' > login.jwt"
	run 'CI=$(vault write -field=token auth/jwt/login role=ci jwt=@login.jwt)'
	run "curl -s \$ISSUER/lab/token -d '{\"aud\": \"oidcexchange\"}' > id.jwt"
	run 'VAULT_TOKEN=$CI vault write oidcexchange/creds/release/acme/widget subject_token=@id.jwt'
	expect '^subject +repo:acme/widget:' '^trust +widget$' '^lease_id +oidcexchange/creds/release/acme/widget/'
	ci_key=$(field api_key) ci_id=$(field id)
	run "curl -s -w ' %{http_code}\\n' -H 'X-Acme-Key: $ci_key' \$KEYAPI/v1/data"
	expect '200$'

	title "NuGet checks the job's token itself; nobody can revoke its keys, and that is said"
	run "curl -s \$ISSUER/lab/token -d '{\"aud\": \"https://www.nuget.org\"}' > nuget.jwt"
	run 'VAULT_TOKEN=$CI vault write oidcexchange/creds/nuget subject_token=@nuget.jwt'
	expect 'cannot revoke keys' '^revocable +false$' '^lease_renewable +false$'
	nuget_id=$(field id)
	run "curl -s -o /dev/null -w '%{http_code}\\n' -X PUT -H 'X-NuGet-ApiKey: $(field api_key)' \$NUGET/api/v2/package"
	expect '^201$'
}

refusals() {
	title "A token of another repository is refused; the caller learns the reason, the operator's log has the detail"
	run "curl -s \$ISSUER/lab/token -d '{\"aud\": \"oidcexchange\", \"repository_id\": \"666\"}' > other.jwt"
	refused 'VAULT_TOKEN=$CI vault write oidcexchange/creds/release/acme/widget subject_token=@other.jwt'
	expect 'Code: 403' 'not_trusted: '
	run "grep -o 'detail=.*' vault.log"
	expect 'bound_claims.repository_id'

	title "So is a token that was exchanged before"
	refused 'VAULT_TOKEN=$CI vault write oidcexchange/creds/release/acme/widget subject_token=@id.jwt'
	expect 'Code: 403' 'replayed: '
}

agent() {
	title "Vault Agent logs in by itself and keeps a key in a file"
	run 'cp -r bootstrap/agent . && cd agent'
	run 'cat key.ctmpl'
	run 'vault read -field=role_id auth/approle/role/billing/role-id > role_id'
	run 'vault write -f -field=secret_id auth/approle/role/billing/secret-id > secret_id'
	background 'vault agent -config=agent.hcl' agent.log
	running agent.log '[[ -s key.env ]]'
	run 'cat key.env'
	expect '^ACME_KEY=acme_'
	local old
	old=$(sed -n 's/^ACME_KEY=//p' key.env)

	title "The key's lease ends after 10 seconds: Agent renders the next key, and the old one dies"
	say "(waiting for that)"
	running agent.log "! grep -q $old key.env"
	run 'cat key.env'
	expect '^ACME_KEY=acme_'
	await "curl -s -w ' %{http_code}\\n' -H 'X-Acme-Key: $old' \$KEYAPI/v1/data" '401$'
	run 'cd ..'
	stop
}

keys() {
	title "The ledger has every key that is out, and whose it is"
	run 'vault list oidcexchange/keys'
	expect "^$ci_id\$" "^$nuget_id\$"
	run "vault read oidcexchange/keys/$ci_id"
	expect '^state +issued$' '^subject +repo:acme/widget:' '^claims +map.*repository:acme/widget'
}

breach() {
	title "After a breach: revoke all keys of one organisation's releases, and no others"
	run 'vault lease revoke -prefix oidcexchange/creds/release/acme'
	await "curl -s -w ' %{http_code}\\n' -H 'X-Acme-Key: $ci_key' \$KEYAPI/v1/data" '401$'
	run "curl -s -w ' %{http_code}\\n' -H 'X-Acme-Key: $ana_key' \$KEYAPI/v1/data"
	expect '200$'

	title "Or all that this mount has issued: the API has no key left"
	run 'vault lease revoke -prefix oidcexchange/creds'
	await "curl -s -w '\\n' \$KEYAPI/lab/keys" '"keys":\[\]'

	title "What nobody can revoke stays in the ledger, as exposed, until it has expired"
	await 'vault list oidcexchange/keys' "^$nuget_id\$"
	await "vault read oidcexchange/keys/$nuget_id | grep -E '^(state|target|subject|expires_at) '" '^state +exposed$'
}

main() {
	prepare
	SECONDS=0
	start_vault
	start_lab
	configure_logins
	configure_engine
	read_by_login
	write_by_token
	refusals
	agent
	keys
	breach
	cleanup
	printf '\nDone in %d s: %d checks, all as expected. Vault, the lab and their files are gone.\n' "$SECONDS" "$checks"
}

main
