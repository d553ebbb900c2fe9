// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

// The reasons of an [Error]; they are the reason codes that callers of the engine see.
const (
	TokenMalformed    = "token_malformed"    // not one token in compact form that every parser reads the same way
	TokenType         = "token_type"         // its typ is not one of the issuer's allowed types
	Algorithm         = "algorithm"          // its alg is not permitted, or not the one of the key it names
	UnknownIssuer     = "unknown_issuer"     // its iss, or the trust domain of its sub, is not this issuer's
	UnknownKey        = "unknown_key"        // the issuer does not publish the key it names
	BadSignature      = "bad_signature"      // the key it names did not sign it
	Expired           = "expired"            // its exp has passed
	NotYetValid       = "not_yet_valid"      // its nbf or iat lies in the future
	TooOld            = "too_old"            // it was issued longer ago than the issuer's max_age
	Lifetime          = "lifetime"           // it lives longer than max_token_lifetime, or ends before it begins
	IssuerUnavailable = "issuer_unavailable" // the issuer's keys cannot be fetched now; the same token may be accepted later
)

// Error is the one type of error that verifying returns. All reasons but IssuerUnavailable are the token's fault.
type Error struct {
	Reason string // one of the constants of this package
	Detail string // for the log and for explain: names and our own words, never a value out of a token or an answer
}

func (e *Error) Error() string { return e.Reason + ": " + e.Detail }

func refuse(reason, detail string) error { return &Error{Reason: reason, Detail: detail} }
