// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kind is a way in which a call fails.
type Kind string

// The kinds of faults. The first five replace the work; with After, the work is done and they replace its answer: so a key
// comes to live that its requester never hears of. The others always do the work and spoil its answer.
const (
	KindDelay    Kind = "delay"    // wait for Delay or Until, then go on as usual
	KindHang     Kind = "hang"     // never answer; ends when the client goes
	KindCut      Kind = "cut"      // close the connection
	KindStatus   Kind = "status"   // answer Status, with Retry-After if RetryAfter is set
	KindRedirect Kind = "redirect" // answer Status (302 if zero) with Location

	KindTruncate   Kind = "truncate"    // send half of the body that Content-Length announces, then close the connection
	KindHTML       Kind = "html"        // an HTML page under the answer's own status (200 if it has no body)
	KindWrongTypes Kind = "wrong-types" // the JSON object's own members, each with a value of another type
	KindNoSecret   Kind = "no-secret"   // the JSON object without the member that holds the key or token
	KindHuge       Kind = "huge"        // the JSON object, still valid, with Size MiB of padding before its members
)

var (
	interruptingKinds = []Kind{KindDelay, KindHang, KindCut, KindStatus, KindRedirect}
	spoilingKinds     = []Kind{KindTruncate, KindHTML, KindWrongTypes, KindNoSecret, KindHuge}
)

// maxPaddingMiB keeps a mistyped Size from taking the machine's memory.
const maxPaddingMiB = 256

// Fault says how a call fails. The zero Fault is none; Kind is required to inject one.
type Fault struct {
	Kind  Kind
	After bool // do the work first; only for the kinds that replace it
	Count int  // for that many calls; 0 = until ClearFaults

	Status     int             // KindStatus: 400 to 599. KindRedirect: 300 to 399
	RetryAfter time.Duration   // KindStatus; whole seconds; 0 = no header
	Location   string          // KindRedirect
	Delay      time.Duration   // KindDelay
	Until      <-chan struct{} // KindDelay, instead of Delay: the test closes it. Like a slow server, the wait outlives the client
	Size       int             // KindHuge: MiB, at most 256
}

// check returns why f cannot be carried out, or nil.
func (f Fault) check() error {
	switch {
	case f.Count < 0:
		return errors.New("count: negative; want the number of calls, or 0 for all")
	case f.After && !slices.Contains(interruptingKinds, f.Kind):
		return fmt.Errorf("after: only for the kinds %q", interruptingKinds)
	case f.Kind == KindDelay && (f.Delay > 0) == (f.Until != nil):
		return errors.New("delay: want a positive duration or a channel to wait for")
	case f.Kind == KindStatus && (f.Status < 400 || f.Status > 599):
		return errors.New("status: want 400 to 599")
	case f.Kind == KindStatus && (f.RetryAfter < 0 || f.RetryAfter%time.Second != 0):
		return errors.New("retry_after: want whole seconds")
	case f.Kind == KindRedirect && f.Status != 0 && (f.Status < 300 || f.Status > 399):
		return errors.New("status: want 300 to 399 for a redirect")
	case f.Kind == KindRedirect && f.Location == "":
		return errors.New("location: missing; want the URL to redirect to")
	case f.Kind == KindHuge && (f.Size < 1 || f.Size > maxPaddingMiB):
		return fmt.Errorf("size: want 1 to %d MiB", maxPaddingMiB)
	case !slices.Contains(interruptingKinds, f.Kind) && !slices.Contains(spoilingKinds, f.Kind):
		return fmt.Errorf("kind %q: unknown; want one of %q or %q", f.Kind, interruptingKinds, spoilingKinds)
	}
	return nil
}

// interrupt carries out a fault that replaces the work or its answer. It reports whether the request has been answered. To
// close the connection it panics, as net/http requires.
func (f Fault) interrupt(w http.ResponseWriter, r *http.Request) bool {
	switch f.Kind {
	case KindDelay:
		f.wait()
		return false
	case KindHang:
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	case KindCut:
		panic(http.ErrAbortHandler)
	case KindStatus:
		if f.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(f.RetryAfter/time.Second)))
		}
		writeError(w, f.Status, "injected fault")
		return true
	case KindRedirect:
		w.Header().Set("Location", f.Location)
		w.WriteHeader(cmp.Or(f.Status, http.StatusFound))
		return true
	}
	return false
}

// wait carries out a delay.
func (f Fault) wait() {
	if f.Until != nil {
		<-f.Until
	} else {
		time.Sleep(f.Delay)
	}
}

// send sends the answer that the work gave, spoiled if f says so.
func (f Fault) send(w http.ResponseWriter, a *answer) {
	switch f.Kind {
	case KindTruncate:
		a.sendHalf(w)
	case KindHTML:
		a.header.Set("Content-Type", "text/html; charset=utf-8")
		if a.status == http.StatusNoContent {
			a.status = http.StatusOK
		}
		a.replace([]byte("<!DOCTYPE html><html><body><h1>Sign in</h1></body></html>\n"))
	case KindWrongTypes:
		a.edit(func(object map[string]any) {
			for name, v := range object {
				if _, ok := v.(string); ok {
					object[name] = 7
				} else {
					object[name] = "seven"
				}
			}
		})
	case KindNoSecret:
		a.edit(func(object map[string]any) {
			for _, name := range []string{"secret", "apiKey", "token", "rubygems_api_key", "access_token", "sha1", "key"} {
				delete(object, name)
			}
		})
	case KindHuge:
		a.pad(f.Size << 20)
	}
	if f.Kind != KindTruncate {
		a.send(w)
	}
}

// answer buffers a response, so that the fault of the call can still change it.
type answer struct {
	header http.Header
	status int
	reason string // the reason phrase of the status line; "" = the usual one
	body   bytes.Buffer
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(p)
}

func (a *answer) replace(body []byte) {
	a.body.Reset()
	a.body.Write(body)
}

// edit changes the members of a JSON object; any other body stays as it is.
func (a *answer) edit(change func(map[string]any)) {
	var object map[string]any
	if json.Unmarshal(a.body.Bytes(), &object) == nil {
		change(object)
		a.replace(mustJSON(object))
	}
}

// pad puts a long member before the others of a JSON object, so that a reader that stops at a limit has seen none of them.
func (a *answer) pad(n int) {
	members, ok := bytes.CutPrefix(bytes.Clone(a.body.Bytes()), []byte("{"))
	if !ok {
		return
	}
	a.replace([]byte(`{"padding":"`))
	a.body.Write(bytes.Repeat([]byte("x"), n))
	a.body.WriteByte('"')
	if !bytes.HasPrefix(bytes.TrimSpace(members), []byte("}")) {
		a.body.WriteByte(',')
	}
	a.body.Write(members)
}

func (a *answer) send(w http.ResponseWriter) {
	if a.reason != "" && a.sendWithReason(w) {
		return
	}
	a.writeHead(w, a.body.Len())
	_, _ = w.Write(a.body.Bytes())
}

// sendWithReason writes the answer with its own reason phrase, which net/http cannot do. It reports whether it got hold of
// the connection, which this needs.
func (a *answer) sendWithReason(w http.ResponseWriter) bool {
	conn, out, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return false
	}
	defer conn.Close()
	a.header.Set("Content-Length", strconv.Itoa(a.body.Len()))
	a.header.Set("Connection", "close")
	fmt.Fprintf(out, "HTTP/1.1 %d %s\r\n", a.status, strings.NewReplacer("\r", " ", "\n", " ").Replace(a.reason))
	_ = a.header.Write(out)
	fmt.Fprintf(out, "\r\n%s", a.body.Bytes())
	_ = out.Flush()
	return true
}

func (a *answer) sendHalf(w http.ResponseWriter) {
	if a.status == http.StatusNoContent { // a 204 has no body that could be cut
		a.status = http.StatusOK
	}
	a.writeHead(w, max(a.body.Len(), 1))
	_, _ = w.Write(a.body.Bytes()[:a.body.Len()/2])
	_ = http.NewResponseController(w).Flush() // otherwise the client would not even see the status
	panic(http.ErrAbortHandler)
}

func (a *answer) writeHead(w http.ResponseWriter, length int) {
	for name, values := range a.header {
		w.Header()[name] = values
	}
	a.WriteHeader(http.StatusOK)
	if a.status != http.StatusNoContent {
		w.Header().Set("Content-Length", strconv.Itoa(length))
	}
	w.WriteHeader(a.status)
}
