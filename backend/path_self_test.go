// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

const fedAudience = "https://fed.example"

// federated is the example of a profile that is shipped for an API that trusts this mount.
func federated(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("../bootstrap/targets/federated.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// selfWorld is a world whose mount is an OpenID provider, with an API that trusts it.
type selfWorld struct {
	*world
	issuer  string // issuer_url
	trusted *lab.Relying
	fed     *lab.KeyAPI
}

// newSelfWorld makes target fed, whose API makes keys for role:fed alone, and role fed.
func newSelfWorld(t testing.TB) *selfWorld {
	t.Helper()
	w := &selfWorld{world: newWorld(t)}
	w.issuer = w.serve(http.HandlerFunc(w.documents)) + "/v1/oidcexchange/oidc"
	w.trusted = &lab.Relying{Issuer: w.issuer, Audience: fedAudience, Subject: "role:fed", Client: w.client(), Now: w.clock.now}
	w.fed = lab.NewKeyAPI(lab.KeyAPIOptions{AdminToken: adminToken, MayCreate: w.trusted.Accepts, Now: w.clock.now})
	w.write("self", map[string]any{"issuer_url": w.issuer})
	w.write("targets/fed", map[string]any{"driver": "http", "url": w.serve(w.fed), "profile": federated(t), "ca_pem": w.ca, "credential": "token=" + adminToken, "allowed_roles": "*", "audience": fedAudience})
	w.write("roles/fed", map[string]any{"trust": "main,alice", "target": "fed", "parameters": "project=widget", "max_ttl": "2h"})
	return w
}

// documents serves the mount's public documents, as Vault does.
func (w *selfWorld) documents(rw http.ResponseWriter, r *http.Request) {
	req := &logical.Request{Operation: logical.ReadOperation, Path: strings.TrimPrefix(r.URL.Path, "/v1/oidcexchange/"), Storage: w.store, Unauthenticated: true}
	resp, err := w.HandleRequest(r.Context(), req)
	if err != nil || resp == nil || resp.Data[logical.HTTPRawBody] == nil {
		rw.WriteHeader(http.StatusInternalServerError)
		return
	}
	rw.Header().Set("Content-Type", resp.Data[logical.HTTPContentType].(string))
	rw.Header().Set("Cache-Control", resp.Data[logical.HTTPCacheControlHeader].(string))
	rw.WriteHeader(resp.Data[logical.HTTPStatusCode].(int))
	_, _ = rw.Write(resp.Data[logical.HTTPRawBody].([]byte))
}

// ask wants a key of the role fed, and returns the claims of the token that its API was shown.
func (w *selfWorld) ask(op logical.Operation, path string, data map[string]any) (*logical.Response, map[string]any) {
	w.t.Helper()
	before := len(w.trusted.Presented())
	resp, err := w.do(op, path, data)
	if err != nil || resp.IsError() {
		w.t.Fatalf("asking: %v %v\n%s", err, resp, w.logs)
	}
	shown := w.trusted.Presented()
	if len(shown) != before+1 {
		w.t.Fatalf("%d tokens were presented; want one", len(shown)-before)
	}
	var claims map[string]any
	if err := json.Unmarshal(segment(w.t, shown[before], 1), &claims); err != nil {
		w.t.Fatal(err)
	}
	return resp, claims
}

// refusedAsking wants a refusal that reached no target, and that wrote nothing.
func (w *selfWorld) refusedAsking(reason string, status int, data map[string]any) {
	w.t.Helper()
	w.store.set(nil)
	calls := w.fed.Calls(lab.OpCreate)
	if got, code := reasonOf(w.do(logical.UpdateOperation, "creds/fed", data)); got != reason || code != status {
		w.t.Errorf("got %q %d; want %s %d\n%s", got, code, reason, status, w.logs)
	}
	for _, op := range w.store.seen {
		if !strings.HasPrefix(op, "get ") {
			w.t.Errorf("a refused request did: %s", op)
		}
	}
	if w.fed.Calls(lab.OpCreate) != calls {
		w.t.Error("a refused request reached the target")
	}
}

func TestSelfTokenIsAccepted(t *testing.T) {
	w := newSelfWorld(t)
	now := float64(w.clock.now().Unix())
	token := w.token(nil)
	for name, c := range map[string]struct {
		op              logical.Operation
		data            map[string]any
		issuer, subject string
	}{
		"by login": {logical.ReadOperation, nil, "people", "alice"},
		"by token": {logical.UpdateOperation, map[string]any{"subject_token": token}, "github", "repo:acme/widget:ref:refs/heads/main"},
	} {
		resp, claims := w.ask(c.op, "creds/fed", c.data)
		if !w.fed.Valid(resp.Data["api_key"].(string)) {
			t.Errorf("%s: no key lives", name)
		}
		if id, _ := claims["jti"].(string); len(id) < 22 {
			t.Errorf("%s: jti %q", name, id)
		}
		delete(claims, "jti")
		want := map[string]any{
			"iss": w.issuer, "sub": "role:fed", "aud": fedAudience, "iat": now, "nbf": now - 30, "exp": now + 300, "role": "fed",
			"mount": "oidcexchange", "entity_id": "entity-1", "entity_name": "ci", "subject_issuer": c.issuer, "subject": c.subject,
		}
		if diff := cmp.Diff(want, claims); diff != "" {
			t.Errorf("%s: claims (-want +got):\n%s", name, diff)
		}
		w.revoke(resp)
	}
	if len(w.fed.Live()) != 0 || len(w.ledgerEntries()) != 0 {
		t.Errorf("after revoke %v live, ledger has %v", w.fed.Live(), w.ledgerEntries())
	}
	for _, shown := range w.trusted.Presented() {
		if strings.Contains(w.logs.String(), shown) || strings.Contains(w.logs.String(), strings.Split(shown, ".")[2]) {
			t.Error("the log holds a token")
		}
	}
}

func TestSelfSubject(t *testing.T) {
	w := newSelfWorld(t)
	w.write("targets/fed", map[string]any{"self_subject": "entity"})
	w.trusted.Subject = "entity:entity-1"
	if _, claims := w.ask(logical.ReadOperation, "creds/fed", nil); claims["sub"] != "entity:entity-1" || claims["role"] != "fed" {
		t.Errorf("claims %v", claims)
	}
	// A caller by token needs no entity, unless the target does.
	ask := func(token string) (*logical.Response, error) {
		return w.HandleRequest(t.Context(), &logical.Request{ID: "r", Operation: logical.UpdateOperation, Path: "creds/fed", Data: map[string]any{"subject_token": token}, Storage: w.store})
	}
	calls, token := w.fed.Calls(lab.OpCreate), w.token(nil)
	w.store.set(nil)
	if reason, status := reasonOf(ask(token)); reason != reasonNoEntity || status != http.StatusForbidden {
		t.Errorf("without an entity: %q %d; want %s", reason, status, reasonNoEntity)
	}
	if w.fed.Calls(lab.OpCreate) != calls || slices.ContainsFunc(w.store.seen, func(op string) bool { return strings.HasPrefix(op, "put ") }) {
		t.Errorf("the refusal reached the target or wrote: %v", w.store.seen)
	}
	w.write("targets/fed", map[string]any{"self_subject": "role"})
	w.trusted.Subject = "role:fed"
	if reason, _ := reasonOf(ask(token)); reason != "" {
		t.Fatalf("for the role: refused for %s\n%s", reason, w.logs)
	}
	var claims map[string]any
	shown := w.trusted.Presented()
	if err := json.Unmarshal(segment(t, shown[len(shown)-1], 1), &claims); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"entity_id", "entity_name"} {
		if value, there := claims[name]; there {
			t.Errorf("%s is %v without an entity", name, value)
		}
	}
	// An entity that is gone or disabled is no entity.
	w.system.EntityVal.Disabled = true
	w.refusedAsking(reasonNoEntity, 403, map[string]any{"subject_token": w.token(nil)})
}

func TestSelfOff(t *testing.T) {
	w := newSelfWorld(t)
	w.write("self", map[string]any{"issuer_url": ""})
	w.refusedAsking(reasonDisabled, 403, map[string]any{"subject_token": w.token(nil)})
	if !strings.Contains(w.logs.String(), "self has no issuer_url") {
		t.Errorf("the log does not say what is missing:\n%s", w.logs)
	}
	if got := w.write("explain/fed", nil); got.Data["accepted"] != false || got.Data["reason"] != reasonDisabled {
		t.Errorf("explain says %v", got.Data)
	}
	resp := w.write("targets/fed", map[string]any{"description": "x"})
	if resp == nil || len(resp.Warnings) != 1 || !strings.Contains(resp.Warnings[0], "issuer_url") {
		t.Errorf("a target that needs what is off is saved with %v", resp)
	}
	if got := w.read("self"); !cmp.Equal(got["key_ids"], []string{}) || got["next_rotation"] != nil || got["issuer_url"] != "" {
		t.Errorf("read shows %v", got)
	}
	stored, err := w.store.Get(t.Context(), selfName)
	if err != nil || strings.Contains(string(stored.Value), `"d":`) {
		t.Errorf("a private key is still stored: %v %s", err, stored.Value)
	}
	w.write("self", map[string]any{"issuer_url": w.issuer})
	w.ask(logical.ReadOperation, "creds/fed", nil)
}

func TestSelfFieldsNameTheirFaults(t *testing.T) {
	w := newSelfWorld(t)
	before := w.read("self")
	for _, c := range []struct {
		data  map[string]any
		field string
	}{
		{map[string]any{"issuer_url": nil}, "issuer_url"},
		{map[string]any{"issuer_url": "http://vault.example/v1/o/oidc"}, "issuer_url"},
		{map[string]any{"issuer_url": "http://127.0.0.1:8200/v1/o/oidc"}, "issuer_url"}, // without allow_http_loopback
		{map[string]any{"issuer_url": "https://vault.example/v1/o/oidc/"}, "issuer_url"},
		{map[string]any{"issuer_url": "https://vault.example"}, ""},
		{map[string]any{"issuer_url": "https://vault.example/"}, "issuer_url"},
		{map[string]any{"issuer_url": "https://vault.example/v1/o/oidc/.well-known/openid-configuration"}, "issuer_url"},
		{map[string]any{"issuer_url": "https://vault.example/v1/o/oidc?a=b"}, "issuer_url"},
		{map[string]any{"issuer_url": "https://vault.example/v1/o/oidc#a"}, "issuer_url"},
		{map[string]any{"issuer_url": "https://Vault.example/v1/o/oidc"}, "issuer_url"},
		{map[string]any{"issuer_url": "https://vault.example:443/v1/o/oidc"}, "issuer_url"},
		{map[string]any{"issuer_url": "https://a@vault.example/v1/o/oidc"}, "issuer_url"},
		{map[string]any{"issuer_url": "https://vault.example/" + strings.Repeat("a", 1024)}, "issuer_url"},
		{map[string]any{"issuer_url": w.issuerURL}, "issuer_url"}, // the entry github has it
		{map[string]any{"issuer_url": 7}, "issuer_url"},
		{map[string]any{"algorithm": "HS256"}, "algorithm"},
		{map[string]any{"algorithm": "none"}, "algorithm"},
		{map[string]any{"algorithm": "es256"}, "algorithm"},
		{map[string]any{"algorithm": ""}, "algorithm"},
		{map[string]any{"rotation_period": "9m59s"}, "rotation_period"},
		{map[string]any{"rotation_period": "8761h"}, "rotation_period"},
		{map[string]any{"rotation_period": 0}, "rotation_period"},
		{map[string]any{"ttl": "5m1s"}, "ttl"},
		{map[string]any{"ttl": "29s"}, "ttl"},
		{map[string]any{"ttl": 0}, "ttl"},
		{map[string]any{"ring": map[string]any{}}, "ring"},
		{map[string]any{"key_ids": "a"}, "key_ids"},
	} {
		if c.field == "" {
			w.write("self", c.data)
			w.write("self", map[string]any{"issuer_url": w.issuer})
			continue
		}
		w.refused("self", c.data, c.field)
	}
	if diff := cmp.Diff(before, w.read("self")); diff != "" {
		t.Errorf("refused writes changed something: %s", diff)
	}
	w.refused("targets/acme", map[string]any{"self_subject": "role"}, "self_subject")
	w.refused("targets/fed", map[string]any{"self_subject": "claims.sub"}, "self_subject")
	w.refused("targets/fed", map[string]any{"subject_token_source": "self", "audience": "a\nb"}, "audience")

	w.write("self", map[string]any{"rotation_period": "1h", "ttl": "1m", "algorithm": "ES256"})
	w.write("self", map[string]any{"rotation_period": nil, "ttl": nil, "algorithm": nil})
	if diff := cmp.Diff(before, w.read("self")); diff != "" {
		t.Errorf("null is not the default: %s", diff)
	}
	w.write("config", map[string]any{"allow_http_loopback": true})
	w.write("self", map[string]any{"issuer_url": "http://127.0.0.1:8200/v1/o/oidc"})
}

func TestSelfRead(t *testing.T) {
	w := newSelfWorld(t)
	got := w.read("self")
	due := w.clock.now().UTC().Add(24 * time.Hour).Format(time.RFC3339)
	record, err := loadSelf(t.Context(), w.store)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"issuer_url": w.issuer, "algorithm": "ES256", "rotation_period": json.Number("86400"), "ttl": json.Number("300"),
		"key_ids": []string{record.Ring.Current.Key.KeyID, record.Ring.Next.Key.KeyID}, "next_rotation": due,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("read (-want +got):\n%s", diff)
	}
	// With each algorithm, nothing private is read anywhere.
	for _, alg := range selfAlgorithms {
		w.write("self", map[string]any{"algorithm": alg})
		w.clock.advance(keyLead)
		w.periodic()
		record, err := loadSelf(t.Context(), w.store)
		if err != nil || record.Ring.Current.Key.Algorithm != alg {
			t.Fatalf("%s: %v, the key that signs is of %s", alg, err, record.Ring.Current.Key.Algorithm)
		}
		var private struct{ D string }
		if raw, err := record.Ring.Current.Key.MarshalJSON(); err != nil || json.Unmarshal(raw, &private) != nil || private.D == "" {
			t.Fatalf("%s: no private key to look for: %v", alg, err)
		}
		for _, path := range []string{"self", "oidc" + discoveryPath, "oidc" + keysPath} {
			if text := fmt.Sprintf("%s", w.read(path)); strings.Contains(text, private.D) || strings.Contains(text, `"d"`) {
				t.Errorf("%s: %s shows a private key", alg, path)
			}
		}
		if strings.Contains(w.logs.String(), private.D) {
			t.Errorf("%s: the log holds a private key", alg)
		}
	}
}

func TestPublishedDocuments(t *testing.T) {
	w := newSelfWorld(t)
	special := w.SpecialPaths()
	for _, path := range []string{"oidc/.well-known/openid-configuration", "oidc/.well-known/keys"} {
		if !slices.Contains(special.Unauthenticated, path) {
			t.Errorf("%s asks for a Vault token", path)
		}
		w.store.set(func(string, string) error { return errors.New("storage was asked") })
		got := w.read(path)
		w.store.set(nil)
		if got[logical.HTTPStatusCode] != 200 || got[logical.HTTPContentType] != "application/json" || got[logical.HTTPCacheControlHeader] != "public, max-age=300" {
			t.Errorf("%s: %v", path, got)
		}
		if busted, err := w.do(logical.ReadOperation, path, map[string]any{"_": "1767323045"}); err != nil || !cmp.Equal(busted.Data, got) {
			t.Errorf("%s with a query: %v %v", path, busted, err)
		}
		if !json.Valid(got[logical.HTTPRawBody].([]byte)) {
			t.Errorf("%s is no JSON: %s", path, got[logical.HTTPRawBody])
		}
	}
	if len(special.Unauthenticated) != 2 {
		t.Errorf("without a Vault token: %v", special.Unauthenticated)
	}
	if !slices.Contains(special.SealWrapStorage, selfName) || slices.Contains(special.LocalStorage, selfName) {
		t.Errorf("self is stored as %+v", special)
	}
	off := newWorld(t)
	for _, path := range special.Unauthenticated {
		got := off.read(path)
		if got[logical.HTTPStatusCode] != 404 || got[logical.HTTPCacheControlHeader] != "no-store" || !json.Valid(got[logical.HTTPRawBody].([]byte)) {
			t.Errorf("%s while self is off: %v", path, got)
		}
	}
	if stored := off.stored(selfName); len(stored) != 0 {
		t.Errorf("reading wrote %v", stored)
	}
}

// Whatever a role, a request or a caller's entity holds, the token says what was verified.
func TestSelfCannotBeTold(t *testing.T) {
	w := newSelfWorld(t)
	profile := strings.Replace(federated(t), "  project: {", "  aud: {}\n  sub: {}\n  iss: {}\n  role: {}\n  project: {", 1)
	w.write("targets/fed", map[string]any{"profile": profile, "credential": "token=" + adminToken, "custom_metadata": map[string]any{"sub": "role:admin", "aud": "x"}})
	w.write("roles/fed", map[string]any{
		"parameters": map[string]any{"project": "widget", "aud": "https://evil.example", "sub": "role:admin"}, "allowed_parameters": "iss,role",
		"lease_path": "claims.repository", "custom_metadata": map[string]any{"sub": "role:admin"}, "trust": "main",
	})
	name := "bob\"},\"sub\":\"role:admin\u202e\x00 {{identity.entity.id}} <script>" + strings.Repeat("n", 4000)
	w.system.EntityVal.Name = name
	w.system.EntityVal.Metadata["sub"] = "role:admin"
	token := w.token(map[string]any{"role": "admin", "entity_id": "root", "mount": "other"})
	data := map[string]any{"subject_token": token, "parameters": map[string]any{"iss": "https://evil.example", "role": "admin"}}
	_, claims := w.ask(logical.UpdateOperation, "creds/fed/acme/widget", data)
	want := map[string]any{
		"iss": w.issuer, "sub": "role:fed", "aud": fedAudience, "role": "fed", "mount": "oidcexchange",
		"entity_id": "entity-1", "entity_name": name, "subject_issuer": "github", "subject": "repo:acme/widget:ref:refs/heads/main",
	}
	for _, made := range []string{"jti", "iat", "nbf", "exp"} {
		delete(claims, made)
	}
	if diff := cmp.Diff(want, claims); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
}
