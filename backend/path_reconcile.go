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

const reconcileTimeout = 75 * time.Second // of one request; Vault's own limit is 90 seconds

func (b *engine) reconcilePath() *framework.Path {
	display := func(verb string) *framework.DisplayAttributes {
		return &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: verb, OperationSuffix: "lost-keys"}
	}
	return &framework.Path{
		Pattern: "reconcile/(?P<target>[^/]+)$",
		Fields: map[string]*framework.FieldSchema{
			"target":     {Type: framework.TypeString, Required: true, Description: "Target to look at."},
			"parameters": {Type: framework.TypeMap, Description: "Look only at the place that these parameters name, for roles that let their callers choose it. Default: the places that roles name, and those of the keys in the ledger."},
			"confirm":    {Type: framework.TypeInt, Description: "Revoke what was found, if it is still so many: the count that a dry run has answered. Default: only tell."},
			"instance":   {Type: framework.TypeString, Description: "With confirm: this mount's instance, as a dry run answers it."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{
				Callback: b.handle(b.reconcile), Summary: "Tell which keys of this mount live at a target and are not in the ledger.", DisplayAttrs: display("find"), ForwardPerformanceStandby: true,
			},
			logical.UpdateOperation: &framework.PathOperation{
				Callback: b.handle(b.reconcile), Summary: "Tell which keys of this mount live at a target and are not in the ledger, or revoke them (confirm and instance).", DisplayAttrs: display("revoke"), ForwardPerformanceStandby: true,
			},
		},
		HelpSynopsis: "After a restore: find and revoke keys that live at a target and that the ledger lacks.",
		HelpDescription: "A Vault that was restored from an older snapshot has forgotten the keys that were issued since: no lease and no sweeper ends them. They are found at the target by their names, which begin with this mount's instance; keys of static roles, the engine's credential, other instances' keys and whatever the ledger has are never among them. " +
			"A read, or a write without confirm, changes nothing and answers count, keys (500 at most), the places at the target that were looked at, each with its state, and open_roles, whose callers may have had keys in other places (give those as parameters). whole is false if there may be more keys than were seen. " +
			"It tells what else a restore rolls back: credential says whether the target takes the engine's; static_keys whether it knows the present key of each static role; static_strays are keys of static roles that live and that no static role has, a deleted one perhaps; replay_seconds is for how long after the restore tokens that were spent since the snapshot can be presented again. " +
			"A write with confirm and instance revokes: each key is in the ledger as a debt first, so the sweeper goes on with those that failed. What a request has no time for is left; ask again. " +
			"Two mounts must never have one instance: each would take the other's keys for lost. Give a copy of a Vault another instance before anything else. Where Vault replicates the mount to other clusters confirm is refused, for their keys bear the same instance.",
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
		return nil, badField("confirm", "is %d, and %d keys are lost; look at them again, without confirm", count, len(r.lost))
	}
	return r.revokeLost(ctx)
}

// findLost is what lives at a target and is lost, as a request asks for it.
func (b *engine) findLost(ctx context.Context, s logical.Storage, t *openTarget, d *framework.FieldData) (*reconciling, error) {
	conf, err := b.config(ctx, s)
	if err != nil {
		return nil, err
	}
	if given, ok := d.GetOk("instance"); ok && given != conf.Instance {
		return nil, badField("instance", "is not this mount's, which a dry run answers")
	}
	var place map[string]any
	if given, ok := d.GetOk("parameters"); ok {
		place = given.(map[string]any)
	}
	r := &reconciling{engine: b, s: s, target: t, instance: conf.Instance}
	return r, r.find(ctx, place)
}

// unlistable refuses a target whose keys cannot be listed, and says what that means.
func (b *engine) unlistable(t *openTarget) error {
	until := "they have no end that is known here"
	if life := t.Lifetime(); life > 0 {
		until = fmt.Sprintf("none lives longer than %s, so all have ended by %s", life, b.now().Add(life).UTC().Format(time.RFC3339))
	}
	return badField("target", "%q cannot list keys by name, so those that the ledger lacks are not found, and live on. Of keys that were issued before now: %s", t.name, until)
}

// confirmed reports whether keys are to be revoked, and refuses what is half said.
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
		return false, badField("instance", "is required with confirm: this mount's, which a dry run answers")
	case !confirm:
		return false, badField("confirm", "is required with instance: the count that a dry run has answered")
	case b.shared():
		return false, badField("confirm", "is refused: Vault replicates this mount, and the keys of its other clusters bear the same instance. A key that a dry run shows on every one of the clusters is lost: revoke it at the target")
	}
	return true, nil
}

// dryRun answers with what was found, and changes nothing.
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
		{!r.whole(), "not everything was seen: see state and whole of places; there may be more keys than these"},
		{len(r.lost) > reconcileKeys, fmt.Sprintf("keys has the first %d; confirm revokes so many, and says how many are left", reconcileKeys)},
		{len(r.open) > 0, "callers of the roles in open_roles may have had keys in places that are not among these: give those as parameters"},
		{r.shared(), "Vault replicates this mount: keys of its other clusters are among these, and confirm is refused"},
		{!can.Revoke && len(r.lost) > 0, "the target cannot revoke: end the keys there by other means"},
		{len(r.strays) > 0, "static_strays live and nobody here has them: end at the target those that no one else uses"},
	} {
		if warning.holds {
			resp.AddWarning(warning.text)
		}
	}
	return resp, nil
}

// whole reports whether every place that is known was seen to its end.
func (r *reconciling) whole() bool {
	return !r.more && !slices.ContainsFunc(r.places, func(p *place) bool { return !p.whole })
}

// seen are the places as operators read them.
func (r *reconciling) seen() []map[string]any {
	out := []map[string]any{}
	for _, p := range r.places {
		result := briefly(p.err)
		result["parameters"], result["whole"] = p.params, p.whole
		out = append(out, result)
	}
	return out
}

// handles are keys as operators read them, as many as are shown.
func handles(keys []target.Handle) []map[string]any {
	out := []map[string]any{}
	for _, h := range keys[:min(len(keys), reconcileKeys)] {
		out = append(out, map[string]any{"name": h.Name, "accessor": h.Accessor, "parameters": h.Params})
	}
	return out
}

// briefly is what became of a call, without what the server said.
func briefly(err error) map[string]any {
	result := checkResult(err)
	delete(result, "detail")
	return result
}

// revokeLost revokes what was found and answers what became of each.
func (r *reconciling) revokeLost(ctx context.Context) (*logical.Response, error) {
	if !r.target.Caps().Revoke && len(r.lost) > 0 {
		return nil, badField("confirm", "is refused: target %q cannot revoke, so end the keys there by other means", r.target.name)
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
				keys[i]["reason"], keys[i]["hint"] = reasonNotRevocable, "the target lets the engine's credential not revoke this key: end it there by other means"
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
		resp.AddWarning("what failed is in the ledger as debt, which the sweeper goes on trying")
	}
	if count["left"] > 0 {
		resp.AddWarning(fmt.Sprintf("%d keys are left: ask again, with confirm=%d", count["left"], count["left"]))
	}
	if !r.whole() {
		resp.AddWarning("not everything was seen: there may be more keys; look again, without confirm")
	}
	return resp, nil
}
