// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// WorkloadAPIOptions configures a WorkloadAPI.
type WorkloadAPIOptions struct {
	// IDs are the SPIFFE IDs for which every caller gets SVIDs. The trust domain of the first is the API's own; default
	// spiffe://example.org/workload.
	IDs []string
	// Issuer is the iss of SVIDs; "" means that they have none.
	Issuer string
	Now    func() time.Time // nil = time.Now
}

// WorkloadAPI is a stand-in SPIFFE Workload API: gRPC on a Unix socket, see Start. It has the RPCs FetchJWTSVID and
// FetchJWTBundles of the JWT-SVID profile; other RPCs are not implemented. As an http.Handler it has what the lab program's
// users need:
//
//	POST /lab/svid     JSON object of claims (or nothing) -> 200, an SVID as plain text, see SVID
//	POST /lab/rotate   -> 200, the new key's id as plain text: the API's own trust domain has a new key
//	POST /lab/faults, DELETE /lab/faults, see Control; the kinds are delay, hang and status
//
// Make one with NewWorkloadAPI.
type WorkloadAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	Control
	mux    *http.ServeMux
	ids    []string
	issuer string
	now    func() time.Time

	mu      sync.Mutex
	domains map[string]*Issuer // by name of the trust domain
	changed chan struct{}      // closed at the next change of a bundle
	server  *grpc.Server       // nil unless it runs
}

// NewWorkloadAPI makes a WorkloadAPI of one trust domain with one key.
func NewWorkloadAPI(o WorkloadAPIOptions) *WorkloadAPI {
	a := &WorkloadAPI{
		Control: Control{ops: []string{OpSVID, OpBundles}, kinds: []Kind{KindDelay, KindHang, KindStatus}},
		mux:     http.NewServeMux(),
		ids:     o.IDs,
		issuer:  o.Issuer,
		now:     clock(o.Now),
		domains: make(map[string]*Issuer),
		changed: make(chan struct{}),
	}
	if len(a.ids) == 0 {
		a.ids = []string{"spiffe://example.org/workload"}
	}
	own := a.Domain(domainOf(a.ids[0]))
	a.mux.HandleFunc("POST /lab/svid", a.postSVID)
	a.mux.HandleFunc("POST /lab/rotate", func(w http.ResponseWriter, _ *http.Request) { writeText(w, own.Rotate()) })
	a.mount(a.mux)
	return a
}

// ServeHTTP implements http.Handler.
func (a *WorkloadAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// Domain returns the authority of a trust domain, whose key set is the domain's bundle. If the domain is unknown, Domain
// first makes the API federate with it. The authority's keys are for ES256; an Issuer can do much more than sign SVIDs (see
// Sign, Publish and SetJWKS).
func (a *WorkloadAPI) Domain(name string) *Issuer {
	a.mu.Lock()
	defer a.mu.Unlock()
	authority, ok := a.domains[name]
	if !ok {
		authority = NewIssuer(IssuerOptions{Algorithm: "ES256", Now: a.now})
		authority.watch(a.publish)
		a.domains[name] = authority
		a.signal()
	}
	return authority
}

// Withdraw removes a trust domain's bundle.
func (a *WorkloadAPI) Withdraw(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.domains, name)
	a.signal()
}

func (a *WorkloadAPI) publish() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.signal()
}

// signal tells the streams that a bundle has changed. The caller holds the lock.
func (a *WorkloadAPI) signal() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// SVID signs a JWT-SVID by the authority of the trust domain in its sub, or by the API's own if sub names none. It has only
// aud, exp, iat and sub, and iss if the API has an Issuer; it is for the first of the API's IDs and lives five minutes.
// claims override, as in Issuer.Token.
func (a *WorkloadAPI) SVID(claims map[string]any) string {
	now := a.now()
	all := map[string]any{"sub": a.ids[0], "aud": []string{"test"}, "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix()}
	if a.issuer != "" {
		all["iss"] = a.issuer
	}
	all = override(all, claims)
	sub, _ := all["sub"].(string)
	domain := domainOf(sub)
	if domain == "" {
		domain = domainOf(a.ids[0])
	}
	return a.Domain(domain).Sign(map[string]any{"typ": "JWT"}, mustJSON(all))
}

// domainOf returns the trust domain of what looks like a SPIFFE ID.
func domainOf(id string) string {
	rest, _ := strings.CutPrefix(id, "spiffe://")
	name, _, _ := strings.Cut(rest, "/")
	return name
}

// Start listens at a path and answers calls there until Stop. After that it may be started again.
func (a *WorkloadAPI) Start(path string) error {
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	server := grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := secured(ctx); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := secured(stream.Context()); err != nil {
				return err
			}
			return next(srv, stream)
		}),
	)
	workload.RegisterSpiffeWorkloadAPIServer(server, a)
	a.mu.Lock()
	a.server = server
	a.mu.Unlock()
	go func() { _ = server.Serve(listener) }() // ends with Stop
	return nil
}

// Stop ends all calls and removes the socket.
func (a *WorkloadAPI) Stop() {
	a.mu.Lock()
	server := a.server
	a.server = nil
	a.mu.Unlock()
	if server != nil {
		server.Stop()
	}
}

// secured requires the metadata that keeps a forged request from reaching the API (SPIFFE Workload Endpoint section 3).
func secured(ctx context.Context) error {
	if !slices.Equal(metadata.ValueFromIncomingContext(ctx, "workload.spiffe.io"), []string{"true"}) {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	return nil
}

// under counts a call and carries out its fault.
func (a *WorkloadAPI) under(ctx context.Context, op string) error {
	a.begin(op)
	switch f := a.take(op); f.Kind {
	case KindDelay:
		f.wait()
	case KindHang:
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	case KindStatus:
		return status.Error(statusCode(f.Status), "injected fault")
	}
	return nil
}

// statusCode is the gRPC code that stands for an HTTP status.
func statusCode(httpStatus int) codes.Code {
	switch httpStatus {
	case http.StatusForbidden:
		return codes.PermissionDenied
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return codes.Unavailable
	}
	return codes.Internal
}

// FetchJWTSVID implements the RPC (SPIFFE Workload API section 6.2.1).
func (a *WorkloadAPI) FetchJWTSVID(ctx context.Context, r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	if err := a.under(ctx, OpSVID); err != nil {
		return nil, err
	}
	if len(r.Audience) == 0 {
		return nil, status.Error(codes.InvalidArgument, "audience must be specified")
	}
	issued := a.now()
	if machine := time.Now(); issued.After(machine) {
		issued = machine // client libraries compare iat with the machine's clock, and a test's clock may be ahead of it
	}
	answer := &workload.JWTSVIDResponse{}
	for _, id := range a.ids {
		if r.SpiffeId == "" || r.SpiffeId == id {
			svid := a.SVID(map[string]any{"sub": id, "aud": r.Audience, "iat": issued.Unix()})
			answer.Svids = append(answer.Svids, &workload.JWTSVID{SpiffeId: id, Svid: svid})
		}
	}
	if len(answer.Svids) == 0 {
		return nil, status.Error(codes.PermissionDenied, "no identity issued")
	}
	a.tell(OpSVID, StageDone)
	return answer, nil
}

// FetchJWTBundles implements the RPC (SPIFFE Workload API section 6.2.2): all bundles now, and again at each change.
func (a *WorkloadAPI) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream workload.SpiffeWorkloadAPI_FetchJWTBundlesServer) error {
	if err := a.under(stream.Context(), OpBundles); err != nil {
		return err
	}
	for {
		bundles, changed := a.bundles()
		if err := stream.Send(&workload.JWTBundlesResponse{Bundles: bundles}); err != nil {
			return err
		}
		a.tell(OpBundles, StageDone)
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// bundles returns all bundles by the SPIFFE ID of their trust domain, and a channel that is closed when they change.
func (a *WorkloadAPI) bundles() (map[string][]byte, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make(map[string][]byte, len(a.domains))
	for name, authority := range a.domains {
		all["spiffe://"+name] = authority.keySet()
	}
	return all, a.changed
}

func (a *WorkloadAPI) postSVID(w http.ResponseWriter, r *http.Request) {
	claims, err := readClaims(w, r)
	if err != nil {
		writeError(w, http.StatusBadRequest, err.Error())
		return
	}
	writeText(w, a.SVID(claims))
}
