//go:build linux && guest

package zerocopy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/testenv"
	"github.com/sluice-lb/sluice/testenv/guest"
)

// The network inside of the guest: client eth1 – eth0 node eth2 – eth3 backend.
var (
	node4, node6       = netip.MustParseAddr("10.0.1.1"), netip.MustParseAddr("fd00:1::1")
	backend4, backend6 = netip.MustParseAddr("10.0.1.2"), netip.MustParseAddr("fd00:1::2")
)

// slow is how long an emulated machine may take for what takes a moment elsewhere.
const slow = 20 * time.Second

// rig is the daemon between a client's and a backend's network card. The test itself is client and backend.
type rig struct {
	t                     *testing.T
	node, client, backend *testenv.Namespace
	config, socket        string
	daemon                *testenv.Process
	queues                int    // that each card must have got a socket for; 0: any number
	fastPath              string // of both cards
	in, out               *packetSocket
	clientMAC, backendMAC [6]byte
	nodeIn, nodeOut       [6]byte
}

func newRig(t *testing.T, queues int) *rig {
	t.Helper()
	env := testenv.ForTest(t)
	r := &rig{t: t, queues: queues, config: filepath.Join(t.TempDir(), "sluice.yaml"), socket: "/run/sluice.sock", fastPath: "auto"}
	for _, n := range []struct {
		ns    **testenv.Namespace
		name  string
		cards []string
	}{
		{&r.node, "node", []string{"eth0", "eth2"}}, {&r.client, "client", []string{"eth1"}}, {&r.backend, "backend", []string{"eth3"}},
	} {
		ns, err := env.Namespace(n.name)
		if err != nil {
			t.Fatal(err)
		}
		*n.ns = ns
		for _, card := range n.cards {
			r.furnish(ns, card)
		}
	}
	for _, m := range []struct {
		ns   *testenv.Namespace
		card string
		mac  *[6]byte
	}{{r.client, "eth1", &r.clientMAC}, {r.backend, "eth3", &r.backendMAC}, {r.node, "eth0", &r.nodeIn}, {r.node, "eth2", &r.nodeOut}} {
		l, err := m.ns.Link(m.card)
		if err != nil {
			t.Fatal(err)
		}
		copy(m.mac[:], l.Attrs().HardwareAddr)
	}
	r.in, r.out = openPacketSocket(t, r.client, "eth1"), openPacketSocket(t, r.backend, "eth3")
	t.Cleanup(func() {
		if t.Failed() && r.daemon != nil {
			t.Logf("log of the daemon:\n%s", r.daemon.Output())
		}
	})
	return r
}

var addresses = map[string][]string{
	"eth0": {"10.0.0.1/24", "fd00::1/64"},
	"eth1": {"10.0.0.2/24", "fd00::2/64"},
	"eth2": {"10.0.1.1/24", "fd00:1::1/64"},
	"eth3": {"10.0.1.2/24", "fd00:1::2/64"},
}

// moveCard moves a card into a namespace.
func moveCard(t *testing.T, ns *testenv.Namespace, card string) {
	t.Helper()
	link, err := netlink.LinkByName(card)
	if err != nil {
		t.Fatalf("%s: %v", card, err)
	}
	f, err := os.Open(filepath.Join("/run/netns", ns.Name()))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := netlink.LinkSetNsFd(link, int(f.Fd())); err != nil {
		t.Fatalf("move %s: %v", card, err)
	}
}

// furnish moves a card into a namespace and gives it its addresses.
func (r *rig) furnish(ns *testenv.Namespace, card string) {
	r.t.Helper()
	moveCard(r.t, ns, card)
	err := errors.Join(
		ns.SetMTU(card, 1600), // for an outer header around 1500 bytes
		ns.SetSysctl("net/ipv6/conf/"+card+"/accept_dad", "0"),
		ns.SetSysctl("net/ipv6/conf/"+card+"/keep_addr_on_down", "1"),
		ns.LinkUp(card),
	)
	for _, a := range addresses[card] {
		err = errors.Join(err, ns.AddAddr(card, netip.MustParsePrefix(a)))
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// launch starts the daemon.
func (r *rig) launch(mode string) {
	r.t.Helper()
	text := fmt.Sprintf(`
node: guest
state_dir: /run/sluice-state
control: {socket: %s}
interfaces:
  - {name: eth0, mode: %s, fast_path: %s}
  - {name: eth2, mode: %[2]s, fast_path: %[3]s}
flows: 10k
metrics: {listen: "127.0.0.1:9545"}
drain_time: 0s
without_daemon: {for: 0s}
services:
`, r.socket, mode, r.fastPath)
	for _, s := range services {
		text += fmt.Sprintf("  - {name: %s, vip: %q, protocol: %s, ports: %d, forward: %s, backends: [{name: b, address: %q}]}\n",
			s.name, s.vip, s.protocol, s.port, s.forward, s.backend)
	}
	if err := os.MkdirAll("/run/sluice-state", 0o700); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(r.config, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	var err error
	if r.daemon, err = r.node.Start(testenv.Cmd{Path: "/bin/sluice", Args: []string{"run", "--config", r.config}}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) start(mode string) {
	r.t.Helper()
	r.launch(mode)
	r.waitReady()
}

// waitReady waits until the node forwards to every backend.
func (r *rig) waitReady() {
	r.t.Helper()
	err := r.daemon.WaitUntil(slow, "the node is ready", func() error {
		st, err := r.ask()
		if err == nil && !st.Ready {
			err = errors.New(st.NotReady)
		}
		for _, s := range st.Traffic.Services {
			for _, b := range s.Backends {
				if b.Hop != "ready" {
					err = errors.Join(err, fmt.Errorf("%s: hop is %s", s.Name, b.Hop))
				}
			}
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) ask() (st control.Status, err error) {
	out, err := r.node.Run(slow, testenv.Cmd{Path: "/bin/sluice", Args: []string{"status", "--json", "--socket", r.socket}})
	if err == nil {
		err = json.Unmarshal([]byte(out), &st)
	}
	return st, err
}

func (r *rig) status() control.Status {
	r.t.Helper()
	st, err := r.ask()
	if err != nil {
		r.t.Fatal(err)
	}
	return st
}

// wantRefusal starts the daemon where it cannot run; its error has these words.
func (r *rig) wantRefusal(mode string, words ...string) {
	r.t.Helper()
	r.launch(mode)
	select {
	case <-r.daemon.Done():
	case <-time.After(slow):
		r.t.Fatalf("the daemon runs in mode %s", mode)
	}
	out := r.daemon.Output()
	if r.daemon.ExitCode() != 1 {
		r.t.Errorf("exit code %d; expected 1", r.daemon.ExitCode())
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			r.t.Errorf("expected a message with %q; got:\n%s", w, out)
		}
	}
}

// wantMode checks what the kernel says (XDP_OPTIONS) about every socket.
func (r *rig) wantMode(mode string) {
	r.t.Helper()
	for _, i := range r.status().Traffic.Interfaces {
		if r.queues != 0 && len(i.Queues) != r.queues {
			r.t.Errorf("%s: %d queues, expected %d", i.Name, len(i.Queues), r.queues)
		}
		if i.Attach != "native" || len(i.Queues) == 0 {
			r.t.Errorf("%s: attached %s, with %d queues", i.Name, i.Attach, len(i.Queues))
		}
		for _, q := range i.Queues {
			if q.Mode != mode {
				r.t.Errorf("%s queue %d: mode %s, expected %s", i.Name, q.Queue, q.Mode, mode)
			}
		}
	}
}

// wantAllQueuesUsed checks that the card spread what it received, and that each worker transmitted on its own queue.
func (r *rig) wantAllQueuesUsed() {
	r.t.Helper()
	st := r.status()
	for _, q := range st.Traffic.Interfaces[0].Queues {
		if q.Received == 0 {
			r.t.Errorf("eth0 queue %d received nothing", q.Queue)
		}
	}
	for _, q := range st.Traffic.Interfaces[1].Queues {
		if q.Sent == 0 {
			r.t.Errorf("eth2 queue %d sent nothing", q.Queue)
		}
	}
}

// wantFastPath checks that the fast path is on, and that it has forwarded; for a cause, that it is off because of that.
func (r *rig) wantFastPath(cause string) {
	r.t.Helper()
	st := r.status()
	for _, i := range st.Traffic.Interfaces {
		if on := cause == ""; i.FastPath != on || !strings.Contains(i.FastPathCause, cause) {
			r.t.Errorf("%s: fast path %v, %q; expected %v, %q", i.Name, i.FastPath, i.FastPathCause, on, cause)
		}
	}
	if n := st.Traffic.Steer.Forwarded; (n > 0) != (cause == "") {
		r.t.Errorf("the fast path has forwarded %d packets; cause: %q", n, cause)
	}
}

// flap takes an interface down and up again.
func (r *rig) flap(name string) {
	r.t.Helper()
	if err := r.node.LinkDown(name); err != nil {
		r.t.Fatal(err)
	}
	err := r.daemon.WaitUntil(slow, "it notices that "+name+" is down", func() error {
		st, err := r.ask()
		if err == nil && st.Ready {
			err = errors.New("ready")
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.node.LinkUp(name); err != nil {
		r.t.Fatal(err)
	}
	r.waitReady()
}

// stop ends the daemon after a look at its books.
func (r *rig) stop() {
	r.t.Helper()
	r.checkBooks()
	if err := r.daemon.Stop(slow); err != nil || r.daemon.ExitCode() != 0 {
		r.t.Fatalf("stop: exit code %d, %v; log:\n%s", r.daemon.ExitCode(), err, r.daemon.Output())
	}
}

func (r *rig) checkBooks() {
	r.t.Helper()
	var received, forwarded, sent uint64
	st := r.status()
	for _, w := range st.Traffic.Workers {
		if w.Received != w.Forwarded+w.Dropped.Total() || w.Restarts != 0 {
			r.t.Errorf("worker %d: %d received, but %d forwarded and %v dropped; %d restarts", w.ID, w.Received, w.Forwarded, w.Dropped, w.Restarts)
		}
		received += w.Received
		forwarded += w.Forwarded
	}
	for _, i := range st.Traffic.Interfaces {
		for _, q := range i.Queues {
			sent += q.Sent
			if q.RXDropped+q.RXInvalid+q.TXInvalid != 0 {
				r.t.Errorf("%s queue %d: %+v", i.Name, q.Queue, q.SocketStats)
			}
		}
	}
	if s := st.Traffic.Steer; s.Redirected != received || s.NoSocket != 0 || sent != forwarded || forwarded == 0 {
		r.t.Errorf("%d redirected and %d without a socket, %d received by workers, %d forwarded, %d sent", s.Redirected, s.NoSocket, received, forwarded, sent)
	}
}

// finish stops the daemon and looks into the kernel's log.
func (r *rig) finish() {
	r.t.Helper()
	r.stop()
	trouble, err := guest.KernelTrouble()
	if err != nil || len(trouble) > 0 {
		r.t.Errorf("the kernel's log: %v\n%s", err, strings.Join(trouble, "\n"))
	}
}
