// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// Package trust decides whether a verified identity may have a key. It is pure: a Policy is made once from what an
// operator wrote, and Evaluate weighs it against an Identity without I/O, clock or log. Whatever is missing, of another
// type or not understood refuses.
package trust

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

// Kind is how the subjects of an issuer prove themselves.
type Kind int

// The kinds of proof. A policy of one kind never accepts an identity of the other.
const (
	Token Kind = iota // a subject token: decisions see its claims, and its audience must be bound
	Login             // the caller's Vault login: there are no claims
)

// Identity is a verified caller as policies see it. It belongs to one request and is not safe for concurrent use.
type Identity struct {
	Kind    Kind
	Subject string         // the token's sub, or the login's alias name
	Claims  map[string]any // of the verified subject token, numbers as json.Number; nil for a login
	Caller  Caller
	Now     time.Time

	variables map[string]any
}

// Caller is the Vault client that makes the request.
type Caller struct {
	EntityID, EntityName       string
	EntityMetadata             map[string]string
	Aliases                    []string // names of all the entity's aliases
	Alias                      *Alias   // the alias on the login issuer's mount; nil for a Token identity
	Groups                     []string // names of the entity's groups
	DisplayName, RemoteAddress string
}

// Alias is what a login issuer vouches for. Metadata holds only what the operator declared stable.
type Alias struct {
	Name                     string
	Metadata, CustomMetadata map[string]string
}

// Variables are the names that conditions, lease paths and parameters may use.
var Variables = []string{"claims", "vault", "now"}

// Values returns the values of Variables for this identity, as expressions see them. What is unknown has no member:
// an expression that needs it fails.
func (id *Identity) Values() map[string]any {
	if id.variables != nil {
		return id.variables
	}
	c := id.Caller
	vault := known(map[string]string{"display_name": c.DisplayName, "remote_address": c.RemoteAddress})
	if c.EntityID != "" {
		entity := known(map[string]string{"id": c.EntityID, "name": c.EntityName})
		entity["metadata"] = present(c.EntityMetadata)
		vault["entity"], vault["groups"] = entity, c.Groups
	}
	if c.Alias != nil {
		alias := known(map[string]string{"name": c.Alias.Name})
		alias["metadata"], alias["custom_metadata"] = present(c.Alias.Metadata), present(c.Alias.CustomMetadata)
		vault["alias"] = alias
	}
	id.variables = map[string]any{"claims": map[string]any{}, "vault": vault}
	if id.Claims != nil {
		claims := expr.Value(id.Claims)
		dropNull(claims)
		id.variables["claims"] = claims
	}
	if !id.Now.IsZero() {
		id.variables["now"] = id.Now
	}
	return id.variables
}

// dropNull removes null members from v, which the caller owns: a claim that is null counts as absent, also for a condition
// with !=.
func dropNull(v any) (keep bool) {
	switch v := v.(type) {
	case nil:
		return false
	case map[string]any:
		maps.DeleteFunc(v, func(_ string, member any) bool { return !dropNull(member) })
	case []any: // a list with a null is removed whole, because removing the null would change the indexes of the others
		return !slices.ContainsFunc(v, func(element any) bool { return !dropNull(element) })
	}
	return true
}

// known removes empty values: for example, an unknown address must not satisfy a condition with !=.
func known(members map[string]string) map[string]any {
	out := make(map[string]any, len(members)+2)
	for name, value := range members {
		if value != "" {
			out[name] = value
		}
	}
	return out
}

func present(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

// Decision is a verdict with its reasons. The zero Decision refuses.
type Decision struct {
	Allowed    bool
	Reason     string      // of a refusal: "audience", "caller_mismatch" or "not_trusted"
	Conditions []Condition // every condition of the policy, in the order of its fields
}

// The reasons of a refusal.
const (
	Audience       = "audience"        // the token is not meant for this engine
	CallerMismatch = "caller_mismatch" // all holds but bind_caller
	NotTrusted     = "not_trusted"     // anything else
)

// Condition is the verdict on one condition of a policy.
type Condition struct {
	Name   string // field, and claim where the field is a map: "bound_claims.repository"
	Holds  bool
	Wanted any    // the policy's value of that field; for bind_caller the names that the claim may have
	Saw    any    // the value that was compared; nil if it is missing, or if Name is "condition"
	Why    string // why the condition does not hold, where Wanted and Saw do not show it; without values
}

// Unmet returns the names of the conditions that do not hold.
func (d Decision) Unmet() []string {
	var names []string
	for _, c := range d.Conditions {
		if !c.Holds {
			names = append(names, c.Name)
		}
	}
	return names
}

// Policy says which identities are trusted. New makes one; it is immutable and safe to share. The zero Policy trusts
// nobody.
type Policy struct {
	spec      Spec
	kind      Kind
	ready     bool
	claims    []boundClaim
	condition *expr.Program
}

// Evaluate weighs every condition of the policy against id. The work of its expressions counts against budget.
func (p *Policy) Evaluate(id *Identity, budget *expr.Budget) Decision {
	if p == nil || !p.ready || id == nil || id.Kind != p.kind {
		return Decision{Reason: NotTrusted}
	}
	var d Decision
	add := func(c Condition) bool {
		d.Conditions = append(d.Conditions, c)
		return c.Holds
	}
	audience, trusted, caller := true, true, true
	if p.kind == Token {
		audience = add(p.audience(id))
	}
	if p.spec.BoundSubject != "" || id.Subject == "" { // an empty subject is never accepted
		trusted = add(p.subject(id))
	}
	for _, bound := range p.claims {
		trusted = add(bound.judge(id.Claims)) && trusted
	}
	if p.condition != nil {
		trusted = add(p.judgeCondition(id, budget)) && trusted
	}
	if p.spec.BindCaller != "" {
		caller = add(p.bindCaller(id))
	}
	switch {
	case !audience:
		d.Reason = Audience
	case !trusted:
		d.Reason = NotTrusted
	case !caller:
		d.Reason = CallerMismatch
	default:
		d.Allowed = true
	}
	return d
}

// audience demands exactly one value of aud, and that it is bound: a token that is also meant for another service could
// be presented here by that service. With allow_extra_audiences the party that the token was issued to (azp, OpenID
// Connect Core section 2) must be bound instead.
func (p *Policy) audience(id *Identity) Condition {
	audiences := audiences(id.Claims["aud"])
	c := Condition{Name: "bound_audiences", Wanted: p.spec.BoundAudiences, Saw: id.Claims["aud"]}
	bound := func(a string) bool { return slices.Contains(p.spec.BoundAudiences, a) }
	switch {
	case len(audiences) == 1:
		c.Holds = bound(audiences[0])
	case len(audiences) > 1 && p.spec.AllowExtraAudiences:
		azp, _ := id.Claims["azp"].(string)
		c.Holds = slices.ContainsFunc(audiences, bound) && bound(azp)
		if !bound(azp) {
			c.Why = "of several audiences azp must be wanted too"
		}
	case len(audiences) > 1:
		c.Why = "want one audience alone, unless allow_extra_audiences is on"
	}
	return c
}

func (p *Policy) subject(id *Identity) Condition {
	c := Condition{Name: "bound_subject", Wanted: p.spec.BoundSubject}
	if id.Subject != "" {
		c.Saw, c.Holds = id.Subject, id.Subject == p.spec.BoundSubject
	}
	return c
}

// IsSole says whether want is the one value of an aud claim.
func IsSole(aud any, want string) bool {
	return slices.Equal(audiences(aud), []string{want})
}

// audiences returns the values of an aud claim (RFC 7519 section 4.1.3), or nil if it is not one.
func audiences(aud any) []string {
	switch aud := aud.(type) {
	case string:
		return []string{aud}
	case []any:
		out := make([]string, 0, len(aud))
		for _, a := range aud {
			s, ok := a.(string)
			if !ok {
				return nil
			}
			out = append(out, s)
		}
		return out
	default:
		return nil
	}
}

func (p *Policy) judgeCondition(id *Identity, budget *expr.Budget) Condition {
	c := Condition{Name: "condition", Wanted: p.spec.Condition}
	result, err := p.condition.Eval(budget, id.Values())
	if err != nil {
		c.Why = err.Error()
		return c
	}
	c.Holds = result == true
	return c
}

// bindCaller ties the token to the Vault client that presents it: a stolen token is useless to another client.
func (p *Policy) bindCaller(id *Identity) Condition {
	c := Condition{Name: "bind_caller", Wanted: id.Caller.Aliases}
	value, found := Lookup(id.Claims, p.spec.BindCaller)
	name, isString := value.(string)
	if found && isString && name != "" {
		c.Saw = name
		c.Holds = slices.Contains(id.Caller.Aliases, name)
	}
	return c
}

// Reads returns the names of the top-level claims that the policy reads, sorted; whole means that its condition may read any
// claim. Recording them allows Evaluate to decide again later.
func (p *Policy) Reads() (names []string, whole bool) {
	if p.kind == Token {
		names = append(names, "aud", "azp", "sub")
	}
	for _, bound := range p.claims {
		names = append(names, Root(bound.name))
	}
	if p.condition != nil {
		members, all := p.condition.Members("claims")
		names, whole = append(names, members...), all
	}
	if p.spec.BindCaller != "" {
		names = append(names, Root(p.spec.BindCaller))
	}
	slices.Sort(names)
	return slices.Compact(names), whole
}

// ReadsCaller reports whether the policy reads anything of the Caller. If not, the caller's details need not be looked up.
func (p *Policy) ReadsCaller() bool {
	return p.kind == Login || p.spec.BindCaller != "" || p.condition != nil && p.condition.Uses("vault")
}

// FieldError says which field of a Spec is wrong, and what is wanted.
type FieldError struct{ Field, Text string }

func (e *FieldError) Error() string { return fmt.Sprintf("%s: %s", e.Field, e.Text) }
