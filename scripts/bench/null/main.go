// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// Command null is a secrets engine that decides nothing and checks nothing. It shows what Vault, its plugin protocol, its
// storage and the API cost any engine that makes keys, so that the cost of another engine's own work can be seen:
//
//	floor   leases a random text, and ends it by forgetting it
//	honest  writes to storage before and after it asks the API for a key, as any engine must that loses no key; renewing reads
//	        what was written; revoking ends the key at the API and deletes both records
//	dressed does what honest does, and asks Vault for as much as the plugin does: it takes a token, which it ignores, deletes
//	        what it wrote first, and records, answers and keeps with the lease as many bytes
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/plugin"
)

const (
	ttl         = 30 * time.Minute
	maxTTL      = time.Hour
	callTimeout = 20 * time.Second
	maxAnswer   = 1 << 20
)

func main() {
	meta := &api.PluginAPIClientMeta{}
	err := meta.FlagSet().Parse(os.Args[1:])
	if err == nil {
		err = plugin.ServeMultiplex(&plugin.ServeOpts{BackendFactoryFunc: factory, TLSProviderFunc: api.VaultPluginTLSProvider(meta.GetTLSConfig())})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "null:", err)
		os.Exit(1)
	}
}

// engine is the secrets engine. It learns of the API from a write to config, and keeps it only in memory.
type engine struct {
	*framework.Backend
	api atomic.Pointer[keyAPI]
}

// keyAPI is the API at which honest makes its keys.
type keyAPI struct {
	client     *http.Client
	url, token string
}

func factory(ctx context.Context, conf *logical.BackendConfig) (logical.Backend, error) {
	e := &engine{}
	e.Backend = &framework.Backend{
		BackendType: logical.TypeLogical,
		Paths: []*framework.Path{
			{Pattern: "config", Operations: on(logical.UpdateOperation, e.configure), Fields: map[string]*framework.FieldSchema{
				"url": {Type: framework.TypeString}, "token": {Type: framework.TypeString}, "ca_pem": {Type: framework.TypeString},
			}},
			{Pattern: "creds/floor", Operations: on(logical.ReadOperation, e.floor)},
			{Pattern: "creds/honest", Operations: on(logical.ReadOperation, e.honest)},
			{Pattern: "creds/dressed", Operations: on(logical.UpdateOperation, e.dressed), Fields: map[string]*framework.FieldSchema{"subject_token": {Type: framework.TypeString}}},
		},
		Secrets: []*framework.Secret{
			{Type: "floor", Renew: extend, Revoke: func(context.Context, *logical.Request, *framework.FieldData) (*logical.Response, error) {
				return nil, nil
			}},
			{Type: "honest", Renew: renew, Revoke: e.revoke},
		},
	}
	return e, e.Setup(ctx, conf)
}

func on(op logical.Operation, f framework.OperationFunc) map[logical.Operation]framework.OperationHandler {
	return map[logical.Operation]framework.OperationHandler{op: &framework.PathOperation{Callback: f}}
}

func (e *engine) configure(_ context.Context, _ *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(d.Get("ca_pem").(string))) {
		return logical.ErrorResponse("ca_pem: no certificate"), nil
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, MaxIdleConnsPerHost: 100}
	e.api.Store(&keyAPI{client: &http.Client{Transport: transport, Timeout: callTimeout}, url: d.Get("url").(string), token: d.Get("token").(string)})
	return nil, nil
}

func (e *engine) floor(context.Context, *logical.Request, *framework.FieldData) (*logical.Response, error) {
	return e.leased("floor", map[string]any{"api_key": rand.Text()}, map[string]any{}), nil
}

func (e *engine) honest(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	record := map[string]string{"name": "null-" + rand.Text()}
	secret, err := e.issue(ctx, req.Storage, record)
	if err != nil {
		return nil, err
	}
	return e.leased("honest", map[string]any{"api_key": secret}, map[string]any{"name": record["name"], "id": record["id"]}), nil
}

// issue has a key made, and writes two records: one of the request, and one of its result.
func (e *engine) issue(ctx context.Context, s logical.Storage, record map[string]string) (secret string, err error) {
	if err := put(ctx, s, "intent/"+record["name"], record); err != nil {
		return "", err
	}
	var key struct{ ID, Secret string }
	body := map[string]any{"name": record["name"], "scopes": []string{"read"}, "expires_at": time.Now().Add(2 * maxTTL).UTC()}
	if err := e.api.Load().call(ctx, http.MethodPost, "", body, &key, http.StatusCreated); err != nil {
		return "", err
	}
	record["id"] = key.ID
	return key.Secret, put(ctx, s, "key/"+record["name"], record)
}

// The size of what the plugin records, answers and keeps with a lease.
const recordBytes = 1100

var (
	answered = []string{"id", "accessor", "expires_at", "revocable", "header_name", "header_value", "target", "issuer", "subject", "trust"}
	kept     = []string{"version", "role", "target", "trust", "issuer", "revocable", "handle", "expires_at", "last_end"}
)

func (e *engine) dressed(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	record := map[string]string{"name": "null-" + rand.Text(), "claims": strings.Repeat("x", recordBytes)}
	secret, err := e.issue(ctx, req.Storage, record)
	if err != nil {
		return nil, err
	}
	if err := req.Storage.Delete(ctx, "intent/"+record["name"]); err != nil {
		return nil, err
	}
	data, internal := map[string]any{"api_key": secret}, map[string]any{"name": record["name"], "id": record["id"]}
	for _, name := range answered {
		data[name] = "a text as of " + name
	}
	for _, name := range kept {
		internal[name] = "a text as of " + name
	}
	return e.leased("honest", data, internal), nil
}

func (e *engine) leased(secret string, data, internal map[string]any) *logical.Response {
	resp := e.Secret(secret).Response(data, internal)
	resp.Secret.TTL, resp.Secret.MaxTTL, resp.Secret.Renewable = ttl, maxTTL, true
	return resp
}

func extend(_ context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	return &logical.Response{Secret: req.Secret}, nil
}

func renew(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	entry, err := req.Storage.Get(ctx, "key/"+text(req, "name"))
	if err != nil || entry == nil {
		return nil, errors.Join(err, errors.New("the key is not recorded"))
	}
	return extend(ctx, req, d)
}

func (e *engine) revoke(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	if err := e.api.Load().call(ctx, http.MethodDelete, "/"+text(req, "id"), nil, nil, http.StatusNoContent); err != nil {
		return nil, err
	}
	for _, prefix := range []string{"key/", "intent/"} {
		if err := req.Storage.Delete(ctx, prefix+text(req, "name")); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func text(req *logical.Request, name string) string {
	s, _ := req.Secret.InternalData[name].(string)
	return s
}

func put(ctx context.Context, s logical.Storage, key string, v any) error {
	entry, err := logical.StorageEntryJSON(key, v)
	if err != nil {
		return err
	}
	return s.Put(ctx, entry)
}

// call sends body, if it is not nil, and reads the answer into out, if that is not nil.
func (a *keyAPI) call(ctx context.Context, method, path string, body, out any, want int) error {
	var raw []byte
	var err error
	if body != nil {
		if raw, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, a.url+"/v1/projects/null/keys"+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+a.token)
	req.Header.Set("Content-Type", "application/json")
	res, err := a.client.Do(req)
	if err != nil {
		return errors.New("the API does not answer")
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil || res.StatusCode != want {
		return fmt.Errorf("the API answered %d", res.StatusCode)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer, out)
}
