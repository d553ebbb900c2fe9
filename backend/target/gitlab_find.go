// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"

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
	ids, pages, err := g.named(ctx, kind, at, h.Name)
	if err == nil && len(ids) == 0 && pages > 1 {
		ids, _, err = g.named(ctx, kind, at, h.Name)
	}
	if err != nil {
		return nil, selfEnding(h, err)
	}
	handles := make([]Handle, len(ids))
	for i, id := range ids {
		handles[i] = Handle{Name: h.Name, Accessor: strconv.FormatInt(id, 10), Params: at.within(h.Params)}
	}
	return handles, nil
}

const (
	gitlabPage     = 100 // tokens, the most that GitLab gives at a time
	gitlabMaxPages = 100
)

// named lists the ids of the living tokens of one name, sorted.
func (g *gitlabDriver) named(ctx context.Context, kind gitlabKind, at gitlabPlace, name string) (ids []int64, pages int, err error) {
	const op = "find"
	for page := int64(1); ; {
		found, next, err := g.page(ctx, kind, at, name, page)
		if err != nil {
			return nil, 0, err
		}
		for _, t := range found {
			switch {
			case t == nil || t.Name != name || t.Revoked:
			case t.ID <= 0:
				return nil, 0, protocol(op, "a token has no id")
			default:
				ids = append(ids, t.ID)
			}
		}
		pages++
		if next == 0 {
			slices.Sort(ids)
			return slices.Compact(ids), pages, nil
		}
		if next <= page || pages == gitlabMaxPages {
			return nil, 0, protocol(op, "the list of tokens does not end within %d pages", gitlabMaxPages)
		}
		page = next
	}
}

// page reads one page of the living tokens; next is 0 after the last. A full page may have one after it although its header
// does not say so: not every proxy lets that through.
func (g *gitlabDriver) page(ctx context.Context, kind gitlabKind, at gitlabPlace, name string, page int64) (found []*gitlab.PersonalAccessToken, next int64, err error) {
	c := gitlabCall("find", http.StatusOK, kind.needs)
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
