// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

func TestProxyVariablesIgnored(t *testing.T) {
	var proxied, direct counter
	proxy := httptest.NewServer(&proxied)
	defer proxy.Close()
	srv := httptest.NewServer(&direct)
	defer srv.Close()
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"} {
		t.Setenv(name, proxy.URL)
	}
	c := client(t, Policy{AllowHTTPLoopback: true}, Options{})
	if c.Transport.(*guard).transport.Proxy != nil { // net/http exempts loopback, so that calls alone would show nothing
		t.Error("the transport has a proxy function, want none")
	}
	if _, err := get(t, c, srv.URL); err != nil {
		t.Fatal(err)
	}
	if proxied.n.Load() != 0 || direct.n.Load() != 1 {
		t.Errorf("proxy %d, server %d calls; want 0 and 1", proxied.n.Load(), direct.n.Load())
	}
}

// connectProxy passes every CONNECT on to one server, whatever name was requested, and records the name.
func connectProxy(t *testing.T, server string, asked *atomic.Value) *httptest.Server {
	t.Helper()
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Method + " " + r.Host)
		up, err := net.Dial("tcp", server)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		down, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			_ = up.Close()
			return
		}
		_, _ = io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(up, down); _ = up.Close() }()
		_, _ = io.Copy(down, up)
		_ = down.Close()
	}))
}

func TestProxy(t *testing.T) {
	srv := newTLSServer(&counter{})
	defer srv.Close()
	var asked atomic.Value
	proxy := connectProxy(t, srv.Listener.Addr().String(), &asked)
	defer proxy.Close()

	c := client(t, loopbackOnly, Options{CAPEM: caOf(srv), ProxyURL: proxy.URL})
	if body, err := get(t, c, "https://example.com/"); body != "ok" || err != nil { // httptest's certificate is for example.com too
		t.Fatalf("through the proxy: %q, %v; want ok", body, err)
	}
	if got := asked.Load(); got != "CONNECT example.com:443" {
		t.Errorf("the proxy was asked %v, want CONNECT example.com:443", got)
	}
	c.CloseIdleConnections()

	if _, err := get(t, c, "https://169.254.169.254/"); !errors.Is(err, ErrRefused) {
		t.Errorf("a metadata address through the proxy: %v, want ErrRefused", err)
	}
	p := loopbackOnly
	p.Hosts = []string{"127.0.0.1"}
	if _, err := get(t, client(t, p, Options{ProxyURL: proxy.URL}), "https://example.com/"); !errors.Is(err, ErrRefused) {
		t.Errorf("a host beside the list through the proxy: %v, want ErrRefused", err)
	}
}

func TestProxyAddressIsJudged(t *testing.T) {
	if _, err := (Policy{}).Client(Options{ProxyURL: "http://127.0.0.1:3128"}); !errors.Is(err, ErrRefused) {
		t.Errorf("a private proxy: %v, want ErrRefused", err)
	}
	if _, err := (Policy{Hosts: []string{"api.example.com"}}).Client(Options{ProxyURL: "http://proxy.example.com:3128"}); !errors.Is(err, ErrRefused) {
		t.Errorf("a proxy beside egress_hosts: %v, want ErrRefused", err)
	}
	// What is permitted is this machine's loopback, not the proxy's.
	for _, p := range []Policy{{AllowHTTPLoopback: true}, loopbackOnly} {
		c := client(t, p, Options{ProxyURL: "http://proxy.example.com:3128"})
		for _, u := range []string{"http://127.0.0.1:1/", "https://127.0.0.1:1/", "https://localhost:1/"} {
			if _, err := get(t, c, u); !errors.Is(err, ErrRefused) {
				t.Errorf("%s through a proxy elsewhere: %v, want ErrRefused", u, err)
			}
		}
	}
}

// An https request may go through a proxy on another machine, whose URL may end with a slash, as many tools write it.
func TestProxyElsewhere(t *testing.T) {
	for _, raw := range []string{"http://proxy.example.com:3128/", "http://proxy.example.com:443", "http://proxy.example.com", "https://proxy.example.com", "https://proxy.example.com:80"} {
		g := client(t, Policy{AllowHTTPLoopback: true}, Options{ProxyURL: raw}).Transport.(*guard)
		if err := g.check(&url.URL{Scheme: "https", Host: "api.example.com"}); err != nil || g.proxy.String() != raw {
			t.Errorf("https through %s: %v by %s, want nil", raw, err, g.proxy)
		}
	}
}

func TestClientOptions(t *testing.T) {
	cert, key := lab.PairPEM(lab.NewAuthority().Issue(nil))
	tests := []struct {
		name   string
		policy Policy
		o      Options
		want   string
	}{
		{"no PEM", Policy{}, Options{CAPEM: "x"}, "ca_pem: item 1"},
		{"a key as CA", Policy{}, Options{CAPEM: key}, "ca_pem: item 1"},
		{"text after the CA", Policy{}, Options{CAPEM: cert + "x"}, "ca_pem: item 2"},
		{"a certificate that is none", Policy{}, Options{CAPEM: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"}, "ca_pem: item 1"},
		{"certificate alone", Policy{}, Options{ClientCert: cert}, "client_cert, client_key: one without"},
		{"key alone", Policy{}, Options{ClientKey: key}, "client_cert, client_key: one without"},
		{"pair that is none", Policy{}, Options{ClientCert: cert, ClientKey: cert}, "client_cert, client_key: not a certificate"},
		{"proxy with user", Policy{}, Options{ProxyURL: "http://u:p@proxy.example.com:3128"}, "proxy_url: has a user"},
		{"http proxy's default port", Policy{}, Options{ProxyURL: "http://proxy.example.com:80"}, "proxy_url: names the default port"},
		{"https proxy's default port", Policy{}, Options{ProxyURL: "https://proxy.example.com:443"}, "proxy_url: names the default port"},
		{"proxy with query", Policy{}, Options{ProxyURL: "http://proxy.example.com:3128?x"}, "proxy_url: has a query"},
		{"proxy in capitals", Policy{}, Options{ProxyURL: "http://Proxy.example.com:3128"}, "proxy_url: "},
		{"proxy without host", Policy{}, Options{ProxyURL: "http://:3128"}, "proxy_url: "},
		{"proxy with path", Policy{}, Options{ProxyURL: "http://proxy.example.com:3128/x"}, "proxy_url: has a path"},
		{"proxy of another kind", Policy{}, Options{ProxyURL: "socks5://proxy.example.com:1080"}, "proxy_url: not an http or https URL"},
		{"https proxy that would see the certificate", Policy{}, Options{ProxyURL: "https://proxy.example.com", ClientCert: cert, ClientKey: key}, "proxy_url: an https proxy"},
		{"negative timeout", Policy{}, Options{Timeout: -1}, "negative"},
		{"negative connection limit", Policy{}, Options{MaxConns: -1}, "negative"},
		{"policy", Policy{Hosts: []string{"A"}}, Options{}, "egress_hosts: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.policy.Client(tt.o)
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Client: %v, want %q", err, tt.want)
			}
			if err != nil && (strings.Contains(err.Error(), "u:p") || strings.Contains(err.Error(), "PRIVATE")) {
				t.Errorf("the error repeats a secret: %v", err)
			}
		})
	}
}

func TestEveryClientHasBounds(t *testing.T) {
	c := client(t, Policy{}, Options{})
	tr := c.Transport.(*guard).transport
	if c.Timeout <= 0 || tr.TLSHandshakeTimeout <= 0 || tr.ResponseHeaderTimeout <= 0 || tr.MaxResponseHeaderBytes <= 0 ||
		tr.MaxConnsPerHost <= 0 || tr.MaxIdleConns <= 0 || tr.MaxIdleConnsPerHost <= 0 || tr.IdleConnTimeout <= 0 {
		t.Errorf("a bound is missing: client %+v, transport %+v", c, tr)
	}
	if tr.TLSClientConfig.MinVersion != tls.VersionTLS12 || tr.TLSClientConfig.InsecureSkipVerify || c.Jar != nil {
		t.Error("want TLS 1.2 at least, verified, and no cookies")
	}
}

func TestTimeoutEndsCall(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer srv.Close()
	defer close(release)
	_, err := get(t, client(t, Policy{AllowHTTPLoopback: true}, Options{Timeout: 20 * time.Millisecond}), srv.URL)
	if got := Cause(err); got != "no answer in time" {
		t.Errorf("Cause(%v) = %q, want no answer in time", err, got)
	}
}

func TestReadAll(t *testing.T) {
	if b, err := ReadAll(strings.NewReader("12345"), 5); string(b) != "12345" || err != nil {
		t.Errorf("at the limit: %q, %v; want all of it", b, err)
	}
	if b, err := ReadAll(strings.NewReader("123456"), 5); b != nil || !errors.Is(err, ErrTooLarge) {
		t.Errorf("beyond the limit: %q, %v; want nothing and ErrTooLarge", b, err)
	}
	if _, err := ReadAll(io.MultiReader(strings.NewReader("1"), errReader{}), 5); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("reader's error: %v, want it", err)
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestCause(t *testing.T) {
	for want, err := range map[string]error{
		"the answer is too large":                ErrTooLarge,
		"the call was given up":                  context.Canceled,
		"the host's name was not found":          &net.DNSError{Err: "CANARY", Name: "CANARY", IsNotFound: true},
		"no name server told the host's address": &net.OpError{Op: "dial", Err: &net.DNSError{Err: "i/o timeout", Name: "CANARY", IsTimeout: true}},
		"the server's certificate is for another host; the URL must have a name or address that is in it": x509.HostnameError{Certificate: &x509.Certificate{}, Host: "CANARY"},
		"the server's certificate has expired, or is not valid yet":                                       x509.CertificateInvalidError{Reason: x509.Expired, Detail: "CANARY"},
		"the server's certificate is not valid for a server":                                              x509.CertificateInvalidError{Reason: x509.IncompatibleUsage, Detail: "CANARY"},
		"no answer in time":                          os.ErrDeadlineExceeded,
		"connection refused":                         syscall.ECONNREFUSED,
		"the connection failed":                      errors.New("CANARY"),
		"the proxy of proxy_url: connection refused": &net.OpError{Op: "proxyconnect", Err: syscall.ECONNREFUSED},
		"the server ended the TLS connection; it may want client_cert, or speak no TLS 1.2":                    &net.OpError{Op: "remote error", Err: tls.AlertError(40)},
		"the server does not take the client certificate, or wants one; set client_cert and client_key":        &net.OpError{Op: "remote error", Err: tls.AlertError(116)},
		"refused by the egress rules: 10.0.0.1 is a private address; list its range in config's allow_private": Policy{}.judge(netip.MustParseAddr("10.0.0.1")),
	} {
		if got := Cause(&url.Error{Op: "Get", URL: "https://CANARY", Err: err}); got != want {
			t.Errorf("Cause of %v: %q, want %q", err, got, want)
		}
	}
}

// What a server or proxy wrote must not reach a log by way of an error.
func TestCauseRepeatsNothing(t *testing.T) {
	const canary = "CANARY-7f3a"
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 407 "+canary+"\r\n\r\n")
		_ = conn.Close()
	}))
	defer proxy.Close()
	_, err := get(t, client(t, loopbackOnly, Options{ProxyURL: proxy.URL}), "https://example.com/"+canary)
	if err == nil || !strings.Contains(err.Error(), "/"+canary) {
		t.Fatalf("the test has lost its point: %v", err)
	}
	if got, want := Cause(err), "the proxy of proxy_url does not connect to the server: it answered with status 407"; got != want {
		t.Errorf("Cause = %q, want %q", got, want)
	}
	srv := newTLSServer(&counter{})
	defer srv.Close()
	_, err = get(t, client(t, loopbackOnly, Options{}), srv.URL)
	if got := Cause(err); got != "the server's certificate is not signed by a trusted CA; set ca_pem to its CA" {
		t.Errorf("Cause = %q, want the certificate named", got)
	}
	_, err = get(t, client(t, Policy{}, Options{}), srv.URL+"/"+canary)
	want := "refused by the egress rules: 127.0.0.1 is a private address; list its range in config's allow_private"
	if got := Cause(err); got != want {
		t.Errorf("Cause = %q, want %q", got, want)
	}
	closed := httptest.NewServer(nil)
	closed.Close()
	_, err = get(t, client(t, Policy{AllowHTTPLoopback: true}, Options{}), closed.URL)
	if got := Cause(err); got != "connection refused" {
		t.Errorf("Cause = %q, want connection refused", got)
	}
}
