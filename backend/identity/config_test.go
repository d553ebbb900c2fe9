// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
)

func TestNew(t *testing.T) {
	pub := publicPEM(ecKey().Public())
	static := func(change func(*Config)) Config {
		c := Config{Issuer: "https://id.example.com", PublicKeys: []string{pub}}
		change(&c)
		return c
	}
	issuer := func(s string) Config { return static(func(c *Config) { c.Issuer = s }) }
	discovery := func(s string) Config { return Config{DiscoveryURL: s} }
	private := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(ecKey()))}))
	pkcs1 := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&rsaKey().PublicKey)}))

	for _, tt := range []struct {
		name string
		c    Config
		want string // how the error begins; "" for none
	}{
		{"configured keys", issuer("https://id.example.com/realm/"), ""},
		{"RSA PUBLIC KEY", static(func(c *Config) { c.PublicKeys = []string{pkcs1} }), ""},
		{"discovery", discovery("https://id.example.com"), ""},
		{"discovery under another address", Config{Issuer: "https://id.example.com", DiscoveryURL: "https://inner.example.com/d"}, ""},
		{"key address", Config{Issuer: "https://id.example.com", JWKSURL: "https://id.example.com/keys?p=policy"}, ""},
		{"one Entra tenant", discovery("https://login.microsoftonline.com/72f988bf-86f1-41af-91ab-2d7cd011db47/v2.0"), ""},
		{"issuer at an inner address with configured keys", issuer("https://10.0.0.1"), ""},

		{"nothing", Config{}, "issuer: missing"},
		{"no key source", Config{Issuer: "https://id.example.com"}, "oidc_discovery_url, jwks_url, jwt_validation_pubkeys: want one of them"},
		{"two key sources", static(func(c *Config) { c.DiscoveryURL = "https://id.example.com" }), "oidc_discovery_url, jwks_url, jwt_validation_pubkeys: want one of them alone; what a write does not name stays"},
		{"key address without issuer", Config{JWKSURL: "https://id.example.com/keys"}, "issuer: missing"},

		{"issuer not a URL", issuer("id.example.com"), "issuer: not an https URL"},
		{"issuer with http", issuer("http://id.example.com"), "issuer: "},
		{"issuer in upper case", issuer("https://ID.example.com"), "issuer: "},
		{"issuer with default port", issuer("https://id.example.com:443"), "issuer: names the default port"},
		{"issuer with user", issuer("https://u@id.example.com"), "issuer: has a user"},
		{"issuer with query", issuer("https://id.example.com?x"), "issuer: has a query"},
		{"issuer with fragment", issuer("https://id.example.com#x"), "issuer: has a fragment"},
		{"issuer with dots", issuer("https://id.example.com/a/../b"), "issuer: has a dot segment"},
		{"issuer with a pattern", issuer("https://*.example.com"), "issuer: "},
		{"issuer with two addresses", issuer("http://evil?https://good"), "issuer: "},
		{"issuer of another script", issuer("https://b\u00fccher.example"), "issuer: "},
		{"issuer at the metadata address", issuer("https://169.254.169.254"), "issuer: "},
		{"issuer too long", issuer("https://id.example.com/" + strings.Repeat("a", 1024)), "issuer: longer than 1024"},
		{"Entra common", discovery("https://login.microsoftonline.com/common/v2.0"), "issuer: serves every Entra tenant"},
		{"Entra organizations", discovery("https://login.microsoftonline.com/organizations/v2.0"), "issuer: serves every Entra tenant"},
		{"Entra consumers", discovery("https://login.microsoftonline.com/Consumers/v2.0"), "issuer: serves every Entra tenant"},
		{"Entra v1 common", issuer("https://sts.windows.net/common/"), "issuer: serves every Entra tenant"},
		{"Entra without tenant", issuer("https://sts.windows.net/"), "issuer: serves every Entra tenant"},
		{"Entra's former name for US government", discovery("https://login.usgovcloudapi.net/common/v2.0"), "issuer: serves every Entra tenant"},
		{"Entra's other name for US government", discovery("https://login-us.microsoftonline.com/organizations/v2.0"), "issuer: serves every Entra tenant"},
		{"Entra's former name in China", discovery("https://login.chinacloudapi.cn/common"), "issuer: serves every Entra tenant"},
		{"Entra common as the discovery address", Config{Issuer: "https://id.example.com", DiscoveryURL: "https://login.microsoftonline.com/common"}, "oidc_discovery_url: serves every Entra tenant"},

		{"Entra common as the key address", Config{Issuer: "https://login.microsoftonline.com/72f988bf-86f1-41af-91ab-2d7cd011db47/v2.0", JWKSURL: "https://login.microsoftonline.com/common/discovery/v2.0/keys"}, "jwks_url: serves every Entra tenant"},
		{"Entra v1 common as the key address", Config{Issuer: "https://id.example.com", JWKSURL: "https://login.windows.net/common/discovery/keys?appid=1"}, "jwks_url: serves every Entra tenant"},
		{"one Entra tenant's key address", Config{Issuer: "https://id.example.com", JWKSURL: "https://login.microsoftonline.com/72f988bf-86f1-41af-91ab-2d7cd011db47/discovery/v2.0/keys"}, ""},

		{"discovery with http", Config{Issuer: "https://id.example.com", DiscoveryURL: "http://id.example.com"}, "oidc_discovery_url: "},
		{"discovery at a private address", discovery("https://10.0.0.1"), "oidc_discovery_url: refused by the egress rules: 10.0.0.1 is a private address; list its range in config's allow_private"},
		{"discovery document itself", discovery("https://id.example.com/.well-known/openid-configuration"), "oidc_discovery_url: leave out"},
		{"discovery beside egress_hosts", Config{DiscoveryURL: "https://id.example.com", Egress: egress.Policy{Hosts: []string{"a.example.com"}}}, "oidc_discovery_url: "},
		{"key address with http", Config{Issuer: "https://id.example.com", JWKSURL: "http://id.example.com/keys"}, "jwks_url: "},
		{"key address with user", Config{Issuer: "https://id.example.com", JWKSURL: "https://u:p@id.example.com/keys"}, "jwks_url: has a user"},
		{"key address with fragment", Config{Issuer: "https://id.example.com", JWKSURL: "https://id.example.com/keys?a#b"}, "jwks_url: has a fragment"},
		{"key address with line end", Config{Issuer: "https://id.example.com", JWKSURL: "https://id.example.com/keys?a\r\nb"}, "jwks_url: has a character that a URL does not have"},
		{"key address with a space in its query", Config{Issuer: "https://id.example.com", JWKSURL: "https://id.example.com/keys?a b"}, "jwks_url: has a character that a URL does not have"},
		{"key address with a long query", Config{Issuer: "https://id.example.com", JWKSURL: "https://id.example.com/keys?" + strings.Repeat("a", 300)}, ""},
		{"key host as URL", Config{DiscoveryURL: "https://id.example.com", JWKSHosts: []string{"https://keys.example.com"}}, "jwks_hosts: "},
		{"key host with path", Config{DiscoveryURL: "https://id.example.com", JWKSHosts: []string{"keys.example.com/x"}}, "jwks_hosts: "},
		{"key host with default port", Config{DiscoveryURL: "https://id.example.com", JWKSHosts: []string{"keys.example.com:443"}}, "jwks_hosts: "},
		{"key host in upper case", Config{DiscoveryURL: "https://id.example.com", JWKSHosts: []string{"Keys.example.com"}}, "jwks_hosts: "},
		{"key host empty", Config{DiscoveryURL: "https://id.example.com", JWKSHosts: []string{""}}, "jwks_hosts: "},

		{"alg none", static(func(c *Config) { c.Algorithms = []string{"RS256", "none"} }), `jwt_supported_algs: "none" is not an asymmetric`},
		{"alg HS256", static(func(c *Config) { c.Algorithms = []string{"HS256"} }), `jwt_supported_algs: "HS256" is not an asymmetric`},
		{"alg in lower case", static(func(c *Config) { c.Algorithms = []string{"rs256"} }), `jwt_supported_algs: "rs256"`},
		{"alg empty", static(func(c *Config) { c.Algorithms = []string{""} }), `jwt_supported_algs: ""`},
		{"type empty", static(func(c *Config) { c.AllowedTypes = []string{""} }), "allowed_types: "},
		{"type with a space", static(func(c *Config) { c.AllowedTypes = []string{"a b"} }), "allowed_types: "},

		{"private key", static(func(c *Config) { c.PublicKeys = []string{private} }), `jwt_validation_pubkeys: key 1: want a block`},
		{"no PEM", static(func(c *Config) { c.PublicKeys = []string{pub, "x"} }), "jwt_validation_pubkeys: key 2: not exactly one"},
		{"two keys in one", static(func(c *Config) { c.PublicKeys = []string{pub + pub} }), "jwt_validation_pubkeys: key 1: not exactly one"},
		{"PEM around nothing", static(func(c *Config) { c.PublicKeys = []string{"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"} }), "jwt_validation_pubkeys: key 1: not a public key"},
		{"weak key", static(func(c *Config) { c.PublicKeys = []string{rsaPEM(1024, 65537)} }), "jwt_validation_pubkeys: key 1: an RSA key outside 2048 to 8192 bits"},
		{"giant key", static(func(c *Config) { c.PublicKeys = []string{rsaPEM(8193, 65537)} }), "jwt_validation_pubkeys: key 1: an RSA key outside 2048 to 8192 bits"},
		{"even exponent", static(func(c *Config) { c.PublicKeys = []string{rsaPEM(2048, 65536)} }), "jwt_validation_pubkeys: key 1: an RSA key with an unsafe exponent"},
		{"exponent one", static(func(c *Config) { c.PublicKeys = []string{rsaPEM(2048, 1)} }), "jwt_validation_pubkeys: key 1: an RSA key with an unsafe exponent"},
		{"curve not in JOSE", static(func(c *Config) {
			c.PublicKeys = []string{publicPEM(must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)).Public())}
		}), "jwt_validation_pubkeys: key 1: a key of an unsupported kind"},
		{"too many keys", static(func(c *Config) { c.PublicKeys = slices.Repeat([]string{pub}, maxUnnamed+1) }), "jwt_validation_pubkeys: more than 8"},

		{"CA", static(func(c *Config) { c.CAPEM = "x" }), "ca_pem: "},
		{"proxy", static(func(c *Config) { c.ProxyURL = "proxy:3128" }), "proxy_url: "},
		{"leeway at its limit", static(func(c *Config) { c.Leeway = 2 * time.Minute }), ""},
		{"leeway beyond it", static(func(c *Config) { c.Leeway = 2*time.Minute + 1 }), "clock_skew_leeway: "},
		{"leeway negative", static(func(c *Config) { c.Leeway = -1 }), "clock_skew_leeway: "},
		{"age negative", static(func(c *Config) { c.MaxAge = -1 }), "max_age: "},
		{"lifetime negative", static(func(c *Config) { c.MaxTokenLifetime = -1 }), "max_token_lifetime: "},
		{"timeout too long", static(func(c *Config) { c.HTTPTimeout = time.Hour }), "http_timeout: "},
		{"token too large", static(func(c *Config) { c.MaxTokenBytes = 64<<10 + 1 }), "max_token_bytes: "},
		{"token size negative", static(func(c *Config) { c.MaxTokenBytes = -1 }), "max_token_bytes: "},
		{"too many claims", static(func(c *Config) { c.MaxClaims = 4097 }), "max_claims: "},
		{"too deep", static(func(c *Config) { c.MaxDepth = 65 }), "max_depth: "},
		{"key set too large", static(func(c *Config) { c.MaxJWKSBytes = 9 << 20 }), "max_jwks_bytes: "},
		{"stale before old", static(func(c *Config) { c.KeysMaxAge, c.KeysMaxStale = time.Hour, time.Minute }), "jwks_max_stale: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(tt.c)
			if tt.want == "" {
				if err != nil {
					t.Errorf("New: %v, want nil", err)
				}
				return
			}
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("New: %v, want %q", err, tt.want)
			}
			if err != nil && (strings.Contains(err.Error(), "PRIVATE") || strings.Contains(err.Error(), "u:p")) {
				t.Errorf("the error repeats a secret: %v", err)
			}
		})
	}
}

// rsaPEM returns a public key of that size whose private key nobody has.
func rsaPEM(bits uint, e int) string {
	return publicPEM(&rsa.PublicKey{N: new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), bits-1), big.NewInt(1)), E: e})
}

func TestDefaults(t *testing.T) {
	v := newVerifier(t, Config{DiscoveryURL: "https://id.example.com"})
	c := v.cfg
	if c.Issuer != "https://id.example.com" || !slices.Equal(c.Algorithms, []string{"RS256", "ES256"}) || c.Leeway != 0 ||
		c.MaxAge != time.Hour || c.MaxTokenLifetime != 24*time.Hour || c.MaxTokenBytes != 16384 || c.MaxClaims != 256 || c.MaxDepth != 16 ||
		c.MaxJWKSBytes != 524288 || c.MaxKeys != 100 || c.MinRefresh != 30*time.Second || c.KeysMaxAge != 10*time.Minute ||
		c.KeysMaxStale != time.Hour || c.HTTPTimeout != 10*time.Second {
		t.Errorf("defaults are %+v", c)
	}
	if c.Now == nil {
		t.Error("there is no clock")
	}
	if v.oidc.SkipExpiryCheck || v.oidc.SkipIssuerCheck || v.oidc.InsecureSkipSignatureCheck {
		t.Error("go-oidc must check expiry, issuer and signature")
	}
}

// New copies the caller's lists: changing them later does not change the verifier.
func TestConfigIsCopied(t *testing.T) {
	algs := []string{"RS256"}
	v := newVerifier(t, Config{Issuer: "https://id.example.com", PublicKeys: []string{publicPEM(rsaKey().Public())}, Algorithms: algs, Now: newClock().now})
	algs[0] = "ES256"
	wantReason(t, v, token(claims("https://id.example.com", start)), "")
}

func TestDiscoveryAddress(t *testing.T) {
	for base, path := range map[string]string{"": wellKnown, "/": wellKnown, "/realm": "/realm" + wellKnown, "/realm/": "/realm" + wellKnown} {
		i := newIssuer(t, "")
		cfg := i.config(newClock())
		cfg.DiscoveryURL += base
		v := newVerifier(t, cfg)
		_ = v.Probe(t.Context()) // what it was asked counts
		i.wantHits(t, path, 1)
	}
}
