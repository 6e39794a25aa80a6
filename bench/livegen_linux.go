package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/affinity"
	"github.com/sluice-lb/sluice/testenv"
)

const liveBatch = 64 // frames the kernel hands to the program, and to the device, at once

// Generator sends [Traffic] out of an interface, from the kernel: its program fills in frames of a page pool and gives
// them to the device's transmit function for XDP. Nothing passes through the kernel's stack or Go.
//
// On a veth the peer must have a native XDP program ([Sink] is one, and so is the program of forwarder/steer); without
// it all frames vanish. A frame arrives on the receive queue numbered like the current CPU, modulo the queues of the
// peer. At full rate the peer can be late on a busy machine; what finds its ring full is lost, though counted as sent, and
// a veth counts it in the tx_dropped of the sending interface.
//
// A generator uses one CPU while it sends, and goes before all else there, since what it stands for is another machine. Paced,
// it sends a burst every 2 ms, or as often as it gets the CPU; of what it is late with it sends 5 ms worth, so that its bursts
// stay small, and is below its rate then. Each burst costs far more than the packets in it: 200,000 a second can take most of a
// core. A smooth one ([Traffic.Smooth]) sends each packet at its time, and takes all of it. Several generators can run at the same time.
type Generator struct {
	traffic Traffic
	objects livegenObjects
	keeper  keeper
	done    chan struct{} // closed when the generator has ended
	err     error         // why; read it after done
	stop    chan struct{} // closed when it shall end
	expiry  *time.Timer   // halts it when the duration is over; nil if there is none

	mu     sync.Mutex
	halted bool // the program's limit is 0 for good; under mu
}

// xdpContext is struct xdp_md of linux/bpf.h.
type xdpContext struct {
	Data, DataEnd, DataMeta      uint32
	IngressIfindex, RxQueueIndex uint32
	EgressIfindex                uint32
}

// StartGenerator starts to send out of an interface of the namespace. Needs Linux 5.18 (live frames), CAP_BPF and CAP_NET_ADMIN.
func StartGenerator(ns *testenv.Namespace, ifname string, t Traffic) (*Generator, error) {
	g := &Generator{traffic: t, done: make(chan struct{}), stop: make(chan struct{})}
	if err := g.traffic.complete(); err != nil {
		return nil, fmt.Errorf("generate traffic on %s: %w", ifname, err)
	}
	var dev *net.Interface
	err := ns.Do(func() (err error) {
		dev, err = net.InterfaceByName(ifname)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("generate traffic on %s: %w", ifname, err)
	}
	if dev.Flags&net.FlagUp == 0 {
		return nil, fmt.Errorf("generate traffic on %s: the interface is down", ifname)
	}
	if longest := slices.Max(g.traffic.sizes()); longest > dev.MTU+etherLen {
		return nil, fmt.Errorf("generate traffic on %s: frames of %d bytes; its MTU of %d allows %d", ifname,
			longest, dev.MTU, dev.MTU+etherLen)
	}

	frame, err := g.load()
	if err != nil {
		return nil, fmt.Errorf("generate traffic on %s: load the program: %w%s", ifname, err, privilegeHint(err))
	}
	if g.keeper, err = keep(g.objects.Livegen); err != nil {
		g.objects.Close()
		return nil, fmt.Errorf("generate traffic on %s: attach the program to a loopback: %w", ifname, err)
	}
	if t.Duration > 0 {
		g.mu.Lock() // halt reads expiry
		g.expiry = time.AfterFunc(t.Duration, g.halt)
		g.mu.Unlock()
	}
	go g.run(ns, ifname, &ebpf.RunOptions{
		Data:      frame,
		Flags:     unix.BPF_F_TEST_XDP_LIVE_FRAMES,
		BatchSize: liveBatch,
		Context:   xdpContext{DataEnd: uint32(len(frame)), IngressIfindex: uint32(dev.Index)},
	})
	return g, nil
}

// load puts the program into the kernel and returns the frame that it is started with, which is as long as the longest.
func (g *Generator) load() (frame []byte, err error) {
	t := &g.traffic
	first := t.Source.Masked().Addr().AsSlice()
	sizes := t.sizes()
	plan := livegenPlan{
		Flows:     t.Flows,
		Source:    binary.BigEndian.Uint32(first[len(first)-4:]),
		HostBits:  uint32(t.hostBits()),
		FirstPort: firstPort,
		Sizes:     uint32(len(sizes)),
	}
	for i, size := range sizes {
		one, ipSum, transportSum := t.template(size)
		plan.Shape[i].Cut = uint32(slices.Max(sizes) - size)
		plan.Shape[i].IpSum, plan.Shape[i].TransportSum = ipSum, transportSum
		copy(plan.Shape[i].Header[:], one)
		if size > len(frame) {
			frame = one
		}
	}
	if t.Smooth {
		plan.Gap = uint64(time.Second) << 8 / t.Rate
		plan.Late = uint64(mostLate) << 8
	}
	if t.Stamp {
		plan.Stamp = 1
	}
	if t.Source.Addr().Is6() {
		plan.V6 = 1
	}
	if t.Protocol == UDP {
		plan.Udp = 1
	}
	spec, err := loadLivegen()
	if err != nil {
		return nil, err
	}
	if err := spec.Variables[livegenVarThePlan].Set(plan); err != nil {
		return nil, err
	}
	return frame, spec.LoadAndAssign(&g.objects, nil)
}

// run sends until everything is sent or the generator is halted. It is the generator's one goroutine.
func (g *Generator) run(ns *testenv.Namespace, ifname string, opts *ebpf.RunOptions) {
	defer close(g.done)
	defer g.objects.Close()
	defer g.keeper.release()
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its priority with it
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, -20)
	err := g.pin()
	if err == nil {
		err = ns.Do(func() error { return g.send(opts) })
	}
	if err != nil {
		g.err = fmt.Errorf("generate traffic on %s: %w", ifname, err)
	}
	g.halt()
}

// pin binds the thread to the cores that it may run on.
func (g *Generator) pin() error {
	if len(g.traffic.CPUs) == 0 {
		return nil
	}
	return affinity.Pin(g.traffic.CPUs...)
}

func (g *Generator) send(opts *ebpf.RunOptions) error {
	start := time.Now()
	for worked := start; ; {
		sent := g.Sent()
		n, wait := g.traffic.due(sent, time.Since(start))
		if late := g.traffic.late(n); late > 0 {
			start = start.Add(late)
			continue
		}
		if wait > 0 {
			select {
			case <-g.stop:
				return nil
			case <-time.After(wait):
				continue
			}
		}
		// The limit makes the number exact: a call that a signal interrupts starts over.
		if n == 0 || !g.allow(sent+n) {
			return nil
		}
		opts.Repeat = uint32(n)
		if g.traffic.Smooth {
			opts.Repeat = mostLooks
		}
		_, err := g.objects.Livegen.Run(opts)
		// Each call takes a number for its page pool, of 65,533. On a busy machine the kernel gives them back late.
		if errors.Is(err, unix.ENOSPC) && time.Since(worked) < mostStuck {
			time.Sleep(paceStep)
			continue
		}
		if err != nil {
			return err
		}
		worked = time.Now()
		if now := g.Sent(); now != sent+n && !g.traffic.Smooth && g.allow(now) {
			return fmt.Errorf("the kernel sent %d of %d frames", now-sent, n)
		}
	}
}

// allow lets the program send up to a number of frames in all, unless the generator has been halted.
func (g *Generator) allow(limit uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.halted {
		return false
	}
	return g.objects.Limit.Set(limit) == nil
}

// halt makes the program drop what the kernel still gives it, and ends the generator's goroutine.
func (g *Generator) halt() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.halted {
		return
	}
	g.halted = true
	g.objects.Limit.Set(uint64(0))
	close(g.stop)
	if g.expiry != nil {
		g.expiry.Stop()
	}
}

// Wait returns when the count is reached, the duration is over, or the generator has been stopped.
func (g *Generator) Wait() error {
	<-g.done
	return g.err
}

// Stop ends the generator early and waits for its end. Stopping twice, or after the end, is fine.
func (g *Generator) Stop() error {
	g.halt()
	return g.Wait()
}

// Sent returns the number of packets sent so far. After Wait or Stop it is final.
func (g *Generator) Sent() uint64 {
	var n uint64
	if err := g.objects.Sent.Get(&n); err != nil {
		panic(err) // the variable has another size: a stale object
	}
	return n
}

// keeper keeps a program attached to the loopback of a namespace of its own, which has no traffic. With that the program
// stays in the kernel's XDP dispatcher; otherwise each test run would put it there and take it away again, and wait for all
// CPUs both times, some 20 ms (bpf_prog_change_xdp in net/core/filter.c, bpf_dispatcher_update in kernel/bpf/dispatcher.c).
type keeper struct {
	stop, ended chan struct{}
}

func keep(program *ebpf.Program) (keeper, error) {
	const loopback = 1 // its index in any namespace
	k := keeper{make(chan struct{}), make(chan struct{})}
	attached := make(chan error)
	go func() {
		defer close(k.ended)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and the namespace with it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			attached <- fmt.Errorf("make a namespace: %w", err)
			return
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: loopback, Flags: link.XDPGenericMode})
		attached <- err
		if err != nil {
			return
		}
		<-k.stop
		l.Close()
	}()
	return k, <-attached
}

// release takes the program off.
func (k keeper) release() {
	close(k.stop)
	<-k.ended
}

// privilegeHint names the likely cause of a refusal.
func privilegeHint(err error) string {
	if errors.Is(err, os.ErrPermission) {
		return "; needs CAP_BPF and CAP_NET_ADMIN (run as root)"
	}
	return ""
}
