// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"sync"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
)

// verifiers keeps the last verifier of each issuer by name, because every write to an issuer or to config makes a new issuer: a
// write that does not concern the issuer's keys must not lose them, least of all while its server is down.
type verifiers struct {
	mu     sync.Mutex
	byName map[string]*identity.Verifier
}

// inherit gives a new issuer the keys that the last verifier of its name has fetched.
func (v *verifiers) inherit(i *issuer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if i.verifier != nil {
		i.verifier.Inherit(v.byName[i.name])
	}
}

// keep remembers the verifier of an issuer that comes into use.
func (v *verifiers) keep(i *issuer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.byName == nil {
		v.byName = map[string]*identity.Verifier{}
	}
	v.byName[i.name] = i.verifier
}

// forget drops the verifier of a deleted issuer.
func (v *verifiers) forget(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.byName, name)
}
