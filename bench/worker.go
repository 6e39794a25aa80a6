//go:build linux

package bench

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/internal/shm"
	"github.com/sluice-lb/sluice/maglev"
)

// burst is how many frames are put into the RX ring, treated and taken out of the TX ring at a time. Only the middle is timed.
const burst = 8192

// Modes of a WorkerResult.
const (
	modeSwap = "swap" // a bare MAC swap on the same rings
	modeHit  = "ipip" // the worker, packets of flows with a word
	modeSYN  = "syn"  // SYNs of flows that are not known, which leave no word
	modeNew  = "new"  // ACKs of flows that are not known, each of which gets a word; once the table is full, another's
	// As modeHit, each packet being counted against a limit of its source; and SYNs that are answered with a challenge, or a cookie.
	modeLimits    = "limits"
	modeChallenge = "challenge"
	modeCookie    = "cookie"
)

var modes = []string{modeSwap, modeHit, modeSYN, modeNew, modeLimits, modeChallenge, modeCookie}

// WorkerResult is what one mode cost with one number of flows.
type WorkerResult struct {
	// Mode is swap (a bare MAC swap), ipip (known flows), syn (SYNs), new (unknown flows, inserted), limits (known flows, with a
	// limit of their sources), challenge or cookie (SYNs, answered).
	Mode            string  `json:"mode"`
	Flows           int     `json:"flows"`
	NanosPerPacket  float64 `json:"ns_per_packet"` // median over the rounds
	Mpps            float64 `json:"mpps"`
	AllocsPerPacket float64 `json:"allocs_per_packet"`
}

// Worker measures the real worker, forwarding TCP by IPIP on the memory NIC, beside a bare swap of MACs on the same rings.
// All modes and numbers of flows take turns in short rounds, until duration is over, so that their ratios hold on a machine
// whose speed changes; the absolute numbers are this machine's at this moment. Generator and sink run between the timed
// bursts, on the worker's own thread, so frames are in its caches, as they are with a NIC that writes there.
func Worker(flows []int, duration time.Duration) ([]WorkerResult, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var runs []*workerRun
	for _, n := range flows {
		r := &workerRun{timings: map[string]*timing{}}
		for _, mode := range modes {
			r.timings[mode] = new(timing)
		}
		for _, node := range []struct { // what misses insert must not evict what hits look for
			at      **workerNode
			limits  forwarder.Limits
			defence forwarder.Defence
		}{
			{at: &r.hits}, {at: &r.misses}, {at: &r.defended, defence: forwarder.DefenceChallenge},
			{at: &r.cookies, defence: forwarder.DefenceCookie},
			{at: &r.limited, limits: forwarder.Limits{PerSource: forwarder.Rates{Packets: 100_000_000, Burst: time.Second}}},
		} {
			var err error
			if *node.at, err = newWorkerNode(n, 1, node.limits, node.defence); err != nil {
				return nil, err
			}
			defer (*node.at).close()
		}
		runs = append(runs, r)
	}
	for deadline := time.Now().Add(duration); ; {
		for _, r := range runs {
			r.round()
		}
		if time.Now().After(deadline) {
			break
		}
	}
	var out []WorkerResult
	for _, r := range runs {
		for _, mode := range modes {
			out = append(out, r.result(mode))
		}
	}
	return out, nil
}

// Scaling is what several workers did that share one flow table, beside one of them alone.
type Scaling struct {
	Workers int       `json:"workers"`
	Flows   int       `json:"flows"`
	One     float64   `json:"one_mpps"`    // of one worker while the others rest, median over the rounds
	All     float64   `json:"all_mpps"`    // of all of them at once, likewise
	Ratio   float64   `json:"ratio"`       // median over the rounds of All to One of the same round
	Each    []float64 `json:"round_ratio"` // ascending
}

// MeasureScaling has workers forward known flows out of one table, one alone and all at once in turns. There should be as
// many cores with nothing else to do.
func MeasureScaling(flows, workers int, duration time.Duration) (Scaling, error) {
	n, err := newWorkerNode(flows, workers, forwarder.Limits{}, forwarder.DefenceOff)
	if err != nil {
		return Scaling{}, err
	}
	defer n.close()
	s := Scaling{Workers: workers, Flows: flows}
	var ones, alls []float64
	for deadline := time.Now().Add(duration); ; {
		one, all := n.together(1), n.together(workers)
		ones, alls, s.Each = append(ones, one), append(alls, all), append(s.Each, all/one)
		if time.Now().After(deadline) {
			break
		}
	}
	for _, list := range [][]float64{ones, alls, s.Each} {
		slices.Sort(list)
	}
	s.One, s.All, s.Ratio = ones[len(ones)/2], alls[len(alls)/2], s.Each[len(s.Each)/2]
	return s, nil
}

// together has the first so many workers forward at once for a moment, and returns millions of packets a second of their
// own time.
func (n *workerNode) together(workers int) (mpps float64) {
	rates := make([]float64, workers)
	var running sync.WaitGroup
	until := time.Now().Add(100 * time.Millisecond)
	for i, l := range n.lanes[:workers] {
		running.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var took time.Duration
			packets := 0
			for time.Now().Before(until) {
				l.generate(ack, func(int) uint32 { return uint32(l.rng.Uint64() % uint64(n.flows)) })
				start := time.Now()
				packets += l.forward()
				took += time.Since(start)
				l.nic.Collect(0, nil)
			}
			rates[i] = float64(packets) / took.Seconds() / 1e6
		})
	}
	running.Wait()
	for _, r := range rates {
		mpps += r
	}
	return mpps
}

// workerRun is the modes of one number of flows.
type workerRun struct {
	hits, misses, limited, defended, cookies *workerNode
	unknown                                  uint32 // the next flow that nobody has seen
	timings                                  map[string]*timing
}

// timing is what one mode took.
type timing struct {
	rounds  []float64 // ns/packet
	packets uint64
	allocs  uint64
}

// workerNode is an engine whose table knows some flows, and its workers.
type workerNode struct {
	flows  int
	memory *shm.Memory
	lanes  []*workerLane
}

// workerLane is one worker with a NIC of its own.
type workerLane struct {
	nic    *xsk.MemoryNIC
	socket *xsk.Socket
	worker *forwarder.Worker
	rng    *rand.PCG
	frames [][]byte
	descs  [64]xsk.Desc
}

func newWorkerNode(flows, workers int, limits forwarder.Limits, defence forwarder.Defence) (_ *workerNode, err error) {
	n := &workerNode{flows: flows}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	words, err := conntrack.WordsFor(uint64(flows))
	if err != nil {
		return nil, err
	}
	if n.memory, err = shm.NewMemfd("sluice-bench", int(words*8)); err != nil {
		return nil, err
	}
	keys, err := forwarder.DeriveKeys([]byte("benchmark seed 0"))
	if err != nil {
		return nil, err
	}
	clock, err := forwarder.NewClock()
	if err != nil {
		return nil, err
	}
	engine, err := forwarder.NewEngine(forwarder.EngineConfig{
		Keys: keys, Words: n.memory.Words(), Clock: clock, LimitWords: make([]uint64, 1<<20), ProvedWords: make([]uint64, 1<<16),
	})
	if err != nil {
		return nil, err
	}
	for i := range workers {
		l := &workerLane{rng: rand.NewPCG(uint64(i+1), uint64(flows))}
		l.nic, err = xsk.NewMemoryNIC(xsk.Options{Frames: 2 * burst, FillSize: burst, CompletionSize: burst, RXSize: burst, TXSize: burst}, 1)
		if err != nil {
			return nil, err
		}
		umem := l.nic.Umem()
		l.socket = l.nic.Sockets()[0]
		l.worker = engine.NewWorker(forwarder.WorkerIO{
			Memory: umem.Memory(), Wait: umem.Wait, Queues: []forwarder.Queue{{Port: l.socket}},
		})
		for range burst {
			l.frames = append(l.frames, tcpFrame())
		}
		n.lanes = append(n.lanes, l)
	}
	service := forwarder.ServiceSpec{
		Name: "bench", VIP: netip.MustParseAddr("192.0.2.10"), Protocol: packet.ProtoTCP,
		Ports: []forwarder.PortRange{{First: 80, Last: 80}}, Mode: forwarder.IPIP, Defence: defence,
	}
	hops := map[netip.Addr]forwarder.Hop{}
	for i := range 100 {
		a := netip.AddrFrom4([4]byte{10, 0, 1, byte(i)})
		service.Backends = append(service.Backends, forwarder.BackendSpec{
			Name: fmt.Sprintf("backend-%d", i), Address: a, Weight: 100, Admit: maglev.MakeAdmit(maglev.Up, maglev.All),
		})
		hops[a] = forwarder.Hop{OnLink: true, Source: netip.MustParseAddr("10.0.0.1"), MTU: 1600}
	}
	engine.SetHops(hops)
	if err := engine.Apply(forwarder.Spec{Services: []forwarder.ServiceSpec{service}, Limits: limits}); err != nil {
		return nil, err
	}
	for first := 0; first < flows; first += burst { // each flow's first packet
		n.lanes[0].generate(ack, func(i int) uint32 { return uint32((first + i) % flows) })
		n.lanes[0].forward()
		n.lanes[0].nic.Collect(0, nil)
	}
	return n, nil
}

// tcpFrame is an ACK of 64 bytes to 192.0.2.10:80, but for the source and the checksum.
func tcpFrame() []byte {
	f := make([]byte, 64)
	copy(f, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00})
	ip := f[14:]
	copy(ip, []byte{0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, packet.ProtoTCP})
	copy(ip[16:], []byte{192, 0, 2, 10})
	tcp := ip[20:]
	binary.BigEndian.PutUint16(tcp[2:], 80)
	tcp[12], tcp[13] = 5<<4, 0x10
	return f
}

// TCP flags of frames.
const (
	syn = 0x02
	ack = 0x10
)

// generate puts a burst of frames into the RX ring, of the flows that flow names.
func (l *workerLane) generate(flags byte, flow func(i int) uint32) {
	for i, f := range l.frames {
		f[14+20+13] = flags
		n := flow(i)
		ip := f[14:34]
		binary.BigEndian.PutUint32(ip[12:], 0x0b000000+n>>8)
		binary.BigEndian.PutUint16(f[34:], 1024+uint16(n&0xff))
		ip[10], ip[11] = 0, 0
		sum := uint32(0)
		for k := 0; k < 20; k += 2 {
			sum += uint32(binary.BigEndian.Uint16(ip[k:]))
		}
		sum = sum>>16 + sum&0xffff
		binary.BigEndian.PutUint16(ip[10:], ^uint16(sum>>16+sum))
	}
	l.nic.DeliverBatch(0, l.frames)
}

func (l *workerLane) forward() (packets int) {
	for n := l.worker.Poll(0); n > 0; n = l.worker.Poll(0) {
		packets += n
	}
	return packets
}

// swapMACs is the least that a forwarder can do on these rings.
func (l *workerLane) swapMACs() (packets int) {
	memory := l.nic.Umem().Memory()
	for n := l.socket.Receive(l.descs[:]); n > 0; n = l.socket.Receive(l.descs[:]) {
		for i := range l.descs[:n] {
			f := memory[l.descs[i].Addr : l.descs[i].Addr+12]
			a, b := [6]byte(f[:6]), [6]byte(f[6:])
			copy(f, b[:])
			copy(f[6:], a[:])
		}
		l.socket.Transmit(l.descs[:n])
		_ = l.socket.Wake()
		packets += n
	}
	return packets
}

// round times some bursts of each mode.
func (r *workerRun) round() {
	const bursts = 4
	hits, misses, limited := r.hits.lanes[0], r.misses.lanes[0], r.limited.lanes[0]
	defended, cookies := r.defended.lanes[0], r.cookies.lanes[0]
	known := func(int) uint32 { return uint32(hits.rng.Uint64() % uint64(r.hits.flows)) }
	unknown := func(int) uint32 { r.unknown++; return uint32(r.hits.flows) + r.unknown }
	for _, mode := range []struct {
		name  string
		lane  *workerLane
		flags byte
		flow  func(int) uint32
		run   func() int
	}{
		{modeSwap, hits, ack, known, hits.swapMACs},
		{modeHit, hits, ack, known, hits.forward},
		{modeSYN, misses, syn, unknown, misses.forward},
		{modeNew, misses, ack, unknown, misses.forward},
		{modeLimits, limited, ack, known, limited.forward},
		{modeChallenge, defended, syn, unknown, defended.forward},
		{modeCookie, cookies, syn, unknown, cookies.forward},
	} {
		var took time.Duration
		packets := 0
		t := r.timings[mode.name]
		for i := range 1 + bursts {
			mode.lane.generate(mode.flags, mode.flow)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			n := mode.run()
			elapsed := time.Since(start)
			runtime.ReadMemStats(&after)
			mode.lane.nic.Collect(0, nil)
			if i == 0 { // the caches are full of another lane's memory, unless the mode before used this one too
				continue
			}
			packets, took = packets+n, took+elapsed
			t.allocs += after.Mallocs - before.Mallocs
		}
		t.rounds = append(t.rounds, float64(took.Nanoseconds())/float64(packets))
		t.packets += uint64(packets)
	}
}

func (r *workerRun) result(mode string) WorkerResult {
	t := r.timings[mode]
	slices.Sort(t.rounds)
	ns := t.rounds[len(t.rounds)/2]
	return WorkerResult{Mode: mode, Flows: r.hits.flows, NanosPerPacket: ns, Mpps: 1000 / ns,
		AllocsPerPacket: float64(t.allocs) / float64(t.packets)}
}

func (n *workerNode) close() {
	for _, l := range n.lanes {
		_ = l.nic.Umem().Close()
	}
	if n.memory != nil {
		_ = n.memory.Close()
	}
}
