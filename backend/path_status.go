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
		HelpDescription: "Of each issuer: when its keys were last fetched and tried, their ids, what of its key set is not used, and why the last fetch brought nothing. Of each target: what it can do, how many keys the ledger has there, how many calls are under way (calls_running) and wait for their turn (calls_waiting), how many in a row had no answer or a gateway's error (failures), whether there were so many that it is asked only now and then (breaker_open), and until when it is left alone (next_call_at). " +
			"Of a target's credential and of each static role: when it was last rotated and is due, and how far a rotation is (rotation). " +
			"Of self: the ids of the keys that it publishes, and when they rotate. Of ledger and sweeper: what is not settled, and since when; whether the ledger has been counted since the start (counted), and which record cannot be read (last_error). It asks nobody; it is about the node that answers, since its start.",
	}, {
		Pattern: "refresh/(?P<issuer>[^/]+)$",
		Fields: map[string]*framework.FieldSchema{
			"issuer": {Type: framework.TypeString, Required: true, Description: "Issuer whose keys to drop and fetch."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{Callback: b.handle(b.refresh), Summary: "Drop an issuer's keys now, and fetch them.", DisplayAttrs: display("refresh", "issuer"), ForwardPerformanceStandby: true},
		},
		HelpSynopsis: "Drop an issuer's keys now, and fetch them.",
		HelpDescription: "For the moment after an issuer has withdrawn a key: none of the keys known so far vouches any more, also if fetching fails. " +
			"By themselves keys are fetched again as config's jwks_min_refresh and jwks_max_age say, and an edit drops them only if others may be wanted after it: of where they come from, or of what is demanded of them. Keys that are written in the issuer's entry stay.",
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

// health is what is known of an issuer's keys.
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
		t, err := b.target(ctx, req.Storage, name)
		if err != nil || t == nil {
			return nil, err
		}
		known, met := abilities(t), t.State()
		known["failures"], known["breaker_open"], known["next_call_at"] = met.Failures, met.Open, timeOrNil(met.Next)
		known["calls_running"], known["calls_waiting"] = met.Running, met.Waiting
		r, err := b.openRoot(ctx, req.Storage, name)
		if err != nil {
			return nil, err
		}
		if r != nil && r.state != nil {
			known["credential"] = r.view()
		}
		known["driver"], known["enabled"], known["deleted"], known["keys"] = record.Driver, record.Enabled, record.DeletedUntil != nil, keys[name]
		return known, nil
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
	total := 0
	for _, n := range keys {
		total += n
	}
	ledger := open.view()
	counted, fault := b.ledger.counting()
	if fault == nil {
		fault = open.fault
	}
	ledger["keys"], ledger["counted"], ledger["last_error"] = total, counted, ""
	if fault != nil {
		ledger["last_error"] = asRefusal(fault).Error()
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
		"version": Version, "issuers": issuers, "targets": targets, "static_roles": static, "ledger": ledger, "self": self.health(),
		"sweeper": map[string]any{"last_run": timeOrNil(last.at), "complete": last.complete, "lag_seconds": int(open.lag / time.Second)},
	}}, nil
}

// healthOf describes each record of a table; describe returns nil for what is no more. What keeps one from being used is its own health, not the answer's.
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
		if known != nil { // else it was deleted meanwhile
			all[name] = known
		}
	}
	return all, nil
}

// backlog is what is not settled, and since when.
type backlog struct {
	pending, inFlight, debt int
	oldest, oldestDebt      time.Duration // their age; 0 if there is none
	lag                     time.Duration // how long the sweeper is late with what it has come to least: a try that was due, or an hour that has passed
	fault                   error         // of what could not be read, which is left out
}

// backlog looks at what is open, and at nothing that is filed: the hours are known from memory.
func (b *engine) backlog(ctx context.Context, s logical.Storage) (l backlog, err error) {
	conf, err := b.config(ctx, s)
	if err != nil {
		return l, err
	}
	now := b.now()
	oldest, oldestDebt, due := now, now, now
	if start, err := time.Parse(hourLayout, b.ledger.firstHour()); err == nil { // else there is none
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
