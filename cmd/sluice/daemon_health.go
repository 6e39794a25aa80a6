//go:build linux

package main

import (
	"context"
	"net/http"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/internal/control"
)

// What the control API tells and takes of health.

// Targets is Book.Targets.
func (d *daemon) Targets(ctx context.Context, boot string, generation uint64) control.Targets {
	return d.book.Targets(ctx, boot, generation)
}

// Report is Book.Report.
func (d *daemon) Report(r control.HealthReport) (control.HealthAnswer, error) {
	return d.book.Report(r)
}

// Release is Book.Release.
func (d *daemon) Release(source string) { d.book.Release(source) }

// Events is Book.Events.
func (d *daemon) Events(ctx context.Context, boot string, after uint64, f control.EventFilter) control.Events {
	return d.book.Events(ctx, boot, after, f)
}

// Health is Book.Detail, with the flows of backends.
func (d *daemon) Health(f control.EventFilter) (control.HealthDetail, error) {
	detail, err := d.book.Detail(f)
	if err != nil {
		return detail, err
	}
	flows := map[control.BackendKey]uint64{}
	for _, s := range d.node.Stats().Services {
		for _, b := range s.Backends {
			if !b.Leaving {
				flows[control.BackendKey{Service: s.Name, Backend: b.Name}] = b.Flows
			}
		}
	}
	for i := range detail.Backends {
		b := &detail.Backends[i]
		b.Flows = flows[control.BackendKey{Service: b.Service, Backend: b.Backend}]
	}
	return detail, nil
}

// Signals sends what the node's packets tell of backends; see control.Daemon.
func (d *daemon) Signals(ctx context.Context, send func(control.SignalsLine) error) error {
	if d.signals == nil {
		return &control.APIError{Code: http.StatusNotImplemented, Message: "this daemon counts no signals of backends"}
	}
	return control.FollowSignals(ctx, d.signals(), send)
}

// notice keeps what the node has told of floods and overload.
func (d *daemon) notice(n forwarder.Notice) {
	e := control.Event{Kind: control.KindFlood, Service: n.Service, From: "calm", To: "flooded", Cause: control.CauseTraffic, Evidence: n.Text}
	if n.Service == "" {
		e.To = "overloaded"
	}
	if !n.Began {
		e.From, e.To = e.To, e.From
	}
	d.book.Happened(e)
}
