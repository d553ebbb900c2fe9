// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// log returns Vault's log from an offset on.
func (s *server) log(t testing.TB, from int) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(s.dir, "vault.log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return content[min(from, len(content)):]
}

// story returns of Vault's log what concerns a mount or a plugin, at most 40 lines.
func (s *server) story(t testing.TB, from int, mount string) []byte {
	t.Helper()
	var lines [][]byte
	for line := range bytes.Lines(s.log(t, from)) {
		if bytes.Contains(line, []byte(mount)) || bytes.Contains(line, []byte(`"@module":"secrets.`)) {
			lines = append(lines, line)
		}
	}
	return bytes.Join(lines[max(0, len(lines)-40):], nil)
}

// canary remembers a secret; wantClean looks for all of them.
func (s *server) canary(secrets ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.canaries = append(s.canaries, secrets...)
}

// wantClean wants no secret in Vault's log, nor in its audit log, and no sign of a broken plugin.
func (s *server) wantClean(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	audit, err := os.ReadFile(s.audit)
	if err != nil {
		t.Fatal(err)
	}
	log := s.log(t, 0)
	if len(s.canaries) > 0 && !bytes.Contains(audit, []byte("/creds/")) {
		t.Error("the audit log shows no request for a key, so it proves nothing")
	}
	for name, content := range map[string][]byte{"Vault's log": log, "the audit log": audit} {
		if at := leak(string(content), s.canaries); at >= 0 {
			t.Errorf("%s holds a secret (a token, a key or a credential): …%s…", name, content[max(0, at-200):at])
		}
	}
	for _, sign := range []string{"DATA RACE", "panic", "goroutine 1 ["} {
		if at := bytes.Index(log, []byte(sign)); at >= 0 {
			t.Errorf("Vault's log has %q: %s", sign, log[at:min(at+2000, len(log))])
		}
	}
}

// leak returns where the first secret stands in a text, -1 if none does. All are looked for in one pass: there are thousands
// of them, and the logs are long.
func leak(text string, secrets []string) int {
	var pairs []string
	for _, secret := range secrets {
		pairs = append(pairs, secret, strings.Repeat("\x00", len(secret))) // in none of the logs, which are JSON
	}
	return strings.IndexByte(strings.NewReplacer(pairs...).Replace(text), 0)
}

func TestLeak(t *testing.T) {
	secrets := []string{"canary-1", "canary-22", "key", "z"}
	for text, want := range map[string]int{"": -1, "canary-2 canary ke": -1, `{"a":"canary-22"}`: 6, "xxkey": 2, "canary-1": 0, "keykey z": 0, "....z": 4} {
		if got := leak(text, secrets); got != want {
			t.Errorf("%q: at %d; want %d", text, got, want)
		}
	}
}
