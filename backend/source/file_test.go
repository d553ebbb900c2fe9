// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package source

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// volume is an allowed directory, beside one that is not.
type volume struct {
	t              *testing.T
	clock          *clock
	issuer         *lab.Issuer
	dir, elsewhere string
}

func newVolume(t *testing.T) *volume {
	t.Helper()
	v := &volume{t: t, clock: newClock(), dir: filepath.Join(t.TempDir(), "tokens"), elsewhere: t.TempDir()}
	v.issuer = newIssuer(v.clock)
	if err := os.Mkdir(v.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *volume) open(name string) *Source {
	v.t.Helper()
	return open(v.t, Config{Kind: File, Audience: audience, TokenFile: filepath.Join(v.dir, name), TokenDirs: v.dir, Now: v.clock.now})
}

func (v *volume) token(claims map[string]any) string {
	all := map[string]any{"aud": audience}
	for name, value := range claims {
		all[name] = value
	}
	return v.issuer.Token(all)
}

func (v *volume) write(path, text string) {
	v.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		v.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		v.t.Fatal(err)
	}
}

func (v *volume) link(to, path string) {
	v.t.Helper()
	if err := os.Symlink(to, path); err != nil {
		v.t.Fatal(err)
	}
}

func TestFileContent(t *testing.T) {
	v := newVolume(t)
	good := v.token(nil)
	padded := good + "\n" + strings.Repeat(" ", maxTokenBytes-len(good)-1) // 64 KiB exactly: read, and then no token
	for name, c := range map[string]struct{ content, text string }{
		"token":            {good, ""},
		"with a line end":  {good + "\n", ""},
		"as Windows ends":  {good + "\r\n", ""},
		"aud in a list":    {v.token(map[string]any{"aud": []string{audience}}), ""},
		"no iss, as SPIRE": {v.token(map[string]any{"iss": nil, "iat": nil}), ""},
		"two line ends":    {good + "\n\n", "it is no JWT to present"},
		"space before":     {" " + good, "it is no JWT to present"},
		"empty":            {"", "it is no JWT to present"},
		"no JWT":           {"correct horse battery staple", "it is no JWT to present"},
		"two tokens":       {good + "\n" + good, "it is no JWT to present"},
		"no signature":     {good[:strings.LastIndex(good, ".")+1], "it is no JWT to present"},
		"64 KiB":           {padded, "it is no JWT to present"},
		"64 KiB and one":   {padded + " ", "the file is larger than 65536 bytes"},
		"huge":             {strings.Repeat("x", 8<<20), "the file is larger than 65536 bytes"},
		"other audience":   {v.token(map[string]any{"aud": "https://other.example"}), "its aud is not exactly"},
		"prefix of it":     {v.token(map[string]any{"aud": audience + ".evil.example"}), "its aud is not exactly"},
		"another beside":   {v.token(map[string]any{"aud": []string{audience, "https://other.example"}}), "its aud is not exactly"},
		"the same twice":   {v.token(map[string]any{"aud": []string{audience, audience}}), "its aud is not exactly"},
		"no audience":      {v.token(map[string]any{"aud": nil}), "its aud is not exactly"},
		"aud of any type":  {v.token(map[string]any{"aud": 7}), "it is no JWT to present"},
		"expired":          {v.token(map[string]any{"exp": v.clock.now().Unix()}), "it has expired"},
		"last second":      {v.token(map[string]any{"exp": v.clock.now().Unix() + 1}), ""},
		"no exp":           {v.token(map[string]any{"exp": nil}), "it is no JWT to present"},
		"exp as text":      {v.token(map[string]any{"exp": "2000000000"}), "it is no JWT to present"},
		"AUD beside aud":   {v.token(map[string]any{"AUD": "x"}), "it is no JWT to present"},
		"aud twice":        {v.issuer.Sign(nil, []byte(`{"aud":"x","aud":"`+audience+`","exp":2000000000}`)), "it is no JWT to present"},
	} {
		v.write(filepath.Join(v.dir, "t"), c.content)
		token, err := v.open("t").Token(t.Context())
		if c.text != "" {
			wantRefused(t, name, token, err, false, c.text, c.content, v.dir)
		} else if want := strings.TrimRight(c.content, "\r\n"); err != nil || token != want {
			t.Errorf("%s: %v, %d bytes; want the token's %d", name, err, len(token), len(want))
		}
	}
}

// What a name leads to decides, not the name.
func TestFileStaysBelowItsDirectory(t *testing.T) {
	v := newVolume(t)
	stolen := v.token(nil)
	v.write(filepath.Join(v.elsewhere, "t"), stolen)
	v.write(filepath.Join(v.dir, "inside", "t"), stolen)
	v.link(filepath.Join(v.elsewhere, "t"), filepath.Join(v.dir, "out"))
	relative, err := filepath.Rel(v.dir, v.elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	v.link(relative, filepath.Join(v.dir, "out-dir"))
	v.link("out", filepath.Join(v.dir, "out-by-two"))
	v.link(filepath.Join(v.dir, "inside", "t"), filepath.Join(v.dir, "absolute")) // leads in, but by way of /
	v.link("loop", filepath.Join(v.dir, "loop"))
	v.link("inside/t", filepath.Join(v.dir, "in"))
	v.link("inside", filepath.Join(v.dir, "in-dir"))
	if err := os.Mkdir(filepath.Join(v.dir, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(v.dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"in": "", "in-dir/t": "", "inside/t": "",
		"out":        "leads out of its directory",
		"out-dir/t":  "leads out of its directory",
		"out-by-two": "leads out of its directory",
		"absolute":   "leads out of its directory",
		"loop":       "cannot be opened",
		"dir":        "it is no regular file",
		"pipe":       "it is no regular file",
		"none":       "there is no such file",
		"in/none":    "cannot be opened",
	} {
		token, err := v.open(name).Token(t.Context())
		if text != "" {
			wantRefused(t, name, token, err, false, text, stolen, v.dir, v.elsewhere)
		} else if err != nil || token != stolen {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.RemoveAll(v.dir); err != nil {
		t.Fatal(err)
	}
	token, err := v.open("in").Token(t.Context())
	wantRefused(t, "no directory", token, err, false, "its directory cannot be opened", v.dir)
}

func TestFileThatMayNotBeRead(t *testing.T) {
	if os.Geteuid() == 0 { // whom no mode stops; the kernel's own refusal does
		s := open(t, Config{Kind: File, Audience: audience, TokenFile: "/proc/self/mem", TokenDirs: "/proc/self"})
		token, err := s.Token(t.Context())
		wantRefused(t, "of the kernel", token, err, false, "reading the file ended early")
		return
	}
	v := newVolume(t)
	v.write(filepath.Join(v.dir, "t"), v.token(nil))
	if err := os.Chmod(filepath.Join(v.dir, "t"), 0); err != nil {
		t.Fatal(err)
	}
	token, err := v.open("t").Token(t.Context())
	wantRefused(t, "mode 0", token, err, false, "the plugin's user may not read the file", v.dir)
}

// The file is read anew for each use: Kubernetes replaces all files of a volume by pointing ..data to another directory.
func TestFileIsReadAnew(t *testing.T) {
	v := newVolume(t)
	v.link("..data/token", filepath.Join(v.dir, "token"))
	s := v.open("token")
	for _, version := range []string{"..2026_01", "..2026_02", "..2026_03"} {
		want := v.token(nil)
		v.write(filepath.Join(v.dir, version, "token"), want)
		v.link(version, filepath.Join(v.dir, "..data_tmp"))
		if err := os.Rename(filepath.Join(v.dir, "..data_tmp"), filepath.Join(v.dir, "..data")); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Token(t.Context()); err != nil || got != want {
			t.Errorf("%s: %v; is it the new token: %v", version, err, got == want)
		}
	}
	v.clock.advance(time.Hour)
	token, err := s.Token(t.Context())
	wantRefused(t, "an hour later", token, err, false, "it has expired")

	if err := os.Remove(filepath.Join(v.dir, "token")); err != nil {
		t.Fatal(err)
	}
	v.clock.advance(-time.Hour)
	v.write(filepath.Join(v.elsewhere, "t"), v.token(nil))
	v.link(filepath.Join(v.elsewhere, "t"), filepath.Join(v.dir, "token"))
	token, err = s.Token(t.Context())
	wantRefused(t, "swapped for a link that leads out", token, err, false, "leads out of its directory")
}
