// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/base64"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
)

var someTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// turned is a ring in use, made at someTime.
func turned(t *testing.T, alg string) ring {
	t.Helper()
	var r ring
	r.mustTurn(t, alg, time.Hour, someTime, true)
	return r
}

func (r *ring) mustTurn(t *testing.T, alg string, period time.Duration, now time.Time, want bool) {
	t.Helper()
	if changed, err := r.turn(alg, period, now); err != nil || changed != want {
		t.Fatalf("turning at %v: changed %v, %v; want %v", now.Sub(someTime), changed, err, want)
	}
}

// ids are the key ids of the stages, "" for none.
func (r *ring) ids() (next, current string, previous []string) {
	if r.Current != nil {
		next, current = r.Next.Key.KeyID, r.Current.Key.KeyID
	}
	for _, k := range r.Previous {
		previous = append(previous, k.Key.KeyID)
	}
	return next, current, previous
}

func keyIDs(keys []jose.JSONWebKey) (ids []string) {
	for _, k := range keys {
		ids = append(ids, k.KeyID)
	}
	return ids
}

func TestRingTurns(t *testing.T) {
	r := turned(t, "ES256")
	first, second, none := r.ids()
	if first == second || none != nil || !slices.Equal(keyIDs(r.published()), []string{second, first}) {
		t.Fatalf("a new ring has %v %v %v and publishes %v", first, second, none, keyIDs(r.published()))
	}
	second, first = first, second
	r.mustTurn(t, "ES256", time.Hour, someTime.Add(time.Hour-1), false)
	r.mustTurn(t, "ES256", time.Hour, someTime.Add(time.Hour), true)
	third, current, previous := r.ids()
	if current != second || !slices.Equal(previous, []string{first}) || !slices.Equal(keyIDs(r.published()), []string{second, third, first}) {
		t.Fatalf("turned once: %v %v %v", third, current, previous)
	}
	end := someTime.Add(time.Hour + maxSelfTTL + keyMargin)
	r.mustTurn(t, "ES256", time.Hour, end.Add(-1), false)
	r.mustTurn(t, "ES256", time.Hour, end, true)
	if _, _, previous := r.ids(); previous != nil || r.has(first) || !r.has(second) || !r.has(third) {
		t.Errorf("the first key is still there after its last token: %v", previous)
	}
	r.mustTurn(t, "ES256", time.Hour, end, false)

	// A week later, for Vault was sealed: what was not published cannot sign.
	late := someTime.Add(7 * 24 * time.Hour)
	r.mustTurn(t, "ES256", time.Hour, late, true)
	next, current, previous := r.ids()
	if current != third || !slices.Equal(previous, []string{second}) {
		t.Errorf("a late turn: %v %v %v", next, current, previous)
	}
	r.mustTurn(t, "ES256", time.Hour, late.Add(time.Hour-1), true) // drops the previous one
	if _, same, _ := r.ids(); same != third {
		t.Error("a key signs that was not published for a period")
	}
}

func TestRingChangesAlgorithm(t *testing.T) {
	r := turned(t, "ES256")
	unused, first, _ := r.ids()
	now := someTime.Add(10 * time.Minute)
	r.mustTurn(t, "RS256", time.Hour, now, true)
	next, current, _ := r.ids()
	if current != first || next == unused || r.Next.Key.Algorithm != "RS256" || r.has(unused) {
		t.Fatalf("after the change %v %v; want the same current key and a new next one", next, current)
	}
	r.mustTurn(t, "RS256", time.Hour, now.Add(keyLead-1), false)
	r.mustTurn(t, "RS256", time.Hour, now.Add(keyLead), true)
	if _, current, previous := r.ids(); current != next || !slices.Equal(previous, []string{first}) || r.Next.Key.Algorithm != "RS256" {
		t.Errorf("after the lead %v %v; want %s and the first key still published", current, previous, next)
	}
	// Back before the change has taken effect: the next key is new again, and waits a whole period.
	r = turned(t, "ES256")
	r.mustTurn(t, "EdDSA", time.Hour, now, true)
	r.mustTurn(t, "ES256", time.Hour, now.Add(time.Minute), true)
	if due := r.due(time.Hour); r.Next.Key.Algorithm != "ES256" || !due.Equal(now.Add(time.Minute+time.Hour)) {
		t.Errorf("next is of %s, due %v", r.Next.Key.Algorithm, due)
	}
}

func TestRingStops(t *testing.T) {
	r := turned(t, "ES256")
	r.mustTurn(t, "ES256", time.Hour, someTime.Add(time.Hour), true)
	unused, current, previous := r.ids()
	now := someTime.Add(time.Hour + time.Minute)
	r.stop(now)
	if r.Current != nil || r.Next != nil || len(r.published()) != 0 {
		t.Errorf("stopped, and has %v, publishes %v", r, keyIDs(r.published()))
	}
	if !r.has(current) || !r.has(previous[0]) || r.has(unused) {
		t.Error("what signed must be known while its tokens live, what did not is gone")
	}
	r.mustTurn(t, "ES256", time.Hour, now, true)
	if next, again, _ := r.ids(); !slices.Equal(keyIDs(r.published()), []string{again, next}) || again == current {
		t.Errorf("publishes %v after it was switched on again; want two new keys", keyIDs(r.published()))
	}
	r.mustTurn(t, "ES256", time.Hour, now.Add(maxSelfTTL+keyMargin), true)
	if r.has(current) || len(r.Previous) != 0 {
		t.Error("withdrawn keys are kept for ever")
	}
	var off ring
	off.stop(now)
	if len(off.Previous) != 0 || off.has("") || !off.idle(time.Hour, now) {
		t.Errorf("stopping what is off: %v", off)
	}
}

// After an error the ring is what it was, and it is never changed under those who share it.
func TestRingIsNotShared(t *testing.T) {
	r := turned(t, "ES256")
	r.mustTurn(t, "ES256", time.Hour, someTime.Add(time.Hour), true)
	r.Previous = slices.Grow(r.Previous, 4) // room that a careless append would share
	whole := func(r ring) string {
		raw, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	before := whole(r)
	for _, now := range []time.Time{someTime.Add(time.Hour), someTime.Add(3 * time.Hour)} {
		if changed, err := r.turn("HS256", time.Hour, now); err == nil || changed || whole(r) != before {
			t.Errorf("an algorithm without keys: changed %v, %v", changed, err)
		}
		turned, stopped := r, r
		turned.mustTurn(t, "EdDSA", time.Hour, now, true)
		stopped.stop(now)
		if whole(r) != before {
			t.Errorf("turning a copy changed the ring")
		}
	}
}

// Nothing private is published, in any stage and of any algorithm.
func TestPublishedKeysArePublic(t *testing.T) {
	t.Parallel()
	for _, alg := range selfAlgorithms {
		r := turned(t, alg)
		r.mustTurn(t, alg, time.Hour, someTime.Add(time.Hour), true)
		raw, err := json.Marshal(r.published())
		if err != nil {
			t.Fatal(err)
		}
		var keys []map[string]any
		if err := json.Unmarshal(raw, &keys); err != nil || len(keys) != 3 {
			t.Fatalf("%d keys, %v", len(keys), err)
		}
		for _, key := range keys {
			for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "k"} {
				if _, there := key[private]; there {
					t.Errorf("%s: a published key has %s", alg, private)
				}
			}
			if key["use"] != "sig" || key["alg"] != alg || len(key["kid"].(string)) != 43 {
				t.Errorf("%s: published key %v", alg, key)
			}
		}
		for _, k := range r.Previous {
			if !k.Key.IsPublic() {
				t.Errorf("%s: a previous key keeps its private part", alg)
			}
		}
	}
}

func TestSelfToken(t *testing.T) {
	for _, alg := range selfAlgorithms {
		r := turned(t, alg)
		claims := selfClaims{Issuer: "https://i.example", Subject: "role:a", Audience: "b", Role: "a", Mount: "m", EntityID: "e", EntityName: "n", SubjectIssuer: "i", VerifiedSubject: "s"}
		token, err := r.sign(claims.at(someTime, time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		header, got := opened(t, token, r.published())
		if want := map[string]any{"alg": alg, "typ": "JWT", "kid": r.Current.Key.KeyID}; !cmp.Equal(header, want) {
			t.Errorf("header %v; want %v", header, want)
		}
		var names []string
		for name := range got {
			names = append(names, name)
		}
		if diff := cmp.Diff(slices.Sorted(slices.Values(selfClaimNames)), slices.Sorted(slices.Values(names))); diff != "" {
			t.Errorf("claims that the discovery document lists, and those of a token: %s", diff)
		}
		if unix := float64(someTime.Unix()); got["iat"] != unix || got["nbf"] != unix-30 || got["exp"] != unix+60 {
			t.Errorf("times %v %v %v", got["iat"], got["nbf"], got["exp"])
		}
	}
	if a, b := (selfClaims{}).at(someTime, 1), (selfClaims{}).at(someTime, 1); a.ID == b.ID || len(a.ID) < 22 {
		t.Errorf("jti %q and %q", a.ID, b.ID)
	}
}

// opened verifies a token with the one published key that it names, and returns its header and claims.
func opened(t *testing.T, token string, published []jose.JSONWebKey) (header, claims map[string]any) {
	t.Helper()
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256, jose.RS256, jose.EdDSA})
	if err != nil {
		t.Fatal(err)
	}
	keys := (&jose.JSONWebKeySet{Keys: published}).Key(signed.Signatures[0].Protected.KeyID)
	if len(keys) != 1 {
		t.Fatalf("%d published keys have the token's kid", len(keys))
	}
	payload, err := signed.Verify(keys[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(segment(t, token, 0), &header); err != nil {
		t.Fatal(err)
	}
	return header, claims
}

// A verifier that keeps the keys as long as it may, and one that looks while a token lives, both find the key of every
// token, whatever operators change and however late turns are. Where nobody changes anything, a key was published for a
// whole period before it signs.
func TestEveryTokenHasItsKey(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		chance := rand.New(rand.NewPCG(seed, 1))
		calm := seed%2 == 0
		var (
			r         ring
			published []snapshot
		)
		alg, period, asleep := "ES256", time.Hour, 0
		for minute := range 12 * 60 {
			now := someTime.Add(time.Duration(minute) * time.Minute)
			if !calm && chance.IntN(45) == 0 {
				alg = []string{"ES256", "EdDSA"}[chance.IntN(2)]
				period = time.Duration(10+chance.IntN(100)) * time.Minute
				asleep = 0 // a write turns too
			}
			if chance.IntN(60) == 0 {
				asleep = chance.IntN(120)
			}
			if asleep--; asleep <= 0 {
				idle := r.Next != nil && r.Next.Key.Algorithm == alg && r.idle(period, now)
				changed, err := r.turn(alg, period, now)
				if err != nil || changed == idle {
					t.Fatalf("seed %d, minute %d: changed %v, idle %v, %v", seed, minute, changed, idle, err)
				}
			}
			published = append(published, snapshot{now, r.Current.Key.KeyID, r.published()})
		}
		cached := keysMaxAge
		if calm {
			cached = time.Hour
		}
		wantKeys(t, seed, published, cached)
	}
}

// snapshot is what was published at a moment, and which key signed.
type snapshot struct {
	at     time.Time
	signer string
	keys   []jose.JSONWebKey
}

// wantKeys wants the key of each token in all that was published from cached before it was signed until it has expired.
func wantKeys(t *testing.T, seed uint64, published []snapshot, cached time.Duration) {
	t.Helper()
	signers := map[string]bool{}
	for _, signed := range published {
		signers[signed.signer] = true
		for _, seen := range published {
			if seen.at.Before(signed.at.Add(-cached)) || seen.at.After(signed.at.Add(maxSelfTTL)) {
				continue
			}
			if !slices.Contains(keyIDs(seen.keys), signed.signer) {
				t.Fatalf("seed %d: a token of %v meets a verifier that fetched at %v", seed, signed.at.Sub(someTime), seen.at.Sub(someTime))
			}
		}
	}
	if len(signers) < 4 {
		t.Errorf("seed %d: %d keys signed; this proves little", seed, len(signers))
	}
}

func TestDiscoveryDocument(t *testing.T) {
	raw, err := discoveryDocument("https://vault.example:8200/v1/o/oidc")
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	delete(got, "claims_supported") // TestSelfToken
	want := map[string]any{
		"issuer": "https://vault.example:8200/v1/o/oidc", "jwks_uri": "https://vault.example:8200/v1/o/oidc/.well-known/keys",
		"response_types_supported": []any{"id_token"}, "subject_types_supported": []any{"public"},
		"id_token_signing_alg_values_supported": []any{"ES256", "RS256", "EdDSA"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if strings.Contains(string(raw), "endpoint") {
		t.Error("names an endpoint that does not exist")
	}
}

// segment decodes one part of a compact token.
func segment(t testing.TB, token string, part int) []byte {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[part])
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
