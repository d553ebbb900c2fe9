// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

//go:build vectors

package differential

// Never built: the import keeps the module in go.mod, because the tests of backend/identity read its files. A build would
// embed all of them, a hundred megabytes.
import _ "github.com/c2sp/wycheproof"
