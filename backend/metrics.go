// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// meters count what this process has done for one mount. Labels are names that operators have written, or codes of the
// plugin: nothing that a caller or an API could choose to create an unbounded number of series.
type meters struct {
	registry *prometheus.Registry
	issued   *prometheus.CounterVec   // by target
	refused  *prometheus.CounterVec   // by operation and reason
	calls    *prometheus.HistogramVec // by target, operation and outcome
	swept    *prometheus.CounterVec   // by what became of a key
	rotated  *prometheus.CounterVec   // by kind, target and outcome
}

// callBuckets are in seconds: an API on the same network takes milliseconds, and no call may take longer than the last bucket.
var callBuckets = []float64{.005, .025, .1, .25, .5, 1, 2.5, 5, 10, 20}

func newMeters() *meters {
	m := &meters{
		registry: prometheus.NewRegistry(),
		issued: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "oidcexchange_keys_issued_total", Help: "Keys that were issued and leased.",
		}, []string{"target"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "oidcexchange_refused_total", Help: "Requests for a key, and renewals, that yielded none, by reason code.",
		}, []string{"operation", "reason"}),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "oidcexchange_target_call_seconds", Buckets: callBuckets,
			Help: "Calls of targets, the wait for their turn included; outcome is ok or a reason code.",
		}, []string{"target", "operation", "outcome"}),
		swept: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "oidcexchange_swept_total", Help: "Entries of the ledger that the sweeper ended: settled, revoked, expired.",
		}, []string{"as"}),
		rotated: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "oidcexchange_rotations_total", Help: "Rotations that were tried, of static roles' keys (static_role) and of credentials (credential); outcome is ok or a reason code.",
		}, []string{"kind", "target", "outcome"}),
	}
	m.registry.MustRegister(m.issued, m.refused, m.calls, m.swept, m.rotated,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})) // of the process, which serves many mounts
	for _, reason := range []string{reasonInternal, reasonStorage} { // start at 0, so that alerts see even the first fault as an increase
		m.refused.WithLabelValues("issue", reason)
		m.refused.WithLabelValues("renew", reason)
	}
	return m
}

// forget drops the series of a target that was deleted.
func (m *meters) forget(target string) {
	m.issued.DeleteLabelValues(target)
	m.calls.DeletePartialMatch(prometheus.Labels{"target": target})
	m.rotated.DeletePartialMatch(prometheus.Labels{"target": target})
}

// refusal counts a refusal to issue or renew a key. Refusals on other paths, which operators use, are not counted.
func (m *meters) refusal(req *logical.Request, reason string) {
	switch {
	case req.Secret != nil:
		m.refused.WithLabelValues("renew", reason).Inc()
	case strings.HasPrefix(req.Path, "creds/"):
		m.refused.WithLabelValues("issue", reason).Inc()
	}
}

func (m *meters) sweep(done swept) {
	m.swept.WithLabelValues("settled").Add(float64(done.Settled))
	m.swept.WithLabelValues("revoked").Add(float64(done.Revoked))
	m.swept.WithLabelValues("expired").Add(float64(done.Expired))
}

// outcomeOf returns the label for an outcome: ok or a reason code.
func outcomeOf(err error) string {
	if err == nil {
		return "ok"
	}
	return asRefusal(err).reason
}

// called records how long one call of the target took, and its outcome. It is deferred, so err is a pointer.
func (t *openTarget) called(operation string, began time.Time, err *error) {
	t.meters.calls.WithLabelValues(t.name, operation, outcomeOf(*err)).Observe(time.Since(began).Seconds())
}

// Exchange calls target.Target and records the call in metrics. So do the methods below.
func (t *openTarget) Exchange(ctx context.Context, r target.Request) (key target.Key, err error) {
	defer t.called("exchange", time.Now(), &err)
	return t.Target.Exchange(ctx, r)
}

// Renew is recorded in metrics.
func (t *openTarget) Renew(ctx context.Context, h target.Handle, notAfter time.Time) (end time.Time, err error) {
	defer t.called("renew", time.Now(), &err)
	return t.Target.Renew(ctx, h, notAfter)
}

// Revoke is recorded in metrics.
func (t *openTarget) Revoke(ctx context.Context, h target.Handle) (err error) {
	defer t.called("revoke", time.Now(), &err)
	return t.Target.Revoke(ctx, h)
}

// Find is recorded in metrics.
func (t *openTarget) Find(ctx context.Context, h target.Handle) (found []target.Handle, err error) {
	defer t.called("find", time.Now(), &err)
	return t.Target.Find(ctx, h)
}

// List is recorded in metrics.
func (t *openTarget) List(ctx context.Context, prefix string, place map[string]any) (keys []target.Handle, whole bool, err error) {
	defer t.called("list", time.Now(), &err)
	return t.Target.List(ctx, prefix, place)
}

// Check is recorded in metrics.
func (t *openTarget) Check(ctx context.Context) (err error) {
	defer t.called("check", time.Now(), &err)
	return t.Target.Check(ctx)
}
