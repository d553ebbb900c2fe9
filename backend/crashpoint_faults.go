// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

//go:build faults

package backend

import (
	"os"
	"strings"
	"syscall"
)

// crashpoint kills the process, as a crash would, at the place named in the file that OIDCEXCHANGE_DIE_AT points to. It first
// removes the file, so that the next process lives. Only binaries built for the fault tests (tag faults) contain this.
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
