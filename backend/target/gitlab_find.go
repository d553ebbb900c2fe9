// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	gitlab "gitlab.com/gitlab-org/api/client-go/v2"
)

// find compares the names of all active tokens in the key's place, because whether GitLab filters by name depends on kind and
// version. While tokens are made and ended, the wanted token may move from a page that is still to be read onto one that was
// read already. So a list of several pages without it is read again.
func (g *gitlabDriver) find(ctx context.Context, h Handle) ([]Handle, error) {
	const op = "find"
	kind, at, err := g.place(ctx, op, h.Params)
	if err != nil {
		return nil, selfEnding(h, err)
	}
	named := func() ([]Handle, int, error) {
		found, pages, whole, err := g.tokens(ctx, op, kind, at, h.Name)
		if err == nil && !whole {
			err = protocol(op, "the list of tokens does not end within %d pages", gitlabMaxPages)
		}
		found = slices.DeleteFunc(found, func(t Handle) bool { return t.Name != h.Name })
		return found, pages, err
	}
	handles, pages, err := named()
	if err == nil && len(handles) == 0 && pages > 1 {
		handles, _, err = named()
	}
	if err != nil {
		return nil, selfEnding(h, err)
	}
	slices.SortFunc(handles, func(a, b Handle) int {
		return cmp.Or(cmp.Compare(len(a.Accessor), len(b.Accessor)), cmp.Compare(a.Accessor, b.Accessor))
	})
	handles = slices.CompactFunc(handles, func(a, b Handle) bool { return a.Accessor == b.Accessor })
	for i := range handles {
		handles[i].Params = at.within(h.Params)
	}
	return handles, nil
}

// list returns the active tokens of a place.
func (g *gitlabDriver) list(ctx context.Context, prefix string, params map[string]any) ([]Handle, bool, error) {
	const op = "list"
	kind, at, err := g.place(ctx, op, params)
	if err != nil {
		return nil, false, err
	}
	found, _, whole, err := g.tokens(ctx, op, kind, at, prefix)
	return found, whole, err
}

const (
	gitlabPage     = 100 // tokens, the most that GitLab returns at a time
	gitlabMaxPages = 100
)

// tokens lists the active tokens of a place whose names begin with text. whole is false if there are more than gitlabMaxPages
// pages, or if the page that is named as the next one is not a later one.
func (g *gitlabDriver) tokens(ctx context.Context, op string, kind gitlabKind, at gitlabPlace, text string) (found []Handle, pages int, whole bool, err error) {
	for page := int64(1); ; {
		tokens, next, err := g.page(ctx, op, kind, at, text, page)
		if err != nil {
			return nil, 0, false, err
		}
		for _, t := range tokens {
			switch {
			case t == nil || t.Revoked || !strings.HasPrefix(t.Name, text):
			case t.ID <= 0:
				return nil, 0, false, protocol(op, "a token has no id")
			default:
				found = append(found, Handle{Name: t.Name, Accessor: strconv.FormatInt(t.ID, 10)})
			}
		}
		pages++
		switch {
		case next == 0:
			return found, pages, true, nil
		case next <= page || pages == gitlabMaxPages:
			return found, pages, false, nil
		}
		page = next
	}
}

// page reads one page of the active tokens; next is 0 after the last. A full page may be followed by another even if the
// headers do not say so, because some proxies drop them.
func (g *gitlabDriver) page(ctx context.Context, op string, kind gitlabKind, at gitlabPlace, name string, page int64) (found []*gitlab.PersonalAccessToken, next int64, err error) {
	c := gitlabCall(op, http.StatusOK, kind.needs)
	c.urgent = true
	err = g.api.lend(ctx, c, func(ctx context.Context) error {
		list, resp, err := kind.list(g.client, at, name, gitlab.ListOptions{Page: page, PerPage: gitlabPage}, gitlab.WithContext(ctx))
		if err == nil && list == nil {
			err = errors.New("null")
		}
		if err == nil {
			found = list
			next, err = gitlabNext(resp)
		}
		return err
	})
	if next == 0 && len(found) >= gitlabPage {
		next = page + 1
	}
	return found, next, err
}

// gitlabNext returns the number of the next page, 0 if the answer names none: from GitLab's own header, or from the Link header
// where a proxy drops GitLab's. Of a link it uses only the number, never the address.
func gitlabNext(resp *gitlab.Response) (int64, error) {
	if resp.NextPage != 0 || resp.NextLink == "" {
		return resp.NextPage, nil
	}
	link, err := url.Parse(resp.NextLink)
	if err != nil {
		return 0, err
	}
	next, err := strconv.ParseInt(link.Query().Get("page"), 10, 64)
	if err == nil && next < 1 {
		err = errors.New("no page")
	}
	return next, err
}
