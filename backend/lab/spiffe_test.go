// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// startWorkloadAPI runs a Workload API and returns its address.
func startWorkloadAPI(t *testing.T, o WorkloadAPIOptions) (*WorkloadAPI, string) {
	t.Helper()
	a := NewWorkloadAPI(o)
	path := filepath.Join(t.TempDir(), "socket")
	if err := a.Start(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Stop)
	return a, "unix://" + path
}

func workloadClient(t *testing.T, address string) *workloadapi.Client {
	t.Helper()
	c, err := workloadapi.New(t.Context(), workloadapi.WithAddr(address))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// SPIFFE's own client accepts what the stand-in sends, which shows that the stand-in follows the protocol.
func TestWorkloadAPIServesGoSPIFFE(t *testing.T) {
	t.Parallel()
	ids := []string{"spiffe://example.org/ns/acme/sa/widget", "spiffe://example.org/admin"}
	a, address := startWorkloadAPI(t, WorkloadAPIOptions{IDs: ids})
	federated := a.Domain("other.example")
	source, err := workloadapi.NewJWTSource(t.Context(), workloadapi.WithClientOptions(workloadapi.WithAddr(address)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()

	svids, err := source.FetchJWTSVIDs(t.Context(), jwtsvid.Params{Audience: "vault", ExtraAudiences: []string{"two"}})
	if err != nil || len(svids) != 2 || svids[0].ID.String() != ids[0] || svids[1].ID.String() != ids[1] {
		t.Fatalf("SVIDs %v, %v; want those of %q", svids, err, ids)
	}
	one, err := source.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "vault", Subject: spiffeid.RequireFromString(ids[1])})
	if err != nil || one.ID.String() != ids[1] {
		t.Errorf("SVID %v, %v; want that of %s", one, err, ids[1])
	}
	for name, token := range map[string]string{
		"fetched": svids[0].Marshal(), "with two audiences": svids[1].Marshal(), "signed": a.SVID(map[string]any{"aud": "vault"}),
		"federated": a.SVID(map[string]any{"aud": "vault", "sub": "spiffe://other.example/x"}),
	} {
		if got, err := jwtsvid.ParseAndValidate(token, source, []string{"vault"}); err != nil || got.Claims["iss"] != nil {
			t.Errorf("%s: %v, %v; want it accepted, without iss", name, got, err)
		}
	}
	for name, token := range map[string]string{
		"other audience": a.SVID(nil),
		"other domain's key": federated.Sign(map[string]any{"typ": "JWT"}, mustJSON(map[string]any{
			"sub": ids[0], "aud": "vault", "exp": time.Now().Add(time.Minute).Unix(),
		})),
		"expired": a.SVID(map[string]any{"aud": "vault", "exp": time.Now().Add(-time.Hour).Unix()}),
	} {
		if _, err := jwtsvid.ParseAndValidate(token, source, []string{"vault"}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// The stream sends all bundles again after each change.
func TestWorkloadAPIStreamsBundles(t *testing.T) {
	t.Parallel()
	a, address := startWorkloadAPI(t, WorkloadAPIOptions{Issuer: "https://oidc.example.org"})
	source, err := workloadapi.NewJWTSource(t.Context(), workloadapi.WithClientOptions(workloadapi.WithAddr(address)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	own := a.Domain("example.org")
	old, _ := own.Key()
	before := a.SVID(map[string]any{"aud": "vault"})

	// changed waits for the update; without one it waits for as long as the test may run.
	changed := func(change func()) {
		change()
		<-source.Updated()
	}
	changed(func() { own.Rotate() })
	for name, token := range map[string]string{"before": before, "after": a.SVID(map[string]any{"aud": "vault"})} {
		if got, err := jwtsvid.ParseAndValidate(token, source, []string{"vault"}); err != nil || got.Claims["iss"] != "https://oidc.example.org" {
			t.Errorf("signed %s the rotation: %v, %v", name, got, err)
		}
	}
	changed(func() { own.Retire(old) })
	if _, err := jwtsvid.ParseAndValidate(before, source, []string{"vault"}); err == nil || !strings.Contains(err.Error(), "no JWT authority") {
		t.Errorf("by a retired key: %v; want no JWT authority", err)
	}
	changed(func() { a.Withdraw("example.org") })
	if _, err := source.GetJWTBundleForTrustDomain(spiffeid.RequireTrustDomainFromString("example.org")); err == nil {
		t.Error("a bundle that was withdrawn is still there")
	}
}

func TestWorkloadAPIRefuses(t *testing.T) {
	t.Parallel()
	a, address := startWorkloadAPI(t, WorkloadAPIOptions{})
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	api := workload.NewSpiffeWorkloadAPIClient(conn)
	secured := func(value string) context.Context {
		return metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", value)
	}
	svid := func(ctx context.Context, r *workload.JWTSVIDRequest) codes.Code {
		_, err := api.FetchJWTSVID(ctx, r)
		return status.Code(err)
	}
	bundles := func(ctx context.Context) codes.Code {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := api.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		return status.Code(err)
	}
	good := &workload.JWTSVIDRequest{Audience: []string{"a"}}
	_, unimplemented := api.ValidateJWTSVID(secured("true"), &workload.ValidateJWTSVIDRequest{})
	for name, got := range map[string][2]codes.Code{
		"SVID":                     {svid(secured("true"), good), codes.OK},
		"SVID, no header":          {svid(t.Context(), good), codes.InvalidArgument},
		"SVID, header True":        {svid(secured("True"), good), codes.InvalidArgument},
		"SVID, no audience":        {svid(secured("true"), &workload.JWTSVIDRequest{}), codes.InvalidArgument},
		"SVID of somebody else":    {svid(secured("true"), &workload.JWTSVIDRequest{Audience: good.Audience, SpiffeId: "spiffe://example.org/x"}), codes.PermissionDenied},
		"bundles":                  {bundles(secured("true")), codes.OK},
		"bundles, no header":       {bundles(t.Context()), codes.InvalidArgument},
		"bundles, header twice":    {bundles(metadata.AppendToOutgoingContext(secured("true"), "workload.spiffe.io", "true")), codes.InvalidArgument},
		"what is not there":        {status.Code(unimplemented), codes.Unimplemented},
		"fault: status 503":        {faulty(a, 503, func() codes.Code { return bundles(secured("true")) }), codes.Unavailable},
		"fault: status 403":        {faulty(a, 403, func() codes.Code { return svid(secured("true"), good) }), codes.PermissionDenied},
		"fault: status 500":        {faulty(a, 500, func() codes.Code { return bundles(secured("true")) }), codes.Internal},
		"after the fault has gone": {bundles(secured("true")), codes.OK},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %s; want %s", name, got[0], got[1])
		}
	}
	a.Fault(OpBundles, Fault{Kind: KindHang, Count: 1})
	hurried, cancel := context.WithTimeout(secured("true"), time.Millisecond)
	defer cancel()
	if got := bundles(hurried); got != codes.DeadlineExceeded {
		t.Errorf("hanging: %s; want %s", got, codes.DeadlineExceeded)
	}
	for name, f := range map[string]Fault{"cut": {Kind: KindCut}, "late status": {Kind: KindStatus, Status: 503, After: true}} {
		if err := a.addFault(OpBundles, f); err == nil || !strings.Contains(err.Error(), "want one of the kinds") {
			t.Errorf("%s: %v; want it refused", name, err)
		}
	}
}

// faulty makes one call with a fault.
func faulty(a *WorkloadAPI, httpStatus int, call func() codes.Code) codes.Code {
	a.Fault(OpAny, Fault{Kind: KindStatus, Status: httpStatus, Count: 1})
	return call()
}

func TestWorkloadAPIStartsAgain(t *testing.T) {
	t.Parallel()
	a, address := startWorkloadAPI(t, WorkloadAPIOptions{})
	a.Stop()
	if _, err := workloadClient(t, address).FetchJWTBundles(t.Context()); status.Code(err) != codes.Unavailable {
		t.Errorf("stopped: %v; want %s", err, codes.Unavailable)
	}
	if err := a.Start(strings.TrimPrefix(address, "unix://")); err != nil {
		t.Fatal(err)
	}
	if set, err := workloadClient(t, address).FetchJWTBundles(t.Context()); err != nil || set.Len() != 1 {
		t.Errorf("started again: %v, %v; want one bundle", set, err)
	}
}

func TestWorkloadAPIOverHTTP(t *testing.T) {
	t.Parallel()
	a := NewWorkloadAPI(WorkloadAPIOptions{})
	post := func(path, body string) (int, string) {
		w := httptest.NewRecorder()
		a.ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader(body)))
		return w.Code, w.Body.String()
	}
	before, _ := a.Domain("example.org").Key()
	if code, kid := post("/lab/rotate", ""); code != 200 || kid == before || kid == "" {
		t.Errorf("rotate: %d %q", code, kid)
	}
	code, token := post("/lab/svid", `{"aud":"vault","team":"red"}`)
	svid, err := jwtsvid.ParseInsecure(token, []string{"vault"})
	if code != 200 || err != nil || svid.ID.String() != "spiffe://example.org/workload" || svid.Claims["team"] != "red" {
		t.Errorf("SVID: %d %v %v", code, svid, err)
	}
	if code, _ := post("/lab/svid", `[]`); code != 400 {
		t.Errorf("SVID of no claims: %d; want 400", code)
	}
	if code, _ := post("/lab/faults", `{"op":"bundles","kind":"cut"}`); code != 400 {
		t.Errorf("fault that gRPC does not have: %d; want 400", code)
	}
	if code, _ := post("/lab/faults", `{"op":"bundles","kind":"status","status":503}`); code != 204 {
		t.Errorf("fault: %d; want 204", code)
	}
}
