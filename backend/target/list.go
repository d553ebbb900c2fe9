// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"cmp"
	"context"
	"slices"
	"strings"
)

// Placed returns the parameters that say where at the target a key is; empty if all its keys are in one place.
func (t *Target) Placed() []string { return slices.Clone(t.kind.placed) }

// Place returns those of a key's parameters that say where it is, checked. ok is false if one of them is missing or invalid.
func (t *Target) Place(params map[string]any) (place map[string]any, ok bool) {
	place = map[string]any{}
	for _, p := range t.kind.params {
		if !slices.Contains(t.kind.placed, p.name) {
			continue
		}
		value, fault := p.value(params)
		if fault != "" {
			return nil, false
		}
		if value != nil {
			place[p.name] = value
		}
	}
	return place, true
}

// List returns the handles of the keys in one place, as Place returned it, whose names begin with prefix, sorted and each once.
// whole is false if the list goes on beyond the pages that are read. Keys that end while a list of several pages is read move
// others onto a page that was read already, so a key may be missing. List compares the names itself, because servers search for
// names in ways of their own.
func (t *Target) List(ctx context.Context, prefix string, place map[string]any) (keys []Handle, whole bool, err error) {
	const op = "list"
	if t.driver.list == nil {
		return nil, false, unsupported(op)
	}
	all, whole, err := t.driver.list(ctx, prefix, place)
	if err != nil {
		return nil, false, err
	}
	for _, h := range all {
		if !strings.HasPrefix(h.Name, prefix) {
			continue
		}
		if !validAccessor(h.Accessor) {
			return nil, false, protocol(op, "%s", accessorRule)
		}
		h.Params = place
		keys = append(keys, h)
	}
	slices.SortFunc(keys, func(a, b Handle) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Accessor, b.Accessor)) })
	return slices.CompactFunc(keys, func(a, b Handle) bool { return a.Name == b.Name && a.Accessor == b.Accessor }), whole, nil
}
