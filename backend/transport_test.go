// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// serveAs runs a handler with TLS as config says, and returns its address.
func (w *world) serveAs(h http.Handler, config *tls.Config) string {
	w.t.Helper()
	server := httptest.NewUnstartedServer(h)
	server.TLS, server.Config.ErrorLog = config, log.New(io.Discard, "", 0) // it reports the handshakes that fail
	server.StartTLS()
	w.t.Cleanup(server.Close)
	return server.URL
}

// wantRefusal wants an exchange to be refused for the reason, with its detail in the log, and nothing to have come of it.
func (w *world) wantRefusal(role, reason, detail string) {
	w.t.Helper()
	made := w.keys.Calls(lab.OpCreate)
	got, status := reasonOf(w.exchange(role, w.token(nil)))
	if got != reason || status != reasons[reason].Status {
		w.t.Errorf("refused for %q (%d); want %s", got, status, reason)
	}
	if line := logLine(w, `reason=`+reason); !strings.Contains(line, detail) {
		w.t.Errorf("the log says %q; want %q", line, detail)
	}
	if calls := w.keys.Calls(lab.OpCreate); calls != made || len(w.ledgerEntries()) != 0 {
		w.t.Errorf("%d calls reached the target, and the ledger has %v", calls-made, w.ledgerEntries())
	}
	w.logs.Reset()
}

// An operator who meets a server's certificate, and a server who wants the engine's, is led from one to the next by the log.
func TestCertificatesAtATarget(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	authority, staff := lab.NewAuthority(), lab.NewAuthority()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(staff.PEM()))
	address := w.serveAs(w.keys, &tls.Config{Certificates: []tls.Certificate{authority.Issue(nil)}, MaxVersion: tls.VersionTLS12, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool})
	w.write("targets/inner", map[string]any{"driver": "http", "url": address, "profile": acme, "credential": "token=" + adminToken, "allowed_roles": "*"})
	w.write("roles/inner", map[string]any{"trust": "main", "target": "inner", "parameters": "project=widget"})
	w.wantRefusal("inner", reasonTargetBusy, "exchange: target is busy: the server's certificate is not signed by a trusted CA; set ca_pem to its CA")
	set := func(data map[string]any) {
		t.Helper()
		data["credential"] = "token=" + adminToken
		w.write("targets/inner", data)
	}
	set(map[string]any{"ca_pem": w.ca})
	w.wantRefusal("inner", reasonTargetBusy, "set ca_pem to its CA")
	set(map[string]any{"ca_pem": authority.PEM()})
	w.wantRefusal("inner", reasonTargetBusy, "the server ended the TLS connection; it may want client_cert")

	cert, key := lab.PairPEM(staff.Issue(nil))
	_, otherKey := lab.PairPEM(staff.Issue(nil))
	w.refused("targets/inner", map[string]any{"client_cert": cert}, "client_cert")
	w.refused("targets/inner", map[string]any{"client_cert": cert, "client_key": otherKey}, "client_cert")
	strange, strangeKey := lab.PairPEM(authority.Issue(nil))
	set(map[string]any{"client_cert": strange, "client_key": strangeKey})
	w.wantRefusal("inner", reasonTargetDenied, "the server does not take the client certificate, or wants one; set client_cert and client_key")
	set(map[string]any{"client_cert": cert, "client_key": key})
	w.revoke(w.issue("inner"))
	if shown := w.read("targets/inner"); shown["client_key"] != nil || shown["client_key_set"] != true {
		t.Errorf("a read shows %v", shown)
	}
	if strings.Contains(w.logs.String(), "PRIVATE KEY") {
		t.Error("the key is in the log")
	}
}

// The addresses to which a name leads are judged when they are dialled, whatever they were when the target was written.
func TestNameThatLeadsInside(t *testing.T) {
	w := newWorld(t)
	authority := lab.NewAuthority()
	address := w.serveAs(w.keys, &tls.Config{Certificates: []tls.Certificate{authority.Issue(func(c *x509.Certificate) { c.DNSNames = []string{"keys.acme.example"} })}})
	_, port, err := net.SplitHostPort(strings.TrimPrefix(address, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	var at atomic.Value
	resolving(t, func() string { return at.Load().(string) })
	at.Store("127.0.0.1")
	w.write("targets/named", map[string]any{"driver": "http", "url": "https://keys.acme.example:" + port, "profile": acme, "ca_pem": authority.PEM(), "credential": "token=" + adminToken, "allowed_roles": "*"})
	w.write("roles/named", map[string]any{"trust": "main", "target": "named", "parameters": "project=widget"})
	w.revoke(w.issue("named"))
	for ip, detail := range map[string]string{
		"10.0.0.1": "refused by the egress rules: 10.0.0.1 is a private address; list its range in config's allow_private", "192.168.1.1": "allow_private", "172.16.0.1": "allow_private",
		"100.64.0.1": "allow_private", "fd00::1": "allow_private", "::1": "allow_private",
		"169.254.169.254": "refused by the egress rules: address 169.254.169.254 is never dialled", "0.0.0.0": "never dialled", "fe80::1": "never dialled",
		"64:ff9b::a9fe:a9fe": "never dialled", "::ffff:169.254.169.254": "never dialled", "100.100.100.200": "never dialled",
	} {
		w.write("targets/named", map[string]any{"description": ip}) // opens it anew, so that no connection is left
		at.Store(ip)
		w.wantRefusal("named", reasonEgress, detail)
	}
	w.write("config", map[string]any{"allow_private": "0.0.0.0/0,::/0"})
	for _, ip := range []string{"169.254.169.254", "0.0.0.0", "fe80::1", "64:ff9b::a9fe:a9fe", "fd00:ec2::254"} {
		at.Store(ip)
		w.wantRefusal("named", reasonEgress, "never dialled")
	}
}

// What egress_hosts no longer lists is not called, and what was issued there waits until it is listed again.
func TestEgressHostsThatAreNarrowed(t *testing.T) {
	w := newWorld(t)
	w.write("config", map[string]any{"egress_hosts": "127.0.0.1,*.acme.example"})
	resp := w.issue("deploy")
	w.refused("targets/other", map[string]any{"driver": "http", "url": "https://acme.example", "profile": acme, "credential": "token=x"}, "url")
	w.write("targets/other", map[string]any{"driver": "http", "url": "https://keys.acme.example", "profile": acme, "credential": "token=x"})
	w.write("config", map[string]any{"egress_hosts": "*.acme.example"})
	calls := w.keys.Calls(lab.OpCreate)
	if reason, _ := reasonOf(w.do(logical.ReadOperation, "creds/deploy", nil)); reason != reasonEgress || w.keys.Calls(lab.OpCreate) != calls {
		t.Errorf("refused for %q", reason)
	}
	_, _ = w.lease(logical.RevokeOperation, resp) // whatever Vault is told, nothing can have been sent
	if !w.keys.Valid(resp.Data["api_key"].(string)) || len(w.ledgerEntries()) == 0 {
		t.Error("a key that lives is not in the ledger")
	}
	w.write("config", map[string]any{"egress_hosts": "127.0.0.1"})
	w.settleAll()
	w.wantSettled()
}

// A target's own request_timeout ends its calls, and config's all that are longer.
func TestTimeOfACall(t *testing.T) {
	t.Parallel()
	for name, data := range map[string]map[string]map[string]any{
		"the target's": {"config": {"request_timeout": "20s"}, "targets/acme": {"request_timeout": "1s"}},
		"config's":     {"config": {"request_timeout": "1s"}, "targets/acme": {"request_timeout": "20s"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for path, each := range data {
				w.write(path, each)
			}
			w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindHang, Count: 1})
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
			defer cancel()
			resp, err := w.request(ctx, "slow", logical.UpdateOperation, "creds/deploy", map[string]any{"subject_token": w.token(nil)})
			if reason, _ := reasonOf(resp, err); reason != reasonOutcomeUnknown || ctx.Err() != nil {
				t.Errorf("got %q; want %s, before the caller's own time ends (%v)", reason, reasonOutcomeUnknown, ctx.Err())
			}
			if line := logLine(w, "reason="+reasonOutcomeUnknown); !strings.Contains(line, "no answer in time") {
				t.Errorf("the log says %q", line)
			}
			w.settleAll()
			w.wantSettled()
		})
	}
}

// Where a document sends the engine for tokens, the rules hold as they do for url.
func TestTokenEndpointElsewhere(t *testing.T) {
	w := newOAuthWorld(t)
	var address string
	address = w.serve(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(rw, `{"issuer": "`+address+`", "token_endpoint": "https://id.login.example/token"}`)
	}))
	w.write("config", map[string]any{"egress_hosts": "127.0.0.1,*.login.example,10.0.0.1,169.254.169.254"})
	fields := map[string]any{"driver": "oauth", "url": address, "ca_pem": w.ca, "grant": "client_credentials", "client_auth": "client_secret_basic", "client_id": "vault", "client_secret": clientSecret,
		"revocation_url": "none", "allowed_roles": "*"}
	for _, at := range []string{"https://10.0.0.1", "https://169.254.169.254", "https://login.example", "http://127.0.0.1:1"} {
		fields["token_hosts"] = strings.TrimPrefix(strings.TrimPrefix(at, "http://"), "https://")
		if !strings.HasPrefix(at, "http:") {
			w.refused("targets/elsewhere", fields, "token_hosts")
			delete(fields, "token_hosts")
		}
		fields["token_url"] = at + "/token"
		w.refused("targets/elsewhere", fields, "token_url")
		delete(fields, "token_url")
	}
	fields["token_hosts"] = "id.login.example"
	w.write("targets/elsewhere", fields)
	w.write("roles/elsewhere", map[string]any{"trust": "main", "target": "elsewhere"})
	resolving(t, func() string { return "10.0.0.1" })
	w.wantRefusal("elsewhere", reasonEgress, "10.0.0.1 is a private address; list its range in config's allow_private")
	w.write("config", map[string]any{"egress_hosts": "127.0.0.1"})
	w.wantRefusal("elsewhere", reasonEgress, "no longer fits config: token_hosts")
}

// resolving has all names lead to one address, which may change.
func resolving(t *testing.T, to func() string) {
	t.Helper()
	system := net.DefaultResolver
	net.DefaultResolver = lab.Names(func(string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(to())} }).Resolver()
	t.Cleanup(func() { net.DefaultResolver = system })
}

// A stored secret never goes another way than the one that it was given for, whatever else is changed beside that: all sets of
// changes, each with all sets of secrets that are told again.
func TestSecretsAreToldAgain(t *testing.T) {
	w := newOwned(t, target.SourceClientCredentials)
	authority := lab.NewAuthority()
	cert, key := lab.PairPEM(authority.Issue(nil))
	w.write("targets/own", map[string]any{"client_cert": cert, "client_key": key, "credential": "token=x"})
	first, err := w.targetNoun.table.get(t.Context(), w.store, "own")
	if err != nil {
		t.Fatal(err)
	}
	// What serves where: the credential and the client's key at the target, the secret at the token endpoint.
	guarded := map[string][]string{
		"url":         {"credential", "client_key"},
		"profile":     {"credential", "client_key"},
		"client_cert": {"credential", "client_key"},
		"token_url":   {"client_secret"},
		"ca_pem":      {"credential", "client_key", "client_secret"},
		"proxy_url":   {"credential", "client_key", "client_secret"},
		"description": nil,
	}
	changes := map[string]any{
		"url": first.URL + "/v2", "profile": first.Profile + "\n# changed", "client_cert": cert + "\n", "token_url": first.TokenURL + "/v2",
		"ca_pem": first.CAPEM + authority.PEM(), "proxy_url": "http://127.0.0.1:3128",
		"description": "x",
	}
	secrets := map[string]any{"credential": "token=y", "client_key": key, "client_secret": "y"}
	for _, changed := range subsets("url", "profile", "client_cert", "token_url", "ca_pem", "proxy_url", "description") {
		for _, told := range subsets("credential", "client_key", "client_secret") {
			data := map[string]any{}
			asked := map[string]bool{}
			for _, field := range changed {
				data[field] = changes[field]
				for _, secret := range guarded[field] {
					asked[secret] = true
				}
			}
			for _, secret := range told {
				data[secret] = secrets[secret]
				delete(asked, secret)
			}
			resp, err := w.do(logical.UpdateOperation, "targets/own", data)
			reason, _ := reasonOf(resp, err)
			if (reason == "") != (len(asked) == 0) {
				t.Errorf("changing %v and telling %v: %q; want %v asked for", changed, told, reason, asked)
			}
			if reason != "" && !asked[strings.TrimSuffix(strings.Fields(resp.Error().Error())[1], ":")] {
				t.Errorf("changing %v and telling %v: %v; want one of %v asked for", changed, told, resp.Error(), asked)
			}
			if err := w.targetNoun.table.put(t.Context(), w.store, "own", first); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// subsets are all choices of names, none and all among them.
func subsets(names ...string) [][]string {
	out := [][]string{nil}
	for _, name := range names {
		for _, chosen := range out {
			out = append(out, append(slices.Clone(chosen), name))
		}
	}
	return out
}

// A target stays where it is and what it is, whatever is told again with it.
func TestOriginAndDriverStay(t *testing.T) {
	w := newWorld(t).withNuGet()
	w.write("config", map[string]any{"allow_http_loopback": true})
	host := strings.TrimPrefix(w.keysURL, "https://")
	_, port, err := net.SplitHostPort(host)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]map[string]any{
		"another port":    {"url": "https://127.0.0.1:1"},
		"another host":    {"url": "https://localhost:" + port},
		"another scheme":  {"url": "http://" + host},
		"without port":    {"url": "https://127.0.0.1"},
		"public":          {"url": "https://api.acme.example"},
		"another driver":  {"driver": "nuget"},
		"no driver":       {"driver": nil},
		"driver and home": {"driver": "nuget", "url": nil},
	} {
		field := "url"
		if _, named := change["driver"]; named {
			field = "driver"
		}
		change["credential"] = "token=" + adminToken
		for _, op := range []logical.Operation{logical.UpdateOperation, logical.PatchOperation} {
			resp, err := w.do(op, "targets/acme", change)
			if reason, _ := reasonOf(resp, err); reason != reasonBadRequest || !strings.HasPrefix(resp.Error().Error(), reasonBadRequest+": "+field) {
				t.Errorf("%s: %v %v; want a bad request of %s", name, resp, err, field)
			}
		}
	}
	w.refused("targets/nuget", map[string]any{"url": nil}, "url") // its default is the public gallery
	w.write("targets/acme", map[string]any{"url": w.keysURL + "/", "credential": "token=" + adminToken})
	w.revoke(w.issue("deploy"))
}
