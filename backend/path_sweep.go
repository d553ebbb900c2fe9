// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

func (b *engine) sweepPath() *framework.Path {
	return &framework.Path{
		Pattern: "sweep$",
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{
				Callback: b.handle(b.sweepNow), Summary: "Run the sweeper now.", ForwardPerformanceStandby: true,
				DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: "sweep"},
			},
		},
		HelpSynopsis:    "Run the sweeper now, and read what is still open.",
		HelpDescription: "The sweeper settles exchanges whose outcome is unknown, and retries revocations that have failed. It runs automatically about once a minute. It does not touch exchanges younger than config's sweep_grace.",
	}
}

func (b *engine) sweepNow(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	b.sweeps.Lock()
	defer b.sweeps.Unlock()
	defer b.resume(req.Storage)
	done, faults := b.sweep(ctx, req.Storage, true)
	open, err := b.backlog(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	resp := &logical.Response{Data: open.view()}
	resp.Data["settled"], resp.Data["revoked"], resp.Data["expired"] = done.Settled, done.Revoked, done.Expired
	if faults != nil {
		b.Logger().Error("sweeping", "error", faults)
		resp.AddWarning("not everything could be settled; Vault's log says why (request " + req.ID + ")")
	}
	return resp, nil
}
