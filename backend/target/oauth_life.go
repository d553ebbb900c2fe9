// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"cmp"
	"context"
	"net/url"
	"time"
)

// revoke ends a token (RFC 7009). The server answers 200, and some servers 204, even for a token that it does not know. A
// status such as 404 says nothing about the token, because the endpoint itself may be gone.
func (o *oauth) revoke(ctx context.Context, h Handle) error {
	const op = "revoke"
	if h.Secret == "" {
		return unbuildable(op, "the handle has no token")
	}
	to, err := o.locate(ctx, op, true)
	if err != nil {
		return err
	}
	_, err = o.tell(ctx, call{op: op, url: to.revocation, urgent: true}, h.Secret)
	return err
}

// renew asks whether a token is active, and until when (RFC 7662). No server extends a token, so a renewal gets at most the
// token's remaining life, which a server need not state.
func (o *oauth) renew(ctx context.Context, h Handle, _ time.Time) (time.Time, error) {
	const op = "renew"
	if h.Secret == "" {
		return time.Time{}, unbuildable(op, "the handle has no token")
	}
	to, err := o.locate(ctx, op, false)
	if err != nil {
		return time.Time{}, err
	}
	answered, err := o.tell(ctx, call{op: op, url: to.introspection, wantBody: true}, h.Secret)
	if err != nil {
		return time.Time{}, err
	}
	object := objectOf(answered.body)
	active, isBool := object["active"].(bool)
	if !isBool {
		return time.Time{}, protocol(op, "the answer does not say whether the token is active")
	}
	if !active {
		return time.Time{}, &Error{Op: op, Text: "the token is no longer active", outcome: ErrDenied, cause: ErrInactive}
	}
	if object["exp"] == nil {
		return time.Time{}, nil
	}
	seconds, ok := secondsOf(object["exp"])
	if now := o.api.now(); !ok || seconds <= float64(now.Unix()) || seconds > float64(now.Add(maxLife).Unix()) {
		return time.Time{}, protocol(op, "the answer does not say when the active token ends")
	}
	return time.Unix(int64(seconds), 0).UTC(), nil
}

// check presents a token that nobody has issued to the revocation or introspection endpoint: that shows whether the server
// accepts the client, and changes nothing. If the target has no such endpoint, check fetches the discovery document.
func (o *oauth) check(ctx context.Context) error {
	const op, nobodys = "check", "oidcexchange-check"
	if !o.revokes && !o.introspects {
		return o.discovery.check(ctx, op)
	}
	to, err := o.locate(ctx, op, false)
	if err != nil {
		return err
	}
	_, err = o.tell(ctx, call{op: op, url: cmp.Or(to.introspection, to.revocation)}, nobodys)
	return err
}

// tell posts a token to the revocation or introspection endpoint.
func (o *oauth) tell(ctx context.Context, c call, token string) (answer, error) {
	c.ok, c.busy, c.denied = []int{200, 204}, []int{429, 503}, clientRefuses
	form := url.Values{"token": {token}, "token_type_hint": {"access_token"}}
	if err := o.prepare(ctx, &c, o.hops[len(o.hops)-1], form); err != nil {
		return answer{}, err
	}
	return o.api.do(ctx, c)
}
