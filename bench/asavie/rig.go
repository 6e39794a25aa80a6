//go:build linux

package asavie

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"

	"github.com/sluice-lb/sluice/bench"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/steer"
	"github.com/sluice-lb/sluice/testenv"
)

// names of the systems, which are labels too.
const (
	sluice  = "sluice"
	library = "asavie"
)

// sizes are the entries of the rings that are compared: the daemon's, and less, with which there are fewer frames for the caches
// to hold, and for the library to search.
var sizes = []int{2048, 512}

// rig is a node on some cables, one for each system, at whose other ends there are a generator and a sink. Only one cable is in
// use at a time.
type rig struct {
	env   *testenv.Env
	peer  *testenv.Namespace
	steer *steer.Steer
	ways  []*way
}

// way is one system on its cable.
type way struct {
	system string
	size   int    // entries of the rings
	link   string // the name of both ends
	own    packet.MAC
	peer   packet.MAC
	steer  *steer.Link
	sink   *bench.Sink
	lane   *lane
}

const mtu = 1500

// newRig sets everything up. On an error nothing stays behind.
func newRig(flows, cpu int) (_ *rig, err error) {
	r := &rig{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if r.env, err = testenv.New("rings"); err != nil {
		return nil, err
	}
	node, err := r.env.Namespace("node")
	if err != nil {
		return nil, err
	}
	if r.peer, err = r.env.Namespace("peer"); err != nil {
		return nil, err
	}
	if r.steer, err = steer.New(1, 1, 1); err != nil {
		return nil, err
	}
	if err := r.steer.SetVIPs([]netip.Addr{vip}); err != nil {
		return nil, err
	}
	systems := []struct {
		name string
		open func(string, int, int) (*rings, error)
	}{{sluice, openSluice}, {library, openAsavie}}
	for i := range len(sizes) * len(systems) {
		system := systems[i%len(systems)]
		w := &way{
			system: system.name, size: sizes[i/len(systems)], link: fmt.Sprintf("eth%d", i),
			own: packet.MAC{2, 0, 0, 0, byte(i), 1}, peer: packet.MAC{2, 0, 0, 0, byte(i), 2},
		}
		r.ways = append(r.ways, w)
		if err := r.env.Veth(testenv.End{Namespace: node, Name: w.link, MAC: w.own[:], MTU: mtu},
			testenv.End{Namespace: r.peer, Name: w.link, MAC: w.peer[:], MTU: mtu}, 1); err != nil {
			return nil, err
		}
		if w.sink, err = bench.StartSink(r.peer, w.link); err != nil {
			return nil, err
		}
		l, err := node.Link(w.link)
		if err != nil {
			return nil, err
		}
		err = node.Do(func() error { return w.start(r.steer, l.Attrs().Index, flows, cpu, system.open) })
		if err != nil {
			return nil, fmt.Errorf("the worker on the rings of %s: %w", w.system, err)
		}
	}
	return r, nil
}

// start attaches the XDP program, opens the rings and starts the worker. It is called in the node's namespace.
func (w *way) start(s *steer.Steer, ifindex, flows, cpu int, open func(string, int, int) (*rings, error)) (err error) {
	if w.steer, err = s.Attach(ifindex, w.link, steer.AttachOptions{Queues: 1}, slog.New(slog.NewTextHandler(io.Discard, nil))); err != nil {
		return err
	}
	if w.steer.Generic() {
		return errors.New("the XDP program runs in generic mode on a veth; the kernel is too old")
	}
	r, err := open(w.link, ifindex, w.size)
	if err != nil {
		return err
	}
	if w.lane, err = startLane(r, flows, cpu); err != nil {
		return errors.Join(err, r.close())
	}
	return w.steer.SetSocket(0, r.fd)
}

// close takes everything down.
func (r *rig) close() (err error) {
	for _, w := range r.ways {
		if w.lane != nil {
			err = errors.Join(err, w.lane.close())
		}
		if w.steer != nil {
			err = errors.Join(err, w.steer.Close())
		}
		if w.sink != nil {
			err = errors.Join(err, w.sink.Stop())
		}
	}
	if r.steer != nil {
		err = errors.Join(err, r.steer.Close())
	}
	if r.env != nil {
		err = errors.Join(err, r.env.Close())
	}
	return err
}
