// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"testing"
	"time"
)

// Many callers that waited for one fetch must count as one miss: otherwise one burst would stop fetches for ten minutes.
func TestHostileBurstIsOneMiss(t *testing.T) {
	s, now := &keySet{floor: 30 * time.Second, maxAge: 10 * time.Minute, stock: &stock{}}, time.Now()
	for range 8 {
		s.remember("k2", now)
	}
	if got := s.misses["k2"].wait; got != 30*time.Second {
		t.Errorf("after one fetch the miss waits %s, want the floor 30s", got)
	}
	s.remember("k2", now.Add(30*time.Second))
	if got := s.misses["k2"].wait; got != time.Minute {
		t.Errorf("after the next fetch it waits %s, want a minute", got)
	}
}

func TestHostileNbfNotBeforeExp(t *testing.T) {
	v, i, c := fetching(t)
	n := c.now().Unix()
	body := claims(i.URL, c.now()).with("iat", n-60).with("exp", n-10).with("nbf", n+20)
	wantReason(t, v, token(body), Lifetime)
}

func TestHostileInvisibleSubject(t *testing.T) {
	v, i, c := fetching(t)
	for _, s := range []string{"admin\u3164", "admin\u115f", "ad\ufe0fmin", "ad\u034fmin", "ad\U000e0101min"} {
		wantReason(t, v, token(claims(i.URL, c.now()).with("sub", s)), TokenMalformed)
	}
}

func TestHostileEntraConsumersGUID(t *testing.T) {
	_, err := New(Config{DiscoveryURL: "https://login.microsoftonline.com/9188040d-6c67-4c5b-b112-36a304b66dad/v2.0"})
	if err == nil {
		t.Error("the tenant of all personal accounts (consumers) is accepted")
	}
}

func TestHostileJWKSTwice(t *testing.T) {
	body := `{"keys":[` + string(firstKey()) + `],"keys":[` + string(secondKey()) + `]}`
	if set, err := parseKeys([]byte(body), limits100); err == nil {
		t.Errorf("a set with keys twice is accepted: %v", set.named)
	}
}
