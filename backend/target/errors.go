// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"errors"
	"fmt"
	"time"
)

// The outcomes of calls that did not succeed. Every error of a Target's calls is an [*Error] that wraps exactly one of these,
// and perhaps ErrInactive or ErrEnded.
var (
	// ErrDenied means that the target refused, and nothing was issued or changed. Repeating the call does not help; for
	// calls other than Exchange it is the engine's own credential that was refused.
	ErrDenied = errors.New("denied by the target")
	// ErrBusy means that nothing happened and that the same call may be made again later: see Error.RetryAfter.
	ErrBusy = errors.New("target is busy")
	// ErrUnknown means that the call may have had its effect: after Exchange a key may exist. See Rotate for what must not be
	// done then.
	ErrUnknown = errors.New("outcome is unknown")
	// ErrProtocol means that the target's answer made no sense: after Exchange a key may exist.
	ErrProtocol = errors.New("target's answer makes no sense")
	// ErrUnsupported means that the target cannot do this, in general (see Caps; nothing was sent) or for this key, and never
	// will.
	ErrUnsupported = errors.New("not supported by the target")
	// ErrEgress means that the egress rules forbid the connection. Nothing was sent; the text says what to change.
	ErrEgress = errors.New("connection is not permitted")
	// ErrInactive comes with ErrDenied, from Renew of a Target whose RenewAsks is true: the target does not report the key as
	// active, or no longer does.
	ErrInactive = errors.New("key is not active")
	// ErrEnded comes with ErrProtocol, from Exchange: a key was issued but did not pass the checks, and was ended again. No key
	// exists.
	ErrEnded = errors.New("key was ended again")
	// ErrParameter means that the request could not be made from what was given. Nothing was sent.
	ErrParameter = errors.New("request cannot be made")
)

// Error says which call failed and how. It contains nothing that was sent to the target, and of what the target sent at most
// its own words for a refusal (see withSaid). It is for the operator's log, not for callers.
type Error struct {
	Op         string        // exchange, renew, revoke, find, check, rotate, identify, rotate_credential or retire_credential
	Status     int           // the HTTP status that decided; 0 = none
	Text       string        // what happened, in this package's words but for a quotation
	KeyEnd     time.Time     // of Exchange, if it refused the key that was issued: the key's expiry; zero = the target did not state it
	RetryAfter time.Duration // with ErrBusy: how long the target asks not to be called; 0 = it does not say

	outcome error // one of the sentinels above
	cause   error // ErrInactive, ErrEnded, the context's error if that ended the call, or the error of getting a token that the call needs
}

// Error returns the operation, the outcome and what led to it.
func (e *Error) Error() string {
	text := fmt.Sprintf("%s: %v: %s", e.Op, e.outcome, e.Text)
	if e.Status != 0 {
		text += fmt.Sprintf(" (status %d)", e.Status)
	}
	return text
}

// Unwrap returns the outcome and, if there is one, the cause: the context's error if that ended the call, the error of getting
// a token that the call needs, ErrInactive or ErrEnded.
func (e *Error) Unwrap() []error {
	if e.cause != nil {
		return []error{e.outcome, e.cause}
	}
	return []error{e.outcome}
}

// MayLive reports whether a key may exist after Exchange returned err, or whether Rotate or RotateCredential may have had
// their effect. It returns false only for errors that exclude it.
func MayLive(err error) bool {
	for _, nothing := range []error{ErrDenied, ErrBusy, ErrUnsupported, ErrEgress, ErrParameter, ErrEnded} {
		if errors.Is(err, nothing) {
			return false
		}
	}
	return true
}

// FieldError says which field of the API is wrong and why. Its text names fields and rules, never a value that may be
// secret.
type FieldError struct {
	Field string // as the API spells it: "url", "parameters.project"
	Text  string
}

// Error returns the field and the text.
func (e *FieldError) Error() string { return e.Field + ": " + e.Text }

func fieldErrorf(field, format string, args ...any) *FieldError {
	return &FieldError{Field: field, Text: fmt.Sprintf(format, args...)}
}

// The constructors of Error by outcome.

func unsupported(op string) *Error {
	return &Error{Op: op, Text: "this kind of target has no such call", outcome: ErrUnsupported}
}

func protocol(op, format string, args ...any) *Error {
	return &Error{Op: op, Text: fmt.Sprintf(format, args...), outcome: ErrProtocol}
}

func unbuildable(op, format string, args ...any) *Error {
	return &Error{Op: op, Text: fmt.Sprintf(format, args...), outcome: ErrParameter}
}

// What an error of one call means for an exchange that takes several.

// beforehand converts the error of a call that comes before the one that makes the key: whatever its outcome, nothing was
// issued.
func beforehand(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	told := *e
	switch {
	case e.outcome == ErrProtocol, e.outcome == ErrUnknown && e.Status != 0 && e.Status < 500: // a repetition would end in the same way
		told.outcome = ErrDenied
	case e.outcome == ErrUnknown:
		told.outcome = ErrBusy
	}
	return &told
}

// spent converts the error of a call that presents what an earlier call gave for the subject token. Nothing was issued, but the
// exchange must not be repeated with the same token, which may be good only once. So the error is not ErrBusy, which Vault's
// clients repeat by themselves.
func spent(err error) error {
	var e *Error
	if !errors.As(err, &e) || e.outcome != ErrBusy {
		return err
	}
	told := *e
	told.outcome, told.RetryAfter, told.Text = ErrDenied, 0, e.Text+", with another subject token"
	if errors.Is(e.cause, ErrBusy) {
		told.cause = nil
	}
	return &told
}

// afterwards converts the error of a call that comes after the one that made the key: whatever its outcome, the key exists.
func afterwards(err error) error {
	var e *Error
	if !errors.As(err, &e) || e.outcome == ErrProtocol {
		return err
	}
	told := *e
	told.outcome, told.RetryAfter = ErrUnknown, 0
	return &told
}
