// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

// Relying is a stand-in for an API that trusts one OpenID provider, as a relying party does: it learns about the provider by
// discovery, and keeps fetched keys until a token names another key. It accepts tokens of exactly this audience and subject,
// each token once. Its fields must be set before use. Accepts fits KeyAPIOptions.MayCreate.
type Relying struct {
	Issuer, Audience, Subject string
	Client                    *http.Client     // nil = http.DefaultClient
	Now                       func() time.Time // nil = time.Now

	mu        sync.Mutex
	verifier  *oidc.IDTokenVerifier // nil until discovery has succeeded
	presented []string
	seen      []string // jti of accepted tokens
}

// Accepts verifies a token and marks it as used.
func (r *Relying) Accepts(token string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.presented = append(r.presented, token)
	if r.verifier == nil && !r.discover() {
		return false
	}
	id, err := r.verifier.Verify(context.Background(), token)
	if err != nil || id.Subject != r.Subject || !slices.Equal(id.Audience, []string{r.Audience}) {
		return false
	}
	var claims struct {
		ID string `json:"jti"`
	}
	if id.Claims(&claims) != nil || claims.ID == "" || slices.Contains(r.seen, claims.ID) {
		return false
	}
	r.seen = append(r.seen, claims.ID)
	return true
}

// Presented returns the tokens that were presented, accepted or not, oldest first.
func (r *Relying) Presented() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.presented)
}

// discover fetches the provider's discovery document. The caller holds mu.
func (r *Relying) discover() bool {
	ctx := context.Background()
	if r.Client != nil {
		ctx = oidc.ClientContext(ctx, r.Client) // the verifier keeps ctx, and fetches keys with its client
	}
	provider, err := oidc.NewProvider(ctx, r.Issuer)
	if err != nil {
		return false
	}
	r.verifier = provider.VerifierContext(ctx, &oidc.Config{ClientID: r.Audience, Now: r.Now})
	return true
}
