// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Bundle fetches the present JWK set of a trust domain from the SPIFFE Workload API. It returns the set raw: the keys are
// checked like those of any other set, and an unusable key is skipped without affecting the others. It must return when ctx
// ends, and its errors must not contain anything from the answer. An error that is [ErrWithdrawn] means that the API answered
// and has no bundle of the domain.
type Bundle func(ctx context.Context, trustDomain string) ([]byte, error)

// ErrWithdrawn is the error of a [Bundle] call that found no bundle. Keys in use are then dropped at once, because a Workload
// API withdraws a bundle by leaving it out (SPIFFE Workload API, section 4.4).
var ErrWithdrawn = errors.New("no key of the trust domain vouches")

// bundleSource gets a trust domain's keys from the Workload API.
type bundleSource struct {
	ask         Bundle
	trustDomain string
	limits      setLimits
}

// fetch implements source. A bundle without any usable key withdraws the earlier keys too.
func (s *bundleSource) fetch(ctx context.Context, p place, _ time.Time) (*keys, place, error) {
	body, err := s.ask(ctx, s.trustDomain)
	if err != nil {
		return nil, p, fmt.Errorf("bundle: %w", err)
	}
	if int64(len(body)) > s.limits.bytes {
		return nil, p, fmt.Errorf("bundle: larger than %d bytes: %w", s.limits.bytes, ErrWithdrawn)
	}
	set, err := parseKeys(body, s.limits)
	if err != nil {
		return nil, p, fmt.Errorf("bundle: %v: %w", err, ErrWithdrawn)
	}
	return set, p, nil
}
