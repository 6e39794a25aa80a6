//go:build linux

package veth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"

	"github.com/sluice-lb/sluice/bench/asavie"
	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/steer"
	"github.com/sluice-lb/sluice/internal/shm"
	"github.com/sluice-lb/sluice/maglev"
)

// sluiceOnAsavie is our forwarder on the rings of others, to be compared with sluice.
var sluiceOnAsavie = &System{
	Name: "sluice-on-asavie",
	what: "the same worker and XDP program as in sluice, without the daemon around them (so nothing is shed in the XDP program), " +
		"on the rings of github.com/asavie/xdp v0.3.3",
	peer:  "sluice",
	start: startChild("forward", forwarding),
}

const forwarding = "forwarding"

// Forward is the system sluice-on-asavie: it forwards what queue 0 of an interface receives, until ctx ends. The table has room for
// so many flows.
func Forward(ctx context.Context, ifname string, flows int) (err error) {
	dev, err := net.InterfaceByName(ifname)
	if err != nil {
		return err
	}
	s, err := steer.New(1, 1, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := s.SetVIPs([]netip.Addr{vip}); err != nil {
		return err
	}
	l, err := s.Attach(dev.Index, ifname, steer.AttachOptions{Queues: 1}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	p, err := asavie.Open(dev.Index, 0, asavie.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()

	words, err := conntrack.WordsFor(uint64(flows))
	if err != nil {
		return err
	}
	table, err := shm.NewMemfd("sluice-bench", int(words*8))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, table.Close()) }()
	engine, err := newEngine(table)
	if err != nil {
		return err
	}
	w := engine.NewWorker(forwarder.WorkerIO{Memory: p.Memory(), Queues: []forwarder.Queue{{Port: p}}, Wait: p.Wait})
	if err := l.SetSocket(0, p.FD()); err != nil {
		return err
	}
	var ending atomic.Bool
	context.AfterFunc(ctx, func() { ending.Store(true) })
	fmt.Println(forwarding)
	return w.Run(&ending, func(error) {})
}

// newEngine is configured as the daemon is by sluiceConfig.
func newEngine(table *shm.Memory) (*forwarder.Engine, error) {
	keys, err := forwarder.DeriveKeys([]byte("a seed of the benchmark"))
	if err != nil {
		return nil, err
	}
	clock, err := forwarder.NewClock()
	if err != nil {
		return nil, err
	}
	engine, err := forwarder.NewEngine(forwarder.EngineConfig{Keys: keys, Words: table.Words(), Clock: clock})
	if err != nil {
		return nil, err
	}
	s := forwarder.ServiceSpec{
		Name: "bench", VIP: vip, Protocol: packet.ProtoUDP, Ports: []forwarder.PortRange{{First: port, Last: port}}, Mode: forwarder.IPIP,
	}
	hops := map[netip.Addr]forwarder.Hop{}
	for i, a := range backendList() {
		s.Backends = append(s.Backends, forwarder.BackendSpec{
			Name: "b" + strconv.Itoa(i), Address: a, Weight: 100, Admit: maglev.MakeAdmit(maglev.Up, maglev.All),
		})
		hops[a] = forwarder.Hop{OnLink: true, Src: packet.MAC(systemMAC), Dst: packet.MAC(worldMAC), Source: systemIP, MTU: mtu}
	}
	engine.SetHops(hops)
	return engine, engine.Apply(forwarder.Spec{Services: []forwarder.ServiceSpec{s}})
}
