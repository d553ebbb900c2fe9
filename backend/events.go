// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// Events tell subscribers what happened to a key, a rotation or a revocation. They contain names, ids and counts, nothing
// about callers and nothing secret. They are sent once and may be lost; the ledger has what must not be missed.
const (
	eventIssued            = "key-issue"
	eventRenewed           = "key-renew"
	eventRevoked           = "key-revoke" // whatever revoked it: its lease, a revocation, the sweeper, or a newer key
	eventOwed              = "key-debt"   // revoking it has failed so far
	eventStaticRotated     = "static-key-rotate"
	eventCredentialRotated = "credential-rotate"
	eventRevocation        = "revocation-" // followed by start, or by its new state

	eventTimeout = time.Second
	listenersAge = time.Minute // for how long the answer to whether anybody can subscribe is cached
)

// listeners caches whether anybody can subscribe to the server's events. Only Vault Enterprise lets clients do so; elsewhere
// each event would be a useless call to another process.
type listeners struct {
	mu    sync.Mutex
	may   bool
	asked time.Time
}

func (l *listeners) mayBe(ctx context.Context, system logical.SystemView, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asked.IsZero() || now.Sub(l.asked) >= listenersAge || now.Before(l.asked) {
		l.asked = now
		if env, err := system.PluginEnv(ctx); err == nil { // on an error keep the previous answer
			l.may = strings.HasPrefix(env.GetVaultVersionMetadata(), "ent")
		}
	}
	return l.may
}

// sendEvent sends an event about a path of this mount, with pairs of names and values, if anybody can receive it. It only
// logs that the server does not take the event.
func (b *engine) sendEvent(ctx context.Context, kind, path string, pairs ...string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), eventTimeout)
	defer cancel()
	if !b.listeners.mayBe(ctx, b.System(), b.now()) {
		return
	}
	err := logical.SendEvent(ctx, b, operationPrefix+"/"+kind, append(pairs, logical.EventMetadataPath, path)...)
	if err != nil {
		b.Logger().Debug("sending an event", "event", kind, "error", err)
	}
}

// sendKeyEvent sends an event about a key.
func (b *engine) sendKeyEvent(ctx context.Context, kind string, e *entry) {
	path := "creds/" + e.Role
	if name, static := strings.CutPrefix(e.Role, staticPrefix); static {
		path = "static-creds/" + name
	} else if strings.HasPrefix(e.Role, reconciledPrefix) {
		path = e.Role
	}
	b.sendEvent(ctx, kind, path, "id", e.ID, "role", e.Role, "target", e.Target)
}

// sendRevocationEvent sends an event that a revocation has started or changed its state.
func (b *engine) sendRevocationEvent(ctx context.Context, id, state string, c *census) {
	b.sendEvent(ctx, eventRevocation+state, "revocations/"+id, "matched", strconv.Itoa(c.Matched), "revoked", strconv.Itoa(c.Revoked),
		"debt", strconv.Itoa(c.Debt), "exposed", strconv.Itoa(c.Exposed))
}

// recordRevoked removes a revoked key from the ledger and sends an event.
func (b *engine) recordRevoked(ctx context.Context, s logical.Storage, e *entry) error {
	err := b.ledger.delete(ctx, s, e)
	if err == nil {
		b.sendKeyEvent(ctx, eventRevoked, e)
	}
	return err
}

// recordDebt makes a key that could not be revoked a debt, and sends an event.
func (b *engine) recordDebt(ctx context.Context, s logical.Storage, e *entry) error {
	if err := b.ledger.openDebt(ctx, s, e); err != nil {
		return err
	}
	b.sendKeyEvent(ctx, eventOwed, e)
	return nil
}
