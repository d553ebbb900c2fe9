// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// Package targettest is the conformance suite that every driver and profile of package target passes: one call of [Run]
// each. The suite owns the server, its faults and the ledger of the keys that live there; a test supplies only the wire
// format of the API ([Wire]) and declares what the target can do. What is declared is checked in both directions: a
// target that cannot do something must say so, and nothing is skipped in silence.
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
	Alone      bool     // and not the credential
	Credential []string // fields of the target's credential; every call presents it
	Optional   []string // fields that the credential may have; no call presents one
	Accessor   bool     // keys have an accessor
	Numeric    bool     // accessors are numbers
	Expiry     bool     // the answer says when a key ends
	MayLack    bool     // with Expiry: it need not
	Asked      bool     // it does not: a key ends when that was asked for
	NeedsKey   bool     // renew or revoke take the key itself, so that handles hold it
	KeyInURL   bool     // with NeedsKey: the API takes it in a URL, and nowhere else
	ByName     bool     // revoke takes the key's name alone, so that Find need not ask
	Named      bool     // a key's accessor is its name
	Blank      bool     // a list of pages ends with an empty one, which is asked for
	Doubts     int      // requests beyond the first that revoke makes before it believes a status that a key is gone
	Gone       Answer   // to revoke of a key that is not there; zero = 404, whatever the body
	Fixed      bool     // renew asks when the key ends, and does not move that
	Denied     []int    // statuses by which an exchange is denied
	Quotes     bool     // the error of a refusal says what the server says of it
	Rotated    string   // the field of the credential that RotateCredential makes anew

	Header      string                     // HeaderName
	HeaderValue func(secret string) string // how that header presents a key; nil = the key itself
	Fields      map[string]string          // of every key

	Wire Wire

	// End is when a key ends for which the end asked was asked for: not before. nil = then.
	End func(asked time.Time) time.Time

	// Complete fills in what of a Config depends on the server's address. nil = nothing.
	Complete func(c *target.Config)
}

// Wire is how an API is spoken, seen from its server.
type Wire struct {
	// Read says what a request asks for, and with what. It must take token and credential from where the API wants them,
	// and leave out what it does not find: the suite compares. Who asks which key a key is may do so without a credential.
	Read func(r *http.Request, body []byte) Call
	// Write is the answer to a call that succeeded: one key for Exchange, Renew, Revoke, Rotate and Identify, none for Check
	// and Retire; for Find and List all that live, with their names, for the target must not rely on the server to sort out
	// others' keys; for RotateCredential the new value of the field Rotated as a key's secret. body is encoded as JSON; nil is no body.
	Write func(op Op, keys []Key) (status int, body any)
	// Page is Write for Find and List, where the API answers with a page at a time: next is the number of the page after this one, 0 if
	// this is the last. nil = it answers with all of them.
	Page func(keys []Key, next int) Answer
	// Aside answers a request that is none of the calls but goes with one (discovery, a login); nil is none. It is told the
	// keys that live. Such requests are not counted, and no fault meets them but that the answers that carry a key are wrong:
	// what else may go wrong with them is for a driver's own tests.
	Aside func(r *http.Request, body []byte, living []Key) *Answer
}

// Answer is what a server says.
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
	List     Op = "list" // Read may take it for Find, where the API does not tell them apart
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

// What must never be seen but where it belongs. Keys' secrets begin with keyCanary, fields of the credential with
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
	patience  = 10 * time.Second // a call that takes longer hangs
	maxBytes  = 64 << 10         // of an answer
)

// logged has all that package log wrote since the first Run began: it has one writer for the whole process.
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

// Run checks that the target that s describes keeps every promise of package target, beside other tests that are parallel.
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

// asks reports whether the call is one of the target's server.
func (s Suite) asks(op Op) bool { return op != Find || !s.ByName }

// gone is what revoke is answered for a key that does not live.
func (s Suite) gone() Answer {
	if s.Gone.Status == 0 {
		return Answer{Status: http.StatusNotFound, Body: map[string]any{"error": wireCanary}}
	}
	return s.Gone
}

// bench is one target at one fresh server.
type bench struct {
	*testing.T
	suite  Suite
	fake   *fake
	target *target.Target
	config target.Config
	clock  *clock
	names  atomic.Int64
}

// Start is the time at which the suite's clock stands, for APIs that tell a key's end as a time from now.
var Start = time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)

// clock stands still until it is moved.
type clock struct {
	mu   sync.Mutex
	at   time.Time
	idle int           // how often it is read until it leaps
	leap time.Duration // 0 = it does not
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

// leapAfter moves the clock once it was read so many times. So it moves for whoever waits for it, and for nobody else.
func (c *clock) leapAfter(reads int, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle, c.leap = reads, d
}

// start makes a server and opens the target there; change may alter the configuration first.
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

// request is a new request, with a name of its own.
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

// issue makes a key, which must succeed.
func (b *bench) issue() target.Key {
	b.Helper()
	key, err := b.target.Exchange(b.Context(), b.request())
	if err != nil {
		b.Fatalf("Exchange: %v", err)
	}
	return key
}

// call calls the target, on an existing key where the operation wants one.
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

// whole is a key's handle with the key in it, as rotating wants it.
func whole(key target.Key) target.Handle {
	h := key.Handle
	h.Secret = key.Secret
	return h
}

// promptly runs f, which must not hang.
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

// outcomes are the errors of which every failed call is exactly one.
var outcomes = []error{
	target.ErrDenied, target.ErrBusy, target.ErrUnknown, target.ErrProtocol, target.ErrUnsupported, target.ErrEgress, target.ErrParameter,
}

// expect checks an error's outcome, and that it gives nothing away.
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

// clean checks that no way to print v shows a secret, or what the server wrote.
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

// once checks that the server saw exactly one more request since it had seen before of them.
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

// end is when a key ends for which the end asked was asked for.
func (s Suite) end(asked time.Time) time.Time {
	if s.End == nil {
		return asked
	}
	return s.End(asked)
}
