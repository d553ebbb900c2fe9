// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// noun is one kind of record that operators write: issuers, trust policies, targets, roles, blocks, static roles. All kinds
// have the same operations with the same rules; they differ in their fields and checks.
type noun[T any] struct {
	table  table[T]
	what   string // in texts: "trust policy"
	suffix string // of OpenAPI names: "trust-policy"
	plural string // of OpenAPI names of lists: "trust-policies"
	help   string
	fields map[string]*framework.FieldSchema

	// check refuses an invalid record, and returns warnings. It may complete the record. old is nil for a new record.
	check func(ctx context.Context, s logical.Storage, name string, record, old *T, d *framework.FieldData) ([]string, error)
	// probe, if not nil, is called with the checked record before it is saved, without a lock: it may try the record live, or
	// finish what must be finished before the write.
	probe func(ctx context.Context, s logical.Storage, record *T, d *framework.FieldData) error
	// clear names the fields for which null means "back to the default"; for others null is refused.
	clear func(field string) bool
	// lockPrefix and the record's name are the name of the lock under which the engine rotates a secret of the record; "" if it
	// rotates none. A delete holds that lock, because a rotation meanwhile would make a secret that belongs to no record.
	lockPrefix string
	// remove is called before a delete. It returns the users that still need the record, which refuse the delete, or kept if
	// it has saved the record as a hidden one instead.
	remove func(ctx context.Context, s logical.Storage, name string, record *T, d *framework.FieldData) (users []string, kept bool, err error)
	// saved, if not nil, is called after a write, without a lock, and returns warnings. Its error does not undo the write.
	saved func(ctx context.Context, s logical.Storage, name string, d *framework.FieldData) ([]string, error)
	// changed drops what is cached of the record.
	changed func(name string)
	// hidden, if not nil, reports whether operators see the record as absent.
	hidden func(*T) bool
}

const maxMetadata = 64 // entries of custom_metadata

// described adds the fields that all nouns have.
func described(fields map[string]*framework.FieldSchema) map[string]*framework.FieldSchema {
	fields["name"] = &framework.FieldSchema{Type: framework.TypeString, Required: true, Description: "Name: lower-case letters, digits, '_', '-' and '.'."}
	fields["description"] = &framework.FieldSchema{Type: framework.TypeString, Description: "What this is for, in words."}
	fields["custom_metadata"] = &framework.FieldSchema{Type: framework.TypeKVPairs, Description: "Strings of the operator's own, as k=v; the engine does not use them."}
	return fields
}

// paths returns the two paths of a noun: the list and the record.
func (n *noun[T]) paths(b *engine) []*framework.Path {
	display := func(verb, suffix string) *framework.DisplayAttributes {
		return &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: verb, OperationSuffix: suffix}
	}
	write := &framework.PathOperation{Callback: b.handle(n.write(b)), Summary: "Create or change " + n.article() + "; fields that are not named keep their value.", DisplayAttrs: display("write", n.suffix), ForwardPerformanceStandby: true, ForwardPerformanceSecondary: true}
	return []*framework.Path{{
		Pattern: n.table.prefix + "?$",
		Fields:  pagination(),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ListOperation: &framework.PathOperation{Callback: b.handle(n.list), Summary: "List " + n.what + " names.", DisplayAttrs: display("list", n.plural)},
		},
		HelpSynopsis:    "List " + n.what + " names.",
		HelpDescription: n.help,
	}, {
		Pattern: n.table.prefix + `(?P<name>[^/]+)$`,
		Fields:  n.fields,
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   &framework.PathOperation{Callback: b.handle(n.read), Summary: "Read " + n.article() + "; secrets are not shown.", DisplayAttrs: display("read", n.suffix)},
			logical.CreateOperation: write,
			logical.UpdateOperation: write,
			logical.PatchOperation:  &framework.PathOperation{Callback: b.handle(n.patch(b)), Summary: "Change an existing " + n.what + ".", DisplayAttrs: display("patch", n.suffix), ForwardPerformanceStandby: true, ForwardPerformanceSecondary: true},
			logical.DeleteOperation: &framework.PathOperation{Callback: b.handle(n.delete(b)), Summary: "Delete " + n.article() + " that nothing needs.", DisplayAttrs: display("delete", n.suffix), ForwardPerformanceStandby: true, ForwardPerformanceSecondary: true},
		},
		ExistenceCheck:  n.exists,
		HelpSynopsis:    "Read, write or delete " + n.article() + ".",
		HelpDescription: n.help,
	}}
}

func (n *noun[T]) article() string {
	if strings.HasPrefix(n.what, "i") {
		return "an " + n.what
	}
	return "a " + n.what
}

func (n *noun[T]) load(ctx context.Context, s logical.Storage, name string) (*T, error) {
	record, err := n.table.get(ctx, s, name)
	if record != nil && n.hidden != nil && n.hidden(record) {
		return nil, err
	}
	return record, err
}

func (n *noun[T]) exists(ctx context.Context, req *logical.Request, d *framework.FieldData) (bool, error) {
	name, _ := d.Raw["name"].(string)
	if checkName("name", name) != nil {
		return false, nil // the handler says what is wrong
	}
	record, err := n.load(ctx, req.Storage, name)
	return record != nil || err != nil, nil // an unreadable record exists; the handler reports why, while Vault would hide an error from here
}

func (n *noun[T]) list(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	all, err := n.table.list(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	if n.hidden != nil {
		visible := all[:0]
		for _, name := range all {
			record, err := n.load(ctx, req.Storage, name)
			if err != nil {
				return nil, err
			}
			if record != nil {
				visible = append(visible, name)
			}
		}
		all = visible
	}
	return logical.ListResponse(page(all, d.Get("after").(string), d.Get("limit").(int))), nil
}

func (n *noun[T]) read(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	name := d.Get("name").(string)
	if err := checkName("name", name); err != nil {
		return nil, err
	}
	record, err := n.load(ctx, req.Storage, name)
	if err != nil || record == nil {
		return nil, err
	}
	data, err := view(record, n.fields)
	if err != nil {
		return nil, err
	}
	return &logical.Response{Data: data}, nil
}

func (n *noun[T]) write(b *engine) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
		if n.probe != nil {
			// Before taking the lock: other writes must not wait for a network call.
			record, _, err := n.merge(ctx, req, d)
			if err == nil {
				err = n.probe(ctx, req.Storage, record, d)
			}
			if err != nil {
				return nil, err
			}
		}
		warnings, err := n.save(ctx, b, req, d)
		if err == nil && n.saved != nil {
			var more []string
			more, err = n.saved(ctx, req.Storage, d.Get("name").(string), d)
			warnings = append(warnings, more...)
		}
		if err != nil || len(warnings) == 0 {
			return nil, err
		}
		return &logical.Response{Warnings: warnings}, nil
	}
}

func (n *noun[T]) save(ctx context.Context, b *engine, req *logical.Request, d *framework.FieldData) (warnings []string, err error) {
	b.writes.Lock()
	defer b.writes.Unlock()
	record, warnings, err := n.merge(ctx, req, d)
	if err != nil {
		return nil, err
	}
	name := d.Get("name").(string)
	defer n.changed(name) // even after an error: the write may have been done
	return warnings, n.table.put(ctx, req.Storage, name, record)
}

// merge returns the record to store: the stored one with the fields that the request gives, checked.
func (n *noun[T]) merge(ctx context.Context, req *logical.Request, d *framework.FieldData) (*T, []string, error) {
	name := d.Get("name").(string)
	if err := checkName("name", name); err != nil {
		return nil, nil, err
	}
	for _, field := range slices.Sorted(maps.Keys(d.Raw)) {
		if d.Raw[field] == nil && (field == "enabled" || !n.clear(field)) { // the default of enabled would switch it on
			return nil, nil, badField(field, "null is refused; leave the field out to keep it, or give a value")
		}
	}
	old, err := n.table.get(ctx, req.Storage, name)
	if err != nil {
		return nil, nil, err
	}
	base := n.table.new()
	if old != nil && (n.hidden == nil || !n.hidden(old)) { // a new record must not inherit from a hidden one
		base = *old
	}
	record, err := overlay(base, n.table.new(), d)
	if err != nil {
		return nil, nil, err
	}
	if metadata, ok := d.GetOk("custom_metadata"); ok && len(metadata.(map[string]string)) > maxMetadata {
		return nil, nil, badField("custom_metadata", "at most %d entries are allowed", maxMetadata)
	}
	warnings, err := n.check(ctx, req.Storage, name, &record, old, d)
	return &record, warnings, err
}

// switchesOff reports whether a write sets enabled to false and nothing else. An existing record is then not checked: whatever is
// wrong with it must not keep it from being switched off.
func switchesOff(d *framework.FieldData) bool {
	for field := range d.Raw {
		if field != "name" && field != "enabled" {
			return false
		}
	}
	return d.Raw["enabled"] != nil && !d.Get("enabled").(bool)
}

// patch is a write that requires the record to exist: every write keeps the fields that it does not name.
func (n *noun[T]) patch(b *engine) framework.OperationFunc {
	write := n.write(b)
	return func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
		name := d.Get("name").(string)
		if err := checkName("name", name); err != nil {
			return nil, err
		}
		if record, err := n.load(ctx, req.Storage, name); err != nil {
			return nil, err
		} else if record == nil {
			return nil, logical.CodedError(404, fmt.Sprintf("there is no %s %q to patch", n.what, name))
		}
		return write(ctx, req, d)
	}
}

// delete removes a record that no other record needs. Deleting an absent one succeeds.
func (n *noun[T]) delete(b *engine) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
		b.writes.Lock()
		defer b.writes.Unlock()
		name := d.Get("name").(string)
		if err := checkName("name", name); err != nil {
			return nil, err
		}
		record, err := n.load(ctx, req.Storage, name)
		if err != nil || record == nil {
			return nil, err
		}
		if n.lockPrefix != "" {
			release, ok := b.nameLocks.try(n.lockPrefix + name)
			if !ok {
				return nil, refuse(reasonTargetBusy, "a rotation for %s %q is under way", n.what, name)
			}
			defer release()
		}
		defer n.changed(name)
		users, kept, err := n.remove(ctx, req.Storage, name, record, d)
		if err != nil {
			return nil, err
		}
		if len(users) > 0 {
			return nil, badField("name", "the %s %q is needed by %s", n.what, name, strings.Join(users, ", "))
		}
		if kept {
			return nil, nil
		}
		return nil, n.table.delete(ctx, req.Storage, name)
	}
}

// users lists the records of a table for which names returns true, as "<what> <name>".
func users[T any](ctx context.Context, s logical.Storage, t table[T], what string, names func(*T) bool) ([]string, error) {
	all, err := t.list(ctx, s)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, name := range all {
		record, err := t.get(ctx, s, name)
		if err != nil {
			return nil, err
		}
		if record != nil && names(record) {
			found = append(found, what+" "+name)
		}
	}
	return found, nil
}

// pagination returns the fields after and limit of a list, as Vault's own lists have them.
func pagination() map[string]*framework.FieldSchema {
	return map[string]*framework.FieldSchema{
		"after": {Type: framework.TypeString, Query: true, Description: "List only entries after this one."},
		"limit": {Type: framework.TypeInt, Query: true, Description: "List at most this many; 0 = all."},
	}
}

// page sorts a list and returns at most limit (0 = all) of its entries after the given one.
func page(all []string, after string, limit int) []string {
	slices.Sort(all)
	if after != "" {
		first, found := slices.BinarySearch(all, after)
		if found {
			first++
		}
		all = all[first:]
	}
	if limit > 0 && limit < len(all) {
		all = all[:limit]
	}
	return all
}
