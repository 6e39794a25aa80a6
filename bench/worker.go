//go:build linux

package bench

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
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

// WorkerResult is what one mode cost with one number of flows.
type WorkerResult struct {
	Mode            string  `json:"mode"` // ipip: the real worker; swap: a bare MAC swap on the same rings
	Flows           int     `json:"flows"`
	NanosPerPacket  float64 `json:"ns_per_packet"` // median over the rounds
	Mpps            float64 `json:"mpps"`
	AllocsPerPacket float64 `json:"allocs_per_packet"`
}

// Worker measures the real worker, forwarding known TCP flows by IPIP on the memory NIC, beside a bare swap of MACs on the
// same rings. All modes and numbers of flows take turns in short rounds, until duration is over, so that their ratios hold
// on a machine whose speed changes; the absolute numbers are this machine's at this moment. Generator and sink run between
// the timed bursts, on the worker's own thread, so frames are in its caches, as they are with a NIC that writes there.
func Worker(flows []int, duration time.Duration) ([]WorkerResult, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var runs []*workerRun
	for _, n := range flows {
		r, err := newWorkerRun(n)
		if err != nil {
			return nil, err
		}
		defer r.close()
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
		out = append(out, r.result("swap", &r.swap), r.result("ipip", &r.ipip))
	}
	return out, nil
}

// workerRun is one worker with its flows.
type workerRun struct {
	flows  int
	nic    *xsk.MemoryNIC
	socket *xsk.Socket
	worker *forwarder.Worker
	memory *shm.Memory
	rng    *rand.PCG
	frames [][]byte
	descs  [64]xsk.Desc

	swap, ipip timing
}

// timing is what one mode took.
type timing struct {
	rounds  []float64 // ns/packet
	packets uint64
	allocs  uint64
}

func newWorkerRun(flows int) (_ *workerRun, err error) {
	r := &workerRun{flows: flows, rng: rand.NewPCG(1, uint64(flows))}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	words, err := conntrack.WordsFor(uint64(flows))
	if err != nil {
		return nil, err
	}
	if r.memory, err = shm.NewMemfd("sluice-bench", int(words*8)); err != nil {
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
	engine, err := forwarder.NewEngine(forwarder.EngineConfig{Keys: keys, Words: r.memory.Words(), Clock: clock})
	if err != nil {
		return nil, err
	}
	r.nic, err = xsk.NewMemoryNIC(xsk.Options{Frames: 2 * burst, FillSize: burst, CompletionSize: burst, RXSize: burst, TXSize: burst}, 1)
	if err != nil {
		return nil, err
	}
	umem := r.nic.Umem()
	r.socket = r.nic.Sockets()[0]
	r.worker = engine.NewWorker(forwarder.WorkerIO{
		Memory: umem.Memory(), Wait: umem.Wait, Queues: []forwarder.Queue{{Port: r.socket}},
	})
	service := forwarder.ServiceSpec{
		Name: "bench", VIP: netip.MustParseAddr("192.0.2.10"), Protocol: packet.ProtoTCP,
		Ports: []forwarder.PortRange{{First: 80, Last: 80}}, Mode: forwarder.IPIP,
	}
	hops := map[netip.Addr]forwarder.Hop{}
	for i := range 100 {
		a := netip.AddrFrom4([4]byte{10, 0, 1, byte(i)})
		service.Backends = append(service.Backends, forwarder.BackendSpec{
			Name: fmt.Sprintf("backend-%d", i), Address: a, Admit: maglev.MakeAdmit(maglev.Up, maglev.All),
		})
		hops[a] = forwarder.Hop{OnLink: true, Source: netip.MustParseAddr("10.0.0.1"), MTU: 1600}
	}
	engine.SetHops(hops)
	if err := engine.Apply(forwarder.Spec{Services: []forwarder.ServiceSpec{service}}); err != nil {
		return nil, err
	}
	for range burst {
		r.frames = append(r.frames, tcpFrame())
	}
	for first := 0; first < flows; first += burst { // each flow's first packet
		r.generate(func(i int) uint32 { return uint32((first + i) % flows) })
		r.forward()
		r.nic.Collect(0, nil)
	}
	return r, nil
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

// generate puts a burst of frames into the RX ring, of the flows that flow names.
func (r *workerRun) generate(flow func(i int) uint32) {
	for i, f := range r.frames {
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
	r.nic.DeliverBatch(0, r.frames)
}

func (r *workerRun) forward() (packets int) {
	for n := r.worker.Poll(0); n > 0; n = r.worker.Poll(0) {
		packets += n
	}
	return packets
}

// swapMACs is the least that a forwarder can do on these rings.
func (r *workerRun) swapMACs() (packets int) {
	memory := r.nic.Umem().Memory()
	for n := r.socket.Receive(r.descs[:]); n > 0; n = r.socket.Receive(r.descs[:]) {
		for i := range r.descs[:n] {
			f := memory[r.descs[i].Addr : r.descs[i].Addr+12]
			a, b := [6]byte(f[:6]), [6]byte(f[6:])
			copy(f, b[:])
			copy(f[6:], a[:])
		}
		r.socket.Transmit(r.descs[:n])
		_ = r.socket.Wake()
		packets += n
	}
	return packets
}

// round times some bursts of each mode.
func (r *workerRun) round() {
	const bursts = 4
	random := func(int) uint32 { return uint32(r.rng.Uint64() % uint64(r.flows)) }
	for _, mode := range []struct {
		run func() int
		t   *timing
	}{{r.swapMACs, &r.swap}, {r.forward, &r.ipip}} {
		var took time.Duration
		packets := 0
		for range bursts {
			r.generate(random)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			packets += mode.run()
			took += time.Since(start)
			runtime.ReadMemStats(&after)
			mode.t.allocs += after.Mallocs - before.Mallocs
			r.nic.Collect(0, nil)
		}
		mode.t.rounds = append(mode.t.rounds, float64(took.Nanoseconds())/float64(packets))
		mode.t.packets += uint64(packets)
	}
}

func (r *workerRun) result(mode string, t *timing) WorkerResult {
	slices.Sort(t.rounds)
	ns := t.rounds[len(t.rounds)/2]
	return WorkerResult{Mode: mode, Flows: r.flows, NanosPerPacket: ns, Mpps: 1000 / ns,
		AllocsPerPacket: float64(t.allocs) / float64(t.packets)}
}

func (r *workerRun) close() {
	if r.nic != nil {
		_ = r.nic.Umem().Close()
	}
	if r.memory != nil {
		_ = r.memory.Close()
	}
}
