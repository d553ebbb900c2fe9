// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

//go:build vectors

package differential

// Never built: it keeps the module in go.mod, whose files the tests of backend/identity read. Built, it would embed all of
// them, a hundred megabytes.
import _ "github.com/c2sp/wycheproof"
