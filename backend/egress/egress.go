// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// Package egress decides where the engine may call and makes the one kind of HTTP client that it calls with.
//
// A [Policy] is checked three times: when a base URL is configured ([Policy.ParseURL]), for every request (so that a URL
// that another server named cannot leave the allow-list), and for every address that is dialled (so that a name cannot be
// pointed at the inside of a network after it was checked). The package owns no configuration, keeps no state and never
// retries; there is no way to switch certificate verification off.
package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
)

// ErrRefused is in the chain of every error that says the policy forbids a URL or an address, also through *url.Error.
// Nothing was sent. The text around it says how an operator can permit the call, where that is possible.
var ErrRefused = errors.New("refused by the egress rules")

// maxURLBytes bounds a configured base URL.
const maxURLBytes = 2048

// Policy says which hosts and addresses may be called. The zero Policy permits https to every public address. A Policy is
// a value: changing it later does not change the clients that it made.
type Policy struct {
	// AllowPrivate lists ranges of private, shared, documentation or loopback addresses that may be dialled all the same.
	// Link-local, unspecified, multicast, reserved and cloud metadata addresses stay forbidden whatever it lists.
	AllowPrivate []netip.Prefix
	// AllowHTTPLoopback permits dialling this machine's loopback addresses, with http or https. It is the only way to use
	// http, and http goes nowhere else.
	AllowHTTPLoopback bool
	// Hosts lists the host names that may be called, any port; empty means any. A star stands for one or more characters
	// within one label: "*.example.com" is a.example.com, but neither example.com nor a.b.example.com. Addresses are
	// listed as they are written in a URL, without brackets.
	Hosts []string
}

// Validate says what is wrong with the policy itself, above all a host pattern that can never match.
func (p Policy) Validate() error {
	for _, prefix := range p.AllowPrivate {
		if !prefix.IsValid() {
			return errors.New("allow_private: not a range; want CIDR such as 10.0.0.0/8")
		}
		if prefix.Addr().Is4In6() {
			return fmt.Errorf("allow_private: %q: write the range as IPv4", prefix)
		}
	}
	for _, pattern := range p.Hosts {
		if _, err := netip.ParseAddr(pattern); err == nil {
			continue
		}
		// A star stands for characters that a label may have, so a pattern is a name once its stars are one of them.
		if err := checkName(strings.ReplaceAll(pattern, "*", "x")); err != nil {
			return fmt.Errorf("egress_hosts: %q: %v", pattern, err)
		}
	}
	return nil
}

// ParseURL parses a base URL that an operator configured and refuses every spelling of it that is not the plain one:
// it wants https (or http to loopback, see AllowHTTPLoopback), a lower-case ASCII host in Hosts without the scheme's
// default port, and neither user, query, fragment, dot segments nor escaped separators. An address literal is judged as if
// it were dialled; names are not looked up. Nothing is normalised: String of the result is raw.
func (p Policy) ParseURL(raw string) (*url.URL, error) {
	u, err := parseBase(raw)
	if err == nil {
		err = p.Check(u)
	}
	if err != nil {
		return nil, err
	}
	return u, nil
}

// parseBase makes the checks of ParseURL that do not depend on a policy.
func parseBase(raw string) (*url.URL, error) {
	if len(raw) > maxURLBytes {
		return nil, fmt.Errorf("longer than %d bytes", maxURLBytes)
	}
	if err := checkBytes(raw); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(raw, "https://") && !strings.HasPrefix(raw, "http://") {
		return nil, errors.New("not an https URL; want https://host/path in lower case")
	}
	u, err := url.Parse(raw)
	if err != nil { // its text repeats the input
		return nil, errors.New("not a URL")
	}
	if err := checkBase(u, raw); err != nil {
		return nil, err
	}
	if u.String() != raw {
		return nil, errors.New("not in its plain spelling")
	}
	return u, nil
}

// ParseEndpoint is ParseURL for the address of a single endpoint, which may have a query. The query is kept as it is
// written.
func (p Policy) ParseEndpoint(raw string) (*url.URL, error) {
	base, query, hasQuery := strings.Cut(raw, "?")
	u, err := p.ParseURL(base)
	if err != nil {
		return nil, err
	}
	if err := checkBytes(query); err != nil {
		return nil, err
	}
	switch {
	case len(raw) > maxURLBytes:
		return nil, fmt.Errorf("longer than %d bytes", maxURLBytes)
	case strings.Contains(query, "#"):
		return nil, errors.New("has a fragment; want scheme, host, path and query only")
	}
	u.RawQuery, u.ForceQuery = query, hasQuery && query == ""
	return u, nil
}

func checkBytes(raw string) error {
	for _, c := range []byte(raw) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"<>\^{|}`+"`", c) >= 0 {
			return errors.New("has a character that a URL does not have; want plain ASCII without spaces")
		}
	}
	return nil
}

// checkBase refuses the parts that a base URL must not have.
func checkBase(u *url.URL, raw string) error {
	switch {
	case u.User != nil:
		return errors.New("has a user; credentials have fields of their own")
	case strings.Contains(raw, "?"):
		return errors.New("has a query; want scheme, host and path only")
	case strings.Contains(raw, "#"):
		return errors.New("has a fragment; want scheme, host and path only")
	}
	if port := u.Port(); port == defaultPort(u.Scheme) {
		return errors.New("names the default port; leave it out")
	}
	escaped := strings.ToLower(u.EscapedPath())
	if strings.Contains(escaped, "%2f") || strings.Contains(escaped, "%5c") {
		return errors.New("has an escaped slash in its path")
	}
	for segment := range strings.SplitSeq(u.Path, "/") {
		if segment == "." || segment == ".." {
			return errors.New("has a dot segment in its path; write the path out")
		}
	}
	for _, c := range []byte(u.Path) {
		if c < ' ' || c == 0x7f {
			return errors.New("has a control character in its path")
		}
	}
	return nil
}

// Check says whether a client of this policy would refuse to call u before it dials: by scheme, host or address literal.
// Unlike ParseURL it takes URLs with a query, such as those that a discovery document names.
func (p Policy) Check(u *url.URL) error {
	if u.Scheme != "https" && u.Scheme != "http" {
		return fmt.Errorf("%w: not an https URL", ErrRefused)
	}
	if u.User != nil || u.Opaque != "" {
		return fmt.Errorf("%w: the URL has a user or no host", ErrRefused)
	}
	host := u.Hostname()
	ip, err := checkHost(u.Host, host)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrRefused, err)
	}
	if !p.allowsHost(host) {
		return fmt.Errorf("%w: host %q is not in egress_hosts of config", ErrRefused, host)
	}
	if u.Scheme == "http" && !(p.AllowHTTPLoopback && isLoopbackHost(host)) {
		return fmt.Errorf("%w: http; use https (http is only for loopback, with allow_http_loopback in config)", ErrRefused)
	}
	return p.checkLiteral(host, ip)
}

// checkLiteral judges addresses that are known without a look-up: literals, and localhost.
func (p Policy) checkLiteral(host string, ip netip.Addr) error {
	if ip.IsValid() {
		return p.judge(ip)
	}
	if host == localhost && p.judge(netip.IPv6Loopback()) != nil {
		return p.judge(loopback4)
	}
	return nil
}

// checkHost checks the host part of a URL, port included, and returns the address if it is one.
func checkHost(hostport, host string) (netip.Addr, error) {
	if rest, found := strings.CutPrefix(strings.Trim(hostport, "[]"), host); found {
		if err := checkPort(strings.TrimPrefix(rest, "]")); err != nil {
			return netip.Addr{}, err
		}
	}
	if host == "" {
		return netip.Addr{}, errors.New("no host")
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.Zone() != "" || ip.String() != host {
			return netip.Addr{}, errors.New("an address that is not in its plain spelling")
		}
		return ip, nil
	}
	return netip.Addr{}, checkName(host)
}

// checkPort checks what follows the host: nothing, or a colon and a port in its plain spelling.
func checkPort(s string) error {
	if s == "" {
		return nil
	}
	port, err := strconv.ParseUint(strings.TrimPrefix(s, ":"), 10, 16)
	if err != nil || port == 0 || s != ":"+strconv.FormatUint(port, 10) {
		return errors.New("a port that is not a number from 1 to 65535")
	}
	return nil
}

// checkName wants a host name in lower-case ASCII. Names whose last label is a number are refused, because some resolvers
// read them as addresses ("127.1", "0x7f000001"), and so is a trailing dot, which would be another spelling of the same
// name and slip past a list.
func checkName(name string) error {
	if name == "" || len(name) > 253 {
		return errors.New("a host name has 1 to 253 characters")
	}
	var last string
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return errors.New("a host name's labels have 1 to 63 characters, and no dot ends it")
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return errors.New("a host name has lower-case ASCII letters, digits, hyphens and dots only")
			}
		}
		last = label
	}
	if isNumber(last) {
		return errors.New("a number is not a host name")
	}
	return nil
}

// isNumber says whether some resolver would read the label as a part of an IPv4 address.
func isNumber(label string) bool {
	digits, hex := strings.CutPrefix(label, "0x")
	set := "0123456789"
	if hex {
		set += "abcdef"
	}
	return strings.Trim(digits, set) == ""
}

// allowsHost says whether Hosts has a pattern for host.
func (p Policy) allowsHost(host string) bool {
	if len(p.Hosts) == 0 {
		return true
	}
	for _, pattern := range p.Hosts {
		if matchHost(pattern, host) {
			return true
		}
	}
	return false
}

// matchHost leaves the search to path.Match, which backtracks only to the last star. A star there matches no slash, so the
// dots become slashes, but it may match nothing, which ours may not.
func matchHost(pattern, host string) bool {
	pattern = strings.NewReplacer(".", "/", "*", "?*").Replace(pattern)
	matched, err := path.Match(pattern, strings.ReplaceAll(host, ".", "/"))
	return err == nil && matched
}

// defaultPort is the port that a URL of the scheme leaves out.
func defaultPort(scheme string) string {
	if scheme == "https" {
		return "443"
	}
	return "80"
}
