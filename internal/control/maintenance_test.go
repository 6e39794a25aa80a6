package control

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func maintain(t *testing.T, b *Book, backend string, on bool) {
	t.Helper()
	if err := b.Maintenance("web", backend, on); err != nil {
		t.Fatal(err)
	}
}

// Maintenance and drain are two marks. Either keeps new flows away.
func TestMaintenanceAndDrain(t *testing.T) {
	log, _ := newLog()
	b := NewBook(t.TempDir(), log)
	commit(b, service("web", false, "a", "b"))
	for i, row := range []struct {
		do     func()
		shares string
		phase  Phase
		hand   [2]bool // drained, in maintenance
	}{
		{func() { maintain(t, b, "b", true) }, "a100 b~", PhaseMaintenance, [2]bool{false, true}},
		{func() { maintain(t, b, "b", true) }, "a100 b~", PhaseMaintenance, [2]bool{false, true}},
		{func() { drain(t, b, "b", 0) }, "a100 b~", PhaseMaintenance, [2]bool{true, true}},
		{func() { maintain(t, b, "b", false) }, "a100 b~", PhaseDraining, [2]bool{true, false}},
		{func() { maintain(t, b, "b", true) }, "a100 b~", PhaseMaintenance, [2]bool{true, true}},
		{func() { undrain(t, b, "b") }, "a100 b~", PhaseMaintenance, [2]bool{false, true}},
		{func() { maintain(t, b, "b", false) }, "a100 b100", PhaseUp, [2]bool{}},
		{func() { maintain(t, b, "b", false) }, "a100 b100", PhaseUp, [2]bool{}},
	} {
		row.do()
		d, _ := b.Detail(EventFilter{"web", "b"})
		h := d.Backends[0].Hand
		if got := [2]bool{h.Drained(), h.InMaintenance()}; b.shares() != row.shares || d.Backends[0].Phase != row.phase || got != row.hand {
			t.Errorf("%d: %s, %s, %v", i, b.shares(), d.Backends[0].Phase, got)
		}
	}
	want := []string{
		"hand web/b up>maintenance operator: in maintenance by hand", "hand web/b maintenance>maintenance operator: drained by hand",
		"hand web/b maintenance>draining operator: out of maintenance by hand", "hand web/b draining>maintenance operator: in maintenance by hand",
		"hand web/b maintenance>maintenance operator: undrained by hand", "hand web/b maintenance>up operator: out of maintenance by hand",
	}
	if got := happened(b, EventFilter{Backend: "b"}); !slices.Equal(got, want) {
		t.Errorf("events %q", got)
	}
	if err := b.Maintenance("web", "z", true); err == nil || !strings.Contains(err.Error(), "it has a, b") {
		t.Errorf("got %v", err)
	}
}

// A backend in maintenance is probed and shown, and nothing about it alarms anybody.
func TestMaintenanceIsQuiet(t *testing.T) {
	log, lines := newLog()
	b := NewBook("", log)
	web := service("web", true, "a", "b", "c")
	web.Quorum, web.PanicThreshold = 2, 60
	commit(b, web)
	report(t, b, 1, says("a", StateUp), says("b", StateUp), says("c", StateUp))
	before := b.Targets(t.Context(), "", 0)
	maintain(t, b, "c", true)
	if after := b.Targets(t.Context(), "", 0); after.Generation == before.Generation || !after.Services[0].Backends[2].Out || before.Services[0].Backends[2].Out {
		t.Errorf("who probes is told %+v", after.Services[0].Backends)
	}
	for i, s := range []State{StateGoingDown, StateDown, StateGoingUp, StateUp, StateDown} {
		report(t, b, uint64(i+2), says("c", s))
	}
	if strings.Contains(lines.String(), "level=WARN") {
		t.Errorf("log:\n%s", lines)
	}
	d, _ := b.Detail(EventFilter{})
	s, c := d.Services[0], d.Backends[2]
	if !s.Quorum.Met || s.Quorum.Have != 2 || s.Wanted != 2 || s.FailOpen || s.Phases[PhaseMaintenance] != 1 || c.Phase != PhaseMaintenance || c.Health.State != StateDown || c.Why != "set by hand; it is down" {
		t.Errorf("service %+v, backend %+v", s, c)
	}
	if n := len(happened(b, EventFilter{Backend: "c"})); n != 7 {
		t.Errorf("%d events", n)
	}
	maintain(t, b, "c", false)
	if d, _ := b.Detail(EventFilter{}); d.Backends[2].Phase != PhaseDown || d.Services[0].Wanted != 3 {
		t.Errorf("afterwards: %+v", d.Backends[2])
	}
}

// Maintenance outlives the daemon, beside drains whose time goes on.
func TestMaintenanceOutlivesRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		log, lines := newLog()
		web := service("web", false, "a", "b", "c")
		b := NewBook(dir, log)
		commit(b, web)
		maintain(t, b, "a", true)
		maintain(t, b, "b", true)
		drain(t, b, "b", time.Minute)
		drain(t, b, "c", 0)
		since := handOf(b, "a").Maintenance
		time.Sleep(2 * time.Minute)

		next := NewBook(dir, log)
		commit(next, web)
		if h := handOf(next, "a"); !h.Maintenance.Equal(since) || h.Drained() || next.shares() != "a~ b! c~" {
			t.Errorf("after a restart: %+v, %s", h, next.shares())
		}
		maintain(t, next, "b", false)
		undrain(t, next, "b")
		maintain(t, next, "a", false)
		last := NewBook(dir, log)
		commit(last, web)
		if last.shares() != "a100 b100 c~" {
			t.Errorf("after another: %s", last.shares())
		}
		maintain(t, last, "a", true)
		commit(last, service("web", false, "b"))
		if !strings.Contains(lines.String(), "maintenance by hand forgotten") {
			t.Errorf("log:\n%s", lines)
		}
	})
}

// The end of a drain's time in maintenance is no alarm.
func TestDrainEndsInMaintenance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, lines := newLog()
		b := NewBook("", log)
		commit(b, service("web", false, "a", "b"))
		go b.Run(t.Context())
		maintain(t, b, "b", true)
		drain(t, b, "b", time.Minute)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if b.shares() != "a100 b!" || strings.Contains(lines.String(), "level=WARN") {
			t.Errorf("%s, log:\n%s", b.shares(), lines)
		}
	})
}
