//go:build linux && guest

package zerocopy

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"net/netip"
	"net/rpc"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/bench/report"
	"github.com/sluice-lb/sluice/testenv"
	"github.com/sluice-lb/sluice/testenv/guest"
)

// rounds is how often each system has its turn.
var rounds = flag.Int("rounds", 2, "rounds of TestRates")

// tableMark begins the line of the guest's output that is the table.
const tableMark = "TABLE "

// TestRates compares the daemon with a reflector that is made with another library, and with the kernel's own balancer, on the same
// card and the same frames.
//
// The emulator has one thread for a machine, and gets as much of the host as others leave. So what is measured is not how much comes
// through but how many instructions a packet costs: the clock of the node's machine counts them, and a soaker takes what is left. A
// second machine makes the packets, at a rate that loses none.
func TestRates(t *testing.T) { rates(t, virtio(kernel618, 1, 1), "virtio", rateSystems, 0.25) }

// TestRatesIGB is TestRates on a card from which the fast path can send in zero-copy mode too. It cannot be moderated so, and packets come
// one by one.
func TestRatesIGB(t *testing.T) { rates(t, igb(1), "igb", igbSystems, 0.1) }

// rates measures systems. One that forwards less than this of what its reference does has something wrong with it or with the measurement.
func rates(t *testing.T, m guest.Machine, card string, systems []rateSystem, least float64) {
	switch {
	case !guest.Inside():
		bootRates(t, m, least)
	case guest.Beside():
		generate(t)
	default:
		r := newRateRig(t)
		var costs [][]float64 // by round and system
		for range *rounds {
			costs = append(costs, r.round(systems))
		}
		text, err := json.Marshal(rateTable(card, systems, costs))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("%s%s\n", tableMark, text)
	}
}

// bootRates is rates on the host.
func bootRates(t *testing.T, m guest.Machine, least float64) {
	m.Modules = append(m.Modules, "ip_vs", "ip_vs_mh")
	m.Counted, m.Flags, m.Limit = true, []string{fmt.Sprintf("rounds=%d", *rounds)}, time.Duration(*rounds+2)*time.Minute
	m.Beside = generatorMachine()
	_, line, found := strings.Cut(guest.Boot(t, m), tableMark)
	if !found {
		t.Fatal("the guest printed no table")
	}
	var table report.Table
	if err := json.NewDecoder(strings.NewReader(line)).Decode(&table); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := report.Print(&out, table); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", out.String())
	for _, r := range table.Rows {
		if r.Missing != "" {
			t.Errorf("%s was not measured: it %s", r.Key(), r.Missing)
		}
		if ratio, ok := table.Ratio(&r); ok && ratio.Median < least {
			t.Errorf("%s forwards %.2f times what %s does with as many instructions; expected %.2f at least", r.Key(), ratio.Median, r.Reference, least)
		}
	}
}

// generatorMachine has pktgen, a shell and the scripts.
func generatorMachine() *guest.Machine {
	g := virtio(kernel618, 1, 1)
	g.Modules = append(g.Modules, "pktgen")
	g.Files = map[string]string{"bin/sh": "/bin/busybox"}
	for _, f := range []string{"common.sh", "flood.sh", "imix.sh"} {
		g.Files["pktgen/"+f] = "../../../bench/nic/pktgen/" + f
	}
	return &g
}

// rateRig is the node's machine.
type rateRig struct {
	t         *testing.T
	node      *testenv.Namespace
	mac       string // of the node's eth0
	generator *rpc.Client
	soaker    *soaker
}

func newNamespace(t *testing.T, env *testenv.Env, name string) *testenv.Namespace {
	t.Helper()
	ns, err := env.Namespace(name)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// furnish moves a card into a namespace and gives it IPv4 addresses, and only those: nothing else speaks there.
func furnish(t *testing.T, ns *testenv.Namespace, card string, addresses ...netip.Prefix) {
	t.Helper()
	moveCard(t, ns, card)
	err := errors.Join(ns.SetMTU(card, 1600), ns.SetSysctl("net/ipv6/conf/"+card+"/disable_ipv6", "1"), ns.LinkUp(card))
	for _, a := range addresses {
		err = errors.Join(err, ns.AddAddr(card, a))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func newRateRig(t *testing.T) *rateRig {
	t.Helper()
	env := testenv.ForTest(t)
	r := &rateRig{t: t, node: newNamespace(t, env, "node")}
	moderate(t, "eth0")
	furnish(t, r.node, "eth0", rateNode)
	link, err := r.node.Link("eth0")
	if err != nil {
		t.Fatal(err)
	}
	r.mac = link.Attrs().HardwareAddr.String()
	// Sources are addresses that the node has no route to.
	for _, card := range []string{"all", "eth0"} {
		if err := r.node.SetSysctl("net/ipv4/conf/"+card+"/rp_filter", "0"); err != nil {
			t.Fatal(err)
		}
	}
	talk := newNamespace(t, env, "talk")
	furnish(t, talk, "eth2", talkNode)
	r.generator = dialGenerator(t, talk)
	r.soaker = startSoaker(t)
	return r
}

// moderate has the kernel look for frames by a timer, as a card does that moderates its interrupts. Else they would come one by one
// whenever the generator's machine is the slower one, and as dear.
func moderate(t *testing.T, card string) {
	t.Helper()
	for file, value := range map[string]string{"napi_defer_hard_irqs": "1000", "gro_flush_timeout": "10000000"} { // ns
		if err := os.WriteFile("/sys/class/net/"+card+"/"+file, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// rateSystem is one that takes turns.
type rateSystem struct {
	name, reference string
	start           func(r *rateRig) (stop func() error, err error)
}

var rateSystems = []rateSystem{
	{"reflector", "", (*rateRig).startReflector},
	ofDaemon("sluice-l2", "ipvs-l2", "l2", "zerocopy", "off"),
	{"ipvs-l2", "", func(r *rateRig) (func() error, error) { return r.startIPVS(ipvs.ConnectionFlagDirectRoute) }},
	sluiceIPIP,
	copyIPIP,
	fastIPIP,
	ipvsIPIP,
}

// igbSystems are those that show what the fast path is good for in zero-copy mode.
var igbSystems = []rateSystem{
	sluiceIPIP,
	ofDaemon("sluice-ipip-fastpath", "sluice-ipip", "ipip", "zerocopy", "on"),
	copyIPIP,
	fastIPIP,
	ipvsIPIP,
}

var (
	sluiceIPIP = ofDaemon("sluice-ipip", "ipvs-ipip", "ipip", "zerocopy", "off")
	copyIPIP   = ofDaemon("sluice-ipip-copy", "sluice-ipip", "ipip", "copy", "off")
	fastIPIP   = ofDaemon("sluice-ipip-copy-fastpath", "sluice-ipip", "ipip", "copy", "on")
	ipvsIPIP   = rateSystem{"ipvs-ipip", "", func(r *rateRig) (func() error, error) { return r.startIPVS(ipvs.ConnectionFlagTunnel) }}
)

// ofDaemon is the daemon as startDaemon starts it.
func ofDaemon(name, reference, forward, mode, fastPath string) rateSystem {
	return rateSystem{name, reference, func(r *rateRig) (func() error, error) { return r.startDaemon(forward, mode, fastPath) }}
}

// round gives each system its turn and returns the instructions that a packet costs it, 0 if it cannot be told.
func (r *rateRig) round(systems []rateSystem) (costs []float64) {
	r.t.Helper()
	for _, s := range systems {
		stop, err := s.start(r)
		if err != nil {
			r.t.Fatalf("start %s: %v", s.name, err)
		}
		cost := r.measure(s.name)
		if err := stop(); err != nil {
			r.t.Fatalf("stop %s: %v", s.name, err)
		}
		if cost == 0 {
			r.t.Logf("%s lost too many packets in all three tries", s.name)
		} else {
			r.t.Logf("%s: %.0f instructions a packet", s.name, cost)
		}
		costs = append(costs, cost)
	}
	return costs
}

var sentPackets = regexp.MustCompile(`sent (\d+) packets`)

// measure has the generator send, and returns the instructions that a packet costs. A packet that is lost costs little, so a measurement
// with more than a few of those does not count: a host with other work makes them, in the machines' cables. After three of these it
// returns 0.
func (r *rateRig) measure(system string) float64 {
	r.t.Helper()
	for range 3 {
		cost, sent, back, err := r.measureOnce()
		switch {
		case err != nil: // a card that has just been given another program may still be setting its queues up
			r.t.Logf("%s: %v: once more", system, err)
			continue
		case back <= sent && back >= sent-sent/20: // more than were sent: of the try before
			return cost
		}
		r.t.Logf("%s: of %d packets %d came back: once more", system, sent, back)
	}
	return 0
}

// measureOnce returns the instructions that a packet cost, how many were sent and how many came back; an error if too few came back to
// measure anything.
func (r *rateRig) measureOnce() (cost float64, sent, back uint64, err error) {
	r.t.Helper()
	const warmUp, packets = 500, 4000
	var before, begun, ended, after uint64
	var output string
	r.call("Generator.Count", struct{}{}, &before)
	r.call("Generator.Start", scriptArguments(r.mac), &struct{}{})
	err = r.generator.Call("Generator.Await", before+warmUp, &begun)
	busy := r.soaker.busy()
	if err == nil {
		err = r.generator.Call("Generator.Await", begun+packets, &ended)
	}
	took := busy()
	r.call("Generator.Stop", struct{}{}, &output)
	if err != nil {
		return 0, 0, 0, err
	}
	time.Sleep(time.Second) // what is on its way
	r.call("Generator.Count", struct{}{}, &after)

	number := sentPackets.FindStringSubmatch(output)
	if number == nil {
		r.t.Fatalf("the script does not say what it sent: %s", output)
	}
	if sent, err = strconv.ParseUint(number[1], 10, 64); err != nil {
		r.t.Fatal(err)
	}
	return float64(took) / guest.NanosPerInstruction / float64(ended-begun), sent, after - before, nil
}

// scriptArguments have the generator send to a MAC, at a rate that nothing is lost at.
func scriptArguments(mac string) []string {
	return []string{"/pktgen/flood.sh", "-i", "eth0", "-m", mac, "-d", rateVIP.String(), "-r", "4000", "-t", "60"}
}

func (r *rateRig) call(method string, args, reply any) {
	r.t.Helper()
	if err := r.generator.Call(method, args, reply); err != nil {
		r.t.Fatalf("%s: %v", method, err)
	}
}

// rateTable makes the table of what was measured, by round and system.
func rateTable(card string, systems []rateSystem, costs [][]float64) report.Table {
	t := report.Table{
		Name: "guest-" + card,
		Title: fmt.Sprintf("Forwarding on a card of the kind %s, in an emulated machine: 64-byte UDP packets of 1,024 flows, made by the "+
			"kernel's pktgen", card),
		Rule: "Each system has the one processor of a machine, with the card's interrupts, which are moderated to 10 ms (igb does not let them be); another " +
			"machine makes the packets and takes them back.",
		Metric: "packets with as many instructions", Unit: "times the first one's", Higher: true,
		Notes: []string{
			"Under emulation a rate counts instructions, of kernel and program together: ratios hold as ratios of those. Caches, memory and " +
				"the card itself cost nothing here, so that no rate of a real machine follows.",
			"How many packets come at once depends on how much of the host's time each machine gets, and the fewer they are the more each " +
				"costs a program that polls and sleeps (reflector, sluice), but not IPVS, which runs within the interrupt: on a host with other " +
				"work the ratios to IPVS vary by half.",
			"sluice: in zero-copy mode and without the fast path, unless the name says otherwise.",
			"reflector: github.com/asavie/xdp, which swaps MACs. ipvs: Linux IPVS with its scheduler mh; l2 is its direct routing, ipip its " +
				"tunnelling.",
		},
	}
	for i, s := range systems {
		row := report.Row{Labels: []report.Label{{Name: "system", Value: s.name}}, Reference: s.reference}
		if slices.ContainsFunc(costs, func(round []float64) bool { return round[i] == 0 || round[0] == 0 }) {
			t.Rows = append(t.Rows, report.Row{Labels: row.Labels, Missing: "lost too many packets, or the first one did"})
			continue
		}
		var own []float64
		for _, round := range costs {
			own = append(own, round[i])
			row.Rounds = append(row.Rounds, round[0]/round[i])
		}
		row.Extra = map[string]float64{"instructions_per_packet": math.Round(report.SpreadOf(own).Median)}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// startDaemon starts the daemon with one service, of this forwarding mode, in a mode of AF_XDP, and with the fast path on or off.
func (r *rateRig) startDaemon(forward, mode, fastPath string) (stop func() error, err error) {
	d := &rig{t: r.t, node: r.node, config: filepath.Join(r.t.TempDir(), "sluice.yaml"), socket: "/run/sluice.sock"}
	text := fmt.Sprintf(`
node: guest
state_dir: /run/sluice-state
control: {socket: %s}
interfaces: [{name: eth0, mode: %s, fast_path: %s}]
flows: 10k
metrics: {listen: "127.0.0.1:9545"}
drain_time: 0s
without_daemon: {for: 0s}
services:
  - {name: s, vip: %v, protocol: udp, ports: 80, forward: %s, backends: [{name: a, address: %v}, {name: b, address: %v}]}
`, d.socket, mode, fastPath, rateVIP, forward, rateBackends[0], rateBackends[1])
	err = errors.Join(os.MkdirAll("/run/sluice-state", 0o700), os.WriteFile(d.config, []byte(text), 0o600))
	if err != nil {
		return nil, err
	}
	if d.daemon, err = r.node.Start(testenv.Cmd{Path: "/bin/sluice", Args: []string{"run", "--config", d.config}}); err != nil {
		return nil, err
	}
	d.waitReady()
	d.wantMode(mode)
	return func() error {
		if forwarded := d.status().Traffic.Steer.Forwarded; (forwarded > 0) != (fastPath == "on") {
			return fmt.Errorf("the fast path has forwarded %d packets; it is %s", forwarded, fastPath)
		}
		err := d.daemon.Stop(slow)
		// The VIP's blackhole route stays by design, and is none of the next system's.
		return errors.Join(err, r.node.DelRoute(netip.PrefixFrom(rateVIP, 32)))
	}, nil
}

// startIPVS has the kernel balance, with this way of forwarding.
func (r *rateRig) startIPVS(forward uint32) (stop func() error, err error) {
	vip := netip.PrefixFrom(rateVIP, 32)
	if err := r.node.AddAddr("lo", vip); err != nil { // it takes what is for the node itself
		return nil, err
	}
	// Its estimators spend a while on finding out how fast the machine is.
	if err := r.node.SetSysctl("net/ipv4/vs/run_estimation", "0"); err != nil {
		return nil, err
	}
	h, err := ipvs.New(filepath.Join("/run/netns", r.node.Name()))
	if err != nil {
		return nil, err
	}
	s := &ipvs.Service{
		Address: rateVIP.AsSlice(), AddressFamily: unix.AF_INET, Netmask: 0xffffffff, Protocol: unix.IPPROTO_UDP, Port: 80, SchedName: "mh",
	}
	if err := h.NewService(s); err != nil {
		return nil, err
	}
	for _, b := range rateBackends {
		d := &ipvs.Destination{Address: b.AsSlice(), AddressFamily: unix.AF_INET, Port: 80, Weight: 1, ConnectionFlags: forward}
		if err := h.NewDestination(s, d); err != nil {
			return nil, err
		}
	}
	return func() error {
		defer h.Close()
		return errors.Join(h.Flush(), r.node.DelAddr("lo", vip))
	}, nil
}

// startReflector starts this binary as the reflector.
func (r *rateRig) startReflector() (stop func() error, err error) {
	p, err := r.node.Start(testenv.Cmd{Path: "/init", Args: []string{reflectorArgument, "eth0"}})
	if err != nil {
		return nil, err
	}
	if err := p.WaitOutput(slow, reflectorReady); err != nil {
		return nil, err
	}
	return func() error {
		link, err := r.node.Link("eth0")
		if err != nil {
			return err
		}
		return errors.Join(p.Stop(slow), r.node.Do(func() error { return netlink.LinkSetXdpFd(link, -1) }))
	}, nil
}
