// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

const (
	maxParamBytes    = 1 << 10 // of one text
	maxParamElements = 100     // of one list
)

// kind is the type of a parameter.
type kind string

const (
	kindString kind = "string"
	kindList   kind = "list" // of strings
	kindInt    kind = "int"
	kindBool   kind = "bool"
)

// parameter is one thing that a role may ask a target for.
type parameter struct {
	name     string
	kind     kind
	required bool
	pattern  *regexp.Regexp // of a string and of each element of a list; nil = any
	def      any            // nil = none
}

// parameters are sorted by name.
type parameters []parameter

func (ps parameters) names() []string {
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = p.name
	}
	return out
}

// parseParameters reads a profile's params.
func parseParameters(s section) parameters {
	var out parameters
	for _, name := range slices.Sorted(slices.Values(s.names)) {
		if !fieldName.MatchString(name) {
			s.fault(name, "want a name of a-z, 0-9 and _ that begins with a letter")
		}
		out = append(out, parseParameter(s, name))
	}
	return out
}

func parseParameter(s section, name string) parameter {
	d := s.section(name)
	d.only("type", "required", "pattern", "default")
	p := parameter{name: name, kind: kindString, required: d.bool("required")}
	if d.has("type") {
		p.kind = kind(d.text("type"))
	}
	kinds := []kind{kindString, kindList, kindInt, kindBool}
	if !slices.Contains(kinds, p.kind) {
		d.fault("type", "want one of %v", kinds)
	}
	if d.has("pattern") {
		if p.kind == kindInt || p.kind == kindBool {
			d.fault("pattern", "is for strings and lists only")
		}
		p.pattern = d.pattern("pattern")
	}
	if d.has("default") {
		if p.required {
			d.fault("default", "is never used: the parameter is required")
		}
		if value, text := p.convert(d.written("default")); text != "" {
			d.fault("default", "%s", text)
		} else {
			p.def = value
		}
	}
	return p
}

// pattern reads a regular expression, and anchors it to match a whole text. It must also compile by itself: "a)|(b" would close
// the group that the anchors stand around, and escape them.
func (s section) pattern(name string) *regexp.Regexp {
	text := s.text(name)
	_, err := regexp.Compile(text)
	anchored, anchoredErr := regexp.Compile(`\A(?:` + text + `)\z`)
	if err != nil || anchoredErr != nil {
		s.fault(name, "is not a regular expression (RE2)")
	}
	return anchored
}

// written returns a member in the form that Params takes: a text, or a list of texts.
func (s section) written(name string) any {
	if s.nodes[name].Kind != yaml.SequenceNode {
		return s.scalar(name)
	}
	out := []any{}
	for _, element := range s.list(name, "texts") {
		out = append(out, element.Value)
	}
	return out
}

// Params checks the parameters of a request. It refuses unknown parameters and missing required ones, checks types, patterns
// and dependencies between parameters, fills in defaults, and then evaluates the target's condition. Values may have the types
// that JSON, a query string or an expression yields; a list may also be one comma-separated text. Every error is a *FieldError
// for "parameters", "parameters.<name>" or "condition", and contains no value. The result belongs to the caller, and may be
// stored as JSON.
func (t *Target) Params(given map[string]any) (map[string]any, error) {
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !slices.ContainsFunc(t.kind.params, func(p parameter) bool { return p.name == name }) {
			return nil, t.kind.params.unknown(name)
		}
	}
	out := map[string]any{}
	for _, p := range t.kind.params {
		value, text := p.value(given)
		if text != "" {
			return nil, fieldErrorf("parameters."+p.name, "%s", text)
		}
		if value != nil {
			out[p.name] = value
		}
	}
	if t.kind.together != nil {
		if err := t.kind.together(out); err != nil {
			return nil, err
		}
	}
	if t.condition == nil {
		return out, nil
	}
	holds, err := t.condition.Eval(expr.NewBudget(), map[string]any{"params": out})
	if err != nil {
		return nil, fieldErrorf("condition", "cannot be judged for these parameters: %v", err)
	}
	if holds != true {
		return nil, fieldErrorf("condition", "these parameters do not meet the target's condition")
	}
	return out, nil
}

// ParamNames returns the names of the target's parameters, sorted.
func (t *Target) ParamNames() []string { return t.kind.params.names() }

func (ps parameters) unknown(name string) *FieldError {
	field := "parameters." + name
	if !fieldName.MatchString(name) { // do not repeat a caller's arbitrary text
		field = "parameters"
	}
	if len(ps) == 0 {
		return fieldErrorf(field, "this target has no parameters")
	}
	return fieldErrorf(field, "not a parameter of this target; it has %s", strings.Join(ps.names(), ", "))
}

// value returns the parameter's value in given, or else its default; nil = neither. text says what is wrong; "" = nothing.
func (p parameter) value(given map[string]any) (value any, text string) {
	if raw, ok := given[p.name]; ok && raw != nil {
		if value, text = p.convert(raw); text != "" {
			return nil, text
		}
	} else {
		value = copyOf(p.def)
	}
	if empty, isList := value.([]any); p.required && (value == nil || value == "" || isList && len(empty) == 0) {
		return nil, "is required"
	}
	return value, ""
}

// copyOf copies a default, so that callers cannot change it.
func copyOf(value any) any {
	if list, ok := value.([]any); ok {
		return slices.Clone(list)
	}
	return value
}

// maxInt bounds ints, exclusively: Vault passes numbers as float64, which from here on cannot represent every integer.
const maxInt = 1 << 53

// convert converts raw to the parameter's type: string, []any of strings, int64 or bool. text says what is wrong; "" = nothing.
func (p parameter) convert(raw any) (value any, text string) {
	switch p.kind {
	case kindList:
		return p.list(raw)
	case kindInt:
		if n, err := strconv.ParseInt(plainText(raw), 10, 64); err == nil && n > -maxInt && n < maxInt {
			return n, ""
		}
		return nil, "want a whole number"
	case kindBool:
		switch plainText(raw) {
		case "true":
			return true, ""
		case "false":
			return false, ""
		}
		return nil, "want true or false"
	}
	s, ok := raw.(string)
	if !ok {
		return nil, "want a text"
	}
	return s, p.judge(s)
}

// plainText formats a text, a number or a bool, and returns "" for anything else.
func plainText(raw any) string {
	switch raw := raw.(type) {
	case string:
		return raw
	case json.Number:
		return string(raw)
	case float64: // Sprint would write a million as 1e+06
		return strconv.FormatFloat(raw, 'f', -1, 64)
	case int, int64, uint64, bool:
		return fmt.Sprint(raw)
	}
	return ""
}

func (p parameter) list(raw any) (value any, text string) {
	var elements []any
	switch raw := raw.(type) {
	case []any:
		elements = raw
	case []string:
		for _, s := range raw {
			elements = append(elements, s)
		}
	case string:
		for s := range strings.SplitSeq(raw, ",") {
			elements = append(elements, strings.TrimSpace(s))
		}
		if strings.TrimSpace(raw) == "" {
			elements = nil
		}
	default:
		return nil, "want a list of texts"
	}
	if len(elements) > maxParamElements {
		return nil, fmt.Sprintf("has more than %d elements", maxParamElements)
	}
	out := make([]any, len(elements))
	for i, element := range elements {
		s, ok := element.(string)
		if !ok || s == "" {
			return nil, "want a list of texts, none empty"
		}
		if text := p.judge(s); text != "" {
			return nil, text
		}
		out[i] = s
	}
	return out, ""
}

// judge says what is wrong with a text; "" = nothing.
func (p parameter) judge(s string) string {
	switch {
	case len(s) > maxParamBytes:
		return fmt.Sprintf("has a text of more than %d bytes", maxParamBytes)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, isControl):
		return "has control characters"
	case p.pattern != nil && !p.pattern.MatchString(s):
		return "does not match the target's pattern for it"
	}
	return ""
}

// isControl reports whether a character changes how a text is displayed instead of being displayed: control and format
// characters, line and paragraph separators.
func isControl(c rune) bool {
	return unicode.In(c, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}
