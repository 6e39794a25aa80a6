package steer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/testenv"
)

const ownerEnv = "SLUICE_STEER_TEST_OWNER" // set: this process is a test's child that attaches to eth0 and stays

func TestMain(m *testing.M) {
	if os.Getenv(ownerEnv) == "" {
		os.Exit(m.Run())
	}
	s, err := New(1, 1, 0)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	dev, err := net.InterfaceByName("eth0")
	if err == nil {
		_, err = s.Attach(dev.Index, dev.Name, AttachOptions{Queues: 1}, slog.New(slog.DiscardHandler))
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("attached")
	select {}
}

// cable is a node and a client, joined: eth0 in each. The node has 10.1.0.1 and fd01::1, the client .2.
type cable struct {
	node, client *testenv.Namespace
	nodeMAC      net.HardwareAddr
	index        int // of the node's eth0
}

var (
	node4, node6     = netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd01::1")
	client4, client6 = netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd01::2")
)

func newCable(t *testing.T, queues int) *cable {
	t.Helper()
	env := testenv.ForTest(t)
	c := &cable{nodeMAC: ownMAC}
	var err error
	if c.node, err = env.Namespace("node"); err != nil {
		t.Fatal(err)
	}
	if c.client, err = env.Namespace("client"); err != nil {
		t.Fatal(err)
	}
	err = env.Veth(testenv.End{Namespace: c.node, Name: "eth0", MAC: ownMAC, SoftwareChecksums: true},
		testenv.End{Namespace: c.client, Name: "eth0", MAC: routerMAC, SoftwareChecksums: true}, queues)
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []struct {
		ns   *testenv.Namespace
		addr netip.Addr
	}{{c.node, node4}, {c.node, node6}, {c.client, client4}, {c.client, client6}} {
		bits := 24
		if end.addr.Is6() {
			bits = 64
		}
		if err := end.ns.AddAddr("eth0", netip.PrefixFrom(end.addr, bits)); err != nil {
			t.Fatal(err)
		}
	}
	dev, err := c.node.Link("eth0")
	if err != nil {
		t.Fatal(err)
	}
	c.index = dev.Attrs().Index
	return c
}

func newSteer(t *testing.T) *Steer {
	t.Helper()
	s, err := New(8, 8, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// attach attaches to an interface of the node.
func (c *cable) attach(s *Steer, index int, log io.Writer) (l *Link, err error) {
	err = c.node.Do(func() error {
		l, err = s.Attach(index, "eth0", AttachOptions{Queues: 2}, slog.New(slog.NewTextHandler(log, nil)))
		return err
	})
	return l, err
}

func (c *cable) mustAttach(t *testing.T, s *Steer) *Link {
	t.Helper()
	l, err := c.attach(s, c.index, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// program returns what is attached to an interface of the node.
func (c *cable) program(t *testing.T, index int) (id uint32, name string) {
	t.Helper()
	err := c.node.Do(func() error {
		id, name = attached(index)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return id, name
}

func TestAttachAndDetach(t *testing.T) {
	c, s := newCable(t, 2), newSteer(t)
	var log bytes.Buffer
	l, err := c.attach(s, c.index, &log)
	if err != nil {
		t.Fatal(err)
	}
	if _, name := c.program(t, c.index); name != "sluice_steer" {
		t.Errorf("attached program: %q", name)
	}
	if l.Generic() || !l.Attached() || log.Len() != 0 {
		t.Errorf("generic %v, attached %v, log: %s", l.Generic(), l.Attached(), log.String())
	}
	for queue := range 2 {
		fd := xskSocket(t)
		if err := l.SetSocket(queue, fd); err != nil {
			t.Error(err)
		}
	}
	if err := l.SetSocket(2, xskSocket(t)); err == nil || !strings.Contains(err.Error(), "eth0 queue 2") {
		t.Errorf("a queue too many: %v", err)
	}
	if err := l.SetSocket(0, 0); err == nil {
		t.Error("standard input was taken for an AF_XDP socket")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if id, name := c.program(t, c.index); id != 0 {
		t.Errorf("after Close: program %d %q", id, name)
	}
	if err := l.Close(); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	// The interface can be taken again at once.
	c.mustAttach(t, s)
}

// xskSocket is an AF_XDP socket as it can be in the map: it has an RX ring, but is not bound.
func xskSocket(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_XDP, unix.XDP_RX_RING, 64); err != nil {
		t.Fatal(err)
	}
	return fd
}

// The node's own traffic passes untouched; packets to a VIP do not reach the stack: they are dropped and counted while
// there is no socket, and nobody answers them.
func TestNodesOwnTrafficPasses(t *testing.T) {
	c := newCable(t, 2)
	s := newSteer(t)
	// The VIPs are the node's own addresses too, so that the stack would answer if it got their packets.
	vips := []netip.Addr{netip.MustParseAddr("10.1.0.10"), netip.MustParseAddr("fd01::10")}
	for i, bits := range []int{32, 128} {
		if err := c.node.AddAddr("eth0", netip.PrefixFrom(vips[i], bits)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SetVIPs(vips); err != nil {
		t.Fatal(err)
	}
	c.mustAttach(t, s)

	sent := make([]byte, 4<<20)
	for i := range sent {
		sent[i] = byte(i >> 8)
	}
	for _, addr := range []netip.Addr{node4, node6} {
		got, err := c.transfer(netip.AddrPortFrom(addr, 22), sent)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, sent) {
			t.Errorf("%s: sent %d bytes, got other %d", addr, len(sent), len(got))
		}
	}
	if got, err := s.Stats(); err != nil || got != (Stats{}) {
		t.Errorf("the node's own traffic was counted: %+v %v", got, err)
	}
	for _, vip := range vips {
		before, err := s.Stats()
		if err != nil {
			t.Fatal(err)
		}
		conn, err := c.dial("tcp", netip.AddrPortFrom(vip, 22), 300*time.Millisecond)
		if err == nil {
			conn.Close()
			t.Errorf("%s: connected through the stack", vip)
		} else if !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err) {
			t.Errorf("%s: %v; want silence", vip, err)
		}
		after, err := s.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if after.ToVIPs <= before.ToVIPs || after.NoSocket != after.ToVIPs || after.Redirected != 0 {
			t.Errorf("%s: %+v, then %+v", vip, before, after)
		}
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// transfer sends bytes from the client to a listener on the node, and returns what arrived.
func (c *cable) transfer(addr netip.AddrPort, data []byte) (got []byte, err error) {
	listener, err := c.node.Listen("tcp", addr.String())
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	sent := make(chan error, 1)
	go func() {
		conn, err := c.dial("tcp", addr, 5*time.Second)
		if err == nil {
			_, err = conn.Write(data)
			err = errors.Join(err, conn.Close())
		}
		sent <- err
	}()
	stop := time.AfterFunc(5*time.Second, func() { listener.Close() })
	defer stop.Stop()
	conn, err := listener.Accept()
	if err != nil {
		return nil, errors.Join(err, <-sent)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil, err
	}
	got, err = io.ReadAll(conn)
	return got, errors.Join(err, <-sent)
}

func (c *cable) dial(network string, addr netip.AddrPort, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return c.client.Dialer().DialContext(ctx, network, addr.String())
}

// Whoever else has a program on the interface keeps it, in either mode.
func TestForeignProgramIsNeverReplaced(t *testing.T) {
	for name, mode := range map[string]link.XDPAttachFlags{"native": link.XDPDriverMode, "generic": link.XDPGenericMode} {
		t.Run(name, func(t *testing.T) {
			c := newCable(t, 1)
			foreign, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "their_filter", Type: ebpf.XDP, License: "MIT",
				Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()}})
			if err != nil {
				t.Fatal(err)
			}
			defer foreign.Close()
			err = c.node.Do(func() error {
				theirs, err := link.AttachXDP(link.XDPOptions{Program: foreign, Interface: c.index, Flags: mode})
				if err == nil {
					t.Cleanup(func() { theirs.Close() })
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			before, _ := c.program(t, c.index)
			s := newSteer(t)
			start, fds := time.Now(), openFDs(t)
			l, err := c.attach(s, c.index, io.Discard)
			if err == nil {
				l.Close()
				t.Fatal("attached over a foreign program")
			}
			if !strings.Contains(err.Error(), "eth0") || !strings.Contains(err.Error(), `"their_filter"`) ||
				!strings.Contains(err.Error(), fmt.Sprint("id ", before)) {
				t.Errorf("the error does not name interface, program and id %d: %v", before, err)
			}
			if took := time.Since(start); took >= predecessorWait {
				t.Errorf("waited %v for a foreign program", took)
			}
			if id, name := c.program(t, c.index); id != before || name != "their_filter" {
				t.Errorf("attached now: %d %q, before %d", id, name, before)
			}
			if now := openFDs(t); now != fds {
				t.Errorf("%d open descriptors, %d before the refused attach", now, fds)
			}
		})
	}
}

// A living sluice keeps its interface; a killed one leaves nothing, and its successor need not wait for that.
func TestOwner(t *testing.T) {
	c := newCable(t, 1)
	start := func() *testenv.Process {
		t.Helper()
		p, err := c.node.Start(testenv.Cmd{Path: os.Args[0], Env: []string{ownerEnv + "=1"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.WaitOutput(10*time.Second, "attached"); err != nil {
			t.Fatal(err)
		}
		return p
	}
	owner := start()
	if l, err := c.attach(newSteer(t), c.index, io.Discard); err == nil {
		l.Close()
		t.Fatal("attached beside a running owner")
	} else if !strings.Contains(err.Error(), "a running sluice") {
		t.Errorf("beside a running owner: %v", err)
	}
	if err := owner.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Second); ; time.Sleep(5 * time.Millisecond) {
		id, name := c.program(t, c.index)
		if id == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a second after its owner's death the program is still there: %d %q", id, name)
		}
	}
	// Again, with a successor that starts at the moment of the kill.
	owner = start()
	time.AfterFunc(20*time.Millisecond, func() { owner.Signal(unix.SIGKILL) })
	c.mustAttach(t, newSteer(t))
}

// A driver without native XDP: the program runs in the stack, says so, and works.
func TestGenericFallback(t *testing.T) {
	c := newCable(t, 1)
	mac := net.HardwareAddr{0x02, 0, 0, 0, 0, 0x33}
	if err := c.node.Bridge("br0", mac, 1500); err != nil {
		t.Fatal(err)
	}
	dev, err := c.node.Link("br0")
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	l, err := c.attach(newSteer(t), dev.Attrs().Index, &log)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if !l.Generic() || !l.Attached() {
		t.Errorf("generic %v, attached %v", l.Generic(), l.Attached())
	}
	for _, want := range []string{"level=WARN", "generic", "interface=eth0", "no native XDP"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q: %s", want, log.String())
		}
	}
	if _, name := c.program(t, dev.Attrs().Index); name != "sluice_steer" {
		t.Errorf("attached program: %q", name)
	}
}

// A veth driver refuses native XDP when the peer's MTU is too large; that is cured by generic mode, too, and told.
func TestGenericFallbackForLargeMTU(t *testing.T) {
	c := newCable(t, 1)
	if err := c.client.SetMTU("eth0", 9000); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	l, err := c.attach(newSteer(t), c.index, &log)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if !l.Generic() || !strings.Contains(log.String(), "MTU too large") {
		t.Errorf("generic %v, log: %s", l.Generic(), log.String())
	}
}

func TestVanishedInterface(t *testing.T) {
	c := newCable(t, 1)
	s := newSteer(t)
	l := c.mustAttach(t, s)
	if err := c.node.DeleteLink("eth0"); err != nil {
		t.Fatal(err)
	}
	if l.Attached() {
		t.Error("still attached to an interface that is gone")
	}
	if err := l.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	fds := openFDs(t)
	if _, err := c.attach(s, c.index, io.Discard); err == nil || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("attach to an interface that is gone: %v", err)
	}
	if _, err := s.Attach(1, "lo", AttachOptions{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("no queues were accepted")
	}
	if now := openFDs(t); now != fds {
		t.Errorf("%d open descriptors, %d before the failed attaches", now, fds)
	}
}

func TestQueues(t *testing.T) {
	c := newCable(t, 3)
	err := c.node.Do(func() error {
		if n, err := Queues("eth0"); n != 3 || err != nil {
			t.Errorf("eth0: %d %v", n, err)
		}
		if n, err := Queues("eth7"); err == nil || !strings.Contains(err.Error(), "eth7") {
			t.Errorf("an interface that is not there: %d %v", n, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
