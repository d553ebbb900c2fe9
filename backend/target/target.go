// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// Package target speaks to the APIs that issue keys: it exchanges a subject token or the engine's own credential for a
// key, renews and revokes keys, finds lost ones, and checks that the target can be reached.
//
// It also replaces what must not live for ever: a key, or the engine's credential, by a new one (rotate.go).
//
// A [Target] is opened from a [Config] and knows nothing of roles, leases or trust: when it is called, the decision has been
// made. Its one promise is to report what happened. Every call is sent at most once, and its error says whether the target
// refused, nothing happened, or the outcome is unknown (see [ErrDenied], [ErrBusy], [ErrUnknown], [MayLive]); whether to try
// again is up to the caller. Nothing here logs, and no error contains a token, a key or a credential, nor more of an answer
// than a server's own words for a refusal.
//
// Each kind of target is a driver. Most drivers are profiles: YAML that describes an API as data and CEL, built in
// (profiles/*.yaml) or an operator's own (driver "http").
package target

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

// Caps is what a target can do besides Exchange. The zero Caps is nothing.
type Caps struct {
	Revoke bool // end a key before its time
	Renew  bool // move a key's expiry
	Find   bool // find keys by the name that they were asked under, after a lost answer
	Check  bool // report that it is up and accepts our credential
	List   bool // list the keys of a place with their names, to find those that nobody has on record

	Rotate     bool // replace a key by a new one, which ends the old one
	Identify   bool // return which key a given secret is
	RotateRoot bool // make a new credential for the engine
	Retire     bool // the old credential is valid until RetireCredential
}

// driver has the calls of one kind of target; a nil member is a call that it does not support.
type driver struct {
	// With ErrProtocol, exchange may return the handle and the expiry of the key that it refuses: see Target.end.
	exchange func(context.Context, Request) (Key, error)
	renew    func(context.Context, Handle, time.Time) (time.Time, error)
	revoke   func(context.Context, Handle) error
	find     func(context.Context, Handle) ([]Handle, error)
	check    func(context.Context) error
	list     func(ctx context.Context, prefix string, place map[string]any) (keys []Handle, whole bool, err error)

	renewAsks bool // see Target.RenewAsks

	rotate           func(context.Context, Handle, time.Time) (Key, error)
	identify         func(ctx context.Context, secret string, params map[string]any) (Key, error)
	rotateCredential func(ctx context.Context, name string, notAfter time.Time) (Credential, error)
	retire           func(context.Context) (doubtful bool, err error)
}

// facts are what is known about a kind of target without calling it.
type facts struct {
	name, url, source, audience string        // the defaults of a Config
	audienceFrom                *expr.Program // computes the audience from the URL's hostname; nil = audience is used
	params                      parameters
	placed                      []string // the parameters that say where a key is: a list covers one place
	credential                  []string // fields that it must have
	optional                    []string // fields that it may have
	claims                      []string // the subject's claims that it reads
	lifetime                    time.Duration
	guessed                     bool     // lifetime is only a guess, which Config.Lifetime may replace
	advice                      []string // what whoever configures it should make sure of
	headerName                  string
	wantsToken                  bool     // an exchange presents a subject token
	subjectHosts                []string // the hosts to which it may send that token; nil = the URL's
	endsByAccessor, endsByKey   bool     // the parts of a key that a profile's renew and revoke need, so that its handles have them
	endsByParams                []string // the parameters that renew, revoke and find read

	// together judges parameters that depend on each other; nil = none do.
	together func(params map[string]any) *FieldError
}

// Target is an API that issues keys. Open makes one; it is safe for concurrent use and stores nothing.
type Target struct {
	kind             facts
	name, driverName string
	url              *url.URL
	source, audience string
	credential       map[string]string
	condition        *expr.Program // nil = anything
	api              *api
	driver           driver
}

// URL returns the base address.
func (t *Target) URL() string { return t.url.String() }

// Host returns the base address's host, with its port if it has one.
func (t *Target) Host() string { return t.url.Host }

// SubjectHosts returns the hosts, each with its port if it has one, to which an exchange may send the subject token.
func (t *Target) SubjectHosts() []string {
	if t.kind.subjectHosts == nil {
		return []string{t.url.Host}
	}
	return slices.Clone(t.kind.subjectHosts)
}

// Source returns what is sent as the subject token: one of the Source constants.
func (t *Target) Source() string { return t.source }

// Audience returns the aud that the subject token must have; "" if any will do.
func (t *Target) Audience() string { return t.audience }

// HeaderName returns the header in which a key is presented; "" if its kind does not say.
func (t *Target) HeaderName() string { return t.kind.headerName }

// Lifetime returns the longest that a key of this target lives; 0 if that is not known.
func (t *Target) Lifetime() time.Duration { return t.kind.lifetime }

// CredentialFields returns the fields of the target's credential; empty if it needs none.
func (t *Target) CredentialFields() []string {
	return slices.Concat(t.kind.credential, t.kind.optional)
}

// Advice returns what whoever configures the target should make sure of, a sentence each.
func (t *Target) Advice() []string { return slices.Clone(t.kind.advice) }

// SubjectClaims returns the subject's claims that the target's expressions read, besides issuer and subject.
func (t *Target) SubjectClaims() []string { return slices.Clone(t.kind.claims) }

// Caps returns what the target can do.
func (t *Target) Caps() Caps {
	return Caps{
		Revoke: t.driver.revoke != nil, Renew: t.driver.renew != nil,
		Find: t.driver.find != nil, Check: t.driver.check != nil, List: t.driver.list != nil,
		Rotate: t.driver.rotate != nil, Identify: t.driver.identify != nil,
		RotateRoot: t.driver.rotateCredential != nil, Retire: t.driver.retire != nil,
	}
}

// TakesHandlesOf reports whether the handles that another target makes have what Renew, Revoke and Find need here. It compares
// only what differs between profiles.
func (t *Target) TakesHandlesOf(other *Target) bool {
	unknown := func(name string) bool { return !slices.Contains(other.kind.params.names(), name) }
	return !slices.ContainsFunc(t.kind.endsByParams, unknown) && (other.kind.endsByAccessor || !t.kind.endsByAccessor) && (other.kind.endsByKey || !t.kind.endsByKey)
}

// Width returns how many calls may be made at once so that none waits longer than patience for its turn; at least 1.
func (t *Target) Width(patience time.Duration) int { return t.api.limiter.width(patience) }

// Exchange asks for a key. The request is sent once, because most targets accept a subject token only once. With an error it
// returns no key, but one may exist at the target: see MayLive. Exchange returns at once when ctx ends, unless it has to end a
// key that it refuses.
func (t *Target) Exchange(ctx context.Context, r Request) (Key, error) {
	if t.source != SourceNone && r.SubjectToken == "" {
		return Key{}, unbuildable("exchange", "there is no subject token")
	}
	if err := t.answers(ctx, "exchange"); err != nil {
		return Key{}, err
	}
	k, err := t.driver.exchange(ctx, r)
	if err != nil {
		return Key{}, t.end(ctx, k, err)
	}
	return k, nil
}

const endTimeout = 10 * time.Second // for ending a refused key, whether or not the caller still waits

// end ends a key that was issued but is refused, if that takes the key itself: a key with a name can be found by it and ended
// later, but this one would be lost. If the key cannot be ended, it returns err, which says that the key may live.
func (t *Target) end(ctx context.Context, refused Key, err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	if refused.Expiry.After(t.api.now()) {
		e.KeyEnd = refused.Expiry
	}
	if refused.Handle.Secret == "" || t.driver.revoke == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if t.driver.revoke(ctx, refused.Handle) != nil {
		return err
	}
	told := *e
	told.Text, told.cause = e.Text+"; the key was revoked", ErrEnded
	return &told
}

// RenewAsks reports whether Renew does not move a key's expiry, but only asks whether the key is active. Renew then returns the
// expiry, zero if the target does not state it, or ErrInactive if the key is not active.
func (t *Target) RenewAsks() bool { return t.driver.renewAsks }

// Renew moves the expiry of the key that h names to notAfter, or to an earlier time if the target decides so, and returns the
// new expiry. After an error the key has its old expiry or, if the outcome is unknown, perhaps the new one. Renew may be called
// again.
func (t *Target) Renew(ctx context.Context, h Handle, notAfter time.Time) (time.Time, error) {
	if t.driver.renew == nil {
		return time.Time{}, unsupported("renew")
	}
	return t.driver.renew(ctx, h, notAfter)
}

// Revoke ends the key that h names. It may be called again for the same key: a key that is already gone is success. After
// any error but ErrUnsupported the key may live, and Revoke should be called again; ErrDenied then means that the target
// refuses the engine's credential. Revoke goes before calls that issue keys, and returns at once when ctx ends.
func (t *Target) Revoke(ctx context.Context, h Handle) error {
	if t.driver.revoke == nil {
		return unsupported("revoke")
	}
	return t.driver.revoke(ctx, h)
}

// Find returns the handles of the keys that live, or may live, under h.Name. Of h it needs only Name and Params. No handle and
// no error means that there is no such key.
func (t *Target) Find(ctx context.Context, h Handle) ([]Handle, error) {
	if t.driver.find == nil {
		return nil, unsupported("find")
	}
	return t.driver.find(ctx, h)
}

// Check asks whether the target is up and accepts the engine's credential.
func (t *Target) Check(ctx context.Context) error {
	if t.driver.check == nil {
		return unsupported("check")
	}
	return t.driver.check(ctx)
}

// Close closes idle connections. Calls that are under way go on.
func (t *Target) Close() { t.api.client.CloseIdleConnections() }
