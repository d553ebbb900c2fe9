// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

// pluginVersion is the version as which the tests build and register the plugin.
const pluginVersion = "v1.2.3"

// patience bounds every wait of these tests. Vault itself waits up to 30 seconds before it revokes a lease again,
// and a minute between two periodic calls.
const patience = 90 * time.Second

// eventually polls until ok is done; state is shown if it fails.
func eventually(t testing.TB, what string, ok func() (done bool, state string)) {
	t.Helper()
	within(t, patience, what, ok)
}

// within is eventually with a patience of its own.
func within(t testing.TB, patience time.Duration, what string, ok func() (done bool, state string)) {
	t.Helper()
	tick := time.NewTicker(max(25*time.Millisecond, patience/3600))
	defer tick.Stop()
	deadline := time.After(patience)
	for {
		done, state := ok()
		if done {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited %s for %s: %s", patience, what, state)
		}
	}
}

// binaries are the plugin as it is shipped, and as built for crash tests.
type binaries struct{ plain, faults string }

// buildPlugin builds the plugin as a release does, but with the race detector if the tests run with it.
func buildPlugin(t testing.TB, tags, version string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "plugin")
	args := []string{"build", "-tags", tags, "-o", binary,
		"-ldflags", "-X github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend.Version=" + version}
	if raceEnabled() {
		args = append(args, "-race")
	}
	if out, err := exec.CommandContext(t.Context(), "go", append(args, ".")...).CombinedOutput(); err != nil {
		t.Fatalf("building the plugin: %v\n%s", err, out)
	}
	return binary
}

func raceEnabled() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// server is a real Vault server: a process of its own, its storage in a directory that outlives the process.
type server struct {
	bin, dir, addr string
	id             string // of the node in its cluster
	joins          string // address of another node, whose cluster this one joins
	audit          string // the audit device's file, which all nodes of a cluster write to
	built          binaries
	unsealKey      string
	root           *api.Client
	accessors      map[string]string // of the auth methods, by path

	process *os.Process
	ended   chan struct{} // closed when the process has ended
	groups  []int         // process groups to end: Vault's, with its plugins

	mu       sync.Mutex
	canaries map[string]bool // what must never stand in a log
}

// startServer starts a new Vault, unsealed, with the plugin in its catalog, a file audit device and two auth methods.
func startServer(t testing.TB, bin string, built binaries) *server {
	t.Helper()
	s := &server{bin: bin, dir: t.TempDir(), id: "one", built: built}
	s.audit = filepath.Join(s.dir, "audit.log")
	t.Cleanup(s.end)
	s.configure(t)
	s.launch(t)
	var err error
	if s.root, err = s.client(""); err != nil {
		t.Fatal(err)
	}
	first, err := s.root.Sys().InitWithContext(t.Context(), &api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		t.Fatalf("initializing Vault: %v", err)
	}
	s.unsealKey = first.Keys[0]
	s.root.SetToken(first.RootToken)
	s.unseal(t)
	s.prepare(t)
	s.register(t, pluginName, built.plain)
	return s
}

func (s *server) configure(t testing.TB) {
	t.Helper()
	host, cluster := freePort(t), freePort(t)
	s.addr = "http://" + host
	join := ""
	if s.joins != "" {
		join = fmt.Sprintf("retry_join { leader_api_addr = %q }", s.joins)
	}
	for _, dir := range []string{"plugins", "storage", "home", "tmp"} {
		if err := os.Mkdir(filepath.Join(s.dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	config := fmt.Sprintf(`
storage "raft" {
  path    = %q
  node_id = %q
  performance_multiplier = 1
  %s
}
listener "tcp" {
  address         = %q
  cluster_address = %q
  tls_disable     = true
}
api_addr         = %q
cluster_addr     = "http://%s"
plugin_directory = %q
disable_mlock    = true
raw_storage_endpoint = true
log_level        = "debug"
log_format       = "json"
`, filepath.Join(s.dir, "storage"), s.id, join, host, cluster, s.addr, cluster, filepath.Join(s.dir, "plugins"))
	if err := os.WriteFile(filepath.Join(s.dir, "vault.hcl"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
}

var portsTaken atomic.Int64

func init() { portsTaken.Store(rand.Int64N(12_000)) } // of several runs on one machine each begins elsewhere

// freePort returns an address on which nothing listens. Its port is below those that Linux gives to outgoing connections:
// one of them could take the port while its server is restarted.
func freePort(t testing.TB) string {
	t.Helper()
	for range 12_000 {
		address := fmt.Sprint("127.0.0.1:", 20_000+portsTaken.Add(1)%12_000)
		if listener, err := net.Listen("tcp", address); err == nil {
			_ = listener.Close()
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}

// launch starts the process and waits until it answers.
func (s *server) launch(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(s.bin, "server", "-config", filepath.Join(s.dir, "vault.hcl"))
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Join(s.dir, "tmp")) // killed plugins leave their sockets there
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting Vault: %v", err)
	}
	ended := make(chan struct{})
	s.process, s.ended, s.groups = cmd.Process, ended, append(s.groups, cmd.Process.Pid)
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	eventually(t, "Vault's port", func() (bool, string) {
		select {
		case <-ended:
			t.Fatalf("Vault ended: %s\n%s", cmd.ProcessState, s.log(t, 0))
		default:
		}
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.addr, "http://"))
		if err != nil {
			return false, err.Error()
		}
		_ = conn.Close()
		return true, ""
	})
}

// kill ends Vault as a crash would. Its plugins keep running.
func (s *server) kill(t testing.TB) {
	t.Helper()
	if err := s.process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-s.ended
}

// signal sends Vault's process a signal.
func (s *server) signal(t testing.TB, signal syscall.Signal) {
	t.Helper()
	if err := s.process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// end ends Vault and its plugins.
func (s *server) end() {
	for _, group := range s.groups {
		_ = syscall.Kill(-group, syscall.SIGKILL)
	}
	if s.ended != nil {
		<-s.ended
	}
}

// unseal unseals Vault and waits until it is active, so that requests find their mounts.
func (s *server) unseal(t testing.TB) {
	t.Helper()
	if _, err := s.root.Sys().UnsealWithContext(t.Context(), s.unsealKey); err != nil {
		t.Fatalf("unsealing Vault: %v", err)
	}
	eventually(t, "an active Vault", func() (bool, string) {
		health, err := s.root.Sys().HealthWithContext(t.Context())
		if err != nil {
			return false, err.Error()
		}
		return health.Initialized && !health.Sealed && !health.Standby, fmt.Sprintf("%+v", health)
	})
}

func (s *server) prepare(t testing.TB) {
	t.Helper()
	sys := s.root.Sys()
	if err := sys.EnableAuditWithOptionsWithContext(t.Context(), "file", &api.EnableAuditOptions{
		Type: "file", Options: map[string]string{"file_path": s.audit},
	}); err != nil {
		t.Fatalf("enabling the audit device: %v", err)
	}
	for _, method := range []string{"userpass", "approle"} {
		if err := sys.EnableAuthWithOptionsWithContext(t.Context(), method, &api.EnableAuthOptions{Type: method}); err != nil {
			t.Fatalf("enabling %s: %v", method, err)
		}
	}
	methods, err := sys.ListAuthWithContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.accessors = map[string]string{}
	for path, method := range methods {
		s.accessors[path] = method.Accessor
	}
}

// client returns a client that does not repeat requests.
func (s *server) client(token string) (*api.Client, error) {
	config := api.DefaultConfig()
	config.Address, config.MaxRetries, config.Timeout = s.addr, 0, time.Minute
	client, err := api.NewClient(config)
	if err != nil {
		return nil, err
	}
	client.SetToken(token)
	return client, nil
}

// register puts a copy of the binary in the catalog, because a plugin with another name has a process of its own.
func (s *server) register(t testing.TB, name, binary string, env ...string) {
	t.Helper()
	s.link(t, name, binary)
	s.registerAs(t, name, name, pluginVersion, binary, env...)
}

// registerAs puts a version of a plugin in the catalog, whose binary is linked as command.
func (s *server) registerAs(t testing.TB, name, command, version, binary string, env ...string) {
	t.Helper()
	content, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	err = s.root.Sys().RegisterPluginWithContext(t.Context(), &api.RegisterPluginInput{
		Name: name, Type: api.PluginTypeSecrets, Command: command, SHA256: hex.EncodeToString(sum[:]), Version: version, Env: env,
	})
	if err != nil {
		t.Fatalf("registering the plugin: %v", err)
	}
}

func (s *server) link(t testing.TB, name, binary string) {
	t.Helper()
	if err := os.Link(binary, s.plugin(name)); err != nil {
		t.Fatal(err)
	}
}

func (s *server) plugin(name string) string { return filepath.Join(s.dir, "plugins", name) }

// pids returns the running processes of a plugin that Vault has started.
func (s *server) pids(t testing.TB, name string) []int {
	t.Helper()
	var pids []int
	for line := range bytes.Lines(s.log(t, 0)) {
		if !bytes.Contains(line, []byte("plugin started")) { // the log may be long
			continue
		}
		var event struct {
			Message string      `json:"@message"`
			Path    string      `json:"path"`
			Pid     json.Number `json:"pid"`
		}
		if json.Unmarshal(line, &event) != nil || event.Message != "plugin started" || event.Path != s.plugin(name) {
			continue
		}
		pid, err := event.Pid.Int64()
		if err != nil {
			continue
		}
		// The number of a process that has ended may by now be another's: ours are in Vault's process group.
		if group, err := syscall.Getpgid(int(pid)); err == nil && slices.Contains(s.groups, group) {
			pids = append(pids, int(pid))
		}
	}
	return pids
}

// killPlugin ends the plugin's process as a crash would.
func (s *server) killPlugin(t testing.TB, name string) {
	t.Helper()
	pids := s.pids(t, name)
	if len(pids) == 0 {
		t.Errorf("plugin %q has no process", name)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Errorf("killing plugin %q: %v", name, err)
		}
	}
}
