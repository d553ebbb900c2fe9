// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"encoding/json"
	"strings"
)

// gitlabRefusals are what GitLab's refusals mean, the first that fits. What GitLab writes is compared, and never shown.
var gitlabRefusals = []struct {
	status int
	has    string // in the body, in lower case; "" = whatever it says
	text   string
}{
	{400, "does not have permission to create", "the credential's user may not create such tokens there, or they are not offered: on gitlab.com project and group tokens need Premium"},
	{400, "contains permissions not held", "access_level is above that of the credential's user"},
	{400, "limit reached", "no more tokens may be made there"},
	{400, "must be before", "the expiry is past the instance's maximum lifetime; lower the role's max_ttl"},
	{400, "scopes", "the instance does not offer one of the scopes for this kind of token"},
	{400, "access_level", "the instance does not offer this access_level"},
	{400, "not of type service account", "the user is no service account"},
	{400, "already revoked", "the token is revoked already"},
	{400, "", "the credential's user may not do this, or the instance does not offer it"},
	{401, "token is expired", "the credential has expired; write a new one"},
	{401, "token was revoked", "the credential was revoked; write a new one"},
	{401, "", "the credential is not known there, or its user may not manage these tokens"},
	{403, "insufficient_scope", "the credential lacks the scope api"},
	{403, "", "the credential's user may not do this: tokens of users need an administrator, those of a service account an owner of its group"},
	{404, "", "there is no such project, group, user or token, or it is hidden from the credential; a path changes when it is moved or renamed, a number does not"},
}

func gitlabHint(a answer) string {
	said := strings.ToLower(string(a.body))
	for _, r := range gitlabRefusals {
		if r.status == a.status && strings.Contains(said, r.has) {
			return r.text
		}
	}
	return ""
}

// gitlabMessage is the message of a refusal that comes from an endpoint: a path that is none has an error instead.
func gitlabMessage(body []byte) string {
	var said struct{ Message string }
	if json.Unmarshal(body, &said) != nil {
		return ""
	}
	return said.Message
}
