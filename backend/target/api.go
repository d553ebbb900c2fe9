// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
)

// drainBytes is how much of an answer that nobody reads is taken off the wire to keep its connection usable.
const drainBytes = 16 << 10

// maxRefusalBytes is how much of a refusal is read for its hint.
const maxRefusalBytes = 64 << 10

// api makes the HTTP calls of one target. It is the only place that does: every call is bounded in time and size, sent at
// most once, follows no redirect, and ends in an answer or an *Error that says what may have happened.
type api struct {
	client    *http.Client
	limiter   *limiter
	base      *url.URL
	userAgent string
	timeout   time.Duration
	maxBytes  int64
	now       func() time.Time
}

// call is one request and how to understand the status of its answer. A status in none of the lists means that the
// outcome is unknown.
type call struct {
	op       string
	urgent   bool // goes before others: it ends keys, or finds those that must end
	method   string
	url      *url.URL // in place of the base URL with segments and query; nil = those
	segments []string // of the path below the base URL, not escaped
	query    url.Values
	header   http.Header
	body     []byte // nil = none
	wantBody bool   // the answer's body matters; without it the status alone decides

	// hint says in our own words what a refusal asks to be mended, "" if it cannot tell; nil = nothing. The answer's body is
	// nil if it could not be read.
	hint func(answer) string

	ok, gone, busy, denied []int
}

// answer is what came back with a status in ok or gone.
type answer struct {
	status int
	header http.Header
	body   []byte // nil unless the call wanted it
}

// do waits for the call's turn and makes it. It returns at once when ctx ends.
func (a *api) do(ctx context.Context, c call) (answer, error) {
	leave, err := a.limiter.enter(ctx, c.op, c.urgent)
	if err != nil {
		return answer{}, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()

	var connected atomic.Bool // from then on the target may have seen the request
	req, err := a.request(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	}), c)
	if err != nil {
		return answer{}, unbuildable(c.op, "not a valid HTTP request")
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return answer{}, lost(ctx, c.op, connected.Load(), err)
	}
	defer resp.Body.Close()
	return a.read(ctx, c, resp)
}

// request makes the HTTP request. Its body cannot be read twice: net/http sends a request again by itself when a
// connection breaks, unless it has no way to.
func (a *api) request(ctx context.Context, c call) (*http.Request, error) {
	var body io.Reader
	if c.body != nil {
		body = bytes.NewReader(c.body)
	}
	req, err := http.NewRequestWithContext(ctx, c.method, a.address(c).String(), body)
	if err != nil {
		return nil, err
	}
	req.GetBody = nil
	req.Header = c.header
	req.Header.Set("User-Agent", a.userAgent)
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "application/json")
	}
	return req, nil
}

// address appends the call's segments to the base URL's own path, each escaped so that it stays one segment. An address
// that the call brings is taken as it is.
func (a *api) address(c call) *url.URL {
	if c.url != nil {
		return c.url
	}
	u := *a.base
	u.RawQuery = c.query.Encode()
	if len(c.segments) == 0 {
		return &u
	}
	escaped := make([]string, len(c.segments))
	for i, segment := range c.segments {
		escaped[i] = url.PathEscape(segment)
	}
	u.RawPath = strings.TrimRight(a.base.EscapedPath(), "/") + "/" + strings.Join(escaped, "/")
	u.Path = strings.TrimRight(a.base.Path, "/") + "/" + strings.Join(c.segments, "/")
	return &u
}

// read judges the answer by its status and reads its body if that is wanted.
func (a *api) read(ctx context.Context, c call, resp *http.Response) (answer, error) {
	in := func(list []int) bool { return slices.Contains(list, resp.StatusCode) }
	if in(c.ok) && c.wantBody {
		body, err := egress.ReadAll(resp.Body, a.maxBytes)
		if err == nil {
			err = ctx.Err() // a body that was cut by our deadline may end as if it were whole
		}
		switch {
		case errors.Is(err, egress.ErrTooLarge):
			return answer{}, protocol(c.op, "the answer has more than %d bytes", a.maxBytes)
		case err != nil:
			return answer{}, lost(ctx, c.op, true, err)
		}
		return answer{status: resp.StatusCode, header: resp.Header, body: body}, nil
	}
	e := &Error{Op: c.op, Status: resp.StatusCode}
	if c.hint != nil && in(c.denied) {
		body, _ := egress.ReadAll(resp.Body, min(a.maxBytes, maxRefusalBytes))
		e.Text = c.hint(answer{status: resp.StatusCode, header: resp.Header, body: body})
	} else if resp.ContentLength >= 0 && resp.ContentLength <= drainBytes {
		_, _ = io.Copy(io.Discard, resp.Body) // the status has decided; this only keeps the connection
	}
	switch {
	case in(c.ok) || in(c.gone):
		return answer{status: resp.StatusCode, header: resp.Header}, nil
	case in(c.denied):
		e.outcome, e.Text = ErrDenied, strings.TrimSuffix("it refused: "+e.Text, ": ")
	case in(c.busy):
		e.outcome, e.Text = ErrBusy, "try again later"
		if e.RetryAfter = retryAfter(resp.Header, a.now()); e.RetryAfter > 0 {
			a.limiter.pause(e.RetryAfter)
		}
	case resp.StatusCode/100 == 3:
		e.outcome, e.Text = ErrUnknown, "it redirects, and redirects are not followed; correct the target's url"
	default:
		e.outcome, e.Text = ErrUnknown, "it answered otherwise than expected"
	}
	return answer{}, e
}

// lost is the error of a call without an answer. What net/http says is not repeated: its errors hold URLs.
func lost(ctx context.Context, op string, connected bool, err error) *Error {
	e := &Error{Op: op, Text: egress.Cause(err), cause: ctx.Err()}
	switch {
	case errors.Is(err, egress.ErrRefused):
		e.outcome = ErrEgress
	case connected:
		e.outcome = ErrUnknown
	default:
		e.outcome = ErrBusy
	}
	return e
}

// retryAfter reads the header of that name, seconds or a date, as a time from now: 0 if there is none, at most maxPause.
func retryAfter(h http.Header, now time.Time) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return min(time.Duration(seconds)*time.Second, maxPause)
	}
	if at, err := http.ParseTime(text); err == nil {
		return min(max(at.Sub(now), 0), maxPause)
	}
	return 0
}
