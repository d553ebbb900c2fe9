// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
)

// endpointSocket is the environment variable with the address of the Workload API, as the SPIFFE standard names it.
const endpointSocket = workloadapi.SocketEnv

// workloadAPI is the address of the SPIFFE Workload API; "" if the plugin's environment has none. It keeps no connection
// between calls: after a restart of the agent, an old connection would wait up to two minutes before it reconnects.
type workloadAPI string

// check returns an error that says what is wrong with the address and what to do.
func (w workloadAPI) check() error {
	if w == "" {
		return fmt.Errorf("%s is not in the plugin's environment; register the plugin with: vault plugin register -env=%[1]s=unix:///path/to/the/agent's/socket …", endpointSocket)
	}
	// A TCP address would bypass the egress rules.
	if !strings.HasPrefix(string(w), "unix:///") || workloadapi.ValidateAddress(string(w)) != nil {
		return fmt.Errorf("%s in the plugin's environment is not the address of a Unix socket; want unix:///path/to/the/agent's/socket", endpointSocket)
	}
	return nil
}

// bundle implements identity.Bundle. It does not use workloadapi.Client, which parses the bundles of all federated trust
// domains and fails if a single key of any of them cannot be parsed.
func (w workloadAPI) bundle(ctx context.Context, trustDomain string) (keys []byte, err error) {
	err = w.call(ctx, func(ctx context.Context, api workload.SpiffeWorkloadAPIClient) error {
		stream, err := api.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
		if err != nil {
			return err
		}
		answer, err := stream.Recv() // the first message has all bundles, and arrives at once
		if err != nil {
			return err
		}
		keys = answer.Bundles["spiffe://"+trustDomain]
		return nil
	})
	switch {
	case status.Code(err) == codes.PermissionDenied:
		return nil, fmt.Errorf("%v: %w", describeStatus(err), identity.ErrWithdrawn)
	case err != nil:
		return nil, describeStatus(err)
	case keys == nil:
		return nil, fmt.Errorf("the Workload API has no bundle of trust domain %q: %w", trustDomain, identity.ErrWithdrawn)
	}
	return keys, nil
}

// FetchJWTSVID implements source.SVIDs: it fetches a JWT-SVID of the engine itself.
func (w workloadAPI) FetchJWTSVID(ctx context.Context, p jwtsvid.Params) (svid *jwtsvid.SVID, err error) {
	err = w.call(ctx, func(ctx context.Context, api workload.SpiffeWorkloadAPIClient) error {
		answer, err := api.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{SpiffeId: p.Subject.String(), Audience: []string{p.Audience}})
		if err != nil {
			return err
		}
		if len(answer.Svids) == 0 {
			return errors.New("the Workload API answered without an SVID")
		}
		svid, err = jwtsvid.ParseInsecure(answer.Svids[0].Svid, []string{p.Audience}) // it comes from the agent; whoever receives it verifies the signature
		return err
	})
	return svid, err
}

// call makes one call of the Workload API. The standard demands the metadata on every call, as a protection against forged
// requests (SSRF).
func (w workloadAPI) call(ctx context.Context, do func(context.Context, workload.SpiffeWorkloadAPIClient) error) error {
	if err := w.check(); err != nil {
		return err
	}
	conn, err := grpc.NewClient(string(w), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"))
	defer cancel() // closes a stream that was not read to its end
	return do(ctx, workload.NewSpiffeWorkloadAPIClient(conn))
}

// describeStatus words a call's gRPC status without the status text, which comes from the server.
func describeStatus(err error) error {
	s, isStatus := status.FromError(err)
	if !isStatus {
		return err
	}
	switch s.Code() {
	case codes.Unavailable:
		return errors.New("the Workload API at " + endpointSocket + " cannot be reached")
	case codes.DeadlineExceeded, codes.Canceled:
		return errors.New("the Workload API did not answer in time")
	case codes.PermissionDenied:
		return errors.New("the Workload API does not know this plugin; register the plugin's process as a workload")
	}
	return fmt.Errorf("the Workload API answered %s", s.Code())
}
