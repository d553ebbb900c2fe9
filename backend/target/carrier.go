// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
)

// errand is a call that a client library makes for us.
type errand struct {
	call call
	sent bool
	err  error // the call's error; not nil once it failed, or once it was sent a second time
}

type errandKey struct{}

// lend makes one call through a client library: use makes the library send one request, with the given context and over the
// transport carrier. Whatever error the library returns, lend's errors are those of do.
func (a *api) lend(ctx context.Context, c call, use func(context.Context) error) error {
	e := &errand{call: c}
	err := use(context.WithValue(ctx, errandKey{}, e))
	switch {
	case e.err != nil:
		return e.err
	case !e.sent:
		return unbuildable(c.op, "the client library makes no request of this")
	case err != nil && c.wantBody: // otherwise the status has decided; a library may take gone for a failure
		return protocol(c.op, "the answer is not what this call's should be")
	}
	return nil
}

// carrier is the http.RoundTripper for client libraries. It sends only one request per errand, and only to the target: a
// library's own retries, redirects and further calls are refused.
type carrier struct{ api *api }

// RoundTrip implements http.RoundTripper.
func (t carrier) RoundTrip(req *http.Request) (*http.Response, error) {
	e, ok := req.Context().Value(errandKey{}).(*errand)
	switch {
	case !ok:
		return refuseToSend(req, errors.New("a request that is no errand"))
	case e.err != nil:
		return refuseToSend(req, e.err)
	case e.sent:
		e.err = &Error{Op: e.call.op, Text: "the client library sends it twice", outcome: ErrUnknown}
		return refuseToSend(req, e.err)
	case req.URL.Scheme != t.api.base.Scheme || req.URL.Host != t.api.base.Host:
		e.err = unbuildable(e.call.op, "the client library asks another server")
		return refuseToSend(req, e.err)
	}
	e.sent = true
	var got answer
	if got, e.err = t.api.send(e.call, req.Clone(req.Context())); e.err != nil {
		return refuseToSend(req, e.err)
	}
	if _, isJSON := decodeJSON(got.body); e.call.wantBody && !isJSON { // a library may read no further than the first value
		e.err = protocol(e.call.op, "the answer is not JSON")
		return nil, e.err
	}
	return &http.Response{
		StatusCode: got.status, Header: got.header, Body: io.NopCloser(bytes.NewReader(got.body)),
		ContentLength: int64(len(got.body)), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
	}, nil
}

// refuseToSend closes the request's body, as a RoundTripper must.
func refuseToSend(req *http.Request, err error) (*http.Response, error) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
	return nil, err
}
