// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package egress

import (
	"fmt"
	"net/netip"
	"slices"
)

const localhost = "localhost"

var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// never lists the addresses that are never dialled, whatever an operator permits: no server that an exchange needs lives
// there, but cloud metadata services do, which hand out the machine's own credentials.
var never = prefixes(
	"0.0.0.0/8",          // "this host"; Linux routes it to loopback
	"169.254.0.0/16",     // link-local, with most clouds' metadata
	"224.0.0.0/4",        // multicast
	"240.0.0.0/4",        // reserved, and broadcast
	"100.100.100.200/32", // metadata: Alibaba
	"168.63.129.16/32",   // metadata: Azure's wire server
	"192.0.0.192/32",     // metadata: Oracle
	"::/96",              // unspecified, and IPv4-compatible; ::1 is judged before
	"::ffff:0:0:0/96",    // IPv4-translated: hides an IPv4 address behind a translator
	"fe80::/10",          // link-local
	"ff00::/8",           // multicast
	"fd00:ec2::/32",      // metadata and other link services: AWS
	"fd20:ce::254/128",   // metadata: Google
	"fd00:42::42/128",    // metadata: Scaleway
	"2001::/32",          // Teredo: hides an IPv4 address behind a relay
)

// private lists the addresses that are dialled only if AllowPrivate contains them.
var private = prefixes(
	"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16",
	"127.0.0.0/8", "::1/128",
	"100.64.0.0/10",                                     // shared address space
	"192.0.0.0/24",                                      // protocol assignments
	"192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", // documentation
	"192.88.99.0/24",             // 6to4 relays
	"198.18.0.0/15",              // benchmarks
	"2001::/23",                  // protocol assignments
	"2001:db8::/32", "3fff::/20", // documentation
)

// Prefixes of addresses that contain an IPv4 address, to which a translator passes the connection on.
var (
	nat64     = netip.MustParsePrefix("64:ff9b::/96")
	sixToFour = netip.MustParsePrefix("2002::/16")
)

// globalUnicast is the part of IPv6 from which addresses are allocated; the rest (fc00::/7, fec0::/10, 64:ff9b:1::/48,
// 100::/64 and unassigned ranges) counts as private.
var globalUnicast = netip.MustParsePrefix("2000::/3")

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

// judge checks whether ip may be dialled. Every error is an ErrRefused.
func (p Policy) judge(ip netip.Addr) error {
	ip = ip.Unmap().WithZone("")
	if inner, ok := embedded(ip); ok {
		if inner.IsLoopback() { // the translator's own loopback, not this machine's
			return fmt.Errorf("%w: address %s is never dialled", ErrRefused, ip)
		}
		return p.judge(inner)
	}
	switch {
	case ip.IsLoopback():
		if p.AllowHTTPLoopback {
			return nil
		}
	case !ip.IsValid() || contains(never, ip):
		return fmt.Errorf("%w: address %s is never dialled", ErrRefused, ip)
	case ip.Is4() && !contains(private, ip):
		return nil
	case ip.Is6() && globalUnicast.Contains(ip) && !contains(private, ip):
		return nil
	}
	if contains(p.AllowPrivate, ip) {
		return nil
	}
	return fmt.Errorf("%w: %s is a private address; list its range in config's allow_private", ErrRefused, ip)
}

// embedded returns the IPv4 address inside a NAT64 or 6to4 address.
func embedded(ip netip.Addr) (netip.Addr, bool) {
	b := ip.As16()
	switch {
	case nat64.Contains(ip):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case sixToFour.Contains(ip):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	}
	return netip.Addr{}, false
}

func contains(list []netip.Prefix, ip netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// isLoopbackHost reports whether the host of a URL is this machine, without a look-up that could give another answer: a
// loopback address, or the name localhost, for which the dialler insists on a loopback address.
func isLoopbackHost(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == localhost || err == nil && ip.Unmap().IsLoopback()
}
