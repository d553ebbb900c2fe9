// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/expr"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/identity"
	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/trust"
)

// trail records for explain who was judged, and the verdict of each issuer and each policy. A nil trail records nothing.
type trail struct {
	who     *subject
	unread  error            // why the token was refused before any issuer verified it
	issuers map[string]error // the result of verifying, nil = accepted, by the issuer's name
	judged  []judged
}

type judged struct {
	policy *policy
	trust.Decision
}

func (t *trail) judges(who *subject) {
	if t != nil {
		t.who = who
	}
}

func (t *trail) unreadable(err error) {
	if t != nil {
		t.unread = err
	}
}

func (t *trail) asked(i *issuer, err error) {
	if t == nil {
		return
	}
	if t.issuers == nil {
		t.issuers = map[string]error{}
	}
	t.issuers[i.name] = err
}

func (t *trail) add(p *policy, d trust.Decision) {
	if t != nil {
		t.judged = append(t.judged, judged{p, d})
	}
}

// view returns the policies' verdicts as operators read them: every condition, whether it holds, what it wanted and what it saw.
func (t *trail) view() []map[string]any {
	all := []map[string]any{}
	for _, j := range t.judged {
		conditions := []map[string]any{}
		for _, c := range j.Conditions {
			conditions = append(conditions, map[string]any{"condition": c.Name, "holds": c.Holds, "wanted": carried(c.Wanted), "saw": carried(c.Saw), "why": c.Why})
		}
		all = append(all, map[string]any{
			"trust": j.policy.name, "issuer": j.policy.Issuer, "accepted": j.Allowed, "reason": j.Reason, "conditions": conditions,
		})
	}
	return all
}

// issuersView returns every issuer of the role as operators read it: whether it accepts the caller, or why not. presented is
// the unverified content of the caller's token, sample the issuer of sample claims.
func (b *engine) issuersView(ctx context.Context, s logical.Storage, r *role, t *trail, presented map[string]any, sample string) ([]map[string]any, error) {
	policies, err := b.policiesOf(ctx, s, r)
	if err != nil {
		return nil, err
	}
	all, seen := []map[string]any{}, map[string]bool{}
	for _, p := range policies {
		iss, err := b.issuer(ctx, s, p.Issuer)
		if err != nil {
			return nil, err
		}
		if iss == nil || seen[iss.name] {
			continue
		}
		seen[iss.name] = true
		verdict, asked := t.issuers[iss.name]
		if !asked {
			verdict = iss.unasked(t, presented, sample)
		}
		one := map[string]any{"issuer": iss.name, "type": iss.Type, "accepted": verdict == nil, "reason": "", "detail": ""}
		if verdict != nil {
			one["reason"], one["detail"] = asRefusal(verdict).reason, asRefusal(verdict).detail
		}
		all = append(all, one)
	}
	return all, nil
}

// unasked returns why this issuer was not asked to verify the caller. See issuersView for presented and sample.
func (i *issuer) unasked(t *trail, presented map[string]any, sample string) error {
	said := func(claim string) string { text, _ := presented[claim].(string); return text }
	switch {
	case i.unfit != nil:
		return i.unfit
	case sample != "":
		return refuse(identity.UnknownIssuer, "the sample claims are for issuer %q", sample)
	case i.Type == issuerLogin && presented != nil:
		return refuse(reasonTokenRequired, "a token was presented, so the Vault login does not count")
	case i.Type == issuerLogin:
		return refuse(reasonNoEntity, "the request's Vault token has no entity")
	case presented == nil:
		return refuse(reasonTokenRequired, "this issuer verifies tokens, and none was presented")
	case t.unread != nil:
		return t.unread
	case i.Type == issuerOIDC:
		return refuse(identity.UnknownIssuer, "this issuer's iss is %q, the token's is %q", i.Issuer, said("iss"))
	}
	return refuse(identity.UnknownIssuer, "this issuer's trust domain is %q, the token's sub is %q", i.TrustDomain, said("sub"))
}

func (b *engine) explainPath() *framework.Path {
	return &framework.Path{
		Pattern: "explain/(?P<role>[^/]+)$",
		Fields: map[string]*framework.FieldSchema{
			"role":          {Type: framework.TypeString, Required: true, Description: "Role whose decision to explain."},
			"subject_token": {Type: framework.TypeString, DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}, Description: "A token to judge; a single-use token is not used up."},
			"claims":        {Type: framework.TypeMap, Description: "Sample claims to judge instead of a token, as if issuer had verified them."},
			"issuer":        {Type: framework.TypeString, Description: "Issuer of the sample claims."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{
				Callback: b.handle(b.explain), Summary: "Judge a token, sample claims or your own login, without side effects.",
				ForwardPerformanceStandby: true, // the node that issues keys also counts them for ceilings
				DisplayAttrs:              &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: "explain", OperationSuffix: "decision"},
			},
		},
		HelpSynopsis: "Judge a token, sample claims or your own login, and say why.",
		HelpDescription: "Answers what creds/<role> would decide: accepted or the reason, the unverified content of the token (times in seconds since 1970, next to now), every issuer with its verdict, every condition of every trust policy with what it wanted and the value that it saw, the ids that a policy should bind, the lease path and the parameters. " +
			"Nothing is issued, written or used up. The answer has details that callers must not see, so grant this path separately.",
	}
}

// explain answers what creds/<role> would decide, and why. A refusal is part of the answer, not an error.
func (b *engine) explain(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	name := d.Get("role").(string)
	r, err := b.role(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, refuse(reasonUnknownRole, "there is no role %q", name)
	}
	trail, budget := &trail{}, expr.NewBudget()
	conf, err := b.config(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	var presented map[string]any
	if token := d.Get("subject_token").(string); token != "" {
		presented = identity.Describe(token, conf.MaxTokenBytes)
	}
	answer := map[string]any{"token": carriedEach(presented), "now": b.now().Unix()}
	err = b.explained(ctx, req, d, r, trail, budget, answer)
	answer["policies"] = trail.view()
	answer["accepted"], answer["reason"], answer["detail"] = err == nil, "", ""
	if err != nil {
		refused := asRefusal(err)
		if status := reasons[refused.reason].Status; refused.reason == reasonBadRequest || status == http.StatusInternalServerError || status == 0 {
			return nil, err // the request is invalid or the engine failed: that is not a verdict
		}
		answer["reason"], answer["detail"] = refused.reason, refused.detail
	}
	answer["issuers"], err = b.issuersView(ctx, req.Storage, r, trail, presented, d.Get("issuer").(string))
	return &logical.Response{Data: answer}, err
}

// explained follows the steps of issue up to the first write, and fills the answer. It returns the refusal, if any.
func (b *engine) explained(ctx context.Context, req *logical.Request, d *framework.FieldData, r *role, trail *trail, budget *expr.Budget, answer map[string]any) error {
	_, t, closed := b.open(ctx, req.Storage, r.name) // creds would stop at this error; explain still shows who the caller is
	who, err := b.explainedSubject(ctx, req, d, r, trail, budget)
	if who := trail.who; who != nil { // accepted or not
		answer["issuer"], answer["subject"] = who.issuer.name, who.Subject
		ids, _ := pick(who.Claims, defaultRecordClaims, maxRecorded)
		answer["ids"] = carriedEach(ids)
	}
	switch {
	case closed != nil:
		return closed
	case err != nil:
		return err
	}
	answer["trust"] = who.policy.name
	path, err := r.wantedPath(who, expr.NewBudget()) // an error is left to order, which evaluates lease_path again
	if err == nil {
		answer["path"] = strings.TrimSuffix("creds/"+r.name+"/"+path, "/")
	}
	o, err := b.order(ctx, req, r, t, who, ask{role: r.name, path: path}, budget)
	if err != nil {
		return err
	}
	answer["target"], answer["parameters"], answer["ttl"] = r.Target, o.params, int(o.ttl/time.Second)
	if err := b.ledger.check(&entry{Role: r.name, Issuer: who.issuer.name, Subject: who.Subject}, r.ceilings()); err != nil {
		return err
	}
	return b.replay.check(ctx, req.Storage, who)
}

// explainedSubject verifies the caller, or takes sample claims as verified, and evaluates the role's policies.
func (b *engine) explainedSubject(ctx context.Context, req *logical.Request, d *framework.FieldData, r *role, trail *trail, budget *expr.Budget) (*subject, error) {
	token := d.Get("subject_token").(string)
	claims, sample := d.GetOk("claims")
	_, given := d.Raw["subject_token"]
	switch {
	case given && token == "":
		return nil, badField("subject_token", "is empty; leave it out to explain your own login")
	case sample && token != "":
		return nil, badField("claims", "give a token or sample claims, not both")
	case !sample && d.Get("issuer").(string) != "":
		return nil, badField("issuer", "is only for sample claims; a token names its issuer itself")
	case !sample:
		return b.identify(ctx, req, r, token, trail, budget)
	}
	iss, err := b.issuer(ctx, req.Storage, d.Get("issuer").(string))
	if err != nil {
		return nil, err
	}
	if iss == nil || iss.Type == issuerLogin {
		return nil, badField("issuer", "want the name of an issuer of type oidc or spiffe, for the sample claims")
	}
	if err := b.notOwn(ctx, req.Storage, identity.Claimed{Issuer: iss.Issuer}); err != nil {
		return nil, err
	}
	// Decode from JSON, like the claims of a token, so that expressions and conditions see the same types.
	raw, err := json.Marshal(claims)
	if err != nil {
		return nil, badField("claims", "want claims as a JSON object")
	}
	who := &subject{issuer: iss, Identity: &trust.Identity{Kind: trust.Token, Claims: map[string]any{}, Now: b.now()}}
	if err := decodeJSON(raw, &who.Claims); err != nil {
		return nil, badField("claims", "want claims as a JSON object")
	}
	if who.Subject, _ = who.Claims["sub"].(string); who.Subject == "" {
		return nil, badField("claims", "sub is missing")
	}
	if who.jti, err = tokenID(who.Claims[iss.JTIClaim]); err != nil {
		return nil, err
	}
	if iss.Type == issuerSPIFFE && !iss.claimedBy(identity.Claimed{Subject: who.Subject}) {
		return nil, badField("claims", "sub is not the SPIFFE ID of a workload in trust domain %q", iss.TrustDomain)
	}
	if claimed, _ := who.Claims["iss"].(string); claimed != "" && iss.Type == issuerOIDC && claimed != iss.Issuer {
		return nil, badField("claims", "iss is %q, but the issuer's is %q; such a token would be refused as %s", claimed, iss.Issuer, identity.UnknownIssuer)
	}
	if who.Caller, _, err = b.caller(req, true); err != nil {
		return nil, err
	}
	policies, err := b.policiesOf(ctx, req.Storage, r)
	if err != nil {
		return nil, err
	}
	policies, err = iss.among(policies)
	trail.asked(iss, err)
	if err != nil {
		return nil, err
	}
	return who.decide(policies, trail, budget)
}
