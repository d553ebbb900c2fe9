// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// blockRecord refuses issue and renew for every subject and key that its filter matches.
type blockRecord struct {
	filter
	Reason         string            `json:"reason"`
	ExpiresAt      *time.Time        `json:"expires_at"`
	Description    string            `json:"description"`
	CustomMetadata map[string]string `json:"custom_metadata"`
}

// block is a block as the engine uses it.
type block struct {
	blockRecord
	name string
}

const maxBlocks = 1000 // every issue and renewal compares all of them

var blockFields = described(filterFields(map[string]*framework.FieldSchema{
	"reason":     {Type: framework.TypeString, Description: "Why, for other operators; callers are not told."},
	"expires_at": {Type: framework.TypeTime, Description: "When the block ends (RFC 3339); default never."},
}))

func (b *engine) newBlockNoun() noun[blockRecord] {
	return noun[blockRecord]{
		table: table[blockRecord]{prefix: "blocks/", defaults: func() blockRecord {
			return blockRecord{filter: filter{Claim: map[string]string{}}, CustomMetadata: map[string]string{}}
		}},
		what:   "block",
		suffix: "block",
		plural: "blocks",
		help: "A block refuses issue and renew for every subject that its filter matches, from the next request on; all conditions that are given must match. " +
			"It does not end keys: revoke those too. A renewal is also refused if a block cannot judge it, because a claim was not recorded with the key.",
		fields: blockFields,
		check:  b.checkBlock,
		clear: func(field string) bool {
			return slices.Contains([]string{"reason", "expires_at", "description", "custom_metadata"}, field)
		},
		remove: func(context.Context, logical.Storage, string, *blockRecord, *framework.FieldData) ([]string, bool, error) {
			return nil, false, nil
		},
		changed: func(string) { b.blocks.clear() },
	}
}

func (b *engine) checkBlock(ctx context.Context, s logical.Storage, _ string, record, old *blockRecord, d *framework.FieldData) ([]string, error) {
	if record.empty() {
		return nil, badField("subject", "the filter is empty and would block everybody; give a condition, or switch roles off by enabled=false")
	}
	if d != nil { // nil: the block of a revocation, whose filter was checked before
		if err := record.check(d.Raw); err != nil {
			return nil, err
		}
	}
	warnings := b.unknownNames(ctx, s, &record.filter)
	if record.ExpiresAt != nil && !b.now().Before(*record.ExpiresAt) {
		warnings = append(warnings, "expires_at has passed: the block refuses nobody")
	}
	if old != nil {
		return warnings, nil
	}
	all, err := b.blockNoun.table.list(ctx, s)
	if err != nil {
		return nil, err
	}
	if len(all) >= maxBlocks {
		return nil, badField("name", "there are already %d blocks, which is the limit; delete those that have ended", maxBlocks)
	}
	return warnings, nil
}

// unblocked refuses if a block matches e or cannot judge it. e may be a ledger entry or a draft of one.
func (b *engine) unblocked(ctx context.Context, s logical.Storage, e *entry) error {
	blocks, _, err := b.blocks.get("", func() ([]block, bool, error) { return b.loadBlocks(ctx, s) })
	if err != nil {
		return err
	}
	for i := range blocks {
		if blocks[i].ExpiresAt != nil && !b.now().Before(*blocks[i].ExpiresAt) {
			continue
		}
		if blocks[i].judge(e) != unmatched {
			return refuse(reasonBlocked, "block %q", blocks[i].name)
		}
	}
	return nil
}

func (b *engine) loadBlocks(ctx context.Context, s logical.Storage) ([]block, bool, error) {
	names, err := b.blockNoun.table.list(ctx, s)
	if err != nil {
		return nil, false, err
	}
	blocks := []block{}
	for _, name := range names {
		record, err := b.blockNoun.table.get(ctx, s, name)
		if err != nil {
			return nil, false, err
		}
		if record != nil {
			blocks = append(blocks, block{*record, name})
		}
	}
	return blocks, true, nil
}
