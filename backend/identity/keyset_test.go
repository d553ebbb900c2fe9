// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// unsigned returns a token with a rubbish signature: cheap to make by the thousand.
func unsigned(kid string, c fields) string {
	return b64(header1.with("kid", kid).String()) + "." + b64(c.String()) + ".AAAA"
}

// fetching returns a verifier over an issuer that publishes the first key.
func fetching(t *testing.T) (*Verifier, *fakeIssuer, *clock) {
	t.Helper()
	i := newIssuer(t, jwks(firstKey()))
	c := newClock()
	return newVerifier(t, i.config(c)), i, c
}

// fresh returns a token of the issuer signed with the first key, made now.
func fresh(i *fakeIssuer, c *clock) string { return token(claims(i.URL, c.now())) }

func (i *fakeIssuer) publish(keys ...string) {
	i.set(func(i *fakeIssuer) { i.keys = strings.Join(keys, "") })
}

func (i *fakeIssuer) answer(h http.HandlerFunc) { i.set(func(i *fakeIssuer) { i.serve = h }) }

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// The key set itself refuses what earlier checks have refused already, because go-oidc relies on it.
func TestKeySetAlone(t *testing.T) {
	v, i, c := fetching(t)
	good := fresh(i, c)
	wantReason(t, v, good, "")
	body := claims(i.URL, c.now()).String()
	for name, tt := range map[string]struct{ token, want string }{
		"good":                     {good, ""},
		"alg none":                 {b64(`{"alg":"none","kid":"k1"}`) + "." + b64(body) + ".", Algorithm},
		"HMAC with the public key": {compact("HS256", []byte(publicPEM(rsaKey().Public())), `{"alg":"HS256","kid":"k1"}`, body), Algorithm},
		"alg that is not listed":   {compact("RS256", rsaKey(), `{"alg":"RS512","kid":"k1"}`, body), Algorithm},
		"another key":              {tokenBy(otherRSA(), "k1", claims(i.URL, c.now())), BadSignature},
		"unknown key":              {tokenBy(rsaKey(), "k9", claims(i.URL, c.now())), UnknownKey},
		"no token":                 {"x", TokenMalformed},
		"JSON form":                {fields{"protected": b64(header1.String()), "payload": b64(body), "signature": good[strings.LastIndex(good, ".")+1:]}.String(), TokenMalformed},
	} {
		payload, err := v.keys.VerifySignature(t.Context(), tt.token)
		if got := reason(t, err); got != tt.want || (payload != nil) != (err == nil) {
			t.Errorf("%s: payload of %d bytes, %v; want %q", name, len(payload), err, tt.want)
		}
	}
}

func TestUnknownKeysAtOnce(t *testing.T) {
	v, i, c := fetching(t)
	wantReason(t, v, fresh(i, c), "")
	c.advance(time.Minute)
	body := claims(i.URL, c.now())
	var wg sync.WaitGroup
	for n := range 500 {
		wg.Go(func() { wantReason(t, v, unsigned(fmt.Sprint(n), body), UnknownKey) })
	}
	wg.Wait()
	i.wantHits(t, "/keys", 2)
}

func TestColdStartAtOnce(t *testing.T) {
	v, i, c := fetching(t)
	good := fresh(i, c)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() { wantReason(t, v, good, "") })
	}
	wg.Wait()
	i.wantHits(t, "/keys", 1)
	i.wantHits(t, wellKnown, 1)
}

// The same unknown key is asked for at ever longer intervals, up to the age at which keys are refreshed anyway.
func TestMissIsRemembered(t *testing.T) {
	v, i, c := fetching(t)
	wantReason(t, v, fresh(i, c), "")
	var at []int
	for second := 10; second <= 500; second += 10 {
		c.advance(10 * time.Second)
		before := i.hits("/keys")
		wantReason(t, v, unsigned("k9", claims(i.URL, c.now())), UnknownKey)
		if i.hits("/keys") > before {
			at = append(at, second)
		}
	}
	if diff := cmp.Diff([]int{30, 60, 120, 240, 480}, at); diff != "" {
		t.Errorf("seconds at which keys were fetched (-want +got):\n%s", diff)
	}
}

func TestMissesAreBounded(t *testing.T) {
	v, _, c := fetching(t)
	for n := range 2 * maxMisses {
		v.keys.remember(fmt.Sprint(n), c.now())
	}
	if n := len(v.keys.misses); n != maxMisses {
		t.Errorf("%d key ids remembered, want %d", n, maxMisses)
	}
	c.advance(time.Hour)
	v.keys.remember("another", c.now())
	if n := len(v.keys.misses); n != 1 {
		t.Errorf("%d key ids remembered after they are due again, want 1", n)
	}
}

func TestRotation(t *testing.T) {
	v, i, c := fetching(t)
	wantReason(t, v, fresh(i, c), "")
	i.publish(jwks(firstKey(), secondKey()))
	second := func() string { return tokenBy(otherRSA(), "k2", claims(i.URL, c.now())) }
	_, err := v.Verify(t.Context(), second()) // within the floor
	if want := "unknown_key: the issuer did not publish the key it names when asked at " + start.Format(time.RFC3339); err == nil || err.Error() != want {
		t.Errorf("Verify = %v, want %s", err, want)
	}
	i.wantHits(t, "/keys", 1)
	c.advance(30 * time.Second)
	wantReason(t, v, second(), "")
	wantReason(t, v, fresh(i, c), "")
	i.wantHits(t, "/keys", 2)
}

func TestRemovedKeyIsRefreshedAway(t *testing.T) {
	v, i, c := fetching(t)
	wantReason(t, v, fresh(i, c), "")
	i.publish(jwks(secondKey()))
	c.advance(10*time.Minute - time.Second)
	wantReason(t, v, fresh(i, c), "")
	i.wantHits(t, "/keys", 1)
	c.advance(time.Second)
	wantReason(t, v, fresh(i, c), "") // and starts the refresh
	settle(v)
	i.wantHits(t, "/keys", 2)
	wantReason(t, v, fresh(i, c), UnknownKey)
}

// On an idle mount nobody started the refresh in time, so the first caller waits for it.
func TestRemovedKeyAfterIdleTime(t *testing.T) {
	v, i, c := fetching(t)
	wantReason(t, v, fresh(i, c), "")
	i.publish(jwks(secondKey()))
	c.advance(20 * time.Minute)
	v.keys.patience = time.Minute
	wantReason(t, v, fresh(i, c), UnknownKey)
	i.wantHits(t, "/keys", 2)
}

// An issuer that hangs must not hold up callers whose key is known.
func TestOverdueKeysDoNotWaitForever(t *testing.T) {
	v, i, c := fetching(t)
	wantReason(t, v, fresh(i, c), "")
	release := make(chan struct{})
	i.answer(func(http.ResponseWriter, *http.Request) { <-release })
	c.advance(20 * time.Minute)
	v.keys.patience = time.Millisecond
	wantReason(t, v, fresh(i, c), "")
	v.keys.mu.Lock()
	if v.keys.flight == nil {
		t.Error("the caller waited for the end of the fetch")
	}
	v.keys.mu.Unlock()
	close(release)
	settle(v)
}

func TestStaleKeys(t *testing.T) {
	for name, broken := range map[string]http.HandlerFunc{
		"down":         status(http.StatusInternalServerError),
		"empty set":    func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, jwks()) },
		"unusable set": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"keys":[{"kty":"oct","k":"AA"}]}`) },
		"no set":       func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{}`) },
		"null":         func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"keys":null}`) },
		"folded name": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, strings.Replace(jwks(secondKey()), "keys", "Keys", 1))
		},
		"not found":  status(http.StatusNotFound),
		"no content": status(http.StatusNoContent),
	} {
		t.Run(name, func(t *testing.T) {
			v, i, c := fetching(t)
			wantReason(t, v, fresh(i, c), "")
			i.answer(broken)
			for range 6 {
				c.advance(10 * time.Minute)
				wantReason(t, v, fresh(i, c), "")
				settle(v)
			}
			if v.Status().LastError == "" {
				t.Error("Status has no error, want why the refresh brought nothing")
			}
			c.advance(time.Second) // older than an hour
			wantReason(t, v, fresh(i, c), IssuerUnavailable)
			i.answer(nil)
			c.advance(30 * time.Second)
			wantReason(t, v, fresh(i, c), "")
			if got := v.Status().LastError; got != "" {
				t.Errorf("Status has error %q after a fetch that worked", got)
			}
		})
	}
}

func TestUnavailableIssuerIsAskedOncePerInterval(t *testing.T) {
	v, i, c := fetching(t)
	i.answer(status(http.StatusServiceUnavailable))
	for range 100 {
		wantReason(t, v, fresh(i, c), IssuerUnavailable)
	}
	i.wantHits(t, "/keys", 1)
	i.answer(nil)
	wantReason(t, v, fresh(i, c), IssuerUnavailable)
	c.advance(30 * time.Second)
	wantReason(t, v, fresh(i, c), "")
}
