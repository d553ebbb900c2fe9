// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

const leaseTimesAge = 10 * time.Second // how long an answer is cached

// leaseTimes caches the mount's default and maximum lease TTL. Each is a call to Vault's process, and an issue needs three.
// A stale value does no harm: Vault itself enforces the mount's current maximum on every lease.
type leaseTimes struct {
	mu     sync.Mutex
	cached *logical.StaticSystemView
	at     time.Time
}

// of returns a view that has the lease times, and nothing else.
func (l *leaseTimes) of(system logical.SystemView, now time.Time) logical.SystemView {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cached == nil || now.Sub(l.at) >= leaseTimesAge || now.Before(l.at) {
		l.cached, l.at = &logical.StaticSystemView{DefaultLeaseTTLVal: system.DefaultLeaseTTL(), MaxLeaseTTLVal: system.MaxLeaseTTL()}, now
	}
	return l.cached
}
