// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// staticRecord is a static role as its operator writes it: which key to keep, and when to rotate it.
type staticRecord struct {
	Target         string            `json:"target"`
	Parameters     map[string]any    `json:"parameters"`
	Overlap        seconds           `json:"overlap"`
	RevokeOnDelete bool              `json:"revoke_on_delete"`
	Enabled        bool              `json:"enabled"`
	Description    string            `json:"description"`
	CustomMetadata map[string]string `json:"custom_metadata"`

	schedule
}

const (
	defaultOverlap = 10 * 60
	maxOverlap     = 30 * 24 * time.Hour
	leastTTL       = 10 * time.Second // the ttl of reads while a rotation is overdue, so that readers come back soon
)

var staticFields = scheduled("the key", described(map[string]*framework.FieldSchema{
	"target":           {Type: framework.TypeString, Description: "Target of the key; it must list static/<name> in allowed_roles. Cannot be changed."},
	"parameters":       {Type: framework.TypeMap, Description: "Parameters to send to the target for the key. A change takes effect with the next rotation."},
	"import":           {Type: framework.TypeString, DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}, Description: "The value of a key that already exists; it is rotated when that is due. Default: a new key is made. Never read back."},
	"overlap":          {Type: framework.TypeDurationSecond, Description: "How long the old key stays valid after a rotation, but not beyond the next one; default 10m. 0: the target replaces the key at once if it can; otherwise the old key is revoked within a minute or two."},
	"revoke_on_delete": {Type: framework.TypeBool, Description: "Revoke the key when the static role is deleted; default false: it stays valid at the target."},
	"enabled":          {Type: framework.TypeBool, Description: "Kill switch: false stops reading and rotating. The key stays valid."},
}))

func (b *engine) newStaticNoun() noun[staticRecord] {
	return noun[staticRecord]{
		table: table[staticRecord]{prefix: "static-roles/", defaults: func() staticRecord {
			return staticRecord{Parameters: map[string]any{}, Overlap: defaultOverlap, Enabled: true, CustomMetadata: map[string]string{}}
		}},
		what:   "static role",
		suffix: "static-role",
		plural: "static-roles",
		help: "A static role has one long-lived key of a target, which the engine rotates by rotation_period or rotation_schedule. Everybody whom Vault's policies allow to read static-creds/<name> gets this key: trust policies do not apply. " +
			"For a key per caller that ends with its lease, see roles.",
		fields: staticFields,
		check:  b.checkStatic,
		probe: func(ctx context.Context, s logical.Storage, record *staticRecord, d *framework.FieldData) error {
			_, err := b.imported(ctx, s, record, d)
			return err
		},
		clear:      func(field string) bool { return field != "target" && field != "import" && field != "revoke_on_delete" },
		lockPrefix: staticPrefix,
		remove:     b.removeStatic,
		saved:      b.savedStatic,
		changed:    func(string) {},
	}
}

func (b *engine) checkStatic(ctx context.Context, s logical.Storage, name string, record, old *staticRecord, _ *framework.FieldData) ([]string, error) {
	switch {
	case old != nil && old.Target != record.Target:
		return nil, badField("target", "cannot be changed, for the key lives there; make another static role")
	case len(record.Parameters) > maxParameters:
		return nil, badField("parameters", "at most %d parameters are allowed", maxParameters)
	case record.Overlap.duration() > maxOverlap:
		return nil, badField("overlap", "want at most %s", maxOverlap)
	case !record.set():
		return nil, badField("rotation_period", "missing; give rotation_period or rotation_schedule")
	}
	if err := record.check(); err != nil {
		return nil, err
	}
	if record.RotationPeriod > 0 && record.Overlap >= record.RotationPeriod {
		return nil, badField("overlap", "want less than rotation_period; the default is %s", seconds(defaultOverlap).duration())
	}
	if old != nil && !record.Enabled { // a role can be disabled whatever is wrong with its target
		return nil, nil
	}
	t, err := b.target(ctx, s, record.Target)
	switch {
	case err != nil:
		return nil, err
	case t == nil || t.record.DeletedUntil != nil:
		return nil, badField("target", "there is no target %q", record.Target)
	case !t.allows(staticPrefix + name):
		return nil, badField("target", "target %q does not list %q in allowed_roles", record.Target, staticPrefix+name)
	case !t.Caps().Revoke:
		return nil, badField("target", "target %q cannot revoke keys, so an old one would live on after each rotation", record.Target)
	case slices.Contains([]string{target.SourceRequest, target.SourceSelf}, t.Source()):
		return nil, badField("target", "target %q wants a token for a caller, and a static role has none; see subject_token_source", record.Target)
	}
	_, err = t.Params(record.Parameters)
	return nil, err
}

// savedStatic makes sure that the role has a key: the imported one, or else a new one. If making one fails, it returns a
// warning, because the engine tries again.
func (b *engine) savedStatic(ctx context.Context, s logical.Storage, name string, d *framework.FieldData) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, rotateTimeout)
	defer cancel()
	release, err := b.nameLocks.take(ctx, staticPrefix+name)
	if err != nil {
		return nil, err
	}
	defer release()
	r, err := b.openStatic(ctx, s, name)
	if err != nil || r == nil {
		return nil, err
	}
	key, err := b.imported(ctx, s, r.record, d)
	if err != nil {
		return nil, err
	}
	isNew := r.state == nil
	if isNew {
		r.state = &staticState{}
	}
	switch {
	case key != nil:
		return nil, r.adopt(ctx, key)
	case r.state.Current != nil:
		return nil, nil
	case isNew: // with stored state, the tick retries if the rotation below fails
		if err := r.save(ctx); err != nil {
			return nil, err
		}
	}
	if err := b.rotate(ctx, r); err != nil {
		return []string{"there is no key yet; the engine will try again: " + asRefusal(err).Error()}, nil
	}
	return nil, nil
}

// removeStatic deletes the role's state. It leaves to the sweeper every key of the role that may be valid at the target, except
// the current one without revoke_on_delete.
func (b *engine) removeStatic(ctx context.Context, s logical.Storage, name string, record *staticRecord, _ *framework.FieldData) ([]string, bool, error) {
	r, err := b.openStatic(ctx, s, name)
	if err != nil || r == nil || r.state == nil {
		return nil, false, err
	}
	st := r.state
	kept := ""
	if st.Current != nil && !record.RevokeOnDelete {
		kept = st.Current.Handle.Name
	}
	if err := r.abandon(ctx, kept); err != nil {
		return nil, false, err
	}
	gone := st.Old
	if st.Next != nil {
		gone = append(gone, oldKey{Handle: st.Next.Handle, Expiry: st.Next.Expiry})
	}
	if st.Current != nil && record.RevokeOnDelete {
		gone = append(gone, oldKey{Handle: st.Current.Handle, Expiry: st.Current.Expiry})
	}
	for _, k := range gone {
		if err := r.leaveToSweeper(ctx, k.Handle, k.Expiry); err != nil {
			return nil, false, err
		}
	}
	return nil, false, staticTable.delete(ctx, s, name)
}

func (b *engine) staticPaths() []*framework.Path {
	display := func(verb, suffix string) *framework.DisplayAttributes {
		return &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: verb, OperationSuffix: suffix}
	}
	name := map[string]*framework.FieldSchema{"name": {Type: framework.TypeString, Required: true, Description: "Name of the static role."}}
	return append(b.staticNoun.paths(b), &framework.Path{
		Pattern: "static-creds/(?P<name>[^/]+)$",
		Fields:  name,
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{Callback: b.handle(b.readStatic), Summary: "Read the key of a static role.", DisplayAttrs: display("read", "static-credentials")},
		},
		HelpSynopsis: "Read the key of a static role.",
		HelpDescription: "api_key is the key, accessor its public id, predecessor that of the key before it. ttl says in how many seconds the next rotation is due, as Vault Agent and the Vault Secrets Operator want it; rotation_period is 0 with a rotation_schedule. " +
			"All fields but ttl change only when the key does; the state of its rotation is in status. There is no lease: whoever has read the key can use it until its rotation.",
	}, &framework.Path{
		Pattern: "rotate-role/(?P<name>[^/]+)$",
		Fields:  name,
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{Callback: b.handle(b.rotateRole), Summary: "Rotate the key of a static role now.", ForwardPerformanceStandby: true, ForwardPerformanceSecondary: true, DisplayAttrs: display("rotate", "static-role")},
		},
		HelpSynopsis:    "Rotate the key of a static role now.",
		HelpDescription: "The next automatic rotation is due one period later, or at the schedule's next time. A rotation whose outcome is unknown is not repeated.",
	})
}

func (b *engine) readStatic(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	r, err := b.staticOf(ctx, req, d)
	if err != nil {
		return nil, err
	}
	if err := r.readable(); err != nil {
		return nil, err
	}
	if r.state == nil || r.state.Current == nil {
		return nil, &refusal{reason: reasonTargetBusy, text: "the static role has no key yet; status says why", detail: r.what() + " has no key yet"}
	}
	key, due := r.state.Current, r.due()
	data := map[string]any{}
	for field, value := range key.Fields {
		data[field] = value
	}
	// Secret operators for Kubernetes restart workloads whenever this answer changes, so everything but ttl changes only with the key.
	data["target"], data["api_key"], data["accessor"], data["expires_at"] = r.record.Target, key.Secret, key.Accessor, timeOrNil(key.Expiry)
	data["predecessor"], data["last_vault_rotation"] = r.state.Predecessor, timeOrNil(r.state.Turn.LastRotation)
	if key.Header != "" {
		data["header_value"] = key.Header
	}
	if r.target != nil {
		data["header_name"] = r.target.HeaderName()
	}
	data["ttl"] = int64(max(due.Sub(b.now()), leastTTL) / time.Second)
	data["rotation_period"], data["rotation_schedule"] = int64(r.record.RotationPeriod), r.record.RotationSchedule
	data["rotation_window"] = int64(r.record.RotationWindow)
	resp := &logical.Response{Data: data}
	if r.state.Doubtful || r.state.Turn.State == turnUnknown {
		resp.AddWarning("the outcome of the last rotation is unknown: this key may be dead")
	}
	return resp, nil
}

// view returns the state of the role's key without the key, for status.
func (r *staticRole) view() map[string]any {
	known := map[string]any{"target": r.record.Target, "rotation": "none yet"}
	if r.state == nil {
		return known
	}
	due := time.Time{}
	if r.state.Current != nil {
		known["accessor"], due = r.state.Current.Accessor, r.due()
	}
	known["predecessor"] = r.state.Predecessor
	maps.Copy(known, r.state.Turn.view(due))
	return known
}

// staticOf opens the static role that a request names.
func (b *engine) staticOf(ctx context.Context, req *logical.Request, d *framework.FieldData) (*staticRole, error) {
	name := d.Get("name").(string)
	if err := checkName("name", name); err != nil {
		return nil, err
	}
	r, err := b.openStatic(ctx, req.Storage, name)
	if err == nil && r == nil {
		text := fmt.Sprintf("there is no static role %q", name)
		err = &refusal{reason: reasonUnknownRole, text: text, detail: text}
	}
	return r, err
}

func (b *engine) rotateRole(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, rotateTimeout)
	defer cancel()
	release, ok := b.nameLocks.try(staticPrefix + d.Get("name").(string))
	if !ok {
		return nil, refuse(reasonTargetBusy, "static role %q is being rotated", d.Get("name"))
	}
	defer release()
	r, err := b.staticOf(ctx, req, d)
	if err != nil {
		return nil, err
	}
	if err := r.usable(); err != nil {
		return nil, err
	}
	if r.state == nil { // its write was interrupted, or it is being deleted: a key made now could belong to no role
		return nil, badField("name", "writing static role %q was interrupted; write it again", r.name)
	}
	if err := b.rotate(ctx, r); err != nil {
		return nil, err
	}
	return &logical.Response{Data: r.view()}, nil
}

// plainJSON returns a value with the types that it has after it was stored and read back.
func plainJSON(v any) any {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	var out any
	_ = decodeJSON(raw, &out)
	return out
}
