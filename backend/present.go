// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/source"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// checkSourceFields refuses details of another source than the target's: who wrote them believes that they hold.
func (r *targetRecord) checkSourceFields(kind string) error {
	for _, field := range []struct {
		name, of string
		given    bool
	}{
		{"self_subject", target.SourceSelf, r.SelfSubject != ""},
		{"token_file", target.SourceFile, r.TokenFile != ""},
		{"token_url", target.SourceClientCredentials, r.TokenURL != ""},
		{"client_id", target.SourceClientCredentials, r.ClientID != ""},
		{"client_secret", target.SourceClientCredentials, r.ClientSecret != ""},
		{"token_auth", target.SourceClientCredentials, r.TokenAuth != ""},
		{"token_scopes", target.SourceClientCredentials, len(r.TokenScopes) > 0},
		{"token_params", target.SourceClientCredentials, len(r.TokenParams) > 0},
		{"spiffe_id", target.SourceSVID, r.SPIFFEID != ""},
	} {
		if field.given && field.of != kind {
			return badField(field.name, "is for subject_token_source %s alone; the target's is %s", field.of, kind)
		}
	}
	return nil
}

// openSource opens what yields the engine's own tokens for a target; nil if the target wants none of them.
func (b *engine) openSource(kind, audience string, r *targetRecord, policy egress.Policy, transport egress.Options) (*source.Source, error) {
	switch kind {
	case target.SourceSVID:
		if err := b.workload.check(); err != nil {
			return nil, fmt.Errorf("subject_token_source: %v", err)
		}
	case target.SourceFile, target.SourceClientCredentials:
	default:
		return nil, nil
	}
	return source.Open(source.Config{
		Kind: kind, Audience: audience, TokenFile: r.TokenFile, TokenDirs: b.tokenDirs,
		TokenURL: r.TokenURL, ClientID: r.ClientID, ClientSecret: r.ClientSecret, TokenAuth: r.TokenAuth,
		TokenScopes: r.TokenScopes, TokenParams: r.TokenParams, Egress: policy, HTTP: transport,
		SVIDs: b.workload, SPIFFEID: r.SPIFFEID, Now: b.now,
	})
}

// ownToken returns a token that is the engine's own identity at the target. Who asked for a key has no part in it.
func (t *openTarget) ownToken(ctx context.Context) (string, error) {
	if t.sourceErr != nil { // it was sound when it was written, by the rules of that time
		return "", refuse(reasonNotForwardable, "the source no longer fits config or the plugin's environment: %v", t.sourceErr)
	}
	token, err := t.source.Token(ctx)
	switch {
	case errors.Is(err, source.ErrUnavailable):
		return "", refuse(reasonTargetBusy, "%v", err)
	case err != nil:
		return "", refuse(reasonNotForwardable, "%v", err)
	}
	return token, nil
}

// Close lets go of the connections that the target and its source keep.
func (t *openTarget) Close() {
	t.Target.Close()
	if t.source != nil {
		t.source.Close()
	}
}
