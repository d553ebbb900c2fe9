// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"net/http"
	"regexp"
	"slices"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

const (
	maxPages      = 100     // of a list of keys
	maxQueryBytes = 4 << 10 // of the query of a page that an answer tells
)

// doFind reads the list of keys to its end: that a key is in none of several pages is known after the last one. While it is
// read, keys before ours may end, and ours move up onto a page that was read already; so a list of several pages in which it
// is not is read again.
func (p *profileDriver) doFind(ctx context.Context, h Handle) ([]Handle, error) {
	accessors, pages, err := p.list(ctx, h)
	if err == nil && len(accessors) == 0 && pages > 1 {
		accessors, _, err = p.list(ctx, h)
	}
	if err != nil {
		return nil, err
	}
	handles := make([]Handle, len(accessors))
	for i, accessor := range accessors {
		handles[i] = Handle{Name: h.Name, Accessor: accessor, Params: h.Params}
	}
	return handles, nil
}

// list returns the accessors that find yields, sorted, and how many pages they were on.
func (p *profileDriver) list(ctx context.Context, h Handle) (accessors []string, pages int, err error) {
	var query map[string]any // of the page; none = the first one
	for page := 1; page <= maxPages; page++ {
		a, err := p.page(ctx, h, query)
		if err != nil {
			return nil, 0, err
		}
		accessors = append(accessors, a.accessors("found", p.found)...)
		a.vars["page"] = int64(page)
		query = a.query("next", p.next)
		switch {
		case a.err != nil:
			return nil, 0, a.err
		case len(query) == 0 && len(accessors) == 0 && goesOn(a.header):
			return nil, 0, protocol(a.op, "the server says that there is a further page, and next does not ask for it")
		case len(query) == 0:
			slices.Sort(accessors)
			return slices.Compact(accessors), page, nil
		}
	}
	return nil, 0, protocol("find", "the list of keys does not end within %d pages", maxPages)
}

// page asks for one page of the list.
func (p *profileDriver) page(ctx context.Context, h Handle, query map[string]any) (*reading, error) {
	const op = "find"
	b := expr.NewBudget()
	vars := map[string]any{"params": numbers(h.Params), "name": h.Name, "credential": p.credential}
	c, err := p.find.call(op, b, vars)
	if err != nil {
		return nil, err
	}
	for name, value := range query {
		c.query.Del(name)
		if err := addValues(c.query, name, value); err != nil {
			return nil, protocol(op, "next: %v", err)
		}
	}
	if len(query) > 0 && len(c.query.Encode()) > maxQueryBytes {
		return nil, protocol(op, "next: yields a query of more than %d bytes", maxQueryBytes)
	}
	c.urgent, c.wantBody = true, true
	answered, err := p.api.do(ctx, c)
	if err != nil {
		return nil, err
	}
	delete(vars, "credential")
	return answerOf(op, b, answered, vars), nil
}

// accessors takes a list of them.
func (a *reading) accessors(member string, p *expr.Program) []string {
	value, ok := a.eval(member, p)
	list, isList := value.([]any)
	if ok && !isList {
		a.failf("%s: yields no list", member)
	}
	out := make([]string, len(list))
	for i, element := range list {
		if out[i], ok = element.(string); !ok || !validAccessor(out[i]) {
			a.failf("%s: %s", member, accessorRule)
		}
	}
	return out
}

// query takes a map of what a request's query is to have.
func (a *reading) query(member string, p *expr.Program) map[string]any {
	value, ok := a.eval(member, p)
	query, isMap := value.(map[string]any)
	if ok && !isMap {
		a.failf("%s: yields no map", member)
	}
	return query
}

// furtherPage matches a Link header (RFC 8288) that names the next page.
var furtherPage = regexp.MustCompile(`(?i);\s*rel\s*=\s*("[^"]*\bnext\b[^"]*"|next\b)`)

// goesOn reports whether an answer says in its header that it is one page of several, and not the last.
func goesOn(h http.Header) bool {
	return slices.ContainsFunc(h.Values("Link"), furtherPage.MatchString)
}

// findByName asks nobody: of a key that was never made, revoke by name says that it is gone.
func findByName(_ context.Context, h Handle) ([]Handle, error) {
	return []Handle{{Name: h.Name, Params: h.Params}}, nil
}
