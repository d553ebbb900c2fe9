// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// imported returns the key that the request imports; nil if it imports none. It asks the target to identify the key, and
// checks that the role's parameters find it, because they are needed to revoke it.
func (b *engine) imported(ctx context.Context, s logical.Storage, record *staticRecord, d *framework.FieldData) (*staticKey, error) {
	value, given := d.GetOk("import")
	if !given {
		return nil, nil
	}
	t, err := b.target(ctx, s, record.Target)
	if err != nil || t == nil {
		return nil, err
	}
	if caps := t.Caps(); !caps.Identify || !caps.Find {
		return nil, badField("import", "target %q cannot identify keys; leave import out to have a new key made", record.Target)
	}
	params, err := t.Params(record.Parameters)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, rotateTimeout)
	defer cancel()
	key, err := t.Identify(ctx, value.(string), params)
	if errors.Is(err, target.ErrDenied) || errors.Is(err, target.ErrParameter) {
		return nil, badField("import", "the target does not accept it as a key")
	}
	if err != nil {
		return nil, asked(err)
	}
	found, err := t.Find(ctx, key.Handle)
	if err != nil {
		return nil, asked(err)
	}
	if !slices.ContainsFunc(found, func(h target.Handle) bool { return h.Accessor == key.Handle.Accessor }) {
		return nil, badField("import", "the target accepts it, but it is not one of the keys that parameters name")
	}
	if err := b.unclaimed(ctx, s, d.Get("name").(string), t, key); err != nil {
		return nil, err
	}
	made := newStaticKey(key, params)
	made.Imported = true
	return made, nil
}

// unclaimed refuses to import a key that something else in this mount has, or may end.
func (b *engine) unclaimed(ctx context.Context, s logical.Storage, name string, t *openTarget, key target.Key) error {
	for _, value := range t.record.Credential {
		if value == key.Secret {
			return badField("import", "it is the engine's own credential at the target")
		}
	}
	if strings.HasPrefix(key.Handle.Name, leasedName) { // of whatever instance
		return badField("import", "it was made for a lease, which will end it")
	}
	// What a static role lets go is owed before its state no longer has it: read in this order, it is met.
	holders, err := users(ctx, s, b.staticNoun.table, "static role", func(r *staticRecord) bool { return r.Target == t.name })
	if err != nil {
		return err
	}
	for _, holder := range holders {
		other, _ := strings.CutPrefix(holder, "static role ")
		state, err := staticTable.get(ctx, s, other)
		if err != nil {
			return err
		}
		if other != name && state != nil && state.has(key.Handle) {
			return badField("import", "static role %q has it, or may end it", other)
		}
	}
	owed := false
	bad, err := b.ledger.eachOpen(ctx, s, func(e *entry) (bool, error) {
		sought := e.State == statePending && e.Name == key.Handle.Name // all that is found under it is ended
		owed = e.Target == t.name && (sought || e.Accessor == key.Accessor)
		return !owed, nil
	})
	if owed {
		return badField("import", "it is about to be revoked")
	}
	return cmp.Or(err, bad.err())
}

// adopt puts an imported key in use. A key that it replaces is retired as after a rotation.
func (r *staticRole) adopt(ctx context.Context, key *staticKey) error {
	st := r.state
	if err := r.abandon(ctx, key.Handle.Name); err != nil {
		return err
	}
	var replaced []*staticKey
	for _, was := range []*staticKey{st.Current, st.Next} {
		if was != nil && was.Accessor != key.Accessor {
			replaced = append(replaced, was)
		}
	}
	st.Old = slices.DeleteFunc(st.Old, func(k oldKey) bool { return k.Handle.Accessor == key.Handle.Accessor }) // it is in use again
	if len(replaced) > 0 {
		r.startOverlap(replaced...)
	}
	if st.Current != nil && st.Current.Accessor != key.Accessor {
		st.Predecessor = st.Current.Accessor
	}
	st.Current, st.Next, st.Doubtful, st.Turn = key, nil, false, turn{LastRotation: r.now().UTC()}
	return r.save(ctx)
}
