// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// line is what a scripted server says to one kind of request.
type line struct {
	status int
	body   string
	header http.Header
}

// cut is a line that ends the connection without an answer.
var cut = line{}

// script is a server that answers by method and address, and writes down what it was asked. What has several lines says
// them one after the other, the last for ever; what has none is not found.
type script struct {
	url string

	mu            sync.Mutex
	lines         map[string][]line
	asked, bodies []string
}

func scripted(t *testing.T, lines map[string][]line) *script {
	t.Helper()
	s := &script{lines: lines}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	request := r.Method + " " + r.URL.RequestURI()
	s.asked, s.bodies = append(s.asked, request), append(s.bodies, string(body))
	said := line{status: 404, body: "no such page"}
	if left := s.lines[request]; len(left) > 0 {
		said = left[0]
		if len(left) > 1 {
			s.lines[request] = left[1:]
		}
	}
	s.mu.Unlock()
	if said.status == 0 {
		panic(http.ErrAbortHandler)
	}
	for name, values := range said.header {
		w.Header()[name] = values
	}
	w.WriteHeader(said.status)
	_, _ = io.WriteString(w, strings.ReplaceAll(said.body, "$URL", s.url))
}

// requests returns what was asked, in order.
func (s *script) requests() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.asked, ", ")
}

var scriptTime = time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)

// open opens a target there; path is appended to the server's address.
func (s *script) open(t *testing.T, path string, c target.Config) *target.Target {
	t.Helper()
	c.Name, c.URL, c.Egress, c.Now = "scripted", s.url+path, egress.Policy{AllowHTTPLoopback: true}, func() time.Time { return scriptTime }
	opened, err := target.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(opened.Close)
	return opened
}

// ask makes a request with parameters that the target has judged.
func ask(t *testing.T, to *target.Target, token string, params map[string]any) target.Request {
	t.Helper()
	judged, err := to.Params(params)
	if err != nil {
		t.Fatal(err)
	}
	return target.Request{Name: "oidcx-1", Params: judged, SubjectToken: token, NotAfter: scriptTime.Add(time.Hour), TTL: time.Hour}
}

// told is an error's outcome and text, "" for none, and whether a key may live.
func told(err error) (text string, mayLive bool) {
	var e *target.Error
	if !errors.As(err, &e) {
		return "", err != nil
	}
	return strings.TrimPrefix(e.Error(), e.Op+": "), target.MayLive(err)
}

// wantTold checks an error by its outcome and text.
func wantTold(t *testing.T, err error, want string, mayLive bool) {
	t.Helper()
	text, lives := told(err)
	if text != want || lives != mayLive {
		t.Errorf("got  %q, may live %v\nwant %q, %v", text, lives, want, mayLive)
	}
}
