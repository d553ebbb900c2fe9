// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"maps"
	"math"
	"slices"
)

// Vault converts the numbers in a plugin's requests and responses to floats. A float is exact for whole numbers below maxWhole
// and for what is written with maxDigits characters. Beyond that two ids become one, and a number like 1e400 fails the response.
const (
	maxWhole  = 1 << 53
	maxDigits = 17
)

// rounded reports whether a value of a request holds a number that may have been rounded on the way.
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

// carried returns a value as a response can hold it: as a JSON string if it has a number that would be rounded. A field that is
// a map takes the same string in a write.
func carried(v any) any {
	if !tooLong(v) {
		return v
	}
	text, err := json.Marshal(v)
	if err != nil {
		return v // it did not come from JSON
	}
	return string(text)
}

// carriedEach applies carried to each member, for maps that are only read.
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
	case map[string]any:
		return slices.ContainsFunc(slices.Collect(maps.Values(v)), tooLong)
	case []any:
		return slices.ContainsFunc(v, tooLong)
	}
	return false
}
