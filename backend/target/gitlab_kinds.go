// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"regexp"
	"time"

	gitlab "gitlab.com/gitlab-org/api/client-go/v2"
)

// gitlabKind has what differs between the kinds of tokens: the endpoints and their options.
type gitlabKind struct {
	userIn string         // the parameter that names a user; "" = none does
	gone   *regexp.Regexp // the message of a 404 that means the token, and not what it belongs to
	needs  string         // what the credential must be

	create func(*gitlab.Client, gitlabPlace, gitlabOrder, gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error)
	list   func(*gitlab.Client, gitlabPlace, string, gitlab.ListOptions, gitlab.RequestOptionFunc) ([]*gitlab.PersonalAccessToken, *gitlab.Response, error)
	revoke func(*gitlab.Client, gitlabPlace, int64, gitlab.RequestOptionFunc) error
	rotate func(*gitlab.Client, gitlabPlace, int64, *gitlab.ISOTime, gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error)
}

var gitlabActive = "active"

const gitlabNeedsAdmin = "tokens of users need an administrator's credential (with the scope admin_mode too, where Admin Mode is on), which gitlab.com gives nobody"

var gitlabKinds = map[string]gitlabKind{
	"personal": {
		userIn: "id",
		gone:   regexp.MustCompile(`(?i)\A404 (personal access token )?not found\z`),
		needs:  gitlabNeedsAdmin,
		create: func(c *gitlab.Client, at gitlabPlace, o gitlabOrder, with gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error) {
			made, _, err := c.Users.CreatePersonalAccessToken(at.user, &gitlab.CreatePersonalAccessTokenOptions{
				Name: &o.name, Scopes: &o.scopes, ExpiresAt: &o.until,
			}, with)
			return made, err
		},
		list: func(c *gitlab.Client, at gitlabPlace, name string, page gitlab.ListOptions, with gitlab.RequestOptionFunc) ([]*gitlab.PersonalAccessToken, *gitlab.Response, error) {
			return c.PersonalAccessTokens.ListPersonalAccessTokens(&gitlab.ListPersonalAccessTokensOptions{
				ListOptions: page, UserID: &at.user, State: &gitlabActive, Search: &name,
			}, with)
		},
		revoke: func(c *gitlab.Client, _ gitlabPlace, id int64, with gitlab.RequestOptionFunc) error {
			_, err := c.PersonalAccessTokens.RevokePersonalAccessTokenByID(id, with)
			return err
		},
		rotate: rotateByID,
	},
	"impersonation": {
		userIn: "id",
		gone:   regexp.MustCompile(`(?i)\A404 impersonation token not found\z`),
		needs:  gitlabNeedsAdmin,
		create: func(c *gitlab.Client, at gitlabPlace, o gitlabOrder, with gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error) {
			until := time.Time(o.until) // this endpoint's option is an instant; GitLab takes its date
			made, _, err := c.Users.CreateImpersonationToken(at.user, &gitlab.CreateImpersonationTokenOptions{
				Name: &o.name, Scopes: &o.scopes, ExpiresAt: &until,
			}, with)
			return ofImpersonation(made), err
		},
		list: func(c *gitlab.Client, at gitlabPlace, _ string, page gitlab.ListOptions, with gitlab.RequestOptionFunc) ([]*gitlab.PersonalAccessToken, *gitlab.Response, error) {
			list, resp, err := c.Users.GetAllImpersonationTokens(at.user, &gitlab.GetAllImpersonationTokensOptions{ListOptions: page, State: &gitlabActive}, with)
			return each(list, ofImpersonation), resp, err
		},
		revoke: func(c *gitlab.Client, at gitlabPlace, id int64, with gitlab.RequestOptionFunc) error {
			_, err := c.Users.RevokeImpersonationToken(at.user, id, with)
			return err
		},
		rotate: rotateByID, // the new one is an impersonation token too
	},
	"project": {
		gone:  regexp.MustCompile(`(?i)\A404 (could not find )?project access token (with token_id: \d+ )?not found\z`),
		needs: "tokens of a project need a Maintainer of it (an Owner, for access_level owner), and Premium on gitlab.com",
		create: func(c *gitlab.Client, at gitlabPlace, o gitlabOrder, with gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error) {
			made, _, err := c.ProjectAccessTokens.CreateProjectAccessToken(at.id, &gitlab.CreateProjectAccessTokenOptions{
				Name: &o.name, Scopes: &o.scopes, AccessLevel: &o.level, ExpiresAt: &o.until,
			}, with)
			return ofProject(made), err
		},
		list: func(c *gitlab.Client, at gitlabPlace, _ string, page gitlab.ListOptions, with gitlab.RequestOptionFunc) ([]*gitlab.PersonalAccessToken, *gitlab.Response, error) {
			list, resp, err := c.ProjectAccessTokens.ListProjectAccessTokens(at.id, &gitlab.ListProjectAccessTokensOptions{ListOptions: page, State: &gitlabActive}, with)
			return each(list, ofProject), resp, err
		},
		revoke: func(c *gitlab.Client, at gitlabPlace, id int64, with gitlab.RequestOptionFunc) error {
			_, err := c.ProjectAccessTokens.RevokeProjectAccessToken(at.id, id, with)
			return err
		},
		rotate: func(c *gitlab.Client, at gitlabPlace, id int64, until *gitlab.ISOTime, with gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error) {
			made, _, err := c.ProjectAccessTokens.RotateProjectAccessToken(at.id, id, &gitlab.RotateProjectAccessTokenOptions{ExpiresAt: until}, with)
			return ofProject(made), err
		},
	},
	"group": {
		gone:  regexp.MustCompile(`(?i)\A404 (could not find )?group access token (with token_id: \d+ )?not found\z`),
		needs: "tokens of a group need an Owner of it, and Premium on gitlab.com",
		create: func(c *gitlab.Client, at gitlabPlace, o gitlabOrder, with gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error) {
			made, _, err := c.GroupAccessTokens.CreateGroupAccessToken(at.id, &gitlab.CreateGroupAccessTokenOptions{
				Name: &o.name, Scopes: &o.scopes, AccessLevel: &o.level, ExpiresAt: &o.until,
			}, with)
			return ofGroup(made), err
		},
		list: func(c *gitlab.Client, at gitlabPlace, name string, page gitlab.ListOptions, with gitlab.RequestOptionFunc) ([]*gitlab.PersonalAccessToken, *gitlab.Response, error) {
			state := gitlab.AccessTokenStateActive
			list, resp, err := c.GroupAccessTokens.ListGroupAccessTokens(at.id, &gitlab.ListGroupAccessTokensOptions{ListOptions: page, State: &state, Search: &name}, with)
			return each(list, ofGroup), resp, err
		},
		revoke: func(c *gitlab.Client, at gitlabPlace, id int64, with gitlab.RequestOptionFunc) error {
			_, err := c.GroupAccessTokens.RevokeGroupAccessToken(at.id, id, with)
			return err
		},
		rotate: func(c *gitlab.Client, at gitlabPlace, id int64, until *gitlab.ISOTime, with gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error) {
			made, _, err := c.GroupAccessTokens.RotateGroupAccessToken(at.id, id, &gitlab.RotateGroupAccessTokenOptions{ExpiresAt: until}, with)
			return ofGroup(made), err
		},
	},
	"service_account": {
		userIn: "user",
		gone:   regexp.MustCompile(`(?i)\A404 personal access token not found\z`),
		needs:  "tokens of a service account need an Owner of its group; before GitLab 17.11 nobody can list them or end them by id: set revoke_by to self",
		create: func(c *gitlab.Client, at gitlabPlace, o gitlabOrder, with gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error) {
			made, _, err := c.Groups.CreateServiceAccountPersonalAccessToken(at.id, at.user, &gitlab.CreateServiceAccountPersonalAccessTokenOptions{
				Name: &o.name, Scopes: &o.scopes, ExpiresAt: &o.until,
			}, with)
			return made, err
		},
		list: func(c *gitlab.Client, at gitlabPlace, name string, page gitlab.ListOptions, with gitlab.RequestOptionFunc) ([]*gitlab.PersonalAccessToken, *gitlab.Response, error) {
			return c.Groups.ListServiceAccountPersonalAccessTokens(at.id, at.user, &gitlab.ListServiceAccountPersonalAccessTokensOptions{
				ListOptions: page, State: &gitlabActive, Search: &name,
			}, with)
		},
		revoke: func(c *gitlab.Client, at gitlabPlace, id int64, with gitlab.RequestOptionFunc) error {
			_, err := c.Groups.RevokeServiceAccountPersonalAccessToken(at.id, at.user, id, with)
			return err
		},
		rotate: func(c *gitlab.Client, at gitlabPlace, id int64, until *gitlab.ISOTime, with gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error) {
			made, _, err := c.Groups.RotateServiceAccountPersonalAccessToken(at.id, at.user, id, &gitlab.RotateServiceAccountPersonalAccessTokenOptions{ExpiresAt: until}, with)
			return made, err
		},
	},
}

func rotateByID(c *gitlab.Client, _ gitlabPlace, id int64, until *gitlab.ISOTime, with gitlab.RequestOptionFunc) (*gitlab.PersonalAccessToken, error) {
	made, _, err := c.PersonalAccessTokens.RotatePersonalAccessTokenByID(id, &gitlab.RotatePersonalAccessTokenOptions{ExpiresAt: until}, with)
	return made, err
}

// The client has one type for each kind of token. They differ only in fields that are not used here. nil stays nil: the client
// returns it for a JSON null.

func ofProject(t *gitlab.ProjectAccessToken) *gitlab.PersonalAccessToken {
	if t == nil {
		return nil
	}
	return &t.PersonalAccessToken
}

func ofGroup(t *gitlab.GroupAccessToken) *gitlab.PersonalAccessToken {
	if t == nil {
		return nil
	}
	return &t.PersonalAccessToken
}

func ofImpersonation(t *gitlab.ImpersonationToken) *gitlab.PersonalAccessToken {
	if t == nil {
		return nil
	}
	return &gitlab.PersonalAccessToken{ID: t.ID, Name: t.Name, Revoked: t.Revoked, ExpiresAt: t.ExpiresAt, Token: t.Token}
}

func each[T any](list []*T, of func(*T) *gitlab.PersonalAccessToken) []*gitlab.PersonalAccessToken {
	if list == nil {
		return nil
	}
	out := make([]*gitlab.PersonalAccessToken, len(list))
	for i, t := range list {
		out[i] = of(t)
	}
	return out
}
