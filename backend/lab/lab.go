// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// Package lab holds stand-in servers for tests and for the lab program: an OpenID provider (Issuer), an OAuth token
// endpoint (TokenEndpoint), a whole OAuth authorization server (OAuth), registries that trust an issuer's tokens (NuGet, PyPI, CratesIO, RubyGems, NPM), platforms that
// make access tokens (Artifactory, Gitea), a plain API that makes keys (KeyAPI), a GitLab (GitLab), a Posit
// Connect server (Connect), a git-proxy-java (GitProxy), a finos/git-proxy that takes an
// authorization server's tokens (FinosGitProxy) and a SPIFFE Workload API (WorkloadAPI, which speaks gRPC).
//
// Each is an http.Handler, written from the protocol that it stands for and not from a client; it keeps its state in memory
// and is safe for concurrent use. Each embeds a Control, through which a test injects faults and watches calls. A key that a
// stand-in hands out expires by the stand-in's clock, so the stand-in's inventory is the truth about which keys live.
// Relying is not a server: it makes a server trust an OpenID provider.
//
// The plugin never imports this package: nothing here is careful with resources or hardened for an open network.
package lab

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"time"
)

// writeJSON answers with a status and a JSON body. The value must be one that encoding/json can encode.
func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(mustJSON(v))
}

// writeError answers {"error": text}, the form of error that most stand-ins share.
func writeError(w http.ResponseWriter, status int, text string) {
	writeJSON(w, status, map[string]string{"error": text})
}

// mustJSON encodes a value that the caller built itself. It panics if that fails, which is a programming error.
func mustJSON(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		panic("lab: encoding JSON: " + err.Error())
	}
	return raw
}

// randomHex returns 2*n hexadecimal digits.
func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // crypto/rand.Read never returns an error
	return hex.EncodeToString(b)
}

// clock returns now, or time.Now if now is nil.
func clock(now func() time.Time) func() time.Time {
	if now == nil {
		return time.Now
	}
	return now
}
