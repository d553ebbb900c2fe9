// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

//go:build faults

package backend

import (
	"os"
	"strings"
	"syscall"
)

// crashpoint ends the process, as a crash would, at the place that the file in OIDCEXCHANGE_DIE_AT names. The file is removed
// first, so that the next process lives. Only binaries that are built for the fault tests have this.
func crashpoint(name string) {
	file := os.Getenv("OIDCEXCHANGE_DIE_AT")
	if at, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(at)) != name {
		return
	}
	if os.Remove(file) == nil {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
