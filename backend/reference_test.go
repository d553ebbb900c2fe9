// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

var update = flag.Bool("update", false, "write the reference into the README")

const (
	readme         = "../README.md"
	referenceStart = "<!-- reference: written by `make reference` from the path schemas and the table of reasons -->\n"
	referenceEnd   = "<!-- end of reference -->"
)

// The README's reference is written from the schemas and the table of reasons, so it cannot say anything else.
func TestReference(t *testing.T) {
	raw, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(raw), referenceStart)
	got, after, foundEnd := strings.Cut(rest, referenceEnd)
	if !found || !foundEnd {
		t.Fatal("the README has no place for the reference")
	}
	want := reference(newEngine(nil))
	if *update {
		if err := os.WriteFile(readme, []byte(before+referenceStart+want+referenceEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != want {
		t.Error("the README's reference is not what the schemas say; run: make reference")
	}
}

func reference(b *engine) string {
	var out strings.Builder
	out.WriteString("\n### Paths\n")
	paths := slices.Clone(b.Paths)
	slices.SortStableFunc(paths, func(x, y *framework.Path) int { return cmp.Compare(pathName(x), pathName(y)) })
	for _, path := range paths {
		fmt.Fprintf(&out, "\n#### `%s`\n\n%s\n\n", pathName(path), path.HelpDescription)
		for _, op := range []logical.Operation{logical.ListOperation, logical.ReadOperation, logical.UpdateOperation, logical.PatchOperation, logical.DeleteOperation} {
			if handler, ok := path.Operations[op]; ok {
				fmt.Fprintf(&out, "- **%s**: %s\n", verbs[op], handler.Properties().Summary)
			}
		}
		if len(path.Fields) == 0 {
			continue
		}
		out.WriteString("\n| field | type | |\n|---|---|---|\n")
		for _, name := range slices.Sorted(maps.Keys(path.Fields)) {
			field := path.Fields[name]
			fmt.Fprintf(&out, "| `%s` | %s | %s |\n", name, types[field.Type], strings.ReplaceAll(field.Description, "|", `\|`))
		}
	}
	out.WriteString("\n### Reason codes\n\nA refusal reads `<reason>: <what to do> (request <id>)`; Vault's log has the detail under the id.\n\n| reason | status | what to do |\n|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(reasons)) {
		fmt.Fprintf(&out, "| `%s` | %d | %s |\n", name, reasons[name].Status, strings.ReplaceAll(reasons[name].ToDo, "|", `\|`))
	}
	out.WriteString("\n")
	return out.String()
}

var verbs = map[logical.Operation]string{
	logical.ListOperation: "list", logical.ReadOperation: "read", logical.UpdateOperation: "write",
	logical.PatchOperation: "patch", logical.DeleteOperation: "delete",
}

var types = map[framework.FieldType]string{
	framework.TypeString: "text", framework.TypeBool: "true or false", framework.TypeInt: "number", framework.TypeFloat: "number",
	framework.TypeDurationSecond: "duration", framework.TypeCommaStringSlice: "list", framework.TypeKVPairs: "map of strings",
	framework.TypeMap: "map", framework.TypeTime: "time",
}

var captures = regexp.MustCompile(`\(\?P<(\w+)>[^)]*\)`)

func pathName(path *framework.Path) string {
	name := strings.NewReplacer(">[^/]+)/?$", ">[^/]+)", "/?$", "/", "$", "", `\.`, ".").Replace(path.Pattern)
	return captures.ReplaceAllString(name, "<$1>")
}
