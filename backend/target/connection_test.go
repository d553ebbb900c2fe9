// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

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
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

var loopback = egress.Policy{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}

// engineCertificate is one by which a client shows that it is engine, and its key.
func engineCertificate() (cert, key string) {
	return lab.PairPEM(lab.NewAuthority().Issue(func(c *x509.Certificate) { c.Subject.CommonName = "engine" }))
}

// secured is an API with TLS as a test wants it. It counts the requests that reach it and the connections that are made.
type secured struct {
	*httptest.Server
	asked, connected, open, most atomic.Int64
}

// secure starts one; without a configuration it speaks no TLS.
func secure(t *testing.T, config *tls.Config, handler http.HandlerFunc) *secured {
	t.Helper()
	s := &secured{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		handler(w, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // it reports the handshakes that fail
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			s.connected.Add(1)
			if now := s.open.Add(1); now > s.most.Load() {
				s.most.Store(now)
			}
		case http.StateClosed, http.StateHijacked:
			s.open.Add(-1)
		}
	}
	if config == nil {
		s.Start()
	} else {
		s.TLS = config
		s.StartTLS()
	}
	t.Cleanup(s.Close)
	return s
}

// made answers as the acme API does.
func made(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodPost:
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"id": "k1", "secret": "s3cret", "expires_at": "2031-01-01T00:00:00Z"}`)
	case http.MethodDelete:
		w.WriteHeader(http.StatusNoContent)
	}
}

// openAcme opens a target at url whose configuration change changes.
func openAcme(t *testing.T, url string, change func(*target.Config)) *target.Target {
	t.Helper()
	config := acmeConfig()
	config.URL, config.Egress = url, loopback
	if change != nil {
		change(&config)
	}
	opened, err := target.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(opened.Close)
	return opened
}

// exchange asks acme for a key.
func exchange(t *testing.T, to *target.Target) (target.Key, error) {
	t.Helper()
	return to.Exchange(t.Context(), ask(t, to, "", map[string]any{"project": "widget"}))
}

// Whatever is wrong with TLS, nothing was sent that the server could have acted on, and the error says what to mend.
func TestServerAndEngineProveWhoTheyAre(t *testing.T) {
	const untrusted = "target is busy: the server's certificate is not signed by a trusted CA; set ca_pem to its CA"
	const otherHost = "target is busy: the server's certificate is for another host; the URL must have a name or address that is in it"
	authority, other := lab.NewAuthority(), lab.NewAuthority()
	as := func(a *lab.Authority) func(*target.Config) {
		return func(c *target.Config) { c.ClientCert, c.ClientKey = lab.PairPEM(a.Issue(nil)) }
	}
	expired := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM([]byte(authority.PEM()))
	mutual := func(version uint16) func(*tls.Config) {
		return func(c *tls.Config) {
			c.MinVersion, c.MaxVersion, c.ClientAuth, c.ClientCAs = version, version, tls.RequireAndVerifyClientCert, clients
		}
	}
	for name, c := range map[string]struct {
		certificate func(*x509.Certificate)
		server      func(*tls.Config)
		config      func(*target.Config)
		want        string // "" = a key
	}{
		"private CA":         {},
		"system's CAs":       {nil, nil, func(c *target.Config) { c.CAPEM = "" }, untrusted},
		"another CA":         {nil, nil, func(c *target.Config) { c.CAPEM = other.PEM() }, untrusted},
		"both CAs":           {nil, nil, func(c *target.Config) { c.CAPEM = other.PEM() + authority.PEM() }, ""},
		"expired":            {expired, nil, nil, "target is busy: the server's certificate has expired, or is not valid yet"},
		"another name":       {func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"acme.example"} }, nil, nil, otherHost},
		"a name, no address": {func(c *x509.Certificate) { c.IPAddresses = nil }, nil, nil, otherHost},
		"another address":    {func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 2)} }, nil, nil, otherHost},
		"TLS 1.1":            {nil, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, nil, "target is busy: the server ended the TLS connection; it may want client_cert, or speak no TLS 1.2"},
		"TLS 1.2":            {nil, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, nil, ""},
		"mutual, 1.2":        {nil, mutual(tls.VersionTLS12), as(authority), ""},
		"mutual, 1.3":        {nil, mutual(tls.VersionTLS13), as(authority), ""},
	} {
		t.Run(name, func(t *testing.T) {
			config := &tls.Config{Certificates: []tls.Certificate{authority.Issue(c.certificate)}}
			if c.server != nil {
				c.server(config)
			}
			server := secure(t, config, made)
			opened := openAcme(t, server.URL, func(config *target.Config) {
				config.CAPEM = authority.PEM()
				if c.config != nil {
					c.config(config)
				}
			})
			key, err := exchange(t, opened)
			wantTold(t, err, c.want, false)
			if got := server.asked.Load() == 1; got != (c.want == "") || (key.Secret != "") != got {
				t.Errorf("%d requests reached the server, which yielded %v", server.asked.Load(), key)
			}
		})
	}
}

func TestServerWithoutTLS(t *testing.T) {
	server := secure(t, nil, made)
	_, err := exchange(t, openAcme(t, strings.Replace(server.URL, "http://", "https://", 1), nil))
	wantTold(t, err, "target is busy: what answers there does not speak TLS", false)
	if server.asked.Load() != 0 {
		t.Error("a request was sent without TLS")
	}
}

func TestClientCertificateAndKeyBelongTogether(t *testing.T) {
	cert, _ := engineCertificate()
	_, key := engineCertificate()
	for name, c := range map[string]struct{ cert, key, want string }{
		"key alone":     {"", key, "client_cert: one without the other; want both or none"},
		"another's key": {cert, key, "client_cert: not a certificate and its key in PEM"},
	} {
		config := acmeConfig()
		config.ClientCert, config.ClientKey = c.cert, c.key
		_, err := target.Open(config)
		if got := fieldError(t, err); got != c.want {
			t.Errorf("%s: got %q; want %q", name, got, c.want)
		}
	}
}

// tunnel passes on to server whatever name is asked for, and writes it down.
func tunnel(server string, asked *atomic.Value) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Method + " " + r.Host)
		up, err := net.Dial("tcp", server)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		down, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			_ = up.Close()
			return
		}
		// Only now, for what the client sends from here on is ours alone.
		_, _ = io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(up, down); _ = up.Close() }()
		_, _ = io.Copy(down, up)
		_ = down.Close()
	}
}

func TestThroughAProxy(t *testing.T) {
	const canary = "canary-7f3a"
	authority := lab.NewAuthority()
	server := secure(t, &tls.Config{Certificates: []tls.Certificate{authority.Issue(func(c *x509.Certificate) { c.DNSNames = []string{"api.acme.example"} })}}, made)
	var asked atomic.Value
	for name, c := range map[string]struct {
		proxy http.HandlerFunc // nil = nobody is there
		want  string
	}{
		"passes on": {tunnel(server.Listener.Addr().String(), &asked), ""},
		"refuses": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusProxyAuthRequired)
			_, _ = io.WriteString(w, "<h1>"+canary+"</h1>")
		}, "target is busy: the proxy of proxy_url does not connect to the server: it answered with status 407"},
		"answers in the server's place": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, "<h1>"+canary+"</h1>")
		}, "target is busy: what answers there does not speak TLS"},
		"hangs": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "target is busy: no answer in time"},
		"down":  {nil, "target is busy: the proxy of proxy_url: connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			proxy := httptest.NewServer(c.proxy)
			if c.proxy == nil {
				proxy.Close()
			}
			defer proxy.Close()
			defer proxy.CloseClientConnections()
			server.asked.Store(0)
			opened := openAcme(t, "https://api.acme.example", func(config *target.Config) {
				config.CAPEM, config.ProxyURL = authority.PEM(), proxy.URL
				if name == "hangs" {
					config.RequestTimeout = 50 * time.Millisecond
				}
			})
			_, err := exchange(t, opened)
			wantTold(t, err, c.want, false)
			if got := server.asked.Load() == 1; got != (c.want == "") {
				t.Errorf("%d requests reached the server", server.asked.Load())
			}
			opened.Close()
		})
	}
	if got, want := asked.Load(), "CONNECT api.acme.example:443"; got != want {
		t.Errorf("the proxy was asked %v; want %s", got, want)
	}
}

// The egress rules hold for the proxy's address, and for what can be seen of the target's.
func TestProxyAndTargetObeyTheRules(t *testing.T) {
	const private = "is a private address; list its range in config's allow_private"
	for name, c := range map[string]struct {
		url, proxy string
		policy     egress.Policy
		want       string
	}{
		"proxy at a private address":    {"https://api.acme.example", "http://10.0.0.1:3128", loopback, "proxy_url: refused by the egress rules: 10.0.0.1 " + private},
		"metadata as a proxy":           {"https://api.acme.example", "http://169.254.169.254", loopback, "proxy_url: refused by the egress rules: address 169.254.169.254 is never dialled"},
		"proxy that is not listed":      {"https://api.acme.example", "http://proxy.acme.example:3128", egress.Policy{Hosts: []string{"api.acme.example"}}, `proxy_url: refused by the egress rules: host "proxy.acme.example" is not in egress_hosts of config`},
		"both listed":                   {"https://api.acme.example", "http://proxy.acme.example:3128", egress.Policy{Hosts: []string{"*.acme.example"}}, ""},
		"target that is not listed":     {"https://api.acme.example", "http://proxy.acme.example:3128", egress.Policy{Hosts: []string{"proxy.acme.example"}}, `url: refused by the egress rules: host "api.acme.example" is not in egress_hosts of config`},
		"target at a private address":   {"https://10.0.0.1", "http://127.0.0.1:3128", loopback, "url: refused by the egress rules: 10.0.0.1 " + private},
		"metadata by way of a proxy":    {"https://169.254.169.254", "http://127.0.0.1:3128", loopback, "url: refused by the egress rules: address 169.254.169.254 is never dialled"},
		"a password of the proxy's":     {"https://api.acme.example", "http://u:canary@127.0.0.1:3128", loopback, "proxy_url: has a user; a proxy that wants a password is not supported"},
		"of another kind":               {"https://api.acme.example", "socks5://127.0.0.1:1080", loopback, "proxy_url: not an http or https URL; want for example http://proxy.example.com:3128"},
		"with a path":                   {"https://api.acme.example", "http://127.0.0.1:3128/x", loopback, "proxy_url: has a path; want scheme, host and port only"},
		"http to loopback by way of it": {"http://127.0.0.1:1", "http://127.0.0.1:3128", egress.Policy{AllowHTTPLoopback: true}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			config := acmeConfig()
			config.URL, config.ProxyURL, config.Egress = c.url, c.proxy, c.policy
			_, err := target.Open(config)
			if got := fieldError(t, err); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// However a server delays, the call ends in its time or by its size, and a key that may have been made is not forgotten.
func TestSlowAndEndlessAnswers(t *testing.T) {
	wait := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	begin := func(w http.ResponseWriter) {
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"secret": "`)
		_ = http.NewResponseController(w).Flush()
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"no header": {wait, "outcome is unknown: no answer in time"},
		"half a body": {func(w http.ResponseWriter, r *http.Request) { begin(w); wait(w, r) },
			"outcome is unknown: no answer in time"},
		"a body without end": {func(w http.ResponseWriter, _ *http.Request) {
			begin(w)
			for {
				if _, err := io.WriteString(w, strings.Repeat("x", 1<<10)); err != nil {
					return
				}
			}
		}, "target's answer makes no sense: the answer has more than 4096 bytes"},
		"a header without end": {func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			_, err = io.WriteString(conn, "HTTP/1.1 201 Created\r\nX: ")
			for err == nil {
				_, err = io.WriteString(conn, strings.Repeat("x", 1<<10))
			}
		}, "outcome is unknown: the connection failed"},
	} {
		t.Run(name, func(t *testing.T) {
			server := secure(t, &tls.Config{}, c.answer)
			opened := openAcme(t, server.URL, func(config *target.Config) {
				config.CAPEM, config.MaxResponseBytes, config.RequestTimeout = caOf(server), 4<<10, 2*time.Second
				if strings.HasSuffix(name, "without end") { // its size ends the call, whatever the time
					config.RequestTimeout = 0
				}
			})
			_, err := exchange(t, opened)
			wantTold(t, err, c.want, true)
		})
	}
}

// A server that takes the connection and says nothing was sent nothing.
func TestHandshakeThatNeverComes(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	opened := openAcme(t, "https://"+listener.Addr().String(), func(c *target.Config) { c.RequestTimeout = 50 * time.Millisecond })
	_, err = exchange(t, opened)
	wantTold(t, err, "target is busy: no answer in time", false)
}

// One call after the other needs one handshake, and calls at once no more connections than concurrency permits.
func TestConnections(t *testing.T) {
	server := secure(t, &tls.Config{}, made)
	opened := openAcme(t, server.URL, func(c *target.Config) { c.CAPEM = caOf(server) })
	for range 25 {
		key, err := exchange(t, opened)
		if err != nil {
			t.Fatal(err)
		}
		if err := opened.Revoke(t.Context(), key.Handle); err != nil {
			t.Fatal(err)
		}
	}
	if asked, connected := server.asked.Load(), server.connected.Load(); asked != 50 || connected != 1 {
		t.Errorf("%d calls over %d connections; want 50 over 1", asked, connected)
	}

	const calls, atOnce = 12, 3
	var arrived sync.WaitGroup
	arrived.Add(atOnce)
	var first atomic.Int64
	busy := secure(t, &tls.Config{}, func(w http.ResponseWriter, r *http.Request) {
		if first.Add(1) <= atOnce { // all that may come at once are there together
			arrived.Done()
			arrived.Wait()
		}
		made(w, r)
	})
	opened = openAcme(t, busy.URL, func(c *target.Config) { c.CAPEM, c.Concurrency = caOf(busy), atOnce })
	var all sync.WaitGroup
	for range calls {
		all.Go(func() {
			if _, err := exchange(t, opened); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if asked, most, connected := busy.asked.Load(), busy.most.Load(), busy.connected.Load(); asked != calls || most != atOnce || connected > 2*atOnce {
		t.Errorf("%d calls over %d connections, %d of them at once; want %d over few, and %d at once", asked, connected, most, calls, atOnce)
	}
}

// caOf is the certificate by which a server of httptest is trusted.
func caOf(s *secured) string {
	return lab.CertificatePEM(s.Certificate())
}

// Nothing leads a call to where the rules forbid: no redirect, and no name that is moved there after it was looked at.
func TestNowhereElse(t *testing.T) {
	inside := secure(t, nil, made)
	for _, status := range []int{301, 302, 303, 307, 308} {
		server := secure(t, &tls.Config{}, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, inside.URL, status) })
		_, err := exchange(t, openAcme(t, server.URL, func(c *target.Config) { c.CAPEM = caOf(server) }))
		var e *target.Error
		if !errors.As(err, &e) || e.Status != status || !strings.Contains(e.Text, "redirects are not followed") {
			t.Errorf("%d: %v", status, err)
		}
	}
	if inside.asked.Load() != 0 {
		t.Error("a redirect was followed")
	}
}
