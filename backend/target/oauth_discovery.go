// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	discoveryTimeout = 10 * time.Second // for all addresses together
	documentFloor    = 30 * time.Second // between two attempts
	documentAge      = time.Hour        // an older document is fetched again
	documentStale    = 24 * time.Hour   // a document up to this old is used if fetching it again fails
)

// discovery finds endpoints in the issuer's metadata document (RFC 8414, OpenID Connect Discovery).
type discovery struct {
	origins
	issuer                           *url.URL
	grants                           []string // that the target uses at the token endpoint
	mtls                             bool     // use the endpoints for clients with a certificate, where they differ (RFC 8705 section 5)
	token, revocation, introspection bool     // the endpoints that the document must have
	api                              *api

	lock    chan struct{} // capacity 1: its holder may use the fields below
	found   endpoints
	at      time.Time // when it was found; zero = never
	tried   time.Time
	problem *Error // of the last attempt; nil = it succeeded
}

// get returns the endpoints, and fetches the document if it is unknown or old. After an error, nothing but that request was
// sent.
func (d *discovery) get(ctx context.Context, op string, urgent bool) (endpoints, *Error) {
	if !take(ctx, d.lock) {
		return endpoints{}, tooLong(ctx, op)
	}
	defer release(d.lock)
	now := d.api.now()
	if !d.at.IsZero() && now.Sub(d.at) < documentAge {
		return d.found, nil
	}
	if d.tried.IsZero() || now.Sub(d.tried) >= documentFloor {
		if problem := d.learn(ctx, op, urgent); ctx.Err() != nil && problem != nil {
			return endpoints{}, problem
		}
	}
	if !d.at.IsZero() && now.Sub(d.at) < documentStale {
		return d.found, nil
	}
	problem := *d.problem
	problem.Op = op
	return endpoints{}, &problem
}

// check fetches the document, even if the known one is recent.
func (d *discovery) check(ctx context.Context, op string) error {
	if !take(ctx, d.lock) {
		return tooLong(ctx, op)
	}
	defer release(d.lock)
	if problem := d.learn(ctx, op, false); problem != nil {
		return problem
	}
	return nil
}

// learn fetches the document and keeps the result, but not a failure caused by the end of ctx, which says nothing about the
// server. The caller holds the lock.
func (d *discovery) learn(ctx context.Context, op string, urgent bool) *Error {
	now := d.api.now()
	found, problem := d.ask(ctx, op, urgent)
	switch {
	case problem == nil:
		d.found, d.at, d.tried, d.problem = found, now, now, nil
	case ctx.Err() == nil:
		d.tried, d.problem = now, problem
	}
	return problem
}

// ask fetches the document from its well-known addresses. It goes on after an address without the document, or with that of
// another issuer, because servers differ in where they put it if the issuer has a path. If no address has the document, the
// error is ErrDenied, because trying again would not help, and Vault's clients repeat ErrBusy by themselves. It is ErrBusy if
// an address answered with a server error.
func (d *discovery) ask(ctx context.Context, op string, urgent bool) (endpoints, *Error) {
	ctx, cancel := context.WithTimeout(ctx, discoveryTimeout)
	defer cancel()
	var other error // what is wrong with a document that was found
	outcome := ErrDenied
	for _, address := range d.addresses() {
		answered, err := d.api.do(ctx, call{
			op: op, url: address, method: http.MethodGet, header: http.Header{}, wantBody: true, urgent: urgent,
			ok: []int{200}, busy: []int{429, 503},
		})
		if e := (*Error)(nil); errors.As(err, &e) {
			if e.Status == 0 || e.outcome == ErrBusy { // the other addresses would fail too
				return endpoints{}, undiscovered(op, e)
			}
			if e.Status >= http.StatusInternalServerError {
				outcome = ErrBusy
			}
			continue
		}
		found, fault, own := d.read(answered.body)
		if fault == nil {
			return found, nil
		}
		if other = fault; own {
			outcome = ErrDenied
			break
		}
	}
	if other == nil {
		other = errors.New("no document at the well-known addresses of url")
	}
	return endpoints{}, &Error{Op: op, Text: "discovery: " + other.Error(), outcome: outcome}
}

// undiscovered converts the error of a fetch to the error of the call that was not made because of it: ErrEgress stays, all
// others become ErrBusy.
func undiscovered(op string, e *Error) *Error {
	out := &Error{Op: op, Text: "discovery: " + e.Text, Status: e.Status, RetryAfter: e.RetryAfter, outcome: ErrBusy, cause: e.cause}
	if e.outcome == ErrEgress {
		out.outcome = ErrEgress
	}
	return out
}

// addresses returns where the document may be, each address once.
func (d *discovery) addresses() []*url.URL {
	const oauth, openID = "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"
	path := strings.TrimSuffix(d.issuer.EscapedPath(), "/")
	var list []*url.URL
	for _, escaped := range []string{oauth + path, path + oauth, path + openID, openID + path} {
		u := *d.issuer
		var err error
		if u.Path, err = url.PathUnescape(escaped); err != nil {
			continue // cannot happen: the path was parsed before
		}
		u.RawPath = escaped
		if !slices.ContainsFunc(list, func(other *url.URL) bool { return other.String() == u.String() }) {
			list = append(list, &u)
		}
	}
	return list
}

// read reads the endpoints from a document. own reports whether the document is the issuer's.
func (d *discovery) read(body []byte) (found endpoints, fault error, own bool) {
	document := objectOf(body)
	// RFC 8414 section 3.3: otherwise one issuer could answer for another.
	if document["issuer"] != any(d.issuer.String()) {
		return found, errors.New("no document there whose issuer is exactly the target's url"), false
	}
	supported, listed := document["grant_types_supported"].([]any)
	for _, grant := range d.grants {
		if listed && !slices.Contains(supported, any(grantTypes[grant])) {
			return found, fmt.Errorf("the document's grant_types_supported does not have grant %s", grant), true
		}
	}
	aliases, _ := document["mtls_endpoint_aliases"].(map[string]any)
	for _, each := range []struct {
		name   string
		wanted bool
		to     **url.URL
		mend   string
	}{
		{"token_endpoint", d.token, &found.token, "set token_url"},
		{"revocation_endpoint", d.revocation, &found.revocation, "set revocation_url to its address, or to none"},
		{"introspection_endpoint", d.introspection, &found.introspection, "set introspection_url to its address, or to none"},
	} {
		if !each.wanted {
			continue
		}
		raw, _ := document[each.name].(string)
		if alias, isText := aliases[each.name].(string); isText && d.mtls { // RFC 8705 section 5
			raw = alias
		}
		if raw == "" {
			return found, fmt.Errorf("the document has no %s; %s", each.name, each.mend), true
		}
		if *each.to, fault = d.endpoint(raw); fault != nil {
			return found, fmt.Errorf("%s: %v", each.name, fault), true
		}
	}
	return found, nil, true
}
