// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"net/http"
	"time"

	gitlab "gitlab.com/gitlab-org/api/client-go/v2"
)

// GitLab rotates a token by ending it and making another of the same name, scopes and level with a new id, in one step:
// there is no overlap. To rotate a token that was rotated before is taken for the reuse of a stolen one: all that
// descends from it is ended. So when the outcome of a rotation is unknown, rotating again could end the very token that
// is wanted.

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
	until := gitlab.ISOTime(midnight(notAfter)) // without one GitLab takes a week, or no end at all
	made, err := g.one(ctx, gitlabCall(op, http.StatusOK, kind.needs), func(with gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error) {
		return kind.rotate(g.client, at, id, &until, with)
	})
	if err != nil {
		return Key{}, err
	}
	return g.key(op, made, Handle{Name: h.Name, Params: at.within(h.Params)})
}

// rotateCredential has the credential replace itself; the key that it returns is the new one. It sends at most one request
// whose outcome is not known to be a refusal: from then on this driver's credential is taken for ended.
func (g *gitlabDriver) rotateCredential(ctx context.Context, notAfter time.Time) (Key, error) {
	const op = "rotate"
	if !g.spent.CompareAndSwap(false, true) {
		return Key{}, unbuildable(op, "the credential was rotated before, or may have been: rotating it again could end its successor; write a new one")
	}
	until := gitlab.ISOTime(midnight(notAfter))
	made, err := g.one(ctx, gitlabCall(op, http.StatusOK, ""), func(with gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error) {
		made, _, err := g.client.PersonalAccessTokens.RotatePersonalAccessTokenSelf(&gitlab.RotatePersonalAccessTokenOptions{ExpiresAt: &until}, with)
		return made, err
	})
	if err != nil {
		g.spent.Store(MayLive(err))
		return Key{}, err
	}
	return g.key(op, made, Handle{Name: made.Name})
}
