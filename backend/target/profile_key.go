// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"slices"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

// keyParts say where in an answer the parts of a key are. All but secret may be nil, and secret is nil where the key is already
// known.
type keyParts struct {
	secret, accessor, expires *expr.Program
	fields                    []entry // further public facts
}

// parseKeyParts reads where in an answer the parts of a key are. members are those that are allowed; secret is required if it
// is among them.
func parseKeyParts(s section, variables []string, members ...string) keyParts {
	s.only(members...)
	var k keyParts
	if slices.Contains(members, "secret") {
		k.secret = s.required("secret", expr.String, variables...)
	}
	k.accessor = s.cel("accessor", expr.String, variables...)
	k.expires = s.cel("expires", expr.Any, variables...)
	fields := s.section("fields")
	for _, name := range fields.names {
		if !fieldName.MatchString(name) || slices.Contains(takenFields, name) {
			fields.fault(name, "cannot be the name of a field of its own")
		}
	}
	k.fields = entries(fields, expr.String, variables)
	return k
}

// key reads the key from an answer. From here on a key exists, so every fault is ErrProtocol, returned with the handle and the
// expiry of the refused key.
func (p *profileDriver) key(a *reading, r Request, sent time.Time) (Key, error) {
	read := p.read(a, p.made, sent)
	k, err := p.finish(a, read, r.Name, r.Params)
	if err != nil && validSecret(read.Secret) {
		return Key{Handle: p.handle(read, r.Name, r.Params), Expiry: read.Expiry}, err
	}
	return k, err
}

// handle returns what Renew, Revoke and Find need of a key.
func (p *profileDriver) handle(k Key, name string, params map[string]any) Handle {
	h := Handle{Name: name, Params: params}
	if p.endsByAccessor {
		h.Accessor = k.Accessor
	}
	if p.endsByKey {
		h.Secret = k.Secret
	}
	return h
}

// read reads the parts of a key from an answer.
func (p *profileDriver) read(a *reading, e keyParts, sent time.Time) Key {
	k := Key{
		Secret:   a.text("key.secret", e.secret),
		Accessor: a.text("key.accessor", e.accessor),
		Expiry:   a.expiry("key.expires", e.expires, sent),
	}
	for _, f := range e.fields {
		if text := a.text("key.fields."+f.name, f.value); text != "" {
			if k.Fields == nil {
				k.Fields = map[string]string{}
			}
			k.Fields[f.name] = text
		}
	}
	if e.expires == nil && p.lifetime > 0 {
		k.Expiry = sent.Add(p.lifetime).UTC()
	}
	if e.accessor != nil && k.Accessor == "" {
		a.failf("key.accessor: yields nothing")
	}
	return k
}

// finish checks a key, and adds its header and its handle.
func (p *profileDriver) finish(a *reading, k Key, name string, params map[string]any) (Key, error) {
	if a.err != nil {
		return Key{}, a.err
	}
	if fault := k.check(p.now()); fault != "" {
		return Key{}, protocol(a.op, "%s", fault)
	}
	a.vars = map[string]any{"key": map[string]any{"secret": k.Secret, "accessor": k.Accessor}}
	if k.Header = a.text("header.value", p.header); a.err != nil || !printable(k.Header) {
		return Key{}, protocol(a.op, "header.value: yields no printable text for this key")
	}
	if k.Header == k.Secret {
		k.Header = ""
	}
	k.Handle = p.handle(k, name, params)
	return k, nil
}
