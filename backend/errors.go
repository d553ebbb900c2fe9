// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/hashicorp/vault/sdk/logical"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/trust"
)

// The reason codes that this package gives; packages identity and trust define their own.
const (
	reasonBadRequest     = "bad_request"
	reasonUnknownRole    = "unknown_role"
	reasonBlocked        = "blocked"
	reasonDisabled       = "disabled"
	reasonTokenRequired  = "token_required"
	reasonTokenInURL     = "token_in_url"
	reasonReplayed       = "replayed"
	reasonNoEntity       = "no_entity"
	reasonNoAlias        = "no_alias"
	reasonLeasePath      = "lease_path"
	reasonParameter      = "parameter"
	reasonLimit          = "limit"
	reasonNotRevocable   = "not_revocable"
	reasonRoleNotAllowed = "role_not_allowed"
	reasonNotForwardable = "not_forwardable"
	reasonEgress         = "egress"
	reasonTargetDenied   = "target_denied"
	reasonTargetBusy     = "target_busy"
	reasonTargetProtocol = "target_protocol"
	reasonOutcomeUnknown = "outcome_unknown"
	reasonTrustChanged   = "trust_changed"
	reasonStorage        = "storage"
	reasonInternal       = "internal"
)

const (
	maxDetail = 512 // bytes of detail in one log line
	maxField  = 128 // bytes of a field's name that are repeated to whoever sent it
)

// reason is what a caller learns about a refusal: a status and what to do.
type reason struct {
	Status int
	ToDo   string
}

// reasons is the one table of reason codes. It tells a caller nothing about what a policy wants: the detail of a refusal
// goes only to Vault's log, under the request's id.
var reasons = map[string]reason{
	reasonBadRequest:           {http.StatusBadRequest, "correct the named field"},
	reasonTokenInURL:           {http.StatusBadRequest, "a token in a read stands in URLs and logs; use: vault write <mount>/creds/<role> subject_token=@file"},
	reasonParameter:            {http.StatusBadRequest, "correct the parameter; a role's allowed_parameters names those that a request may set"},
	reasonUnknownRole:          {http.StatusBadRequest, "name an existing role, see: vault list <mount>/roles"},
	reasonLeasePath:            {http.StatusBadRequest, "request the path that the role's lease_path yields for you"},
	reasonTokenRequired:        {http.StatusBadRequest, "the role trusts no login; present a token: vault write <mount>/creds/<role> subject_token=@file"},
	reasonBlocked:              {http.StatusForbidden, "a block refuses you; ask the operators of this mount"},
	reasonDisabled:             {http.StatusForbidden, "the role, or what it needs, is switched off; ask its operator"},
	identity.TokenMalformed:    {http.StatusForbidden, "present one signed JWT in compact form, unchanged"},
	identity.TokenType:         {http.StatusForbidden, "present an ID token, not a token of another type"},
	identity.Algorithm:         {http.StatusForbidden, "the issuer must sign with an algorithm that its entry allows"},
	identity.UnknownIssuer:     {http.StatusForbidden, "present a token of an issuer that the role trusts"},
	identity.UnknownKey:        {http.StatusForbidden, "request a fresh token; if that fails too, the issuer does not publish its key"},
	identity.BadSignature:      {http.StatusForbidden, "request a fresh token and present it unchanged"},
	identity.Expired:           {http.StatusForbidden, "request a fresh token"},
	identity.NotYetValid:       {http.StatusForbidden, "check the clocks of issuer and Vault"},
	identity.TooOld:            {http.StatusForbidden, "request a fresh token"},
	identity.Lifetime:          {http.StatusForbidden, "let the issuer make tokens of a shorter life"},
	identity.IssuerUnavailable: {http.StatusServiceUnavailable, "the issuer's keys cannot be had now; try again later"},
	trust.Audience:             {http.StatusForbidden, "request the token for the audience that the operator has told you"},
	trust.NotTrusted:           {http.StatusForbidden, "no trust policy of the role accepts you; ask its operator, who finds the detail in Vault's log"},
	trust.CallerMismatch:       {http.StatusForbidden, "log in to Vault as the subject of the token"},
	reasonReplayed:             {http.StatusForbidden, "a token works once; request a fresh token"},
	reasonNoEntity:             {http.StatusForbidden, "log in through an auth method; root and orphan tokens have no entity"},
	reasonNoAlias:              {http.StatusForbidden, "log in through the auth mount that the role's issuer names"},
	reasonLimit:                {http.StatusForbidden, "the role has as many keys as it may have; revoke one that is not needed, or wait for one to end"},
	reasonNotRevocable:         {http.StatusForbidden, "the role demands keys that can be revoked, and its target cannot revoke"},
	reasonRoleNotAllowed:       {http.StatusForbidden, "the target does not list the role in allowed_roles; ask its operator"},
	reasonNotForwardable:       {http.StatusForbidden, "the token that the target wants may not be sent there, or cannot be had; ask its operator"},
	reasonEgress:               {http.StatusForbidden, "the engine may not connect there; ask its operator to look at config's egress rules"},
	reasonTrustChanged:         {http.StatusForbidden, "what the key was issued under no longer holds; request a new key"},
	reasonTargetDenied:         {http.StatusUnprocessableEntity, "the target refused; its operator finds the status in Vault's log"},
	reasonTargetProtocol:       {http.StatusUnprocessableEntity, "the target's answer made no sense; do not repeat with the same token"},
	reasonOutcomeUnknown:       {http.StatusUnprocessableEntity, "the target may have made a key, which the engine ends if the target can find and revoke it, and shows until it has ended; do not repeat with the same token"},
	reasonTargetBusy:           {http.StatusServiceUnavailable, "nothing happened; try again later, and ask its operator if that lasts"},
	reasonStorage:              {http.StatusInternalServerError, "Vault could not read or write its storage"},
	reasonInternal:             {http.StatusInternalServerError, "a fault of the plugin; please report it"},
}

// refusal is an error with a reason code. detail is for operators. text, if set, replaces the table's words for the caller,
// where they must name something.
type refusal struct {
	reason, text, detail string
	cause                error
}

func (r *refusal) Error() string {
	if r.detail != "" {
		return r.reason + ": " + r.detail
	}
	return r.reason
}

func (r *refusal) Unwrap() error { return r.cause }

// abandoned reports whether storage failed only because the caller left: nobody gets the refusal, and nothing is broken.
func (r *refusal) abandoned() bool {
	return r.reason == reasonStorage && (errors.Is(r.cause, context.Canceled) || status.Code(r.cause) == codes.Canceled)
}

// refuse makes a refusal with a detail for the log; the caller gets the table's words.
func refuse(reason, format string, args ...any) error {
	return &refusal{reason: reason, detail: fmt.Sprintf(format, args...)}
}

// badField makes a refusal that tells the caller which field is wrong.
func badField(field, format string, args ...any) error {
	if len(field) > maxField {
		field = field[:maxField] + "…"
	}
	text := field + ": " + fmt.Sprintf(format, args...)
	return &refusal{reason: reasonBadRequest, text: text, detail: text}
}

// namedField makes a refusal of an error whose text already begins with the field's name.
func namedField(err error) *refusal {
	return &refusal{reason: reasonBadRequest, text: err.Error(), detail: err.Error()}
}

func storageError(err error) error {
	return &refusal{reason: reasonStorage, detail: err.Error(), cause: err}
}

// asked is the error of a call that only asks. Whatever its outcome, it made no key and changed nothing, so it can be repeated.
func asked(err error) error {
	if errors.Is(err, target.ErrUnknown) {
		return &refusal{reason: reasonTargetBusy, detail: err.Error(), cause: err}
	}
	return err
}

// asRefusal maps any error to a refusal; errors without a reason become reasonInternal.
func asRefusal(err error) *refusal {
	var (
		r        *refusal
		idErr    *identity.Error
		field    *trust.FieldError
		tgtField *target.FieldError
	)
	switch {
	case errors.As(err, &r):
		return r
	case errors.As(err, &idErr):
		return &refusal{reason: idErr.Reason, detail: idErr.Detail}
	case errors.As(err, &field):
		return namedField(field)
	case errors.As(err, &tgtField):
		return namedField(tgtField)
	}
	for sentinel, reason := range map[error]string{
		target.ErrEgress: reasonEgress, target.ErrParameter: reasonParameter, target.ErrDenied: reasonTargetDenied,
		target.ErrBusy: reasonTargetBusy, target.ErrProtocol: reasonTargetProtocol, target.ErrUnknown: reasonOutcomeUnknown,
	} {
		if errors.Is(err, sentinel) {
			return &refusal{reason: reason, detail: err.Error()}
		}
	}
	return &refusal{reason: reasonInternal, detail: err.Error()}
}

// respond is the one place where an error becomes a response: the caller gets the reason, what to do and the request's
// id; the log gets the detail under the same id.
func (b *engine) respond(req *logical.Request, err error) (*logical.Response, error) {
	r := asRefusal(err)
	if r.reason == reasonStorage && strings.Contains(r.detail, logical.ErrReadOnly.Error()) {
		return nil, logical.ErrReadOnly // this node may not write: Vault forwards the request to one that may
	}
	known, ok := reasons[r.reason]
	if !ok {
		known = reasons[reasonInternal]
	}
	if !r.abandoned() {
		b.meters.refusal(req, r.reason)
	}
	log := b.Logger().Info
	if known.Status >= http.StatusInternalServerError && !r.abandoned() {
		log = b.Logger().Error
	}
	detail := r.detail
	if len(detail) > maxDetail {
		detail = detail[:maxDetail]
	}
	text := known.ToDo
	if r.text != "" {
		text = r.text
	}
	text = r.reason + ": " + text
	if req.Secret != nil { // Vault gives renewals no request id, so log the key's id
		log = b.Logger().With("id", req.Secret.InternalData["id"]).Info
	} else {
		text += " (request " + req.ID + ")"
	}
	log("refused", "reason", r.reason, "detail", detail, "operation", req.Operation, "path", req.Path, "request_id", req.ID)
	if known.Status == http.StatusBadRequest && req.Secret == nil { // of a renewal's response Vault would print the Go value
		return logical.ErrorResponse(text), nil // as data, so that audit devices hash it: it may repeat what the caller sent
	}
	return nil, logical.CodedError(known.Status, text)
}
