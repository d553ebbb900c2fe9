// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

// The operations of the stand-ins, as Fault, Calls and OnRequest name them.
const (
	OpAny = "any" // every operation; only for Fault

	OpDiscovery = "discovery" // Issuer, OAuth: the discovery document
	OpJWKS      = "jwks"      // Issuer, OAuth: the keys

	OpToken = "token" // NuGet, the registries, Artifactory, Connect: a key for an identity token
	OpPush  = "push"  // NuGet, the registries: use a key

	OpGrant      = "grant"      // TokenEndpoint: a token for the client's credentials. OAuth: a token by any grant
	OpIntrospect = "introspect" // OAuth: is a token valid, and until when

	OpCreate = "create" // KeyAPI, Artifactory, Gitea, Connect, GitLab: make a key; GitProxy: make a user
	OpExtend = "extend" // KeyAPI: move a key's end
	OpRevoke = "revoke" // KeyAPI, CratesIO, Artifactory, Gitea, Connect, GitLab, OAuth: end a key; GitProxy: delete a user
	OpFind   = "find"   // KeyAPI, Artifactory, Gitea, Connect, GitLab: look for keys; GitProxy: look for a user
	OpCheck  = "check"  // KeyAPI, GitLab, GitProxy: is the credential good; Connect: is the server there
	OpUse    = "use"    // KeyAPI, Artifactory, Gitea, Connect, GitLab, GitProxy, FinosGitProxy, OAuth: use a key

	OpFederate = "federate" // Connect: a user's key for an identity token
	OpWhoami   = "whoami"   // Connect: whose key is it

	OpLogin   = "login"    // GitProxy: a user logs in
	OpMakeKey = "make-key" // GitProxy: the user makes a key
	OpDropKey = "drop-key" // GitProxy: the user deletes the key

	OpRotate = "rotate" // GitLab: end a key and make its successor
	OpUsers  = "users"  // GitLab: look for a user by name

	OpSVID    = "svid"    // WorkloadAPI: JWT-SVIDs for the caller
	OpBundles = "bundles" // WorkloadAPI: the bundles of all trust domains
)

// Stage is a moment in the life of one request.
type Stage string

// The stages at which OnRequest's function is called.
const (
	StageReceived Stage = "received" // the request has been read, nothing has been done
	StageDone     Stage = "done"     // the work is done, no byte of the answer has been sent
)

// maxRequestBytes limits how much of a request is read.
const maxRequestBytes = 64 << 20

// Control lets a test act on a stand-in from outside: it injects faults, counts calls and watches them. Every stand-in
// embeds one. A method panics if the stand-in does not have the given operation, because a fault that silently never happens
// makes a test that cannot fail.
type Control struct {
	ops   []string
	kinds []Kind // the kinds of faults that can be carried out, and none with After; nil = all, with After too

	mu     sync.Mutex
	faults map[string][]Fault
	calls  map[string]int
	hook   func(op string, stage Stage)
}

// Fault makes the next calls of op fail as f says. Faults of one operation are used up in the order in which they were
// given; those of OpAny are used when the operation has none of its own. It panics if f cannot be carried out.
func (c *Control) Fault(op string, f Fault) {
	if err := c.addFault(op, f); err != nil {
		panic("lab: " + err.Error())
	}
}

// ClearFaults removes all faults. A call that has already met a fault continues with it.
func (c *Control) ClearFaults() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = nil
}

// Calls returns how often op was called. Calls that met a fault count too.
func (c *Control) Calls(op string) int {
	c.mustKnow(op)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[op]
}

// OnRequest sets the function that is called at the stages of each request, in the goroutine that serves it: the request
// waits until f returns. At StageReceived f may still inject a fault for this very call. A call whose fault prevents the work
// has no StageDone. nil removes the function.
func (c *Control) OnRequest(f func(op string, stage Stage)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hook = f
}

func (c *Control) addFault(op string, f Fault) error {
	if op != OpAny && !slices.Contains(c.ops, op) {
		return fmt.Errorf("fault for operation %q: unknown; want one of %q or %q", op, c.ops, OpAny)
	}
	if err := f.check(); err != nil {
		return err
	}
	if c.kinds != nil && (f.After || !slices.Contains(c.kinds, f.Kind)) {
		return fmt.Errorf("fault for operation %q: want one of the kinds %q, not after", op, c.kinds)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.faults == nil {
		c.faults = make(map[string][]Fault)
	}
	c.faults[op] = append(c.faults[op], f)
	return nil
}

func (c *Control) mustKnow(op string) {
	if !slices.Contains(c.ops, op) {
		panic(fmt.Sprintf("lab: operation %q: unknown; want one of %q", op, c.ops))
	}
}

// begin counts a call and tells the hook; the hook runs unlocked so that it may use the Control.
func (c *Control) begin(op string) {
	c.mu.Lock()
	if c.calls == nil {
		c.calls = make(map[string]int)
	}
	c.calls[op]++
	c.mu.Unlock()
	c.tell(op, StageReceived)
}

func (c *Control) tell(op string, stage Stage) {
	c.mu.Lock()
	hook := c.hook
	c.mu.Unlock()
	if hook != nil {
		hook(op, stage)
	}
}

// take returns the fault of this call; the zero Fault is none.
func (c *Control) take(op string) Fault {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range []string{op, OpAny} {
		queue := c.faults[name]
		if len(queue) == 0 {
			continue
		}
		f := queue[0]
		switch f.Count {
		case 0: // a fault without a count stays until it is cleared
		case 1:
			c.faults[name] = queue[1:]
		default:
			queue[0].Count--
		}
		return f
	}
	return Fault{}
}

// handle puts an operation under control. The body is read first, because only then does net/http notice that the client has
// gone, and end the request's context.
func (c *Control) handle(op string, work http.HandlerFunc) http.HandlerFunc {
	c.mustKnow(op)
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequestBytes))
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r = r.WithContext(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(body))

		c.begin(op)
		f := c.take(op)
		if !f.After && f.interrupt(w, r) {
			return
		}
		done := &answer{header: make(http.Header)}
		work(done, r)
		c.tell(op, StageDone)
		if f.After && f.interrupt(w, r) {
			return
		}
		f.send(w, done)
	}
}

// mount adds the paths by which the lab program's users inject faults.
func (c *Control) mount(mux *http.ServeMux) {
	mux.HandleFunc("POST /lab/faults", c.postFault)
	mux.HandleFunc("DELETE /lab/faults", func(w http.ResponseWriter, _ *http.Request) {
		c.ClearFaults()
		w.WriteHeader(http.StatusNoContent)
	})
}

// postFault takes a Fault as JSON; retry_after is in seconds, delay a Go duration, size in MiB.
func (c *Control) postFault(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Op         string `json:"op"`
		Kind       Kind   `json:"kind"`
		After      bool   `json:"after"`
		Count      int    `json:"count"`
		Status     int    `json:"status"`
		RetryAfter int    `json:"retry_after"`
		Location   string `json:"location"`
		Delay      string `json:"delay"`
		Size       int    `json:"size"`
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		writeError(w, http.StatusBadRequest, "the body is not a fault: "+err.Error())
		return
	}
	f := Fault{Kind: in.Kind, After: in.After, Count: in.Count, Status: in.Status, Location: in.Location, Size: in.Size,
		RetryAfter: time.Duration(in.RetryAfter) * time.Second}
	if in.Delay != "" {
		var err error
		if f.Delay, err = time.ParseDuration(in.Delay); err != nil {
			writeError(w, http.StatusBadRequest, "delay: "+err.Error())
			return
		}
	}
	if err := c.addFault(in.Op, f); err != nil {
		writeError(w, http.StatusBadRequest, err.Error())
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
