// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

// outage returns how long OUTAGE lets servers be away; 0 if it is not set.
func outage(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("OUTAGE")
	if text == "" {
		return 0
	}
	length, err := time.ParseDuration(text)
	if err != nil || length < time.Second {
		t.Fatalf("OUTAGE=%q; want a duration, such as 15m", text)
	}
	return length
}

// site is a stand-in that can go away: its address then refuses connections until it is back.
type site struct {
	url     string
	handler http.Handler
	stand   *httptest.Server
}

// newSite serves the key API at a second address, as the target "away".
func newSite(t *testing.T, w *world) *site {
	t.Helper()
	host := freePort(t)
	s := &site{url: "https://" + host, handler: w.keys}
	s.back(t)
	t.Cleanup(s.leave)
	w.write(t, "targets/away", map[string]any{"driver": "http", "profile": acmeProfile(t), "url": s.url, "ca_pem": w.ca,
		"credential": map[string]any{"token": w.admin}, "allowed_roles": "*,static/*"})
	return s
}

func (s *site) back(t *testing.T) {
	t.Helper()
	eventually(t, "the address "+s.url, func() (bool, string) {
		listener, err := net.Listen("tcp", strings.TrimPrefix(s.url, "https://"))
		if err != nil {
			return false, err.Error()
		}
		s.stand = httptest.NewUnstartedServer(s.handler)
		_ = s.stand.Listener.Close()
		s.stand.Listener = listener
		s.stand.StartTLS()
		return true, ""
	})
}

func (s *site) leave() {
	s.stand.CloseClientConnections()
	s.stand.Close()
}

// A target that is down for a quarter of an hour strands no lease and loses no key, on the real schedule of Vault's core and
// of the ledger: keys that should end meanwhile are ended when the target is back. Nobody has to do anything.
func testOutage(t *testing.T, s *server) {
	length := outage(t)
	if length < 10*time.Minute {
		t.Skip("OUTAGE is not 10m or more, so nothing was seen of what Vault does at the end of its retries; `make outage` shows it")
	}
	const each = 25
	w := newWorld(t, s, pluginName)
	target := newSite(t, w)
	ends := map[string]time.Duration{"revoked": length, "early": time.Minute, "middle": length - 6*time.Minute, "late": length - 20*time.Second}
	all := each * len(ends)
	for role, ttl := range ends {
		w.write(t, "roles/"+role, map[string]any{"trust": "main", "target": "away", "parameters": map[string]any{"project": "widget"}, "ttl": ttl.String(), "max_ttl": "4h"}) // so that no key ends by itself
		for range each {
			w.issue(t, role)
		}
	}
	target.leave()
	gone := time.Now()
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds/revoked")

	within(t, length+time.Minute, "the end of the outage", func() (bool, string) { return time.Since(gone) >= length, "" })
	if live, ledger := len(w.live()), len(w.ledger(t)); live != all || ledger != all {
		t.Errorf("%d keys live, the ledger has %d; want %d", live, ledger, all)
	}
	revoked, debt := len(w.leases(t, "creds/revoked/")), w.debt(t)
	t.Logf("after %s: %d leases, %d of those that were revoked at its start, %d debts", length, len(w.leases(t, "creds/")), revoked, debt)
	if revoked > each/2 || debt < 3*each {
		t.Errorf("the ledger has %d debts; of %d leases that were revoked at the start of the outage Vault still tries %d", debt, each, revoked)
	}

	target.back(t)
	w.wantPaid(t)
}

// wantPaid waits until none of the mount's keys is left, and logs how long that took. Vault and the ledger end them by
// themselves.
func (w *world) wantPaid(t *testing.T) {
	t.Helper()
	back := time.Now()
	ended := map[string]bool{}
	left := map[string]func() int{"key lives": func() int { return len(w.live()) }, "debt stands": func() int { return w.debt(t) }, "lease is left": func() int { return len(w.leases(t, "creds/")) }}
	within(t, 15*time.Minute, "the end of all", func() (bool, string) {
		for what, count := range left {
			if !ended[what] && count() == 0 {
				ended[what] = true
				took := time.Since(back).Round(time.Second)
				t.Logf("no %s %s after the target came back", what, took)
				if took > 5*time.Minute && what != "lease is left" { // a lease without a key may wait for Vault's next try
					t.Errorf("that took longer than five minutes")
				}
			}
		}
		return len(ended) == len(left), fmt.Sprint(ended)
	})
	given, err := w.root.Logical().ReadWithDataWithContext(t.Context(), "sys/leases", map[string][]string{"type": {"irrevocable"}})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(fmt.Sprint(given.Data), w.path) {
		t.Errorf("Vault has given leases up: %v", given.Data)
	}
	w.wantNone(t)
}

// debt counts the keys that must end and have not ended yet.
func (w *world) debt(t *testing.T) int {
	t.Helper()
	n, err := w.read(t, "status")["ledger"].(map[string]any)["debt"].(json.Number).Int64()
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}
