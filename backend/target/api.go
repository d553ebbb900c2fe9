// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"mime"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
)

// drainBytes is the longest body that is read only to keep the connection usable.
const drainBytes = 16 << 10

// pageBytes is how much of an answer is looked at to see whether it is a web page, or a gateway's.
const pageBytes = 2 << 10

// maxRefusalBytes is how much of a refusal is read for its hint.
const maxRefusalBytes = 64 << 10

// anySuccess lists the success statuses of a complete answer, for APIs whose own clients accept any of them.
var anySuccess = []int{200, 201, 202, 203}

// api makes the HTTP calls of one target. It is the only place that does: every call is bounded in time and size, sent at
// most once, follows no redirect, and ends in an answer or an *Error that says what may have happened.
type api struct {
	client    *http.Client
	limiter   *Limiter
	limits    limits // of the limiter, once the target is in use
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
	url      *url.URL // replaces base URL, segments and query; nil = use those
	segments []string // of the path below the base URL, not escaped
	query    url.Values
	header   http.Header
	body     []byte // nil = none
	wantBody bool   // the answer's body matters; without it the status alone decides

	// hint says in our own words what to correct after a refusal, "" if that is unknown; nil = no hints. The answer's body is
	// nil if it could not be read.
	hint func(answer) string

	ok, gone, busy, denied []int

	// onlyIf reports whether an answer with a status in ok or gone really means that; nil = the status alone decides.
	onlyIf func(answer) bool

	// absent reports whether a refusal means that what was to be ended does not exist, for APIs that have no separate status
	// for that; nil = it never does.
	absent func(answer) bool
}

// answer is what came back with a status in ok or gone.
type answer struct {
	status int
	reason string // the status line's reason phrase, if it has one
	header http.Header
	body   []byte // nil unless the call wanted it
}

// newAPI makes the api of a Config, and checks the fields about transport and limits.
func newAPI(c Config, base *url.URL) (*api, error) {
	a := &api{base: base, userAgent: c.UserAgent, timeout: c.RequestTimeout, maxBytes: c.MaxResponseBytes, now: c.Now}
	if a.userAgent == "" {
		a.userAgent = "oidcexchange"
	}
	if a.timeout == 0 {
		a.timeout = defaultRequestTimeout
	}
	if a.maxBytes == 0 {
		a.maxBytes = defaultMaxResponseBytes
	}
	if a.now == nil {
		a.now = time.Now
	}
	if c.Concurrency == 0 {
		c.Concurrency = defaultConcurrency
	}
	switch {
	case a.timeout < 0:
		return nil, fieldErrorf("request_timeout", "is negative")
	case a.maxBytes < 0:
		return nil, fieldErrorf("max_response_bytes", "is negative")
	case c.Rate < 0 || math.IsNaN(c.Rate) || c.Rate > math.MaxInt32:
		return nil, fieldErrorf("rate", "want calls a second, 0 for no bound")
	case c.Burst < 0:
		return nil, fieldErrorf("burst", "is negative")
	case c.Concurrency < 0 || c.Concurrency > maxConcurrency:
		return nil, fieldErrorf("concurrency", "want 1 to %d", maxConcurrency)
	}
	a.limits = limits{perSecond: c.Rate, burst: c.Burst, concurrency: c.Concurrency}
	if a.limiter = c.Limiter; a.limiter == nil {
		a.limiter = NewLimiter(a.now)
		a.limiter.set(a.limits)
	}
	var err error
	a.client, err = c.Egress.Client(egress.Options{
		CAPEM: c.CAPEM, ClientCert: c.ClientCert, ClientKey: c.ClientKey, ProxyURL: c.ProxyURL,
		Timeout: a.timeout, MaxConns: c.Concurrency,
	})
	if err != nil { // its text begins with the field, or with two
		fields, text, _ := strings.Cut(err.Error(), ": ")
		field, _, _ := strings.Cut(fields, ",")
		return nil, fieldErrorf(field, "%s", text)
	}
	return a, nil
}

// do waits for the call's turn and makes it. It returns at once when ctx ends.
func (a *api) do(ctx context.Context, c call) (answer, error) {
	req, err := a.request(ctx, c)
	if err != nil {
		return answer{}, unbuildable(c.op, "not a valid HTTP request")
	}
	return a.send(c, req)
}

// send waits for the call's turn and sends req, which may come from a client library, with our User-Agent.
func (a *api) send(c call, req *http.Request) (got answer, err error) {
	caller := req.Context()
	leave, err := a.limiter.enter(caller, c.op, c.urgent)
	if err != nil {
		return answer{}, err
	}
	defer func() { leave(healthOf(caller, err)) }()
	ctx, cancel := context.WithTimeout(caller, a.timeout)
	defer cancel()

	var over atomic.Pointer[httptrace.GotConnInfo]
	req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(conn httptrace.GotConnInfo) { over.Store(&conn) },
	}))
	sendOnce(req)
	req.Header.Set("User-Agent", a.userAgent)
	resp, err := a.client.Do(req)
	if err != nil {
		return answer{}, lost(ctx, c.op, reachOf(over.Load()), err)
	}
	defer resp.Body.Close()
	return a.read(ctx, c, resp)
}

// sendOnce keeps net/http from sending a request again by itself when a connection breaks. net/http does so if it can get the
// body again, and, for a request without a body, if that has an idempotency key. It looks only for exactly these names; in
// lower case they mean the same on the wire. A GET may still be sent twice: it changes nothing.
func sendOnce(req *http.Request) {
	req.GetBody = nil
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		if values, has := req.Header[name]; has {
			delete(req.Header, name)
			req.Header[strings.ToLower(name)] = values
		}
	}
}

// request makes the HTTP request.
func (a *api) request(ctx context.Context, c call) (*http.Request, error) {
	var body io.Reader
	if c.body != nil {
		body = bytes.NewReader(c.body)
	}
	req, err := http.NewRequestWithContext(ctx, c.method, a.address(c).String(), body)
	if err != nil {
		return nil, err
	}
	req.Header = c.header
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "application/json")
	}
	return req, nil
}

// address appends the call's segments to the base URL's own path, each escaped so that it stays one segment. If the call has a
// URL of its own, address returns that unchanged.
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
	if in(c.ok) && c.wantBody || (in(c.ok) || in(c.gone)) && c.onlyIf != nil {
		return a.whole(ctx, c, resp)
	}
	e := &Error{Op: c.op, Status: resp.StatusCode}
	gone := in(c.gone)
	page := (in(c.ok) || gone) && isPage(resp.Header, resp.Body)
	cut := in(c.busy) && slices.Contains(bringsNew, c.op) && cutOff(resp.Body)
	if !gone && (c.hint != nil || c.absent != nil) && in(c.denied) {
		body, _ := egress.ReadAll(resp.Body, min(a.maxBytes, maxRefusalBytes))
		_, reason, _ := strings.Cut(resp.Status, " ")
		refused := answer{status: resp.StatusCode, reason: reason, header: resp.Header, body: body}
		if gone = c.absent != nil && c.absent(refused); !gone && c.hint != nil {
			e.Text = c.hint(refused)
		}
	} else if resp.ContentLength >= 0 && resp.ContentLength <= drainBytes {
		_, _ = io.Copy(io.Discard, resp.Body) // the status has decided; this only keeps the connection
	}
	switch {
	case (in(c.ok) || gone) && page:
		return answer{}, pageError(c.op, resp.StatusCode)
	case in(c.ok) || gone:
		return answer{status: resp.StatusCode, header: resp.Header}, nil
	case in(c.denied):
		e.outcome, e.Text = ErrDenied, strings.TrimSuffix("it refused: "+e.Text, ": ")
	case cut:
		e.outcome, e.Text = ErrUnknown, "a gateway in front of it had no answer of it"
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

// whole reads an answer whose body matters, too, and not only its status.
func (a *api) whole(ctx context.Context, c call, resp *http.Response) (answer, error) {
	body, err := egress.ReadAll(resp.Body, a.maxBytes)
	if err == nil {
		err = ctx.Err() // a body that was cut by our deadline may end as if it were whole
	}
	switch {
	case errors.Is(err, egress.ErrTooLarge):
		return answer{}, protocol(c.op, "the answer has more than %d bytes", a.maxBytes)
	case err != nil:
		return answer{}, lost(ctx, c.op, reachedServer, err)
	}
	_, reason, _ := strings.Cut(resp.Status, " ")
	got := answer{status: resp.StatusCode, reason: reason, header: resp.Header, body: body}
	switch {
	case !c.wantBody && isPage(resp.Header, bytes.NewReader(body)):
		return answer{}, pageError(c.op, resp.StatusCode)
	case c.onlyIf != nil && !c.onlyIf(got):
		return answer{}, &Error{Op: c.op, Status: resp.StatusCode, Text: "the answer does not say what only_if wants", outcome: ErrUnknown}
	}
	return got, nil
}

// isPage reports whether an answer is a web page. A page does not come from the API, but from a proxy in front of it that wants
// a login or does not know the path, so it says nothing about a key. An empty answer is not a page, because some servers label
// that text/html, too.
func isPage(h http.Header, body io.Reader) bool {
	if kind, _, _ := mime.ParseMediaType(h.Get("Content-Type")); kind != "text/html" {
		return false
	}
	head, _ := io.ReadAll(io.LimitReader(body, pageBytes))
	text := bytes.TrimSpace(bytes.TrimPrefix(head, []byte("\ufeff"))) // some servers begin a page with a byte order mark
	return bytes.HasPrefix(text, []byte("<"))
}

// Most gateways answer 503 if there was no server to ask, and 502 or 504 if a server gave no answer. Of those that answer 503
// in both cases, Envoy, which many service meshes use, says whether it had a connection. Varnish, Fastly, Heroku and Azure
// Front Door, which are recognised by their pages, do not.
var (
	unanswered  = regexp.MustCompile(`disconnect/reset before headers|Varnish cache server|herokucdn\.com/error-pages|services aren't available right now`)
	unconnected = regexp.MustCompile(`disconnect/reset before headers\. reset reason: (remote )?connection failure`)
)

// cutOff reports whether a gateway answers in place of a server that may have done what it was asked.
func cutOff(body io.Reader) bool {
	head, _ := io.ReadAll(io.LimitReader(body, pageBytes))
	return unanswered.Match(head) && !unconnected.Match(head)
}

func pageError(op string, status int) error {
	return protocol(op, "it answers with a web page (status %d); is a login page or a proxy in front of the server?", status)
}

// reach is how far a call without an answer got.
type reach int

const (
	reachedNobody    reach = iota // there was no connection, so nothing was sent
	reachedHandshake              // the connection is new: the server may still be checking our certificate
	reachedServer                 // the server may have seen the request
)

func reachOf(conn *httptrace.GotConnInfo) reach {
	switch {
	case conn == nil:
		return reachedNobody
	case conn.Reused:
		return reachedServer
	}
	return reachedHandshake
}

// lost returns the error of a call without an answer. It does not repeat the errors of net/http, because they contain URLs.
func lost(ctx context.Context, op string, reached reach, err error) *Error {
	e := &Error{Op: op, Text: egress.Cause(err), cause: ctx.Err()}
	switch {
	case errors.Is(err, egress.ErrRefused):
		e.outcome = ErrEgress
	case egress.CertificateRefused(err) && reached != reachedServer:
		e.outcome = ErrDenied
	case reached == reachedNobody:
		e.outcome = ErrBusy
	default:
		e.outcome = ErrUnknown
	}
	return e
}

// retryAfter returns how long the target asks not to be called: from Retry-After (RFC 9110 section 10.2.3), in seconds or as a
// date, otherwise from RateLimit-Reset, the Unix time in seconds at which the target's count of calls starts again. It is at
// most maxPause, and 0 if the target does not say.
func retryAfter(h http.Header, now time.Time) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return min(time.Duration(seconds)*time.Second, maxPause)
	}
	at, err := http.ParseTime(text)
	if second, resetErr := strconv.ParseInt(h.Get("RateLimit-Reset"), 10, 64); err != nil && resetErr == nil {
		at, err = time.Unix(second, 0), nil
	}
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), maxPause)
}
