package forwarder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/forwarder/packet"
)

const (
	// refusedBurst is how many ICMP errors of a family are looked at in refusedPeriod. While more come, the kernel drops those for
	// which the socket has no room.
	refusedBurst  = 100
	refusedPeriod = 100 * time.Millisecond
	refusedBuffer = 64 << 10 // bytes of a socket's receive buffer
	// refusedBytes is what of an error is read: its header, and more of what it quotes than is looked at.
	refusedBytes = 256

	// Options whose value has a bit for each type of message that is not wanted: ICMP_FILTER of SOL_RAW (linux/icmp.h), and
	// ICMPV6_FILTER of IPPROTO_ICMPV6 (linux/icmpv6.h).
	icmpFilter  = 1
	icmp6Filter = 1
)

// openRefused opens the raw socket that is given the ICMP errors to this machine which can tell that a backend is unreachable;
// ICMPv6 ones if v6 is set.
func openRefused(v6 bool) (net.PacketConn, error) {
	network, address := "ip4:icmp", "0.0.0.0"
	if v6 {
		network, address = "ip6:ipv6-icmp", "::"
	}
	c := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var failed error
		err := rc.Control(func(fd uintptr) { failed = filterRefused(int(fd), v6) })
		return errors.Join(err, failed)
	}}
	conn, err := c.ListenPacket(context.Background(), network, address)
	if err != nil {
		return nil, fmt.Errorf("raw socket %s: %w", network, err)
	}
	return conn, nil
}

// filterRefused has the kernel give a raw socket nothing else. What came before is read too, and is not taken for an error.
func filterRefused(fd int, v6 bool) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, refusedBuffer); err != nil {
		return os.NewSyscallError("setsockopt SO_RCVBUF", err)
	}
	if !v6 {
		return os.NewSyscallError("setsockopt ICMP_FILTER", unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, ^(1<<packet.ICMPUnreachable)))
	}
	var drop syscall.ICMPv6Filter
	for i := range drop.Data {
		drop.Data[i] = ^uint32(0)
	}
	drop.Data[0] &^= 1<<packet.ICMP6Unreachable | 1<<packet.ICMP6Parameter
	return os.NewSyscallError("setsockopt ICMP6_FILTER", syscall.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, icmp6Filter, &drop))
}

// followRefused counts what ICMP errors to this machine tell about backends, until ctx is done. Without a family's socket the
// node does without.
func (n *Node) followRefused(ctx context.Context) {
	var readers sync.WaitGroup
	for _, v6 := range []bool{false, true} {
		conn, err := openRefused(v6)
		if err != nil {
			n.log.Warn("what says that a backend is unreachable is not seen", "error", err)
			continue
		}
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		readers.Go(func() {
			defer conn.Close()
			defer stop()
			n.readRefused(ctx, conn, v6)
		})
	}
	readers.Wait()
}

func (n *Node) readRefused(ctx context.Context, conn net.PacketConn, v6 bool) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	buffer := make([]byte, refusedBytes)
	for began, looked := time.Now(), 0; ; looked++ {
		if looked == refusedBurst {
			pause.Reset(refusedPeriod - time.Since(began))
			select {
			case <-ctx.Done():
				return
			case <-pause.C:
			}
			began, looked = time.Now(), 0
		}
		size, _, err := conn.ReadFrom(buffer)
		if ctx.Err() != nil {
			return
		}
		if err != nil { // of one message, as when an interface has gone down
			continue
		}
		if r, ok := packet.ReadRefused(buffer[:size], v6); ok {
			n.countRefused(r)
		}
	}
}
