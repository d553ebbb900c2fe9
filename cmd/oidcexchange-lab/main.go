// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// Oidcexchange-lab runs stand-in servers on this machine: an OpenID provider, registries that trust its tokens, platforms,
// servers and a plain API that make keys, and a SPIFFE Workload API. They are for demonstrations and acceptance tests, not
// for real secrets. Package lab says what each does and how faults are injected.
//
// Usage:
//
//	oidcexchange-lab [flags] NAME...
//
// NAME is one of the servers issuer, nuget, keyapi, spiffe, pypi, crates-io, rubygems, npm, artifactory, gitea, gitlab,
// connect, git-proxy-java, oauth, finos-git-proxy. The registries, artifactory, connect and oauth trust the issuer of the
// same process; finos-git-proxy trusts the tokens of oauth. If a server needs another that is not named, that one is started
// too. The client of oauth is vault, with the secret lab. Once all servers listen, a line "NAME URL" is printed for each.
// SIGINT or SIGTERM ends the program.
//
// With -dir the program writes these files before it prints the lines: ca.pem (the certificate to trust for https),
// NAME.token for keyapi, artifactory, gitea, gitlab, connect and git-proxy-java (their administrator's token or key; not
// written if LAB_ADMIN_TOKEN sets it), spiffe.env (SPIFFE_ENDPOINT_SOCKET=unix://…, which names the Workload API's socket
// spiffe.sock beside it) and, last, NAME.url for each server. Files of these names that an earlier run left behind are
// removed at the start, so a script may wait for a NAME.url to appear.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Getenv("LAB_ADMIN_TOKEN"), os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "oidcexchange-lab:", err)
		os.Exit(1)
	}
}

// options are the flags and arguments of the program.
type options struct {
	dir    string
	listen string
	ports  map[string]int // by name; 0 or absent = any free port
	http   bool
	names  []string
}

// run starts the servers. It returns once ctx has ended and they are down.
func run(ctx context.Context, args []string, adminToken string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	l, err := start(o, adminToken)
	if err != nil {
		return err
	}
	defer l.close()
	for _, s := range l.servers {
		fmt.Fprintln(stdout, s.name, s.url)
	}
	return l.wait(ctx)
}

// parse reads the command line. Usage goes to stderr.
func parse(args []string, stderr io.Writer) (options, error) {
	o := options{ports: make(map[string]int)}
	fs := flag.NewFlagSet("oidcexchange-lab", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintf(stderr, "usage: oidcexchange-lab [flags] NAME...\nNAME: %s\n", strings.Join(names(), ", "))
		fs.PrintDefaults()
	}
	fs.StringVar(&o.dir, "dir", "", "write ca.pem, NAME.token, spiffe.env and NAME.url to this `directory`")
	fs.StringVar(&o.listen, "listen", "127.0.0.1", "`host` to listen on")
	fs.BoolVar(&o.http, "http", false, "serve plain http instead of https")
	fs.Func("ports", "comma-separated `name=port` pairs; other servers pick a free port", func(s string) error {
		return parsePorts(s, o.ports)
	})
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	o.names = withNeeded(fs.Args())
	return o, checkNames(o.names, o.ports)
}

func parsePorts(s string, ports map[string]int) error {
	for pair := range strings.SplitSeq(s, ",") {
		name, port, _ := strings.Cut(pair, "=")
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return fmt.Errorf("%q: want name=port", pair)
		}
		ports[name] = int(n)
	}
	return nil
}
