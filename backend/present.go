// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/source"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/trust"
)

// checkSourceFields refuses details of another source or driver than the target's: who wrote them believes that they hold.
func (r *targetRecord) checkSourceFields(kind string) error {
	isOAuth := r.Driver == target.DriverOAuth
	for _, field := range []struct {
		name, of string
		shared   bool // driver oauth uses it too
		given    bool
	}{
		{"self_subject", target.SourceSelf, false, r.SelfSubject != ""},
		{"token_file", target.SourceFile, true, r.TokenFile != ""},
		{"token_url", target.SourceClientCredentials, true, r.TokenURL != ""},
		{"client_id", target.SourceClientCredentials, true, r.ClientID != ""},
		{"client_secret", target.SourceClientCredentials, true, r.ClientSecret != ""},
		{"token_auth", target.SourceClientCredentials, false, r.TokenAuth != ""},
		{"token_scopes", target.SourceClientCredentials, false, len(r.TokenScopes) > 0},
		{"token_params", target.SourceClientCredentials, false, len(r.TokenParams) > 0},
		{"spiffe_id", target.SourceSVID, true, r.SPIFFEID != ""},
	} {
		if field.given && field.of != kind && !(field.shared && isOAuth) {
			return badField(field.name, "is for subject_token_source %s alone; the target's is %s", field.of, kind)
		}
	}
	if name := r.given(); name != "" && !isOAuth {
		return badField(name, "is for driver %s alone; the target's is %s", target.DriverOAuth, r.Driver)
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

// forwardable refuses to send a caller's token to a host that its issuer's entry does not name, or that it was not made
// for: whoever writes targets cannot collect tokens.
func (t *openTarget) forwardable(who *subject) error {
	if t.Source() != target.SourceRequest {
		return nil
	}
	if who.Kind != trust.Token {
		return refuse(reasonNotForwardable, "the target wants the caller's token, and there is none")
	}
	for _, host := range t.SubjectHosts() {
		if !slices.Contains(who.issuer.ForwardTo, host) {
			return refuse(reasonNotForwardable, "issuer %q does not list host %q in forward_to", who.issuer.name, host)
		}
	}
	switch {
	case t.record.ProxyURL != "" && !slices.Contains(who.issuer.ForwardTo, hostOf(t.record.ProxyURL)):
		// A proxy with a CA of its own choosing reads what passes.
		return refuse(reasonNotForwardable, "issuer %q does not list the target's proxy in forward_to", who.issuer.name)
	case !trust.IsSole(who.Claims["aud"], t.Audience()):
		return refuse(reasonNotForwardable, "the token's audience is not exactly the target's audience")
	}
	return nil
}

// present returns the token to present to the target. Nothing was sent there yet: an error means that no key was made.
func (b *engine) present(ctx context.Context, o *order) (string, error) {
	switch o.target.Source() {
	case target.SourceNone:
		return "", nil
	case target.SourceRequest:
		return o.who.raw, nil
	case target.SourceSelf:
		return o.self.sign(b.now())
	case target.SourceFile, target.SourceClientCredentials, target.SourceSVID:
		return o.target.ownToken(ctx)
	}
	return "", refuse(reasonInternal, "no such source of subject tokens")
}

// ownToken returns a token that is the engine's own identity at the target. Who asked for a key has no part in it.
func (t *openTarget) ownToken(ctx context.Context) (string, error) {
	return tokenOf(ctx, t.source, t.sourceErr)
}

// tokenOf returns a source's token; err is why there is no source.
func tokenOf(ctx context.Context, from *source.Source, err error) (string, error) {
	if err != nil { // it was sound when it was written, by the rules of that time
		return "", refuse(reasonNotForwardable, "the source no longer fits config or the plugin's environment: %v", err)
	}
	token, err := from.Token(ctx)
	switch {
	case errors.Is(err, source.ErrUnavailable):
		return "", &refusal{reason: reasonTargetBusy, detail: err.Error(), cause: target.ErrBusy}
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
