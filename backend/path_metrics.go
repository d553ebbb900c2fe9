// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"bytes"
	"context"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

func (b *engine) metricsPath() *framework.Path {
	return &framework.Path{
		Pattern: "metrics$",
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{
				Callback: b.handle(b.metrics), Summary: "Read counters and gauges in Prometheus' text format.", ForwardPerformanceStandby: true,
				DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: "read", OperationSuffix: "metrics"},
			},
		},
		HelpSynopsis: "Counters and gauges in Prometheus' text format.",
		HelpDescription: "The contents of status as numbers, and what this node has done since its plugin process began: keys issued, refusals by reason, calls of each target by outcome and duration. Metrics with the prefix go_ or process_ are about the process, which all mounts of one plugin version share. " +
			"Prometheus scrapes /v1/<mount>/metrics with a Vault token (authorization: Bearer). Labels are names that operators have written, and codes of the plugin.",
	}
}

func (b *engine) metrics(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	known, err := b.gauges(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	current := prometheus.NewRegistry()
	if err := current.Register(known); err != nil {
		return nil, err
	}
	families, err := prometheus.Gatherers{b.meters.registry, current}.Gather()
	if err != nil {
		return nil, err
	}
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	var text bytes.Buffer
	out := expfmt.NewEncoder(&text, format)
	for _, family := range families {
		if err := out.Encode(family); err != nil {
			return nil, err
		}
	}
	return &logical.Response{Data: map[string]any{
		logical.HTTPStatusCode: http.StatusOK, logical.HTTPContentType: string(format), logical.HTTPRawBody: text.Bytes(),
	}}, nil
}

// readings are metrics read at one moment, as a prometheus.Collector.
type readings []prometheus.Metric

// Describe implements prometheus.Collector. It describes nothing, which makes the collector an unchecked one.
func (readings) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (r readings) Collect(out chan<- prometheus.Metric) {
	for _, metric := range r {
		out <- metric
	}
}

// Gauges, and counters that are kept elsewhere; meters has the other counters.
var (
	versionGauge  = desc("info", "The plugin's version; always 1.", "version")
	keysGauge     = desc("ledger_keys", "Keys in the ledger, by target.", "target")
	countedGauge  = desc("ledger_counted", "Whether the ledger was counted since the start; until then, roles with ceilings refuse.")
	openGauge     = desc("ledger_open", "Unsettled entries of the ledger: pending, in_flight, debt.", "state")
	oldestGauge   = desc("ledger_open_oldest_seconds", "Age of the oldest unsettled entry; 0 if there is none.")
	sweptGauge    = desc("sweep_last_run_timestamp_seconds", "When the sweeper last ran on this node.")
	lagGauge      = desc("sweep_lag_seconds", "How long the most overdue work of the sweeper has been due; 0 if none is.")
	completeGauge = desc("sweep_complete", "Whether the last sweep completed without an error.")
	breakerGauge  = desc("target_breaker_open", "Whether a target has failed so often that it is called only now and then.", "target")
	pausedGauge   = desc("target_paused", "Whether a target has asked to be left alone for a while.", "target")
	runningGauge  = desc("target_calls_running", "Calls to a target that are under way, at most its concurrency.", "target")
	waitingGauge  = desc("target_calls_waiting", "Calls to a target that wait because of its rate or concurrency.", "target")
	runsGauge     = desc("revocations", "Revocations by filter in storage: running, waiting (some keys could not be revoked yet), done, stopped.", "state")
	issuerKeys    = desc("issuer_keys", "Usable keys of an issuer.", "issuer")
	issuerFetched = desc("issuer_keys_fetched_timestamp_seconds", "When the keys in use were fetched.", "issuer")
	rotatedGauge  = desc("rotation_last_timestamp_seconds", "When a static role's key, or a target's credential (named by its target), was last rotated.", "kind", "name", "target")
	dueGauge      = desc("rotation_due_timestamp_seconds", "When its next rotation is due; absent if it is not rotated automatically, or is disabled.", "kind", "name", "target")
	unknownGauge  = desc("rotation_unknown", "Whether the outcome of its last rotation is unknown: it is not rotated again until an operator acts.", "kind", "name", "target")
	issuerFetches = desc("issuer_fetches_total", "Fetches of an issuer's keys, since the issuer was last written.", "issuer", "outcome")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("oidcexchange_"+name, help, labels, nil)
}

func (r *readings) add(d *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
	*r = append(*r, prometheus.MustNewConstMetric(d, kind, value, labels...))
}

func (r *readings) gauge(d *prometheus.Desc, value float64, labels ...string) {
	r.add(d, prometheus.GaugeValue, value, labels...)
}

func boolean(holds bool) float64 {
	if holds {
		return 1
	}
	return 0
}

// gauges reads the present values. Like status, it calls no issuer and no target.
func (b *engine) gauges(ctx context.Context, s logical.Storage) (readings, error) {
	var r readings
	r.gauge(versionGauge, 1, Version)
	open, err := b.backlog(ctx, s)
	if err != nil {
		return nil, err
	}
	if open.fault == nil { // otherwise the numbers are unknown, and status says why
		r.gauge(openGauge, float64(open.pending), "pending")
		r.gauge(openGauge, float64(open.inFlight), "in_flight")
		r.gauge(openGauge, float64(open.debt), "debt")
		r.gauge(oldestGauge, open.oldest.Seconds())
		r.gauge(lagGauge, open.lag.Seconds())
	}
	for name, n := range b.ledger.perTarget() {
		r.gauge(keysGauge, float64(n), name)
	}
	counted, _ := b.ledger.counting()
	r.gauge(countedGauge, boolean(counted))
	if last := b.lastSweep.Load(); last != nil {
		r.gauge(sweptGauge, float64(last.at.Unix()))
		r.gauge(completeGauge, boolean(last.complete))
	}
	for _, read := range []func(context.Context, logical.Storage, *readings) error{b.targetReadings, b.rotationReadings, b.runReadings, b.issuerReadings} {
		if err := read(ctx, s, &r); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (b *engine) targetReadings(ctx context.Context, s logical.Storage, r *readings) error {
	names, err := b.targetNoun.table.list(ctx, s)
	if err != nil {
		return err
	}
	for _, name := range names {
		if t, err := b.target(ctx, s, name); err == nil && t != nil { // status reports the error
			met := t.State()
			r.gauge(breakerGauge, boolean(met.Open), name)
			r.gauge(pausedGauge, boolean(met.Paused), name)
			r.gauge(runningGauge, float64(met.Running), name)
			r.gauge(waitingGauge, float64(met.Waiting), name)
		}
	}
	return nil
}

// rotationReadings reads the state of every secret that the engine rotates. It skips one that cannot be read; status reports
// the error.
func (b *engine) rotationReadings(ctx context.Context, s logical.Storage, r *readings) error {
	roots, err := b.targetNoun.table.list(ctx, s)
	if err != nil {
		return err
	}
	for _, name := range roots {
		if one, err := b.openRoot(ctx, s, name); err == nil && one != nil && one.state != nil {
			r.rotation(one, name, one.state.Turn, one.due(), one.target.record.Enabled && one.target.record.DeletedUntil == nil)
		}
	}
	roles, err := b.staticNoun.table.list(ctx, s)
	if err != nil {
		return err
	}
	for _, name := range roles {
		if one, err := b.openStatic(ctx, s, name); err == nil && one != nil && one.state != nil {
			r.rotation(one, name, one.state.Turn, one.due(), one.record.Enabled && (one.target == nil || one.target.record.Enabled))
		}
	}
	return nil
}

func (r *readings) rotation(of rotating, name string, t turn, due time.Time, on bool) {
	kind, target := of.labels()
	if !t.LastRotation.IsZero() {
		r.gauge(rotatedGauge, float64(t.LastRotation.Unix()), kind, name, target)
	}
	if on && !due.IsZero() {
		r.gauge(dueGauge, float64(due.Unix()), kind, name, target)
	}
	r.gauge(unknownGauge, boolean(t.State == turnUnknown), kind, name, target)
}

func (b *engine) runReadings(ctx context.Context, s logical.Storage, r *readings) error {
	ids, err := revocationTable.list(ctx, s)
	if err != nil {
		return err
	}
	states := map[string]int{runRunning: 0, runWaiting: 0, runDone: 0, runStopped: 0}
	for _, id := range ids {
		if rec, err := b.revocation(ctx, s, id); err == nil && rec != nil {
			states[rec.State]++
		}
	}
	for state, n := range states {
		r.gauge(runsGauge, float64(n), state)
	}
	return nil
}

func (b *engine) issuerReadings(ctx context.Context, s logical.Storage, r *readings) error {
	names, err := b.issuerNoun.table.list(ctx, s)
	if err != nil {
		return err
	}
	for _, name := range names {
		iss, err := b.issuer(ctx, s, name)
		if err != nil || iss == nil || iss.verifier == nil {
			continue // status reports the error
		}
		known := iss.verifier.Status()
		r.gauge(issuerKeys, float64(known.Keys), name)
		if !known.Fetched.IsZero() {
			r.gauge(issuerFetched, float64(known.Fetched.Unix()), name)
		}
		r.add(issuerFetches, prometheus.CounterValue, float64(known.Fetches-known.Failures), name, "ok")
		r.add(issuerFetches, prometheus.CounterValue, float64(known.Failures), name, "failed")
	}
	return nil
}
