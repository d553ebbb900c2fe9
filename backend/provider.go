// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// provider is this mount as an OpenID provider (path self): a selfRecord as the engine uses it.
type provider struct {
	selfRecord
	discovery, keys []byte // the published documents; nil while the provider is off
}

func (p *provider) on() bool { return p.IssuerURL != "" }

// provider returns this mount's provider, which may be off; it is never nil.
func (b *engine) provider(ctx context.Context, s logical.Storage) (*provider, error) {
	p, _, err := b.self.get(selfName, func() (*provider, bool, error) {
		record, err := loadSelf(ctx, s)
		if err != nil {
			return nil, false, err
		}
		p := &provider{selfRecord: *record}
		if !p.on() {
			return p, true, nil
		}
		if p.discovery, err = discoveryDocument(p.IssuerURL); err != nil {
			return nil, false, fmt.Errorf("encoding the discovery document: %w", err)
		}
		if p.keys, err = json.Marshal(jose.JSONWebKeySet{Keys: p.Ring.published()}); err != nil {
			return nil, false, fmt.Errorf("encoding the key set: %w", err)
		}
		return p, true, nil
	})
	return p, err
}

// rotateSelf rotates the provider's keys if that is due. Only a node that may write the record does; the others then learn of
// the write by invalidate.
func (b *engine) rotateSelf(ctx context.Context, req *logical.Request) {
	defer b.recovered(req, nil, new(error))
	if !b.WriteSafeReplicationState() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	p, err := b.provider(ctx, req.Storage)
	if err == nil && !p.Ring.idle(p.RotationPeriod.duration(), b.now()) {
		err = b.turnRing(ctx, req.Storage)
	}
	if err != nil {
		b.Logger().Error("rotating the signing keys of self; the next tick tries again", "error", err)
	}
}

// turnRing brings the stored ring up to date.
func (b *engine) turnRing(ctx context.Context, s logical.Storage) error {
	b.writes.Lock()
	defer b.writes.Unlock()
	record, err := loadSelf(ctx, s)
	if err != nil {
		return err
	}
	changed, now := false, b.now().UTC()
	if record.IssuerURL == "" {
		changed = record.Ring.drop(now)
	} else if changed, err = record.Ring.turn(record.Algorithm, record.RotationPeriod.duration(), now); err != nil {
		return err
	}
	defer b.self.clear() // even after an error: the write may have been done
	if !changed {
		return nil
	}
	if err := selfTable.put(ctx, s, selfName, record); err != nil {
		return err
	}
	b.Logger().Info("the signing keys of self changed", "published", len(record.Ring.published()))
	return nil
}

// notOwn refuses a token that this mount has signed, even if an issuer would accept it: an issuer may name our keys under
// another iss, and issuer_url may have changed since.
func (b *engine) notOwn(ctx context.Context, s logical.Storage, claimed identity.Claimed) error {
	p, err := b.provider(ctx, s)
	if err != nil {
		return err
	}
	if p.on() && claimed.Issuer == p.IssuerURL || p.Ring.has(claimed.KeyID) {
		return refuse(identity.UnknownIssuer, "the token was signed by this mount, which accepts no token of its own")
	}
	return nil
}

// notSelf refuses an issuer record whose issuer is this mount.
func (b *engine) notSelf(ctx context.Context, s logical.Storage, record *issuerRecord) error {
	p, err := b.provider(ctx, s)
	if err != nil {
		return err
	}
	if p.on() && record.Issuer == p.IssuerURL {
		return badField("issuer", "is the issuer_url of self; this mount accepts no token of its own")
	}
	return nil
}

// The values of a target's self_subject: what the sub of a token of this mount says.
const (
	selfRole   = "role"
	selfEntity = "entity"
)

// checkSelfSubject checks those fields of a target that concern tokens of self.
func (b *engine) checkSelfSubject(ctx context.Context, s logical.Storage, t *openTarget) (warnings []string, err error) {
	if t.Source() != target.SourceSelf {
		return nil, nil
	}
	if !slices.Contains([]string{"", selfRole, selfEntity}, t.record.SelfSubject) {
		return nil, badField("self_subject", "want role or entity")
	}
	p, err := b.provider(ctx, s)
	if err != nil || p.on() {
		return nil, err
	}
	return []string{"no key can be issued until self has an issuer_url"}, nil
}

// assertion is a token of this mount that is not signed yet.
type assertion struct {
	by     *provider
	claims selfClaims
}

// assert prepares the assertion for a target with subject_token_source=self; nil for other targets. It writes nothing.
func (b *engine) assert(ctx context.Context, req *logical.Request, o *order) (*assertion, error) {
	if o.target.Source() != target.SourceSelf {
		return nil, nil
	}
	p, err := b.provider(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	if !p.on() {
		return nil, refuse(reasonDisabled, "target %q wants a token of this mount, but self has no issuer_url", o.role.Target)
	}
	claims := selfClaims{
		Issuer: p.IssuerURL, Subject: "role:" + o.role.name, Audience: o.target.Audience(), Role: o.role.name,
		Mount: strings.TrimSuffix(req.MountPoint, "/"), SubjectIssuer: o.who.issuer.name, VerifiedSubject: o.who.Subject,
	}
	if req.EntityID != "" {
		entity, err := b.entity(req.EntityID)
		if err != nil {
			return nil, err
		}
		claims.EntityID, claims.EntityName = entity.ID, entity.Name
	}
	if o.target.record.SelfSubject == selfEntity {
		if claims.EntityID == "" {
			return nil, refuse(reasonNoEntity, "target %q has self_subject=entity, but the caller has no entity", o.role.Target)
		}
		claims.Subject = "entity:" + claims.EntityID
	}
	return &assertion{by: p, claims: claims}, nil
}

func (a *assertion) sign(now time.Time) (string, error) {
	token, err := a.by.Ring.sign(a.claims.at(now, a.by.TTL.duration()))
	if err != nil {
		return "", refuse(reasonInternal, "signing a token of this mount: %v", err)
	}
	return token, nil
}
