// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package expr

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// Value returns decoded JSON (numbers as json.Number) as expressions see it: integers as int64 or uint64, other
// numbers as float64. A number that neither holds exactly as an integer nor is a fraction is left out of its object, and
// a list that has one is left out whole: an expression must not take one identifier for another because a float rounded
// it.
func Value(v any) any {
	switch v := v.(type) {
	case json.Number:
		return number(string(v))
	case map[string]any:
		out := make(map[string]any, len(v))
		for name, member := range v {
			if member = Value(member); member != nil {
				out[name] = member
			} else if v[name] == nil {
				out[name] = nil
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, element := range v {
			if out[i] = Value(element); out[i] == nil && element != nil {
				return nil
			}
		}
		return out
	default:
		return v
	}
}

func number(text string) any {
	if i, err := strconv.ParseInt(text, 10, 64); err == nil {
		return i
	}
	if u, err := strconv.ParseUint(text, 10, 64); err == nil {
		return u
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || !strings.ContainsAny(text, ".eE") || math.Abs(f) >= 1<<53 || len(text) > 32 {
		return nil
	}
	if f == math.Trunc(f) { // a whole number must be written as one, or a rounded fraction is taken for it
		return nil
	}
	return f
}

// sizer bounds a result: a short expression can name a long value many times over.
type sizer struct{ left int }

var errTooLarge = fmt.Errorf("yields more than %d bytes", MaxOutput)

func (s *sizer) take(n int) error {
	if s.left -= n + 8; s.left < 0 {
		return errTooLarge
	}
	return nil
}

func native(v ref.Val, s *sizer) (any, error) {
	switch v := v.(type) {
	case types.Null:
		return nil, s.take(0)
	case types.Bool:
		return bool(v), s.take(0)
	case types.Int:
		return int64(v), s.take(0)
	case types.Uint:
		return uint64(v), s.take(0)
	case types.Double:
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return nil, errors.New("yields a number that is not finite")
		}
		return float64(v), s.take(0)
	case types.String:
		return string(v), s.take(len(v))
	case types.Bytes:
		return []byte(v), s.take(len(v))
	case types.Timestamp:
		return v.Time.UTC(), s.take(0)
	case types.Duration:
		return v.Duration, s.take(0)
	case traits.Mapper:
		return nativeMap(v, s)
	case traits.Lister:
		return nativeList(v, s)
	default:
		return nil, fmt.Errorf("yields %s, which has no place in a result", v.Type().TypeName())
	}
}

func nativeList(list traits.Lister, s *sizer) (any, error) {
	out := []any{}
	for it := list.Iterator(); it.HasNext() == types.True; {
		element, err := native(it.Next(), s)
		if err != nil {
			return nil, err
		}
		out = append(out, element)
	}
	return out, nil
}

func nativeMap(m traits.Mapper, s *sizer) (any, error) {
	out := map[string]any{}
	for it := m.Iterator(); it.HasNext() == types.True; {
		key := it.Next()
		name, ok := key.(types.String)
		if !ok {
			return nil, errors.New("yields an object with a name that is not a string")
		}
		if err := s.take(len(name)); err != nil {
			return nil, err
		}
		member, err := native(m.Get(key), s)
		if err != nil {
			return nil, err
		}
		out[string(name)] = member
	}
	return out, nil
}
