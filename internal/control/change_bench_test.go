package control

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/internal/config"
)

// BenchmarkChange10k is one change of one of 10,000 backends, from a report's JSON to the admit word, without the socket. It is
// to take less than 1 ms.
func BenchmarkChange10k(b *testing.B) {
	for _, services := range []int{1, 1000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) { benchmarkChange(b, services, 10_000/services) })
	}
}

func benchmarkChange(b *testing.B, services, backends int) {
	cfg := &config.Config{}
	for i := range services {
		s := service(fmt.Sprintf("s%d", i), true)
		s.VIP, s.Forward = netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), config.ForwardIPIP
		s.TableSize, s.SlowStart, s.FlowTable, s.Scheduler = 16381, 0, true, config.SchedulerMaglev
		s.Lifetimes = config.Lifetimes{New: time.Hour, Established: time.Hour, Closing: time.Minute}
		if services > 1 {
			s.TableSize = 251
		}
		for j := range backends {
			n := i*backends + j
			s.Backends = append(s.Backends, config.Backend{
				Name: fmt.Sprintf("b%d", j), Address: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), Weight: 100,
			})
		}
		cfg.Services = append(cfg.Services, s)
	}
	keys, err := forwarder.DeriveKeys([]byte("a seed of the benchmark"))
	if err != nil {
		b.Fatal(err)
	}
	words, err := conntrack.WordsFor(1 << 16)
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	engine, err := forwarder.NewEngine(forwarder.EngineConfig{
		Keys: keys, Words: make([]uint64, words), Clock: func() int64 { return int64(time.Since(began)) },
	})
	if err != nil {
		b.Fatal(err)
	}
	book := NewBook("", slog.New(slog.DiscardHandler))
	pending := book.Prepare(cfg)
	if err := engine.Apply(Spec(cfg, pending.Admission)); err != nil {
		b.Fatal(err)
	}
	pending.Commit()
	all := HealthReport{Boot: book.boot, Source: "lb1/1", Version: 1}
	for _, s := range cfg.Services {
		for _, x := range s.Backends {
			all.Backends = append(all.Backends, BackendHealth{Service: s.Name, Backend: x.Name, Health: Health{State: StateUp}})
		}
	}
	if _, err := book.Report(all); err != nil {
		b.Fatal(err)
	}
	admit := func() (n int) {
		for _, a := range book.Changed().Admissions {
			if !engine.SetAdmit(a.Service, a.Backend, a.Admit) {
				b.Fatalf("the engine does not have %v", a)
			}
			n++
		}
		return n
	}
	admit()
	book.mu.Lock() // the first three intervals are over
	for _, s := range book.ledger.services {
		s.opens = time.Time{}
		book.ledger.pass(s, time.Now())
	}
	book.mu.Unlock()
	admit()
	var bodies [2][]byte // each with its version cut out
	one := HealthReport{Boot: book.boot, Source: "lb1/1", Base: 1, Version: 2}
	for i, state := range []State{StateDown, StateUp} {
		one.Backends = []BackendHealth{{Service: "s0", Backend: "b3", Health: Health{State: state, Cause: CauseProbe, Evidence: "connection refused"}}}
		if bodies[i], err = json.Marshal(one); err != nil {
			b.Fatal(err)
		}
	}
	version := uint64(1)
	b.ReportAllocs()
	for b.Loop() {
		var r HealthReport
		if err := json.Unmarshal(bodies[version%2^1], &r); err != nil {
			b.Fatal(err)
		}
		r.Base, r.Version = version, version+1
		version++
		if _, err := book.Report(r); err != nil {
			b.Fatal(err)
		}
		if n := admit(); n != 1 {
			b.Fatalf("%d backends changed", n)
		}
	}
}
