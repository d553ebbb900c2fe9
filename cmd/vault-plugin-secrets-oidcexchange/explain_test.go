// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// An operator finds out why a token is refused without reading code or logs, and without any effect.
func testExplain(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	w.write(t, "trust/main", map[string]any{"condition": `claims.ref == "refs/heads/main"`})
	token := w.token(map[string]any{"ref": "refs/heads/evil"})
	told := w.write(t, "explain/deploy", map[string]any{"subject_token": token}).Data
	var got struct {
		Accepted bool
		Reason   string
		Token    map[string]any
		IDs      map[string]any
		Issuers  []struct {
			Issuer   string
			Accepted bool
		}
		Policies []struct {
			Trust      string
			Conditions []struct {
				Condition string
				Holds     bool
				Saw       any
			}
		}
	}
	raw, err := json.Marshal(told)
	if err == nil {
		err = json.Unmarshal(raw, &got)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got.Accepted || got.Reason != "not_trusted" || got.Token["iss"] != w.issuerURL || got.IDs["repository"] != "acme/widget" {
		t.Errorf("%s", raw)
	}
	issuers := map[string]bool{}
	for _, one := range got.Issuers {
		issuers[one.Issuer] = one.Accepted
	}
	if diff := cmp.Diff(map[string]bool{"github": true, "people": false}, issuers); diff != "" {
		t.Errorf("issuers (-want +got):\n%s", diff)
	}
	conditions := map[string]bool{}
	for _, c := range got.Policies[0].Conditions {
		conditions[c.Condition] = c.Holds
	}
	if diff := cmp.Diff(map[string]bool{"bound_audiences": true, "bound_claims.repository": true, "condition": false}, conditions); diff != "" {
		t.Errorf("conditions (-want +got):\n%s", diff)
	}
	w.wantNone(t)

	good := w.token(nil)
	if told := w.write(t, "explain/deploy", map[string]any{"subject_token": good}).Data; told["accepted"] != true {
		t.Errorf("%v", told)
	}
	if _, err := w.exchange(t, "deploy", good); err != nil {
		t.Errorf("explaining used the token up: %v", err)
	}
	if told := w.write(t, "explain/deploy", map[string]any{"subject_token": good}).Data; told["reason"] != "replayed" {
		t.Errorf("a used token: %v", told["reason"])
	}
}
