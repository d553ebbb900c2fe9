#!/usr/bin/env bash
# Copyright (c) the oidcexchange authors
# SPDX-License-Identifier: MPL-2.0
#
# Posit Connect as a target, to start from. It makes the roles
#   connect-publish   a key of a service principal, exchanged for the caller's token (Connect 2026.07 or newer)
#   connect-visit     a key of the Connect user that the caller's token names, by identity federation
#   connect-report    a key of the engine's own Connect user, made by the API; the one kind that can be revoked
# for jobs of one GitHub repository, whose issuer is there already (issuers/github).
#
#   CONNECT=https://connect.example.com/rsc   the server, with its path if it has one
#   REPOSITORY_ID, OWNER_ID                   gh api repos/acme/widget --jq '.id, .owner.id'
#   INTEGRATION                               GUID of the integration for identity federation; empty = no connect-visit
#   CONNECT_USER, CONNECT_KEY_FILE            GUID and API key of the engine's user; empty = no connect-report
#   MOUNT, CA_FILE                            default oidcexchange, and the system's authorities
#
# What the engine needs at Connect:
# - connect-publish: no credential. A trusted publisher on the content, with audience "connect" and the job's claims.
# - connect-visit: no credential. An integration (EarlyAccess.IdentityFederation) whose match claim names existing users.
# - connect-report: an account of its own with the least role that its keys need, and one API key of it. Connect makes keys
#   for the owner of that key alone, so CONNECT_USER is its GUID (GET /__api__/v1/user), and no administrator is needed.
set -euo pipefail
mount=${MOUNT:-oidcexchange}
host=${CONNECT#https://}
server=("url=$CONNECT" ${CA_FILE:+"ca_pem=@$CA_FILE"})

# The caller's token may go to this host, besides those that are listed already, and is for Connect alone.
hosts=$(vault read -format=json "$mount/issuers/github" | tr -d ' \n' | sed -n 's/.*"forward_to":\[\([^]]*\)\].*/\1/p' | tr -d '"')
vault write "$mount/issuers/github" "forward_to=${hosts:+$hosts,}${host%%/*}"
vault write "$mount/trust/connect-widget" issuer=github bound_audiences=connect \
	bound_claims="{\"repository_id\": \"$REPOSITORY_ID\", \"repository_owner_id\": \"$OWNER_ID\", \"ref\": \"refs/heads/main\"}"

# lifetime is for keys whose end Connect does not tell: the longest life that the server is set to.
vault write "$mount/targets/connect" driver=connect "${server[@]}" lifetime=1h allowed_roles='connect-publish,connect-visit'
vault write "$mount/roles/connect-publish" trust=connect-widget target=connect
if [[ -n ${INTEGRATION:-} ]]; then
	vault write "$mount/roles/connect-visit" trust=connect-widget target=connect \
		parameters="{\"flow\": \"federation\", \"integration\": \"$INTEGRATION\"}"
fi

if [[ -n ${CONNECT_KEY_FILE:-} ]]; then
	printf '{"api_key": "%s"}' "$(<"$CONNECT_KEY_FILE")" | # not on a command line, which others can read
		vault write "$mount/targets/connect-keys" driver=connect "${server[@]}" credential=- allowed_roles=connect-report \
			condition="params.user == '$CONNECT_USER' && has(params.user_role) && params.user_role == 'viewer'"
	vault write "$mount/roles/connect-report" trust=connect-widget target=connect-keys ttl=15m max_ttl=1h \
		parameters="{\"user\": \"$CONNECT_USER\", \"user_role\": \"viewer\"}"
fi
