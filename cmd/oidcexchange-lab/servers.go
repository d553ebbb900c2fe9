// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// standIns are the servers that the program knows.
var standIns = []struct {
	name  string
	needs string // another stand-in, which is started too
	admin bool   // has an administrator, who uses the admin token
	make  func(setup) http.Handler
}{
	{"issuer", "", false, newIssuer},
	{"nuget", "issuer", false, newNuGet},
	{"keyapi", "", true, newKeyAPI},
	{spiffeName, "", false, newSPIFFE},
	{"pypi", "issuer", false, newPyPI},
	{"crates-io", "issuer", false, newCratesIO},
	{"rubygems", "issuer", false, newRubyGems},
	{"npm", "issuer", false, newNPM},
	{"artifactory", "issuer", true, newArtifactory},
	{"gitea", "", true, newGitea},
	{"connect", "issuer", true, newConnect},
	{"git-proxy-java", "", true, newGitProxy},
	{"gitlab", "", true, newGitLab},
	{"oauth", "issuer", false, newOAuth},
	{"finos-git-proxy", "oauth", false, newFinosGitProxy},
}

const spiffeName = "spiffe"

// setup is what a stand-in may need to know about the others.
type setup struct {
	urls       map[string]string // of all servers, by name
	client     *http.Client      // trusts them
	adminToken string
}

func newIssuer(s setup) http.Handler {
	return lab.NewIssuer(lab.IssuerOptions{URL: s.urls["issuer"]})
}

// newNuGet makes a gallery with one user and a policy for the issuer's default claims.
func newNuGet(s setup) http.Handler {
	g := lab.NewNuGet(lab.NuGetOptions{Issuers: []string{s.urls["issuer"]}, Client: s.client})
	g.SetUser(lab.User{Name: "demo"})
	g.AddPolicy(lab.Policy{Name: "demo", User: "demo", Owner: "acme", Repository: "widget", Workflow: "release.yml"})
	return g
}

func newKeyAPI(s setup) http.Handler {
	return lab.NewKeyAPI(lab.KeyAPIOptions{AdminToken: s.adminToken})
}

// newConnect makes a Posit Connect server with a trusted publisher and an integration for the issuer's default claims, and
// an administrator whose key is the admin token.
func newConnect(s setup) http.Handler {
	c := lab.NewConnect(lab.ConnectOptions{Issuers: []string{s.urls["issuer"]}, Client: s.client})
	c.AddPublisher(lab.ConnectPublisher{Name: "demo", Claims: map[string]string{"repository": "acme/widget"}})
	c.AddIntegration(lab.ConnectIntegration{GUID: "00000000-demo", Audience: "connect", MatchClaim: "actor"})
	c.AddUser(lab.ConnectUser{GUID: "00000000-octocat", Username: "octocat"}, "")
	c.AddUser(lab.ConnectUser{GUID: "00000000-admin", Username: "admin", Role: "administrator"}, s.adminToken)
	return c
}

func newGitProxy(s setup) http.Handler {
	return lab.NewGitProxy(lab.GitProxyOptions{OperatorKey: s.adminToken})
}

// newGitLab makes a GitLab with an administrator, a service account of the group acme, and the project acme/widget.
func newGitLab(s setup) http.Handler {
	g := lab.NewGitLab(lab.GitLabOptions{AdminToken: s.adminToken})
	g.AddGroup("acme", nil)
	g.AddProject("acme/widget", nil)
	g.AddUser(lab.GitLabUser{Name: "deployer", Group: "acme"})
	return g
}

// newFinosGitProxy makes a finos/git-proxy that accepts the tokens of oauth's client vault for the audience git-proxy.
// Tokens with the scope git-proxy.admin have the role admin.
func newFinosGitProxy(s setup) http.Handler {
	return lab.NewFinosGitProxy(lab.FinosGitProxyOptions{AuthorityURL: s.urls["oauth"], ClientID: "vault", ExpectedAudience: "git-proxy",
		RoleMapping: map[string][]lab.FinosClaim{"admin": {{Name: "scope", Value: "git-proxy.admin"}}}, Client: s.client})
}

// newOAuth makes an authorization server that accepts the issuer's tokens and signs with RS256. Its client vault has the
// secret lab.
func newOAuth(s setup) http.Handler {
	a := lab.NewOAuth(lab.OAuthOptions{Issuers: []string{s.urls["issuer"]}, Client: s.client, Algorithm: "RS256",
		Clients: []lab.OAuthClient{{ID: "vault", Method: "client_secret_basic", Secret: "lab"}}})
	a.SetURL(s.urls["oauth"])
	return a
}

// newSPIFFE makes a Workload API; its https address is only for the user of the program.
func newSPIFFE(setup) http.Handler {
	return lab.NewWorkloadAPI(lab.WorkloadAPIOptions{})
}

func names() []string {
	var all []string
	for _, s := range standIns {
		all = append(all, s.name)
	}
	return all
}

// withNeeded adds, at the end, the servers that the chosen ones need and that were not named.
func withNeeded(chosen []string) []string {
	all := slices.Clone(chosen)
	for i := 0; i < len(all); i++ {
		for _, s := range standIns {
			if s.name == all[i] && s.needs != "" && !slices.Contains(all, s.needs) {
				all = append(all, s.needs)
			}
		}
	}
	return all
}

// checkNames refuses names that are unknown or given twice, and ports of servers that are not started.
func checkNames(chosen []string, ports map[string]int) error {
	if len(chosen) == 0 {
		return fmt.Errorf("no server named; want some of %q", names())
	}
	for i, name := range chosen {
		if !slices.Contains(names(), name) {
			return fmt.Errorf("server %q: unknown; want some of %q", name, names())
		}
		if slices.Contains(chosen[:i], name) {
			return fmt.Errorf("server %q: named twice", name)
		}
	}
	for name := range ports {
		if !slices.Contains(chosen, name) {
			return fmt.Errorf("port for %q, which is not started", name)
		}
	}
	return nil
}

// running is one server that listens.
type running struct {
	name     string
	url      string
	listener net.Listener
	server   *http.Server
}

// labs are the servers of this process.
type labs struct {
	servers []running
	failed  chan error // what ended a server prematurely
}

// firstAdmin is the first of the chosen servers that has an administrator, "" if none has.
func firstAdmin(chosen []string) string {
	for _, s := range standIns {
		if s.admin && slices.Contains(chosen, s.name) {
			return s.name
		}
	}
	return ""
}

// start listens, makes the stand-ins, serves them and writes the files, in this order: a stand-in must know the others'
// URLs, and a file must not announce a server that does not run.
func start(o options, adminToken string) (*labs, error) {
	if name := firstAdmin(o.names); name != "" && adminToken == "" && o.dir == "" {
		return nil, fmt.Errorf("%s without an admin token; set LAB_ADMIN_TOKEN, or -dir to have one made", name)
	}
	if o.dir == "" && slices.Contains(o.names, spiffeName) {
		return nil, errors.New("spiffe without a place for its socket; set -dir")
	}
	if err := clearFiles(o.dir); err != nil {
		return nil, err
	}
	authority := lab.NewAuthority()
	l := &labs{failed: make(chan error, len(o.names))}
	if err := l.listen(o); err != nil {
		l.close()
		return nil, err
	}
	token := cmp.Or(adminToken, rand.Text())
	l.serve(o, authority, token)
	if err := l.openSocket(o.dir); err != nil {
		l.close()
		return nil, err
	}
	if err := l.writeFiles(o, authority, token, adminToken == ""); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// listen opens a port for each server.
func (l *labs) listen(o options) error {
	scheme := "https"
	if o.http {
		scheme = "http"
	}
	for _, name := range o.names {
		listener, err := net.Listen("tcp", net.JoinHostPort(o.listen, strconv.Itoa(o.ports[name])))
		if err != nil {
			return fmt.Errorf("listening for %q: %w", name, err)
		}
		port := strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
		l.servers = append(l.servers, running{name: name, listener: listener, url: scheme + "://" + net.JoinHostPort(o.listen, port)})
	}
	return nil
}

// serve makes the stand-ins and starts their servers.
func (l *labs) serve(o options, authority *lab.Authority, token string) {
	s := setup{urls: make(map[string]string), client: authority.Client(), adminToken: token}
	for _, r := range l.servers {
		s.urls[r.name] = r.url
	}
	leaf := authority.Issue(func(c *x509.Certificate) {
		if ip := net.ParseIP(o.listen); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, o.listen)
		}
	})
	// HTTP/1 only: a fault that cuts a call must cut the connection, not just one stream of it.
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	for i := range l.servers {
		r := &l.servers[i]
		r.server = &http.Server{
			Handler:           handler(r.name, s),
			TLSConfig:         &tls.Config{Certificates: []tls.Certificate{leaf}, MinVersion: tls.VersionTLS12},
			Protocols:         &protocols,
			ReadHeaderTimeout: 10 * time.Second,
		}
		go func() {
			var err error
			if o.http {
				err = r.server.Serve(r.listener)
			} else {
				err = r.server.ServeTLS(r.listener, "", "")
			}
			if !errors.Is(err, http.ErrServerClosed) {
				l.failed <- fmt.Errorf("serving %q: %w", r.name, err)
			}
		}()
	}
}

// openSocket starts the Workload API on its socket, if that server was chosen, and writes the file that names the socket.
func (l *labs) openSocket(dir string) error {
	for _, r := range l.servers {
		api, ok := r.server.Handler.(*lab.WorkloadAPI)
		if !ok {
			continue
		}
		path, err := filepath.Abs(filepath.Join(dir, socketFile))
		if err != nil {
			return err
		}
		if err := api.Start(path); err != nil {
			return fmt.Errorf("listening for %q: %w", r.name, err)
		}
		return writeFile(dir, envFile, []byte("SPIFFE_ENDPOINT_SOCKET=unix://"+path+"\n"), 0o644)
	}
	return nil
}

func handler(name string, s setup) http.Handler {
	for _, in := range standIns {
		if in.name == name {
			return in.make(s)
		}
	}
	panic("unknown stand-in " + name) // cannot happen: checkNames has refused it
}

// wait returns when ctx ends, or earlier if a server ends.
func (l *labs) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-l.failed:
		return err
	}
}

// close ends the servers. Calls in progress get a moment; a call that hangs in a fault is cut off.
func (l *labs) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, r := range l.servers {
		if r.server == nil {
			_ = r.listener.Close()
			continue
		}
		if r.server.Shutdown(ctx) != nil {
			_ = r.server.Close()
		}
		if api, ok := r.server.Handler.(*lab.WorkloadAPI); ok {
			api.Stop()
		}
	}
}

const (
	caFile     = "ca.pem"
	tokenFile  = ".token" // after a server's name
	socketFile = "spiffe.sock"
	envFile    = "spiffe.env"
)

// clearFiles removes what an earlier run left in dir, and makes dir if there is none.
func clearFiles(dir string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	stale := []string{caFile, socketFile, envFile}
	for _, name := range names() {
		stale = append(stale, name+".url", name+tokenFile)
	}
	for _, name := range stale {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// writeFiles writes the URLs last, so that a script that sees one finds the other files complete.
func (l *labs) writeFiles(o options, authority *lab.Authority, token string, random bool) error {
	if o.dir == "" {
		return nil
	}
	if !o.http {
		if err := writeFile(o.dir, caFile, []byte(authority.PEM()), 0o644); err != nil {
			return err
		}
	}
	for _, s := range standIns {
		if random && s.admin && slices.Contains(o.names, s.name) {
			if err := writeFile(o.dir, s.name+tokenFile, []byte(token), 0o600); err != nil {
				return err
			}
		}
	}
	for _, r := range l.servers {
		if err := writeFile(o.dir, r.name+".url", []byte(r.url+"\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeFile makes the file appear with all its content at once.
func writeFile(dir, name string, content []byte, mode os.FileMode) error {
	temporary := filepath.Join(dir, "."+name)
	if err := os.WriteFile(temporary, content, mode); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(dir, name))
}
