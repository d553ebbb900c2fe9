// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// credsPaths returns creds/<role> and creds/<role>/<lease path> as two paths, because each needs its own OpenAPI names.
func (b *engine) credsPaths() []*framework.Path {
	fields := func() map[string]*framework.FieldSchema {
		return map[string]*framework.FieldSchema{
			"role":          {Type: framework.TypeString, Required: true, Description: "Role to issue a key for."},
			"subject_token": {Type: framework.TypeString, DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}, Description: "The token to exchange; only in a write. Without it, your Vault login decides."},
			"ttl":           {Type: framework.TypeDurationSecond, Query: true, Description: "Lease duration to ask for, within the limits of role and mount."},
			"parameters":    {Type: framework.TypeMap, Description: "Parameters that the role's allowed_parameters lets a request set. In a read, give each by its own name."},
		}
	}
	withPath := fields()
	withPath["path"] = &framework.FieldSchema{Type: framework.TypeString, Required: true, Description: "What the role's lease_path yields for you."}
	return []*framework.Path{
		b.credsPath("creds/(?P<role>[^/]+)/?$", fields(), "key"),
		b.credsPath("creds/(?P<role>[^/]+)/(?P<path>.+)$", withPath, "key-at-path"),
	}
}

func (b *engine) credsPath(pattern string, fields map[string]*framework.FieldSchema, suffix string) *framework.Path {
	display := func(verb string) *framework.DisplayAttributes {
		return &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: verb, OperationSuffix: suffix}
	}
	return &framework.Path{
		Pattern:             pattern,
		Fields:              fields,
		TakesArbitraryInput: true, // a read gives parameters by name, because Vault Agent templates can send no maps
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   &framework.PathOperation{Callback: b.handle(b.readCreds), Summary: "Issue a key to your Vault login.", DisplayAttrs: display("issue"), ForwardPerformanceStandby: true},
			logical.UpdateOperation: &framework.PathOperation{Callback: b.handle(b.writeCreds), Summary: "Issue a key to the subject of a token, or to your Vault login.", DisplayAttrs: display("exchange-for"), ForwardPerformanceStandby: true},
		},
		HelpSynopsis: "Issue a key.",
		HelpDescription: "vault read <mount>/creds/<role> issues a key to your Vault login, vault write <mount>/creds/<role> subject_token=@file to the subject of a token. " +
			"If the role has a lease_path, append its value to the path. The key is leased: renew, revoke and look it up with vault lease. " +
			"A refusal names a reason and the request's id; Vault's log has the detail under that id.",
	}
}

func (b *engine) readCreds(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	if _, given := d.Raw["subject_token"]; given {
		return nil, refuse(reasonTokenInURL, "a read carries a subject_token")
	}
	a := newAsk(d)
	for name, value := range d.Raw {
		if _, isField := d.Schema[name]; !isField {
			a.parameters[name] = value
		}
	}
	return b.issue(ctx, req, a)
}

func (b *engine) writeCreds(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	for _, name := range slices.Sorted(maps.Keys(d.Raw)) {
		if _, isField := d.Schema[name]; !isField {
			return nil, badField(name, "no such field; a parameter is given as parameters=<name>=<value>")
		}
		if d.Raw[name] == nil {
			return nil, badField(name, "null is refused; leave the field out")
		}
	}
	a := newAsk(d)
	token, given := d.Raw["subject_token"].(string)
	if given && token == "" {
		return nil, badField("subject_token", "is empty; leave it out to use your Vault login")
	}
	a.token = token
	return b.issue(ctx, req, a)
}

func newAsk(d *framework.FieldData) ask {
	path := "" // creds/<role> has no field of this name, so that a parameter may be called path
	if _, ok := d.Schema["path"]; ok {
		path = d.Get("path").(string)
	}
	parameters := map[string]any{}
	maps.Copy(parameters, d.Get("parameters").(map[string]any))
	return ask{
		role: d.Get("role").(string), path: path,
		ttl: time.Duration(d.Get("ttl").(int)) * time.Second, parameters: parameters,
	}
}
