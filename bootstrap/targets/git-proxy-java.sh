#!/usr/bin/env bash
# Copyright (c) the oidcexchange authors
# SPDX-License-Identifier: MPL-2.0
#
# git-proxy-java as a target, to start from. It makes the role git-push for jobs of one GitHub repository, whose issuer is
# there already (issuers/github). Each key has a user of its own, which lives as long as the lease.
#
#   PROXY=https://git-proxy.example.com   the server
#   PROXY_KEY_FILE                        the operator's key, or an administrator's
#   REPOSITORY_ID, OWNER_ID               gh api repos/acme/widget --jq '.id, .owner.id'
#   AUDIENCE                              of the tokens; default https://vault.example.com/oidcexchange
#   MOUNT, CA_FILE                        default oidcexchange, and the system's authorities
#
# What the engine needs at git-proxy-java:
# - auth.provider local, a user store that takes changes (JDBC), and a version that has API keys for users.
# - A key with the role ADMIN: nothing less may make and delete users. The operator's key (GITPROXY_API_KEY) is one; that of
#   a user who is an administrator is better, for it can be withdrawn without a restart. Keep one administrator beside it.
# The users that it makes are USER and SELF_CERTIFY, without which they could make no key, and the target's condition keeps
# them from being more, whoever writes roles.
set -euo pipefail
mount=${MOUNT:-oidcexchange}

printf '{"api_key": "%s"}' "$(<"$PROXY_KEY_FILE")" | # not on a command line, which others can read
	vault write "$mount/targets/git-proxy" driver=git-proxy-java "url=$PROXY" ${CA_FILE:+"ca_pem=@$CA_FILE"} credential=- \
		allowed_roles=git-push condition="params.roles.all(r, r in ['USER', 'SELF_CERTIFY'])"
vault write "$mount/trust/git-push" issuer=github "bound_audiences=${AUDIENCE:-https://vault.example.com/oidcexchange}" \
	bound_claims="{\"repository_id\": \"$REPOSITORY_ID\", \"repository_owner_id\": \"$OWNER_ID\", \"ref\": \"refs/heads/main\"}"
vault write "$mount/roles/git-push" trust=git-push target=git-proxy ttl=15m max_ttl=1h
