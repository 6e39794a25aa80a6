//go:build linux

package asavie

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/bench"
	"github.com/sluice-lb/sluice/bench/report"
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/internal/affinity"
)

const (
	flows = 1000
	// settling is how long traffic flows before it is counted, span how long it is counted, and most bounds the generator.
	settling = 100 * time.Millisecond
	span     = 400 * time.Millisecond
	most     = 5 * time.Second
)

// modes are what is compared: with l2 the frame goes back as long as it came, with ipip it grows in front.
var modes = []forwarder.Mode{forwarder.L2, forwarder.IPIP}

// Tables compares our rings with the library's. It needs root.
func Tables(ctx context.Context, effort report.Effort) ([]report.Table, error) {
	duration := 4 * time.Second
	if effort == report.Full {
		duration = 40 * time.Second
	}
	t, err := Compare(ctx, duration)
	if err != nil {
		return nil, err
	}
	return []report.Table{*t}, nil
}

// Compare has the same forwarder work on our rings and on the library's in turns, for so long and for one round at least, and
// returns the table "worker-rings". It needs root. On an error, or when ctx is done, nothing stays behind.
func Compare(ctx context.Context, duration time.Duration) (_ *report.Table, err error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("compare rings: %w; network namespaces and AF_XDP sockets need root", os.ErrPermission)
	}
	cpus, restore, err := confine()
	if err != nil {
		return nil, fmt.Errorf("compare rings: %w", err)
	}
	defer func() { err = errors.Join(err, restore()) }()
	c := &comparison{generator: cpus[0], rounds: map[rowKey]*row{}}
	if len(cpus) < 2 {
		return c.table("needs 2 CPUs: one for the generator, one for the worker"), nil
	}
	if want := 4; runtime.GOMAXPROCS(0) < want { // a worker, the generator, and what else there is
		runtime.GOMAXPROCS(want)
	}
	r, err := newRig(flows, cpus[1])
	if err != nil {
		return nil, fmt.Errorf("compare rings: %w", err)
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := c.measure(ctx, r, duration); err != nil {
		return nil, fmt.Errorf("compare rings: %w", err)
	}
	return c.table(""), nil
}

// comparison is what was measured so far.
type comparison struct {
	generator int // its CPU
	rounds    map[rowKey]*row
}

type rowKey struct {
	system string
	size   int
	mode   forwarder.Mode
}

type row struct {
	mpps           []float64
	packets, calls uint64
	user           time.Duration
	idle           int // rounds that are not counted: see leastShare
}

func (c *comparison) measure(ctx context.Context, r *rig, duration time.Duration) error {
	for deadline := time.Now().Add(duration); ; {
		for _, mode := range modes {
			for _, w := range r.ways {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := w.lane.apply(mode, w.own, w.peer, mtu); err != nil {
					return err
				}
				key := rowKey{w.system, w.size, mode}
				if c.rounds[key] == nil {
					c.rounds[key] = &row{}
				}
				if err := c.rounds[key].round(ctx, r, w, c.generator); err != nil {
					return fmt.Errorf("%s, %v: %w", w.system, mode, err)
				}
			}
		}
		if time.Now().After(deadline) {
			return nil
		}
	}
}

// leastShare is how much of a round the worker must have run. If it slept, or had no CPU, it is not the worker that was measured.
const leastShare = 0.6

// round counts what a system forwards of more than it can.
func (x *row) round(ctx context.Context, r *rig, w *way, cpu int) error {
	g, err := bench.StartGenerator(r.peer, w.link, w.traffic(flows, bench.Traffic{Duration: most, CPUs: []int{cpu}}))
	if err != nil {
		return err
	}
	err = x.count(ctx, w)
	return errors.Join(err, g.Stop())
}

func (x *row) count(ctx context.Context, w *way) error {
	if err := sleep(ctx, settling); err != nil {
		return err
	}
	ran, user, err := w.lane.times()
	if err != nil {
		return err
	}
	calls, start := w.lane.calls(), time.Now()
	before, err := w.sink.Total()
	if err != nil {
		return err
	}
	if err := sleep(ctx, span); err != nil {
		return err
	}
	after, err := w.sink.Total()
	if err != nil {
		return err
	}
	took, packets := time.Since(start), after.Packets-before.Packets
	ranNow, userNow, err := w.lane.times()
	if err != nil {
		return err
	}
	if (ranNow-ran).Seconds() < leastShare*took.Seconds() || packets == 0 {
		x.idle++
		return nil
	}
	x.mpps = append(x.mpps, float64(packets)/took.Seconds()/1e6)
	x.packets, x.calls = x.packets+packets, x.calls+w.lane.calls()-calls
	x.user += userNow - user
	return nil
}

// idle is how many rounds were not counted.
func (c *comparison) idle() (n int) {
	for _, x := range c.rounds {
		n += x.idle
	}
	return n
}

// sleep waits, unless ctx is done before.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// table makes the result; missing is why nothing was measured.
func (c *comparison) table(missing string) *report.Table {
	t := &report.Table{
		Name: "worker-rings",
		Title: "the same forwarder on our rings and on those of asavie/xdp v0.3.3, on veth pairs (copy mode), " + strconv.Itoa(flows) +
			" flows, frames of 60 bytes; entries are those of a ring, the fill ring has twice as many",
		Rule: "Generator, and the reception that it drives, on the first CPU; the worker and all else of its process, and what it sends " +
			"with its sink, on the second, all with nice -20. The same for both, each on a cable of its own, one at a time.",
		Metric: "rate", Unit: "Mpps", Higher: true,
		Notes: []string{
			"In copy mode the kernel sends within the worker's system call, which is most of the time and the same for both. What is the " +
				"rings' and the forwarder's own is user_ns_per_packet, by the kernel's samples of the worker's thread: good to some percent " +
				"after a minute.",
		},
	}
	if idle := c.idle(); idle > 0 {
		t.Notes = append(t.Notes, strconv.Itoa(idle)+" rounds are not counted: the worker did not run for most of the time, because other programs "+
			"used its CPU, or the one that packets come from (they are left to the kernel's ksoftirqd then, which waits like any of them).")
	}
	for _, size := range sizes {
		for _, mode := range modes {
			for _, system := range []string{sluice, library} {
				labels := func(system string) []report.Label {
					return []report.Label{
						{Name: "rings", Value: system}, {Name: "mode", Value: mode.String()}, {Name: "entries", Value: strconv.Itoa(size)},
					}
				}
				out := report.Row{Labels: labels(system), Missing: missing}
				if x := c.rounds[rowKey{system, size, mode}]; x != nil && len(x.mpps) == 0 {
					out.Missing = "needs CPUs that other programs leave alone: the worker did not run for most of any round"
				} else if x != nil {
					out.Rounds = x.mpps
					out.Extra = map[string]float64{
						"system_calls_per_packet": float64(x.calls) / float64(x.packets),
						"user_ns_per_packet":      float64(x.user.Nanoseconds()) / float64(x.packets),
					}
				}
				if system != library {
					peer := report.Row{Labels: labels(library)}
					out.Reference = peer.Key()
				}
				t.Rows = append(t.Rows, out)
			}
		}
	}
	return t
}

// traffic completes what a generator is to send to the way's node: ACKs of so many flows.
func (w *way) traffic(flows uint64, t bench.Traffic) bench.Traffic {
	t.SrcMAC, t.DstMAC = w.peer[:], w.own[:]
	t.Source, t.Target = netip.MustParsePrefix("11.0.0.0/12"), netip.AddrPortFrom(vip, port)
	t.Protocol, t.Flags, t.Flows = bench.TCP, bench.ACK, flows
	return t
}

// confine binds all threads of the process, and those that these will start, to the second of the CPUs that it may use, where the
// worker runs: so whatever the worker waits for in this process does not wait for the generator. They get the generator's priority
// too: where the kernel shares out CPUs by session (sched_autogroup_enabled), a session's share of each goes by the weight of its
// threads there, and the worker's would be next to nothing. It returns all CPUs that the process may use, and what undoes it.
func confine() (cpus []int, restore func() error, err error) {
	const first = -20
	if cpus, err = affinity.Allowed(); err != nil {
		return nil, nil, err
	}
	if len(cpus) < 2 {
		return cpus, func() error { return nil }, nil
	}
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("getpriority: %w", err)
	}
	nice := 20 - raw // as the system call has it: getpriority(2)
	return cpus, func() error { return setThreads(nice, cpus...) }, setThreads(first, cpus[1])
}

// setThreads sets the CPUs and the nice value of all threads.
func setThreads(nice int, cpus ...int) error {
	if err := affinity.PinAll(cpus...); err != nil {
		return err
	}
	return affinity.Threads(func(tid int) error {
		if err := unix.Setpriority(unix.PRIO_PROCESS, tid, nice); err != nil {
			return fmt.Errorf("setpriority of thread %d: %w", tid, err)
		}
		return nil
	})
}
