// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// maxRevocations bounds the records that are kept: the oldest that has ended makes room.
const maxRevocations = 100

func (b *engine) revocationPaths() []*framework.Path {
	display := func(verb, suffix string) *framework.DisplayAttributes {
		return &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: verb, OperationSuffix: suffix}
	}
	fields := filterFields(pagination())
	fields["dry_run"] = &framework.FieldSchema{Type: framework.TypeBool, Default: true, Description: "true (default): only tell what would be revoked. false: revoke."}
	fields["block"] = &framework.FieldSchema{Type: framework.TypeBool, Default: true, Description: "Write a block for the same filter first, so that nothing new is issued or renewed (default true)."}
	fields["include_unrecorded"] = &framework.FieldSchema{Type: framework.TypeBool, Description: "Revoke also keys that the filter cannot judge, because a claim that it names, or when they were issued, was not recorded with them (default false)."}
	id := map[string]*framework.FieldSchema{"id": {Type: framework.TypeString, Required: true, Description: "Id of the revocation, as its start returned and list shows it."}}
	return []*framework.Path{{
		Pattern: "revocations/?$",
		Fields:  fields,
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{Callback: b.handle(b.revokeByFilter), Summary: "Tell which keys a filter matches (dry_run, the default), or revoke them.", DisplayAttrs: display("start", "revocation"), ForwardPerformanceStandby: true},
			logical.ListOperation:   &framework.PathOperation{Callback: b.handle(b.listRevocations), Summary: "List the ids of revocations, oldest first.", DisplayAttrs: display("list", "revocations")},
		},
		HelpSynopsis: "Revoke keys by role, target, subject, issuer, claim and the like.",
		HelpDescription: "A revocation ends every key that its filter matches and that was asked for before; all conditions that are given must match, and one that gives none is refused. " +
			"A dry run answers matched, unrecorded (keys that it cannot judge, because a claim, or when they were issued, was not recorded with them), unreadable (records of the ledger that cannot be read: nothing is known of their keys), exposed (of those matched, the ones whose target cannot revoke) and prefixes (of the leases concerned, for vault lease revoke -prefix). " +
			"With dry_run=false it starts, and answers its id: first a block for the same filter stands, then it goes through the ledger in the background, target by target at once, also after a restart or failover. " +
			"The ledger is that of the cluster that is asked. Vault's leases of the keys end by themselves later, harmlessly.",
	}, {
		Pattern: "revocations/(?P<id>[^/]+)$",
		Fields:  id,
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   &framework.PathOperation{Callback: b.handle(b.readRevocation), Summary: "Read how far a revocation is.", DisplayAttrs: display("read", "revocation"), ForwardPerformanceStandby: true},
			logical.DeleteOperation: &framework.PathOperation{Callback: b.handle(b.deleteRevocation), Summary: "Stop a revocation, or delete the record of one that has ended. Its block stays.", DisplayAttrs: display("delete", "revocation"), ForwardPerformanceStandby: true},
		},
		HelpSynopsis: "Read how far a revocation is, or stop it.",
		HelpDescription: "state is running, waiting (all was tried; debt is what could not be revoked yet, which the sweeper goes on trying, and unreadable are records of the ledger that an operator must mend or take out first), done or stopped. " +
			"matched is revoked, debt and exposed together: revoked live no more, debt must die and does not yet, exposed cannot be revoked and lives until it expires. exposed_until is when the last of debt and exposed has ended by itself; null if none is left, or if one never does. " +
			"Deleting one that has not ended stops it: what is revoked or owed stays so. Deleting it again removes the record. The block that it wrote stays until it is deleted.",
	}}
}

func (b *engine) revokeByFilter(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	for _, field := range slices.Sorted(maps.Keys(d.Raw)) {
		if d.Raw[field] == nil {
			return nil, badField(field, "null is refused; leave the field out")
		}
		if field == "after" || field == "limit" {
			return nil, badField(field, "is for lists; a revocation takes every key that its filter matches")
		}
	}
	f, err := parseFilter(d)
	switch {
	case err != nil:
		return nil, err
	case f.empty():
		return nil, badField("role", "the filter is empty and would revoke every key; give a condition")
	}
	warnings := append(b.unknownNames(ctx, req.Storage, f), b.untouched(ctx, req.Storage, f)...)
	rec := &revocation{Filter: *f, IncludeUnrecorded: d.Get("include_unrecorded").(bool), State: runRunning, StartedAt: b.now().UTC()}
	if d.Get("dry_run").(bool) {
		if err := b.dryRun(ctx, req.Storage, rec); err != nil {
			return nil, err
		}
		data := rec.view(req.MountPoint)
		maps.DeleteFunc(data, func(name string, _ any) bool {
			return !slices.Contains([]string{"filter", "include_unrecorded", "matched", "unrecorded", "unreadable", "exposed", "exposed_until", "prefixes"}, name)
		})
		data["dry_run"] = true
		return &logical.Response{Data: data, Warnings: append(warnings, rec.warnings()...)}, nil
	}
	id, err := b.startRevocation(ctx, req.Storage, rec, d.Get("block").(bool))
	if err != nil {
		return nil, err
	}
	resp, err := b.shown(ctx, req, id)
	if resp != nil {
		resp.Warnings = append(warnings, resp.Warnings...)
	}
	return resp, err
}

// untouched warns of keys at a filter's target that no revocation ends. What cannot be read keeps no revocation from starting.
func (b *engine) untouched(ctx context.Context, s logical.Storage, f *filter) []string {
	if f.Target == "" {
		return nil
	}
	shared, err := users(ctx, s, b.staticNoun.table, "static role", func(r *staticRecord) bool { return r.Target == f.Target })
	switch {
	case err != nil:
		b.Logger().Error("looking for static roles of a revocation's target", "target", f.Target, "error", err)
		return []string{"static roles could not be looked at: the keys of those that have this target live on"}
	case len(shared) == 0:
		return nil
	}
	return []string{"the keys of static roles live on: rotate or disable " + strings.Join(shared, ", ")}
}

// dryRun counts what a revocation would end.
func (b *engine) dryRun(ctx context.Context, s logical.Storage, rec *revocation) error {
	bad, err := b.ledger.scan(ctx, s, &rec.Filter, "", func(e *entry, v verdict) bool {
		switch {
		case rec.means(e, v):
			rec.Matched++
			rec.addPrefix(e)
			if !e.Revocable {
				rec.countLeft(e)
			}
		case v == unjudged:
			rec.Unrecorded++
		}
		return true
	})
	rec.Unreadable, rec.Unread = bad.n, bad.name
	return err
}

// startRevocation writes the block, then the record, and lets the work begin: in this order, so that whatever is decided
// after the ledger is looked at is refused.
func (b *engine) startRevocation(ctx context.Context, s logical.Storage, rec *revocation, blocks bool) (id string, err error) {
	id = rec.StartedAt.Format("20060102t150405") + "-" + strings.ToLower(rand.Text()[:8])
	if err := b.makeRoom(ctx, s); err != nil {
		return "", err
	}
	if blocks {
		rec.Block = "revocation-" + id
		if err := b.standBlock(ctx, s, rec.Block, &blockRecord{filter: rec.Filter, Reason: "revocation " + id, CustomMetadata: map[string]string{}}); err != nil {
			return "", err
		}
	}
	rec.StartedAt = b.now().UTC() // anew: what was asked for until the block stood is meant
	if err := revocationTable.put(ctx, s, id, rec); err != nil {
		return "", err
	}
	b.Logger().Info("a revocation starts", "revocation", id, "block", rec.Block)
	b.sendRevocationEvent(ctx, id, "start", &rec.census)
	return id, b.work(ctx, s, id)
}

// standBlock writes a block that takes effect before it returns.
func (b *engine) standBlock(ctx context.Context, s logical.Storage, name string, record *blockRecord) error {
	if !b.WriteSafeReplicationState() {
		return badField("block", "blocks are written on the primary cluster; write one there, and start here with block=false")
	}
	b.writes.Lock()
	defer b.writes.Unlock()
	if _, err := b.checkBlock(ctx, s, name, record, nil, nil); err != nil {
		return err
	}
	defer b.blockNoun.changed(name)
	return b.blockNoun.table.put(ctx, s, name, record)
}

// makeRoom deletes the oldest records that are too many, of those that have ended.
func (b *engine) makeRoom(ctx context.Context, s logical.Storage) error {
	ids, err := revocationTable.list(ctx, s)
	if err != nil {
		return err
	}
	over := len(ids) + 1 - maxRevocations
	for _, id := range slices.Sorted(slices.Values(ids)) {
		if over <= 0 {
			return nil
		}
		rec, err := revocationTable.get(ctx, s, id)
		switch {
		case err != nil:
			return err
		case rec != nil && !rec.over():
			continue
		}
		if err := revocationTable.delete(ctx, s, id); err != nil {
			return err
		}
		over--
	}
	if over > 0 {
		return badField("dry_run", "%d revocations have not ended, and no more are allowed; stop one", maxRevocations)
	}
	return nil
}

func (b *engine) listRevocations(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	ids, err := revocationTable.list(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	return logical.ListResponse(page(ids, d.Get("after").(string), d.Get("limit").(int))), nil
}

func (b *engine) readRevocation(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	return b.shown(ctx, req, d.Get("id").(string))
}

// shown answers with a revocation as it now is, or with nothing if there is none.
func (b *engine) shown(ctx context.Context, req *logical.Request, id string) (*logical.Response, error) {
	rec, err := b.revocation(ctx, req.Storage, id)
	if err != nil || rec == nil {
		return nil, err
	}
	data := rec.view(req.MountPoint)
	data["id"] = id
	return &logical.Response{Data: data, Warnings: rec.warnings()}, nil
}

// warnings says what the counts leave out.
func (c *census) warnings() []string {
	if c.Unreadable == 0 {
		return nil
	}
	return []string{warnUnread(c.Unreadable, c.Unread)}
}

// revocation returns a record as whoever works on it has it, or as it is stored.
func (b *engine) revocation(ctx context.Context, s logical.Storage, id string) (*revocation, error) {
	b.runs.mu.Lock()
	defer b.runs.mu.Unlock()
	r := b.runs.active[id]
	if r == nil {
		return revocationTable.get(ctx, s, id)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.rec
	rec.Prefixes = slices.Clone(rec.Prefixes)
	return &rec, nil
}

func (b *engine) deleteRevocation(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	id := d.Get("id").(string)
	if err := checkName("id", id); err != nil {
		return nil, err
	}
	stopped, err := b.endRevocation(ctx, req.Storage, id)
	if err != nil || stopped == nil {
		return nil, err
	}
	b.sendRevocationEvent(ctx, id, runStopped, &stopped.census)
	resp := &logical.Response{}
	resp.AddWarning("the revocation was stopped: what it has revoked or owes stays so, and its block stands. Delete it again to remove its record")
	return resp, nil
}

// endRevocation stops a revocation and returns its record, or removes that of one which is over.
func (b *engine) endRevocation(ctx context.Context, s logical.Storage, id string) (stopped *revocation, err error) {
	b.runs.mu.Lock() // nobody begins to work on it meanwhile
	defer b.runs.mu.Unlock()
	if r := b.runs.active[id]; r != nil {
		return r.halt(ctx)
	}
	rec, err := revocationTable.get(ctx, s, id)
	switch {
	case err != nil || rec == nil:
		return nil, err
	case rec.over():
		return nil, revocationTable.delete(ctx, s, id)
	}
	rec.State, rec.FinishedAt = runStopped, b.now().UTC()
	return rec, revocationTable.put(ctx, s, id, rec)
}

// view is a revocation as readers see it.
func (r *revocation) view(mount string) map[string]any {
	data := map[string]any{
		"filter": r.Filter.given(), "include_unrecorded": r.IncludeUnrecorded, "block": r.Block, "state": r.State,
		"started_at": timeOrNil(r.StartedAt), "finished_at": timeOrNil(r.FinishedAt),
		"matched": r.Matched, "unrecorded": r.Unrecorded, "unreadable": r.Unreadable, "revoked": r.Revoked, "debt": r.Debt, "exposed": r.Exposed, "exposed_until": nil,
	}
	if !r.Endless {
		data["exposed_until"] = timeOrNil(r.Until)
	}
	prefixes := make([]string, 0, len(r.Prefixes))
	for _, prefix := range r.Prefixes {
		prefixes = append(prefixes, mount+prefix)
	}
	data["prefixes"] = prefixes
	return data
}
