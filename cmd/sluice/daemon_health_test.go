//go:build linux

package main

import (
	"log/slog"
	"testing"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/internal/control"
)

// What the node notices is among the events.
func TestNoticesAreEvents(t *testing.T) {
	d := &daemon{book: control.NewBook("", slog.New(slog.DiscardHandler))}
	d.notice(forwarder.Notice{Service: "web", Began: true, Text: "flood"})
	d.notice(forwarder.Notice{Text: "over"})
	e := d.Events(t.Context(), "", 0, control.EventFilter{}).Events
	if len(e) != 2 || e[0].Kind != control.KindFlood || e[0].Service != "web" || e[0].From != "calm" || e[0].To != "flooded" || e[0].Evidence != "flood" ||
		e[1].Service != "" || e[1].From != "overloaded" || e[1].To != "calm" {
		t.Errorf("events %+v", e)
	}
}
