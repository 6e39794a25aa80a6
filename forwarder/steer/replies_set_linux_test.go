package steer

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// Whatever set of ranges follows whichever, exactly the ports in it are taken.
func TestSetReplies(t *testing.T) {
	r := newSizedRig(t, 1, 600, AttachOptions{Queues: 1})
	random := rand.New(rand.NewPCG(7, 8))
	addrs := []netip.Addr{backend4, backend6, gappy4}
	frame := func(e endpoint, port uint16) []byte {
		ports := gopacket.Payload{byte(port >> 8), byte(port), 0, 1}
		if e.addr.Is4() {
			return build(t, ether(ownMAC, layers.EthernetTypeIPv4), from4(e.addr, other4, layers.IPProtocol(e.proto)), ports)
		}
		return build(t, ether(ownMAC, layers.EthernetTypeIPv6), from6(e.addr, other6, layers.IPProtocol(e.proto)), ports)
	}
	in := func(set []Source, e endpoint, port uint16) bool {
		for _, s := range set {
			if s.Addr == e.addr && s.Proto == e.proto && s.First <= port && port <= s.Last {
				return true
			}
		}
		return false
	}
	var set []Source
	for round := range 60 {
		set = nil
		for range random.IntN(12) {
			s := Source{Addr: addrs[random.IntN(3)], Proto: []uint8{6, 17}[random.IntN(2)]}
			s.First = uint16(random.Uint32())
			s.Last = s.First + min(uint16(random.IntN(1<<random.IntN(17))), 65535-s.First)
			set = append(set, s)
		}
		if err := r.SetReplies(set); err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			for _, proto := range []uint8{6, 17} {
				e := endpoint{a, proto}
				ports := []uint16{0, 65535, uint16(random.Uint32())}
				for _, s := range set {
					ports = append(ports, s.First, s.First-1, s.Last, s.Last+1, s.First/2+s.Last/2)
				}
				for _, p := range ports {
					if got, want := r.run(t, frame(e, p)) == xdpDrop, in(set, e, p); got != want {
						t.Fatalf("round %d: %s port %d taken: %v, want %v, with %v", round, e, p, got, want, set)
					}
				}
			}
		}
	}
	// Nothing stays behind in the kernel that no source needs.
	if err := r.SetReplies(nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{steerMapReplySources, steerMapReplyBlocks} {
		var key steerReplyKey
		if err := r.maps[name].NextKey(nil, &key); err == nil {
			t.Errorf("%s still holds %+v", name, key)
		}
	}
}

// A refused set changes nothing.
func TestSetRepliesRefuses(t *testing.T) {
	r := newSizedRig(t, 1, 2, AttachOptions{Queues: 1})
	good := Source{backend4, 6, 80, 80}
	if err := r.SetReplies([]Source{good}); err != nil {
		t.Fatal(err)
	}
	third := netip.MustParseAddr("10.2.0.3")
	for name, bad := range map[string][]Source{
		"too many":       {{backend4, 17, 1, 1}, {backend6, 6, 80, 80}, {gappy4, 6, 80, 80}},
		"too many gaps":  {{third, 6, 1, 1}, {third, 6, 1000, 1000}, {third, 6, 2000, 2000}},
		"zero":           {{Proto: 6}},
		"mapped":         {{netip.MustParseAddr("::ffff:10.2.0.1"), 6, 80, 80}},
		"zone":           {{netip.MustParseAddr("fe80::1%eth0"), 6, 80, 80}},
		"ICMP":           {{backend6, 58, 0, 65535}},
		"ports backward": {{backend6, 6, 81, 80}},
	} {
		if err := r.SetReplies(bad); err == nil {
			t.Errorf("%s: taken", name)
		}
		if got := r.run(t, replyCases(t)[0].frame); got != xdpDrop {
			t.Errorf("%s: the refused set has changed what happens to the source before: verdict %d", name, got)
		}
	}
	// Full, then wholly replaced: there is room for that.
	for _, set := range [][]Source{
		{{third, 6, 1, 1}, {third, 6, 1000, 1000}, good},
		{{third, 6, 2000, 2000}, {third, 6, 3000, 3000}, {gappy4, 6, 80, 80}},
		{{backend6, 6, 2000, 2000}, {backend6, 6, 3000, 3000}, good},
	} {
		if err := r.SetReplies(set); err != nil {
			t.Error(err)
		}
	}
}

// A source that stays is steered at every moment, though ranges are added beside it and taken away.
func TestSourceThatStaysIsNeverMissed(t *testing.T) {
	r := newSizedRig(t, 1, 600, AttachOptions{Queues: 1})
	stays := Source{backend4, 6, 80, 80}
	if err := r.SetReplies([]Source{stays}); err != nil {
		t.Fatal(err)
	}
	stop, changes := make(chan struct{}), make(chan int)
	go func() {
		random := rand.New(rand.NewPCG(9, 10))
		n := 0
		defer func() { changes <- n }()
		for ; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			set := []Source{stays}
			for range random.IntN(4) {
				first := uint16(random.IntN(1000))
				set = append(set, Source{backend4, 6, first, first + uint16(random.IntN(300))})
			}
			if err := r.SetReplies(set); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	frame := replyCases(t)[0].frame
	const packets = 30_000
	for i := range packets {
		verdict, err := r.link.objects.SluiceSteer.Run(&ebpf.RunOptions{Data: frame})
		if err != nil {
			t.Fatal(err)
		}
		if verdict != xdpDrop {
			t.Fatalf("packet %d of the source: verdict %d", i, verdict)
		}
	}
	close(stop)
	if n := <-changes; n < 100 {
		t.Errorf("the test was too weak: %d changes of the set", n)
	}
}

// Interfaces share the sets: one attached before a change and one attached after it do alike.
func TestInterfacesShareSets(t *testing.T) {
	r := newReplyRig(t, AttachOptions{Queues: 1})
	second := &rig{Steer: r.Steer, link: Link{name: "second"}}
	if err := r.load(&second.link.objects, AttachOptions{Queues: 1}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { second.link.objects.Close() })
	if err := second.link.SetMAC(ownMAC); err != nil {
		t.Fatal(err)
	}
	reply := replyCases(t)[0].frame
	want := Stats{}
	for _, taken := range []bool{true, false, true} {
		sources := replySources
		if !taken {
			sources = nil
		}
		if err := r.SetReplies(sources); err != nil {
			t.Fatal(err)
		}
		for _, on := range []*rig{r, second} {
			verdict := on.run(t, reply)
			if (verdict == xdpDrop) != taken {
				t.Errorf("with %d sources on %s: verdict %d", len(sources), on.link.name, verdict)
			}
			if taken {
				want.Replies++
				want.NoSocket++
			}
		}
	}
	if got := r.stats(t); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}

func TestUnion(t *testing.T) {
	r := func(ports ...uint16) (out []PortRange) {
		for i := 0; i < len(ports); i += 2 {
			out = append(out, PortRange{ports[i], ports[i+1]})
		}
		return out
	}
	for _, c := range []struct{ in, want []PortRange }{
		{r(80, 80), r(80, 80)},
		{r(80, 80, 80, 80), r(80, 80)},
		{r(82, 90, 80, 81), r(80, 90)},
		{r(80, 90, 85, 86), r(80, 90)},
		{r(92, 93, 80, 90), r(80, 90, 92, 93)},
		{r(0, 65535, 65535, 65535), r(0, 65535)},
		{r(65535, 65535, 0, 65533), r(0, 65533, 65535, 65535)},
	} {
		if got := union(slices.Clone(c.in)); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.in, got, c.want)
		}
	}
}
