// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package expr

import (
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// functions are string functions that standard CEL lacks. cel-go has extensions with the same names, which are not used because
// they check the cost of a result only after they have made it, and a few bytes of source can make gigabytes.
func functions() []cel.EnvOption {
	str, list, number := cel.StringType, cel.ListType(cel.StringType), cel.IntType
	return []cel.EnvOption{
		cel.Function("lower",
			cel.Overload("lower_string", []*cel.Type{str}, str, cel.UnaryBinding(lower)),
			cel.MemberOverload("string_lower", []*cel.Type{str}, str, cel.UnaryBinding(lower))),
		cel.Function(elements, cel.Overload("elements_any", []*cel.Type{cel.DynType}, cel.DynType, cel.UnaryBinding(listOnly))),
		cel.Function("trim", cel.MemberOverload("string_trim", []*cel.Type{str}, str, cel.UnaryBinding(trim))),
		cel.Function("split", cel.MemberOverload("string_split", []*cel.Type{str, str}, list, cel.BinaryBinding(split))),
		cel.Function("join", cel.MemberOverload("list_join", []*cel.Type{list, str}, str, cel.BinaryBinding(join))),
		cel.Function("replace", cel.MemberOverload("string_replace", []*cel.Type{str, str, str}, str, cel.FunctionBinding(replace))),
		cel.Function("substring",
			cel.MemberOverload("string_substring_from", []*cel.Type{str, number}, str, cel.FunctionBinding(substring)),
			cel.MemberOverload("string_substring", []*cel.Type{str, number, number}, str, cel.FunctionBinding(substring))),
		cel.Function(overloads.Matches, // CEL's own compiles whatever pattern an expression makes
			cel.Overload(overloads.Matches, []*cel.Type{str, str}, cel.BoolType),
			cel.MemberOverload(overloads.MatchesString, []*cel.Type{str, str}, cel.BoolType), cel.SingletonBinaryBinding(matches)),
	}
}

// macros are CEL's own with two changes. The range that they iterate over is dyn: otherwise the checker infers the type of
// every element, which a chain of macros can double at each step until memory runs out. And filter and map accept only lists:
// otherwise, given an object where a list was expected, they would take the names of its members for elements.
func macros() []cel.Macro {
	all := slices.Clone(cel.StandardMacros)
	for i, standard := range all {
		if !standard.IsReceiverStyle() {
			continue
		}
		convert := overloads.TypeConvertDyn
		if name := standard.Function(); name == operators.Filter || name == operators.Map {
			convert = elements
		}
		all[i] = cel.ReceiverMacro(standard.Function(), standard.ArgCount(),
			func(factory cel.MacroExprFactory, target ast.Expr, args []ast.Expr) (ast.Expr, *cel.Error) {
				return standard.Expander()(factory, factory.NewCall(convert, target), args)
			})
	}
	return all
}

// elements is a function name that source text cannot call.
const elements = "@elements"

func listOnly(v ref.Val) ref.Val {
	if _, isList := v.(traits.Lister); !isList {
		return types.MaybeNoSuchOverloadErr(v)
	}
	return v
}

// lower changes only ASCII letters: some other letters have a lower case in ASCII, so that one name could become another.
func lower(v ref.Val) ref.Val {
	return types.String(strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, string(v.(types.String))))
}

func trim(v ref.Val) ref.Val { return types.String(strings.TrimSpace(string(v.(types.String)))) }

func split(v, separator ref.Val) ref.Val {
	return types.NewStringList(types.DefaultTypeAdapter, strings.Split(string(v.(types.String)), string(separator.(types.String))))
}

func join(v, separator ref.Val) ref.Val {
	size := 0
	var parts []string
	for it := v.(traits.Lister).Iterator(); it.HasNext() == types.True; {
		part, ok := it.Next().(types.String)
		if !ok {
			return types.NewErr("join: an element is no text")
		}
		if size += len(part) + len(separator.(types.String)); size > MaxOutput {
			return types.NewErr(tooLarge)
		}
		parts = append(parts, string(part))
	}
	return types.String(strings.Join(parts, string(separator.(types.String))))
}

func replace(args ...ref.Val) ref.Val {
	text, old, by := string(args[0].(types.String)), string(args[1].(types.String)), string(args[2].(types.String))
	if n := strings.Count(text, old); len(text)+n*len(by) > MaxOutput {
		return types.NewErr(tooLarge)
	}
	return types.String(strings.ReplaceAll(text, old, by))
}

// substring counts characters, as size() does.
func substring(args ...ref.Val) ref.Val {
	runes := []rune(string(args[0].(types.String)))
	from, to := int64(args[1].(types.Int)), int64(len(runes))
	if len(args) == 3 {
		to = int64(args[2].(types.Int))
	}
	if from < 0 || to > int64(len(runes)) || from > to {
		return types.NewErr("substring: out of range")
	}
	return types.String(runes[from:to])
}

// maxPattern bounds a regular expression, in instructions of its compiled program: a few bytes can compile to a million.
const maxPattern = 1000

func matches(text, pattern ref.Val) ref.Val {
	re, err := types.CompileRegexWithLimit(string(pattern.(types.String)), maxPattern)
	if err != nil {
		return types.NewErr("matches: no pattern, or too large a one")
	}
	return types.Bool(re.MatchString(string(text.(types.String))))
}

// effort is the maximum cost of matching: each instruction of the pattern at each character, plus compiling it.
func effort(text, pattern ref.Val) int {
	source, _ := pattern.(types.String)
	steps, err := types.RegexProgramSize(string(source))
	switch {
	case err != nil:
		return 10 * len(source)
	case steps > maxPattern:
		return maxWeight // too large, and it was compiled to find that out: charge enough to stop a repetition
	}
	return (sizeOf(text) + 1) * steps / 2
}

const tooLarge = "a text is too large"

// meter charges for what a call makes, compares or matches, in units of ten bytes: CEL's own tracker does not know the
// size of what is typed only when it is evaluated, nor of what lies in a list.
type meter struct{}

// CallCost implements interpreter.ActualCostEstimator.
func (meter) CallCost(function, _ string, args []ref.Val, result ref.Val) *uint64 {
	var size int
	switch function {
	case operators.Add:
		if size = sizeOf(result); isList(result) {
			// What a macro appends one by one is not copied. It is charged with all that lies in it: a list that holds
			// another one twice is as large as its copies would be for whoever compares it.
			size = lesser(args[0], args[1])
		}
	case operators.Equals, operators.NotEquals:
		size = lesser(args[0], args[1])
	case operators.In:
		if !isList(args[1]) {
			return nil
		}
		size = weigh(args[1], maxWeight)
	case overloads.Matches:
		size = effort(args[0], args[1])
	case "lower", "trim", "split", "join", "replace", "substring", "base64.encode", "base64.decode":
		size = sizeOf(result)
		for _, arg := range args {
			size += sizeOf(arg)
		}
	default:
		return nil
	}
	cost := uint64(1 + size/10)
	return &cost
}

func isList(v ref.Val) bool { _, ok := v.(traits.Lister); return ok }

func sizeOf(v ref.Val) int {
	switch v := v.(type) {
	case types.String:
		return len(v)
	case types.Bytes:
		return len(v)
	case traits.Lister:
		if n, ok := v.Size().(types.Int); ok {
			return int(n)
		}
	}
	return 0
}

const (
	memberWeight = 10 // bytes that a member of a list or an object counts beside its own size
	maxWeight    = 10 * MaxCost
)

// lesser is the weight of the lighter of two values, found without weighing all of the other.
func lesser(a, b ref.Val) int { return weigh(a, weigh(b, maxWeight)) }

// weigh is the size of a value with everything in it, or a little more than most if it is larger.
func weigh(v ref.Val, most int) int {
	size := sizeOf(v)
	switch v := v.(type) {
	case traits.Lister:
		size = 0
		for it := v.Iterator(); it.HasNext() == types.True && size <= most; {
			size += memberWeight + weigh(it.Next(), most-size)
		}
	case traits.Mapper:
		for it := v.Iterator(); it.HasNext() == types.True && size <= most; {
			name := it.Next()
			size += memberWeight + sizeOf(name) + weigh(v.Get(name), most-size)
		}
	}
	return size
}
