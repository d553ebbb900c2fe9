// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// The periodic call rotates keys, however the sweep goes; tokens are accepted on both sides of it by who keeps the keys.
func TestSelfRotates(t *testing.T) {
	t.Parallel()
	w := newSelfWorld(t)
	var kids []string
	var held []*logical.Response
	for range 4 {
		resp, _ := w.ask(logical.ReadOperation, "creds/fed", nil)
		held = append(held, resp)
		shown := w.trusted.Presented()
		var header struct{ Kid string }
		if err := json.Unmarshal(segment(t, shown[len(shown)-1], 0), &header); err != nil {
			t.Fatal(err)
		}
		kids = append(kids, header.Kid)
		if published := w.read("self")["key_ids"].([]string); published[0] != header.Kid {
			t.Errorf("%s signs; key_ids begins with %s", header.Kid, published[0])
		}
		w.clock.advance(24*time.Hour - time.Minute)
		w.periodic()
		if got := w.read("self")["key_ids"].([]string)[0]; got != header.Kid {
			t.Errorf("rotated before its time: %s", got)
		}
		w.clock.advance(time.Minute)
		w.store.set(func(_, key string) error { // the sweep's own storage is gone
			if key == selfName {
				return nil
			}
			return errors.New("no route to storage")
		})
		w.sweeps.Lock() // as by one that does not end
		w.periodic()
		w.sweeps.Unlock()
		w.store.set(nil)
	}
	slices.Sort(kids)
	if len(slices.Compact(kids)) != 4 {
		t.Errorf("signed with %v; want another key each day", kids)
	}
	for _, resp := range held {
		w.revoke(resp)
	}
}

// A node that may not write does not rotate; what it has signs on.
func TestSelfRotatesWhereItMayWrite(t *testing.T) {
	t.Parallel()
	for _, state := range []consts.ReplicationState{consts.ReplicationPerformanceStandby, consts.ReplicationPerformanceSecondary, consts.ReplicationDRSecondary} {
		w := newSelfWorld(t)
		w.clock.advance(48 * time.Hour)
		w.system.ReplicationStateVal = state
		before := w.read("self")["key_ids"]
		w.store.set(nil)
		w.periodic()
		if slices.Contains(w.store.seen, "put "+selfName) || !cmp.Equal(w.read("self")["key_ids"], before) {
			t.Errorf("%v rotated", state)
		}
		w.system.ReplicationStateVal = 0
		w.ask(logical.ReadOperation, "creds/fed", nil) // though the rotation is late
		w.periodic()
		if cmp.Equal(w.read("self")["key_ids"], before) {
			t.Error("the active node did not rotate")
		}
	}
	w := newSelfWorld(t)
	w.store.set(func(op, _ string) error {
		if op == "get" {
			return nil
		}
		return logical.ErrReadOnly
	})
	if _, err := w.do(logical.UpdateOperation, "self", map[string]any{"ttl": "1m"}); err == nil || !strings.Contains(err.Error(), logical.ErrReadOnly.Error()) {
		t.Errorf("writing: %v; want what Vault forwards for", err)
	}
}

// Whatever becomes of the one write, before or after it was done, tokens are signed by a key that is published.
func TestSelfWriteOfUnknownOutcome(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*selfWorld){
		"rotation":  func(w *selfWorld) { w.clock.advance(24 * time.Hour); w.periodic() },
		"algorithm": func(w *selfWorld) { _, _ = w.do(logical.UpdateOperation, "self", map[string]any{"algorithm": "EdDSA"}) },
		"off":       func(w *selfWorld) { _, _ = w.do(logical.UpdateOperation, "self", map[string]any{"issuer_url": ""}) },
		"first": func(w *selfWorld) {
			_, _ = w.do(logical.UpdateOperation, "self", map[string]any{"issuer_url": w.issuer})
		},
	} {
		for _, written := range []bool{false, true} {
			for _, restarted := range []bool{false, true} {
				w := newSelfWorld(t)
				if name == "first" {
					w.write("self", map[string]any{"issuer_url": ""})
				}
				w.failPut(written)
				change(w)
				w.store.set(nil)
				if restarted {
					w.restart()
				}
				on := written != (name == "off") || name != "first" && name != "off"
				reason, _ := reasonOf(w.do(logical.ReadOperation, "creds/fed", nil))
				if on && reason != "" || !on && reason != reasonDisabled {
					t.Errorf("%s, written %v, restarted %v: %q\n%s", name, written, restarted, reason, w.logs)
				}
				w.periodic()
				w.write("self", map[string]any{"issuer_url": w.issuer})
				w.ask(logical.ReadOperation, "creds/fed", nil)
			}
		}
	}
}

// failPut makes every write of self fail, done or not.
func (w *selfWorld) failPut(written bool) {
	inner := w.store.Storage
	w.store.Storage = &lossy{Storage: inner, written: written}
	w.t.Cleanup(func() { w.store.Storage = inner })
}

// lossy loses the answer to the first write of self.
type lossy struct {
	logical.Storage
	written, done bool
}

func (l *lossy) Put(ctx context.Context, e *logical.StorageEntry) error {
	if e.Key != selfName || l.done {
		return l.Storage.Put(ctx, e)
	}
	l.done = true
	if l.written {
		if err := l.Storage.Put(ctx, e); err != nil {
			return err
		}
	}
	return context.DeadlineExceeded
}

// What another node has written is published and signs from the next request on.
func TestSelfIsInvalidated(t *testing.T) {
	w := newSelfWorld(t)
	before := w.read("self")["key_ids"]
	record, err := loadSelf(t.Context(), w.store)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := record.Ring.turn("ES256", time.Hour, w.clock.now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := selfTable.put(t.Context(), w.store, selfName, record); err != nil {
		t.Fatal(err)
	}
	if !cmp.Equal(w.read("self")["key_ids"], before) {
		t.Fatal("the provider is not cached")
	}
	w.InvalidateKey(t.Context(), selfName)
	if got := w.read("self")["key_ids"]; !cmp.Equal(got, keyIDs(record.Ring.published())) {
		t.Errorf("after Invalidate %v", got)
	}
	w.ask(logical.ReadOperation, "creds/fed", nil)
}

// Mounts of one process have keys of their own; one may trust another as any issuer, and none itself.
func TestTwoProviders(t *testing.T) {
	t.Parallel()
	w, other := newSelfWorld(t), newSelfWorld(t)
	if cmp.Equal(w.read("self")["key_ids"], other.read("self")["key_ids"]) {
		t.Fatal("two mounts share keys")
	}
	token := w.ownToken()
	for _, each := range []*selfWorld{w, other} {
		each.trusting(w.issuer, map[string]any{"oidc_discovery_url": w.issuer, "ca_pem": w.ca})
	}
	if reason, _ := reasonOf(other.exchange("own", token)); reason != "" {
		t.Errorf("another mount refuses the token for %s\n%s", reason, other.logs)
	}
	w.wantOwnRefused("its own mount", token)
}

// ownToken is a token of the mount, by way of the API that it was made for.
func (w *selfWorld) ownToken() string {
	w.t.Helper()
	w.ask(logical.ReadOperation, "creds/fed", nil)
	shown := w.trusted.Presented()
	return shown[len(shown)-1]
}

// trusting has role own trust an issuer, past the checks of a write if it is this mount.
func (w *selfWorld) trusting(issuer string, source map[string]any) {
	w.t.Helper()
	record := defaultIssuer()
	raw, err := json.Marshal(source)
	if err == nil {
		err = json.Unmarshal(raw, &record)
	}
	record.Issuer, record.JWTSupportedAlgs = issuer, selfAlgorithms
	if err == nil {
		err = w.issuerNoun.table.put(w.t.Context(), w.store, "own", &record)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.InvalidateKey(w.t.Context(), "issuers/own")
	w.write("trust/own", map[string]any{"issuer": "own", "bound_audiences": fedAudience, "bound_subject": "role:fed"})
	w.write("roles/own", map[string]any{"trust": "own", "target": "acme", "parameters": "project=widget"})
}

// wantOwnRefused wants the same refusal of creds and of explain, before anything was written or sent.
func (w *selfWorld) wantOwnRefused(name, token string) {
	w.t.Helper()
	made, entries := w.keys.Calls(lab.OpCreate), len(w.ledgerEntries())
	if reason, status := reasonOf(w.exchange("own", token)); reason != identity.UnknownIssuer || status != 403 {
		w.t.Errorf("%s: creds: %q %d; want %s", name, reason, status, identity.UnknownIssuer)
	}
	got := w.write("explain/own", map[string]any{"subject_token": token}).Data
	if got["accepted"] != false || got["reason"] != identity.UnknownIssuer || !strings.Contains(got["detail"].(string), "signed by this mount") {
		w.t.Errorf("%s: explain: %v %v %v", name, got["accepted"], got["reason"], got["detail"])
	}
	if w.keys.Calls(lab.OpCreate) != made || len(w.ledgerEntries()) != entries {
		w.t.Errorf("%s: the refusal left a trace", name)
	}
}

func TestOwnTokensAreRefused(t *testing.T) {
	t.Parallel()
	w := newSelfWorld(t)
	entry := map[string]any{"oidc_discovery_url": w.issuer, "ca_pem": w.ca}
	w.refused("issuers/own", entry, "issuer")
	w.refused("issuers/own", map[string]any{"issuer": w.issuer, "jwks_url": w.issuerURL + "/jwks"}, "issuer")
	w.refused("issuers/github", map[string]any{"issuer": w.issuer}, "issuer")

	w.trusting(w.issuer, entry)
	w.wantOwnRefused("an entry that replication brought", w.ownToken())
	claims := map[string]any{"sub": "role:fed", "aud": fedAudience}
	if got := w.write("explain/own", map[string]any{"issuer": "own", "claims": claims}).Data; got["reason"] != identity.UnknownIssuer {
		t.Errorf("sample claims of this mount: %v", got)
	}
	w.trusting(w.issuer, map[string]any{"jwks_url": w.issuerURL + "/jwks", "ca_pem": w.ca})
	w.wantOwnRefused("our issuer under another's keys", w.world.issuer.Token(map[string]any{"iss": w.issuer, "sub": "role:fed", "aud": fedAudience}))

	token := w.ownToken()
	record, err := loadSelf(t.Context(), w.store)
	if err != nil {
		t.Fatal(err)
	}
	ours := map[string]any{"jwt_validation_pubkeys": []string{pemOf(t, record.Ring.Current.Key)}}
	moved := strings.TrimSuffix(w.issuer, "/oidc") + "/moved/oidc"
	w.write("self", map[string]any{"issuer_url": moved})
	w.trusting(w.issuer, map[string]any{"jwks_url": w.issuer + keysPath, "ca_pem": w.ca})
	w.wantOwnRefused("issuer_url was changed", token)
	w.trusting(w.issuer, ours)
	w.wantOwnRefused("issuer_url was changed, and our key configured", token)
	w.write("self", map[string]any{"rotation_period": "10m"})
	w.clock.advance(2 * time.Minute)
	w.write("self", map[string]any{"issuer_url": ""})
	w.wantOwnRefused("switched off", token)
	w.write("self", map[string]any{"issuer_url": moved})
	w.wantOwnRefused("switched on again", token)

	// Until the token has ended by any clock that config allows, its key is remembered.
	w.write("issuers/own", map[string]any{"clock_skew_leeway": "2m"})
	w.clock.advance(5 * time.Minute)
	w.periodic()
	w.wantOwnRefused("in the leeway", token)
	w.clock.advance(10 * time.Minute)
	w.periodic()
	if now, err := loadSelf(t.Context(), w.store); err != nil || now.Ring.has(record.Ring.Current.Key.KeyID) {
		t.Errorf("a withdrawn key is kept for ever: %v", err)
	}
	if reason, _ := reasonOf(w.exchange("own", token)); reason != identity.Expired {
		t.Errorf("after its end: %q", reason)
	}
}

func pemOf(t *testing.T, key jose.JSONWebKey) string {
	t.Helper()
	raw, err := x509.MarshalPKIXPublicKey(key.Public().Key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: raw}))
}
