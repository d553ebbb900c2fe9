#!/usr/bin/env bash
# Copyright (c) the oidcexchange authors
# SPDX-License-Identifier: MPL-2.0
#
# Makes GitLab a target; adapt it to your needs. It writes the roles
#   gitlab-read     a project access token that reads one project's repository
#   gitlab-deploy   a token of a service account of one group
# for callers whom the trust policy TRUST accepts. The policy must exist already.
#
#   TRUST=widget-main                  a trust policy
#   TOKEN_FILE=gitlab.token            file with the engine's credential at GitLab, see below
#   PROJECT=7                          number of the project; a path works too, but changes when the project is moved
#   GROUP=2 ACCOUNT=42                 numbers of the group and of its service account; ACCOUNT empty = no gitlab-deploy
#   REVOKE_BY=self                     with ACCOUNT, before GitLab 17.11: the key revokes itself, as nothing else can revoke it
#   GITLAB=https://gitlab.example.com  default https://gitlab.com
#   MOUNT, CA_FILE                     default oidcexchange, and the system's certificate authorities
#
# The engine's credential at GitLab is a personal access token with the scope api, of a user made for the engine alone. What that
# user needs depends on the keys:
# - project tokens: the role Maintainer in the project (Owner, for tokens with that level). The user can make no token above its
#   own level. On gitlab.com project and group tokens need Premium.
# - group tokens and tokens of a service account: the role Owner in the group.
# - personal and impersonation tokens: an administrator, who can become everybody. Give such a target its own condition, or
#   better none of these roles.
# GitLab ends the credential on the day of its expires_at. Set rotation_period on the target, or use rotate-root, to replace it
# before.
set -euo pipefail
mount=${MOUNT:-oidcexchange}

# This target issues nothing beyond its condition, whoever writes roles.
printf '{"credential": {"token": "%s"}}' "$(<"$TOKEN_FILE")" | # by a pipe: others can read command lines
	vault write "$mount/targets/gitlab" - driver=gitlab ${GITLAB:+"url=$GITLAB"} ${CA_FILE:+"ca_pem=@$CA_FILE"} \
	allowed_roles='gitlab-read,gitlab-deploy' \
	condition='params.kind == "service_account" || params.kind == "project" && params.access_level in ["guest", "reporter", "developer"]'

vault write "$mount/roles/gitlab-read" trust="$TRUST" target=gitlab ttl=15m max_ttl=1h \
	parameters="{\"kind\": \"project\", \"id\": \"$PROJECT\", \"scopes\": [\"read_repository\"], \"access_level\": \"reporter\"}"

if [[ -n ${ACCOUNT:-} ]]; then
	vault write "$mount/roles/gitlab-deploy" trust="$TRUST" target=gitlab ttl=15m max_ttl=1h \
		parameters="{\"kind\": \"service_account\", \"id\": \"$GROUP\", \"user\": \"$ACCOUNT\", \"scopes\": [\"api\"], \"revoke_by\": \"${REVOKE_BY:-id}\"}"
fi
