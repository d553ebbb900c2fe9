// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package egress

import (
	"errors"
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

var everything = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// An endpoint may have any query; the rest of its address is checked as strictly as a base URL.
func TestParseEndpoint(t *testing.T) {
	const endpoint = "https://id.example.com/oauth/token"
	for raw, want := range map[string]string{
		endpoint:                             "",
		endpoint + "?api-version=2&a=b":      "",
		endpoint + "?":                       "",
		endpoint + "?u=https://x.example/?y": "",
		endpoint + "#a":                      "fragment",
		endpoint + "?a#b":                    "fragment",
		endpoint + "?a b":                    "plain ASCII",
		endpoint + "?\n":                     "plain ASCII",
		endpoint + "?" + strings.Repeat("a", maxURLBytes): "longer than",
		"http://id.example.com/?a":                        "use https",
		"https://u@id.example.com?a":                      "has a user",
		"https://10.0.0.1/?a":                             "allow_private",
		"?":                                               "not an https URL",
	} {
		u, err := Policy{}.ParseEndpoint(raw)
		switch {
		case want == "" && (err != nil || u.String() != raw):
			t.Errorf("%.80q: %v, %v; want it as it is", raw, u, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%.80q: %v; want %q", raw, err, want)
		}
	}
}

func TestParseURL(t *testing.T) {
	tests := []struct {
		name   string
		policy Policy
		raw    string
		want   string // a part of the error; "" for none
	}{
		{"plain", Policy{}, "https://api.example.com", ""},
		{"path and trailing slash", Policy{}, "https://api.example.com/v1/", ""},
		{"port", Policy{}, "https://api.example.com:8443/v1", ""},
		{"escape that is needed", Policy{}, "https://api.example.com/a%20b", ""},
		{"dots inside a segment", Policy{}, "https://api.example.com/a..b", ""},
		{"public address", Policy{}, "https://8.8.8.8", ""},
		{"public IPv6 address", Policy{}, "https://[2606:4700::1111]:8443/x", ""},
		{"punycode", Policy{}, "https://xn--bcher-kva.example", ""},

		{"empty", Policy{}, "", "not an https URL"},
		{"relative", Policy{}, "api.example.com", "not an https URL"},
		{"upper-case scheme", Policy{}, "HTTPS://api.example.com", "not an https URL"},
		{"other scheme", Policy{}, "file:///etc/passwd", "not an https URL"},
		{"http", Policy{}, "http://api.example.com", "use https"},
		{"http elsewhere with loopback on", Policy{AllowHTTPLoopback: true}, "http://api.example.com", "use https"},
		{"no host", Policy{}, "https:///path", "no host"},
		{"port alone", Policy{}, "https://:8443", "no host"},
		{"user", Policy{}, "https://u@api.example.com", "has a user"},
		{"user and password", Policy{}, "https://u:p@api.example.com", "has a user"},
		{"query", Policy{}, "https://api.example.com/?a=b", "has a query"},
		{"empty query", Policy{}, "https://api.example.com/?", "has a query"},
		{"fragment", Policy{}, "https://api.example.com/#a", "has a fragment"},
		{"empty fragment", Policy{}, "https://api.example.com/#", "has a fragment"},
		{"upper-case host", Policy{}, "https://API.example.com", "lower-case"},
		{"international host", Policy{}, "https://b\u00fccher.example", "plain ASCII"},
		{"default port", Policy{}, "https://api.example.com:443", "default port"},
		{"default http port", Policy{AllowHTTPLoopback: true}, "http://localhost:80", "default port"},
		{"empty port", Policy{}, "https://api.example.com:", "port"},
		{"port zero", Policy{}, "https://api.example.com:0", "port"},
		{"port too large", Policy{}, "https://api.example.com:65536", "port"},
		{"port with leading zero", Policy{}, "https://api.example.com:08443", "port"},
		{"dot segment", Policy{}, "https://api.example.com/a/../b", "dot segment"},
		{"escaped dot segment", Policy{}, "https://api.example.com/%2e%2e/b", "dot segment"},
		{"dot segment of one dot", Policy{}, "https://api.example.com/./b", "dot segment"},
		{"broken escape", Policy{}, "https://api.example.com/%zz", "not a URL"},
		{"broken address", Policy{}, "https://[::1", "not a URL"},
		{"escaped backslash", Policy{}, "https://api.example.com/a%5Cb", "escaped slash"},
		{"escaped slash", Policy{}, "https://api.example.com/a%2Fb", "escaped slash"},
		{"backslash", Policy{}, `https://api.example.com\@evil.example`, "plain ASCII"},
		{"line end", Policy{}, "https://api.example.com/\r\nX: y", "plain ASCII"},
		{"space", Policy{}, "https://api.example.com/ ", "plain ASCII"},
		{"escaped DEL", Policy{}, "https://api.example.com/%7f", "control character"},
		{"escaped control character", Policy{}, "https://api.example.com/%0d%0a", "control character"},
		{"trailing dot", Policy{}, "https://api.example.com.", "labels"},
		{"empty label", Policy{}, "https://api..example.com", "labels"},
		{"too long", Policy{}, "https://api.example.com/" + strings.Repeat("a", 2048), "longer than"},
		{"zone", Policy{AllowPrivate: everything}, "https://[fe80::1%25eth0]/", "plain spelling"},
		{"IPv6 in another spelling", Policy{}, "https://[2606:4700:0:0::1111]", "plain spelling"},
		{"decimal address", Policy{}, "https://2130706433", "a number is not"},
		{"hexadecimal address", Policy{}, "https://0x7f000001", "a number is not"},
		{"short address", Policy{}, "https://127.1", "a number is not"},
		{"octal address", Policy{}, "https://0177.0.0.1", "a number is not"},

		{"private address", Policy{}, "https://10.1.2.3", "list its range in config's allow_private"},
		{"private address allowed", Policy{AllowPrivate: everything}, "https://10.1.2.3", ""},
		{"metadata though all is allowed", Policy{AllowPrivate: everything}, "https://169.254.169.254", "never dialled"},
		{"loopback", Policy{}, "https://127.0.0.1:8443", "allow_private"},
		{"localhost", Policy{}, "https://localhost:8443", "127.0.0.1 is a private address"},
		{"localhost by private range", Policy{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("::1/128")}}, "https://localhost:8443", ""},
		{"localhost by private range of IPv4", Policy{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, "https://localhost:8443", ""},
		{"http loopback", Policy{AllowHTTPLoopback: true}, "http://127.0.0.1:8080/x", ""},
		{"http IPv6 loopback", Policy{AllowHTTPLoopback: true}, "http://[::1]:8080/x", ""},
		{"http localhost", Policy{AllowHTTPLoopback: true}, "http://localhost:8080", ""},
		{"https loopback", Policy{AllowHTTPLoopback: true}, "https://127.0.0.1:8443", ""},
		{"http loopback by private range alone", Policy{AllowPrivate: everything}, "http://127.0.0.1:8080", "use https"},
		{"http to a public address", Policy{AllowHTTPLoopback: true}, "http://8.8.8.8:8080", "use https"},
		{"http to a private address", Policy{AllowHTTPLoopback: true, AllowPrivate: everything}, "http://10.0.0.1:8080", "use https"},
		{"http to a name below localhost", Policy{AllowHTTPLoopback: true}, "http://a.localhost:8080", "use https"},

		{"host listed", Policy{Hosts: []string{"*.example.com"}}, "https://api.example.com", ""},
		{"host not listed", Policy{Hosts: []string{"*.example.com"}}, "https://example.org", `host "example.org" is not in egress_hosts`},
		{"address not listed", Policy{Hosts: []string{"*.example.com"}}, "https://8.8.8.8", "egress_hosts"},
		{"address listed", Policy{Hosts: []string{"8.8.8.8"}}, "https://8.8.8.8", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u, err := tt.policy.ParseURL(tt.raw)
			if tt.want == "" {
				if err != nil || u.String() != tt.raw {
					t.Fatalf("ParseURL(%q) = %v, %v; want it back", tt.raw, u, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("ParseURL(%q): error %v, want one with %q", tt.raw, err, tt.want)
			}
			if strings.Contains(tt.raw, "u:p@") && strings.Contains(err.Error(), "u:p") {
				t.Errorf("error repeats the credentials: %v", err)
			}
		})
	}
}

func TestCheckTakesQueries(t *testing.T) {
	u := mustURL(t, "https://login.example.com/keys?p=policy")
	if err := (Policy{}).Check(u); err != nil {
		t.Errorf("Check(%v) = %v, want nil", u, err)
	}
	for _, raw := range []string{"ftp://a.example", "https://u@a.example", "https:opaque", "//a.example", "https://A.example"} {
		if err := (Policy{}).Check(mustURL(t, raw)); !errors.Is(err, ErrRefused) {
			t.Errorf("Check(%q) = %v, want ErrRefused", raw, err)
		}
	}
}

func mustURL(t *testing.T, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestMatchHost(t *testing.T) {
	tests := []struct {
		pattern, host string
		want          bool
	}{
		{"example.com", "example.com", true},
		{"example.com", "example.org", false},
		{"example.com", "a.example.com", false},
		{"*.example.com", "a.example.com", true},
		{"*.example.com", "example.com", false},
		{"*.example.com", "a.b.example.com", false},
		{"*.example.com", "evil-example.com", false},
		{"*.example.com", ".example.com", false},
		{"*.*.example.com", "a.b.example.com", true},
		{"api-*.example.com", "api-1.example.com", true},
		{"api-*.example.com", "api-.example.com", false},
		{"api-*.example.com", "api-1.evil.com", false},
		{"a*b*c.example.com", "aXbbYc.example.com", true},
		{"a*b*c.example.com", "abc.example.com", false},
		{"*", "com", true},
		{"*", "example.com", false},
		{"**.com", "a.com", false},
		{"**.com", "ab.com", true},
		{"*a.com", "aba.com", true},
		{strings.Repeat("*a", 20) + "b.com", strings.Repeat("a", 63) + ".com", false}, // ways without number to spread the stars
		{"2606:4700::1111", "2606:4700::1111", true},
	}
	for _, tt := range tests {
		if got := matchHost(tt.pattern, tt.host); got != tt.want {
			t.Errorf("matchHost(%q, %q) = %t, want %t", tt.pattern, tt.host, got, tt.want)
		}
	}
}

func TestValidate(t *testing.T) {
	good := Policy{Hosts: []string{"a.example.com", "*.example.com", "api-*.example.com", "10.0.0.1", "::1", "localhost"}, AllowPrivate: everything}
	if err := good.Validate(); err != nil {
		t.Errorf("Validate = %v, want nil", err)
	}
	for _, pattern := range []string{"", "https://a.example", "a.example:443", "A.example", "a.example/", "*.", "a..b", "[::1]"} {
		err := Policy{Hosts: []string{pattern}}.Validate()
		if err == nil || !strings.HasPrefix(err.Error(), "egress_hosts: ") {
			t.Errorf("Validate with host %q = %v, want an error of egress_hosts", pattern, err)
		}
	}
	for _, prefix := range []netip.Prefix{{}, netip.MustParsePrefix("::ffff:10.0.0.0/104")} {
		err := Policy{AllowPrivate: []netip.Prefix{prefix}}.Validate()
		if err == nil || !strings.HasPrefix(err.Error(), "allow_private: ") {
			t.Errorf("Validate with range %v = %v, want an error of allow_private", prefix, err)
		}
	}
}

// Each address is judged by the zero policy, by one that allows every private range, and by one that allows loopback.
func TestJudge(t *testing.T) {
	tests := []struct {
		ip                       string
		zero, allowAll, loopback bool
	}{
		{"8.8.8.8", true, true, true},
		{"100.63.255.255", true, true, true},
		{"100.128.0.1", true, true, true},
		{"172.15.255.255", true, true, true},
		{"172.32.0.0", true, true, true},
		{"223.255.255.255", true, true, true},
		{"2606:4700::1111", true, true, true},
		{"2a00:1450::1", true, true, true},

		{"10.0.0.1", false, true, false},
		{"100.64.0.1", false, true, false},
		{"172.16.0.1", false, true, false},
		{"172.31.255.255", false, true, false},
		{"192.168.1.1", false, true, false},
		{"192.0.0.1", false, true, false},
		{"192.0.2.1", false, true, false},
		{"192.88.99.1", false, true, false},
		{"198.18.0.1", false, true, false},
		{"198.51.100.1", false, true, false},
		{"203.0.113.1", false, true, false},
		{"fc00::1", false, true, false},
		{"fdff::1", false, true, false},
		{"fec0::1", false, true, false},
		{"100::1", false, true, false},
		{"64:ff9b:1::1", false, true, false},
		{"2001:db8::1", false, true, false},
		{"2001:2::1", false, true, false},
		{"3fff::1", false, true, false},
		{"4000::1", false, true, false},

		{"127.0.0.1", false, true, true},
		{"127.255.255.254", false, true, true},
		{"::1", false, true, true},
		{"::ffff:127.0.0.1", false, true, true},

		{"0.0.0.0", false, false, false},
		{"0.1.2.3", false, false, false},
		{"169.254.169.254", false, false, false},
		{"169.254.0.1", false, false, false},
		{"100.100.100.200", false, false, false},
		{"168.63.129.16", false, false, false},
		{"192.0.0.192", false, false, false},
		{"224.0.0.1", false, false, false},
		{"239.255.255.255", false, false, false},
		{"240.0.0.1", false, false, false},
		{"255.255.255.255", false, false, false},
		{"::", false, false, false},
		{"::7f00:1", false, false, false},
		{"fe80::1", false, false, false},
		{"fe80::1%eth0", false, false, false},
		{"febf::1", false, false, false},
		{"ff02::1", false, false, false},
		{"fd00:ec2::254", false, false, false},
		{"fd20:ce::254", false, false, false},
		{"2001::1", false, false, false},

		{"::ffff:8.8.8.8", true, true, true},
		{"::ffff:10.0.0.1", false, true, false},
		{"::ffff:169.254.169.254", false, false, false},
		{"::ffff:0.0.0.0", false, false, false},
		{"::ffff:0:169.254.169.254", false, false, false},
		{"64:ff9b::8.8.8.8", true, true, true},
		{"64:ff9b::10.0.0.1", false, true, false},
		{"64:ff9b::127.0.0.1", false, false, false},
		{"64:ff9b::169.254.169.254", false, false, false},
		{"2002:808:808::1", true, true, true},
		{"2002:a00:1::1", false, true, false},
		{"2002:7f00:1::1", false, false, false},
		{"2002:a9fe:a9fe::1", false, false, false},
	}
	for _, tt := range tests {
		ip := netip.MustParseAddr(tt.ip)
		for _, c := range []struct {
			name   string
			policy Policy
			want   bool
		}{
			{"zero", Policy{}, tt.zero},
			{"allow all", Policy{AllowPrivate: everything}, tt.allowAll},
			{"loopback", Policy{AllowHTTPLoopback: true}, tt.loopback},
		} {
			err := c.policy.judge(ip)
			if (err == nil) != c.want || err != nil && !errors.Is(err, ErrRefused) {
				t.Errorf("%s policy: judge(%s) = %v, want permitted: %t", c.name, tt.ip, err, c.want)
			}
		}
	}
	if err := (Policy{AllowPrivate: everything}).judge(netip.Addr{}); !errors.Is(err, ErrRefused) {
		t.Errorf("judge of no address = %v, want ErrRefused", err)
	}
	narrow := Policy{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}
	if narrow.judge(netip.MustParseAddr("10.1.2.3")) != nil || narrow.judge(netip.MustParseAddr("10.2.0.1")) == nil {
		t.Error("a range in AllowPrivate must permit itself and nothing beside it")
	}
}

func FuzzParseURL(f *testing.F) {
	for _, seed := range []string{
		"https://a.example/x", "http://localhost:1", "https://[::1]:2/", "https://u@a/?#", "https://a\\b", "https://1.2.3", "https://A.example", "https://a.example:443",
		"https://a.example/../b", "https://a.example/%2e%2e/b", "https://a.example/a%2Fb", "http://evil?https://good", "https://*.example", "https://b\u00fccher.example",
		"http://127.0.0.1:8200", "http://localhost.evil:1", "https://10.0.0.1", "https://169.254.169.254", "https://[::ffff:169.254.169.254]", "https://0x7f.1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		for _, p := range []Policy{{}, {AllowHTTPLoopback: true}, {AllowPrivate: everything}, {Hosts: []string{"*.example"}}} {
			if u, err := p.ParseURL(raw); err == nil {
				wantPlain(t, p, u, raw)
			}
		}
	})
}

// wantPlain checks that a URL that the policy accepted is what it looks like, and leads where the policy permits.
func wantPlain(t *testing.T, p Policy, u *url.URL, raw string) {
	t.Helper()
	host := u.Hostname()
	ip, err := netip.ParseAddr(host)
	loopback := host == localhost || err == nil && ip.IsLoopback()
	if u.String() != raw || u.User != nil || u.RawQuery != "" || u.Fragment != "" || host == "" || host != strings.ToLower(host) ||
		u.Port() == defaultPort(u.Scheme) || strings.Trim(raw, "!#$%&'()*+,-./0123456789:;=?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]_abcdefghijklmnopqrstuvwxyz~") != "" {
		t.Errorf("accepted %q, which is not in its plain spelling", raw)
	}
	for segment := range strings.SplitSeq(u.Path, "/") {
		if again, err := url.PathUnescape(segment); segment == "." || segment == ".." || err == nil && again != segment && strings.Contains(again, "/") {
			t.Errorf("accepted %q, in whose path %q leads elsewhere", raw, segment)
		}
	}
	if u.Scheme != "https" && !(u.Scheme == "http" && p.AllowHTTPLoopback && loopback) {
		t.Errorf("accepted %q, which is neither https nor a permitted loopback", raw)
	}
	if err == nil && p.judge(ip) != nil {
		t.Errorf("accepted the forbidden address in %q", raw)
	}
	if !p.allowsHost(host) || p.Check(u) != nil {
		t.Errorf("accepted %q, which a client of the same policy would not call", raw)
	}
}
