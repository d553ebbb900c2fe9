// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package trust

import (
	"fmt"
	"maps"
	"slices"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

// Limits of a policy. They keep a decision cheap; they are not a matter of taste to configure.
const (
	maxAudiences = 64
	maxClaims    = 32
	maxValues    = 256  // of one claim
	maxGlobs     = 256  // of one policy: each is matched against each value of its claim
	maxStars     = 10   // of one glob, ** being one
	maxPattern   = 256  // bytes of a claim's name and of one expected value
	maxText      = 2048 // bytes of a subject and of an audience; a SPIFFE ID may be as long
	maxDigits    = 64   // bytes of a number that is compared by value
)

// Spec is a trust policy as an operator writes it. Its fields have the names and the meaning of Vault's JWT auth
// method where that has them; all that are given must hold.
type Spec struct {
	BoundAudiences      []string       // values of aud that are accepted; required for Token
	AllowExtraAudiences bool           // accept further audiences beside a bound one; azp must then be bound
	BoundSubject        string         // exact subject
	BoundClaims         map[string]any // claim name or JSON pointer (RFC 6901) -> value, or list of which one must match
	BoundClaimsType     string         // "string" (default): exact; "glob": * within a segment, ** across
	Condition           string         // CEL over Variables
	BindCaller          string         // claim whose value must name one of the caller's aliases
	AcceptAnySubject    bool           // allow a policy that accepts every subject of its issuer
}

// New checks the spec and makes a policy of it for identities of one kind. The error is a *FieldError.
func New(spec Spec, kind Kind) (*Policy, error) {
	spec.BoundAudiences = slices.Clone(spec.BoundAudiences) // the caller may change its own
	p := &Policy{spec: spec, kind: kind, ready: true}
	for _, check := range []func() error{
		p.checkAudiences, p.checkSubject, p.checkKind, p.compileClaims, p.compileCondition, p.checkOpen,
	} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *Policy) checkAudiences() error {
	switch {
	case p.kind == Login:
		return nil
	case len(p.spec.BoundAudiences) == 0:
		return &FieldError{"bound_audiences", "missing; name the audience that tokens for this engine carry"}
	case len(p.spec.BoundAudiences) > maxAudiences:
		return &FieldError{"bound_audiences", fmt.Sprintf("at most %d values are allowed", maxAudiences)}
	}
	for _, audience := range p.spec.BoundAudiences {
		if err := checkText(audience, maxText); err != nil {
			return &FieldError{"bound_audiences", err.Error()}
		}
	}
	return nil
}

func (p *Policy) checkSubject() error {
	if p.spec.BoundSubject == "" {
		return nil
	}
	if err := checkText(p.spec.BoundSubject, maxText); err != nil {
		return &FieldError{"bound_subject", err.Error()}
	}
	return nil
}

// checkKind refuses conditions on something that a login does not have. They could never hold, and whoever wrote them expects
// that they restrict the policy.
func (p *Policy) checkKind() error {
	if p.spec.BindCaller != "" {
		if err := CheckName(p.spec.BindCaller); err != nil {
			return &FieldError{"bind_caller", err.Error()}
		}
	}
	if p.kind == Token {
		return nil
	}
	const text = "a login issuer has no token; use bound_subject (the alias name) or condition over vault"
	switch {
	case len(p.spec.BoundAudiences) > 0:
		return &FieldError{"bound_audiences", text}
	case len(p.spec.BoundClaims) > 0:
		return &FieldError{"bound_claims", text}
	case p.spec.BindCaller != "":
		return &FieldError{"bind_caller", text}
	case p.spec.AllowExtraAudiences:
		return &FieldError{"allow_extra_audiences", text}
	}
	return nil
}

func (p *Policy) compileClaims() error {
	glob := false
	switch p.spec.BoundClaimsType {
	case "", "string":
	case "glob":
		glob = true
	default:
		return &FieldError{"bound_claims_type", fmt.Sprintf("%q is unknown; want string or glob", p.spec.BoundClaimsType)}
	}
	if len(p.spec.BoundClaims) > maxClaims {
		return &FieldError{"bound_claims", fmt.Sprintf("at most %d claims are allowed", maxClaims)}
	}
	globs := 0
	for _, name := range slices.Sorted(maps.Keys(p.spec.BoundClaims)) {
		bound, err := newBoundClaim(name, p.spec.BoundClaims[name], glob)
		if err != nil {
			return &FieldError{"bound_claims." + name, err.Error()}
		}
		p.claims = append(p.claims, bound)
		if globs += len(bound.globs); globs > maxGlobs {
			return &FieldError{"bound_claims", fmt.Sprintf("at most %d globs are allowed, all claims together", maxGlobs)}
		}
	}
	return nil
}

func (p *Policy) compileCondition() error {
	if p.spec.Condition == "" {
		return nil
	}
	program, err := expr.Compile(p.spec.Condition, expr.Bool, Variables...)
	if err != nil {
		return &FieldError{"condition", err.Error()}
	}
	if p.kind == Login && program.Uses("claims") {
		return &FieldError{"condition", "uses claims; a login issuer has no token, use vault"}
	}
	p.condition = program
	return nil
}

// checkOpen refuses a policy that accepts every subject of its issuer: at a shared issuer, that is everybody.
func (p *Policy) checkOpen() error {
	if p.spec.AcceptAnySubject || p.spec.BoundSubject != "" {
		return nil
	}
	for _, bound := range p.claims {
		if bound.narrows() {
			return nil
		}
	}
	if p.condition != nil && p.conditionNarrows() {
		return nil
	}
	return &FieldError{"accept_any_subject", "the policy would accept every subject of its issuer; add bound_subject, " +
		"bound_claims or a condition, or set accept_any_subject=true"}
}

// common are claims that do not tell one subject of an issuer from another: they are about the token.
var common = []string{"iss", "aud", "azp", "exp", "iat", "nbf", "jti", "auth_time", "nonce", "typ", "ver"}

func (p *Policy) conditionNarrows() bool {
	if p.condition.Uses("vault") {
		return true
	}
	names, whole := p.condition.Members("claims")
	return whole || slices.ContainsFunc(names, func(name string) bool { return !slices.Contains(common, name) })
}
