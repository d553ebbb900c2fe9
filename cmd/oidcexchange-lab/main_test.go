// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// TestMain lets the test binary act as the program, so that tests can start it and send it signals.
func TestMain(m *testing.M) {
	if os.Getenv("LAB_TEST_AS_PROGRAM") == "1" {
		main()
		return
	}
	os.Exit(m.Run())
}

// program is a run of the program inside the test.
type program struct {
	urls map[string]string
	stop context.CancelFunc
	done chan error
}

// startProgram runs the program until it has printed a line for each of the n servers.
func startProgram(t *testing.T, n int, adminToken string, args ...string) *program {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	read, write := io.Pipe()
	p := &program{urls: make(map[string]string), stop: cancel, done: make(chan error, 1)}
	go func() {
		err := run(ctx, args, adminToken, write, io.Discard)
		write.CloseWithError(io.EOF)
		p.done <- err
	}()
	lines := bufio.NewScanner(read)
	for range n {
		if !lines.Scan() {
			t.Fatalf("the program ended before it printed %d servers: %v", n, <-p.done)
		}
		name, url, _ := strings.Cut(lines.Text(), " ")
		p.urls[name] = url
	}
	return p
}

// end stops the program and fails the test if it does not exit cleanly.
func (p *program) end(t *testing.T) {
	t.Helper()
	p.stop()
	if err := <-p.done; err != nil {
		t.Errorf("the program ended with %v; want nil", err)
	}
}

// trusting returns a client that trusts only the CA in the directory.
func trusting(t *testing.T, dir string) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(readFile(t, dir, "ca.pem"))) {
		t.Fatal("ca.pem holds no certificate")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func readFile(t *testing.T, dir, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// call returns status and body of one request.
func call(t *testing.T, c *http.Client, method, url, body string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(raw)
}

func TestServersWorkTogetherOverTLS(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "made", "by the program")
	p := startProgram(t, 4, "", "-dir", dir, "issuer", "nuget", "keyapi", "gitlab")
	defer p.end(t)

	for name, url := range p.urls {
		if !strings.HasPrefix(url, "https://127.0.0.1:") {
			t.Errorf("%s is at %q; want https on 127.0.0.1", name, url)
		}
		if got := readFile(t, dir, name+".url"); got != url+"\n" {
			t.Errorf("%s.url = %q; want %q", name, got, url+"\n")
		}
	}
	c := trusting(t, dir)

	status, token := call(t, c, "POST", p.urls["issuer"]+"/lab/token", `{"aud":"https://www.nuget.org"}`)
	if status != 200 {
		t.Fatalf("token: status %d", status)
	}
	status, body := call(t, c, "POST", p.urls["nuget"]+"/api/v2/token", `{"username":"demo","tokenType":"ApiKey"}`,
		"Authorization", "Bearer "+token, "Content-Type", "application/json")
	if status != 200 || !strings.Contains(body, `"apiKey":"`) {
		t.Errorf("exchange: %d %s; want 200 and a key", status, body)
	}

	// localhost is in the certificate as well.
	url := strings.Replace(p.urls["keyapi"], "127.0.0.1", "localhost", 1)
	admin := readFile(t, dir, "keyapi.token")
	if status, body := call(t, c, "GET", url+"/v1/whoami", "", "Authorization", "Bearer "+admin); status != 200 {
		t.Errorf("whoami with the token of keyapi.token: %d %s; want 200", status, body)
	}
	if status, body := call(t, c, "POST", p.urls["gitlab"]+"/api/v4/projects/acme%2Fwidget/access_tokens", `{"name":"n","scopes":["read_api"],"access_level":20}`,
		"PRIVATE-TOKEN", readFile(t, dir, "gitlab.token"), "Content-Type", "application/json"); status != 201 || !strings.Contains(body, `"token":"`) {
		t.Errorf("making a project token with the token of gitlab.token: %d %s; want 201 and a token", status, body)
	}
	for _, name := range []string{"keyapi.token", "gitlab.token"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != 0o600 {
			t.Errorf("%s has mode %o; want 600", name, got)
		}
	}
}

func TestPlainHTTPAndGivenToken(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, stale := range []string{"ca.pem", "keyapi.token", "gitlab.token", "issuer.url"} {
		if err := os.WriteFile(filepath.Join(dir, stale), []byte("stale"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p := startProgram(t, 1, "given", "-http", "-dir", dir, "keyapi")
	defer p.end(t)

	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	status, body := call(t, c, "GET", p.urls["keyapi"]+"/v1/whoami", "", "Authorization", "Bearer given")
	if status != 200 {
		t.Errorf("whoami with the token of the environment: %d %s; want 200", status, body)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := slices.Collect(func(yield func(string) bool) {
		for _, e := range entries {
			if !yield(e.Name()) {
				return
			}
		}
	})
	if want := []string{"keyapi.url"}; !slices.Equal(got, want) {
		t.Errorf("files %q; want %q: neither stale ones nor a given token", got, want)
	}
}

// The stand-ins for servers of the user's own network accept the issuer's tokens and the administrator's token.
func TestServersOnPremises(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startProgram(t, 3, "", "-dir", dir, "git-proxy-java", "connect", "issuer")
	defer p.end(t)
	c := trusting(t, dir)
	_, token := call(t, c, "POST", p.urls["issuer"]+"/lab/token", `{"aud":"connect"}`)
	for path, requested := range map[string]string{
		"/oauth/v1/token": "urn:ietf:params:oauth:token-type:access_token", "/__api__/v1/oauth/integrations/credentials": "urn:posit:connect:api-key",
	} {
		form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {token},
			"subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"}, "requested_token_type": {requested}}
		if status, body := call(t, c, "POST", p.urls["connect"]+path, form.Encode(), "Content-Type", "application/x-www-form-urlencoded"); status != 200 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if status, body := call(t, c, "GET", p.urls["connect"]+"/__api__/v1/user", "", "Authorization", "Key "+readFile(t, dir, "connect.token")); status != 200 {
		t.Errorf("connect's administrator: %d %s", status, body)
	}
	if status, body := call(t, c, "GET", p.urls["git-proxy-java"]+"/api/users", "", "X-Api-Key", readFile(t, dir, "git-proxy-java.token")); status != 200 {
		t.Errorf("git-proxy-java's operator: %d %s", status, body)
	}
}

// The authorization server accepts the tokens of the issuer in the same process, over https.
func TestOAuthBesideTheIssuer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startProgram(t, 2, "", "-dir", dir, "issuer", "oauth")
	defer p.end(t)
	c := trusting(t, dir)
	_, token := call(t, c, "POST", p.urls["issuer"]+"/lab/token", `{"aud":"`+p.urls["oauth"]+`"}`)
	form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {token}, "subject_token_type": {"urn:ietf:params:oauth:token-type:jwt"}}
	status, body := call(t, c, "POST", p.urls["oauth"]+"/token", form.Encode(), "Content-Type", "application/x-www-form-urlencoded", "Authorization", "Basic dmF1bHQ6bGFi")
	if status != 200 || !strings.Contains(body, `"access_token":"`) {
		t.Errorf("exchange: %d %s; want 200 and a token", status, body)
	}
}

// finos-git-proxy starts its identity provider too, and accepts the tokens that this gives to a client.
func TestFinosGitProxyByItsName(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startProgram(t, 3, "", "-dir", dir, "finos-git-proxy")
	defer p.end(t)
	c := trusting(t, dir)
	form := url.Values{"grant_type": {"client_credentials"}, "audience": {"git-proxy"}, "scope": {"git-proxy.admin"}}
	status, body := call(t, c, "POST", p.urls["oauth"]+"/token", form.Encode(), "Content-Type", "application/x-www-form-urlencoded", "Authorization", "Basic dmF1bHQ6bGFi")
	var made struct {
		Token string `json:"access_token"`
	}
	if status != 200 || json.Unmarshal([]byte(body), &made) != nil {
		t.Fatalf("a token: %d %s", status, body)
	}
	if status, body := call(t, c, "DELETE", p.urls["finos-git-proxy"]+"/api/v1/repo/7/delete", "", "Authorization", "Bearer "+made.Token); status != 200 {
		t.Errorf("its administrator: %d %s", status, body)
	}
	if status, _ := call(t, c, "GET", p.urls["finos-git-proxy"]+"/api/v1/repo", ""); status != 401 {
		t.Errorf("nobody: %d", status)
	}
}

// Each server can be started by its name alone; servers that it needs are started too.
func TestEachServerStartsByItsName(t *testing.T) {
	t.Parallel()
	for _, s := range standIns {
		chosen := withNeeded([]string{s.name})
		p := startProgram(t, len(chosen), "", "-dir", t.TempDir(), s.name)
		for _, name := range chosen {
			if p.urls[name] == "" {
				t.Errorf("%s: %s has no address", s.name, name)
			}
		}
		p.end(t)
	}
}

// The socket that spiffe.env names answers SPIFFE's own client, and an SVID signed over https verifies with its bundles.
func TestWorkloadAPIOnASocket(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "spiffe.sock"), nil, 0o600); err != nil { // an earlier run was killed
		t.Fatal(err)
	}
	p := startProgram(t, 1, "", "-dir", dir, "spiffe")
	address, ok := strings.CutPrefix(strings.TrimSpace(readFile(t, dir, "spiffe.env")), "SPIFFE_ENDPOINT_SOCKET=")
	if !ok {
		t.Fatalf("spiffe.env names no socket: %q", address)
	}
	client, err := workloadapi.New(t.Context(), workloadapi.WithAddr(address))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	bundles, err := client.FetchJWTBundles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, token := call(t, trusting(t, dir), "POST", p.urls["spiffe"]+"/lab/svid", `{"aud":"vault"}`)
	if svid, err := jwtsvid.ParseAndValidate(token, bundles, []string{"vault"}); err != nil || svid.ID.String() != "spiffe://example.org/workload" {
		t.Errorf("SVID: %v, %v", svid, err)
	}
	p.end(t)
	if _, err := os.Stat(filepath.Join(dir, "spiffe.sock")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// Every server that accepts the issuer's tokens accepts them with no claim changed but the audience; the others accept the
// admin token.
func TestRegistriesTrustTheIssuer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startProgram(t, 7, "", "-http", "-dir", dir, "issuer", "pypi", "crates-io", "rubygems", "npm", "artifactory", "gitea")
	defer p.end(t)
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for name, r := range map[string]struct {
		aud, path, body string
		status          int
	}{
		"pypi":        {"pypi", "/_/oidc/mint-token", `{"token":"TOKEN"}`, 200},
		"crates-io":   {"crates.io", "/api/v1/trusted_publishing/tokens", `{"jwt":"TOKEN"}`, 200},
		"rubygems":    {"rubygems.org", "/api/v1/oidc/trusted_publisher/exchange_token", `{"jwt":"TOKEN"}`, 201},
		"npm":         {"npm:registry.npmjs.org", "/-/npm/v1/oidc/token/exchange/package/widget", "", 201},
		"artifactory": {"jfrog", "/access/api/v1/oidc/token", `{"grant_type":"urn:ietf:params:oauth:grant-type:token-exchange","subject_token_type":"urn:ietf:params:oauth:token-type:id_token","subject_token":"TOKEN","provider_name":"demo"}`, 200},
	} {
		_, token := call(t, c, "POST", p.urls["issuer"]+"/lab/token", `{"aud":"`+r.aud+`"}`)
		status, body := call(t, c, "POST", p.urls[name]+r.path, strings.Replace(r.body, "TOKEN", token, 1), "Authorization", "Bearer "+token, "Content-Type", "application/json")
		if status != r.status {
			t.Errorf("%s: %d %s; want %d", name, status, body, r.status)
		}
	}
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("vault:"+readFile(t, dir, "gitea.token")))
	if status, body := call(t, c, "GET", p.urls["gitea"]+"/api/v1/user", "", "Authorization", basic); status != 200 {
		t.Errorf("gitea: %d %s; want 200", status, body)
	}
	if status, body := call(t, c, "GET", p.urls["artifactory"]+"/access/api/v1/tokens", "", "Authorization", "Bearer "+readFile(t, dir, "artifactory.token")); status != 200 {
		t.Errorf("artifactory: %d %s; want 200", status, body)
	}
}

func TestNuGetTrustsIssuerWithoutTLS(t *testing.T) {
	t.Parallel()
	p := startProgram(t, 2, "", "-http", "nuget", "issuer")
	defer p.end(t)
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	_, token := call(t, c, "POST", p.urls["issuer"]+"/lab/token", `{"aud":"https://www.nuget.org"}`)
	status, body := call(t, c, "POST", p.urls["nuget"]+"/api/v2/token", `{"username":"demo","tokenType":"ApiKey"}`,
		"Authorization", "Bearer "+token, "Content-Type", "application/json")
	if status != 200 {
		t.Errorf("exchange: %d %s; want 200", status, body)
	}
}

// A call that hangs in a fault must not keep the program from ending.
func TestEndsWhileACallHangs(t *testing.T) {
	t.Parallel()
	l, err := start(options{listen: "127.0.0.1", http: true, names: []string{"keyapi"}}, "given")
	if err != nil {
		t.Fatal(err)
	}
	api := l.servers[0].server.Handler.(*lab.KeyAPI)
	api.Fault(lab.OpCheck, lab.Fault{Kind: lab.KindHang})
	arrived := make(chan struct{})
	api.OnRequest(func(string, lab.Stage) { close(arrived) })
	hung := make(chan error, 1)
	go func() {
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		_, err := c.Get(l.servers[0].url + "/v1/whoami")
		hung <- err
	}()
	<-arrived
	l.close()
	if err := <-hung; !errors.Is(err, io.EOF) {
		t.Errorf("the hanging call ended with %v; want %v", err, io.EOF)
	}
}

func TestSignalEndsTheProgram(t *testing.T) {
	t.Parallel()
	for _, signal := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-http", "issuer")
		cmd.Env = append(os.Environ(), "LAB_TEST_AS_PROGRAM=1")
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(stdout).ReadString('\n'); !strings.HasPrefix(line, "issuer http://127.0.0.1:") {
			t.Errorf("the program printed %q, %v; want the issuer's URL", line, err)
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("after %v the program ended with %v; want exit status 0", signal, err)
		}
	}
}

func TestRefusedCommandLines(t *testing.T) {
	t.Parallel()
	known := fmt.Sprintf("%q", names())
	for args, want := range map[string]string{
		"":                               "no server named; want some of " + known,
		"isuer":                          `server "isuer": unknown; want some of ` + known,
		"issuer issuer":                  `server "issuer": named twice`,
		"gitea":                          "gitea without an admin token; set LAB_ADMIN_TOKEN, or -dir to have one made",
		"keyapi":                         "keyapi without an admin token; set LAB_ADMIN_TOKEN, or -dir to have one made",
		"git-proxy-java":                 "git-proxy-java without an admin token; set LAB_ADMIN_TOKEN, or -dir to have one made",
		"gitlab":                         "gitlab without an admin token; set LAB_ADMIN_TOKEN, or -dir to have one made",
		"spiffe":                         "spiffe without a place for its socket; set -dir",
		"-ports nuget=8080 issuer":       `port for "nuget", which is not started`,
		"-ports issuer issuer":           `invalid value "issuer" for flag -ports: "issuer": want name=port`,
		"-ports issuer=65536 issuer":     `invalid value "issuer=65536" for flag -ports: "issuer=65536": want name=port`,
		"-ports issuer=1,nuget=x issuer": `invalid value "issuer=1,nuget=x" for flag -ports: "nuget=x": want name=port`,
	} {
		err := run(t.Context(), strings.Fields(args), "", io.Discard, io.Discard)
		if err == nil || err.Error() != want {
			t.Errorf("%q: error %v; want %s", args, err, want)
		}
	}
	if err := run(t.Context(), []string{"-h"}, "", io.Discard, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: error %v; want %v", err, flag.ErrHelp)
	}
}

func TestGivenPortIsUsed(t *testing.T) {
	t.Parallel()
	first := startProgram(t, 1, "", "-http", "issuer")
	defer first.end(t)
	port := first.urls["issuer"][strings.LastIndex(first.urls["issuer"], ":")+1:]
	// The port is taken, so this must fail, and must not leave a file that announces a server.
	dir := t.TempDir()
	err := run(t.Context(), []string{"-dir", dir, "-ports", "issuer=" + port, "issuer"}, "", io.Discard, io.Discard)
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("taken port: error %v; want %v", err, syscall.EADDRINUSE)
	}
	if _, err := os.Stat(filepath.Join(dir, "issuer.url")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("issuer.url: %v; want none", err)
	}
}
