//go:build linux

package asavie

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/internal/affinity"
	"github.com/sluice-lb/sluice/internal/shm"
	"github.com/sluice-lb/sluice/maglev"
)

// rings are the sockets of one queue, ours or the library's, as a worker and an XDP program take them.
type rings struct {
	io    forwarder.WorkerIO
	fd    int
	calls func() uint64 // system calls made so far, but for those that wait
	close func() error
}

// openSluice opens a queue of an interface of the calling thread's namespace on our own rings. The fill ring has twice the entries
// of the others, as the daemon's.
func openSluice(name string, ifindex, entries int) (*rings, error) {
	umem, err := xsk.NewUmem(xsk.Options{FillSize: 2 * entries, CompletionSize: entries, RXSize: entries, TXSize: entries})
	if err != nil {
		return nil, err
	}
	s, err := umem.Open(name, ifindex, 0, xsk.Auto)
	if err != nil {
		return nil, errors.Join(err, umem.Close())
	}
	return &rings{
		io: forwarder.WorkerIO{Memory: umem.Memory(), Queues: []forwarder.Queue{{Port: s}}, Wait: umem.Wait},
		fd: s.FD(), calls: func() uint64 { return s.Counts().Wakes }, close: umem.Close,
	}, nil
}

// openAsavie does it on the library's.
func openAsavie(_ string, ifindex, entries int) (*rings, error) {
	p, err := Open(ifindex, 0, Options{RingSize: entries})
	if err != nil {
		return nil, err
	}
	return &rings{
		io: forwarder.WorkerIO{Memory: p.Memory(), Queues: []forwarder.Queue{{Port: p}}, Wait: p.Wait},
		fd: p.FD(), calls: p.Calls, close: p.Close,
	}, nil
}

// lane is an engine with one worker, which runs.
type lane struct {
	*rings
	engine *forwarder.Engine
	table  *shm.Memory
	thread atomic.Int32 // of the worker, as the kernel numbers it
	stop   atomic.Bool
	ended  chan error
}

// vip is the service's address.
var vip = netip.MustParseAddr("192.0.2.10")

const port = 80

// startLane has a worker forward from these rings, on a CPU of its own. It is stopped by close, which closes the rings too.
func startLane(r *rings, flows, cpu int) (_ *lane, err error) {
	l := &lane{rings: r, ended: make(chan error, 1)}
	words, err := conntrack.WordsFor(uint64(flows))
	if err != nil {
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
	if l.table, err = shm.NewMemfd("sluice-bench", int(words*8)); err != nil {
		return nil, err
	}
	if l.engine, err = forwarder.NewEngine(forwarder.EngineConfig{Keys: keys, Words: l.table.Words(), Clock: clock}); err != nil {
		return nil, errors.Join(err, l.table.Close())
	}
	w := l.engine.NewWorker(r.io)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its affinity with it
		if err := affinity.Pin(cpu); err != nil {
			l.ended <- err
			return
		}
		l.thread.Store(int32(unix.Gettid()))
		l.ended <- w.Run(&l.stop, func(error) {})
	}()
	return l, nil
}

// times are how long the worker has run, and how much of that in user mode: not in system calls, nor in what the kernel did
// meanwhile. The second the kernel finds out by sampling, 250 times a second or so.
func (l *lane) times() (ran, user time.Duration, err error) {
	dir := fmt.Sprintf("/proc/self/task/%d/", l.thread.Load())
	text, err := os.ReadFile(dir + "schedstat")
	if err != nil {
		return 0, 0, err
	}
	if _, err := fmt.Sscan(string(text), &ran); err != nil { // nanoseconds
		return 0, 0, fmt.Errorf("read %sschedstat: %w", dir, err)
	}
	if text, err = os.ReadFile(dir + "stat"); err != nil {
		return 0, 0, err
	}
	const behindName, utime, ticks = 1, 11, 100 // proc_pid_stat(5): field 14, the 2nd being the name in parentheses; 1/100 s
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+behindName:]))
	n, err := strconv.ParseInt(fields[utime], 10, 64)
	return ran, time.Duration(n) * time.Second / ticks, err
}

// apply has the lane forward in a mode to backends that are all the neighbour with this MAC.
func (l *lane) apply(mode forwarder.Mode, own, neighbour packet.MAC, mtu int) error {
	const backends = 100
	s := forwarder.ServiceSpec{
		Name: "bench", VIP: vip, Protocol: packet.ProtoTCP, Ports: []forwarder.PortRange{{First: port, Last: port}}, Mode: mode,
	}
	hops := map[netip.Addr]forwarder.Hop{}
	for i := range backends {
		a := netip.AddrFrom4([4]byte{10, 0, 1, byte(i)})
		s.Backends = append(s.Backends, forwarder.BackendSpec{
			Name: fmt.Sprintf("backend-%d", i), Address: a, Weight: 100, Admit: maglev.MakeAdmit(maglev.Up, maglev.All),
		})
		hops[a] = forwarder.Hop{OnLink: true, Src: own, Dst: neighbour, Source: netip.MustParseAddr("10.0.0.1"), MTU: mtu}
	}
	l.engine.SetHops(hops)
	return l.engine.Apply(forwarder.Spec{Services: []forwarder.ServiceSpec{s}})
}

// close ends the worker.
func (l *lane) close() error {
	l.stop.Store(true)
	return errors.Join(<-l.ended, l.rings.close(), l.table.Close())
}
