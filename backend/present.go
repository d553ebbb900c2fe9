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

// checkSourceFields refuses fields of another subject_token_source or driver than the target's: whoever set them would
// believe that they have an effect.
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
			return badField(field.name, "is only for subject_token_source %s; this target's is %s", field.of, kind)
		}
	}
	if name := r.given(); name != "" && !isOAuth {
		return badField(name, "is only for driver %s; this target's is %s", target.DriverOAuth, r.Driver)
	}
	return nil
}

// openSource opens the source of the engine's own tokens for a target; nil if the target uses no such source.
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

// forwardable refuses to send a caller's token to a host that its issuer's forward_to does not list, or whose audience is not
// the token's only one. Otherwise whoever may write targets could collect callers' tokens.
func (t *openTarget) forwardable(who *subject) error {
	if t.Source() != target.SourceRequest {
		return nil
	}
	if who.Kind != trust.Token {
		return refuse(reasonNotForwardable, "the target wants the caller's token, and the caller logged in without one")
	}
	for _, host := range t.SubjectHosts() {
		if !slices.Contains(who.issuer.ForwardTo, host) {
			return refuse(reasonNotForwardable, "issuer %q does not list host %q in forward_to", who.issuer.name, host)
		}
	}
	switch {
	case t.record.ProxyURL != "" && !slices.Contains(who.issuer.ForwardTo, hostOf(t.record.ProxyURL)):
		// Together with a ca_pem of its choosing, a proxy can read what it forwards.
		return refuse(reasonNotForwardable, "issuer %q does not list the target's proxy in forward_to", who.issuer.name)
	case !trust.IsSole(who.Claims["aud"], t.Audience()):
		return refuse(reasonNotForwardable, "the token's audience is not exactly the target's audience")
	}
	return nil
}

// present returns the subject token to present to the target; "" if the target wants none. It sends nothing to the target,
// so an error means that no key was made.
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
	return "", refuse(reasonInternal, "unknown subject_token_source %q", o.target.Source())
}

// ownToken returns a token that is the engine's own identity at the target; it says nothing about the caller.
func (t *openTarget) ownToken(ctx context.Context) (string, error) {
	return tokenOf(ctx, t.source, t.sourceErr)
}

// tokenOf returns a token of a source. err is why there is no source, nil if there is one.
func tokenOf(ctx context.Context, from *source.Source, err error) (string, error) {
	if err != nil { // it was valid when it was written
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

// Close closes the idle connections of the target and its source.
func (t *openTarget) Close() {
	t.Target.Close()
	if t.source != nil {
		t.source.Close()
	}
}
