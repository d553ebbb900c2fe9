// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target/targettest"
)

const (
	oauthSecret   = "credential-canary-s:e&c ret+" // it needs its encoding
	exchangeGrant = "urn:ietf:params:oauth:grant-type:token-exchange"
	bearerGrant   = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	tokenTypes    = "urn:ietf:params:oauth:token-type:"
)

var oauthDenied = []int{400, 401, 403, 404, 405, 413, 415, 422}

// formOf reads a form that came by POST to an address, "" if it is another request.
func formOf(r *http.Request, body []byte, address string) (url.Values, bool) {
	form, err := url.ParseQuery(string(body))
	return form, err == nil && r.Method == http.MethodPost && r.URL.RequestURI() == address &&
		r.Header.Get("Content-Type") == "application/x-www-form-urlencoded"
}

// wantForm reports whether a form has exactly these members, with the values that are not "*".
func wantForm(form url.Values, want map[string]string) bool {
	for name, value := range want {
		if got := strings.Join(form[name], "|"); got == "" || value != "*" && got != value {
			return false
		}
	}
	return len(form) == len(want)
}

// grantOf is the answer of a token endpoint with a key.
func grantOf(key targettest.Key, more map[string]any) map[string]any {
	body := map[string]any{"access_token": key.Secret, "token_type": "bearer"}
	for name, value := range more {
		body[name] = value
	}
	return body
}

func secondsTo(end time.Time) int64 { return int64(end.Sub(targettest.Start) / time.Second) }

// The token endpoint is configured, with a query; the secret goes by Basic. Nothing revokes.
func TestOAuthExchange(t *testing.T) {
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("the+engine:credential-canary-s%3Ae%26c+ret%2B"))
	targettest.Run(t, targettest.Suite{
		Config: target.Config{Driver: "oauth", Audience: "https://id.example", OAuth: target.OAuth{
			ClientAuth: "client_secret_basic", ClientID: "the engine", ClientSecret: oauthSecret, SubjectTokenType: "id_token"}},
		Complete: func(c *target.Config) { c.URL, c.OAuth.TokenURL = "", c.URL+"/oauth/token?tenant=a%2Fb" },
		Params:   map[string]any{"audience": "https://api.example", "scopes": "read,write", "resource": "https://a.example/,urn:b", "requested_token_type": "jwt"},
		Token:    true, Expiry: true,
		Denied: oauthDenied, Quotes: true, Header: "Authorization", HeaderValue: func(key string) string { return "Bearer " + key }, Fields: map[string]string{"scope": "read"},
		Wire: targettest.Wire{
			Read: func(r *http.Request, body []byte) targettest.Call {
				form, ok := formOf(r, body, "/oauth/token?tenant=a%2Fb")
				if !ok || r.Header.Get("Authorization") != basic || !wantForm(form, map[string]string{
					"grant_type": exchangeGrant, "subject_token": "*", "subject_token_type": tokenTypes + "id_token", "requested_token_type": tokenTypes + "jwt",
					"audience": "https://api.example", "scope": "read write", "resource": "https://a.example/|urn:b"}) {
					return targettest.Call{}
				}
				return targettest.Call{Op: targettest.Exchange, Token: form.Get("subject_token")}
			},
			Write: func(_ targettest.Op, keys []targettest.Key) (int, any) {
				return 200, grantOf(keys[0], map[string]any{"expires_in": secondsTo(keys[0].Expiry), "issued_token_type": tokenTypes + "jwt", "token_type": "N_A", "scope": "read"})
			},
		},
	})
}

// Endpoints are discovered, where the issuer has a path, and the server revokes and introspects.
func TestOAuthDiscovered(t *testing.T) {
	const prefix = "/realms/acme"
	client := map[string]string{"client_id": "engine", "client_secret": oauthSecret}
	with := func(more map[string]string) map[string]string {
		for name, value := range client {
			more[name] = value
		}
		return more
	}
	targettest.Run(t, targettest.Suite{
		Config: target.Config{Driver: "oauth", OAuth: target.OAuth{ClientAuth: "client_secret_post", ClientID: "engine", ClientSecret: oauthSecret,
			IntrospectionURL: "discover"}},
		Complete: func(c *target.Config) { c.URL += prefix },
		Token:    true, Expiry: true, NeedsKey: true, Gone: targettest.Answer{Status: 200}, Fixed: true,
		Caps:   target.Caps{Revoke: true, Renew: true, Check: true},
		Denied: oauthDenied, Quotes: true, Header: "Authorization", HeaderValue: func(key string) string { return "Bearer " + key },
		Wire: targettest.Wire{
			Aside: func(r *http.Request, _ []byte, _ []targettest.Key) *targettest.Answer {
				base := "http://" + r.Host
				switch {
				case r.URL.Path == prefix+"/.well-known/openid-configuration":
					return &targettest.Answer{Status: 200, Body: map[string]any{"issuer": base + prefix, "token_endpoint": base + "/t?x", "revocation_endpoint": base + "/r", "introspection_endpoint": base + "/i"}}
				case strings.Contains(r.URL.Path, "/.well-known/"):
					return &targettest.Answer{Status: 200, Body: map[string]any{"issuer": base}}
				}
				return nil
			},
			Read: func(r *http.Request, body []byte) targettest.Call {
				if form, ok := formOf(r, body, "/t?x"); ok && wantForm(form, with(map[string]string{"grant_type": exchangeGrant,
					"subject_token": "*", "subject_token_type": tokenTypes + "jwt", "requested_token_type": tokenTypes + "access_token"})) {
					return targettest.Call{Op: targettest.Exchange, Token: form.Get("subject_token")}
				}
				for address, op := range map[string]targettest.Op{"/r": targettest.Revoke, "/i": targettest.Renew} {
					form, ok := formOf(r, body, address)
					switch {
					case !ok || !wantForm(form, with(map[string]string{"token": "*", "token_type_hint": "access_token"})):
					case op == targettest.Renew && form.Get("token") == "oidcexchange-check":
						return targettest.Call{Op: targettest.Check}
					default:
						return targettest.Call{Op: op, Key: form.Get("token")}
					}
				}
				return targettest.Call{}
			},
			Write: func(op targettest.Op, keys []targettest.Key) (int, any) {
				switch op {
				case targettest.Exchange:
					return 200, grantOf(keys[0], map[string]any{"expires_in": fmt.Sprint(secondsTo(keys[0].Expiry))})
				case targettest.Renew:
					return 200, map[string]any{"active": true, "exp": keys[0].Expiry.Unix()}
				case targettest.Check:
					return 200, map[string]any{"active": false}
				}
				return 200, nil
			},
		},
	})
}

// The engine is a client by its SVID and asks for itself; answers do not say when a token ends.
func TestOAuthClientCredentials(t *testing.T) {
	const own = "credential-canary-svid"
	targettest.Run(t, targettest.Suite{
		Config: target.Config{Driver: "oauth", Lifetime: time.Hour, OAuth: target.OAuth{Grant: "client_credentials", ClientAuth: "svid_jwt_spiffe", SPIFFEID: "spiffe://example.org/engine",
			OwnToken: func(_ context.Context, source, id, audience string) (string, error) {
				if source != target.SourceSVID || id != "spiffe://example.org/engine" || !strings.HasSuffix(audience, "/token") {
					return "", fmt.Errorf("asked for %s, %s, %s", source, id, audience)
				}
				return own, nil
			}}},
		Complete: func(c *target.Config) { c.OAuth.TokenURL, c.OAuth.RevocationURL = c.URL+"/token", c.URL+"/revoke" },
		Params:   map[string]any{"audience": "https://api.example"},
		Caps:     target.Caps{Revoke: true, Check: true}, NeedsKey: true, Gone: targettest.Answer{Status: 200},
		Denied: oauthDenied, Quotes: true, Header: "Authorization", HeaderValue: func(key string) string { return "Bearer " + key },
		Wire: targettest.Wire{
			Read: func(r *http.Request, body []byte) targettest.Call {
				client := map[string]string{"client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe", "client_assertion": own}
				if form, ok := formOf(r, body, "/token"); ok {
					client["grant_type"], client["audience"] = "client_credentials", "https://api.example"
					if wantForm(form, client) {
						return targettest.Call{Op: targettest.Exchange}
					}
				}
				form, ok := formOf(r, body, "/revoke")
				client["token"], client["token_type_hint"] = "*", "access_token"
				switch {
				case !ok || !wantForm(form, client):
					return targettest.Call{}
				case form.Get("token") == "oidcexchange-check":
					return targettest.Call{Op: targettest.Check}
				}
				return targettest.Call{Op: targettest.Revoke, Key: form.Get("token")}
			},
			Write: func(op targettest.Op, keys []targettest.Key) (int, any) {
				if op == targettest.Exchange {
					return 200, grantOf(keys[0], nil)
				}
				return 200, nil
			},
		},
	})
}

// The subject token is the grant itself (RFC 7523).
func TestOAuthJWTBearer(t *testing.T) {
	targettest.Run(t, targettest.Suite{
		Config:   target.Config{Driver: "oauth", OAuth: target.OAuth{Grant: "jwt_bearer"}},
		Complete: func(c *target.Config) { c.OAuth.TokenURL = c.URL + "/token" },
		Params:   map[string]any{"scopes": "read"},
		Token:    true, Expiry: true,
		Denied: oauthDenied, Quotes: true, Header: "Authorization", HeaderValue: func(key string) string { return "Bearer " + key },
		Wire: targettest.Wire{
			Read: func(r *http.Request, body []byte) targettest.Call {
				form, ok := formOf(r, body, "/token")
				if !ok || !wantForm(form, map[string]string{"grant_type": bearerGrant, "assertion": "*", "scope": "read"}) {
					return targettest.Call{}
				}
				return targettest.Call{Op: targettest.Exchange, Token: form.Get("assertion")}
			},
			Write: func(_ targettest.Op, keys []targettest.Key) (int, any) {
				return 200, grantOf(keys[0], map[string]any{"expires_in": secondsTo(keys[0].Expiry)})
			},
		},
	})
}

// Servers are not of one mind about the status of success: each that brings a whole answer does, and one that brings half of one
// may have made a token.
func TestOAuthSuccess(t *testing.T) {
	for status, want := range map[int]string{
		200: "", 201: "", 202: "", 203: "",
		204: "outcome is unknown: it answered otherwise than expected (status 204)", 206: "outcome is unknown: it answered otherwise than expected (status 206)",
	} {
		s := scripted(t, map[string][]line{"POST /token": {{status, `{"access_token": "k3y", "expires_in": 60}`, nil}}, "POST /revoke": {{status, "", nil}}})
		o := s.open(t, "", target.Config{Driver: "oauth", Audience: "x", OAuth: target.OAuth{TokenURL: s.url + "/token", RevocationURL: s.url + "/revoke"}})
		key, err := o.Exchange(t.Context(), target.Request{SubjectToken: "t0ken"})
		wantTold(t, err, want, want != "")
		if want == "" && key.Secret != "k3y" {
			t.Errorf("%d: got %v", status, key)
		}
		err = o.Revoke(t.Context(), target.Handle{Secret: "k3y"})
		if ended := status == 200 || status == 204; ended != (err == nil) {
			t.Errorf("revoking, %d: %v", status, err)
		}
	}
}

// A token that was issued and is refused is revoked at once, for nobody could find it again. Where that cannot be done it may live.
func TestOAuthRevokesWhatItRefuses(t *testing.T) {
	const senseless, revoked = "target's answer makes no sense: ", "; the key was revoked"
	gone := line{200, "", nil}
	for name, c := range map[string]struct {
		answer string
		revoke line // of no status = none is configured
		want   string
		asked  string
	}{
		"another type":      {`{"access_token": "k3y", "token_type": "DPoP", "expires_in": 60}`, gone, "token_type is not Bearer" + revoked, "POST /token, POST /revoke"},
		"not as requested":  {`{"access_token": "k3y", "issued_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}`, gone, "issued_token_type is not what was requested", "POST /token"},
		"an end in words":   {`{"access_token": "k3y", "expires_in": "soon"}`, gone, "expires_in is no number of seconds" + revoked, "POST /token, POST /revoke"},
		"an end unsaid":     {`{"access_token": "k3y"}`, gone, "the answer has no expires_in; set the target's lifetime to what the server documents" + revoked, "POST /token, POST /revoke"},
		"an end that is on": {`{"access_token": "k3y", "expires_in": 0}`, gone, "the key has already expired" + revoked, "POST /token, POST /revoke"},
		"server is busy":    {`{"access_token": "k3y"}`, line{503, "", nil}, "the answer has no expires_in; set the target's lifetime to what the server documents", "POST /token, POST /revoke"},
		"no revocation":     {`{"access_token": "k3y"}`, line{}, "the answer has no expires_in; set the target's lifetime to what the server documents", "POST /token"},
		// What the token is is not known, and a server says of what it does not know that it is revoked.
		"no bearer token": {`{"access_token": "k3\ny", "expires_in": 60}`, gone, "access_token is no bearer token of at most 8192 bytes", "POST /token"},
		"no token":        {`{"expires_in": 60}`, gone, "no access_token in the answer", "POST /token"},
	} {
		t.Run(name, func(t *testing.T) {
			s := scripted(t, map[string][]line{"POST /token": {{200, c.answer, nil}}, "POST /revoke": {c.revoke}})
			config := target.Config{Driver: "oauth", Audience: "x", OAuth: target.OAuth{TokenURL: s.url + "/token"}}
			if c.revoke.status != 0 {
				config.OAuth.RevocationURL = s.url + "/revoke"
			}
			key, err := s.open(t, "", config).Exchange(t.Context(), target.Request{SubjectToken: "t0ken"})
			wantTold(t, err, senseless+c.want, !strings.HasSuffix(c.want, revoked))
			if !errors.Is(err, target.ErrProtocol) || cmp.Diff(target.Key{}, key) != "" {
				t.Errorf("%v, and a key: %v", err, key)
			}
			if got := s.requests(); got != c.asked {
				t.Errorf("asked %s\nwant  %s", got, c.asked)
			}
			if got := s.bodies[len(s.bodies)-1]; strings.HasSuffix(c.asked, "revoke") && got != "token=k3y&token_type_hint=access_token" {
				t.Errorf("revoked by %s", got)
			}
		})
	}
}
