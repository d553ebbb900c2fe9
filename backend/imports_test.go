// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "github.com/oidcexchange/vault-plugin-secrets-oidcexchange/"
	spiffe = "github.com/spiffe/go-spiffe/v2/"
)

// The layers hold because imports do: a decision cannot reach the network, a driver cannot reach Vault, and nothing of
// the lab is in the plugin. Of SPIFFE, identity has the ids; how to reach a Workload API is the engine's part.
func TestImports(t *testing.T) {
	for _, rule := range []struct {
		dir       string
		own       []string // packages of this module that it may import
		forbidden []string // prefixes of others that it may not
	}{
		{"expr", nil, []string{"net", "os", "context", "log", "github.com/hashicorp"}},
		{"trust", []string{"backend/expr"}, []string{"net", "os", "context", "log", "github.com/hashicorp"}},
		{"egress", nil, []string{"os", "log", "github.com"}},
		{"identity", []string{"backend/egress"}, []string{"os", "log", "github.com/hashicorp", "google.golang.org", spiffe + "workloadapi", spiffe + "proto"}},
		{"source", []string{"backend/egress", "backend/identity"}, []string{"log", "github.com/hashicorp", spiffe + "workloadapi", spiffe + "proto"}},
		{"target", []string{"backend/egress", "backend/expr"}, []string{"os", "log/slog/internal", "github.com/hashicorp"}},
		{".", []string{"backend/egress", "backend/expr", "backend/identity", "backend/source", "backend/target", "backend/trust"}, nil},
		{"../cmd/vault-plugin-secrets-oidcexchange", []string{"backend"}, nil},
	} {
		for _, path := range importsOf(t, rule.dir) {
			if own, ok := strings.CutPrefix(path, module); ok {
				if !slices.Contains(rule.own, own) {
					t.Errorf("%s imports %s", rule.dir, own)
				}
				continue
			}
			for _, prefix := range rule.forbidden {
				if path == prefix || strings.HasPrefix(path, prefix+"/") {
					t.Errorf("%s imports %s", rule.dir, path)
				}
			}
		}
	}
}

// importsOf lists what the files of one folder import, tests left out.
func importsOf(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != dir:
			return filepath.SkipDir
		case entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			all = append(all, imported)
		}
		return nil
	})
	if err != nil || len(all) == 0 {
		t.Fatalf("%s: %d imports, %v", dir, len(all), err)
	}
	return all
}
