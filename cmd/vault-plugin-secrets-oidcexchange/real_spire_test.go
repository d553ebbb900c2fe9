// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

const spireServer = `
server {
  bind_address = "127.0.0.1"
  bind_port    = "%[2]s"
  trust_domain = "example.org"
  data_dir     = "%[1]s"
  socket_path  = "%[1]s/server.sock"
}
plugins {
  DataStore "sql" {
    plugin_data {
      database_type     = "sqlite3"
      connection_string = "%[1]s/data.sqlite3"
    }
  }
  NodeAttestor "join_token" {
    plugin_data {}
  }
  KeyManager "memory" {
    plugin_data {}
  }
}
`

const spireAgent = `
agent {
  server_address     = "127.0.0.1"
  server_port        = "%[2]s"
  trust_domain       = "example.org"
  data_dir           = "%[1]s/agent"
  socket_path        = "%[1]s/agent.sock"
  insecure_bootstrap = true
  join_token         = "%[3]s"
}
plugins {
  NodeAttestor "join_token" {
    plugin_data {}
  }
  KeyManager "memory" {
    plugin_data {}
  }
  WorkloadAttestor "unix" {
    plugin_data {}
  }
}
`

// startSPIRE starts SPIRE's server and an agent that gives this user's processes the SPIFFE IDs ids. It returns the agent's
// socket.
func startSPIRE(t *testing.T, ids ...string) (socket string, server func(args ...string) string) {
	t.Helper()
	bin, dir := realServer(t, "spire"), t.TempDir()
	_, port, err := net.SplitHostPort(freePort(t))
	if err != nil {
		t.Fatal(err)
	}
	configure := func(name, content string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	server = func(args ...string) string {
		t.Helper()
		return output(t, exec.CommandContext(t.Context(), filepath.Join(bin, "spire-server"), append(args, "-socketPath", filepath.Join(dir, "server.sock"))...))
	}
	background(t, exec.Command(filepath.Join(bin, "spire-server"), "run", "-config", configure("server.conf", fmt.Sprintf(spireServer, dir, port))))
	eventually(t, "SPIRE's server", func() (bool, string) {
		_, err := os.Stat(filepath.Join(dir, "server.sock"))
		return err == nil, fmt.Sprint(err)
	})
	for _, id := range ids {
		server("entry", "create", "-parentID", "spiffe://example.org/agent", "-spiffeID", id, "-selector", fmt.Sprintf("unix:uid:%d", os.Getuid()))
	}
	token := strings.TrimSpace(strings.TrimPrefix(server("token", "generate", "-spiffeID", "spiffe://example.org/agent"), "Token:"))
	background(t, exec.Command(filepath.Join(bin, "spire-agent"), "run", "-config", configure("agent.conf", fmt.Sprintf(spireAgent, dir, port, token))))
	return filepath.Join(dir, "agent.sock"), server
}

// SPIRE as the callers' issuer, and as the issuer of the SVIDs with which the engine's two hops authenticate at
// authorization servers.
func testSPIRE(t *testing.T, s *server) {
	optIn(t, "SPIRE")
	const widget, gateway, supervisor = "spiffe://example.org/widget", "spiffe://example.org/gateway", "spiffe://example.org/supervisor"
	socket, spire := startSPIRE(t, widget, gateway, supervisor)
	s.register(t, "spire", s.built.plain, "SPIFFE_ENDPOINT_SOCKET=unix://"+socket)
	w := newWorld(t, s, "spire")
	workload, err := workloadapi.New(t.Context(), workloadapi.WithAddr("unix://"+socket))
	if err != nil {
		t.Fatal(err)
	}
	defer workload.Close()
	svid := func(id string) string {
		t.Helper()
		var token string
		eventually(t, "an SVID", func() (bool, string) {
			got, err := workload.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: audience, Subject: spiffeid.RequireFromString(id)})
			if err == nil {
				token = got.Marshal()
			}
			return err == nil, fmt.Sprint(err)
		})
		return w.secret(token)
	}
	first := svid(widget)

	w.write(t, "config", map[string]any{"jwks_min_refresh": "1s", "jwks_max_age": "2s"})
	w.write(t, "issuers/domain", map[string]any{"type": "spiffe", "trust_domain": "example.org", "workload_api": true, "verify": true})
	w.write(t, "trust/workload", map[string]any{"issuer": "domain", "bound_audiences": audience, "bound_subject": widget})
	w.write(t, "roles/deploy", map[string]any{"trust": "workload"})
	secret, err := w.exchange(t, "deploy", first)
	if err != nil {
		t.Fatal(err)
	}
	if secret.Data["subject"] != widget || w.use(t, secret.Data["api_key"].(string)) != http.StatusOK {
		t.Errorf("key: %v", secret.Data)
	}
	_, err = w.exchange(t, "deploy", svid(gateway))
	wantRefused(t, err, http.StatusForbidden, "not_trusted")
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds")
	w.wantNone(t)

	bundles, err := workload.FetchJWTBundles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bundle, _ := bundles.Get(spiffeid.RequireTrustDomainFromString("example.org"))
	keys, err := bundle.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	domain := lab.NewIssuer(lab.IssuerOptions{})
	domain.SetJWKS(keys)
	w.wantHops(t, gateway, supervisor, func(string) *lab.Issuer { return domain })

	// A key that SPIRE's operator withdraws vouches for nobody.
	withdrawn := svid(widget)
	authority := func(command ...string) { spire(append([]string{"localauthority", "jwt"}, command...)...) }
	authority("prepare")
	active, prepared := jwtAuthorities(t, spire)
	authority("activate", "-authorityID", prepared)
	authority("taint", "-authorityID", active)
	authority("revoke", "-authorityID", active)
	eventually(t, "the withdrawal of SPIRE's key", func() (bool, string) {
		_, err := w.exchange(t, "deploy", withdrawn)
		return reasonOf(err) == "unknown_key", reasonOf(err)
	})
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds")
	w.wantNone(t)
}

// jwtAuthorities returns the ids of the key with which SPIRE signs now and of the key with which it will sign next.
func jwtAuthorities(t *testing.T, spire func(args ...string) string) (active, prepared string) {
	t.Helper()
	var shown map[string]struct {
		ID string `json:"authority_id"`
	}
	if err := json.Unmarshal([]byte(spire("localauthority", "jwt", "show", "-output", "json")), &shown); err != nil {
		t.Fatal(err)
	}
	return shown["active"].ID, shown["prepared"].ID
}
