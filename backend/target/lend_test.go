// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
)

// library stands for a client library: it asks with a client of its own, and reads one JSON value.
func library(a *api, attempts int, address string) func(context.Context) error {
	client := &http.Client{Transport: carrier{a}}
	return func(ctx context.Context) error {
		var err error
		for range attempts {
			var req *http.Request
			if req, err = http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(`{"name":"n"}`)); err != nil {
				return err
			}
			req.Header.Set("User-Agent", "library/1")
			var resp *http.Response
			if resp, err = client.Do(req); err != nil {
				continue
			}
			var got struct{ Name string }
			err = json.NewDecoder(resp.Body).Decode(&got)
			_ = resp.Body.Close()
		}
		return err
	}
}

// lending opens an api at a server that answers with status and body, and counts what arrives.
func lending(t *testing.T, status int, body string) (*api, *[]string) {
	t.Helper()
	var saw []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		saw = append(saw, r.Method+" "+r.RequestURI+" "+r.UserAgent()+" "+string(text))
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(server.Close)
	opened, err := Open(Config{
		Driver: "http", Profile: base, URL: server.URL + "/base", Credential: map[string]string{"token": "t0p"}, UserAgent: "engine/1",
		MaxResponseBytes: 64, Egress: egress.Policy{AllowHTTPLoopback: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(opened.Close)
	return opened.api, &saw
}

// What a client library does is bounded and judged as what do does, and sent once however often it tries.
func TestLend(t *testing.T) {
	for name, c := range map[string]struct {
		status   int
		body     string
		attempts int
		path     string
		want     string // the error; "" = none
		sent     int
	}{
		"answered":             {200, `{"name":"n"}`, 1, "/base/keys", "", 1},
		"no request":           {200, `{}`, 0, "/base/keys", "exchange: request cannot be made: the client library makes no request of this", 0},
		"repeats a success":    {200, `{}`, 2, "/base/keys", "exchange: outcome is unknown: the client library sends it twice", 1},
		"repeats a failure":    {500, `{}`, 6, "/base/keys", "exchange: outcome is unknown: it answered otherwise than expected (status 500)", 1},
		"repeats when busy":    {429, `{}`, 6, "/base/keys", "exchange: target is busy: try again later (status 429)", 1},
		"denied":               {403, `{"message":"s3cret"}`, 1, "/base/keys", "exchange: denied by the target: it refused (status 403)", 1},
		"redirect":             {302, `{}`, 1, "/base/keys", "exchange: outcome is unknown: it redirects, and redirects are not followed; correct the target's url (status 302)", 1},
		"of another type":      {200, `{"name":7}`, 1, "/base/keys", "exchange: target's answer makes no sense: the answer is not what this call's should be", 1},
		"not JSON":             {200, `s3cret`, 1, "/base/keys", "exchange: target's answer makes no sense: the answer is not JSON", 1},
		"more than one value":  {200, `{"name":"n"}{}`, 1, "/base/keys", "exchange: target's answer makes no sense: the answer is not JSON", 1},
		"larger than may be":   {200, `{"name":"` + strings.Repeat("n", 64) + `"}`, 1, "/base/keys", "exchange: target's answer makes no sense: the answer has more than 64 bytes", 1},
		"goes to another host": {200, `{}`, 1, "http://localhost:1/base/keys", "exchange: request cannot be made: the client library asks another server", 0},
	} {
		t.Run(name, func(t *testing.T) {
			a, saw := lending(t, c.status, c.body)
			address := c.path
			if strings.HasPrefix(address, "/") {
				address = "http://" + a.base.Host + c.path
			}
			err := a.lend(t.Context(), call{op: "exchange", ok: []int{200}, busy: []int{429}, denied: []int{403}, wantBody: true}, library(a, c.attempts, address))
			text := ""
			if err != nil {
				text = err.Error()
			}
			if text != c.want {
				t.Errorf("got error %q; want %q", text, c.want)
			}
			if len(*saw) != c.sent {
				t.Errorf("%d requests were sent: %q; want %d", len(*saw), *saw, c.sent)
			}
			if want := `POST /base/keys engine/1 {"name":"n"}`; c.sent > 0 && (*saw)[0] != want {
				t.Errorf("sent %q; want %q", (*saw)[0], want)
			}
		})
	}
}

// A request that nobody asked the library for goes nowhere.
func TestCarrierRefusesWhatIsNoErrand(t *testing.T) {
	a, saw := lending(t, 200, "{}")
	if err := library(a, 1, "http://"+a.base.Host+"/base/keys")(t.Context()); err == nil || len(*saw) != 0 {
		t.Errorf("got error %v, %d requests; want an error and none", err, len(*saw))
	}
}
