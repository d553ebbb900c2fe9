// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

func TestOAuthDiscoveryPlaces(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"", "/realms/acme", "/a%20b"} {
		for _, place := range []string{lab.PlaceInserted, lab.PlaceAppended, lab.PlaceOpenID} {
			if path == "" && place == lab.PlaceAppended || strings.Contains(path, "%") && place != lab.PlaceOpenID {
				continue
			}
			t.Run(path+" "+place, func(t *testing.T) {
				t.Parallel()
				a, opened := newAuthority(t, lab.OAuthOptions{Path: path, Places: []string{place}}, nil)
				if _, err := a.exchange(opened, a.token(nil), nil); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// documents is a server that answers questions for the document as a test wants, and everything else with a token.
type documents struct {
	*authority
	answer atomic.Pointer[http.HandlerFunc]
	asked  atomic.Int64
	tokens atomic.Int64
	base   string
}

func newDocuments(t *testing.T, path string, configure func(*documents, *target.Config)) (*documents, *target.Target) {
	t.Helper()
	d := &documents{}
	a, opened := newAuthority(t, lab.OAuthOptions{}, func(a *authority, c *target.Config) {
		d.authority = a
		d.base = a.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/.well-known/") {
				d.asked.Add(1)
				(*d.answer.Load())(w, r)
				return
			}
			d.tokens.Add(1)
			fmt.Fprint(w, `{"access_token":"t0ken","expires_in":60}`)
		}))
		c.URL, c.Audience = d.base+path, "https://id.example"
		if configure != nil {
			configure(d, c)
		}
	})
	d.authority = a
	d.says(d.document("{}"))
	return d, opened
}

// says makes text the answer at every well-known address.
func (d *documents) says(text string) {
	d.answers(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })
}

func (d *documents) answers(h http.HandlerFunc) { d.answer.Store(&h) }

// document is a good one with some members changed: BASE is the server.
func (d *documents) document(changes string) string {
	text := strings.ReplaceAll(changes, "BASE", d.base)
	good := fmt.Sprintf(`{"issuer":%q,"token_endpoint":%q,"revocation_endpoint":%q,`, d.base, d.base+"/t?x=1", d.base+"/r")
	return strings.Replace(good+strings.TrimPrefix(text, "{"), ",}", "}", 1)
}

// Nothing is asked of an endpoint that a bad document names, and nothing of the document is repeated.
func TestOAuthBadDocuments(t *testing.T) {
	t.Parallel()
	const wrongIssuer = "no document there whose issuer is exactly the target's url"
	for name, c := range map[string]struct {
		changes, want string
		asked         int64
	}{
		"other issuer":    {`{"issuer":"BASE/canary"}`, wrongIssuer, 2},
		"slash":           {`{"issuer":"BASE/"}`, wrongIssuer, 2},
		"no issuer":       {`{"issuer":null}`, wrongIssuer, 2},
		"other host":      {`{"token_endpoint":"https://canary.example/t"}`, "token_endpoint: is not on url's host, nor on one of token_hosts", 1},
		"other port":      {`{"token_endpoint":"BASE0/t"}`, "token_endpoint: is not on url's host, nor on one of token_hosts", 1},
		"http":            {`{"token_endpoint":"http://BARE/t"}`, "token_endpoint: ", 1},
		"user":            {`{"token_endpoint":"https://canary@BARE/t"}`, "token_endpoint: has a user; credentials have fields of their own", 1},
		"fragment":        {`{"token_endpoint":"BASE/t#canary"}`, "token_endpoint: has a fragment; want scheme, host and path only", 1},
		"dots":            {`{"token_endpoint":"BASE/canary/../t"}`, "token_endpoint: has a dot segment in its path; write the path out", 1},
		"no endpoint":     {`{"token_endpoint":null}`, "the document has no token_endpoint; set token_url", 1},
		"number":          {`{"token_endpoint":7}`, "the document has no token_endpoint; set token_url", 1},
		"no revocation":   {`{"revocation_endpoint":null}`, "the document has no revocation_endpoint; set revocation_url to its address, or to none", 1},
		"revocation away": {`{"revocation_endpoint":"https://canary.example/t"}`, "revocation_endpoint: is not on url's host, nor on one of token_hosts", 1},
		"grants":          {`{"grant_types_supported":["client_credentials","canary"]}`, "the document's grant_types_supported does not have grant token_exchange", 1},
		"a list":          {`[]`, wrongIssuer, 2},
		"html":            {`<html>canary`, wrongIssuer, 2},
		"two values":      {`{} {}`, wrongIssuer, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, opened := newDocuments(t, "", nil)
			text := strings.ReplaceAll(c.changes, "BARE", strings.TrimPrefix(d.base, "https://"))
			if strings.HasPrefix(text, "{") {
				text = d.document(text)
			}
			d.says(text)
			_, err := d.exchange(opened, d.token(nil), nil)
			if strings.HasSuffix(c.want, ": ") {
				if err == nil || !strings.HasPrefix(err.Error(), "exchange: denied by the target: discovery: "+c.want) {
					t.Errorf("got %v", err)
				}
			} else {
				wantError(t, name, err, target.ErrDenied, "exchange: denied by the target: discovery: "+c.want)
			}
			if target.MayLive(err) || d.tokens.Load() != 0 || d.asked.Load() != c.asked {
				t.Errorf("%d requests for the document, %d for a token", d.asked.Load(), d.tokens.Load())
			}
		})
	}
}

// What is wanted of a document is what is not configured.
func TestOAuthDocumentsThatDo(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		changes   string
		configure func(*documents, *target.Config)
	}{
		"as it is":       {`{}`, nil},
		"grants":         {`{"grant_types_supported":["urn:ietf:params:oauth:grant-type:token-exchange"]}`, nil},
		"no revocation":  {`{"revocation_endpoint":null}`, func(_ *documents, c *target.Config) { c.OAuth.RevocationURL = "none" }},
		"own revocation": {`{"revocation_endpoint":null}`, func(d *documents, c *target.Config) { c.OAuth.RevocationURL = d.base + "/own" }},
		"revocation alone": {`{"token_endpoint":null}`, func(d *documents, c *target.Config) {
			c.OAuth.TokenURL, c.OAuth.RevocationURL = d.base+"/t", "discover"
		}},
		"another host": {`{"token_endpoint":"https://localhost:PORT/t"}`, func(d *documents, c *target.Config) {
			c.OAuth.TokenHosts = []string{"localhost:" + d.port()}
			c.CAPEM = d.ca
		}},
		"alias for no cert": {`{"mtls_endpoint_aliases":{"token_endpoint":"https://evil.example"}}`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, opened := newDocuments(t, "", c.configure)
			d.says(d.document(strings.ReplaceAll(c.changes, "PORT", d.port())))
			_, err := d.exchange(opened, d.token(nil), nil)
			if name == "another host" { // the certificate is for 127.0.0.1: that the call was tried there is enough
				if err == nil || !strings.Contains(err.Error(), "certificate is for another host") || d.tokens.Load() != 0 {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || d.tokens.Load() != 1 {
				t.Errorf("%v; %d requests for a token", err, d.tokens.Load())
			}
		})
	}
}

func (d *documents) port() string { return d.base[strings.LastIndex(d.base, ":")+1:] }

// With a client certificate, endpoints may be others.
func TestOAuthMutualTLSAliases(t *testing.T) {
	t.Parallel()
	cert, key := engineCertificate()
	d, opened := newDocuments(t, "", func(_ *documents, c *target.Config) {
		c.ClientCert, c.ClientKey, c.OAuth = cert, key, target.OAuth{ClientAuth: "tls_client_auth", ClientID: "engine"}
	})
	d.says(d.document(`{"mtls_endpoint_aliases":{"token_endpoint":"https://mtls.example/t"}}`))
	_, err := d.exchange(opened, d.token(nil), nil)
	wantError(t, "alias", err, target.ErrDenied, "exchange: denied by the target: discovery: token_endpoint: is not on url's host, nor on one of token_hosts")
	d.clock.advance(time.Minute)
	d.says(d.document(`{"mtls_endpoint_aliases":{"token_endpoint":"BASE/m"}}`))
	if _, err := d.exchange(opened, d.token(nil), nil); err != nil {
		t.Error(err)
	}
}

// The document is kept for an hour; when it cannot be had again it serves for a day; attempts are half a minute apart.
func TestOAuthDocumentIsKept(t *testing.T) {
	t.Parallel()
	d, opened := newDocuments(t, "", nil)
	step := func(name string, after time.Duration, asked int64, want string) {
		t.Helper()
		d.clock.advance(after)
		_, err := d.exchange(opened, d.token(nil), nil)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != want || d.asked.Load() != asked {
			t.Errorf("%s: %q after %d questions; want %q, %d", name, got, d.asked.Load(), want, asked)
		}
	}
	const down = "exchange: target is busy: discovery: try again later (status 503)"
	busy := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	d.answers(busy)
	step("down", 0, 1, down)
	step("floor", 29*time.Second, 1, down)
	step("again", time.Second, 2, down)
	d.says(d.document("{}"))
	step("up", 30*time.Second, 3, "")
	step("kept", 59*time.Minute, 3, "")
	step("asked again", time.Minute, 4, "")
	d.answers(busy)
	step("down again", time.Hour, 5, "")
	step("floor again", 29*time.Second, 5, "")
	step("still", time.Second, 6, "")
	step("too old", 24*time.Hour, 7, down)
	// Where no key can be issued none can be revoked either, and that is not for ever.
	if err := opened.Revoke(t.Context(), target.Handle{Secret: "x"}); err == nil || err.Error() != strings.Replace(down, "exchange", "revoke", 1) {
		t.Errorf("Revoke: %v", err)
	}
}

// A check asks, whatever is kept: of a server whose tokens are neither revoked nor introspected, for its document.
func TestOAuthCheckAsksAnew(t *testing.T) {
	t.Parallel()
	d, opened := newDocuments(t, "", func(_ *documents, c *target.Config) { c.OAuth.RevocationURL = "none" })
	for n := range 2 {
		if err := opened.Check(t.Context()); err != nil || d.asked.Load() != int64(n+1) {
			t.Errorf("got %v after %d questions", err, d.asked.Load())
		}
	}
	d.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	wantError(t, "down", opened.Check(t.Context()), target.ErrBusy, "check: target is busy: discovery: try again later (status 503)")
	if _, err := d.exchange(opened, d.token(nil), nil); err != nil || d.asked.Load() != 3 {
		t.Errorf("with the document that is kept: %v after %d questions", err, d.asked.Load())
	}
}

// That one caller left is no fault of the server: the next one asks at once.
func TestOAuthDiscoveryGivenUp(t *testing.T) {
	t.Parallel()
	d, opened := newDocuments(t, "", nil)
	arrived, released := make(chan struct{}), make(chan struct{})
	d.answers(func(http.ResponseWriter, *http.Request) { close(arrived); <-released })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := opened.Exchange(ctx, target.Request{SubjectToken: "x"})
		done <- err
	}()
	<-arrived
	cancel()
	wantError(t, "left", <-done, target.ErrBusy, "exchange: target is busy: discovery: the call was given up")
	close(released)
	d.says(d.document("{}"))
	if _, err := d.exchange(opened, d.token(nil), nil); err != nil {
		t.Error(err)
	}
}

// A place without the document, with a page in its stead, or with another issuer's is passed over; one that is busy is not.
func TestOAuthDiscoveryOrder(t *testing.T) {
	t.Parallel()
	const oauth, openID = "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"
	d, opened := newDocuments(t, "/p", nil)
	var asked []string
	d.answers(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		switch r.URL.Path {
		case oauth + "/p":
			http.Redirect(w, r, "https://evil.example", http.StatusFound)
		case "/p" + oauth:
			fmt.Fprint(w, "<html>sign in")
		case "/p" + openID:
			w.WriteHeader(http.StatusInternalServerError)
		default:
			fmt.Fprint(w, strings.Replace(d.document("{}"), d.base, d.base+"/p", 1))
		}
	})
	if _, err := d.exchange(opened, d.token(nil), nil); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{oauth + "/p", "/p" + oauth, "/p" + openID, openID + "/p"}, asked); diff != "" {
		t.Error(diff)
	}
}
