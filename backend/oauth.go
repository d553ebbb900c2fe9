// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"slices"
	"strings"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// oauthRecord has those fields of a target's record that only driver oauth uses. The driver shares token_url, client_id,
// client_secret, token_file and spiffe_id with the sources of subject tokens.
type oauthRecord struct {
	Grant             string   `json:"grant"`
	ClientAuth        string   `json:"client_auth"`
	PrivateKey        string   `json:"private_key"`
	PrivateKeyID      string   `json:"private_key_id"`
	AssertionAudience string   `json:"assertion_audience"`
	SubjectTokenType  string   `json:"subject_token_type"`
	Chain             string   `json:"chain"`
	RevocationURL     string   `json:"revocation_url"`
	IntrospectionURL  string   `json:"introspection_url"`
	TokenHosts        []string `json:"token_hosts"`
}

// oauthWays are the fields that decide where the driver's secrets go, and who is asked with them.
var oauthDestinationFields = []string{"url", "token_url", "revocation_url", "introspection_url", "token_hosts", "chain", "assertion_audience", "ca_pem", "proxy_url"}

// changed reports which of the fields that decide where secrets go differ from an older record.
func (r oauthRecord) changed(old oauthRecord) map[string]bool {
	return map[string]bool{
		"revocation_url": r.RevocationURL != old.RevocationURL, "introspection_url": r.IntrospectionURL != old.IntrospectionURL,
		"token_hosts": !slices.Equal(r.TokenHosts, old.TokenHosts), "chain": r.Chain != old.Chain,
		"assertion_audience": r.AssertionAudience != old.AssertionAudience,
	}
}

// given returns the name of a field that is set; "" if none is.
func (r oauthRecord) given() string {
	for _, field := range []struct {
		name string
		set  bool
	}{
		{"grant", r.Grant != ""},
		{"client_auth", r.ClientAuth != ""},
		{"private_key", r.PrivateKey != ""},
		{"private_key_id", r.PrivateKeyID != ""},
		{"assertion_audience", r.AssertionAudience != ""},
		{"subject_token_type", r.SubjectTokenType != ""},
		{"chain", r.Chain != ""},
		{"revocation_url", r.RevocationURL != ""},
		{"introspection_url", r.IntrospectionURL != ""},
		{"token_hosts", len(r.TokenHosts) > 0},
	} {
		if field.set {
			return field.name
		}
	}
	return ""
}

// oauth returns the configuration of driver oauth for a record; zero for other drivers.
func (b *engine) oauth(r targetRecord, policy egress.Policy) target.OAuth {
	if r.Driver != target.DriverOAuth {
		return target.OAuth{}
	}
	return target.OAuth{
		TokenURL: r.TokenURL, RevocationURL: r.RevocationURL, IntrospectionURL: r.IntrospectionURL, TokenHosts: r.TokenHosts,
		Grant: r.Grant, SubjectTokenType: r.SubjectTokenType, Chain: r.Chain,
		ClientAuth: r.ClientAuth, ClientID: r.ClientID, ClientSecret: r.ClientSecret, PrivateKey: r.PrivateKey, KeyID: r.PrivateKeyID,
		AssertionAudience: r.AssertionAudience, SPIFFEID: r.SPIFFEID,
		OwnToken: func(ctx context.Context, kind, spiffeID, audience string) (string, error) {
			own := r
			own.SPIFFEID = spiffeID
			from, err := b.openSource(kind, audience, &own, policy, egress.Options{})
			return tokenOf(ctx, from, err)
		},
	}
}

// checkOAuth checks the sources of the engine's own tokens for an authorization server. The driver has checked the rest.
func (b *engine) checkOAuth(r *targetRecord, policy egress.Policy) error {
	if r.Driver != target.DriverOAuth {
		return nil
	}
	const somebody = "x" // any audience will do for a check
	if r.TokenFile != "" {
		if _, err := b.openSource(target.SourceFile, somebody, r, policy, egress.Options{}); err != nil {
			return namedField(err)
		}
	}
	if !strings.HasPrefix(r.ClientAuth, "svid_") {
		return nil
	}
	if err := b.workload.check(); err != nil {
		return badField("client_auth", "%v", err)
	}
	if _, err := b.openSource(target.SourceSVID, somebody, r, policy, egress.Options{}); err != nil {
		return namedField(err)
	}
	return nil
}
