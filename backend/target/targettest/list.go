// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package targettest

import (
	"cmp"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// listPrefix begins the names of the suite's keys.
const listPrefix = "oidcx-test-"

// place returns the parameters that say where the suite's keys are.
func (b *bench) place() map[string]any {
	b.Helper()
	place, ok := b.target.Place(b.suite.Params)
	if !ok {
		b.Fatalf("Place does not tell where the keys of %v are", b.suite.Params)
	}
	return place
}

// requests is how many requests a successful call takes, with one key at the server.
func (s Suite) requests(op Op) int {
	if op == List && s.Blank {
		return 2
	}
	return 1
}

// testList checks that a list has the keys whose names begin with the prefix, and no others, and that each can be ended with
// its handle from the list alone.
func (s Suite) testList(t *testing.T) {
	b := s.start(t)
	if !s.Caps.List {
		b.issue()
		_, _, err := b.target.List(t.Context(), listPrefix, nil)
		b.expect(err, target.ErrUnsupported)
		return
	}
	b.listsOnly(listPrefix)
	b.issue()
	for _, name := range []string{"oidcx-tester-1", "oidcx-other-1", "oidcs-test-1", "oidcc-test-1", "an-oidcx-test-1", "OIDCX-TEST-1"} {
		r := b.request()
		r.Name = name
		if _, err := b.target.Exchange(t.Context(), r); err != nil {
			t.Fatalf("Exchange of %q: %v", name, err)
		}
	}
	b.issue()
	b.listsOnly("oidcx-nobody-")
	keys := b.listsOnly(listPrefix, b.named(listPrefix)...)
	if len(keys) != 2 {
		t.Fatalf("%d keys are listed; want the two of the suite", len(keys))
	}
	if len(s.Credential) > 0 {
		_, _, err := b.stranger().List(t.Context(), listPrefix, b.place())
		b.expect(err, target.ErrDenied)
	}
	if !s.Caps.Revoke {
		return
	}
	before := len(b.fake.living())
	b.expect(b.target.Revoke(t.Context(), b.stored(keys[0])), nil)
	b.listsOnly(listPrefix, b.named(listPrefix)...)
	if living := b.fake.living(); len(living) != before-1 || slices.ContainsFunc(living, func(k Key) bool { return k.Name == keys[0].Name }) {
		t.Errorf("after ending %q by its place in the list %d of %d keys live", keys[0].Name, len(living), before)
	}
}

// testListPages checks that a list of several pages is read to its end, or says that it is not whole, and that List fails if
// a page cannot be read.
func (s Suite) testListPages(t *testing.T) {
	if !s.Caps.List || s.Wire.Page == nil {
		return
	}
	b := s.start(t)
	for range 2*pageSize + 1 {
		b.issue()
	}
	before, pages := b.fake.requests(), 2+s.requests(List)
	b.listsOnly(listPrefix, b.named(listPrefix)...)
	b.times(pages, before)
	for name, hurt := range map[string]fault{"500": b.fake.status(500), "429": b.fake.status(429), "cut": cutBefore, "truncated": truncated, "no list": raw(func([]byte) string { return "{}" })} {
		for page := range int64(pages) {
			b.fake.suffer(after(page, hurt))
			if found, whole, err := b.target.List(t.Context(), listPrefix, b.place()); err == nil || found != nil || whole {
				t.Errorf("page %d is lost (%s), and List says %v, %v, %v", page+1, name, found, whole, err)
			}
		}
	}
	b.fake.suffer(nil)
	if s.Blank {
		return
	}
	b.fake.goesOn()
	err := b.promptly(func() error {
		found, whole, err := b.target.List(t.Context(), listPrefix, b.place())
		if len(found) != 2*pageSize+1 || whole {
			t.Errorf("of a list without an end %d keys are listed, whole is %v", len(found), whole)
		}
		return err
	})
	b.expect(err, nil)
}

// named returns the live keys whose names begin with prefix, as List should return them.
func (b *bench) named(prefix string) (want []target.Handle) {
	for _, k := range b.fake.living() {
		if len(k.Name) >= len(prefix) && k.Name[:len(prefix)] == prefix {
			want = append(want, target.Handle{Name: k.Name, Accessor: k.Accessor, Params: b.place()})
		}
	}
	slices.SortFunc(want, func(x, y target.Handle) int { return cmp.Compare(x.Name, y.Name) })
	return want
}

func (b *bench) listsOnly(prefix string, want ...target.Handle) []target.Handle {
	b.Helper()
	got, whole, err := b.target.List(b.Context(), prefix, b.place())
	b.expect(err, nil)
	if diff := gocmp.Diff(want, got); diff != "" && len(want)+len(got) > 0 || !whole {
		b.Errorf("List says that it is whole: %v (-want +got):\n%s", whole, diff)
	}
	return got
}
