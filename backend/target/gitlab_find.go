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

// find looks at the names of all tokens that live in the key's place: whether GitLab filters by name depends on kind and
// version. Pages shift while tokens are made and ended, so that one may slip from a page to come to one that was read;
// several pages without it are therefore read twice.
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

// list returns the living tokens of a place.
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
	gitlabPage     = 100 // tokens, the most that GitLab gives at a time
	gitlabMaxPages = 100
)

// tokens lists the living tokens of a place whose names begin with a text. whole is false if there are more pages than are
// read, or the one after a page is not told.
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

// page reads one page of the living tokens; next is 0 after the last. A full page may have one after it although its header
// does not say so: not every proxy lets that through.
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

// gitlabNext is the number of the page after an answer's, 0 if it names none: from GitLab's own header, or from the link
// where a proxy lets no more through. Only the number is taken of a link, never its address.
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
