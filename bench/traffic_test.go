package bench

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

var (
	leftMAC  = net.HardwareAddr{0x02, 0, 0, 0, 0, 1}
	rightMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 2}
	target4  = netip.MustParseAddrPort("192.0.2.10:80")
	target6  = netip.MustParseAddrPort("[2001:db8::10]:80")
	spoof4   = netip.MustParsePrefix("198.51.100.77/26") // the host bits are ignored
	spoof6   = netip.MustParsePrefix("2001:db8:ffff:eeee:dddd:cccc:1234:5678/60")
	onlyFrom = netip.MustParsePrefix("10.9.8.7/32")
)

func traffic(source netip.Prefix, target netip.AddrPort, protocol, flags uint8) Traffic {
	return Traffic{SrcMAC: leftMAC, DstMAC: rightMAC, Source: source, Target: target, Protocol: protocol, Flags: flags, Count: 1}
}

func TestFlowsAreDistinctAndWithinTheirPrefix(t *testing.T) {
	for _, prefix := range []netip.Prefix{spoof4, spoof6, onlyFrom} {
		tr := traffic(prefix, target4, TCP, SYN)
		seen := make(map[netip.AddrPort]bool)
		for i := range uint64(portsOfSource) {
			f := tr.Flow(i)
			if !prefix.Contains(f.Addr()) || f.Port() < firstPort || seen[f] {
				t.Fatalf("%s: flow %d is %s; seen before: %v", prefix, i, f, seen[f])
			}
			seen[f] = true
		}
	}
}

func TestTrafficThatCannotBeSent(t *testing.T) {
	for name, spoil := range map[string]func(*Traffic){
		"no MAC":           func(tr *Traffic) { tr.DstMAC = nil },
		"no source":        func(tr *Traffic) { tr.Source = netip.Prefix{} },
		"no target":        func(tr *Traffic) { tr.Target = netip.AddrPort{} },
		"two families":     func(tr *Traffic) { tr.Target = target6 },
		"mapped":           func(tr *Traffic) { tr.Target = netip.MustParseAddrPort("[::ffff:1.2.3.4]:80") },
		"ICMP":             func(tr *Traffic) { tr.Protocol = 1 },
		"UDP with flags":   func(tr *Traffic) { tr.Protocol = UDP },
		"no end":           func(tr *Traffic) { tr.Count = 0 },
		"negative time":    func(tr *Traffic) { tr.Count, tr.Duration = 0, -1 },
		"odd fragment":     func(tr *Traffic) { tr.FragmentOffset = 1204 },
		"late fragment":    func(tr *Traffic) { tr.FragmentOffset = 1 << 16 },
		"IPv6 fragment":    func(tr *Traffic) { tr.Source, tr.Target, tr.FragmentOffset = spoof6, target6, 8 },
		"too small":        func(tr *Traffic) { tr.Size = 59 },
		"too large":        func(tr *Traffic) { tr.Size = 70_000 },
		"too small a mix":  func(tr *Traffic) { tr.Mix = []int{64, 59} },
		"too large a mix":  func(tr *Traffic) { tr.Mix = make([]int, 17) },
		"TCP with stamps":  func(tr *Traffic) { tr.Stamp = true },
		"smooth, no rate":  func(tr *Traffic) { tr.Smooth = true },
		"smooth, too fast": func(tr *Traffic) { tr.Smooth, tr.Rate = true, 1e9 },
		"too many flows":   func(tr *Traffic) { tr.Flows = 64*portsOfSource + 1 },
		"small, over IPv6": func(tr *Traffic) { tr.Source, tr.Target, tr.Size = spoof6, target6, 79 },
	} {
		tr := traffic(spoof4, target4, TCP, SYN)
		if err := tr.complete(); err != nil {
			t.Fatal(err)
		}
		spoil(&tr)
		if err := tr.complete(); err == nil {
			t.Errorf("%s: accepted: %+v", name, tr)
		}
	}
}

func TestDue(t *testing.T) {
	for _, c := range []struct {
		rate, count, sent uint64
		elapsed           time.Duration
		n                 uint64
		wait              time.Duration
	}{
		{0, 0, 1 << 40, time.Hour, mostPerCall, 0},                    // full rate, until halted
		{0, 10, 0, 0, 10, 0},                                          // full rate, few
		{0, 10, 10, 0, 0, 0},                                          // all sent
		{0, 1 << 40, 1<<40 - 1, 0, 1, 0},                              // the last one
		{1000, 0, 0, 0, 0, paceStep},                                  // nothing is due at once
		{1000, 0, 0, 20 * time.Millisecond, 20, 0},                    // 20 ms worth
		{1000, 25, 20, 40 * time.Millisecond, 5, 0},                   // no more than the count
		{1, 0, 1, 1500 * time.Millisecond, 0, 500 * time.Millisecond}, // slow: until the next
		{1e9, 0, 0, time.Minute, mostPerCall, 0},                      // too much for one call
		{1000, 30, 30, time.Hour, 0, 0},                               // paced, all sent
	} {
		tr := Traffic{Rate: c.rate, Count: c.count}
		if n, wait := tr.due(c.sent, c.elapsed); n != c.n || wait != c.wait {
			t.Errorf("rate %d count %d: after %d in %v: %d, wait %v; want %d, wait %v", c.rate, c.count, c.sent, c.elapsed,
				n, wait, c.n, c.wait)
		}
	}
}

// A paced generator that could not send for a while does not make up for it in a burst.
func TestLate(t *testing.T) {
	for _, c := range []struct {
		rate, n uint64
		late    time.Duration
	}{
		{0, mostPerCall, 0}, // full rate
		{1000, 5, 0},
		{1000, 26, 20 * time.Millisecond},
		{1000, 0, 0}, // it waits
		{1, 1, 0},    // slow
	} {
		tr := Traffic{Rate: c.rate}
		if late := tr.late(c.n); late != c.late {
			t.Errorf("rate %d: %d frames are due, %v too late; want %v", c.rate, c.n, late, c.late)
		}
	}
}
