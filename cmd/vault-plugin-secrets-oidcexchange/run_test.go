// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// make run starts a Vault of its own or does nothing: if a Vault already answers at the address, it is somebody else's and
// must not be changed.
func TestRunBesideAnother(t *testing.T) {
	dir := t.TempDir()
	calls := filepath.Join(dir, "calls")
	stub := "#!/bin/sh\necho \"$1\" >> '" + calls + "'\n[ \"$1\" != version ] || echo 'Vault v1.21.2'\n"
	if err := os.WriteFile(filepath.Join(dir, "vault"), []byte(stub), 0o700); err != nil {
		t.Fatal(err)
	}
	run := exec.Command("bash", filepath.Join("..", "..", "scripts", "run.sh"), shippedName, "oidcexchange")
	run.Env = append(os.Environ(), "PATH="+dir+string(os.PathListSeparator)+os.Getenv("PATH"), "TMPDIR="+dir)
	out, err := run.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "already") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, call := range strings.Fields(readFile(t, dir, "calls")) {
		if call != "version" && call != "status" {
			t.Errorf("vault %s was called", call)
		}
	}
}
