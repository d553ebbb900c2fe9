// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// way is one way to get a key. Each has a Vault path of its own, and its leases are under this path.
type way struct {
	name   string
	engine string // the plugin behind it
	path   string
	issuer string // issuer of the token that is presented with each request; "" = none
	login  string // role of the JWT auth method where the token is used to log in first; "" = the caller has logged in before
}

// ways are all ways, in the order in which they are measured.
var ways = []way{
	{"floor", nullName, "null/creds/floor", "", ""},
	{"honest floor", nullName, "null/creds/honest", "", ""},
	{"dressed floor", nullName, "null/creds/dressed", "rs", ""},
	{"composition", nullName, "null/creds/honest", "rs", "service"},
	{"composition, batch", nullName, "null/creds/honest", "rs", "batch"},
	{"login", pluginName, "oidcexchange/creds/login", "", ""},
	{"RS256", pluginName, "oidcexchange/creds/rs", "rs", ""},
	{"RS256, single use", pluginName, "oidcexchange/creds/rs-once", "rs-once", ""},
	{"ES256", pluginName, "oidcexchange/creds/es", "es", ""},
	{"ES256, single use", pluginName, "oidcexchange/creds/es-once", "es-once", ""},
}

// group is one kind of work, done in some of the ways.
type group struct {
	name, what string
	ways       []string
	clients    []int
	rounds     int
	size       func(clients int) int // operations in a window
	quick      func(clients int) int
	prepare    func(w *world, ctx context.Context, by way, n, clients int) (work func() error, err error)
	ratios     []ratio
	windows    []window
}

// ratio compares the rates of two ways, round by round.
type ratio struct {
	of, to string
	aim    float64 // 0 = none
}

var groups = map[string]group{
	"issue": {
		name: "issue", what: "keys issued",
		ways:    []string{"floor", "honest floor", "dressed floor", "composition", "composition, batch", "login", "RS256", "RS256, single use", "ES256", "ES256, single use"},
		clients: []int{1, 8, 64}, rounds: 5, size: some(100, 300), quick: some(20, 80), prepare: prepareIssue,
		ratios: []ratio{
			{"RS256", "honest floor", 0.85}, {"RS256", "composition", 2}, {"RS256, single use", "honest floor", 0}, {"RS256, single use", "composition", 0},
			{"ES256", "honest floor", 0.85}, {"ES256", "composition", 2}, {"ES256, single use", "honest floor", 0}, {"ES256, single use", "composition", 0},
			{"RS256", "dressed floor", 0}, {"login", "honest floor", 0}, {"RS256", "composition, batch", 0}, {"dressed floor", "honest floor", 0}, {"honest floor", "floor", 0}, {"composition", "floor", 0},
		},
	},
	"renew": {
		name: "renew", what: "leases renewed", ways: []string{"floor", "honest floor", "login", "RS256"},
		clients: []int{1, 8, 64}, rounds: 5, size: some(100, 300), quick: some(20, 80), prepare: prepareRenew,
		ratios: []ratio{{"login", "honest floor", 0}, {"RS256", "honest floor", 0}, {"honest floor", "floor", 0}},
	},
	"revoke": {
		name: "revoke", what: "leases revoked by one revoke-prefix", ways: []string{"honest floor", "RS256"},
		clients: []int{1}, rounds: 5, size: some(10_000, 0), quick: some(300, 0), prepare: prepareRevoke,
		ratios: []ratio{{"RS256", "honest floor", 0.8}},
	},
}

// some returns the size of a window: one for a single client, more for several.
func some(one, more int) func(int) int {
	return func(clients int) int {
		if clients == 1 {
			return one
		}
		return more
	}
}

// prepareIssue signs the tokens. The work is to get n keys.
func prepareIssue(w *world, ctx context.Context, by way, n, clients int) (func() error, error) {
	tokens := w.tokens(by, n)
	return func() error {
		return each(n, clients, func(i int) error { _, err := w.issue(ctx, by, tokens[i]); return err })
	}, nil
}

// prepareRenew issues n leases. The work is to renew each once.
func prepareRenew(w *world, ctx context.Context, by way, n, clients int) (func() error, error) {
	leases, err := w.leases(ctx, by, n)
	return func() error {
		return each(n, clients, func(i int) error {
			var renewed struct{ Renewable bool }
			err := w.call(ctx, http.MethodPost, "sys/leases/renew", w.caller, map[string]string{"lease_id": leases[i]}, &renewed)
			if err == nil && !renewed.Renewable {
				err = errors.New("the lease is not renewable")
			}
			return err
		})
	}, err
}

// prepareRevoke issues n leases. The work is to revoke them by their prefix; it ends when none is left.
func prepareRevoke(w *world, ctx context.Context, by way, n, _ int) (func() error, error) {
	if err := w.revokeAll(ctx, by); err != nil {
		return nil, err
	}
	_, err := w.leases(ctx, by, n)
	return func() error { return w.revokeAll(ctx, by) }, err
}

func (w *world) revokeAll(ctx context.Context, by way) error {
	if err := w.call(ctx, http.MethodPut, "sys/leases/revoke-prefix/"+by.path, w.root.Token(), nil, nil); err != nil {
		return err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		left, err := w.root.Logical().ListWithContext(ctx, "sys/leases/lookup/"+by.path+"/")
		if err != nil || left == nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// leases issues n leases and returns their ids.
func (w *world) leases(ctx context.Context, by way, n int) ([]string, error) {
	tokens, ids := w.tokens(by, n), make([]string, n)
	return ids, each(n, 16, func(i int) (err error) {
		ids[i], err = w.issue(ctx, by, tokens[i])
		return err
	})
}

// tokens signs n tokens, if the way needs tokens.
func (w *world) tokens(by way, n int) []string {
	tokens := make([]string, n)
	if issuer := w.issuers[by.issuer]; issuer != nil {
		for i := range tokens {
			tokens[i] = issuer.Token(map[string]any{"aud": audience, "exp": time.Now().Add(30 * time.Minute).Unix()})
		}
	}
	return tokens
}

// issue gets one key in the given way, and returns its lease.
func (w *world) issue(ctx context.Context, by way, token string) (lease string, err error) {
	caller, method, body := w.caller, http.MethodGet, map[string]string(nil)
	var answer struct {
		LeaseID string `json:"lease_id"`
		Auth    struct {
			ClientToken string `json:"client_token"`
		}
		Data struct {
			APIKey string `json:"api_key"`
		}
	}
	switch {
	case by.login != "":
		if err := w.call(ctx, http.MethodPost, "auth/jwt/login", "", map[string]string{"role": by.login, "jwt": token}, &answer); err != nil {
			return "", err
		}
		caller = answer.Auth.ClientToken
	case token != "":
		method, body = http.MethodPut, map[string]string{"subject_token": token}
	}
	if err := w.call(ctx, method, by.path, caller, body, &answer); err != nil {
		return "", err
	}
	if answer.LeaseID == "" || answer.Data.APIKey == "" {
		return "", fmt.Errorf("%s gave no key, or no lease", by.path)
	}
	return answer.LeaseID, nil
}

// call sends a request to Vault with as simple a client as possible, because the client runs on the cores that are measured.
func (w *world) call(ctx context.Context, method, path, token string, body map[string]string, out any) error {
	var raw []byte
	if body != nil {
		raw, _ = json.Marshal(body) // strings can always be encoded
	}
	req, err := http.NewRequestWithContext(ctx, method, w.addr+"/v1/"+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("X-Vault-Token", token)
	res, err := w.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("%s %s: %d: %s", method, path, res.StatusCode, answer)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer, out)
}

// each calls f for 0 to n-1 from the given number of goroutines, and stops at an error.
func each(n, clients int, f func(i int) error) error {
	var next atomic.Int64
	var wait sync.WaitGroup
	failed := make(chan error, clients)
	for range clients {
		wait.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := f(i); err != nil {
					next.Store(int64(n))
					failed <- err
					return
				}
			}
		})
	}
	wait.Wait()
	close(failed)
	return <-failed
}
