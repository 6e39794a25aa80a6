//go:build linux

package conformance

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/testenv"
)

// wire is the far end of a cable of the node.
type wire struct {
	name   string
	fd     int
	buffer [4096]byte
	oob    [256]byte
}

func newWire(t *testing.T, ns *testenv.Namespace, name string) *wire {
	t.Helper()
	link, err := ns.Link(name)
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{name: name}
	err = ns.Do(func() (err error) {
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(w.fd) })
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network byte order
	for _, err := range []error{
		unix.SetsockoptInt(w.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(w.fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
		unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20),
		unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index}),
	} {
		if err != nil {
			t.Fatalf("packet socket on %s: %v", name, err)
		}
	}
	return w
}

func (w *wire) send(t *testing.T, frame []byte) {
	t.Helper()
	if _, err := unix.Write(w.fd, frame); err != nil {
		t.Fatalf("send %d bytes on %s: %v", len(frame), w.name, err)
	}
}

// receive returns the next frame, or nil if none comes in time. The kernel has taken a tag off, and tells about it aside.
func (w *wire) receive(wait time.Duration) []byte {
	for {
		n, oobn, _, _, err := unix.Recvmsg(w.fd, w.buffer[:], w.oob[:], 0)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN && wait > 0:
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}, int(max(wait.Milliseconds(), 1)))
			wait = 0
			continue
		case err != nil:
			return nil
		}
		frame := append([]byte(nil), w.buffer[:n]...)
		messages, _ := unix.ParseSocketControlMessage(w.oob[:oobn])
		for _, m := range messages {
			// struct tpacket_auxdata: status, length, captured length, two offsets, tag, tag's type.
			if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < 20 ||
				m.Data[0]&unix.TP_STATUS_VLAN_VALID == 0 {
				continue
			}
			tag := []byte{m.Data[19], m.Data[18], m.Data[17], m.Data[16]}
			frame = append(append(append([]byte{}, frame[:12]...), tag...), frame[12:]...)
		}
		return frame
	}
}

func (w *wire) drain() {
	for w.receive(0) != nil {
	}
}
