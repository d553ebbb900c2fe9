#!/usr/bin/env bash
# Copyright (c) the oidcexchange authors
# SPDX-License-Identifier: MPL-2.0
#
# Makes git-proxy-java a target; adapt it to your needs. It writes the role git-push for jobs of one GitHub repository. The
# issuer must exist already (issuers/github). Each key has a user of its own, which lives as long as the lease.
#
#   PROXY=https://git-proxy.example.com   the server
#   PROXY_KEY_FILE                        file with the operator's key, or an administrator's
#   REPOSITORY_ID, OWNER_ID               gh api repos/acme/widget --jq '.id, .owner.id'
#   AUDIENCE                              of the subject tokens; default https://vault.example.com/oidcexchange
#   MOUNT, CA_FILE                        default oidcexchange, and the system's certificate authorities
#
# What the engine needs at git-proxy-java:
# - auth.provider local, a user store that accepts changes (JDBC), and a version that has API keys for users.
# - A credential: a key with the role ADMIN. Nothing less can make and delete users. The operator's key (GITPROXY_API_KEY) has
#   it. The key of an administrator is better, because it can be withdrawn without a restart. Keep another administrator.
# The engine's users have the roles USER and SELF_CERTIFY, without which they could make no key. The target's condition allows
# them no others, whoever writes roles.
set -euo pipefail
mount=${MOUNT:-oidcexchange}

printf '{"api_key": "%s"}' "$(<"$PROXY_KEY_FILE")" | # by a pipe: others can read command lines
	vault write "$mount/targets/git-proxy" driver=git-proxy-java "url=$PROXY" ${CA_FILE:+"ca_pem=@$CA_FILE"} credential=- \
		allowed_roles=git-push condition="params.roles.all(r, r in ['USER', 'SELF_CERTIFY'])"
vault write "$mount/trust/git-push" issuer=github "bound_audiences=${AUDIENCE:-https://vault.example.com/oidcexchange}" \
	bound_claims="{\"repository_id\": \"$REPOSITORY_ID\", \"repository_owner_id\": \"$OWNER_ID\", \"ref\": \"refs/heads/main\"}"
vault write "$mount/roles/git-push" trust=git-push target=git-proxy ttl=15m max_ttl=1h
