// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
)

// listed opens a target whose find has this next, at a server that answers its nth request (from 1) with a status, a body and
// a Link header; asked are the queries that it got.
func listed(t *testing.T, next string, answer func(n int) (status int, body, link string)) (opened *Target, asked *[]string) {
	t.Helper()
	asked = &[]string{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*asked = append(*asked, r.URL.RawQuery)
		status, body, link := answer(len(*asked))
		w.Header().Set("Link", link)
		w.WriteHeader(status)
		_, _ = fmt.Fprint(w, body)
	}))
	t.Cleanup(server.Close)
	if next != "" {
		next = "  next: '" + next + "'\n"
	}
	profile := strings.Replace(base, "  found: response.json.map(k, k.id)\n  next: '{}'\n",
		"  query: {name: name, size: '2'}\n  found: response.json.keys.filter(k, k.name == name).map(k, k.id)\n"+next, 1)
	opened, err := Open(Config{Driver: "http", Profile: profile, URL: server.URL, Credential: map[string]string{"token": "t"}, Egress: egress.Policy{AllowHTTPLoopback: true}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(opened.Close)
	return opened, asked
}

// Whatever keeps a list from being read to its end, that is not taken for "there is no such key".
func TestFindReadsToTheEnd(t *testing.T) {
	const none, ours = `{"keys":[{"id":"k-1","name":"other"}]}`, `{"keys":[{"id":"k-7","name":"n"}]}`
	const cursor = `has(response.json.next) ? {"cursor": response.json.next} : {}`
	bodies := func(bodies ...string) func(int) (int, string, string) {
		return func(n int) (int, string, string) { return 200, bodies[min(n, len(bodies))-1], "" }
	}
	more := func(next string) string { return strings.Replace(none, "}]", `}],"next":`+next, 1) }
	for name, c := range map[string]struct {
		next   string
		answer func(int) (int, string, string)
		want   string // accessors, or the error
		asked  string
	}{
		"one page":         {cursor, bodies(none), "", "name=n&size=2"},
		"last page":        {cursor, bodies(more(`"a&b"`), ours), "k-7", "name=n&size=2 cursor=a%26b&name=n&size=2"},
		"on each page":     {cursor, bodies(strings.Replace(ours, "}]", `}],"next":"a"`, 1), strings.Replace(ours, "k-7", "k-6", 1)), "k-6 k-7", "name=n&size=2 cursor=a&name=n&size=2"},
		"replaces a value": {`page < 2 ? {"size": 3} : {}`, bodies(ours), "k-7", "name=n&size=2 name=n&size=3"},
		"moved up":         {cursor, bodies(more(`"a"`), none, strings.Replace(ours, "}]", `}],"next":"a"`, 1), none), "k-7", "name=n&size=2 cursor=a&name=n&size=2 name=n&size=2 cursor=a&name=n&size=2"},
		"never there":      {cursor, bodies(more(`"a"`), none, more(`"a"`), none), "", "name=n&size=2 cursor=a&name=n&size=2 name=n&size=2 cursor=a&name=n&size=2"},
		"no map":           {`response.json.next`, bodies(more(`"a"`)), "find: target's answer makes no sense: next: yields no map", "name=n&size=2"},
		"null":             {`response.json.next`, bodies(more(`null`)), "find: target's answer makes no sense: next: yields no map", "name=n&size=2"},
		"not a value":      {cursor, bodies(more(`{"a":1}`)), "find: target's answer makes no sense: next: yields neither text, number, bool, timestamp nor a list of them", "name=n&size=2"},
		"fails":            {`response.json.next`, bodies(none), "find: target's answer makes no sense: next: \"next\" is missing", "name=n&size=2"},
		"a long query":     {cursor, bodies(more(`"` + strings.Repeat("x", 4<<10) + `"`)), "find: target's answer makes no sense: next: yields a query of more than 4096 bytes", "name=n&size=2"},
		"second page broken": {cursor, func(n int) (int, string, string) { return 200, []string{more(`"a"`), `{"keys":`}[n-1], "" },
			"find: target's answer makes no sense: the answer is not JSON", "name=n&size=2 cursor=a&name=n&size=2"},
		"second page fails": {cursor, func(n int) (int, string, string) { return []int{200, 500}[n-1], more(`"a"`), "" },
			"find: outcome is unknown: it answered otherwise than expected (status 500)", "name=n&size=2 cursor=a&name=n&size=2"},
		"the server knows better": {`{}`, func(int) (int, string, string) {
			return 200, none, `<https://x/?page=1>; rel="prev", <https://x/?page=2>; rel="next"`
		},
			"find: target's answer makes no sense: the server says that there is a further page, and next does not ask for it", "name=n&size=2"},
		"no next, and the server knows better": {"", func(int) (int, string, string) { return 200, none, `<https://x/?page=2>; rel="next"` },
			"find: target's answer makes no sense: the server says that there is a further page, and next does not ask for it", "name=n&size=2"},
		"no next":      {"", bodies(ours), "k-7", "name=n&size=2"},
		"found before": {`{}`, func(int) (int, string, string) { return 200, ours, `<https://x/?page=2>; rel=next` }, "k-7", "name=n&size=2"},
		"the last one": {`{}`, func(int) (int, string, string) {
			return 200, none, `<https://x/?page=1>; rel="prev first", <x>; rel=nextcloud`
		}, "", "name=n&size=2"},
	} {
		t.Run(name, func(t *testing.T) {
			opened, asked := listed(t, c.next, c.answer)
			handles, err := opened.Find(t.Context(), Handle{Name: "n", Params: map[string]any{"project": "p"}})
			var got []string
			for _, h := range handles {
				got = append(got, h.Accessor)
			}
			if err != nil {
				got = append(got, err.Error())
			}
			if diff := cmp.Diff([]string{c.want, c.asked}, []string{strings.Join(got, " "), strings.Join(*asked, " ")}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestFindEndsWhereAListDoesNot(t *testing.T) {
	opened, asked := listed(t, `{"page": page + 1}`, func(int) (int, string, string) { return 200, `{"keys":[{"id":"k-7","name":"n"}]}`, "" })
	_, err := opened.Find(t.Context(), Handle{Name: "n", Params: map[string]any{"project": "p"}})
	if !errors.Is(err, ErrProtocol) || len(*asked) != 100 || (*asked)[99] != "name=n&page=100&size=2" {
		t.Errorf("got %v after %d requests; want ErrProtocol after 100", err, len(*asked))
	}
}
