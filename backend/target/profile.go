// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

// profile describes a kind of target as data: the requests to its API, and what the answers mean. parseProfile makes one. It
// is immutable.
type profile struct {
	facts
	header *expr.Program // nil = the key itself

	exchange, renew, revoke, absent, find, list, check *operation // all but exchange may be nil
	rotate, identify, rotateCredential, retire         *operation

	made, rotated, identified keyParts      // of exchange, rotate and identify
	keyName                   *expr.Program // of identify
	renewed                   *expr.Program // of renew: the new expiry
	found                     *expr.Program // of find: the accessors on a page
	next                      *expr.Program // of find: the query of the next page, {} after the last; nil = there is one page
	listed, listNext          *expr.Program // of list: the keys on a page, with their names; and what next is for find
	newCredential             []entry       // of rotate_credential: the fields that are new
	credentialExpires         *expr.Program // of the same; may be nil

	endsByName bool // revoke needs only the key's name, and there is no find
}

// operation is one request of a profile and the statuses that its answer may have.
type operation struct {
	method         string
	path           *expr.Program
	query, headers []entry
	body           *expr.Program // nil = none
	form           bool          // the body is a form; else JSON

	ok, gone, busy, denied []int
	onlyIf                 *expr.Program // what an answer must say for ok and gone to hold; nil = nothing
	hints                  []entry       // what a refusal means: a text, and the condition under which it applies
}

// entry is a named value of a query, a header, or what a profile adds.
type entry struct {
	name  string
	value *expr.Program
}

// profileDriver speaks to a target as its profile says.
type profileDriver struct {
	*profile
	api        *api
	credential map[string]any
	now        func() time.Time
}

// laterParams returns the parameters that are read after a key was made: by renew, rotate, revoke, absent, and find or list.
func (p *profile) laterParams() (out []string) {
	for _, o := range []*operation{p.renew, p.rotate, p.revoke, p.absent, cmp.Or(p.find, p.list)} {
		for _, e := range o.programs() {
			names, _ := e.Members("params")
			out = append(out, names...)
		}
	}
	return out
}

// connect makes the driver of a target that the profile describes.
func (p *profile) connect(t *Target) driver {
	credential := make(map[string]any, len(t.credential))
	for name, value := range t.credential {
		credential[name] = value
	}
	return (&profileDriver{profile: p, api: t.api, credential: credential, now: t.api.now}).driver()
}

// driver returns what the profile can do.
func (p *profileDriver) driver() driver {
	d := driver{exchange: p.doExchange}
	if p.renew != nil {
		d.renew = p.doRenew
	}
	if p.revoke != nil {
		d.revoke = p.doRevoke
	}
	switch {
	case p.find != nil, p.list != nil && !p.endsByName:
		d.find = p.doFind
	case p.endsByName:
		d.find = findByName
	}
	if p.list != nil {
		d.list = p.doList
	}
	if p.check != nil {
		d.check = p.doCheck
	}
	if p.rotate != nil {
		d.rotate = p.doRotate
	}
	if p.identify != nil {
		d.identify = p.doIdentify
	}
	if p.rotateCredential != nil {
		d.rotateCredential = p.doRotateCredential
	}
	if p.retire != nil {
		d.retire = p.doRetire
	}
	return d
}

func (p *profileDriver) doExchange(ctx context.Context, r Request) (Key, error) {
	const op = "exchange"
	b := expr.NewBudget()
	vars := map[string]any{
		"params": r.Params, "name": r.Name, "subject": p.visible(r.Subject),
		"credential": p.credential, "subject_token": r.SubjectToken, "now": p.now().UTC().Truncate(time.Second),
	}
	if !r.NotAfter.IsZero() {
		vars["not_after"] = r.NotAfter.UTC().Truncate(time.Second)
	}
	if r.TTL > 0 {
		vars["ttl"] = r.TTL
	}
	c, err := p.exchange.call(op, b, vars)
	if err != nil {
		return Key{}, err
	}
	sent := p.now()
	c.wantBody = true
	answered, err := p.api.do(ctx, c)
	if err != nil {
		return Key{}, err
	}
	delete(vars, "credential") // what follows reads the answer
	delete(vars, "subject_token")
	return p.key(answerOf(op, b, answered, vars), r, sent)
}

// visible returns what expressions may read of a subject: issuer, subject, and the claims that the profile declares.
func (p *profile) visible(subject map[string]any) map[string]any {
	out := map[string]any{}
	for _, name := range append([]string{"issuer", "subject"}, p.claims...) {
		if value, ok := subject[name]; ok {
			out[name] = expr.Value(value)
		}
	}
	return out
}

func (p *profileDriver) doRenew(ctx context.Context, h Handle, notAfter time.Time) (time.Time, error) {
	const op = "renew"
	b, vars := expr.NewBudget(), p.handleVars(h)
	vars["not_after"], vars["now"] = notAfter.UTC().Truncate(time.Second), p.now().UTC().Truncate(time.Second)
	c, err := p.renew.call(op, b, vars)
	if err != nil {
		return time.Time{}, err
	}
	sent := p.now()
	c.wantBody = true
	answered, err := p.api.do(ctx, c)
	if err != nil {
		return time.Time{}, err
	}
	a := answerOf(op, b, answered, map[string]any{"params": vars["params"], "name": h.Name, "not_after": vars["not_after"]})
	expiry := a.expiry("expires", p.renewed, sent)
	if a.err == nil && !expiry.After(p.now()) {
		a.failf("the new expiry is in the past")
	}
	if a.err != nil {
		return time.Time{}, a.err
	}
	return expiry, nil
}

func (p *profileDriver) doRevoke(ctx context.Context, h Handle) error {
	const op = "revoke"
	c, err := p.revoke.call(op, expr.NewBudget(), p.handleVars(h))
	if err != nil {
		return err
	}
	c.urgent = true
	answered, err := p.api.do(ctx, c)
	if err != nil || !slices.Contains(p.revoke.gone, answered.status) {
		return err
	}
	return p.believe(ctx, op, h)
}

// believe verifies an answer that a key is gone. An API may also say that of a key that was hidden, and a proxy, or some other
// server at a wrong address, may say it too. A profile may ask for more evidence (absent, only_if); without any, the profile's
// check must succeed.
func (p *profileDriver) believe(ctx context.Context, op string, h Handle) error {
	switch {
	case p.absent != nil:
		c, err := p.absent.call(op, expr.NewBudget(), p.handleVars(h))
		if err != nil {
			return err
		}
		c.urgent = true
		_, err = p.api.do(ctx, c)
		return err
	case p.revoke.onlyIf == nil && p.check != nil:
		return p.inquire(ctx, op, true)
	}
	return nil
}

func (p *profileDriver) doCheck(ctx context.Context) error { return p.inquire(ctx, "check", false) }

// inquire makes the profile's check, which asks whether the API is up and accepts the credential.
func (p *profileDriver) inquire(ctx context.Context, op string, urgent bool) error {
	c, err := p.check.call(op, expr.NewBudget(), map[string]any{"credential": p.credential})
	if err != nil {
		return err
	}
	c.urgent = urgent
	_, err = p.api.do(ctx, c)
	return err
}

// handleVars returns the variables for a key's handle. What the handle lacks is left out, so that an expression that needs it
// fails, instead of asking the target about the empty name.
func (p *profileDriver) handleVars(h Handle) map[string]any {
	key := map[string]any{}
	vars := map[string]any{"params": numbers(h.Params), "credential": p.credential, "key": key}
	if h.Name != "" {
		vars["name"] = h.Name
	}
	if h.Accessor != "" {
		vars["accessor"], key["accessor"] = h.Accessor, h.Accessor
	}
	if h.Secret != "" {
		key["secret"] = h.Secret
	}
	return vars
}

// numbers restores the integers of parameters that have been through JSON. A parameter is never a fraction.
func numbers(params map[string]any) map[string]any {
	out := maps.Clone(params)
	for name, value := range out {
		switch value := value.(type) {
		case json.Number:
			out[name] = expr.Value(value)
		case float64:
			out[name] = int64(value)
		}
	}
	return out
}

// reading evaluates expressions over an answer and keeps the first fault.
type reading struct {
	op     string
	budget *expr.Budget
	vars   map[string]any
	header http.Header
	isJSON bool
	err    error
}

// answerOf prepares an answer for reading; it adds response to vars.
func answerOf(op string, b *expr.Budget, a answer, vars map[string]any) *reading {
	headers := map[string]any{}
	for name, values := range a.header {
		headers[strings.ToLower(name)] = strings.Join(values, ", ")
	}
	response := map[string]any{"status": int64(a.status), "headers": headers}
	body, isJSON := decodeJSON(a.body)
	if isJSON {
		response["json"] = expr.Value(body)
	}
	vars["response"] = response
	return &reading{op: op, budget: b, vars: vars, header: a.header, isJSON: isJSON}
}

// decodeJSON decodes exactly one JSON value.
func decodeJSON(text []byte) (value any, ok bool) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if d.Decode(&value) != nil {
		return nil, false
	}
	_, err := d.Token()
	return value, errors.Is(err, io.EOF)
}

func (a *reading) failf(format string, args ...any) {
	if a.err == nil {
		a.err = protocol(a.op, format, args...)
	}
}

// eval evaluates p, which may be nil; false means that there is no value.
func (a *reading) eval(member string, p *expr.Program) (any, bool) {
	if p == nil || a.err != nil {
		return nil, false
	}
	value, err := p.Eval(a.budget, a.vars)
	switch {
	case err != nil && !a.isJSON && p.Uses("response"):
		a.failf("the answer is not JSON")
	case err != nil:
		a.failf("%s: %v", member, err)
	}
	return value, err == nil
}

func (a *reading) text(member string, p *expr.Program) string {
	value, ok := a.eval(member, p)
	text, isText := value.(string)
	if ok && !isText {
		a.failf("%s: yields no text", member)
	}
	return text
}

// expiry reads an instant, or a duration, which begins when the request was sent.
func (a *reading) expiry(member string, p *expr.Program, sent time.Time) time.Time {
	value, ok := a.eval(member, p)
	switch value := value.(type) {
	case time.Time:
		if value.IsZero() { // elsewhere that means that the key never ends
			a.failf("%s: yields the year 1", member)
		}
		return value.UTC()
	case time.Duration:
		return sent.Add(value).UTC()
	}
	if ok {
		a.failf("%s: yields neither a timestamp nor a duration", member)
	}
	return time.Time{}
}
