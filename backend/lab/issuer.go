// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// IssuerOptions configures an Issuer.
type IssuerOptions struct {
	URL       string           // the issuer identifier, see SetURL
	Algorithm string           // of the signing keys: RS*, PS*, ES* or EdDSA; default RS256
	Now       func() time.Time // nil = time.Now
}

// Issuer is a stand-in OpenID provider whose tokens look like those of GitHub Actions:
//
//	GET  /.well-known/openid-configuration, GET /jwks
//	POST /lab/token    JSON object of claims (or nothing) -> 200, a token as plain text, see Token
//	POST /lab/rotate   -> 200, the new key's id as plain text, see Rotate
//	POST /lab/faults, DELETE /lab/faults, see Control
//
// Tests may make anything with it: contradictory claims, false headers, harmful keys in the key set. Make one with
// NewIssuer.
type Issuer struct {
	Control
	mux *http.ServeMux
	alg string
	now func() time.Time

	mu        sync.Mutex
	url       string
	kid       string
	key       crypto.Signer
	published []publishedKey
	body      []byte // sent instead of the published keys
	changed   func() // called after each change of the key set
}

// publishedKey is a member of the key set as it is sent.
type publishedKey struct {
	kid string
	jwk json.RawMessage
}

// NewIssuer makes an Issuer with one published key. It panics if the algorithm is unknown.
func NewIssuer(o IssuerOptions) *Issuer {
	i := &Issuer{
		Control: Control{ops: []string{OpDiscovery, OpJWKS}},
		mux:     http.NewServeMux(),
		alg:     o.Algorithm,
		now:     clock(o.Now),
		url:     o.URL,
	}
	if i.alg == "" {
		i.alg = "RS256"
	}
	i.Rotate()
	i.mux.HandleFunc("GET /.well-known/openid-configuration", i.handle(OpDiscovery, i.discovery))
	i.mux.HandleFunc("GET /jwks", i.handle(OpJWKS, i.jwks))
	i.mux.HandleFunc("POST /lab/token", i.postToken)
	i.mux.HandleFunc("POST /lab/rotate", func(w http.ResponseWriter, _ *http.Request) {
		writeText(w, i.Rotate())
	})
	i.mount(i.mux)
	return i
}

// ServeHTTP implements http.Handler.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) { i.mux.ServeHTTP(w, r) }

// SetURL sets the issuer identifier: the `iss` of tokens and the base of the discovery document. A test server's URL is
// known only once it listens. url is used as it is. If it has a path, mount the Issuer under http.StripPrefix.
func (i *Issuer) SetURL(url string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.url = url
}

// URL returns the issuer identifier.
func (i *Issuer) URL() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.url
}

// Fetches returns how often the discovery document and the key set were asked for, faults included.
func (i *Issuer) Fetches() (discovery, jwks int) {
	return i.Calls(OpDiscovery), i.Calls(OpJWKS)
}

// Key returns the signing key, for tests that forge tokens by themselves (see Compact).
func (i *Issuer) Key() (kid string, key crypto.Signer) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.kid, i.key
}

// Rotate makes a new key, publishes it and signs with it from now on. It returns the new key's id. The old key stays
// published until Retire.
func (i *Issuer) Rotate() (kid string) {
	key := generateKey(i.alg)
	jwk := jose.JSONWebKey{Key: key.Public(), Algorithm: i.alg, Use: "sig"}
	sum, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		panic("lab: thumbprint of a key: " + err.Error())
	}
	// Two keys never have the same id, not even in different runs: a client need not fetch a key again if it knows the id.
	jwk.KeyID = base64.RawURLEncoding.EncodeToString(sum)
	i.Publish(jwk)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.kid, i.key = jwk.KeyID, key
	return jwk.KeyID
}

// Retire removes the keys with this id from the key set. If the signing key is retired, it still signs.
func (i *Issuer) Retire(kid string) {
	defer i.tellWatcher()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.published = slices.DeleteFunc(i.published, func(k publishedKey) bool { return k.kid == kid })
}

// Publish adds jwk to the key set unchanged: a jose.JSONWebKey, a map or raw JSON, valid or not. It panics if jwk cannot be
// encoded.
func (i *Issuer) Publish(jwk any) {
	raw := mustJSON(jwk)
	var named struct {
		Kid string `json:"kid"`
	}
	_ = json.Unmarshal(raw, &named) // a key without a usable id cannot be retired
	defer i.tellWatcher()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.published = append(i.published, publishedKey{named.Kid, raw})
}

// SetJWKS makes raw the body of the key set, whatever it contains. nil goes back to the published keys.
func (i *Issuer) SetJWKS(raw []byte) {
	defer i.tellWatcher()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.body = slices.Clone(raw)
}

// watch sets the function that is called, without the lock, after each change of the key set.
func (i *Issuer) watch(changed func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.changed = changed
}

func (i *Issuer) tellWatcher() {
	i.mu.Lock()
	changed := i.changed
	i.mu.Unlock()
	if changed != nil {
		changed()
	}
}

// thumbprint takes the place of the signing certificate's thumbprint, which the header of each GitHub Actions token has.
const thumbprint = "hdTgFvRyJ6sTkLm0Wq1n2Xz3cVo"

// Token signs a token with the header and every claim that a GitHub Actions token has, for the workflow release.yml on main
// of acme/widget. claims override these claims one by one; no other claim changes with them, and a nil value removes a
// claim. iss and the times come from the Issuer; each token has its own jti. It panics if a claim cannot be encoded.
func (i *Issuer) Token(claims map[string]any) string {
	return i.Sign(map[string]any{"typ": "JWT", "x5t": thumbprint}, mustJSON(override(i.claims(), claims)))
}

// Sign signs payload, unchanged, with any header. `kid` and `alg` are filled in if header does not have them; a nil value
// removes a member. The signature is a real one by the current key: with the header's `alg` if the key can make it, else
// with the Issuer's own algorithm. It panics if a header member cannot be encoded.
func (i *Issuer) Sign(header map[string]any, payload []byte) string {
	kid, key := i.Key()
	h := override(map[string]any{"alg": i.alg, "kid": kid}, header)
	alg, ok := h["alg"].(string)
	if !ok || !fits(alg, key) {
		alg = i.alg
	}
	token, err := Compact(alg, key, mustJSON(h), payload)
	if err != nil {
		panic("lab: " + err.Error())
	}
	return token
}

// override overrides defaults with members; a nil value removes a member.
func override(defaults, members map[string]any) map[string]any {
	maps.Copy(defaults, members)
	maps.DeleteFunc(defaults, func(_ string, v any) bool { return v == nil })
	return defaults
}

// claims returns the claims of a GitHub Actions token. All but the times are strings there, even numbers and booleans.
func (i *Issuer) claims() map[string]any {
	now := i.now()
	const workflow = "acme/widget/.github/workflows/release.yml@refs/heads/main"
	const sha = "4b0e3f1f5a6c7d8e9f00112233445566778899aa"
	return map[string]any{
		"iss": i.URL(),
		"sub": "repo:acme/widget:ref:refs/heads/main",
		"aud": "https://github.com/acme",
		"jti": randomHex(16),
		"iat": now.Unix(),
		"nbf": now.Add(-10 * time.Minute).Unix(),
		"exp": now.Add(5 * time.Minute).Unix(),

		"repository":            "acme/widget",
		"repository_id":         "710042",
		"repository_owner":      "acme",
		"repository_owner_id":   "90210",
		"repository_visibility": "private",
		"actor":                 "octocat",
		"actor_id":              "583231",
		"ref":                   "refs/heads/main",
		"ref_type":              "branch",
		"ref_protected":         "true",
		"sha":                   sha,
		"workflow":              "release",
		"workflow_ref":          workflow,
		"workflow_sha":          sha,
		"job_workflow_ref":      workflow,
		"job_workflow_sha":      sha,
		"event_name":            "push",
		"run_id":                "11223344556",
		"run_number":            "42",
		"run_attempt":           "1",
		"runner_environment":    "github-hosted",
		"head_ref":              "",
		"base_ref":              "",
	}
}

func (i *Issuer) discovery(w http.ResponseWriter, _ *http.Request) {
	url := i.URL()
	writeJSON(w, http.StatusOK, map[string]any{
		"issuer":                                url,
		"jwks_uri":                              strings.TrimSuffix(url, "/") + "/jwks",
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"scopes_supported":                      []string{"openid"},
		"id_token_signing_alg_values_supported": []string{i.alg},
		"claims_supported":                      slices.Sorted(maps.Keys(i.claims())),
	})
}

func (i *Issuer) jwks(w http.ResponseWriter, r *http.Request) {
	const kind = "application/jwk-set+json" // RFC 7517 section 8.5.2
	if accept := r.Header.Get("Accept"); accept != "" && !strings.Contains(accept, kind) && !strings.Contains(accept, "*/*") {
		w.WriteHeader(http.StatusNotAcceptable) // as Kubernetes' API server does
		return
	}
	w.Header().Set("Content-Type", kind)
	_, _ = w.Write(i.keySet())
}

// keySet returns the key set as it is sent.
func (i *Issuer) keySet() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.body != nil {
		return slices.Clone(i.body)
	}
	keys := make([]json.RawMessage, 0, len(i.published))
	for _, k := range i.published {
		keys = append(keys, k.jwk)
	}
	return mustJSON(map[string]any{"keys": keys})
}

func (i *Issuer) postToken(w http.ResponseWriter, r *http.Request) {
	claims, err := readClaims(w, r)
	if err != nil {
		writeError(w, http.StatusBadRequest, err.Error())
		return
	}
	writeText(w, i.Token(claims))
}

// readClaims reads a body that is a JSON object of claims, or nothing.
func readClaims(w http.ResponseWriter, r *http.Request) (claims map[string]any, err error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		return nil, errors.New("the body cannot be read or is too long")
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber() // keeps the digits of a number as they came
	if d.Decode(&claims) != nil || trailing(d) != nil {
		return nil, errors.New("want a JSON object of claims")
	}
	return claims, nil
}

func writeText(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, text)
}
