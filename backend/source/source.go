// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// Package source gets tokens that are the engine's own identity at some API: from a file that something else keeps fresh,
// from an OAuth token endpoint, or from a SPIFFE agent.
//
// A [Source] is opened for one audience and returns tokens only for that. It knows nothing about callers: its tokens identify
// the engine. The package does not log, and no error contains a token, a secret, the content of a file or a part of an answer.
package source

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
)

// The kinds of sources.
const (
	File              = "file"               // a file, read anew each time
	ClientCredentials = "client_credentials" // a token endpoint (RFC 6749 section 4.4)
	SVID              = "svid"               // a JWT-SVID from the SPIFFE Workload API
)

// ErrUnavailable means that no token can be got now, and that trying again later may help. Every other error of Token means
// that the token found must not be presented, or that somebody has to change something.
var ErrUnavailable = errors.New("cannot be had now")

// Config describes one source. The fields of other kinds than Kind are not looked at.
type Config struct {
	Kind     string // File, ClientCredentials or SVID
	Audience string // what the token's aud must be, and nothing beside it; optional with ClientCredentials

	TokenFile string // File: absolute path
	TokenDirs string // File: the value of the environment variable DirsVariable

	TokenURL               string // ClientCredentials: the token endpoint
	ClientID, ClientSecret string
	TokenAuth              string            // AuthBasic or AuthPost; "" = AuthBasic
	TokenScopes            []string          // asked for
	TokenParams            map[string]string // sent with the request, for what servers want beside scopes
	Egress                 egress.Policy
	HTTP                   egress.Options

	SVIDs    SVIDs  // SVID: nil = there is no Workload API
	SPIFFEID string // SVID: which of the identities that the agent has for us; "" = its first

	Now func() time.Time // nil = time.Now
}

// Source yields tokens of one kind for one audience. Open makes one; it is safe for concurrent use.
type Source struct {
	kind  string
	fetch func(context.Context) (string, error)
	close func()
}

// Open checks the whole of c without any I/O. Its errors begin with the API field that is wrong. Close the source when it
// is done with.
func Open(c Config) (*Source, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Audience == "" && c.Kind != ClientCredentials {
		return nil, fmt.Errorf("audience: is required with subject_token_source %s", c.Kind)
	}
	switch c.Kind {
	case File:
		return openFile(c)
	case ClientCredentials:
		return openClientCredentials(c)
	case SVID:
		return openSVID(c)
	}
	return nil, fmt.Errorf("subject_token_source: want %s, %s or %s", File, ClientCredentials, SVID)
}

// Token returns a token that may be presented now. See ErrUnavailable for its errors. It returns when ctx ends.
func (s *Source) Token(ctx context.Context) (string, error) {
	token, err := s.fetch(ctx)
	if err != nil {
		return "", fmt.Errorf("subject token from %s: %w", s.kind, err)
	}
	return token, nil
}

// Close lets go of idle connections; a call that is under way goes on.
func (s *Source) Close() {
	if s.close != nil {
		s.close()
	}
}

// maxTokenBytes bounds a token, and the file that one is read from.
const maxTokenBytes = 64 << 10

// fit refuses a token that is not a JWT for exactly the audience, or that has expired. It returns the expiry.
func fit(token, audience string, now time.Time) (time.Time, error) {
	aud, expiry, err := identity.Addressed(token, maxTokenBytes)
	switch {
	case err != nil: // its type would make it a fault of the caller's token
		return time.Time{}, fmt.Errorf("it is no JWT to present: %v", err)
	case len(aud) != 1 || aud[0] != audience:
		return time.Time{}, errors.New("its aud is not exactly the audience that is wanted")
	case !now.Before(expiry):
		return time.Time{}, errors.New("it has expired")
	}
	return expiry, nil
}

func unavailable(text string) error { return fmt.Errorf("it %w: %s", ErrUnavailable, text) }

// SVIDs is the SPIFFE Workload API, as go-spiffe's client offers it.
type SVIDs interface {
	FetchJWTSVID(context.Context, jwtsvid.Params) (*jwtsvid.SVID, error)
}
