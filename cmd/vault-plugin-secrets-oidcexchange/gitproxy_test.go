// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"net/http"
	"testing"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// Keys of git-proxy-java work with the example's commands. Whatever breaks, no user is left behind.
func testGitProxy(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	w.write(t, "config", map[string]any{"sweep_grace": "1s"})
	operator := "operator-" + w.path
	s.canary(operator)
	proxy := lab.NewGitProxy(lab.GitProxyOptions{OperatorKey: operator})
	w.example(t, "git-proxy-java.sh", "PROXY="+w.serve(t, proxy), "AUDIENCE="+audience, "PROXY_KEY_FILE="+writeFile(t, t.TempDir(), "key", operator+"\n"))

	first, second := w.issue(t, "git-push"), w.issue(t, "git-push")
	key := first.Data["api_key"].(string)
	if !proxy.Valid(key) || first.Data["header_name"] != "X-Api-Key" || first.Data["revocable"] != true || !first.Renewable {
		t.Errorf("renewable %v, data without the key's use: %v", first.Renewable, first.Data["header_name"])
	}
	w.must(t, w.root.Token(), "lease", "renew", first.LeaseID)
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", first.LeaseID)
	if users := proxy.Users(); proxy.Valid(key) || len(users) != 1 || users[0].Username != second.Data["accessor"] {
		t.Errorf("users %v; want the second lease's alone", users)
	}

	for _, op := range []string{lab.OpCreate, lab.OpLogin, lab.OpMakeKey} {
		proxy.Fault(op, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
		_, err := w.exchange(t, "git-push", w.token(nil))
		wantRefused(t, err, http.StatusUnprocessableEntity, "outcome_unknown")
	}
	if users := proxy.Users(); len(users) != 4 {
		t.Errorf("users %v; want three that nobody knows of", users)
	}
	w.settle(t)
	proxy.Fault(lab.OpMakeKey, lab.Fault{Kind: lab.KindStatus, Status: 503, Count: 1})
	_, err := w.exchange(t, "git-push", w.token(nil))
	wantRefused(t, err, http.StatusServiceUnavailable, "target_busy")
	if users := proxy.Users(); len(users) != 1 {
		t.Errorf("users %v; want the second lease's alone", users)
	}
	w.must(t, w.root.Token(), "lease", "revoke", "-sync", second.LeaseID)
	if users := proxy.Users(); len(users) != 0 {
		t.Errorf("users %v", users)
	}
	s.canary(proxy.Secrets()...) // what users logged in with is in no log
}
