// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package trust

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// startingPolicy is a trust policy as a file in bootstrap/trust has it.
type startingPolicy struct {
	Description string `json:"description"`
	Issuer      string `json:"issuer"`
	goldenSpec
}

// tokensOf is what testdata/starting holds for a policy: a whole token of the provider that the policy accepts, and what
// becomes of it with other claims (null takes one away).
type tokensOf struct {
	Header, Claims map[string]any
	Cases          []struct {
		Name, Want string
		With       map[string]any
	}
}

// with returns the token's claims with some changed.
func (s tokensOf) with(changed map[string]any) map[string]any {
	claims := maps.Clone(s.Claims)
	maps.Copy(claims, changed)
	maps.DeleteFunc(claims, func(_ string, value any) bool { return value == nil })
	return claims
}

// The policies that operators start from warn of nothing, judge their provider's tokens as they should, and have no
// condition too many. What the issuer decides, and not the policy, is tested in a real Vault alone.
func TestStartingPoints(t *testing.T) {
	issuers, err := filepath.Glob("../../bootstrap/trust/*/issuer.json")
	if err != nil || len(issuers) == 0 {
		t.Fatalf("no starting points: %v", err)
	}
	for _, file := range issuers {
		var issuer map[string]any
		decode(t, read(t, file), &issuer)
		url, _ := issuer["oidc_discovery_url"].(string)
		provider := filepath.Base(filepath.Dir(file))
		var tokens map[string]tokensOf
		decode(t, read(t, filepath.Join("testdata", "starting", provider+".json")), &tokens)
		recorded, _ := issuer["record_claims"].([]any)
		for _, claim := range recorded {
			if !hasClaim(tokens, claim.(string)) {
				t.Errorf("%s: record_claims has %q, which is in no token", provider, claim)
			}
		}
		for name := range tokens {
			t.Run(provider+"/"+name, func(t *testing.T) {
				var policy startingPolicy
				decode(t, read(t, filepath.Join(filepath.Dir(file), name+".json")), &policy)
				if warnings := Lint(Spec(policy.goldenSpec), url); warnings != nil {
					t.Errorf("it warns: %q", warnings)
				}
				testStartingPolicy(t, Spec(policy.goldenSpec), tokens[name])
				if provider == "github-actions" {
					testEvents(t, Spec(policy.goldenSpec), tokens[name])
				}
			})
		}
	}
}

func hasClaim(tokens map[string]tokensOf, claim string) bool {
	for _, token := range tokens {
		if token.Claims[claim] != nil {
			return true
		}
		for _, c := range token.Cases {
			if c.With[claim] != nil {
				return true
			}
		}
	}
	return false
}

func testStartingPolicy(t *testing.T, spec Spec, tokens tokensOf) {
	if got := reasonOf(t, spec, tokens.Claims); got != "allowed" {
		t.Fatalf("its own token: %s", got)
	}
	var refused []map[string]any
	for _, c := range tokens.Cases {
		if !slices.Contains([]string{"allowed", Audience, NotTrusted}, c.Want) {
			continue // the issuer's to say
		}
		claims := tokens.with(c.With)
		if got := reasonOf(t, spec, claims); got != c.Want {
			t.Errorf("%s: %s; want %s", c.Name, got, c.Want)
		}
		if c.Want == NotTrusted {
			refused = append(refused, claims)
		}
	}
	for name, without := range weakened(spec) {
		allowed := func(claims map[string]any) bool { return reasonOf(t, without, claims) == "allowed" }
		if !slices.ContainsFunc(refused, allowed) {
			t.Errorf("no token is refused for %s alone", name)
		}
	}
}

// testEvents wants a policy to refuse every event that outsiders can start, whatever its token has else.
func testEvents(t *testing.T, spec Spec, tokens tokensOf) {
	for _, event := range untrustedEvents {
		if got := reasonOf(t, spec, tokens.with(map[string]any{"event_name": event})); got != NotTrusted {
			t.Errorf("%s: %s; want %s", event, got, NotTrusted)
		}
	}
}

// weakened returns the spec without each of its conditions in turn.
func weakened(spec Spec) map[string]Spec {
	spec.AcceptAnySubject = true // or else a lone condition could not be left out
	all := map[string]Spec{}
	if spec.BoundSubject != "" {
		without := spec
		without.BoundSubject = ""
		all["bound_subject"] = without
	}
	for claim := range spec.BoundClaims {
		without := spec
		without.BoundClaims = maps.Clone(spec.BoundClaims)
		delete(without.BoundClaims, claim)
		all["bound_claims."+claim] = without
	}
	parts := strings.Split(spec.Condition, " && ")
	for i, part := range parts {
		if part != "" {
			without := spec
			without.Condition = strings.Join(slices.Delete(slices.Clone(parts), i, i+1), " && ")
			all["condition "+part] = without
		}
	}
	return all
}

// reasonOf returns "allowed", or why the policy refuses.
func reasonOf(t *testing.T, spec Spec, claims map[string]any) string {
	t.Helper()
	reason, _, _ := strings.Cut(outcome(t, spec, Token, tokenOf(claims)), " ")
	return reason
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
