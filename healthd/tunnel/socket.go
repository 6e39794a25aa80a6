//go:build linux

package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// socket is a descriptor that may be closed while others use it. The zero socket is one of a family that this host lacks.
type socket struct {
	file *os.File
	raw  syscall.RawConn
}

// openSocket opens a socket. The name is for errors.
func openSocket(name string, family, kind, proto int) (socket, error) {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if errors.Is(err, unix.EPERM) {
		return socket{}, fmt.Errorf("open %s socket: %w; probes through tunnels need CAP_NET_RAW: give AmbientCapabilities=CAP_NET_RAW and CapabilityBoundingSet=CAP_NET_RAW in the systemd unit, or run as root", name, err)
	}
	if err != nil {
		return socket{}, fmt.Errorf("open %s socket: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), name)
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return socket{}, fmt.Errorf("open %s socket: %w", name, err)
	}
	return socket{file, raw}, nil
}

// send sends a packet, or fails at once.
func (s socket) send(b []byte, to unix.Sockaddr) (err error) {
	if s.raw == nil {
		return unix.EAFNOSUPPORT
	}
	closed := s.raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT, to) })
	return errors.Join(closed, err)
}

func (s socket) close() {
	if s.file != nil {
		s.file.Close()
	}
}

// Words of the filters below.
const (
	ldW   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	ldB   = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
	ldH   = unix.BPF_LD | unix.BPF_H | unix.BPF_ABS
	ldBX  = unix.BPF_LD | unix.BPF_B | unix.BPF_IND // at X and more
	ldHX  = unix.BPF_LD | unix.BPF_H | unix.BPF_IND
	ldX   = unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH // X = length of the IPv4 header
	jmp   = unix.BPF_JMP | unix.BPF_JA
	jeq   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	jge   = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	ret   = unix.BPF_RET | unix.BPF_K
	whole = 0x7fffffff

	// linux/filter.h: what is known of a packet beside its bytes.
	adOff        = 0xfffff000
	adPacketType = adOff + 4
	adLink       = adOff + 8

	loopback = 1 // LOOPBACK_IFINDEX of net/flow.h

	icmpUnreachable4 = 3 // type "destination unreachable" (RFC 792)
	icmpUnreachable6 = 1 // (RFC 4443)
)

// filter4 passes IPv4 packets for this host, from other hosts, with TCP or UDP to one of our ports; and the news that a packet
// from one of our ports, which have no IP options, did not arrive. The packet begins with its IP header.
var filter4 = []unix.SockFilter{
	0:  {Code: ldW, K: adLink},
	1:  {Code: jeq, K: loopback, Jt: 14},
	2:  {Code: ldW, K: adPacketType},
	3:  {Code: jeq, K: unix.PACKET_HOST, Jf: 12},
	4:  {Code: ldX, K: 0},
	5:  {Code: ldB, K: 9}, // protocol
	6:  {Code: jeq, K: unix.IPPROTO_ICMP, Jt: 4},
	7:  {Code: jeq, K: unix.IPPROTO_TCP, Jt: 1},
	8:  {Code: jeq, K: unix.IPPROTO_UDP, Jf: 7},
	9:  {Code: ldHX, K: 2}, // destination port
	10: {Code: jmp, K: 3},
	11: {Code: ldBX, K: 0}, // ICMP type
	12: {Code: jeq, K: icmpUnreachable4, Jf: 3},
	13: {Code: ldHX, K: 8 + 20}, // source port in the packet that it quotes
	14: {Code: jge, K: firstPort, Jf: 1},
	15: {Code: ret, K: whole},
	16: {Code: ret, K: 0},
}

// filter6 does the same with IPv6 packets without extension headers.
var filter6 = []unix.SockFilter{
	0:  {Code: ldW, K: adLink},
	1:  {Code: jeq, K: loopback, Jt: 13},
	2:  {Code: ldW, K: adPacketType},
	3:  {Code: jeq, K: unix.PACKET_HOST, Jf: 11},
	4:  {Code: ldB, K: 6}, // next header
	5:  {Code: jeq, K: unix.IPPROTO_ICMPV6, Jt: 4},
	6:  {Code: jeq, K: unix.IPPROTO_TCP, Jt: 1},
	7:  {Code: jeq, K: unix.IPPROTO_UDP, Jf: 7},
	8:  {Code: ldH, K: 40 + 2}, // destination port
	9:  {Code: jmp, K: 3},
	10: {Code: ldB, K: 40}, // ICMPv6 type
	11: {Code: jeq, K: icmpUnreachable6, Jf: 3},
	12: {Code: ldH, K: 40 + 8 + 40}, // source port in the packet that it quotes
	13: {Code: jge, K: firstPort, Jf: 1},
	14: {Code: ret, K: whole},
	15: {Code: ret, K: 0},
}

// inletBuffer is how many bytes of answers may wait in the kernel, which may allow less (net.core.rmem_max).
const inletBuffer = 4 << 20

// openInlet opens a packet socket for what the filter passes. Packets come without Ethernet header, and without those that
// this host sends: only sockets for all protocols get those.
func openInlet(name string, etherType uint16, filter []unix.SockFilter) (socket, error) {
	s, err := openSocket(name, unix.AF_PACKET, unix.SOCK_DGRAM, 0) // nothing comes before it is bound
	if err != nil {
		return socket{}, err
	}
	closed := s.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, inletBuffer)
		program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		if err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
			err = fmt.Errorf("filter %s socket: %w", name, err)
		} else if err = unix.Bind(int(fd), &unix.SockaddrLinklayer{Protocol: networkOrder(etherType)}); err != nil {
			err = fmt.Errorf("bind %s socket: %w", name, err)
		}
	})
	if err = errors.Join(closed, err); err != nil {
		s.close()
		return socket{}, err
	}
	return s, nil
}

// networkOrder gives a number in the byte order of a socket address.
func networkOrder(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}
