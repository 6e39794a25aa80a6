package control

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

// said returns a report of a source.
func said(b *Book, source string, base, version uint64, list ...BackendHealth) HealthReport {
	return HealthReport{Boot: b.boot, Source: source, Base: base, Version: version, Backends: list}
}

// has is what a report says about a backend of the service web, as change makes it of one that is up.
func has(backend string, change func(*Health)) BackendHealth {
	h := says(backend, StateUp)
	change(&h.Health)
	return h
}

func TestReportsFollowEachOther(t *testing.T) {
	log, _ := newLog()
	b := NewBook("", log)
	commit(b, service("web", true, "a", "b"))
	for i, row := range []struct {
		base, version uint64
		list          []BackendHealth
		err           error
		takes         string
	}{
		{1, 2, nil, ErrResync, ""}, // the first has to be everything
		{0, 5, []BackendHealth{says("a", StateUp), says("b", StateUp)}, nil, "ab"},
		{5, 6, []BackendHealth{says("a", StateDown)}, nil, "b"},
		{5, 6, []BackendHealth{says("a", StateDown)}, nil, "b"}, // sent again
		{5, 6, []BackendHealth{says("a", StateUp)}, nil, "b"},   // whatever it says
		{4, 5, []BackendHealth{says("a", StateUp)}, nil, "b"},   // overtaken
		{6, 7, nil, nil, "b"}, // a sign of life
		{6, 8, []BackendHealth{says("a", StateUp)}, ErrResync, "b"},
		{8, 9, []BackendHealth{says("a", StateUp)}, ErrResync, "b"},
		{0, 9, []BackendHealth{says("a", StateUp)}, nil, "ab"}, // b keeps what was known
		{0, 3, []BackendHealth{says("a", StateDown)}, nil, "ab"},
		{9, 20, []BackendHealth{says("b", StateGoingDown)}, nil, "ab"},
		{20, 21, []BackendHealth{says("b", StateDown)}, nil, "a"},
		{21, 22, []BackendHealth{says("b", StateGoingUp)}, nil, "a"},
	} {
		_, err := b.Report(said(b, "lb1/1", row.base, row.version, row.list...))
		if !errors.Is(err, row.err) || b.takes() != row.takes {
			t.Errorf("%d: got %v, takes %s; want %v, %s", i, err, b.takes(), row.err, row.takes)
		}
	}
	for name, r := range map[string]HealthReport{
		"no more than its base": said(b, "lb1/1", 22, 22),
		"an odd share":          said(b, "lb1/1", 22, 23, has("a", func(h *Health) { h.Asks = new(int); *h.Asks = 101 })),
		"an endless ejection":   said(b, "lb1/1", 22, 23, has("a", func(h *Health) { h.EjectedMS = 1 << 40 })),
		"less than none":        said(b, "lb1/1", 22, 23, has("a", func(h *Health) { h.EjectedMS = -1 })),
	} {
		if _, err := b.Report(r); err == nil || errors.Is(err, ErrResync) || b.takes() != "a" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// One source reports, until it has gone or is silent.
func TestOneWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, lines := newLog()
		b := NewBook("", log)
		commit(b, service("web", true, "a", "b"))
		takes := func(source string, base, version uint64, list ...BackendHealth) {
			t.Helper()
			if _, err := b.Report(said(b, source, base, version, list...)); err != nil {
				t.Errorf("%s: %v", source, err)
			}
		}
		refused := func(source, want string) {
			t.Helper()
			var api *APIError
			if _, err := b.Report(said(b, source, 0, 1, says("a", StateDown))); !errors.As(err, &api) || api.Code != http.StatusLocked || api.Message != want {
				t.Errorf("%s: %v", source, err)
			}
		}
		takes("lb1/4f2a", 0, 1, says("a", StateUp), says("b", StateUp))
		time.Sleep(400 * time.Millisecond)
		refused("lb1/ffff", "lb1/4f2a reports already, last 0.4s ago; only one sluice-healthd may report")
		refused("lb1/ffff", "lb1/4f2a reports already, last 0.4s ago; only one sluice-healthd may report")
		takes("lb1/4f2a", 1, 2) // it goes on where it was
		if b.takes() != "ab" {
			t.Errorf("a refused report was taken: %s", b.takes())
		}

		b.Release("lb1/ffff") // that is nobody
		refused("lb1/eeee", "lb1/4f2a reports already, last 0.0s ago; only one sluice-healthd may report")
		b.Release("lb1/4f2a")
		b.Release("lb1/4f2a")
		if b.takes() != "ab" {
			t.Errorf("with the health daemon gone: %s", b.takes())
		}
		if _, err := b.Report(said(b, "lb1/ffff", 1, 2)); !errors.Is(err, ErrResync) {
			t.Errorf("a new source begins with changes: %v", err)
		}
		takes("lb1/ffff", 0, 1, says("a", StateDown))
		refused("lb1/4f2a", "lb1/ffff reports already, last 0.0s ago; only one sluice-healthd may report")

		time.Sleep(staleAfter + time.Second)
		takes("lb1/4f2a", 0, 1, says("b", StateUp)) // without anybody's goodbye
		b.Release("lb1/4f2a")
		takes("lb1/4f2a", 1, 2) // and back again
		refused("lb1/ffff", "lb1/4f2a reports already, last 0.0s ago; only one sluice-healthd may report")

		for text, want := range map[string]int{
			`msg="health daemon reports"`: 3, "health daemon reports again": 1, "a second health daemon is refused": 4, "the health daemon has gone": 2,
		} {
			if n := strings.Count(lines.String(), text); n != want {
				t.Errorf("%d lines with %q, want %d:\n%s", n, text, want, lines)
			}
		}
	})
}

// An ejection ends at its time by the monotonic clock, also without a health daemon.
func TestEjectionEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, _ := newLog()
		b := NewBook("", log)
		checked, plain := service("web", true, "a", "b"), service("plain", false, "x", "y")
		commit(b, checked, plain)
		ctx := t.Context()
		go b.Run(ctx)
		ejected := func(h *Health) { h.EjectedMS, h.Ejected = 10_000, "7 of 9 connections fail" }
		x := has("x", ejected)
		x.Service, x.State = "plain", StateDown // which nobody looks at
		report(t, b, 1, says("a", StateUp), has("b", ejected), x)
		b.Changed()
		noticed(b.Admitted())
		s := Status{Traffic: Traffic{Services: []Service{{Backends: []Backend{{}, {}}}}}}
		s.Traffic.Services[0].Name = "web"
		s.Traffic.Services[0].Backends[0].Name, s.Traffic.Services[0].Backends[1].Name = "a", "b"
		time.Sleep(4 * time.Second)
		b.Fill(&s)
		if got := &s.Traffic.Services[0].Backends[1]; got.Phase != PhaseEjected || got.Health.EjectedMS != 6000 || got.Health.Ejected != "7 of 9 connections fail" || b.shares() != "a100 b~" {
			t.Errorf("status %+v, %s", got, b.shares())
		}
		time.Sleep(5 * time.Second)
		if b.shares() != "a100 b~" || noticed(b.Admitted()) {
			t.Error("it ends too early")
		}
		time.Sleep(time.Second + 2*bookTurn)
		synctest.Wait()
		if got := told(b); b.shares() != "a100 b100" || !slices.Equal(got, []string{"b 100", "x 100"}) {
			t.Errorf("it does not end: %s, %v", b.shares(), got)
		}
		b.Fill(&s)
		if got := &s.Traffic.Services[0].Backends[1]; got.Phase != PhaseUp || got.Health.EjectedMS != 0 || got.Health.Ejected != "" {
			t.Errorf("status %+v", got)
		}
		var last []string
		for _, e := range b.Events(ctx, "", 0, EventFilter{Backend: "b"}).Events {
			last = append(last, string(e.Kind)+" "+e.From+" "+e.To+" "+string(e.Cause)+": "+e.Evidence)
		}
		if want := []string{"health unknown ejected passive: 7 of 9 connections fail", "health ejected up time: the time of its ejection is over"}; !slices.Equal(last, want) {
			t.Errorf("events %q", last)
		}
		// One that a report takes back ends at once.
		report(t, b, 2, says("a", StateUp), has("b", ejected))
		report(t, b, 3, says("b", StateUp))
		if b.shares() != "a100 b100" {
			t.Errorf("taken back: %s", b.shares())
		}
	})
}

// Each change touches what has changed, and nothing else is told.
func TestChangedTellsWhatHasChanged(t *testing.T) {
	log, _ := newLog()
	b := NewBook("", log)
	other := service("other", true, "x", "y")
	commit(b, service("web", true, "a", "b", "c"), other)
	if got := told(b); len(got) != 5 {
		t.Errorf("after the start: %v", got)
	}
	report(t, b, 1, says("a", StateUp), says("b", StateUp), says("c", StateUp))
	if got := told(b); !slices.Equal(got, []string{"a 100", "b 100", "c 100"}) {
		t.Errorf("all up: %v", got)
	}
	half := 50
	for i, row := range []struct {
		say  BackendHealth
		want []string
	}{
		{says("a", StateGoingDown), nil},
		{says("a", StateDown), []string{"a down"}},
		{says("a", StateGoingUp), nil},
		{says("a", StateUp), []string{"a 100"}},
		{has("b", func(h *Health) { h.Unready = "HTTP 503" }), []string{"b draining"}},
		{has("b", func(h *Health) { h.Asks = &half }), []string{"b 50"}},
		{has("b", func(h *Health) { h.EjectedMS = 1000 }), []string{"b draining"}},
		{says("b", StateUp), []string{"b 100"}},
	} {
		report(t, b, uint64(i+2), row.say)
		if got := told(b); !slices.Equal(got, row.want) {
			t.Errorf("%d: %v, want %v", i, got, row.want)
		}
	}
	// What was not fetched is told with what comes after it, as it is then.
	report(t, b, 20, says("a", StateDown))
	report(t, b, 21, says("a", StateUp), says("c", StateDown))
	if got := told(b); !slices.Equal(got, []string{"a 100", "c down"}) {
		t.Errorf("two reports: %v", got)
	}
	commit(b, service("web", true, "a", "b", "c"), other)
	if got := told(b); len(got) != 5 {
		t.Errorf("after a reload: %v", got)
	}
}

// Statistics are those of the last report, and go with their backend, check or readiness check.
func TestProbeStatistics(t *testing.T) {
	log, _ := newLog()
	b := NewBook("", log)
	web := service("web", true, "a", "b")
	web.Readiness = web.Check
	commit(b, web)
	stats := func() string {
		var list []string
		d, err := b.Detail(EventFilter{Service: "web"})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range d.Backends {
			for _, p := range x.Probes {
				what := map[bool]string{true: "readiness"}[p.Readiness]
				list = append(list, x.Backend+what+strings.Repeat("+", int(p.Good))+p.LastError)
			}
		}
		return strings.Join(list, " ")
	}
	r := said(b, "s", 0, 1)
	r.Probes = []ProbeStats{
		{Service: "web", Backend: "a", Good: 1}, {Service: "web", Backend: "a", Readiness: true, Good: 2}, {Service: "web", Backend: "b", LastError: "a\nb"},
		{Service: "web", Backend: "z"}, {Service: "no", Backend: "a"},
	}
	if _, err := b.Report(r); err != nil || stats() != "a+ areadiness++ ba b" {
		t.Errorf("%v, %s", err, stats())
	}
	r.Base, r.Version, r.Probes = 1, 2, r.Probes[:1]
	r.Probes[0].Good = 3
	if _, err := b.Report(r); err != nil || stats() != "a+++ areadiness++ ba b" {
		t.Errorf("%v, %s", err, stats())
	}
	web.Readiness = nil
	commit(b, web)
	if stats() != "a+++ ba b" {
		t.Errorf("without a readiness check: %s", stats())
	}
	moved := service("web", true, "a", "b")
	moved.Backends[0].Address = moved.Backends[0].Address.Next().Next()
	commit(b, moved)
	if stats() != "ba b" {
		t.Errorf("with another address: %s", stats())
	}
	commit(b, service("web", false, "a", "b"))
	if stats() != "" {
		t.Errorf("without a check: %s", stats())
	}
}

// What is kept for the next start is what was last certain.
func TestSavedHealthIsCertain(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	l := (*ledger)(nil).then([]config.Service{service("web", true, "a", "b", "c", "d", "e")}, savedState{}, now)
	l.report([]BackendHealth{says("a", StateUp), says("b", StateDown), says("c", StateGoingUp), has("d", func(h *Health) { h.Evidence = "HTTP 200" })}, now)
	asks := 3
	l.report([]BackendHealth{
		says("a", StateGoingDown), says("b", StateGoingUp),
		has("d", func(h *Health) {
			h.State, h.Evidence, h.Unready, h.Asks, h.EjectedMS, h.Ejected = StateGoingDown, "HTTP 500", "HTTP 503", &asks, 500, "bad"
		}),
	}, now.Add(time.Hour))
	want := []saved{
		{"web", "a", l.services[0].backends[0].address, Health{State: StateUp, Since: now}},
		{"web", "b", l.services[0].backends[1].address, Health{State: StateDown, Since: now}},
		{"web", "c", l.services[0].backends[2].address, Health{State: StateDown}},
		{"web", "d", l.services[0].backends[3].address, Health{State: StateUp, Since: now, Evidence: "HTTP 200"}},
	}
	if got := l.save(); !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
}

// A service without check has no health but ejections, and a report that does not know of a check yet changes nothing else.
func TestReportsWithoutCheck(t *testing.T) {
	log, _ := newLog()
	b := NewBook("", log)
	commit(b, service("web", false, "a", "b"))
	ejected := has("a", func(h *Health) { *h = Health{State: StateNone, EjectedMS: 5000, Ejected: "silent"} })
	if _, err := b.Report(said(b, "lb1/1", 0, 1, ejected, has("b", func(h *Health) { *h = Health{State: StateNone} }))); err != nil || b.takes() != "b" {
		t.Fatalf("an ejection without a check: %v, takes %s", err, b.takes())
	}
	commit(b, service("web", true, "a", "b"))
	if _, err := b.Report(said(b, "lb1/1", 1, 2, has("a", func(h *Health) { *h = Health{State: StateNone} }))); err != nil || b.takes() != "ab" {
		t.Errorf("a report from before there was a check: %v, takes %s", err, b.takes())
	}
}
