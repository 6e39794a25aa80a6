//go:build linux

package tunnel

import (
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/sluice-lb/sluice/forwarder/packet"
)

const (
	// mtu is what an inner packet has at most, in bytes: the least that IPv6 allows. With outer headers it fits any LAN.
	mtu = 1280

	etherLen = 14 // of the Ethernet header before the packets that package packet works on; no such header is sent
)

// flow is one connection. It is immutable but for failed.
type flow struct {
	vip    packet.Addr // where it goes
	port   uint16
	encap  packet.Encap  // unless l2
	out    socket        // where packets leave
	to     unix.Sockaddr // and whereto
	failed atomic.Int32  // a syscall.Errno: why the kernel did not send the last packet; 0: it did
}

// family is what the connections to VIPs of one address family, and the packets to backends of one, have of their own.
type family struct {
	number    tcpip.NetworkProtocolNumber
	etherType uint16
	ports     *ports // of connections to VIPs
	inlet     socket // answers from VIPs
	raw       socket // whole IP packets to backends
	udp       socket // see routes.neighbour
}

// link is netstack's network interface. It has no queue: packets leave on the goroutine that makes them.
type link struct {
	*channel.Endpoint // all but WritePackets
	v4, v6            family
	key               packet.Key
}

func (l *link) family(is4 bool) *family {
	if is4 {
		return &l.v4
	}
	return &l.v6
}

// outBuffers hold packets while they get outer headers.
var outBuffers = sync.Pool{New: func() any { return new([packet.Headroom + etherLen + mtu]byte) }}

// WritePackets implements stack.LinkEndpoint. What cannot be sent is lost, as on a network; TCP sends it again.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	buf := outBuffers.Get().(*[packet.Headroom + etherLen + mtu]byte)
	defer outBuffers.Put(buf)
	for _, pkt := range pkts.AsSlice() {
		f := l.family(pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber)
		binary.BigEndian.PutUint16(buf[packet.Headroom+etherLen-2:], f.etherType)
		end := packet.Headroom + etherLen
		for _, b := range pkt.AsSlices() {
			end += copy(buf[end:], b)
		}
		l.send(f, buf[:end])
	}
	return pkts.Len(), nil
}

// send sends the packet behind the headroom and an Ethernet header with no addresses.
func (l *link) send(f *family, buf []byte) {
	var m packet.Meta
	packet.Parse(buf[packet.Headroom:], &l.key, &m)
	if m.Reason != packet.None || m.Flags&(packet.ICMPError|packet.Echo|packet.First|packet.Later) != 0 {
		return // what netstack says of its own accord, and fragments
	}
	flow := f.ports.flow(m.SrcPort)
	if flow == nil {
		return
	}
	start, length := packet.Headroom, len(buf)-packet.Headroom
	if flow.encap.Overhead() > 0 {
		start, length = flow.encap.Apply(buf, start, &m)
	}
	err := flow.out.send(buf[start+etherLen:start+length], flow.to)
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) {
		errno = syscall.EBADF // closed
	}
	flow.failed.Store(int32(errno))
}

// receive gives netstack the answers that come to connections of a family, until the inlet is closed.
func (l *link) receive(f *family) {
	buf := make([]byte, 1<<16)
	binary.BigEndian.PutUint16(buf[etherLen-2:], f.etherType)
	for {
		n, err := f.inlet.file.Read(buf[etherLen:])
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			continue // what happened to the socket is told once
		}
		if frame := buf[:etherLen+n]; l.expected(f, frame) {
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame[etherLen:])})
			l.InjectInbound(f.number, pkt)
			pkt.DecRef()
		}
	}
}

// expected says whether a frame is from the VIP and port of the connection whose port it goes to, or is an ICMP error about a
// packet of that connection, from anyone.
func (l *link) expected(f *family, frame []byte) bool {
	var m packet.Meta
	packet.Parse(frame, &l.key, &m)
	if m.Reason != packet.None || m.Flags&(packet.Echo|packet.First|packet.Later) != 0 {
		return false
	}
	flow := f.ports.flow(m.DstPort)
	return flow != nil && flow.port == m.SrcPort &&
		(m.Flags&packet.ICMPError != 0 || packet.Source(frame, &m) == flow.vip)
}
