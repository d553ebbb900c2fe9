// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const form = "application/x-www-form-urlencoded"

func basic(id, secret string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(id)+":"+url.QueryEscape(secret)))
}

func newTokenEndpoint(t *testing.T, o TokenEndpointOptions) (*TokenEndpoint, string) {
	t.Helper()
	o.Issuer = NewIssuer(IssuerOptions{URL: "https://issuer.example", Algorithm: "ES256", Now: newClock().Now})
	o.ClientID, o.ClientSecret, o.Audience = "the client", "s:e&cret", "https://api.example"
	e := NewTokenEndpoint(o)
	return e, serve(t, e) + "/token"
}

func TestTokenEndpointAnswers(t *testing.T) {
	t.Parallel()
	right := basic("the client", "s:e&cret")
	for name, c := range map[string]struct {
		body, authorization, media string
		status                     int
		text                       string // the error, if there is one
	}{
		"basic":             {"grant_type=client_credentials&scope=read", right, form, 200, ""},
		"in the form":       {"grant_type=client_credentials&client_id=the+client&client_secret=s%3Ae%26cret", "", form, 200, ""},
		"both ways":         {"grant_type=client_credentials&client_id=the+client&client_secret=s%3Ae%26cret", right, form, 400, "invalid_request"},
		"neither":           {"grant_type=client_credentials", "", form, 401, "invalid_client"},
		"other secret":      {"grant_type=client_credentials", basic("the client", "x"), form, 401, "invalid_client"},
		"other client":      {"grant_type=client_credentials", basic("x", "s:e&cret"), form, 401, "invalid_client"},
		"not encoded":       {"grant_type=client_credentials", "Basic " + base64.StdEncoding.EncodeToString([]byte("the client:s%zz")), form, 401, "invalid_client"},
		"other grant":       {"grant_type=password", right, form, 400, "unsupported_grant_type"},
		"no grant":          {"", right, form, 400, "unsupported_grant_type"},
		"grant in the URL":  {"", right, form, 400, "unsupported_grant_type"},
		"parameter twice":   {"grant_type=client_credentials&grant_type=password", right, form, 400, "invalid_request"},
		"body that is JSON": {`{"grant_type":"client_credentials"}`, right, "application/json", 400, "invalid_request"},
	} {
		_, address := newTokenEndpoint(t, TokenEndpointOptions{})
		if name == "grant in the URL" {
			address += "?grant_type=client_credentials"
		}
		r := do(t, "POST", address, c.body, "Authorization", c.authorization, "Content-Type", c.media)
		if text, _ := r.object(t)["error"].(string); r.status != c.status || text != c.text {
			t.Errorf("%s: %d %s; want %d %q", name, r.status, r.body, c.status, c.text)
		}
	}
}

func TestTokenEndpointToken(t *testing.T) {
	t.Parallel()
	e, address := newTokenEndpoint(t, TokenEndpointOptions{Life: time.Hour})
	r := do(t, "POST", address, "grant_type=client_credentials&scope=read&resource=x", "Authorization", basic("the client", "s:e&cret"), "Content-Type", form)
	answer := r.object(t)
	token := answer["access_token"].(string)
	if !cmp.Equal(e.Issued(), []string{token}) || answer["expires_in"] != float64(3600) || answer["token_type"] != "Bearer" || e.Asked()[0].Get("resource") != "x" {
		t.Errorf("answer %v, issued %v, asked %v", answer, e.Issued(), e.Asked())
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{}
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	delete(claims, "jti")
	want := map[string]any{"iss": "https://issuer.example", "sub": "the client", "client_id": "the client", "aud": "https://api.example",
		"scope": "read", "iat": float64(start.Unix()), "exp": float64(start.Add(time.Hour).Unix())}
	if diff := cmp.Diff(want, claims); diff != "" {
		t.Error(diff)
	}
	_, address = newTokenEndpoint(t, TokenEndpointOptions{NoExpiresIn: true})
	r = do(t, "POST", address, "grant_type=client_credentials", "Authorization", basic("the client", "s:e&cret"), "Content-Type", form)
	if _, there := r.object(t)["expires_in"]; there {
		t.Errorf("expires_in is there: %s", r.body)
	}
}

// If MayCreate decides who makes keys, the admin token cannot make any, but can still end them.
func TestKeyAPIMayCreate(t *testing.T) {
	t.Parallel()
	clock := newClock()
	api := &keyAPI{KeyAPI: NewKeyAPI(KeyAPIOptions{AdminToken: "admin-token", Now: clock.Now, MayCreate: func(token string) bool { return token == "maker" }}), clock: clock}
	api.url = serve(t, api.KeyAPI)
	wantError(t, "by the admin token", api.create(t, "n1"), 401, "the bearer token is missing or wrong")
	body := `{"name":"n1","scopes":[],"expires_at":"` + clock.Now().Add(time.Hour).Format(time.RFC3339) + `"}`
	r := do(t, "POST", api.url+"/v1/projects/p1/keys", body, "Authorization", "Bearer maker", "Content-Type", "application/json")
	if r.status != 201 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if r := api.do(t, "DELETE", "/v1/projects/p1/keys/"+r.object(t)["id"].(string), ""); r.status != 204 {
		t.Errorf("ending it: %d %s", r.status, r.body)
	}
}
