// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"net/http"
	"net/textproto"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

// allVariables are the names that some expression of a profile may use.
var allVariables = []string{
	"params", "subject", "name", "not_after", "ttl", "now", "credential", "subject_token", "accessor", "key", "response", "page", "prefix", "hostname",
}

// scope lists the variables that the expressions of one operation may use: url everywhere, inside only in headers and body. A
// secret is in url only where an API leaves no other way, such as a key in the URL of the call that ends it.
type scope struct{ url, inside []string }

var (
	exchangeScope = scope{url: []string{"params", "subject", "name", "not_after", "ttl", "now"}, inside: []string{"credential", "subject_token"}}
	renewScope    = scope{url: []string{"params", "name", "not_after", "now", "accessor", "key"}, inside: []string{"credential"}}
	revokeScope   = scope{url: []string{"params", "name", "accessor", "key"}, inside: []string{"credential"}}
	findScope     = scope{url: []string{"params", "name"}, inside: []string{"credential"}}
	listScope     = scope{url: []string{"params", "prefix"}, inside: []string{"credential"}}
	checkScope    = scope{inside: []string{"credential"}}

	rotateScope           = scope{url: []string{"params", "name", "not_after", "accessor"}, inside: []string{"credential", "key"}}
	identifyScope         = scope{url: []string{"params"}, inside: []string{"credential", "key"}}
	rotateCredentialScope = scope{url: []string{"name", "not_after"}, inside: []string{"credential"}}
)

// Variables of the expressions that read an answer.
var (
	keyVariables     = []string{"response", "params", "subject", "name", "not_after", "ttl"}
	renewVariables   = []string{"response", "params", "name", "not_after"}
	foundVariables   = []string{"response", "params", "name"}
	nextVariables    = []string{"response", "params", "name", "page"}
	listedVariables  = []string{"response", "params"}
	furtherVariables = []string{"response", "params", "page"}
	saysVariables    = []string{"response"} // of only_if and hints
	headerVariables  = []string{"key"}

	rotatedVariables    = []string{"response", "params", "name", "not_after"}
	identifiedVariables = []string{"response", "params"}
	credentialVariables = []string{"response", "name", "not_after"}
)

// takenFields are the fields that creds/ returns for every key. No profile may set one, and so speak for the engine.
var takenFields = []string{
	"api_key", "id", "accessor", "expires_at", "revocable", "header_name", "header_value", "target", "issuer", "subject", "trust",
}

// sources are the values of subject_token_source that this package knows.
var sources = []string{SourceNone, SourceRequest, SourceSelf, SourceFile, SourceClientCredentials, SourceSVID}

var (
	profileName = regexp.MustCompile(`\A[a-z0-9][a-z0-9-]{0,63}\z`)
	fieldName   = regexp.MustCompile(`\A[a-z][a-z0-9_]{0,63}\z`)
	claimName   = regexp.MustCompile(`\A[A-Za-z_][A-Za-z0-9_:/.-]{0,127}\z`)
)

// parseProfile parses and checks a profile. The error names the line and the member of the first fault.
func parseProfile(text string) (*profile, error) {
	s, doc := readDocument(text)
	if doc.fault != nil {
		return nil, doc.fault
	}
	s.only("name", "url", "subject_token_source", "audience", "audience_from", "params", "credential", "claims", "lifetime", "header",
		"exchange", "renew", "revoke", "absent", "find", "list", "check", "rotate", "identify", "rotate_credential", "retire_credential")
	p := &profile{facts: facts{
		name: s.text("name"), url: s.text("url"),
		source: s.text("subject_token_source"), audience: s.text("audience"),
		params: parseParameters(s.section("params")), lifetime: s.duration("lifetime"),
		credential: names(s, "credential", fieldName), claims: names(s, "claims", claimName),
	}}
	doc.declared = map[string][]string{
		"params": p.params.names(), "credential": p.credential, "subject": append([]string{"issuer", "subject"}, p.claims...),
	}
	if !profileName.MatchString(p.name) {
		s.fault("name", "want 1 to 64 of a-z, 0-9 and hyphens")
	}
	if p.source == "" {
		p.source = SourceNone
	}
	if p.audienceFrom = s.cel("audience_from", expr.String, "hostname"); p.audienceFrom != nil && p.audience != "" {
		s.fault("audience_from", "stands beside audience; want one of them")
	}
	if !slices.Contains(sources, p.source) {
		s.fault("subject_token_source", "want one of %s", strings.Join(sources, ", "))
	}
	if slices.Contains(p.claims, "issuer") || slices.Contains(p.claims, "subject") {
		s.fault("claims", "has issuer or subject, which are there without being named")
	}
	p.parseHeader(s)
	p.parseOperations(s)
	p.checkWhole(s)
	if doc.fault != nil {
		return nil, doc.fault
	}
	return p, nil
}

// names reads a list of unique names.
func names(s section, member string, rule *regexp.Regexp) []string {
	var out []string
	for _, n := range s.list(member, "names") {
		switch {
		case !rule.MatchString(n.Value):
			s.doc.failf(n.Line, s.member(member), "has a name that does not match %s", rule)
		case slices.Contains(out, n.Value):
			s.doc.failf(n.Line, s.member(member), "has %q twice", n.Value)
		}
		out = append(out, n.Value)
	}
	return out
}

func (p *profile) parseHeader(s section) {
	if !s.has("header") {
		return
	}
	h := s.section("header")
	h.only("name", "value")
	p.headerName = h.text("name")
	if !validHeaderName(p.headerName) {
		h.fault("name", "want the name of a header")
	}
	p.header = h.cel("value", expr.String, headerVariables...)
}

func (p *profile) parseOperations(s section) {
	p.exchange = parseOperation(s, "exchange", exchangeScope, "denied", "key")
	if p.exchange == nil {
		s.fault("exchange", "is missing")
		return
	}
	p.made = parseKeyParts(s.section("exchange").section("key"), keyVariables, "secret", "accessor", "expires", "fields")

	if p.renew = parseOperation(s, "renew", renewScope, "denied", "expires"); p.renew != nil {
		p.renewed = s.section("renew").required("expires", expr.Any, renewVariables...)
	}
	p.revoke = parseOperation(s, "revoke", revokeScope, "gone")
	p.absent = parseOperation(s, "absent", findScope, "gone")
	if p.find = parseOperation(s, "find", findScope, "found", "next"); p.find != nil {
		find := s.section("find")
		p.found = find.required("found", expr.Any, foundVariables...)
		p.next = find.cel("next", expr.Any, nextVariables...)
		p.wholeList("find", p.next)
	}
	if p.list = parseOperation(s, "list", listScope, "listed", "next"); p.list != nil {
		list := s.section("list")
		p.listed = list.required("listed", expr.Any, listedVariables...)
		p.listNext = list.cel("next", expr.Any, furtherVariables...)
		p.wholeList("list", p.listNext)
	}
	p.check = parseOperation(s, "check", checkScope)
	p.parseRotation(s)
}

// wholeList adds advice for an operation without next, whose one answer is taken for the whole list of keys.
func (p *profile) wholeList(operation string, next *expr.Program) {
	if next == nil {
		p.advice = append(p.advice, "the profile's "+operation+" has no next, so its answer is taken for the whole list of keys: a key that was lost and is on a further page would be taken for dead")
	}
}

// required reads an expression that must be there.
func (s section) required(name string, want expr.Type, variables ...string) *expr.Program {
	if !s.has(name) {
		s.fault(name, "is missing")
	}
	return s.cel(name, want, variables...)
}

// parseOperation reads an operation's request and statuses. It returns nil if the profile has no such operation. own lists the
// members that only some operations have.
func parseOperation(s section, name string, scope scope, own ...string) *operation {
	if !s.has(name) {
		return nil
	}
	o := s.section(name)
	o.only(append([]string{"method", "path", "query", "headers", "json", "form", "ok", "busy", "only_if", "hints"}, own...)...)
	inside := slices.Concat(scope.url, scope.inside)
	op := &operation{
		method: parseMethod(o, name),
		path:   o.required("path", expr.Any, scope.url...),
		query:  entries(o.section("query"), expr.Any, scope.url),
		form:   o.has("form"),
	}
	op.body = o.cel("json", expr.Any, inside...)
	if op.form {
		op.body = o.cel("form", expr.Any, inside...)
	}
	if op.form && o.has("json") {
		o.fault("form", "stands beside json; want one of them")
	}
	if op.body != nil && op.method == http.MethodGet {
		o.fault("method", "is GET, which has no body")
	}
	op.headers = parseHeaders(s, o, inside)
	op.onlyIf = o.cel("only_if", expr.Bool, saysVariables...)
	op.hints = entries(o.section("hints"), expr.Bool, saysVariables)
	parseStatuses(op, o, name)
	return op
}

// bringsNew lists the operations that create something. They must not be repeated, so they cannot use GET, which net/http may
// send again by itself.
var bringsNew = []string{"exchange", "rotate", "rotate_credential"}

func parseMethod(o section, name string) string {
	method := o.text("method")
	allowed := []string{http.MethodPost, http.MethodPut, http.MethodPatch}
	if !slices.Contains(bringsNew, name) {
		allowed = append(allowed, http.MethodGet, http.MethodDelete)
	}
	if !slices.Contains(allowed, method) {
		o.fault("method", "want one of %s", strings.Join(allowed, ", "))
	}
	return method
}

// entries reads a mapping from names to expressions.
func entries(s section, want expr.Type, variables []string) []entry {
	var out []entry
	for _, name := range s.names {
		out = append(out, entry{name, s.cel(name, want, variables...)})
	}
	return out
}

// parseHeaders reads an operation's headers, or those of exchange if it has none of its own.
func parseHeaders(s, o section, variables []string) []entry {
	h := o.section("headers")
	if !o.has("headers") {
		h = s.section("exchange").section("headers")
		h.path = o.path + ".headers (from exchange)"
	}
	seen := map[string]bool{}
	for _, name := range h.names {
		canonical := textproto.CanonicalMIMEHeaderKey(name)
		switch {
		case !validHeaderName(name) || slices.Contains(ownHeaders, canonical):
			h.fault(name, "cannot be set by a profile")
		case seen[canonical]:
			h.fault(name, "stands here twice")
		}
		seen[canonical] = true
	}
	return entries(h, expr.String, variables)
}

// ownHeaders are the headers that only the transport may set: in a profile, they could change where a request ends, or how its
// answer is read.
var ownHeaders = []string{
	"Accept-Encoding", "Connection", "Content-Encoding", "Content-Length", "Expect", "Host", "Keep-Alive",
	"Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "User-Agent",
}

func validHeaderName(name string) bool {
	valid := func(c rune) bool {
		return c < 0x80 && (c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.ContainsRune("-_.!#$%&'*+^`|~", c))
	}
	return name != "" && !strings.ContainsFunc(name, func(c rune) bool { return !valid(c) })
}

// parseStatuses reads what an operation's statuses mean. A status that the profile puts in one list is removed from the
// defaults of the others. For operations without the member denied, a refusal means that the engine's credential was refused,
// and never that a key is gone.
func parseStatuses(op *operation, o section, name string) {
	lists := []struct {
		member      string
		to          *[]int
		least, most int
		def         []int
	}{
		{"ok", &op.ok, 200, 299, []int{200, 204}},
		{"gone", &op.gone, 400, 499, nil},
		{"busy", &op.busy, 400, 599, []int{429, 503}},
		{"denied", &op.denied, 400, 599, []int{401, 403}},
	}
	if slices.Contains(bringsNew, name) {
		lists[3].def = []int{400, 401, 403, 404, 422}
		if !o.has("ok") {
			o.fault("ok", "is missing: the statuses of success")
		}
	}
	written := map[int]string{}
	for _, l := range lists {
		for _, n := range o.list(l.member, "statuses") {
			status, err := strconv.Atoi(n.Value)
			switch {
			case err != nil || status < l.least || status > l.most:
				o.fault(l.member, "want statuses from %d to %d", l.least, l.most)
			case written[status] != "":
				o.fault(l.member, "has %d, which stands in %s already", status, written[status])
			case l.member == "gone" && slices.Contains([]int{401, 403}, status) && name != "retire_credential": // retiring ends the credential itself
				o.fault(l.member, "has %d, which refuses the credential and says nothing of the key", status)
			}
			written[status] = l.member
			*l.to = append(*l.to, status)
		}
		if l.member == "ok" && o.has("ok") && len(op.ok) == 0 {
			o.fault("ok", "is empty")
		}
	}
	for _, l := range lists {
		if !o.has(l.member) {
			*l.to = slices.DeleteFunc(l.def, func(status int) bool { return written[status] != "" })
		}
	}
}

// checkWhole checks the rules that involve several members.
func (p *profile) checkWhole(s section) {
	if s.doc.fault != nil {
		return
	}
	byAccessor := func(e *expr.Program) bool { return e.Uses("accessor") || readsMember(e, "key", "accessor") }
	p.endsByAccessor = p.endsBy(byAccessor) || slices.ContainsFunc(p.rotate.programs(), byAccessor)
	p.endsByKey = p.endsBy(func(e *expr.Program) bool { return readsMember(e, "key", "secret") })
	p.endsByName = p.find == nil && p.revoke != nil && p.revoke.uses("name") && !p.revoke.uses("accessor") && !p.revoke.uses("key")
	p.wantsToken = p.exchange.uses("subject_token")
	p.placed, p.endsByParams = p.places(), p.laterParams()
	finds := p.find != nil || p.list != nil
	switch {
	case p.lifetime == 0 && !p.endsByName && (!finds || p.revoke == nil):
		s.fault("lifetime", "is missing: without find and revoke, a key that was lost lives that long")
	case p.endsByAccessor && p.made.accessor == nil:
		s.fault("exchange", "key.accessor is missing: renew, revoke or rotate uses it")
	case p.endsByAccessor && p.rotate != nil && p.rotated.accessor == nil:
		s.fault("rotate", "key.accessor is missing: renew, revoke or rotate uses it")
	case p.endsByAccessor && p.identify != nil && p.identified.accessor == nil:
		s.fault("identify", "key.accessor is missing: renew, revoke or rotate uses it")
	case p.identify != nil && !p.identify.uses("key"):
		s.fault("identify", "does not present key.secret, so the API cannot tell which key is meant")
	case p.endsByKey && p.find != nil:
		s.fault("find", "is of no use: what it finds are accessors, but renew or revoke needs the key itself")
	case p.endsByKey && p.list != nil:
		s.fault("list", "is of no use: what it lists are accessors, but renew or revoke needs the key itself")
	case p.absent != nil && (p.revoke == nil || len(p.revoke.gone) == 0):
		s.fault("absent", "is of no use: revoke has no gone")
	case p.source == SourceNone && p.wantsToken:
		s.fault("subject_token_source", "is none, but exchange uses subject_token")
	}
}

// endsBy reports whether an expression of renew or revoke has the property.
func (p *profile) endsBy(property func(*expr.Program) bool) bool {
	return slices.ContainsFunc(slices.Concat(p.renew.programs(), p.revoke.programs()), property)
}

// places returns the parameters that say where at the target a key is: those that list, revoke and absent read.
func (p *profile) places() []string {
	if p.list == nil {
		return nil
	}
	programs := slices.Concat(p.list.programs(), []*expr.Program{p.listed}, p.revoke.programs(), p.absent.programs())
	if p.listNext != nil {
		programs = append(programs, p.listNext)
	}
	var placed []string
	for _, name := range p.params.names() {
		if slices.ContainsFunc(programs, func(e *expr.Program) bool { return readsMember(e, "params", name) }) {
			placed = append(placed, name)
		}
	}
	return placed
}

func readsMember(e *expr.Program, variable, member string) bool {
	names, whole := e.Members(variable)
	return whole || slices.Contains(names, member)
}

// programs returns the expressions of the operation's request; none if the operation is nil.
func (o *operation) programs() []*expr.Program {
	if o == nil {
		return nil
	}
	out := []*expr.Program{o.path}
	if o.body != nil {
		out = append(out, o.body)
	}
	for _, e := range slices.Concat(o.query, o.headers) {
		out = append(out, e.value)
	}
	return out
}

func (o *operation) uses(variable string) bool {
	return slices.ContainsFunc(o.programs(), func(p *expr.Program) bool { return p.Uses(variable) })
}
