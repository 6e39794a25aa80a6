//go:build linux

package main

import (
	"context"

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
	r := signalReader{node: d.node.NewSignalReader()}
	defer r.node.Close()
	return control.FollowSignals(ctx, &r, send)
}

// signalReader gives what the node counts its form on the wire.
type signalReader struct {
	node *forwarder.SignalReader
	out  []control.BackendSignals
}

// News is that of control.SignalReader.
func (r *signalReader) News() <-chan struct{} { return r.node.News() }

// Read is that of control.SignalReader. What it returns is good until the next call.
func (r *signalReader) Read() ([]control.BackendSignals, []string) {
	signals, suspended := r.node.Read()
	r.out = r.out[:0]
	for i := range signals {
		r.out = append(r.out, control.BackendSignals(signals[i]))
	}
	return r.out, suspended
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
