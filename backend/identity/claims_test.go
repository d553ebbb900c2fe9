// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/google/go-cmp/cmp"
)

func TestTimeAttacks(t *testing.T) {
	v, i := door(t)
	c := claims(i.URL, start)
	at := func(name string, d time.Duration) string { return token(c.with(name, start.Add(d).Unix())) }
	raw := func(name, literal string) string { return token(c.with(name, json.RawMessage(literal))) }
	old := func(iat, exp time.Duration) string {
		return token(c.without("nbf").with("iat", start.Add(iat).Unix()).with("exp", start.Add(exp).Unix()))
	}
	attacks := []attack{
		{"exp missing", token(c.without("exp")), TokenMalformed},
		{"exp past within leeway", old(-time.Minute, -29*time.Second), ""},
		{"exp past at the leeway's end", old(-time.Minute, -30*time.Second), Expired},
		{"exp past", old(-time.Minute, -31*time.Second), Expired},
		{"exp a year ago", old(-24*366*time.Hour, -24*365*time.Hour), Expired},
		{"lifetime at the limit", old(0, 24*time.Hour), ""},
		{"lifetime beyond the limit", old(0, 24*time.Hour+time.Second), Lifetime},
		{"exp in the year 2242", raw("exp", "8589934591"), Lifetime},
		{"exp in the year 9999", raw("exp", "253402300799"), TokenMalformed},
		{"iat missing", token(c.without("iat")), TokenMalformed},
		{"iat a minute ahead", token(c.without("nbf").with("iat", start.Add(time.Minute).Unix())), ""},
		{"iat more than a minute ahead", token(c.without("nbf").with("iat", start.Add(61*time.Second).Unix())), NotYetValid},
		{"iat a year ahead", at("iat", 365*24*time.Hour), NotYetValid},
		{"iat is exp", old(10*time.Second, 10*time.Second), Lifetime},
		{"iat after exp", old(20*time.Second, 10*time.Second), Lifetime},
		{"issued an hour ago", old(-time.Hour, time.Minute), ""},
		{"issued more than an hour ago", old(-time.Hour-time.Second, time.Minute), TooOld},
		{"nbf absent", token(c.without("nbf")), ""},
		{"nbf at the leeway's end", at("nbf", 30*time.Second), ""},
		{"nbf beyond the leeway", at("nbf", 31*time.Second), NotYetValid},
		{"nbf four minutes ahead", at("nbf", 4*time.Minute), NotYetValid},
		{"nbf six minutes ahead", at("nbf", 6*time.Minute), NotYetValid},
	}
	for _, name := range []string{"exp", "iat", "nbf"} {
		for _, literal := range []string{"null", `"1788264600"`, "1788264600.5", "1788264600.0", "1.7882646e9", "-1", "0", "-0", "8589934592",
			"9000000000000000000", "9223372036854775808", "1e300", "true", "[]", "{}"} {
			attacks = append(attacks, attack{name + " " + literal, raw(name, literal), TokenMalformed})
		}
	}
	run(t, v, i, attacks)
}

// Without leeway a token ends with the second that its exp names.
func TestNoLeeway(t *testing.T) {
	_, i := door(t)
	for exp, want := range map[time.Duration]string{-time.Second: Expired, 0: Expired, time.Second: ""} {
		cfg := i.config(newClock())
		cfg.Leeway = 0
		c := claims(i.URL, start).with("iat", start.Add(-time.Minute).Unix()).without("nbf")
		wantReason(t, newVerifier(t, cfg), token(c.with("exp", start.Add(exp).Unix())), want)
		wantReason(t, newVerifier(t, cfg), token(c.with("nbf", start.Unix()+1)), NotYetValid)
	}
}

func TestClockSkew(t *testing.T) {
	for _, tt := range []struct {
		skew time.Duration
		want string
	}{{-10 * time.Minute, NotYetValid}, {11 * time.Minute, Expired}, {25 * time.Second, ""}, {-25 * time.Second, ""}} {
		_, i := door(t)
		c := newClock()
		c.advance(tt.skew)
		wantReason(t, newVerifier(t, i.config(c)), token(claims(i.URL, start)), tt.want)
	}
}

// The token ends while the keys are fetched.
func TestExpiresDuringFetch(t *testing.T) {
	i := newIssuer(t, jwks(firstKey()))
	c := newClock()
	v := newVerifier(t, i.config(c))
	v.keys.now = func() time.Time { // asked for when the fetch begins
		defer c.advance(time.Hour)
		return start
	}
	wantReason(t, v, token(claims(i.URL, start)), Expired)
}

func TestIssuerAttacks(t *testing.T) {
	v, i := door(t)
	iss := func(s any) string { return token(claims(i.URL, start).with("iss", s)) }
	run(t, v, i, []attack{
		{"trailing slash", iss(i.URL + "/"), UnknownIssuer},
		{"upper case", iss(strings.ToUpper(i.URL)), UnknownIssuer},
		{"http", iss(strings.Replace(i.URL, "https", "http", 1)), UnknownIssuer},
		{"no scheme", iss(strings.TrimPrefix(i.URL, "https://")), UnknownIssuer},
		{"user", iss(strings.Replace(i.URL, "//", "//u@", 1)), UnknownIssuer},
		{"query", iss(i.URL + "?"), UnknownIssuer},
		{"another one", iss("https://evil.example"), UnknownIssuer},
		{"metadata address", iss("http://169.254.169.254"), UnknownIssuer},
		{"missing", token(claims(i.URL, start).without("iss")), TokenMalformed},
		{"null", iss(nil), TokenMalformed},
		{"empty", iss(""), TokenMalformed},
		{"an array", iss([]string{i.URL}), TokenMalformed},
		{"folded beside", token(claims(i.URL, start).with("ISS", i.URL)), TokenMalformed},
		{"folded beside an evil one", token(claims("https://evil.example", start).with("ISS", i.URL)), TokenMalformed},
		{"long s beside", token(claims("https://evil.example", start).with("i\u017fs", i.URL)), TokenMalformed},
		{"folded instead", token(claims(i.URL, start).without("iss").with("ISS", i.URL)), TokenMalformed},
		{"zero-width space", iss(i.URL + "\u200b"), TokenMalformed},
	})
}

// Issuers are compared byte by byte: a string that a browser would treat as the same address is another issuer.
func TestIssuerSpellings(t *testing.T) {
	const tenant, other = "72f988bf-0000-4000-8000-000000000002", "72f988bf-0000-4000-8000-000000000003"
	for issuer, others := range map[string][]string{
		"https://id.example.com": {
			"https://id.example.com/", "https://ID.example.com", "HTTPS://id.example.com", "http://id.example.com", "https://id.example.com:443",
			"https://u@id.example.com", "https://id.example.com/a/..", "https://id.example.com/.", "https://id.example.com?", "https://id.example.com#",
			"https://id.example.com.", "https://id.example.com%20", "https://id.example.com@evil.example", "https://іd.example.com", "id.example.com", "//id.example.com",
		},
		"https://id.example.com/": {"https://id.example.com", "https://id.example.com//"},
		"https://login.microsoftonline.com/" + tenant + "/v2.0": {
			"https://login.microsoftonline.com/" + other + "/v2.0", "https://login.microsoftonline.com/common/v2.0",
			"https://login.microsoftonline.com/organizations/v2.0", "https://login.microsoftonline.com/{tenantid}/v2.0",
			"https://sts.windows.net/" + tenant + "/", "https://login.microsoftonline.us/" + tenant + "/v2.0",
		},
		"https://sts.windows.net/" + tenant + "/": {"https://sts.windows.net/" + other + "/", "https://sts.windows.net/" + tenant},
	} {
		v := newVerifier(t, Config{Issuer: issuer, PublicKeys: []string{publicPEM(rsaKey().Public())}, Now: newClock().now})
		wantReason(t, v, token(claims(issuer, start)), "")
		for _, iss := range others {
			t.Run(issuer+" is not "+iss, func(t *testing.T) { wantReason(t, v, token(claims(iss, start)), UnknownIssuer) })
		}
	}
}

// No token gets past the strict parse and is then read differently by go-oidc, so the comparison is tested by itself.
func TestAgree(t *testing.T) {
	p := payload{iss: "i", sub: "s", aud: []string{"a", "b"}, exp: 5}
	same := oidc.IDToken{Issuer: "i", Subject: "s", Audience: []string{"a", "b"}, Expiry: time.Unix(5, 0)}
	if !agree(p, &same) {
		t.Error("equal readings do not agree")
	}
	for name, change := range map[string]func(*oidc.IDToken){
		"iss":       func(id *oidc.IDToken) { id.Issuer = "x" },
		"sub":       func(id *oidc.IDToken) { id.Subject = "x" },
		"aud":       func(id *oidc.IDToken) { id.Audience = []string{"a"} },
		"aud order": func(id *oidc.IDToken) { id.Audience = []string{"b", "a"} },
		"exp":       func(id *oidc.IDToken) { id.Expiry = time.Unix(6, 0) },
	} {
		other := same
		change(&other)
		if agree(p, &other) {
			t.Errorf("readings with another %s agree", name)
		}
	}
}

// Should the two readings of a token ever differ, it is refused.
func TestDisagreementRefuses(t *testing.T) {
	v, i := door(t)
	c := claims(i.URL, start)
	p := must(parsePayload(c.String(), v.limits))
	if err := v.checkSignature(t.Context(), token(c), p); err != nil {
		t.Fatal(err)
	}
	p.sub = "somebody else"
	if err := v.checkSignature(t.Context(), token(c), p); reason(t, err) != TokenMalformed {
		t.Errorf("checkSignature: %v, want %s", err, TokenMalformed)
	}
}

// go-oidc takes this iss for Google's; the configured issuer is what counts.
func TestGoogleWithoutScheme(t *testing.T) {
	v := newVerifier(t, Config{
		Issuer: "https://accounts.google.com", PublicKeys: []string{publicPEM(rsaKey().Public())}, Now: newClock().now,
	})
	wantReason(t, v, token(claims("https://accounts.google.com", start)), "")
	wantReason(t, v, token(claims("accounts.google.com", start)), UnknownIssuer)
}

// Two issuers have the same key id: one accepts no token of the other, even if it claims to be its own.
func TestIssuerMixUp(t *testing.T) {
	_, a := door(t)
	b := newIssuer(t, jwks(jwk(otherRSA().Public(), "k1", "RS256", nil)))
	vb := newVerifier(t, b.config(newClock()))
	wantReason(t, vb, token(claims(a.URL, start)), UnknownIssuer)
	b.wantHits(t, "/keys", 0)
	wantReason(t, vb, token(claims(b.URL, start)), BadSignature)
	wantReason(t, vb, tokenBy(otherRSA(), "k1", claims(b.URL, start)), "")
}

func TestAudiencePassesAsItIs(t *testing.T) {
	v, i := door(t)
	c := claims(i.URL, start)
	for _, tt := range []struct {
		name string
		aud  any
		want []string
	}{
		{"one", "a", []string{"a"}},
		{"list of one", []string{"a"}, []string{"a"}},
		{"list", []string{"other", "a"}, []string{"other", "a"}},
		{"empty list", []string{}, []string{}},
		{"empty string", "", []string{""}},
		{"list of an empty string", []string{""}, []string{""}},
	} {
		got, err := v.Verify(t.Context(), token(c.with("aud", tt.aud)))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if diff := cmp.Diff(tt.want, got.Audience); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	if got, err := v.Verify(t.Context(), token(c.without("aud"))); err != nil || got.Audience != nil {
		t.Errorf("absent: %v, %v; want accepted, without audience", got, err)
	}
	var attacks []attack
	for _, literal := range []string{"null", "1", "true", "{}", "[1]", "[null]", `[["a"]]`, `["a",1]`, `"a\u0000"`, `"a\n"`, `["\u202ea"]`} {
		attacks = append(attacks, attack{literal, token(c.with("aud", json.RawMessage(literal))), TokenMalformed})
	}
	aud := strings.Repeat("a", 1024)
	attacks = append(attacks, attack{"1024 bytes", token(c.with("aud", aud)), ""}, attack{"1025 bytes", token(c.with("aud", aud+"a")), TokenMalformed},
		attack{"1025 bytes in a list", token(c.with("aud", []string{"a", aud + "a"})), TokenMalformed})
	run(t, v, i, attacks)
}

func TestClaimAttacks(t *testing.T) {
	v, i := door(t)
	c := claims(i.URL, start)
	raw := func(more string) string { // more members at the end
		return compact("RS256", rsaKey(), header1.String(), strings.TrimSuffix(c.String(), "}")+","+more+"}")
	}
	whole := func(payload string) string { return compact("RS256", rsaKey(), header1.String(), payload) }
	name := func(claim, literal string) string { return token(c.with(claim, json.RawMessage(literal))) }
	attacks := []attack{
		{"sub twice", raw(`"sub":"evil"`), TokenMalformed},
		{"sub twice, same value", raw(`"sub":"repo:acme/widget:ref:refs/heads/main"`), TokenMalformed},
		{"sub twice by escape", raw(`"s\u0075b":"evil"`), TokenMalformed},
		{"unknown claim twice", raw(`"x":1,"x":2`), TokenMalformed},
		{"nested twice", raw(`"x":{"y":1,"y":2}`), TokenMalformed},
		{"nested in a list twice", raw(`"x":[[{"y":1,"y":2}]]`), TokenMalformed},
		{"SUB", raw(`"SUB":"evil"`), TokenMalformed},
		{"auD", raw(`"auD":"evil"`), TokenMalformed},
		{"EXP", raw(`"EXP":9999999999`), TokenMalformed},
		{"ExP by escape", raw(`"\u0045xp":9999999999`), TokenMalformed},
		{"Azp alone", raw(`"Azp":"evil"`), TokenMalformed},
		{"twins of an unknown claim", raw(`"repository":"evil","Repository":"good"`), TokenMalformed},
		{"twins of an unknown claim, the other way", raw(`"Repository":"good","repository":"evil"`), TokenMalformed},
		{"twins by the Kelvin sign", raw("\"task\":\"evil\",\"tas\u212a\":\"good\""), TokenMalformed},
		{"twins by the long s", raw("\"task\":1,\"ta\u017fk\":1"), TokenMalformed},
		{"twins by Greek sigma", raw("\"\u03c3\":1,\"\u03c2\":1"), TokenMalformed},
		{"nested twins", raw(`"x":{"a":1,"A":2}`), TokenMalformed},
		{"capitals without twin", raw(`"Repository":"acme"`), ""},
		{"capitals that are no twin", raw(`"Subject":"acme"`), ""},
		{"invalid UTF-8 in sub", whole(strings.Replace(c.String(), "acme", "acme\xff", 1)), TokenMalformed},
		{"surrogate in UTF-8", whole(strings.Replace(c.String(), "acme", "acme\xed\xa0\x80", 1)), TokenMalformed},
		{"text after it", whole(c.String() + "x"), TokenMalformed},
		{"second object", whole(c.String() + "{}"), TokenMalformed},
		{"byte order mark", whole("\ufeff" + c.String()), TokenMalformed},
		{"array", whole("[" + c.String() + "]"), TokenMalformed},
		{"null", whole("null"), TokenMalformed},
		{"space around it", whole(" \n" + c.String() + "\t\r"), ""},
		{"comment", whole("/**/" + c.String()), TokenMalformed},
		{"trailing comma", whole(strings.TrimSuffix(c.String(), "}") + ",}"), TokenMalformed},
		{"NaN", raw(`"x":NaN`), TokenMalformed},
		{"number of a thousand digits", raw(`"x":1` + strings.Repeat("0", 1000)), TokenMalformed},
		{"number with a huge exponent", raw(`"x":1e999999999`), TokenMalformed},
		{"claims by reference", raw(`"_claim_names":{"x":"s"},"_claim_sources":{"s":{"endpoint":"http://169.254.169.254"}}`), TokenMalformed},
		{"sources alone", raw(`"_claim_sources":{}`), TokenMalformed},
		{"sub missing", token(c.without("sub")), TokenMalformed},
		{"sub of 1024 bytes", token(c.with("sub", strings.Repeat("a", 1024))), ""},
		{"sub of 1025 bytes", token(c.with("sub", strings.Repeat("a", 1025))), TokenMalformed},
		{"sub with letters of another script", token(c.with("sub", "b\u00fccher")), ""},
		{"surrogate in an unknown claim", raw(`"x":"\ud800"`), TokenMalformed},
		{"claim that nobody knows", raw(`"https://acme.example/team":{"a":["b\n"]}`), ""},
		{"jti of 256 bytes", token(c.with("jti", strings.Repeat("a", 256))), ""},
		{"jti of 257 bytes", token(c.with("jti", strings.Repeat("a", 257))), TokenMalformed},
		{"jti empty", token(c.with("jti", "")), TokenMalformed},
		{"jti absent", token(c.without("jti")), ""},
		{"nonce a number", raw(`"nonce":1`), TokenMalformed},
		{"at_hash an object", raw(`"at_hash":{}`), TokenMalformed},
		{"azp of anybody", raw(`"azp":"somebody"`), ""}, // the trust policy judges it
	}
	for _, claim := range []string{"sub", "jti", "iss"} {
		for _, literal := range []string{"1", "true", "{}", `["a"]`, "null", `"a\u0000"`, `"a\u202eb"`, `"a\u200bb"`, `"a\tb"`, `"a\nb"`,
			`"a\u00a0b"`, `"a\ufeffb"`, `"a\u2028b"`, `"\ufffd"`, `"\ud800"`, `"\udc00\ud800"`, `"\ud800x"`, `"\u00ad"`} {
			attacks = append(attacks, attack{claim + " " + literal, name(claim, literal), TokenMalformed})
		}
	}
	attacks = append(attacks, attack{"sub empty", name("sub", `""`), TokenMalformed}, attack{"sub a space", name("sub", `" "`), ""})
	run(t, v, i, attacks)
}

func TestPeek(t *testing.T) {
	c := claims("https://id.example.com", start)
	good := token(c)
	for name, tt := range map[string]struct {
		token string
		want  Claimed
	}{
		"iss":               {good, Claimed{"https://id.example.com", "repo:acme/widget:ref:refs/heads/main", "k1"}},
		"SVID":              {token(c.with("sub", "spiffe://example.org/a")), Claimed{"https://id.example.com", "spiffe://example.org/a", "k1"}},
		"SVID without iss":  {token(c.without("iss").with("sub", "spiffe://example.org/a")), Claimed{"", "spiffe://example.org/a", "k1"}},
		"no SPIFFE ID, iss": {token(c.with("sub", "spiffe://example.org/a/")), Claimed{"https://id.example.com", "spiffe://example.org/a/", "k1"}},
		"no kid":            {compact("RS256", rsaKey(), `{"alg":"RS256"}`, c.String()), Claimed{"https://id.example.com", "repo:acme/widget:ref:refs/heads/main", ""}},
	} {
		if got := must(Peek(tt.token, Limits{})); got.Claimed != tt.want {
			t.Errorf("%s: %v; want %v", name, got.Claimed, tt.want)
		}
	}
	for name, tt := range map[string]struct {
		token string
		max   int
	}{
		"too large":                    {good, len(good) - 1},
		"no token":                     {"x", 0},
		"line end":                     {good + "\n", 0},
		"iss missing":                  {token(c.without("iss")), 0},
		"iss missing, no SPIFFE ID":    {token(c.without("iss").with("sub", "spiffe://example.org/a/")), 0},
		"iss missing, domain's own id": {token(c.without("iss").with("sub", "spiffe://example.org")), 0},
		"iss empty":                    {token(c.with("iss", "").with("sub", "spiffe://example.org/a")), 0},
		"iss twice":                    {compact("RS256", rsaKey(), header1.String(), `{"iss":"a","iss":"b"}`), 0},
		"iss folded":                   {token(c.with("ISS", "https://evil.example")), 0},
		"iss a number":                 {token(c.with("iss", 1)), 0},
		"kid twice":                    {compact("RS256", rsaKey(), `{"alg":"RS256","kid":"k1","kid":"k2"}`, c.String()), 0},
		"kid folded":                   {compact("RS256", rsaKey(), `{"alg":"RS256","KID":"k1"}`, c.String()), 0},
		"kid a number":                 {compact("RS256", rsaKey(), `{"alg":"RS256","kid":1}`, c.String()), 0},
		"kid empty":                    {compact("RS256", rsaKey(), `{"alg":"RS256","kid":""}`, c.String()), 0},
	} {
		got, err := Peek(tt.token, Limits{TokenBytes: tt.max})
		if got != nil || reason(t, err) != TokenMalformed {
			t.Errorf("%s: %v, %v; want %s", name, got, err, TokenMalformed)
		}
		wantNoLeak(t, err)
	}
}

// A token that was read under other limits than the issuer's is read again under these.
func TestVerifyPeeked(t *testing.T) {
	i := newIssuer(t, jwks(firstKey()))
	c := i.config(newClock())
	c.MaxClaims = 10
	v := newVerifier(t, c)
	few, many := token(claims(i.URL, start)), token(claims(i.URL, start).with("a", 1).with("b", 2))
	for name, tt := range map[string]struct {
		token  string
		limits Limits
		want   string
	}{
		"same limits":    {few, Limits{Claims: 10}, ""},
		"wider limits":   {few, Limits{Claims: 20}, ""},
		"too many":       {many, Limits{Claims: 20}, TokenMalformed},
		"bad signature":  {tokenBy(otherRSA(), "k1", claims(i.URL, start)), Limits{Claims: 10}, BadSignature},
		"another issuer": {token(claims("https://other.example", start)), Limits{Claims: 10}, UnknownIssuer},
	} {
		got, err := v.VerifyPeeked(t.Context(), must(Peek(tt.token, tt.limits)))
		if (got == nil) != (tt.want != "") || tt.want != "" && reason(t, err) != tt.want {
			t.Errorf("%s: %v, %v; want %q", name, got, err, tt.want)
		}
	}
}

// Addressed verifies nothing, but reads only what every parser reads the same way.
func TestAddressed(t *testing.T) {
	good := claims("https://i.example", start)
	sign := func(header, payload string) string { return compact("RS256", rsaKey(), header, payload) }
	for name, tt := range map[string]struct{ token, reason string }{
		"a token":            {token(good), ""},
		"who it is of":       {token(good.without("iss").without("sub").without("iat")), ""},
		"a certificate's id": {sign(`{"alg":"RS256","x5t":"x"}`, good.String()), ""},
		"no exp":             {token(good.without("exp")), TokenMalformed},
		"exp with fraction":  {token(good.with("exp", 1.5e9+0.5)), TokenMalformed},
		"aud as number":      {token(good.with("aud", 7)), TokenMalformed},
		"aud twice":          {sign(header1.String(), `{"aud":"a","aud":"b","exp":2000000000}`), TokenMalformed},
		"AUD":                {token(good.with("AUD", "b")), TokenMalformed},
		"header no object":   {sign(`[]`, good.String()), TokenMalformed},
		"payload no object":  {sign(header1.String(), `"x"`), TokenMalformed},
		"no signature":       {b64(header1.String()) + "." + b64(good.String()) + ".", TokenMalformed},
		"line end":           {token(good) + "\n", TokenMalformed},
		"long":               {token(good.with("a", strings.Repeat("x", 4<<10))), TokenMalformed},
	} {
		aud, expiry, err := Addressed(tt.token, 4<<10)
		if got := reason(t, err); got != tt.reason {
			t.Errorf("%s: %q; want %q", name, got, tt.reason)
		}
		if tt.reason == "" && (!slices.Equal(aud, []string{good["aud"].(string)}) || expiry.Unix() != good["exp"].(int64)) {
			t.Errorf("%s: for %q until %s", name, aud, expiry)
		}
		if err != nil {
			wantNoLeak(t, err)
		}
	}
}
