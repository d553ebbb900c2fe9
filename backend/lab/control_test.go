// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFaultsAsAClientSeesThem(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault  Fault
		status int
		err    error // of the call, or of reading the body
		made   int   // keys that live afterwards
		look   func(t *testing.T, r reply)
	}{
		"429": {Fault{Kind: KindStatus, Status: 429, RetryAfter: 7 * time.Second}, 429, nil, 0, func(t *testing.T, r reply) {
			if got := r.header.Get("Retry-After"); got != "7" {
				t.Errorf("Retry-After %q; want 7", got)
			}
		}},
		"503":           {Fault{Kind: KindStatus, Status: 503}, 503, nil, 0, nil},
		"401":           {Fault{Kind: KindStatus, Status: 401}, 401, nil, 0, nil},
		"403":           {Fault{Kind: KindStatus, Status: 403}, 403, nil, 0, nil},
		"504 too late":  {Fault{Kind: KindStatus, Status: 504, After: true}, 504, nil, 1, nil},
		"cut before":    {Fault{Kind: KindCut}, 0, io.EOF, 0, nil},
		"cut after":     {Fault{Kind: KindCut, After: true}, 0, io.EOF, 1, nil},
		"delay":         {Fault{Kind: KindDelay, Delay: time.Nanosecond}, 201, nil, 1, nil},
		"redirect":      {Fault{Kind: KindRedirect, Location: "http://elsewhere.example/x"}, 302, nil, 0, wantLocation},
		"redirect 301":  {Fault{Kind: KindRedirect, Status: 301, Location: "http://elsewhere.example/x"}, 301, nil, 0, wantLocation},
		"late redirect": {Fault{Kind: KindRedirect, Status: 307, Location: "http://elsewhere.example/x", After: true}, 307, nil, 1, wantLocation},
		"truncate": {Fault{Kind: KindTruncate}, 201, io.ErrUnexpectedEOF, 1, func(t *testing.T, r reply) {
			if !strings.HasPrefix(r.body, `{"expires_at":`) || strings.HasSuffix(r.body, "}") {
				t.Errorf("body %q; want the first half of the object", r.body)
			}
		}},
		"html": {Fault{Kind: KindHTML}, 201, nil, 1, func(t *testing.T, r reply) {
			if !strings.HasPrefix(r.body, "<!DOCTYPE html>") || r.header.Get("Content-Type") != "text/html; charset=utf-8" {
				t.Errorf("%s %q; want an HTML page", r.header.Get("Content-Type"), r.body)
			}
		}},
		"wrong types": {Fault{Kind: KindWrongTypes}, 201, nil, 1, func(t *testing.T, r reply) {
			want := map[string]any{"id": 7.0, "name": 7.0, "secret": 7.0, "expires_at": 7.0}
			if diff := cmp.Diff(want, r.object(t)); diff != "" {
				t.Errorf("body, -want +got:\n%s", diff)
			}
		}},
		"no secret": {Fault{Kind: KindNoSecret}, 201, nil, 1, func(t *testing.T, r reply) {
			if object := r.object(t); len(object) != 3 || object["id"] == nil || object["secret"] != nil {
				t.Errorf("body %v; want all but the secret", object)
			}
		}},
		"huge": {Fault{Kind: KindHuge, Size: 2}, 201, nil, 1, func(t *testing.T, r reply) {
			object := r.object(t)
			if padding, _ := object["padding"].(string); len(padding) != 2<<20 || object["secret"] == nil {
				t.Errorf("%d bytes of padding, secret %v; want 2 MiB and the secret", len(padding), object["secret"] != nil)
			}
			if strings.Index(r.body, `"secret"`) < 2<<20 {
				t.Error("the secret comes before the padding")
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api := newKeyAPI(t)
			c.fault.Count = 1
			api.Fault(OpCreate, c.fault)
			r := api.create(t, "n1")
			if r.status != c.status || !errors.Is(r.err, c.err) {
				t.Errorf("status %d, error %v; want %d, %v", r.status, r.err, c.status, c.err)
			}
			if got := len(api.Live()); got != c.made {
				t.Errorf("%d keys live; want %d", got, c.made)
			}
			if c.look != nil {
				c.look(t, r)
			}
			if r := api.create(t, "n2"); r.status != http.StatusCreated {
				t.Errorf("the call after the fault: %d %s; want 201", r.status, r.body)
			}
		})
	}
}

func wantLocation(t *testing.T, r reply) {
	if got := r.header.Get("Location"); got != "http://elsewhere.example/x" {
		t.Errorf("Location %q", got)
	}
}

// A 204 has no body that could be spoiled, so the faults give it one.
func TestFaultsOfAnswersWithoutBody(t *testing.T) {
	t.Parallel()
	api := newKeyAPI(t)
	for kind, want := range map[Kind]reply{
		KindHTML:       {status: 200, body: "<!DOCTYPE html><html><body><h1>Sign in</h1></body></html>\n"},
		KindTruncate:   {status: 200, err: io.ErrUnexpectedEOF},
		KindNoSecret:   {status: 204},
		KindWrongTypes: {status: 204},
		KindHuge:       {status: 204},
	} {
		id, _ := api.mustCreate(t, "n1")
		api.Fault(OpRevoke, Fault{Kind: kind, Size: 1, Count: 1})
		r := api.do(t, "DELETE", "/v1/projects/p1/keys/"+id, "")
		if r.status != want.status || r.body != want.body || !errors.Is(r.err, want.err) {
			t.Errorf("%s: %d %q %v; want %d %q %v", kind, r.status, r.body, r.err, want.status, want.body, want.err)
		}
		if got := len(api.Live()); got != 0 {
			t.Fatalf("%s: %d keys live; want 0", kind, got)
		}
	}
}

func TestWrongTypesAndPaddingOfOtherObjects(t *testing.T) {
	t.Parallel()
	api := newKeyAPI(t)
	api.Fault(OpFind, Fault{Kind: KindWrongTypes})
	if r := api.do(t, "GET", "/v1/projects/p1/keys", ""); r.body != `{"keys":"seven"}` {
		t.Errorf("find with wrong types: %s", r.body)
	}
	empty := &answer{}
	empty.replace([]byte("{}"))
	empty.pad(3)
	if got := empty.body.String(); got != `{"padding":"xxx"}` {
		t.Errorf("padded empty object: %s", got)
	}
}

func TestHangEndsWithTheClient(t *testing.T) {
	t.Parallel()
	for _, after := range []bool{false, true} {
		api := newKeyAPI(t)
		api.Fault(OpCreate, Fault{Kind: KindHang, After: after})
		ctx, cancel := context.WithCancel(t.Context())
		at := StageReceived
		if after {
			at = StageDone
		}
		api.OnRequest(func(_ string, stage Stage) {
			if stage == at {
				cancel()
			}
		})
		body := strings.NewReader(`{"name":"n","expires_at":"2026-03-05T14:00:00Z"}`)
		req, err := http.NewRequestWithContext(ctx, "POST", api.url+"/v1/projects/p1/keys", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", adminHeader)
		req.Header.Set("Content-Type", "application/json")
		if r := send(plainClient(), req); !errors.Is(r.err, context.Canceled) {
			t.Errorf("after=%v: %d, error %v; want %v", after, r.status, r.err, context.Canceled)
		}
		if got := len(api.Live()) == 1; got != after {
			t.Errorf("after=%v: key made: %v", after, got)
		}
	}
}

// A slow server does the work even if its client left long ago.
func TestDelayOutlivesTheClient(t *testing.T) {
	t.Parallel()
	api := newKeyAPI(t)
	until, done := make(chan struct{}), make(chan struct{})
	api.Fault(OpCreate, Fault{Kind: KindDelay, Until: until})
	ctx, cancel := context.WithCancel(t.Context())
	api.OnRequest(func(_ string, stage Stage) {
		if stage == StageDone {
			close(done)
			return
		}
		cancel()
	})
	body := strings.NewReader(`{"name":"n","expires_at":"2026-03-05T14:00:00Z"}`)
	req, err := http.NewRequestWithContext(ctx, "POST", api.url+"/v1/projects/p1/keys", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", adminHeader)
	req.Header.Set("Content-Type", "application/json")
	if r := send(plainClient(), req); !errors.Is(r.err, context.Canceled) {
		t.Errorf("error %v; want %v", r.err, context.Canceled)
	}
	if got := len(api.Live()); got != 0 {
		t.Errorf("%d keys live during the delay; want 0", got)
	}
	close(until)
	<-done
	if got := len(api.Live()); got != 1 {
		t.Errorf("%d keys live after the delay; want 1", got)
	}
}

func TestFaultQueue(t *testing.T) {
	t.Parallel()
	api := newKeyAPI(t)
	api.Fault(OpAny, Fault{Kind: KindStatus, Status: 500})
	api.Fault(OpCheck, Fault{Kind: KindStatus, Status: 501, Count: 2})
	api.Fault(OpCheck, Fault{Kind: KindStatus, Status: 502, Count: 1})
	var got []int
	for i := range 6 {
		if i == 5 {
			api.ClearFaults()
		}
		got = append(got, api.do(t, "GET", "/v1/whoami", "").status)
	}
	if diff := cmp.Diff([]int{501, 501, 502, 500, 500, 200}, got); diff != "" {
		t.Errorf("statuses, -want +got:\n%s", diff)
	}
	if got := api.Calls(OpCheck); got != 6 {
		t.Errorf("%d calls; want 6", got)
	}
	if got := api.Calls(OpCreate); got != 0 {
		t.Errorf("%d calls of an operation never called; want 0", got)
	}
}

func TestOnRequest(t *testing.T) {
	t.Parallel()
	api := newKeyAPI(t)
	var got []string
	api.OnRequest(func(op string, stage Stage) {
		// Nothing is made when a request is received; all is when it is done, and the answer not sent.
		got = append(got, op+" "+string(stage))
		if made := len(api.Live()) == 1; op == OpCreate && made != (stage == StageDone) {
			t.Errorf("%s %s: key made: %v", op, stage, made)
		}
		if op == OpCheck && stage == StageReceived {
			api.Fault(OpCheck, Fault{Kind: KindStatus, Status: 500, Count: 1}) // still meets this call
		}
	})
	api.mustCreate(t, "n1")
	if r := api.do(t, "GET", "/v1/whoami", ""); r.status != 500 {
		t.Errorf("fault from the hook: %d; want 500", r.status)
	}
	api.OnRequest(nil)
	api.do(t, "GET", "/v1/whoami", "")
	if diff := cmp.Diff([]string{"create received", "create done", "check received"}, got); diff != "" {
		t.Errorf("stages, -want +got:\n%s", diff)
	}
}

func TestImpossibleFaultsPanic(t *testing.T) {
	t.Parallel()
	api := newKeyAPI(t)
	const interrupting = `["delay" "hang" "cut" "status" "redirect"]`
	for want, f := range map[string]Fault{
		`lab: kind "": unknown; want one of ` + interrupting + ` or ["truncate" "html" "wrong-types" "no-secret" "huge"]`: {},
		"lab: count: negative; want the number of calls, or 0 for all":                                                    {Kind: KindCut, Count: -1},
		"lab: after: only for the kinds " + interrupting:                                                                  {Kind: KindHTML, After: true},
		"lab: delay: want a positive duration or a channel to wait for":                                                   {Kind: KindDelay},
		"lab: status: want 400 to 599":                                                                                    {Kind: KindStatus, Status: 200},
		"lab: retry_after: want whole seconds":                                                                            {Kind: KindStatus, Status: 429, RetryAfter: time.Millisecond},
		"lab: status: want 300 to 399 for a redirect":                                                                     {Kind: KindRedirect, Status: 200, Location: "x"},
		"lab: location: missing; want the URL to redirect to":                                                             {Kind: KindRedirect},
		"lab: size: want 1 to 256 MiB":                                                                                    {Kind: KindHuge},
	} {
		wantPanic(t, want, func() { api.Fault(OpCreate, f) })
	}
	const ops = `["create" "extend" "revoke" "find" "check" "use"]`
	wantPanic(t, `lab: fault for operation "push": unknown; want one of `+ops+` or "any"`, func() { api.Fault(OpPush, Fault{Kind: KindCut}) })
	wantPanic(t, `lab: operation "push": unknown; want one of `+ops, func() { api.Calls(OpPush) })
}

func TestFaultsOverHTTP(t *testing.T) {
	t.Parallel()
	api := newKeyAPI(t)
	for body, want := range map[string]string{
		"[]":                             `{"error":"the body is not a fault: json: cannot unmarshal array into Go value of type struct`,
		`{"op":"check","kinds":"cut"}`:   `{"error":"the body is not a fault: json: unknown field \"kinds\""}`,
		`{"op":"check","kind":"cuts"}`:   `{"error":"kind \"cuts\": unknown;`,
		`{"op":"checks","kind":"cut"}`:   `{"error":"fault for operation \"checks\": unknown;`,
		`{"kind":"delay","delay":"two"}`: `{"error":"delay: time: invalid duration \"two\""}`,
	} {
		if r := do(t, "POST", api.url+"/lab/faults", body); r.status != 400 || !strings.HasPrefix(r.body, want) {
			t.Errorf("%s: %d %s; want 400 %s", body, r.status, r.body, want)
		}
	}
	const fault = `{"op":"check","kind":"status","status":429,"retry_after":3,"count":1}`
	if r := do(t, "POST", api.url+"/lab/faults", fault); r.status != 204 {
		t.Fatalf("fault: %d %s; want 204", r.status, r.body)
	}
	if r := api.do(t, "GET", "/v1/whoami", ""); r.status != 429 || r.header.Get("Retry-After") != "3" {
		t.Errorf("%d, Retry-After %q; want 429, 3", r.status, r.header.Get("Retry-After"))
	}
	for _, fault := range []string{
		`{"op":"create","kind":"delay","delay":"1ns","after":true,"count":1}`,
		`{"op":"create","kind":"huge","size":1,"count":1}`,
		`{"op":"any","kind":"redirect","location":"http://elsewhere.example/x"}`,
	} {
		if r := do(t, "POST", api.url+"/lab/faults", fault); r.status != 204 {
			t.Fatalf("%s: %d %s; want 204", fault, r.status, r.body)
		}
	}
	if r := api.create(t, "n1"); r.status != 201 {
		t.Errorf("delayed: %d; want 201", r.status)
	}
	if r := api.create(t, "n2"); r.status != 201 || len(r.body) < 1<<20 {
		t.Errorf("padded: %d with %d bytes; want 201 with more than 1 MiB", r.status, len(r.body))
	}
	if r := api.create(t, "n3"); r.status != 302 {
		t.Errorf("redirected: %d; want 302", r.status)
	}
	if r := do(t, "DELETE", api.url+"/lab/faults", ""); r.status != 204 {
		t.Errorf("clearing: %d; want 204", r.status)
	}
	if r := api.create(t, "n3"); r.status != 201 {
		t.Errorf("after clearing: %d; want 201", r.status)
	}
}
