// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"crypto/rand"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"time"
)

// exchange exchanges a token for a key. It looks at users after the token and the policies, and marks the token as used only
// when it makes the key. So a refusal neither tells about users nor uses up the token.
func (g *NuGet) exchange(ctx context.Context, username, token string) (key string, expires time.Time, refused *nugetError) {
	if !g.knows(username) {
		return "", time.Time{}, noPolicy(username)
	}
	claims, refused := g.verify(ctx, token)
	if refused != nil {
		return "", time.Time{}, refused
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	policy, refused := g.match(username, claims)
	if refused != nil {
		return "", time.Time{}, refused
	}
	if refused := g.checkUsers(username, policy.PackageOwner); refused != nil {
		return "", time.Time{}, refused
	}
	jti := claims.text("jti")
	if g.used[jti] {
		return "", time.Time{}, unauthorized("This bearer token has already been used. A new bearer token must be used for each request.")
	}
	g.used[jti] = true
	// The key contains the minute of its creation and its lifetime, and these decide when it ends.
	made := g.now().UTC().Truncate(time.Minute)
	key = newNuGetKey(made, g.userIndex(policy.PackageOwner)+1, g.o.KeyTTL)
	expires = made.Add(g.o.KeyTTL)
	g.keys[key] = NuGetKey{User: username, Owner: policy.PackageOwner, Policy: policy.Name, ExpiresAt: expires}
	return key, expires, nil
}

func noPolicy(username string) *nugetError {
	return unauthorized("No matching trust policy owned by user '%s' was found.", username)
}

// knows reports whether there is a user with that name.
func (g *NuGet) knows(username string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.userIndex(username) >= 0
}

// match finds the oldest policy of the user that accepts the claims. The caller holds mu.
func (g *NuGet) match(username string, claims tokenClaims) (Policy, *nugetError) {
	var disclosed []string
	for i := range g.policies {
		p := &g.policies[i]
		if !strings.EqualFold(p.User, username) {
			continue
		}
		reason, disclosable := p.accept(claims, g.o.BannedEvents, g.now())
		if reason == "" {
			return *p, nil
		}
		if disclosable {
			disclosed = append(disclosed, reason)
		}
	}
	if len(disclosed) > 0 {
		return Policy{}, unauthorized("%s", strings.Join(disclosed, ". "))
	}
	return Policy{}, noPolicy(username)
}

// permanent reports whether the policy is bound to ids.
func (p *Policy) permanent() bool { return p.OwnerID != "" && p.RepositoryID != "" }

// accept returns the reason why the policy does not accept the claims, empty if it does, and whether the caller may be told
// the reason. A temporary policy that accepts takes over the token's ids.
func (p *Policy) accept(claims tokenClaims, banned []string, now time.Time) (reason string, disclosable bool) {
	for _, name := range []string{"repository", "repository_owner", "repository_owner_id", "repository_id", "event_name"} {
		if claims.text(name) == "" {
			return missingClaim(name), true
		}
	}
	repository := p.Owner + "/" + p.Repository
	ownerID, repositoryID := claims.text("repository_owner_id"), claims.text("repository_id")
	switch {
	case !strings.EqualFold(claims.text("repository_owner"), p.Owner):
		return claims.mismatch("repository_owner"), false
	case !strings.EqualFold(claims.text("repository"), repository):
		return claims.mismatch("repository"), false
	case p.permanent() && ownerID != p.OwnerID:
		return claims.mismatch("repository_owner_id"), false
	case p.permanent() && repositoryID != p.RepositoryID:
		return claims.mismatch("repository_id"), false
	case !p.permanent() && now.After(p.ValidateBy):
		return fmt.Sprintf("The policy '%s' has expired. Sign in and renew the trust policy on the Trusted Publishing page.", p.Name), true
	}
	event := claims.text("event_name")
	if slices.ContainsFunc(banned, func(b string) bool { return strings.EqualFold(b, event) }) {
		return fmt.Sprintf("The GitHub Actions event '%s' is not allowed.", event), true
	}
	if reason, disclosable := p.acceptWorkflow(claims, repository); reason != "" {
		return reason, disclosable
	}
	if !p.permanent() { // only now: a token that is refused must not bind the policy to its ids
		p.OwnerID, p.RepositoryID, p.ValidateBy = ownerID, repositoryID, time.Time{}
	}
	return "", false
}

// acceptWorkflow is the part of accept that checks workflow and environment. What a policy expects is told only to the
// repository that the policy is bound to.
func (p *Policy) acceptWorkflow(claims tokenClaims, repository string) (reason string, disclosable bool) {
	ref := claims.text("job_workflow_ref")
	if ref == "" {
		return missingClaim("job_workflow_ref"), true
	}
	prefix := repository + "/.github/workflows/"
	if len(ref) < len(prefix) || !strings.EqualFold(ref[:len(prefix)], prefix) || !strings.Contains(ref[len(prefix):], "@") {
		return fmt.Sprintf("Claim 'job_workflow_ref' has value '%s' which does not start with %s.", ref, prefix), p.permanent()
	}
	if file, _, _ := strings.Cut(ref[len(prefix):], "@"); !strings.EqualFold(file, p.Workflow) {
		return fmt.Sprintf("Workflow mismatch for policy '%s': expected '%s', actual '%s'", p.Name, p.Workflow, file), p.permanent()
	}
	if env := claims.text("environment"); p.Environment != "" && !strings.EqualFold(env, p.Environment) {
		return fmt.Sprintf("Environment mismatch for policy '%s': expected '%s', actual '%s'", p.Name, p.Environment, env), p.permanent()
	}
	return "", false
}

func missingClaim(name string) string {
	return fmt.Sprintf("The JSON Web Token is missing the required claim '%s'.", name)
}

// checkUsers checks the two accounts that a matched policy concerns. The caller holds mu.
func (g *NuGet) checkUsers(username, owner string) *nugetError {
	user := g.users[g.userIndex(username)]
	if user.Organization {
		return badRequest("Generating fetching tokens directly for organizations is not supported. The federated credential trust " +
			"policy is created on the profile of one of the organization's administrators and is scoped to the organization in the policy.")
	}
	if refused := user.checkState(); refused != nil {
		return refused
	}
	i := g.userIndex(owner)
	if i < 0 {
		return badRequest("The package owner of the match federated credential trust policy not longer exists.")
	}
	return g.users[i].checkState()
}

func (u User) checkState() *nugetError {
	kind := "user"
	if u.Organization {
		kind = "organization"
	}
	switch {
	case u.Deleted:
		return badRequest("The %s '%s' is deleted.", kind, u.Name)
	case u.Locked:
		return badRequest("The %s '%s' is locked.", kind, u.Name)
	case u.Unconfirmed:
		return badRequest("The %s '%s' does not have a confirmed email address.", kind, u.Name)
	}
	return nil
}

// The two alphabets of a key: dates count from A, numbers from 0.
const (
	dateDigits   = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	numberDigits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// newNuGetKey makes a key in the gallery's format v5: 84 characters, which contain creation time, lifetime and owner. The
// environment is L, local. The last four characters are a CRC-32 instead of the gallery's Marvin32 checksum.
func newNuGetKey(made time.Time, ownerKey int, ttl time.Duration) string {
	body := randomBase62(52) + nugetKeyTail(made, 'L', ownerKey, ttl)
	return body + base62(int(crc32.ChecksumIEEE([]byte(body))%(62*62*62*62)), 4)
}

// nugetKeyTail returns the characters 52 to 79 of a key.
func nugetKeyTail(made time.Time, environment byte, ownerKey int, ttl time.Duration) string {
	date := func(n int) string { return dateDigits[n : n+1] }
	return "JQQJ99" + date(made.Year()-2024) + date(int(made.Month())-1) +
		"N5" + string(environment) + base62(ownerKey, 6) +
		date(made.Day()-1) + date(made.Hour()) + date(made.Minute()) +
		"S" + base62(int(ttl/(5*time.Minute)), 3) + "NUGT"
}

// base62 writes n with the given number of digits.
func base62(n, digits int) string {
	out := make([]byte, digits)
	for i := digits - 1; i >= 0; i-- {
		out[i] = numberDigits[n%62]
		n /= 62
	}
	return string(out)
}

// randomBase62 returns n random digits; they are not quite evenly distributed, which does not matter here.
func randomBase62(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // crypto/rand.Read never returns an error
	for i := range b {
		b[i] = numberDigits[b[i]%62]
	}
	return string(b)
}
