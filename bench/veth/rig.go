//go:build linux

package veth

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/sluice-lb/sluice/bench"
	"github.com/sluice-lb/sluice/internal/affinity"
	"github.com/sluice-lb/sluice/testenv"
)

const (
	eth  = "eth0" // at both ends
	port = 4433   // UDP, of the service

	// mtu leaves room for an outer header around a frame of 1,514 bytes, and is narrow enough for XDP programs that take
	// no fragments.
	mtu = 1600

	backends = 4
)

var (
	worldMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	systemMAC = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	systemIP  = netip.MustParseAddr("10.0.0.2")
	vip       = netip.MustParseAddr("192.0.2.10")
	sources   = netip.MustParsePrefix("198.18.0.0/16")
)

// Rig is where systems are measured, one after the other.
type Rig struct {
	dir     string // for files of systems
	program string // the sluice program
	flows   int    // the most that there will be
	queues  int    // of the cable: one for each core that makes frames
	cores   cores

	undo   func() error // of the session's priority
	env    *testenv.Env
	world  *testenv.Namespace // frames come from here, and return to it
	system *testenv.Namespace
}

// cores of the rule: see the package.
type cores struct{ generator, system int }

// first is the nice value of the generator, which sets it itself, and of the systems.
//
// The two must have the same: where sessions share out the CPUs, one gets of each core what its threads there weigh of all its threads.
// Beside a generator with the highest weight on the first core, a system with the usual one would get a hundredth of the second core as
// soon as anybody else wants it.
const first = -20

// newRig makes the network.
func newRig(o Options, flows int) (r *Rig, err error) {
	r = &Rig{program: o.Program, flows: flows, queues: o.Generators}
	if r.cores, err = chooseCores(); err != nil {
		return nil, err
	}
	if r.undo, err = affinity.NiceSession(first); err != nil {
		return nil, err
	}
	if r.dir, err = os.MkdirTemp("", "sluice-veth-"); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if r.env, err = testenv.New("veth"); err == nil {
		err = r.connect()
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// chooseCores takes the first two that this process may use.
func chooseCores() (c cores, err error) {
	cpus, err := affinity.Allowed()
	if err != nil {
		return c, err
	}
	if len(cpus) < 2 {
		return c, errors.New("this process may use one core only: the generator needs one, and the system another; see taskset -p")
	}
	return cores{generator: cpus[0], system: cpus[1]}, nil
}

func (r *Rig) connect() (err error) {
	if r.world, err = r.env.Namespace("world"); err != nil {
		return err
	}
	if r.system, err = r.env.Namespace("system"); err != nil {
		return err
	}
	// The kernels' own IPv6 frames would be counted.
	for _, ns := range []*testenv.Namespace{r.world, r.system} {
		if err := ns.SetSysctl("net/ipv6/conf/all/disable_ipv6", "1"); err != nil {
			return err
		}
	}
	err = r.env.Veth(
		testenv.End{Namespace: r.world, Name: eth, MAC: worldMAC, MTU: mtu, TakesXDP: true},
		testenv.End{Namespace: r.system, Name: eth, MAC: systemMAC, MTU: mtu}, r.queues)
	if err != nil {
		return err
	}
	for _, a := range backendList() {
		if err := r.world.AddAddr(eth, netip.PrefixFrom(a, 24)); err != nil {
			return err
		}
	}
	return r.system.AddAddr(eth, netip.PrefixFrom(systemIP, 24))
}

// backendList are the addresses of the backends. All are the world's.
func backendList() []netip.Addr {
	var list []netip.Addr
	for i := range backends {
		list = append(list, netip.AddrFrom4([4]byte{10, 0, 0, byte(11 + i)}))
	}
	return list
}

// Close takes everything down.
func (r *Rig) Close() error {
	var err error
	if r.env != nil {
		err = r.env.Close()
	}
	return errors.Join(err, os.RemoveAll(r.dir), r.undo())
}

// room is how many flows a system that remembers them should have room for.
func (r *Rig) room() int { return max(2*r.flows, 64_000) }

func (r *Rig) path(name string) string { return filepath.Join(r.dir, name) }

// start starts a program of the system, on the system's core, before everything else there.
func (r *Rig) start(c testenv.Cmd) (*testenv.Process, error) {
	c.Args = append([]string{"-c", strconv.Itoa(r.cores.system), "nice", "-n", strconv.Itoa(first), c.Path}, c.Args...)
	c.Path = "taskset"
	return r.system.Start(c)
}

// stopper returns how a program is ended.
func stopper(p *testenv.Process) func() error {
	return func() error { return p.Stop(10 * time.Second) }
}

// traffic is what is sent in a setting.
func (r *Rig) traffic(s Setting) bench.Traffic {
	t := bench.Traffic{
		SrcMAC: worldMAC, DstMAC: systemMAC, Source: sources, Target: netip.AddrPortFrom(vip, port), Protocol: bench.UDP,
		Flows: uint64(s.Flows), Size: s.Size.bytes, CPUs: []int{r.cores.generator},
	}
	if s.Size.bytes == 0 {
		t.Mix = bench.IMIX
	}
	return t
}

// end is where the frames of a system arrive.
func (r *Rig) end(s *System) *testenv.Namespace {
	if s.wire {
		return r.system
	}
	return r.world
}

// counter is a sink or a stopwatch.
type counter interface {
	frames() (uint64, error)
	Stop() error
}

type sink struct{ *bench.Sink }

func (s sink) frames() (uint64, error) {
	total, err := s.Total()
	return total.Packets, err
}

type stopwatch struct{ *bench.Stopwatch }

func (s stopwatch) frames() (n uint64, err error) {
	err = s.Times(func(_ time.Duration, frames uint64) { n += frames })
	return n, err
}

// awaitFirst sends some packets now and then until some arrive: then the system works.
func (r *Rig) awaitFirst(ctx context.Context, c counter) error {
	t := r.traffic(Setting{Flows: 64, Size: smallest})
	t.Count, t.Stamp = 64, true
	for deadline := time.Now().Add(10 * time.Second); ; {
		if err := r.send(ctx, t); err != nil {
			return err
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
		if n, err := c.frames(); n > 0 || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New("nothing that was sent to it has come back within 10 s")
		}
	}
}

func pause(ctx context.Context, t time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(t):
		return nil
	}
}

// turn starts a system, calls f while it runs, and stops it. The counter of its frames is a stopwatch or a sink.
func (r *Rig) turn(ctx context.Context, s *System, timed bool, f func(counter) error) (err error) {
	stop, err := s.start(ctx, r)
	if err != nil {
		return fmt.Errorf("start %s: %w", s.Name, err)
	}
	defer func() {
		if e := stop(); e != nil {
			err = errors.Join(err, fmt.Errorf("stop %s: %w", s.Name, e))
		}
		// The kernel frees the queue of a closed AF_XDP socket a little later, and not all systems try again.
		time.Sleep(200 * time.Millisecond)
	}()
	var c counter
	if timed {
		w, e := bench.StartStopwatch(r.end(s), eth)
		c, err = stopwatch{w}, e
	} else {
		w, e := bench.StartSink(r.end(s), eth)
		c, err = sink{w}, e
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()
	if err := r.awaitFirst(ctx, c); err != nil {
		return fmt.Errorf("%s: %w", s.Name, err)
	}
	return f(c)
}
