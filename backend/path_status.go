// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"cmp"
	"context"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

func (b *engine) statusPaths() []*framework.Path {
	display := func(verb, suffix string) *framework.DisplayAttributes {
		return &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: verb, OperationSuffix: suffix}
	}
	return []*framework.Path{{
		Pattern: "status$",
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{Callback: b.handle(b.status), Summary: "Read the health of issuers, targets, ledger and sweeper.", DisplayAttrs: display("read", "status"), ForwardPerformanceStandby: true},
		},
		HelpSynopsis: "Health of issuers, targets, static roles, ledger and sweeper.",
		HelpDescription: "For each issuer: when its keys were last fetched and when that was last tried, their ids, which keys of its key set are not used and why, and why the last fetch failed. For each target: what it can do, how many keys the ledger has there, how many calls are under way (calls_running) or wait for their turn (calls_waiting), how many calls in a row got no answer or a gateway's error (failures), whether there were so many that it is called only now and then (breaker_open), and until when it is not called (next_call_at). " +
			"For a target's credential and for each static role: when it was last rotated, when that is due, and the state of a rotation under way (rotation). " +
			"For self: the ids of its published keys, and when they rotate. For ledger and sweeper: what is not settled, and for how long; whether the ledger was counted since the start (counted), and which record cannot be read (last_error). No issuer or target is called; the answer is about the node that serves the request, since its start.",
	}, {
		Pattern: "refresh/(?P<issuer>[^/]+)$",
		Fields: map[string]*framework.FieldSchema{
			"issuer": {Type: framework.TypeString, Required: true, Description: "Issuer whose keys to drop and fetch again."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{Callback: b.handle(b.refresh), Summary: "Drop an issuer's keys now, and fetch them.", DisplayAttrs: display("refresh", "issuer"), ForwardPerformanceStandby: true},
		},
		HelpSynopsis: "Drop an issuer's keys now, and fetch them.",
		HelpDescription: "Use this when an issuer has withdrawn a key: none of the keys known so far is accepted any more, even if fetching fails. " +
			"Otherwise keys are fetched again as config's jwks_min_refresh and jwks_max_age say, and dropped when a write changes where they come from or which keys are acceptable. Keys in jwt_validation_pubkeys stay. Each cluster has its own copy of the keys: where Vault replicates the mount, run this on each.",
	}}
}

func (b *engine) refresh(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	name := d.Get("issuer").(string)
	iss, err := b.issuer(ctx, req.Storage, name)
	switch {
	case err != nil:
		return nil, err
	case iss == nil:
		return nil, badField("issuer", "there is no issuer %q", name)
	case iss.unfit != nil:
		return nil, iss.unfit
	case iss.verifier == nil:
		return nil, badField("issuer", "%q is of type %s, which has no keys", name, iss.Type)
	}
	if err := iss.verifier.Refresh(ctx); err != nil {
		return nil, err
	}
	return &logical.Response{Data: iss.health()}, nil
}

// health returns the state of an issuer's keys as operators read it.
func (i *issuer) health() map[string]any {
	known := map[string]any{"type": i.Type, "enabled": i.Enabled}
	if i.unfit != nil {
		known["last_error"] = i.unfit.Error()
	}
	if i.verifier == nil {
		return known
	}
	s := i.verifier.Status()
	known["keys"], known["key_ids"], known["skipped"] = s.Keys, s.KeyIDs, s.Skipped
	known["fetched_at"], known["tried_at"], known["last_error"] = timeOrNil(s.Fetched), timeOrNil(s.Tried), s.LastError
	return known
}

func (b *engine) status(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	issuers, err := healthOf(ctx, req.Storage, b.issuerNoun.table, func(name string, _ *issuerRecord) (map[string]any, error) {
		iss, err := b.issuer(ctx, req.Storage, name)
		if err != nil || iss == nil {
			return nil, err
		}
		return iss.health(), nil
	})
	if err != nil {
		return nil, err
	}
	keys := b.ledger.perTarget()
	targets, err := healthOf(ctx, req.Storage, b.targetNoun.table, func(name string, record *targetRecord) (map[string]any, error) {
		return b.targetHealth(ctx, req.Storage, name, record, keys[name])
	})
	if err != nil {
		return nil, err
	}
	static, err := healthOf(ctx, req.Storage, b.staticNoun.table, func(name string, record *staticRecord) (map[string]any, error) {
		r, err := b.openStatic(ctx, req.Storage, name)
		if err != nil || r == nil {
			return nil, err
		}
		known := r.view()
		known["enabled"] = record.Enabled
		return known, nil
	})
	if err != nil {
		return nil, err
	}
	open, err := b.backlog(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	self, err := b.provider(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	last := b.lastSweep.Load()
	if last == nil {
		last = &sweepReport{}
	}
	return &logical.Response{Data: map[string]any{
		"version": Version, "issuers": issuers, "targets": targets, "static_roles": static, "ledger": b.ledgerHealth(open, keys), "self": self.health(),
		"sweeper": map[string]any{"last_run": timeOrNil(last.at), "complete": last.complete, "lag_seconds": int(open.lag / time.Second)},
	}}, nil
}

// targetHealth describes a target, which has this many keys in the ledger; nil if it was deleted meanwhile.
func (b *engine) targetHealth(ctx context.Context, s logical.Storage, name string, record *targetRecord, keys int) (map[string]any, error) {
	t, err := b.target(ctx, s, name)
	if err != nil || t == nil {
		return nil, err
	}
	known, met := abilities(t), t.State()
	known["failures"], known["breaker_open"], known["next_call_at"] = met.Failures, met.Open, timeOrNil(met.Next)
	known["calls_running"], known["calls_waiting"] = met.Running, met.Waiting
	r, err := b.openRoot(ctx, s, name)
	if err != nil {
		return nil, err
	}
	if r != nil && r.state != nil {
		known["credential"] = r.view()
	}
	known["driver"], known["enabled"], known["deleted"], known["keys"] = record.Driver, record.Enabled, record.DeletedUntil != nil, keys
	return known, nil
}

// ledgerHealth describes the ledger: its backlog, and its keys by target.
func (b *engine) ledgerHealth(open backlog, keys map[string]int) map[string]any {
	total := 0
	for _, n := range keys {
		total += n
	}
	known := open.view()
	counted, fault := b.ledger.counting()
	if fault == nil {
		fault = open.fault
	}
	known["keys"], known["counted"], known["last_error"] = total, counted, ""
	if fault != nil {
		known["last_error"] = asRefusal(fault).Error()
	}
	return known
}

// healthOf describes each record of a table. describe returns nil for a record that was deleted meanwhile; its error becomes
// the record's last_error, so that one bad record does not spoil the answer.
func healthOf[T any](ctx context.Context, s logical.Storage, t table[T], describe func(string, *T) (map[string]any, error)) (map[string]any, error) {
	names, err := t.list(ctx, s)
	if err != nil {
		return nil, err
	}
	all := map[string]any{}
	for _, name := range names {
		var known map[string]any
		record, err := t.get(ctx, s, name)
		if err == nil && record != nil {
			known, err = describe(name, record)
		}
		if err != nil {
			known = map[string]any{"last_error": asRefusal(err).Error()}
		}
		if known != nil { // nil: it was deleted meanwhile
			all[name] = known
		}
	}
	return all, nil
}

// backlog says what in the ledger is not settled, and for how long.
type backlog struct {
	pending, inFlight, debt int
	oldest, oldestDebt      time.Duration // age of the oldest entry, and of the oldest debt; 0 if there is none
	lag                     time.Duration // how long the sweeper's most overdue work has been due: a retry, or an hour that has passed
	fault                   error         // of records that could not be read, which are not counted
}

// backlog reads the records in open/, and no filed ones: the tally knows their hours.
func (b *engine) backlog(ctx context.Context, s logical.Storage) (l backlog, err error) {
	conf, err := b.config(ctx, s)
	if err != nil {
		return l, err
	}
	now := b.now()
	oldest, oldestDebt, due := now, now, now
	if start, err := time.Parse(hourLayout, b.ledger.firstHour()); err == nil { // an error: no hour has keys
		due = earlier(due, start.Add(time.Hour+hourMargin))
	}
	bad, err := b.ledger.eachOpen(ctx, s, func(e *entry) (bool, error) {
		next := e.NextTry
		switch {
		case e.State == stateDebt:
			l.debt++
			oldestDebt = earlier(oldestDebt, e.DebtSince)
		case b.ledger.inFlight(e.rand()):
			l.inFlight++
			oldest, next = earlier(oldest, e.IssuedAt), now
		default:
			l.pending++
			oldest = earlier(oldest, e.IssuedAt)
			if next.IsZero() {
				next = e.IssuedAt.Add(conf.SweepGrace.duration())
			}
		}
		due = earlier(due, next)
		return true, nil
	})
	l.fault = cmp.Or(err, bad.err())
	l.oldest, l.oldestDebt, l.lag = now.Sub(earlier(oldest, oldestDebt)), now.Sub(oldestDebt), now.Sub(due)
	return l, nil
}

func (l backlog) view() map[string]any {
	return map[string]any{
		"pending": l.pending, "in_flight": l.inFlight, "debt": l.debt,
		"oldest_seconds": int(l.oldest / time.Second), "oldest_debt_seconds": int(l.oldestDebt / time.Second),
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
