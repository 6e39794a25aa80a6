//go:build linux && floods

package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/bench"
	"github.com/sluice-lb/sluice/internal/affinity"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/testenv"
)

// Sources of floods, a million each, to which the router has no way back. A flood from the second is the control of the same
// flood from the first: it costs as much to make, and the XDP program drops it before anything else.
var (
	floodSources  = netip.MustParsePrefix("100.64.0.0/12")
	deniedSources = netip.MustParsePrefix("100.80.0.0/12")
	noWayBack     = netip.MustParsePrefix("100.64.0.0/11")
)

// floodKind is what a flood consists of. It comes out of the router's end of the node's cable, made in the kernel.
type floodKind struct {
	name      string
	protocol  uint8
	flags     uint8
	port      uint16
	fragment  int  // where in its datagram each packet begins, in bytes; 0: whole packets
	oneSource bool // else a million of them
}

var (
	floodOfSYNs      = floodKind{name: "SYN", protocol: bench.TCP, flags: bench.SYN, port: 80}
	floodOfACKs      = floodKind{name: "ACK", protocol: bench.TCP, flags: bench.ACK, port: 80}
	floodOfRSTs      = floodKind{name: "RST", protocol: bench.TCP, flags: bench.RST, port: 80}
	floodOfFragments = floodKind{name: "fragments", protocol: bench.UDP, port: 7001, fragment: 1480}
	floodOfUDP       = floodKind{name: "UDP", protocol: bench.UDP, port: 7001}
	floodOfOne       = floodKind{name: "UDP, one source", protocol: bench.UDP, port: 7001, oneSource: true}
)

// cores are those of the worker and of everything else: clients, router, backends, floods, and the rest of the daemon.
type cores struct {
	worker int
	all    unix.CPUSet
	others unix.CPUSet
}

// Who measures goes first on a machine that others work on: nice values of the worker's thread, and of the session as a whole
// (affinity.NiceSession), without which the other means little.
const (
	niceWorker  = -20
	niceSession = -10
)

// shareCores keeps the test on all cores but the first until its end.
func shareCores(t *testing.T) *cores {
	t.Helper()
	testenv.RequireRoot(t)
	c := &cores{}
	if err := unix.SchedGetaffinity(0, &c.all); err != nil {
		t.Fatal(err)
	}
	if c.all.Count() < 2 {
		t.Fatal("this process may use one core only: the worker needs one for itself, and the rest another; see taskset -p")
	}
	for !c.all.IsSet(c.worker) {
		c.worker++
	}
	c.others = c.all
	c.others.Clear(c.worker)
	t.Cleanup(func() {
		if err := c.bind(os.Getpid(), &c.all); err != nil {
			t.Error(err)
		}
	})
	if err := c.bind(os.Getpid(), &c.others); err != nil {
		t.Fatal(err)
	}
	undo, err := affinity.NiceSession(niceSession)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := undo(); err != nil {
			t.Error(err)
		}
	})
	procs := runtime.GOMAXPROCS(16) // so that a generator never waits until a client has done its part
	t.Cleanup(func() { runtime.GOMAXPROCS(procs) })
	return c
}

// slowWorker takes most of the worker's core away, some milliseconds at a time, until stop is called: three times what a worker takes that
// has a core for itself could not be made on the other one beside everything else.
func (c *cores) slowWorker(t *testing.T) (stop func()) {
	t.Helper()
	const period, busy = 4 * time.Millisecond, 3800 * time.Microsecond
	var ending atomic.Bool
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its priority with it
		var set unix.CPUSet
		set.Set(c.worker)
		err := errors.Join(unix.SchedSetaffinity(0, &set),
			unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0))
		for start := time.Now(); err == nil && !ending.Load(); start = time.Now() {
			for time.Since(start) < busy {
			}
			_ = unix.Nanosleep(&unix.Timespec{Nsec: int64(period - busy)}, nil)
		}
		done <- err
	}()
	return func() {
		ending.Store(true)
		if err := <-done; err != nil {
			t.Errorf("slow the worker down: %v", err)
		}
	}
}

// bind moves the threads of a process to some cores, but for a worker on its own. New threads and processes follow those that
// make them.
func (c *cores) bind(pid int, to *unix.CPUSet) error {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		if err != nil {
			return err
		}
		var now unix.CPUSet
		err = unix.SchedGetaffinity(tid, &now)
		if now.Count() == 1 && now.IsSet(c.worker) {
			err = errors.Join(err, unix.Setpriority(unix.PRIO_PROCESS, tid, niceWorker))
		} else {
			err = errors.Join(err, unix.SchedSetaffinity(tid, to))
		}
		if err != nil && !errors.Is(err, unix.ESRCH) { // it may have ended meanwhile
			return fmt.Errorf("bind thread %d of process %d: %w", tid, pid, err)
		}
	}
	return nil
}

// usage is the time of all cores that was used so far, and what others than this test had of it.
type usage struct {
	at     time.Time
	others time.Duration // processes of other sessions, and a hypervisor
	cores  int
}

// since is the part of all cores' time that others had since then.
func (a usage) since(b usage) float64 {
	return max((a.others-b.others).Seconds()/float64(a.cores)/a.at.Sub(b.at).Seconds(), 0)
}

func (c *cores) usage(t *testing.T) usage {
	t.Helper()
	const used = "user nice system - - irq softirq steal" // the first line of /proc/stat; between them is idle time
	fields := func(path string) []string {
		b, err := os.ReadFile(path)
		if err != nil { // the process has ended
			return nil
		}
		_, after, _ := strings.Cut(string(b), ") ") // a name may have spaces
		return strings.Fields(cmp.Or(after, string(b)))
	}
	number := func(text string) int {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	ticks := 0
	all := fields("/proc/stat")
	for i, name := range strings.Fields(used) {
		if name != "-" {
			ticks += number(all[1+i])
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	session := fields("/proc/self/stat")[3]
	for _, p := range processes {
		if f := fields(p); len(f) > 12 && f[3] == session {
			ticks -= number(f[11]) + number(f[12]) // utime and stime, 14 and 15 of proc_pid_stat(5)
		}
	}
	return usage{time.Now(), time.Duration(ticks) * tick, c.all.Count()}
}

// newFloodSystem makes a system of one node, whose one worker has a core of its own and one queue, and two backends.
func newFloodSystem(t *testing.T, c *cores, cookies bool) *system {
	t.Helper()
	s := newSystemWith(t, rigOptions{nodes: 1, backends: 2, queues: 1, sources: 3 * classSize, cookies: cookies})
	s.cpus = strconv.Itoa(c.worker)
	if err := s.net.Router.AddRoute(testenv.Route{Dst: noWayBack, Kind: testenv.Blackhole}); err != nil {
		t.Fatal(err)
	}
	// What the worker sends is received on its core, which is to hand it on at once.
	s.run(s.net.Router.Namespace, 5*time.Second, "sh", "-c", fmt.Sprintf("echo %x > /sys/class/net/%s/queues/rx-0/rps_cpus",
		c.others[0], s.nodes[0].Port()))
	s.nginx()
	return s
}

// upOn starts the node, and moves all of it but the worker to the other cores.
func (s *system) upOn(c *cores, services ...rigService) {
	s.t.Helper()
	if err := c.bind(os.Getpid(), &c.all); err != nil { // the daemon takes the cores of its maker
		s.t.Fatal(err)
	}
	s.up(services...)
	for _, pid := range []int{os.Getpid(), s.nodes[0].daemon.PID(), s.nodes[0].healthd.PID()} {
		if err := c.bind(pid, &c.others); err != nil {
			s.t.Fatal(err)
		}
	}
}

// limitsWith is the configuration's limits, with the list that denies the control's sources.
func limitsWith(more string) string {
	return fmt.Sprintf("{deny: [%s]%s}", deniedSources, more)
}

// startFlood floods, out of the router's port to the node or another one, with so many packets a second, or as many as can be made
// for 0, until it is stopped or the time is over.
func (s *system) startFlood(k floodKind, from netip.Prefix, port string, rate uint64, most time.Duration) *bench.Generator {
	s.t.Helper()
	if k.oneSource {
		from = netip.PrefixFrom(from.Addr().Next(), from.Addr().BitLen())
	}
	flows := uint64(1) << 30 // none comes twice
	if k.oneSource {
		flows = 60_000
	}
	g, err := bench.StartGenerator(s.net.Router.Namespace, port, bench.Traffic{
		SrcMAC: s.net.Router.MAC, DstMAC: s.nodes[0].MAC, Source: from, Target: netip.AddrPortFrom(testVIP4, k.port),
		Protocol: k.protocol, Flags: k.flags, FragmentOffset: k.fragment, Flows: flows, Rate: rate, Duration: most,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = g.Stop() })
	return g
}

// tally is what the node counted of a flood, and over which time.
type tally struct {
	took, cpu time.Duration // by the clock; of cores, by the generator and the daemon

	sent       uint64 // by the generator
	denied     uint64 // dropped by the XDP program
	shed       uint64 // dropped by it since the worker could not take all
	ringFull   uint64 // lost between it and the worker
	received   uint64 // by the worker
	challenged uint64 // of these, answered
	forwarded  uint64 // and sent to backends
}

func (a tally) add(b tally) tally {
	return tally{a.took + b.took, a.cpu + b.cpu, a.sent + b.sent, a.denied + b.denied, a.shed + b.shed, a.ringFull + b.ringFull, a.received + b.received,
		a.challenged + b.challenged, a.forwarded + b.forwarded}
}

// sub is what was counted since.
func (a tally) sub(b tally) tally {
	return tally{a.took - b.took, a.cpu - b.cpu, a.sent - b.sent, a.denied - b.denied, a.shed - b.shed, a.ringFull - b.ringFull, a.received - b.received,
		a.challenged - b.challenged, a.forwarded - b.forwarded}
}

// perSecond is a count of the tally as a rate.
func (a tally) perSecond(n uint64) float64 { return float64(n) / max(a.took.Seconds(), 1e-9) }

// counting begins a tally; the function that it returns ends it.
func (s *system) counting(g *bench.Generator) func() tally {
	start := time.Now()
	read := func() tally {
		st := s.status(s.nodes[0])
		t := tally{took: time.Since(start), cpu: s.cpuTime(), sent: g.Sent(), denied: st.Traffic.Steer.Denied, shed: st.Traffic.Steer.Shed, ringFull: ringDrops(&st)}
		for _, w := range st.Traffic.Workers {
			t.received += w.Received
		}
		for _, v := range st.Traffic.Services {
			t.challenged += v.Defence.Challenged
			t.forwarded += v.Forwarded.Packets
		}
		return t
	}
	before := read()
	return func() tally { return read().sub(before) }
}

// tick is the unit of the kernel's times in /proc: USER_HZ is 100 on all that Sluice runs on.
const tick = 10 * time.Millisecond

// cpuTime is what this process, with its generators, and the daemon have used so far.
func (s *system) cpuTime() time.Duration {
	s.t.Helper()
	var own unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &own); err != nil {
		s.t.Fatal(err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.nodes[0].daemon.PID()))
	if err != nil {
		s.t.Fatal(err)
	}
	_, fields, _ := strings.Cut(string(stat), ") ") // the name may have spaces
	used := time.Duration(own.Utime.Nano() + own.Stime.Nano())
	for _, field := range strings.Fields(fields)[11:13] { // utime and stime, 14 and 15 of proc_pid_stat(5)
		n, err := strconv.Atoi(field)
		if err != nil {
			s.t.Fatal(err)
		}
		used += time.Duration(n) * tick
	}
	return used
}

// ringDrops is what found a socket's ring full.
func ringDrops(st *control.Status) (n uint64) {
	for _, i := range st.Traffic.Interfaces {
		for _, q := range i.Queues {
			n += q.RXDropped + q.RXRingFull
		}
	}
	return n
}

// atFullSpeed floods as fast as the generator can, and counts for a second, once it is under way.
func (s *system) atFullSpeed(k floodKind, from netip.Prefix, port string) tally {
	s.t.Helper()
	const underWay, counted = 300 * time.Millisecond, time.Second
	g := s.startFlood(k, from, port, 0, 10*time.Second)
	time.Sleep(underWay)
	end := s.counting(g)
	time.Sleep(counted)
	t := end()
	if err := g.Stop(); err != nil {
		s.t.Fatal(err)
	}
	return t
}
