// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
)

var testLimits = limits{depth: 16, members: 256}

func TestParseObject(t *testing.T) {
	const text = ` {"s":"aé\u00e9\ud83d\ude00\"\\\/\b\f\n\r\t","n":[0,-0,12,-1.5,1e9,1E-7,2.50],"t":true,"f":false,"z":null,"o":{},"l":[],"pl\u0061in":"\u0061 then b","":{"x":{"y":1}}} `
	got, err := parseObject(text, testLimits)
	if err != nil {
		t.Fatal(err)
	}
	n := func(s ...string) (list []any) {
		for _, s := range s {
			list = append(list, json.Number(s))
		}
		return list
	}
	want := map[string]any{
		"s": "aéé😀\"\\/\b\f\n\r\t", "n": n("0", "-0", "12", "-1.5", "1e9", "1E-7", "2.50"), "t": true, "f": false, "z": nil,
		"o": map[string]any{}, "l": []any{}, "plain": "a then b", "": map[string]any{"x": map[string]any{"y": json.Number("1")}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("parseObject (-want +got):\n%s", diff)
	}
}

func TestParseObjectRefuses(t *testing.T) {
	for text, want := range map[string]string{
		``:                                "not a JSON object at byte 0",
		`[]`:                              "not a JSON object at byte 0",
		`{`:                               "member name missing at byte 1",
		`{"a"`:                            "colon missing at byte 4",
		`{"a":`:                           "cut short at byte 5",
		`{"a":1`:                          "comma or brace missing at byte 6",
		`{"a":1,`:                         "member name missing at byte 7",
		`{"a":1,}`:                        "member name missing at byte 7",
		`{a:1}`:                           "member name missing at byte 1",
		`{"a":1}x`:                        "text after the object at byte 7",
		`{"a":[1,]}`:                      "not a JSON value at byte 8",
		`{"a":[1 2]}`:                     "comma or bracket missing at byte 8",
		`{"a":tru}`:                       "not a JSON value at byte 5",
		`{"a":01}`:                        "comma or brace missing at byte 6",
		`{"a":+1}`:                        "not a JSON value at byte 5",
		`{"a":.5}`:                        "not a JSON value at byte 5",
		`{"a":1.}`:                        "digits missing at byte 7",
		`{"a":1e}`:                        "exponent missing or too long at byte 7",
		`{"a":1e1000}`:                    "exponent missing or too long at byte 11",
		`{"a":-}`:                         "not a JSON value at byte 6",
		`{"a":"b`:                         "string not closed at byte 7",
		`{"a":"b\`:                        "string not closed at byte 8",
		"{\"a\":\"\x01\"}":                "control character in a string at byte 6",
		"{\"a\":\"\\n\x01\"}":             "control character in a string at byte 9",
		`{"a":"\x"}`:                      "unknown escape at byte 8",
		`{"a":"\u12"}`:                    "escape without four hex digits at byte 8",
		`{"a":"\u1`:                       "escape cut short at byte 8",
		`{"a":"\u+123"}`:                  "escape without four hex digits at byte 8",
		`{"a":"\ud800"}`:                  "half of a surrogate pair at byte 12",
		`{"\x:1}`:                         "unknown escape at byte 4",
		"{\"\x01:1}":                      "control character in a string at byte 2",
		`{"a":"\ud800\u0041"}`:            "half of a surrogate pair at byte 18",
		`{"a":"\udc00\ud800"}`:            "half of a surrogate pair at byte 18",
		"{\"a\":\"\xc0\x80\"}":            "not valid UTF-8",
		`{"a":1,"a":1}`:                   "a member name that repeats at byte 10",
		`{"a":1,"\u0061":1}`:              "a member name that repeats at byte 15",
		`{"a":{"b":1,"B":1}}`:             "member names that differ in case alone at byte 18",
		`{"a":{"B":1,"b":1}}`:             "member names that differ in case alone at byte 18",
		`{"a":` + strings.Repeat("9", 65): "number too long at byte 70",
	} {
		_, err := parseObject(text, testLimits)
		if err == nil || err.Error() != want {
			t.Errorf("parseObject(%q): %v, want %q", text, err, want)
		}
	}
}

func TestParseObjectLimits(t *testing.T) {
	l := limits{depth: 2, members: 3}
	for text, ok := range map[string]bool{
		`{"a":{}}`:                      true,
		`{"a":{"b":1},"c":[1,2,3,4,5]}`: true,
		`{"a":[{}]}`:                    false,
		`{"a":[[]]}`:                    false,
		`{"a":{"b":[]}}`:                false,
		`{"a":1,"b":2,"c":3}`:           true,
		`{"a":1,"b":2,"c":3,"d":4}`:     false,
		`{"a":{"b":1,"c":2,"d":3}}`:     false,
	} {
		if _, err := parseObject(text, l); (err == nil) != ok {
			t.Errorf("parseObject(%s) = %v, want accepted: %t", text, err, ok)
		}
	}
}

// What we accept, encoding/json reads as the same map.
func FuzzPayload(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"iss":"a","sub":"b","exp":1,"iat":1}`, `{"a":[1,{"b":null}],"c":"\u00e9\ud83d\ude00"}`, `{"a":1,"A":2}`, `{"a":1e999}`,
		`{"a":"\ud800"}`, "{\"\u212a\":1}", `{"a":-0.0e+1}`, `[]`, `{"a":{"a":{"a":{}}}}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseObject(text, testLimits)
		_, _ = parsePayload(text, testLimits)
		_, _ = parseHeader(text, testLimits)
		if err != nil {
			return
		}
		var want map[string]any
		d := json.NewDecoder(bytes.NewReader([]byte(text)))
		d.UseNumber()
		if err := d.Decode(&want); err != nil {
			t.Fatalf("encoding/json refuses what we accept: %v", err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("two maps (-encoding/json +ours):\n%s", diff)
		}
	})
}

// A part that split accepts has only one spelling, and go-jose splits the token in the same way.
func FuzzPrecheck(f *testing.F) {
	for _, seed := range []string{"", "..", "e30.e30.", "e30.e30.AA", "e31.e30.AA", "e30.e30.AB", " e30.e30.AA", "e30.e30.AA\n", "e30 e30.AA", "e30.e30,AA", `{"payload":""}`,
		b64(`{"alg":"RS256"}`) + ".e30.AAAA"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		s, err := split(token, 1<<10)
		if err != nil {
			return
		}
		p := strings.Split(token, ".")
		if len(token) > 1<<10 || len(p) != 3 || b64(s.header) != p[0] || b64(s.payload) != p[1] || s.signed != p[0]+"."+p[1] ||
			s.signature != base64.RawURLEncoding.DecodedLen(len(p[2])) {
			t.Fatalf("split(%q) = %+v", token, s)
		}
		jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.RS256})
		if err == nil && string(jws.UnsafePayloadWithoutVerification()) != s.payload {
			t.Errorf("go-jose reads another payload out of %q", token)
		}
	})
}

// Only what the key has signed is accepted.
func FuzzVerify(f *testing.F) {
	v, err := New(Config{Issuer: "https://id.example.com", PublicKeys: []string{publicPEM(rsaKey().Public())}, Now: newClock().now})
	if err != nil {
		f.Fatal(err)
	}
	good := token(claims("https://id.example.com", start))
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(unsigned("k1", claims("https://id.example.com", start)))
	f.Fuzz(func(t *testing.T, raw string) {
		if got, err := v.Verify(t.Context(), raw); (err == nil) != (raw == good) {
			t.Errorf("Verify(%q) = %v, %v", raw, got, err)
		}
	})
}
