package forwarder

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/steer"
	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/internal/shm"
	"github.com/sluice-lb/sluice/maglev"
	"github.com/sluice-lb/sluice/testenv"
)

// What enum xdp_action calls the verdicts.
const (
	xdpDrop     = 1
	xdpTX       = 3
	xdpRedirect = 4
)

const provedWords = 1 << 10

// fastRig is a testRig whose clock is the machine's, beside the program in the kernel with a flow table of its own: both are shown the
// same packets. Admit words are the same memory, as in a node.
type fastRig struct {
	*testRig
	clock   func() int64
	steer   *steer.Steer
	program *ebpf.Program
	words   []uint64 // of the program's flow table
	proved  []uint64 // of the program's set of sources that have proved their address
	before  []uint64 // as they were before the packet

	provedByWorker []uint64
	rng            *rand.Rand
	out            []byte
}

func newFastRig(t *testing.T, seed uint64) *fastRig {
	t.Helper()
	const flows = 256
	env := testenv.ForTest(t)
	r := &fastRig{testRig: &testRig{t: t}, rng: rand.New(rand.NewPCG(seed, 9)), out: make([]byte, 4096)}
	var err error
	if r.clock, err = NewClock(); err != nil {
		t.Fatal(err)
	}
	keys, err := DeriveKeys([]byte("a seed for tests"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := conntrack.WordsFor(flows)
	if err != nil {
		t.Fatal(err)
	}
	admits, admitMap := r.array("admits", conntrack.MaxSlots/2)
	table, tableMap := r.array("flows", int(n))
	r.words, r.before = table.Words(), make([]uint64, n)

	ns, err := env.Namespace("fast")
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(func() (err error) {
		r.steer, err = steer.New(16, 16, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.steer.Close() })
	if err := r.steer.ShareFlows(steer.FastTable{
		Flows: tableMap, Lines: int(n) / 8, Admits: admitMap, Key: keys.Flow, Mix: keys.Mix, Slots: 64, Services: 64,
	}); err != nil {
		t.Fatal(err)
	}
	proved, provedMap := r.array("proved", provedWords)
	r.proved = proved.Words()
	set, err := guard.NewProved(r.proved, keys.Guard)
	if err != nil {
		t.Fatal(err)
	}
	key, mask := set.Shared()
	if err := r.steer.ShareProved(provedMap, key, mask); err != nil {
		t.Fatal(err)
	}
	r.attach(env, ns)

	r.provedByWorker = make([]uint64, provedWords)
	r.testRig.words = make([]uint64, n)
	r.now.Store(r.clock())
	if r.engine, err = NewEngine(EngineConfig{
		Keys: keys, Words: r.testRig.words, Clock: r.now.Load, LimitWords: make([]uint64, 1<<12), ProvedWords: r.provedByWorker,
		Fast: r.steer, Admit: admits.Uint32s(),
	}); err != nil {
		t.Fatal(err)
	}
	if r.nic, err = xsk.NewMemoryNIC(xsk.Options{Audit: true}, 1); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.nic.Umem().Close() })
	r.worker = r.engine.NewWorker(r.io())
	r.engine.SetFastExits([MaxInterfaces]bool{true})
	r.alive(true)
	return r
}

// alive says whether there is a daemon.
func (r *fastRig) alive(yes bool) {
	until := uint64(0)
	if yes {
		until = math.MaxUint64
	}
	atomic.StoreUint64(r.steer.Words().Alive, until)
}

func (r *fastRig) array(name string, words int) (*shm.Memory, *ebpf.Map) {
	r.t.Helper()
	memory, m, err := shm.NewArrayMap("test_"+name, words)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { memory.Close(); m.Close() })
	return memory, m
}

// attach has the program loaded, for an interface with nodeMAC on which nothing ever arrives.
func (r *fastRig) attach(env *testenv.Env, ns *testenv.Namespace) {
	r.t.Helper()
	other, err := env.Namespace("fastpeer")
	if err != nil {
		r.t.Fatal(err)
	}
	if err := env.Veth(testenv.End{Namespace: ns, Name: "eth0"}, testenv.End{Namespace: other, Name: "eth1"}, 1); err != nil {
		r.t.Fatal(err)
	}
	dev, err := ns.Link("eth0")
	if err != nil {
		r.t.Fatal(err)
	}
	if err := ns.Do(func() error {
		l, err := r.steer.Attach(dev.Attrs().Index, "eth0", steer.AttachOptions{Queues: 1}, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		r.t.Cleanup(func() { l.Close() })
		return errors.Join(l.SetMAC(nodeMAC[:]), l.SetFast(true), r.steer.SetExit(0, dev.Attrs().Index))
	}); err != nil {
		r.t.Fatal(err)
	}
	if dev, err = ns.Link("eth0"); err != nil {
		r.t.Fatal(err)
	}
	if r.program, err = ebpf.NewProgramFromID(ebpf.ProgramID(dev.Attrs().Xdp.ProgId)); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { r.program.Close() })
}

// fastServices are services of all kinds that the fast path forwards for, and of some that it does not.
func fastServices() []ServiceSpec {
	backends := func(v6 bool) (out []BackendSpec) {
		for i := range 3 {
			a := backend4(i + 1)
			if v6 {
				a = netip.MustParseAddr(fmt.Sprintf("2001:db8:b::%d", i+1))
			}
			out = append(out, BackendSpec{Name: fmt.Sprint("b", i), Address: a, Weight: 100, Admit: all})
		}
		return out
	}
	other4, other6 := netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")
	short := conntrack.Life{conntrack.Probation: 3, conntrack.Established: 5, conntrack.Closing: 2}
	return []ServiceSpec{
		{Name: "ipip", VIP: vip4, Protocol: protoTCP, Ports: []PortRange{{80, 80}}, Mode: IPIP, Backends: backends(false)},
		{Name: "ipip46", VIP: vip4, Protocol: protoTCP, Ports: []PortRange{{81, 81}, {90, 99}}, Mode: IPIP, Backends: backends(true)},
		{Name: "ipip64", VIP: vip6, Protocol: protoTCP, Ports: []PortRange{{80, 80}}, Mode: IPIP, Backends: backends(false)},
		{Name: "ipip6", VIP: vip6, Protocol: protoUDP, Ports: []PortRange{{53, 53}}, Mode: IPIP, Backends: backends(true), Life: short},
		{Name: "l2", VIP: vip4, Protocol: protoUDP, Ports: []PortRange{{1000, 1999}, {53, 53}}, Mode: L2, Backends: backends(false), Life: short},
		{Name: "l26", VIP: vip6, Protocol: protoTCP, Ports: []PortRange{{443, 443}}, Mode: L2, Backends: backends(true)},
		{Name: "gue", VIP: other4, Protocol: protoUDP, Ports: []PortRange{{0, 65535}}, Mode: GUE, Backends: backends(false)},
		{Name: "gue6", VIP: other6, Protocol: protoTCP, Ports: []PortRange{{0, 65535}}, Mode: GUE, Backends: backends(true)},
		{Name: "keep", VIP: other4, Protocol: protoTCP, Ports: []PortRange{{80, 80}}, Mode: IPIP, OnDown: OnDownKeep, Backends: backends(false), Life: short},
		{Name: "reset", VIP: other4, Protocol: protoTCP, Ports: []PortRange{{81, 81}}, Mode: IPIP, OnDown: OnDownReset, Backends: backends(false)},
		{Name: "defended", VIP: other4, Protocol: protoTCP, Ports: []PortRange{{82, 82}}, Mode: IPIP, Defence: DefenceAuto, Backends: backends(false)},
		{Name: "limited", VIP: other4, Protocol: protoTCP, Ports: []PortRange{{83, 83}}, Mode: IPIP, Backends: backends(false),
			Total: Rates{Packets: 1000, Burst: time.Second}},
		{Name: "nat", VIP: other4, Protocol: protoTCP, Ports: []PortRange{{84, 84}}, Mode: NAT, Backends: backends(false)},
		{Name: "source", VIP: other4, Protocol: protoTCP, Ports: []PortRange{{85, 85}}, Mode: IPIP, Scheduler: maglev.Source, Backends: backends(false)},
		{Name: "source30", VIP: other4, Protocol: protoTCP, Ports: []PortRange{{86, 86}}, Mode: IPIP, Scheduler: maglev.Source, SourcePrefix: 30,
			Backends: backends(false)},
		{Name: "source125", VIP: other6, Protocol: protoUDP, Ports: []PortRange{{53, 53}}, Mode: IPIP, Scheduler: maglev.Source, SourcePrefix: 125,
			Backends: backends(true)},
	}
}

// fastFrames are packets of clients of all of them.
func (r *fastRig) fastFrames(services []ServiceSpec) (frames [][]byte) {
	for i := range services {
		s := &services[i]
		for c := range 24 {
			f := flow{dst: s.VIP, sport: uint16(1024 + r.rng.IntN(60000)), dport: s.Ports[c%len(s.Ports)].First, udp: s.Protocol == protoUDP}
			if p := s.Ports[c%len(s.Ports)]; p.Last > p.First {
				f.dport += uint16(r.rng.IntN(int(p.Last - p.First)))
			}
			f.src = netip.AddrFrom4([4]byte{198, 51, 100, byte(c + 1)})
			if s.VIP.Is6() {
				f.src = netip.MustParseAddr(fmt.Sprintf("2001:db8:c::%d", c+1))
			}
			for _, flags := range []string{"S", "A", "A", "A", "A", "FA", "R", "SA"} {
				f.flags, f.payload = flags, r.rng.IntN(3)*r.rng.IntN(200)
				frames = append(frames, f.frame(r.t))
			}
		}
	}
	return frames
}

// mutate changes a frame in a way that may be wrong, or special.
func (r *fastRig) mutate(frame []byte) []byte {
	frame = slices.Clone(frame)
	v4 := frame[12] == 8
	ttl := 14 + 7
	if v4 {
		ttl = 14 + 8
	}
	fix := func() {
		if v4 && len(frame) >= 34 {
			sum := uint32(0)
			for i := 14; i < 34; i += 2 {
				if i != 24 {
					sum += uint32(binary.BigEndian.Uint16(frame[i:]))
				}
			}
			sum = sum&0xffff + sum>>16
			binary.BigEndian.PutUint16(frame[24:], ^uint16(sum+sum>>16))
		}
	}
	switch r.rng.IntN(12) {
	case 0: // any bits
		for range 1 + r.rng.IntN(3) {
			frame[r.rng.IntN(len(frame))] ^= 1 << r.rng.IntN(8)
		}
	case 1: // any bytes behind Ethernet, with a good checksum
		for range 1 + r.rng.IntN(3) {
			frame[14+r.rng.IntN(min(54, len(frame)-14))] = byte(r.rng.Uint32())
		}
		fix()
	case 2: // DSCP and ECN
		if v4 {
			frame[15] = byte(r.rng.Uint32())
		} else {
			frame[14] |= byte(r.rng.IntN(16))
			frame[15] |= byte(r.rng.IntN(256))
		}
		fix()
	case 3:
		frame[ttl] = byte(r.rng.IntN(3))
		fix()
	case 4: // padding
		frame = append(frame, make([]byte, 1+r.rng.IntN(40))...)
	case 5: // cut
		frame = frame[:14+r.rng.IntN(len(frame)-14)]
	case 6: // a tag: of priority, or of a VLAN that is none of ours
		tag := []byte{0x81, 0, byte(r.rng.IntN(8) << 5), byte(r.rng.IntN(2))}
		frame = slices.Insert(frame, 12, tag...)
	case 7: // fragments, don't fragment
		if v4 {
			frame[20] = byte(r.rng.IntN(8) << 5)
			fix()
		}
	}
	return frame
}

// age makes some word of both tables, if there is one, older, or puts it into another state.
func (r *fastRig) age() {
	i := r.rng.IntN(len(r.words))
	w := conntrack.Word(r.words[i])
	if w == 0 {
		return
	}
	tick, state := conntrack.Tick(r.now.Load())-uint16(r.rng.IntN(8))+1, conntrack.State(1+r.rng.IntN(3))
	r.words[i] = uint64(conntrack.MakeWord(w.Fingerprint(), w.Slot(), tick, state))
	r.testRig.words[i] = r.words[i]
}

// settle waits, if need be, until the coarse clock, which is up to 10 ms late, has reached the tick of the other one.
func (r *fastRig) settle() {
	for {
		now := r.clock()
		const provedShift = 26 // of package guard's clock
		if early, late := now-int64(12*time.Millisecond), now+int64(time.Millisecond); conntrack.Tick(early) == conntrack.Tick(late) && early>>provedShift == late>>provedShift {
			r.now.Store(now)
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// compare shows a frame to the program and to the worker, and returns whether the program forwarded it.
func (r *fastRig) compare(frame []byte) bool {
	r.settle()
	copy(r.before, r.words)
	verdict, err := r.program.Run(&ebpf.RunOptions{Data: frame, DataOut: r.out[:cap(r.out)]})
	if err != nil {
		r.t.Fatalf("%x: %v", frame, err)
	}
	var sent [][]byte
	if r.nic.DeliverBatch(0, [][]byte{frame}) != 1 {
		r.t.Fatal("the memory NIC is full")
	}
	for r.worker.turn() > 0 {
		r.nic.Collect(0, func(f []byte) { sent = append(sent, slices.Clone(f)) })
	}
	r.worker.giveUp() // a fragment that waits for its first would come out beside a later packet
	switch verdict {
	case xdpTX, xdpRedirect:
		if len(sent) != 1 {
			r.t.Fatalf("%x: the program forwards it, the worker sends %d frames", frame, len(sent))
		}
		if out := r.out[:len(sent[0])]; !bytes.Equal(out, sent[0]) {
			r.t.Fatalf("%x comes out of the program as\n%x, and of the worker as\n%x", frame, out, sent[0])
		}
		if !slices.Equal(r.words, r.testRig.words) {
			r.t.Fatalf("%x: the program's flow table is not the worker's", frame)
		}
		if !slices.Equal(r.proved, r.provedByWorker) {
			r.t.Fatalf("%x: the program's set of proved sources is not the worker's", frame)
		}
		return true
	case xdpDrop, 2:
		if !slices.Equal(r.words, r.before) || !bytes.Equal(r.out[:len(frame)], frame) {
			r.t.Fatalf("%x: verdict %d, but something has changed", frame, verdict)
		}
		copy(r.words, r.testRig.words)
		copy(r.proved, r.provedByWorker)
		return false
	}
	r.t.Fatalf("%x: verdict %d", frame, verdict)
	return false
}

// shown is what the program makes of a frame: its verdict, and the address that it is sent to, if it is.
func (r *fastRig) shown(frame []byte) (verdict uint32, to netip.Addr) {
	r.t.Helper()
	r.now.Store(r.clock())
	verdict, err := r.program.Run(&ebpf.RunOptions{Data: frame, DataOut: r.out[:cap(r.out)]})
	if err != nil {
		r.t.Fatal(err)
	}
	if verdict != xdpTX && verdict != xdpRedirect {
		return verdict, to
	}
	for _, a := range r.engine.Addresses() {
		if m := macOf(a); bytes.Equal(r.out[:6], m[:]) {
			return verdict, a
		}
	}
	r.t.Fatalf("sent to the unknown MAC %x", r.out[:6])
	return verdict, to
}

// byTable is where a packet without a word goes while no daemon runs: to the first candidate that is up.
func (r *fastRig) byTable(s *serviceState, frame []byte) netip.Addr {
	var m packet.Meta
	packet.Parse(frame, &r.engine.keys.Flow, &m)
	if s.spec.Scheduler == maglev.Source {
		mask, src := s.spec.sourceMask(), packet.Source(frame, &m)
		src.Hi, src.Lo = src.Hi&mask.Hi, src.Lo&mask.Lo
		m.Hash = packet.FlowHash(&r.engine.keys.Flow, src, m.Dst, 0, 0, m.Proto)
	}
	pool, key := s.live.Pool, r.engine.keys.Mix
	entries, slots := pool.Table().Entries(), pool.Slots()
	up := func(slot uint32) bool { return maglev.Admit(r.engine.live.Admit[slot].Load()).State() == maglev.Up }
	for i := range 8 {
		if slot := slots[entries[maglev.Mix(key, m.Hash, i)>>32*uint64(len(entries))>>32]]; up(slot) {
			return r.engine.slots.states[slot].key.address
		}
	}
	start := maglev.Mix(key, m.Hash, 8) >> 32 * uint64(len(slots)) >> 32
	for i := range slots {
		if slot := slots[(int(start)+i)%len(slots)]; up(slot) {
			return r.engine.slots.states[slot].key.address
		}
	}
	return netip.Addr{}
}

func packetFlags(frame []byte) uint16 {
	var m packet.Meta
	packet.Parse(frame, &packet.Key{}, &m)
	return m.Flags
}
