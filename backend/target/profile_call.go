// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

// maxHeaderValue bounds a header's value in bytes; a subject token may have 16 KiB.
const maxHeaderValue = 32 << 10

// call builds the operation's request from the variables, and sends nothing. Every error is ErrParameter.
func (o *operation) call(op string, b *expr.Budget, vars map[string]any) (call, error) {
	c := call{
		op: op, method: o.method, query: url.Values{}, header: http.Header{},
		ok: o.ok, gone: o.gone, busy: o.busy, denied: o.denied,
	}
	if o.onlyIf != nil {
		c.onlyIf = func(a answer) bool { return wholeAnswer(op, b, a).says(o.onlyIf) }
	}
	if len(o.hints) > 0 {
		c.hint = func(a answer) string { return o.hint(op, b, a) }
	}
	if err := o.address(&c, b, vars); err != nil {
		return call{}, unbuildable(op, "%v", err)
	}
	for _, h := range o.headers {
		value, err := h.value.Eval(b, vars)
		if err != nil {
			return call{}, unbuildable(op, "headers.%s: %v", h.name, err)
		}
		text, ok := value.(string)
		if !ok || len(text) > maxHeaderValue || !printable(text) { // a line break would start another header
			return call{}, unbuildable(op, "headers.%s: yields no printable ASCII of at most %d bytes", h.name, maxHeaderValue)
		}
		c.header.Set(h.name, text)
	}
	if o.body != nil {
		if err := o.encode(&c, b, vars); err != nil {
			return call{}, unbuildable(op, "%v", err)
		}
	}
	return c, nil
}

// hint returns the first hint whose condition holds; "" = none does.
func (o *operation) hint(op string, b *expr.Budget, a answer) string {
	refusal := wholeAnswer(op, b, a)
	for _, h := range o.hints {
		if refusal.says(h.value) {
			return h.name
		}
	}
	return ""
}

// wholeAnswer prepares an answer for conditions, which may also read its text, as response.text.
func wholeAnswer(op string, b *expr.Budget, a answer) *reading {
	whole := answerOf(op, b, a, map[string]any{})
	whole.vars["response"].(map[string]any)["text"] = a.reason + "\n" + strings.ToValidUTF8(string(a.body), "?")
	return whole
}

// says reports whether a condition holds for an answer. A condition that cannot be evaluated does not hold: most read members
// that only some answers have.
func (a *reading) says(condition *expr.Program) bool {
	holds, err := condition.Eval(a.budget, a.vars)
	return err == nil && holds == true
}

// address fills in path and query.
func (o *operation) address(c *call, b *expr.Budget, vars map[string]any) error {
	path, err := o.path.Eval(b, vars)
	if err != nil {
		return fmt.Errorf("path: %v", err)
	}
	list, ok := path.([]any)
	if !ok {
		return errors.New("path: yields no list")
	}
	for i, element := range list {
		segment, ok := scalar(element)
		if !ok || !validSegment(segment) {
			return fmt.Errorf("path: segment %d is empty, a dot segment, or not text", i+1)
		}
		c.segments = append(c.segments, segment)
	}
	for _, q := range o.query {
		value, err := q.value.Eval(b, vars)
		if err == nil {
			err = addValues(c.query, q.name, value)
		}
		if err != nil {
			return fmt.Errorf("query.%s: %v", q.name, err)
		}
	}
	return nil
}

// validSegment reports whether s can be a path segment without changing the meaning of the segments around it. Some servers
// unescape a path before they split it, so a slash or backslash in s must not create a dot segment either.
func validSegment(s string) bool {
	if s == "" || !utf8.ValidString(s) || strings.ContainsFunc(s, isControl) {
		return false
	}
	for part := range strings.SplitSeq(strings.ReplaceAll(s, `\`, "/"), "/") {
		if part == "." || part == ".." {
			return false
		}
	}
	return true
}

// encode fills in the body and its type.
func (o *operation) encode(c *call, b *expr.Budget, vars map[string]any) error {
	value, err := o.body.Eval(b, vars)
	if !o.form {
		if err != nil {
			return fmt.Errorf("json: %v", err)
		}
		c.body, err = encodeJSON(value)
		setDefault(c.header, "Content-Type", "application/json")
		return err
	}
	if err != nil {
		return fmt.Errorf("form: %v", err)
	}
	members, ok := value.(map[string]any)
	if !ok {
		return errors.New("form: yields no map")
	}
	form := url.Values{}
	for name, member := range members {
		if err := addValues(form, name, member); err != nil {
			return fmt.Errorf("form: %v", err)
		}
	}
	c.body = []byte(form.Encode())
	setDefault(c.header, "Content-Type", "application/x-www-form-urlencoded")
	return nil
}

func setDefault(h http.Header, name, value string) {
	if h.Get(name) == "" {
		h.Set(name, value)
	}
}

// encodeJSON encodes an expression's result: instants as RFC 3339, durations as whole seconds, bytes as base64.
func encodeJSON(value any) ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if err := e.Encode(plainJSON(value)); err != nil {
		return nil, errors.New("json: yields what JSON cannot hold")
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

func plainJSON(value any) any {
	switch value := value.(type) {
	case time.Time:
		return value.UTC().Format(time.RFC3339)
	case time.Duration:
		return int64(value / time.Second)
	case []any:
		out := make([]any, len(value))
		for i := range value {
			out[i] = plainJSON(value[i])
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(value))
		for name := range value {
			out[name] = plainJSON(value[name])
		}
		return out
	}
	return value
}

// addValues adds a value to a query or form. A list adds one entry for each element; null adds none.
func addValues(to url.Values, name string, value any) error {
	list, isList := value.([]any)
	if !isList {
		list = []any{value}
	}
	for _, element := range list {
		if element == nil && !isList {
			return nil
		}
		text, ok := scalar(element)
		if !ok {
			return errors.New("yields neither text, number, bool, timestamp nor a list of them")
		}
		to.Add(name, text)
	}
	return nil
}

// scalar formats a single value: instants as RFC 3339, durations as whole seconds. It returns false for lists, maps and null.
func scalar(value any) (string, bool) {
	switch value := value.(type) {
	case string:
		return value, true
	case bool:
		return strconv.FormatBool(value), true
	case int64:
		return strconv.FormatInt(value, 10), true
	case uint64:
		return strconv.FormatUint(value, 10), true
	case time.Time:
		return value.UTC().Format(time.RFC3339), true
	case time.Duration:
		return strconv.FormatInt(int64(value/time.Second), 10), true
	}
	return "", false
}
