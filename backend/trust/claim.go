// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package trust

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// boundClaim is one entry of bound_claims: a claim, and the values of which one must match.
type boundClaim struct {
	name   string
	wanted any   // as the policy has it
	values []any // string, bool or json.Number
	globs  []*regexp.Regexp
	open   bool // one of the globs has only stars and punctuation, so it matches almost everything
}

func newBoundClaim(name string, want any, glob bool) (boundClaim, error) {
	bound := boundClaim{name: name, wanted: want}
	if err := CheckName(name); err != nil {
		return bound, err
	}
	list, isList := want.([]any)
	if !isList {
		list = []any{want}
	}
	if len(list) == 0 || len(list) > maxValues {
		return bound, fmt.Errorf("want one value, or a list of 1 to %d", maxValues)
	}
	for _, value := range list {
		switch value := value.(type) {
		case string:
			if err := checkText(value, maxPattern); err != nil {
				return bound, err
			}
			if glob {
				re, err := compileGlob(value)
				if err != nil {
					return bound, err
				}
				bound.globs = append(bound.globs, re)
				bound.open = bound.open || !strings.ContainsFunc(value, isLetterOrDigit)
				continue
			}
		case json.Number:
			if _, ok := exactNumber(string(value)); !ok {
				return bound, fmt.Errorf("want a number of at most %d digits without an exponent", maxDigits)
			}
		case bool:
		default:
			return bound, errors.New("want a string, number or boolean, or a list of these")
		}
		bound.values = append(bound.values, value)
	}
	return bound, nil
}

// judge reports whether the claim has one of the wanted values. A claim that is a list matches if one of its elements does.
// Types are not converted: the string "1" is not the number 1.
func (b boundClaim) judge(claims map[string]any) Condition {
	c := Condition{Name: "bound_claims." + b.name, Wanted: b.wanted}
	actual, found := Lookup(claims, b.name)
	if !found {
		return c
	}
	c.Saw = actual
	list, isList := actual.([]any)
	if !isList {
		list = []any{actual}
	}
	c.Holds = slices.ContainsFunc(list, b.matches)
	return c
}

func (b boundClaim) matches(actual any) bool {
	if text, ok := actual.(string); ok && text != "" && printable(text) { // an empty value is as good as none
		for _, glob := range b.globs {
			if glob.MatchString(text) {
				return true
			}
		}
	}
	return slices.ContainsFunc(b.values, func(want any) bool { return equal(want, actual) })
}

// narrows reports whether the condition can tell one subject of an issuer from another.
func (b boundClaim) narrows() bool {
	return !b.open && !slices.Contains(common, Root(b.name))
}

func equal(want, actual any) bool {
	switch want := want.(type) {
	case string, bool:
		return want == actual
	case json.Number:
		number, ok := actual.(json.Number)
		return ok && sameNumber(string(want), string(number))
	default:
		return false
	}
}

// sameNumber compares two JSON numbers exactly; a float would take one identifier for another.
func sameNumber(a, b string) bool {
	if a == b {
		return true
	}
	x, okX := exactNumber(a)
	y, okY := exactNumber(b)
	return okX && okY && x.Cmp(y) == 0
}

// exactNumber refuses what is too long, and exponents: a few bytes of them can cost gigabytes.
func exactNumber(text string) (*big.Rat, bool) {
	if len(text) > maxDigits || strings.Trim(text, "-.0123456789") != "" {
		return nil, false
	}
	return new(big.Rat).SetString(text)
}

// compileGlob anchors the pattern by construction. A star stays within a segment between ":" and "/", so that
// "repo:acme/*" matches neither "repo:acme/x:pull_request" nor "repo:acme/x/y"; two stars cross segments.
func compileGlob(pattern string) (*regexp.Regexp, error) {
	if strings.Contains(pattern, "***") {
		return nil, errors.New("want * (within a segment) or ** (across segments)")
	}
	if strings.Count(strings.ReplaceAll(pattern, "**", "*"), "*") > maxStars {
		return nil, fmt.Errorf("want at most %d stars", maxStars)
	}
	var re strings.Builder
	re.WriteString(`\A`)
	for i, part := range strings.Split(pattern, "**") {
		if i > 0 {
			re.WriteString("(?s:.*)")
		}
		for j, literal := range strings.Split(part, "*") {
			if j > 0 {
				re.WriteString("[^:/]*")
			}
			re.WriteString(regexp.QuoteMeta(literal))
		}
	}
	re.WriteString(`\z`)
	return regexp.Compile(re.String())
}

// checkText checks a value in a policy. It refuses an empty value and one with an invisible character, which is a mistake or
// an attempt to look like another value.
func checkText(text string, limit int) error {
	if text == "" || len(text) > limit {
		return fmt.Errorf("want a text of 1 to %d bytes", limit)
	}
	if !printable(text) {
		return errors.New("holds a character that cannot be seen; type the value anew")
	}
	return nil
}

func isLetterOrDigit(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }

// printable reports whether an operator can see all of a value in a log or a pattern.
func printable(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool {
		return r == unicode.ReplacementChar || !unicode.IsPrint(r) || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
	})
}

// CheckName checks the name of a claim: a top-level member, or a JSON pointer if it starts with a slash.
func CheckName(name string) error {
	if name == "" || len(name) > maxPattern {
		return fmt.Errorf("a claim's name has 1 to %d bytes", maxPattern)
	}
	if !strings.HasPrefix(name, "/") {
		return nil
	}
	for i := range len(name) {
		if name[i] == '~' && (i+1 == len(name) || name[i+1] != '0' && name[i+1] != '1') {
			return errors.New("is no JSON pointer: ~ must be written ~0 and / within a name ~1")
		}
	}
	return nil
}

// Lookup finds a claim by name or JSON pointer (RFC 6901).
func Lookup(claims map[string]any, name string) (any, bool) {
	if !strings.HasPrefix(name, "/") {
		value, found := claims[name]
		return value, found && value != nil
	}
	var value any = claims
	for _, segment := range strings.Split(name[1:], "/") {
		segment = unescape.Replace(segment)
		switch v := value.(type) {
		case map[string]any:
			member, found := v[segment]
			if !found {
				return nil, false
			}
			value = member
		case []any:
			i, err := strconv.ParseUint(segment, 10, 31)
			if err != nil || int(i) >= len(v) || strconv.FormatUint(i, 10) != segment {
				return nil, false
			}
			value = v[i]
		default:
			return nil, false
		}
	}
	return value, value != nil
}

// unescape decodes a segment of a JSON pointer. A Replacer works in one pass, so "~01" becomes "~1", not "/".
var unescape = strings.NewReplacer("~1", "/", "~0", "~")

// Root is the top-level claim that a name or pointer leads into.
func Root(name string) string {
	if !strings.HasPrefix(name, "/") {
		return name
	}
	first, _, _ := strings.Cut(name[1:], "/")
	return unescape.Replace(first)
}
