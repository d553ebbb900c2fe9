// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// svidTimeout bounds a call to the agent, which runs on the same machine.
const svidTimeout = 10 * time.Second

// svid asks the SPIFFE agent for a token each time; the agent keeps them.
type svid struct {
	from   SVIDs
	params jwtsvid.Params
	now    func() time.Time
}

func openSVID(c Config) (*Source, error) {
	if c.SVIDs == nil {
		return nil, errors.New("subject_token_source: svid needs the SPIFFE Workload API, and there is none")
	}
	s := &svid{from: c.SVIDs, params: jwtsvid.Params{Audience: c.Audience}, now: c.Now}
	if c.SPIFFEID != "" {
		id, err := spiffeid.FromString(c.SPIFFEID)
		if err != nil {
			return nil, errors.New("spiffe_id: want spiffe://<trust domain>/<path>")
		}
		s.params.Subject = id
	}
	return &Source{kind: SVID, fetch: s.token}, nil
}

func (s *svid) token(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, svidTimeout)
	defer cancel()
	got, err := s.from.FetchJWTSVID(ctx, s.params)
	if err != nil {
		return "", refusalOf(ctx, err)
	}
	if !s.params.Subject.IsZero() && got.ID != s.params.Subject {
		return "", errors.New("the agent gave the SVID of another spiffe_id")
	}
	token := got.Marshal()
	if _, err := fit(token, s.params.Audience, s.now()); err != nil {
		return "", err
	}
	return token, nil
}

// refusalOf returns what an error of the Workload API means, without its text, which comes from the agent.
func refusalOf(ctx context.Context, err error) error {
	said, isStatus := status.FromError(err)
	switch {
	case ctx.Err() != nil:
		return unavailable("no answer from the SPIFFE agent in time")
	case !isStatus:
		return errors.New("the SPIFFE agent's answer makes no sense")
	case said.Code() == codes.PermissionDenied:
		return errors.New("the SPIFFE agent has no such identity for the plugin's process")
	case said.Code() == codes.InvalidArgument:
		return errors.New("the SPIFFE agent refuses audience or spiffe_id")
	}
	return unavailable(fmt.Sprintf("the SPIFFE agent answers %s", said.Code()))
}
