// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"net/http"
	"time"

	gitlab "gitlab.com/gitlab-org/api/client-go/v2"
)

// GitLab rotates a token by ending it and making another one with the same name, scopes and level but a new id, in one step:
// there is no overlap. If a token is rotated that was rotated before, GitLab takes that for the reuse of a stolen token, and
// ends all tokens that descend from it. So after a rotation with an unknown outcome, rotating again could end the very token
// that is wanted.

// rotateKey replaces the key that h names. After ErrUnknown or ErrProtocol, h must not be rotated again: find finds the new
// key under h's name, and revoke ends it.
func (g *gitlabDriver) rotateKey(ctx context.Context, h Handle, notAfter time.Time) (Key, error) {
	const op = "rotate"
	id, err := tokenID(op, h)
	if err != nil {
		return Key{}, err
	}
	kind, at, err := g.place(ctx, op, h.Params)
	if err != nil {
		return Key{}, beforehand(err)
	}
	until := gitlab.ISOTime(midnight(notAfter)) // without it, GitLab chooses a week, or no expiry at all
	made, err := g.one(ctx, gitlabCall(op, http.StatusOK, kind.needs), func(with gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error) {
		return kind.rotate(g.client, at, id, &until, with)
	})
	if err != nil {
		return Key{}, err
	}
	return g.key(op, made, Handle{Name: h.Name, Params: at.within(h.Params)})
}

// identify presents a token and asks GitLab about it; every token may ask about itself.
func (g *gitlabDriver) identify(ctx context.Context, secret string, params map[string]any) (Key, error) {
	const op = "identify"
	_, at, err := g.place(ctx, op, params)
	if err != nil {
		return Key{}, err
	}
	self, err := g.one(ctx, gitlabCall(op, http.StatusOK, ""), func(with gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error) {
		self, _, err := g.client.PersonalAccessTokens.GetSinglePersonalAccessToken(with, gitlab.WithToken(gitlab.PrivateToken, secret))
		return self, err
	})
	switch {
	case err != nil:
		return Key{}, err
	case self.Revoked:
		return Key{}, &Error{Op: op, Text: "the key is revoked", outcome: ErrDenied}
	}
	self.Token = secret
	return g.key(op, self, Handle{Name: self.Name, Params: at.within(params)})
}

// rotateCredential makes the credential replace itself. Once a request has rotated it, or may have, this driver takes it for
// ended and does not rotate it again.
func (g *gitlabDriver) rotateCredential(ctx context.Context, _ string, notAfter time.Time) (Credential, error) {
	const op = "rotate_credential"
	if !g.spent.CompareAndSwap(false, true) {
		return Credential{}, unbuildable(op, "the credential was rotated before, or may have been: rotating it again could end its successor; write a new one")
	}
	until := gitlab.ISOTime(midnight(notAfter))
	made, err := g.one(ctx, gitlabCall(op, http.StatusOK, ""), func(with gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error) {
		made, _, err := g.client.PersonalAccessTokens.RotatePersonalAccessTokenSelf(&gitlab.RotatePersonalAccessTokenOptions{ExpiresAt: &until}, with)
		return made, err
	})
	if err != nil {
		g.spent.Store(MayLive(err))
		return Credential{}, err
	}
	k, err := g.key(op, made, Handle{})
	if err != nil {
		return Credential{}, err
	}
	return Credential{Fields: map[string]string{"token": k.Secret}, Expiry: k.Expiry}, nil
}
