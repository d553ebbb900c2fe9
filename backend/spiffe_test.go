// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/trust"
)

const workloadID = "spiffe://example.org/ns/acme/sa/widget"

// newSPIFFEWorld is a world with a Workload API, issuer domain of its trust domain, trust policy workload, and role deploy for
// that beside the others.
func newSPIFFEWorld(t *testing.T) (*world, *lab.WorkloadAPI) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	t.Setenv(endpointSocket, "unix://"+path)
	w := newWorld(t)
	api := lab.NewWorkloadAPI(lab.WorkloadAPIOptions{IDs: []string{workloadID}, Now: w.clock.now})
	if err := api.Start(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Stop)
	w.write("issuers/domain", map[string]any{"type": "spiffe", "trust_domain": "example.org", "workload_api": true, "verify": true})
	w.write("trust/workload", map[string]any{"issuer": "domain", "bound_audiences": audience, "bound_subject": workloadID})
	w.write("roles/deploy", map[string]any{"trust": "main,alice,workload"})
	return w, api
}

// svid is a JWT-SVID for this mount, with some claims changed.
func svid(api *lab.WorkloadAPI, claims map[string]any) string {
	all := map[string]any{"aud": []string{audience}}
	for name, value := range claims {
		all[name] = value
	}
	return api.SVID(all)
}

func TestIssueBySVID(t *testing.T) {
	w, api := newSPIFFEWorld(t)
	token := svid(api, nil)
	resp, err := w.exchange("deploy", token)
	if reason, _ := reasonOf(resp, err); reason != "" {
		t.Fatalf("%s\n%s", reason, w.logs)
	}
	for name, want := range map[string]any{"issuer": "domain", "subject": workloadID, "trust": "workload"} {
		if got := resp.Data[name]; got != want {
			t.Errorf("%s is %v; want %v", name, got, want)
		}
	}
	record := w.read("keys/" + resp.Data["id"].(string))
	if got, want := record["claims"], map[string]any{"sub": workloadID, "aud": []any{audience}}; !cmp.Equal(got, any(want)) {
		t.Errorf("recorded claims: %v; want %v", got, want)
	}
	// Agents keep an SVID: it works again, as long as it lives.
	if reason, _ := reasonOf(w.exchange("deploy", token)); reason != "" {
		t.Errorf("presented again: %s", reason)
	}
	if used := w.stored(usedTokens); len(used) != 0 {
		t.Errorf("the SVID is kept as used: %v", used)
	}
	if _, err := w.lease(logical.RenewOperation, resp); err != nil {
		t.Errorf("renewing: %v", err)
	}
	w.write("trust/workload", map[string]any{"bound_subject": "spiffe://example.org/other"})
	if reason, _ := reasonOf(w.lease(logical.RenewOperation, resp)); reason != reasonTrustChanged {
		t.Errorf("renewing after the policy narrowed: %q", reason)
	}
	w.revoke(resp)
}

func TestSVIDsThatAreRefused(t *testing.T) {
	w, api := newSPIFFEWorld(t)
	own, federated := api.Domain("example.org"), api.Domain("other.example")
	payload := func(sub string) []byte {
		raw, err := json.Marshal(map[string]any{"sub": sub, "aud": audience, "iat": w.clock.now().Unix(), "exp": w.clock.now().Unix() + 60})
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	sub := func(id string) string { return own.Sign(nil, payload(id)) }
	for name, c := range map[string]struct{ token, reason string }{
		"good":                                    {svid(api, nil), ""},
		"other audience":                          {svid(api, map[string]any{"aud": "https://other.example"}), trust.Audience},
		"second audience":                         {svid(api, map[string]any{"aud": []string{audience, "b"}}), trust.Audience},
		"no audience":                             {svid(api, map[string]any{"aud": nil}), trust.Audience},
		"other workload":                          {svid(api, map[string]any{"sub": "spiffe://example.org/ns/acme/sa/gadget"}), trust.NotTrusted},
		"workload below":                          {svid(api, map[string]any{"sub": workloadID + "/x"}), trust.NotTrusted},
		"federated domain, of no issuer":          {svid(api, map[string]any{"sub": "spiffe://other.example/ns/acme/sa/widget"}), identity.UnknownIssuer},
		"federated domain, by this domain's key":  {sub("spiffe://other.example/ns/acme/sa/widget"), identity.UnknownIssuer},
		"this domain, by the federated one's key": {federated.Sign(nil, payload(workloadID)), identity.UnknownKey},
		"no SPIFFE ID and no iss":                 {sub("spiffe://example.org/a/"), identity.TokenMalformed},
		"domain's own id":                         {sub("spiffe://example.org"), identity.TokenMalformed},
		"expired":                                 {svid(api, map[string]any{"exp": w.clock.now().Unix() - 60, "iat": w.clock.now().Unix() - 90}), identity.Expired},
		"no iat":                                  {svid(api, map[string]any{"iat": nil}), identity.TokenMalformed},
		"iss of an OpenID provider of the role":   {svid(api, map[string]any{"iss": w.issuerURL}), identity.UnknownKey},
		"token type":                              {own.Sign(map[string]any{"typ": "at+jwt"}, payload(workloadID)), identity.TokenType},
		"no kid":                                  {own.Sign(map[string]any{"kid": nil}, payload(workloadID)), identity.UnknownKey},
	} {
		if reason, _ := reasonOf(w.exchange("deploy", c.token)); reason != c.reason {
			t.Errorf("%s: %q; want %q", name, reason, c.reason)
		}
	}
	if made := len(w.keys.Live()); made != 1 {
		t.Errorf("%d keys were made; want that of the good SVID", made)
	}
}

// A token of an OpenID provider is that provider's, whatever its sub says, and the provider's keys decide.
func TestPickingAnIssuer(t *testing.T) {
	w, api := newSPIFFEWorld(t)
	w.write("trust/main", map[string]any{"bound_claims": map[string]any{"sub": workloadID}})
	resp, err := w.exchange("deploy", w.token(map[string]any{"sub": workloadID}))
	if reason, _ := reasonOf(resp, err); reason != "" || resp.Data["issuer"] != "github" {
		t.Errorf("provider's token with a SPIFFE ID: %q %v", reason, resp)
	}
	// The order of policies says nothing about the issuer.
	w.write("roles/deploy", map[string]any{"trust": "workload,main"})
	if reason, _ := reasonOf(w.exchange("deploy", svid(api, map[string]any{"iss": w.issuerURL}))); reason != identity.UnknownKey {
		t.Errorf("SVID with the provider's iss: %q; want %s", reason, identity.UnknownKey)
	}
	// Of two domains each has its own keys.
	w.write("issuers/other", map[string]any{"type": "spiffe", "trust_domain": "other.example", "workload_api": true, "issuer": "https://oidc.other.example"})
	w.write("trust/other", map[string]any{"issuer": "other", "bound_audiences": audience, "bound_subject": "spiffe://other.example/x"})
	w.write("roles/deploy", map[string]any{"trust": "workload,other"})
	other := map[string]any{"sub": "spiffe://other.example/x"}
	for name, c := range map[string]struct{ token, issuer, reason string }{
		"first":             {svid(api, nil), "domain", ""},
		"second":            {svid(api, other), "other", ""},
		"second, its iss":   {svid(api, map[string]any{"sub": other["sub"], "iss": "https://oidc.other.example"}), "other", ""},
		"second, other iss": {svid(api, map[string]any{"sub": other["sub"], "iss": "https://oidc.example.org"}), "", identity.UnknownIssuer},
		"first, any iss":    {svid(api, map[string]any{"iss": "https://oidc.example.org"}), "domain", ""},
	} {
		resp, err := w.exchange("deploy", c.token)
		reason, _ := reasonOf(resp, err)
		if reason != c.reason || reason == "" && resp.Data["issuer"] != c.issuer {
			t.Errorf("%s: %q %v; want %q by %s", name, reason, resp, c.reason, c.issuer)
		}
	}
	w.write("issuers/other", map[string]any{"enabled": false})
	if reason, _ := reasonOf(w.exchange("deploy", svid(api, other))); reason != reasonDisabled {
		t.Errorf("disabled: %q", reason)
	}
}

func TestKeysOfATrustDomain(t *testing.T) {
	w, api := newSPIFFEWorld(t)
	own := api.Domain("example.org")
	old := svid(api, nil)
	first, _ := own.Key()
	exchange := func(what, token, want string) {
		t.Helper()
		if reason, _ := reasonOf(w.exchange("deploy", token)); reason != want {
			t.Errorf("%s: %q; want %q\n%s", what, reason, want, w.logs)
		}
	}
	exchange("first key", old, "")
	own.Rotate()
	w.clock.advance(30 * time.Second)
	exchange("second key", svid(api, nil), "")
	exchange("first key beside it", old, "")
	own.Retire(first)
	w.write("refresh/domain", nil)
	exchange("retired key", old, identity.UnknownKey)
	exchange("second key", svid(api, nil), "")

	// A federated domain's bundle that cannot be read, and a key that cannot be used, leave the domain standing.
	api.Domain("other.example").SetJWKS([]byte(`{"keys":[{"kty":"RSA"`))
	own.Publish(map[string]any{"kty": "AKP", "kid": "new", "alg": "ML-DSA-44", "pub": "AA"})
	w.write("refresh/domain", nil)
	exchange("poison beside it", svid(api, nil), "")
	if got := w.issuerKeys("domain").Status(); got.Keys != 1 || got.Skipped["a key of an unsupported kind"] != 1 {
		t.Errorf("status: %+v", got)
	}

	last := svid(api, nil)
	api.Withdraw("example.org")
	if reason, _ := reasonOf(w.do(logical.UpdateOperation, "refresh/domain", nil)); reason != identity.IssuerUnavailable {
		t.Errorf("refreshing what was withdrawn: %q", reason)
	}
	exchange("withdrawn", last, identity.IssuerUnavailable)
}

// issuerKeys returns the verifier of an issuer, as the engine has it.
func (w *world) issuerKeys(name string) *identity.Verifier {
	w.t.Helper()
	made, err := w.engine.issuer(w.t.Context(), w.store, name)
	if err != nil || made == nil {
		w.t.Fatalf("issuer %q: %v", name, err)
	}
	return made.verifier
}

// What the Workload API says of its troubles is put in our own words, and only some of it takes keys back.
func TestWorkloadAPITrouble(t *testing.T) {
	w, api := newSPIFFEWorld(t)
	bundle := func(ctx context.Context, domain string) (string, bool) {
		_, err := w.workload.bundle(ctx, domain)
		if err == nil {
			return "", false
		}
		return err.Error(), errors.Is(err, identity.ErrWithdrawn)
	}
	withdrawn := ": " + identity.ErrWithdrawn.Error()
	for name, c := range map[string]struct {
		fault lab.Fault
		want  string
	}{
		"unavailable":   {lab.Fault{Kind: lab.KindStatus, Status: 503, Count: 1}, "the Workload API at SPIFFE_ENDPOINT_SOCKET cannot be reached"},
		"not permitted": {lab.Fault{Kind: lab.KindStatus, Status: 403, Count: 1}, "the Workload API does not know this plugin; register the plugin's process as a workload" + withdrawn},
		"broken":        {lab.Fault{Kind: lab.KindStatus, Status: 500, Count: 1}, "the Workload API answered Internal"},
	} {
		api.Fault(lab.OpBundles, c.fault)
		if got, gone := bundle(t.Context(), "example.org"); got != c.want || gone != strings.HasSuffix(c.want, withdrawn) {
			t.Errorf("%s: %q, withdrawn %t; want %q", name, got, gone, c.want)
		}
	}
	if got, gone := bundle(t.Context(), "other.example"); !gone || got != `the Workload API has no bundle of trust domain "other.example"`+withdrawn {
		t.Errorf("unknown domain: %q %t", got, gone)
	}
	api.Fault(lab.OpBundles, lab.Fault{Kind: lab.KindHang, Count: 1})
	ended, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if got, gone := bundle(ended, "example.org"); gone || got != "the Workload API did not answer in time" {
		t.Errorf("hanging: %q %t", got, gone)
	}
	api.Stop()
	if got, gone := bundle(t.Context(), "example.org"); gone || got != "the Workload API at SPIFFE_ENDPOINT_SOCKET cannot be reached" {
		t.Errorf("down: %q %t", got, gone)
	}
	w.refused("issuers/domain", map[string]any{"verify": true}, "verify")
}

// An agent that starts again is found at once.
func TestWorkloadAPIComesBack(t *testing.T) {
	w, api := newSPIFFEWorld(t)
	api.Stop()
	w.issuers.drop("domain")
	if reason, _ := reasonOf(w.exchange("deploy", svid(api, nil))); reason != identity.IssuerUnavailable {
		t.Errorf("down: %q", reason)
	}
	if err := api.Start(strings.TrimPrefix(string(w.workload), "unix://")); err != nil {
		t.Fatal(err)
	}
	w.clock.advance(30 * time.Second)
	if reason, _ := reasonOf(w.exchange("deploy", svid(api, nil))); reason != "" {
		t.Errorf("up again: %q", reason)
	}
}

// Without the variable an issuer that needs it is not saved; one that was saved is kept and has no keys.
func TestWorkloadAPIAddress(t *testing.T) {
	w, api := newSPIFFEWorld(t)
	for address, want := range map[string]string{
		"":                            "is not in the plugin's environment; register the plugin with: vault plugin register -env=SPIFFE_ENDPOINT_SOCKET=unix:///",
		"tcp://127.0.0.1:8081":        "is not the address of a Unix socket",
		"unix://agent/socket":         "is not the address of a Unix socket",
		"unix:socket":                 "is not the address of a Unix socket",
		"unix:///socket?x":            "is not the address of a Unix socket",
		"/run/spire/agent.sock":       "is not the address of a Unix socket",
		"https://agent.example":       "is not the address of a Unix socket",
		"dns:///agent.example:8081":   "is not the address of a Unix socket",
		"unix-abstract:agent":         "is not the address of a Unix socket",
		"passthrough:///127.0.0.1:80": "is not the address of a Unix socket",
	} {
		t.Setenv(endpointSocket, address)
		w.restart()
		resp, err := w.do(logical.UpdateOperation, "issuers/domain", map[string]any{"description": "d"})
		if reason, _ := reasonOf(resp, err); reason != reasonBadRequest || !strings.Contains(resp.Error().Error(), "bad_request: workload_api: SPIFFE_ENDPOINT_SOCKET ") || !strings.Contains(resp.Error().Error(), want) {
			t.Errorf("%q: %v %v; want %q", address, resp, err, want)
		}
		if reason, _ := reasonOf(w.exchange("deploy", svid(api, nil))); reason != identity.IssuerUnavailable {
			t.Errorf("%q: %q; want %s", address, reason, identity.IssuerUnavailable)
		}
	}
}

func TestSPIFFEIssuerFields(t *testing.T) {
	w, _ := newSPIFFEWorld(t)
	domain := func(more ...any) map[string]any {
		data := map[string]any{"type": "spiffe", "trust_domain": "third.example", "workload_api": true}
		for i := 0; i < len(more); i += 2 {
			data[more[i].(string)] = more[i+1]
		}
		return data
	}
	for _, c := range []struct {
		data  map[string]any
		field string
	}{
		{map[string]any{"type": "spiffe", "workload_api": true}, "trust_domain"},
		{domain("trust_domain", "spiffe://third.example"), "trust_domain"},
		{domain("trust_domain", "Third.example"), "trust_domain"},
		{domain("trust_domain", "example.org"), "trust_domain"}, // another entry has it
		{domain("workload_api", false), "workload_api, oidc_discovery_url, jwks_url, jwt_validation_pubkeys"},
		{domain("jwks_url", "https://third.example/bundle"), "workload_api, oidc_discovery_url, jwks_url, jwt_validation_pubkeys"},
		{domain("issuer", w.issuerURL), "issuer"}, // an OpenID provider has it
		{domain("issuer", "spire"), "issuer"},
		{domain("single_use", true), "single_use"},
		{domain("allowed_types", "JWT"), "allowed_types"},
		{domain("jti_claim", "uti"), "jti_claim"},
		{domain("mount_accessor", "a"), "mount_accessor"},
		{domain("stable_metadata", "a"), "stable_metadata"},
		{domain("jwt_supported_algs", "HS256"), "jwt_supported_algs"},
		{map[string]any{"oidc_discovery_url": "https://i.example", "trust_domain": "third.example"}, "trust_domain"},
		{map[string]any{"oidc_discovery_url": "https://i.example", "workload_api": true}, "workload_api"},
		{map[string]any{"type": "login", "mount_accessor": "a", "trust_domain": "third.example"}, "trust_domain"},
		{map[string]any{"type": "login", "mount_accessor": "a", "workload_api": true}, "workload_api"},
	} {
		w.refused("issuers/i", c.data, c.field)
	}
	w.refused("issuers/domain", map[string]any{"trust_domain": nil}, "trust_domain")
	w.refused("issuers/domain", map[string]any{"single_use": true}, "single_use")
	w.refused("issuers/domain", map[string]any{"type": "oidc"}, "type")

	w.write("issuers/third", domain("issuer", "https://third.example", "single_use", false))
	w.refused("issuers/i", map[string]any{"oidc_discovery_url": "https://third.example"}, "issuer") // a trust domain has it
	w.refused("issuers/i", domain("trust_domain", "fourth.example", "issuer", "https://third.example"), "issuer")
	w.write("issuers/third", map[string]any{"single_use": nil, "allowed_types": nil, "description": "d"})
	got := w.read("issuers/third")
	for field, want := range map[string]any{
		"type": "spiffe", "trust_domain": "third.example", "workload_api": true, "issuer": "https://third.example",
		"single_use": false, "allowed_types": []any{"absent", "JWT", "JOSE"}, "jti_claim": "jti", "jwt_supported_algs": []any{"RS256", "ES256"},
	} {
		if diff := cmp.Diff(want, got[field]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", field, diff)
		}
	}
	// With discovery the issuer is where that is.
	w.write("issuers/fourth", map[string]any{"type": "spiffe", "trust_domain": "fourth.example", "oidc_discovery_url": "https://oidc.fourth.example"})
	if got := w.read("issuers/fourth")["issuer"]; got != "https://oidc.fourth.example" {
		t.Errorf("issuer of a discovery address: %v", got)
	}
}

// The warnings are about OpenID providers; a SPIFFE ID is one that a policy may bind.
func TestPolicyOfATrustDomain(t *testing.T) {
	w, _ := newSPIFFEWorld(t)
	if resp := w.write("issuers/domain", map[string]any{"description": "d"}); resp != nil {
		t.Errorf("warned of what cannot be otherwise: %v", resp.Warnings)
	}
	if resp := w.write("trust/workload", map[string]any{"bound_claims": map[string]any{"repository": "acme/widget"}}); resp != nil {
		t.Errorf("warned of a provider's claims: %v", resp.Warnings)
	}
	w.refused("trust/any", map[string]any{"issuer": "domain", "bound_subject": workloadID}, "bound_audiences")
	w.refused("trust/any", map[string]any{"issuer": "domain", "bound_audiences": audience}, "accept_any_subject")
}

func TestExplainBySVID(t *testing.T) {
	w, api := newSPIFFEWorld(t)
	sample := func(sub string) map[string]any {
		return map[string]any{"issuer": "domain", "claims": map[string]any{"sub": sub, "aud": audience}}
	}
	for name, c := range map[string]struct {
		data   map[string]any
		reason string
	}{
		"SVID":               {map[string]any{"subject_token": svid(api, nil)}, ""},
		"SVID of another":    {map[string]any{"subject_token": svid(api, map[string]any{"sub": "spiffe://example.org/x"})}, trust.NotTrusted},
		"SVID of a stranger": {map[string]any{"subject_token": svid(api, map[string]any{"sub": "spiffe://other.example/x"})}, identity.UnknownIssuer},
		"sample":             {sample(workloadID), ""},
		"sample of another":  {sample("spiffe://example.org/x"), trust.NotTrusted},
	} {
		got := w.write("explain/deploy", c.data).Data
		if got["reason"] != c.reason || c.reason != identity.UnknownIssuer && got["issuer"] != "domain" {
			t.Errorf("%s: %v; want %q", name, got, c.reason)
		}
	}
	for _, sub := range []string{"spiffe://other.example/x", "spiffe://example.org", "spiffe://example.org/x/", "repo:acme/widget"} {
		w.refused("explain/deploy", sample(sub), "claims")
	}
	w.write("roles/deploy", map[string]any{"trust": "main"})
	if got := w.write("explain/deploy", sample(workloadID)).Data["reason"]; got != identity.UnknownIssuer {
		t.Errorf("sample of an issuer that the role does not trust: %v", got)
	}
}

// A profile is told the trust domain, for an SVID has no iss that means anything.
func TestTargetLearnsTheTrustDomain(t *testing.T) {
	w, api := newSPIFFEWorld(t)
	told := w.profile(`"scopes": params.scopes`, `"scopes": [subject.issuer]`)
	w.write("targets/acme", map[string]any{"profile": told, "credential": "token=" + adminToken})
	if reason, _ := reasonOf(w.exchange("deploy", svid(api, map[string]any{"iss": "https://oidc.example.org"}))); reason != "" {
		t.Fatalf("%s\n%s", reason, w.logs)
	}
	if got := w.keys.Live()[0].Scopes; !cmp.Equal(got, []string{"spiffe://example.org"}) {
		t.Errorf("the target was told %q", got)
	}
}
