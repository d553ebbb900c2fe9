// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// maxMisses bounds what is remembered of key ids that the issuer does not have.
	maxMisses = 1024
	// patience is how long a caller with a known key waits for keys that are overdue before it goes on with the old ones.
	patience = 2 * time.Second
)

// keySet is an issuer's keys as an oidc.KeySet. Configured keys never change; fetched ones are
//
//   - fetched when first needed, and again when a token names an unknown key: at most once per floor however many tokens come,
//     with only one fetch at a time, for which all callers wait and which always ends;
//   - refreshed in the background when they are used at the age maxAge;
//   - waited for, for a short time, when they are used at twice that age: otherwise a mount that was idle would accept a key
//     that the issuer has withdrawn meanwhile;
//   - used up to the age maxStale while the issuer cannot be reached, and not longer;
//   - dropped at once when a Workload API has no bundle any more.
//
// A signature that does not verify with the key it names never causes a fetch.
type keySet struct {
	algorithms []jose.SignatureAlgorithm
	source     source // nil if the keys are configured
	now        func() time.Time
	floor      time.Duration
	maxAge     time.Duration
	maxStale   time.Duration
	timeout    time.Duration // of one fetch
	patience   time.Duration
	*stock
}

// stock has the fetched keys of an issuer. Key sets that fetch the same keys, but use them by different rules, may share one.
type stock struct {
	mu        sync.Mutex
	current   *keys     // nil if none were had yet
	fetched   time.Time // when the fetch of current began
	tried     time.Time // when the last fetch began; zero if there was none
	flight    *flight   // the running fetch, or nil
	place     place
	misses    map[string]miss
	lastError string
	fetches   uint64 // that have ended
	failures  uint64 // of them
}

// flight is one fetch; done is closed when it has ended and its result, if any, is in the set.
type flight struct{ done chan struct{} }

// miss remembers a key id that was not there right after a fetch.
type miss struct {
	until time.Time     // no fetch on its behalf before
	wait  time.Duration // doubles each time
}

// VerifySignature returns the payload of a compact token that one of the set's keys signed, else an *Error.
func (s *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(token, s.algorithms)
	if unexpected := (*jose.ErrUnexpectedSignatureAlgorithm)(nil); errors.As(err, &unexpected) {
		return nil, refuse(Algorithm, "alg is not in jwt_supported_algs")
	}
	if err != nil || len(jws.Signatures) != 1 {
		return nil, refuse(TokenMalformed, "not a signed token")
	}
	h := jws.Signatures[0].Header
	candidates, err := s.find(ctx, h.KeyID, h.Algorithm)
	if err != nil {
		return nil, err
	}
	for _, k := range candidates {
		if payload, err := jws.Verify(k.public); err == nil {
			return payload, nil
		}
	}
	return nil, refuse(BadSignature, "the key it names did not sign it")
}

// find returns the keys that may have signed a token with this header (id is "" if it has no kid), after a fetch if need be.
func (s *keySet) find(ctx context.Context, id, alg string) ([]key, error) {
	for waited := false; ; waited = true {
		found, f, err := s.look(id, alg, waited)
		if f == nil {
			return found, err
		}
		if done, err := f.wait(ctx, found, s.patience); !done {
			return found, err
		}
	}
}

// wait waits for the flight to end, and reports whether it has. A caller that has older keys to use waits at most patience.
func (f *flight) wait(ctx context.Context, found []key, patience time.Duration) (bool, error) {
	var enough <-chan time.Time
	if found != nil {
		enough = time.After(patience)
	}
	select {
	case <-f.done:
		return true, nil
	case <-enough:
		return false, nil
	case <-ctx.Done():
		return false, refuse(IssuerUnavailable, "the request ended while the issuer's keys were fetched")
	}
}

// look finds keys among those that are there now. If it also returns a flight, the caller must wait for it and look again;
// found is what to use if that takes too long. After a wait (waited is true) it starts no new flight.
func (s *keySet) look(id, alg string, waited bool) (found []key, f *flight, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.source == nil {
		found, err = pick(s.current.unnamed, alg)
		return found, nil, err
	}
	now := s.now()
	age := now.Sub(s.fetched)
	if s.current == nil || age > s.maxStale {
		if f = s.running(now, waited); f == nil {
			return nil, nil, refuse(IssuerUnavailable, "no keys of the issuer: "+s.lastError)
		}
		return nil, f, nil
	}
	found, missing, err := s.current.find(id, alg)
	if missing { // and perhaps it is too early to ask again
		err = refuse(UnknownKey, "the issuer did not publish the key it names when asked at "+s.fetched.UTC().Format(time.RFC3339))
		return nil, s.retry(id, now, waited), err
	}
	if age >= s.maxAge {
		if f = s.running(now, waited); waited || age < 2*s.maxAge || err != nil {
			f = nil // go on with what there is
		}
	}
	return found, f, err
}

// running returns the running flight or, unless the last one is too recent or was waited for, starts one.
func (s *keySet) running(now time.Time, waited bool) *flight {
	if s.flight == nil && !waited && now.Sub(s.tried) >= s.floor {
		s.start(now)
	}
	return s.flight
}

// retry returns a flight that may bring the missing key, or nil if it is too early for another fetch.
func (s *keySet) retry(id string, now time.Time, waited bool) *flight {
	if waited {
		s.remember(id, now)
		return nil
	}
	if s.flight == nil && now.Before(s.misses[id].until) {
		return nil
	}
	return s.running(now, false)
}

// remember notes that a fetch did not bring a key, so that further tokens with the same key id cause fetches less and less
// often. When the memory is full, only floor limits the fetches.
func (s *keySet) remember(id string, now time.Time) {
	if now.Before(s.misses[id].until) {
		return // others waited for the same fetch: it is one miss, not many
	}
	if len(s.misses) >= maxMisses {
		maps.DeleteFunc(s.misses, func(_ string, m miss) bool { return !now.Before(m.until) })
	}
	if len(s.misses) >= maxMisses {
		return
	}
	if s.misses == nil {
		s.misses = make(map[string]miss)
	}
	wait := min(max(s.floor, 2*s.misses[id].wait), max(s.floor, s.maxAge))
	s.misses[id] = miss{until: now.Add(wait), wait: wait}
}

// start begins a fetch in the background. It has a time limit of its own, because the caller's context may end, or never.
func (s *keySet) start(now time.Time) {
	f := &flight{done: make(chan struct{})}
	s.flight, s.tried = f, now
	from := s.place
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
		defer cancel()
		set, at, err := s.fetch(ctx, from, now)
		s.land(f, set, at, now, err)
	}()
}

// fetch is source.fetch, except that a panic is an error: one issuer's answer must not end a process that serves others.
func (s *keySet) fetch(ctx context.Context, from place, now time.Time) (set *keys, at place, err error) {
	defer func() {
		if recover() != nil {
			set, at, err = nil, place{}, errors.New("reading the issuer's answer panicked")
		}
	}()
	return s.source.fetch(ctx, from, now)
}

// land puts a flight's result into the set, unless the keys were dropped meanwhile: the result may then contain the keys that
// were to be dropped.
func (s *keySet) land(f *flight, set *keys, at place, began time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(f.done)
	if s.flight != f {
		return
	}
	s.flight, s.place = nil, at
	s.fetches++
	if err != nil {
		s.failures++
		s.lastError = err.Error()
		if errors.Is(err, ErrWithdrawn) {
			s.current = nil
		}
		return
	}
	s.current, s.fetched, s.lastError = set, began, ""
}

// refresh drops everything and waits for new keys: those of its own fetch, or of a refresh that overtook it.
func (s *keySet) refresh(ctx context.Context) error {
	if s.source == nil {
		return nil
	}
	s.mu.Lock()
	s.current, s.misses, s.place, s.lastError = nil, nil, place{}, ""
	s.start(s.now())
	f := s.flight
	s.mu.Unlock()
	for f != nil {
		if done, err := f.wait(ctx, nil, 0); !done {
			return err
		}
		s.mu.Lock()
		f = s.flight
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return refuse(IssuerUnavailable, s.lastError)
	}
	return nil
}

// probe checks whether the keys can be fetched, and does not change the set.
func (s *keySet) probe(ctx context.Context) error {
	if s.source == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if _, _, err := s.fetch(ctx, place{}, s.now()); err != nil {
		return refuse(IssuerUnavailable, err.Error())
	}
	return nil
}

func (s *keySet) status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{Fetched: s.fetched, Tried: s.tried, LastError: s.lastError, Fetches: s.fetches, Failures: s.failures}
	if s.current != nil {
		st.Keys = len(s.current.named) + len(s.current.unnamed)
		st.KeyIDs = slices.Sorted(maps.Keys(s.current.named))
		st.Skipped = maps.Clone(s.current.skipped)
	} else {
		st.Fetched = time.Time{}
	}
	return st
}

// find returns the keys that may have signed a token that names key id ("" if none) and alg. missing says that the set has
// no such key; a newer one may.
func (s *keys) find(id, alg string) (found []key, missing bool, err error) {
	if id == "" {
		if len(s.named) > 0 {
			return nil, false, refuse(UnknownKey, "it has no kid, though the issuer's keys have one")
		}
		found, err = pick(s.unnamed, alg)
		return found, false, err
	}
	k, ok := s.named[id]
	if !ok {
		return nil, true, nil
	}
	if !k.fits(alg) {
		return nil, false, refuse(Algorithm, "the key it names is for another algorithm")
	}
	return []key{k}, false, nil
}

// pick returns the keys that alg fits.
func pick(list []key, alg string) ([]key, error) {
	var found []key
	for _, k := range list {
		if k.fits(alg) {
			found = append(found, k)
		}
	}
	if found == nil {
		return nil, refuse(Algorithm, "no key of the issuer is for this algorithm")
	}
	return found, nil
}
