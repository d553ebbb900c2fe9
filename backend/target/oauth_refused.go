// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// errorHints say what to correct after the errors that these endpoints may return (RFC 6749 section 5.2, RFC 7009 section
// 2.2.1, RFC 8693 section 2.2.2, RFC 6750 section 3.1).
var errorHints = map[string]string{
	"invalid_request":        "a parameter is missing, or one that it does not take; in a token exchange also: it does not accept the subject or actor token",
	"invalid_client":         "it does not accept the engine as its client; look at client_auth, client_id and the secret or key there",
	"invalid_grant":          "it does not accept the subject token: of an issuer or for an audience that it does not trust, expired, or used before",
	"unauthorized_client":    "this client may not use the grant, or not for this",
	"unsupported_grant_type": "it does not have the grant",
	"invalid_scope":          "a scope of the role is unknown there, or more than this client or subject may have",
	"invalid_target":         "audience or resource of the role is unknown there, or not for this client or subject",
	"unsupported_token_type": "it does not revoke tokens of this kind, which live until they expire",
	"invalid_token":          "it does not accept the engine's token",
	"insufficient_scope":     "the engine's client lacks a scope for this",
	"access_denied":          "its own rules refuse this",
}

// secretMembers are the members of a form that hold a token or a secret.
var secretMembers = []string{"subject_token", "actor_token", "assertion", "client_assertion", "client_secret", "token"}

// errorHint says what to correct after a refusal, by its code, and adds what the server says about it. sent are secrets that
// must not be repeated.
func errorHint(a answer, sent []string) string {
	refusal := objectOf(a.body)
	if refusal == nil {
		return "the answer is not an authorization server's; is the endpoint's address right, or a proxy in front of it?"
	}
	code, _ := refusal["error"].(string)
	about, _ := refusal["error_description"].(string)
	if hint, known := errorHints[code]; known {
		return withSaid(code+": "+hint, sent, about)
	}
	return withSaid("", sent, code, about)
}

// maxSaid is how many characters of what a server says are repeated.
const maxSaid = 256

// withSaid adds to a hint what a server says about its refusal, only for the operator's log: without control characters, cut to
// maxSaid, and not at all if it contains a piece of a secret that was sent to the server.
func withSaid(hint string, sent []string, said ...string) string {
	text := strings.Join(slices.DeleteFunc(said, func(part string) bool { return part == "" }), ": ")
	clean := strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text))
	if runes := []rune(clean); len(runes) > maxSaid {
		clean = string(runes[:maxSaid])
	}
	if clean == "" || slices.ContainsFunc(sent, func(secret string) bool { return sharesPiece(clean, secret) }) {
		return hint
	}
	return strings.TrimPrefix(fmt.Sprintf("%s; it says %q", hint, clean), "; ")
}

// sharesPiece reports whether a text contains eight characters in a row of a secret, or all of a shorter one. It compares only
// letters and digits, and ignores case, so that neither a line break nor the signs of another encoding hide a match.
func sharesPiece(text, secret string) bool {
	const piece = 8
	plain, runes := lettersAndDigits(secret), []rune(lettersAndDigits(text))
	if len([]rune(plain)) < piece {
		return secret != "" && strings.Contains(string(runes), plain)
	}
	for i := range len(runes) - piece + 1 {
		if strings.Contains(plain, string(runes[i:i+piece])) {
			return true
		}
	}
	return false
}

func lettersAndDigits(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			return unicode.ToLower(r)
		}
		return -1
	}, text)
}
