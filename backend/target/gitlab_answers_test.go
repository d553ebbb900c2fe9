// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
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

// gitlabAnswers opens a target at a server that gives these answers to paths, and 404 to others.
func gitlabAnswers(t *testing.T, answers map[string]string, header ...string) (*Target, *[]string) {
	t.Helper()
	var saw []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		saw = append(saw, r.Method+" "+r.URL.Path)
		status, body, found := strings.Cut(answers[r.Method+" "+r.URL.Path], " ")
		if !found {
			status, body = "404", "{}"
		}
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		var code int
		_, _ = fmt.Sscan(status, &code)
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(server.Close)
	g := &gitLab{T: t, url: server.URL, now: time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)}
	return g.open("t0p"), &saw
}

func TestGitLabListsThatMakeNoSense(t *testing.T) {
	const path, bad = "GET /api/v4/projects/1/access_tokens", "find: target's answer makes no sense: "
	for name, c := range map[string]struct{ body, next, want string }{
		"null":           {"null", "", bad + "the answer is not what this call's should be"},
		"no id":          {`[{"name":"n"}]`, "", bad + "a token has no id"},
		"null within":    {`[null,{"name":"n","id":7}]`, "", ""},
		"revoked":        {`[{"name":"n","id":7,"revoked":true}]`, "", ""},
		"page by itself": {`[]`, "1", bad + "the list of tokens does not end within 100 pages"},
		"full for ever":  {"[" + strings.Repeat("{},", 99) + "{}]", "", bad + "the list of tokens does not end within 100 pages"},
		"page before":    {`[]`, "-1", bad + "the list of tokens does not end within 100 pages"},
	} {
		opened, _ := gitlabAnswers(t, map[string]string{path: "200 " + c.body}, "X-Next-Page", c.next)
		found, err := opened.Find(t.Context(), Handle{Name: "n", Params: ofProject1})
		if text(err) != c.want || len(found) != map[string]int{"null within": 1}[name] {
			t.Errorf("%s: got %v, %q; want %q", name, found, text(err), c.want)
		}
	}
}

// The page to come is named by GitLab's own header, or by a link alone where a proxy lets no more through. Of a link the
// number is taken, and never the address; one that names no number hides pages, which would leave keys alive.
func TestGitLabPagesByLink(t *testing.T) {
	const path = "/api/v4/projects/1/access_tokens"
	for name, c := range map[string]struct {
		link, next string
		want       string
		pages      int
	}{
		"link":             {`<http://elsewhere.example/x?id=1&page=2&per_page=100>; rel="next", <http://elsewhere.example/x?page=1>; rel="first"`, "", "", 2},
		"header and link":  {`<http://elsewhere.example/x?page=9>; rel="next"`, "2", "", 2},
		"last page":        {`<http://elsewhere.example/x?page=1>; rel="first", <http://elsewhere.example/x?page=1>; rel="last"`, "", "", 1},
		"keyset":           {`<http://elsewhere.example/x?cursor=eyJpZCI6IjQyIn0&per_page=100>; rel="next"`, "", "find: target's answer makes no sense: the answer is not what this call's should be", 1},
		"no address":       {`<:>; rel="next"`, "", "find: target's answer makes no sense: the answer is not what this call's should be", 1},
		"no page at all":   {`<http://elsewhere.example/x?page=0>; rel="next"`, "", "find: target's answer makes no sense: the answer is not what this call's should be", 1},
		"its own page":     {`<http://elsewhere.example/x?page=1>; rel="next"`, "", "find: target's answer makes no sense: the list of tokens does not end within 100 pages", 1},
		"neither, a short": {"", "", "", 1},
	} {
		var asked []string
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked = append(asked, r.URL.Path+" page "+r.URL.Query().Get("page"))
			if r.URL.Query().Get("page") == "1" {
				w.Header().Set("Link", c.link)
				w.Header().Set("X-Next-Page", c.next)
				_, _ = w.Write([]byte(`[{"name":"other","id":1}]`))
				return
			}
			_, _ = w.Write([]byte(`[{"name":"n","id":7}]`))
		}))
		g := &gitLab{T: t, url: server.URL}
		found, err := g.open("t0p").Find(t.Context(), Handle{Name: "n", Params: ofProject1})
		if text(err) != c.want || err == nil && len(found) != c.pages-1 {
			t.Errorf("%s: %v, %q; want %q", name, found, text(err), c.want)
		}
		if want := []string{path + " page 1", path + " page 2"}[:c.pages]; cmp.Diff(want, asked) != "" {
			t.Errorf("%s: asked %q; want %q", name, asked, want)
		}
		server.Close()
	}
}

// Whatever becomes of looking for a user, no key was asked for: the exchange did not happen.
func TestGitLabLookupThatFails(t *testing.T) {
	const path, busy, denied = "GET /api/v4/users", "exchange: target is busy: ", "exchange: denied by the target: "
	params := map[string]any{"kind": "personal", "id": "bob", "scopes": []any{"api"}}
	for answer, want := range map[string]string{
		"500 {}":    busy + "it answered otherwise than expected (status 500)",
		"200 <html": denied + "the answer is not JSON",
		"200 {}":    denied + "the answer is not what this call's should be",
		"302 {}":    denied + "it redirects, and redirects are not followed; correct the target's url (status 302)",
		"200 null":  denied + "there is no user of that name, or the credential may not see it",
		"200 [null,{},{\"id\":7,\"username\":\"bobby\"},{\"id\":-1,\"username\":\"bob\"}]": denied + "there is no user of that name, or the credential may not see it",
		"429 Retry later": busy + "try again later (status 429)",
	} {
		opened, saw := gitlabAnswers(t, map[string]string{path: answer})
		_, err := opened.Exchange(t.Context(), Request{Name: "n", Params: params, NotAfter: time.Date(2031, 6, 1, 0, 0, 0, 0, time.UTC)})
		if text(err) != want || MayLive(err) || len(*saw) != 1 {
			t.Errorf("%s: got %q after %q; want %q", answer, text(err), *saw, want)
		}
		_, err = opened.Find(t.Context(), Handle{Name: "n", Params: params}) // a name that means nobody is not "no such key"
		if err == nil {
			t.Errorf("%s: Find says that there is no such key", answer)
		}
	}
}

// A token without an end would outlive all that knows of it, so none is asked for and none is taken.
func TestGitLabTokensHaveAnEnd(t *testing.T) {
	const path = "POST /api/v4/projects/1/access_tokens"
	params := map[string]any{"kind": "project", "id": "1", "scopes": []any{"api"}, "access_level": "guest"}
	notAfter := time.Date(2031, 6, 1, 0, 0, 0, 0, time.UTC)
	for answer, want := range map[string]string{
		`201 {"id":7,"token":"glpat-x","expires_at":null}`:         "exchange: target's answer makes no sense: the token has no id, or no end",
		`201 {"id":7,"token":"glpat-x"}`:                           "exchange: target's answer makes no sense: the token has no id, or no end",
		`201 null`:                                                 "exchange: target's answer makes no sense: the answer is not what this call's should be",
		`201 {"id":7,"token":"glpat-x","expires_at":"2031-05-06"}`: "exchange: target's answer makes no sense: the key has already expired",
	} {
		opened, _ := gitlabAnswers(t, map[string]string{path: answer})
		if _, err := opened.Exchange(t.Context(), Request{Name: "n", Params: params, NotAfter: notAfter}); text(err) != want || !MayLive(err) {
			t.Errorf("%s: got %q; want %q", answer, text(err), want)
		}
	}
	opened, saw := gitlabAnswers(t, nil)
	_, err := opened.Exchange(t.Context(), Request{Name: "n", Params: params})
	if want := "exchange: request cannot be made: no end is given, and a token without one lives for ever"; text(err) != want || len(*saw) != 0 {
		t.Errorf("got %q, sent %q; want %q", text(err), *saw, want)
	}
	opened, _ = gitlabAnswers(t, map[string]string{path: `201 {"id":7,"token":"glpat-x","expires_at":"2031-05-31T18:00:00Z"}`})
	key, err := opened.Exchange(t.Context(), Request{Name: "n", Params: params, NotAfter: notAfter})
	if want := time.Date(2031, 5, 31, 0, 0, 0, 0, time.UTC); err != nil || !key.Expiry.Equal(want) {
		t.Errorf("an instant as the day of the end: %v, %v; want %v", key.Expiry, err, want)
	}
}

func TestMidnight(t *testing.T) {
	east := time.FixedZone("", 2*3600)
	for at, want := range map[time.Time]string{
		time.Date(2031, 5, 6, 0, 0, 0, 0, time.UTC):    "2031-05-06",
		time.Date(2031, 5, 6, 0, 0, 0, 1, time.UTC):    "2031-05-07",
		time.Date(2031, 5, 6, 23, 59, 59, 0, time.UTC): "2031-05-07",
		time.Date(2031, 12, 31, 12, 0, 0, 0, time.UTC): "2032-01-01",
		time.Date(2031, 5, 6, 1, 30, 0, 0, east):       "2031-05-06",
		time.Date(2031, 5, 6, 2, 0, 0, 0, east):        "2031-05-06",
	} {
		if got := midnight(at); got.Format(time.DateOnly) != want || got.Before(at) || got.Location() != time.UTC {
			t.Errorf("%v: got %v; want %s", at, got, want)
		}
	}
}

func TestGitLabCheck(t *testing.T) {
	const path, denied = "GET /api/v4/personal_access_tokens/self", "check: denied by the target: "
	for answer, want := range map[string]string{
		`200 {"id":1,"active":true,"scopes":["read_user","api"]}`:                                                                "",
		`200 {"id":1,"active":true,"scopes":["read_api"]}`:                                                                       denied + "the credential lacks the scope api",
		`200 {"id":1,"active":true,"scopes":["api"],"expires_at":"2031-05-07","description":null,"last_used_ips":["192.0.2.7"]}`: "",
		`200 {"id":1,"active":true,"scopes":["api"],"expires_at":"2031-05-06"}`:                                                  denied + "the credential is revoked or has expired; write a new one",
		`200 {"id":1,"active":false,"scopes":["api"]}`:                                                                           denied + "the credential is revoked or has expired; write a new one",
		`200 {"id":1,"active":true,"revoked":true,"scopes":["api"]}`:                                                             denied + "the credential is revoked or has expired; write a new one",
		`200 null`: "check: target's answer makes no sense: the answer is not what this call's should be",
		`401 {"error":"invalid_token","error_description":"Token was revoked. You have to re-authorize from the user."}`: denied + "it refused: the credential was revoked; write a new one (status 401)",
	} {
		opened, _ := gitlabAnswers(t, map[string]string{path: answer})
		if err := opened.Check(t.Context()); text(err) != want {
			t.Errorf("%s: got %q; want %q", answer, text(err), want)
		}
	}
	g := newGitLab(t, lab.GitLabOptions{})
	d := newGitLabDriver(g.open(g.AddToken(g.bob, 9, "read_registry")))
	self, err := d.self(t.Context(), "check")
	if err != nil || cmp.Diff([]string{"read_registry"}, self.Scopes) != "" || self.ExpiresAt.String() != "2031-05-15" {
		t.Errorf("self: %v, %v; want its scopes and its end", self, err)
	}
}

// Handles that do not say what to do are not guessed at.
func TestGitLabHandlesThatLackSomething(t *testing.T) {
	opened, saw := gitlabAnswers(t, nil)
	for _, h := range []Handle{{}, {Accessor: "7"}, {Accessor: "x", Params: ofProject1}, {Accessor: "-7", Params: ofProject1}, {Accessor: "7", Params: map[string]any{"kind": "project"}},
		{Accessor: "7", Params: map[string]any{"kind": "deploy", "id": "1"}}, {Accessor: "7", Params: map[string]any{"kind": 7, "id": 7}}} {
		if err := opened.Revoke(t.Context(), h); !errors.Is(err, ErrParameter) || len(*saw) != 0 {
			t.Errorf("%+v: %v, sent %q; want ErrParameter and nothing", h.Params, err, *saw)
		}
	}
}

// An instance may live below a path, and its address may name the API.
func TestGitLabBelowAPath(t *testing.T) {
	for suffix, want := range map[string]string{
		"": "/api/v4", "/": "/api/v4", "/gitlab": "/gitlab/api/v4", "/a-b/c.d/": "/a-b/c.d/api/v4", "/gitlab/api/v4": "/gitlab/api/v4",
	} {
		saw := ""
		server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { saw = r.Method + " " + r.RequestURI }))
		g := &gitLab{T: t, url: server.URL + suffix}
		err := g.open("t0p").Revoke(t.Context(), Handle{Accessor: "7", Params: map[string]any{"kind": "project", "id": "acme/sub/widget.js"}})
		if want := "DELETE " + want + "/projects/acme%2Fsub%2Fwidget%2Ejs/access_tokens/7"; !errors.Is(err, ErrUnknown) || saw != want {
			t.Errorf("%s: %v, sent %q; want %q", suffix, err, saw, want)
		}
		server.Close()
	}
	_, err := Open(Config{Driver: "gitlab", URL: "https://gitlab.example/a%20b", Credential: map[string]string{"token": "t0p"}})
	if want := "url: has a path with escapes; GitLab has none"; text(err) != want {
		t.Errorf("got %v; want %s", err, want)
	}
}
