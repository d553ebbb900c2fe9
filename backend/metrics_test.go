// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/lab"
)

// scrape reads metrics as Prometheus does: each series by name and labels. Of a histogram it has the count.
func (w *world) scrape() map[string]float64 {
	w.t.Helper()
	data := w.read("metrics")
	if kind := data[logical.HTTPContentType]; !strings.HasPrefix(kind.(string), "text/plain; version=0.0.4") {
		w.t.Errorf("content type %q", kind)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(data[logical.HTTPRawBody].([]byte)))
	if err != nil {
		w.t.Fatal(err)
	}
	series := map[string]float64{}
	for name, family := range families {
		if family.GetHelp() == "" {
			w.t.Errorf("%s has no help", name)
		}
		for _, m := range family.Metric {
			series[strings.TrimPrefix(name, "oidcexchange_")+labels(m)] = value(m)
		}
	}
	return series
}

func labels(m *dto.Metric) string {
	var pairs []string
	for _, l := range m.Label {
		pairs = append(pairs, l.GetName()+"="+l.GetValue())
	}
	if len(pairs) == 0 {
		return ""
	}
	return "{" + strings.Join(pairs, ",") + "}"
}

func value(m *dto.Metric) float64 {
	switch {
	case m.Counter != nil:
		return m.Counter.GetValue()
	case m.Histogram != nil:
		return float64(m.Histogram.GetSampleCount())
	}
	return m.Gauge.GetValue()
}

func TestMetrics(t *testing.T) {
	w := newWorld(t)
	first := w.scrape()
	before := slices.DeleteFunc(slices.Sorted(maps.Keys(first)), func(name string) bool {
		return strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") // the process's own
	})
	if first["go_goroutines"] < 1 || first["go_memstats_heap_alloc_bytes"] < 1 {
		t.Errorf("goroutines: %v, bytes of heap: %v", first["go_goroutines"], first["go_memstats_heap_alloc_bytes"])
	}
	if want := []string{
		"info{version=" + Version + "}", "issuer_fetches_total{issuer=github,outcome=failed}", "issuer_fetches_total{issuer=github,outcome=ok}",
		"issuer_keys{issuer=github}", "ledger_counted", "ledger_open_oldest_seconds",
		"ledger_open{state=debt}", "ledger_open{state=in_flight}", "ledger_open{state=pending}",
		"refused_total{operation=issue,reason=internal}", "refused_total{operation=issue,reason=storage}",
		"refused_total{operation=renew,reason=internal}", "refused_total{operation=renew,reason=storage}",
		"revocations{state=done}", "revocations{state=running}", "revocations{state=stopped}", "revocations{state=waiting}", "sweep_lag_seconds",
		"target_breaker_open{target=acme}", "target_calls_running{target=acme}", "target_calls_waiting{target=acme}", "target_paused{target=acme}",
	}; !slices.Equal(want, before) {
		t.Errorf("of an engine that has done nothing (-want +got):\n%s", cmp.Diff(want, before))
	}
	lease := w.issue("deploy")
	w.revoke(w.issue("deploy"))
	if _, err := w.lease(logical.RenewOperation, lease); err != nil {
		t.Fatal(err)
	}
	used := w.token(nil)
	for range 2 {
		_, _ = w.exchange("deploy", used)
	}
	w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	_, _ = w.exchange("deploy", w.token(nil))
	w.clock.advance(time.Minute)
	w.write("trust/main", map[string]any{"enabled": false})
	_, _ = w.lease(logical.RenewOperation, lease)
	w.refused("roles/deploy", map[string]any{"ttl": "x"}, "ttl") // an operator's mistake is no refusal of a key

	got := w.scrape()
	for name, want := range map[string]float64{
		"keys_issued_total{target=acme}":                                              3,
		"refused_total{operation=issue,reason=replayed}":                              1,
		"refused_total{operation=issue,reason=outcome_unknown}":                       1,
		"refused_total{operation=renew,reason=disabled}":                              1,
		"target_call_seconds{operation=exchange,outcome=ok,target=acme}":              3,
		"target_call_seconds{operation=exchange,outcome=outcome_unknown,target=acme}": 1,
		"target_call_seconds{operation=revoke,outcome=ok,target=acme}":                1,
		"ledger_keys{target=acme}":                                                    3,
		"ledger_open{state=pending}":                                                  1,
		"ledger_open_oldest_seconds":                                                  60,
		"issuer_fetches_total{issuer=github,outcome=ok}":                              1,
		"issuer_keys{issuer=github}":                                                  1,
		"issuer_keys_fetched_timestamp_seconds{issuer=github}":                        float64(w.clock.now().Add(-time.Minute).Unix()),
	} {
		if got[name] != want {
			t.Errorf("%s is %v; want %v", name, got[name], want)
		}
	}
	for name := range got {
		if strings.Contains(name, "bad_request") {
			t.Errorf("%s counts what is no request for a key", name)
		}
	}
	w.clock.advance(10 * time.Minute)
	if got := w.scrape()["sweep_lag_seconds"]; got != 11*60-3*60 {
		t.Errorf("with an intent 11 minutes old the sweeper is %v seconds late; want what is beyond its grace", got)
	}
	w.settleAll()
	got = w.scrape()
	for name, want := range map[string]float64{
		"swept_total{as=settled}": 1, "ledger_open{state=pending}": 0, "ledger_open_oldest_seconds": 0, "sweep_lag_seconds": 0,
		"sweep_complete": 1, "sweep_last_run_timestamp_seconds": float64(w.clock.now().Unix()),
	} {
		if got[name] != want {
			t.Errorf("after a sweep %s is %v; want %v", name, got[name], want)
		}
	}
}

func TestMetricsOfTroubles(t *testing.T) {
	w := newWorld(t)
	w.issue("deploy")
	w.keys.Fault(lab.OpAny, lab.Fault{Kind: lab.KindStatus, Status: 502})
	for range 8 {
		_, _ = w.exchange("deploy", w.token(nil))
	}
	w.write("revocations", map[string]any{"role": "no-such", "dry_run": false})
	got := w.scrape()
	runs := got["revocations{state=running}"] + got["revocations{state=waiting}"] + got["revocations{state=done}"]
	if got["target_breaker_open{target=acme}"] != 1 || runs != 1 {
		t.Errorf("a breaker is %v, %v revocations; want 1 and 1", got["target_breaker_open{target=acme}"], runs)
	}
}

// A caller who leaves is refused nothing, and no fault of the engine's; storage that fails is one.
func TestMetricsOfCallersThatLeave(t *testing.T) {
	for err, want := range map[error]float64{
		status.Error(codes.Canceled, "context canceled"): 0, // as storage behind a plugin's connection says it
		context.Canceled:               0,
		context.DeadlineExceeded:       1,
		errors.New("the disk is full"): 1,
	} {
		w := newWorld(t)
		w.store.set(func(op, key string) error {
			if op == "put" && strings.HasPrefix(key, openEntries) {
				return err
			}
			return nil
		})
		_, _ = w.exchange("deploy", w.token(nil))
		if got := w.scrape()["refused_total{operation=issue,reason=storage}"]; got != want {
			t.Errorf("%v: %v refusals; want %v", err, got, want)
		}
		if told := strings.Contains(w.logs.String(), "[ERROR]"); told != (want == 1) {
			t.Errorf("%v: an error in the log: %t\n%s", err, told, w.logs)
		}
	}
}

// A target that asks to be left alone shows at once, and so do the calls that it keeps waiting.
func TestMetricsOfALimiter(t *testing.T) {
	w := newWorld(t)
	w.write("targets/acme", map[string]any{"concurrency": 1})
	reached, answer := make(chan struct{}), make(chan struct{})
	w.keys.OnRequest(func(op string, stage lab.Stage) {
		if op == lab.OpCreate && stage == lab.StageReceived {
			close(reached)
			<-answer
		}
	})
	var wait sync.WaitGroup
	wait.Go(func() { _, _ = w.exchange("deploy", w.token(nil)) })
	<-reached
	if got := w.scrape(); got["target_calls_running{target=acme}"] != 1 || got["target_paused{target=acme}"] != 0 {
		t.Errorf("while a call is under way %v are running; paused is %v", got["target_calls_running{target=acme}"], got["target_paused{target=acme}"])
	}
	close(answer)
	wait.Wait()
	w.keys.OnRequest(nil)
	w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindStatus, Status: 429, RetryAfter: time.Minute, Count: 1})
	_, _ = w.exchange("deploy", w.token(nil))
	if got := w.scrape(); got["target_calls_running{target=acme}"] != 0 || got["target_paused{target=acme}"] != 1 {
		t.Errorf("after a 429 %v are running; paused is %v", got["target_calls_running{target=acme}"], got["target_paused{target=acme}"])
	}
}

// Of all that is rotated there is when it was and will be, and whether an operator must act.
func TestMetricsOfRotations(t *testing.T) {
	w := newWorld(t).withStatic()
	g := w.withGitLab()
	w.write("targets/gitlab", map[string]any{"rotation_period": "240h"})
	w.write("rotate-root/gitlab", nil)
	first := w.clock.now()
	w.clock.advance(time.Hour)
	w.keys.Fault(lab.OpCreate, lab.Fault{Kind: lab.KindStatus, Status: 403, Count: 1})
	_, _ = w.do(logical.UpdateOperation, "rotate-role/ci", nil)
	g.Fault(lab.OpRotate, lab.Fault{Kind: lab.KindCut, After: true, Count: 1})
	_, _ = w.do(logical.UpdateOperation, "rotate-root/gitlab", nil)
	got := w.scrape()
	for name, want := range map[string]float64{
		"rotations_total{kind=static_role,outcome=ok,target=acme}":                   1,
		"rotations_total{kind=static_role,outcome=target_denied,target=acme}":        1,
		"rotations_total{kind=credential,outcome=ok,target=gitlab}":                  1,
		"rotations_total{kind=credential,outcome=outcome_unknown,target=gitlab}":     1,
		"rotation_last_timestamp_seconds{kind=static_role,name=ci,target=acme}":      float64(first.Unix()),
		"rotation_last_timestamp_seconds{kind=credential,name=gitlab,target=gitlab}": float64(first.Unix()),
		"rotation_due_timestamp_seconds{kind=static_role,name=ci,target=acme}":       float64(first.Add(24 * time.Hour).Unix()),
		"rotation_due_timestamp_seconds{kind=credential,name=gitlab,target=gitlab}":  float64(first.Add(240 * time.Hour).Unix()),
		"rotation_unknown{kind=credential,name=gitlab,target=gitlab}":                1,
	} {
		if got[name] != want {
			t.Errorf("%s is %v; want %v", name, got[name], want)
		}
	}
	w.write("static-roles/ci", map[string]any{"enabled": false})
	if _, due := w.scrape()["rotation_due_timestamp_seconds{kind=static_role,name=ci,target=acme}"]; due {
		t.Error("what is switched off is due")
	}
}

// A deleted target leaves no series behind, or a mount whose targets come and go would have ever more of them.
func TestMetricsOfDeletedTarget(t *testing.T) {
	w := newWorld(t)
	w.revoke(w.issue("deploy"))
	w.delete("roles/deploy", nil)
	w.delete("targets/acme", nil)
	for name := range w.scrape() {
		if strings.Contains(name, "acme") {
			t.Errorf("%s is still there", name)
		}
	}
}

// What callers send makes no series.
func TestMetricsAreBounded(t *testing.T) {
	w := newWorld(t)
	_, _ = w.exchange("deploy", w.token(nil)[:40])
	before := len(w.scrape())
	for _, role := range []string{"one", "two", "three"} {
		_, _ = w.exchange("unknown-"+role, "x")
	}
	if got := len(w.scrape()); got != before+1 { // unknown_role
		t.Errorf("%d series became %d", before, got)
	}
}

// What a query names: metrics, their labels in a selector, and those that it groups and joins by.
var (
	metricName = regexp.MustCompile(`(oidcexchange_[a-z_]+)(?:{([^}]*)})?`)
	selectedBy = regexp.MustCompile(`([a-z_]+)[!=]`)
	groupedBy  = regexp.MustCompile(`(?:by|on) \(([^)]*)\)`)
)

// metricLabels are the labels of each metric of an engine that has done something.
func (w *world) metricLabels() map[string][]string {
	known := map[string][]string{}
	for series := range w.scrape() {
		name, all, _ := strings.Cut(strings.TrimSuffix(series, "}"), "{")
		labels := []string{}
		for _, pair := range strings.Split(all, ",") {
			label, _, _ := strings.Cut(pair, "=")
			labels = append(labels, label)
		}
		known["oidcexchange_"+name] = labels
	}
	return known
}

// Alert rules and dashboard ask for what there is.
func TestDashboardsKnowTheMetrics(t *testing.T) {
	w := newWorld(t).withStatic()
	w.issue("deploy")
	_, _ = w.exchange("deploy", "x")
	w.clock.advance(10 * time.Minute)
	w.settleAll()
	known := w.metricLabels()
	for file, decode := range map[string]func([]byte, any) error{"alerts.yaml": yaml.Unmarshal, "grafana.json": json.Unmarshal} {
		text, err := os.ReadFile("../bootstrap/dashboards/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if err := decode(text, new(map[string]any)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if asked := metricName.FindAllString(string(text), -1); len(asked) < 5 {
			t.Errorf("%s asks for %d metrics", file, len(asked))
		}
		for query := range strings.Lines(string(text)) { // each stands in a line of its own
			testQuery(t, file, query, known)
		}
	}
}

// testQuery wants the metrics of one query to be known, and their labels, or Prometheus' own.
func testQuery(t *testing.T, file, query string, known map[string][]string) {
	t.Helper()
	all := []string{"job", "instance", "le"}
	for _, asked := range metricName.FindAllStringSubmatch(query, -1) {
		name := asked[1]
		for _, suffix := range []string{"_bucket", "_count", "_sum"} {
			name = strings.TrimSuffix(name, suffix)
		}
		labels, isKnown := known[name]
		if !isKnown {
			t.Errorf("%s asks for %s", file, name)
		}
		for _, label := range selectedBy.FindAllStringSubmatch(asked[2], -1) {
			if label[1] != "job" && !slices.Contains(labels, label[1]) {
				t.Errorf("%s asks for %s by %s", file, name, label[1])
			}
		}
		all = append(all, labels...)
	}
	for _, group := range groupedBy.FindAllStringSubmatch(query, -1) {
		for _, label := range strings.Split(group[1], ", ") {
			if !slices.Contains(all, label) {
				t.Errorf("%s groups by %s in %s", file, label, strings.TrimSpace(query))
			}
		}
	}
}
