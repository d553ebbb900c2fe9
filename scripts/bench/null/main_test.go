// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"net/http/httptest"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// The honest floor does the work that it stands for: the key works, storage has two records, and both end with the lease.
func TestHonestFloor(t *testing.T) {
	keys := lab.NewKeyAPI(lab.KeyAPIOptions{AdminToken: "admin"})
	server := httptest.NewTLSServer(keys)
	defer server.Close()
	store := &logical.InmemStorage{}
	e, err := factory(t.Context(), &logical.BackendConfig{System: logical.TestSystemView(), StorageView: store})
	if err != nil {
		t.Fatal(err)
	}
	do := func(op logical.Operation, path string, data map[string]any, secret *logical.Secret) *logical.Response {
		t.Helper()
		resp, err := e.HandleRequest(t.Context(), &logical.Request{Operation: op, Path: path, Data: data, Secret: secret, Storage: store})
		if err != nil || resp.IsError() {
			t.Fatalf("%s %s: %v %v", op, path, err, resp)
		}
		return resp
	}
	stored := func(want int) {
		t.Helper()
		if all, err := logical.CollectKeys(t.Context(), store); err != nil || len(all) != want {
			t.Errorf("storage has %q, %v; want %d records", all, err, want)
		}
	}
	do(logical.UpdateOperation, "config", map[string]any{"url": server.URL, "token": "admin", "ca_pem": lab.CertificatePEM(server.Certificate())}, nil)
	for _, way := range []struct {
		op      logical.Operation
		path    string
		records int
	}{{logical.ReadOperation, "creds/honest", 2}, {logical.UpdateOperation, "creds/dressed", 1}} {
		resp := do(way.op, way.path, nil, nil)
		if secret, _ := resp.Data["api_key"].(string); !keys.Valid(secret) {
			t.Errorf("%s: the key does not work", way.path)
		}
		stored(way.records)
		do(logical.RenewOperation, "", nil, resp.Secret)
		do(logical.RevokeOperation, "", nil, resp.Secret)
		if live := keys.Live(); len(live) != 0 {
			t.Errorf("%s: keys live on: %v", way.path, live)
		}
		stored(0)
	}

	floor := do(logical.ReadOperation, "creds/floor", nil, nil)
	do(logical.RenewOperation, "", nil, floor.Secret)
	do(logical.RevokeOperation, "", nil, floor.Secret)
	stored(0)
}
