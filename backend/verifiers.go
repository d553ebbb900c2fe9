// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"sync"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
)

// verifiers keeps the verifier that each issuer had last, while the issuer itself is made anew with every write to it or to
// config: an edit that has nothing to do with its keys must not lose them, least of all while its server is down.
type verifiers struct {
	mu     sync.Mutex
	byName map[string]*identity.Verifier
}

// inherit hands a new issuer the keys that are known of it.
func (v *verifiers) inherit(i *issuer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if i.verifier != nil {
		i.verifier.Inherit(v.byName[i.name])
	}
}

// keep remembers the verifier of an issuer that is used from now on.
func (v *verifiers) keep(i *issuer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.byName == nil {
		v.byName = map[string]*identity.Verifier{}
	}
	v.byName[i.name] = i.verifier
}

// forget drops the verifier of an issuer that is no more.
func (v *verifiers) forget(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.byName, name)
}
