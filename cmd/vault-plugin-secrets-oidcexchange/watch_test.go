// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Prometheus reads the metrics with a token that can do nothing else.
func testMetrics(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	w.issue(t, "deploy")
	policy := "metrics-" + w.path
	if err := s.root.Sys().PutPolicyWithContext(t.Context(), policy, `path "`+w.path+`/metrics" { capabilities = ["read"] }`); err != nil {
		t.Fatal(err)
	}
	token := strings.TrimSpace(s.must(t, s.root.Token(), "token", "create", "-policy="+policy, "-period=24h", "-orphan", "-field=token"))
	status, text := w.scrape(t, token)
	if status != http.StatusOK || !bytes.Contains(text, []byte(`oidcexchange_keys_issued_total{target="acme"} 1`)) {
		t.Errorf("status %d: %s", status, text)
	}
	for _, stranger := range []string{"", w.user.Token()} {
		if status, text := w.scrape(t, stranger); status != http.StatusForbidden || bytes.Contains(text, []byte("oidcexchange_")) {
			t.Errorf("without the right: status %d: %s", status, text)
		}
	}
	promtool(t, text, "check", "metrics")
	dashboards := filepath.Join("..", "..", "bootstrap", "dashboards")
	promtool(t, nil, "check", "rules", filepath.Join(dashboards, "alerts.yaml"))
	promtool(t, nil, "test", "rules", filepath.Join(dashboards, "alerts_test.yaml"))
}

// promtool runs Prometheus' own tool if it is installed; if not, make test says so.
func promtool(t *testing.T, stdin []byte, args ...string) {
	t.Helper()
	tool, err := exec.LookPath("promtool")
	if err != nil {
		t.Logf("NOT RUN: promtool %s: promtool is missing", strings.Join(args, " "))
		return
	}
	cmd := exec.CommandContext(t.Context(), tool, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (w *world) scrape(t *testing.T, token string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.addr+"/v1/"+w.path+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, text
}

// tuneLine is the beginning of the README's command that lets an audit device show fields that are not secret.
const tuneLine = "vault secrets tune -audit-non-hmac-request-keys="

// With the README's tuning, the audit log shows in clear who got a key where. That it shows no secret is checked for all
// tests at their end.
func testAuditTune(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := bytes.Cut(readme, []byte(tuneLine))
	if !found {
		t.Fatalf("the README has no %q", tuneLine)
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	args := strings.Fields(strings.TrimPrefix(tuneLine, "vault ") + string(line))
	args[len(args)-1] = w.path + "/"
	s.must(t, s.root.Token(), args...)

	key := w.issue(t, "deploy")
	shown := w.audited(t, "response", w.path+"/creds/deploy")
	for _, name := range []string{"id", "accessor", "expires_at", "header_name", "revocable", "target", "issuer", "subject", "trust"} {
		if shown[name] != key.Data[name] {
			t.Errorf("the audit log has %s %v; want %v", name, shown[name], key.Data[name])
		}
	}
	if hashed, _ := shown["api_key"].(string); !strings.HasPrefix(hashed, "hmac-sha256:") {
		t.Error("the audit log does not hash the key")
	}
	if hashed, _ := w.audited(t, "request", w.path+"/creds/deploy")["subject_token"].(string); !strings.HasPrefix(hashed, "hmac-sha256:") {
		t.Error("the audit log does not hash the subject token")
	}
}

// audited returns the data of the last request or response for a path in the audit log.
func (w *world) audited(t *testing.T, kind, path string) (data map[string]any) {
	t.Helper()
	content, err := os.ReadFile(w.audit)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(content) {
		var entry struct {
			Type    string
			Request struct {
				Path string
				Data map[string]any
			}
			Response struct{ Data map[string]any }
		}
		if json.Unmarshal(line, &entry) != nil || entry.Type != kind || entry.Request.Path != path {
			continue
		}
		data = entry.Request.Data
		if kind == "response" {
			data = entry.Response.Data
		}
	}
	return data
}
