// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// withGitLab adds a GitLab, whose maintainer's token is the engine's credential, with a role gitlab for its project 1.
func (w *world) withGitLab() *lab.GitLab {
	w.t.Helper()
	g := lab.NewGitLab(lab.GitLabOptions{Now: w.clock.now})
	credential := g.AddToken(g.AddUser(lab.GitLabUser{Name: "engine"}), 90, "api")
	g.AddProject("acme/widget", map[string]int{"engine": 40})
	url := w.serve(g)
	w.write("targets/gitlab", map[string]any{"driver": "gitlab", "url": url, "ca_pem": w.ca, "credential": "token=" + credential, "allowed_roles": "gitlab",
		"condition": `params.kind == "project" && params.access_level in ["guest", "reporter", "developer"]`})
	w.write("roles/gitlab", map[string]any{"trust": "main", "target": "gitlab", "ttl": "15m", "max_ttl": "2h",
		"parameters": map[string]any{"kind": "project", "id": "1", "scopes": "read_repository", "access_level": "reporter"}, "allowed_parameters": "access_level"})
	return g
}

// The token dies at the first midnight (UTC) after its lease can end, and no lease is promised more.
func TestGitLabKey(t *testing.T) {
	w := newWorld(t)
	g := w.withGitLab()
	resp := w.issue("gitlab")
	key, end := resp.Data["api_key"].(string), w.clock.now().Add(2*time.Hour+expirySlack).UTC()
	day := end.Truncate(24 * time.Hour).Add(24 * time.Hour)
	want := []lab.GitLabToken{{ID: 2, Kind: "project", Of: "acme/widget", Name: g.Live()[0].Name, Scopes: []string{"read_repository"}, Level: 20, ExpiresAt: day.Format(time.DateOnly)}}
	if diff := cmp.Diff(want, g.Live()); diff != "" || !strings.HasPrefix(want[0].Name, "oidcx-") || !g.Valid(key) {
		t.Errorf("live (-want +got):\n%s", diff)
	}
	got := []any{resp.Data["accessor"], resp.Data["expires_at"], resp.Data["revocable"], resp.Data["header_name"], resp.Secret.Renewable, resp.Secret.TTL, resp.Secret.MaxTTL, len(resp.Warnings)}
	if diff := cmp.Diff([]any{"2", day.Format(time.RFC3339), true, "PRIVATE-TOKEN", true, 15 * time.Minute, 2 * time.Hour, 0}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, text := range resp.Secret.InternalData {
		if strings.Contains(text.(string), key) {
			t.Error("the lease holds the key, which nothing needs to end it")
		}
	}

	w.clock.advance(10 * time.Minute)
	renewed, err := w.lease(logical.RenewOperation, resp)
	if err != nil || renewed.IsError() || renewed.Secret.TTL != 15*time.Minute || len(g.Live()) != 1 {
		t.Errorf("renew: %v %v", renewed, err)
	}
	w.revoke(resp)
	w.revoke(resp) // it is gone
	if len(g.Live()) != 0 || len(w.ledgerEntries()) != 0 {
		t.Errorf("after revoke: live %v, ledger %q", g.Live(), w.ledgerEntries())
	}
}

func TestGitLabRefusesWithReasons(t *testing.T) {
	w := newWorld(t)
	g := w.withGitLab()
	ask := func(parameters map[string]any) (string, int) {
		return reasonOf(w.do(logical.UpdateOperation, "creds/gitlab", map[string]any{"subject_token": w.token(nil), "parameters": parameters}))
	}
	for name, c := range map[string]struct {
		level  string
		fault  lab.Fault
		reason string
		status int
	}{
		"a level that does not exist":   {"king", lab.Fault{}, reasonParameter, http.StatusBadRequest},
		"a level above the condition's": {"owner", lab.Fault{}, reasonParameter, http.StatusBadRequest},
		"denied":                        {"guest", lab.Fault{Kind: lab.KindStatus, Status: 403}, reasonTargetDenied, http.StatusUnprocessableEntity},
		"busy":                          {"guest", lab.Fault{Kind: lab.KindStatus, Status: 429}, reasonTargetBusy, http.StatusServiceUnavailable},
		"nonsense":                      {"guest", lab.Fault{Kind: lab.KindHTML}, reasonTargetProtocol, http.StatusUnprocessableEntity},
		"an answer that is lost":        {"guest", lab.Fault{Kind: lab.KindCut, After: true}, reasonOutcomeUnknown, http.StatusUnprocessableEntity},
	} {
		if c.fault.Kind != "" {
			c.fault.Count = 1
			g.Fault(lab.OpCreate, c.fault)
		}
		if reason, status := ask(map[string]any{"access_level": c.level}); reason != c.reason || status != c.status {
			t.Errorf("%s: got %s, %d; want %s, %d", name, reason, status, c.reason, c.status)
		}
	}
	// Two of them may have made a token, and did: the sweeper finds both by name.
	if len(g.Live()) != 2 {
		t.Fatalf("live: %v; want the two whose answers did not arrive", g.Live())
	}
	w.settleAll()
	if len(g.Live()) != 0 || len(w.ledgerEntries()) != 0 {
		t.Errorf("after the sweep: live %v, ledger %q", g.Live(), w.ledgerEntries())
	}
}

// A project that was deleted or hidden leaves a debt, for its 404 says nothing of the token; the token's own end settles it.
func TestGitLabDebtOfAMovedProject(t *testing.T) {
	w := newWorld(t)
	g := w.withGitLab()
	w.write("roles/gitlab", map[string]any{"parameters": map[string]any{"kind": "project", "id": "acme/widget", "scopes": "api", "access_level": "guest"}})
	resp := w.issue("gitlab")
	g.Move(1, "acme/gadget")
	if got, err := w.lease(logical.RevokeOperation, resp); err == nil && !got.IsError() {
		t.Error("revoking by the old path succeeds")
	}
	if record := w.read("keys/" + resp.Data["id"].(string)); record["state"] != "debt" || len(g.Live()) != 1 {
		t.Errorf("state %v, live %v; want a debt, and the token", record["state"], g.Live())
	}
	w.clock.advance(48 * time.Hour)
	w.write("sweep", nil)
	if len(g.Live()) != 0 || len(w.ledgerEntries()) != 0 {
		t.Errorf("after its end: live %v, ledger %q", g.Live(), w.ledgerEntries())
	}
}

// Before GitLab 17.11 an owner of a group makes tokens of its service accounts and cannot end them: each ends itself. The
// key is then held where secrets are, and is ended even when the credential is dead.
func TestGitLabKeyThatEndsItself(t *testing.T) {
	w := newWorld(t)
	g := lab.NewGitLab(lab.GitLabOptions{Now: w.clock.now, Before1711: true})
	credential, url := g.AddToken(g.AddUser(lab.GitLabUser{Name: "engine"}), 90, "api"), w.serve(g)
	g.AddGroup("acme", map[string]int{"engine": 50})
	g.AddUser(lab.GitLabUser{Name: "deployer", Group: "acme"})
	w.write("targets/gitlab", map[string]any{"driver": "gitlab", "url": url, "ca_pem": w.ca, "credential": "token=" + credential, "allowed_roles": "deploy"})
	parameters := map[string]any{"kind": "service_account", "id": "1", "user": "2", "scopes": "api", "revoke_by": "self"}
	w.write("roles/deploy", map[string]any{"trust": "main", "target": "gitlab", "ttl": "15m", "max_ttl": "2h", "parameters": parameters})

	kept, lost := w.issue("deploy"), w.issue("deploy")
	key := kept.Data["api_key"].(string)
	var holding []string
	for _, path := range w.stored("") {
		entry, err := w.store.Storage.Get(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(entry.Value), key) {
			holding = append(holding, path)
		}
	}
	if len(holding) != 1 || !strings.HasPrefix(holding[0], sealedKeys) {
		t.Errorf("the key is held by %q; want one sealed entry", holding)
	}
	if record := w.read("keys/" + kept.Data["id"].(string)); strings.Contains(fmt.Sprint(record), key) || strings.Contains(w.logs.String(), key) {
		t.Error("the ledger's record or the log shows the key")
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, url+"/api/v4/personal_access_tokens/self", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("PRIVATE-TOKEN", credential)
	resp, err := w.client().Do(req)
	if err != nil || resp.StatusCode != http.StatusNoContent {
		t.Fatalf("ending the credential: %v %v", resp, err)
	}
	_ = resp.Body.Close()
	w.revoke(kept)
	w.revoke(kept)
	if g.Valid(key) || len(g.Live()) != 1 {
		t.Errorf("after revoke: live %v", g.Live())
	}
	g.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindStatus, Status: 403, Count: 1})
	if got, err := w.lease(logical.RevokeOperation, lost); err == nil && !got.IsError() || !strings.Contains(w.logs.String(), "the key cannot end itself") {
		t.Errorf("a refusal of the key's: %v, %v", got, err)
	}
	w.settleAll()
	if len(g.Live()) != 0 || len(w.ledgerEntries()) != 0 {
		t.Errorf("after the sweep: live %v, ledger %q", g.Live(), w.ledgerEntries())
	}
	if strings.Contains(w.logs.String(), lost.Data["api_key"].(string)) {
		t.Error("the log shows a key")
	}
}

// A key that only itself can end, and whose answer was lost, is shown as exposed for as long as it lives; that the credential
// could never find it was said by revoke_by=self.
func TestGitLabLostKeyThatEndsItself(t *testing.T) {
	for _, before1711 := range []bool{true, false} {
		m := gitlabTarget(t, gitlabSelf, before1711)
		w, g := m.world, m.api.(*lab.GitLab)
		g.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
		if reason, _ := reasonOf(w.exchange("gitlab", w.token(nil))); reason != reasonOutcomeUnknown {
			t.Fatalf("refused for %q", reason)
		}
		w.clock.advance(10 * time.Minute)
		w.settleAll()
		ids, living := w.list("keys"), g.Live()
		if !before1711 {
			if len(ids)+len(living) != 0 {
				t.Errorf("where the credential can find it: ledger %q, live %v", ids, living)
			}
			continue
		}
		if len(ids) != 1 || len(living) != 1 {
			t.Fatalf("ledger %q, live %v; want the lost key in both", ids, living)
		}
		shown := w.read("keys/" + ids[0])
		until, _ := time.Parse(time.RFC3339, shown["not_after"].(string))
		end, err := time.Parse(time.DateOnly, living[0].ExpiresAt)
		if shown["state"] != stateExposed || err != nil || until.Before(end) {
			t.Errorf("%v until %v; the key lives until %v (%v)", shown["state"], until, end, err)
		}
		w.clock.advance(72 * time.Hour)
		w.settleAll()
		if len(w.list("keys"))+len(g.Live()) != 0 {
			t.Errorf("after its end: ledger %q, live %v", w.list("keys"), g.Live())
		}
	}
}
