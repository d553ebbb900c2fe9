// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

const reconcileTimeout = 75 * time.Second // for one request; Vault's own limit is 90 seconds

func (b *engine) reconcilePath() *framework.Path {
	display := func(verb string) *framework.DisplayAttributes {
		return &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: verb, OperationSuffix: "lost-keys"}
	}
	return &framework.Path{
		Pattern: "reconcile/(?P<target>[^/]+)$",
		Fields: map[string]*framework.FieldSchema{
			"target":     {Type: framework.TypeString, Required: true, Description: "Target to search."},
			"parameters": {Type: framework.TypeMap, Description: "Search only the place at the target that these parameters name (an owner, a project …). Needed for roles that let callers choose the place. Default: the places that roles name, and those of keys in the ledger."},
			"confirm":    {Type: framework.TypeInt, Description: "Revoke the keys found, if their number still is this: the count of a dry run. Default: only report."},
			"instance":   {Type: framework.TypeString, Description: "With confirm: this mount's instance, as a dry run reports it."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{
				Callback: b.handle(b.reconcile), Summary: "Report which keys of this mount exist at a target but not in the ledger.", DisplayAttrs: display("find"), ForwardPerformanceStandby: true,
			},
			logical.UpdateOperation: &framework.PathOperation{
				Callback: b.handle(b.reconcile), Summary: "Report which keys of this mount exist at a target but not in the ledger, or revoke them (confirm and instance).", DisplayAttrs: display("revoke"), ForwardPerformanceStandby: true,
			},
		},
		HelpSynopsis: "After a restore: find and revoke keys that exist at a target but not in the ledger.",
		HelpDescription: "A Vault that was restored from an older snapshot does not know the keys that were issued after the snapshot: no lease and no sweep ends them. Reconcile finds them at the target by their names, which contain this mount's instance. Keys of static roles, the engine's credential, keys of other instances and keys in the ledger are never included. " +
			"A read, or a write without confirm, changes nothing. It answers count, keys (500 at most), the places at the target that were searched, each with its state, and open_roles: roles whose callers may have keys in other places (give those as parameters). whole is false if there may be more keys than were found. " +
			"It also reports what else a restore rolls back. credential: whether the target accepts the engine's. static_keys: whether the target knows the present key of each static role. static_strays: keys of static roles that exist but that no static role has, perhaps because it was deleted. replay_seconds: how long after the restore tokens that were used since the snapshot can be presented again. " +
			"A write with confirm and instance revokes the keys. Each is first recorded in the ledger as a debt, so the sweeper retries those that fail. Keys for which a request has no time are left; repeat the request. " +
			"Two mounts must never have the same instance: each would treat the other's keys as lost. On a copy of a Vault, set another instance before anything else. If Vault replicates the mount to other clusters, confirm is refused, because their keys have the same instance.",
	}
}

func (b *engine) reconcile(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, reconcileTimeout)
	defer cancel()
	name := d.Get("target").(string)
	t, err := b.target(ctx, req.Storage, name)
	switch {
	case err != nil || t == nil:
		return nil, err
	case !t.Caps().List:
		return nil, b.unlistable(t)
	}
	confirmed, err := b.confirmed(req, d)
	if err != nil {
		return nil, err
	}
	release, ok := b.nameLocks.try(reconciledPrefix + name)
	if !ok {
		return nil, refuse(reasonTargetBusy, "target %q is being reconciled", name)
	}
	defer release()
	r, err := b.findLost(ctx, req.Storage, t, d)
	switch {
	case err != nil:
		return nil, err
	case !confirmed:
		return r.dryRun(ctx)
	}
	if count := d.Get("confirm").(int); count != len(r.lost) {
		return nil, badField("confirm", "is %d, and %d keys are lost; repeat the dry run, without confirm", count, len(r.lost))
	}
	return r.revokeLost(ctx)
}

// findLost searches the target for lost keys, in the places that the request asks for.
func (b *engine) findLost(ctx context.Context, s logical.Storage, t *openTarget, d *framework.FieldData) (*reconciling, error) {
	conf, err := b.config(ctx, s)
	if err != nil {
		return nil, err
	}
	if given, ok := d.GetOk("instance"); ok && given != conf.Instance {
		return nil, badField("instance", "is not this mount's instance; a dry run reports it")
	}
	var place map[string]any
	if given, ok := d.GetOk("parameters"); ok {
		place = given.(map[string]any)
	}
	r := &reconciling{engine: b, s: s, target: t, instance: conf.Instance}
	return r, r.find(ctx, place)
}

// unlistable returns the refusal for a target whose keys cannot be listed. It says by when the keys will have expired.
func (b *engine) unlistable(t *openTarget) error {
	until := "their expiry is not known here"
	if life := t.Lifetime(); life > 0 {
		until = fmt.Sprintf("none is valid for longer than %s, so all have expired by %s", life, b.now().Add(life).UTC().Format(time.RFC3339))
	}
	return badField("target", "%q cannot list keys by name, so keys that the ledger lacks cannot be found and stay valid until they expire. Of keys issued before now: %s", t.name, until)
}

// confirmed reports whether the request asks to revoke. It refuses incomplete requests to do so.
func (b *engine) confirmed(req *logical.Request, d *framework.FieldData) (bool, error) {
	for _, field := range []string{"confirm", "instance", "parameters"} {
		if raw, given := d.Raw[field]; given && raw == nil {
			return false, badField(field, "null is refused; leave the field out")
		}
	}
	_, confirm := d.GetOk("confirm")
	_, instance := d.GetOk("instance")
	switch {
	case !confirm && !instance:
		return false, nil
	case req.Operation == logical.ReadOperation:
		return false, badField("confirm", "is for a write; a read changes nothing")
	case !instance:
		return false, badField("instance", "is required with confirm: this mount's instance, as a dry run reports it")
	case !confirm:
		return false, badField("confirm", "is required with instance: the count of a dry run")
	case b.shared():
		return false, badField("confirm", "is refused: Vault replicates this mount, and keys of its other clusters have the same instance. A key that dry runs on all clusters show is lost: revoke it at the target")
	}
	return true, nil
}

// dryRun answers with what was found, and with what else a restore rolls back. It changes nothing.
func (r *reconciling) dryRun(ctx context.Context) (*logical.Response, error) {
	statics, err := r.staticFates(ctx)
	if err != nil {
		return nil, err
	}
	replay, err := r.replayWindow(ctx)
	if err != nil {
		return nil, err
	}
	can := r.target.Caps()
	data := map[string]any{
		"dry_run": true, "target": r.target.name, "instance": r.instance, "count": len(r.lost), "revoke": can.Revoke, "whole": r.whole(),
		"keys": handles(r.lost), "places": r.seen(), "open_roles": append([]string{}, r.open...),
		"credential": briefly(r.target.Check(ctx)), "static_keys": statics, "static_strays": handles(r.strays), "replay_seconds": int(replay / time.Second),
	}
	resp := &logical.Response{Data: data}
	for _, warning := range []struct {
		holds bool
		text  string
	}{
		{!r.whole(), "not everything could be searched, so there may be more keys: see state and whole of places"},
		{len(r.lost) > reconcileKeys, fmt.Sprintf("keys has only the first %d; confirm revokes that many and reports how many are left", reconcileKeys)},
		{len(r.open) > 0, "callers of the roles in open_roles may have keys in other places: search those too, with parameters"},
		{r.shared(), "Vault replicates this mount: these may be keys of its other clusters, so confirm is refused"},
		{!can.Revoke && len(r.lost) > 0, "the target cannot revoke: end the keys there by other means"},
		{len(r.strays) > 0, "static_strays exist at the target but no static role has them: end those there that nobody else uses"},
	} {
		if warning.holds {
			resp.AddWarning(warning.text)
		}
	}
	return resp, nil
}

// whole reports whether every known place was searched completely.
func (r *reconciling) whole() bool {
	return !r.more && !slices.ContainsFunc(r.places, func(p *place) bool { return !p.whole })
}

// seen returns the places as operators read them.
func (r *reconciling) seen() []map[string]any {
	out := []map[string]any{}
	for _, p := range r.places {
		result := briefly(p.err)
		result["parameters"], result["whole"] = p.params, p.whole
		out = append(out, result)
	}
	return out
}

// handles returns keys as operators read them, at most reconcileKeys.
func handles(keys []target.Handle) []map[string]any {
	out := []map[string]any{}
	for _, h := range keys[:min(len(keys), reconcileKeys)] {
		out = append(out, map[string]any{"name": h.Name, "accessor": h.Accessor, "parameters": h.Params})
	}
	return out
}

// briefly returns the result of a call without its detail, which may have words of the server.
func briefly(err error) map[string]any {
	result := checkResult(err)
	delete(result, "detail")
	return result
}

// revokeLost revokes the lost keys and answers with the result for each.
func (r *reconciling) revokeLost(ctx context.Context) (*logical.Response, error) {
	if !r.target.Caps().Revoke && len(r.lost) > 0 {
		return nil, badField("confirm", "is refused: target %q cannot revoke; end the keys there by other means", r.target.name)
	}
	n := min(len(r.lost), reconcileKeys)
	keys, count := handles(r.lost), map[string]int{"left": len(r.lost) - n}
	for i, o := range r.end(ctx, r.lost[:n]) {
		state := "left"
		switch {
		case o.tried && o.err == nil:
			state = "revoked"
		case o.tried:
			state = "failed"
			result := briefly(o.err)
			keys[i]["reason"], keys[i]["hint"] = result["reason"], result["hint"]
			if errors.Is(o.err, target.ErrUnsupported) {
				keys[i]["reason"], keys[i]["hint"] = reasonNotRevocable, "the engine's credential may not revoke this key: end it at the target by other means"
			}
		}
		keys[i]["state"] = state
		count[state]++
	}
	r.Logger().Info("reconciled", "target", r.target.name, "found", len(r.lost), "revoked", count["revoked"], "failed", count["failed"], "left", count["left"])
	resp := &logical.Response{Data: map[string]any{
		"dry_run": false, "target": r.target.name, "instance": r.instance, "count": len(r.lost), "keys": keys, "whole": r.whole(),
		"revoked": count["revoked"], "failed": count["failed"], "left": count["left"],
	}}
	if count["failed"] > 0 {
		resp.AddWarning("keys that could not be revoked are debts in the ledger, which the sweeper retries")
	}
	if count["left"] > 0 {
		resp.AddWarning(fmt.Sprintf("%d keys are left: repeat with confirm=%d", count["left"], count["left"]))
	}
	if !r.whole() {
		resp.AddWarning("not everything could be searched, so there may be more keys: repeat the dry run, without confirm")
	}
	return resp, nil
}
