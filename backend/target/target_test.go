// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// acmeConfig is a valid Config of the acme profile.
func acmeConfig() target.Config {
	return target.Config{Name: "acme", Driver: "http", Profile: acme, Credential: map[string]string{"token": "t0p"}}
}

func TestSubjectClaims(t *testing.T) {
	config := acmeConfig()
	config.Profile = "claims: [repository, ref]\n" + acme
	opened, err := target.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"repository", "ref"}, opened.SubjectClaims()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// fieldError wants err to be a FieldError and returns its whole text; "" if there is no error.
func fieldError(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	var field *target.FieldError
	if !errors.As(err, &field) {
		t.Fatalf("got %T (%v); want a *target.FieldError", err, err)
	}
	return err.Error()
}

func TestDrivers(t *testing.T) {
	drivers := target.Drivers()
	if !slices.IsSorted(drivers) || !slices.Contains(drivers, "http") || !slices.Contains(drivers, "nuget") || len(slices.Compact(slices.Clone(drivers))) != len(drivers) {
		t.Errorf("got %q; want each once, sorted, http among them", drivers)
	}
}

// A driver is its file and one call of the suite, and a row of the README's table. An example profile is tried likewise.
func TestEveryDriverIsTriedAndTold(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var tests strings.Builder // those that call the suite
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "targettest.Run(") {
			tests.Write(text)
		}
	}
	for _, driver := range target.Drivers() {
		tried := regexp.MustCompile(`(Config\{Driver: |registry\()"` + driver + `"`)
		if !tried.MatchString(tests.String()) {
			t.Errorf("no call of the suite tries driver %s", driver)
		}
		if told := regexp.MustCompile(`(?m)^\| \[?` + "`" + driver + "`"); !told.Match(readme) {
			t.Errorf("the README's table of targets has no row for driver %s", driver)
		}
	}
	examples, err := filepath.Glob("../../bootstrap/targets/*.yaml")
	if err != nil || len(examples) == 0 {
		t.Fatalf("no example profiles: %v", err)
	}
	for _, path := range examples {
		if name := strings.TrimSuffix(filepath.Base(path), ".yaml"); !strings.Contains(tests.String(), `"`+name+`"`) && !strings.Contains(tests.String(), "targets/"+name+".yaml") {
			t.Errorf("no call of the suite tries %s", path)
		}
	}
}

func TestTargetTellsItsFacts(t *testing.T) {
	nuget, err := target.Open(target.Config{Driver: "nuget"})
	if err != nil {
		t.Fatal(err)
	}
	got := []any{nuget.URL(), nuget.Host(), nuget.Source(), nuget.Audience(), nuget.HeaderName(), nuget.Lifetime(), nuget.Caps(), len(nuget.CredentialFields())}
	want := []any{"https://www.nuget.org", "www.nuget.org", target.SourceRequest, "https://www.nuget.org", "X-NuGet-ApiKey", time.Hour, target.Caps{}, 0}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestOpenNamesTheField(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*target.Config)
		want   string
	}{
		"valid":                  {func(*target.Config) {}, ""},
		"own url":                {func(c *target.Config) { c.URL = "https://acme.internal:8443/api" }, ""},
		"no driver":              {func(c *target.Config) { c.Driver = "" }, "driver: want one of " + strings.Join(target.Drivers(), ", ")},
		"path as driver":         {func(c *target.Config) { c.Driver = "../profiles/nuget" }, "driver: want one of " + strings.Join(target.Drivers(), ", ")},
		"no profile":             {func(c *target.Config) { c.Profile = "" }, `profile: is required with driver "http"`},
		"profile of a built-in":  {func(c *target.Config) { c.Driver = "nuget" }, `profile: is for driver "http" only`},
		"broken profile":         {func(c *target.Config) { c.Profile = "name: x\nfoo: y\n" }, "profile: line 2: foo: is not known here; known are name, url, subject_token_source, audience, audience_from, params, credential, claims, lifetime, header, exchange, renew, revoke, absent, find, list, check, rotate, identify, rotate_credential, retire_credential"},
		"http":                   {func(c *target.Config) { c.URL = "http://acme.example" }, "url: refused by the egress rules: http; use https (http is only for loopback, with allow_http_loopback in config)"},
		"url with user":          {func(c *target.Config) { c.URL = "https://u:p@acme.example" }, "url: has a user; credentials have fields of their own"},
		"no credential":          {func(c *target.Config) { c.Credential = nil }, `credential: field "token" is missing or longer than 16384 bytes; give credential=token=VALUE, or credential=@FILE with JSON`},
		"empty credential":       {func(c *target.Config) { c.Credential["token"] = "" }, `credential: field "token" is missing or longer than 16384 bytes; give credential=token=VALUE, or credential=@FILE with JSON`},
		"more credential":        {func(c *target.Config) { c.Credential["hunter2"] = "x" }, "credential: has a field that is unknown; want token"},
		"other source":           {func(c *target.Config) { c.Source = "elsewhere" }, "subject_token_source: want one of none, request, self, file, client_credentials, svid"},
		"source needs audience":  {func(c *target.Config) { c.Source = "request" }, "audience: is required with subject_token_source request"},
		"source with audience":   {func(c *target.Config) { c.Source, c.Audience = "request", "https://acme.example" }, ""},
		"audience":               {func(c *target.Config) { c.Audience = "a\nb" }, "audience: want printable ASCII of at most 1024 bytes"},
		"condition":              {func(c *target.Config) { c.Condition = "params.project ==" }, "condition: line 1, column 18: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}"},
		"condition not bool":     {func(c *target.Config) { c.Condition = `"yes"` }, "condition: yields string; want bool"},
		"condition reads others": {func(c *target.Config) { c.Condition = `params.level == "x"` }, "condition: uses params.level, which is not declared"},
		"condition, credential":  {func(c *target.Config) { c.Condition = `credential.token == ""` }, "condition: line 1, column 1: undeclared reference to 'credential'"},
		"ca":                     {func(c *target.Config) { c.CAPEM = "x" }, "ca_pem: item 1 is not a certificate in PEM"},
		"client cert alone":      {func(c *target.Config) { c.ClientCert = "x" }, "client_cert: one without the other; want both or none"},
		"client cert":            {func(c *target.Config) { c.ClientCert, c.ClientKey = "x", "y" }, "client_cert: not a certificate and its key in PEM"},
		"proxy":                  {func(c *target.Config) { c.ProxyURL = "ftp://x" }, "proxy_url: not an http or https URL; want for example http://proxy.example.com:3128"},
		"negative rate":          {func(c *target.Config) { c.Rate = -1 }, "rate: want calls a second, 0 for no bound"},
		"negative burst":         {func(c *target.Config) { c.Burst = -1 }, "burst: is negative"},
		"negative concurrency":   {func(c *target.Config) { c.Concurrency = -1 }, "concurrency: want 1 to 1000"},
		"too concurrent":         {func(c *target.Config) { c.Concurrency = 1001 }, "concurrency: want 1 to 1000"},
		"negative timeout":       {func(c *target.Config) { c.RequestTimeout = -1 }, "request_timeout: is negative"},
		"negative size":          {func(c *target.Config) { c.MaxResponseBytes = -1 }, "max_response_bytes: is negative"},
	} {
		t.Run(name, func(t *testing.T) {
			config := acmeConfig()
			config.Credential = maps.Clone(config.Credential)
			c.change(&config)
			_, err := target.Open(config)
			if got := fieldError(t, err); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// A built-in kind that exchanges a subject token cannot be told to send none.
func TestSourceNoneIsRefusedWhereATokenIsWanted(t *testing.T) {
	_, err := target.Open(target.Config{Driver: "nuget", Source: target.SourceNone})
	if got, want := fieldError(t, err), "subject_token_source: is none, but this kind of target wants a subject token"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

const parameterized = `
name: p
url: https://p.example
lifetime: 1h
params:
  project: {required: true, pattern: "[a-z]{1,5}|x-.*"}
  scopes: {type: list, default: [read, list], pattern: "[a-z]+"}
  level: {type: int, default: 3}
  admin: {type: bool}
  note:
exchange: {method: POST, path: '["keys"]', ok: [200], key: {secret: response.json.key}}
`

func TestParams(t *testing.T) {
	config := target.Config{Driver: "http", Profile: parameterized, Condition: `params.level < 50 && !("root" in params.scopes)`}
	opened, err := target.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	defaults := map[string]any{"project": "abc", "scopes": []any{"read", "list"}, "level": int64(3)}
	with := func(name string, value any) map[string]any {
		out := maps.Clone(defaults)
		out[name] = value
		return out
	}
	for name, c := range map[string]struct {
		given map[string]any
		want  map[string]any
		err   string
	}{
		"defaults":            {given: map[string]any{"project": "abc"}, want: defaults},
		"null is absent":      {given: map[string]any{"project": "abc", "level": nil}, want: defaults},
		"nothing":             {given: nil, err: "parameters.project: is required"},
		"required, empty":     {given: map[string]any{"project": ""}, err: "parameters.project: does not match the target's pattern for it"},
		"required, null":      {given: map[string]any{"project": nil}, err: "parameters.project: is required"},
		"unknown":             {given: map[string]any{"project": "abc", "owner": "x"}, err: "parameters.owner: not a parameter of this target; it has admin, level, note, project, scopes"},
		"unknown, odd":        {given: map[string]any{"x\r\ny": "x"}, err: "parameters: not a parameter of this target; it has admin, level, note, project, scopes"},
		"pattern":             {given: map[string]any{"project": "abc/../d"}, err: "parameters.project: does not match the target's pattern for it"},
		"pattern is anchored": {given: map[string]any{"project": "abcx-"}, err: "parameters.project: does not match the target's pattern for it"},
		"pattern, new line":   {given: map[string]any{"project": "abc\n"}, err: "parameters.project: has control characters"},
		"not a text":          {given: map[string]any{"project": json.Number("5")}, err: "parameters.project: want a text"},
		"object":              {given: map[string]any{"project": map[string]any{}}, err: "parameters.project: want a text"},
		"list":                {given: map[string]any{"project": "abc", "scopes": []any{"read"}}, want: with("scopes", []any{"read"})},
		"list of strings":     {given: map[string]any{"project": "abc", "scopes": []string{"read"}}, want: with("scopes", []any{"read"})},
		"list as text":        {given: map[string]any{"project": "abc", "scopes": "read, push"}, want: with("scopes", []any{"read", "push"})},
		"list, empty text":    {given: map[string]any{"project": "abc", "scopes": " "}, want: with("scopes", []any{})},
		"list, empty element": {given: map[string]any{"project": "abc", "scopes": "read,,push"}, err: "parameters.scopes: want a list of texts, none empty"},
		"list, number":        {given: map[string]any{"project": "abc", "scopes": []any{json.Number("1")}}, err: "parameters.scopes: want a list of texts, none empty"},
		"list, pattern":       {given: map[string]any{"project": "abc", "scopes": []any{"read", "A"}}, err: "parameters.scopes: does not match the target's pattern for it"},
		"list, long":          {given: map[string]any{"project": "abc", "scopes": slices.Repeat([]string{"a"}, 101)}, err: "parameters.scopes: has more than 100 elements"},
		"list, bool":          {given: map[string]any{"project": "abc", "scopes": true}, err: "parameters.scopes: want a list of texts"},
		"int":                 {given: map[string]any{"project": "abc", "level": json.Number("40")}, want: with("level", int64(40))},
		"int as text":         {given: map[string]any{"project": "abc", "level": "40"}, want: with("level", int64(40))},
		"int of CEL":          {given: map[string]any{"project": "abc", "level": int64(40)}, want: with("level", int64(40))},
		"int of a request":    {given: map[string]any{"project": "abc", "level": float64(40)}, want: with("level", int64(40))},                    // as Vault hands it to a plugin
		"int beyond floats":   {given: map[string]any{"project": "abc", "level": float64(1 << 53)}, err: "parameters.level: want a whole number"}, // 1<<53 + 1 comes as this
		"the same as text":    {given: map[string]any{"project": "abc", "level": "-9007199254740993"}, err: "parameters.level: want a whole number"},
		"the smallest int":    {given: map[string]any{"project": "abc", "level": float64(1 - 1<<53)}, want: with("level", int64(1-1<<53))},
		"fraction of one":     {given: map[string]any{"project": "abc", "level": 4.5}, err: "parameters.level: want a whole number"},
		"fraction":            {given: map[string]any{"project": "abc", "level": json.Number("4.5")}, err: "parameters.level: want a whole number"},
		"int, bool":           {given: map[string]any{"project": "abc", "level": true}, err: "parameters.level: want a whole number"},
		"bool":                {given: map[string]any{"project": "abc", "admin": false}, want: with("admin", false)},
		"bool as text":        {given: map[string]any{"project": "abc", "admin": "true"}, want: with("admin", true)},
		"bool, 1":             {given: map[string]any{"project": "abc", "admin": "1"}, err: "parameters.admin: want true or false"},
		"longest":             {given: map[string]any{"project": "abc", "note": strings.Repeat("n", 1024)}, want: with("note", strings.Repeat("n", 1024))},
		"too long":            {given: map[string]any{"project": "abc", "note": strings.Repeat("n", 1025)}, err: "parameters.note: has a text of more than 1024 bytes"},
		"control":             {given: map[string]any{"project": "abc", "note": "a\x00b"}, err: "parameters.note: has control characters"},
		"bidi":                {given: map[string]any{"project": "abc", "note": "a\u202eb"}, err: "parameters.note: has control characters"},
		"not UTF-8":           {given: map[string]any{"project": "abc", "note": "a\xff"}, err: "parameters.note: has control characters"},
		"condition":           {given: map[string]any{"project": "abc", "level": 50}, err: "condition: these parameters do not meet the target's condition"},
		"condition, list":     {given: map[string]any{"project": "abc", "scopes": "read,root"}, err: "condition: these parameters do not meet the target's condition"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := opened.Params(c.given)
			if text := fieldError(t, err); text != c.err {
				t.Errorf("got error %q; want %q", text, c.err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	again, err := opened.Params(map[string]any{"project": "abc"})
	if err != nil {
		t.Fatal(err)
	}
	again["scopes"].([]any)[0] = "spoilt"
	if got, _ := opened.Params(map[string]any{"project": "abc"}); cmp.Diff(defaults, got) != "" {
		t.Error("a caller can change the profile's defaults")
	}
}

// A condition that needs a parameter which was not given refuses.
func TestConditionThatCannotBeJudgedRefuses(t *testing.T) {
	opened, err := target.Open(target.Config{Driver: "http", Profile: parameterized, Condition: `!params.admin`})
	if err != nil {
		t.Fatal(err)
	}
	_, err = opened.Params(map[string]any{"project": "abc"})
	if got, want := fieldError(t, err), `condition: cannot be judged for these parameters: "admin" is missing`; got != want {
		t.Errorf("got %q; want %q", got, want)
	}
}

func TestMayLive(t *testing.T) {
	for err, want := range map[error]bool{
		target.ErrDenied: false, target.ErrBusy: false, target.ErrUnsupported: false, target.ErrEgress: false, target.ErrParameter: false,
		target.ErrUnknown: true, target.ErrProtocol: true, errors.New("anything else"): true,
	} {
		if got := target.MayLive(err); got != want {
			t.Errorf("MayLive(%v) is %v", err, got)
		}
	}
}
