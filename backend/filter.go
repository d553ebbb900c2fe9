// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/trust"
)

// filter selects keys. All conditions that are set must match; the zero filter matches every key.
type filter struct {
	Role           string            `json:"role"`
	Target         string            `json:"target"`
	Trust          string            `json:"trust"`
	Issuer         string            `json:"issuer"`
	Subject        string            `json:"subject"`
	Entity         string            `json:"entity"`
	JTI            string            `json:"jti"`
	Accessor       string            `json:"accessor"`
	Claim          map[string]string `json:"claim"` // claim or JSON pointer -> value; numbers and booleans as in JSON
	RevisionBefore int               `json:"revision_before"`
	IssuedBefore   *time.Time        `json:"issued_before"`
	IssuedAfter    *time.Time        `json:"issued_after"`
}

// verdict is a filter's result for one key.
type verdict int

const (
	unmatched verdict = iota
	matched
	unjudged // unknown: what the filter needs was not recorded with the key, a claim or when it was issued
)

// filterTexts are the conditions that compare one string of the entry exactly, by field name.
var filterTexts = map[string]struct {
	want func(*filter) string
	of   func(*entry) string
	help string
}{
	"role":     {func(f *filter) string { return f.Role }, func(e *entry) string { return e.Role }, "Keys of this role."},
	"target":   {func(f *filter) string { return f.Target }, func(e *entry) string { return e.Target }, "Keys of this target."},
	"trust":    {func(f *filter) string { return f.Trust }, func(e *entry) string { return e.Trust }, "Keys issued under this trust policy."},
	"issuer":   {func(f *filter) string { return f.Issuer }, func(e *entry) string { return e.Issuer }, "Keys of subjects of this issuer."},
	"subject":  {func(f *filter) string { return f.Subject }, func(e *entry) string { return e.Subject }, "Keys of this subject."},
	"entity":   {func(f *filter) string { return f.Entity }, func(e *entry) string { return e.Entity }, "Keys that this Vault entity asked for."},
	"jti":      {func(f *filter) string { return f.JTI }, func(e *entry) string { return e.JTI }, "Keys issued for the token with this id."},
	"accessor": {func(f *filter) string { return f.Accessor }, func(e *entry) string { return e.Accessor }, "The key with this public id at its target."},
}

// filterFields adds the fields of a filter to those of a path.
func filterFields(fields map[string]*framework.FieldSchema) map[string]*framework.FieldSchema {
	for name, text := range filterTexts {
		fields[name] = &framework.FieldSchema{Type: framework.TypeString, Query: true, Description: text.help}
	}
	fields["claim"] = &framework.FieldSchema{Type: framework.TypeKVPairs, Query: true, Description: "Keys of subjects with this claim (or JSON pointer) and value, as k=v."}
	fields["revision_before"] = &framework.FieldSchema{Type: framework.TypeInt, Query: true, Description: "Keys issued under an earlier revision of their trust policy."}
	fields["issued_before"] = &framework.FieldSchema{Type: framework.TypeTime, Query: true, Description: "Keys whose issued_at is before this time (RFC 3339, compared in whole seconds); a key issued at exactly this time does not match."}
	fields["issued_after"] = &framework.FieldSchema{Type: framework.TypeTime, Query: true, Description: "Keys whose issued_at is after this time (RFC 3339, compared in whole seconds); a key issued at exactly this time does not match."}
	return fields
}

// parseFilter reads the filter of a request.
func parseFilter(d *framework.FieldData) (*filter, error) {
	none := filter{Claim: map[string]string{}}
	f, err := overlay(none, none, d)
	if err == nil {
		err = f.check(d.Raw)
	}
	return &f, err
}

// filterNames are the fields of a filter, sorted.
var filterNames = slices.Sorted(maps.Keys(filterFields(map[string]*framework.FieldSchema{})))

// check refuses conditions that were given but are empty, and impossible claim names: whoever gave them would believe that
// they restrict the filter.
func (f *filter) check(raw map[string]any) error {
	given := f.given()
	for _, name := range filterNames {
		if _, written := raw[name]; written && given[name] == nil {
			return badField(name, "is empty; leave it out to match every key")
		}
	}
	for name := range f.Claim {
		if err := trust.CheckName(name); err != nil {
			return badField("claim", "%v", err)
		}
	}
	return nil
}

// unknownNames warns of names in a filter that nothing has: a mistyped one matches no key. It is not an error, because keys
// outlive what was deleted. No warning repeats a name: audit devices show warnings as they are.
func (b *engine) unknownNames(ctx context.Context, s logical.Storage, f *filter) (warnings []string) {
	for _, named := range []struct {
		what, name string
		has        func(context.Context, logical.Storage, string) (bool, error)
	}{
		{b.roleNoun.what, f.Role, b.roleNoun.table.has},
		{b.targetNoun.what, f.Target, b.targetNoun.table.has},
		{b.trustNoun.what, f.Trust, b.trustNoun.table.has},
		{b.issuerNoun.what, f.Issuer, b.issuerNoun.table.has},
	} {
		if named.name == "" || strings.HasPrefix(named.name, staticPrefix) { // what static roles owe has their names
			continue
		}
		switch found, err := named.has(ctx, s, named.name); {
		case err != nil:
			b.Logger().Error("looking up a name in a filter", "what", named.what, "error", err)
			warnings = append(warnings, fmt.Sprintf("whether there is a %s of the name in the filter could not be looked up", named.what))
		case !found:
			warnings = append(warnings, fmt.Sprintf("there is no %s of the name in the filter; unless it was deleted, nothing matches", named.what))
		}
	}
	return warnings
}

// empty reports whether the filter matches every key.
func (f *filter) empty() bool { return len(f.given()) == 0 }

// given returns the conditions that are set, by name, as operators read them.
func (f *filter) given() map[string]any {
	given := map[string]any{}
	for name, text := range filterTexts {
		if want := text.want(f); want != "" {
			given[name] = want
		}
	}
	if len(f.Claim) > 0 {
		given["claim"] = f.Claim
	}
	if f.RevisionBefore > 0 {
		given["revision_before"] = f.RevisionBefore
	}
	for name, at := range map[string]*time.Time{"issued_before": f.IssuedBefore, "issued_after": f.IssuedAfter} {
		if at != nil {
			given[name] = timeOrNil(*at)
		}
	}
	return given
}

// judge compares a key with the filter. It never guesses: if something was not recorded, the key is unjudged, unless another
// condition rules it out.
func (f *filter) judge(e *entry) verdict {
	for _, text := range filterTexts {
		if want := text.want(f); want != "" && text.of(e) != want {
			return unmatched
		}
	}
	timed := !e.IssuedAt.IsZero()                                           // unless a target's list or a static role brought it in
	shown := func(t time.Time) time.Time { return t.Truncate(time.Second) } // as reads show times, from where operators copy them
	switch {
	case f.RevisionBefore > 0 && e.Revision >= f.RevisionBefore,
		timed && f.IssuedBefore != nil && !shown(e.IssuedAt).Before(shown(*f.IssuedBefore)),
		timed && f.IssuedAfter != nil && !shown(e.IssuedAt).After(shown(*f.IssuedAfter)),
		len(f.Claim) > 0 && e.Claims == nil: // the key of a login, which has no claims
		return unmatched
	}
	result := matched
	if !timed && (f.IssuedBefore != nil || f.IssuedAfter != nil) {
		result = unjudged
	}
	for name, want := range f.Claim {
		value, _ := trust.Lookup(e.Claims, name)
		switch {
		case !e.recorded(trust.Root(name)):
			result = unjudged
		case !claimIs(value, want): // an absent claim has the value null
			return unmatched
		}
	}
	return result
}

// claimIs compares a claim with a string; a list matches if one of its elements does.
func claimIs(value any, want string) bool {
	switch value := value.(type) {
	case string:
		return value == want
	case []any:
		for _, element := range value {
			if claimIs(element, want) {
				return true
			}
		}
		return false
	default:
		text, err := json.Marshal(value)
		return err == nil && string(text) == want
	}
}
