// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// Package target speaks to the APIs that issue keys: it exchanges a subject token or the engine's own credential for a
// key, renews and revokes keys, finds lost ones, and checks that the target can be reached.
//
// A [Target] is opened from a [Config] and knows nothing of roles, leases or trust: when it is called, the decision has
// been made. Its one promise is to tell what happened. Every call is sent at most once, and its error says whether the
// target refused, nothing happened, or nobody knows (see [ErrDenied], [ErrBusy], [ErrUnknown], [MayLive]); it is the
// caller who knows whether to try again. Nothing here logs, and no error holds a token, a key, a credential or a byte of
// an answer.
//
// Kinds of targets are drivers. Most are profiles: YAML that tells an API as data and CEL, built in (profiles/*.yaml) or
// an operator's own (driver "http").
package target

import (
	"context"
	"embed"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/egress"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
)

// Defaults of a Config.
const (
	defaultRequestTimeout   = 20 * time.Second
	defaultMaxResponseBytes = 1 << 20
	defaultConcurrency      = 10
)

const (
	maxConcurrency     = 1000
	maxCredentialBytes = 16 << 10 // of one field
	maxKeyLifetime     = 366 * 24 * time.Hour
)

// The values of subject_token_source: what is sent to the target as the subject token.
const (
	SourceNone              = "none"               // nothing
	SourceRequest           = "request"            // the caller's own
	SourceSelf              = "self"               // one that the engine signs for the caller
	SourceFile              = "file"               // the engine's own, read from a file
	SourceClientCredentials = "client_credentials" // the engine's own, from a token endpoint (RFC 6749 section 4.4)
	SourceSVID              = "svid"               // the engine's own JWT-SVID
)

// Config describes one target. Zero values are the defaults named here.
type Config struct {
	Name    string // how messages call it
	Driver  string // one of Drivers
	URL     string // base address; "" = the driver's
	Profile string // YAML; with driver http, and only then

	Credential map[string]string // exactly the fields that CredentialFields names

	Source    string // subject_token_source; "" = the driver's
	Audience  string // what the subject token's aud must be; "" = the driver's. Optional with SourceNone and SourceClientCredentials alone
	Condition string // CEL over params: what may be asked of this target; "" = anything

	// Lifetime is the longest that a key lives whose end the API does not tell; 0 = the driver's. It is for drivers that
	// cannot know.
	Lifetime time.Duration

	OAuth OAuth // with driver oauth, and only then

	CAPEM, ClientCert, ClientKey, ProxyURL string // PEM, and the address of a proxy; see egress.Options

	RequestTimeout   time.Duration // of one HTTP call; 0 = 20 s
	MaxResponseBytes int64         // 0 = 1 MiB
	Rate             float64       // calls a second; 0 = no bound
	Burst            int           // with Rate, calls that may come at once; 0 = those of one second
	Concurrency      int           // calls at a time, at most 1000; 0 = 10

	Egress    egress.Policy
	UserAgent string           // "" = oidcexchange
	Now       func() time.Time // nil = time.Now
}

// Caps is what a target can do beside exchanging. The zero Caps is nothing.
type Caps struct {
	Revoke bool // end a key before its time
	Renew  bool // move a key's end
	Find   bool // find keys by the name that they were asked under, after a lost answer
	Check  bool // say that it is there and takes our credential
}

// driver is one way to speak to a target; a nil member is what it cannot do.
type driver struct {
	exchange func(context.Context, Request) (Key, error)
	renew    func(context.Context, Handle, time.Time) (time.Time, error)
	revoke   func(context.Context, Handle) error
	find     func(context.Context, Handle) ([]Handle, error)
	check    func(context.Context) error
}

// facts are what is known of a kind of target without asking it.
type facts struct {
	name, url, source, audience string        // the defaults of a Config
	audienceFrom                *expr.Program // in place of audience: of the URL's hostname; nil = none
	params                      parameters
	credential                  []string // fields that it must have
	optional                    []string // fields that it may have
	claims                      []string // of the subject, that it looks at
	lifetime                    time.Duration
	guessed                     bool // lifetime is no more than a guess: Config.Lifetime may replace it
	headerName                  string
	wantsToken                  bool     // an exchange presents a subject token
	subjectHosts                []string // to which it may present that; nil = the URL's

	// together judges parameters that depend on each other; nil = none do.
	together func(params map[string]any) *FieldError
}

// coded are the drivers that are code. Each checks what of a Config is its own, and makes of an opened Target its driver.
var coded = map[string]func(Config) (facts, func(*Target) driver, error){
	"connect":        connectKind,
	"git-proxy-java": gitProxyKind,
	gitlabName:       gitlabFacts,
	DriverOAuth:      openOAuth,
}

// Target is an API that issues keys. Open makes one; it is safe for concurrent use and stores nothing.
type Target struct {
	kind             facts
	name, driverName string
	url              *url.URL
	source, audience string
	credential       map[string]string
	condition        *expr.Program // nil = anything
	api              *api
	driver           driver
}

//go:embed profiles/*.yaml
var profiles embed.FS

// profileDriverName is the driver whose profile comes with the Config.
const profileDriverName = "http"

// Drivers returns the names that Config.Driver may have, sorted.
func Drivers() []string {
	out := slices.AppendSeq([]string{profileDriverName}, maps.Keys(coded))
	entries, err := profiles.ReadDir("profiles")
	if err != nil {
		panic(err) // the directory is part of the program
	}
	for _, e := range entries {
		out = append(out, strings.TrimSuffix(e.Name(), path.Ext(e.Name())))
	}
	slices.Sort(out)
	return out
}

// Open checks the whole of c and makes a Target of it, without any I/O. Every error is a *FieldError that names the field
// as the API spells it. Close the target when it is done with.
func Open(c Config) (*Target, error) {
	kind, connect, err := kindOf(c)
	if err != nil {
		return nil, err
	}
	t := &Target{kind: kind, name: c.Name, driverName: c.Driver, credential: maps.Clone(c.Credential)}
	if t.url, err = baseURL(c, kind); err != nil {
		return nil, err
	}
	if err := t.setSource(c); err != nil {
		return nil, err
	}
	if err := t.setLifetime(c); err != nil {
		return nil, err
	}
	if err := checkCredential(c.Credential, kind); err != nil {
		return nil, err
	}
	if t.condition, err = compileCondition(c.Condition, kind.params); err != nil {
		return nil, err
	}
	if t.api, err = newAPI(c, t.url); err != nil {
		return nil, err
	}
	t.driver = connect(t)
	return t, nil
}

// kindOf finds out what kind of target c describes.
func kindOf(c Config) (facts, func(*Target) driver, error) {
	if code, ok := coded[c.Driver]; ok {
		if c.Profile != "" {
			return facts{}, nil, fieldErrorf("profile", "is for driver %q only", profileDriverName)
		}
		return code(c)
	}
	p, err := profileOf(c)
	if err != nil {
		return facts{}, nil, err
	}
	return p.facts, p.connect, nil
}

// profileOf reads the profile that c's driver stands for.
func profileOf(c Config) (*profile, error) {
	text := c.Profile
	switch {
	case !slices.Contains(Drivers(), c.Driver):
		return nil, fieldErrorf("driver", "want one of %s", strings.Join(Drivers(), ", "))
	case c.Driver == profileDriverName && text == "":
		return nil, fieldErrorf("profile", "is required with driver %q", profileDriverName)
	case c.Driver != profileDriverName && text != "":
		return nil, fieldErrorf("profile", "is for driver %q only", profileDriverName)
	case c.Driver != profileDriverName:
		built, err := profiles.ReadFile("profiles/" + c.Driver + ".yaml")
		if err != nil {
			return nil, fieldErrorf("driver", "has no profile")
		}
		text = string(built)
	}
	p, err := parseProfile(text)
	if err != nil {
		return nil, fieldErrorf("profile", "%v", err)
	}
	return p, nil
}

func baseURL(c Config, kind facts) (*url.URL, error) {
	raw := c.URL
	if raw == "" {
		raw = kind.url
	}
	if raw == "" {
		return nil, fieldErrorf("url", "is required: the driver has no default")
	}
	u, err := c.Egress.ParseURL(raw)
	if err != nil {
		return nil, fieldErrorf("url", "%v", err)
	}
	return u, nil
}

// setSource settles what is sent as the subject token.
func (t *Target) setSource(c Config) error {
	t.source, t.audience = t.kind.source, t.kind.audience
	if c.Source != "" {
		t.source = c.Source
	}
	if c.Audience != "" {
		t.audience = c.Audience
	}
	if t.audience == "" && t.kind.audienceFrom != nil {
		value, err := t.kind.audienceFrom.Eval(expr.NewBudget(), map[string]any{"hostname": t.url.Hostname()})
		if err != nil {
			return fieldErrorf("audience", "%v", err)
		}
		t.audience = value.(string) // it was compiled to yield one
	}
	switch {
	case !slices.Contains(sources, t.source):
		return fieldErrorf("subject_token_source", "want one of %s", strings.Join(sources, ", "))
	case t.source == SourceNone && t.kind.wantsToken:
		return fieldErrorf("subject_token_source", "is none, but this kind of target wants a subject token")
	case t.source != SourceNone && t.source != SourceClientCredentials && t.audience == "":
		return fieldErrorf("audience", "is required with subject_token_source %s", t.source)
	case len(t.audience) > maxTextBytes || !printable(t.audience):
		return fieldErrorf("audience", "want printable ASCII of at most %d bytes", maxTextBytes)
	}
	return nil
}

// setLifetime takes the place of a guess.
func (t *Target) setLifetime(c Config) error {
	switch {
	case c.Lifetime == 0:
		return nil
	case !t.kind.guessed:
		return fieldErrorf("lifetime", "this kind of target knows how long its keys live")
	case c.Lifetime < 0 || c.Lifetime > maxKeyLifetime:
		return fieldErrorf("lifetime", "want a duration of at most a year")
	}
	t.kind.lifetime = c.Lifetime
	return nil
}

func checkCredential(given map[string]string, kind facts) error {
	fields := slices.Concat(kind.credential, kind.optional)
	for name := range given {
		if slices.Contains(fields, name) {
			continue
		}
		if len(fields) == 0 {
			return fieldErrorf("credential", "this kind of target has none")
		}
		return fieldErrorf("credential", "has a field that is unknown; want %s", strings.Join(fields, ", "))
	}
	for _, name := range fields {
		value, has := given[name]
		if len(value) > maxCredentialBytes || value == "" && (has || slices.Contains(kind.credential, name)) {
			return fieldErrorf("credential", "field %q is missing or longer than %d bytes", name, maxCredentialBytes)
		}
	}
	return nil
}

func compileCondition(source string, params parameters) (*expr.Program, error) {
	if source == "" {
		return nil, nil
	}
	condition, err := expr.Compile(source, expr.Bool, "params")
	if err != nil {
		return nil, fieldErrorf("condition", "%v", err)
	}
	if text := undeclared(condition, map[string][]string{"params": params.names()}); text != "" {
		return nil, fieldErrorf("condition", "%s", text)
	}
	return condition, nil
}

// URL returns the base address.
func (t *Target) URL() string { return t.url.String() }

// Host returns the base address's host, with its port if it has one.
func (t *Target) Host() string { return t.url.Host }

// SubjectHosts returns the hosts, each with its port if it has one, to which an exchange may send the subject token.
func (t *Target) SubjectHosts() []string {
	if t.kind.subjectHosts == nil {
		return []string{t.url.Host}
	}
	return slices.Clone(t.kind.subjectHosts)
}

// Source returns what is sent as the subject token: one of the Source constants.
func (t *Target) Source() string { return t.source }

// Audience returns the aud that the subject token must have; "" if any will do.
func (t *Target) Audience() string { return t.audience }

// HeaderName returns the header in which a key is presented; "" if its kind does not say.
func (t *Target) HeaderName() string { return t.kind.headerName }

// Lifetime returns the longest that a key of this target lives; 0 if that is not known.
func (t *Target) Lifetime() time.Duration { return t.kind.lifetime }

// CredentialFields returns the fields of the target's credential; empty if it needs none.
func (t *Target) CredentialFields() []string {
	return slices.Concat(t.kind.credential, t.kind.optional)
}

// SubjectClaims returns the claims that the target's expressions read: beside them, only issuer and subject are looked at.
func (t *Target) SubjectClaims() []string { return slices.Clone(t.kind.claims) }

// Caps returns what the target can do.
func (t *Target) Caps() Caps {
	return Caps{
		Revoke: t.driver.revoke != nil, Renew: t.driver.renew != nil,
		Find: t.driver.find != nil, Check: t.driver.check != nil,
	}
}

// Exchange asks for a key, once: most targets accept a subject token only once. See MayLive for what an error leaves
// behind; with one there is never a key. Exchange returns at once when ctx ends.
func (t *Target) Exchange(ctx context.Context, r Request) (Key, error) {
	if t.source != SourceNone && r.SubjectToken == "" {
		return Key{}, unbuildable("exchange", "there is no subject token")
	}
	return t.driver.exchange(ctx, r)
}

// Renew moves the end of the key that h names to notAfter or, as the target sees fit, earlier, and returns the new end.
// After an error the key has the old end or, if the outcome is unknown, perhaps the new one; Renew may be called again.
func (t *Target) Renew(ctx context.Context, h Handle, notAfter time.Time) (time.Time, error) {
	if t.driver.renew == nil {
		return time.Time{}, unsupported("renew")
	}
	return t.driver.renew(ctx, h, notAfter)
}

// Revoke ends the key that h names. It may be called again for the same key: a key that is already gone is success. After
// any error but ErrUnsupported the key may live, and Revoke should be called again; ErrDenied then means that the target
// refuses the engine's credential. Revoke goes before calls that issue keys, and returns at once when ctx ends.
func (t *Target) Revoke(ctx context.Context, h Handle) error {
	if t.driver.revoke == nil {
		return unsupported("revoke")
	}
	return t.driver.revoke(ctx, h)
}

// Find returns the handles of the keys that live, or may live, under h.Name; of h it needs Name and Params. No handle and
// no error means that there is no such key.
func (t *Target) Find(ctx context.Context, h Handle) ([]Handle, error) {
	if t.driver.find == nil {
		return nil, unsupported("find")
	}
	return t.driver.find(ctx, h)
}

// Check asks whether the target is there and takes the engine's credential.
func (t *Target) Check(ctx context.Context) error {
	if t.driver.check == nil {
		return unsupported("check")
	}
	return t.driver.check(ctx)
}

// Close lets go of idle connections; calls that are under way go on.
func (t *Target) Close() { t.api.client.CloseIdleConnections() }
