// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// removeTarget refuses to delete a target that something needs. With force its record stays, hidden, until the latest end
// that a key there can have: revoking them needs its address and credential.
func (b *engine) removeTarget(ctx context.Context, s logical.Storage, name string, record *targetRecord, d *framework.FieldData) ([]string, bool, error) {
	found, err := users(ctx, s, b.roleNoun.table, "role", func(r *roleRecord) bool { return r.Target == name })
	if err != nil || len(found) > 0 {
		return found, false, err
	}
	force := d.Get("force").(bool)
	if root, err := rootTable.get(ctx, s, name); err != nil {
		return nil, false, err
	} else if root != nil && (root.Turn.State == turnAsking || root.Turn.State == turnMade || !root.RetireAt.IsZero() && !force) {
		return []string{"a rotation of its credential, which is not over; see status"}, false, nil
	}
	found, err = users(ctx, s, b.staticNoun.table, "static role", func(r *staticRecord) bool { return r.Target == name })
	if err != nil || len(found) > 0 {
		return found, false, err
	}
	until, err := b.ledger.lastEnd(name)
	switch {
	case err != nil:
		return nil, false, err
	case until.IsZero():
		b.meters.forget(name)
		b.limiters.forget(name)
		return nil, false, rootTable.delete(ctx, s, name)
	case !force:
		return []string{"keys that live there; revoke them first, or add force=true to keep what revoking them needs"}, false, nil
	}
	record.DeletedUntil = &until
	return nil, true, b.targetNoun.table.put(ctx, s, name, record)
}

// buryTargets deletes the tombstones of targets that no key needs any more. That a key's end has passed is not enough: a sweep
// may not have come to it yet, and it is the sweep that ends it.
func (b *engine) buryTargets(ctx context.Context, s logical.Storage) error {
	all, err := b.targetNoun.table.list(ctx, s)
	if err != nil {
		return err
	}
	for _, name := range all {
		record, err := b.targetNoun.table.get(ctx, s, name)
		if err != nil {
			return err
		}
		if record == nil || record.DeletedUntil == nil || b.now().Before(record.DeletedUntil.Add(time.Hour)) {
			continue
		}
		if last, err := b.ledger.lastEnd(name); err != nil || !last.IsZero() { // not counted yet, or needed
			continue
		}
		if err := b.bury(ctx, s, name); err != nil {
			return err
		}
	}
	return nil
}

func (b *engine) bury(ctx context.Context, s logical.Storage, name string) error {
	b.writes.Lock()
	defer b.writes.Unlock()
	record, err := b.targetNoun.table.get(ctx, s, name)
	if err != nil || record == nil || record.DeletedUntil == nil { // written anew meanwhile
		return err
	}
	defer b.meters.forget(name)
	defer b.limiters.forget(name)
	defer b.targets.drop(name)
	if err := rootTable.delete(ctx, s, name); err != nil {
		return err
	}
	return b.targetNoun.table.delete(ctx, s, name)
}
