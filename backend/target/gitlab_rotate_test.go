// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

func TestGitLabRotatesKeysOfEachKind(t *testing.T) {
	for kind, params := range map[string]map[string]any{
		"personal":        {"id": "bob"},
		"impersonation":   {"id": "3"},
		"project":         {"id": "acme/widget", "access_level": "reporter"},
		"group":           {"id": "2", "access_level": "reporter"},
		"service_account": {"id": "acme/sub", "user": "deployer"},
	} {
		t.Run(kind, func(t *testing.T) {
			g := newGitLab(t, lab.GitLabOptions{})
			opened := g.open(g.root)
			params["kind"], params["scopes"] = kind, "read_api"
			old, err := opened.Exchange(t.Context(), g.request(opened, "oidcx-1", params))
			if err != nil {
				t.Fatal(err)
			}
			was := g.Live()[0]
			got, err := opened.Rotate(t.Context(), old.Handle, g.now.AddDate(0, 0, 9))
			if err != nil {
				t.Fatal(err)
			}
			h := old.Handle
			h.Accessor = "3"
			want := Key{Secret: got.Secret, Accessor: "3", Expiry: time.Date(2031, 5, 16, 0, 0, 0, 0, time.UTC), Handle: h}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			was.ID, was.ExpiresAt = 3, "2031-05-16"
			if diff := cmp.Diff([]lab.GitLabToken{was}, g.Live()); diff != "" || g.Valid(old.Secret) || !g.Valid(got.Secret) {
				t.Errorf("live (-want +got):\n%s", diff)
			}
			if err := opened.Revoke(t.Context(), got.Handle); err != nil || len(g.Live()) != 0 {
				t.Errorf("revoking the new one: %v, live %v", err, g.Live())
			}
			if _, err := opened.Rotate(t.Context(), got.Handle, g.now.AddDate(0, 0, 9)); !errors.Is(err, ErrDenied) {
				t.Errorf("rotating a dead one: %v; want ErrDenied", err)
			}
		})
	}
}

// The answer to a rotation is lost: the new key is found by the old one's name, and ended.
func TestGitLabLostRotationOfAKey(t *testing.T) {
	g := newGitLab(t, lab.GitLabOptions{})
	opened := g.open(g.root)
	old, err := opened.Exchange(t.Context(), g.request(opened, "oidcx-1", ofProject1))
	if err != nil {
		t.Fatal(err)
	}
	g.Fault(lab.OpRotate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	if _, err := opened.Rotate(t.Context(), old.Handle, g.now.AddDate(0, 0, 9)); !errors.Is(err, ErrUnknown) || g.Calls(lab.OpRotate) != 1 {
		t.Errorf("got %v after %d calls; want ErrUnknown after one", err, g.Calls(lab.OpRotate))
	}
	found, err := opened.Find(t.Context(), old.Handle)
	if err != nil || len(found) != 1 || found[0].Accessor != "3" {
		t.Fatalf("find: %v, %v; want the new key", found, err)
	}
	if err := opened.Revoke(t.Context(), found[0]); err != nil || len(g.Live()) != 0 {
		t.Errorf("revoke: %v, live %v", err, g.Live())
	}
}

func TestGitLabRotatesItsCredential(t *testing.T) {
	g := newGitLab(t, lab.GitLabOptions{})
	credential := g.AddToken(g.ana, 3, "api")
	opened := g.open(credential)
	d := newGitLabDriver(opened)
	got, err := d.rotateCredential(t.Context(), "", g.now.AddDate(0, 0, 30))
	fresh := got.Fields["token"]
	if err != nil || len(got.Fields) != 1 || !got.Expiry.Equal(time.Date(2031, 6, 6, 0, 0, 0, 0, time.UTC)) || g.Valid(credential) {
		t.Fatalf("got %v, %v, %v; the old one lives: %v", got, got.Expiry, err, g.Valid(credential))
	}
	if err := g.open(fresh).Check(t.Context()); err != nil {
		t.Errorf("the new one: %v", err)
	}
	if _, err := d.rotateCredential(t.Context(), "", g.now.AddDate(0, 0, 30)); !errors.Is(err, ErrParameter) || !g.Valid(fresh) {
		t.Errorf("rotating the old one again: %v, the new one lives: %v; want ErrParameter, true", err, g.Valid(fresh))
	}
}

// A rotation whose outcome is not known is never repeated: GitLab would take it for theft and end the new credential. One
// that is known not to have happened may be.
func TestGitLabNeverRotatesItsCredentialTwice(t *testing.T) {
	for name, c := range map[string]struct {
		fault lab.Fault
		want  error
		again error // nil = it is rotated then
	}{
		"answer lost":    {lab.Fault{Kind: lab.KindCut, After: true}, ErrUnknown, ErrParameter},
		"no answer":      {lab.Fault{Kind: lab.KindCut}, ErrUnknown, ErrParameter},
		"server error":   {lab.Fault{Kind: lab.KindStatus, Status: 500}, ErrUnknown, ErrParameter},
		"no secret":      {lab.Fault{Kind: lab.KindNoSecret}, ErrProtocol, ErrParameter},
		"wrong types":    {lab.Fault{Kind: lab.KindWrongTypes}, ErrProtocol, ErrParameter},
		"half an answer": {lab.Fault{Kind: lab.KindTruncate}, ErrUnknown, ErrParameter},
		"sign-in page":   {lab.Fault{Kind: lab.KindHTML}, ErrProtocol, ErrParameter},
		"busy":           {lab.Fault{Kind: lab.KindStatus, Status: 503}, ErrBusy, nil},
		"denied":         {lab.Fault{Kind: lab.KindStatus, Status: 403}, ErrDenied, nil},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGitLab(t, lab.GitLabOptions{})
			d := newGitLabDriver(g.open(g.AddToken(g.ana, 3, "api")))
			c.fault.Count = 1
			g.Fault(lab.OpRotate, c.fault)
			if _, err := d.rotateCredential(t.Context(), "", g.now.AddDate(0, 0, 30)); !errors.Is(err, c.want) {
				t.Errorf("got %v; want %v", err, c.want)
			}
			_, err := d.rotateCredential(t.Context(), "", g.now.AddDate(0, 0, 30))
			calls := 2
			if c.again != nil {
				calls = 1
			}
			if !errors.Is(err, c.again) || g.Calls(lab.OpRotate) != calls {
				t.Errorf("again: %v after %d calls; want %v after %d", err, g.Calls(lab.OpRotate), c.again, calls)
			}
		})
	}
}
