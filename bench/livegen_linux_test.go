package bench

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/forwarder/steer"
	"github.com/sluice-lb/sluice/testenv"
)

// Every packet that the program makes is the one that gopacket makes of the same description, checksums included.
func TestPacketsAreRight(t *testing.T) {
	testenv.RequireRoot(t)
	for name, tr := range map[string]Traffic{
		"TCP over IPv4":  traffic(spoof4, target4, TCP, SYN),
		"TCP over IPv6":  traffic(spoof6, target6, TCP, ACK|PSH),
		"UDP over IPv4":  traffic(spoof4, target4, UDP, 0),
		"UDP over IPv6":  traffic(spoof6, target6, UDP, 0),
		"fragments":      {SrcMAC: leftMAC, DstMAC: rightMAC, Source: spoof4, Target: target4, Protocol: UDP, FragmentOffset: 1480, Count: 1},
		"one source":     traffic(onlyFrom, target4, TCP, RST),
		"IPv6 all hosts": traffic(netip.MustParsePrefix("fe00::/7"), target6, UDP, 0),
		"IPv4 all hosts": traffic(netip.MustParsePrefix("0.0.0.0/0"), target4, TCP, FIN|ACK),
	} {
		for _, size := range []int{0, 81, 590, 1514} {
			t.Run(fmt.Sprintf("%s, %d bytes", name, size), func(t *testing.T) {
				tr := tr
				tr.Size, tr.Flows = size, 50_000
				if err := tr.complete(); err != nil {
					t.Fatal(err)
				}
				g := &Generator{traffic: tr, stop: make(chan struct{})}
				frame, err := g.load()
				if err != nil {
					t.Fatal(err)
				}
				defer g.objects.Close()
				if !g.allow(1 << 40) {
					t.Fatal("the limit cannot be set")
				}
				// The frame given in is what an earlier packet left: all of the headers must be written.
				headers := etherLen + ip4Len + 20
				if tr.Target.Addr().Is6() {
					headers = etherLen + ip6Len + 20
				}
				for i := range frame[:headers] {
					frame[i] = 0xee
				}
				for _, n := range []uint64{0, 1, 63, 64, 65, 4095, 49_999, 50_000, 123_456_789} {
					if err := g.objects.Sent.Set(n); err != nil {
						t.Fatal(err)
					}
					out := make([]byte, len(frame))
					verdict, err := g.objects.Livegen.Run(&ebpf.RunOptions{Data: frame, DataOut: out})
					if err != nil || verdict != 3 {
						t.Fatalf("verdict %d, want XDP_TX; %v", verdict, err)
					}
					if want := wanted(t, &tr, n%tr.Flows); !bytes.Equal(out, want) {
						t.Fatalf("packet %d:\n%x, want\n%x", n, out, want)
					}
					if g.Sent() != n+1 {
						t.Errorf("%d packets counted after number %d", g.Sent(), n)
					}
				}
			})
		}
	}
}

// A mix takes its sizes in turn, whatever the frame's length was before; a stamp leaves the checksum right.
func TestMixAndStampAreRight(t *testing.T) {
	testenv.RequireRoot(t)
	tr := traffic(spoof4, target4, UDP, 0)
	tr.Flows, tr.Mix, tr.Stamp = 100, IMIX, true
	if err := tr.complete(); err != nil {
		t.Fatal(err)
	}
	g := &Generator{traffic: tr, stop: make(chan struct{})}
	frame, err := g.load()
	if err != nil {
		t.Fatal(err)
	}
	defer g.objects.Close()
	if len(frame) != 1514 || !g.allow(1<<40) {
		t.Fatalf("started with a frame of %d bytes", len(frame))
	}
	for n := range 2 * len(IMIX) {
		out := make([]byte, len(frame))
		size := IMIX[n%len(IMIX)]
		opts := ebpf.RunOptions{Data: frame, DataOut: out}
		if verdict, err := g.objects.Livegen.Run(&opts); err != nil || verdict != 3 {
			t.Fatalf("verdict %d, want XDP_TX; %v", verdict, err)
		}
		stamp := opts.DataOut[etherLen+ip4Len+8:][:stampLen]
		for i := range 8 {
			if stamp[i] != ^stamp[8+i] {
				t.Fatalf("packet %d: stamp %x", n, stamp)
			}
		}
		clear(stamp)
		tr.Size = size
		if want := wanted(t, &tr, uint64(n)%tr.Flows); !bytes.Equal(opts.DataOut, want) {
			t.Fatalf("packet %d:\n%x, want\n%x", n, opts.DataOut, want)
		}
	}
}

// A UDP checksum that comes out as zero is sent as 0xffff, since zero says that there is none.
func TestUDPChecksumIsNeverZero(t *testing.T) {
	testenv.RequireRoot(t)
	tr := traffic(spoof4, target4, UDP, 0)
	tr.Flows = 64 * portsOfSource
	if err := tr.complete(); err != nil {
		t.Fatal(err)
	}
	// The flow whose packet sums up to 0xffff.
	_, _, partial := tr.template(tr.Size)
	number := uint64(0)
	for ; ; number++ {
		from := tr.Flow(number)
		if sum(sum(partial, from.Addr().AsSlice()), []byte{byte(from.Port() >> 8), byte(from.Port())}) == 0xffff {
			break
		}
	}
	g := &Generator{traffic: tr, stop: make(chan struct{})}
	frame, err := g.load()
	if err != nil {
		t.Fatal(err)
	}
	defer g.objects.Close()
	if err := g.objects.Sent.Set(number); err != nil || !g.allow(number+1) {
		t.Fatal(err)
	}
	out := make([]byte, len(frame))
	if _, err := g.objects.Livegen.Run(&ebpf.RunOptions{Data: frame, DataOut: out}); err != nil {
		t.Fatal(err)
	}
	if got := out[etherLen+ip4Len+6:][:2]; !bytes.Equal(got, []byte{0xff, 0xff}) {
		t.Errorf("flow %d has checksum %x", number, got)
	}
}

// The program sends not one frame more than it is allowed, however often it runs; and none once halted.
func TestLimit(t *testing.T) {
	testenv.RequireRoot(t)
	g := &Generator{traffic: traffic(spoof4, target4, UDP, 0), stop: make(chan struct{})}
	if err := g.traffic.complete(); err != nil {
		t.Fatal(err)
	}
	frame, err := g.load()
	if err != nil {
		t.Fatal(err)
	}
	defer g.objects.Close()
	run := func() uint64 {
		t.Helper()
		if _, err := g.objects.Livegen.Run(&ebpf.RunOptions{Data: frame, Repeat: 1000}); err != nil {
			t.Fatal(err)
		}
		return g.Sent()
	}
	if sent := run(); sent != 0 {
		t.Errorf("sent %d before anything was allowed", sent)
	}
	if !g.allow(5) || run() != 5 {
		t.Errorf("sent %d of 5", g.Sent())
	}
	g.halt()
	if g.allow(100) || run() != 5 {
		t.Errorf("sent %d after the halt", g.Sent())
	}
}

// wanted is the packet of a flow as gopacket makes it.
func wanted(t *testing.T, tr *Traffic, flow uint64) []byte {
	t.Helper()
	src := tr.Flow(flow)
	eth := &layers.Ethernet{SrcMAC: tr.SrcMAC, DstMAC: tr.DstMAC, EthernetType: layers.EthernetTypeIPv4}
	var network gopacket.SerializableLayer = &layers.IPv4{Version: 4, TTL: 64, Flags: layers.IPv4DontFragment,
		Protocol: layers.IPProtocol(tr.Protocol), SrcIP: src.Addr().AsSlice(), DstIP: tr.Target.Addr().AsSlice()}
	if tr.FragmentOffset > 0 {
		ip := network.(*layers.IPv4)
		ip.Flags, ip.FragOffset = layers.IPv4MoreFragments, uint16(tr.FragmentOffset/8)
	}
	overhead := 14 + 20
	if src.Addr().Is6() {
		eth.EthernetType = layers.EthernetTypeIPv6
		network = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocol(tr.Protocol),
			SrcIP: src.Addr().AsSlice(), DstIP: tr.Target.Addr().AsSlice()}
		overhead = 14 + 40
	}
	var transport gopacket.SerializableLayer
	if tr.Protocol == UDP {
		udp := &layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(tr.Target.Port())}
		udp.SetNetworkLayerForChecksum(network.(gopacket.NetworkLayer))
		transport, overhead = udp, overhead+8
	} else {
		tcp := &layers.TCP{SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(tr.Target.Port()), Seq: 1, Window: 0xffff,
			FIN: tr.Flags&FIN != 0, SYN: tr.Flags&SYN != 0, RST: tr.Flags&RST != 0, PSH: tr.Flags&PSH != 0, ACK: tr.Flags&ACK != 0}
		if tcp.ACK {
			tcp.Ack = 1
		}
		tcp.SetNetworkLayerForChecksum(network.(gopacket.NetworkLayer))
		transport, overhead = tcp, overhead+20
	}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		eth, network, transport, gopacket.Payload(make([]byte, tr.Size-overhead)))
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// wire is a veth pair between two namespaces of the test: eth0 in each, with a sink on the right.
type wire struct {
	left, right *testenv.Namespace
	sink        *Sink
}

func newWire(t testing.TB) *wire {
	t.Helper()
	env := testenv.ForTest(t)
	w := &wire{}
	var err error
	if w.left, err = env.Namespace("left"); err != nil {
		t.Fatal(err)
	}
	if w.right, err = env.Namespace("right"); err != nil {
		t.Fatal(err)
	}
	err = env.Veth(testenv.End{Namespace: w.left, Name: "eth0", MAC: leftMAC},
		testenv.End{Namespace: w.right, Name: "eth0", MAC: rightMAC}, 2)
	if err != nil {
		t.Fatal(err)
	}
	if w.sink, err = StartSink(w.right, "eth0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.sink.Stop() })
	return w
}

func (w *wire) total(t testing.TB) Tally {
	t.Helper()
	total, err := w.sink.Total()
	if err != nil {
		t.Fatal(err)
	}
	return total
}

// refused is what found the ring of the veth full: at full rate the receiving side can be late on a busy machine.
func (w *wire) refused(t testing.TB) uint64 {
	t.Helper()
	dev, err := w.left.Link("eth0")
	if err != nil {
		t.Fatal(err)
	}
	return dev.Attrs().Statistics.TxDropped
}

// balance waits until everything sent is accounted for: the last frames may still be in the ring.
func (w *wire) balance(t testing.TB, sent uint64, counted func() uint64) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(time.Millisecond) {
		received, refused := counted(), w.refused(t)
		if received+refused == sent {
			t.Logf("sent %d = received %d + refused by the ring %d", sent, received, refused)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("sent %d, received %d, refused by the ring %d", sent, received, refused)
		}
	}
}

// What is sent arrives: the number asked for, to the byte, and at its destination.
func TestSentIsReceived(t *testing.T) {
	for name, tr := range map[string]Traffic{
		"TCP over IPv4": {Source: spoof4, Target: target4, Protocol: TCP, Flags: SYN, Flows: 1000, Count: 1_000_003},
		"UDP over IPv6": {Source: spoof6, Target: target6, Protocol: UDP, Flows: 10, Size: 1514, Count: 100_000},
		"one packet":    {Source: onlyFrom, Target: target4, Protocol: UDP, Count: 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWire(t)
			tr.SrcMAC, tr.DstMAC = leftMAC, rightMAC
			g, err := StartGenerator(w.left, "eth0", tr)
			if err != nil {
				t.Fatal(err)
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			if g.Sent() != tr.Count {
				t.Errorf("sent %d of %d", g.Sent(), tr.Count)
			}
			w.balance(t, tr.Count, func() uint64 { return w.total(t).Packets })
			total := w.total(t)
			if total.Packets < tr.Count/2+1 || total.Bytes != total.Packets*uint64(g.traffic.Size) {
				t.Errorf("sent %d frames of %d bytes, received %+v", tr.Count, g.traffic.Size, total)
			}
			to, err := w.sink.Destinations()
			if err != nil {
				t.Fatal(err)
			}
			want := map[Destination]Tally{{[6]byte(rightMAC), tr.Target.Addr(), tr.Protocol}: total}
			if !maps.Equal(to, want) {
				t.Errorf("received %+v, want %+v", to, want)
			}
		})
	}
}

// A paced generator is never ahead of its rate, and gets all of it sent.
func TestPace(t *testing.T) {
	w := newWire(t)
	tr := traffic(spoof4, target4, TCP, SYN)
	tr.Count, tr.Rate = 25_000, 50_000
	start := time.Now()
	g, err := StartGenerator(w.left, "eth0", tr)
	if err != nil {
		t.Fatal(err)
	}
	steps := make(map[uint64]bool)
	for ended := false; !ended; time.Sleep(time.Millisecond) {
		select {
		case <-g.done:
			ended = true
		default:
		}
		sent := g.Sent()
		if most := uint64(time.Since(start).Seconds() * float64(tr.Rate)); sent > most {
			t.Fatalf("sent %d when %d were due", sent, most)
		}
		steps[sent] = true
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 490*time.Millisecond || took > 5*time.Second {
		t.Errorf("25000 packets at a rate of 50000 took %v", took)
	}
	if len(steps) < 5 {
		t.Errorf("sent in %d bursts", len(steps))
	}
	if g.Sent() != tr.Count {
		t.Errorf("sent %d of %d", g.Sent(), tr.Count)
	}
	w.balance(t, tr.Count, func() uint64 { return w.total(t).Packets })
}

// The end of the duration, and Stop, end a call of millions of packets early, and the count is still exact.
func TestEndsEarly(t *testing.T) {
	w := newWire(t)
	tr := traffic(spoof4, target4, TCP, SYN)
	tr.Count, tr.Duration = 0, 300*time.Millisecond
	start := time.Now()
	g, err := StartGenerator(w.left, "eth0", tr)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 300*time.Millisecond || took > 5*time.Second {
		t.Errorf("a duration of 300ms took %v", took)
	}
	first := g.Sent()

	tr.Count, tr.Duration = 1<<40, time.Minute
	if g, err = StartGenerator(w.left, "eth0", tr); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	start = time.Now()
	for range 2 {
		if err := g.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Stop took %v", took)
	}
	if first == 0 || g.Sent() == 0 {
		t.Errorf("sent %d, then %d", first, g.Sent())
	}
	w.balance(t, first+g.Sent(), func() uint64 { return w.total(t).Packets })
}

// A flood of spoofed SYNs meets the steering program, beside packets to an address that is no VIP: the books agree.
func TestFloodMeetsSteer(t *testing.T) {
	w := newWire(t)
	if err := w.sink.Stop(); err != nil {
		t.Fatal(err)
	}
	s, err := steer.New(2, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.SetVIPs([]netip.Addr{target4.Addr(), target6.Addr()}); err != nil {
		t.Fatal(err)
	}
	dev, err := w.right.Link("eth0")
	if err != nil {
		t.Fatal(err)
	}
	var l *steer.Link
	err = w.right.Do(func() error {
		l, err = s.Attach(dev.Attrs().Index, "eth0", steer.AttachOptions{Queues: 2}, slog.New(slog.DiscardHandler))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var toVIPs uint64
	for _, tr := range []Traffic{
		{Source: spoof4, Target: netip.MustParseAddrPort("192.0.2.99:80"), Protocol: UDP, Count: 64}, // fits into the empty ring
		{Source: spoof4, Target: target4, Protocol: TCP, Flags: SYN, Flows: 100_000, Count: 200_000},
		{Source: spoof6, Target: target6, Protocol: TCP, Flags: SYN, Flows: 100_000, Count: 100_000},
	} {
		tr.SrcMAC, tr.DstMAC = leftMAC, rightMAC
		g, err := StartGenerator(w.left, "eth0", tr)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if tr.Protocol == TCP {
			toVIPs += g.Sent()
		}
	}
	w.balance(t, toVIPs, func() uint64 {
		got, err := s.Stats()
		if err != nil || got.ToVIPs != got.NoSocket || got.Redirected != 0 {
			t.Fatalf("counted %+v; %v", got, err)
		}
		return got.ToVIPs
	})
}

// Generator and sink on one core. The rate per second of CPU time is what other work beside it does not disturb.
func BenchmarkGeneratorToSink(b *testing.B) {
	w := newWire(b)
	tr := traffic(spoof4, target4, TCP, SYN)
	tr.Flows, tr.Count = 1_000_000, uint64(max(b.N, 1))
	var before, after unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &before)
	b.ResetTimer()
	g, err := StartGenerator(w.left, "eth0", tr)
	if err != nil {
		b.Fatal(err)
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	unix.Getrusage(unix.RUSAGE_SELF, &after)
	w.balance(b, tr.Count, func() uint64 { return w.total(b).Packets })
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(cpu)/float64(tr.Count), "cpu-ns/packet")
}

func TestRefusals(t *testing.T) {
	w := newWire(t)
	fds := openFDs(t)
	refused := func(name, part string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v; want an error with %q", name, err, part)
		}
	}
	tr := traffic(spoof4, target4, TCP, SYN)
	_, err := StartGenerator(w.left, "eth7", tr)
	refused("no such interface", "eth7", err)
	_, err = StartSink(w.left, "eth7")
	refused("no such interface for a sink", "eth7", err)
	_, err = StartSink(w.right, "eth0")
	refused("a second sink", "eth0", err)
	large := tr
	large.Size = 1515
	_, err = StartGenerator(w.left, "eth0", large)
	refused("larger than the MTU", "MTU", err)
	if err := w.left.LinkDown("eth0"); err != nil {
		t.Fatal(err)
	}
	_, err = StartGenerator(w.left, "eth0", tr)
	refused("interface down", "down", err)
	if got := w.total(t); got.Packets != 0 {
		t.Errorf("%d packets were sent all the same", got.Packets)
	}
	if now := openFDs(t); now != fds {
		t.Errorf("%d open descriptors, %d before", now, fds)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
