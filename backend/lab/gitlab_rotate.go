// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"encoding/json"
	"net/http"
)

func (g *GitLab) rotatePersonal(c *gitlabCall) {
	t := g.token(c)
	if t == nil || !c.mayManage(t) {
		g.hide(c)
		return
	}
	g.replace(c, t)
}

func (g *GitLab) rotate(c *gitlabCall) {
	t := g.member(c)
	if t == nil || c.place != nil && c.level(c.place) < gitlabMaintainer {
		g.hide(c)
		return
	}
	g.replace(c, t)
}

// replace ends a token and makes its successor, in one step. Without an expiry in the request, the successor gets a week.
func (g *GitLab) replace(c *gitlabCall, old *gitlabToken) {
	var in gitlabInput
	_ = json.NewDecoder(c.Body).Decode(&in) // a rotation may have no body
	day, ok := gitlabDate(in.ExpiresAt)
	switch {
	case !ok:
		writeError(c.w, http.StatusBadRequest, "expires_at is invalid")
		return
	case old.revoked:
		c.badRequest("Token already revoked")
		return
	case day > g.day(g.o.MaxLifetime):
		c.badRequest("Expiration date must be before " + g.day(g.o.MaxLifetime))
		return
	case day == "":
		day = g.day(7)
	}
	next := *old
	next.ExpiresAt, next.previous = day, old.ID
	old.revoked = true
	g.present(c, http.StatusOK, g.add(&next), true)
}

// revokeDescendants ends all tokens that were made by rotating a token, directly or not.
func (g *GitLab) revokeDescendants(t *gitlabToken) {
	for _, next := range g.tokens {
		if next.previous == t.ID {
			next.revoked = true
			g.revokeDescendants(next)
		}
	}
}
