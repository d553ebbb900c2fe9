// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

// callers is how many callers ask for keys at a time; each goes through several keys a second.
const callers = 4

// soak is a cluster under constant load and constant failures.
type soak struct {
	*world
	c       cluster
	dice    *dice
	began   time.Time
	books   books
	gate    sync.RWMutex // the life of a key holds it; who takes it whole meets no load
	group   atomic.Int64 // whose keys the next revocation ends
	runs    []string     // the revocations so far
	harmed  map[string]int
	outage  atomic.Bool // of the target
	faults  atomic.Int64
	figures []figures
}

// dice make random choices from a seed. The same seed makes the same choices in the same order, but how they coincide with
// other events is up to the machine.
type dice struct {
	mu sync.Mutex
	r  *rand.Rand
}

func (d *dice) n(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.r.IntN(n)
}

// percent is true in n percent of the calls.
func (d *dice) percent(n int) bool { return d.n(100) < n }

// soakOrder returns how long to soak, and the seed.
func soakOrder(t *testing.T) (length time.Duration, seed uint64) {
	t.Helper()
	order := os.Getenv("SOAK")
	if order == "" {
		t.Skip("SOAK is not set, so no cluster was soaked; `make soak` does, for an hour")
	}
	length, err := time.ParseDuration(order)
	if err != nil || length < time.Minute {
		t.Fatalf("SOAK=%q: want a duration of at least 1m", order)
	}
	seed = rand.Uint64() % 1_000_000
	if given := os.Getenv("SEED"); given != "" {
		if seed, err = strconv.ParseUint(given, 10, 64); err != nil {
			t.Fatalf("SEED=%q: want a number", given)
		}
	}
	return length, seed
}

// TestSoak makes three Vaults, the plugin and the target fail at random under load, and checks that every key is accounted
// for in the end. In the last third only the target fails, so that growth within one process can be seen.
func TestSoak(t *testing.T) {
	length, seed := soakOrder(t)
	bin := os.Getenv("VAULT_BIN")
	if bin == "" {
		t.Fatal("VAULT_BIN is not set; `make soak` finds or builds a Vault and sets it")
	}
	fmt.Printf("soaking for %s, SEED=%d, race detector %v\n", length, seed, raceEnabled())
	ownEnvironment(t)
	s := newSoak(t, bin, seed, length)
	stop := s.startLoad(t)
	s.measure(t, "start")
	s.goOn(t, length*2/3, append(gentle, rough...))
	s.measure(t, "middle")
	s.goOn(t, length/3, gentle)
	stop()
	s.finish(t)
}

// newSoak makes the cluster, and the roles that the load uses.
func newSoak(t *testing.T, bin string, seed uint64, length time.Duration) *soak {
	t.Helper()
	c := startCluster(t, bin, binaries{plain: buildPlugin(t, "", pluginVersion)}, 3)
	s := &soak{world: newWorld(t, c[0], pluginName), c: c, dice: &dice{r: rand.New(rand.NewPCG(seed, 0))}, harmed: map[string]int{}}
	s.books.asked = map[string]*asked{}
	// Longer than an exchange can be on its way: a plugin may outlive its Vault for so long.
	s.write(t, "config", map[string]any{"sweep_grace": "40s", "request_timeout": "2s"})
	s.write(t, "targets/acme", map[string]any{"allowed_roles": "*,static/*"})
	s.write(t, "targets/brief", map[string]any{"driver": "http", "url": s.keysURL, "ca_pem": s.ca, "allowed_roles": "*", "credential": map[string]any{"token": s.admin},
		"profile": strings.Replace(acmeProfile(t), `"expires_at": not_after`, `"expires_at": timestamp(int(not_after) - 320)`, 1)})
	role := func(name, target string, ttl, most time.Duration) {
		s.write(t, "roles/"+name, map[string]any{"trust": "main", "target": target, "parameters": map[string]any{"project": "widget"}, "ttl": ttl.String(), "max_ttl": most.String(), "max_keys": 1_000_000})
	}
	role("deploy", "acme", 20*time.Second, time.Minute)
	role("brief", "brief", 20*time.Second, time.Minute) // its keys end unless they are renewed
	role("stolen", "acme", 20*time.Second, time.Minute) // of these a revocation ends all from time to time
	role("kept", "acme", length+time.Hour, length+time.Hour)
	s.write(t, "static-roles/ci", map[string]any{"target": "acme", "parameters": "project=widget", "rotation_period": "24h", "overlap": "10s"})
	s.began = time.Now()
	s.keys.OnRequest(s.onRequest)
	return s
}

// goOn does one harm after another for the given time.
func (s *soak) goOn(t *testing.T, length time.Duration, harms []harm) {
	t.Helper()
	end := time.Now().Add(length)
	told := time.Now()
	for time.Now().Before(end) && !t.Failed() {
		rest(t.Context(), time.Duration(1000+s.dice.n(4000))*time.Millisecond)
		h := harms[s.dice.n(len(harms))]
		from := time.Now()
		h.do(s, t)
		s.harmed[h.name]++
		if h.silences {
			s.books.silent(from, time.Now())
		}
		if time.Since(told) > min(length/10, 30*time.Second) {
			told = time.Now()
			s.books.forgetOld()
			fmt.Println(s.progress())
		}
	}
}

// rest waits for the given time, or until ctx ends.
func rest(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (s *soak) progress() string {
	b := s.books.tally()
	harms := 0
	for _, n := range s.harmed {
		harms += n
	}
	return fmt.Sprintf("%6s  issued %d, renewed %d, revoked %d, refused %d, unanswered %d; harms %d, faults %d; keys alive %d",
		time.Since(s.began).Round(time.Second), b.issued, b.renewed, b.revoked, b.refused, b.unanswered, harms, s.faults.Load(), len(s.keys.Live()))
}

// finish ends all faults, waits until everything has settled, and reports.
func (s *soak) finish(t *testing.T) {
	t.Helper()
	s.keys.OnRequest(nil)
	s.keys.ClearFaults()
	fmt.Printf("%6s  the faults have ended; waiting for everything to settle\n", time.Since(s.began).Round(time.Second))
	s.settleAll(t)
	s.measure(t, "end")
	found := s.inspect(t)
	found.grown = s.grown()
	s.endAll(t, found)
	for _, server := range s.c {
		server.canary(s.books.secrets...)
		server.wantClean(t)
		eachLine(t, server.logFile(), func(line string) {
			if strings.Contains(line, "DATA RACE") {
				found.races++
			}
		})
	}
	s.report(found)
	for _, wrong := range append(found.wrong, found.grown...) {
		t.Error(wrong)
	}
}

// clients returns a client for each server.
func (c cluster) clients(t testing.TB, token string) (all []*api.Client) {
	t.Helper()
	for _, s := range c {
		client, err := s.client(token)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, client)
	}
	return all
}
