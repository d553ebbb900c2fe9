// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
)

// The keys of all tests; made once, because RSA keys take long.
var (
	rsaKey   = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	otherRSA = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	ecKey    = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	p384Key  = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) })
	edKey    = sync.OnceValue(func() ed25519.PrivateKey {
		_, k, err := ed25519.GenerateKey(rand.Reader)
		return must(k, err)
	})
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// start is the time at which the tests' fake clocks start.
var start = time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)

// clock is a clock that only the test moves.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: start} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// fields is a header or a payload to be written as JSON.
type fields map[string]any

func (f fields) with(name string, v any) fields {
	out := maps.Clone(f)
	out[name] = v
	return out
}

func (f fields) without(name string) fields {
	out := maps.Clone(f)
	delete(out, name)
	return out
}

func (f fields) String() string { return string(must(json.Marshal(f))) }

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// compact signs a header and a payload, byte for byte as they are given, as alg says (whatever the header says).
func compact(alg string, key any, header, payload string) string {
	input := b64(header) + "." + b64(payload)
	return input + "." + b64(string(signature(alg, key, input)))
}

func signature(alg string, key any, input string) []byte {
	sum := sha256.Sum256([]byte(input))
	switch alg {
	case "RS256":
		return must(rsa.SignPKCS1v15(nil, key.(*rsa.PrivateKey), crypto.SHA256, sum[:]))
	case "PS256":
		return must(rsa.SignPSS(rand.Reader, key.(*rsa.PrivateKey), crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: 32}))
	case "ES256":
		r, s, err := ecdsa.Sign(rand.Reader, key.(*ecdsa.PrivateKey), sum[:])
		must(r, err)
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	case "EdDSA":
		return ed25519.Sign(key.(ed25519.PrivateKey), []byte(input))
	case "HS256":
		mac := hmac.New(sha256.New, key.([]byte))
		_, _ = io.WriteString(mac, input)
		return mac.Sum(nil)
	}
	panic("no such alg: " + alg)
}

// jwk is an entry of a key set, with members added or replaced.
func jwk(public any, kid, alg string, extra fields) json.RawMessage {
	raw := must(jose.JSONWebKey{Key: public, KeyID: kid, Algorithm: alg}.MarshalJSON())
	var m fields
	must(0, json.Unmarshal(raw, &m))
	maps.Copy(m, extra)
	return must(json.Marshal(m))
}

func jwks(entries ...json.RawMessage) string {
	if entries == nil {
		entries = []json.RawMessage{}
	}
	return string(must(json.Marshal(map[string]any{"keys": entries})))
}

// fakeIssuer is an issuer whose answers the test sets. It counts the requests.
type fakeIssuer struct {
	*httptest.Server
	mu        sync.Mutex
	keys      string           // body of /keys
	discovery string           // body of the discovery document; "" for a right one
	serve     http.HandlerFunc // if set, answers instead of /keys
	asked     map[string]int   // by path
}

func newIssuer(t *testing.T, keys string) *fakeIssuer {
	t.Helper()
	i := &fakeIssuer{keys: keys, asked: make(map[string]int)}
	i.Server = httptest.NewUnstartedServer(i)
	i.Config.ErrorLog = log.New(io.Discard, "", 0)
	i.StartTLS()
	t.Cleanup(i.Close)
	return i
}

func (i *fakeIssuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.asked[r.URL.Path]++
	keys, discovery, serve := i.keys, i.discovery, i.serve
	i.mu.Unlock()
	switch {
	case r.URL.Path == wellKnown && discovery != "":
		_, _ = io.WriteString(w, discovery)
	case r.URL.Path == wellKnown:
		_, _ = io.WriteString(w, fields{"issuer": i.URL, "jwks_uri": i.URL + "/keys"}.String())
	case serve != nil:
		serve(w, r)
	case r.URL.Path == "/keys":
		_, _ = io.WriteString(w, keys)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (i *fakeIssuer) set(change func(*fakeIssuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(i)
}

func (i *fakeIssuer) hits(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked[path]
}

func (i *fakeIssuer) wantHits(t *testing.T, path string, want int) {
	t.Helper()
	if got := i.hits(path); got != want {
		t.Errorf("%s was asked for %d times, want %d", path, got, want)
	}
}

var loopback = egress.Policy{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}

func (i *fakeIssuer) config(c *clock) Config {
	return Config{
		DiscoveryURL: i.URL, Algorithms: []string{"RS256", "ES256", "PS256", "EdDSA"}, Leeway: 30 * time.Second, Now: c.now,
		CAPEM:  string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw})),
		Egress: loopback,
	}
}

func newVerifier(t *testing.T, c Config) *Verifier {
	t.Helper()
	v, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if web, ok := v.keys.source.(*webSource); ok {
		t.Cleanup(web.client.CloseIdleConnections)
	}
	return v
}

func publicPEM(public any) string {
	der := must(x509.MarshalPKIXPublicKey(public))
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// claims are those of a good token of an issuer, made at now.
func claims(issuer string, now time.Time) fields {
	return fields{
		"iss": issuer, "sub": "repo:acme/widget:ref:refs/heads/main", "aud": "https://vault.example.com", "jti": "j-1",
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(),
		"repository_id": json.Number("9007199254740993"), "nested": fields{"a": []any{"x", true, nil}},
	}
}

var (
	header1 = fields{"alg": "RS256", "kid": "k1", "typ": "JWT"}
	headerE = fields{"alg": "ES256", "kid": "e1", "typ": "JWT"}
)

// token signs claims with the first RSA key.
func token(c fields) string { return compact("RS256", rsaKey(), header1.String(), c.String()) }

// tokenBy signs with key under kid.
func tokenBy(key *rsa.PrivateKey, kid string, c fields) string {
	return compact("RS256", key, header1.with("kid", kid).String(), c.String())
}

func firstKey() json.RawMessage  { return jwk(rsaKey().Public(), "k1", "RS256", nil) }
func secondKey() json.RawMessage { return jwk(otherRSA().Public(), "k2", "RS256", nil) }

// reason is the Reason of an error of this package, "" for nil.
func reason(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Errorf("error %v (%T) is not an *Error", err, err)
		return "?"
	}
	return e.Reason
}

// wantReason verifies a token and checks the outcome ("" for success).
func wantReason(t *testing.T, v *Verifier, token, want string) {
	t.Helper()
	_, err := v.Verify(t.Context(), token)
	if got := reason(t, err); got != want {
		t.Errorf("Verify: %v, want %q", err, want)
	}
	wantNoLeak(t, err)
}

// wantNoLeak checks that an error contains nothing of a token.
func wantNoLeak(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	for _, s := range []string{"acme", "evil", "eyJ", "CANARY", "vault.example"} {
		if strings.Contains(err.Error(), s) {
			t.Errorf("the error repeats %q: %v", s, err)
		}
	}
}

// settle waits until no fetch is running.
func settle(v *Verifier) {
	v.keys.mu.Lock()
	f := v.keys.flight
	v.keys.mu.Unlock()
	if f != nil {
		<-f.done
	}
}
