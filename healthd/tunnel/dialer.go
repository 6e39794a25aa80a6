//go:build linux

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/sluice-lb/sluice/forwarder/packet"
)

const (
	nic = 1 // netstack's number of its only interface

	// tcpBuffer is how many bytes a connection holds in each direction at most. It also keeps what the kernel merges of answers
	// within the length of a frame that package packet reads.
	tcpBuffer = 32 << 10
)

// Dialer makes connections that go as the data of services go. Any goroutine may use it.
type Dialer struct {
	stack  *stack.Stack
	link   *link
	routes *routes
	l2     socket // packets to Ethernet addresses

	readers sync.WaitGroup
	closing sync.Once
	closed  chan struct{} // closed by Close, first of all
	open    sync.RWMutex  // read-locked by what needs the sockets and netstack to be open; Close takes it before it closes them
}

// New opens a Dialer in the network namespace of the calling thread. It needs CAP_NET_RAW. The caller closes it.
func New() (*Dialer, error) {
	d := &Dialer{closed: make(chan struct{})}
	d.link = &link{
		Endpoint: channel.New(0, mtu, ""),
		v4:       family{number: header.IPv4ProtocolNumber, etherType: unix.ETH_P_IP, ports: newPorts()},
		v6:       family{number: header.IPv6ProtocolNumber, etherType: unix.ETH_P_IPV6, ports: newPorts()},
		key:      packet.Key{rand.Uint64(), rand.Uint64()},
	}
	// Packets from the same machine, over veth, have no transport checksum yet. So none is looked at; what a network card lets
	// pass of broken answers makes a bad probe at worst.
	d.link.LinkEPCapabilities = stack.CapabilityRXChecksumOffload
	if err := d.openSockets(); err != nil {
		d.closeSockets()
		return nil, fmt.Errorf("tunnel: %w", err)
	}
	if err := d.startStack(); err != nil {
		d.stack.Destroy()
		d.closeSockets()
		return nil, fmt.Errorf("tunnel: set up netstack: %v", err)
	}
	for _, f := range []*family{&d.link.v4, &d.link.v6} {
		d.readers.Go(func() { d.link.receive(f) })
	}
	return d, nil
}

// openSockets may leave some open on an error.
func (d *Dialer) openSockets() (err error) {
	v4, v6 := &d.link.v4, &d.link.v6
	if d.l2, err = openSocket("packet", unix.AF_PACKET, unix.SOCK_DGRAM, 0); err != nil {
		return err
	}
	if v4.inlet, err = openInlet("IPv4 packet", v4.etherType, filter4); err != nil {
		return err
	}
	if v6.inlet, err = openInlet("IPv6 packet", v6.etherType, filter6); err != nil {
		return err
	}
	for _, s := range []struct {
		socket *socket
		name   string
		family int
		kind   int
		proto  int
	}{
		{&v4.raw, "raw IPv4", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW},
		{&v4.udp, "UDP", unix.AF_INET, unix.SOCK_DGRAM, 0},
		{&v6.raw, "raw IPv6", unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_RAW},
		{&v6.udp, "UDP", unix.AF_INET6, unix.SOCK_DGRAM, 0},
	} {
		if *s.socket, err = openSocket(s.name, s.family, s.kind, s.proto); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return err
		}
	}
	d.routes, err = openRoutes(d.closed)
	return err
}

// startStack makes netstack, with one interface that everything leaves by.
func (d *Dialer) startStack() tcpip.Error {
	d.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcpBuffer, Default: tcpBuffer, Max: tcpBuffer}
	if err := d.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &receive); err != nil {
		return err
	}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcpBuffer, Default: tcpBuffer, Max: tcpBuffer}
	if err := d.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &send); err != nil {
		return err
	}
	if err := d.stack.CreateNIC(nic, d.link); err != nil {
		return err
	}
	d.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nic},
		{Destination: header.IPv6EmptySubnet, NIC: nic},
	})
	return nil
}

// Close ends all connections and dials, and frees everything. Closing twice is fine.
func (d *Dialer) Close() error {
	d.closing.Do(func() {
		close(d.closed)
		d.open.Lock()
		defer d.open.Unlock()
		d.stack.Destroy()
		d.closeSockets()
		d.readers.Wait()
	})
	return nil
}

func (d *Dialer) closeSockets() {
	for _, s := range []socket{
		d.l2, d.link.v4.inlet, d.link.v4.raw, d.link.v4.udp, d.link.v6.inlet, d.link.v6.raw, d.link.v6.udp,
	} {
		s.close()
	}
	if d.routes != nil {
		d.routes.close()
	}
}

// DialContext connects to a port of the VIP on the path's backend. The network is tcp or udp. A UDP connection reads from that
// port only. Its datagrams have 1,232 bytes at most, with IPv4 1,252; answers that come in fragments are not received.
//
// Errors are those of a connect by the kernel: of what is behind the [net.OpError], errors.Is finds syscall.ECONNREFUSED,
// ENETUNREACH and the like, and the context's error when that ended first. EADDRNOTAVAIL is a want of this node's: of
// ports, or of an address of the VIP's family.
func (d *Dialer) DialContext(ctx context.Context, network string, path Path, port uint16) (net.Conn, error) {
	path.VIP, path.Backend = path.VIP.Unmap(), path.Backend.Unmap()
	conn, err := d.dial(ctx, network, &path, port)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: remote{network, netip.AddrPortFrom(path.VIP, port), &path}, Err: err}
	}
	return conn, nil
}

func (d *Dialer) dial(ctx context.Context, network string, path *Path, port uint16) (net.Conn, error) {
	proto := tcp.ProtocolNumber
	switch network {
	case "tcp":
	case "udp":
		proto = udp.ProtocolNumber
	default:
		return nil, net.UnknownNetworkError(network)
	}
	if err := path.validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	queue := new(waiter.Queue)
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents)
	queue.EventRegister(&entry)
	defer queue.EventUnregister(&entry)

	ep, c, err := d.begin(ctx, proto, queue, path, port)
	if err == errStarted {
		select {
		case <-ctx.Done():
			err = ctx.Err()
			if errno := unix.Errno(c.flow.failed.Load()); errno != 0 {
				err = fmt.Errorf("this node did not send: %w", errno)
			}
		case <-d.closed:
			err = net.ErrClosed
		case <-ready:
			err = asErrno(ep.LastError())
		}
	}
	if err != nil {
		if ep != nil {
			ep.Close()
			c.release()
		}
		return nil, err
	}
	if proto == tcp.ProtocolNumber {
		c.Conn = gonet.NewTCPConn(queue, ep)
		return c, nil
	}
	c.Conn, c.largest = gonet.NewUDPConn(queue, ep), mtu-header.UDPMinimumSize-header.IPv6MinimumSize
	if path.VIP.Is4() {
		c.largest += header.IPv6MinimumSize - header.IPv4MinimumSize
	}
	return c, nil
}

// errStarted says that a connection is being made.
var errStarted = errors.New("the connection is being made")

// begin makes an endpoint and begins to connect it. If it returns one, the caller closes it and releases the port, also after an
// error.
func (d *Dialer) begin(ctx context.Context, proto tcpip.TransportProtocolNumber, queue *waiter.Queue, path *Path, port uint16) (tcpip.Endpoint, *conn, error) {
	d.open.RLock()
	defer d.open.RUnlock()
	select {
	case <-d.closed:
		return nil, nil, net.ErrClosed
	default:
	}
	f, source, err := d.way(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	f.vip, f.port = packet.FromNetip(path.VIP), port
	family := d.link.family(path.VIP.Is4())
	local := tcpip.FullAddress{Addr: tcpip.AddrFromSlice(source.AsSlice())}
	added := d.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{
		Protocol: family.number, AddressWithPrefix: local.Addr.WithPrefix(),
	}, stack.AddressProperties{})
	if _, known := added.(*tcpip.ErrDuplicateAddress); added != nil && !known {
		return nil, nil, asErrno(added)
	}
	ep, failed := d.stack.NewEndpoint(proto, family.number, queue)
	if failed != nil {
		return nil, nil, asErrno(failed)
	}
	ep.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: true}) // close resets
	if local.Port, err = family.ports.take(time.Now(), f); err != nil {
		ep.Close()
		return nil, nil, err
	}
	c := &conn{flow: f, release: func() { family.ports.put(time.Now(), local.Port) }}
	failed = ep.Bind(local)
	if failed == nil {
		failed = ep.Connect(tcpip.FullAddress{Addr: tcpip.AddrFromSlice(path.VIP.AsSlice()), Port: port})
	}
	if _, started := failed.(*tcpip.ErrConnectStarted); started {
		return ep, c, errStarted
	}
	return ep, c, asErrno(failed)
}

// way finds how packets leave for a path, and which address of this node is their inner source.
func (d *Dialer) way(ctx context.Context, path *Path) (*flow, netip.Addr, error) {
	route, err := d.routes.to(path.Backend)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	inner, err := d.routes.source(path.VIP, route)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	out := d.link.family(path.Backend.Is4())
	if path.Forward == L2 {
		mac, err := d.routes.neighbour(ctx, path.Backend, route, out.udp)
		if err != nil {
			return nil, netip.Addr{}, err
		}
		to := &unix.SockaddrLinklayer{
			Protocol: networkOrder(d.link.family(path.VIP.Is4()).etherType), Ifindex: route.LinkIndex, Halen: uint8(len(mac)),
		}
		copy(to.Addr[:], mac)
		return &flow{out: d.l2, to: to}, inner, nil
	}
	outer, _ := netip.AddrFromSlice(route.Src)
	if path.Source.IsValid() {
		outer = path.Source.Addr()
	}
	f := &flow{out: out.raw, to: sockaddr(path.Backend, 0)}
	if path.Forward == GUE {
		f.encap, err = packet.NewGUE(packet.MAC{}, packet.MAC{}, outer, path.Backend, path.GUEPort, path.GUEChecksum)
	} else {
		f.encap, err = packet.NewIPIP(packet.MAC{}, packet.MAC{}, outer, path.Backend)
	}
	if err == nil && path.Source.IsValid() {
		f.encap.VarySource(path.Source)
	}
	return f, inner, err
}
