package control

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/maglev"
)

// service returns a service with backends at 10.0.0.1, 10.0.0.2 …
func service(name string, check bool, backends ...string) config.Service {
	s := config.Service{Quorum: 1, Passive: config.Passive{Mode: config.PassiveOff}, Name: name, VIP: netip.MustParseAddr("192.0.2.10"), Protocol: config.TCP, Ports: config.Ports{{First: 80, Last: 80}}}
	if check {
		s.Check = &config.Check{Type: config.CheckTCP, Port: 80, Interval: config.Duration(2 * time.Second), Timeout: config.Duration(time.Second), Rise: 2, Fall: 3}
	}
	for i, b := range backends {
		s.Backends = append(s.Backends, config.Backend{Name: b, Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), Weight: 100})
	}
	return s
}

// says returns what a report says about a backend of the service web.
func says(backend string, s State) BackendHealth {
	return BackendHealth{Service: "web", Backend: backend, Health: Health{State: s}}
}

// takes returns the backends of the service web that take traffic, in a string.
func (l *ledger) takes(now time.Time) (names string) {
	for i, a := range l.services[0].at(now) {
		if a.State() == maglev.Up {
			names += l.services[0].backends[i].name
		}
	}
	return names
}

// then is next without what changes by it.
func (l *ledger) then(services []config.Service, disk savedState, now time.Time) *ledger {
	n, _ := l.next(services, disk, now)
	return n
}

func TestLedger(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	after := func(d time.Duration) time.Time { return start.Add(d) }
	onDisk := func(backend string, last byte, s State) saved {
		return saved{Service: "web", Backend: backend, Address: netip.AddrFrom4([4]byte{10, 0, 0, last}), Health: Health{State: s}}
	}
	one := func(s config.Service) []config.Service { return []config.Service{s} }
	web := one(service("web", true, "a", "b", "c"))
	var none *ledger

	t.Run("a start without knowledge waits three intervals and opens", func(t *testing.T) {
		l := none.then(web, savedState{}, start)
		if got := l.takes(after(5999 * time.Millisecond)); got != "" || len(l.waiting(start)) != 1 {
			t.Errorf("before: %q, waiting %v", got, l.waiting(start))
		}
		if got := l.takes(after(6 * time.Second)); got != "abc" || len(l.waiting(after(6*time.Second))) != 0 {
			t.Errorf("after: %q", got)
		}
	})
	t.Run("a start with a report does not wait", func(t *testing.T) {
		l := none.then(web, savedState{}, start)
		l.report([]BackendHealth{says("b", StateUp)}, start)
		if got := l.takes(start); got != "b" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("a start with last known health goes on at once", func(t *testing.T) {
		l := none.then(web, savedState{health: []saved{onDisk("a", 1, StateUp), onDisk("b", 2, StateDown), onDisk("c", 3, StateUp), onDisk("gone", 4, StateUp)}}, start)
		if got := l.takes(start); got != "ac" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("last known health of another address is not used", func(t *testing.T) {
		l := none.then(web, savedState{health: []saved{onDisk("a", 99, StateUp), onDisk("b", 2, StateUp)}}, start)
		if got := l.takes(start); got != "b" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("the last health stays however old", func(t *testing.T) {
		l := none.then(web, savedState{}, start)
		l.report([]BackendHealth{says("a", StateUp), says("b", StateDown), says("c", StateUp)}, start)
		if got := l.takes(after(1000 * time.Hour)); got != "ac" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("backends that a report leaves out keep their health", func(t *testing.T) {
		l := none.then(web, savedState{}, start)
		l.report([]BackendHealth{says("a", StateUp), says("b", StateUp)}, start)
		l.report([]BackendHealth{says("b", StateDown)}, start)
		if got := l.takes(start); got != "a" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("all down in a running service opens at once", func(t *testing.T) {
		l := none.then(web, savedState{}, start)
		l.report([]BackendHealth{says("a", StateUp), says("b", StateUp), says("c", StateUp)}, start)
		l.report([]BackendHealth{says("a", StateDown), says("b", StateDown), says("c", StateDown)}, after(time.Hour))
		if got := l.takes(after(time.Hour)); got != "abc" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("a backend added to a running service waits for its first report", func(t *testing.T) {
		l := none.then(web, savedState{}, start)
		l.report([]BackendHealth{says("a", StateUp), says("b", StateUp), says("c", StateDown)}, start)
		l = l.then(one(service("web", true, "a", "b", "c", "d")), savedState{}, after(time.Hour))
		if got := l.takes(after(2 * time.Hour)); got != "ab" {
			t.Errorf("before: %q", got)
		}
		l.report([]BackendHealth{says("d", StateUp)}, after(2*time.Hour))
		if got := l.takes(after(2 * time.Hour)); got != "abd" {
			t.Errorf("after: %q", got)
		}
	})
	t.Run("a backend with a new address is a new one", func(t *testing.T) {
		l := none.then(web, savedState{}, start)
		l.report([]BackendHealth{says("a", StateUp), says("b", StateUp), says("c", StateUp)}, start)
		moved := service("web", true, "a", "b", "c")
		moved.Backends[1].Address = netip.MustParseAddr("10.9.9.9")
		l = l.then(one(moved), savedState{}, after(time.Hour))
		if got := l.takes(after(time.Hour)); got != "ac" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("a service added to a running daemon waits and opens", func(t *testing.T) {
		l := none.then(nil, savedState{}, start).then(web, savedState{}, after(time.Hour))
		if got := l.takes(after(time.Hour + 5*time.Second)); got != "" {
			t.Errorf("before: %q", got)
		}
		if got := l.takes(after(time.Hour + 6*time.Second)); got != "abc" {
			t.Errorf("after: %q", got)
		}
	})
	t.Run("a running service that gets a check keeps its backends", func(t *testing.T) {
		l := none.then(one(service("web", false, "a", "b")), savedState{}, start)
		l = l.then(web, savedState{}, after(time.Hour))
		if got := l.takes(after(time.Hour)); got != "ab" {
			t.Errorf("got %q", got)
		}
		l.report([]BackendHealth{says("a", StateDown)}, after(time.Hour))
		if got := l.takes(after(time.Hour)); got != "b" {
			t.Errorf("after a report: %q", got)
		}
	})
	t.Run("a service that loses its check takes all", func(t *testing.T) {
		l := none.then(web, savedState{}, start)
		l.report([]BackendHealth{says("a", StateUp), says("b", StateDown)}, start)
		l = l.then(one(service("web", false, "a", "b", "c")), savedState{}, start)
		l.report([]BackendHealth{says("a", StateDown)}, start)
		if got := l.takes(start); got != "abc" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("another interval does not make a service wait again", func(t *testing.T) {
		l := none.then(web, savedState{}, start)
		slow := service("web", true, "a", "b", "c")
		slow.Check.Interval = config.Duration(time.Hour)
		l = l.then(one(slow), savedState{}, after(7*time.Second))
		if got := l.takes(after(7 * time.Second)); got != "abc" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("a report about what is not there is ignored", func(t *testing.T) {
		l := none.then(web, savedState{}, start)
		changes := l.report([]BackendHealth{says("zz", StateUp), {Service: "no", Backend: "a", Health: Health{State: StateUp}}}, start)
		if len(changes) != 0 || len(l.save()) != 0 {
			t.Errorf("got %v %v", changes, l.save())
		}
	})
	t.Run("a reload leaves the ledger before it alone", func(t *testing.T) {
		l := none.then(web, savedState{}, start)
		l.report([]BackendHealth{says("a", StateUp)}, start)
		n := l.then(web, savedState{}, start)
		n.report([]BackendHealth{says("a", StateDown)}, start)
		if got := l.backend(BackendKey{"web", "a"}).health.State; got != StateUp {
			t.Errorf("got %s", got)
		}
	})
	t.Run("since is kept while the state is", func(t *testing.T) {
		l := none.then(web, savedState{}, start)
		l.report([]BackendHealth{says("a", StateUp)}, start)
		changes := l.report([]BackendHealth{says("a", StateUp)}, after(time.Minute))
		if h := l.backend(BackendKey{"web", "a"}).health; !h.Since.Equal(start) || len(changes) != 0 {
			t.Errorf("got %v, %v", h.Since, changes)
		}
		changes = l.report([]BackendHealth{says("a", StateDown)}, after(time.Hour))
		if h := l.backend(BackendKey{"web", "a"}).health; !h.Since.Equal(after(time.Hour)) || len(changes) == 0 || changes[0].From != "up" {
			t.Errorf("got %v, %v", h.Since, changes)
		}
	})
}

// Reports that say everything make two ledgers equal, whatever they went through before.
func TestReportsSayEverything(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	now := time.Unix(1_000_000, 0)
	web := []config.Service{service("web", true, "a", "b", "c", "d")}
	random := func() (list []BackendHealth) {
		for _, b := range web[0].Backends {
			h := Health{State: []State{StateUp, StateDown}[r.IntN(2)], Since: now, Evidence: fmt.Sprint(r.IntN(3))}
			list = append(list, BackendHealth{"web", b.Name, h})
		}
		return list
	}
	for range 1000 {
		var none *ledger
		one, other := none.then(web, savedState{}, now), none.then(web, savedState{}, now)
		for range r.IntN(5) {
			one.report(random(), now)
			one = one.then(web, savedState{}, now)
		}
		last := random()
		one.report(last, now)
		other.report(last, now)
		other.report(last, now) // twice is once
		if !reflect.DeepEqual(one.save(), other.save()) {
			t.Fatalf("%v and %v", one.save(), other.save())
		}
	}
}

func TestTargets(t *testing.T) {
	plain, quiet, web := service("plain", false, "x"), service("quiet", false, "y"), service("web", true, "a", "b", "c")
	plain.Passive.Mode = config.PassiveEject
	web.Backends[1].Weight = 0
	services := []config.Service{plain, quiet, web}
	l := (*ledger)(nil).then(services, savedState{marks: []savedMark{{Service: "web", Backend: "c", Address: web.Backends[2].Address, Maintenance: time.Unix(5, 0)}}}, time.Unix(9, 0))
	list := l.targets(services)
	want := TargetService{
		Name: "web", VIP: web.VIP, Protocol: "tcp", Check: web.Check, Passive: web.Passive,
		Backends: []TargetBackend{{"a", web.Backends[0].Address, false}, {"b", web.Backends[1].Address, true}, {"c", web.Backends[2].Address, true}},
	}
	if len(list) != 2 || list[0].Name != "plain" || !reflect.DeepEqual(list[1], want) {
		t.Errorf("got %+v", list)
	}
}
