// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

func (b *engine) keysPaths() []*framework.Path {
	display := func(verb, suffix string) *framework.DisplayAttributes {
		return &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: verb, OperationSuffix: suffix}
	}
	const description = "The ledger has every key that was requested from a target and is not known to have ended. " +
		"state is pending (requested, outcome not recorded yet), issued (a lease holds it), debt (must be revoked, which has failed so far) or exposed (may be valid, and its target can neither find nor revoke it). The key itself is never shown."
	return []*framework.Path{{
		Pattern: "keys/?$",
		Fields:  filterFields(pagination()),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{Callback: b.handle(b.findKeys), Summary: "Read the records of the keys that a filter matches. This scans the ledger.", DisplayAttrs: display("find", "keys")},
			logical.ListOperation: &framework.PathOperation{Callback: b.handle(b.listKeys), Summary: "List the ids of keys.", DisplayAttrs: display("list", "keys")},
		},
		HelpSynopsis:    "List the keys that may be valid.",
		HelpDescription: description,
	}, {
		Pattern: "keys/(?P<id>[^/]+)$",
		Fields:  map[string]*framework.FieldSchema{"id": {Type: framework.TypeString, Required: true, Description: "Id of the key, as returned with the key and by list."}},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{Callback: b.handle(b.readKey), Summary: "Read who has a key, and its state.", DisplayAttrs: display("read", "key-record")},
		},
		HelpSynopsis:    "Read who has a key, and its state.",
		HelpDescription: description,
	}}
}

func (b *engine) listKeys(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	ids, limit := []string{}, d.Get("limit").(int)
	bad, err := b.ledger.each(ctx, req.Storage, d.Get("after").(string), func(id string, _ bool) (bool, error) {
		ids = append(ids, id)
		return len(ids) != limit, nil
	})
	if err != nil {
		return nil, err
	}
	resp := logical.ListResponse(ids)
	if bad.n > 0 {
		resp.AddWarning(warnUnread(bad.n, bad.names))
	}
	return resp, nil
}

func (b *engine) readKey(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	e, err := b.ledger.get(ctx, req.Storage, d.Get("id").(string))
	if err != nil || e == nil {
		return nil, err
	}
	return &logical.Response{Data: e.view()}, nil
}

// findKeys answers with the keys that match a filter, and with the number of those that the filter cannot judge because a
// claim was not recorded with them, or because their record cannot be read.
func (b *engine) findKeys(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	f, err := parseFilter(d)
	if err != nil {
		return nil, err
	}
	limit := d.Get("limit").(int)
	found, unrecorded := []map[string]any{}, 0
	bad, err := b.ledger.scan(ctx, req.Storage, f, d.Get("after").(string), func(e *entry, v verdict) bool {
		if v == unjudged {
			unrecorded++
			return true
		}
		found = append(found, e.view())
		return len(found) != limit
	})
	if err != nil {
		return nil, err
	}
	data := map[string]any{"keys": found, "matched": len(found), "unrecorded": unrecorded, "unreadable": bad.n}
	resp := &logical.Response{Data: data}
	if len(found)+unrecorded == 0 { // else a page would cost more than its keys
		resp.Warnings = b.unknownNames(ctx, req.Storage, f)
	}
	if bad.n > 0 {
		resp.AddWarning(warnUnread(bad.n, bad.names))
	}
	return resp, nil
}

// view returns an entry as operators read it, always without its handle.
func (e *entry) view() map[string]any {
	data := map[string]any{
		"id": e.ID, "name": e.Name, "state": e.State, "role": e.Role, "lease_path": e.LeasePath, "target": e.Target,
		"issuer": e.Issuer, "subject": e.Subject, "trust": e.Trust, "revision": e.Revision, "entity": e.Entity,
		"display_name": e.DisplayName, "remote_address": e.RemoteAddress, "claims": carriedEach(e.Claims), "claims_whole": e.ClaimsWhole, "claims_absent": e.ClaimsAbsent, "claims_partial": e.ClaimsPartial,
		"jti": e.JTI, "accessor": e.Accessor, "revocable": e.Revocable, "issued_at": timeOrNil(e.IssuedAt),
		"not_after": timeOrNil(e.NotAfter), "expires_at": timeOrNil(e.ExpiresAt), "request_id": e.RequestID,
	}
	if e.State == stateDebt {
		data["debt_since"], data["next_try"], data["tries"] = timeOrNil(e.DebtSince), timeOrNil(e.NextTry), e.Tries
	}
	return data
}
