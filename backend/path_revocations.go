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

const maxRevocations = 100 // records kept; a new revocation deletes the oldest that have ended

func (b *engine) revocationPaths() []*framework.Path {
	display := func(verb, suffix string) *framework.DisplayAttributes {
		return &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: verb, OperationSuffix: suffix}
	}
	fields := filterFields(pagination())
	fields["dry_run"] = &framework.FieldSchema{Type: framework.TypeBool, Default: true, Description: "true (default): only report what would be revoked. false: revoke."}
	fields["block"] = &framework.FieldSchema{Type: framework.TypeBool, Default: true, Description: "First write a block with the same filter, so that no more matching keys are issued or renewed (default true)."}
	fields["include_unrecorded"] = &framework.FieldSchema{Type: framework.TypeBool, Description: "Also revoke keys that the filter cannot judge, because a claim that it names, or their time of issue, was not recorded (default false)."}
	id := map[string]*framework.FieldSchema{"id": {Type: framework.TypeString, Required: true, Description: "Id of the revocation, as returned at its start and by list."}}
	return []*framework.Path{{
		Pattern: "revocations/?$",
		Fields:  fields,
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{Callback: b.handle(b.revokeByFilter), Summary: "Report which keys a filter matches (dry_run, the default), or revoke them.", DisplayAttrs: display("start", "revocation"), ForwardPerformanceStandby: true},
			logical.ListOperation:   &framework.PathOperation{Callback: b.handle(b.listRevocations), Summary: "List the ids of revocations, oldest first.", DisplayAttrs: display("list", "revocations")},
		},
		HelpSynopsis: "Revoke keys by role, target, subject, issuer, claim and the like.",
		HelpDescription: "A revocation ends every key that its filter matches and that was requested before the revocation started. All conditions that are given must match, and a filter without conditions is refused. " +
			"A dry run answers matched, unrecorded (keys that it cannot judge, because a claim, or their time of issue, was not recorded), unreadable (records of the ledger that cannot be read, so that nothing is known about their keys), exposed (matched keys whose target cannot revoke) and prefixes (of the leases concerned, for vault lease revoke -prefix). " +
			"With dry_run=false the revocation starts and answers its id. It first writes a block with the same filter, then goes through the ledger in the background, with all targets in parallel. It continues after a restart or failover. " +
			"It covers the ledger of the cluster that serves the request. The keys' leases stay until they end; ending them is then harmless.",
	}, {
		Pattern: "revocations/(?P<id>[^/]+)$",
		Fields:  id,
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   &framework.PathOperation{Callback: b.handle(b.readRevocation), Summary: "Read the progress of a revocation.", DisplayAttrs: display("read", "revocation"), ForwardPerformanceStandby: true},
			logical.DeleteOperation: &framework.PathOperation{Callback: b.handle(b.deleteRevocation), Summary: "Stop a revocation, or delete the record of one that has ended. Its block stays.", DisplayAttrs: display("delete", "revocation"), ForwardPerformanceStandby: true},
		},
		HelpSynopsis: "Read the progress of a revocation, or stop it.",
		HelpDescription: "state is running, waiting (every key was tried; the sweeper retries those that could not be revoked, and an operator must first repair or remove the records of the ledger that are unreadable), done or stopped. " +
			"matched is the sum of revoked, debt (keys that could not be revoked yet) and exposed (keys that cannot be revoked and stay valid until they expire). exposed_until is when the last key of debt and exposed expires; null if there is none, or if one never expires. A matched key whose record became unreadable later is in none of them. " +
			"Deleting a revocation that has not ended stops it: keys that were revoked stay revoked, debts stay debts. Deleting it again removes the record. The block that it wrote stays until it is deleted.",
	}}
}

func (b *engine) revokeByFilter(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	for _, field := range slices.Sorted(maps.Keys(d.Raw)) {
		if d.Raw[field] == nil {
			return nil, badField(field, "null is refused; leave the field out")
		}
		if field == "after" || field == "limit" {
			return nil, badField(field, "is only for lists; a revocation covers every key that its filter matches")
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

// untouched warns of keys of static roles at the filter's target, which no revocation ends. An error becomes a warning too: it
// must not prevent a revocation.
func (b *engine) untouched(ctx context.Context, s logical.Storage, f *filter) []string {
	if f.Target == "" {
		return nil
	}
	shared, err := users(ctx, s, b.staticNoun.table, "static role", func(r *staticRecord) bool { return r.Target == f.Target })
	switch {
	case err != nil:
		b.Logger().Error("looking for static roles of a revocation's target", "target", f.Target, "error", err)
		return []string{"static roles could not be read: keys of static roles of this target are not revoked"}
	case len(shared) == 0:
		return nil
	}
	return []string{"keys of static roles are not revoked: rotate or disable " + strings.Join(shared, ", ")}
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
	rec.Unreadable, rec.Unread = bad.n, bad.names
	return err
}

// startRevocation writes the block, then the record, and starts the work. The order matters: once the ledger is scanned, the
// block must refuse every key that is not in it yet.
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
	rec.StartedAt = b.now().UTC() // again: the revocation covers keys requested until the block took effect
	if err := revocationTable.put(ctx, s, id, rec); err != nil {
		return "", err
	}
	b.Logger().Info("a revocation starts", "revocation", id, "block", rec.Block)
	b.sendRevocationEvent(ctx, id, "start", &rec.census)
	return id, b.work(ctx, s, id)
}

// standBlock writes a block, which is in effect when it returns.
func (b *engine) standBlock(ctx context.Context, s logical.Storage, name string, record *blockRecord) error {
	if !b.WriteSafeReplicationState() {
		return badField("block", "blocks can be written only on the primary cluster; write one there, then start here with block=false")
	}
	b.writes.Lock()
	defer b.writes.Unlock()
	if _, err := b.checkBlock(ctx, s, name, record, nil, nil); err != nil {
		return err
	}
	defer b.blockNoun.changed(name)
	return b.blockNoun.table.put(ctx, s, name, record)
}

// makeRoom deletes as many of the oldest ended revocations as are above the limit.
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
		return badField("dry_run", "%d revocations have not ended, which is the limit; stop one", maxRevocations)
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

// shown answers with the present state of a revocation, or with nothing if there is none.
func (b *engine) shown(ctx context.Context, req *logical.Request, id string) (*logical.Response, error) {
	rec, err := b.revocation(ctx, req.Storage, id)
	if err != nil || rec == nil {
		return nil, err
	}
	data := rec.view(req.MountPoint)
	data["id"] = id
	return &logical.Response{Data: data, Warnings: rec.warnings()}, nil
}

// warnings says what the counts do not include.
func (c *census) warnings() []string {
	if c.Unreadable == 0 {
		return nil
	}
	return []string{warnUnread(c.Unreadable, c.Unread)}
}

// revocation returns the record of a revocation: from the run that works on it, whose counts are newer, or else from storage.
// nil if there is none.
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
	resp.AddWarning("the revocation was stopped: revoked keys stay revoked, debts and its block remain. Delete it again to remove its record")
	return resp, nil
}

// endRevocation stops a revocation and returns its record. If the revocation has ended before, it deletes the record and
// returns nil.
func (b *engine) endRevocation(ctx context.Context, s logical.Storage, id string) (stopped *revocation, err error) {
	b.runs.mu.Lock() // so that no run of it starts meanwhile
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

// view returns a revocation as operators read it. mount precedes the lease prefixes.
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
