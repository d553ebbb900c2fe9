// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

//go:build !faults

package backend

// crashpoint marks a place on the way of a key at which a test can end the process; see crashpoint_faults.go.
func crashpoint(string) {}
