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

// meters count what this node has done for one mount since its start. Their labels are names that operators write, and
// codes of our own: nothing that a caller or an API can choose, so that nobody can make series without end.
type meters struct {
	registry *prometheus.Registry
	issued   *prometheus.CounterVec   // by target
	refused  *prometheus.CounterVec   // by operation and reason
	calls    *prometheus.HistogramVec // by target, operation and outcome
	swept    *prometheus.CounterVec   // by what became of a key
	rotated  *prometheus.CounterVec   // by kind, target and outcome
}

// callBuckets are seconds: an API on the same network takes milliseconds, and no call may take longer than the last.
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
	for _, reason := range []string{reasonInternal, reasonStorage} { // from 0 on, so that the first fault too is a rise
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

// refusal counts a refusal of what issues or renews a key; other paths are operators' own.
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

// outcomeOf is the label of how something went.
func outcomeOf(err error) string {
	if err == nil {
		return "ok"
	}
	return asRefusal(err).reason
}

// called measures one call of the target; err is read when it has ended.
func (t *openTarget) called(operation string, began time.Time, err *error) {
	t.meters.calls.WithLabelValues(t.name, operation, outcomeOf(*err)).Observe(time.Since(began).Seconds())
}

// Exchange is target.Target's, measured; so are the others.
func (t *openTarget) Exchange(ctx context.Context, r target.Request) (key target.Key, err error) {
	defer t.called("exchange", time.Now(), &err)
	return t.Target.Exchange(ctx, r)
}

// Renew is measured.
func (t *openTarget) Renew(ctx context.Context, h target.Handle, notAfter time.Time) (end time.Time, err error) {
	defer t.called("renew", time.Now(), &err)
	return t.Target.Renew(ctx, h, notAfter)
}

// Revoke is measured.
func (t *openTarget) Revoke(ctx context.Context, h target.Handle) (err error) {
	defer t.called("revoke", time.Now(), &err)
	return t.Target.Revoke(ctx, h)
}

// Find is measured.
func (t *openTarget) Find(ctx context.Context, h target.Handle) (found []target.Handle, err error) {
	defer t.called("find", time.Now(), &err)
	return t.Target.Find(ctx, h)
}

// List is measured.
func (t *openTarget) List(ctx context.Context, prefix string, place map[string]any) (keys []target.Handle, whole bool, err error) {
	defer t.called("list", time.Now(), &err)
	return t.Target.List(ctx, prefix, place)
}

// Check is measured.
func (t *openTarget) Check(ctx context.Context) (err error) {
	defer t.called("check", time.Now(), &err)
	return t.Target.Check(ctx)
}
