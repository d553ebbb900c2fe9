// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"net/http/httptest"
	"testing"
)

// An operator, or a monitor, can check whether a target is up and accepts the engine's credential, without making a key.
func testCheck(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	want := func(name, state, reason string) {
		t.Helper()
		got := w.read(t, "check/"+name)
		if got["state"] != state || got["reason"] != reason || (got["hint"] == "") != (state == "ok") {
			t.Errorf("%s: %v; want %s for %q", name, got, state, reason)
		}
	}
	want("acme", "ok", "")
	want("nuget", "unsupported", "")

	wrong := "wrong-" + w.admin
	s.canary(wrong)
	w.write(t, "targets/acme", map[string]any{"credential": map[string]any{"token": wrong}})
	want("acme", "failed", "target_denied")
	w.write(t, "targets/acme", map[string]any{"credential": map[string]any{"token": w.admin}})
	want("acme", "ok", "")

	down := httptest.NewTLSServer(w.keys)
	w.write(t, "targets/down", map[string]any{"driver": "http", "profile": acmeProfile(t), "url": down.URL, "ca_pem": w.ca, "credential": map[string]any{"token": w.admin}})
	want("down", "ok", "")
	down.CloseClientConnections()
	down.Close()
	want("down", "failed", "target_busy")

	if got := w.read(t, "check/nobody"); got != nil {
		t.Errorf("a target that does not exist: %v; want 404", got)
	}
	w.must(t, w.root.Token(), "read", "-field=state", w.path+"/check/acme")
	w.wantNone(t)
}
