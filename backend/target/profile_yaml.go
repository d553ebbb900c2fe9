// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

const (
	maxProfileBytes = 64 << 10
	maxProfileDepth = 6 // of nested mappings and lists; the grammar needs four
	maxTextBytes    = 1 << 10
)

// document is a profile's YAML while it is parsed. It records the first fault, so that the functions that read it need not
// return errors.
type document struct {
	fault    error
	declared map[string][]string // variable -> the members that its expressions may read
}

// failf records a fault at a line and a member, unless there is an earlier one.
func (d *document) failf(line int, member, format string, args ...any) {
	if d.fault == nil {
		d.fault = fmt.Errorf("line %d: %s: %s", max(line, 1), member, fmt.Sprintf(format, args...))
	}
}

// section is one mapping of a profile. An absent mapping is a section without members.
type section struct {
	doc   *document
	path  string // as errors name it: "exchange.key"; "" = the profile itself
	line  int
	nodes map[string]*yaml.Node
	lines map[string]int
	names []string // as written
}

// readDocument reads text as one strict YAML mapping: no second document, no anchors or aliases, no explicit tags.
func readDocument(text string) (section, *document) {
	doc := &document{}
	switch {
	case len(text) > maxProfileBytes:
		doc.failf(1, "profile", "has %d bytes; at most %d are allowed", len(text), maxProfileBytes)
		return section{doc: doc}, doc
	case !utf8.ValidString(text):
		doc.failf(1, "profile", "is not UTF-8")
		return section{doc: doc}, doc
	}
	decoder := yaml.NewDecoder(strings.NewReader(text))
	var root, more yaml.Node
	if err := decoder.Decode(&root); errors.Is(err, io.EOF) {
		doc.failf(1, "profile", "is empty")
	} else if err != nil {
		line, text := yamlFault(err)
		doc.failf(line, "profile", "is not YAML: %s", text)
	} else if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		doc.failf(more.Line, "profile", "goes on after its end; want one document")
	}
	if doc.fault != nil {
		return section{doc: doc}, doc
	}
	doc.plain(&root, 0)
	if doc.fault != nil {
		return section{doc: doc}, doc
	}
	return doc.section(root.Content[0], "", root.Content[0].Line), doc
}

// yamlFault splits an error of the YAML library, which is only a text ("yaml: line 3: …"). line is 0 if the text has none.
func yamlFault(err error) (line int, text string) {
	text = strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, found := strings.CutPrefix(text, "line "); found {
		number, after, _ := strings.Cut(rest, ": ")
		if line, err := strconv.Atoi(number); err == nil {
			return line, after
		}
	}
	return 0, text
}

// plain refuses anchors, aliases and tags, which make a document mean more than it shows, and deep nesting.
func (d *document) plain(n *yaml.Node, depth int) {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.failf(n.Line, "profile", "has an anchor or an alias; write the value out")
	case n.Style&yaml.TaggedStyle != 0:
		d.failf(n.Line, "profile", "has a tag; leave it out")
	case depth > maxProfileDepth:
		d.failf(n.Line, "profile", "nests deeper than %d levels", maxProfileDepth)
	}
	if d.fault != nil {
		return
	}
	for _, child := range n.Content {
		d.plain(child, depth+1)
	}
}

// section reads a mapping that begins at line; n may be nil.
func (d *document) section(n *yaml.Node, path string, line int) section {
	s := section{doc: d, path: path, line: line, nodes: map[string]*yaml.Node{}, lines: map[string]int{}}
	if n == nil || n.Tag == "!!null" { // absent, or "project:" with nothing after it
		return s
	}
	if n.Kind != yaml.MappingNode {
		hint := ""
		if path == "" { // not a profile: perhaps the name of its file
			hint = "; a file is given as profile=@FILE"
		}
		s.fault("", "want a mapping, name: value%s", hint)
		return s
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.Value == "" || len(key.Value) > 256 || !printable(key.Value) {
			d.failf(key.Line, s.member(""), "has a member whose name is not plain text")
			return s
		}
		if _, twice := s.nodes[key.Value]; twice {
			d.failf(key.Line, s.member(key.Value), "stands here twice")
			return s
		}
		s.nodes[key.Value], s.lines[key.Value], s.names = value, key.Line, append(s.names, key.Value)
	}
	return s
}

// member returns the name that errors use for a member of the section; name "" is the section itself.
func (s section) member(name string) string {
	switch {
	case s.path == "" && name == "":
		return "profile"
	case s.path == "":
		return name
	case name == "":
		return s.path
	}
	return s.path + "." + name
}

// fault records a fault of a member, at the member's line, or at the section's if the member is absent.
func (s section) fault(name, format string, args ...any) {
	line, ok := s.lines[name]
	if !ok {
		line = s.line
	}
	s.doc.failf(line, s.member(name), format, args...)
}

// only refuses members that are not among known.
func (s section) only(known ...string) {
	for _, name := range s.names {
		if !slices.Contains(known, name) {
			s.fault(name, "is not known here; known are %s", strings.Join(known, ", "))
		}
	}
}

func (s section) has(name string) bool { return s.nodes[name] != nil }

// section returns a member that is a mapping, and an empty section if it is absent.
func (s section) section(name string) section {
	return s.doc.section(s.nodes[name], s.member(name), s.lines[name])
}

// scalar returns a member's text as written, and "" if it is absent.
func (s section) scalar(name string) string {
	n := s.nodes[name]
	if n == nil {
		return ""
	}
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		s.fault(name, "want a value")
		return ""
	}
	return n.Value
}

// text returns a plain text member, and "" if it is absent.
func (s section) text(name string) string {
	value := s.scalar(name)
	if s.has(name) && (value == "" || len(value) > maxTextBytes || !printable(value)) {
		s.fault(name, "want 1 to %d characters of printable ASCII", maxTextBytes)
	}
	return value
}

func (s section) bool(name string) bool {
	value := s.scalar(name)
	if n := s.nodes[name]; n != nil && n.Tag != "!!bool" {
		s.fault(name, "want true or false")
	}
	return strings.EqualFold(value, "true")
}

// duration returns a member that is a number of seconds or a duration such as 1h, and 0 if it is absent.
func (s section) duration(name string) time.Duration {
	value := s.scalar(name)
	if !s.has(name) {
		return 0
	}
	if seconds, err := strconv.ParseInt(value, 10, 32); err == nil {
		value = fmt.Sprintf("%ds", seconds)
	}
	d, err := time.ParseDuration(value)
	if err != nil || d <= 0 {
		s.fault(name, "want a time such as 90s or 1h, more than 0")
	}
	return d
}

// list returns the elements of a member that is a list; want says what they are.
func (s section) list(name, want string) []*yaml.Node {
	n := s.nodes[name]
	if n == nil {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		s.fault(name, "want a list of %s", want)
		return nil
	}
	for _, element := range n.Content {
		if element.Kind != yaml.ScalarNode || element.Tag == "!!null" {
			s.doc.failf(element.Line, s.member(name), "want a list of %s", want)
			return nil
		}
	}
	return n.Content
}

// cel compiles a member that is an expression over variables. It returns nil if the member is absent.
func (s section) cel(name string, want expr.Type, variables ...string) *expr.Program {
	source := s.scalar(name)
	if !s.has(name) || s.doc.fault != nil {
		return nil
	}
	program, err := expr.Compile(source, want, variables...)
	if err != nil {
		s.fault(name, "%s", scopeHint(err.Error(), variables))
		return nil
	}
	if text := undeclared(program, s.doc.declared); text != "" {
		s.fault(name, "%s", text)
	}
	return program
}

// undeclared describes a read of a member that is not declared; "" = there is none. Variables with secret or personal members
// can be read only by member, so that the profile shows what is sent.
func undeclared(program *expr.Program, declared map[string][]string) string {
	for _, variable := range slices.Sorted(maps.Keys(declared)) {
		used, whole := program.Members(variable)
		if whole && variable != "params" {
			return fmt.Sprintf("uses %s as a whole; want %s.<name>", variable, variable)
		}
		for _, name := range used {
			if !slices.Contains(declared[variable], name) {
				return fmt.Sprintf("uses %s.%s, which is not declared", variable, name)
			}
		}
	}
	return ""
}

// scopeHint explains an error about a variable that exists, but not in this place. Scopes limit where values may be used: a
// subject token or a credential in a URL, for example, would end up in logs.
func scopeHint(text string, variables []string) string {
	_, rest, found := strings.Cut(text, "undeclared reference to '")
	name, _, _ := strings.Cut(rest, "'")
	if !found || !slices.Contains(allVariables, strings.TrimPrefix(name, ".")) {
		return text
	}
	if len(variables) == 0 {
		return fmt.Sprintf("%q cannot be used here, nor any other variable", name)
	}
	return fmt.Sprintf("%q cannot be used here; what can is %s", name, strings.Join(variables, ", "))
}
