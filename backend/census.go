// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"slices"
	"strings"
	"time"
)

const maxPrefixes = 100 // beyond this many, a census names lease prefixes by role only

// census counts the keys that a filter matches, and names the prefixes of their leases.
type census struct {
	Matched    int       `json:"matched"`
	Unrecorded int       `json:"unrecorded"` // cannot be judged: a claim was not recorded
	Unreadable int       `json:"unreadable"` // records of the ledger that could not be read; nothing is known of their keys
	Unread     []string  `json:"unread"`     // the first of them, see unread.names
	Revoked    int       `json:"revoked"`    // of the matched: have ended
	Debt       int       `json:"debt"`       // of the matched: must be revoked, which has not succeeded yet
	Exposed    int       `json:"exposed"`    // of the matched: cannot be revoked
	Until      time.Time `json:"until"`      // when the last of debt and exposed expires
	Endless    bool      `json:"endless"`    // one of debt and exposed never expires
	Prefixes   []string  `json:"prefixes"`   // of leases, relative to the mount; sorted
	Coarse     bool      `json:"coarse"`     // there were too many prefixes, so they are creds/<role> without lease paths
}

// countLeft counts a key that is not revoked, as debt or as exposed.
func (c *census) countLeft(e *entry) {
	end := e.ExpiresAt
	if e.State == statePending {
		end = e.NotAfter
	}
	if e.State == statePending || e.Revocable {
		c.Debt++
	} else {
		c.Exposed++
	}
	c.Endless = c.Endless || end.IsZero()
	if end.After(c.Until) {
		c.Until = end
	}
}

// addPrefix adds the prefix of a key's lease.
func (c *census) addPrefix(e *entry) {
	if strings.HasPrefix(e.Role, staticPrefix) { // keys of static roles have no lease
		return
	}
	prefix := "creds/" + e.Role
	if e.LeasePath != "" && !c.Coarse {
		prefix += "/" + e.LeasePath
	}
	at, found := slices.BinarySearch(c.Prefixes, prefix)
	if found {
		return
	}
	c.Prefixes = slices.Insert(c.Prefixes, at, prefix)
	if len(c.Prefixes) > maxPrefixes && !c.Coarse {
		c.Coarse = true
		for i, prefix := range c.Prefixes {
			role, _, _ := strings.Cut(strings.TrimPrefix(prefix, "creds/"), "/")
			c.Prefixes[i] = "creds/" + role
		}
		c.Prefixes = slices.Compact(c.Prefixes)
	}
}
