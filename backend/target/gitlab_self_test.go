// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// bySelf are parameters of a key that ends itself.
var bySelf = map[string]any{"kind": "service_account", "id": "2", "user": "4", "scopes": "read_api", "revoke_by": "self"}

// A credential that may make tokens of service accounts and not end them: each key ends itself, even when the credential is
// dead. Where an answer was lost nobody has the key, and its own day ends it.
func TestGitLabKeysThatEndThemselves(t *testing.T) {
	g := newGitLab(t, lab.GitLabOptions{Before1711: true})
	opened := g.open(g.AddToken(g.ana, 1, "api"))
	key, err := opened.Exchange(t.Context(), g.request(opened, "oidcx-1", bySelf))
	if err != nil {
		t.Fatal(err)
	}
	if key.Handle.Secret != key.Secret || key.Handle.Accessor != key.Accessor {
		t.Errorf("the handle %v does not hold the key", key.Handle)
	}
	byID := key.Handle
	byID.Secret = ""
	const old = "tokens of a service account need an Owner of its group; before GitLab 17.11 nobody can list them or end them by id: set revoke_by to self"
	if want := "revoke: not supported by the target: it refused: this version of GitLab has no such call, or a proxy before it decodes paths (then give a number instead of a path): " + old + " (status 404)"; text(opened.Revoke(t.Context(), byID)) != want {
		t.Errorf("by id: got  %v\nwant %s", opened.Revoke(t.Context(), byID), want)
	}
	_, err = opened.Find(t.Context(), byID)
	if want := "find: not supported by the target: it refused: this version of GitLab has no such call: " + old + " (status 405)"; text(err) != want {
		t.Errorf("find: got  %v\nwant %s", err, want)
	}
	g.Fault(lab.OpRevoke, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	if err := g.open("glpat-wrong").Revoke(t.Context(), key.Handle); !errors.Is(err, ErrUnknown) {
		t.Errorf("an answer that is lost: %v; want ErrUnknown", err)
	}
	for range 2 { // GitLab answers 401 now, of the key
		if err := g.open("glpat-wrong").Revoke(t.Context(), key.Handle); err != nil || len(g.Live()) != 0 {
			t.Errorf("by itself: %v, live %v", err, g.Live())
		}
	}
}

// A key that is refused ends itself at once, for nobody would find it again.
func TestGitLabRefusedKeyEndsItself(t *testing.T) {
	const made = `{"id":7,"token":"glpat-key","expires_at":null}`
	const refused = "exchange: target's answer makes no sense: the token has no id, or no end"
	for by, want := range map[string]string{"self": refused + "; the key was revoked", "id": refused} {
		opened, _ := gitlabAnswers(t, map[string]string{
			"POST /api/v4/projects/1/access_tokens": "201 " + made, "DELETE /api/v4/personal_access_tokens/self": "204 ",
		})
		params, err := opened.Params(map[string]any{"kind": "project", "id": "1", "access_level": "guest", "scopes": "api", "revoke_by": by})
		if err != nil {
			t.Fatal(err)
		}
		key, err := opened.Exchange(t.Context(), Request{Name: "oidcx-1", Params: params, NotAfter: time.Now().Add(time.Hour)})
		if text(err) != want || MayLive(err) != (by == "id") || cmp.Diff(Key{}, key) != "" {
			t.Errorf("by %s: got %v; want %s", by, err, want)
		}
	}
}

// Newer versions end a key by its id: that is how one is ended that was found, for nobody holds it.
func TestGitLabFindsKeysThatWouldEndThemselves(t *testing.T) {
	g := newGitLab(t, lab.GitLabOptions{})
	opened := g.open(g.AddToken(g.ana, 9, "api"))
	g.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	if _, err := opened.Exchange(t.Context(), g.request(opened, "oidcx-1", bySelf)); !errors.Is(err, ErrUnknown) {
		t.Fatalf("got %v; want ErrUnknown", err)
	}
	found, err := opened.Find(t.Context(), Handle{Name: "oidcx-1", Params: g.request(opened, "", bySelf).Params})
	if err != nil || len(found) != 1 || found[0].Secret != "" {
		t.Fatalf("find: %v, %v", found, err)
	}
	if err := opened.Revoke(t.Context(), found[0]); err != nil || len(g.Live()) != 0 {
		t.Errorf("revoke: %v, live %v", err, g.Live())
	}
}

// A key that replaces one that ends itself ends itself too.
func TestGitLabRotatedKeysEndThemselves(t *testing.T) {
	g := newGitLab(t, lab.GitLabOptions{})
	opened := g.open(g.AddToken(g.ana, 9, "api"))
	old, err := opened.Exchange(t.Context(), g.request(opened, "oidcx-1", bySelf))
	if err != nil {
		t.Fatal(err)
	}
	next, err := newGitLabDriver(opened).rotateKey(t.Context(), old.Handle, g.now.AddDate(0, 0, 2))
	if err != nil || next.Handle.Secret != next.Secret || next.Secret == old.Secret {
		t.Fatalf("rotate: %v, the new handle holds the new key: %v", err, next.Handle.Secret == next.Secret)
	}
	if err := opened.Revoke(t.Context(), next.Handle); err != nil || g.Valid(next.Secret) {
		t.Errorf("revoke: %v, the key lives: %v", err, g.Valid(next.Secret))
	}
}

// What a key's own end is answered. A 401 is success only where it says that this very token is no more: there are those of a
// login page before GitLab, and of a token that lives and lacks something. None is ever taken for the credential's.
func TestGitLabAnswersToAKeyThatEndsItself(t *testing.T) {
	const denied, hint = "revoke: denied by the target: it refused: ", "the key cannot end itself (its user may be blocked, or GitLab may want more of it than the key); it ends on its day (status "
	oauth := func(code, description string) string {
		return fmt.Sprintf(`{"error":%q,"error_description":%q}`, code, description)
	}
	for name, c := range map[string]struct {
		status int
		body   string
		want   string
	}{
		"ended":               {204, "", ""},
		"unknown":             {401, `{"message":"401 Unauthorized"}`, ""},
		"revoked":             {401, oauth("invalid_token", "Token was revoked. You have to re-authorize from the user."), ""},
		"expired":             {401, oauth("invalid_token", "Token is expired. You can either do re-authorization or token refresh."), ""},
		"bad":                 {401, oauth("invalid_token", "Bad Access Token."), ""},
		"lives, lacks DPoP":   {401, oauth("dpop_error", "DPoP header is missing"), denied + hint + "401)"},
		"lives, switched off": {401, oauth("invalid_token", "Token is an impersonation token but impersonation was disabled."), denied + hint + "401)"},
		"another's login":     {401, "<html>log in", denied + hint + "401)"},
		"another's JSON":      {401, `{"message":"login required"}`, denied + hint + "401)"},
		"an error's message":  {401, `{"message":"401 Unauthorized","error":"proxy"}`, denied + hint + "401)"},
		"no words":            {401, "", denied + hint + "401)"},
		"blocked":             {403, `{"message":"403 Forbidden - Your account has been blocked."}`, denied + hint + "403)"},
		"not permitted":       {400, `{"message":"400 Bad request"}`, denied + hint + "400)"},
		"no such address":     {404, `{"error":"404 Not Found"}`, denied + hint + "404)"},
		"too many":            {429, "Retry later\n", "revoke: target is busy: try again later (status 429)"},
		"broken":              {500, `{"message":"500 Internal Server Error"}`, "revoke: outcome is unknown: it answered otherwise than expected (status 500)"},
		"redirects":           {302, "", "revoke: outcome is unknown: it redirects, and redirects are not followed; correct the target's url (status 302)"},
	} {
		var saw []string
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			saw = append(saw, strings.Join([]string{r.Method, r.RequestURI, strings.Join(r.Header.Values("Private-Token"), "+"), r.Header.Get("Authorization")}, " "))
			w.WriteHeader(c.status)
			_, _ = w.Write([]byte(c.body))
		}))
		g := &gitLab{T: t, url: server.URL}
		err := g.open("t0p").Revoke(t.Context(), Handle{Accessor: "7", Params: bySelf, Secret: "glpat-key"})
		if text(err) != c.want {
			t.Errorf("%s: got  %v\nwant %s", name, err, c.want)
		}
		if diff := cmp.Diff([]string{"DELETE /api/v4/personal_access_tokens/self glpat-key "}, saw); diff != "" {
			t.Errorf("%s: sent (-want +got):\n%s", name, diff)
		}
		server.Close()
	}
	// The same answers to the credential are no success.
	for _, body := range []string{`{"message":"401 Unauthorized"}`, oauth("invalid_token", "Token was revoked. You have to re-authorize from the user.")} {
		opened, _ := gitlabAnswers(t, map[string]string{"DELETE /api/v4/projects/1/access_tokens/7": "401 " + body})
		if err := opened.Revoke(t.Context(), Handle{Accessor: "7", Params: ofProject1}); !errors.Is(err, ErrDenied) {
			t.Errorf("%s to the credential: %v; want ErrDenied", body, err)
		}
	}
}

// A handle that holds the key shows it to nobody but storage.
func TestGitLabHandleOfAKeyThatEndsItself(t *testing.T) {
	h := Handle{Name: "n", Accessor: "7", Params: bySelf, Secret: "glpat-key"}
	if shown := fmt.Sprintf("%v %+v %#v %s", h, h, h, h); strings.Contains(shown, "glpat-key") {
		t.Errorf("it shows %s", shown)
	}
	stored, err := json.Marshal(h)
	var back Handle
	if err != nil || json.Unmarshal(stored, &back) != nil || cmp.Diff(h, back) != "" {
		t.Errorf("%v; comes back otherwise: %s", err, cmp.Diff(h, back))
	}
}
