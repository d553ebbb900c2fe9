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

// The results of a check.
const (
	checkOK          = "ok"
	checkFailed      = "failed"
	checkUnsupported = "unsupported" // the API has no call that would show it without issuing a key
)

// checkHints say what the operator of a target should do, by the reason for which a check failed. The words in reasons are
// for callers, who cannot do anything about a target.
var checkHints = map[string]string{
	reasonTargetDenied:   "the server is up but rejects the credential: write a valid one, with the rights that the driver needs",
	reasonTargetBusy:     "check that the server is up, and that url (for a token: token_url), ca_pem and proxy_url are right",
	reasonTargetProtocol: "check that url is the address of the API itself: the answer was not the API's",
	reasonEgress:         "check the egress rules in config",
	reasonNotForwardable: "check subject_token_source and its fields, and what the plugin's environment allows",
	reasonDisabled:       "set issuer_url of self",
}

func (b *engine) checkPath() *framework.Path {
	return &framework.Path{
		Pattern: "check/(?P<target>[^/]+)$",
		Fields: map[string]*framework.FieldSchema{
			"target": {Type: framework.TypeString, Required: true, Description: "Target to check."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{
				Callback: b.handle(b.check), Summary: "Check that a target is up and accepts the engine's credential.", ForwardPerformanceStandby: true,
				DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: "check", OperationSuffix: "target"},
			},
		},
		HelpSynopsis: "Check that a target is up and accepts the engine's credential, and read what it can do.",
		HelpDescription: "Makes one call that changes nothing, within the target's rate and concurrency limits. state is ok, failed, or unsupported if the API has no such call; reason is a reason code, hint says what to do, detail what happened. " +
			"A target that is down is reported as failed, not as an error of this request. subject_token reports the same for the token that the engine presents there, unless that is the caller's. " +
			"The target's abilities are revoke, renew, find, check and list (which reconcile needs), rotate and identify (of a key), and rotate_root (of the credential).",
	}
}

// check makes a call that has no side effect. It works for disabled targets and for tombstones too, because their keys still
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
		b.Logger().Info("a target failed its check", "target", name, "error", err, "request_id", req.ID)
	}
	maps.Copy(data, checkResult(err))
	return &logical.Response{Data: data}, nil
}

// abilities returns what a target can do, as operators read it.
func abilities(t *openTarget) map[string]any {
	can := t.Caps()
	return map[string]any{
		"revoke": can.Revoke, "renew": can.Renew, "find": can.Find, "check": can.Check, "list": can.List,
		"rotate": can.Rotate, "identify": can.Identify, "rotate_root": can.RotateRoot,
	}
}

// checkToken returns whether the engine can get the subject token for a target; nil if the target wants none. An error means
// that this mount itself failed.
func (b *engine) checkToken(ctx context.Context, s logical.Storage, t *openTarget) (any, error) {
	err := error(nil)
	switch t.Source() {
	case target.SourceNone:
		return nil, nil
	case target.SourceRequest: // the token comes with a caller's request
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

// checkResult returns the result of a check as operators read it. Of what the server sent, it has at most the server's own
// words for a refusal: see target.Error.
func checkResult(err error) map[string]any {
	result := map[string]any{"state": checkOK, "reason": "", "hint": "", "detail": ""}
	switch {
	case errors.Is(err, target.ErrUnsupported):
		result["state"], result["hint"] = checkUnsupported, "this cannot be checked without issuing a key"
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

// checkReason returns the reason code and the detail of a failed check. A check has no side effect, so outcome_unknown would
// be misleading: no answer or a server error is target_busy, any other answer target_protocol.
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
	if detail == err.Error() { // otherwise detail already says more than the target's text
		detail = e.Text
		if e.Status != 0 {
			detail += fmt.Sprintf(" (status %d)", e.Status)
		}
	}
	return reason, detail
}
