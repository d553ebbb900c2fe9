// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// matrixTarget is a target with its stand-in, on which each step of a key is tried under each fault.
type matrixTarget struct {
	*world
	api    controlled
	living func() int // keys at the stand-in, but for the engine's own
	ask    func() (*logical.Response, error)
}

// matrixTargets are the targets of the fault matrix, one for each way in which keys are made and ended.
func matrixTargets() map[string]func(*testing.T) *matrixTarget {
	all := map[string]func(*testing.T) *matrixTarget{
		"http":            func(t *testing.T) *matrixTarget { return acmeTarget(newWorld(t)) },
		"http, extending": extendingTarget,
		"federated":       federatedTarget,
		"git-proxy-java": func(t *testing.T) *matrixTarget {
			w := newProxied(t, lab.GitProxyOptions{})
			return &matrixTarget{w.world, w.proxy, func() int { return len(w.proxy.Users()) }, w.asking("push")}
		},
		"connect publisher":  func(t *testing.T) *matrixTarget { return connectTarget(t, "publish") },
		"connect federation": func(t *testing.T) *matrixTarget { return connectTarget(t, "visit") },
		"connect user":       func(t *testing.T) *matrixTarget { return connectTarget(t, "report") },
		"oauth exchange":     func(t *testing.T) *matrixTarget { return oauthTarget(t, "api-read") },
		"oauth client":       func(t *testing.T) *matrixTarget { return oauthTarget(t, "robot") },
		"oauth two hops":     func(t *testing.T) *matrixTarget { return oauthTarget(t, "sandbox") },
		"gitlab self":        func(t *testing.T) *matrixTarget { return gitlabTarget(t, gitlabSelf, true) },
	}
	for name, e := range examples {
		all[name] = func(t *testing.T) *matrixTarget {
			w, s, living := e.shown(t)
			return &matrixTarget{w, s.(controlled), living, func() (*logical.Response, error) { return w.exchangeFor(e, nil) }}
		}
	}
	for kind, parameters := range gitlabKinds {
		all["gitlab "+kind] = func(t *testing.T) *matrixTarget { return gitlabTarget(t, parameters, false) }
	}
	return all
}

// asking asks for keys of a role by token.
func (w *world) asking(role string) func() (*logical.Response, error) {
	return func() (*logical.Response, error) { return w.exchange(role, w.token(nil)) }
}

func acmeTarget(w *world) *matrixTarget {
	return &matrixTarget{w, w.keys, func() int { return len(w.keys.Live()) }, w.asking("deploy")}
}

// extendingTarget makes keys that end before their lease can, so that each renewal moves their end.
func extendingTarget(t *testing.T) *matrixTarget {
	w := newWorld(t)
	short := strings.Replace(acme, `"expires_at": not_after}`, `"expires_at": timestamp(int(not_after) - 3600)}`, 1)
	w.write("targets/acme", map[string]any{"profile": short, "credential": "token=" + adminToken})
	return acmeTarget(w)
}

func federatedTarget(t *testing.T) *matrixTarget {
	w := newSelfWorld(t)
	return &matrixTarget{w.world, w.fed, func() int { return len(w.fed.Live()) }, w.asking("fed")}
}

func connectTarget(t *testing.T, role string) *matrixTarget {
	w := newConnected(t, lab.ConnectOptions{})
	ask := w.asking(role)
	if role != "report" {
		ask = func() (*logical.Response, error) { return w.exchange(role, w.forConnect()) }
	}
	return &matrixTarget{w.world, w.connect, func() int { return len(w.connect.Live()) - 1 }, ask}
}

// oauthTarget is a role of the example's. A token between two hops is nobody's, and does not count.
func oauthTarget(t *testing.T, role string) *matrixTarget {
	w := newOAuthWorld(t)
	for _, resp := range w.follow() {
		if resp != nil && resp.Secret != nil {
			w.revoke(resp)
		}
	}
	living := func() (n int) {
		for _, token := range w.server.Live() {
			if slices.Contains(token.Audience, "https://api.example.com") {
				n++
			}
		}
		return n
	}
	return &matrixTarget{w.world, w.server, living, func() (*logical.Response, error) {
		if role == "robot" {
			return w.do(logical.ReadOperation, "creds/robot", nil)
		}
		return w.exchange(role, w.callersToken())
	}}
}

var gitlabKinds = map[string]map[string]any{
	"personal":        {"kind": "personal", "id": "2"},
	"impersonation":   {"kind": "impersonation", "id": "deployer"},
	"project":         {"kind": "project", "id": "1", "access_level": "reporter"},
	"group":           {"kind": "group", "id": "2", "access_level": "reporter"},
	"service_account": {"kind": "service_account", "id": "2", "user": "deployer"},
}

// gitlabSelf are keys that end themselves, as they must before GitLab 17.11.
var gitlabSelf = map[string]any{"kind": "service_account", "id": "2", "user": "deployer", "revoke_by": "self"}

func gitlabTarget(t *testing.T, parameters map[string]any, before1711 bool) *matrixTarget {
	w := newWorld(t)
	g := lab.NewGitLab(lab.GitLabOptions{Now: w.clock.now, AdminToken: adminToken, Before1711: before1711})
	g.AddUser(lab.GitLabUser{Name: "ana"})
	g.AddUser(lab.GitLabUser{Name: "deployer", Group: "acme/sub"})
	g.AddProject("acme/widget", map[string]int{"ana": 40})
	g.AddGroup("acme/sub", map[string]int{"ana": 50})
	w.write("targets/gitlab", map[string]any{"driver": "gitlab", "url": w.serve(g), "ca_pem": w.ca, "credential": "token=" + adminToken, "allowed_roles": "gitlab"})
	all := maps.Clone(parameters)
	all["scopes"] = "read_api"
	w.write("roles/gitlab", map[string]any{"trust": "main", "target": "gitlab", "ttl": "15m", "max_ttl": "2h", "parameters": all})
	return &matrixTarget{w, g, func() int { return len(g.Live()) }, w.asking("gitlab")}
}
