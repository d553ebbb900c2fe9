// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-secure-stdlib/parseutil"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// seconds is a duration at the API: written as "15m" or as a number, stored and read back as whole seconds.
type seconds int64

func (s seconds) duration() time.Duration { return time.Duration(s) * time.Second }

// names is the pattern of all names of records. Other spellings are refused, not folded to lower case: a folded name would
// escape ACLs and lease prefixes that spell it as it was written.
var names = regexp.MustCompile(`\A[a-z0-9_]([a-z0-9_.-]{0,126}[a-z0-9_])?\z`)

func checkName(field, name string) error {
	if !names.MatchString(name) || strings.Contains(name, "..") {
		return badField(field, "want 1 to 128 lower-case letters, digits, '_', '-' or '.'; '-' and '.' not at either end, and no '..'")
	}
	return nil
}

// decodeJSON decodes one JSON value without rounding numbers.
func decodeJSON(raw []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}

// overlay returns old with the fields that the request gives. Fields that it does not name keep their value, lists and maps
// are replaced whole, and null resets a field to its value in defaults. The JSON names of T are the API's field names.
func overlay[T any](old T, defaults T, d *framework.FieldData) (T, error) {
	var fields, reset map[string]json.RawMessage
	for _, part := range []struct {
		from T
		to   *map[string]json.RawMessage
	}{{old, &fields}, {defaults, &reset}} {
		raw, err := json.Marshal(part.from)
		if err != nil {
			return old, fmt.Errorf("encoding a record: %w", err)
		}
		if err := json.Unmarshal(raw, part.to); err != nil {
			return old, fmt.Errorf("decoding a record: %w", err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.Raw)) {
		if _, isField := fields[name]; !isField || d.Schema[name] == nil {
			continue
		}
		if d.Raw[name] == nil {
			fields[name] = reset[name]
			continue
		}
		value, _, err := d.GetOkErr(name)
		if err != nil {
			return old, badField(name, "%s", wanted(d.Schema[name].Type))
		}
		if fields[name], err = json.Marshal(value); err != nil {
			return old, badField(name, "%s", wanted(d.Schema[name].Type))
		}
	}
	raw, err := json.Marshal(fields)
	if err != nil {
		return old, fmt.Errorf("encoding a record: %w", err)
	}
	var record T
	if err := decodeJSON(raw, &record); err != nil {
		var fault *json.UnmarshalTypeError
		if errors.As(err, &fault) {
			return old, badField(fault.Field, "want %s", fault.Type)
		}
		return old, fmt.Errorf("decoding a record: %w", err)
	}
	return record, nil
}

// view returns a record as a read shows it. A sensitive field is replaced by <name>_set, which says whether it is set.
func view(record any, schema map[string]*framework.FieldSchema) (map[string]any, error) {
	raw, err := json.Marshal(record)
	if err != nil {
		return nil, fmt.Errorf("encoding a record: %w", err)
	}
	out := map[string]any{}
	if err := decodeJSON(raw, &out); err != nil {
		return nil, fmt.Errorf("decoding a record: %w", err)
	}
	for name, field := range schema {
		value, kept := out[name]
		if kept && field.DisplayAttrs != nil && field.DisplayAttrs.Sensitive {
			out[name+"_set"] = !empty(value)
			delete(out, name)
		} else if kept {
			out[name] = carried(value)
		}
	}
	return out, nil
}

func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case map[string]any:
		return len(v) == 0
	default:
		return false
	}
}

// normalize checks the types of a request's fields before the SDK converts them: the SDK accepts more than a reader of a
// policy expects, and its errors show the value. It turns the other ways to write a map (a JSON string, k=v, a list of k=v)
// into a map, and removes the final line break of secrets.
func normalize(req *logical.Request, path *framework.Path) error {
	for _, name := range slices.Sorted(maps.Keys(req.Data)) {
		schema, known := path.Fields[name]
		if !known {
			if path.TakesArbitraryInput {
				continue
			}
			return badField(name, "no such field; see: vault path-help <mount>/%s", req.Path)
		}
		raw := req.Data[name]
		if raw == nil {
			continue // whether null is allowed depends on the field; see noun.merge
		}
		if schema.Type == framework.TypeMap || schema.Type == framework.TypeKVPairs {
			m, err := asMap(raw)
			if err != nil {
				return badField(name, "%s", err)
			}
			if rounded(m) {
				return badField(name, "has a number that Vault rounds on the way; write the map as a JSON string, as in %s='{…}'", name)
			}
			req.Data[name] = m
			raw = m
		}
		if schema.DisplayAttrs != nil && schema.DisplayAttrs.Sensitive {
			raw = trimSecret(raw)
			req.Data[name] = raw
		}
		if !fits(raw, schema.Type) {
			return badField(name, "%s%s", wanted(schema.Type), twice(raw, schema.Type))
		}
	}
	return nil
}

// twice returns a hint for a list where one value is wanted: Vault's CLI makes a list of a field that is both in @file and
// beside it.
func twice(raw any, t framework.FieldType) string {
	list, isList := raw.([]any)
	switch {
	case !isList || t == framework.TypeCommaStringSlice:
		return ""
	case slices.ContainsFunc(list, func(e any) bool { _, isObject := e.(map[string]any); return isObject }):
		return "; write the list as a JSON string"
	}
	return "; this is a list, which vault write makes of a field that is given twice (in @file and beside it)"
}

// trimSecret removes one final line break, which a shell or an editor adds to a file, and nothing else. No token, key or
// credential ends with a line break, and with one it would fail without a visible reason.
func trimSecret(raw any) any {
	switch raw := raw.(type) {
	case string:
		return strings.TrimSuffix(strings.TrimSuffix(raw, "\n"), "\r")
	case map[string]any:
		for name, value := range raw {
			raw[name] = trimSecret(value)
		}
	}
	return raw
}

// asMap accepts a map as an object, as a JSON string, or as repeated k=v.
func asMap(raw any) (map[string]any, error) {
	switch raw := raw.(type) {
	case map[string]any:
		return raw, nil
	case string:
		if strings.HasPrefix(strings.TrimSpace(raw), "{") {
			m := map[string]any{}
			if err := decodeJSON([]byte(raw), &m); err != nil {
				return nil, errors.New("the string is not a JSON object")
			}
			return m, nil
		}
		if raw == "" {
			return nil, errors.New("is empty; write {} to empty the map")
		}
		return pairs([]any{raw})
	case []any:
		return pairs(raw)
	default:
		return nil, errors.New(wanted(framework.TypeMap))
	}
}

func pairs(list []any) (map[string]any, error) {
	m := map[string]any{}
	for _, element := range list {
		text, ok := element.(string)
		name, value, found := strings.Cut(text, "=")
		if !ok || !found || name == "" {
			return nil, errors.New(wanted(framework.TypeMap))
		}
		if _, twice := m[name]; twice {
			return nil, fmt.Errorf("%q is given twice; write a JSON object to give it a list", name)
		}
		m[name] = value
	}
	return m, nil
}

const (
	maxText   = 128 << 10            // bytes of one field, as JSON
	maxNumber = 10 * 366 * 24 * 3600 // largest number, and longest duration in seconds, that is accepted; far from any overflow
)

// fits reports whether a value of a request has the type of its field, without a conversion that would surprise.
func fits(raw any, t framework.FieldType) bool {
	if size, err := json.Marshal(raw); err != nil || len(size) > maxText {
		return false
	}
	switch t {
	case framework.TypeString:
		_, ok := raw.(string)
		return ok
	case framework.TypeBool:
		switch raw := raw.(type) {
		case bool:
			return true
		case string:
			return raw == "true" || raw == "false"
		}
		return false
	case framework.TypeKVPairs:
		for _, value := range raw.(map[string]any) {
			if _, ok := value.(string); !ok {
				return false
			}
		}
		return true
	case framework.TypeCommaStringSlice:
		list, isList := raw.([]any)
		_, isText := raw.(string)
		return isText || isList && !slices.ContainsFunc(list, func(e any) bool { _, ok := e.(string); return !ok })
	}
	if raw == "" { // the SDK would read it as 0, which mostly means no limit
		return false
	}
	d := framework.FieldData{Raw: map[string]any{"field": raw}, Schema: map[string]*framework.FieldSchema{"field": {Type: t}}}
	value, _, err := d.GetOkErr("field")
	if err != nil {
		return false
	}
	if n, isInt := value.(int); isInt {
		return n >= 0 && n <= maxNumber && whole(raw, n, t)
	}
	return true
}

// whole reports whether raw, which the SDK has read as n, is really that number. It is not if it has a fraction, if it
// overflowed, or if it is a string in another base (0x10).
func whole(raw any, n int, t framework.FieldType) bool {
	text := fmt.Sprint(raw)
	if n, isFloat := raw.(float64); isFloat { // plugins get JSON numbers as float64; Sprint would write a million as 1e+06
		text = strconv.FormatFloat(n, 'f', -1, 64)
	}
	if _, isText := raw.(string); isText && t == framework.TypeDurationSecond {
		d, err := parseutil.ParseDurationSecond(text)
		return err == nil && d%time.Second == 0 && len(text) <= 20
	}
	return text == strconv.Itoa(n)
}

// wanted says what values a field of type t takes.
func wanted(t framework.FieldType) string {
	switch t {
	case framework.TypeString:
		return "want a string of at most 128 KiB"
	case framework.TypeBool:
		return "want true or false"
	case framework.TypeInt:
		return "want a whole number of at least 0"
	case framework.TypeFloat:
		return "want a number"
	case framework.TypeDurationSecond:
		return "want a duration such as 15m, in whole seconds and at most 10 years"
	case framework.TypeTime:
		return "want a time such as 2026-01-31T15:04:05Z"
	case framework.TypeCommaStringSlice:
		return "want a list of strings"
	case framework.TypeKVPairs:
		return "want a map of strings: an object, or k=v"
	case framework.TypeMap:
		return "want a map: an object, a JSON string, or k=v"
	default:
		return "want " + t.String()
	}
}

// likeFiles warns of members of a credential that look like @file: Vault's CLI reads a file only where the whole field begins
// with @.
func likeFiles(credential map[string]string) (warnings []string) {
	for _, member := range slices.Sorted(maps.Keys(credential)) {
		if strings.HasPrefix(credential[member], "@") {
			warnings = append(warnings, fmt.Sprintf("credential.%s begins with @ and is stored literally; to read it from a file write credential=%s=\"$(cat FILE)\"", member, member))
		}
	}
	return warnings
}
