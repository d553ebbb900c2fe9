// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// While the target or Vault is away, Agent keeps its files as they are and tries again. When they are back it reads a new
// key, and the old one ends. An outage lasts until the key's lease is over; with OUTAGE it lasts a minute, so that a static
// role's rotation becomes due meanwhile, too.
func testAgentOutage(t *testing.T, shared *server) {
	length := min(outage(t), time.Minute)         // the key has an end of its own, five minutes after its lease's latest
	s := startServer(t, shared.bin, shared.built) // for this harms all of Vault
	w := newWorld(t, s, pluginName)
	target := newSite(t, w)
	w.write(t, "static-roles/ci", map[string]any{"target": "away", "parameters": "project=widget", "rotation_period": "1m", "overlap": 0})
	dir := w.agentFiles(t)
	w.allow(t, w.path, w.path+"/creds/agent", "read", w.path+"/static-creds/ci", "read")
	w.rootWrite(t, "auth/approle/role/"+w.path, map[string]any{"token_ttl": "10s"})
	w.trustAgent(t, dir, "away", "2s", "5s")
	note, hasty := w.hastyAgents(t)
	writeFile(t, dir, "agent.hcl", readFile(t, dir, "agent.hcl")+`
template {
  source      = "static.ctmpl"
  destination = "static.env"
}
`)
	a := w.startAgent(t, dir)
	static := ""
	eventually(t, "the first keys in the agent's files", func() (bool, string) {
		static = renderedIn(dir, "static.env")
		return rendered(dir) != "" && static != "", readFile(t, dir, "agent.log")
	})
	w.canary(static)

	for _, harm := range []struct {
		name       string
		gone, back func()
		tells      string // what Agent's log says meanwhile
	}{
		{"the target", func() { target.leave(); note() }, func() { hasty(t); target.back(t) }, "target_busy"},
		{"Vault, killed,", func() { s.kill(t) }, func() { s.launch(t); s.unseal(t) }, "connection refused (retry attempt"},
		{"Vault, paused,", func() { s.signal(t, syscall.SIGSTOP) }, func() { s.signal(t, syscall.SIGCONT) }, ""},
	} {
		from, key, over := len(readFile(t, dir, "agent.log")), rendered(dir), time.Now().Add(max(length, 5*time.Second))
		w.canary(key)
		harm.gone()
		within(t, length+patience, harm.name+" away", func() (bool, string) {
			log := readFile(t, dir, "agent.log")[from:]
			return time.Now().After(over) && strings.Contains(log, harm.tells), log
		})
		for _, file := range []string{"key.env", "static.env"} {
			if held := renderedIn(dir, file); !a.lives() || !w.keys.Valid(held) || file == "key.env" && held != key {
				t.Errorf("%s is away: the agent lives: %v, so does the key in %s: %v", harm.name, a.lives(), file, w.keys.Valid(held))
			}
		}
		harm.back()
		back := time.Now()
		eventually(t, "another key in the agent's file", func() (bool, string) {
			next := rendered(dir)
			return next != "" && next != key && w.keys.Valid(next), readFile(t, dir, "agent.log")[from:]
		})
		t.Logf("%s was back, and %s later there was another key", harm.name, time.Since(back).Round(time.Second/10))
		eventually(t, "the end of the old key", func() (bool, string) { return !w.keys.Valid(key), fmt.Sprint(w.sweep(t)) }) // Vault tries again after up to 30 seconds
	}
	if length >= time.Minute {
		within(t, 2*patience, "the next key of the static role", func() (bool, string) {
			held := renderedIn(dir, "static.env")
			return held != static && w.keys.Valid(held) && !w.keys.Valid(static), readFile(t, dir, "agent.log")
		})
	}
	a.stop()
	w.must(t, w.root.Token(), "lease", "revoke", "-prefix", w.path+"/creds")
	eventually(t, "the end of all but the static key", func() (bool, string) { live := w.live(); return len(live) == 1, strings.Join(live, " ") })
	s.wantClean(t)
}

// hastyAgents starts two agents that soon stop trying again. want checks that the one that was told to exit on failure has
// ended, that the other one starts anew, and that their files are as they were when note was called.
func (w *world) hastyAgents(t *testing.T) (note func(), want func(*testing.T)) {
	t.Helper()
	var agents []*agent
	var keys []string
	for _, exit := range []string{"true", "false"} {
		dir := w.agentFiles(t)
		writeFile(t, dir, "agent.hcl", strings.NewReplacer("num_retries = 120", "num_retries = 1", "exit_on_retry_failure = true", "exit_on_retry_failure = "+exit).
			Replace(readFile(t, dir, "agent.hcl")))
		a := w.startAgent(t, dir)
		eventually(t, "the first key in a hasty agent's file", func() (bool, string) { return rendered(dir) != "", readFile(t, dir, "agent.log") })
		agents = append(agents, a)
	}
	note = func() {
		for _, a := range agents {
			eventually(t, "a hasty agent that is refused", func() (bool, string) { // until then it may render a key that it had just got
				log := readFile(t, a.dir, "agent.log")
				return strings.Contains(log, "target_busy"), log
			})
			keys = append(keys, rendered(a.dir))
		}
		w.canary(keys...)
	}
	return note, func(t *testing.T) {
		t.Helper()
		agents[0].wantExit(t)
		eventually(t, "the other agent's new start", func() (bool, string) {
			log := readFile(t, agents[1].dir, "agent.log")
			_, after, failed := strings.Cut(log, "template server error")
			return failed && strings.Contains(after, "creating new runner"), log
		})
		agents[1].stop()
		for i, a := range agents {
			if held := rendered(a.dir); held != keys[i] {
				t.Errorf("agent %d has given up and another key in its file", i)
			}
		}
	}
}

// A template with a misspelt field ends the agent before it writes anything. Only with error_on_missing_key = false does the
// agent write the file.
func testAgentMistake(t *testing.T, s *server) {
	w := newWorld(t, s, pluginName)
	dir := w.agentFiles(t)
	w.trustAgent(t, dir, "acme", "15m", "1h")
	writeFile(t, dir, "key.ctmpl", strings.Replace(readFile(t, dir, "key.ctmpl"), ".api_key", ".api_kye", 1))
	w.startAgent(t, dir).wantExit(t)
	if key := rendered(dir); key != "" || !strings.Contains(readFile(t, dir, "agent.log"), `map has no entry for key \"api_kye\"`) {
		t.Errorf("the file holds %q; the agent's log:\n%s", key, readFile(t, dir, "agent.log"))
	}
	writeFile(t, dir, "agent.hcl", strings.Replace(readFile(t, dir, "agent.hcl"), "error_on_missing_key = true", "error_on_missing_key = false", 1))
	w.startAgent(t, dir)
	eventually(t, "the agent's file", func() (bool, string) { return rendered(dir) == "<no value>", rendered(dir) })
}
