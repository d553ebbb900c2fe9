// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// guide is a page of bootstrap/ that a reader follows, in a directory of their own, for a world's mount.
type guide struct {
	*world
	dir     string // as the repository's root is to its reader; the vault command is in it, too
	blocks  []string
	replace *strings.Replacer // what the page says by what is here
	env     []string          // beside the reader's Vault
}

// indentedBlocks matches the commands that a page shows, also within lists.
var indentedBlocks = regexp.MustCompile("(?ms)^( *)```sh\n(.*?)^ *```$")

func newGuide(t *testing.T, w *world, page string, replace ...string) *guide {
	t.Helper()
	g := &guide{world: w, dir: t.TempDir(), replace: strings.NewReplacer(append(replace, "oidcexchange/", w.path+"/")...)}
	bootstrap, err := filepath.Abs(filepath.Join("..", "..", "bootstrap"))
	if err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"vault": w.bin, "bootstrap": bootstrap} {
		if err := os.Symlink(target, filepath.Join(g.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	g.env = []string{"CA_FILE=" + writeFile(t, g.dir, "ca.pem", w.ca), "CURL_CA_BUNDLE=" + filepath.Join(g.dir, "ca.pem"), "MOUNT=" + w.path}
	for _, block := range indentedBlocks.FindAllStringSubmatch(readFile(t, bootstrap, page), -1) {
		g.blocks = append(g.blocks, strings.ReplaceAll("\n"+block[2], "\n"+block[1], "\n"))
	}
	if len(g.blocks) == 0 {
		t.Fatalf("%s has no commands", page)
	}
	return g
}

// run runs a script as the page's reader, and returns its output and exit status.
func (g *guide) run(t *testing.T, shell, token, script string, env ...string) (out string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), shell, "-eu", "-c", g.replace.Replace(script))
	cmd.Dir = g.dir
	cmd.Env = append(append([]string{"VAULT_ADDR=" + g.addr, "VAULT_TOKEN=" + token, "HOME=" + g.dir, "PATH=" + g.dir + ":" + os.Getenv("PATH")}, g.env...), env...)
	said, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(said), cmd.ProcessState.ExitCode()
}

// follow runs the next n blocks of the page as Vault's operator; they must succeed. It returns their output.
func (g *guide) follow(t *testing.T, n int) (out string) {
	t.Helper()
	for range n {
		said, code := g.run(t, "sh", g.root.Token(), g.blocks[0])
		if code != 0 {
			t.Fatalf("exit status %d\n%s\n%s", code, g.blocks[0], said)
		}
		g.blocks, out = g.blocks[1:], out+said
	}
	return out
}

// followAll runs the rest of the page's blocks.
func (g *guide) followAll(t *testing.T) {
	t.Helper()
	g.follow(t, len(g.blocks))
}

// tool puts a shell script into the reader's PATH.
func (g *guide) tool(t *testing.T, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, name), []byte("#!/bin/sh -eu\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
}

// documents decodes the YAML documents of a file of bootstrap/how-to.
func documents[T any](t *testing.T, name string) (all []T) {
	t.Helper()
	decoder := yaml.NewDecoder(strings.NewReader(readFile(t, filepath.Join("..", "..", "bootstrap", "how-to"), name)))
	for {
		var each T
		err := decoder.Decode(&each)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all = append(all, each)
	}
}
