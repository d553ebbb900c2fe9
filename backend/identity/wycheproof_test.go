// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// vectors is a Wycheproof file: keys or key sets, and tokens with the result that a verifier should give. The payloads are
// not claims, so everything before the claims is tested: spelling, header, key set and signature.
type vectors struct {
	Groups []struct {
		Private, Public json.RawMessage // a key or a key set; where there is no public one it is symmetric
		Tests           []struct {
			ID       int `json:"tcId"`
			Comment  string
			JWS, JWE json.RawMessage // a string, or an object: a token in JSON
			Result   string
		}
	} `json:"testGroups"`
}

// differences are the tests for which our result is the opposite, on purpose.
var differences = map[string][]struct {
	why   string
	tests []int
}{
	"signature": {
		{"HMAC is refused: who can verify with it can sign", []int{1, 348, 352, 357, 358, 359, 372, 373, 376, 377}},
		{"a payload of no bytes holds no claims", []int{259, 264, 268, 272, 320, 325}},
		{"the token is PS384, its key is for PS256: a key serves one algorithm (RFC 8725 section 3.1)", []int{346, 350}},
		{"the key is for ES521, which is no algorithm (RFC 7518 section 3.1)", []int{347, 351}},
		{"Go takes any length of salt for PSS; only the key's owner can choose it", []int{281, 282, 283, 284, 285, 286}},
	},
	"key": {
		{"HMAC is refused: who can verify with it can sign", []int{2, 13, 14, 15}},
		{"keys of one series of broken smart cards (ROCA) are not looked for", []int{7}},
	},
	"crypto": {
		{"HMAC is refused: who can verify with it can sign", []int{1, 48}},
		{"encrypted tokens are refused", []int{50, 67}},
		{"keys of one series of broken smart cards (ROCA) are not looked for", []int{46}},
	},
}

func TestWycheproof(t *testing.T) {
	dir := wycheproofDir(t)
	for file, listed := range differences {
		t.Run(file, func(t *testing.T) {
			var v vectors
			must(0, json.Unmarshal(must(os.ReadFile(filepath.Join(dir, "json_web_"+file+"_test.json"))), &v))
			why := map[int]string{}
			for _, d := range listed {
				for _, id := range d.tests {
					why[id] = d.why
				}
			}
			counts := map[string]int{}
			for _, group := range v.Groups {
				verdict := wycheproofVerdict(t, group.Public, group.Private)
				for _, test := range group.Tests {
					got := verdict(tokenText(test.JWS, test.JWE))
					if reason, differs := why[test.ID]; (got != test.Result) != differs {
						t.Errorf("%d, %s: %s, Wycheproof says %s; listed as a difference: %q", test.ID, test.Comment, got, test.Result, reason)
					}
					counts[got]++
					delete(why, test.ID)
				}
			}
			if len(why) > 0 || len(counts) != 2 {
				t.Errorf("%v: want valid and invalid ones, and no listed difference that is no test: %v", counts, why)
			}
			t.Logf("%d tokens valid, %d invalid, in %d groups", counts["valid"], counts["invalid"], len(v.Groups))
		})
	}
}

// wycheproofDir is where the vectors are. Their module embeds a hundred megabytes, so it is not imported: another module
// requires it, and its files are read.
func wycheproofDir(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", "github.com/c2sp/wycheproof")
	cmd.Dir = filepath.Join("..", "..", "scripts", "differential")
	out, err := cmd.Output()
	var module struct{ Dir string }
	if err != nil || json.Unmarshal(out, &module) != nil || module.Dir == "" {
		t.Fatalf("fetching the vectors: %v", err)
	}
	return filepath.Join(module.Dir, "testvectors_v1")
}

// wycheproofVerdict returns a function that says whether a token is valid under a key or key set.
func wycheproofVerdict(t *testing.T, public, private json.RawMessage) func(token string) string {
	t.Helper()
	if public == nil {
		public = private
	}
	var set struct{ Keys []json.RawMessage }
	must(0, json.Unmarshal(public, &set))
	if set.Keys == nil {
		set.Keys = []json.RawMessage{public}
	}
	v := newVerifier(t, Config{Issuer: "https://id.example.com", JWKSURL: "https://id.example.com/keys", Algorithms: asymmetric, Now: newClock().now})
	current, err := parseKeys([]byte(jwks(set.Keys...)), limits100)
	v.keys.current, v.keys.fetched, v.keys.tried, v.keys.floor = current, start, start, time.Hour // nothing is fetched
	return func(token string) string {
		s, splitErr := split(token, hardTokenBytes)
		h, headerErr := parseHeader(s.header, v.limits)
		if err != nil || splitErr != nil || headerErr != nil || v.checkHeader(h, s) != nil {
			return "invalid"
		}
		if payload, err := v.keys.VerifySignature(t.Context(), token); err != nil || string(payload) != s.payload {
			return "invalid"
		}
		return "valid"
	}
}

// tokenText is a token as a caller sends it.
func tokenText(jws, jwe json.RawMessage) string {
	raw := jws
	if raw == nil {
		raw = jwe
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return string(raw)
	}
	return s
}
