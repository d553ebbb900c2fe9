// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package trust

import (
	"testing"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

func BenchmarkEvaluate(b *testing.B) {
	const token = `{"iss": "https://token.actions.githubusercontent.com", "aud": "vault", "sub": "repo:acme/widget:ref:refs/heads/main",
		"repository": "acme/widget", "repository_id": "74", "repository_owner": "acme", "repository_owner_id": "65", "ref": "refs/heads/main",
		"event_name": "push", "environment": "prod", "actor": "octocat", "actor_id": "12", "run_id": "1234567", "run_attempt": "1",
		"workflow": "release", "runner_environment": "github-hosted", "job_workflow_ref": "acme/ci/.github/workflows/r.yml@refs/heads/main"}`
	bound := Spec{
		BoundAudiences: []string{"vault"},
		BoundClaims:    map[string]any{"repository_id": "74", "repository_owner_id": "65", "event_name": []any{"push", "release"}},
	}
	globs := bound
	globs.BoundClaimsType = "glob"
	globs.BoundClaims = map[string]any{"sub": "repo:acme/*:ref:refs/heads/*", "repository_owner_id": "65", "ref": "refs/heads/**"}
	condition := bound
	condition.Condition = "claims.environment == 'prod' && claims.ref.startsWith('refs/heads/') && claims.event_name != 'pull_request_target'"
	for _, c := range []struct {
		name string
		spec Spec
	}{{"bound_claims", bound}, {"glob", globs}, {"condition", condition}} {
		b.Run(c.name, func(b *testing.B) {
			policy, claims := mustNew(b, c.spec, Token), claimsOf(b, token)
			b.ReportAllocs()
			for b.Loop() {
				if d := policy.Evaluate(tokenOf(claims), expr.NewBudget()); !d.Allowed {
					b.Fatalf("refused: %v", d.Unmet())
				}
			}
		})
	}
}
