//go:build linux

package conformance

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/testenv"
)

// daemon is the path of the daemon, which TestMain builds as users build it.
var daemon string

func TestMain(m *testing.M) {
	code := func() int {
		if os.Geteuid() != 0 {
			return m.Run() // the tests that need root say so
		}
		dir, err := testenv.Build("../../cmd/sluice")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		daemon = filepath.Join(dir, "sluice")
		return m.Run()
	}()
	os.Exit(code)
}

// vethRig replays cases through the real daemon, in a namespace of its own. At the other ends of its cables there is nobody
// but this test, with packet sockets.
type vethRig struct {
	file   *file
	client *control.Client
	wires  map[string]*wire
	judge  *judge
	echoes uint16 // barriers so far
}

// interfaceNames finds the interfaces of a configuration.
var interfaceNames = regexp.MustCompile(`\{name: eth[0-9]+`)

func newVethRig(t *testing.T, f *file, fastPath string) *vethRig {
	env := testenv.ForTest(t)
	node, err := env.Namespace("node")
	if err != nil {
		t.Fatal(err)
	}
	peer, err := env.Namespace("peer")
	if err != nil {
		t.Fatal(err)
	}
	r := &vethRig{file: f, wires: map[string]*wire{}}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range f.config.Interfaces {
		a := armNamed(x.Name)
		must(env.Veth(testenv.End{Namespace: node, Name: x.Name, MAC: a.mac[:], MTU: f.mtus[x.Name]},
			testenv.End{Namespace: peer, Name: x.Name, MTU: f.mtus[x.Name], SoftwareChecksums: true, TakesXDP: fastPath == "on"}, 1))
		must(node.AddAddr(x.Name, a.v4))
		must(node.AddAddr(x.Name, a.v6))
		r.wires[x.Name] = newWire(t, peer, x.Name)
	}
	for addr, mac := range f.neighbours() {
		must(node.AddNeighbour(armOf(addr).name, addr, mac))
	}
	must(node.AddRoute(testenv.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: []netip.Addr{peer4}, Link: "eth0"}))
	must(node.AddRoute(testenv.Route{Dst: netip.MustParsePrefix("::/0"), Via: []netip.Addr{peer6}, Link: "eth0"}))
	r.judge = newJudge(t, env)

	dir := t.TempDir()
	must(os.WriteFile(filepath.Join(dir, "group.key"), []byte(seed), 0o600))
	config := filepath.Join(dir, "sluice.yaml")
	must(os.WriteFile(config, []byte(interfaceNames.ReplaceAllString(wholeConfig(f.yaml, dir), "$0, fast_path: "+fastPath)), 0o600))
	p, err := node.Start(testenv.Cmd{Path: daemon, Args: []string{"run", "--config", config}})
	must(err)
	t.Cleanup(func() {
		if err := p.Stop(10 * time.Second); err != nil || p.ExitCode() != 0 {
			t.Errorf("stop the daemon: exit code %d, %v", p.ExitCode(), err)
		}
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", p.Output())
		}
	})
	r.client = control.NewClient(filepath.Join(dir, "sluice.sock"))
	t.Cleanup(r.client.Close)
	must(p.WaitUntil(10*time.Second, "the API answers", func() error {
		_, err := r.client.Version(context.Background())
		return err
	}))
	must(r.reportHealth())
	must(p.WaitUntil(10*time.Second, "hops and health are known", r.ready))
	return r
}

// neighbours are the addresses that answer on the node's links.
func (f *file) neighbours() map[netip.Addr]net.HardwareAddr {
	out := map[netip.Addr]net.HardwareAddr{peer4: peerMAC[:], peer6: peerMAC[:]}
	for i := range f.config.Services {
		for _, b := range f.config.Services[i].Backends {
			if a := armOf(b.Address); a != nil && !f.silent[b.Address] && hop(b.Address, f).Dst == macOf(b.Address) {
				mac := macOf(b.Address)
				out[b.Address] = mac[:]
			}
		}
	}
	return out
}

// reportHealth says of every backend that is checked what the file says: that it is up or down.
func (r *vethRig) reportHealth() error {
	targets, err := r.client.Targets(context.Background(), "", 0, 0)
	if err != nil || len(targets.Services) == 0 {
		return err
	}
	report := control.HealthReport{Boot: targets.Boot, Generation: targets.Generation, Source: "conformance", Version: 1}
	for _, s := range targets.Services {
		for _, b := range s.Backends {
			h := control.Health{State: control.StateUp}
			if r.file.down[s.Name+"/"+b.Name] {
				h.State = control.StateDown
			}
			report.Backends = append(report.Backends, control.BackendHealth{Service: s.Name, Backend: b.Name, Health: h})
		}
	}
	_, err = r.client.Report(context.Background(), report)
	return err
}

func (r *vethRig) ready() error {
	st, err := r.client.Status(context.Background())
	if err != nil {
		return err
	}
	for _, s := range st.Traffic.Services {
		for _, b := range s.Backends {
			addr := netip.MustParseAddr(b.Address)
			if b.Hop != "ready" && !r.file.silent[addr] && s.Forward != "l2" {
				return fmt.Errorf("%s of %s: %s", b.Name, s.Name, b.Hop)
			}
			if want := r.file.admission(s.Name, b.Name).State().String(); b.Admit != want {
				return fmt.Errorf("%s of %s is %s, not %s", b.Name, s.Name, b.Admit, want)
			}
		}
	}
	for _, x := range st.Traffic.Interfaces {
		if !x.Up || x.Problem != "" {
			return fmt.Errorf("%s: up %v, %s", x.Name, x.Up, x.Problem)
		}
	}
	return nil
}

// reading is what the daemon has counted.
type reading struct {
	books
	taken, loops uint64 // by the XDP program
}

func (r *vethRig) read(t *testing.T) reading {
	t.Helper()
	st, err := r.client.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	s := st.Traffic.Steer
	b := readBooks(t, st.Traffic.Workers)
	b.received += s.Forwarded // the fast path is a worker more
	b.forwarded += s.Forwarded
	return reading{books: b, taken: s.ToVIPs + s.Replies, loops: s.Loops}
}

func (r *vethRig) replay(t *testing.T, c *testCase) result {
	before := r.read(t)
	res := result{out: map[string][][]byte{}}
	for _, w := range r.wires {
		w.drain()
	}
	expected, sent, barriers := map[string]int{}, uint64(0), uint64(0)
	for _, e := range c.out {
		expected[e.iface] += e.times
	}
	for i, e := range c.in {
		if e.pause > 0 {
			time.Sleep(e.pause)
			continue
		}
		for range e.times {
			r.wires[e.iface].send(t, e.raw)
			sent++
		}
		if i+1 == len(c.in) || c.in[i+1].pause > 0 || c.in[i+1].iface != e.iface {
			r.barrier(t, e.iface, res.out)
			barriers++
		}
	}
	// What comes after the barrier: from held fragments, and on the other interface.
	var now reading
	for end := time.Now().Add(2 * time.Second); ; {
		missing := false
		for name, w := range r.wires {
			wait := time.Duration(0)
			if missing = missing || len(res.out[name]) < expected[name]; missing {
				wait = time.Millisecond
			}
			r.collect(w, wait, res.out)
		}
		now = r.read(t)
		taken := now.taken - before.taken
		done := now.held == 0 && now.balanced() && taken >= barriers &&
			now.received-before.received == taken-(now.loops-before.loops)
		if done && !missing || time.Now().After(end) {
			break
		}
		time.Sleep(300 * time.Microsecond)
	}
	for _, w := range r.wires {
		r.collect(w, 0, res.out)
	}
	res.books = now.minus(before.books)
	res.books.received -= barriers
	res.books.answered -= barriers
	if n := now.loops - before.loops; n > 0 {
		res.books.reasons[packet.Loop] += n
		res.books.received += n
	}
	res.toKernel = sent > 0 && now.taken-before.taken == barriers
	if !res.toKernel && now.taken-before.taken != barriers+sent {
		t.Errorf("the XDP program took %d of %d frames", now.taken-before.taken-barriers, sent)
	}
	for _, frames := range res.out {
		for _, frame := range frames {
			if len(c.odd()) == 0 {
				r.judge.present(t, frame, r.file.guePort())
			}
		}
	}
	return res
}

// odd are the layers with wrong checksums or lengths in what comes in.
func (c *testCase) odd() map[string]bool {
	odd := map[string]bool{}
	for _, e := range append(append([]event{}, c.in...), c.out...) {
		for kind := range oddities(e.ls) {
			odd[kind] = true
		}
	}
	return odd
}

// barrier sends an echo request to the VIP, and collects what comes until it is answered: frames that were sent before it
// have been treated then, but those that the worker holds.
func (r *vethRig) barrier(t *testing.T, iface string, out map[string][][]byte) {
	t.Helper()
	r.echoes++
	request, answer := r.file.echo(t, iface, r.echoes)
	r.wires[iface].send(t, request)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		frame := r.wires[iface].receive(100 * time.Millisecond)
		switch {
		case bytes.Equal(frame, answer):
			return
		case frame != nil && !r.file.ofKernel(frame):
			out[iface] = append(out[iface], frame)
		}
	}
	t.Fatalf("%s: the VIP does not answer", iface)
}

// echo makes an echo request to the first VIP, as it arrives on an interface, and its answer.
func (f *file) echo(t *testing.T, iface string, number uint16) (request, answer []byte) {
	t.Helper()
	tag := ""
	for _, x := range f.config.Interfaces {
		if x.Name == iface && x.VLAN != 0 {
			tag = fmt.Sprintf("vlan %d | ", x.VLAN)
		}
	}
	ip, icmp, client, reply := "ip4", "icmp4 8/0", "198.51.100.250", "icmp4 0/0"
	if f.vip().Is6() {
		ip, icmp, client, reply = "ip6", "icmp6 128/0", "2001:db8:ffff::250", "icmp6 129/0"
	}
	for _, x := range []struct {
		to   *[]byte
		text string
	}{
		{&request, fmt.Sprintf("eth dst=node src=peer | %s%s %s > %s | %s", tag, ip, client, f.vip(), icmp)},
		{&answer, fmt.Sprintf("eth dst=peer src=node | %s%s %s > %s | %s", tag, ip, f.vip(), client, reply)},
	} {
		ls, err := parseLayers(fmt.Sprintf("%s id=48879 seq=%d", x.text, number))
		if err == nil {
			*x.to, err = build(ls, f.names, iface)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return request, answer
}

// collect takes the frames that have arrived, and waits at most so long for the first.
func (r *vethRig) collect(w *wire, wait time.Duration, out map[string][][]byte) {
	for {
		frame := w.receive(wait)
		if frame == nil {
			return
		}
		if !r.file.ofKernel(frame) {
			out[w.name] = append(out[w.name], frame)
		}
		wait = 0
	}
}

// ofKernel says whether a frame was sent by the kernel of the node: it is from one of the node's addresses, and not in a
// tunnel, or is no IP packet.
func (f *file) ofKernel(frame []byte) bool {
	at := 12
	if frame[12] == 0x81 && frame[13] == 0 {
		at += 4
	}
	var src netip.Addr
	var proto byte
	var next []byte
	switch ip := frame[at+2:]; {
	case frame[at] == 0x08 && frame[at+1] == 0 && len(ip) >= 24:
		src, proto, next = netip.AddrFrom4([4]byte(ip[12:16])), ip[9], ip[20:]
	case frame[at] == 0x86 && frame[at+1] == 0xdd && len(ip) >= 44:
		src, proto, next = netip.AddrFrom16([16]byte(ip[8:24])), ip[6], ip[40:]
	default:
		return true
	}
	tunnel := proto == nextIPv4 || proto == nextIPv6 ||
		proto == nextUDP && uint16(next[2])<<8|uint16(next[3]) == f.guePort()
	own := src.IsUnspecified() || src.IsLinkLocalUnicast()
	for _, a := range arms {
		own = own || src == a.v4.Addr() || src == a.v6.Addr()
	}
	return own && !tunnel
}
