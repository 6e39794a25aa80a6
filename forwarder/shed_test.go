package forwarder

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/steer"
)

// overloaded is a node that takes capacity packets a second and has a ring of 2,048, under floods of so many a second by key.
type overloaded struct {
	s        shedder
	capacity float64
	floods   map[shedKey]float64
	known    float64 // what is not shed, a second
	ring     float64
	lost     float64 // of the known
}

// run lets time go by and returns how much of what is known was lost.
func (o *overloaded) run(d time.Duration) (lost float64) {
	const ring = 2048
	before := o.lost
	for t := time.Duration(0); t < d; t += shedPeriod {
		dt := shedPeriod.Seconds()
		pressure, passed, unknown := 0.0, o.known*dt, map[shedKey]float64{}
		for k, rate := range o.floods {
			unknown[k] = rate * dt * float64(steer.ShedAll-o.s.share[k]) / steer.ShedAll
			passed += unknown[k]
		}
		o.ring += passed - o.capacity*dt
		if o.ring > ring {
			o.lost += (o.ring - ring) / passed * o.known * dt
			o.ring = ring
		}
		o.ring = max(o.ring, 0)
		pressure = o.ring * 256 / ring
		if pressure < pressureSome {
			pressure = 0
		}
		came := map[shedKey]uint64{}
		for k, n := range unknown {
			came[k] = uint64(n)
		}
		o.s.look(uint32(pressure), came, shedPeriod)
	}
	return o.lost - before
}

// Whatever the flood, what is known gets through soon, and nothing is shed that does not flood; after it nothing is shed at all.
func TestShedder(t *testing.T) {
	web, dns := shedKey{"web", steer.ShedSYN}, shedKey{"dns", steer.ShedUDP}
	quiet := shedKey{"mail", steer.ShedSYN}
	for _, c := range []struct {
		name   string
		floods map[shedKey]float64
	}{
		{"no more than fits", map[shedKey]float64{web: 500_000}},
		{"three times what fits", map[shedKey]float64{web: 3e6}},
		{"thirty times", map[shedKey]float64{web: 30e6}},
		{"two floods", map[shedKey]float64{web: 2e6, dns: 4e6}},
		{"many small ones", map[shedKey]float64{web: 600_000, dns: 600_000, {"a", steer.ShedTCP}: 600_000, {"", steer.ShedPortless}: 600_000}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := overloaded{s: shedder{share: map[shedKey]int{}}, capacity: 1e6, known: 100_000, floods: map[shedKey]float64{quiet: 500}}
			total := o.known
			for k, rate := range c.floods {
				o.floods[k] = rate
				total += rate
			}
			onset := o.run(time.Second)
			if onset > 0.35*o.known {
				t.Errorf("in the first second %.1f %% of what is known was lost", 100*onset/o.known)
			}
			const seconds = 120
			if lost := o.run(seconds * time.Second); lost > 0.01*o.known*seconds {
				t.Errorf("then %.2f %%", 100*lost/(o.known*seconds))
			}
			if share := o.s.share[quiet]; share != 0 {
				t.Errorf("of a service without a flood, %d of 256 sources are shed", share)
			}
			if shed := len(o.s.share) > 0; shed != (total > o.capacity) {
				t.Errorf("shed: %v", o.s.share)
			}
			for k := range o.floods {
				o.floods[k] = 0
			}
			if o.run(15 * time.Second); len(o.s.share) != 0 {
				t.Errorf("15 s after the flood %v are shed", o.s.share)
			}
		})
	}
}

// When the ring is full of what is known, nothing is shed: there is nothing to gain.
func TestShedderSparesKnown(t *testing.T) {
	s := shedder{share: map[shedKey]int{}}
	for range 100 {
		if s.look(256, map[shedKey]uint64{{"web", steer.ShedSYN}: 5}, shedPeriod) {
			t.Fatal(s.share)
		}
	}
}

// A worker tells that its ring is more than half full, and what it took that nobody knows.
func TestPressure(t *testing.T) {
	r := newTestRig(t, 4000)
	r.apply(web(L2, 2))
	if list, changed := r.engine.LookShed(0); changed || list != nil {
		t.Fatalf("at rest: %v", list)
	}
	var frames [][]byte
	for i := range 1900 { // of 2,048
		frames = append(frames, client(i, "S").frame(t))
	}
	if got := r.nic.DeliverBatch(0, frames); got != len(frames) {
		t.Fatalf("the memory NIC took %d of %d frames", got, len(frames))
	}
	for r.worker.turn() > 0 {
		r.nic.Collect(0, func([]byte) {})
	}
	select {
	case <-r.engine.overload.pressed:
	default:
		t.Fatal("the worker did not tell that its ring is full")
	}
	full := r.worker.pressure.Load()
	if list, changed := r.engine.LookShed(shedPeriod); changed {
		t.Fatalf("a moment's pressure, and %+v is shed", list)
	}
	r.pass(client(1, "S").frame(t))
	for range 100 {
		r.pass(client(2, "S").frame(t))
	}
	r.worker.pressure.Store(full)
	list, changed := r.engine.LookShed(shedPeriod)
	s := web(L2, 2)
	if !changed || len(list) != 1 || list[0].VIP != s.VIP || list[0].Proto != 6 || list[0].Share != [steer.ShedClasses]uint16{steer.ShedSYN: 128} ||
		list[0].Ports[0] != (steer.PortRange{First: s.Ports[0].First, Last: s.Ports[0].Last}) {
		t.Fatalf("to be shed: %+v, %v", list, changed)
	}
	if stats := r.engine.shedStats(); len(stats) != 1 || stats[0].ShedStats != (ShedStats{Service: "web", Class: "syn", Share: 0.5}) {
		t.Errorf("stats: %+v", stats)
	}
	r.apply() // the service goes, and what is shed of it
	if list, changed := r.engine.LookShed(shedPeriod); !changed || len(list) != 0 {
		t.Errorf("without the service: %+v, %v", list, changed)
	}
}

// In calm times the source of a TCP connection that lives becomes known, and stays so while it says something now and then; in an
// overload it does not become known.
func TestConnectionsAreKnown(t *testing.T) {
	r := newTestRig(t, 4000)
	r.apply(web(L2, 2))
	known := func(f flow) bool {
		a := packet.FromNetip(netip.AddrFrom4(f.src.As4()))
		return r.engine.proved.Has(r.engine.proved.Hash(a.Hi, a.Lo), r.now.Load())
	}
	f, late := client(1<<16, "A"), client(2<<16, "A")
	r.target(f.frame(t))
	if known(f) {
		t.Error("one packet makes its source known")
	}
	for range 10 {
		r.advance(20 * time.Second)
		r.target(f.frame(t))
		if !known(f) {
			t.Fatal("a connection that lives does not make its source known")
		}
	}
	r.engine.overload.lasts.Store(true)
	r.target(late.frame(t))
	r.advance(20 * time.Second)
	r.target(late.frame(t))
	if known(late) {
		t.Error("a connection of an overload makes its source known")
	}
}
