// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
)

// filter says which keys are meant; all conditions that are given must match. The zero filter matches every key.
type filter struct {
	texts          map[string]string // field -> exact value
	claims         map[string]string // claim -> its value, a number or boolean as JSON writes it
	revisionBefore int
	before, after  time.Time // of issue
}

// verdict is what a filter says of a key.
type verdict int

const (
	unmatched verdict = iota
	matched
	unjudged // a claim that the filter needs was not recorded with the key
)

// filterTexts are the fields that are compared as they are.
var filterTexts = map[string]struct {
	of   func(*entry) string
	help string
}{
	"role":    {func(e *entry) string { return e.Role }, "Keys of this role."},
	"target":  {func(e *entry) string { return e.Target }, "Keys of this target."},
	"trust":   {func(e *entry) string { return e.Trust }, "Keys issued under this trust policy."},
	"issuer":  {func(e *entry) string { return e.Issuer }, "Keys of subjects of this issuer."},
	"subject": {func(e *entry) string { return e.Subject }, "Keys of this subject."},
	"entity":  {func(e *entry) string { return e.Entity }, "Keys that this Vault entity asked for."},
	"jti":     {func(e *entry) string { return e.JTI }, "Keys issued for the token with this id."},
}

// filterFields adds the fields of a filter to a path's.
func filterFields(fields map[string]*framework.FieldSchema) map[string]*framework.FieldSchema {
	for name, text := range filterTexts {
		fields[name] = &framework.FieldSchema{Type: framework.TypeString, Query: true, Description: text.help}
	}
	fields["claim"] = &framework.FieldSchema{Type: framework.TypeKVPairs, Query: true, Description: "Keys of subjects with this claim and value, as k=v."}
	fields["revision_before"] = &framework.FieldSchema{Type: framework.TypeInt, Query: true, Description: "Keys issued under an earlier revision of their trust policy."}
	fields["issued_before"] = &framework.FieldSchema{Type: framework.TypeTime, Query: true, Description: "Keys issued before this time (RFC 3339)."}
	fields["issued_after"] = &framework.FieldSchema{Type: framework.TypeTime, Query: true, Description: "Keys issued after this time (RFC 3339)."}
	return fields
}

func parseFilter(d *framework.FieldData) (filter, error) {
	f := filter{texts: map[string]string{}, claims: d.Get("claim").(map[string]string), revisionBefore: d.Get("revision_before").(int)}
	for name := range filterTexts {
		value, given := d.GetOk(name)
		if given && value == "" {
			return f, badField(name, "is empty; leave it out to match every key")
		}
		if given {
			f.texts[name] = value.(string)
		}
	}
	f.before, _ = d.Get("issued_before").(time.Time)
	f.after, _ = d.Get("issued_after").(time.Time)
	return f, nil
}

// judge never guesses: a claim that was not recorded leaves a key unjudged, unless another condition rules it out.
func (f filter) judge(e *entry) verdict {
	for name, want := range f.texts {
		if filterTexts[name].of(e) != want {
			return unmatched
		}
	}
	switch {
	case f.revisionBefore > 0 && e.Revision >= f.revisionBefore,
		!f.before.IsZero() && !e.IssuedAt.Before(f.before),
		!f.after.IsZero() && !e.IssuedAt.After(f.after):
		return unmatched
	}
	result := matched
	for name, want := range f.claims {
		value, recorded := e.Claims[name]
		if !recorded {
			result = unjudged
		} else if !claimIs(value, want) {
			return unmatched
		}
	}
	return result
}

// claimIs compares a claim with a text: a list matches by one of its elements.
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
