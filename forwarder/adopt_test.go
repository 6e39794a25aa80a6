package forwarder

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/maglev"
)

// recording makes r keep what it records, as JSON, as a file would.
func recording(r *testRig) *[]byte {
	data := new([]byte)
	r.engine.record = func(d *Directory) {
		b, err := json.Marshal(d)
		if err != nil {
			r.t.Fatal(err)
		}
		*data = b
	}
	return data
}

// successor is a rig whose engine goes on with the words of r.
func (r *testRig) successor(data []byte) *testRig {
	r.t.Helper()
	s := newTestRig(r.t, 1000)
	s.words = r.words
	s.now.Store(r.now.Load() + int64(3*time.Second))
	d := new(Directory)
	if err := json.Unmarshal(data, d); err != nil {
		r.t.Fatal(err)
	}
	var err error
	if s.engine, err = NewEngine(EngineConfig{Keys: r.engine.keys, Words: r.words, Clock: s.now.Load, Adopt: d}); err != nil {
		r.t.Fatal(err)
	}
	s.worker = s.engine.NewWorker(s.io())
	return s
}

// A successor goes on with all flows of its predecessor, whatever the new configuration has renamed, removed or added. Flows
// without a word go by the predecessor's lookup table for a minute.
func TestAdoption(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(s *ServiceSpec)
	}{
		{"the same", func(*ServiceSpec) {}},
		{"service renamed", func(s *ServiceSpec) { s.Name = "shop" }},
		{"backend renamed", func(s *ServiceSpec) { s.Backends[1].Name = "first" }},
		{"backend removed", func(s *ServiceSpec) { s.Backends = s.Backends[1:] }},
		{"all backends replaced", func(s *ServiceSpec) {
			for i := range s.Backends {
				s.Backends[i].Name, s.Backends[i].Address = fmt.Sprint("new-", i), backend4(60+i)
			}
		}},
		{"another address under the same name", func(s *ServiceSpec) { s.Backends[0].Address = backend4(99) }},
		{"backend added", func(s *ServiceSpec) { s.Backends = append(s.Backends, BackendSpec{"more", backend4(40), 0, 100, all}) }},
		{"weights", func(s *ServiceSpec) { s.Backends[0].Weight, s.Backends[1].Weight = 0, 300 }},
		{"another scheduler", func(s *ServiceSpec) { s.Scheduler = maglev.LeastConn }},
		{"everything", func(s *ServiceSpec) {
			s.Name, s.TableSize = "shop", 251
			s.Backends[2].Name = "third"
			s.Backends = append(s.Backends[1:], BackendSpec{"more", backend4(40), 0, 100, all})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newTestRig(t, 4000)
			data := recording(r)
			r.apply(web(L2, 5))
			r.apply(web(L2, 4)) // slot 4 is leaving
			at := r.openFlows(300)
			elsewhere := map[int]netip.Addr{} // flows that another node carries
			for i := 1000; i < 1300; i++ {
				elsewhere[i] = r.target(client(i, "S").frame(t))
			}
			s := r.successor(*data)
			s.checkFlowCounts()
			spec := web(L2, 4)
			c.change(&spec)
			s.apply(spec)
			for i, want := range at {
				if got := s.target(client(i, "A").frame(t)); got != want {
					t.Fatalf("client %d was at %v, is at %v", i, want, got)
				}
			}
			for i, want := range elsewhere {
				if got := s.target(client(i, "A").frame(t)); got != want {
					t.Fatalf("client %d, of another node, was at %v, is at %v", i, want, got)
				}
			}
			for i := 2000; i < 2100; i++ {
				to := s.target(client(i, "S").frame(t))
				configured := false
				for _, b := range spec.Backends {
					configured = configured || b.Address == to && b.Weight > 0
				}
				if !configured {
					t.Fatalf("the new client %d went to %v", i, to)
				}
			}
			s.checkFlowCounts()
		})
	}
}

// The words of a service that the successor does not have keep their slots from being used, until they are gone.
func TestAdoptionWithoutTheService(t *testing.T) {
	r := newTestRig(t, 4000)
	data := recording(r)
	r.apply(web(L2, 3))
	r.openFlows(100)
	s := r.successor(*data)
	other := web(L2, 3)
	other.Name, other.Ports = "other", []PortRange{{81, 81}}
	s.apply(other)
	for i := range s.engine.slots.states {
		if st := &s.engine.slots.states[i]; i < 3 != (st.phase == slotQuarantined) {
			t.Fatalf("slot %d is %v", i, st.phase)
		}
	}
	s.sweep()
	s.sweep()
	for i := range 3 {
		if p := s.engine.slots.states[i].phase; p != slotFree {
			t.Errorf("slot %d is %v after two sweeps", i, p)
		}
	}
	s.checkFlowCounts()
}

// Generations of daemons, each with a random configuration and random ends of flows: no flow with a word ever goes
// elsewhere, and no slot is used twice.
func TestAdoptionOverGenerations(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	r := newTestRig(t, 8000)
	data := recording(r)
	r.apply(web(L2, 6))
	at := r.openFlows(200)
	next := 1000
	for range 12 {
		s := r.successor(*data)
		data = recording(s)
		spec := web(L2, 8)
		rng.Shuffle(len(spec.Backends), func(i, j int) { spec.Backends[i], spec.Backends[j] = spec.Backends[j], spec.Backends[i] })
		spec.Backends = spec.Backends[:1+rng.IntN(8)]
		for i := range spec.Backends {
			if rng.IntN(3) == 0 {
				spec.Backends[i].Name = fmt.Sprintf("other-%s", spec.Backends[i].Name)
			}
		}
		if rng.IntN(2) == 0 {
			spec.Name = fmt.Sprint("name-", rng.IntN(3))
		}
		s.apply(spec)
		for i, want := range at {
			if got := s.target(client(i, "A").frame(t)); got != want {
				t.Fatalf("client %d was at %v, is at %v", i, want, got)
			}
		}
		for range 30 {
			to := s.target(client(next, "S").frame(t))
			if got := s.target(client(next, "A").frame(t)); got != to {
				t.Fatalf("client %d: SYN to %v, ACK to %v", next, to, got)
			}
			at[next] = to
			next++
		}
		s.advance(time.Duration(rng.IntN(20)) * time.Second)
		s.sweep()
		s.checkFlowCounts()
		r = s
	}
}

// A directory that contradicts itself is refused, and says why.
func TestBadDirectory(t *testing.T) {
	r := newTestRig(t, 1000)
	data := recording(r)
	r.apply(web(L2, 3))
	for _, c := range []struct {
		want   string
		change func(d *Directory)
	}{
		{"slot 0", func(d *Directory) { d.Slots[1].Slot = 0 }},
		{"out of bounds", func(d *Directory) { d.Slots[1].Slot = 1 << 18 }},
		{"no address", func(d *Directory) { d.Slots[1].Address = netip.Addr{} }},
		{"number", func(d *Directory) { d.Services = append(d.Services, d.Services[0]) }},
		{"number", func(d *Directory) { d.Services[0].Number = MaxServices }},
		{"prime", func(d *Directory) { d.Services[0].TableSize = 100 }},
		{"called", func(d *Directory) { d.Slots[1].Backend = d.Slots[0].Backend }},
	} {
		d := new(Directory)
		if err := json.Unmarshal(*data, d); err != nil {
			t.Fatal(err)
		}
		c.change(d)
		if _, err := NewEngine(EngineConfig{Keys: r.engine.keys, Words: r.words, Clock: r.now.Load, Adopt: d}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want an error about %q, got %v", c.want, err)
		}
	}
}
