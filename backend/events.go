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

// Events tell the subscribers of a server that has some what became of a key, a rotation or a revocation. They hold names,
// ids and counts, nothing of a caller and nothing secret, and are sent once: what must not be missed is in the ledger.
const (
	eventIssued            = "key-issue"
	eventRenewed           = "key-renew"
	eventRevoked           = "key-revoke" // whatever ended it: its lease, a revocation, the sweeper, or a newer key
	eventOwed              = "key-debt"   // it must die, and does not yet
	eventStaticRotated     = "static-key-rotate"
	eventCredentialRotated = "credential-rotate"
	eventRevocation        = "revocation-" // and start, or its new state

	eventTimeout = time.Second
	listenersAge = time.Minute // for how long it is known whether anybody can subscribe
)

// listeners knows whether anybody can subscribe to the server's events. Only Vault Enterprise lets clients do so; elsewhere
// each event would be a call to another process for nobody.
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
		if env, err := system.PluginEnv(ctx); err == nil { // else as before, until it is asked again
			l.may = strings.HasPrefix(env.GetVaultVersionMetadata(), "ent")
		}
	}
	return l.may
}

// sendEvent sends an event about a path of this mount, with pairs of names and values, if anybody can hear it. That the server
// does not take one is no fault.
func (b *engine) sendEvent(ctx context.Context, kind, path string, pairs ...string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), eventTimeout)
	defer cancel()
	if !b.listeners.mayBe(ctx, b.System(), b.now()) {
		return
	}
	err := logical.SendEvent(ctx, b, operationPrefix+"/"+kind, append(pairs, logical.EventMetadataPath, path)...)
	if err != nil {
		b.Logger().Debug("an event was not taken", "event", kind, "error", err)
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

// sendRevocationEvent sends an event about a revocation that has started, or is in another state now.
func (b *engine) sendRevocationEvent(ctx context.Context, id, state string, c *census) {
	b.sendEvent(ctx, eventRevocation+state, "revocations/"+id, "matched", strconv.Itoa(c.Matched), "revoked", strconv.Itoa(c.Revoked),
		"debt", strconv.Itoa(c.Debt), "exposed", strconv.Itoa(c.Exposed))
}

// recordRevoked removes a key that was revoked from the ledger, and tells.
func (b *engine) recordRevoked(ctx context.Context, s logical.Storage, e *entry) error {
	err := b.ledger.delete(ctx, s, e)
	if err == nil {
		b.sendKeyEvent(ctx, eventRevoked, e)
	}
	return err
}

// recordDebt records that a key must die and does not yet, and tells.
func (b *engine) recordDebt(ctx context.Context, s logical.Storage, e *entry) error {
	if err := b.ledger.openDebt(ctx, s, e); err != nil {
		return err
	}
	b.sendKeyEvent(ctx, eventOwed, e)
	return nil
}
