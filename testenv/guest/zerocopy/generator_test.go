//go:build linux && guest

package zerocopy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/rpc"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/bench"
	"github.com/sluice-lb/sluice/testenv"
)

// The network of the two machines: generator eth0 – eth0 node, and for talk between the two tests, generator eth1 – eth2 node.
var (
	rateVIP      = netip.MustParseAddr("192.0.2.10")
	rateNode     = netip.MustParsePrefix("10.0.0.1/24")
	rateClient   = netip.MustParsePrefix("10.0.0.2/24")
	rateBackends = []netip.Addr{netip.MustParseAddr("10.0.0.11"), netip.MustParseAddr("10.0.0.12")} // the generator's too
	talkNode     = netip.MustParsePrefix("10.0.1.1/24")
	talkClient   = netip.MustParsePrefix("10.0.1.2/24")
)

const talkPort = 7000

// Generator is in the machine beside what the one of the node asks for: traffic of the shipped script for the kernel's pktgen, and
// the number of frames that have come back. Its methods are called through net/rpc.
type Generator struct {
	ns     *testenv.Namespace
	sink   *bench.Sink
	script *testenv.Process
}

// generate serves a Generator until the machine is killed.
func generate(t *testing.T) {
	env := testenv.ForTest(t)
	g := &Generator{ns: newNamespace(t, env, "generator")}
	furnish(t, g.ns, "eth0", rateClient, netip.PrefixFrom(rateBackends[0], 24), netip.PrefixFrom(rateBackends[1], 24))
	talk := newNamespace(t, env, "talk")
	furnish(t, talk, "eth1", talkClient)
	var err error
	if g.sink, err = bench.StartSink(g.ns, "eth0"); err != nil {
		t.Fatal(err)
	}
	server := rpc.NewServer()
	if err := server.Register(g); err != nil {
		t.Fatal(err)
	}
	l, err := talk.Listen("tcp", netip.AddrPortFrom(talkClient.Addr(), talkPort).String())
	if err != nil {
		t.Fatal(err)
	}
	server.Accept(l)
}

// Start runs a script of bench/nic/pktgen with these arguments.
func (g *Generator) Start(command []string, _ *struct{}) (err error) {
	g.script, err = g.ns.Start(testenv.Cmd{Path: "/bin/sh", Args: command})
	return err
}

// Count returns how many frames have come to the generator's interface so far.
func (g *Generator) Count(_ struct{}, frames *uint64) error {
	t, err := g.sink.Total()
	*frames = t.Packets
	return err
}

// Await waits until so many frames have come back in all, and returns their number. To ask now and then would cost the node.
func (g *Generator) Await(want uint64, frames *uint64) error {
	for deadline := time.Now().Add(2 * slow); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if err := g.Count(struct{}{}, frames); err != nil || *frames >= want {
			return err
		}
	}
	return fmt.Errorf("%d frames have come back, expected %d; %s says: %s", *frames, want, g.script, g.script.Output())
}

// Stop ends the script as ^C does, and returns what it printed.
func (g *Generator) Stop(_ struct{}, output *string) error {
	if err := unix.Kill(-g.script.PID(), unix.SIGINT); err != nil {
		return fmt.Errorf("interrupt %s: %w", g.script, err)
	}
	return g.Wait(struct{}{}, output)
}

// Wait waits for the script's own end.
func (g *Generator) Wait(_ struct{}, output *string) error {
	select {
	case <-g.script.Done():
		*output = g.script.Output()
		return nil
	case <-time.After(slow):
		return fmt.Errorf("%s still runs; its output: %s", g.script, g.script.Output())
	}
}

// dialGenerator waits for the other machine.
func dialGenerator(t *testing.T, talk *testenv.Namespace) *rpc.Client {
	t.Helper()
	var conn net.Conn
	var err error
	for deadline := time.Now().Add(2 * slow); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		conn, err = talk.Dialer().DialContext(ctx, "tcp", netip.AddrPortFrom(talkClient.Addr(), talkPort).String())
		cancel()
		if err == nil {
			break
		}
	}
	if err != nil {
		t.Fatalf("the generator does not answer: %v", err)
	}
	c := rpc.NewClient(conn)
	t.Cleanup(func() { c.Close() })
	return c
}
