// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Bundle returns the JWK set of a trust domain as the SPIFFE Workload API has it now, raw: its keys pass the same checks as
// those of every other set, and one that cannot be used is skipped alone. It ends when ctx does. Its errors are in our own
// words, without a byte of the answer. One that is [ErrWithdrawn] says that the API answers and has no bundle of the domain.
type Bundle func(ctx context.Context, trustDomain string) ([]byte, error)

// ErrWithdrawn is in the error of a [Bundle] that there is none of. Keys in use are then dropped at once: what a Workload API
// leaves out it takes back (SPIFFE Workload API section 4.4).
var ErrWithdrawn = errors.New("no key of the trust domain vouches")

// bundleSource gets a trust domain's keys from the Workload API.
type bundleSource struct {
	ask         Bundle
	trustDomain string
	limits      setLimits
}

// fetch implements source. A bundle that was had and holds no usable key takes back the keys before it.
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
