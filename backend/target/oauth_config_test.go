// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

func TestOAuthOpenNamesTheField(t *testing.T) {
	t.Parallel()
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	odd, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const hop = `[{"audience":"a"}]`
	signed := func(key string) func(*target.Config) {
		return func(c *target.Config) {
			c.OAuth.ClientAuth, c.OAuth.ClientID, c.OAuth.PrivateKey = "private_key_jwt", "engine", key
		}
	}
	for name, c := range map[string]struct {
		change func(*target.Config)
		want   string
	}{
		"url alone":           {func(*target.Config) {}, ""},
		"token_url alone":     {func(c *target.Config) { c.URL, c.OAuth.TokenURL = "", "https://id.example/t?x" }, ""},
		"neither":             {func(c *target.Config) { c.URL = "" }, "url: is required without token_url"},
		"url with query":      {func(c *target.Config) { c.URL += "/?a" }, "url: has a query; want scheme, host and path only"},
		"credential":          {func(c *target.Config) { c.Credential = map[string]string{"a": "b"} }, "credential: this kind of target has none"},
		"profile":             {func(c *target.Config) { c.Profile = acme }, `profile: is for driver "http" only`},
		"token_url, http":     {func(c *target.Config) { c.URL, c.OAuth.TokenURL = "", "http://id.example/t" }, "token_url: refused by the egress rules: http; use https (http is only for loopback, with allow_http_loopback in config)"},
		"token_url elsewhere": {func(c *target.Config) { c.OAuth.TokenURL = "https://t.example/t" }, "token_url: is not on url's host, nor on one of token_hosts"},
		"token_url on a host": {func(c *target.Config) {
			c.OAuth.TokenURL, c.OAuth.TokenHosts = "https://t.example:8443/t", []string{"t.example:8443"}
		}, ""},
		"token_hosts":             {func(c *target.Config) { c.OAuth.TokenHosts = []string{"https://t.example"} }, "token_hosts: want names in lower case that may be called, each with a port only if it is not 443"},
		"token_hosts, port":       {func(c *target.Config) { c.OAuth.TokenHosts = []string{"t.example:443"} }, "token_hosts: want names in lower case that may be called, each with a port only if it is not 443"},
		"token_hosts, path":       {func(c *target.Config) { c.OAuth.TokenHosts = []string{"t.example/x"} }, "token_hosts: want names in lower case that may be called, each with a port only if it is not 443"},
		"token_hosts, empty":      {func(c *target.Config) { c.OAuth.TokenHosts = []string{""} }, "token_hosts: want names in lower case that may be called, each with a port only if it is not 443"},
		"revocation elsewhere":    {func(c *target.Config) { c.OAuth.RevocationURL = "https://r.example/" }, "revocation_url: is not on url's host, nor on one of token_hosts; want discover, none, or an address"},
		"revocation, a word":      {func(c *target.Config) { c.OAuth.RevocationURL = "yes" }, "revocation_url: is not on url's host, nor on one of token_hosts; want discover, none, or an address"},
		"introspection, a word":   {func(c *target.Config) { c.OAuth.IntrospectionURL = "yes" }, "introspection_url: is not on url's host, nor on one of token_hosts; want discover, none, or an address"},
		"grant":                   {func(c *target.Config) { c.OAuth.Grant = "password" }, "grant: want one of token_exchange, client_credentials, jwt_bearer"},
		"client_auth":             {func(c *target.Config) { c.OAuth.ClientAuth = "basic" }, "client_auth: want one of none, client_secret_basic, client_secret_post, private_key_jwt, svid_jwt_bearer, svid_jwt_spiffe, tls_client_auth"},
		"no client_id":            {func(c *target.Config) { c.OAuth.ClientAuth = "client_secret_post" }, "client_id: is required with client_auth client_secret_post"},
		"client_id":               {func(c *target.Config) { c.OAuth.ClientID = "a\nb" }, "client_id: want printable ASCII of at most 1024 bytes"},
		"no secret":               {func(c *target.Config) { c.OAuth.ClientAuth, c.OAuth.ClientID = "client_secret_post", "a" }, "client_secret: is for client_auth client_secret_basic and client_secret_post, which need it; client_auth is client_secret_post"},
		"secret that is not used": {func(c *target.Config) { c.OAuth.ClientSecret = "canary" }, "client_secret: is for client_auth client_secret_basic and client_secret_post, which need it; client_auth is none"},
		"long secret": {func(c *target.Config) {
			c.OAuth.ClientAuth, c.OAuth.ClientID, c.OAuth.ClientSecret = "client_secret_post", "a", strings.Repeat("x", 16<<10+1)
		}, "client_secret: want at most 16384 bytes"},
		"key that is not used":    {func(c *target.Config) { c.OAuth.PrivateKey = "canary" }, "private_key: is for client_auth private_key_jwt, which needs it; client_auth is none"},
		"key id that is not used": {func(c *target.Config) { c.OAuth.KeyID = "k" }, "private_key_id: is for client_auth private_key_jwt; client_auth is none"},
		"no key":                  {signed(""), "private_key: is for client_auth private_key_jwt, which needs it; client_auth is private_key_jwt"},
		"not PEM":                 {signed("canary"), "private_key: want one private key in PEM, not encrypted"},
		"two keys":                {signed(lab.KeyPEM(odd) + lab.KeyPEM(odd)), "private_key: want one private key in PEM, not encrypted"},
		"small RSA key":           {signed(lab.KeyPEM(small)), "private_key: want an RSA key of at least 2048 bits"},
		"other curve":             {signed(lab.KeyPEM(odd)), "private_key: want a key of RSA, of P-256, P-384 or P-521, or of Ed25519"},
		"no certificate":          {func(c *target.Config) { c.OAuth.ClientAuth, c.OAuth.ClientID = "tls_client_auth", "a" }, "client_cert: is required with client_auth tls_client_auth"},
		"subject_token_type":      {func(c *target.Config) { c.OAuth.SubjectTokenType = "a b" }, "subject_token_type: want jwt, id_token, access_token, or a URN"},
		"type without exchange":   {func(c *target.Config) { c.OAuth.SubjectTokenType, c.OAuth.Grant = "jwt", "jwt_bearer" }, "subject_token_type: is for token exchanges; grant is jwt_bearer"},
		"type of a chain's token": {func(c *target.Config) {
			c.OAuth.SubjectTokenType, c.OAuth.Grant, c.OAuth.Chain = "jwt", "jwt_bearer", hop
		}, ""},
		"assertion_audience":       {func(c *target.Config) { c.OAuth.AssertionAudience = "é" }, "assertion_audience: want printable ASCII of at most 1024 bytes"},
		"spiffe_id":                {func(c *target.Config) { c.OAuth.SPIFFEID = "example.org/a" }, "spiffe_id: want spiffe://<trust domain>/<path>"},
		"lifetime":                 {func(c *target.Config) { c.Lifetime = -1 }, "lifetime: want a duration of at most a year"},
		"source":                   {func(c *target.Config) { c.Source = "client_credentials" }, "subject_token_source: cannot be client_credentials with this driver: token_url and client_id are the driver's own here"},
		"no source":                {func(c *target.Config) { c.Source = "none" }, "subject_token_source: is none, but this kind of target wants a subject token"},
		"source without use":       {func(c *target.Config) { c.Source, c.OAuth.Grant = "request", "client_credentials" }, "subject_token_source: want none: grant client_credentials sends no subject token"},
		"chain without use":        {func(c *target.Config) { c.OAuth.Chain, c.OAuth.Grant = hop, "client_credentials" }, "chain: yields a subject token, and grant client_credentials sends none"},
		"chain":                    {func(c *target.Config) { c.OAuth.Chain = hop }, ""},
		"chain, to the next":       {func(c *target.Config) { c.OAuth.Chain, c.OAuth.SPIFFEID = `[{},{}]`, supervisorID }, ""},
		"chain, to nobody":         {func(c *target.Config) { c.OAuth.Chain = `[{}]` }, "chain: hop 1: audience: is required where the next hop has no spiffe_id"},
		"chain, second to nobody":  {func(c *target.Config) { c.OAuth.Chain = `[{"audience":"a"},{}]` }, "chain: hop 2: audience: is required where the next hop has no spiffe_id"},
		"chain, elsewhere":         {func(c *target.Config) { c.OAuth.Chain = `[{"audience":"a","token_url":"https://t.example/"}]` }, "chain: hop 1: token_url: is not on url's host, nor on one of token_hosts"},
		"chain, spiffe_id":         {func(c *target.Config) { c.OAuth.Chain = `[{"audience":"a","spiffe_id":"x"}]` }, "chain: hop 1: spiffe_id: want spiffe://<trust domain>/<path>"},
		"chain, scope":             {func(c *target.Config) { c.OAuth.Chain = `[{"audience":"a","scopes":["a b"]}]` }, "chain: hop 1: scopes: want printable ASCII without spaces, quotes and backslashes"},
		"chain, resource":          {func(c *target.Config) { c.OAuth.Chain = `[{"audience":"a","resource":["https://a.example/#x"]}]` }, "chain: hop 1: resource: want absolute URIs without fragment"},
		"chain, type":              {func(c *target.Config) { c.OAuth.Chain = `[{"audience":"a","requested_token_type":"A B"}]` }, "chain: hop 1: requested_token_type: want access_token, jwt, or a URN"},
		"chain, audience":          {func(c *target.Config) { c.OAuth.Chain = `[{"audience":"a\nb"}]` }, "chain: hop 1: audience, assertion_audience: want printable ASCII of at most 1024 bytes"},
		"chain, more":              {func(c *target.Config) { c.OAuth.Chain = hop + "x" }, "chain: has text after the list"},
		"chain, unknown":           {func(c *target.Config) { c.OAuth.Chain = `[{"audience":"a","client_secret":"canary"}]` }, chainRule},
		"chain, empty":             {func(c *target.Config) { c.OAuth.Chain = `[]` }, chainRule},
		"chain, too long":          {func(c *target.Config) { c.OAuth.Chain = `[{},{},{},{}]` }, chainRule},
		"chain, no list":           {func(c *target.Config) { c.OAuth.Chain = `{}` }, chainRule},
		"condition over resources": {func(c *target.Config) { c.Condition = `params.resource.all(r, r.startsWith("https://a.example/"))` }, ""},
		"condition, no actor": {func(c *target.Config) {
			c.Condition, c.OAuth.Grant = `params.actor_token_source == "none"`, "jwt_bearer"
		}, "condition: uses params.actor_token_source, which is not declared"},
	} {
		config := target.Config{Driver: "oauth", URL: "https://id.example"}
		c.change(&config)
		opened, err := target.Open(config)
		if got := fieldError(t, err); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
		if err == nil {
			opened.Close()
		}
	}
}

const chainRule = "chain: want a JSON list of 1 to 3 objects with token_url, assertion_audience, spiffe_id, audience, resource, scopes, requested_token_type, or some of them"

// Every kind of key that is documented can be one's own.
func TestOAuthKeys(t *testing.T) {
	t.Parallel()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := []crypto.Signer{ed}
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	for _, key := range keys {
		config := target.Config{Driver: "oauth", URL: "https://id.example", OAuth: target.OAuth{ClientAuth: "private_key_jwt", ClientID: "a", PrivateKey: lab.KeyPEM(key)}}
		if _, err := target.Open(config); err != nil {
			t.Errorf("%T: %v", key, err)
		}
	}
}

func TestOAuthFacts(t *testing.T) {
	t.Parallel()
	type facts struct {
		URL, Source, Audience string
		Hosts                 []string
		Caps                  target.Caps
		Lifetime              time.Duration
	}
	for name, c := range map[string]struct {
		config target.Config
		want   facts
	}{
		"discovered": {target.Config{URL: "https://id.example/p"},
			facts{"https://id.example/p", "request", "https://id.example/p", []string{"id.example"}, target.Caps{Revoke: true, Check: true}, 24 * time.Hour}},
		"discovered, hosts": {target.Config{URL: "https://id.example/p", OAuth: target.OAuth{TokenHosts: []string{"t.example"}, RevocationURL: "none"}, Lifetime: time.Hour},
			facts{"https://id.example/p", "request", "https://id.example/p", []string{"id.example", "t.example"}, target.Caps{Check: true}, time.Hour}},
		"token_url": {target.Config{OAuth: target.OAuth{TokenURL: "https://id.example/t?a"}},
			facts{"https://id.example", "request", "https://id.example/t?a", []string{"id.example"}, target.Caps{}, 24 * time.Hour}},
		"elsewhere": {target.Config{URL: "https://id.example", OAuth: target.OAuth{TokenURL: "https://t.example/t", TokenHosts: []string{"t.example", "u.example"}, IntrospectionURL: "https://u.example/i"}},
			facts{"https://id.example", "request", "https://t.example/t", []string{"t.example"}, target.Caps{Renew: true, Check: true}, 24 * time.Hour}},
		"chain": {target.Config{URL: "https://id.example", OAuth: target.OAuth{TokenHosts: []string{"t.example"}, Chain: `[{"token_url":"https://t.example/t","audience":"a"}]`}},
			facts{"https://id.example", "request", "https://t.example/t", []string{"t.example"}, target.Caps{Revoke: true, Check: true}, 24 * time.Hour}},
		"client credentials": {target.Config{URL: "https://id.example", OAuth: target.OAuth{Grant: "client_credentials"}},
			facts{"https://id.example", "none", "https://id.example", []string{"id.example"}, target.Caps{Revoke: true, Check: true}, 24 * time.Hour}},
	} {
		c.config.Driver = "oauth"
		o, err := target.Open(c.config)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(c.want, facts{o.URL(), o.Source(), o.Audience(), o.SubjectHosts(), o.Caps(), o.Lifetime()}); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", name, diff)
		}
	}
}

func TestOAuthParams(t *testing.T) {
	t.Parallel()
	opened, err := target.Open(target.Config{Driver: "oauth", URL: "https://id.example"})
	if err != nil {
		t.Fatal(err)
	}
	for text, given := range map[string]map[string]any{
		"": {"audience": "a b", "resource": "urn:a,https://b.example/?q", "scopes": []any{"read", "a:b/c"}, "requested_token_type": "urn:x:y", "actor_token_source": "svid"},
		"parameters.audience: does not match the target's pattern for it":                                                             {"audience": ""},
		"parameters.scopes: does not match the target's pattern for it":                                                               {"scopes": []any{"a b"}},
		"parameters.resource: does not match the target's pattern for it":                                                             {"resource": "https://b.example/#x"},
		"parameters.requested_token_type: does not match the target's pattern for it":                                                 {"requested_token_type": "Access Token"},
		"parameters.actor_token_source: does not match the target's pattern for it":                                                   {"actor_token_source": "request"},
		"parameters.sub: not a parameter of this target; it has actor_token_source, audience, requested_token_type, resource, scopes": {"sub": "x"},
	} {
		if _, err := opened.Params(given); fieldError(t, err) != text {
			t.Errorf("%v: %v; want %s", given, err, text)
		}
	}
}
