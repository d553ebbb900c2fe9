// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
)

// Names is a DNS server that answers with its function's result, called for each query, so that a name can change between
// two lookups.
type Names func(name string) []netip.Addr

// Resolver returns a resolver that asks n and nobody else.
func (n Names) Resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe() // no packets, so the resolver frames its messages as over TCP
		go n.serve(ours)
		return theirs, nil
	}}
}

func (n Names) serve(conn net.Conn) {
	defer conn.Close()
	for {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		answer := n.answer(query)
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// answer builds the answer to a query with one question (RFC 1035 section 4): header, question, and the addresses of the
// requested family.
func (n Names) answer(query []byte) []byte {
	const header, typeA, typeAAAA = 12, 1, 28
	name, end := "", header
	for end < len(query) && query[end] != 0 {
		next := end + 1 + int(query[end])
		name += string(query[end+1:next]) + "."
		end = next
	}
	end += 5 // the root label, type and class
	kind := binary.BigEndian.Uint16(query[end-4:])
	answer := append([]byte{}, query[:end]...)
	answer[2], answer[3] = 0x81, 0x80              // an answer without error, from a recursive server
	copy(answer[6:header], make([]byte, header-6)) // no other records so far
	for _, ip := range n(name[:len(name)-1]) {
		if ip.Is4() != (kind == typeA) || ip.Is6() != (kind == typeAAAA) {
			continue
		}
		answer[7]++
		answer = append(answer, 0xc0, header) // the question's name
		answer = append(answer, query[end-4:end]...)
		answer = append(answer, 0, 0, 0, 0) // TTL 0: not to be cached
		answer = binary.BigEndian.AppendUint16(answer, uint16(len(ip.AsSlice())))
		answer = append(answer, ip.AsSlice()...)
	}
	return answer
}
