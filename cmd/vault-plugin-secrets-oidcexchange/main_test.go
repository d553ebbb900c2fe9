// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"io"
	"log"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// The binary prints its version and origin, and says what it is when a person starts it.
func TestByHand(t *testing.T) {
	binary := buildPlugin(t, "", pluginVersion)
	for _, flag := range []string{"-version", "--version"} {
		out, err := exec.CommandContext(t.Context(), binary, flag).CombinedOutput()
		want := regexp.MustCompile(`^vault-plugin-secrets-oidcexchange ` + regexp.QuoteMeta(pluginVersion) + ` \((commit [0-9a-f]{40}, (with changes, )?)?go1\.[^ ]+\)\n$`)
		if err != nil || !want.Match(out) {
			t.Errorf("%s: %v, %q; want %s", flag, err, out, want)
		}
	}
	for _, args := range [][]string{nil, {"-no-such-flag"}} {
		cmd := exec.CommandContext(t.Context(), binary, args...)
		cmd.Env = []string{}
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("%q: exit status %d; want 1", args, cmd.ProcessState.ExitCode())
		}
		want := "This binary is a plugin"
		if args != nil {
			want = "flag provided but not defined: -no-such-flag"
		}
		if text := string(out); !strings.Contains(text, want) || strings.Contains(text, "panic") || strings.Contains(text, "goroutine") {
			t.Errorf("%q: %s", args, text)
		}
	}
}

// net/http logs what a server sends beyond its answer through package log, and Vault reads that output of a plugin. So
// package log must be silent.
func TestSilence(t *testing.T) {
	was := log.Writer()
	defer log.SetOutput(was)
	var seen strings.Builder
	log.SetOutput(&seen)
	silence()
	log.Print("Unsolicited response")
	if seen.Len() > 0 || log.Writer() != io.Discard {
		t.Errorf("package log writes %q", &seen)
	}
}
