// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// startingPoints are the files that operators start from; startingTokens are complete tokens of each provider, by policy.
var (
	startingPoints = filepath.Join("..", "..", "bootstrap", "trust")
	startingTokens = filepath.Join("..", "..", "backend", "trust", "testdata", "starting")
)

// startingWarnings are all warnings that Vault gives about them: kubelets replace a token before it expires, and pods
// present the same token until then.
var startingWarnings = map[string]string{"issuers/kubernetes": "single_use is off"}

// tokensOf is a token that a policy accepts, and the results if some claims differ (null removes a claim).
type tokensOf struct {
	Header, Claims map[string]any
	Cases          []struct {
		Name, Want string
		With       map[string]any
	}
}

// startingCommand matches a command of the starting points' README: path of the mount, and file.
var startingCommand = regexp.MustCompile(`(?m)^vault write oidcexchange/((?:issuers|trust)/\S+) @bootstrap/trust/(\S+)$`)

// The README's commands save the starting points as they are shipped, without network. With the tests' keys instead of the
// provider's, they accept and refuse tokens of the provider's real form.
func testStartingPoints(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	var written []string
	for _, command := range startingCommand.FindAllStringSubmatch(readFile(t, startingPoints, "README.md"), -1) {
		path, file := command[1], filepath.FromSlash(command[2])
		w.writeStartingPoint(t, path, file)
		written = append(written, file)
		if provider := filepath.Dir(file); strings.HasPrefix(path, "trust/") {
			policy := strings.TrimSuffix(filepath.Base(file), ".json")
			t.Run(provider+"/"+policy, func(t *testing.T) { w.testStartingPolicy(t, provider, policy) })
		}
	}
	shipped, err := filepath.Glob(filepath.Join(startingPoints, "*", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for i, file := range shipped {
		shipped[i], _ = filepath.Rel(startingPoints, file)
	}
	if slices.Sort(written); !slices.Equal(written, shipped) {
		t.Errorf("the README's commands write %q; there are %q", written, shipped)
	}
}

// writeStartingPoint runs one command of the README.
func (w *world) writeStartingPoint(t *testing.T, path, file string) {
	t.Helper()
	absolute, err := filepath.Abs(filepath.Join(startingPoints, file))
	if err != nil {
		t.Fatal(err)
	}
	out := w.cli(t, w.root.Token(), "write", w.path+"/"+path, "@"+absolute)
	if out.code != 0 {
		t.Fatalf("%s: exit status %d\n%s%s", path, out.code, out.stdout, out.stderr)
	}
	_, said, _ := strings.Cut(out.stderr, "  * ")
	if want := startingWarnings[path]; !strings.HasPrefix(said, want) || (want == "") != (said == "") || strings.Contains(said, "  * ") {
		t.Errorf("%s: want the warning %q, or none if that is empty; got:\n%s", path, want, out.stderr)
	}
	if strings.HasPrefix(path, "issuers/") {
		w.replaceKeys(t, path)
	}
}

// replaceKeys makes an issuer's tokens verify with the tests' key. Its iss stays the provider's.
func (w *world) replaceKeys(t *testing.T, path string) {
	t.Helper()
	_, key := w.issuer.Key()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	block := &pem.Block{Type: "PUBLIC KEY", Bytes: der}
	w.write(t, path, map[string]any{"oidc_discovery_url": "", "jwks_url": "", "jwt_validation_pubkeys": string(pem.EncodeToMemory(block))})
}

func (w *world) testStartingPolicy(t *testing.T, provider, policy string) {
	role := provider + "-" + policy
	w.write(t, "roles/"+role, map[string]any{"trust": role, "target": "acme", "parameters": map[string]any{"project": "widget"}, "ttl": "5m"})
	var all map[string]tokensOf
	decoder := json.NewDecoder(strings.NewReader(readFile(t, startingTokens, provider+".json")))
	decoder.UseNumber()
	if err := decoder.Decode(&all); err != nil {
		t.Fatal(err)
	}
	tokens := all[policy]
	if len(tokens.Cases) == 0 {
		t.Fatalf("no tokens of %s for %s", provider, policy)
	}
	for _, c := range tokens.Cases {
		_, err := w.exchange(t, role, w.providerToken(t, tokens, c.With))
		got := "allowed"
		if err != nil {
			got = reasonOf(err)
		}
		if got != c.Want {
			t.Errorf("%s: %s; want %s", c.Name, got, c.Want)
		}
	}
	issuer := w.read(t, "trust/"+role)["issuer"].(string)
	w.testOwnToken(t, role, w.providerToken(t, tokens, nil), w.read(t, "issuers/"+issuer)["single_use"].(bool))
}

// testOwnToken exchanges the token that a policy is for: once, or twice if its issuer allows that. What is recorded is
// enough to renew, and includes the token's id.
func (w *world) testOwnToken(t *testing.T, role, token string, once bool) {
	t.Helper()
	secret, err := w.exchange(t, role, token)
	if err != nil {
		t.Fatalf("its own token: %v", err)
	}
	if _, err := w.root.Sys().RenewWithContext(t.Context(), secret.LeaseID, 600); err != nil {
		t.Errorf("renewing: %v", err)
	}
	var claims struct{ JTI, UTI string }
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil || json.Unmarshal(payload, &claims) != nil {
		t.Fatalf("the token's payload: %v", err)
	}
	record := w.read(t, "keys/"+secret.Data["id"].(string))
	if want := claims.JTI + claims.UTI; record["jti"] != want || record["claims_partial"] != false {
		t.Errorf("recorded: jti %q, claims_partial %v; want %q, false", record["jti"], record["claims_partial"], want)
	}
	switch _, err := w.exchange(t, role, token); {
	case once && reasonOf(err) != "replayed":
		t.Errorf("its own token again: %v; want replayed", err)
	case !once && err != nil:
		t.Errorf("its own token again: %v", err)
	}
}

// providerToken signs a token of the provider with some claims changed. Its times are moved to now and it gets an id of its
// own; everything else is as in the file.
func (w *world) providerToken(t *testing.T, tokens tokensOf, changed map[string]any) string {
	t.Helper()
	claims := maps.Clone(tokens.Claims)
	maps.Copy(claims, changed)
	maps.DeleteFunc(claims, func(_ string, value any) bool { return value == nil })
	since := time.Now().Unix() - number(t, tokens.Claims["iat"])
	for _, name := range []string{"iat", "nbf", "exp"} {
		if claims[name] != nil {
			claims[name] = number(t, claims[name]) + since
		}
	}
	for _, name := range []string{"jti", "uti"} {
		if claims[name] != nil {
			claims[name] = rand.Text()
		}
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	return w.secret(w.issuer.Sign(tokens.Header, payload))
}

func number(t *testing.T, claim any) int64 {
	t.Helper()
	n, err := claim.(json.Number).Int64()
	if err != nil {
		t.Fatal(err)
	}
	return n
}
