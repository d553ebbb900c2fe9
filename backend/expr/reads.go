// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package expr

import (
	"slices"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
)

// reads is what an expression looks at, found without evaluating it.
type reads struct {
	members map[string][]string // variable -> members of it that the source names
	whole   map[string]bool     // variables that are used other than by a named member
	names   []string            // every member name in the source
}

// Uses reports whether the expression mentions the variable at all.
func (p *Program) Uses(variable string) bool {
	return p.reads.whole[variable] || len(p.reads.members[variable]) > 0
}

// Members returns the names of the members of variable that the expression reads, sorted; whole means that it may
// read any of them (it passes the variable on, or computes a member's name).
func (p *Program) Members(variable string) (names []string, whole bool) {
	return p.reads.members[variable], p.reads.whole[variable]
}

func readsOf(e ast.Expr) reads {
	r := reads{members: map[string][]string{}, whole: map[string]bool{}}
	r.walk(e)
	for name, members := range r.members {
		slices.Sort(members)
		r.members[name] = slices.Compact(members)
	}
	return r
}

func (r *reads) member(variable, name string) {
	r.members[variable] = append(r.members[variable], name)
	r.names = append(r.names, name)
}

func (r *reads) walk(e ast.Expr) {
	switch e.Kind() {
	case ast.IdentKind:
		r.whole[e.AsIdent()] = true
	case ast.SelectKind: // variable.member and has(variable.member)
		s := e.AsSelect()
		r.names = append(r.names, s.FieldName())
		if s.Operand().Kind() == ast.IdentKind {
			r.member(s.Operand().AsIdent(), s.FieldName())
			return
		}
		r.walk(s.Operand())
	case ast.CallKind:
		r.call(e.AsCall())
	case ast.ListKind:
		for _, element := range e.AsList().Elements() {
			r.walk(element)
		}
	case ast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			r.walk(entry.AsMapEntry().Key())
			r.walk(entry.AsMapEntry().Value())
		}
	case ast.StructKind:
		for _, field := range e.AsStruct().Fields() {
			r.walk(field.AsStructField().Value())
		}
	case ast.ComprehensionKind:
		c := e.AsComprehension()
		for _, part := range []ast.Expr{c.IterRange(), c.AccuInit(), c.LoopCondition(), c.LoopStep(), c.Result()} {
			r.walk(part)
		}
	}
}

// call follows variable["member"] and "member" in variable; any other call reads its arguments as they are.
func (r *reads) call(c ast.CallExpr) {
	args := c.Args()
	switch {
	case c.FunctionName() == operators.Index && r.named(args[0], args[1]),
		c.FunctionName() == operators.In && r.named(args[1], args[0]):
		return
	}
	if c.IsMemberFunction() {
		r.walk(c.Target())
	}
	for _, arg := range args {
		r.walk(arg)
	}
}

// named records a read of variable's member if variable is an identifier and name a literal.
func (r *reads) named(variable, name ast.Expr) bool {
	if name.Kind() != ast.LiteralKind {
		return false
	}
	text, ok := name.AsLiteral().(types.String)
	if !ok {
		return false
	}
	if variable.Kind() != ast.IdentKind {
		r.names = append(r.names, string(text))
		return false
	}
	r.member(variable.AsIdent(), string(text))
	return true
}
