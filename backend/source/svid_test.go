// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package source

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// agent is a SPIFFE agent that gives what it is told to.
type agent struct {
	token string
	err   error
	hangs bool
	asked []jwtsvid.Params
}

func (a *agent) FetchJWTSVID(ctx context.Context, p jwtsvid.Params) (*jwtsvid.SVID, error) {
	a.asked = append(a.asked, p)
	if a.hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if a.err != nil {
		return nil, a.err
	}
	return jwtsvid.ParseInsecure(a.token, nil)
}

func TestSVID(t *testing.T) {
	c := newClock()
	c.advance(20 * 365 * 24 * 60 * 60 * 1e9) // go-spiffe judges by the machine's clock
	issuer := newIssuer(c)
	token := func(claims map[string]any) string {
		all := map[string]any{"aud": audience, "sub": "spiffe://example/engine", "iss": nil, "iat": nil, "nbf": nil}
		for name, value := range claims {
			all[name] = value
		}
		return issuer.Token(all)
	}
	good := token(nil)
	const other = "spiffe://example/other"
	for name, d := range map[string]struct {
		agent   *agent
		id      string
		passing bool
		text    string
	}{
		"first identity":  {&agent{token: good}, "", false, ""},
		"named identity":  {&agent{token: good}, "spiffe://example/engine", false, ""},
		"wrong identity":  {&agent{token: good}, other, false, "another spiffe_id"},
		"other audience":  {&agent{token: token(map[string]any{"aud": "https://other.example"})}, "", false, "its aud is not exactly"},
		"audience beside": {&agent{token: token(map[string]any{"aud": []string{audience, "x"}})}, "", false, "its aud is not exactly"},
		"expired":         {&agent{token: token(map[string]any{"exp": c.now().Unix()})}, "", false, "it has expired"},
		"agent is down":   {&agent{err: status.Error(codes.Unavailable, "canary")}, "", true, "answers Unavailable"},
		"agent is slow":   {&agent{err: status.Error(codes.DeadlineExceeded, "canary")}, "", true, "answers DeadlineExceeded"},
		"agent's fault":   {&agent{err: status.Error(codes.Unknown, "canary")}, "", true, "answers Unknown"},
		"no identity":     {&agent{err: status.Error(codes.PermissionDenied, "canary")}, "", false, "no such identity"},
		"bad request":     {&agent{err: status.Error(codes.InvalidArgument, "canary")}, "", false, "refuses audience or spiffe_id"},
		"bad answer":      {&agent{err: errors.New("canary")}, "", false, "makes no sense"},
	} {
		s := open(t, Config{Kind: SVID, Audience: audience, SVIDs: d.agent, SPIFFEID: d.id, Now: c.now})
		got, err := s.Token(t.Context())
		want := []jwtsvid.Params{{Audience: audience}}
		if d.id != "" {
			want[0].Subject = spiffeid.RequireFromString(d.id)
		}
		if diff := cmp.Diff(want, d.agent.asked, cmp.Comparer(func(x, y spiffeid.ID) bool { return x == y })); diff != "" {
			t.Errorf("%s: asked for %s", name, diff)
		}
		if d.text != "" {
			wantRefused(t, name, got, err, d.passing, d.text, good, "canary")
		} else if err != nil || got != good {
			t.Errorf("%s: %v", name, err)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	got, err := open(t, Config{Kind: SVID, Audience: audience, SVIDs: &agent{hangs: true}, Now: c.now}).Token(ctx)
	wantRefused(t, "caller has left", got, err, true, "no answer from the SPIFFE agent in time")
}
