// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/trust"
)

// Every refusal names its reason, has the reason's status, reaches no target and leaves no trace.
func TestRefusals(t *testing.T) {
	t.Parallel()
	type setup struct {
		write map[string]map[string]any // path -> data, before the request
		token map[string]any            // claims; nil = by login
		path  string                    // default creds/deploy
		data  map[string]any            // further fields
		op    logical.Operation
		raw   string // a token as is
	}
	login := map[string]any{"trust": "alice"}
	for name, c := range map[string]struct {
		setup
		reason string
		status int
	}{
		"unknown role":              {setup{path: "creds/none"}, reasonUnknownRole, 400},
		"role of dots":              {setup{path: "creds/a..b"}, reasonUnknownRole, 400},
		"role disabled":             {setup{write: map[string]map[string]any{"roles/deploy": {"enabled": false}}, token: map[string]any{}}, reasonDisabled, 403},
		"target disabled":           {setup{write: map[string]map[string]any{"targets/acme": {"enabled": false}}, token: map[string]any{}}, reasonDisabled, 403},
		"issuer disabled":           {setup{write: map[string]map[string]any{"issuers/github": {"enabled": false}}, token: map[string]any{}}, reasonDisabled, 403},
		"policy disabled":           {setup{write: map[string]map[string]any{"trust/main": {"enabled": false}}, token: map[string]any{}}, reasonDisabled, 403},
		"login issuer disabled":     {setup{write: map[string]map[string]any{"issuers/people": {"enabled": false}}}, reasonDisabled, 403},
		"role not allowed":          {setup{write: map[string]map[string]any{"targets/acme": {"allowed_roles": "other-*"}}, token: map[string]any{}}, reasonRoleNotAllowed, 403},
		"no such role for a target": {setup{write: map[string]map[string]any{"targets/acme": {"allowed_roles": ""}}, token: map[string]any{}}, reasonRoleNotAllowed, 403},
		"token needed":              {setup{write: map[string]map[string]any{"roles/deploy": {"trust": "main"}}}, reasonTokenRequired, 400},
		"token in a read":           {setup{op: logical.ReadOperation, data: map[string]any{"subject_token": "x"}}, reasonTokenInURL, 400},
		"empty token":               {setup{data: map[string]any{"subject_token": ""}}, reasonBadRequest, 400},
		"null token":                {setup{data: map[string]any{"subject_token": nil}}, reasonBadRequest, 400},
		"number for a token":        {setup{data: map[string]any{"subject_token": 7}}, reasonBadRequest, 400},
		"no token at all":           {setup{raw: "no token"}, identity.TokenMalformed, 403},
		"metadata address":          {setup{token: map[string]any{"iss": "http://169.254.169.254/latest/meta-data"}}, identity.UnknownIssuer, 403},
		"other issuer":              {setup{token: map[string]any{"iss": "https://evil.example"}}, identity.UnknownIssuer, 403},
		"only login is trusted":     {setup{write: map[string]map[string]any{"roles/deploy": login}, token: map[string]any{}}, identity.UnknownIssuer, 403},
		"expired":                   {setup{token: map[string]any{"exp": time.Now().Add(-time.Minute).Unix()}}, identity.Expired, 403},
		"audience":                  {setup{token: map[string]any{"aud": "https://elsewhere.example"}}, trust.Audience, 403},
		"two audiences":             {setup{token: map[string]any{"aud": []string{audience, "x"}}}, trust.Audience, 403},
		"fork":                      {setup{token: map[string]any{"repository": "evil/widget"}}, trust.NotTrusted, 403},
		"other caller":              {setup{write: map[string]map[string]any{"trust/main": {"bind_caller": "actor"}}, token: map[string]any{"actor": "mallory"}}, trust.CallerMismatch, 403},
		"other login":               {setup{write: map[string]map[string]any{"trust/alice": {"bound_subject": "bob"}}}, trust.NotTrusted, 403},
		"no alias on the mount":     {setup{write: map[string]map[string]any{"issuers/ldap": {"type": "login", "mount_accessor": "auth_ldap_1"}, "trust/ldap": {"issuer": "ldap", "bound_subject": "alice"}, "roles/deploy": {"trust": "ldap"}}}, reasonNoAlias, 403},
		"lease path for none":       {setup{path: "creds/deploy/acme", token: map[string]any{}}, reasonLeasePath, 400},
		"trailing slash":            {setup{path: "creds/deploy/", token: map[string]any{}}, "", 0},
		"wrong lease path":          {setup{write: map[string]map[string]any{"roles/deploy": {"lease_path": "claims.repository"}}, path: "creds/deploy/acme/gadget", token: map[string]any{}}, reasonLeasePath, 400},
		"lease path of dots":        {setup{write: map[string]map[string]any{"roles/deploy": {"lease_path": `"a/../b"`}}, path: "creds/deploy/a/../b", token: map[string]any{}}, reasonLeasePath, 400},
		"parameter not allowed":     {setup{token: map[string]any{}, data: map[string]any{"parameters": "scopes=admin"}}, reasonParameter, 400},
		"unknown field":             {setup{token: map[string]any{}, data: map[string]any{"scopes": "admin"}}, reasonBadRequest, 400},
		"parameter of a read":       {setup{op: logical.ReadOperation, data: map[string]any{"scopes": "admin"}}, reasonParameter, 400},
		"target's condition":        {setup{write: map[string]map[string]any{"targets/acme": {"condition": `params.project != "widget"`}}, token: map[string]any{}}, reasonParameter, 400},
		"bad ttl":                   {setup{token: map[string]any{}, data: map[string]any{"ttl": "soon"}}, reasonBadRequest, 400},
		"private address":           {setup{write: map[string]map[string]any{"config": {"allow_private": ""}}}, reasonEgress, 403},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, kind := range []string{"config", "issuers/", "trust/", "targets/", "roles/"} { // each names those before it
				for path, data := range c.write {
					if strings.HasPrefix(path, kind) {
						w.write(path, data)
					}
				}
			}
			before := len(w.stored(""))
			data := map[string]any{}
			for field, value := range c.data {
				data[field] = value
			}
			if c.token != nil {
				data["subject_token"] = w.token(c.token)
			}
			if c.raw != "" {
				data["subject_token"] = c.raw
			}
			path, op := c.path, c.op
			if path == "" {
				path = "creds/deploy"
			}
			if op == "" {
				op = logical.UpdateOperation
			}
			resp, err := w.do(op, path, data)
			reason, status := reasonOf(resp, err)
			if reason != c.reason || status != c.status {
				t.Fatalf("got %q, status %d; want %q, %d\n%s", reason, status, c.reason, c.status, w.logs)
			}
			if c.reason == "" {
				return
			}
			if made := w.keys.Calls("create"); made != 0 {
				t.Errorf("%d calls reached the target", made)
			}
			if after := len(w.stored("")); c.reason != reasonEgress && after != before {
				t.Errorf("%d records in storage before, %d after: %v", before, after, w.stored(""))
			}
			if c.token != nil && strings.Contains(w.logs.String(), data["subject_token"].(string)) {
				t.Error("the log holds the token")
			}
		})
	}
}

// What a policy asks for is nobody's business who does not fulfil it: two tokens that fail in different conditions get the
// same words. The operator finds which, without the token's values, in the log under the id that the caller was told.
func TestCallersLearnNothingOfThePolicy(t *testing.T) {
	w := newWorld(t)
	w.write("trust/main", map[string]any{"bound_claims": map[string]any{"repository": "acme/widget", "environment": "prod"}})
	var texts []string
	for _, c := range []struct {
		claims map[string]any
		unmet  string
	}{
		{map[string]any{"repository": "evil/widget", "environment": "prod"}, "bound_claims.repository"},
		{map[string]any{"repository": "acme/widget", "environment": "canary-env"}, "bound_claims.environment"},
	} {
		_, err := w.exchange("deploy", w.token(c.claims))
		if reason, _ := reasonOf(nil, err); reason != trust.NotTrusted {
			t.Fatalf("refused for %q, want %s", reason, trust.NotTrusted)
		}
		id := fmt.Sprintf("request-%d", w.requests)
		texts = append(texts, strings.ReplaceAll(err.Error(), id, "ID"))
		line := logLine(w, id)
		if !strings.Contains(line, c.unmet) || strings.Contains(line, "evil") || strings.Contains(line, "canary-env") {
			t.Errorf("the log says of %s: %q; want %s and no value", id, line, c.unmet)
		}
	}
	if want := "not_trusted: no trust policy of the role accepts you; ask its operator, who finds the detail in Vault's log (request ID)"; texts[0] != want || texts[1] != want {
		t.Errorf("callers are told %q, want %q", texts, want)
	}
}

// logLine is the line of the log that holds text.
func logLine(w *world, text string) string {
	for line := range strings.Lines(w.logs.String()) {
		if strings.Contains(line, text) {
			return line
		}
	}
	return ""
}

// Two issuers in one mount make the same claims. A policy of one never judges a token of the other, though the role trusts
// both and the other has the same key id.
func TestClaimsOfAnotherIssuer(t *testing.T) {
	w := newWorld(t)
	other := lab.NewIssuer(lab.IssuerOptions{Now: w.clock.now, Algorithm: "ES256"})
	other.SetURL(w.serve(other))
	w.write("issuers/other", map[string]any{"oidc_discovery_url": other.URL(), "ca_pem": w.ca})
	w.write("trust/other", map[string]any{"issuer": "other", "bound_audiences": audience, "bound_claims": map[string]any{"repository": "other/widget"}})
	w.write("roles/deploy", map[string]any{"trust": "main,other"})
	kid, _ := w.issuer.Key()
	claims := func(iss, repository string) map[string]any {
		return map[string]any{"aud": audience, "iss": iss, "repository": repository}
	}
	now := w.clock.now().Unix()
	forged := fmt.Sprintf(`{"iss":%q,"aud":%q,"sub":"s","repository":"acme/widget","iat":%d,"exp":%d}`, w.issuerURL, audience, now, now+300)
	for name, c := range map[string]struct{ token, want string }{
		"claims that its own policy wants":      {other.Token(claims(other.URL(), "other/widget")), ""},
		"claims that the other's policy wants":  {other.Token(claims(other.URL(), "acme/widget")), trust.NotTrusted},
		"in the other's name":                   {other.Token(claims(w.issuerURL, "acme/widget")), identity.UnknownKey},
		"in the other's name, with its key id":  {other.Sign(map[string]any{"kid": kid}, []byte(forged)), identity.BadSignature},
		"the other's own":                       {w.token(nil), ""},
		"the other's own, for this one's terms": {w.token(map[string]any{"repository": "other/widget"}), trust.NotTrusted},
	} {
		if reason, _ := reasonOf(w.exchange("deploy", c.token)); reason != c.want {
			t.Errorf("%s: %q, want %q", name, reason, c.want)
		}
	}
}

// Time passes between a token's verification and the exchange; a token that ended meanwhile gets no key.
func TestTokenEndsBeforeTheExchange(t *testing.T) {
	w := newWorld(t)
	w.issue("deploy") // the issuer is made, with the clock as it is
	token := w.token(nil)
	w.ahead(time.Hour)
	if reason, status := reasonOf(w.exchange("deploy", token)); reason != identity.Expired || status != http.StatusForbidden {
		t.Errorf("got %q %d; want %s", reason, status, identity.Expired)
	}
	if made := w.keys.Calls("create"); made != 1 {
		t.Errorf("%d keys were made, want only the first", made)
	}
}

// A file that a shell or an editor wrote ends with a line break.
func TestTokenFromAFile(t *testing.T) {
	w := newWorld(t)
	for end, want := range map[string]string{"\n": "", "\r\n": "", "\n\n": identity.TokenMalformed, " ": identity.TokenMalformed} {
		if reason, _ := reasonOf(w.exchange("deploy", w.token(nil)+end)); reason != want {
			t.Errorf("%q at the end: %q; want %q", end, reason, want)
		}
	}
}

func TestTokenWorksOnce(t *testing.T) {
	w := newWorld(t)
	token := w.token(nil)
	if reason, _ := reasonOf(w.exchange("deploy", token)); reason != "" {
		t.Fatalf("refused for %s", reason)
	}
	w.restart()
	if reason, status := reasonOf(w.exchange("deploy", token)); reason != reasonReplayed || status != http.StatusForbidden {
		t.Errorf("after a restart: %q %d", reason, status)
	}
	w.write("issuers/github", map[string]any{"single_use": false})
	if reason, _ := reasonOf(w.exchange("deploy", token)); reason != "" {
		t.Errorf("with single_use off: %s", reason)
	}
	w.clock.advance(3 * time.Hour)
	w.settleAll()
	if used := w.stored(usedTokens); len(used) != 0 {
		t.Errorf("records of tokens that nobody can present any more: %v", used)
	}
}

// Vault sends a request again, under the same id, when the plugin's process dies in it: that is no replay, but once.
func TestTokenOfAResentRequest(t *testing.T) {
	w := newWorld(t)
	token := w.token(nil)
	resend := func() string {
		reason, _ := reasonOf(w.HandleRequest(t.Context(), &logical.Request{ID: "same", Operation: logical.UpdateOperation, Path: "creds/deploy", Storage: w.store, Data: map[string]any{"subject_token": token}}))
		return reason
	}
	if got := []string{resend(), resend(), resend()}; !cmp.Equal(got, []string{"", "", reasonReplayed}) {
		t.Errorf("got %q", got)
	}
}

// A signature can be written in more than one way that verifies, so a token without an id is known by what was signed.
func TestTokenHashKnowsTheSignedText(t *testing.T) {
	is := &issuer{issuerRecord: issuerRecord{Issuer: "https://i.example"}}
	hash := func(i *issuer, jti string, digest byte) [sha256.Size]byte {
		return (&subject{issuer: i, jti: jti, token: &identity.Token{Digest: [sha256.Size]byte{digest}}}).tokenHash()
	}
	other := &issuer{issuerRecord: issuerRecord{Issuer: "https://j.example"}}
	if hash(is, "a", 1) != hash(is, "a", 2) {
		t.Error("the same token has two names")
	}
	if hash(is, "", 1) == hash(is, "", 2) || hash(is, "a", 1) == hash(is, "b", 1) || hash(is, "a", 1) == hash(other, "a", 1) {
		t.Error("two tokens have one name")
	}
}

func TestLeasePathAndParameters(t *testing.T) {
	w := newWorld(t)
	w.write("roles/deploy", map[string]any{
		"lease_path": "claims.repository.lower()", "parameters": map[string]any{}, "parameters_from": map[string]any{"project": `claims.repository.split("/")[1]`},
		"allowed_parameters": "scopes",
	})
	resp, err := w.do(logical.UpdateOperation, "creds/deploy/acme/widget", map[string]any{"subject_token": w.token(nil), "parameters": map[string]any{"scopes": []any{"read", "push"}}})
	if reason, _ := reasonOf(resp, err); reason != "" {
		t.Fatalf("%s\n%s", reason, w.logs)
	}
	if key := w.keys.Live()[0]; key.Project != "widget" || !cmp.Equal(key.Scopes, []string{"read", "push"}) {
		t.Errorf("asked for %v", key)
	}
	resp, err = w.do(logical.UpdateOperation, "creds/deploy", map[string]any{"subject_token": w.token(nil)})
	if text := resp.Error().Error(); err != nil || !strings.Contains(text, "creds/deploy/acme/widget") {
		t.Errorf("the right path is not named: %v %v", text, err)
	}
}

func TestRenewAsksAgain(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(w *world)
		reason string
	}{
		"role disabled":       {func(w *world) { w.write("roles/deploy", map[string]any{"enabled": false}) }, reasonDisabled},
		"target disabled":     {func(w *world) { w.write("targets/acme", map[string]any{"enabled": false}) }, reasonDisabled},
		"policy disabled":     {func(w *world) { w.write("trust/main", map[string]any{"enabled": false}) }, reasonDisabled},
		"issuer disabled":     {func(w *world) { w.write("issuers/github", map[string]any{"enabled": false}) }, reasonDisabled},
		"policy off the role": {func(w *world) { w.write("roles/deploy", map[string]any{"trust": "alice"}) }, reasonTrustChanged},
		"policy narrower": {func(w *world) {
			w.write("trust/main", map[string]any{"bound_claims": map[string]any{"repository": "acme/other"}})
		}, reasonTrustChanged},
		"claim that was not recorded": {func(w *world) {
			w.write("trust/main", map[string]any{"condition": `claims.workflow_sha != ""`})
		}, reasonTrustChanged},
		"policy that still holds": {func(w *world) {
			w.write("trust/main", map[string]any{"condition": `claims.repository_id != ""`})
		}, ""},
		"role deleted": {func(w *world) {
			if _, err := w.do(logical.DeleteOperation, "roles/deploy", nil); err != nil {
				w.t.Fatal(err)
			}
		}, reasonUnknownRole},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			resp := w.issue("deploy")
			c.change(w)
			if reason, _ := reasonOf(w.lease(logical.RenewOperation, resp)); reason != c.reason {
				t.Errorf("got %q; want %q\n%s", reason, c.reason, w.logs)
			}
			w.revoke(resp)
			w.wantSettled()
		})
	}
}

// A target that gives less life than asked is asked for more at each renewal, and the lease never promises more than the
// key has.
func TestRenewExtendsTheKey(t *testing.T) {
	w := newWorld(t)
	short := w.profile(`"expires_at": not_after}'
  ok: [201]`, `"expires_at": timestamp(int(not_after) - 7200)}'
  ok: [201]`)
	w.write("targets/acme", map[string]any{"profile": short, "credential": "token=" + adminToken})
	resp := w.issue("deploy")
	if got := resp.Secret.TTL; got > 5*time.Minute || got < 4*time.Minute {
		t.Fatalf("the key has 5 minutes, the lease %v", got)
	}
	w.clock.advance(2 * time.Minute)
	renewed, err := w.lease(logical.RenewOperation, resp)
	if err != nil || renewed.IsError() {
		t.Fatalf("%v %v", renewed, err)
	}
	if renewed.Secret.TTL != 15*time.Minute || w.keys.Calls("extend") != 1 {
		t.Errorf("lease %v after %d extensions", renewed.Secret.TTL, w.keys.Calls("extend"))
	}
	id := resp.Data["id"].(string)
	if got := w.read("keys/" + id)["expires_at"]; got != w.keys.Live()[0].ExpiresAt.Format(time.RFC3339) {
		t.Errorf("the ledger says %v", got)
	}
	w.revoke(renewed)
	w.wantSettled()
}

// Internal data goes through storage as JSON; nothing may depend on the types that went in.
func TestLeaseSurvivesStorage(t *testing.T) {
	w := newWorld(t)
	raw, err := json.Marshal(w.issue("deploy").Secret.InternalData)
	if err != nil {
		t.Fatal(err)
	}
	back := map[string]any{}
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	for name, value := range back {
		if _, ok := value.(string); !ok {
			t.Errorf("%s is %T; want a text", name, value)
		}
	}
	l, err := parseLease(&logical.Secret{InternalData: back})
	if err != nil {
		t.Fatal(err)
	}
	again := l.internal()
	again["secret_type"] = secretType
	if diff := cmp.Diff(back, map[string]any(again)); diff != "" {
		t.Error(diff)
	}
	back["version"] = "2"
	if _, err := parseLease(&logical.Secret{InternalData: back}); err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("a lease of a later version: %v", err)
	}
}

// One process serves many mounts: they share nothing.
func TestTwoMounts(t *testing.T) {
	a, b := newWorld(t), newWorld(t)
	token := a.token(nil)
	if reason, _ := reasonOf(b.exchange("deploy", token)); reason != identity.UnknownIssuer {
		t.Errorf("a token of the other mount's issuer: %q", reason)
	}
	if reason, _ := reasonOf(a.exchange("deploy", token)); reason != "" {
		t.Errorf("refused for %s", reason)
	}
}
