// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// Package expr compiles and evaluates the CEL expressions that operators write: trust conditions, lease paths,
// parameters, target conditions and profiles. It is the one place that knows CEL, and its one rule is that an
// expression is bounded: in its source, in the work it may do, and in what it may yield. It does no I/O, and no error
// of an evaluation carries a value that the expression has seen.
package expr

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/env"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/ext"
)

// Limits of one expression and of one request (all expressions that it evaluates together).
const (
	MaxSource   = 4 << 10   // bytes of source
	MaxCost     = 100_000   // CEL cost units of one evaluation
	RequestCost = 1_000_000 // CEL cost units of one Budget
	MaxOutput   = 64 << 10  // bytes, roughly, of one result
)

// Type is what an expression must yield.
type Type int

// The result types. An expression whose type is only known when it is evaluated is checked then.
const (
	Any Type = iota
	Bool
	String
)

// Budget is the work that the expressions of one request may do together. It is not safe for concurrent use; make a
// new one for each request.
type Budget struct{ left uint64 }

// NewBudget returns a full budget of RequestCost units.
func NewBudget() *Budget { return &Budget{left: RequestCost} }

// Program is a compiled expression. It is immutable and safe for concurrent use.
type Program struct {
	program cel.Program
	want    Type
	reads   reads
}

// Compile checks src, which may use the named variables, CEL's standard functions and macros, base64.encode and decode,
// and lower (of ASCII letters), trim, split, join, replace and substring. The error says line and column of the first fault.
func Compile(src string, want Type, variables ...string) (*Program, error) {
	if strings.TrimSpace(src) == "" {
		return nil, errors.New("expression is empty")
	}
	if len(src) > MaxSource {
		return nil, fmt.Errorf("expression has %d bytes; at most %d are allowed", len(src), MaxSource)
	}
	base, err := standard()
	if err != nil {
		return nil, fmt.Errorf("preparing CEL: %v", err)
	}
	declarations := make([]cel.EnvOption, len(variables))
	for i, name := range variables {
		declarations[i] = cel.Variable(name, cel.DynType)
	}
	environment, err := base.Extend(declarations...)
	if err != nil {
		return nil, fmt.Errorf("declaring variables: %v", err)
	}
	ast, issues := environment.Compile(src)
	if issues.Err() != nil {
		first := issues.Errors()[0]
		return nil, fmt.Errorf("line %d, column %d: %s", first.Location.Line(), first.Location.Column()+1, first.Message)
	}
	if !yields(ast.OutputType(), want) {
		return nil, fmt.Errorf("yields %s; want %s", ast.OutputType(), want)
	}
	program, err := environment.Program(ast, cel.CostLimit(MaxCost), cel.CostTracking(meter{}), cel.EvalOptions(cel.OptOptimize, cel.OptTrackCost))
	if err != nil {
		return nil, fmt.Errorf("line 1: %v", err)
	}
	return &Program{program: program, want: want, reads: readsOf(ast.NativeRep().Expr())}, nil
}

// standard is the environment that all expressions extend; CEL environments are immutable.
var standard = sync.OnceValues(func() (*cel.Env, error) {
	// The checker takes the result of x["k"] for a value of one type, yet to be found, and commits to the first
	// conversion around it: string(x["k"]) would then fail for all but that type. As dyn it is judged when evaluated.
	replaced := []*env.Function{env.NewFunction(operators.Index), env.NewFunction(overloads.Matches)}
	subset := env.NewLibrarySubset().AddExcludedFunctions(replaced...).SetDisableMacros(true)
	return cel.NewCustomEnv(append(functions(),
		cel.StdLib(cel.StdLibSubset(subset)),
		cel.Macros(macros()...),
		cel.Function(operators.Index, cel.Overload("index_any", []*cel.Type{cel.DynType, cel.DynType}, cel.DynType)),
		cel.ASTValidators(cel.ValidateRegexProgramSizeLimit(maxPattern)),
		cel.ParserRecursionLimit(64),
		cel.ParserExpressionSizeLimit(MaxSource),
		cel.CrossTypeNumericComparisons(true),
		cel.DefaultUTCTimeZone(true),
		ext.Encoders(),
	)...)
})

func yields(got *cel.Type, want Type) bool {
	switch want {
	case Bool:
		return got.IsAssignableType(cel.BoolType) || got.Kind() == types.DynKind
	case String:
		return got.IsAssignableType(cel.StringType) || got.Kind() == types.DynKind
	default:
		return true
	}
}

// String names the type as CEL does.
func (t Type) String() string {
	return [...]string{Any: "any value", Bool: "bool", String: "string"}[t]
}

// Eval evaluates the program over variables (Go values as Value makes them) and takes its cost from the budget. The
// result is nil, bool, int64, uint64, float64, string, []byte, time.Time, time.Duration, []any or map[string]any. An
// expression over its limit, a result of the wrong type, and a missing variable or member are errors.
func (p *Program) Eval(b *Budget, variables map[string]any) (any, error) {
	if b.left == 0 {
		return nil, errors.New("the request's expressions cost too much together")
	}
	val, details, err := p.program.Eval(variables)
	if details != nil && details.ActualCost() != nil {
		b.left -= min(b.left, *details.ActualCost())
	}
	if err != nil {
		return nil, p.cleaned(err)
	}
	result, err := native(val, &sizer{left: MaxOutput})
	if err != nil {
		return nil, err
	}
	switch result.(type) {
	case bool:
		if p.want == String {
			return nil, errors.New("yielded bool; want string")
		}
	case string:
		if p.want == Bool {
			return nil, errors.New("yielded string; want bool")
		}
	default:
		if p.want != Any {
			return nil, fmt.Errorf("yielded %s; want %s", val.Type().TypeName(), p.want)
		}
	}
	return result, nil
}

// cleaned keeps of an evaluation error only what the expression's author wrote: CEL's own texts hold the values that
// the expression looked at.
func (p *Program) cleaned(err error) error {
	text := err.Error()
	if key, found := strings.CutPrefix(text, "no such key: "); found && slices.Contains(p.reads.names, key) {
		return fmt.Errorf("%q is missing", key)
	}
	if text == tooLarge {
		return errTooLarge
	}
	if strings.Contains(text, "cost limit exceeded") {
		return fmt.Errorf("costs more than %d units", MaxCost)
	}
	return errors.New("a value is missing or of another type than the expression needs")
}
