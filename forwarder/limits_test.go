package forwarder

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/forwarder/packet"
)

// applyLimits applies a spec with limits of the node.
func (r *testRig) applyLimits(l Limits, services ...ServiceSpec) {
	r.t.Helper()
	r.apply(services...)
	if err := r.engine.Apply(Spec{Services: services, Limits: l, Tunnel: Tunnel{Port: 6080}}); err != nil {
		r.t.Fatal(err)
	}
}

// burstOf sends n packets of one source, and returns how many went on.
func (r *testRig) burstOf(n int, f flow) int {
	r.t.Helper()
	var frames [][]byte
	for i := range n {
		f.sport = uint16(1000 + i)
		frames = append(frames, f.frame(r.t))
	}
	return len(r.pass(frames...))
}

// A source gets what its limit allows, and another one is not touched by it.
func TestSourceLimit(t *testing.T) {
	for _, c := range []struct {
		name  string
		rates Rates
		flags string
		want  int // of 300 at once
	}{
		{"packets", Rates{Packets: 100, Burst: time.Second}, "A", 101},
		{"SYNs", Rates{SYNs: 50, Burst: time.Second}, "S", 51},
		{"SYNs are no limit to others", Rates{SYNs: 50, Burst: time.Second}, "A", 300},
		{"flows", Rates{Flows: 20, Burst: time.Second}, "A", 21},
		{"a short burst", Rates{Packets: 100, Burst: 100 * time.Millisecond}, "A", 11},
		{"observe", Rates{Packets: 100, Burst: time.Second, Observe: true}, "A", 300},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, own := range []bool{false, true} { // the node's limit, and the service's
				r := newTestRig(t, 4000)
				s := web(L2, 2)
				l := Limits{PerSource: c.rates}
				if own {
					s.PerSource, l = c.rates, Limits{}
				}
				r.applyLimits(l, s)
				heavy, other := client(1, c.flags), client(1<<20, c.flags)
				if got := r.burstOf(300, heavy); got < c.want-1 || got > c.want {
					t.Fatalf("%d of 300 packets went on, want %d", got, c.want)
				}
				if got := r.burstOf(10, other); got != 10 {
					t.Errorf("%d of 10 packets of another source went on", got)
				}
				if got, want := r.reason(packet.SourceLimit), uint64(300-c.want); got < want || got > want+1 {
					t.Errorf("%d packets under source_limit, want %d", got, want)
				}
				if over := r.engine.Stats().Workers[0].Observed.Source; c.rates.Observe != (over > 0) {
					t.Errorf("%d packets were observed over the limit", over)
				}
				r.advance(500 * time.Millisecond) // half of the burst has come back, or all of a short one
				if c.rates.Packets == 100 && c.rates.Burst == time.Second && !c.rates.Observe {
					if got := r.burstOf(300, heavy); got < 49 || got > 51 {
						t.Errorf("half a second later %d of 300 packets went on", got)
					}
				}
			}
		})
	}
}

// Of a high limit only some packets are counted: a source far above it gets what it allows, one within it all that it sends.
func TestSourceLimitByLot(t *testing.T) {
	const perSecond, seconds = 2000, 6
	r := newTestRig(t, 4000)
	r.applyLimits(Limits{PerSource: Rates{Packets: perSecond, Burst: time.Second}}, web(L2, 2))
	admitted := 0
	for range seconds * 100 {
		admitted += r.burstOf(perSecond/100*5, client(1, "A"))
		if got := r.burstOf(perSecond/100*9/10, client(1<<20, "A")); got != perSecond/100*9/10 {
			t.Fatalf("%d packets of a source within its limit went on, want %d", got, perSecond/100*9/10)
		}
		r.advance(10 * time.Millisecond)
	}
	if want := perSecond * (seconds + 1); admitted < want*95/100 || admitted > want*105/100 {
		t.Errorf("%d packets of a source far above its limit went on, want %d", admitted, want)
	}
	if got := r.reason(packet.SourceLimit); got != uint64(perSecond*5*seconds-admitted) {
		t.Errorf("%d packets under source_limit, %d went on", got, admitted)
	}
}

// A source is a prefix.
func TestSourcePrefix(t *testing.T) {
	r := newTestRig(t, 4000)
	v6 := ServiceSpec{Name: "six", VIP: vip6, Protocol: protoTCP, Ports: []PortRange{{80, 80}}, Mode: IPIP, Backends: []BackendSpec{{"b", backend4(9), 0, 100, all}}}
	r.applyLimits(Limits{PerSource: Rates{Packets: 10, Burst: time.Second}, IPv4Prefix: 24, IPv6Prefix: 56}, web(IPIP, 2), v6)
	count := func(sources ...string) (n int) {
		for i := range 40 {
			src := netip.MustParseAddr(sources[i%len(sources)])
			dst := vip4
			if src.Is6() {
				dst = vip6
			}
			n += len(r.pass(flow{src: src, dst: dst, sport: uint16(i + 1), dport: 80, flags: "A"}.frame(t)))
		}
		return n
	}
	if got := count("198.51.100.1", "198.51.100.200", "198.51.100.77"); got != 11 {
		t.Errorf("%d of 40 packets of one /24 went on", got)
	}
	if got := count("198.51.101.1"); got != 11 {
		t.Errorf("%d of 40 packets of the next /24 went on", got)
	}
	if got := count("2001:db8:77:1::1", "2001:db8:77:2::2"); got != 11 {
		t.Errorf("%d of 40 packets of one /56 went on", got)
	}
	if got := count("2001:db8:77:100::1", "2001:db8:77:200::2"); got != 22 {
		t.Errorf("%d of 40 packets of two /56 went on", got)
	}
}

// Ceilings hold for all sources together: of the service, and of the node.
func TestCeilings(t *testing.T) {
	r := newTestRig(t, 4000)
	s, other := web(L2, 2), web(L2, 2)
	s.Total = Rates{Packets: 1000, Burst: 100 * time.Millisecond}
	other.Name, other.Ports = "other", []PortRange{{81, 81}}
	r.applyLimits(Limits{Node: Rates{Packets: 3000, Burst: 100 * time.Millisecond}}, s, other)
	send := func(port uint16, n int) (got int) {
		for i := range n {
			f := client(i*70_000, "A")
			f.dport = port
			got += len(r.pass(f.frame(t)))
		}
		return got
	}
	if got := send(80, 400); got < 100 || got > 102 {
		t.Errorf("%d of 400 packets to the service went on, want 101", got)
	}
	if got := send(81, 400); got < 198 || got > 204 {
		t.Errorf("%d of 400 packets to the other service went on, want what the node's ceiling leaves", got)
	}
	if a, b := r.reason(packet.ServiceLimit), r.reason(packet.NodeLimit); a < 295 || b < 190 {
		t.Errorf("%d under service_limit, %d under node_limit", a, b)
	}
}

// Who is far over the limit is named, so that it can be dropped earlier.
func TestBans(t *testing.T) {
	r := newTestRig(t, 4000)
	r.applyLimits(Limits{PerSource: Rates{Packets: 10, Burst: time.Second}}, web(L2, 2))
	heavy := client(1, "A")
	for range 40 {
		r.burstOf(300, heavy)
		r.advance(10 * time.Millisecond)
	}
	select {
	case source := <-r.engine.bans:
		if source != heavy.src {
			t.Errorf("%v is to be banned, not %v", source, heavy.src)
		}
	default:
		t.Error("nobody is to be banned")
	}
	r.burstOf(5, client(1<<22, "A"))
	for len(r.engine.bans) > 0 {
		if source := <-r.engine.bans; source != heavy.src {
			t.Errorf("%v is to be banned too", source)
		}
	}
}
