// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"crypto"
	"encoding/base64"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// oauthLab is an OAuth server with an issuer that it trusts, a trust domain, and a client of each method.
type oauthLab struct {
	*OAuth
	t      *testing.T
	clock  *testClock
	issuer *Issuer
	agent  *WorkloadAPI
	key    crypto.Signer
}

const (
	gateway    = "spiffe://example.org/gateway"
	supervisor = "spiffe://example.org/supervisor"
)

func newOAuthLab(t *testing.T, change func(*OAuthOptions)) *oauthLab {
	t.Helper()
	l := &oauthLab{t: t, clock: newClock(), key: generateKey("ES256")}
	l.issuer = NewIssuer(IssuerOptions{Now: l.clock.Now, Algorithm: "ES256"})
	l.issuer.SetURL(serve(t, l.issuer))
	l.agent = NewWorkloadAPI(WorkloadAPIOptions{IDs: []string{gateway, supervisor}, Now: l.clock.Now})
	o := OAuthOptions{
		Issuers: []string{l.issuer.URL()}, Domain: l.agent.Domain, Now: l.clock.Now, Audiences: []string{"https://api.example", supervisor}, Scopes: []string{"read"},
		Clients: []OAuthClient{
			{ID: "the:client", Method: "client_secret_basic", Secret: "s:e&cret"}, {ID: "post", Method: "client_secret_post", Secret: "s"},
			{ID: "signer", Method: "private_key_jwt", Key: l.key.Public()}, {ID: "public", Method: "none"},
			{ID: gateway, Method: "jwt-bearer"}, {ID: supervisor, Method: "jwt-spiffe"}, {ID: "narrow", Method: "client_secret_post", Secret: "n", Grants: []string{grantExchange}},
		},
	}
	if change != nil {
		change(&o)
	}
	l.OAuth = NewOAuth(o)
	l.SetURL(serve(t, l.OAuth))
	return l
}

// ask posts a form to a path below the issuer.
func (l *oauthLab) ask(path string, form map[string]string, header ...string) reply {
	l.t.Helper()
	values := url.Values{}
	for name, value := range form {
		values.Set(name, value)
	}
	return do(l.t, "POST", l.Issuer()+path, values.Encode(), append([]string{"Content-Type", "application/x-www-form-urlencoded"}, header...)...)
}

func (l *oauthLab) subjectToken(claims map[string]any) string {
	all := map[string]any{"aud": l.Issuer(), "sub": "jim"}
	maps.Copy(all, claims)
	return l.issuer.Token(all)
}

// assertion returns an assertion signed by the client signer.
func (l *oauthLab) assertion(claims map[string]any) string {
	now := l.clock.Now()
	all := map[string]any{"iss": "signer", "sub": "signer", "aud": l.Issuer(), "jti": randomHex(8), "exp": now.Add(time.Minute).Unix()}
	token, err := Compact("ES256", l.key, []byte(`{"alg":"ES256"}`), mustJSON(override(all, claims)))
	if err != nil {
		l.t.Fatal(err)
	}
	return token
}

func joined(parts ...map[string]string) map[string]string {
	all := map[string]string{}
	for _, part := range parts {
		maps.Copy(all, part)
	}
	return all
}

func assertion(kind, token string) map[string]string {
	return map[string]string{"client_assertion_type": assertionTypes + kind, "client_assertion": token}
}

var (
	byPost      = map[string]string{"client_id": "post", "client_secret": "s"}
	forItself   = map[string]string{"grant_type": grantClient}
	wrongSecret = map[string]string{"client_id": "post", "client_secret": "S"}
)

func TestOAuthClients(t *testing.T) {
	t.Parallel()
	l := newOAuthLab(t, nil)
	svid := func(id string, claims map[string]any) string {
		return l.agent.SVID(override(map[string]any{"sub": id, "aud": l.Issuer()}, claims))
	}
	used := l.assertion(nil)
	for _, c := range []struct {
		name   string
		form   map[string]string
		header []string
		want   string // the error; "" = a token
	}{
		{"basic", nil, []string{"Authorization", basic("the:client", "s:e&cret")}, ""},
		{"basic, not encoded", nil, []string{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("the:client:s:e&cret"))}, "invalid_client"},
		{"basic, wrong", nil, []string{"Authorization", basic("the:client", "x")}, "invalid_client"},
		{"basic and post", byPost, []string{"Authorization", basic("the:client", "s:e&cret")}, "invalid_client"},
		{"post", byPost, nil, ""},
		{"post, wrong", wrongSecret, nil, "invalid_client"},
		{"post of a client by basic", map[string]string{"client_id": "the:client", "client_secret": "s:e&cret"}, nil, "invalid_client"},
		{"signed", assertion("jwt-bearer", used), nil, ""},
		{"signed, again", assertion("jwt-bearer", used), nil, "invalid_client"},
		{"signed, for the token endpoint", assertion("jwt-bearer", l.assertion(map[string]any{"aud": l.Issuer() + "/token"})), nil, ""},
		{"signed, for another", assertion("jwt-bearer", l.assertion(map[string]any{"aud": "https://other.example"})), nil, "invalid_client"},
		{"signed, for two", assertion("jwt-bearer", l.assertion(map[string]any{"aud": []string{l.Issuer(), "https://other.example"}})), nil, "invalid_client"},
		{"signed, no jti", assertion("jwt-bearer", l.assertion(map[string]any{"jti": nil})), nil, "invalid_client"},
		{"signed, expired", assertion("jwt-bearer", l.assertion(map[string]any{"exp": l.clock.Now().Unix()})), nil, "invalid_client"},
		{"signed, for too long", assertion("jwt-bearer", l.assertion(map[string]any{"exp": l.clock.Now().Add(time.Hour).Unix()})), nil, "invalid_client"},
		{"signed, of another iss", assertion("jwt-bearer", l.assertion(map[string]any{"iss": "post"})), nil, "invalid_client"},
		{"signed, with another id", joined(map[string]string{"client_id": "post"}, assertion("jwt-bearer", l.assertion(nil))), nil, "invalid_client"},
		{"signed, as SPIFFE", assertion("jwt-spiffe", l.assertion(nil)), nil, "invalid_client"},
		{"SVID", assertion("jwt-bearer", svid(gateway, nil)), nil, ""},
		{"SVID, SPIFFE type", assertion("jwt-spiffe", svid(supervisor, nil)), nil, ""},
		{"SVID of the other type", assertion("jwt-bearer", svid(supervisor, nil)), nil, "invalid_client"},
		{"SVID of nobody", assertion("jwt-spiffe", svid("spiffe://example.org/other", nil)), nil, "invalid_client"},
		{"SVID for another", assertion("jwt-spiffe", svid(supervisor, map[string]any{"aud": "https://other.example"})), nil, "invalid_client"},
		{"SVID of another authority", assertion("jwt-spiffe", l.issuer.Token(map[string]any{"sub": supervisor, "aud": l.Issuer()})), nil, "invalid_client"},
		{"public", map[string]string{"client_id": "public"}, nil, "unauthorized_client"},
		{"nobody", nil, nil, "invalid_client"},
		{"grant that it may not use", map[string]string{"client_id": "narrow", "client_secret": "n"}, nil, "unauthorized_client"},
	} {
		r := l.ask("/token", joined(forItself, c.form), c.header...)
		status := map[string]int{"": 200, "invalid_client": 401}[c.want]
		if status == 0 {
			status = 400
		}
		if got, _ := r.object(t)["error"].(string); got != c.want || r.status != status {
			t.Errorf("%s: %d %s; want %d %q", c.name, r.status, r.body, status, c.want)
		}
	}
}

func TestOAuthGrants(t *testing.T) {
	t.Parallel()
	l := newOAuthLab(t, func(o *OAuthOptions) { o.SingleUse = true })
	exchange := func(subject string, more ...string) map[string]string {
		form := joined(byPost, map[string]string{"grant_type": grantExchange, "subject_token": subject, "subject_token_type": typeJWT})
		for i := 0; i < len(more); i += 2 {
			form[more[i]] = more[i+1]
		}
		return form
	}
	bearer := func(subject string) map[string]string {
		return joined(byPost, map[string]string{"grant_type": grantBearer, "assertion": subject})
	}
	svid := l.agent.SVID(map[string]any{"sub": gateway, "aud": l.Issuer()})
	once := l.subjectToken(nil)
	for _, c := range []struct {
		name string
		form map[string]string
		want string
	}{
		{"exchange", exchange(once), ""},
		{"exchange, again", exchange(once), "invalid_request"},
		{"by name", exchange(l.subjectToken(nil), "audience", "https://api.example", "scope", "read", "requested_token_type", typeJWT), ""},
		{"of an SVID", exchange(svid), ""},
		{"with an actor", exchange(l.subjectToken(nil), "actor_token", svid, "actor_token_type", typeJWT), ""},
		{"actor without type", exchange(l.subjectToken(nil), "actor_token", svid), "invalid_request"},
		{"wrong actor", exchange(l.subjectToken(nil), "actor_token", "x", "actor_token_type", typeJWT), "invalid_request"},
		{"expired", exchange(l.subjectToken(map[string]any{"exp": l.clock.Now().Unix()})), "invalid_request"},
		{"for another", exchange(l.subjectToken(map[string]any{"aud": "https://other.example"})), "invalid_request"},
		{"for two", exchange(l.subjectToken(map[string]any{"aud": []string{l.Issuer(), "https://other.example"}})), "invalid_request"},
		{"of a stranger", exchange(l.subjectToken(map[string]any{"iss": "https://evil.example"})), "invalid_request"},
		{"forged", exchange(l.subjectToken(nil) + "x"), "invalid_request"},
		{"no token", exchange(""), "invalid_request"},
		{"type of subject", exchange(l.subjectToken(nil), "subject_token_type", "x"), "invalid_request"},
		{"type wanted", exchange(l.subjectToken(nil), "requested_token_type", tokenTypes+"refresh_token"), "invalid_request"},
		{"audience", exchange(l.subjectToken(nil), "audience", "https://other.example"), "invalid_target"},
		{"resource", exchange(l.subjectToken(nil), "resource", "relative"), "invalid_target"},
		{"scope", exchange(l.subjectToken(nil), "scope", "read write"), "invalid_scope"},
		{"bearer", bearer(l.subjectToken(nil)), ""},
		{"bearer, expired", bearer(l.subjectToken(map[string]any{"exp": l.clock.Now().Unix()})), "invalid_grant"},
		{"grant", joined(byPost, map[string]string{"grant_type": "password"}), "unsupported_grant_type"},
		{"no grant", byPost, "unsupported_grant_type"},
	} {
		r := l.ask("/token", c.form)
		if got, _ := r.object(t)["error"].(string); got != c.want || (c.want == "") != (r.status == 200) {
			t.Errorf("%s: %d %s; want %q", c.name, r.status, r.body, c.want)
		}
	}
	for name, r := range map[string]reply{
		"parameter twice": do(t, "POST", l.Issuer()+"/token", "grant_type=a&grant_type=b", "Content-Type", "application/x-www-form-urlencoded"),
		"JSON":            do(t, "POST", l.Issuer()+"/token", "{}", "Content-Type", "application/json"),
	} {
		wantError(t, name, r, 400, "invalid_request")
	}
}

// A token lives until it is revoked or has expired, and is what the request asked for.
func TestOAuthToken(t *testing.T) {
	t.Parallel()
	l := newOAuthLab(t, nil)
	about := func(token string) map[string]string { return joined(byPost, map[string]string{"token": token}) }
	active := func(token string) bool { return l.ask("/introspect", about(token)).object(t)["active"].(bool) }
	make := func() string {
		return l.ask("/token", joined(byPost, forItself, map[string]string{"audience": "https://api.example", "scope": "read"})).object(t)["access_token"].(string)
	}
	token := make()
	want := []OAuthToken{{ID: l.Live()[0].ID, Client: "post", Subject: "post", Audience: []string{"https://api.example"}, Scope: "read", ExpiresAt: start.Add(5 * time.Minute)}}
	if diff := cmp.Diff(want, l.Live()); diff != "" {
		t.Error(diff)
	}
	if r := l.ask("/introspect", about(token)).object(t); r["exp"] != float64(want[0].ExpiresAt.Unix()) || r["active"] != true {
		t.Errorf("introspection: %v", r)
	}
	if r := do(t, "GET", l.Issuer()+"/api", "", "Authorization", "Bearer "+token); r.status != 200 {
		t.Errorf("use: %d", r.status)
	}
	other := joined(map[string]string{"token": token, "client_id": "narrow", "client_secret": "n"})
	wantError(t, "revoked by another", l.ask("/revoke", other), 400, "unauthorized_client")
	if r := l.ask("/revoke", joined(wrongSecret, map[string]string{"token": token})); r.status != 401 || r.object(t)["error"] != "invalid_client" {
		t.Errorf("revoked by nobody: %d %s", r.status, r.body)
	}
	wantError(t, "nothing revoked", l.ask("/revoke", byPost), 400, "invalid_request")
	wantError(t, "nothing asked about", l.ask("/introspect", byPost), 400, "invalid_request")
	if !active(token) {
		t.Fatal("it ended before its time")
	}
	for range 2 {
		if r := l.ask("/revoke", about(token)); r.status != 200 || r.body != "" {
			t.Errorf("revoking: %d %q", r.status, r.body)
		}
	}
	if active(token) || l.Valid(token) || do(t, "GET", l.Issuer()+"/api", "", "Authorization", "Bearer "+token).status != 401 {
		t.Error("it lives on")
	}
	token = make()
	l.clock.Advance(5 * time.Minute)
	if active(token) || len(l.Live()) != 0 {
		t.Error("it lives longer than it should")
	}
}

// A token that one server made for a client's SPIFFE ID is accepted from that client by the next server, and from nobody
// else.
func TestOAuthHops(t *testing.T) {
	t.Parallel()
	first := newOAuthLab(t, nil)
	second := newOAuthLab(t, func(o *OAuthOptions) { o.Issuers, o.Domain = []string{first.Issuer()}, first.agent.Domain })
	hop := func(l *oauthLab, id, kind, subject, subjectType, audience string) reply {
		form := assertion(kind, first.agent.SVID(map[string]any{"sub": id, "aud": l.Issuer() + "/token"}))
		return l.ask("/token", joined(form, map[string]string{"grant_type": grantExchange, "subject_token": subject, "subject_token_type": subjectType, "audience": audience}))
	}
	intermediate := hop(first, gateway, "jwt-bearer", first.subjectToken(nil), typeJWT, supervisor).object(t)["access_token"].(string)
	if r := hop(second, gateway, "jwt-bearer", intermediate, typeAccessToken, "https://api.example"); r.status != 400 {
		t.Errorf("the other client: %d %s", r.status, r.body)
	}
	if r := hop(second, supervisor, "jwt-spiffe", intermediate, typeAccessToken, "https://api.example"); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if got := second.Live()[0]; got.Subject != "jim" || got.Client != supervisor {
		t.Errorf("got %+v", got)
	}
}

func TestOAuthPlaces(t *testing.T) {
	t.Parallel()
	for place, path := range map[string]string{
		PlaceInserted: "/.well-known/oauth-authorization-server/realms/a", PlaceAppended: "/realms/a/.well-known/oauth-authorization-server",
		PlaceOpenID: "/realms/a/.well-known/openid-configuration",
	} {
		l := newOAuthLab(t, func(o *OAuthOptions) {
			o.Path, o.Places, o.Without = "/realms/a", []string{place}, []string{"grant_types_supported"}
		})
		base := strings.TrimSuffix(l.Issuer(), "/realms/a")
		r := do(t, "GET", base+path, "")
		document := r.object(t)
		if r.status != http.StatusOK || document["issuer"] != l.Issuer() || document["token_endpoint"] != l.Issuer()+"/token" || document["grant_types_supported"] != nil {
			t.Errorf("%s: %d %s", place, r.status, r.body)
		}
		if l.Calls(OpDiscovery) != 1 {
			t.Errorf("%s: %d calls", place, l.Calls(OpDiscovery))
		}
	}
}
