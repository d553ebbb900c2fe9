// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// Package backend is the secrets engine: paths, storage and leases.
//
// Start at issue in exchange.go, which shows all the steps that lead to a key: verify who asks (package identity, or the
// caller's Vault login), decide (package trust), record what is about to happen (ledger.go), exchange at the target
// (package target), lease. Then:
//
//	lease.go, extend.go          renew and revoke one key
//	sweep.go                     end the keys that no lease holds
//	revocations.go, reconcile.go revoke by filter, and find what a restored ledger lacks
//	rotate.go                    replace what the engine itself holds: root.go (credentials) and static.go (static roles)
//	noun.go, path_*.go           what operators write, one file a path
//	errors.go                    how an error becomes a response
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

	writes    sync.Mutex // serializes operators' writes: each reads the old record first
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
	tokenDirs string // directories that may hold token files, from the plugin's environment

	leaseTimes leaseTimes
	listeners  listeners

	nameLocks locks // by what they guard: a secret that is rotated, a key that is renewed, a target that is reconciled
	ledger    ledger
	replay    replay
	runs      runs
	counts    sync.Mutex // held by the one count of the ledger that runs
	sweeps    sync.Mutex // held by the one sweep that runs; guards the next three fields
	sweptTo   string     // the open entry at which the last sweep stopped
	hoursDue  time.Time  // when the next hour will have passed; until then no passed hour has keys
	turn      int        // number of sweeps so far: each begins with a different part

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

// HandleRequest is the entry of every request. It checks the types of the request's fields before the SDK converts them,
// and confines a panic to one request: this process may serve many mounts.
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

// HandleExistenceCheck looks at the path alone. HandleRequest checks the fields, and its errors can name them.
func (b *engine) HandleExistenceCheck(ctx context.Context, req *logical.Request) (found, exists bool, err error) {
	defer b.recovered(req, nil, &err)
	bare := *req
	bare.Data = nil
	return b.Backend.HandleExistenceCheck(ctx, &bare)
}

// mountLog is a logger that adds the mount to each line, because one process serves many mounts.
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
		// The value of a panic may contain a token or a key from the request; its type and the stack do not.
		b.Logger().Error("panic", "type", fmt.Sprintf("%T", p), "path", req.Path, "request_id", req.ID, "stack", string(debug.Stack()))
		if resp != nil {
			*resp = nil
		}
		*err = logical.CodedError(http.StatusInternalServerError, fmt.Sprintf("%s: %s (request %s)", reasonInternal, reasons[reasonInternal].ToDo, req.ID))
	}
}

// handle makes respond turn the operation's errors into responses.
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

// count counts the ledger in the background, unless that is done or under way. After an error the next tick tries again.
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

// readsOnly reports whether another node serves this node's writes or keeps its ledger.
func (b *engine) readsOnly() bool {
	return b.System().ReplicationState().HasState(consts.ReplicationPerformanceStandby | consts.ReplicationDRSecondary)
}

// invalidate drops what is cached of a record that changed elsewhere, on another node or by replication.
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

// configChanged clears the caches of all that was made of records: limits and egress rules of config are in every verifier
// and every target.
func (b *engine) configChanged() {
	b.settings.clear()
	b.issuers.clear()
	b.policies.clear()
	b.targets.clear()
	b.roles.clear()
	b.blocks.clear()
	b.self.clear()
}

// identityKind returns the kind of identity that an issuer of this type verifies.
func identityKind(issuerType string) trust.Kind {
	if issuerType == issuerLogin {
		return trust.Login
	}
	return trust.Token
}
