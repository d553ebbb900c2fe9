#!/usr/bin/env bash
# Copyright (c) the oidcexchange authors
# SPDX-License-Identifier: MPL-2.0
#
# GitLab as a target, to start from. It makes the roles
#   gitlab-read     a project access token that reads one project's repository
#   gitlab-deploy   a token of a service account of one group
# for callers whom the trust policy TRUST accepts, which is there already.
#
#   TRUST=widget-main                  a trust policy
#   TOKEN_FILE=gitlab.token            the engine's token at GitLab, see below
#   PROJECT=7                          number of the project; a path works too, but changes when the project is moved
#   GROUP=2 ACCOUNT=42                 numbers of the group and of its service account; ACCOUNT empty = no gitlab-deploy
#   REVOKE_BY=self                     with ACCOUNT, before GitLab 17.11: the key ends itself, for nothing else can end it
#   GITLAB=https://gitlab.example.com  default https://gitlab.com
#   MOUNT, CA_FILE                     default oidcexchange, and the system's authorities
#
# What the engine needs at GitLab is a personal access token with the scope api, of a user made for it alone:
# - project tokens: a user with the role Maintainer in the project (Owner, for tokens with that level). It can make no token
#   above its own level. On gitlab.com project and group tokens need Premium.
# - group tokens and those of a service account: a user with the role Owner in the group.
# - personal and impersonation tokens: an administrator, who can become everybody. Give such a target its own condition, or
#   better none of these roles.
# GitLab ends the token on the day of its expires_at: rotation_period on the target, or rotate-root, replaces it before.
set -euo pipefail
mount=${MOUNT:-oidcexchange}

# Whoever writes roles, this target gives nothing beyond the condition.
printf '{"credential": {"token": "%s"}}' "$(<"$TOKEN_FILE")" | # by a pipe, for command lines are open to all of this machine
	vault write "$mount/targets/gitlab" - driver=gitlab ${GITLAB:+"url=$GITLAB"} ${CA_FILE:+"ca_pem=@$CA_FILE"} \
	allowed_roles='gitlab-read,gitlab-deploy' \
	condition='params.kind == "service_account" || params.kind == "project" && params.access_level in ["guest", "reporter", "developer"]'

vault write "$mount/roles/gitlab-read" trust="$TRUST" target=gitlab ttl=15m max_ttl=1h \
	parameters="{\"kind\": \"project\", \"id\": \"$PROJECT\", \"scopes\": [\"read_repository\"], \"access_level\": \"reporter\"}"

if [[ -n ${ACCOUNT:-} ]]; then
	vault write "$mount/roles/gitlab-deploy" trust="$TRUST" target=gitlab ttl=15m max_ttl=1h \
		parameters="{\"kind\": \"service_account\", \"id\": \"$GROUP\", \"user\": \"$ACCOUNT\", \"scopes\": [\"api\"], \"revoke_by\": \"${REVOKE_BY:-id}\"}"
fi
