// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func (s *server) logFile() string { return filepath.Join(s.dir, "vault.log") }

// log returns Vault's log from an offset on.
func (s *server) log(t testing.TB, from int) []byte {
	t.Helper()
	content, err := os.ReadFile(s.logFile())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return content[min(from, len(content)):]
}

// story returns the lines of Vault's log that concern a mount or a plugin, at most 40.
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
	if s.canaries == nil {
		s.canaries = map[string]bool{}
	}
	for _, secret := range secrets {
		s.canaries[secret] = true
	}
}

// wantClean checks that there is no secret in Vault's log or its audit log, and no sign of a broken plugin.
func (s *server) wantClean(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	leak, issues := leakOf(slices.Collect(maps.Keys(s.canaries))), 0
	eachLine(t, s.audit, func(line string) {
		if strings.Contains(line, "/creds/") {
			issues++
		}
		if at := leak(line); at >= 0 {
			t.Errorf("the audit log holds a secret (a token, a key or a credential): …%s…", line[max(0, at-200):at])
		}
	})
	if len(s.canaries) > 0 && issues == 0 {
		t.Error("the audit log shows no request for a key, so it proves nothing")
	}
	eachLine(t, s.logFile(), func(line string) {
		if at := leak(line); at >= 0 {
			t.Errorf("Vault's log holds a secret (a token, a key or a credential): …%s…", line[max(0, at-200):at])
		}
		for _, sign := range []string{"DATA RACE", "panic", "goroutine 1 ["} {
			if strings.Contains(line, sign) {
				t.Errorf("Vault's log has %q: %s", sign, line[:min(2000, len(line))])
			}
		}
	})
}

// eachLine calls visit for each line of a file, which may be large.
func eachLine(t testing.TB, path string, visit func(line string)) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for lines := bufio.NewReader(file); ; {
		line, err := lines.ReadString('\n')
		visit(line)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// leakOf returns a function that finds the first secret in a text and returns its position, -1 if there is none. It looks
// for all secrets in one pass, because there are thousands of them and the logs are long.
func leakOf(secrets []string) func(text string) int {
	var pairs []string
	for _, secret := range secrets {
		pairs = append(pairs, secret, strings.Repeat("\x00", len(secret))) // in none of the logs, which are JSON
	}
	hide := strings.NewReplacer(pairs...)
	return func(text string) int { return strings.IndexByte(hide.Replace(text), 0) }
}

func TestLeak(t *testing.T) {
	secrets := []string{"canary-1", "canary-22", "key", "z"}
	for text, want := range map[string]int{"": -1, "canary-2 canary ke": -1, `{"a":"canary-22"}`: 6, "xxkey": 2, "canary-1": 0, "keykey z": 0, "....z": 4} {
		if got := leakOf(secrets)(text); got != want {
			t.Errorf("%q: at %d; want %d", text, got, want)
		}
	}
}
