#!/usr/bin/env bash
# Copyright (c) the oidcexchange authors
# SPDX-License-Identifier: MPL-2.0
#
# Makes Posit Connect a target; adapt it to your needs. It writes the roles
#   connect-publish   a key of a service principal, exchanged for the caller's token (Connect 2026.07 or newer)
#   connect-visit     a key of the Connect user whom the caller's token names, by identity federation
#   connect-report    a key of the engine's own Connect user, made by the API; the only kind that can be revoked
# for jobs of one GitHub repository. Its issuer must exist already (issuers/github).
#
#   CONNECT=https://connect.example.com/rsc   the server, with its path if it has one
#   REPOSITORY_ID, OWNER_ID                   gh api repos/acme/widget --jq '.id, .owner.id'
#   INTEGRATION                               GUID of the integration for identity federation; empty = no connect-visit
#   CONNECT_USER, CONNECT_KEY_FILE            GUID and API key of the engine's user; empty = no connect-report
#   MOUNT, CA_FILE                            default oidcexchange, and the system's certificate authorities
#
# What the engine needs at Connect:
# - connect-publish: no credential. A trusted publisher on the content, with audience "connect" and the job's claims.
# - connect-visit: no credential. An integration (EarlyAccess.IdentityFederation) whose match claim names existing users.
# - connect-report: an account of the engine's own with the least role that its keys need, and one API key of that account.
#   Connect makes keys only for the owner of that API key, so CONNECT_USER is the account's GUID (GET /__api__/v1/user). No
#   administrator is needed.
set -euo pipefail
mount=${MOUNT:-oidcexchange}
host=${CONNECT#https://}
server=("url=$CONNECT" ${CA_FILE:+"ca_pem=@$CA_FILE"})

# Allows the caller's token to be sent to this host, besides those in forward_to already. The token is for Connect alone.
hosts=$(vault read -format=json "$mount/issuers/github" | tr -d ' \n' | sed -n 's/.*"forward_to":\[\([^]]*\)\].*/\1/p' | tr -d '"')
vault write "$mount/issuers/github" "forward_to=${hosts:+$hosts,}${host%%/*}"
vault write "$mount/trust/connect-widget" issuer=github bound_audiences=connect \
	bound_claims="{\"repository_id\": \"$REPOSITORY_ID\", \"repository_owner_id\": \"$OWNER_ID\", \"ref\": \"refs/heads/main\"}"

# lifetime is for keys whose end Connect does not tell. It must be the longest life that the server is configured for.
vault write "$mount/targets/connect" driver=connect "${server[@]}" lifetime=1h allowed_roles='connect-publish,connect-visit'
vault write "$mount/roles/connect-publish" trust=connect-widget target=connect
if [[ -n ${INTEGRATION:-} ]]; then
	vault write "$mount/roles/connect-visit" trust=connect-widget target=connect \
		parameters="{\"flow\": \"federation\", \"integration\": \"$INTEGRATION\"}"
fi

if [[ -n ${CONNECT_KEY_FILE:-} ]]; then
	printf '{"api_key": "%s"}' "$(<"$CONNECT_KEY_FILE")" | # by a pipe: others can read command lines
		vault write "$mount/targets/connect-keys" driver=connect "${server[@]}" credential=- allowed_roles=connect-report \
			condition="params.user == '$CONNECT_USER' && has(params.user_role) && params.user_role == 'viewer'"
	vault write "$mount/roles/connect-report" trust=connect-widget target=connect-keys ttl=15m max_ttl=1h \
		parameters="{\"user\": \"$CONNECT_USER\", \"user_role\": \"viewer\"}"
fi
