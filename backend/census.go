// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"slices"
	"strings"
	"time"
)

const maxPrefixes = 100 // of leases that a census names one by one

// census counts the keys that a filter matches.
type census struct {
	Matched    int       `json:"matched"`
	Unrecorded int       `json:"unrecorded"` // cannot be judged
	Revoked    int       `json:"revoked"`    // of those matched: live no more
	Debt       int       `json:"debt"`       // must die and do not yet
	Exposed    int       `json:"exposed"`    // cannot be revoked
	Until      time.Time `json:"until"`      // when the last of debt and exposed has ended by itself
	Endless    bool      `json:"endless"`    // one of them never does
	Prefixes   []string  `json:"prefixes"`   // of leases, below the mount
	Coarse     bool      `json:"coarse"`     // they end with the role, for there are many
}

// countLeft counts a key that lives on for now.
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

// addPrefix notes the prefix under which a key's lease is.
func (c *census) addPrefix(e *entry) {
	if strings.HasPrefix(e.Role, staticPrefix) { // it has no lease
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
