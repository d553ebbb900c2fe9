// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// What the built-in kinds of targets refuse, in the words of their servers, and what the operator reads of it: a part of the
// hint. "" is none.
func TestBuiltInHints(t *testing.T) {
	t.Parallel()
	nuget := func(text string) string { return string(mustJSON(map[string]string{"error": text})) }
	crates := func(text string) string {
		return string(mustJSON(map[string]any{"errors": []map[string]string{{"detail": text}}}))
	}
	pypi := func(code string) string {
		return string(mustJSON(map[string]any{"message": "Token request failed", "errors": []map[string]string{{"code": code, "description": "x"}}}))
	}
	const config = "The Trusted Publishing config for repository `acme/widget` "
	for _, c := range []struct {
		driver string
		status int
		body   string
		want   string
	}{
		{"nuget", 401, nuget("This bearer token has already been used. A new bearer token must be used for each request."), "exchanged before"},
		{"nuget", 401, nuget("No matching trust policy owned by user 'jim' was found."), "username is the user who made the policy"},
		{"nuget", 401, nuget("The policy 'p' has expired. Sign in and renew the trust policy on the Trusted Publishing page."), "its user renews it"},
		{"nuget", 401, nuget("Workflow mismatch for policy 'p': expected 'a.yml', actual 'b.yml'"), "another workflow file"},
		{"nuget", 401, nuget("Claim 'job_workflow_ref' has value 'x' which does not start with y."), "another workflow file"},
		{"nuget", 401, nuget("Environment mismatch for policy 'p': expected 'prod', actual ''"), "another environment"},
		{"nuget", 401, nuget("The GitHub Actions event 'pull_request_target' is not allowed."), "of this event"},
		{"nuget", 401, nuget("The JSON Web Token is missing the required claim 'repository'."), "lacks a claim"},
		{"nuget", 401, nuget("The JSON web token must have exactly one aud claim value."), "aud is not the gallery's audience"},
		{"nuget", 401, nuget("The JSON web token has an incorrect audience."), "aud is not the gallery's audience"},
		{"nuget", 401, nuget("The JSON web token iss claim is not supported."), "of this issuer"},
		{"nuget", 401, nuget("The JSON web token has expired."), "the token has expired"},
		{"nuget", 401, nuget("The JSON web token is not yet valid."), "compare the clocks"},
		{"nuget", 401, nuget("The JSON web token must have a jti claim."), "could not verify"},
		{"nuget", 401, nuget("The JSON web token has an invalid signature."), "could not verify"},
		{"nuget", 401, nuget("The JSON web token could not be validated."), "could not verify"},
		{"nuget", 401, nuget("The bearer token could not be parsed as a JSON web token."), "could not verify"},
		{"nuget", 400, nuget("The user 'jim' is locked."), "is locked, deleted"},
		{"nuget", 400, nuget("The organization 'acme' does not have a confirmed email address."), "is locked, deleted"},
		{"nuget", 400, nuget("Generating fetching tokens directly for organizations is not supported. The federated credential trust policy is created on the profile of one of the organization's administrators and is scoped to the organization in the policy."), "is an organization's"},
		{"nuget", 400, nuget("The package owner of the match federated credential trust policy not longer exists."), "owner in the trust policy is gone"},
		{"nuget", 400, nuget("The scopes on the generated API key are not valid. x"), "what its scopes say"},
		{"nuget", 401, nuget("The Authorization header is missing."), "changed on its way"},
		{"nuget", 415, nuget("The request must have a Content-Type of 'application/json'."), "changed on its way"},
		{"nuget", 404, "", "has no token API"},
		{"nuget", 403, "blocked", ""},
		{"pypi", 422, pypi("invalid-reuse-token"), "exchanged before"},
		{"pypi", 422, pypi("invalid-publisher"), "no trusted publisher of PyPI matches"},
		{"pypi", 422, pypi("invalid-pending-publisher"), "pending publisher"},
		{"pypi", 422, pypi("not-enabled"), "switched off there"},
		{"pypi", 422, pypi("invalid-token"), "aud is not exactly"},
		{"pypi", 422, pypi("invalid-payload"), "of an issuer that PyPI does not know"},
		{"pypi", 404, "<html>", "at the target's url"},
		{"crates-io", 400, crates("JWT has already been used"), "exchanged before"},
		{"crates-io", 400, crates("Unsupported JWT issuer: https://x.example"), "tokens of this issuer"},
		{"crates-io", 400, crates("Failed to decode JWT"), "its aud is not crates.io"},
		{"crates-io", 400, crates("Missing JWT key ID"), "the key that signed"},
		{"crates-io", 400, crates("Invalid JWT key ID"), "the key that signed"},
		{"crates-io", 400, crates("No Trusted Publishing config found for repository `acme/widget`."), "no crate trusts"},
		{"crates-io", 400, crates(config + "does not match the repository owner ID (7) in the JWT. Expected owner IDs: 8. Please recreate the Trusted Publishing config to update the repository owner ID."), "by an earlier owner"},
		{"crates-io", 400, crates(config + "does not match the namespace ID (7) in the JWT. Expected namespace IDs: 8."), "by an earlier owner"},
		{"crates-io", 400, crates(config + "does not match the workflow filename `a.yml` in the JWT. Expected workflow filenames: `b.yml`"), "another workflow file"},
		{"crates-io", 400, crates(config + "does not match the workflow filepath `a.yml` in the JWT. Expected workflow filepaths: `b.yml`"), "another workflow file"},
		{"crates-io", 400, crates(config + "does not match the environment `a` in the JWT. Expected environments: `b`"), "another environment"},
		{"crates-io", 400, crates(config + "requires an environment, but the JWT does not specify one. Expected environments: `b`"), "another environment"},
		{"crates-io", 400, crates("Unexpected `workflow_ref` value"), "or no crate trusts"},
		{"crates-io", 403, "We require that all requests include a `User-Agent` header.", "User-Agent"},
		{"crates-io", 404, "", "at the target's url"},
		{"rubygems", 404, "", "no trusted publisher matches the token"},
		{"rubygems", 404, `{"error":"Not Found"}`, "no trusted publisher matches the token"},
		{"rubygems", 422, `{"errors":{"jwt.claims.jti":["must be unique"]}}`, "exchanged before"},
		{"rubygems", 422, `{"errors":{"rubygem":["x"]}}`, "its gems and scopes"},
		{"rubygems", 400, `{"error":"Missing/invalid nbf"}`, "lacks a claim"},
		{"npm", 404, `{"message":"OIDC token exchange error - package not found"}`, "the package does not exist"},
		{"npm", 401, `{"message":"x"}`, "its aud is not npm:"},
		{"npm", 400, `{"message":"x"}`, "its aud is not npm:"},
		{"artifactory", 403, `{"errors":[{"status":403,"code":"FORBIDDEN","message":"x"}]}`, "identity mappings"},
		{"artifactory, with credential", 401, `{"errors":[{"status":401,"code":"UNAUTHORIZED","message":"x"}]}`, "no access token of an administrator"},
		{"artifactory, with credential", 400, `{"errors":[{"status":400,"code":"BAD_REQUEST","message":"x"}]}`, "username or scope"},
		{"artifactory, with credential", 404, "", "7.50.3"},
		{"gitea", 401, `{"message":"auth required"}`, "password is wrong"},
		{"gitea", 403, `{"message":"x"}`, "nor an administrator's"},
		{"gitea", 404, `{"message":"x"}`, "the user does not exist"},
		{"gitea", 400, `{"message":"invalid access token scope provided"}`, "scopes"},
	} {
		err := refusedBy(t, c.driver, fmt.Sprintf("%d %s", c.status, http.StatusText(c.status)), c.body)
		text, lives := told(err)
		rest, refused := strings.CutPrefix(text, "denied by the target: it refused")
		if !refused || lives || !strings.Contains(rest, c.want) || c.want == "" && !strings.HasPrefix(rest, " (status") {
			t.Errorf("%s, %d %.60s: %s; want %q in it", c.driver, c.status, c.body, text, c.want)
		}
	}
}

// Where an answer's body is lost, NuGet's phrase beside the status says the same.
func TestNuGetReasonPhrase(t *testing.T) {
	t.Parallel()
	err := refusedBy(t, "nuget", "401 The JSON web token has expired.", "")
	wantTold(t, err, "denied by the target: it refused: the token has expired (status 401)", false)
}

// A built-in kind that can end keys says what to mend where its credential is refused, and so does its check.
func TestBuiltInHintsOfTheCredential(t *testing.T) {
	t.Parallel()
	for driver, want := range map[string]string{"artifactory, with credential": "access token", "gitea": "password is wrong"} {
		o := openBuiltIn(t, driver, "401 Unauthorized", "{}")
		for call, err := range map[string]error{
			"check":  o.Check(t.Context()),
			"revoke": o.Revoke(t.Context(), target.Handle{Name: "oidcx-1", Accessor: "7", Params: map[string]any{"username": "ci"}}),
		} {
			if text, _ := told(err); !strings.HasPrefix(text, "denied by the target: it refused: ") || !strings.Contains(text, want) {
				t.Errorf("%s, %s: %s", driver, call, text)
			}
		}
	}
}

// refusedBy is what an exchange with a built-in kind of target ends with, whose server answers with a status line and a body.
func refusedBy(t *testing.T, driver, status, body string) error {
	t.Helper()
	o := openBuiltIn(t, driver, status, body)
	params := map[string]map[string]any{
		"nuget": {"username": "jim"}, "npm": {"package": "widget"}, "artifactory": {"provider_name": "github"},
		"artifactory, with credential": {"username": "ci"}, "gitea": {"username": "ci", "scopes": "write:repository"},
	}
	request := ask(t, o, "t0ken", params[driver])
	if o.Source() == target.SourceNone {
		request.SubjectToken = ""
	}
	_, err := o.Exchange(t.Context(), request)
	return err
}

func openBuiltIn(t *testing.T, driver, status, body string) *target.Target {
	t.Helper()
	name, _, _ := strings.Cut(driver, ",")
	c := target.Config{Driver: name, URL: statusLine(t, status, body), Egress: egress.Policy{AllowHTTPLoopback: true}}
	switch driver {
	case "artifactory":
		c.Audience = "jfrog"
	case "artifactory, with credential":
		c.Credential = map[string]string{"token": "adm1n"}
	case "gitea":
		c.Credential = map[string]string{"username": "ci", "password": "s3cret"}
	}
	o, err := target.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	return o
}

// statusLine is a server whose answers have a status line of the test's own, which net/http does not write.
func statusLine(t *testing.T, status, body string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				_, _ = io.Copy(io.Discard, r.Body) // what is left unread would cut the answer off
				fmt.Fprintf(conn, "HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", status, len(body), body)
			}
			conn.Close()
		}
	}()
	return "http://" + l.Addr().String()
}

func mustJSON(v any) []byte {
	out, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return out
}
