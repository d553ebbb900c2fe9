// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"sync"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// limiters keeps the limiter of each target across writes to the target, each of which reopens it: what an API has asked for
// (Retry-After) and whether it is down does not depend on what operators write.
type limiters struct {
	mu     sync.Mutex
	byName map[string]limiterAt
}

type limiterAt struct {
	*target.Limiter
	origin string
}

// of returns the limiter of a target, a new one if the target's origin is not the one of before.
func (l *limiters) of(name, origin string, now func() time.Time) *target.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if found, ok := l.byName[name]; ok && found.origin == origin {
		return found.Limiter
	}
	if l.byName == nil {
		l.byName = map[string]limiterAt{}
	}
	made := target.NewLimiter(now)
	l.byName[name] = limiterAt{made, origin}
	return made
}

// forget drops the limiter of a deleted target.
func (l *limiters) forget(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.byName, name)
}
