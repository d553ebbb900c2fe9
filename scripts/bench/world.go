// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

const (
	pluginName = "vault-plugin-secrets-oidcexchange"
	nullName   = "null"
	patience   = 60 * time.Second // how long a program may take to start
)

// world is a Vault with both engines and the JWT auth method, the API that makes the keys, and token issuers.
type world struct {
	dir       string
	addr      string
	version   string
	root      *api.Client
	caller    string // token of a caller who may get keys and renew leases, and has an entity
	issuers   map[string]*lab.Issuer
	serving   []*httptest.Server
	processes map[string]*process // vault, lab
	http      *http.Client
}

// process is a program that the benchmark has started.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

// newWorld makes an empty world. The caller must close it.
func newWorld() (*world, error) {
	dir, err := os.MkdirTemp("", "oidcexchange.")
	return &world{dir: dir, processes: map[string]*process{}, issuers: map[string]*lab.Issuer{}, http: &http.Client{
		Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 200},
	}}, err
}

// build starts everything and configures it.
func (w *world) build(ctx context.Context, o options) error {
	for _, step := range []func(context.Context, options) error{
		w.startLab, w.startIssuers, w.startVault, w.enableAudit, w.mountEngines, w.enableLogins, w.configureNull, w.configurePlugin,
	} {
		if err := step(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// close ends every process and removes the files.
func (w *world) close() error {
	w.http.CloseIdleConnections()
	for _, p := range w.processes {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // the whole group, so that Vault's plugins end too
		<-p.ended
	}
	for _, s := range w.serving {
		s.Close()
	}
	return os.RemoveAll(w.dir)
}

// start runs a program, and waits until ready returns true.
func (w *world) start(ctx context.Context, name string, ready func() bool, binary string, args ...string) error {
	log, err := os.Create(w.path(name + ".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(binary, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = w.dir, log, log
	cmd.Env = append(os.Environ(), "TMPDIR="+w.dir, "HOME="+w.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	p := &process{cmd: cmd, ended: make(chan struct{})}
	w.processes[name] = p
	go func() {
		_ = cmd.Wait()
		close(p.ended)
	}()
	return w.await(ctx, name, p, ready)
}

func (w *world) await(ctx context.Context, name string, p *process, ready func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-tick.C:
		case <-p.ended:
			log, _ := os.ReadFile(w.path(name + ".log"))
			return fmt.Errorf("%s ended:\n%s", name, log[max(0, len(log)-2000):])
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", name, ctx.Err())
		}
	}
	return nil
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// text reads a file that the lab has written.
func (w *world) text(name string) string {
	raw, _ := os.ReadFile(w.path(name)) // if it is missing, whoever uses the text fails
	return strings.TrimSpace(string(raw))
}

func (w *world) startLab(ctx context.Context, o options) error {
	return w.start(ctx, "lab", func() bool { return w.text("keyapi.url") != "" }, o.lab, "-dir", w.dir, "keyapi")
}

// startIssuers serves, from this process, an issuer for each way that gives the plugin tokens. Tokens are signed before a
// window begins, and keys are fetched about once, so issuers take hardly any time in it.
func (w *world) startIssuers(context.Context, options) error {
	authority := lab.NewAuthority()
	leaf := authority.Issue(nil)
	for name, alg := range map[string]string{"rs": "RS256", "rs-once": "RS256", "es": "ES256", "es-once": "ES256"} {
		issuer := lab.NewIssuer(lab.IssuerOptions{Algorithm: alg})
		server := httptest.NewUnstartedServer(issuer)
		server.TLS = &tls.Config{Certificates: []tls.Certificate{leaf}}
		server.StartTLS()
		issuer.SetURL(server.URL)
		w.issuers[name], w.serving = issuer, append(w.serving, server)
	}
	return os.WriteFile(w.path("issuers.pem"), []byte(authority.PEM()), 0o600)
}

func (w *world) startVault(ctx context.Context, o options) error {
	host, cluster, err := freePorts()
	if err != nil {
		return err
	}
	w.addr = "http://" + host
	storage := `storage "inmem" {}`
	if o.storage == "raft" {
		storage = fmt.Sprintf("storage \"raft\" {\n  path = %q\n  node_id = \"one\"\n}", w.path("storage"))
	}
	config := fmt.Sprintf(`%s
listener "tcp" {
  address         = %q
  cluster_address = %q
  tls_disable     = true
}
api_addr         = %q
cluster_addr     = "http://%s"
plugin_directory = %q
disable_mlock    = true
`, storage, host, cluster, w.addr, cluster, w.path("plugins"))
	err = errors.Join(os.Mkdir(w.path("storage"), 0o700), os.Mkdir(w.path("plugins"), 0o700), os.WriteFile(w.path("vault.hcl"), []byte(config), 0o600))
	if err != nil {
		return err
	}
	if w.root, err = api.NewClient(&api.Config{Address: w.addr, Timeout: time.Minute}); err != nil {
		return err
	}
	w.root.SetToken("")
	answers := func() bool { _, err := w.root.Sys().InitStatusWithContext(ctx); return err == nil }
	if err := w.start(ctx, "vault", answers, o.vault, "server", "-config", w.path("vault.hcl")); err != nil {
		return err
	}
	return w.unseal(ctx)
}

func (w *world) unseal(ctx context.Context) error {
	first, err := w.root.Sys().InitWithContext(ctx, &api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		return fmt.Errorf("initializing Vault: %w", err)
	}
	w.root.SetToken(first.RootToken)
	if _, err := w.root.Sys().UnsealWithContext(ctx, first.Keys[0]); err != nil {
		return fmt.Errorf("unsealing Vault: %w", err)
	}
	return w.await(ctx, "vault", w.processes["vault"], func() bool {
		health, err := w.root.Sys().HealthWithContext(ctx)
		if err != nil {
			return false
		}
		w.version = health.Version
		return health.Initialized && !health.Sealed && !health.Standby
	})
}

// freePorts returns two addresses that nothing listens on.
func freePorts() (one, two string, err error) {
	for _, addr := range []*string{&one, &two} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", "", err
		}
		defer listener.Close()
		*addr = listener.Addr().String()
	}
	return one, two, nil
}

func (w *world) enableAudit(ctx context.Context, _ options) error {
	return w.root.Sys().EnableAuditWithOptionsWithContext(ctx, "file", &api.EnableAuditOptions{Type: "file", Options: map[string]string{"file_path": w.path("audit.log")}})
}

func (w *world) mountEngines(ctx context.Context, o options) error {
	for _, e := range []struct{ name, binary, path string }{{pluginName, o.plugin, "oidcexchange"}, {nullName, o.null, "null"}} {
		content, err := os.ReadFile(e.binary)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(w.path("plugins"), e.name), content, 0o700); err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		err = w.root.Sys().RegisterPluginWithContext(ctx, &api.RegisterPluginInput{Name: e.name, Type: api.PluginTypeSecrets, Command: e.name, SHA256: hex.EncodeToString(sum[:])})
		if err != nil {
			return fmt.Errorf("registering %s: %w", e.name, err)
		}
		if err := w.root.Sys().MountWithContext(ctx, e.path, &api.MountInput{Type: e.name}); err != nil {
			return fmt.Errorf("mounting %s: %w", e.name, err)
		}
	}
	return nil
}
