// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// FuzzProfile: a profile is taken or refused with line and member, and what is taken keeps its promises: it can issue,
// and no secret of ours can stand in a URL.
func FuzzProfile(f *testing.F) {
	f.Add(base)
	f.Add("name: x\nlifetime: 1h\nexchange: {method: PUT, path: '[]', ok: [200], key: {secret: response.json}}\n")
	f.Add("a: &a [*a]\n")
	f.Add("name: {x: [1, {y: 2}]}\n---\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parseProfile(text)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "line ") || strings.Count(err.Error(), ": ") < 2 {
				t.Fatalf("%q names no line and member", err)
			}
			return
		}
		if p.exchange == nil || p.made.secret == nil || len(p.exchange.ok) == 0 {
			t.Fatal("the profile cannot issue a key")
		}
		if p.lifetime == 0 && !p.endsByName && (p.find == nil || p.revoke == nil) {
			t.Fatal("a lost key would live for ever")
		}
		for _, op := range []*operation{p.exchange, p.renew, p.revoke, p.find, p.check, p.rotate, p.identify, p.rotateCredential, p.retire} {
			if op == nil {
				continue
			}
			for _, e := range append([]entry{{"path", op.path}}, op.query...) {
				if e.value.Uses("credential") || e.value.Uses("subject_token") {
					t.Fatalf("%s may hold a secret", e.name)
				}
			}
		}
	})
}

// canned answers every request with the same body.
type canned struct {
	status int
	body   string
}

func (c canned) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: c.status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(c.body)), Request: r}, nil
}

// FuzzAnswer: whatever a target answers, an exchange ends in a key that keeps every rule, or in one outcome whose error
// holds nothing of the answer.
func FuzzAnswer(f *testing.F) {
	f.Add(201, `{"secret": "s3cret-s3cret", "id": "id-1"}`)
	f.Add(201, `{"secret": ["x"], "id": 1e400}`)
	f.Add(200, `<html>`)
	f.Add(503, ``)
	opened, err := Open(Config{Driver: "http", Profile: base, Credential: map[string]string{"token": "t0p"}, Now: func() time.Time { return time.Unix(0, 0) }})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, status int, body string) {
		opened.api.client = &http.Client{Transport: canned{status, body}}
		key, err := opened.Exchange(context.Background(), Request{Name: "n"})
		if err == nil {
			if fault := key.check(time.Unix(0, 0)); fault != "" || status != 201 || key.Accessor == "" || key.Handle.Secret != "" {
				t.Fatalf("status %d yields %v: %s", status, key, fault)
			}
			return
		}
		if status == 201 != errors.Is(err, ErrProtocol) || key.Secret != "" {
			t.Fatalf("status %d yields %v", status, err)
		}
		if len(body) > 12 && strings.Contains(err.Error(), body) {
			t.Fatalf("the error repeats the answer: %v", err)
		}
	})
}
