// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

//go:build !faults

package backend

// crashpoint marks a place at which a fault test can kill the process; in other builds it does nothing. See
// crashpoint_faults.go.
func crashpoint(string) {}
