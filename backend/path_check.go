// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// The states of what was checked.
const (
	checkOK          = "ok"
	checkFailed      = "failed"
	checkUnsupported = "unsupported" // nothing can tell without asking for a key
)

// checkHints say what the operator of a target is to do, by the reason why a check failed. The reasons' own words are for
// callers, who can do nothing about a target.
var checkHints = map[string]string{
	reasonTargetDenied:   "it answers, and does not take the credential: write one that it takes, with the rights that the driver needs",
	reasonTargetBusy:     "see that it is up, and that url (of a token: token_url), ca_pem and proxy_url lead to it",
	reasonTargetProtocol: "see that url is the address of the API itself: what answers there is something else",
	reasonEgress:         "see the egress rules in config",
	reasonNotForwardable: "see subject_token_source and its fields, and what the plugin's environment allows",
	reasonDisabled:       "write issuer_url of self",
}

func (b *engine) checkPath() *framework.Path {
	return &framework.Path{
		Pattern: "check/(?P<target>[^/]+)$",
		Fields: map[string]*framework.FieldSchema{
			"target": {Type: framework.TypeString, Required: true, Description: "Target to ask."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{
				Callback: b.handle(b.check), Summary: "Ask a target whether it is there and takes the engine's credential.", ForwardPerformanceStandby: true,
				DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: "check", OperationSuffix: "target"},
			},
		},
		HelpSynopsis: "Ask a target whether it is there and takes the engine's credential, and what it can do.",
		HelpDescription: "One call that changes nothing, in its turn among the others. state is ok, failed, or unsupported where the API has no such call; reason is a reason code, hint what its operator is to do, detail what happened. " +
			"A target that is down is an answer, not an error: errors are this mount's own. subject_token says the same of the token that the target is shown, where that is not the caller's. " +
			"revoke, renew, find, check and list (what reconcile needs), rotate and identify (a key), and rotate_root (the credential) are what the target can do.",
	}
}

// check asks a target what costs nothing. It works for one that is switched off, or deleted while keys live there: those
// have to be revoked.
func (b *engine) check(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	name := d.Get("target").(string)
	record, err := b.targetNoun.table.get(ctx, req.Storage, name)
	if err != nil || record == nil {
		return nil, err
	}
	t, err := b.target(ctx, req.Storage, name)
	switch {
	case err == nil && t == nil: // deleted meanwhile
		return nil, nil
	case err != nil && asRefusal(err).reason == reasonStorage:
		return nil, err
	}
	data := map[string]any{"target": name, "driver": record.Driver, "enabled": record.Enabled, "deleted": record.DeletedUntil != nil}
	if err == nil {
		maps.Copy(data, abilities(t))
		if data["subject_token"], err = b.checkToken(ctx, req.Storage, t); err != nil {
			return nil, err
		}
		err = t.Check(ctx)
	}
	if err != nil && !errors.Is(err, target.ErrUnsupported) {
		b.Logger().Info("a target fails its check", "target", name, "error", err, "request_id", req.ID)
	}
	maps.Copy(data, checkResult(err))
	return &logical.Response{Data: data}, nil
}

// abilities are what a target can do, as operators read it.
func abilities(t *openTarget) map[string]any {
	can := t.Caps()
	return map[string]any{
		"revoke": can.Revoke, "renew": can.Renew, "find": can.Find, "check": can.Check, "list": can.List,
		"rotate": can.Rotate, "identify": can.Identify, "rotate_root": can.RotateRoot,
	}
}

// checkToken says whether the token that a target is shown can be had; nil where it is shown none. An error is this mount's
// own.
func (b *engine) checkToken(ctx context.Context, s logical.Storage, t *openTarget) (any, error) {
	err := error(nil)
	switch t.Source() {
	case target.SourceNone:
		return nil, nil
	case target.SourceRequest: // it comes with the request
		err = target.ErrUnsupported
	case target.SourceSelf:
		p, loadErr := b.provider(ctx, s)
		if loadErr != nil {
			return nil, loadErr
		}
		if !p.on() {
			err = refuse(reasonDisabled, "self has no issuer_url")
		}
	default:
		_, err = t.ownToken(ctx)
	}
	result := checkResult(err)
	result["source"] = t.Source()
	return result, nil
}

// checkResult is what became of a check, as operators read it. Of what a server sent it holds at most its own words for a refusal:
// see target.Error.
func checkResult(err error) map[string]any {
	result := map[string]any{"state": checkOK, "reason": "", "hint": "", "detail": ""}
	switch {
	case errors.Is(err, target.ErrUnsupported):
		result["state"], result["hint"] = checkUnsupported, "nothing tells without asking for a key"
	case err != nil:
		reason, detail := checkReason(err)
		result["state"], result["reason"], result["detail"] = checkFailed, reason, detail
		result["hint"] = checkHints[reason]
		if result["hint"] == "" {
			result["hint"] = reasons[reason].ToDo
		}
	}
	return result
}

// checkReason finds the reason of a failed check. Its outcome does not matter, so that it is unknown is no reason: what did
// not answer, or with a server's error, is busy, and any other answer is not the API's.
func checkReason(err error) (reason, detail string) {
	r := asRefusal(err)
	reason, detail = r.reason, r.detail
	e := (*target.Error)(nil)
	if !errors.As(err, &e) {
		return reason, detail
	}
	if reason == reasonOutcomeUnknown {
		reason = reasonTargetProtocol
		if e.Status == 0 || e.Status >= http.StatusInternalServerError {
			reason = reasonTargetBusy
		}
	}
	if detail == err.Error() { // else the cause says more
		detail = e.Text
		if e.Status != 0 {
			detail += fmt.Sprintf(" (status %d)", e.Status)
		}
	}
	return reason, detail
}
