// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package egress

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

var loopbackOnly = Policy{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}

// counter is a handler that counts the calls it gets.
type counter struct{ n atomic.Int64 }

func (c *counter) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	c.n.Add(1)
	_, _ = io.WriteString(w, "ok")
}

func client(t *testing.T, p Policy, o Options) *http.Client {
	t.Helper()
	c, err := p.Client(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// get returns the body of an answer, or the error.
func get(t *testing.T, c *http.Client, address string) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := ReadAll(resp.Body, 1<<10)
	return string(body), err
}

func caOf(s *httptest.Server) string {
	return lab.CertificatePEM(s.Certificate())
}

// quiet keeps a server from logging the handshakes that a test makes fail.
func quiet(s *httptest.Server) *httptest.Server {
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	return s
}

func newTLSServer(h http.Handler) *httptest.Server {
	s := quiet(httptest.NewUnstartedServer(h))
	s.StartTLS()
	return s
}

// The idle connections that are kept for later calls are as many as there are calls at once.
func TestConnectionsAreReused(t *testing.T) {
	const calls = 8
	var opened atomic.Int64
	var wave atomic.Pointer[sync.WaitGroup] // of calls that have not arrived
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		wave.Load().Done()
		wave.Load().Wait()
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	c := client(t, loopbackOnly, Options{CAPEM: lab.CertificatePEM(server.Certificate()), MaxConns: calls})
	for range 3 {
		arriving := new(sync.WaitGroup)
		arriving.Add(calls)
		wave.Store(arriving)
		var done sync.WaitGroup
		for range calls {
			done.Go(func() {
				if _, err := get(t, c, server.URL); err != nil {
					t.Error(err)
				}
			})
		}
		done.Wait()
	}
	if n := opened.Load(); n != calls {
		t.Errorf("%d connections for three times %d calls", n, calls)
	}
}

func TestDialRefused(t *testing.T) {
	var hits counter
	srv := httptest.NewServer(&hits)
	defer srv.Close()
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	for _, address := range []string{"https://127.0.0.1:" + port, "https://localhost:" + port} {
		_, err := get(t, client(t, Policy{}, Options{}), address)
		var wrapped *url.Error
		if !errors.Is(err, ErrRefused) || !errors.As(err, &wrapped) {
			t.Errorf("GET %s: %v, want ErrRefused inside *url.Error", address, err)
		}
	}
	if n := hits.n.Load(); n != 0 {
		t.Errorf("the server was called %d times, want 0", n)
	}
}

// The host in the URL looks harmless, but its name resolves to an inside address: only the check at the dial can see this.
func TestDialJudgesResolvedAddress(t *testing.T) {
	var hits counter
	srv := httptest.NewServer(&hits)
	defer srv.Close()
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	for _, name := range []string{"localhost", "127.0.0.1", "::1"} {
		_, err := Policy{}.dial(t.Context(), "tcp", net.JoinHostPort(name, port))
		if !errors.Is(err, ErrRefused) {
			t.Errorf("dialling %s: %v, want ErrRefused", name, err)
		}
	}
	conn, err := Policy{AllowHTTPLoopback: true}.dial(t.Context(), "tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		t.Fatalf("dialling loopback that is allowed: %v", err)
	}
	_ = conn.Close()
}

func TestLocalhostMustBeThisMachine(t *testing.T) {
	p := Policy{AllowPrivate: everything, AllowHTTPLoopback: true}
	for resolved, ok := range map[string]bool{
		"127.0.0.1:80": true, "[::1]:80": true, "[::ffff:127.0.0.1]:80": true, "8.8.8.8:80": false, "10.0.0.1:80": false, "rubbish": false,
	} {
		if err := p.judgeDial("localhost", resolved); (err == nil) != ok || err != nil && !errors.Is(err, ErrRefused) {
			t.Errorf("localhost at %s: %v, want permitted: %t", resolved, err, ok)
		}
	}
	if err := p.judgeDial("example.com", "10.0.0.1:80"); err != nil {
		t.Errorf("another name at an address that is allowed: %v, want nil", err)
	}
}

func TestHTTPLoopback(t *testing.T) {
	var hits counter
	srv := httptest.NewServer(&hits)
	defer srv.Close()
	if body, err := get(t, client(t, Policy{AllowHTTPLoopback: true}, Options{}), srv.URL); body != "ok" || err != nil {
		t.Errorf("GET = %q, %v; want ok", body, err)
	}
	if _, err := get(t, client(t, loopbackOnly, Options{}), srv.URL); !errors.Is(err, ErrRefused) {
		t.Errorf("http without AllowHTTPLoopback: %v, want ErrRefused", err)
	}
	if n := hits.n.Load(); n != 1 {
		t.Errorf("the server was called %d times, want 1", n)
	}
}

func TestHostsOnEveryRequest(t *testing.T) {
	var hits counter
	srv := newTLSServer(&hits)
	defer srv.Close()
	p := loopbackOnly
	p.Hosts = []string{"api.example.com"}
	if _, err := get(t, client(t, p, Options{CAPEM: caOf(srv)}), srv.URL); !errors.Is(err, ErrRefused) {
		t.Errorf("a host beside the list: %v, want ErrRefused", err)
	}
	p.Hosts = []string{"127.0.0.1"}
	if body, err := get(t, client(t, p, Options{CAPEM: caOf(srv)}), srv.URL); body != "ok" || err != nil {
		t.Errorf("a host on the list: %q, %v; want ok", body, err)
	}
	if n := hits.n.Load(); n != 1 {
		t.Errorf("the server was called %d times, want 1", n)
	}
}

// closer records that a request's body was closed, as a RoundTripper must do.
type closer struct {
	io.Reader
	closed bool
}

func (c *closer) Close() error { c.closed = true; return nil }

func TestRefusalClosesBody(t *testing.T) {
	body := &closer{Reader: strings.NewReader("secret")}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://10.0.0.1/", body)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client(t, Policy{}, Options{}).Do(req); !errors.Is(err, ErrRefused) || !body.closed {
		t.Errorf("error %v, closed %t; want ErrRefused and a closed body", err, body.closed)
	}
}

func TestNoRedirects(t *testing.T) {
	var hits counter
	inside := httptest.NewServer(&hits)
	defer inside.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		srv := httptest.NewServer(http.RedirectHandler(inside.URL, status))
		resp, err := client(t, Policy{AllowHTTPLoopback: true}, Options{}).Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("status %d, want the redirect %d itself", resp.StatusCode, status)
		}
		srv.Close()
	}
	if n := hits.n.Load(); n != 0 {
		t.Errorf("the redirect's target was called %d times, want 0", n)
	}
}

func TestOwnCAReplacesRoots(t *testing.T) {
	srv := newTLSServer(&counter{})
	defer srv.Close()
	if body, err := get(t, client(t, loopbackOnly, Options{CAPEM: caOf(srv)}), srv.URL); body != "ok" || err != nil {
		t.Errorf("with the server's CA: %q, %v; want ok", body, err)
	}
	other := lab.NewAuthority().PEM()
	for name, ca := range map[string]string{"system roots": "", "another CA": other} {
		_, err := get(t, client(t, loopbackOnly, Options{CAPEM: ca}), srv.URL)
		var unknown x509.UnknownAuthorityError
		if !errors.As(err, &unknown) {
			t.Errorf("with %s: %v, want an unknown authority", name, err)
		}
	}
	c := client(t, loopbackOnly, Options{CAPEM: other})
	if pool := c.Transport.(*guard).transport.TLSClientConfig.RootCAs; pool == nil {
		t.Error("an own CA must replace the system's roots")
	}
}

func TestCertificateMustFit(t *testing.T) {
	now := time.Now()
	for name, tt := range map[string]struct {
		change func(*x509.Certificate)
		want   string
	}{
		"good":         {func(*x509.Certificate) {}, ""},
		"another name": {func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"example.com"} }, "the server's certificate is for another host; the URL must have a name or address that is in it"},
		"another address": {func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 2)} },
			"the server's certificate is for another host; the URL must have a name or address that is in it"},
		"name in the subject alone": {func(c *x509.Certificate) { c.IPAddresses, c.Subject.CommonName = nil, "127.0.0.1" },
			"the server's certificate is for another host; the URL must have a name or address that is in it"},
		"expired":       {func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }, "the server's certificate has expired, or is not valid yet"},
		"not valid yet": {func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) }, "the server's certificate has expired, or is not valid yet"},
		"of a client": {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} },
			"the server's certificate is not valid for a server"},
	} {
		t.Run(name, func(t *testing.T) {
			authority := lab.NewAuthority()
			srv := quiet(httptest.NewUnstartedServer(&counter{}))
			srv.TLS = &tls.Config{Certificates: []tls.Certificate{authority.Issue(tt.change)}}
			srv.StartTLS()
			defer srv.Close()
			got := ""
			if _, err := get(t, client(t, loopbackOnly, Options{CAPEM: authority.PEM()}), srv.URL); err != nil {
				got = Cause(err)
			}
			if got != tt.want {
				t.Errorf("cause %q, want %q", got, tt.want)
			}
		})
	}
}

func TestOldTLSRefused(t *testing.T) {
	srv := quiet(httptest.NewUnstartedServer(&counter{}))
	srv.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	srv.StartTLS()
	defer srv.Close()
	if _, err := get(t, client(t, loopbackOnly, Options{CAPEM: caOf(srv)}), srv.URL); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
}

// If a resolver's answer for a name changes, the address that is dialled is judged each time.
func TestDialledAddressDecides(t *testing.T) {
	var hits counter
	authority := lab.NewAuthority()
	srv := quiet(httptest.NewUnstartedServer(&hits))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{authority.Issue(func(c *x509.Certificate) { c.DNSNames = []string{"api.example.com"} })}}
	srv.StartTLS()
	defer srv.Close()
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	var at atomic.Pointer[[]netip.Addr]
	system := net.DefaultResolver
	net.DefaultResolver = lab.Names(func(string) []netip.Addr { return *at.Load() }).Resolver()
	defer func() { net.DefaultResolver = system }()

	address := "https://api.example.com:" + port
	for _, policy := range []Policy{loopbackOnly, {AllowPrivate: everything}} {
		if _, err := policy.ParseURL(address); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			resolved string
			reached  bool
		}{
			{"127.0.0.1", true}, {"169.254.169.254", false}, {"0.0.0.0", false}, {"::ffff:169.254.169.254", false}, {"64:ff9b::a9fe:a9fe", false},
			{"64:ff9b::7f00:1", false}, {"fe80::1", false}, {"fd00:ec2::254", false}, {"::", false}, {"127.0.0.1", true},
		} {
			at.Store(&[]netip.Addr{netip.MustParseAddr(c.resolved)})
			hit := hits.n.Load()
			made := client(t, policy, Options{CAPEM: authority.PEM()})
			_, err := get(t, made, address)
			if reached := hits.n.Load() > hit; reached != c.reached || reached != (err == nil) || err != nil && !errors.Is(err, ErrRefused) {
				t.Errorf("at %s: %v, reached %t; want %t", c.resolved, err, reached, c.reached)
			}
			made.CloseIdleConnections()
		}
	}
	// Of several addresses the permitted one is taken, and none leads to where the policy forbids.
	for _, all := range []string{"10.0.0.1 127.0.0.1", "127.0.0.1 169.254.169.254"} {
		var list []netip.Addr
		for one := range strings.FieldsSeq(all) {
			list = append(list, netip.MustParseAddr(one))
		}
		at.Store(&list)
		if body, err := get(t, client(t, loopbackOnly, Options{CAPEM: authority.PEM()}), address); body != "ok" || err != nil {
			t.Errorf("at %s: %q, %v; want ok", all, body, err)
		}
	}
	at.Store(&[]netip.Addr{netip.MustParseAddr("127.0.0.1")})
	if _, err := get(t, client(t, Policy{}, Options{CAPEM: authority.PEM()}), address); !errors.Is(err, ErrRefused) {
		t.Errorf("a public name at loopback: %v, want ErrRefused", err)
	}
}

func TestClientCertificate(t *testing.T) {
	cert, key := lab.PairPEM(lab.NewAuthority().Issue(func(c *x509.Certificate) { c.Subject.CommonName = "engine" }))
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].Subject.CommonName)
	}))
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	quiet(srv).StartTLS()
	defer srv.Close()
	body, err := get(t, client(t, loopbackOnly, Options{CAPEM: caOf(srv), ClientCert: cert, ClientKey: key}), srv.URL)
	if body != "engine" || err != nil {
		t.Errorf("with a certificate: %q, %v; want engine", body, err)
	}
	if _, err := get(t, client(t, loopbackOnly, Options{CAPEM: caOf(srv)}), srv.URL); err == nil {
		t.Error("without a certificate the server should have refused")
	}
}
