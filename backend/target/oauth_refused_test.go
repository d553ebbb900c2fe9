// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// What a server says of its refusal is told on one line, cut, beside what the code means.
func TestOAuthRefusalIsTold(t *testing.T) {
	t.Parallel()
	const long = "it has far too much to say about that. "
	for name, c := range map[string]struct {
		status     int
		body, want string
	}{
		"code":           {400, `{"error": "invalid_grant"}`, "invalid_grant: it does not accept the subject token: of an issuer or for an audience that it does not trust, expired, or used before"},
		"description":    {401, `{"error": "invalid_client", "error_description": "bad assertion"}`, `invalid_client: it does not accept the engine as its client; look at client_auth, client_id and the secret or key there; it says "bad assertion"`},
		"unknown code":   {400, `{"error": "unsupported_intermediate_audience"}`, `it says "unsupported_intermediate_audience"`},
		"both":           {403, `{"error": "missing_matching_scope", "error_description": "want read"}`, `it says "missing_matching_scope: want read"`},
		"no code":        {400, `{"error_description": "want read"}`, `it says "want read"`},
		"lines":          {400, `{"error": "x\r\ny", "error_description": "a\u0000b\u001b[31mc\u202ed\n"}`, `it says "x  y: a b [31mc d"`},
		"quotes":         {400, `{"error": "x", "error_description": "say \"a\""}`, `it says "x: say \"a\""`},
		"long":           {400, `{"error_description": "` + strings.Repeat(long, 10) + `"}`, `it says "` + strings.Repeat(long, 10)[:256] + `"`},
		"another script": {400, `{"error_description": "` + strings.Repeat("日", 300) + `"}`, `it says "` + strings.Repeat("日", 256) + `"`},
		"nothing":        {400, `{"error": "", "error_description": " \n"}`, ""},
		"other types":    {400, `{"error": 7, "error_description": ["x"]}`, ""},
		"html":           {403, "<html>sign in", "the answer is not an authorization server's; is the endpoint's address right, or a proxy in front of it?"},
		"not there":      {404, "", "the answer is not an authorization server's; is the endpoint's address right, or a proxy in front of it?"},
	} {
		s := scripted(t, map[string][]line{"POST /token": {{c.status, c.body, nil}}})
		o := s.open(t, "", target.Config{Driver: "oauth", Audience: "x", OAuth: target.OAuth{TokenURL: s.url + "/token"}})
		_, err := o.Exchange(t.Context(), target.Request{SubjectToken: "s0me-t0ken-of-the-caller"})
		text, _ := told(err)
		text = regexp.MustCompile(` \(status \d+\)$`).ReplaceAllString(text, "")
		if want := strings.TrimSuffix("denied by the target: it refused: "+c.want, ": "); text != want {
			t.Errorf("%s:\n got %s\nwant %s", name, text, want)
		}
	}
}

// A server that repeats a secret that it was sent, whole or in part, as it was sent or as it is, is not repeated.
func TestOAuthRefusalIsToldWithoutSecrets(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const own, subject = "the-engines-own-t0ken-of-its-agent", "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJqaW0ifQ.c2lnbmF0dXJlLW9mLWppbQ"
	clients := map[string]target.OAuth{
		"none":  {},
		"basic": {ClientAuth: "client_secret_basic", ClientID: "engine", ClientSecret: "s:e&c ret+/with=signs-in-it"},
		"post":  {ClientAuth: "client_secret_post", ClientID: "engine", ClientSecret: "s:e&c ret+/with=signs-in-it"},
		"short": {ClientAuth: "client_secret_post", ClientID: "engine", ClientSecret: "pin+7"},
		"key":   {ClientAuth: "private_key_jwt", ClientID: "engine", PrivateKey: lab.KeyPEM(key)},
		"SVID":  {ClientAuth: "svid_jwt_bearer"},
	}
	echoes := map[string]func(text string) string{
		"whole":      func(text string) string { return text },
		"upper case": strings.ToUpper,
		"encoded":    url.QueryEscape,
		"in lines": func(text string) string {
			return strings.Join(regexp.MustCompile(`.{1,5}`).FindAllString(text, -1), "\n")
		},
		"a piece": func(text string) string {
			return "near " + text[len(text)/9:max(len(text)-len(text)/3, min(len(text), 9))] + " …"
		},
	}
	kinds := []string{"subject_token", "actor_token", "client_assertion", "client_secret", "token", "header", "query"}
	seen := map[string]bool{}
	for auth, config := range clients {
		for name, echo := range echoes {
			for _, kind := range kinds {
				s := &echoing{kind: kind, echo: echo}
				server := httptest.NewServer(s)
				t.Cleanup(server.Close)
				config.OwnToken = func(context.Context, string, string, string) (string, error) { return own, nil }
				config.TokenURL, config.RevocationURL = server.URL+"/token?code=a-key-in-the-address", server.URL+"/revoke"
				o, err := target.Open(target.Config{Driver: "oauth", URL: server.URL, Audience: "x", Egress: egress.Policy{AllowHTTPLoopback: true}, OAuth: config})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(o.Close)
				_, err = o.Exchange(t.Context(), target.Request{SubjectToken: subject, Params: map[string]any{"actor_token_source": "svid"}})
				s.check(t, strings.Join([]string{auth, name, kind}, ", "), err)
				s.check(t, strings.Join([]string{auth, name, kind}, ", "), o.Revoke(t.Context(), target.Handle{Secret: "the-key-that-is-to-be-ended"}))
				seen[kind] = seen[kind] || s.said.Load() > 0
			}
		}
	}
	for _, kind := range kinds {
		if !seen[kind] {
			t.Errorf("no request had a secret as %s", kind)
		}
	}
}

// echoing refuses, and says one of the secrets of the request, if it has that one.
type echoing struct {
	kind string
	echo func(string) string
	last atomic.Bool // it said one just now
	said atomic.Int64
}

func (s *echoing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	secret := r.PostForm.Get(s.kind)
	switch s.kind {
	case "header":
		secret, _ = strings.CutPrefix(r.Header.Get("Authorization"), "Basic ")
	case "query":
		secret = r.URL.RawQuery
	case "client_secret":
		if _, password, basic := r.BasicAuth(); basic {
			secret, _ = url.QueryUnescape(password)
		}
	}
	about := "nothing"
	if s.last.Store(secret != ""); secret != "" {
		s.said.Add(1)
		about = "not that: " + s.echo(secret)
	}
	w.WriteHeader(http.StatusBadRequest)
	_ = json.NewEncoder(w).Encode(map[string]string{"error_description": about})
}

func (s *echoing) check(t *testing.T, name string, err error) {
	t.Helper()
	want := `denied by the target: it refused: it says "nothing" (status 400)`
	if s.last.Load() {
		want = "denied by the target: it refused (status 400)"
	}
	if text, _ := told(err); text != want {
		t.Errorf("%s:\n got %s\nwant %s", name, text, want)
	}
}
