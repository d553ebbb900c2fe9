// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// Command vault-plugin-secrets-oidcexchange is the plugin that Vault starts. Run by hand, it only prints its version and commit.
package main

import (
	"fmt"
	"io"
	"log"
	"os"
	"runtime/debug"
	"slices"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/sdk/plugin"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend"
)

func main() {
	if slices.Contains(os.Args[1:], "-version") || slices.Contains(os.Args[1:], "--version") {
		fmt.Println("vault-plugin-secrets-oidcexchange", backend.Version+built())
		return
	}
	if err := serve(os.Args[1:]); err != nil {
		hclog.New(&hclog.LoggerOptions{}).Error("plugin shutting down", "error", err)
		os.Exit(1)
	}
}

// built returns the commit and the compiler of this binary, as far as they are known.
func built() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	var revision, changed string
	for _, setting := range info.Settings {
		switch {
		case setting.Key == "vcs.revision":
			revision = "commit " + setting.Value + ", "
		case setting.Key == "vcs.modified" && setting.Value == "true":
			changed = "with changes, "
		}
	}
	return fmt.Sprintf(" (%s%s%s)", revision, changed, info.GoVersion)
}

func serve(args []string) error {
	silence()
	meta := &api.PluginAPIClientMeta{}
	if err := meta.FlagSet().Parse(args); err != nil {
		return fmt.Errorf("parsing flags: %w", err)
	}
	return plugin.ServeMultiplex(&plugin.ServeOpts{
		BackendFactoryFunc: backend.Factory,
		// Servers older than AutoMTLS take their TLS configuration from here.
		TLSProviderFunc: api.VaultPluginTLSProvider(meta.GetTLSConfig()),
	})
}

// silence switches package log off. Only net/http writes there, and it may quote a target: bytes that follow the end of an
// answer, such as the rest of a key.
func silence() { log.SetOutput(io.Discard) }
