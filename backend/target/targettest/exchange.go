// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package targettest

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// testCaps checks that the target's own capabilities are those that the test declares. A call that the target does not
// support must return that, and send nothing.
func (s Suite) testCaps(t *testing.T) {
	b := s.start(t)
	if diff := cmp.Diff(s.Caps, b.target.Caps()); diff != "" {
		t.Errorf("Caps (-declared +got):\n%s", diff)
	}
	if diff := cmp.Diff(slices.Concat(s.Credential, s.Optional), b.target.CredentialFields()); diff != "" {
		t.Errorf("CredentialFields (-declared +got):\n%s", diff)
	}
	if got := b.target.Source() != target.SourceNone; got != s.Token {
		t.Errorf("Source is %q; declared is a subject token: %v", b.target.Source(), s.Token)
	}
	if got := b.target.HeaderName(); got != s.Header {
		t.Errorf("HeaderName is %q; declared is %q", got, s.Header)
	}
	if !(s.Caps.Find && s.Caps.Revoke) && b.target.Lifetime() <= 0 {
		t.Error("Lifetime is 0; a key that is lost here lives for ever")
	}
	key := b.issue()
	before := b.fake.requests()
	for _, op := range []Op{Renew, Revoke, Find, List, Check} {
		if !s.supports(op) {
			b.expect(b.call(t.Context(), op, key), target.ErrUnsupported)
		}
	}
	if got := b.fake.requests() - before; got != 0 {
		t.Errorf("%d requests were sent for what the target cannot do", got)
	}
}

// testExchange checks an issued key: it must be the one that the server made, with what was asked for.
func (s Suite) testExchange(t *testing.T) {
	b := s.start(t)
	r := b.request()
	got, err := b.target.Exchange(t.Context(), r)
	if err != nil {
		t.Fatalf("Exchange: %v", err)
	}
	b.once(0)
	seen, living := b.fake.last(), b.fake.living()
	if len(living) != 1 {
		t.Fatalf("%d keys live; want 1", len(living))
	}
	made := living[0]
	want := target.Key{Secret: made.Secret, Fields: s.Fields, Handle: target.Handle{Name: r.Name, Params: r.Params}}
	if s.Accessor {
		want.Accessor = made.Accessor
	}
	switch {
	case s.Expiry:
		want.Expiry = made.Expiry
	case s.Asked:
		want.Expiry = seen.NotAfter
	case b.target.Lifetime() > 0:
		want.Expiry = b.clock.now().Add(b.target.Lifetime())
	}
	if s.HeaderValue != nil {
		want.Header = s.HeaderValue(made.Secret)
	}
	want.Handle.Accessor, want.Handle.Secret = got.Handle.Accessor, got.Handle.Secret // checked by judgeHandle
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Exchange (-want +got):\n%s", diff)
	}
	s.judgeHandle(t, got)
	if s.Caps.Find && seen.Name != r.Name {
		t.Errorf("the server was told the name %q; want %q", seen.Name, r.Name)
	}
	if end := s.end(r.NotAfter); !seen.NotAfter.IsZero() && !seen.NotAfter.Equal(end) {
		t.Errorf("the server was told the end %v; want %v", seen.NotAfter, end)
	}
	if agent := b.fake.lastAgent(); agent != userAgent {
		t.Errorf("User-Agent is %q; want %q", agent, userAgent)
	}
	if len(s.Credential) > 0 && !s.Alone {
		_, err = b.stranger().Exchange(t.Context(), r)
		b.expect(err, target.ErrDenied)
	}
	if s.Token {
		r.SubjectToken = ""
		_, err = b.target.Exchange(t.Context(), r)
		b.expect(err, target.ErrParameter)
		r.SubjectToken = tokenCanary + "x"
		_, err = b.target.Exchange(t.Context(), r)
		b.expect(err, target.ErrDenied)
	}
	if living := b.fake.living(); len(living) != 1 {
		t.Errorf("%d keys live after refusals; want the first one alone", len(living))
	}
}

// judgeHandle checks that a handle holds what is needed to end the key, and no other secret.
func (s Suite) judgeHandle(t *testing.T, key target.Key) {
	t.Helper()
	if !s.NeedsKey && key.Handle.Secret != "" {
		t.Error("the handle holds the key without need")
	}
	if s.NeedsKey && key.Handle.Secret != key.Secret {
		t.Error("the handle lacks the key")
	}
	if (s.ByName || s.NeedsKey || !s.Caps.Revoke && !s.Caps.Renew) && key.Handle.Accessor != "" {
		t.Error("the handle holds an accessor that nothing needs")
	}
}

// spoilers are ways to make an answer wrong but still JSON, by name.
type spoilers map[string]func(latest Key, body any) any

// testAnswers checks answers that are JSON, but wrong. After an exchange, a key exists each time.
func (s Suite) testAnswers(t *testing.T) {
	long := keyCanary + strings.Repeat("x", 8<<10)
	wrong := spoilers{
		"secret missing":     func(k Key, body any) any { return replace(body, k.Secret, nil) },
		"secret null":        func(k Key, body any) any { return replace(body, k.Secret, json.RawMessage("null")) },
		"secret empty":       func(k Key, body any) any { return replace(body, k.Secret, "") },
		"secret number":      func(k Key, body any) any { return replace(body, k.Secret, 12345) },
		"secret list":        func(k Key, body any) any { return replace(body, k.Secret, []string{k.Secret}) },
		"secret object":      func(k Key, body any) any { return replace(body, k.Secret, map[string]any{"key": k.Secret}) },
		"secret line break":  func(k Key, body any) any { return replace(body, k.Secret, k.Secret+"\r\nX-Evil: 1") },
		"secret not ASCII":   func(k Key, body any) any { return replace(body, k.Secret, k.Secret+"é") },
		"secret overlong":    func(k Key, body any) any { return replace(body, k.Secret, long) },
		"everything missing": func(Key, any) any { return map[string]any{} },
	}
	if s.Accessor {
		maps.Copy(wrong, wrongAccessors())
		wrong["accessor is the key"] = func(k Key, body any) any { return replace(body, k.Accessor, k.Secret) }
	}
	if s.Expiry {
		maps.Copy(wrong, s.wrongExpiries(Exchange))
	}
	s.testSpoilt(t, Exchange, wrong)
	if s.Caps.Renew {
		s.testSpoilt(t, Renew, s.wrongExpiries(Renew))
	}
	if s.Caps.Find && s.asks(Find) {
		s.testSpoilt(t, Find, wrongAccessors())
	}
	if s.Caps.List && !s.Named { // with Named, another accessor is another name, which was not asked for
		s.testSpoilt(t, List, wrongAccessors())
	}
	if s.Expiry {
		for name, d := range map[string]time.Duration{"expired": -time.Second, "expires now": -1} {
			t.Run(name, func(t *testing.T) {
				b := s.start(t)
				b.fake.ends(d)
				b.expect(b.call(t.Context(), Exchange, target.Key{}), target.ErrProtocol)
			})
		}
	}
}

func (s Suite) testSpoilt(t *testing.T, op Op, wrong spoilers) {
	for name, change := range wrong {
		t.Run(string(op)+" "+name, func(t *testing.T) {
			b, key := s.ready(t)
			before, lived := b.fake.requests(), len(b.fake.living())
			b.fake.spoils(op, change)
			err := b.call(t.Context(), op, key)
			b.expect(err, target.ErrProtocol)
			most := s.requests(op)
			if op == Exchange && s.NeedsKey { // such a key could not be found again, so a target may end it at once when it refuses the answer
				most++
			}
			if lives := op != Exchange || len(b.fake.living()) > lived; target.MayLive(err) != lives {
				t.Errorf("MayLive(%v) is %v", err, !lives)
			}
			if s.NeedsKey && strings.HasPrefix(name, "expiry") && op == Exchange && target.MayLive(err) {
				t.Error("the key lives on, although the answer has it")
			}
			if got := b.fake.requests() - before; got < 1 || got > most {
				t.Errorf("%d requests were sent; want at least one, and at most %d", got, most)
			}
		})
	}
}

func wrongAccessors() spoilers {
	out := spoilers{}
	for name, with := range map[string]func(Key) any{
		"missing": func(Key) any { return nil }, "empty": func(Key) any { return "" }, "line break": func(k Key) any { return k.Accessor + "\n" },
		"overlong": func(Key) any { return strings.Repeat("x", 513) }, "object": func(k Key) any { return map[string]any{"id": k.Accessor} },
	} {
		out["accessor "+name] = func(k Key, body any) any { return replace(body, k.Accessor, with(k)) }
	}
	return out
}

func (s Suite) wrongExpiries(op Op) spoilers {
	out := spoilers{}
	mayLack := s.MayLack || op == Renew && s.Fixed // a server that is only asked for the end need not state it
	for name, with := range map[string]any{"missing": nil, "garbage": wireCanary, "empty": "", "bool": true, "object": map[string]any{}} {
		if name != "missing" || !mayLack {
			out["expiry "+name] = func(k Key, _ any) any { return s.replaceExpiry(op, k, with) }
		}
	}
	return out
}

// replace returns a JSON value in which every text equal to from is replaced by with; nil removes the member or element.
func replace(body any, from string, with any) any {
	switch v := plain(body).(type) {
	case string:
		if v == from {
			return with
		}
		return v
	case float64:
		if fmt.Sprint(v) == from {
			return with
		}
		return v
	case map[string]any:
		for name, member := range v {
			if v[name] = replace(member, from, with); v[name] == nil {
				delete(v, name)
			}
		}
		return v
	case []any:
		for i := range v {
			v[i] = replace(v[i], from, with)
		}
		return slices.DeleteFunc(v, func(e any) bool { return e == nil })
	default:
		return v
	}
}

// plain returns a value as JSON decodes it.
func plain(v any) any {
	var out any
	if err := json.Unmarshal(encode(v), &out); err != nil {
		panic(err) // a test's wire format
	}
	return out
}

// replaceExpiry replaces a key's end with with. It finds where the wire format has the end by comparing two answers.
func (s Suite) replaceExpiry(op Op, k Key, with any) any {
	_, body := s.Wire.Write(op, []Key{k})
	k.Expiry = k.Expiry.Add(24 * time.Hour) // the wire format may give ends as days
	_, later := s.Wire.Write(op, []Key{k})
	return replaceDifference(plain(body), plain(later), with)
}

func replaceDifference(a, b, with any) any {
	object, isObject := a.(map[string]any)
	if !isObject {
		if reflect.DeepEqual(a, b) {
			return a
		}
		return with
	}
	other, _ := b.(map[string]any)
	for name := range object {
		if object[name] = replaceDifference(object[name], other[name], with); object[name] == nil {
			delete(object, name)
		}
	}
	return object
}
