// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package trust

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

// Each file in testdata is a policy with tokens and the verdicts on them. A section starts with "-- name --" or
// "-- name: title --"; what stands before the first is a comment:
//
//	policy  a Spec, in the names of the API
//	kind    "login" if the policy is one for logins
//	claims  of a subject token; null for a login
//	caller  the Vault client, and now
//	want    "allowed", or a reason and the conditions that are unmet, or FIELD: TEXT if New refuses the policy
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { testGolden(t, file) })
	}
}

func testGolden(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var (
		spec   goldenSpec
		kind   = Token
		claims map[string]any
		caller goldenCaller
		title  string
	)
	for _, s := range sections(string(text)) {
		switch s.name {
		case "policy":
			decode(t, s.body, &spec)
		case "kind":
			kind = map[string]Kind{"token": Token, "login": Login}[s.body]
		case "claims":
			claims, caller, title = nil, goldenCaller{}, s.title
			decode(t, s.body, &claims)
		case "caller":
			decode(t, s.body, &caller)
		case "want":
			t.Run(title, func(t *testing.T) {
				if got := outcome(t, Spec(spec), kind, caller.identity(kind, claims)); got != s.body {
					t.Errorf("got  %s\nwant %s", got, s.body)
				}
			})
		default:
			t.Fatalf("section %q is unknown", s.name)
		}
	}
}

// outcome is what a golden file wants, on one line.
func outcome(t *testing.T, spec Spec, kind Kind, id *Identity) string {
	t.Helper()
	policy, err := New(spec, kind)
	var field *FieldError
	if errors.As(err, &field) {
		return field.Error()
	} else if err != nil {
		t.Fatalf("New: %v; want a *FieldError", err)
	}
	d := policy.Evaluate(id, expr.NewBudget())
	if d.Allowed {
		if d.Reason != "" || d.Unmet() != nil {
			t.Errorf("allowed with reason %q and unmet %q", d.Reason, d.Unmet())
		}
		return "allowed"
	}
	return strings.Join(append([]string{d.Reason}, d.Unmet()...), " ")
}

type section struct{ name, title, body string }

var heading = regexp.MustCompile(`(?m)^-- ([a-z]+)(?:: (.+))? --\n`)

func sections(text string) []section {
	var out []section
	marks := heading.FindAllStringSubmatchIndex(text, -1)
	for i, m := range marks {
		end := len(text)
		if i+1 < len(marks) {
			end = marks[i+1][0]
		}
		s := section{name: text[m[2]:m[3]], body: strings.TrimSpace(text[m[1]:end])}
		if m[4] >= 0 {
			s.title = text[m[4]:m[5]]
		}
		out = append(out, s)
	}
	return out
}

// goldenSpec is a Spec with the names of the API.
type goldenSpec struct {
	BoundAudiences      []string       `json:"bound_audiences"`
	AllowExtraAudiences bool           `json:"allow_extra_audiences"`
	BoundSubject        string         `json:"bound_subject"`
	BoundClaims         map[string]any `json:"bound_claims"`
	BoundClaimsType     string         `json:"bound_claims_type"`
	Condition           string         `json:"condition"`
	BindCaller          string         `json:"bind_caller"`
	AcceptAnySubject    bool           `json:"accept_any_subject"`
}

type goldenCaller struct {
	EntityID       string            `json:"entity_id"`
	EntityName     string            `json:"entity_name"`
	EntityMetadata map[string]string `json:"entity_metadata"`
	Aliases        []string          `json:"aliases"`
	Alias          *goldenAlias      `json:"alias"`
	Groups         []string          `json:"groups"`
	RemoteAddress  string            `json:"remote_address"`
	Now            time.Time         `json:"now"`
}

type goldenAlias struct {
	Name           string            `json:"name"`
	Metadata       map[string]string `json:"metadata"`
	CustomMetadata map[string]string `json:"custom_metadata"`
}

func (c goldenCaller) identity(kind Kind, claims map[string]any) *Identity {
	id := tokenOf(claims)
	id.Kind, id.Now = kind, c.Now
	id.Caller = Caller{
		EntityID: c.EntityID, EntityName: c.EntityName, EntityMetadata: c.EntityMetadata,
		Aliases: c.Aliases, Groups: c.Groups, RemoteAddress: c.RemoteAddress,
	}
	if c.Alias != nil {
		id.Subject = c.Alias.Name
		id.Caller.Alias = &Alias{Name: c.Alias.Name, Metadata: c.Alias.Metadata, CustomMetadata: c.Alias.CustomMetadata}
	}
	return id
}

// tokenOf is the identity of a verified token with these claims; a sub that is no text is no subject.
func tokenOf(claims map[string]any) *Identity {
	subject, _ := claims["sub"].(string)
	return &Identity{Subject: subject, Claims: claims}
}

// decode reads JSON as the engine does: numbers keep their digits, and nothing unknown is passed over.
func decode(t testing.TB, text string, into any) {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader([]byte(text)))
	decoder.UseNumber()
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

func claimsOf(t testing.TB, text string) map[string]any {
	t.Helper()
	var claims map[string]any
	decode(t, text, &claims)
	return claims
}
