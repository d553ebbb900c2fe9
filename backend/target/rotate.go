// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

// Credential is a new credential of the engine at a target. Its fields are neither printed nor logged, like all secrets of this
// package.
type Credential struct {
	Fields map[string]string // the same fields as in the credential that it replaces
	Expiry time.Time         // UTC; zero = it does not end by itself
}

// String returns "credential", without any field.
func (Credential) String() string { return "credential" }

// Format implements fmt.Formatter.
func (c Credential) Format(s fmt.State, _ rune) { show(s, c) }

// LogValue implements slog.LogValuer.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Rotate replaces the key that h names by a new one, and ends the old one. notAfter is the latest expiry that the new key may
// have. h must have what Revoke needs, and Secret.
//
// After an error for which MayLive is true, the old key may have ended, and a new one may exist that nobody has. Never call
// Rotate for the old key again then: some targets take that for theft and end the new key too. Find finds the new key under
// the same name.
func (t *Target) Rotate(ctx context.Context, h Handle, notAfter time.Time) (Key, error) {
	if t.driver.rotate == nil {
		return Key{}, unsupported("rotate")
	}
	return t.driver.rotate(ctx, h, notAfter)
}

// Identify presents a key to the target and returns which key it is. params say where the key should belong; to check that it
// does, use Find. ErrDenied means that the target does not accept the key.
func (t *Target) Identify(ctx context.Context, secret string, params map[string]any) (Key, error) {
	if t.driver.identify == nil {
		return Key{}, unsupported("identify")
	}
	return t.driver.identify(ctx, secret, params)
}

// RotateCredential makes a new credential for the engine, with the given name if credentials have names at the target. It ends
// the old one, unless Caps.Retire is true: then the old one is valid until RetireCredential. Errors mean what they mean for
// Rotate, except that a lost credential cannot be found.
func (t *Target) RotateCredential(ctx context.Context, name string, notAfter time.Time) (Credential, error) {
	if t.driver.rotateCredential == nil {
		return Credential{}, unsupported("rotate_credential")
	}
	return t.driver.rotateCredential(ctx, name, notAfter)
}

// RetireCredential ends the credential that this target was opened with. It may be called again: a credential that the target
// no longer accepts counts as ended, though that is not certain, because a proxy may refuse in the same way.
func (t *Target) RetireCredential(ctx context.Context) (doubtful bool, err error) {
	if t.driver.retire == nil {
		return false, unsupported("retire_credential")
	}
	return t.driver.retire(ctx)
}

// check says what is wrong with a credential that a target claims to have made.
func (c Credential) check(now time.Time) string {
	for _, value := range c.Fields {
		if value == "" || len(value) > maxCredentialBytes || !printable(value) {
			return fmt.Sprintf("the new credential is not printable ASCII of 1 to %d bytes", maxCredentialBytes)
		}
	}
	if !c.Expiry.IsZero() && !c.Expiry.After(now) {
		return "the new credential has already expired"
	}
	return ""
}

// The part of profiles.

func (p *profileDriver) doRotate(ctx context.Context, h Handle, notAfter time.Time) (Key, error) {
	vars := p.handleVars(h)
	vars["not_after"] = notAfter.UTC().Truncate(time.Second)
	a, sent, err := p.ask(ctx, "rotate", p.rotate, vars)
	if err != nil {
		return Key{}, err
	}
	return p.finish(a, p.read(a, p.rotated, sent), h.Name, h.Params)
}

func (p *profileDriver) doIdentify(ctx context.Context, secret string, params map[string]any) (Key, error) {
	vars := map[string]any{"params": numbers(params), "credential": p.credential, "key": map[string]any{"secret": secret}}
	a, sent, err := p.ask(ctx, "identify", p.identify, vars)
	if err != nil {
		return Key{}, err
	}
	name := a.text("key.name", p.keyName)
	k := p.read(a, p.identified, sent)
	k.Secret = secret
	return p.finish(a, k, name, params)
}

func (p *profileDriver) doRotateCredential(ctx context.Context, name string, notAfter time.Time) (Credential, error) {
	vars := map[string]any{"name": name, "not_after": notAfter.UTC().Truncate(time.Second), "credential": p.credential}
	a, sent, err := p.ask(ctx, "rotate_credential", p.rotateCredential, vars)
	if err != nil {
		return Credential{}, err
	}
	c := Credential{Fields: map[string]string{}, Expiry: a.expiry("expires", p.credentialExpires, sent)}
	for field, value := range p.credential {
		c.Fields[field] = value.(string)
	}
	for _, e := range p.newCredential {
		c.Fields[e.name] = a.text("credential."+e.name, e.value)
	}
	if fault := c.check(p.now()); a.err == nil && fault != "" {
		a.failf("%s", fault)
	}
	if a.err != nil {
		return Credential{}, a.err
	}
	return c, nil
}

func (p *profileDriver) doRetire(ctx context.Context) (doubtful bool, err error) {
	c, err := p.retire.call("retire_credential", expr.NewBudget(), map[string]any{"credential": p.credential})
	if err != nil {
		return false, err
	}
	answered, err := p.api.do(ctx, c)
	return err == nil && p.retire.onlyIf == nil && slices.Contains(p.retire.gone, answered.status), err
}

// ask makes a call, prepares its answer for reading, and returns when the call was sent. The expressions that read the answer
// have the variables of the request, without its secrets.
func (p *profileDriver) ask(ctx context.Context, op string, o *operation, vars map[string]any) (*reading, time.Time, error) {
	b := expr.NewBudget()
	c, err := o.call(op, b, vars)
	if err != nil {
		return nil, time.Time{}, err
	}
	sent := p.now()
	c.wantBody = true
	answered, err := p.api.do(ctx, c)
	if err != nil {
		return nil, time.Time{}, err
	}
	for _, secret := range []string{"credential", "key"} {
		delete(vars, secret)
	}
	return answerOf(op, b, answered, vars), sent, nil
}

// parseRotation reads the operations that replace keys and credentials.
func (p *profile) parseRotation(s section) {
	if p.rotate = parseOperation(s, "rotate", rotateScope, "denied", "key"); p.rotate != nil {
		p.rotated = parseKeyParts(s.section("rotate").section("key"), rotatedVariables, "secret", "accessor", "expires", "fields")
	}
	if p.identify = parseOperation(s, "identify", identifyScope, "denied", "key"); p.identify != nil {
		key := s.section("identify").section("key")
		p.identified = parseKeyParts(key, identifiedVariables, "name", "accessor", "expires", "fields")
		p.keyName = key.cel("name", expr.String, identifiedVariables...)
	}
	if p.rotateCredential = parseOperation(s, "rotate_credential", rotateCredentialScope, "denied", "credential", "expires"); p.rotateCredential != nil {
		o := s.section("rotate_credential")
		fields := o.section("credential")
		for _, name := range fields.names {
			if !slices.Contains(p.credential, name) {
				fields.fault(name, "is no field of the credential")
			}
		}
		if p.newCredential = entries(fields, expr.String, credentialVariables); len(p.newCredential) == 0 {
			o.fault("credential", "is missing: the fields that are new")
		}
		p.credentialExpires = o.cel("expires", expr.Any, credentialVariables...)
	}
	if p.retire = parseOperation(s, "retire_credential", checkScope, "gone"); p.retire != nil && p.rotateCredential == nil {
		s.fault("retire_credential", "is of no use without rotate_credential")
	}
}
