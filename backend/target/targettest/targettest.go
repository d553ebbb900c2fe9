// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// Package targettest is the conformance suite that every driver and profile of package target passes: each calls [Run] once.
// The suite owns the server, its faults and the ledger of the keys that live there; a test supplies only the wire format of
// the API ([Wire]) and declares what the target can do. Declarations are checked in both directions: a target that cannot do
// something must say so, and nothing is skipped silently.
package targettest

import (
	"context"
	"errors"
	"fmt"
	"log"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// Suite describes a target to Run.
type Suite struct {
	Config target.Config  // Driver, Profile, Source, Audience; the suite sets the rest
	Params map[string]any // of every request
	Caps   target.Caps    // what the target can do, and nothing else

	Token      bool     // exchange presents the subject token
	Alone      bool     // with Token: exchange does not present the credential
	Credential []string // fields of the target's credential; every call presents it
	Optional   []string // fields that the credential may have; no call presents one
	Accessor   bool     // keys have an accessor
	Numeric    bool     // accessors are numbers
	Expiry     bool     // the answer says when a key ends
	MayLack    bool     // with Expiry: the answer may leave the end out
	Asked      bool     // the answer does not say it: a key ends at the time that was asked for
	NeedsKey   bool     // renew or revoke take the key itself, so that handles hold it
	KeyInURL   bool     // with NeedsKey: the API takes the key in a URL, and nowhere else
	ByName     bool     // revoke needs only the key's name, so Find makes no request
	Named      bool     // a key's accessor is its name
	Blank      bool     // a list of pages ends with an empty page, which is requested too
	Doubts     int      // further requests that revoke makes before it believes a status that says the key is gone
	Gone       Answer   // answer to revoke of a key that does not exist; zero = 404, whatever the body
	Fixed      bool     // renew only asks when the key ends, and does not change it
	Denied     []int    // statuses that mean that an exchange is denied
	Quotes     bool     // the error of a refusal quotes the server's message
	Rotated    string   // the field of the credential that RotateCredential renews

	Header      string                     // HeaderName
	HeaderValue func(secret string) string // how Header presents a key; nil = the key itself
	Fields      map[string]string          // of every key

	Wire Wire

	// End is when a key ends if the end asked was requested: not before asked. nil = at asked.
	End func(asked time.Time) time.Time

	// Complete fills in the parts of a Config that depend on the server's address. nil = nothing.
	Complete func(c *target.Config)
}

// Wire is the wire format of an API, from the server's side.
type Wire struct {
	// Read returns what a request asks for, and what it presents. It must take token and credential only from where the API
	// wants them, and leave out what it does not find: the suite compares. Identify may come without a credential.
	Read func(r *http.Request, body []byte) Call
	// Write is the answer to a call that succeeded. keys is one key for Exchange, Renew, Revoke, Rotate and Identify, and
	// none for Check and Retire. For Find and List it is all live keys, with their names, because the target must not rely
	// on the server to filter out others' keys. For RotateCredential it is a key whose secret is the new value of the field
	// Rotated. body is encoded as JSON; nil is no body.
	Write func(op Op, keys []Key) (status int, body any)
	// Page is Write for Find and List, if the API answers with one page at a time: next is the number of the following page,
	// 0 if this is the last. nil = the API answers with all keys at once.
	Page func(keys []Key, next int) Answer
	// Aside answers a request that is none of the calls but goes with one (discovery, a login); nil is none. living are the
	// live keys. Such requests are not counted, and faults do not apply to them, except that answers that carry a key are
	// spoilt too: other faults of them are for a driver's own tests.
	Aside func(r *http.Request, body []byte, living []Key) *Answer
}

// Answer is a server's answer.
type Answer struct {
	Status int
	Header http.Header
	Body   any // encoded as JSON; nil = none
}

// Op is a call of a target. The zero Op is a request that the API does not know.
type Op string

// The calls of a target.
const (
	Exchange Op = "exchange"
	Renew    Op = "renew"
	Revoke   Op = "revoke"
	Find     Op = "find"
	List     Op = "list" // Read may return it for Find, if the API does not tell them apart
	Check    Op = "check"

	Rotate           Op = "rotate"
	Identify         Op = "identify"
	RotateCredential Op = "rotate_credential"
	Retire           Op = "retire_credential"
)

var ops = []Op{Exchange, Renew, Revoke, Find, List, Check, Rotate, Identify, RotateCredential, Retire}

// Call is a request as the API understands it.
type Call struct {
	Op         Op
	Token      string            // the subject token
	Credential map[string]string // by field; nil = none
	Name       string            // Exchange: the key's name
	Key        string            // Renew, Revoke, Rotate: the key's accessor, or the key itself, or with ByName its name; Identify: the key itself; Find: the accessor, if one key is asked for
	Page       int               // Find, List: the number of the page, from 1; 0 = the first one
	NotAfter   time.Time         // Exchange, Renew, Rotate, RotateCredential: the end asked for
}

// Key is a key in the suite's ledger.
type Key struct {
	Secret, Accessor, Name string
	Expiry                 time.Time
}

// Secrets, which must be seen only where they belong. Keys' secrets begin with keyCanary, fields of the credential with
// credentialCanary.
const (
	tokenCanary      = "eyJhbGciOiJub25lIn0.c3ViamVjdC10b2tlbi1jYW5hcnk.c2ln"
	credentialCanary = "credential-canary-"
	keyCanary        = "key-canary-"
)

func holdsCanary(text string) bool {
	return slices.ContainsFunc([]string{tokenCanary, credentialCanary, keyCanary, wireCanary}, func(canary string) bool { return strings.Contains(text, canary) })
}

const (
	userAgent = "targettest/1"
	patience  = 10 * time.Second // a call that takes longer counts as hanging
	maxBytes  = 64 << 10         // of an answer
)

// logged has everything that package log wrote since the first Run began. There is one, because log has one writer for the
// whole process.
var logged journal

type journal struct {
	begin sync.Once
	mu    sync.Mutex
	text  strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// Run checks that the target that s describes keeps every promise of package target. It runs in parallel with other tests.
func Run(t *testing.T, s Suite) {
	t.Parallel()
	logged.begin.Do(func() { log.SetOutput(&logged) })
	t.Run("caps", s.testCaps)
	t.Run("exchange", s.testExchange)
	t.Run("answers", s.testAnswers)
	t.Run("revoke", s.testRevoke)
	t.Run("renew", s.testRenew)
	t.Run("find", s.testFind)
	t.Run("pages", s.testPages)
	t.Run("list", s.testList)
	t.Run("pages of a list", s.testListPages)
	t.Run("check", s.testCheck)
	t.Run("rotate", s.testRotate)
	t.Run("identify", s.testIdentify)
	t.Run("rotate credential", s.testRotateCredential)
	t.Run("secrets", s.testSecrets)
	t.Run("concurrency", s.testConcurrency)
	for _, op := range ops {
		if s.supports(op) && s.asks(op) {
			t.Run(string(op)+" under faults", func(t *testing.T) { s.testFaults(t, op) })
		}
	}
	if text := logged.String(); holdsCanary(text) {
		t.Errorf("this is logged, for this target or one beside it:\n%s", text)
	}
}

func (s Suite) supports(op Op) bool {
	return map[Op]bool{
		Exchange: true, Renew: s.Caps.Renew, Revoke: s.Caps.Revoke, Find: s.Caps.Find, List: s.Caps.List, Check: s.Caps.Check,
		Rotate: s.Caps.Rotate, Identify: s.Caps.Identify, RotateCredential: s.Caps.RotateRoot, Retire: s.Caps.Retire,
	}[op]
}

// asks reports whether the call makes a request.
func (s Suite) asks(op Op) bool { return op != Find || !s.ByName }

// gone is the server's answer to revoke of a key that does not live.
func (s Suite) gone() Answer {
	if s.Gone.Status == 0 {
		return Answer{Status: http.StatusNotFound, Body: map[string]any{"error": wireCanary}}
	}
	return s.Gone
}

// bench is one target with a fresh server.
type bench struct {
	*testing.T
	suite  Suite
	fake   *fake
	target *target.Target
	config target.Config
	clock  *clock
	names  atomic.Int64
}

// Start is the initial time of the suite's clock, for APIs that give a key's end relative to now.
var Start = time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)

// clock stands still until it is moved.
type clock struct {
	mu   sync.Mutex
	at   time.Time
	idle int           // number of readings before it leaps
	leap time.Duration // 0 = no leap
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.idle--; c.idle <= 0 {
		c.at, c.leap = c.at.Add(c.leap), 0
	}
	return c.at
}

func (c *clock) advance(d time.Duration) { c.leapAfter(0, d); c.now() }

// leapAfter moves the clock once it has been read that many times: time then passes only for a call that waits.
func (c *clock) leapAfter(reads int, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle, c.leap = reads, d
}

// start makes a server and opens a target for it; change may alter the configuration first.
func (s Suite) start(t *testing.T, change ...func(*target.Config)) *bench {
	t.Helper()
	b := &bench{T: t, suite: s, clock: &clock{at: Start}}
	b.fake = newFake(t, s, b.clock.now)
	c := s.Config
	c.Name, c.URL = "conformance", b.fake.server.URL
	c.Egress = egress.Policy{AllowHTTPLoopback: true}
	c.Credential = maps.Clone(b.fake.credential)
	c.UserAgent, c.MaxResponseBytes, c.Now = userAgent, maxBytes, b.clock.now
	c.RequestTimeout = time.Minute
	if s.Complete != nil {
		s.Complete(&c)
	}
	for _, f := range change {
		f(&c)
	}
	opened, err := target.Open(c)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(opened.Close)
	b.config, b.target = c, opened
	return b
}

// request returns a new request, with a name of its own.
func (b *bench) request() target.Request {
	b.Helper()
	params, err := b.target.Params(b.suite.Params)
	if err != nil {
		b.Fatalf("Params: %v", err)
	}
	r := target.Request{
		Name: fmt.Sprintf("%s%d", listPrefix, b.names.Add(1)), Params: params, NotAfter: b.clock.now().Add(2 * time.Hour), TTL: time.Hour,
		Subject: map[string]any{"issuer": "https://issuer.example", "subject": "workload"},
	}
	if b.suite.Token {
		r.SubjectToken = tokenCanary
	}
	return r
}

// issue makes a key, and fails the test if that fails.
func (b *bench) issue() target.Key {
	b.Helper()
	key, err := b.target.Exchange(b.Context(), b.request())
	if err != nil {
		b.Fatalf("Exchange: %v", err)
	}
	return key
}

// call makes one call of the target, on an existing key if the operation needs one.
func (b *bench) call(ctx context.Context, op Op, key target.Key) error {
	var err error
	switch op {
	case Exchange:
		var made target.Key
		if made, err = b.target.Exchange(ctx, b.request()); err != nil && cmp.Diff(target.Key{}, made) != "" {
			b.Errorf("Exchange returns an error and a key")
		}
	case Renew:
		_, err = b.target.Renew(ctx, key.Handle, b.clock.now().Add(3*time.Hour))
	case Revoke:
		err = b.target.Revoke(ctx, key.Handle)
	case Find:
		_, err = b.target.Find(ctx, key.Handle)
	case List:
		_, _, err = b.target.List(ctx, listPrefix, b.place())
	case Check:
		err = b.target.Check(ctx)
	case Rotate:
		_, err = b.target.Rotate(ctx, whole(key), b.clock.now().Add(3*time.Hour))
	case Identify:
		_, err = b.target.Identify(ctx, key.Secret, key.Handle.Params)
	case RotateCredential:
		_, err = b.target.RotateCredential(ctx, fmt.Sprintf("oidcx-test-%d", b.names.Add(1)), b.clock.now().Add(3*time.Hour))
	case Retire:
		_, err = b.target.RetireCredential(ctx)
	}
	return err
}

// whole returns a key's handle with the key in it, as Rotate needs it.
func whole(key target.Key) target.Handle {
	h := key.Handle
	h.Secret = key.Secret
	return h
}

// promptly runs f, and fails the test if it hangs.
func (b *bench) promptly(f func() error) error {
	b.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		b.fake.release()
		b.Fatalf("the call hangs")
		return nil
	}
}

// outcomes are the errors that a failed call can have; it has exactly one of them.
var outcomes = []error{
	target.ErrDenied, target.ErrBusy, target.ErrUnknown, target.ErrProtocol, target.ErrUnsupported, target.ErrEgress, target.ErrParameter,
}

// expect checks an error's outcome, and that the error shows no secret.
func (b *bench) expect(err, want error) {
	b.Helper()
	for _, outcome := range outcomes {
		if is := errors.Is(err, outcome); is != (outcome == want) {
			b.Errorf("got error %v; want one that is %v", err, want)
			return
		}
	}
	if want == nil {
		if err != nil {
			b.Errorf("got error %v; want none", err)
		}
		return
	}
	var typed *target.Error
	if !errors.As(err, &typed) || typed.Text == "" || typed.Op == "" {
		b.Errorf("got %T; want a *target.Error with Op and Text", err)
	}
	b.clean(err)
}

// clean checks that no way to print v shows a secret, or anything that the server wrote.
func (b *bench) clean(v any) {
	b.Helper()
	err, isError := v.(error)
	quoted := isError && b.suite.Quotes && errors.Is(err, target.ErrDenied)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		text := fmt.Sprintf(verb, v)
		for _, canary := range append(b.fake.keyCanaries(), tokenCanary, credentialCanary, wireCanary) {
			if quoted && canary == wireCanary {
				continue
			}
			if strings.Contains(text, canary) || strings.Contains(text, fmt.Sprintf("%x", canary)) {
				b.Errorf("%T with %s shows %q", v, verb, canary)
			}
		}
	}
	if isError && strings.Contains(err.Error(), b.fake.server.URL) {
		b.Errorf("the error has a URL: %v", err)
	}
}

// once checks that the server has seen exactly one request more than before.
func (b *bench) once(before int) {
	b.Helper()
	b.times(1, before)
}

func (b *bench) times(want, before int) {
	b.Helper()
	if got := b.fake.requests() - before; got != want {
		b.Errorf("%d requests were sent; want exactly %d", got, want)
	}
}

// end returns when a key ends if the end asked was requested.
func (s Suite) end(asked time.Time) time.Time {
	if s.End == nil {
		return asked
	}
	return s.End(asked)
}
