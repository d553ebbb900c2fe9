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

// A static role has one key, which everybody who may read static-creds/<name> shares and which the engine keeps rotated.
// Where the target lets two keys live at once a new one is made beside the old one, which is revoked after the overlap; else
// the target's own rotation replaces it. What is no longer held (an old key, one whose answer was lost) goes to the ledger,
// where the sweeper ends it; the key that is held stands in staticStates alone, so nothing that ends keys ever meets it.
const (
	staticStates = "static-keys/"
	staticPrefix = "static/" // of a static role's name where roles are named: a target's allowed_roles, and the ledger
)

var staticTable = table[staticState]{prefix: staticStates}

// staticState is what is stored of a static role beside what its operator has written.
type staticState struct {
	Turn        turn           `json:"turn"`
	Name        string         `json:"name"`      // under which the new key is asked for
	Params      map[string]any `json:"params"`    // with which it is asked for
	NotAfter    time.Time      `json:"not_after"` // the latest end that it is given
	InPlace     bool           `json:"in_place"`  // by the target's own rotation, which ends the old one
	Doubtful    bool           `json:"doubtful"`  // current may be dead, and a key of its name live that nobody has
	Current     *staticKey     `json:"current"`   // nil = none yet
	Next        *staticKey     `json:"next"`      // made, and not in use yet
	Predecessor string         `json:"predecessor"`
	Old         []oldKey       `json:"old"`
}

// staticKey is a key that a static role has. It holds the key itself, so it never leaves storage but by static-creds.
type staticKey struct {
	Secret   string            `json:"secret"`
	Accessor string            `json:"accessor"`
	Header   string            `json:"header"`
	Fields   map[string]string `json:"fields"`
	Expiry   time.Time         `json:"expiry"` // its own; zero = never
	Handle   target.Handle     `json:"handle"`
	Asked    map[string]any    `json:"asked"`    // the parameters that it was asked for with
	Imported bool              `json:"imported"` // its name is not the engine's
}

func newStaticKey(k target.Key, params map[string]any) *staticKey {
	return &staticKey{
		Secret: k.Secret, Accessor: k.Accessor, Header: k.Header, Fields: k.Fields, Expiry: k.Expiry.UTC(), Handle: k.Handle, Asked: params,
	}
}

// has reports whether a key is in use, about to be, lives on for the overlap, at whose end it is revoked, or bears a name by which
// keys may be ended.
func (s *staticState) has(h target.Handle) bool {
	is := func(k *staticKey) bool { return k != nil && k.Accessor == h.Accessor }
	old := func(k oldKey) bool { return k.Handle.Accessor == h.Accessor }
	doubted := s.doubted().Name
	return is(s.Current) || is(s.Next) || slices.ContainsFunc(s.Old, old) || doubted != "" && doubted == h.Name
}

// doubted names what may live and nobody has, if the rotation that is under way comes to nothing; none if there is no such name,
// or others may use it too.
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

// oldKey is a key that has a successor, and lives on for the overlap.
type oldKey struct {
	Handle target.Handle `json:"handle"`
	Expiry time.Time     `json:"expiry"`
	Until  time.Time     `json:"until"`
}

// staticRole is a static role while something is done with it; the caller holds its lock.
type staticRole struct {
	*engine
	s      logical.Storage
	name   string
	record *staticRecord
	target *openTarget // nil = targetErr says why, or it is missing
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

// due is when the key is to be rotated; one that there is none of yet is due since ever.
func (r *staticRole) due() time.Time { return r.record.dueOf(r.state, r.now()) }

func (s *staticRecord) dueOf(state *staticState, now time.Time) time.Time {
	if state.Current == nil {
		return time.Unix(0, 0).UTC()
	}
	return s.due(state.Turn.LastRotation, state.Current.Expiry, now)
}

// usable refuses a role that may not have a key now.
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

// readable refuses a role whose key nobody may have now. That the target cannot be used is no reason: the key is here.
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

// prepare decides how the new key is made: beside the old one, or by the target's own rotation where that is wanted and
// yields what the role asks for.
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
	if life := r.target.Lifetime(); life > 0 { // for so long a lost key is shown
		st.NotAfter = earlier(st.NotAfter, now.Add(life))
	}
	st.InPlace = st.Current != nil && !st.Doubtful && r.record.Overlap == 0 && r.target.Caps().Rotate && sameJSON(params, st.Current.Asked)
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
	st.Next.Imported = st.InPlace && st.Current.Imported // it has its name
	return nil
}

// lost hands a key that may live to the sweeper, which finds it by name. A key that was to be replaced in place may live or
// be dead: it stays in use until a new one is made, and then everything of its name ends. That cannot be done with a name
// that others may use too.
func (r *staticRole) lost(ctx context.Context) (bool, error) {
	if r.state.InPlace {
		r.state.Doubtful = !r.state.Current.Imported && r.target != nil && r.target.Caps().Find
		return r.state.Doubtful, nil
	}
	return true, r.leaveNameToSweeper(ctx, r.state.asked(), r.state.Turn.Since)
}

// abandon hands over what may live of a rotation that nobody will take to its end, but for the name that is kept.
func (r *staticRole) abandon(ctx context.Context, kept string) error {
	h := r.state.doubted()
	if h.Name == "" || h.Name == kept {
		return nil
	}
	return r.leaveNameToSweeper(ctx, h, r.now().UTC())
}

// asked names the key that is asked for. The role may ask for other parameters by now.
func (s *staticState) asked() target.Handle { return target.Handle{Name: s.Name, Params: s.Params} }

// leaveNameToSweeper has the sweeper end whatever lives under a handle's name, once its grace since asked is over.
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

// leaveToSweeper has the sweeper end a key, with its next sweep.
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

// verify asks the target by the new key which it is, as long as the old one lives on whatever the answer.
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

// startOverlap lets keys that have a successor live on for the overlap. The overlap of those before them ends: whoever rotates
// again wants them dead, and else they would pile up.
func (r *staticRole) startOverlap(keys ...*staticKey) {
	now := r.now().UTC()
	for i := range r.state.Old {
		r.state.Old[i].Until = now
	}
	for _, k := range keys {
		r.state.Old = append(r.state.Old, oldKey{Handle: k.Handle, Expiry: k.Expiry, Until: now.Add(r.record.Overlap.duration())})
	}
}

// commit puts the new key in use. The old one lives on for the overlap, if it lives.
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
	if doubtful && was != nil { // before the last trace of its name is gone
		if err := r.leaveNameToSweeper(ctx, was.Handle, r.now().UTC()); err != nil {
			return err
		}
	}
	return r.save(ctx)
}

// retire hands over what has outlived its overlap.
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
	return r.save(ctx) // if that fails the key is owed twice, and gone the second time
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

// rotateStatic goes through all static roles. One that fails keeps no other from its turn.
func (b *engine) rotateStatic(ctx context.Context, s logical.Storage) error {
	names, err := b.staticNoun.table.list(ctx, s)
	if err != nil {
		return err
	}
	return b.tend(ctx, names, staticPrefix, "static role", func(name string) error { return b.tendStatic(ctx, s, name) })
}

// tendStatic does what is due for one static role. One without state has not been written to its end; its operator was told.
func (b *engine) tendStatic(ctx context.Context, s logical.Storage, name string) error {
	r, err := b.openStatic(ctx, s, name)
	if err != nil || r == nil || r.state == nil {
		return err
	}
	if err := r.retire(ctx); err != nil {
		return err
	}
	if r.usable() != nil { // switched off: what may live is handed over all the same
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
