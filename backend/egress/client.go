// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	defaultTimeout  = 10 * time.Second
	defaultMaxConns = 32
	dialTimeout     = 3 * time.Second
	tlsTimeout      = 5 * time.Second
	idleTimeout     = 60 * time.Second
	maxHeaderBytes  = 64 << 10
)

// ErrTooLarge is returned by ReadAll when there is more to read than its limit.
var ErrTooLarge = errors.New("answer too large")

// Options are the settings in which clients of one policy differ. The zero Options is a plain client.
type Options struct {
	// CAPEM holds certificates that replace the system's roots: with it, only these are trusted. Empty means the system's.
	CAPEM string
	// ClientCert and ClientKey, in PEM, are shown to a server that asks for a certificate. Both or none.
	ClientCert, ClientKey string
	// ProxyURL is an http or https proxy; empty means none, and the environment's proxy variables are never read. Its host
	// must be in the policy's Hosts, and its address is then the one that is dialled and judged: the proxy looks up names,
	// so the policy sees of the server only its name (or address literal).
	ProxyURL string
	// Timeout bounds a whole call, reading the body included; 0 means 10 s.
	Timeout time.Duration
	// MaxConns bounds the connections to one host; further calls wait. 0 means 32.
	MaxConns int
}

// Client makes a client that calls only what the policy permits. It follows no redirect (a 3xx is an answer like any
// other), keeps no cookies, speaks HTTP/1.1 over TLS 1.2 or newer, and undoes no compression, so that what is read is what
// was sent. The errors name the API field that is wrong. The client may be shared; its owner should close its idle
// connections when done.
func (p Policy) Client(o Options) (*http.Client, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	tlsConfig, err := o.tlsConfig()
	if err != nil {
		return nil, err
	}
	proxy, err := p.parseProxy(o)
	if err != nil {
		return nil, err
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.MaxConns == 0 {
		o.MaxConns = defaultMaxConns
	}
	if o.Timeout < 0 || o.MaxConns < 0 {
		return nil, errors.New("timeout or connection limit: negative")
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true) // one call, one connection: a lost connection leaves one call's outcome unknown
	transport := &http.Transport{
		DialContext:            p.dial,
		TLSClientConfig:        tlsConfig,
		TLSHandshakeTimeout:    min(tlsTimeout, o.Timeout),
		ResponseHeaderTimeout:  o.Timeout,
		MaxResponseHeaderBytes: maxHeaderBytes,
		MaxConnsPerHost:        o.MaxConns,
		MaxIdleConns:           o.MaxConns,
		MaxIdleConnsPerHost:    o.MaxConns, // a caller with many calls soon calls again, and a handshake costs more than a call
		IdleConnTimeout:        idleTimeout,
		DisableCompression:     true,
		Protocols:              &protocols,
	}
	if proxy != nil {
		transport.Proxy = http.ProxyURL(proxy)
		transport.OnProxyConnectResponse = judgeProxy
	}
	return &http.Client{
		Transport:     &guard{policy: p, proxy: proxy, transport: transport},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       o.Timeout,
	}, nil
}

func (o Options) tlsConfig() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAPEM != "" {
		pool, err := parseCAs(o.CAPEM)
		if err != nil {
			return nil, fmt.Errorf("ca_pem: %v", err)
		}
		c.RootCAs = pool
	}
	if (o.ClientCert == "") != (o.ClientKey == "") {
		return nil, errors.New("client_cert, client_key: one without the other; want both or none")
	}
	if o.ClientCert != "" {
		pair, err := tls.X509KeyPair([]byte(o.ClientCert), []byte(o.ClientKey))
		if err != nil { // the text of err could quote the certificate or key
			return nil, errors.New("client_cert, client_key: not a certificate and its key in PEM")
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// parseCAs accepts certificates and nothing else: if part of a bundle were skipped silently, that would be noticed only in
// an outage.
func parseCAs(text string) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	rest := []byte(text)
	for n := 1; len(strings.TrimSpace(string(rest))) > 0; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("item %d is not a certificate in PEM", n)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("item %d is not a certificate", n)
		}
		pool.AddCert(cert)
	}
	return pool, nil
}

// parseProxy checks the proxy's URL; nil means no proxy.
func (p Policy) parseProxy(o Options) (*url.URL, error) {
	if o.ProxyURL == "" {
		return nil, nil
	}
	switch {
	case !strings.HasPrefix(o.ProxyURL, "http://") && !strings.HasPrefix(o.ProxyURL, "https://"):
		return nil, errors.New("proxy_url: not an http or https URL; want for example http://proxy.example.com:3128")
	case strings.Contains(o.ProxyURL, "@"):
		return nil, errors.New("proxy_url: has a user; a proxy that wants a password is not supported")
	}
	u, err := parseBase(o.ProxyURL)
	if err != nil {
		return nil, fmt.Errorf("proxy_url: %w", err)
	}
	// Checked as https even if the proxy is spoken to over http, as most are: it sees only a host's name and then TLS that
	// it cannot read.
	if err := p.Check(&url.URL{Scheme: "https", Host: u.Host}); err != nil {
		return nil, fmt.Errorf("proxy_url: %w", err)
	}
	switch {
	case u.Path != "" && u.Path != "/":
		return nil, errors.New("proxy_url: has a path; want scheme, host and port only")
	case u.Scheme == "https" && o.ClientCert != "":
		return nil, errors.New("proxy_url: an https proxy would be shown client_cert; use an http proxy")
	}
	return u, nil
}

// errProxy is in the chain of errors that say what a proxy answered instead of connecting.
var errProxy = errors.New("the proxy of proxy_url does not connect to the server")

// judgeProxy checks a proxy's answer to CONNECT. It keeps nothing of the answer's text, which net/http would repeat.
func judgeProxy(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	return fmt.Errorf("%w: it answered with status %d", errProxy, resp.StatusCode)
}

// dial connects to an address that the policy permits. The check sits behind the look-up and before the connection, so
// that a name whose answer changes in between gains nothing.
func (p Policy) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	d := &net.Dialer{
		Timeout: dialTimeout,
		Control: func(_, resolved string, _ syscall.RawConn) error { return p.judgeDial(host, resolved) },
	}
	return d.DialContext(ctx, network, address)
}

// judgeDial judges the address and port to which a dialled host was resolved.
func (p Policy) judgeDial(host, resolved string) error {
	to, err := netip.ParseAddrPort(resolved)
	if err != nil {
		return fmt.Errorf("%w: not an address", ErrRefused)
	}
	// http is permitted to localhost by name, so the name must mean a loopback address, whatever a resolver says.
	if host == localhost && !to.Addr().Unmap().IsLoopback() {
		return fmt.Errorf("%w: localhost is not this machine", ErrRefused)
	}
	return p.judge(to.Addr())
}

// guard checks each request's URL before the transport sees it.
type guard struct {
	policy    Policy
	proxy     *url.URL
	transport *http.Transport
}

func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := g.check(r.URL); err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // a RoundTripper must close it; the error is of no use to anybody
		}
		return nil, err
	}
	return g.transport.RoundTrip(r)
}

func (g *guard) check(u *url.URL) error {
	if err := g.policy.Check(u); err != nil {
		return err
	}
	if g.proxy != nil && isLoopbackHost(u.Hostname()) && !isLoopbackHost(g.proxy.Hostname()) {
		return fmt.Errorf("%w: through a proxy elsewhere loopback would be the proxy's own; take proxy_url away", ErrRefused)
	}
	return nil
}

// CloseIdleConnections is called by http.Client's method of the same name.
func (g *guard) CloseIdleConnections() { g.transport.CloseIdleConnections() }

// ReadAll reads r to its end, but no more than limit bytes: beyond them it returns ErrTooLarge and no data. Other errors are
// r's own.
func ReadAll(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: larger than %d bytes", ErrTooLarge, limit)
	}
	return data, nil
}

// Cause says in this package's own words why a call got no answer, and how to fix that if it can tell. The errors of
// net/http and crypto/tls may quote the server or the proxy (a status line, a certificate's names) and the URL; this text
// never does.
func Cause(err error) string {
	switch {
	case errors.Is(err, ErrRefused):
		return own(err, ErrRefused)
	case errors.Is(err, errProxy):
		return own(err, errProxy)
	case errors.Is(err, ErrTooLarge):
		return "the answer is too large"
	case errors.Is(err, context.Canceled):
		return "the call was given up"
	}
	var proxy *net.OpError
	if errors.As(err, &proxy) && proxy.Op == "proxyconnect" {
		return "the proxy of proxy_url: " + connectionCause(proxy.Err)
	}
	return connectionCause(err)
}

// connectionCause says why a connection to a server failed or broke.
func connectionCause(err error) string {
	var (
		dns     *net.DNSError
		record  tls.RecordHeaderError
		timeout interface{ Timeout() bool }
	)
	switch {
	case errors.As(err, &dns):
		if dns.IsNotFound {
			return "the host's name was not found"
		}
		return "no name server told the host's address"
	case CertificateRefused(err):
		return "the server does not take the client certificate, or wants one; set client_cert and client_key"
	case alert(err) != "":
		return "the server ended the TLS connection; it may want client_cert, or speak no TLS 1.2"
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return "what answers there does not speak TLS"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	}
	return certificateCause(err)
}

// certificateCause says what is wrong with a server's certificate, or that the connection failed if err is about something
// else.
func certificateCause(err error) string {
	var (
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &unknown):
		return "the server's certificate is not signed by a trusted CA; set ca_pem to its CA"
	case errors.As(err, &name):
		return "the server's certificate is for another host; the URL must have a name or address that is in it"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the server's certificate has expired, or is not valid yet"
	case errors.As(err, &invalid):
		return "the server's certificate is not valid for a server"
	}
	return "the connection failed"
}

// certificateAlerts are the alerts by which a server says that it does not take a client's certificate (RFC 8446 section
// 6.2).
var certificateAlerts = []tls.AlertError{42, 43, 44, 45, 46, 48, 49, 116}

// CertificateRefused reports whether the server refused the client's certificate, or missed one. With TLS 1.3 the client
// learns this only when it reads the answer to its first request, at which the server never looks.
func CertificateRefused(err error) bool {
	text := alert(err)
	return slices.ContainsFunc(certificateAlerts, func(a tls.AlertError) bool { return a.Error() == text })
}

// alert returns the text of the TLS alert with which the server ended a connection, "" if it sent none. crypto/tls does not
// export its type for received alerts, but their texts are those of tls.AlertError.
func alert(err error) string {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" || op.Err == nil {
		return ""
	}
	return op.Err.Error()
}

// own returns the text of our own error inside err, which says more than its sentinel. The errors that wrap it (*url.Error,
// *net.OpError) repeat the URL.
func own(err, sentinel error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil || inner == sentinel {
			return err.Error()
		}
		err = inner
	}
}
