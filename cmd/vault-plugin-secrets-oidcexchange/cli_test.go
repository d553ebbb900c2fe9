// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// run is the result of a command line.
type run struct {
	stdout, stderr string
	code           int
}

// cli runs Vault's own command line with a token, as a user would.
func (s *server) cli(t testing.TB, token string, args ...string) run {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), s.bin, args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"VAULT_ADDR=" + s.addr, "VAULT_TOKEN=" + token, "HOME=" + filepath.Join(s.dir, "home"), "PATH=" + os.Getenv("PATH")}
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return run{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// must runs a command line that must succeed, and returns what it printed.
func (s *server) must(t testing.TB, token string, args ...string) string {
	t.Helper()
	r := s.cli(t, token, args...)
	if r.code != 0 {
		t.Fatalf("vault %s: exit status %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}
