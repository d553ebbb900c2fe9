// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// net/http repeats requests without a body that have an idempotency key when a connection breaks that was in use before. A
// token that is good once would be sent twice.
func TestNothingIsSentTwice(t *testing.T) {
	for _, header := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
			for _, body := range []string{"", `{"name":"n"}`} {
				t.Run(header+" "+method+" "+body, func(t *testing.T) {
					var asked atomic.Int64
					server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						_, _ = io.Copy(io.Discard, r.Body)
						if r.Header.Get(header) != "k-1" || r.Method == "POST" && r.ContentLength != int64(len(body)) {
							t.Errorf("got headers %v, length %d", r.Header, r.ContentLength)
						}
						if asked.Add(1) > 1 {
							panic(http.ErrAbortHandler)
						}
						_, _ = io.WriteString(w, "{}")
					}))
					defer server.Close()
					opened, err := Open(Config{Driver: "http", Profile: base, URL: server.URL, Credential: map[string]string{"token": "t"}, Egress: egress.Policy{AllowHTTPLoopback: true}})
					if err != nil {
						t.Fatal(err)
					}
					defer opened.Close()
					for i, want := range []error{nil, ErrUnknown} {
						c := call{op: "exchange", method: method, header: http.Header{}, ok: []int{200}, wantBody: true}
						c.header.Set(header, "k-1")
						if body != "" {
							c.body = []byte(body)
						}
						if _, err := opened.api.do(t.Context(), c); !errors.Is(err, want) {
							t.Errorf("call %d: got %v; want %v", i+1, err, want)
						}
					}
					if got := asked.Load(); got != 2 {
						t.Errorf("the server got %d requests; want one for each of the two calls", got)
					}
				})
			}
		}
	}
}

// handshakes is a listener whose server takes part in a TLS handshake to its end, and lets the client be the first to leave
// if that fails: so the client always comes to read why.
type handshakes struct {
	net.Listener
	config *tls.Config
}

func (l handshakes) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		conn := tls.Server(raw, l.config)
		if conn.Handshake() == nil {
			return conn, nil
		}
		_, _ = io.Copy(io.Discard, raw)
		_ = raw.Close()
	}
}

// A server that does not take our certificate looks at no request: nothing happened, and asking again does not help. With
// TLS 1.3 the request is on its way before the client learns of it.
func TestClientCertificateRefused(t *testing.T) {
	authority := lab.NewAuthority()
	own, ownKey := lab.PairPEM(authority.Issue(nil))
	other, otherKey := lab.PairPEM(lab.NewAuthority().Issue(nil))
	old, oldKey := lab.PairPEM(authority.Issue(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }))
	const refused = "exchange: denied by the target: the server does not take the client certificate, or wants one; set client_cert and client_key"
	for name, c := range map[string]struct {
		version   uint16
		cert, key string
		want      string
		outcome   error
	}{
		"1.2, trusted": {tls.VersionTLS12, own, ownKey, "exchange: denied by the target: it refused (status 403)", ErrDenied},
		"1.3, trusted": {tls.VersionTLS13, own, ownKey, "exchange: denied by the target: it refused (status 403)", ErrDenied},
		"1.2, unknown": {tls.VersionTLS12, other, otherKey, refused, ErrDenied},
		"1.3, unknown": {tls.VersionTLS13, other, otherKey, refused, ErrDenied},
		"1.2, expired": {tls.VersionTLS12, old, oldKey, refused, ErrDenied},
		"1.3, expired": {tls.VersionTLS13, old, oldKey, refused, ErrDenied},
		"1.3, none":    {tls.VersionTLS13, "", "", refused, ErrDenied},
		// Before 1.3 there is no alert for this alone. Nothing was sent, which is all that is known.
		"1.2, none": {tls.VersionTLS12, "", "", "exchange: target is busy: the server ended the TLS connection; it may want client_cert, or speak no TLS 1.2", ErrBusy},
	} {
		t.Run(name, func(t *testing.T) {
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM([]byte(authority.PEM()))
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var asked atomic.Int64
			serving := &httptest.Server{Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				asked.Add(1)
				w.WriteHeader(403)
			})}, Listener: handshakes{listener, &tls.Config{
				Certificates: []tls.Certificate{authority.Issue(nil)}, MinVersion: c.version, MaxVersion: c.version, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
			}}}
			serving.Start()
			defer serving.Close()
			opened, err := Open(Config{
				Driver: "http", Profile: base, URL: "https://" + listener.Addr().String(), Credential: map[string]string{"token": "t"},
				CAPEM: authority.PEM(), ClientCert: c.cert, ClientKey: c.key, Egress: egress.Policy{AllowHTTPLoopback: true},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer opened.Close()
			_, err = opened.Exchange(t.Context(), request(nil))
			if err == nil || err.Error() != c.want || !errors.Is(err, c.outcome) || MayLive(err) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if trusted := strings.HasSuffix(name, "trusted"); (asked.Load() == 1) != trusted {
				t.Errorf("%d requests were looked at", asked.Load())
			}
		})
	}
}

// The same words after an answer was had over the connection, or amid one, prove nothing of the call.
func TestCertificateAlertTooLate(t *testing.T) {
	alert := &net.OpError{Op: "remote error", Err: tls.AlertError(42)}
	for reached, want := range map[reach]error{reachedNobody: ErrDenied, reachedHandshake: ErrDenied, reachedServer: ErrUnknown} {
		if err := lost(t.Context(), "exchange", reached, alert); !errors.Is(err, want) {
			t.Errorf("reached %d: got %v; want %v", reached, err, want)
		}
	}
	ours := &net.OpError{Op: "local error", Err: tls.AlertError(42)} // what we send when it is the server's that we do not take
	if err := lost(t.Context(), "exchange", reachedHandshake, ours); !errors.Is(err, ErrUnknown) {
		t.Errorf("an alert of our own: got %v; want an unknown outcome", err)
	}
}
