// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"maps"
	"math"
	"slices"
)

// Vault makes floats of the numbers in a plugin's requests and responses. A float keeps whole numbers below maxWhole, and
// whatever is written with maxDigits characters; of two ids beyond that it makes one, and a number like 1e400 ends the response.
const (
	maxWhole  = 1 << 53
	maxDigits = 17
)

// rounded reports whether a value of a request has a number that may have been another one.
func rounded(v any) bool {
	switch v := v.(type) {
	case float64:
		return math.Abs(v) >= maxWhole
	case map[string]any:
		return slices.ContainsFunc(slices.Collect(maps.Values(v)), rounded)
	case []any:
		return slices.ContainsFunc(v, rounded)
	}
	return false
}

// carried returns a value as it gets through a response: its JSON text where a number in it would not. A field that is a map
// takes that text in a write too.
func carried(v any) any {
	if !tooLong(v) {
		return v
	}
	text, err := json.Marshal(v)
	if err != nil {
		return v // nothing that came from JSON
	}
	return string(text)
}

// carriedEach is carried for each member of a map that is only read.
func carriedEach(m map[string]any) map[string]any {
	if m == nil {
		return nil
	}
	out := make(map[string]any, len(m))
	for name, value := range m {
		out[name] = carried(value)
	}
	return out
}

func tooLong(v any) bool {
	switch v := v.(type) {
	case json.Number:
		f, err := v.Float64()
		return err != nil || math.Abs(f) >= maxWhole || len(v) > maxDigits
	case int64: // CEL's whole numbers
		return v >= maxWhole || v <= -maxWhole
	case uint64:
		return v >= maxWhole
	case map[string]any:
		return slices.ContainsFunc(slices.Collect(maps.Values(v)), tooLong)
	case []any:
		return slices.ContainsFunc(v, tooLong)
	}
	return false
}
