// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// Package backend is the secrets engine: paths, storage and leases. The way of one key is one function, issue in
// exchange.go: verify who asks (package identity, or the caller's Vault login), decide (package trust), record what is
// about to happen (ledger.go), exchange at the target (package target), lease. What ends a key is in lease.go, what
// finds the keys that nobody holds is in sweep.go, and every refusal is worded in errors.go.
package backend

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/source"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/trust"
)

// operationPrefix starts the names of all operations in OpenAPI documents.
const operationPrefix = "oidcexchange"

// Version is the plugin's version, a semantic version with a leading "v"; the linker sets it for a release.
var Version = "v0.0.0-dev"

// engine is one mount. One process serves many mounts, so all state is here.
type engine struct {
	*framework.Backend

	now func() time.Time
	log atomic.Pointer[mountLog]

	background     context.Context // of work that outlives its request; ends when the mount is unloaded
	stopBackground context.CancelFunc

	writes    sync.Mutex // operators' writes, which read before they write
	settings  cache[*settings]
	issuers   cache[*issuer]
	verifiers verifiers
	policies  cache[*policy]
	targets   cache[*openTarget]
	limiters  limiters
	roles     cache[*role]
	blocks    cache[[]block]
	self      cache[*provider]

	issuerNoun noun[issuerRecord]
	trustNoun  noun[trustRecord]
	targetNoun noun[targetRecord]
	roleNoun   noun[roleRecord]
	blockNoun  noun[blockRecord]
	staticNoun noun[staticRecord]

	workload  workloadAPI
	tokenDirs string // the plugin's environment: where token files may be

	leaseTimes leaseTimes
	listeners  listeners

	nameLocks locks // by what they guard: a secret that is rotated, a key that is renewed, a target that is reconciled
	ledger    ledger
	replay    replay
	runs      runs
	counts    sync.Mutex // one count at a time
	sweeps    sync.Mutex // one sweep at a time
	sweptTo   string     // the open entry at which the last sweep stopped
	hoursDue  time.Time  // passed hours have no keys; the next one will have passed then
	turn      int        // sweeps so far; each begins with another part

	lastSweep atomic.Pointer[sweepReport]
	meters    *meters
}

// Factory makes the engine for one mount.
func Factory(ctx context.Context, config *logical.BackendConfig) (logical.Backend, error) {
	b := newEngine(time.Now)
	if err := b.Setup(ctx, config); err != nil {
		return nil, fmt.Errorf("setting up the engine: %w", err)
	}
	return b, nil
}

func newEngine(now func() time.Time) *engine {
	b := &engine{now: now, meters: newMeters(), workload: workloadAPI(os.Getenv(endpointSocket)), tokenDirs: os.Getenv(source.DirsVariable)}
	b.background, b.stopBackground = context.WithCancel(context.Background())
	b.replay.now = now
	b.issuers.kept = b.verifiers.keep
	b.targets.kept, b.targets.dropped = func(t *openTarget) { t.Use() }, func(t *openTarget) { t.Close() }
	b.issuerNoun, b.trustNoun, b.targetNoun = b.newIssuerNoun(), b.newTrustNoun(), b.newTargetNoun()
	b.roleNoun, b.blockNoun, b.staticNoun = b.newRoleNoun(), b.newBlockNoun(), b.newStaticNoun()
	b.Backend = &framework.Backend{
		Help:           help,
		BackendType:    logical.TypeLogical,
		RunningVersion: Version,
		PathsSpecial: &logical.Paths{
			Unauthenticated: []string{"oidc" + discoveryPath, "oidc" + keysPath},
			SealWrapStorage: []string{b.targetNoun.table.prefix, sealedKeys, selfName, staticStates, rootStates},
			LocalStorage:    []string{openEntries, plainKeys, sealedKeys, usedTokens, revocationTable.prefix},
		},
		Secrets:      []*framework.Secret{b.keySecret()},
		PeriodicFunc: b.tick,
		Invalidate:   b.invalidate,
		InitializeFunc: func(_ context.Context, req *logical.InitializationRequest) error {
			b.count(req.Storage)
			b.resume(req.Storage)
			return nil
		},
		Clean: func(context.Context) { b.stopBackground(); b.configChanged() },
	}
	b.Paths = framework.PathAppend(
		[]*framework.Path{b.configPath()},
		b.issuerNoun.paths(b), b.trustNoun.paths(b), b.targetNoun.paths(b), b.roleNoun.paths(b), b.blockNoun.paths(b),
		b.selfPaths(), b.keysPaths(), b.revocationPaths(), b.credsPaths(), b.staticPaths(), b.statusPaths(),
		[]*framework.Path{b.explainPath(), b.checkPath(), b.reconcilePath(), b.rotateRootPath(), b.sweepPath(), b.metricsPath()},
	)
	return b
}

const help = `
The oidcexchange engine turns a verified identity into an API key that Vault leases.

An issuer says who vouches for callers, a trust policy what a caller must be, a target which API gives out keys, and a
role joins them. Reading creds/<role> issues a key at the target for a caller whose Vault login is trusted; writing a
subject_token there does so for the bearer of that token. Vault's lease commands renew and revoke the key.`

// HandleRequest is the door that every request passes: what it holds is checked for its type before the SDK sees it,
// and a panic ends one request instead of every mount that this process serves.
func (b *engine) HandleRequest(ctx context.Context, req *logical.Request) (resp *logical.Response, err error) {
	defer b.recovered(req, &resp, &err)
	b.nameLog(req.MountPoint)
	switch req.Operation {
	case logical.CreateOperation, logical.ReadOperation, logical.UpdateOperation, logical.PatchOperation, logical.DeleteOperation, logical.ListOperation:
		if path := b.Route(req.Path); path != nil {
			if err := normalize(req, path); err != nil {
				return b.respond(req, err)
			}
		}
	}
	return b.Backend.HandleRequest(ctx, req)
}

// HandleExistenceCheck looks at the path alone; the fields are judged by HandleRequest, whose answers name them.
func (b *engine) HandleExistenceCheck(ctx context.Context, req *logical.Request) (found, exists bool, err error) {
	defer b.recovered(req, nil, &err)
	bare := *req
	bare.Data = nil
	return b.Backend.HandleExistenceCheck(ctx, &bare)
}

// mountLog is a logger whose lines say which mount they are of: one process serves many.
type mountLog struct {
	hclog.Logger
	mount string
}

func (b *engine) nameLog(mount string) {
	if named := b.log.Load(); mount != "" && (named == nil || named.mount != mount) {
		b.log.Store(&mountLog{Logger: b.Backend.Logger().With("mount", mount), mount: mount})
	}
}

// Logger returns the mount's logger.
func (b *engine) Logger() hclog.Logger {
	if named := b.log.Load(); named != nil {
		return named.Logger
	}
	return b.Backend.Logger()
}

func (b *engine) recovered(req *logical.Request, resp **logical.Response, err *error) {
	if p := recover(); p != nil {
		// The value of a panic can hold what the request held; its type and the stack cannot.
		b.Logger().Error("panic", "type", fmt.Sprintf("%T", p), "path", req.Path, "request_id", req.ID, "stack", string(debug.Stack()))
		if resp != nil {
			*resp = nil
		}
		*err = logical.CodedError(http.StatusInternalServerError, fmt.Sprintf("%s: %s (request %s)", reasonInternal, reasons[reasonInternal].ToDo, req.ID))
	}
}

// handle turns an operation's errors into responses, in the one way that respond has.
func (b *engine) handle(operation framework.OperationFunc) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
		resp, err := operation(ctx, req, d)
		if err == nil {
			return resp, nil
		}
		if coded, ok := err.(logical.HTTPCodedError); ok { //nolint:errorlint // a wrapped one has no status for Vault
			return nil, coded
		}
		return b.respond(req, err)
	}
}

// count counts the ledger in the background, unless it is counted, or being counted. What it meets is tried again by the
// next tick.
func (b *engine) count(s logical.Storage) {
	if counted, _ := b.ledger.counting(); counted || b.readsOnly() || !b.counts.TryLock() {
		return
	}
	go func() {
		defer b.counts.Unlock()
		defer b.recovered(&logical.Request{Path: "counting the ledger"}, nil, new(error))
		if err := b.ledger.count(b.background, s); err != nil && b.background.Err() == nil {
			b.Logger().Error("counting the ledger; roles with ceilings refuse until it is done", "error", err)
		}
	}()
}

// readsOnly tells a node whose requests are served, or whose ledger is kept, by another one.
func (b *engine) readsOnly() bool {
	return b.System().ReplicationState().HasState(consts.ReplicationPerformanceStandby | consts.ReplicationDRSecondary)
}

// invalidate drops what was made of a record that changed elsewhere: another node wrote it, or replication brought it.
func (b *engine) invalidate(_ context.Context, key string) {
	switch {
	case key == configName:
		b.configChanged()
	case key == selfName:
		b.self.clear()
	default:
		for _, table := range []struct {
			prefix string
			drop   func(string)
		}{
			{b.issuerNoun.table.prefix, b.issuerNoun.changed}, {b.trustNoun.table.prefix, b.trustNoun.changed},
			{b.targetNoun.table.prefix, b.targetNoun.changed}, {b.roleNoun.table.prefix, b.roleNoun.changed},
			{b.blockNoun.table.prefix, b.blockNoun.changed},
		} {
			if name, ok := strings.CutPrefix(key, table.prefix); ok {
				table.drop(name)
			}
		}
	}
}

// configChanged drops everything that was made of records: limits and egress rules are in every verifier and every target.
func (b *engine) configChanged() {
	b.settings.clear()
	b.issuers.clear()
	b.policies.clear()
	b.targets.clear()
	b.roles.clear()
	b.blocks.clear()
	b.self.clear()
}

// identityKind tells which kind of identity the subjects of an issuer have.
func identityKind(issuerType string) trust.Kind {
	if issuerType == issuerLogin {
		return trust.Login
	}
	return trust.Token
}
