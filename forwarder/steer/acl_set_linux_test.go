package steer

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/testenv"
)

func numbered(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(20 + i>>16), byte(i >> 8), byte(i), 1}), 32)
}

// A reload writes what has changed, and nothing else.
func TestACLWritesTheDifference(t *testing.T) {
	r := newSourceRig(t, AttachOptions{})
	a := &ACL{Lists: []List{
		{"a", vip4, 6, []PortRange{{80, 80}}, deny("10.0.0.0/8")},
		{"b", vip4, 6, []PortRange{{81, 81}}, deny("11.0.0.0/8")},
	}}
	for i := range 5000 {
		a.Global = append(a.Global, Entry{numbered(i), i%2 == 0})
	}
	step := func(name string, sources, destinations int, change func()) {
		t.Helper()
		change()
		r.acl.sources.writes, r.acl.destinations.writes = 0, 0
		setACL(t, r.Steer, a)
		if s, d := r.acl.sources.writes, r.acl.destinations.writes; s != sources || d != destinations {
			t.Errorf("%s: %d entries and %d destinations written, want %d and %d", name, s, d, sources, destinations)
		}
	}
	step("new", 5002, 2, func() {})
	step("the same", 0, 0, func() {})
	step("another order", 0, 0, func() {
		a.Global[0], a.Global[4000] = a.Global[4000], a.Global[0]
		a.Lists[0], a.Lists[1] = a.Lists[1], a.Lists[0]
	})
	step("one added", 1, 0, func() { a.Global = append(a.Global, Entry{numbered(6000), true}) })
	step("one changed", 1, 0, func() { a.Global[17].Deny = !a.Global[17].Deny })
	step("one that denied removed", 2, 0, func() { a.Global = a.Global[:len(a.Global)-1] }) // told to allow, then removed
	step("a port added", 0, 1, func() { a.Lists[0].Ports = append(a.Lists[0].Ports, PortRange{90, 90}) })
	step("a list added", 1, 1, func() {
		a.Lists = append(a.Lists, List{"c", vip6, 17, all, deny("2001:db8::/32")})
	})
	step("a list renamed", 3, 1, func() { a.Lists[2].Name = "d" })
	step("all gone", 5003+2504, 4+4, func() { a = nil })
	checkHeld(t, r.Steer, 0, 0)
}

// While lists of many entries replace each other under continuous traffic, each packet meets the one or the other as a
// whole: what is seen goes from the first to the second at one moment, of every reload.
func TestACLReloadIsSeenAtOnce(t *testing.T) {
	r := newSourceRig(t, AttachOptions{})
	random := rand.New(rand.NewPCG(15, 16))
	const sets, reloads = 4, 24
	var acls [sets]*ACL
	for i := range acls {
		acls[i] = randomACL(random, 200)
		for j := range 3000 {
			if random.IntN(3) > 0 {
				acls[i].Global = append(acls[i].Global, Entry{numbered(j), random.IntN(2) == 0})
			}
		}
	}
	acls[2] = nil
	type probe struct {
		frame  []byte
		denied [sets]bool
	}
	var probes []probe
	for len(probes) < 64 {
		src, dst, port := netip.AddrFrom4([4]byte{10, byte(random.IntN(4)), 0, byte(random.Uint32())}), vip4, uint16(random.IntN(3000))
		switch random.IntN(3) {
		case 0:
			src, dst = netip.AddrFrom16([16]byte{0x20, 1, byte(random.IntN(4)), 15: byte(random.Uint32())}), vip6
		case 1:
			src = numbered(random.IntN(3000)).Addr()
		}
		p := probe{frame: sent(t, src.String(), dst.String(), protoTCP, 1, port)}
		for i, a := range acls {
			p.denied[i] = a != nil && a.model(src, dst, 6, port)
		}
		probes = append(probes, p)
	}
	setACL(t, r.Steer, acls[0])

	type seen struct{ packets, told int }
	stop, result := make(chan struct{}), make(chan seen, 1)
	go func() {
		var s seen
		defer func() { result <- s }()
		at := 0 // the reload of which the lists are seen
		for {
			select {
			case <-stop:
				if at != reloads {
					t.Errorf("at the end the lists of reload %d were seen, want %d", at, reloads)
				}
				return
			default:
			}
			for i := range probes {
				p := &probes[i]
				verdict, err := r.link.objects.SluiceSteer.Run(&ebpf.RunOptions{Data: p.frame})
				if err != nil {
					t.Error(err)
					return
				}
				s.packets++
				now, next := p.denied[at%sets], p.denied[(at+1)%sets]
				if now != next {
					s.told++
				}
				switch denied := verdict == xdpDrop; {
				case denied == now:
				case denied == next:
					at++
				default:
					t.Errorf("packet %d, probe %d: denied %v, as with neither set %d nor the next", s.packets, i, denied, at%sets)
					return
				}
			}
		}
	}()
	for i := 1; i <= reloads; i++ {
		setACL(t, r.Steer, acls[i%sets])
	}
	// All probes once more, so that the last set has been seen.
	for _, p := range probes {
		if denied := r.run(t, p.frame) == xdpDrop; denied != p.denied[reloads%sets] {
			t.Errorf("after the last reload: denied %v", denied)
		}
	}
	close(stop)
	s := <-result
	t.Logf("%d packets, of which %d could tell two sets apart, in %d reloads", s.packets, s.told, reloads)
	if s.told < 1000 {
		t.Error("the test was too weak")
	}
}

// A change that fails half way leaves the lists before in force, and nothing of itself in the kernel.
func TestACLFailedChange(t *testing.T) {
	r := newSourceRig(t, AttachOptions{})
	old := &ACL{Global: deny("10.0.0.0/8"), Lists: []List{{"a", vip4, 6, []PortRange{{80, 80}}, deny("20.0.0.0/8")}}}
	setACL(t, r.Steer, old)
	now := &ACL{Global: join(allow("10.0.0.0/8"), deny("30.0.0.0/8")),
		Lists: []List{{"a", vip4, 6, []PortRange{{80, 81}}, allow("20.0.0.0/8")}, {"b", vip6, 6, all, deny("::/0")}}}
	check := func(a *ACL) {
		t.Helper()
		for _, src := range []string{"10.0.0.1", "20.0.0.1", "30.0.0.1"} {
			for port := uint16(79); port < 83; port++ {
				want := a.model(netip.MustParseAddr(src), vip4, 6, port)
				if got := r.denied(t, sent(t, src, vip4.String(), protoTCP, 1, port)); got != want {
					t.Errorf("from %s port %d: denied %v, want %v", src, port, got, want)
				}
			}
		}
	}
	good := r.acl.destinations.kernel
	tiny, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LPMTrie, KeySize: 24, ValueSize: 12, MaxEntries: 1, Flags: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer tiny.Close()
	for _, fail := range []struct {
		name   string
		broken func()
	}{
		{"destinations", func() { r.acl.destinations.kernel = tiny }},
		{"wait", func() { r.programs.outer = tiny }},
	} {
		outer := r.programs.outer
		fail.broken()
		if err := r.SetACL(now); err == nil {
			t.Errorf("%s: no error", fail.name)
		}
		check(old)
		r.programs.outer, r.acl.destinations.kernel = outer, good
		setACL(t, r.Steer, old)
		checkHeld(t, r.Steer, 2, 1)
		check(old)
	}
	setACL(t, r.Steer, now)
	check(now)
	checkHeld(t, r.Steer, 4, 2)
}

func TestSetACLRefuses(t *testing.T) {
	testenv.RequireRoot(t)
	s, err := New(1, 1, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	good := List{"a", vip4, 6, []PortRange{{80, 80}}, deny("10.0.0.0/8")}
	with := func(change func(*List)) *ACL {
		l := good
		change(&l)
		return &ACL{Lists: []List{l}}
	}
	for name, a := range map[string]*ACL{
		"too many":         {Global: deny("1.0.0.0/8", "2.0.0.0/8", "3.0.0.0/8", "4.0.0.0/8")},
		"no prefix":        {Global: []Entry{{}}},
		"mapped":           {Global: deny("::ffff:10.0.0.0/104")},
		"contradiction":    {Global: join(deny("10.0.0.0/8"), allow("10.1.0.0/8"))},
		"no name":          with(func(l *List) { l.Name = "" }),
		"no VIP":           with(func(l *List) { l.VIP = netip.Addr{} }),
		"mapped VIP":       with(func(l *List) { l.VIP = netip.MustParseAddr("::ffff:10.0.0.1") }),
		"ICMP":             with(func(l *List) { l.Proto = 1 }),
		"no ports":         with(func(l *List) { l.Ports = nil }),
		"ports backward":   with(func(l *List) { l.Ports = []PortRange{{81, 80}} }),
		"contradiction in": with(func(l *List) { l.Entries = join(deny("10.0.0.0/8"), allow("10.0.0.0/8")) }),
		"name twice":       {Lists: []List{good, {"a", vip6, 6, all, nil}}},
		"same port":        {Lists: []List{good, {"b", vip4, 6, []PortRange{{80, 80}}, deny("11.0.0.0/8")}}},
		"port in range":    {Lists: []List{good, {"b", vip4, 6, []PortRange{{1, 1}, {70, 90}}, deny("11.0.0.0/8")}}},
	} {
		if err := s.SetACL(a); err == nil {
			t.Errorf("%s: taken", name)
		} else {
			t.Log(err)
		}
	}
	if s.acl.generation != 0 {
		t.Error("something was put in force")
	}
	setACL(t, s, &ACL{Global: deny("10.0.0.0/8", "10.0.0.1/8"), Lists: []List{
		{"a", vip4, 6, []PortRange{{80, 80}, {80, 90}, {91, 91}}, deny("10.0.0.0/8")},
		{"b", vip4, 17, []PortRange{{80, 80}}, deny("10.0.0.0/8")}}})
	// Full, and wholly replaced.
	setACL(t, s, &ACL{Global: deny("20.0.0.0/8", "30.0.0.0/8", "::/0")})
	checkHeld(t, s, 3, 0)
	for _, room := range []int{-1, maxACLEntries + 1} {
		if _, err := New(1, 1, room); err == nil {
			t.Errorf("room for %d entries was accepted", room)
		}
	}
}

// Every range of ports is cut into as few prefixes as it takes, at most 30, that are the range.
func TestPortPrefixes(t *testing.T) {
	random := rand.New(rand.NewPCG(17, 18))
	for round := range 300 {
		p := PortRange{uint16(random.Uint32()), uint16(random.Uint32())}
		switch round {
		case 0:
			p = PortRange{0, 65535}
		case 1:
			p = PortRange{1, 65534}
		case 2:
			p = PortRange{65535, 65535}
		}
		if p.First > p.Last {
			p.First, p.Last = p.Last, p.First
		}
		var r resolved
		if err := r.addList(1, &List{"a", vip4, 6, []PortRange{p}, deny("::/0")}); err != nil {
			t.Fatal(err)
		}
		next := int(p.First)
		for _, d := range r.destinations {
			if first := int(binary.BigEndian.Uint16(d.Data[18:])); first != next {
				t.Fatalf("%+v: a prefix begins at %d, want %d", p, first, next)
			}
			next += 1 << (8*keyBytes - d.Bits)
		}
		if next != int(p.Last)+1 || len(r.destinations) > 30 || round == 0 && len(r.destinations) != 1 {
			t.Errorf("%+v: %d prefixes end before %d", p, len(r.destinations), next)
		}
	}
}

// Keys and values in Go are what the program has.
func TestACLLayout(t *testing.T) {
	if a, b, c := binary.Size(trieKey{}), binary.Size(steerAclKey{}), binary.Size(steerDestination{}); a != b || a != c {
		t.Errorf("keys of %d, %d and %d bytes", a, b, c)
	}
	if a, b := binary.Size(trieValue{}), binary.Size(steerAclValue{}); a != b {
		t.Errorf("values of %d and %d bytes", a, b)
	}
}

// Whatever is made is closed.
func TestSteerLeavesNothingOpen(t *testing.T) {
	testenv.RequireRoot(t)
	before := openFDs(t)
	s, err := New(1, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	setACL(t, s, &ACL{Global: deny("10.0.0.0/8")})
	if err := s.Ban(client4, 1); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if now := openFDs(t); now != before {
		t.Errorf("%d open descriptors, %d before", now, before)
	}
}
