// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"embed"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
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
	Name    string // the name in messages
	Driver  string // one of Drivers
	URL     string // base address; "" = the driver's
	Profile string // YAML; with driver http, and only then

	Credential map[string]string // exactly the fields that CredentialFields names

	Source    string // subject_token_source; "" = the driver's
	Audience  string // what the subject token's aud must be; "" = the driver's. Optional only with SourceNone and SourceClientCredentials
	Condition string // CEL over params that must hold for every request; "" = none

	// Lifetime is the longest lifetime of a key whose expiry the API does not state; 0 = the driver's. Only drivers that have
	// to guess it accept one.
	Lifetime time.Duration

	OAuth OAuth // with driver oauth, and only then

	CAPEM, ClientCert, ClientKey, ProxyURL string // PEM, and the address of a proxy; see egress.Options

	RequestTimeout   time.Duration // of one HTTP call; 0 = 20 s
	MaxResponseBytes int64         // 0 = 1 MiB
	Rate             float64       // calls a second; 0 = no bound
	Burst            int           // with Rate, calls that may come at once; 0 = those of one second
	Concurrency      int           // calls at a time, at most 1000; 0 = 10
	Limiter          *Limiter      // to share with other Targets of the same API, see Use; nil = one of its own

	Egress    egress.Policy
	UserAgent string           // "" = oidcexchange
	Now       func() time.Time // nil = time.Now
}

// coded has the drivers that are code. Each function checks the driver's own part of a Config, and returns the facts, and a
// function that makes the driver of an opened Target.
var coded = map[string]func(Config) (facts, func(*Target) driver, error){
	"connect":        connectKind,
	"git-proxy-java": gitProxyKind,
	gitlabName:       gitlabFacts,
	DriverOAuth:      openOAuth,
}

//go:embed profiles/*.yaml profiles/with-credential/*.yaml
var profiles embed.FS

// withCredential is the directory of the profiles that replace a driver's ordinary one if the engine has a credential at the
// target.
const withCredential = "profiles/with-credential/"

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
		if !e.IsDir() {
			out = append(out, strings.TrimSuffix(e.Name(), path.Ext(e.Name())))
		}
	}
	slices.Sort(out)
	return out
}

// Open checks all of c and returns its Target, without any I/O. Every error is a *FieldError that names the field as the API
// spells it. Close the Target after use.
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

// profileOf returns the profile of c's driver.
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
		text = builtIn(c.Driver, len(c.Credential) > 0)
	}
	p, err := compiled.profile(text)
	if err != nil {
		return nil, fieldErrorf("profile", "%v", err)
	}
	return p, nil
}

// compiled caches the profiles that were read last. Every change of a mount's configuration opens its targets again, and
// compiling a profile's expressions is most of that work. A profile never changes, so targets share it.
var compiled profileCache

const maxProfiles = 64 // in the cache; a full cache is emptied

type profileCache struct {
	mu     sync.Mutex
	byText map[string]*profile
}

func (c *profileCache) profile(text string) (*profile, error) {
	c.mu.Lock()
	p, known := c.byText[text]
	c.mu.Unlock()
	if known {
		return p, nil
	}
	p, err := parseProfile(text)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byText == nil || len(c.byText) >= maxProfiles {
		c.byText = make(map[string]*profile)
	}
	c.byText[text] = p
	return p, nil
}

// builtIn returns the profile of a driver that has one.
func builtIn(driver string, hasCredential bool) string {
	if hasCredential {
		if text, err := profiles.ReadFile(withCredential + driver + ".yaml"); err == nil {
			return string(text)
		}
	}
	text, err := profiles.ReadFile("profiles/" + driver + ".yaml")
	if err != nil {
		panic(err) // it is one of Drivers
	}
	return string(text)
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

// setSource sets what is sent as the subject token, and the audience that the token must have.
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

// setLifetime replaces a guessed lifetime by the configured one.
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
			return fieldErrorf("credential", "field %q is missing or longer than %d bytes; give credential=%[1]s=VALUE, or credential=@FILE with JSON", name, maxCredentialBytes)
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
