// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"
)

// Limits of what a target may answer, in bytes.
const (
	maxSecretBytes   = 8 << 10
	maxAccessorBytes = 512
)

// Request asks for one key.
type Request struct {
	Name         string         // the key's name at the target, where it has names; unique, chosen by the caller
	Params       map[string]any // as Target.Params returned them
	Subject      map[string]any // issuer, subject and claims; only what SubjectClaims names is looked at
	SubjectToken string         // required unless the source is SourceNone
	NotAfter     time.Time      // the latest end that the key may have; zero = not given
	TTL          time.Duration  // the lifetime asked for; 0 = not given
}

// Key is what a target issued.
type Key struct {
	Secret   string            // the API key: 1 byte to 8 KiB of printable ASCII
	Accessor string            // the key's public id at the target; empty if it has none
	Expiry   time.Time         // UTC; zero = the key does not end by itself
	Header   string            // the value of the header HeaderName that presents the key; empty = the key itself
	Fields   map[string]string // further public facts from the driver; may be nil
	Handle   Handle            // what Renew and Revoke need
}

// Handle is all that must be stored of a key to renew, revoke or find it; it survives encoding/json. Accessor and Secret are
// empty unless this target's Renew or Revoke need them. A handle with a Secret is as secret as the key.
type Handle struct {
	Name     string         `json:"name,omitempty"`
	Accessor string         `json:"accessor,omitempty"`
	Params   map[string]any `json:"params,omitempty"`
	Secret   string         `json:"secret,omitempty"`
}

// String names the request without token and parameters. Every type here that holds a secret prints and logs like that,
// whatever the verb: see show.
func (r Request) String() string { return fmt.Sprintf("request(%q)", r.Name) }

// String names the key by its accessor, without the secret.
func (k Key) String() string { return fmt.Sprintf("key(%q)", k.Accessor) }

// String names the handle's key, without the secret.
func (h Handle) String() string { return fmt.Sprintf("handle(%q, %q)", h.Name, h.Accessor) }

// String names the target, without credential and client key.
func (c Config) String() string { return fmt.Sprintf("target(%q, %q)", c.Name, c.Driver) }

// String names the target, without its credential.
func (t *Target) String() string { return fmt.Sprintf("target(%q, %q)", t.name, t.driverName) }

// show prints v for every verb and flag, so that no %+v or %#v reaches its fields.
func show(s fmt.State, v fmt.Stringer) {
	_, _ = io.WriteString(s, v.String()) // as fmt does: an error of the writer cannot be returned here
}

// Format implements fmt.Formatter.
func (r Request) Format(s fmt.State, _ rune) { show(s, r) }

// Format implements fmt.Formatter.
func (k Key) Format(s fmt.State, _ rune) { show(s, k) }

// Format implements fmt.Formatter.
func (h Handle) Format(s fmt.State, _ rune) { show(s, h) }

// Format implements fmt.Formatter.
func (c Config) Format(s fmt.State, _ rune) { show(s, c) }

// Format implements fmt.Formatter.
func (t *Target) Format(s fmt.State, _ rune) { show(s, t) }

// LogValue implements slog.LogValuer.
func (r Request) LogValue() slog.Value { return slog.StringValue(r.String()) }

// LogValue implements slog.LogValuer.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// LogValue implements slog.LogValuer.
func (h Handle) LogValue() slog.Value { return slog.StringValue(h.String()) }

// LogValue implements slog.LogValuer.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// LogValue implements slog.LogValuer.
func (t *Target) LogValue() slog.Value { return slog.StringValue(t.String()) }

// check says what is wrong with a key that a target claims to have issued; "" = nothing. An accessor that contains the key is
// refused, because accessors are shown and logged.
func (k Key) check(now time.Time) string {
	switch {
	case k.Secret == "":
		return "no key in the answer"
	case !validSecret(k.Secret):
		return fmt.Sprintf("the key is not printable ASCII of at most %d bytes", maxSecretBytes)
	case k.Accessor != "" && !validAccessor(k.Accessor):
		return accessorRule
	case k.Accessor != "" && strings.Contains(k.Accessor, k.Secret):
		return "the accessor holds the key itself"
	case !k.Expiry.IsZero() && !k.Expiry.After(now):
		return "the key has already expired"
	}
	for _, text := range k.Fields { // shown like an accessor
		if len(text) > maxAccessorBytes || !printable(text) || strings.Contains(text, k.Secret) {
			return fmt.Sprintf("a field is not printable ASCII of at most %d bytes, or holds the key", maxAccessorBytes)
		}
	}
	return ""
}

func validSecret(s string) bool { return s != "" && len(s) <= maxSecretBytes && printable(s) }

var accessorRule = fmt.Sprintf("an accessor is not printable ASCII of 1 to %d bytes, or is a dot segment", maxAccessorBytes)

func validAccessor(a string) bool {
	return len(a) <= maxAccessorBytes && printable(a) && validSegment(a) // it becomes a path segment in the call that ends the key
}

// printable reports whether s is ASCII without control characters; spaces count as printable.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
