// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// The engine's credential at a target is rotated by rotate. The credential in use is in the target's record; a rotation keeps
// the other one in rootStates until it is over. If the target allows two credentials at a time, the new one is tried before it
// is used, and the old one is ended after retireAfter, when no node uses it any more. Otherwise the old one is invalid as soon
// as there is a new one. If the answer with a new credential is lost, an operator must write one.
const (
	rootStates  = "rotations/"
	rootPrefix  = "target/" // precedes a target's name in nameLocks
	retireAfter = time.Minute
)

var rootTable = table[rootState]{prefix: rootStates}

// rootState is what is stored of a credential's rotations.
type rootState struct {
	Turn        turn              `json:"turn"`
	From        time.Time         `json:"from"`      // when the credential in use was written or made
	Expiry      time.Time         `json:"expiry"`    // its own end, as far as it is known; zero = none
	Old         map[string]string `json:"old"`       // the credential in use when the rotation began; kept until it is retired
	Next        map[string]string `json:"next"`      // made, but not in use yet
	NextEnd     time.Time         `json:"next_end"`  // expiry of Next; zero = none known
	RetireAt    time.Time         `json:"retire_at"` // when to end Old; zero = not
	Destination string            `json:"way"`       // the target's destination when the rotation began; "" = not recorded
}

// root is a target's credential while something is done with it; the caller holds its lock.
type root struct {
	*engine
	s      logical.Storage
	name   string
	target *openTarget
	state  *rootState
}

func (r *root) what() string                   { return fmt.Sprintf("the credential of target %q", r.name) }
func (r *root) labels() (kind, target string)  { return "credential", r.name }
func (r *root) turn() *turn                    { return &r.state.Turn }
func (r *root) event() (kind, path string)     { return eventCredentialRotated, "targets/" + r.name }
func (r *root) save(ctx context.Context) error { return rootTable.put(ctx, r.s, r.name, r.state) }

func (r *root) due() time.Time {
	if r.target.record.DisableAutomatedRotation {
		return time.Time{}
	}
	return r.target.record.due(r.state.From, r.state.Expiry, r.now())
}

// prepare keeps the old credential, to know it again. The one of the rotation before is ended first, if it may end itself.
func (r *root) prepare(ctx context.Context) error {
	switch err := r.retireNow(ctx); {
	case errors.Is(err, target.ErrDenied):
		r.giveUp(err)
	case err != nil:
		return err
	}
	r.state.Old, r.state.RetireAt = r.target.record.Credential, time.Time{}
	r.state.Destination = r.target.record.destination()
	return nil
}

// giveUp logs that a credential cannot end itself, so that an operator has to.
func (r *root) giveUp(err error) {
	r.Logger().Error("a credential that is no longer used lacks the right to end itself; end it at the target", "target", r.name, "error", err)
}

func (r *root) ask(ctx context.Context) error {
	conf, err := r.configWithInstance(ctx, r.s)
	if err != nil {
		return err
	}
	name := credentialName + conf.Instance + "-" + strings.ToLower(rand.Text())
	made, err := r.target.RotateCredential(ctx, name, r.target.record.end(r.now()))
	if err != nil {
		return err
	}
	r.state.Next, r.state.NextEnd = made.Fields, made.Expiry.UTC()
	return nil
}

func (r *root) lost(context.Context) (bool, error) { return false, nil }

// with opens the target with another credential than the one in use. If the target's destination has changed since the rotation
// began, it refuses: the credential must not be sent there, or whoever may write targets could collect it.
func (r *root) with(ctx context.Context, credential map[string]string) (*openTarget, error) {
	if destination := r.state.Destination; destination != "" && destination != r.target.record.destination() {
		return nil, fmt.Errorf("the target was changed since, so the credential is not sent there: %w", target.ErrDenied)
	}
	conf, err := r.config(ctx, r.s)
	if err != nil {
		return nil, err
	}
	record := r.target.record
	record.Credential = credential
	return r.openTarget(r.name, &record, conf, r.limiters.of(r.name, origin(record.URL), r.now))
}

// destination returns a hash of the fields that decide where and how the credential is sent: those for which
// checkSecretDestination requires it again.
func (r *targetRecord) destination() string {
	sum := sha256.New()
	for _, part := range []string{r.URL, r.CAPEM, r.ProxyURL, r.Profile, r.ClientCert} {
		fmt.Fprintf(sum, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// inUse reports whether a target's record already has the new credential: the rotation was interrupted after that, by the end
// of the process or a storage error.
func (s *rootState) inUse(record *targetRecord) bool {
	return s.Next != nil && maps.Equal(s.Next, record.Credential)
}

// taken records that what a rotation has made is in use: it is over, but for the old one, which is to be retired.
func (s *rootState) taken(now time.Time) {
	s.Turn.State, s.Turn.LastRotation, s.Next = turnIdle, now, nil
	s.From, s.Expiry, s.RetireAt = now, s.NextEnd, now.Add(retireAfter)
}

func (r *root) verify(ctx context.Context) error {
	if caps := r.target.Caps(); !caps.Retire || !caps.Check || r.state.inUse(&r.target.record) {
		return nil
	}
	t, err := r.with(ctx, r.state.Next)
	if err != nil {
		return err
	}
	defer t.Close()
	return t.Check(ctx)
}

// discard gives up a new credential that the target rejects, and ends it: it may be valid, but lack the rights to be tried.
func (r *root) discard(ctx context.Context) error {
	st := r.state
	st.Old, st.RetireAt, st.Next = st.Next, r.now().UTC(), nil
	err := r.end(ctx)
	if errors.Is(err, target.ErrDenied) {
		r.giveUp(err)
	}
	if err == nil || errors.Is(err, target.ErrDenied) {
		st.Old, st.RetireAt = nil, time.Time{}
	}
	return nil
}

// commit writes the new credential to the target's record, unless an operator has written another one there meanwhile.
func (r *root) commit(ctx context.Context) error {
	st := r.state
	replaced, err := r.swap(ctx, st.Old, st.Next)
	if err != nil {
		return err
	}
	switch {
	case !replaced:
		r.Logger().Warn("an operator wrote a credential during its rotation; the written one stays in use", "target", r.name)
		st.Turn.State, st.Old, st.Next, st.RetireAt = turnIdle, st.Next, nil, r.now().UTC()
	default:
		st.taken(r.now().UTC())
	}
	if !r.target.Caps().Retire {
		st.Old, st.RetireAt = nil, time.Time{}
	}
	return r.save(ctx)
}

// swap replaces a credential in the target's record. false: it has another one than the old and the new.
func (r *root) swap(ctx context.Context, old, next map[string]string) (bool, error) {
	r.writes.Lock()
	defer r.writes.Unlock()
	record, err := r.targetNoun.table.get(ctx, r.s, r.name)
	if err == nil && record == nil {
		err = storageError(fmt.Errorf("target %q is missing", r.name))
	}
	switch {
	case err != nil:
		return false, err
	case maps.Equal(record.Credential, next): // a process ended after this
		return true, nil
	case !maps.Equal(record.Credential, old):
		return false, nil
	}
	record.Credential = next
	defer r.targets.drop(r.name) // even after an error: the write may have been done
	return true, r.targetNoun.table.put(ctx, r.s, r.name, record)
}

// end ends the old credential at the target, unless it is in use: an operator may have written it again.
func (r *root) end(ctx context.Context) error {
	if !r.target.Caps().Retire || maps.Equal(r.state.Old, r.target.record.Credential) {
		return nil
	}
	t, err := r.with(ctx, r.state.Old)
	if err != nil {
		return err
	}
	defer t.Close()
	doubtful, err := t.RetireCredential(ctx)
	if err != nil || !doubtful || !r.target.Caps().Check {
		return err
	}
	if err := r.target.Check(ctx); err != nil {
		return refuse(reasonTargetBusy, "target %q does not take the old credential, but the one in use fails too, so the old one may live: %v", r.name, err)
	}
	return nil
}

// retireNow ends the old credential, if one is to be retired, and stores that.
func (r *root) retireNow(ctx context.Context) error {
	if r.state.RetireAt.IsZero() {
		return nil
	}
	if err := r.end(ctx); err != nil {
		return r.failedTurn(ctx, r, turnIdle, err)
	}
	r.state.Old, r.state.RetireAt = nil, time.Time{}
	r.state.Turn.NextTry, r.state.Turn.Tries, r.state.Turn.Fault = time.Time{}, 0, ""
	return r.save(ctx)
}

// openRoot loads what there is of a target's credential; nil if there is no such target, or it has no credential to rotate.
func (b *engine) openRoot(ctx context.Context, s logical.Storage, name string) (*root, error) {
	t, err := b.target(ctx, s, name)
	if err != nil || t == nil || !t.Caps().RotateRoot {
		return nil, err
	}
	state, err := rootTable.get(ctx, s, name)
	if err != nil {
		return nil, err
	}
	return &root{engine: b, s: s, name: name, target: t, state: state}, nil
}

// rotateRoots does what is due for the credentials of all targets.
func (b *engine) rotateRoots(ctx context.Context, s logical.Storage) error {
	names, err := b.targetNoun.table.list(ctx, s)
	if err != nil {
		return err
	}
	return b.tend(ctx, names, rootPrefix, "credential of target", func(name string) error { return b.tendRoot(ctx, s, name) })
}

// tendRoot does what is due for one credential. The time until its first rotation counts from when it was first seen here.
func (b *engine) tendRoot(ctx context.Context, s logical.Storage, name string) error {
	record, err := b.targetNoun.table.get(ctx, s, name)
	if err != nil || record == nil {
		return err
	}
	state, err := rootTable.get(ctx, s, name)
	if err != nil || !record.set() && (state == nil || state.Turn.State == turnIdle && state.RetireAt.IsZero()) {
		return err // nothing to do, so errors of the target do not matter
	}
	r, err := b.openRoot(ctx, s, name)
	if err != nil || r == nil {
		return err
	}
	now := b.now().UTC()
	if r.state == nil {
		r.state = &rootState{From: now}
		return r.save(ctx)
	}
	st := r.state
	if st.Turn.State == turnIdle && !st.RetireAt.IsZero() && !now.Before(st.RetireAt) && !putOff(st.Turn.NextTry, now) {
		if err := r.retireNow(ctx); err != nil {
			return err
		}
	}
	if st.Turn.State == turnIdle && (!record.Enabled || record.DeletedUntil != nil) || !st.Turn.isDue(r.due(), now) {
		return nil
	}
	return b.rotate(ctx, r)
}

// beforeTarget completes the record of an interrupted rotation whose new credential is already in use, before an operator's
// write replaces that credential: afterwards it could not be known that the old one must still be ended. It neither calls nor
// opens the target, because the write may be meant to repair just that.
func (b *engine) beforeTarget(ctx context.Context, s logical.Storage, _ *targetRecord, d *framework.FieldData) error {
	if _, given := d.GetOk("credential"); !given {
		return nil
	}
	name := d.Get("name").(string)
	if state, err := b.cutOff(ctx, s, name); err != nil || state == nil { // the usual case needs no lock
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, rotateTimeout)
	defer cancel()
	release, err := b.nameLocks.take(ctx, rootPrefix+name)
	if err != nil {
		return err
	}
	defer release()
	state, err := b.cutOff(ctx, s, name)
	if err != nil || state == nil {
		return err
	}
	state.taken(b.now().UTC())
	r := &root{engine: b, s: s, name: name, state: state}
	if err := r.save(ctx); err != nil {
		return err
	}
	b.sendRotated(ctx, r)
	return nil
}

// cutOff returns what is stored of a rotation that ended before it was recorded that its credential is in use; nil if none did.
func (b *engine) cutOff(ctx context.Context, s logical.Storage, name string) (*rootState, error) {
	state, err := rootTable.get(ctx, s, name)
	if err != nil || state == nil {
		return nil, err
	}
	record, err := b.targetNoun.table.get(ctx, s, name)
	if err != nil || record == nil || !state.inUse(record) {
		return nil, err
	}
	return state, nil
}

// savedTarget resets the state of rotations after an operator has written a credential: the state unknown is over. A credential
// that a rotation has made or replaced, and not ended yet, is still to be ended.
func (b *engine) savedTarget(ctx context.Context, s logical.Storage, name string, d *framework.FieldData) ([]string, error) {
	if _, given := d.GetOk("credential"); !given {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, rotateTimeout)
	defer cancel()
	release, err := b.nameLocks.take(ctx, rootPrefix+name)
	if err != nil {
		return nil, err
	}
	defer release()
	r, err := b.openRoot(ctx, s, name)
	if err != nil || r == nil {
		return nil, err
	}
	now := b.now().UTC()
	state := rootState{From: now}
	was := r.state
	if was == nil {
		return nil, rootTable.put(ctx, s, name, &state)
	}
	switch {
	case was.Next != nil:
		state.Old, state.RetireAt, state.Destination = was.Next, now, was.Destination
	case !was.RetireAt.IsZero():
		state.Old, state.RetireAt, state.Destination = was.Old, was.RetireAt, was.Destination
	}
	var warnings []string
	if !was.Turn.LastRotation.IsZero() || was.Turn.State == turnUnknown { // the written credential replaces one that only the engine knew
		warnings = []string{"a credential that the engine made may live on at the target, where its name begins with " + credentialName + ": end it there"}
	}
	return warnings, rootTable.put(ctx, s, name, &state)
}

// view returns the state of a credential's rotations as operators read it; nil if there is none.
func (r *root) view() map[string]any {
	if r.state == nil {
		return nil
	}
	known := r.state.Turn.view(r.due())
	known["expires_at"], known["retiring"] = timeOrNil(r.state.Expiry), !r.state.RetireAt.IsZero()
	return known
}
