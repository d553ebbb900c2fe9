// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"crypto/rand"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// A static role has one key, which everybody who may read static-creds/<name> shares, and which the engine rotates. Usually a
// new key is made beside the old one, which is revoked after the overlap; with overlap 0, a target that can replaces the key
// in place. The present key is only in staticStates and not in the ledger, so nothing that ends keys ever finds it. Keys that
// the role no longer has (an old key, or one whose answer was lost) go to the ledger, where the sweeper ends them.
const (
	staticStates = "static-keys/"
	staticPrefix = "static/" // precedes a static role's name in allowed_roles, in the ledger and in nameLocks
)

var staticTable = table[staticState]{prefix: staticStates}

// staticState is what the engine stores of a static role besides the staticRecord.
type staticState struct {
	Turn        turn           `json:"turn"`
	Name        string         `json:"name"`        // of the new key, as it is requested
	Params      map[string]any `json:"params"`      // with which the new key is requested
	NotAfter    time.Time      `json:"not_after"`   // latest expiry that the new key is given
	InPlace     bool           `json:"in_place"`    // the target replaces the current key, which ends the old one at once
	Doubtful    bool           `json:"doubtful"`    // a replacement in place had an unknown outcome: current may have ended, and an unknown key have its name
	Current     *staticKey     `json:"current"`     // nil = none yet
	Next        *staticKey     `json:"next"`        // made, but not in use yet
	Predecessor string         `json:"predecessor"` // accessor of the key before current
	Old         []oldKey       `json:"old"`
}

// staticKey is a key that a static role has. It contains the key itself, which is returned only by static-creds.
type staticKey struct {
	Secret   string            `json:"secret"`
	Accessor string            `json:"accessor"`
	Header   string            `json:"header"`
	Fields   map[string]string `json:"fields"`
	Expiry   time.Time         `json:"expiry"` // zero = never
	Handle   target.Handle     `json:"handle"`
	Asked    map[string]any    `json:"asked"`    // the parameters with which it was requested
	Imported bool              `json:"imported"` // the engine did not choose its name, so other keys may have the same
}

func newStaticKey(k target.Key, params map[string]any) *staticKey {
	return &staticKey{
		Secret: k.Secret, Accessor: k.Accessor, Header: k.Header, Fields: k.Fields, Expiry: k.Expiry.UTC(), Handle: k.Handle, Asked: params,
	}
}

// has reports whether a key is the role's current or next one, or one that the role will end: an old one in its overlap, or
// one with the name that doubted returns.
func (s *staticState) has(h target.Handle) bool {
	is := func(k *staticKey) bool { return k != nil && k.Accessor == h.Accessor }
	old := func(k oldKey) bool { return k.Handle.Accessor == h.Accessor }
	doubted := s.doubted().Name
	return is(s.Current) || is(s.Next) || slices.ContainsFunc(s.Old, old) || doubted != "" && doubted == h.Name
}

// doubted returns the name under which a key may exist that nobody has, if the rotation under way is given up. It returns the
// zero Handle if there is no such name, or if other keys may have that name too.
func (s *staticState) doubted() target.Handle {
	asking := s.Turn.State == turnAsking
	switch {
	case asking && !s.InPlace:
		return s.asked()
	case (asking || s.Doubtful) && !s.Current.Imported:
		return s.Current.Handle
	}
	return target.Handle{}
}

// oldKey is a former key of a static role, which stays valid until the end of its overlap.
type oldKey struct {
	Handle target.Handle `json:"handle"`
	Expiry time.Time     `json:"expiry"` // the key's own; zero = never
	Until  time.Time     `json:"until"`  // end of the overlap
}

// staticRole is a static role while something is done with it; the caller holds its lock.
type staticRole struct {
	*engine
	s      logical.Storage
	name   string
	record *staticRecord
	target *openTarget // nil if targetErr is set, or if there is no such target
	state  *staticState

	targetErr error
}

func (r *staticRole) what() string { return fmt.Sprintf("static role %q", r.name) }
func (r *staticRole) turn() *turn  { return &r.state.Turn }
func (r *staticRole) labels() (kind, target string) {
	return "static_role", r.record.Target
}
func (r *staticRole) event() (kind, path string) {
	return eventStaticRotated, "static-creds/" + r.name
}
func (r *staticRole) save(ctx context.Context) error {
	return staticTable.put(ctx, r.s, r.name, r.state)
}

// due returns when to rotate the key; a time long ago if there is no key yet.
func (r *staticRole) due() time.Time { return r.record.dueOf(r.state, r.now()) }

func (s *staticRecord) dueOf(state *staticState, now time.Time) time.Time {
	if state.Current == nil {
		return time.Unix(0, 0).UTC()
	}
	return s.due(state.Turn.LastRotation, state.Current.Expiry, now)
}

// usable refuses unless the role may get a new key now.
func (r *staticRole) usable() error {
	switch {
	case r.targetErr != nil:
		return r.targetErr
	case r.target == nil:
		return storageError(fmt.Errorf("target %q of %s is missing", r.record.Target, r.what()))
	case !r.target.Caps().Revoke:
		return refuse(reasonNotRevocable, "target %q cannot revoke", r.record.Target)
	}
	return r.readable()
}

// readable refuses unless the role's key may be read now. It may be read even if the target cannot be opened.
func (r *staticRole) readable() error {
	switch {
	case !r.record.Enabled:
		return refuse(reasonDisabled, "%s is disabled", r.what())
	case r.target == nil:
		return nil
	case !r.target.record.Enabled:
		return refuse(reasonDisabled, "target %q is disabled", r.record.Target)
	case !r.target.allows(staticPrefix + r.name):
		return refuse(reasonRoleNotAllowed, "target %q does not list %q in allowed_roles", r.record.Target, staticPrefix+r.name)
	}
	return nil
}

// prepare decides how the new key is made: beside the old one, or in place by the target. In place needs overlap 0, a target
// that can rotate and find keys, and unchanged parameters.
func (r *staticRole) prepare(ctx context.Context) error {
	if err := r.usable(); err != nil {
		return err
	}
	params, err := r.target.Params(r.record.Parameters)
	if err != nil {
		return &refusal{reason: reasonParameter, text: err.Error(), detail: err.Error()}
	}
	st, now := r.state, r.now().UTC()
	st.Params = params
	st.NotAfter = r.record.end(now).Add(r.record.Overlap.duration())
	if life := r.target.Lifetime(); life > 0 { // the ledger shows a lost key for only that long
		st.NotAfter = earlier(st.NotAfter, now.Add(life))
	}
	caps := r.target.Caps() // if the answer of a replacement is lost, only Find gets on from there
	st.InPlace = st.Current != nil && !st.Doubtful && r.record.Overlap == 0 && caps.Rotate && caps.Find && sameJSON(params, st.Current.Asked)
	if st.InPlace {
		st.Name = st.Current.Handle.Name
		return nil
	}
	conf, err := r.configWithInstance(ctx, r.s)
	if err != nil {
		return err
	}
	st.Name = staticName + conf.Instance + "-" + strings.ToLower(rand.Text())
	return nil
}

func sameJSON(a, b map[string]any) bool {
	return reflect.DeepEqual(plainJSON(a), plainJSON(b))
}

func (r *staticRole) ask(ctx context.Context) error {
	st := r.state
	var made target.Key
	var err error
	if st.InPlace {
		h := st.Current.Handle
		h.Secret = st.Current.Secret
		made, err = r.target.Rotate(ctx, h, st.NotAfter)
	} else {
		token := ""
		if r.target.Source() != target.SourceNone {
			if token, err = r.target.ownToken(ctx); err != nil {
				return err
			}
		}
		made, err = r.target.Exchange(ctx, target.Request{
			Name: st.Name, Params: st.Params, NotAfter: st.NotAfter, TTL: st.NotAfter.Sub(r.now()), SubjectToken: token,
			Subject: map[string]any{"issuer": "static-roles", "subject": staticPrefix + r.name},
		})
	}
	if err != nil {
		return err
	}
	st.Next = newStaticKey(made, st.Params)
	st.Next.Imported = st.InPlace && st.Current.Imported // a key replaced in place keeps its name
	return nil
}

// lost leaves a key that may exist to the sweeper, which finds it by name. A key that was to be replaced in place may have
// ended or not: it stays in use until a new one is made, and then everything with its name is ended. That is impossible if
// other keys may have that name too.
func (r *staticRole) lost(ctx context.Context) (bool, error) {
	if r.state.InPlace {
		r.state.Doubtful = !r.state.Current.Imported && r.target != nil && r.target.Caps().Find
		return r.state.Doubtful, nil
	}
	return true, r.leaveNameToSweeper(ctx, r.state.asked(), r.state.Turn.Since)
}

// abandon leaves to the sweeper what may exist of a rotation that is given up, except under the name kept.
func (r *staticRole) abandon(ctx context.Context, kept string) error {
	h := r.state.doubted()
	if h.Name == "" || h.Name == kept {
		return nil
	}
	return r.leaveNameToSweeper(ctx, h, r.now().UTC())
}

// asked returns a handle of the new key as it was requested; the role's parameters may have changed since.
func (s *staticState) asked() target.Handle { return target.Handle{Name: s.Name, Params: s.Params} }

// leaveNameToSweeper makes the sweeper end every key with the handle's name, once sweep_grace has passed since asked.
func (r *staticRole) leaveNameToSweeper(ctx context.Context, h target.Handle, asked time.Time) error {
	notAfter := r.now().UTC()
	if r.state.NotAfter.After(notAfter) {
		notAfter = r.state.NotAfter
	}
	return r.ledger.intend(ctx, r.s, &entry{
		ID: newID(notAfter), Name: h.Name, Role: staticPrefix + r.name, Target: r.record.Target, Revocable: true,
		IssuedAt: asked, NotAfter: notAfter, Handle: target.Handle{Name: h.Name, Params: h.Params}, Claims: map[string]any{},
	})
}

// leaveToSweeper makes the sweeper end a key in its next sweep.
func (r *staticRole) leaveToSweeper(ctx context.Context, h target.Handle, expiry time.Time) error {
	now := r.now().UTC()
	l := lease{ID: newID(now), Role: staticPrefix + r.name, Target: r.record.Target, Revocable: true, Handle: h, ExpiresAt: expiry}
	e := l.entry(now)
	if err := r.ledger.file(ctx, r.s, e); err != nil {
		return err
	}
	e.DebtSince, e.NextTry = now, now
	return r.ledger.openDebt(ctx, r.s, e)
}

// verify tries the new key by asking the target to identify it. It does nothing if there is no old key to fall back to.
func (r *staticRole) verify(ctx context.Context) error {
	st := r.state
	if st.InPlace || st.Current == nil || !r.target.Caps().Identify {
		return nil
	}
	_, err := r.target.Identify(ctx, st.Next.Secret, st.Next.Handle.Params)
	return err
}

func (r *staticRole) discard(ctx context.Context) error {
	next := r.state.Next
	r.state.Next = nil
	return r.leaveToSweeper(ctx, next.Handle, next.Expiry)
}

// startOverlap keeps replaced keys valid for the overlap. It ends the overlap of earlier ones: otherwise frequent rotations
// would pile them up, and whoever rotates again wants them ended.
func (r *staticRole) startOverlap(keys ...*staticKey) {
	now := r.now().UTC()
	for i := range r.state.Old {
		r.state.Old[i].Until = now
	}
	for _, k := range keys {
		r.state.Old = append(r.state.Old, oldKey{Handle: k.Handle, Expiry: k.Expiry, Until: now.Add(r.record.Overlap.duration())})
	}
}

// commit puts the new key in use. The old one stays valid for the overlap, unless it has ended already.
func (r *staticRole) commit(ctx context.Context) error {
	st := r.state
	was, doubtful := st.Current, st.Doubtful
	if was != nil {
		st.Predecessor = was.Accessor
	}
	if was != nil && !st.InPlace && !doubtful {
		r.startOverlap(was)
	}
	st.Current, st.Next, st.Doubtful, st.Turn.State = st.Next, nil, false, turnIdle
	if doubtful && was != nil { // before save removes the last trace of its name
		if err := r.leaveNameToSweeper(ctx, was.Handle, r.now().UTC()); err != nil {
			return err
		}
	}
	return r.save(ctx)
}

// retire leaves to the sweeper the old keys whose overlap is over.
func (r *staticRole) retire(ctx context.Context) error {
	over := func(k oldKey) bool { return !r.now().Before(k.Until) }
	if !slices.ContainsFunc(r.state.Old, over) {
		return nil
	}
	for _, k := range r.state.Old {
		if over(k) {
			if err := r.leaveToSweeper(ctx, k.Handle, k.Expiry); err != nil {
				return err
			}
		}
	}
	r.state.Old = slices.DeleteFunc(r.state.Old, over)
	return r.save(ctx) // if this fails, the key is left to the sweeper twice, which is harmless
}

// openStatic loads a static role; nil if there is none of that name.
func (b *engine) openStatic(ctx context.Context, s logical.Storage, name string) (*staticRole, error) {
	record, err := b.staticNoun.table.get(ctx, s, name)
	if err != nil || record == nil {
		return nil, err
	}
	state, err := staticTable.get(ctx, s, name)
	if err != nil {
		return nil, err
	}
	t, err := b.target(ctx, s, record.Target)
	return &staticRole{engine: b, s: s, name: name, record: record, target: t, state: state, targetErr: err}, nil
}

// rotateStatic does what is due for all static roles.
func (b *engine) rotateStatic(ctx context.Context, s logical.Storage) error {
	names, err := b.staticNoun.table.list(ctx, s)
	if err != nil {
		return err
	}
	return b.tend(ctx, names, staticPrefix, "static role", func(name string) error { return b.tendStatic(ctx, s, name) })
}

// tendStatic does what is due for one static role. It skips a role without state, whose write was interrupted with an error.
func (b *engine) tendStatic(ctx context.Context, s logical.Storage, name string) error {
	r, err := b.openStatic(ctx, s, name)
	if err != nil || r == nil || r.state == nil {
		return err
	}
	if err := r.retire(ctx); err != nil {
		return err
	}
	if r.usable() != nil { // no new key, but a key that may exist is still left to the sweeper
		if r.state.Turn.State == turnAsking {
			return b.loseTrack(ctx, r)
		}
		return nil
	}
	if !r.state.Turn.isDue(r.due(), b.now()) {
		return nil
	}
	return b.rotate(ctx, r)
}
