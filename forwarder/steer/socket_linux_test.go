package steer

import (
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/testenv"
)

// What is redirected arrives in the AF_XDP sockets, packet for packet; when a socket closes, its queue's packets are
// dropped under no_socket, and a new socket gets them again.
func TestRedirectedPacketsArrive(t *testing.T) {
	c := newCable(t, 2)
	s := newSteer(t)
	vip := netip.MustParseAddr("192.0.2.10")
	if err := s.SetVIPs([]netip.Addr{vip}); err != nil {
		t.Fatal(err)
	}
	if err := c.client.AddRoute(testenv.Route{Dst: netip.PrefixFrom(vip, 32), Via: []netip.Addr{node4}}); err != nil {
		t.Fatal(err)
	}
	umem, err := xsk.NewUmem(xsk.Options{Frames: 4096, FillSize: 1024, RXSize: 1024, TXSize: 64, CompletionSize: 64})
	if err != nil {
		t.Fatal(err)
	}
	defer umem.Close()
	l, err := c.attach(s, c.index, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sockets := make([]*xsk.Socket, 2)
	open := func(queue int) {
		t.Helper()
		err := c.node.Do(func() (err error) {
			if sockets[queue], err = umem.Open("eth0", c.index, queue, xsk.Copy); err != nil {
				return err
			}
			return l.SetSocket(queue, sockets[queue].FD())
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	open(0)
	open(1)

	// step sends datagrams from many ports, and returns what the program counted and what the sockets received.
	step := func(datagrams int) (counted Stats, received int) {
		t.Helper()
		before, err := s.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.sendDatagrams(netip.AddrPortFrom(vip, 53), datagrams); err != nil {
			t.Fatal(err)
		}
		batch := make([]xsk.Desc, 64)
		for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			now, err := s.Stats()
			if err != nil {
				t.Fatal(err)
			}
			counted = Stats{ToVIPs: now.ToVIPs - before.ToVIPs, Redirected: now.Redirected - before.Redirected,
				NoSocket: now.NoSocket - before.NoSocket}
			for _, socket := range sockets {
				if socket == nil {
					continue
				}
				for n := socket.Receive(batch); n > 0; n = socket.Receive(batch) {
					received += n
					socket.Recycle(batch[:n])
				}
			}
			arrived := counted.ToVIPs == uint64(datagrams) && uint64(received) == counted.Redirected
			if arrived || time.Now().After(deadline) {
				return counted, received
			}
		}
	}
	const datagrams = 300
	all := Stats{ToVIPs: datagrams, Redirected: datagrams}
	if counted, received := step(datagrams); counted != all || received != datagrams {
		t.Errorf("of %d datagrams: counted %+v, received %d", datagrams, counted, received)
	}
	if err := sockets[1].Close(); err != nil {
		t.Fatal(err)
	}
	sockets[1] = nil
	counted, received := step(datagrams)
	if counted.ToVIPs != datagrams || counted.Redirected+counted.NoSocket != datagrams ||
		counted.NoSocket == 0 || counted.Redirected == 0 || uint64(received) != counted.Redirected {
		t.Errorf("without a socket on queue 1, of %d datagrams: counted %+v, received %d", datagrams, counted, received)
	}
	open(1)
	if counted, received := step(datagrams); counted != all || received != datagrams {
		t.Errorf("with a new socket, of %d datagrams: counted %+v, received %d", datagrams, counted, received)
	}
}

// sendDatagrams sends each from a port of its own, so that they spread over the queues.
func (c *cable) sendDatagrams(to netip.AddrPort, n int) error {
	for i := range n {
		conn, err := c.dial("udp", to, time.Second)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(conn, "datagram %d", i)
		conn.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
