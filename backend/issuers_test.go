// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"
)

// A field that would have no effect for an issuer's type is refused by its name, when the issuer is made and later.
func TestIssuerFieldsOfOtherTypes(t *testing.T) {
	w, _ := newSPIFFEWorld(t)
	other := map[string]any{ // a value of each field that it does not have by itself
		"issuer": "https://other.example", "oidc_discovery_url": "https://other.example", "jwks_url": "https://other.example/keys", "jwt_validation_pubkeys": w.issuerPEM(),
		"ca_pem": w.ca, "proxy_url": "https://proxy.example", "jwks_hosts": "keys.example", "jwt_supported_algs": "PS256", "clock_skew_leeway": "1s", "max_age": "7m",
		"max_token_lifetime": "7m", "record_claims": "x", "forward_to": "api.example", "allowed_types": "at+jwt", "jti_claim": "uti",
		"trust_domain": "other.example", "workload_api": "true", "mount_accessor": "auth_other_1", "stable_metadata": "x", "verify": true,
	}
	tokens := []string{"issuer", "oidc_discovery_url", "jwks_url", "jwt_validation_pubkeys", "ca_pem", "proxy_url", "jwks_hosts", "jwt_supported_algs",
		"clock_skew_leeway", "max_age", "max_token_lifetime", "record_claims", "forward_to", "verify"}
	for kind, c := range map[string]struct {
		existing string
		least    map[string]any
		fields   []string
	}{
		issuerOIDC:   {"github", map[string]any{"oidc_discovery_url": "https://i.example"}, append(slices.Clone(tokens), "allowed_types", "single_use", "jti_claim")},
		issuerSPIFFE: {"domain", map[string]any{"type": "spiffe", "trust_domain": "i.example", "jwks_url": "https://i.example"}, append(slices.Clone(tokens), "trust_domain", "workload_api")},
		issuerLogin:  {"people", map[string]any{"type": "login", "mount_accessor": "auth_i_1"}, []string{"mount_accessor", "stable_metadata"}},
	} {
		other["single_use"] = kind == issuerSPIFFE
		for field, value := range other {
			if slices.Contains(c.fields, field) {
				continue
			}
			data := map[string]any{field: value}
			w.refused("issuers/"+c.existing, data, field)
			for name, value := range c.least {
				data[name] = value
			}
			w.refused("issuers/i", data, field)
		}
		w.write("issuers/i", c.least)
		w.delete("issuers/i", nil)

		all := w.read("issuers/" + c.existing)
		w.write("issuers/"+c.existing, all)
		if diff := cmp.Diff(all, w.read("issuers/"+c.existing)); diff != "" {
			t.Errorf("%s: written as it was read (-want +got):\n%s", kind, diff)
		}
	}
	for field := range issuerFields {
		if other[field] == nil && !slices.Contains([]string{"name", "type", "enabled", "description", "custom_metadata"}, field) {
			t.Errorf("%s: which types it is for is not tried", field)
		}
	}
}

// What an earlier version took stands: it is read, used and edited.
func TestIssuerKeepsAFieldOfAnotherType(t *testing.T) {
	w := newWorld(t)
	record, err := w.issuerNoun.table.get(t.Context(), w.store.Storage, "people")
	if err == nil {
		record.MaxAge = 60
		err = w.issuerNoun.table.put(t.Context(), w.store.Storage, "people", record)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.write("issuers/people", map[string]any{"description": "staff"})
	if resp, err := w.do(logical.ReadOperation, "creds/deploy", nil); err != nil || resp.IsError() {
		t.Errorf("a login: %v %v", resp, err)
	}
	all := w.read("issuers/people")
	w.write("issuers/people", all)
	w.refused("issuers/people", map[string]any{"max_age": 61}, "max_age")
	w.write("issuers/people", map[string]any{"max_age": nil})
	if got := w.read("issuers/people")["max_age"]; got != json.Number("3600") {
		t.Errorf("set back to its default it is %v", got)
	}
}
