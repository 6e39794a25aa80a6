//go:build linux

package xsk_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/testenv"
)

// jumbo is a network with an MTU of 9000, in which the test forwards between two kernels:
//
//	namespace peer         namespace lb          namespace far
//	  left 10.0.0.1  ───────  left
//	                          wide  ───────────────  wide 10.0.0.2
type jumbo struct {
	*rig
	far       *testenv.Namespace
	near      net.PacketConn // at peer; what it sends to remote arrives at echo
	echo      net.PacketConn // at far
	remote    net.Addr
	nearUnits map[int][]uint32 // lengths of the frames of each packet that came in at lb's left, by the packet's length
}

const jumboMTU = 9000

func newJumbo(t *testing.T, o xsk.Options) *jumbo {
	t.Helper()
	j := &jumbo{rig: newRigWith(t, o), nearUnits: map[int][]uint32{}}
	j.frags = true
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	j.far, err = j.env.Namespace("far")
	must(err)
	must(j.env.Veth(testenv.End{Namespace: j.lb, Name: "wide", MTU: jumboMTU},
		testenv.End{Namespace: j.far, Name: "wide", MTU: jumboMTU, SoftwareChecksums: true}, queues))
	must(j.lb.SetMTU("left", jumboMTU))
	must(j.peer.SetMTU("left", jumboMTU))
	must(j.peer.SetFeatures("left", map[string]bool{testenv.TXChecksum: false}))

	nearAddr, farAddr := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	for _, e := range []struct {
		ns          *testenv.Namespace
		link        string
		addr, other netip.Addr
		otherNS     *testenv.Namespace
		otherLink   string
		conn        *net.PacketConn
	}{
		{j.peer, "left", nearAddr, farAddr, j.far, "wide", &j.near},
		{j.far, "wide", farAddr, nearAddr, j.peer, "left", &j.echo},
	} {
		must(e.ns.AddAddr(e.link, netip.PrefixFrom(e.addr, 24)))
		other, err := e.otherNS.Link(e.otherLink)
		must(err)
		must(e.ns.AddNeighbour(e.link, e.other, other.Attrs().HardwareAddr))
		must(e.ns.Do(func() (err error) {
			*e.conn, err = net.ListenPacket("udp4", netip.AddrPortFrom(e.addr, 0).String())
			return err
		}))
		t.Cleanup(func() { (*e.conn).Close() })
	}
	j.remote = j.echo.LocalAddr()
	return j
}

// datagram returns what to send for a frame of the given length.
func datagram(frame int) []byte {
	b := make([]byte, frame-14-20-8)
	for i := range b {
		b[i] = byte(frame + i + i>>8)
	}
	return b
}

// forward is a worker's round, both ways.
func (j *jumbo) forward(left, wide []*xsk.Socket) {
	j.t.Helper()
	var batch [64]xsk.Desc
	for q := range queues {
		for _, way := range [][2]*xsk.Socket{{left[q], wide[q]}, {wide[q], left[q]}} {
			n := way[0].Receive(batch[:])
			if way[0] == left[q] {
				var units []uint32
				length := 0
				for _, d := range batch[:n] {
					units, length = append(units, d.Len), length+int(d.Len)
					if d.Options&xsk.Continued == 0 {
						j.nearUnits[length] = units
						units, length = nil, 0
					}
				}
			}
			taken := way[1].Transmit(batch[:n])
			way[1].Recycle(batch[taken:n])
			if err := way[1].Wake(); err != nil {
				j.t.Fatal(err)
			}
		}
	}
}

// arrives waits for a datagram while it forwards.
func (j *jumbo) arrives(at net.PacketConn, left, wide []*xsk.Socket) (datagram []byte, from net.Addr) {
	j.t.Helper()
	buffer := make([]byte, 1<<16)
	until(j.t, "the datagram does not arrive", func() bool {
		j.forward(left, wide)
		if err := at.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			j.t.Fatal(err)
		}
		n, sender, err := at.ReadFrom(buffer)
		datagram, from = buffer[:n], sender
		return err == nil
	})
	return datagram, from
}

var jumboOptions = func() xsk.Options {
	o := kernelOptions
	o.MultiBuffer = true
	return o
}()

// Datagrams of two kernels arrive at each other whole, in one frame and in several.
func TestKernelMultiBuffer(t *testing.T) {
	for name, alone := range map[string]bool{"one registration": false, "two registrations": true} {
		t.Run(name, func(t *testing.T) {
			j := newJumbo(t, jumboOptions)
			left := j.open("left")
			j.alone = alone
			wide := j.open("wide")
			longest := jumboOptions.MaxFrame()
			sum := func(units []uint32) (n int) {
				for _, u := range units {
					n += int(u)
				}
				return n
			}
			for _, c := range []struct{ length, frames int }{
				{60, 1}, {1514, 1}, {longest, 1}, {longest + 1, 2}, {2 * longest, 2}, {2*longest + 1, 3},
				{8042, 3}, {jumboMTU + 14, 3},
			} {
				sent := datagram(c.length)
				if _, err := j.near.WriteTo(sent, j.remote); err != nil {
					t.Fatal(err)
				}
				got, from := j.arrives(j.echo, left, wide)
				if !bytes.Equal(got, sent) {
					t.Errorf("frame of %d bytes: %d other bytes arrived", c.length, len(got))
				}
				units := j.nearUnits[c.length]
				if len(units) != c.frames || sum(units) != c.length || int(units[0]) != min(c.length, longest) {
					t.Errorf("frame of %d bytes came in as %v, want %d frames", c.length, units, c.frames)
				}
				// And back.
				if _, err := j.echo.WriteTo(got, from); err != nil {
					t.Fatal(err)
				}
				if got, _ := j.arrives(j.near, left, wide); !bytes.Equal(got, sent) {
					t.Errorf("frame of %d bytes: %d other bytes came back", c.length, len(got))
				}
			}
			t.Logf("8042 bytes came in as %v", j.nearUnits[8042])

			all := append(slices.Clone(left), wide...)
			j.settled(all...)
			for _, s := range all {
				st, err := s.Stats()
				if err != nil {
					t.Error(err)
				}
				n := s.Counts()
				bad := st.RXDropped + st.RXInvalid + st.TXInvalid + st.RXRingFull + n.Discarded + n.Invalid + n.Refused
				if bad != 0 || n.Completed != n.Sent {
					t.Errorf("%s: %+v, the kernel counted %+v", s, n, st)
				}
			}
		})
	}
}

// Many at once: rings wrap in the middle of packets, and a Wake takes more than one system call.
func TestKernelMultiBufferMany(t *testing.T) {
	j := newJumbo(t, jumboOptions)
	left, wide := j.open("left"), j.open("wide")
	want := map[string]bool{}
	for round := range 30 {
		for i := range 8 {
			sent := datagram(60 + (round*8+i)*257%8950)
			want[string(sent)] = true
			if _, err := j.near.WriteTo(sent, j.remote); err != nil {
				t.Fatal(err)
			}
		}
		for range 8 {
			got, _ := j.arrives(j.echo, left, wide)
			if !want[string(got)] {
				t.Fatalf("round %d: a datagram of %d bytes that was not sent, or came before", round, len(got))
			}
			delete(want, string(got))
		}
	}
	j.settled(append(slices.Clone(left), wide...)...)
}

// Sockets without MultiBuffer receive up to MaxFrame, and drop what is longer.
func TestKernelMaxFrame(t *testing.T) {
	for _, headroom := range []int{32, 128} {
		o := kernelOptions
		o.Headroom = headroom
		j := newJumbo(t, o)
		left, wide := j.open("left"), j.open("wide")
		for _, length := range []int{o.MaxFrame() + 1, o.MaxFrame()} { // the first is dropped before the other arrives
			if _, err := j.near.WriteTo(datagram(length), j.remote); err != nil {
				t.Fatal(err)
			}
		}
		if got, _ := j.arrives(j.echo, left, wide); !bytes.Equal(got, datagram(o.MaxFrame())) {
			t.Errorf("headroom %d: %d bytes arrived, want those of a frame of %d", headroom, len(got), o.MaxFrame())
		}
		dropped := uint64(0)
		for _, s := range left {
			st, err := s.Stats()
			if err != nil {
				t.Fatal(err)
			}
			dropped += st.RXDropped
		}
		if dropped != 1 {
			t.Errorf("headroom %d: the kernel dropped %d frames, want the one that is a byte too long", headroom, dropped)
		}
	}
}

// As many frames as we let through are sent, as one packet, and their frames come back; so do those of a packet that the
// device drops.
func TestKernelSendsPacketOfManyFrames(t *testing.T) {
	r := newRigWith(t, jumboOptions)
	left := r.openQueue("left", 0, xsk.Auto)
	peer := r.strangers("left")
	memory := r.umem.Memory()
	build := func(frames, length int) (batch []xsk.Desc, whole []byte) {
		for i := range frames {
			addr, ok := left.Spare()
			if !ok {
				t.Fatal("no frame is free")
			}
			part := bytes.Repeat([]byte{byte(i + 1)}, length)
			copy(memory[addr:], part)
			batch = append(batch, xsk.Desc{Addr: addr, Len: uint32(length), Options: xsk.Continued})
			whole = append(whole, part...)
		}
		batch[frames-1].Options = 0
		return batch, whole
	}
	for _, c := range []struct {
		frames, length   int
		arrives          bool
		sent             uint64
		refused, invalid uint64
	}{
		{17, 60, true, 17, 0, 0},
		{18, 60, false, 0, 0, 1},
		{3, 1000, false, 3, 1, 0}, // above the MTU
		{2, 700, true, 2, 0, 0},
	} {
		t.Run(fmt.Sprintf("%d frames of %d bytes", c.frames, c.length), func(t *testing.T) {
			left.Receive(nil)
			before := left.Counts()
			batch, whole := build(c.frames, c.length)
			if taken := left.Transmit(batch); taken != c.frames {
				t.Fatalf("Transmit = %d, want %d", taken, c.frames)
			}
			if err := left.Wake(); err != nil {
				t.Fatal(err)
			}
			left.Receive(nil)
			after := left.Counts()
			if after.Sent-before.Sent != c.sent || after.Completed != after.Sent ||
				after.Refused-before.Refused != c.refused || after.Invalid-before.Invalid != c.invalid {
				t.Errorf("%+v after %+v: want %d sent and completed, %d refused, %d invalid",
					after, before, c.sent, c.refused, c.invalid)
			}
			if !c.arrives {
				return
			}
			until(t, "the packet does not arrive", func() (found bool) {
				peer[0].receive(func(f []byte) { found = found || bytes.Equal(f, whole) })
				return found
			})
		})
	}
	if st, err := left.Stats(); err != nil || st.TXInvalid != 0 {
		t.Errorf("the kernel saw %d bad descriptors (%v)", st.TXInvalid, err)
	}
	r.settled(left)
}

// A kernel before 6.6 says EINVAL, as it does for much else.
func TestKernelWithoutMultiBuffer(t *testing.T) {
	r := newRig(t)
	u, err := xsk.NewFailingUmem(jumboOptions, &xsk.FailingSystem{NoMultiBuffer: true})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	left := index(t, r.lb, "left")
	_, err = r.tryOpen(u, "left", left, 0, xsk.Auto)
	if want := "use Linux 6.6 or later, or lower the MTU to at most 3790"; !errors.Is(err, unix.EINVAL) ||
		!strings.Contains(err.Error(), want) {
		t.Errorf("error is %v", err)
	}

	// This kernel has it, and here it is the queue that is wrong, or that zero-copy is wanted.
	u, err = xsk.NewUmem(jumboOptions)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	_, err = r.tryOpen(u, "left", left, queues, xsk.Copy)
	if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "probably no queue 2") {
		t.Errorf("error is %v", err)
	}
	_, err = r.tryOpen(u, "left", left, 0, xsk.ZeroCopy)
	if !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "or none for packets in several frames") {
		t.Errorf("error is %v", err)
	}
}
