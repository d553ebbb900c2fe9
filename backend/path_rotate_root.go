// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

func (b *engine) rotateRootPath() *framework.Path {
	return &framework.Path{
		Pattern: "rotate-root/(?P<target>[^/]+)$",
		Fields: map[string]*framework.FieldSchema{
			"target": {Type: framework.TypeString, Required: true, Description: "Target whose credential to rotate."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{
				Callback: b.handle(b.rotateRoot), Summary: "Rotate the engine's credential at a target now.", ForwardPerformanceStandby: true, ForwardPerformanceSecondary: true,
				DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: "rotate", OperationSuffix: "root-credentials"},
			},
		},
		HelpSynopsis: "Rotate the engine's credential at a target now.",
		HelpDescription: "Afterwards only the engine knows the credential. If the target allows two credentials at a time, the new one is tried before it is used, and the old one is ended a minute later; otherwise the old one is invalid at once. " +
			"A rotation whose outcome is unknown is not repeated: write a new credential to the target.",
	}
}

func (b *engine) rotateRoot(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, rotateTimeout)
	defer cancel()
	name := d.Get("target").(string)
	if err := checkName("target", name); err != nil {
		return nil, err
	}
	release, ok := b.nameLocks.try(rootPrefix + name)
	if !ok {
		return nil, refuse(reasonTargetBusy, "the credential of target %q is being rotated", name)
	}
	defer release()
	r, err := b.openRoot(ctx, req.Storage, name)
	switch {
	case err != nil:
		return nil, err
	case r == nil || r.target.record.DeletedUntil != nil:
		return nil, b.noRotation(ctx, req.Storage, name)
	}
	if r.state == nil {
		r.state = &rootState{From: b.now().UTC()}
	}
	if err := b.rotate(ctx, r); err != nil {
		return nil, err
	}
	return &logical.Response{Data: r.view()}, nil
}

// noRotation returns why the credential of a target cannot be rotated.
func (b *engine) noRotation(ctx context.Context, s logical.Storage, name string) error {
	switch t, err := b.target(ctx, s, name); {
	case err != nil:
		return err
	case t == nil || t.record.DeletedUntil != nil:
		return badField("target", "there is no target %q", name)
	}
	return badField("target", "the engine cannot rotate the credential of target %q; create a new one at the API and write it to the target", name)
}
