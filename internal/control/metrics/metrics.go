// Package metrics shows a daemon's Status to Prometheus, and its readiness to whatever asks over HTTP.
//
// Nothing is counted here: at each scrape the Status is read once and written down under the names of one table, from
// which docs/metrics.md is made as well. Names begin with sluice_ and end with their unit; counters end with _total.
// A counter only grows while the daemon lives. The metrics of a service or backend vanish with it.
//
// It is a package of its own so that what speaks the control API needs no Prometheus library.
package metrics

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sluice-lb/sluice/internal/control"
)

const (
	requestTimeout = 10 * time.Second
	answerTimeout  = 30 * time.Second
	maxScrapes     = 4 // at once
)

// NewServer returns an HTTP server for metrics.listen, which answers
//
//   - GET /metrics with what status returns, and what the Go runtime and the kernel tell about the process,
//   - GET /readyz with 200 if ready says so, else with 503 and why not.
//
// Both functions are called from many goroutines at once. The caller listens, serves and shuts down.
func NewServer(status func() control.Status, ready func() (ok bool, why string), log *slog.Logger) *http.Server {
	errors := slog.NewLogLogger(log.Handler(), slog.LevelWarn)
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{status}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		// One metric that is wrong must not hide all others.
		ErrorHandling: promhttp.ContinueOnError,
		ErrorLog:      errors, MaxRequestsInFlight: maxScrapes, Timeout: answerTimeout - time.Second,
	}))
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if ok, why := ready(); !ok {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintf(w, "not ready: %s\n", why)
			return
		}
		io.WriteString(w, "ready\n")
	})
	return &http.Server{
		Handler: mux, ReadTimeout: requestTimeout, WriteTimeout: answerTimeout, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: errors,
	}
}

// collector writes a Status down as metrics.
type collector struct{ status func() control.Status }

// Describe sends the whole table.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, m := range table {
		out <- m.desc
	}
}

// Collect reads the Status once.
func (c collector) Collect(out chan<- prometheus.Metric) {
	s := c.status()
	for _, m := range table {
		m.read(&s, func(v float64, labels ...string) {
			out <- prometheus.MustNewConstMetric(m.desc, m.kind, v, labels...)
		})
	}
}
