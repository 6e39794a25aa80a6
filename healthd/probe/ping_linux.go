package probe

import (
	"context"
	"crypto/rand"
	"errors"
	"net/netip"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// ping sends an echo request. A socket of the kernel's own for pings needs no privileges, but a range of groups that the system
// sets; without, a raw one needs CAP_NET_RAW. Either is connected: a raw one would otherwise see every backend's replies.
func (p *Prober) ping(ctx context.Context, t *Target) (outcome, error) {
	addr := netip.AddrPortFrom(t.Address.Unmap(), 0)
	kind, protocol := unix.SOCK_DGRAM, unix.IPPROTO_ICMP
	var request, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if addr.Addr().Is6() {
		protocol, request, reply = unix.IPPROTO_ICMPV6, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	c, err := connect(ctx, kind, protocol, addr, false)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		kind = unix.SOCK_RAW
		c, err = connect(ctx, kind, protocol, addr, false)
	}
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return outcome{}, lack("ping needs the group of sluice-healthd in net.ipv4.ping_group_range, or CAP_NET_RAW (AmbientCapabilities= of the unit)")
	}
	if err != nil {
		return outcome{}, err
	}
	conn := bound(ctx, c)
	defer conn.Close()
	var payload [16]byte
	_, _ = rand.Read(payload[:]) // never fails
	echo := &icmp.Echo{ID: int(payload[0])<<8 | int(payload[1]), Seq: 1, Data: payload[:]}
	message, err := (&icmp.Message{Type: request, Body: echo}).Marshal(nil) // the kernel completes the checksum of ICMPv6
	if err != nil {
		return outcome{}, lack("ping: " + err.Error())
	}
	const mostOptions = 60
	err = exchange(ctx, t.timeout(), conn, message, mostOptions+len(message), func(data []byte) (bool, error) {
		if kind == unix.SOCK_RAW && reply == ipv4.ICMPTypeEchoReply { // an IPv4 header comes first
			if len(data) == 0 || len(data) < int(data[0]&0xf)*4 {
				return false, nil
			}
			data = data[int(data[0]&0xf)*4:]
		}
		m, err := icmp.ParseMessage(protocol, data)
		if err != nil || m.Type != reply {
			return false, nil
		}
		got, ok := m.Body.(*icmp.Echo)
		return ok && got.Seq == echo.Seq && string(got.Data) == string(payload[:]) &&
			(kind == unix.SOCK_DGRAM || got.ID == echo.ID), nil // the kernel puts an ID of its own in, and back out
	})
	if err != nil {
		return outcome{}, err
	}
	return saw("echo reply"), nil
}
