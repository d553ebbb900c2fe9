// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// Whatever a payload is spelt like, and whatever time it is made for: signed by the issuer's own key, so that nothing but the
// parse and the checks before the signature can refuse it.
func TestCatalogueOfPayloads(t *testing.T) {
	c := newClock()
	i := newIssuer(t, jwks(firstKey()))
	v := newVerifier(t, i.config(c))
	now := start.Unix()
	good := claims(i.URL, start)
	// raw is the good payload with text in front of the members, and some of them replaced or left out ("-").
	raw := func(more string, replace ...string) string {
		m := good
		for n := 0; n+1 < len(replace); n += 2 {
			if replace[n+1] == "-" {
				m = m.without(replace[n])
			} else {
				m = m.with(replace[n], json.RawMessage(replace[n+1]))
			}
		}
		return "{" + more + strings.TrimPrefix(m.String(), "{")
	}
	num := func(n int64) string { return fmt.Sprint(n) }
	deep := func(open, shut string, n int) string {
		return raw(`"d":` + strings.Repeat(open, n) + `0` + strings.Repeat(shut, n) + `,`)
	}
	members := func(n int) string {
		var b strings.Builder
		for k := range n {
			fmt.Fprintf(&b, `"m%d":0,`, k)
		}
		return raw(b.String())
	}
	for name, c := range map[string]struct{ payload, want string }{
		"good": {raw(""), ""},
		// spellings that are one reading
		"white space everywhere":    {"\t\n\r " + strings.ReplaceAll(raw(""), `,"`, " ,\n\t\"") + " \r\n", ""},
		"escaped name":              {raw(`"\u0073ub2":1,`), ""},
		"escaped registered name":   {strings.Replace(raw(""), `"sub"`, `"\u0073\u0075b"`, 1), ""},
		"escaped slash in iss":      {strings.Replace(raw(""), `"iss":"https://`, `"iss":"https:\/\/`, 1), ""},
		"surrogate pair in a claim": {raw(`"x":"\ud83d\ude00",`), ""},
		"plane 16":                  {raw(`"x":"\udbff\udfff",`), ""},
		"negative zero":             {raw(`"x":-0,`), ""},
		"exponent":                  {raw(`"x":1e10,"y":1E+10,"z":1.5e-3,`), ""},
		"empty name":                {raw(`"":1,`), ""},
		"NUL in another claim":      {raw(`"x":"\u0000",`), ""},
		"claim called claims":       {raw(`"claims":{"sub":"evil"},"vault":{"entity":{"id":"x"}},"now":0,`), ""},
		"empty object and list":     {raw(`"x":{},"y":[],"z":[[],{}],`), ""},
		"prototype":                 {raw(`"__proto__":{"admin":true},"constructor":1,`), ""},
		"inner iss and sub":         {raw(`"act":{"sub":"evil","iss":"evil"},`), ""},
		"depth 15 of lists":         {deep("[", "]", 15), ""},
		// what would be read in two ways
		"repeated sub":               {raw(`"sub":"evil",`), TokenMalformed},
		"repeated sub, escaped":      {raw(`"s\u0075b":"evil",`), TokenMalformed},
		"repeated inner name":        {raw(`"x":{"a":1,"a":1},`), TokenMalformed},
		"repeated in a list":         {raw(`"x":[{"a":1,"\u0061":2}],`), TokenMalformed},
		"twins in case":              {raw(`"Repository":"x","repository":"y",`), TokenMalformed},
		"inner twins in case":        {raw(`"x":{"Ref":1,"ref":2},`), TokenMalformed},
		"twins by long s":            {raw(`"po\u017ft":1,"post":2,`), TokenMalformed},
		"twins by Kelvin":            {raw(`"to\u212ain":1,"tokin":2,"x":{"\u212a":1,"k":2},`), TokenMalformed},
		"twins by two sigmas":        {raw(`"\u03c3":1,"\u03c2":2,`), TokenMalformed},
		"Sub for sub":                {raw(`"Sub":"evil",`), TokenMalformed},
		"Sub alone":                  {raw(`"Sub":"evil",`, "sub", "-"), TokenMalformed},
		"i\u017fs":                   {raw(`"i\u017fs":"evil",`), TokenMalformed},
		"EXP":                        {raw(`"EXP":1,`), TokenMalformed},
		"Azp":                        {raw(`"Azp":"evil",`), TokenMalformed},
		"Cnf":                        {raw(`"Cnf":{},`), TokenMalformed},
		"_Claim_Names":               {raw(`"_Claim_Names":{},`), TokenMalformed},
		"_claim_sources":             {raw(`"_claim_sources":{"a":{"endpoint":"http://169.254.169.254"}},`), TokenMalformed},
		"lone high surrogate":        {raw(`"x":"\ud800",`), TokenMalformed},
		"lone low surrogate":         {raw(`"x":"\udc00",`), TokenMalformed},
		"two high surrogates":        {raw(`"x":"\ud800\ud800",`), TokenMalformed},
		"surrogate, then text":       {raw(`"x":"\ud800\u0041",`), TokenMalformed},
		"surrogate in a name":        {raw(`"\ud800":1,`), TokenMalformed},
		"invalid UTF-8":              {raw("\"x\":\"\xff\","), TokenMalformed},
		"overlong UTF-8":             {raw("\"x\":\"\xc0\xaf\","), TokenMalformed},
		"UTF-8 surrogate":            {raw("\"x\":\"\xed\xa0\x80\","), TokenMalformed},
		"UTF-8 beyond U+10FFFF":      {raw("\"x\":\"\xf4\x90\x80\x80\","), TokenMalformed},
		"byte order mark":            {"\ufeff" + raw(""), TokenMalformed},
		"UTF-16":                     {"\x00{\x00}", TokenMalformed},
		"raw line end in a text":     {raw("\"x\":\"a\nb\","), TokenMalformed},
		"raw tab in a text":          {raw("\"x\":\"a\tb\","), TokenMalformed},
		"unknown escape":             {raw(`"x":"\a",`), TokenMalformed},
		"escape in upper case":       {raw(`"x":"\U0041",`), TokenMalformed},
		"plus in an escape":          {raw(`"x":"\u+041",`), TokenMalformed},
		"underscore in an escape":    {raw(`"x":"\u0_41",`), TokenMalformed},
		"short escape":               {raw(`"x":"\u41",`), TokenMalformed},
		"single quotes":              {raw(`'x':1,`), TokenMalformed},
		"no quotes":                  {raw(`x:1,`), TokenMalformed},
		"comment":                    {raw(`/*"x":1,*/`), TokenMalformed},
		"line comment":               {raw("//x\n"), TokenMalformed},
		"two commas":                 {raw(`"x":1,,`), TokenMalformed},
		"comma at the end":           {strings.TrimSuffix(raw(""), "}") + ",}", TokenMalformed},
		"comma at the end of a list": {raw(`"x":[1,],`), TokenMalformed},
		"no colon":                   {raw(`"x" 1,`), TokenMalformed},
		"no-break space":             {raw("\u00a0"), TokenMalformed},
		"form feed":                  {raw("\f"), TokenMalformed},
		"leading zero":               {raw(`"x":01,`), TokenMalformed},
		"leading plus":               {raw(`"x":+1,`), TokenMalformed},
		"hexadecimal":                {raw(`"x":0x10,`), TokenMalformed},
		"infinity":                   {raw(`"x":Infinity,`), TokenMalformed},
		"not a number":               {raw(`"x":NaN,`), TokenMalformed},
		"point at the end":           {raw(`"x":1.,`), TokenMalformed},
		"point first":                {raw(`"x":.5,`), TokenMalformed},
		"minus alone":                {raw(`"x":-,`), TokenMalformed},
		"exponent of four digits":    {raw(`"x":1e1000,`), TokenMalformed},
		"exponent without digits":    {raw(`"x":1e,`), TokenMalformed},
		"digits of another script":   {raw(`"x":１,`), TokenMalformed},
		"number of 65 digits":        {raw(`"x":` + strings.Repeat("1", 65) + `,`), TokenMalformed},
		"True":                       {raw(`"x":True,`), TokenMalformed},
		"nulls":                      {raw(`"x":nulls,`), TokenMalformed},
		"two objects":                {raw("") + raw(""), TokenMalformed},
		"NUL behind":                 {raw("") + "\x00", TokenMalformed},
		"list":                       {"[" + raw("") + "]", TokenMalformed},
		"text":                       {`"{}"`, TokenMalformed},
		"null":                       {"null", TokenMalformed},
		"only a brace":               {"{", TokenMalformed},
		"cut in an escape":           {`{"x":"\u00`, TokenMalformed},
		"cut behind a backslash":     {`{"x":"\`, TokenMalformed},
		"depth 16 of lists":          {deep("[", "]", 16), TokenMalformed},
		"depth 4000":                 {deep("[", "]", 4000), TokenMalformed},
		"depth of objects":           {deep(`{"a":`, "}", 16), TokenMalformed},
		"257 members":                {members(257), TokenMalformed},
		// names
		"iss with a slash":                {raw("", "iss", `"`+i.URL+`/"`), UnknownIssuer},
		"iss in upper case":               {raw("", "iss", `"`+strings.ToUpper(i.URL)+`"`), UnknownIssuer},
		"iss with a port":                 {raw("", "iss", `"`+i.URL+`:443"`), UnknownIssuer},
		"iss with a user":                 {raw("", "iss", `"`+strings.Replace(i.URL, "//", "//u@", 1)+`"`), UnknownIssuer},
		"iss with a fragment":             {raw("", "iss", `"`+i.URL+`#"`), UnknownIssuer},
		"iss with a query":                {raw("", "iss", `"`+i.URL+`?"`), UnknownIssuer},
		"iss with a space":                {raw("", "iss", `"`+i.URL+` "`), UnknownIssuer},
		"iss without scheme":              {raw("", "iss", `"`+strings.TrimPrefix(i.URL, "https://")+`"`), UnknownIssuer},
		"iss with a zero-width space":     {raw("", "iss", `"`+i.URL+`\u200b"`), TokenMalformed},
		"iss of a list":                   {raw("", "iss", `["`+i.URL+`"]`), TokenMalformed},
		"iss null":                        {raw("", "iss", "null"), TokenMalformed},
		"iss empty":                       {raw("", "iss", `""`), TokenMalformed},
		"no iss":                          {raw("", "iss", "-"), TokenMalformed},
		"metadata address":                {raw("", "iss", `"http://169.254.169.254"`), UnknownIssuer},
		"sub empty":                       {raw("", "sub", `""`), TokenMalformed},
		"sub null":                        {raw("", "sub", "null"), TokenMalformed},
		"sub number":                      {raw("", "sub", "1"), TokenMalformed},
		"sub list":                        {raw("", "sub", `["a"]`), TokenMalformed},
		"sub of an object":                {raw("", "sub", `{"a":1}`), TokenMalformed},
		"sub of 1024 bytes":               {raw("", "sub", `"`+strings.Repeat("s", 1024)+`"`), ""},
		"sub of 1025 bytes":               {raw("", "sub", `"`+strings.Repeat("s", 1025)+`"`), TokenMalformed},
		"sub with right-to-left override": {raw("", "sub", `"a\u202eb"`), TokenMalformed},
		"sub with an isolate":             {raw("", "sub", `"a\u2066b"`), TokenMalformed},
		"sub with a joiner":               {raw("", "sub", `"a\u200db"`), TokenMalformed},
		"sub with a soft hyphen":          {raw("", "sub", `"a\u00adb"`), TokenMalformed},
		"sub with a tag character":        {raw("", "sub", `"a\udb40\udc41b"`), TokenMalformed},
		"sub with a variation selector":   {raw("", "sub", `"a\ufe0fb"`), TokenMalformed},
		"sub with a Hangul filler":        {raw("", "sub", `"a\u3164b"`), TokenMalformed},
		"sub with a line separator":       {raw("", "sub", `"a\u2028b"`), TokenMalformed},
		"sub with an ideographic space":   {raw("", "sub", `"a\u3000b"`), TokenMalformed},
		"sub with a no-break space":       {raw("", "sub", `"a\u00a0b"`), TokenMalformed},
		"sub with DEL":                    {raw("", "sub", `"a\u007fb"`), TokenMalformed},
		"sub with NUL":                    {raw("", "sub", `"a\u0000"`), TokenMalformed},
		"sub with a replacement":          {raw("", "sub", `"a\ufffd"`), TokenMalformed},
		"sub for private use":             {raw("", "sub", `"a\ue000"`), TokenMalformed},
		"sub with a noncharacter":         {raw("", "sub", `"a\uffff"`), TokenMalformed},
		"sub with a plain space":          {raw("", "sub", `"a b"`), ""},
		"sub in Greek":                    {raw("", "sub", `"αβγ"`), ""},
		"jti number":                      {raw("", "jti", "7"), TokenMalformed},
		"jti null":                        {raw("", "jti", "null"), TokenMalformed},
		"jti empty":                       {raw("", "jti", `""`), TokenMalformed},
		"jti of 257 bytes":                {raw("", "jti", `"`+strings.Repeat("j", 257)+`"`), TokenMalformed},
		"jti with a line end":             {raw("", "jti", `"a\nb"`), TokenMalformed},
		"no jti":                          {raw("", "jti", "-"), ""},
		"aud number":                      {raw("", "aud", "1"), TokenMalformed},
		"aud null":                        {raw("", "aud", "null"), TokenMalformed},
		"aud object":                      {raw("", "aud", "{}"), TokenMalformed},
		"aud with a number":               {raw("", "aud", `["a",1]`), TokenMalformed},
		"aud with null":                   {raw("", "aud", `["a",null]`), TokenMalformed},
		"aud list in a list":              {raw("", "aud", `[["a"]]`), TokenMalformed},
		"aud with a zero-width space":     {raw("", "aud", `"a\u200b"`), TokenMalformed},
		// times
		"exp now":                      {raw("", "iat", num(now-60), "nbf", num(now-60), "exp", num(now)), ""},
		"exp 29 s ago":                 {raw("", "iat", num(now-60), "nbf", num(now-60), "exp", num(now-29)), ""},
		"exp 30 s ago":                 {raw("", "iat", num(now-60), "nbf", num(now-60), "exp", num(now-30)), Expired},
		"exp 0":                        {raw("", "exp", "0"), TokenMalformed},
		"exp -1":                       {raw("", "exp", "-1"), TokenMalformed},
		"exp -0":                       {raw("", "exp", "-0"), TokenMalformed},
		"exp 1":                        {raw("", "exp", "1"), Expired},
		"exp 2^33":                     {raw("", "exp", "8589934592"), TokenMalformed},
		"exp 2^33-1":                   {raw("", "exp", "8589934591"), Lifetime},
		"exp 2^63":                     {raw("", "exp", "9223372036854775808"), TokenMalformed},
		"exp 2^64 + a minute from now": {raw("", "exp", "18446744075509562476"), TokenMalformed},
		"exp in milliseconds":          {raw("", "exp", num((now+60)*1000)), TokenMalformed},
		"exp with a fraction":          {raw("", "exp", num(now+60)+".0"), TokenMalformed},
		"exp with an exponent":         {raw("", "exp", num(now+60)+"e0"), TokenMalformed},
		"exp text":                     {raw("", "exp", `"`+num(now+60)+`"`), TokenMalformed},
		"exp list":                     {raw("", "exp", `[`+num(now+60)+`]`), TokenMalformed},
		"exp true":                     {raw("", "exp", "true"), TokenMalformed},
		"exp null":                     {raw("", "exp", "null"), TokenMalformed},
		"no exp":                       {raw("", "exp", "-"), TokenMalformed},
		"exp at iat":                   {raw("", "exp", num(now)), Lifetime},
		"exp before iat":               {raw("", "iat", num(now+10), "exp", num(now+5)), Lifetime},
		"exp at nbf":                   {raw("", "iat", num(now), "nbf", num(now+20), "exp", num(now+20)), Lifetime},
		"iat 0":                        {raw("", "iat", "0"), TokenMalformed},
		"iat 1":                        {raw("", "iat", "1"), TooOld},
		"iat text":                     {raw("", "iat", `"1"`), TokenMalformed},
		"no iat":                       {raw("", "iat", "-"), TokenMalformed},
		"iat in a minute":              {raw("", "iat", num(now+60)), ""},
		"iat in 61 s":                  {raw("", "iat", num(now+61)), NotYetValid},
		"iat an hour ago":              {raw("", "iat", num(now-3600)), ""},
		"iat an hour and 1 s ago":      {raw("", "iat", num(now-3601)), TooOld},
		"nbf in 30 s":                  {raw("", "nbf", num(now+30)), ""},
		"nbf in 31 s":                  {raw("", "nbf", num(now+31)), NotYetValid},
		"nbf 0":                        {raw("", "nbf", "0"), TokenMalformed},
		"nbf null":                     {raw("", "nbf", "null"), TokenMalformed},
		"nbf text":                     {raw("", "nbf", `"0"`), TokenMalformed},
		"no nbf":                       {raw("", "nbf", "-"), ""},
		"nbf long ago":                 {raw("", "nbf", "1"), ""},
		"lives 24 h":                   {raw("", "exp", num(now+86400)), ""},
		"lives 24 h and 1 s":           {raw("", "exp", num(now+86401)), Lifetime},
	} {
		t.Run(name, func(t *testing.T) {
			wantReason(t, v, compact("RS256", rsaKey(), header1.String(), c.payload), c.want)
		})
	}
	i.wantHits(t, "/keys", 1)
}

// Whatever a header says or is spelt like: the signature is good by the algorithm beside it.
func TestCatalogueOfHeaders(t *testing.T) {
	i := newIssuer(t, jwks(firstKey(), jwk(ecKey().Public(), "e1", "ES256", nil), jwk(edKey().Public(), "d1", "EdDSA", nil), jwk(p384Key().Public(), "p1", "", nil),
		jwk(otherRSA().Public(), "any", "", nil), jwk(otherRSA().Public(), "ps", "PS256", nil)))
	v := newVerifier(t, i.config(newClock()))
	payload := claims(i.URL, start).String()
	for name, c := range map[string]struct{ header, alg, want string }{
		"good":                     {`{"alg":"RS256","kid":"k1","typ":"JWT"}`, "RS256", ""},
		"white space":              {" {\t\"alg\" : \"RS256\",\n\"kid\":\"k1\" } ", "RS256", ""},
		"escapes":                  {`{"\u0061lg":"\u0052S256","kid":"\u006b1"}`, "RS256", ""},
		"no typ":                   {`{"alg":"RS256","kid":"k1"}`, "RS256", ""},
		"typ jwt":                  {`{"alg":"RS256","kid":"k1","typ":"jwt"}`, "RS256", ""},
		"typ application/jwt":      {`{"alg":"RS256","kid":"k1","typ":"Application/JWT"}`, "RS256", ""},
		"unknown parameter":        {`{"alg":"RS256","kid":"k1","ver":1,"pi":{"a":[]}}`, "RS256", ""},
		"nonce, of Entra's tokens": {`{"alg":"RS256","kid":"k1","nonce":"x"}`, "RS256", ""},
		"typ application/at+jwt":   {`{"alg":"RS256","kid":"k1","typ":"application/at+jwt"}`, "RS256", TokenType},
		"typ at+jwt":               {`{"alg":"RS256","kid":"k1","typ":"at+jwt"}`, "RS256", TokenType},
		"typ JOSE":                 {`{"alg":"RS256","kid":"k1","typ":"JOSE"}`, "RS256", TokenType},
		"typ empty":                {`{"alg":"RS256","kid":"k1","typ":""}`, "RS256", TokenType},
		"typ absent, by its name":  {`{"alg":"RS256","kid":"k1","typ":"absent"}`, "RS256", TokenType},
		"typ twice application":    {`{"alg":"RS256","kid":"k1","typ":"application/application/jwt"}`, "RS256", TokenType},
		"typ with a parameter":     {`{"alg":"RS256","kid":"k1","typ":"JWT;v=1"}`, "RS256", TokenType},
		"typ with a space":         {`{"alg":"RS256","kid":"k1","typ":"JWT "}`, "RS256", TokenType},
		"typ secevent+jwt":         {`{"alg":"RS256","kid":"k1","typ":"secevent+jwt"}`, "RS256", TokenType},
		"typ null":                 {`{"alg":"RS256","kid":"k1","typ":null}`, "RS256", TokenMalformed},
		"typ list":                 {`{"alg":"RS256","kid":"k1","typ":["JWT"]}`, "RS256", TokenMalformed},
		"Typ":                      {`{"alg":"RS256","kid":"k1","Typ":"JWT"}`, "RS256", TokenMalformed},
		"no alg":                   {`{"kid":"k1"}`, "RS256", Algorithm},
		"alg empty":                {`{"alg":"","kid":"k1"}`, "RS256", Algorithm},
		"alg none":                 {`{"alg":"none","kid":"k1"}`, "RS256", Algorithm},
		"alg NonE":                 {`{"alg":"NonE","kid":"k1"}`, "RS256", Algorithm},
		"alg rs256":                {`{"alg":"rs256","kid":"k1"}`, "RS256", Algorithm},
		"alg with a space":         {`{"alg":"RS256 ","kid":"k1"}`, "RS256", Algorithm},
		"alg with NUL":             {`{"alg":"RS256\u0000","kid":"k1"}`, "RS256", Algorithm},
		"alg of an encryption":     {`{"alg":"RSA-OAEP","kid":"k1"}`, "RS256", Algorithm},
		"alg ES256K":               {`{"alg":"ES256K","kid":"e1"}`, "ES256", Algorithm},
		"alg Ed25519":              {`{"alg":"Ed25519","kid":"d1"}`, "EdDSA", Algorithm},
		"alg not listed":           {`{"alg":"RS384","kid":"k1"}`, "RS256", Algorithm},
		"alg number":               {`{"alg":256,"kid":"k1"}`, "RS256", TokenMalformed},
		"alg null":                 {`{"alg":null,"kid":"k1"}`, "RS256", TokenMalformed},
		"alg list":                 {`{"alg":["RS256"],"kid":"k1"}`, "RS256", TokenMalformed},
		"alg twice":                {`{"alg":"none","alg":"RS256","kid":"k1"}`, "RS256", TokenMalformed},
		"Alg beside alg":           {`{"Alg":"none","alg":"RS256","kid":"k1"}`, "RS256", TokenMalformed},
		"PS256 by a key for RS256": {`{"alg":"PS256","kid":"k1"}`, "RS256", Algorithm},
		"RS256 by a key for PS256": {`{"alg":"RS256","kid":"ps"}`, "RS256", Algorithm},
		"RS256 by an EC key":       {`{"alg":"RS256","kid":"e1"}`, "RS256", Algorithm},
		"ES256 by an RSA key":      {`{"alg":"ES256","kid":"k1"}`, "ES256", Algorithm},
		"ES256 by a P-384 key":     {`{"alg":"ES256","kid":"p1"}`, "ES256", Algorithm},
		"EdDSA by an EC key":       {`{"alg":"EdDSA","kid":"e1"}`, "EdDSA", Algorithm},
		"EdDSA":                    {`{"alg":"EdDSA","kid":"d1"}`, "EdDSA", ""},
		"ES256":                    {`{"alg":"ES256","kid":"e1"}`, "ES256", ""},
		"another's kid":            {`{"alg":"RS256","kid":"any"}`, "RS256", BadSignature},
		"RS256 said, PSS signed":   {`{"alg":"RS256","kid":"k1"}`, "PS256", BadSignature},
		"no kid":                   {`{"alg":"RS256"}`, "RS256", UnknownKey},
		"unknown kid":              {`{"alg":"RS256","kid":"k3"}`, "RS256", UnknownKey},
		"kid in another case":      {`{"alg":"RS256","kid":"K1"}`, "RS256", UnknownKey},
		"kid with a space":         {`{"alg":"RS256","kid":"k1 "}`, "RS256", UnknownKey},
		"kid of a path":            {`{"alg":"RS256","kid":"../../dev/null"}`, "RS256", UnknownKey},
		"kid empty":                {`{"alg":"RS256","kid":""}`, "RS256", TokenMalformed},
		"kid null":                 {`{"alg":"RS256","kid":null}`, "RS256", TokenMalformed},
		"kid number":               {`{"alg":"RS256","kid":1}`, "RS256", TokenMalformed},
		"kid with NUL":             {`{"alg":"RS256","kid":"k1\u0000"}`, "RS256", TokenMalformed},
		"kid beyond ASCII":         {`{"alg":"RS256","kid":"k\u0131"}`, "RS256", TokenMalformed},
		"kid of 257 bytes":         {`{"alg":"RS256","kid":"` + strings.Repeat("k", 257) + `"}`, "RS256", TokenMalformed},
		"Kid by Kelvin":            {`{"alg":"RS256","\u212aid":"k1"}`, "RS256", TokenMalformed},
		"crit of nothing":          {`{"alg":"RS256","kid":"k1","crit":[]}`, "RS256", TokenMalformed},
		"crit null":                {`{"alg":"RS256","kid":"k1","crit":null}`, "RS256", TokenMalformed},
		"b64 true":                 {`{"alg":"RS256","kid":"k1","b64":true}`, "RS256", TokenMalformed},
		"jwk":                      {`{"alg":"RS256","kid":"k1","jwk":{}}`, "RS256", TokenMalformed},
		"JWK":                      {`{"alg":"RS256","kid":"k1","JWK":{}}`, "RS256", TokenMalformed},
		"jku":                      {`{"alg":"RS256","kid":"k1","jku":"` + i.URL + `/keys"}`, "RS256", TokenMalformed},
		"x5u":                      {`{"alg":"RS256","kid":"k1","x5u":""}`, "RS256", TokenMalformed},
		"x5t#s256":                 {`{"alg":"RS256","kid":"k1","x5t#s256":""}`, "RS256", TokenMalformed},
		"zip":                      {`{"alg":"RS256","kid":"k1","zip":"DEF"}`, "RS256", TokenMalformed},
		"enc":                      {`{"alg":"RS256","kid":"k1","enc":"A128GCM"}`, "RS256", TokenMalformed},
		"cty JWT":                  {`{"alg":"RS256","kid":"k1","cty":"JWT"}`, "RS256", TokenMalformed},
		"list":                     {`["RS256"]`, "RS256", TokenMalformed},
		"empty object":             {`{}`, "RS256", Algorithm},
		"text behind":              {`{"alg":"RS256","kid":"k1"}x`, "RS256", TokenMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			signer := map[string]any{"RS256": rsaKey(), "PS256": rsaKey(), "ES256": ecKey(), "EdDSA": edKey()}[c.alg]
			wantReason(t, v, compact(c.alg, signer, c.header, payload), c.want)
		})
	}
	i.wantHits(t, "/keys", 1)
}

// Key sets that are poisoned, lied about or spelt oddly, each beside the good key or in its place.
func TestCatalogueOfKeySets(t *testing.T) {
	good := string(firstKey())
	edit := func(old, by string) string { return strings.Replace(good, old, by, 1) }
	with := func(more string) string { return "{" + more + strings.TrimPrefix(good, "{") }
	many := func(n int) string { return strings.Repeat(`{"kty":"oct","k":"AA"},`, n) }
	for name, c := range map[string]struct{ set, want string }{
		"good":                        {`{"keys":[` + good + `]}`, ""},
		"members beside":              {`{"a":{"keys":[]},"keys":[` + good + `],"b":null}`, ""},
		"escaped name":                {`{"\u006beys":[` + good + `]}`, ""},
		"null beside":                 {`{"keys":[null,` + good + `]}`, ""},
		"a list beside":               {`{"keys":[[],1,"x",true,{},` + good + `]}`, ""},
		"99 oct keys beside":          {`{"keys":[` + many(99) + good + `]}`, ""},
		"100 oct keys beside":         {`{"keys":[` + many(100) + good + `]}`, IssuerUnavailable},
		"deep entry beside":           {`{"keys":[{"x":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `},` + good + `]}`, ""},
		"deeper than Go reads":        {`{"keys":[{"x":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `},` + good + `]}`, IssuerUnavailable},
		"invalid UTF-8 beside":        {"{\"keys\":[{\"kty\":\"\xff\"}," + good + "]}", ""},
		"byte order mark":             {"\ufeff{\"keys\":[" + good + "]}", IssuerUnavailable},
		"twice the same key":          {`{"keys":[` + good + `,` + good + `]}`, IssuerUnavailable},
		"twice the kid":               {`{"keys":[` + good + `,` + strings.Replace(string(secondKey()), `"k2"`, `"k1"`, 1) + `]}`, IssuerUnavailable},
		"keys twice":                  {`{"keys":[],"keys":[` + good + `]}`, IssuerUnavailable},
		"Keys beside keys":            {`{"Keys":[],"keys":[` + good + `]}`, IssuerUnavailable},
		"Keys alone":                  {`{"Keys":[` + good + `]}`, IssuerUnavailable},
		"keys an object":              {`{"keys":{"0":` + good + `}}`, IssuerUnavailable},
		"keys null":                   {`{"keys":null}`, IssuerUnavailable},
		"no keys":                     {`{}`, IssuerUnavailable},
		"keys empty":                  {`{"keys":[]}`, IssuerUnavailable},
		"a list":                      {`[` + good + `]`, IssuerUnavailable},
		"a key for a set":             {good, IssuerUnavailable},
		"two sets":                    {`{"keys":[` + good + `]}{"keys":[` + good + `]}`, IssuerUnavailable},
		"cut short":                   {`{"keys":[` + good, IssuerUnavailable},
		"HTML":                        {`<html>` + good, IssuerUnavailable},
		"empty answer":                {``, IssuerUnavailable},
		"use enc":                     {`{"keys":[` + with(`"use":"enc",`) + `]}`, IssuerUnavailable},
		"use null":                    {`{"keys":[` + with(`"use":null,`) + `]}`, IssuerUnavailable},
		"use jwt-svid":                {`{"keys":[` + with(`"use":"jwt-svid",`) + `]}`, IssuerUnavailable},
		"use SIG":                     {`{"keys":[` + with(`"use":"SIG",`) + `]}`, IssuerUnavailable},
		"use sig":                     {`{"keys":[` + with(`"use":"sig",`) + `]}`, ""},
		"key_ops sign":                {`{"keys":[` + with(`"key_ops":["sign"],`) + `]}`, IssuerUnavailable},
		"key_ops a text":              {`{"keys":[` + with(`"key_ops":"verify",`) + `]}`, IssuerUnavailable},
		"key_ops empty":               {`{"keys":[` + with(`"key_ops":[],`) + `]}`, IssuerUnavailable},
		"key_ops verify":              {`{"keys":[` + with(`"key_ops":["verify","x"],`) + `]}`, ""},
		"private exponent":            {`{"keys":[` + with(`"d":"AQ",`) + `]}`, IssuerUnavailable},
		"private and null":            {`{"keys":[` + with(`"d":null,`) + `]}`, IssuerUnavailable},
		"member twice":                {`{"keys":[` + with(`"n":"AQAB",`) + `]}`, IssuerUnavailable},
		"members in two cases":        {`{"keys":[` + with(`"N":"AQAB",`) + `]}`, IssuerUnavailable},
		"exponent 1":                  {`{"keys":[` + edit(`"e":"AQAB"`, `"e":"AQ"`) + `]}`, IssuerUnavailable},
		"exponent even":               {`{"keys":[` + edit(`"e":"AQAB"`, `"e":"AQAA"`) + `]}`, IssuerUnavailable},
		"exponent 0":                  {`{"keys":[` + edit(`"e":"AQAB"`, `"e":""`) + `]}`, IssuerUnavailable},
		"exponent with 2^32 added":    {`{"keys":[` + edit(`"e":"AQAB"`, `"e":"AQABAAE"`) + `]}`, IssuerUnavailable},
		"exponent a number":           {`{"keys":[` + edit(`"e":"AQAB"`, `"e":65537`) + `]}`, IssuerUnavailable},
		"modulus a list":              {`{"keys":[` + with(`"x":1,`)[:len(with(`"x":1,`))-1] + `,"oth":[]}]}`, IssuerUnavailable},
		"alg of another kind":         {`{"keys":[` + edit(`"alg":"RS256"`, `"alg":"ES256"`) + `]}`, IssuerUnavailable},
		"alg of an encryption":        {`{"keys":[` + edit(`"alg":"RS256"`, `"alg":"RSA-OAEP"`) + `]}`, IssuerUnavailable},
		"alg HS256":                   {`{"keys":[` + edit(`"alg":"RS256"`, `"alg":"HS256"`) + `]}`, IssuerUnavailable},
		"alg a number":                {`{"keys":[` + edit(`"alg":"RS256"`, `"alg":1`) + `]}`, IssuerUnavailable},
		"alg RS512, of another token": {`{"keys":[` + edit(`"alg":"RS256"`, `"alg":"RS512"`) + `]}`, Algorithm},
		"kty in lower case":           {`{"keys":[` + edit(`"kty":"RSA"`, `"kty":"rsa"`) + `]}`, IssuerUnavailable},
		"kid a number":                {`{"keys":[` + edit(`"kid":"k1"`, `"kid":1`) + `]}`, IssuerUnavailable},
		"kid with a line end":         {`{"keys":[` + edit(`"kid":"k1"`, `"kid":"k1\n"`) + `]}`, IssuerUnavailable},
		"no kid, of a token with one": {`{"keys":[` + edit(`"kid":"k1",`, ``) + `]}`, UnknownKey},
		"x5c of nothing":              {`{"keys":[` + with(`"x5c":["!"],`) + `]}`, ""},
		"1 MiB of white space":        {`{"keys":[` + strings.Repeat(" ", 1<<20) + good + `]}`, IssuerUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			i := newIssuer(t, c.set)
			v := newVerifier(t, i.config(newClock()))
			for range 3 {
				wantReason(t, v, token(claims(i.URL, start)), c.want)
			}
			i.wantHits(t, "/keys", 1)
		})
	}
}

// Subjects of a trust domain, and what an iss beside them does.
func TestCatalogueOfWorkloads(t *testing.T) {
	i := newIssuer(t, jwks(firstKey()))
	cfg := i.config(newClock())
	cfg.DiscoveryURL, cfg.JWKSURL, cfg.TrustDomain, cfg.Issuer = "", i.URL+"/keys", "example.org", "https://oidc.example.org"
	v := newVerifier(t, cfg)
	good := claims("https://oidc.example.org", start).with("sub", "spiffe://example.org/a")
	for sub, want := range map[string]string{
		"spiffe://example.org/a": "", "spiffe://example.org/a/b": "", "spiffe://example.org/A.b_c-d": "", "spiffe://example.org/...": "",
		"spiffe://example.org": TokenMalformed, "spiffe://example.org/": TokenMalformed, "spiffe://example.org//a": TokenMalformed, "spiffe://example.org/a/": TokenMalformed,
		"spiffe://example.org/a//b": TokenMalformed, "spiffe://example.org/.": TokenMalformed, "spiffe://example.org/../b": TokenMalformed, "spiffe://example.org/a/..": TokenMalformed,
		"spiffe://example.org/%61": TokenMalformed, "spiffe://example.org/a?b": TokenMalformed, "spiffe://example.org/a#b": TokenMalformed, "spiffe://example.org/a:b": TokenMalformed, "spiffe://example.org/a b": TokenMalformed,
		"spiffe://example.org/é": TokenMalformed, "spiffe://example.org/a\\b": TokenMalformed, "spiffe://example.org:443/a": TokenMalformed, "spiffe://u@example.org/a": TokenMalformed,
		"SPIFFE://example.org/a": TokenMalformed, "spiffe:/example.org/a": TokenMalformed, "spiffe:///a": TokenMalformed, "//example.org/a": TokenMalformed, "example.org/a": TokenMalformed,
		"spiffe://Example.org/a": TokenMalformed, "spiffe://example.org./a": UnknownIssuer, "spiffe://.example.org/a": UnknownIssuer, "spiffe://example.org.evil/a": UnknownIssuer, "spiffe://sub.example.org/a": UnknownIssuer,
		"spiffe://example-org/a": UnknownIssuer, "spiffe://example_org/a": UnknownIssuer, "https://example.org/a": TokenMalformed, " spiffe://example.org/a": TokenMalformed,
		"spiffe://example.org/" + strings.Repeat("a", 1003): "", "spiffe://example.org/" + strings.Repeat("a", 1004): TokenMalformed,
	} {
		wantReason(t, v, token(good.with("sub", sub)), want)
		if t.Failed() {
			t.Fatal(sub)
		}
	}
	for name, c := range map[string]struct {
		f    fields
		want string
	}{
		"iss other": {good.with("iss", "https://x.example"), UnknownIssuer}, "no iss": {good.without("iss"), ""}, "empty": {good.with("iss", ""), TokenMalformed},
		"null": {good.with("iss", nil), TokenMalformed}, "ISS": {good.without("iss").with("ISS", "x"), TokenMalformed}, "num": {good.with("iss", json.RawMessage("1")), TokenMalformed},
		"no jti": {good.without("jti"), ""}, "no nbf": {good.without("nbf"), ""}, "no aud": {good.without("aud"), ""},
	} {
		wantReason(t, v, token(c.f), c.want)
		if t.Failed() {
			t.Fatal(name)
		}
	}
}
