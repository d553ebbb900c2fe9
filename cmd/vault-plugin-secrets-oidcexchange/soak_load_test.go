// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

// asked is a key that was asked for, as its caller knows it.
type asked struct {
	role            string
	from, to        time.Time
	answered        bool
	lease, accessor string
	key             string // of role kept alone
}

// counts count what the callers did.
type counts struct{ issued, renewed, revoked, refused, unanswered int }

// books are what the callers know: each key, by the jti of the token used to ask for it, until it is certainly dead.
type books struct {
	mu      sync.Mutex
	asked   map[string]*asked
	silence [][2]time.Time // when answers may have been lost
	secrets []string       // that must stand in no log
	counts
}

// silent records a period in which answers may have been lost.
func (b *books) silent(from, to time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.silence = append(b.silence, [2]time.Time{from, to})
}

func (b *books) tally() counts {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts
}

// note changes the counts.
func (b *books) note(change func(*counts)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&b.counts)
}

// answer records what a caller heard. A refused request is forgotten: the books then say that no key may come from it.
func (b *books) answer(jti string, a *asked, secret *api.Secret, err error) {
	_, text := refusal(err)
	b.mu.Lock()
	defer b.mu.Unlock()
	a.to = time.Now()
	switch {
	case err == nil && secret == nil: // a second redirect: the client follows one, and takes another for an answer
		b.unanswered++
	case err == nil:
		b.issued++
		a.answered, a.lease, a.accessor = true, secret.LeaseID, secret.Data["accessor"].(string)
		if a.role == "kept" {
			a.key = secret.Data["api_key"].(string)
		}
	case refusalText("[a-z_]+").MatchString(text):
		b.refused++
		delete(b.asked, jti)
	default:
		b.unanswered++
	}
}

func (b *books) hide(secret string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.secrets = append(b.secrets, secret)
}

func (b *books) ask(jti string, a *asked) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked[jti] = a
}

// forget drops a key that is certainly dead. If it were found alive, it would count as a key that nobody asked for.
func (b *books) forget(jti string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.asked, jti)
}

// forgetOld drops keys that should have expired long ago.
func (b *books) forgetOld() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for jti, a := range b.asked {
		if a.answered && a.role != "kept" && time.Since(a.to) > 10*time.Minute {
			delete(b.asked, jti)
		}
	}
}

// startLoad starts the callers; stop ends them.
func (s *soak) startLoad(t *testing.T) (stop func()) {
	t.Helper()
	users, roots := s.c.clients(t, s.user.Token()), s.c.clients(t, s.root.Token())
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for ctx.Err() == nil {
				node := s.dice.n(len(s.c))
				s.life(t, users[node], roots[s.dice.n(len(s.c))])
				rest(ctx, time.Duration(100+s.dice.n(800))*time.Millisecond)
			}
		})
	}
	stop = func() {
		cancel()
		all.Wait()
	}
	t.Cleanup(stop) // also of a test that has failed
	return stop
}

// life is the life of one key: it is asked for at one server, perhaps renewed, and perhaps revoked at another.
func (s *soak) life(t *testing.T, user, root *api.Client) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	a, jti, ref := &asked{role: s.anyRole(), from: time.Now()}, fmt.Sprint("soak-", s.dice.n(1<<60)), "refs/heads/main"
	if a.role == "stolen" {
		ref = groupRef(s.group.Load())
	}
	token := s.issuer.Token(map[string]any{"aud": audience, "jti": jti, "ref": ref})
	s.books.ask(jti, a)
	if s.dice.percent(5) { // not all: they are thousands
		s.books.hide(token[strings.LastIndex(token, ".")+1:])
	}
	secret, err := user.Logical().WriteWithContext(t.Context(), s.path+"/creds/"+a.role, map[string]any{"subject_token": token})
	s.books.answer(jti, a, secret, err)
	if a.key != "" {
		s.books.hide(a.key)
	}
	if !a.answered || a.role == "kept" {
		return
	}
	for s.dice.percent(40) {
		if _, err := user.Sys().RenewWithContext(t.Context(), secret.LeaseID, 30); err == nil {
			s.books.note(func(c *counts) { c.renewed++ })
		}
	}
	if !s.dice.percent(60) {
		return
	}
	if err := root.Sys().RevokeWithOptionsWithContext(t.Context(), &api.RevokeOptions{LeaseID: secret.LeaseID, Sync: true}); err != nil {
		return // it ends with its lease
	}
	s.books.note(func(c *counts) { c.revoked++ })
	s.books.forget(jti)
	if s.keys.Valid(secret.Data["api_key"].(string)) {
		t.Errorf("Vault has answered that lease %s is revoked, and its key %s lives", secret.LeaseID, a.accessor)
	}
}

func (s *soak) anyRole() string {
	switch n := s.dice.n(100); {
	case n < 5:
		return "kept"
	case n < 20:
		return "stolen"
	case n < 45:
		return "brief"
	}
	return "deploy"
}
