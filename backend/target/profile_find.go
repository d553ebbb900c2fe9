// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"maps"
	"net/http"
	"regexp"
	"slices"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

const (
	maxPages      = 100     // of a list of keys
	maxQueryBytes = 4 << 10 // of a page's query, if next yields one
)

// doFind reads the whole list of keys: only the last page shows that a key is not in it. While several pages are read, keys
// before the wanted one may end, which moves it onto a page that was read already. So a list of several pages without the key
// is read again.
func (p *profileDriver) doFind(ctx context.Context, h Handle) ([]Handle, error) {
	accessors, pages, err := p.accessors(ctx, h)
	if err == nil && len(accessors) == 0 && pages > 1 {
		accessors, _, err = p.accessors(ctx, h)
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

// accessors returns the accessors of the keys with the handle's name, sorted and each once, and how many pages were read.
func (p *profileDriver) accessors(ctx context.Context, h Handle) (found []string, pages int, err error) {
	const op = "find"
	w := walk{op: op, request: p.find, next: p.next, vars: map[string]any{"params": numbers(h.Params), "name": h.Name}}
	w.take = func(a *reading) (enough bool) {
		found = append(found, a.accessors("found", p.found)...)
		return len(found) > 0
	}
	if p.find == nil {
		w.request, w.next, w.vars = p.list, p.listNext, map[string]any{"params": numbers(h.Params), "prefix": h.Name}
		w.take = func(a *reading) (enough bool) {
			for _, k := range a.handles("listed", p.listed) {
				if k.Name == h.Name && !validAccessor(k.Accessor) {
					a.failf("listed: %s", accessorRule)
				}
				if k.Name == h.Name {
					found = append(found, k.Accessor)
				}
			}
			return len(found) > 0
		}
	}
	pages, whole, err := p.walk(ctx, w)
	if err == nil && !whole {
		err = protocol(op, "the list of keys does not end within %d pages", maxPages)
	}
	slices.Sort(found)
	return slices.Compact(found), pages, err
}

// doList returns all keys of a place that the API lists.
func (p *profileDriver) doList(ctx context.Context, prefix string, place map[string]any) (keys []Handle, whole bool, err error) {
	_, whole, err = p.walk(ctx, walk{
		op: "list", request: p.list, next: p.listNext, vars: map[string]any{"params": numbers(place), "prefix": prefix},
		take: func(a *reading) (enough bool) {
			keys = append(keys, a.handles("listed", p.listed)...)
			return false
		},
	})
	return keys, whole, err
}

// walk describes a list of keys to be read.
type walk struct {
	op      string
	request *operation
	next    *expr.Program
	vars    map[string]any               // of all expressions
	take    func(*reading) (enough bool) // reads a page; enough = a further page that the server announces, but next does not ask for, may be left out
}

// walk reads a list page by page. whole is false if the list goes on after maxPages.
func (p *profileDriver) walk(ctx context.Context, w walk) (pages int, whole bool, err error) {
	var query map[string]any // of the page; none = the first one
	for page := 1; page <= maxPages; page++ {
		a, err := p.page(ctx, w, query)
		if err != nil {
			return 0, false, err
		}
		enough := w.take(a)
		a.vars["page"] = int64(page)
		query = a.query("next", w.next)
		switch {
		case a.err != nil:
			return 0, false, a.err
		case len(query) == 0 && !enough && goesOn(a.header):
			return 0, false, protocol(a.op, "the server says that there is a further page, and next does not ask for it")
		case len(query) == 0:
			return page, true, nil
		}
	}
	return maxPages, false, nil
}

// page requests one page of a list.
func (p *profileDriver) page(ctx context.Context, w walk, query map[string]any) (*reading, error) {
	b, vars := expr.NewBudget(), maps.Clone(w.vars)
	vars["credential"] = p.credential
	c, err := w.request.call(w.op, b, vars)
	if err != nil {
		return nil, err
	}
	for name, value := range query {
		c.query.Del(name)
		if err := addValues(c.query, name, value); err != nil {
			return nil, protocol(w.op, "next: %v", err)
		}
	}
	if len(query) > 0 && len(c.query.Encode()) > maxQueryBytes {
		return nil, protocol(w.op, "next: yields a query of more than %d bytes", maxQueryBytes)
	}
	c.urgent, c.wantBody = true, true
	answered, err := p.api.do(ctx, c)
	if err != nil {
		return nil, err
	}
	delete(vars, "credential")
	return answerOf(w.op, b, answered, vars), nil
}

// handles reads a list of keys, each with a name and an accessor; the accessor may be empty.
func (a *reading) handles(member string, p *expr.Program) []Handle {
	value, ok := a.eval(member, p)
	list, isList := value.([]any)
	if ok && !isList {
		a.failf("%s: yields no list", member)
	}
	out := make([]Handle, len(list))
	for i, element := range list {
		key, _ := element.(map[string]any)
		name, named := key["name"].(string)
		accessor, hasAccessor := key["accessor"].(string)
		if !named || !hasAccessor {
			a.failf("%s: want a list of {\"name\": text, \"accessor\": text}", member)
			return nil
		}
		out[i] = Handle{Name: name, Accessor: accessor}
	}
	return out
}

// accessors reads a list of accessors.
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

// query reads a map of query parameters for the next request.
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

// goesOn reports whether an answer's header says that there is a further page.
func goesOn(h http.Header) bool {
	return slices.ContainsFunc(h.Values("Link"), furtherPage.MatchString)
}

// findByName makes no call: revoking by name succeeds for a key that was never made, because the target says that it is gone.
func findByName(_ context.Context, h Handle) ([]Handle, error) {
	return []Handle{{Name: h.Name, Params: h.Params}}, nil
}
