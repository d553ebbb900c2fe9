// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// removeTarget is the remove of the target noun: it refuses to delete a target that something needs. With force=true the
// record of a target that keys need becomes a tombstone: it is hidden, and kept until the latest time at which a key there
// can end, because revoking keys needs its address and credential.
func (b *engine) removeTarget(ctx context.Context, s logical.Storage, name string, record *targetRecord, d *framework.FieldData) ([]string, bool, error) {
	found, err := users(ctx, s, b.roleNoun.table, "role", func(r *roleRecord) bool { return r.Target == name })
	if err != nil || len(found) > 0 {
		return found, false, err
	}
	force := d.Get("force").(bool)
	if root, err := rootTable.get(ctx, s, name); err != nil {
		return nil, false, err
	} else if root != nil && (root.Turn.State == turnAsking || root.Turn.State == turnMade || !root.RetireAt.IsZero() && !force) {
		return []string{"a rotation of its credential that is not finished; see status"}, false, nil
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

// buryTargets deletes the tombstones of targets that no key needs any more. It asks the ledger, because it is not enough that
// the latest end of the keys has passed: the sweeper, which ends them then, may not have reached them yet.
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
		if last, err := b.ledger.lastEnd(name); err != nil || !last.IsZero() { // the ledger is not counted yet, or keys need the target
			continue
		}
		if err := b.bury(ctx, s, name); err != nil {
			return err
		}
	}
	return nil
}

// bury deletes one tombstone, unless a new target was written in its place.
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
