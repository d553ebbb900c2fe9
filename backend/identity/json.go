// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// limits bound a JSON document: the depth of nested objects and arrays, and the members of all its objects together.
type limits struct{ depth, members int }

const (
	// maxNumberBytes and maxExponentDigits bound number literals, so that nobody who later computes with one exactly can be
	// made to build a number of a billion digits.
	maxNumberBytes    = 64
	maxExponentDigits = 3
)

// parseObject parses a document whose top level is an object, and accepts only what every JSON parser reads the same way.
// It refuses what RFC 8259 leaves open: member names that repeat, or that differ in case alone (in any object), invalid
// UTF-8, and escapes that are half of a surrogate pair. Numbers are json.Number, so that nothing rounds them.
//
// It exists because encoding/json, which go-oidc uses, lets the last of several members win and matches names by case
// folding: two readers of one token could then see two different subjects.
func parseObject(s string, l limits) (map[string]any, error) {
	if !utf8.ValidString(s) {
		return nil, errors.New("not valid UTF-8")
	}
	p := &parser{s: s, members: l.members}
	p.space()
	if !p.at('{') {
		return nil, p.fault("not a JSON object")
	}
	m, err := p.object(l.depth)
	if err != nil {
		return nil, err
	}
	if p.space(); p.i != len(s) {
		return nil, p.fault("text after the object")
	}
	return m, nil
}

// parser walks s, which is valid UTF-8; i is the next byte. Strings without escapes are parts of s.
type parser struct {
	s       string
	i       int
	members int // how many more may come
}

// fault names a position, never a piece of the text.
func (p *parser) fault(what string) error { return fmt.Errorf("%s at byte %d", what, p.i) }

func (p *parser) at(c byte) bool { return p.i < len(p.s) && p.s[p.i] == c }

// take steps over c if it is next.
func (p *parser) take(c byte) bool {
	if !p.at(c) {
		return false
	}
	p.i++
	return true
}

func (p *parser) space() {
	for p.i < len(p.s) {
		switch p.s[p.i] {
		case ' ', '\t', '\n', '\r':
			p.i++
		default:
			return
		}
	}
}

// value parses the value that is next; depth is how many levels may still open.
func (p *parser) value(depth int) (any, error) {
	if p.i == len(p.s) {
		return nil, p.fault("cut short")
	}
	switch c := p.s[p.i]; c {
	case '{':
		return p.object(depth)
	case '[':
		return p.array(depth)
	case '"':
		return p.str()
	case 't':
		return true, p.word("true")
	case 'f':
		return false, p.word("false")
	case 'n':
		return nil, p.word("null")
	}
	return p.number()
}

func (p *parser) word(w string) error {
	if !strings.HasPrefix(p.s[p.i:], w) {
		return p.fault("not a JSON value")
	}
	p.i += len(w)
	return nil
}

func (p *parser) object(depth int) (map[string]any, error) {
	if depth == 0 {
		return nil, p.fault("nested too deeply")
	}
	p.i++
	m := make(map[string]any)
	if p.space(); p.take('}') {
		return m, nil
	}
	plain := true
	for {
		name, err := p.name(m)
		if err != nil {
			return nil, err
		}
		v, err := p.value(depth - 1)
		if err != nil {
			return nil, err
		}
		m[name] = v
		plain = plain && isPlain(name)
		if p.space(); p.take(',') {
			p.space()
			continue
		}
		if !p.take('}') {
			return nil, p.fault("comma or brace missing")
		}
		if !plain && hasTwins(m) {
			return nil, p.fault("member names that differ in case alone")
		}
		return m, nil
	}
}

// name parses a member's name and the colon, and refuses a name that m already has.
func (p *parser) name(m map[string]any) (string, error) {
	if !p.at('"') {
		return "", p.fault("member name missing")
	}
	name, err := p.str()
	if err != nil {
		return "", err
	}
	if p.members--; p.members < 0 {
		return "", p.fault("too many members")
	}
	if _, repeated := m[name]; repeated {
		return "", p.fault("a member name that repeats")
	}
	if p.space(); !p.take(':') {
		return "", p.fault("colon missing")
	}
	p.space()
	return name, nil
}

func (p *parser) array(depth int) ([]any, error) {
	if depth == 0 {
		return nil, p.fault("nested too deeply")
	}
	p.i++
	list := []any{}
	if p.space(); p.take(']') {
		return list, nil
	}
	for {
		p.space()
		v, err := p.value(depth - 1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
		if p.space(); p.take(',') {
			continue
		}
		if !p.take(']') {
			return nil, p.fault("comma or bracket missing")
		}
		return list, nil
	}
}

// str parses the string that is next.
func (p *parser) str() (string, error) {
	p.i++
	for start := p.i; p.i < len(p.s); p.i++ {
		switch c := p.s[p.i]; {
		case c == '"':
			p.i++
			return p.s[start : p.i-1], nil
		case c == '\\':
			return p.escaped(start)
		case c < ' ':
			return "", p.fault("control character in a string")
		}
	}
	return "", p.fault("string not closed")
}

// escaped parses the rest of a string in which an escape was met; it began at start.
func (p *parser) escaped(start int) (string, error) {
	var out strings.Builder
	out.WriteString(p.s[start:p.i])
	for p.i < len(p.s) {
		c := p.s[p.i]
		p.i++
		switch {
		case c == '"':
			return out.String(), nil
		case c < ' ':
			return "", p.fault("control character in a string")
		case c != '\\':
			out.WriteByte(c)
		default:
			r, err := p.escape()
			if err != nil {
				return "", err
			}
			out.WriteRune(r)
		}
	}
	return "", p.fault("string not closed")
}

// escape parses what follows a backslash.
func (p *parser) escape() (rune, error) {
	if p.i == len(p.s) {
		return 0, p.fault("string not closed")
	}
	c := p.s[p.i]
	p.i++
	switch c {
	case '"', '\\', '/':
		return rune(c), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
		return p.unicode()
	}
	return 0, p.fault("unknown escape")
}

// unicode parses the digits of a \u escape, and the second escape of a surrogate pair.
func (p *parser) unicode() (rune, error) {
	r, err := p.hex4()
	if err != nil || !utf16.IsSurrogate(r) {
		return r, err
	}
	if !p.take('\\') || !p.take('u') {
		return 0, p.fault("half of a surrogate pair")
	}
	low, err := p.hex4()
	if err != nil {
		return 0, err
	}
	if r = utf16.DecodeRune(r, low); r == unicode.ReplacementChar {
		return 0, p.fault("half of a surrogate pair")
	}
	return r, nil
}

func (p *parser) hex4() (rune, error) {
	if len(p.s)-p.i < 4 {
		return 0, p.fault("escape cut short")
	}
	n, err := strconv.ParseUint(p.s[p.i:p.i+4], 16, 16)
	if err != nil {
		return 0, p.fault("escape without four hex digits")
	}
	p.i += 4
	return rune(n), nil
}

// number parses a number by the grammar of RFC 8259 section 6.
func (p *parser) number() (json.Number, error) {
	start := p.i
	p.take('-')
	if !p.take('0') && p.digits() == 0 {
		return "", p.fault("not a JSON value")
	}
	if p.take('.') && p.digits() == 0 {
		return "", p.fault("digits missing")
	}
	if p.take('e') || p.take('E') {
		if !p.take('+') {
			p.take('-')
		}
		if n := p.digits(); n == 0 || n > maxExponentDigits {
			return "", p.fault("exponent missing or too long")
		}
	}
	if p.i-start > maxNumberBytes {
		return "", p.fault("number too long")
	}
	return json.Number(p.s[start:p.i]), nil
}

func (p *parser) digits() int {
	start := p.i
	for p.i < len(p.s) && '0' <= p.s[p.i] && p.s[p.i] <= '9' {
		p.i++
	}
	return p.i - start
}

// isPlain says that a name can only fold to itself among names of its kind: lower-case ASCII, digits, signs. Almost all
// names are, and then comparing them exactly is enough.
func isPlain(name string) bool {
	for _, c := range []byte(name) {
		if c >= utf8.RuneSelf || 'A' <= c && c <= 'Z' {
			return false
		}
	}
	return true
}

// hasTwins says whether two names of m are equal under Unicode case folding, as strings.EqualFold and encoding/json see it.
func hasTwins(m map[string]any) bool {
	seen := make(map[string]bool, len(m))
	for name := range m {
		folded := strings.Map(foldRune, name)
		if seen[folded] {
			return true
		}
		seen[folded] = true
	}
	return false
}

// foldRune is the smallest rune that folds to the same as r.
func foldRune(r rune) rune {
	for {
		next := unicode.SimpleFold(r)
		if next <= r {
			return next
		}
		r = next
	}
}

// imitates says whether m has a name that folds to one of the registered names without being it, so that a reader that
// folds would take it for the registered one.
func imitates(m map[string]any, registered []string) bool {
	for name := range m {
		for _, r := range registered {
			if name != r && strings.EqualFold(name, r) {
				return true
			}
		}
	}
	return false
}
