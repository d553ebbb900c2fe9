// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package targettest

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// wireCanary is in everything that the server writes apart from its answers: it must not appear in an error.
const wireCanary = "wire-canary"

// fake is the server: it checks tokens and credentials as the wire format read them, and keeps the ledger of keys.
type fake struct {
	t          *testing.T
	suite      Suite
	server     *httptest.Server
	credential map[string]string // the first
	now        func() time.Time
	released   chan struct{}
	release    func() // unblocks blocked answers; may be called more than once

	mu      sync.Mutex
	good    []map[string]string // the credentials that are accepted
	renewed int                 // number of credentials made
	live    map[string]Key      // by accessor
	minted  []Key               // all keys ever made
	calls   []Call
	agents  []string
	fault   fault
	endless bool                           // lists never end
	expiry  time.Duration                  // used instead of the end that the call asks for, if not 0
	spoilt  Op                             // the call whose answers are spoilt
	spoil   func(latest Key, body any) any // changes these answers and, with an exchange, others that carry the key; nil = no change
}

func newFake(t *testing.T, s Suite, now func() time.Time) *fake {
	t.Helper()
	f := &fake{t: t, suite: s, now: now, live: map[string]Key{}, credential: map[string]string{}, released: make(chan struct{})}
	f.release = sync.OnceFunc(func() { close(f.released) })
	for _, name := range s.Credential {
		f.credential[name] = credentialCanary + name
	}
	f.good = []map[string]string{f.credential}
	f.server = httptest.NewServer(f)
	t.Cleanup(func() {
		f.release()
		f.server.Close()
	})
	return f
}

// ServeHTTP reads the whole request first: net/http notices that a client has gone only when nothing is left to read.
func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	uri, err := url.PathUnescape(r.RequestURI)
	if f.suite.KeyInURL {
		uri = strings.ReplaceAll(uri, keyCanary, "")
	}
	if err != nil || holdsCanary(uri) || holdsCanary(r.Referer()) {
		f.t.Error("a request has a token, a credential or a key in its URL, where logs would show it")
	}
	call := f.suite.Wire.Read(r, body)
	if call.Op == "" && f.suite.Wire.Aside != nil {
		if a := f.suite.Wire.Aside(r, body, f.living()); a != nil {
			if f.carriesKey(a.Body) {
				a.Body = f.spoiled(Exchange, a.Body)
			}
			write(w, *a)
			return
		}
	}
	f.mu.Lock()
	f.calls = append(f.calls, call)
	f.agents = append(f.agents, r.UserAgent())
	hurt := f.fault
	f.mu.Unlock()
	if hurt != nil {
		hurt(w, func() Answer { return f.act(call) })
		return
	}
	a := f.act(call)
	a.Body = f.spoiled(call.Op, a.Body)
	write(w, a)
}

func (f *fake) carriesKey(body any) bool {
	text := string(encode(body))
	return slices.ContainsFunc(f.keyCanaries(), func(key string) bool { return strings.Contains(text, key) })
}

// spoiled returns the body of an answer as changed by spoil.
func (f *fake) spoiled(op Op, body any) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	if op == Find && f.spoilt == List { // a server need not tell Find and List apart
		op = List
	}
	if f.spoil == nil || op != f.spoilt || body == nil || len(f.minted) == 0 {
		return body
	}
	return f.spoil(f.minted[len(f.minted)-1], body)
}

func write(w http.ResponseWriter, a Answer) {
	maps.Copy(w.Header(), a.Header)
	if a.Body == nil {
		w.WriteHeader(a.Status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(a.Status)
	_, _ = w.Write(encode(a.Body))
}

func encode(body any) []byte {
	text, err := json.Marshal(body)
	if err != nil {
		panic(err) // a test's wire format
	}
	return text
}

// refusal is an answer that contains secrets, which a client must not repeat.
func (f *fake) refusal(status int) Answer {
	return Answer{Status: status, Body: map[string]any{
		"error": wireCanary, "token": tokenCanary, "credential": credentialCanary, "keys": f.keyCanaries(),
	}}
}

var (
	badRequest = Answer{Status: http.StatusBadRequest, Body: map[string]any{"error": wireCanary}}
	notFound   = Answer{Status: http.StatusNotFound, Body: map[string]any{"error": wireCanary}}
)

// act carries out a call.
func (f *fake) act(c Call) Answer {
	if c.Op == Exchange && f.suite.Token && c.Token != tokenCanary || !f.takes(c) {
		return f.refusal(http.StatusUnauthorized)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch c.Op {
	case Rotate, Identify:
		key, found := f.lookup(c.Key)
		switch {
		case !found || c.Op == Identify && c.Key != key.Secret:
			return Answer{Status: http.StatusUnauthorized, Body: map[string]any{"error": wireCanary}}
		case c.Op == Identify:
			return f.answer(c.Op, key)
		}
		delete(f.live, key.Accessor)
		c.Name = key.Name
		return f.mint(c)
	case RotateCredential, Retire:
		return f.renewCredential(c)
	case Exchange:
		return f.mint(c)
	case Renew, Revoke:
		key, found := f.lookup(c.Key)
		switch {
		case !found && c.Op == Revoke:
			return f.suite.gone()
		case !found:
			return notFound
		case c.Op == Revoke:
			delete(f.live, key.Accessor)
		case f.suite.Fixed && f.expiry != 0: // the server's end is not the one that was asked for
			key.Expiry = f.end(c)
		case f.suite.Fixed:
		case c.NotAfter.IsZero():
			return badRequest
		default:
			key.Expiry = f.end(c)
			f.live[key.Accessor] = key
		}
		return f.answer(c.Op, key)
	case Find, List:
		// All keys, whatever the name: some servers match names loosely or ignore a filter that they do not know, and a key
		// that is found gets ended.
		var keys []Key
		for _, accessor := range slices.Sorted(maps.Keys(f.live)) {
			if c.Key == "" || c.Key == accessor {
				keys = append(keys, f.live[accessor])
			}
		}
		if c.Key != "" && len(keys) == 0 {
			return notFound
		}
		if f.suite.Wire.Page != nil {
			return f.page(keys, max(c.Page, 1))
		}
		return f.answer(c.Op, keys...)
	case Check:
		return f.answer(c.Op)
	}
	return Answer{Status: http.StatusNotImplemented, Body: map[string]any{"error": wireCanary}}
}

// takes reports whether the call's credential is good. Identify may be called without one, because it presents the key.
func (f *fake) takes(c Call) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.Op == Exchange && f.suite.Alone {
		return c.Credential == nil
	}
	return c.Op == Identify && c.Credential == nil ||
		slices.ContainsFunc(f.good, func(good map[string]string) bool { return maps.Equal(good, c.Credential) })
}

// renewCredential makes a credential, or for Retire ends the one that the call presents. If the target has no Retire, the
// old credential ends when the new one is made.
func (f *fake) renewCredential(c Call) Answer {
	isOld := func(good map[string]string) bool { return maps.Equal(good, c.Credential) }
	if c.Op == Retire || !f.suite.Caps.Retire {
		f.good = slices.DeleteFunc(f.good, isOld)
	}
	if c.Op == Retire {
		return f.answer(Retire)
	}
	f.renewed++
	next := maps.Clone(c.Credential)
	next[f.suite.Rotated] = fmt.Sprintf("%s%s-%d", credentialCanary, f.suite.Rotated, f.renewed)
	f.good = append(f.good, next)
	return f.answer(RotateCredential, Key{Secret: next[f.suite.Rotated], Name: c.Name, Accessor: f.suite.accessor(5000 + f.renewed), Expiry: f.end(c)})
}

// mint makes a key. If the target can find keys they must have a name, and if it can extend keys they must have an end.
func (f *fake) mint(c Call) Answer {
	if (f.suite.Caps.Find || f.suite.ByName) && c.Name == "" || f.suite.Caps.Renew && !f.suite.Fixed && c.NotAfter.IsZero() {
		return badRequest
	}
	n := len(f.minted) + 1
	key := Key{
		Secret: fmt.Sprintf("%s%04d", keyCanary, n), Accessor: f.suite.accessor(n), Name: c.Name, Expiry: f.end(c),
	}
	if f.suite.Named {
		key.Accessor = c.Name
	}
	f.minted = append(f.minted, key)
	f.live[key.Accessor] = key
	return f.answer(c.Op, key)
}

// accessor is the id of the nth key.
func (s Suite) accessor(n int) string {
	if s.Numeric {
		return fmt.Sprint(1000 + n) // all of the same length, so that they sort as text
	}
	return fmt.Sprintf("id-%04d", n)
}

func (f *fake) end(c Call) time.Time {
	switch {
	case f.expiry != 0:
		return f.now().Add(f.expiry)
	case !c.NotAfter.IsZero():
		return c.NotAfter.UTC()
	}
	return f.now().Add(time.Hour)
}

func (f *fake) lookup(key string) (Key, bool) {
	for _, k := range f.live {
		if key != "" && (key == k.Accessor || key == k.Secret || f.suite.ByName && key == k.Name) {
			return k, true
		}
	}
	return Key{}, false
}

func (f *fake) answer(op Op, keys ...Key) Answer {
	status, body := f.suite.Wire.Write(op, keys)
	return Answer{Status: status, Body: body}
}

const pageSize = 2 // keys

// page returns the answer with the nth page of a list.
func (f *fake) page(keys []Key, n int) Answer {
	keys = keys[min((n-1)*pageSize, len(keys)):]
	next := 0
	if len(keys) > pageSize || f.endless {
		keys, next = keys[:min(pageSize, len(keys))], n+1
	}
	return f.suite.Wire.Page(keys, next)
}

// kill ends a key without the target's knowledge.
func (f *fake) kill(accessor string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.live, accessor)
}

// goesOn makes lists endless.
func (f *fake) goesOn() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endless = true
}

// suffer sets the fault of all later calls; nil is none.
func (f *fake) suffer(hurt fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = hurt
}

// spoils sets how later answers to one call are changed.
func (f *fake) spoils(op Op, spoil func(latest Key, body any) any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spoilt, f.spoil = op, spoil
}

// ends makes every key end that long from now, whatever is asked for; 0 means as asked.
func (f *fake) ends(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expiry = d
}

func (f *fake) requests() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calls)
}

// last returns the latest call, as the wire format read it.
func (f *fake) last() Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.calls) == 0 {
		return Call{}
	}
	return f.calls[len(f.calls)-1]
}

func (f *fake) lastAgent() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.agents[len(f.agents)-1]
}

// living returns the live keys, sorted by accessor.
func (f *fake) living() []Key {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := []Key{}
	for _, accessor := range slices.Sorted(maps.Keys(f.live)) {
		out = append(out, f.live[accessor])
	}
	return out
}

// made returns the key that was made last.
func (f *fake) made() Key {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.minted[len(f.minted)-1]
}

func (f *fake) keyCanaries() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := []string{}
	for _, k := range f.minted {
		out = append(out, k.Secret)
	}
	return out
}
