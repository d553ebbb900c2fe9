// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"encoding/json"
	"net/http"
	"strings"
)

// gitlabRefusals say what GitLab's refusals mean; the first one that matches counts. GitLab's own text is compared, and never
// shown.
var gitlabRefusals = []struct {
	status int
	has    string // in the body, in lower case; "" = whatever it says
	text   string
	right  bool // the credential may lack a right: say which one the kind of token needs
}{
	{400, "does not have permission to create", "the credential's user may not create such tokens there, or they are not offered", true},
	{400, "not permitted to create", "the credential's user may not create such tokens there", true},
	{400, "contains permissions not held", "access_level is above that of the credential's user", false},
	{400, "limit reached", "no more tokens may be made there", false},
	{400, "must be before", "the expiry is past the instance's maximum lifetime; lower the role's max_ttl", false},
	{400, "scopes", "the instance does not offer one of the scopes for this kind of token", false},
	{400, "access_level", "the instance does not offer this access_level", false},
	{400, "not of type service account", "the user is no service account", false},
	{400, "already revoked", "the token is revoked already", false},
	{400, "find bot user", "the token's bot user is being deleted, and the token with it", false},
	{400, "", "the credential's user may not do this, or the instance does not offer it", true},
	{401, "token is expired", "the credential has expired; write a new one", false},
	{401, "token was revoked", "the credential was revoked; write a new one", false},
	{401, "dpop", "GitLab wants a proof of possession (DPoP) with the tokens of the credential's user, which this engine does not give", false},
	{401, "", "the credential is not known there, or its user may not manage these tokens", true},
	{403, "insufficient_scope", "the credential lacks the scope api", false},
	{403, "your account", "the credential's user is blocked, or has something to do at GitLab first, such as accepting its terms", false},
	{403, "", "the credential's user may not do this", true},
	{404, `{"error":"404`, "this version of GitLab has no such call, or a proxy before it decodes paths (then give a number instead of a path)", true},
	{404, "", "there is no such project, group, user or token, or it is hidden from the credential; a path changes when it is moved or renamed, a number does not", false},
	{405, "", "this version of GitLab has no such call", true},
}

// gitlabHint returns a function that says what to correct after a refusal; needs says what the credential must be.
func gitlabHint(needs string) func(answer) string {
	return func(a answer) string {
		said, status := strings.ToLower(string(a.body)), a.status
		if status == http.StatusUnprocessableEntity { // for service accounts; other kinds get a 400
			status = http.StatusBadRequest
		}
		for _, r := range gitlabRefusals {
			switch {
			case r.status != status || !strings.Contains(said, r.has):
			case r.right && needs != "":
				return r.text + ": " + needs
			default:
				return r.text
			}
		}
		return ""
	}
}

// gitlabSelfHint is the hint for a key that could not end itself.
func gitlabSelfHint(answer) string {
	return "the key cannot end itself (its user may be blocked, or GitLab may want more of it than the key); it ends on its day"
}

// gitlabMessage returns the member message of a refusal. Only endpoints send it: for a path without an endpoint, GitLab sends
// the member error instead.
func gitlabMessage(body []byte) string {
	var said struct{ Message string }
	if json.Unmarshal(body, &said) != nil {
		return ""
	}
	return said.Message
}

// gitlabDead reports whether a 401 says that the presented token has ended or is unknown. A 401 may also have other causes: a
// proxy that wants its own login, or an active token that is presented without a proof (DPoP).
func gitlabDead(body []byte) bool {
	var said struct {
		Error       string
		Description string `json:"error_description"`
	}
	if json.Unmarshal(body, &said) != nil {
		return false
	}
	if said.Error == "" {
		return gitlabMessage(body) == "401 Unauthorized"
	}
	ended := strings.HasPrefix(said.Description, "Token was revoked") || strings.HasPrefix(said.Description, "Token is expired") || strings.HasPrefix(said.Description, "Bad Access Token")
	return said.Error == "invalid_token" && ended
}
