// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package source

import (
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

const (
	audience = "https://api.example"
	secret   = "canary-client-secret"
)

// clock is a clock that tests move.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// newIssuer signs what the tests present.
func newIssuer(c *clock) *lab.Issuer {
	return lab.NewIssuer(lab.IssuerOptions{URL: "https://issuer.example", Algorithm: "ES256", Now: c.now})
}

// serve runs a handler with TLS and returns its address and certificate.
func serve(t *testing.T, h http.Handler) (url, ca string) {
	t.Helper()
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(func() {
		server.CloseClientConnections() // Close waits for answers that never end
		server.Close()
	})
	return server.URL, lab.CertificatePEM(server.Certificate())
}

func loopback() egress.Policy {
	return egress.Policy{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
}

func open(t *testing.T, c Config) *Source {
	t.Helper()
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// wantRefused wants an error of the one class or the other that says text, and none of the secrets.
func wantRefused(t *testing.T, name, token string, err error, passing bool, text string, secrets ...string) {
	t.Helper()
	if err == nil || token != "" {
		t.Errorf("%s: %d bytes of token, error %v; want %q", name, len(token), err, text)
		return
	}
	if got := err.Error(); errors.Is(err, ErrUnavailable) != passing || !strings.Contains(got, text) {
		t.Errorf("%s: %q, passing %v; want %q, %v", name, got, errors.Is(err, ErrUnavailable), text, passing)
	}
	if idErr := (*identity.Error)(nil); errors.As(err, &idErr) {
		t.Errorf("%s: is an error of the caller's token", name)
	}
	for _, secret := range secrets {
		if secret != "" && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error holds a secret", name)
		}
	}
}

// What is wrong with a source is said when it is opened, and names the API's field first.
func TestOpenNamesTheField(t *testing.T) {
	file := Config{Kind: File, Audience: audience, TokenFile: "/run/tokens/t", TokenDirs: "/run/tokens"}
	client := Config{Kind: ClientCredentials, TokenURL: "https://issuer.example/token", ClientID: "id", ClientSecret: secret}
	agent := Config{Kind: SVID, Audience: audience, SVIDs: &agent{}}
	for name, c := range map[string]struct {
		of   Config
		with func(*Config)
		text string // "" = opens
	}{
		"other kind":              {file, func(c *Config) { c.Kind = "vault" }, "subject_token_source: "},
		"no audience":             {file, func(c *Config) { c.Audience = "" }, "audience: "},
		"file":                    {file, func(*Config) {}, ""},
		"second directory":        {file, func(c *Config) { c.TokenDirs = "/var/tokens:/run/tokens" }, ""},
		"deeper":                  {file, func(c *Config) { c.TokenFile = "/run/tokens/a/b/t" }, ""},
		"no directories":          {file, func(c *Config) { c.TokenDirs = "" }, "token_file: the plugin may read no files; register it with the directories that hold tokens: vault plugin register -env=OIDCEXCHANGE_TOKEN_DIRS="},
		"empty entry":             {file, func(c *Config) { c.TokenDirs = "/run/tokens:" }, "token_file: entry 2 of the plugin's OIDCEXCHANGE_TOKEN_DIRS"},
		"relative entry":          {file, func(c *Config) { c.TokenDirs = "tokens:/run/tokens" }, "token_file: entry 1 "},
		"entry with dots":         {file, func(c *Config) { c.TokenDirs = "/run/x/../tokens" }, "token_file: entry 1 "},
		"entry that is all files": {file, func(c *Config) { c.TokenDirs = "/" }, "token_file: entry 1 "},
		"no file":                 {file, func(c *Config) { c.TokenFile = "" }, "token_file: want an absolute path"},
		"relative file":           {file, func(c *Config) { c.TokenFile = "run/tokens/t" }, "token_file: want an absolute path"},
		"file with dots":          {file, func(c *Config) { c.TokenFile = "/run/tokens/../../etc/shadow" }, "token_file: want an absolute path"},
		"file with a dot":         {file, func(c *Config) { c.TokenFile = "/run/tokens/./t" }, "token_file: want an absolute path"},
		"file outside":            {file, func(c *Config) { c.TokenFile = "/etc/shadow" }, "token_file: is below none"},
		"file beside":             {file, func(c *Config) { c.TokenFile = "/run/tokens-of-others/t" }, "token_file: is below none"},
		"the directory itself":    {file, func(c *Config) { c.TokenFile = "/run/tokens" }, "token_file: is below none"},

		"client":               {client, func(*Config) {}, ""},
		"client with audience": {client, func(c *Config) { c.Audience = audience }, ""},
		"params": {client, func(c *Config) {
			c.TokenParams = map[string]string{"resource": "x"}
			c.TokenScopes = []string{"a", "b:c"}
		}, ""},
		"no token_url":       {client, func(c *Config) { c.TokenURL = "" }, "token_url: "},
		"http":               {client, func(c *Config) { c.TokenURL = "http://issuer.example/token" }, "token_url: "},
		"private address":    {client, func(c *Config) { c.TokenURL = "https://10.0.0.1/token" }, "token_url: "},
		"metadata address":   {client, func(c *Config) { c.TokenURL = "https://169.254.169.254/token" }, "token_url: "},
		"host not listed":    {client, func(c *Config) { c.Egress.Hosts = []string{"other.example"} }, "token_url: "},
		"secret in the URL":  {client, func(c *Config) { c.TokenURL = "https://id:pw@issuer.example/token" }, "token_url: "},
		"query":              {client, func(c *Config) { c.TokenURL = "https://issuer.example/token?a=b" }, "token_url: "},
		"no id":              {client, func(c *Config) { c.ClientID = "" }, "client_id: "},
		"id with a line end": {client, func(c *Config) { c.ClientID = "id\n" }, "client_id: "},
		"no secret":          {client, func(c *Config) { c.ClientSecret = "" }, "client_secret: "},
		"long secret":        {client, func(c *Config) { c.ClientSecret = strings.Repeat("x", maxFieldBytes+1) }, "client_secret: "},
		"other auth":         {client, func(c *Config) { c.TokenAuth = "auto" }, "token_auth: "},
		"two scopes in one":  {client, func(c *Config) { c.TokenScopes = []string{"a b"} }, "token_scopes: "},
		"empty scope":        {client, func(c *Config) { c.TokenScopes = []string{""} }, "token_scopes: "},
		"many scopes":        {client, func(c *Config) { c.TokenScopes = []string{strings.Repeat("x", maxFieldBytes-1), "y"} }, "token_scopes: "},
		"other grant":        {client, func(c *Config) { c.TokenParams = map[string]string{"grant_type": "password"} }, "token_params: "},
		"other secret":       {client, func(c *Config) { c.TokenParams = map[string]string{"client_secret": "x"} }, "token_params: "},
		"nameless parameter": {client, func(c *Config) { c.TokenParams = map[string]string{"": "x"} }, "token_params: "},
		"proxy":              {client, func(c *Config) { c.HTTP.ProxyURL = "ftp://x" }, "proxy_url: "},
		"no CA":              {client, func(c *Config) { c.HTTP.CAPEM = "x" }, "ca_pem: "},

		"agent":         {agent, func(*Config) {}, ""},
		"spiffe_id":     {agent, func(c *Config) { c.SPIFFEID = "spiffe://example/a" }, ""},
		"no agent":      {agent, func(c *Config) { c.SVIDs = nil }, "subject_token_source: svid needs "},
		"bad spiffe_id": {agent, func(c *Config) { c.SPIFFEID = "https://example/a" }, "spiffe_id: "},
		"for nobody":    {agent, func(c *Config) { c.Audience = "" }, "audience: "},
	} {
		config := c.of
		c.with(&config)
		s, err := Open(config)
		switch {
		case err == nil && c.text == "":
			s.Close()
		case err == nil || c.text == "" || !strings.HasPrefix(err.Error(), c.text):
			t.Errorf("%s: %v; want %q", name, err, c.text)
		case strings.Contains(err.Error(), secret):
			t.Errorf("%s: the error holds the secret", name)
		}
	}
}
