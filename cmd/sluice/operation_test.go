//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/testenv"
)

// A reload a second, each with other backends, while requests go on: not one fails.
func TestReloadUnderLoad(t *testing.T) {
	t.Run("ipip", func(t *testing.T) { reloadUnderLoad(newSystem(t, 1, 4), "ipip", 3000) })
	t.Run("nat", func(t *testing.T) {
		s := newSystem(t, 1, 4)
		s.throughNodes()
		reloadUnderLoad(s, "nat", 1500)
	})
}

// reloadUnderLoad removes and adds a backend every second while each source makes so many requests.
func reloadUnderLoad(s *system, forward string, requests int) {
	t := s.t
	s.nginx()
	service := func(n int) rigService {
		v := s.service(testVIP4, "tcp", "80", forward, false)
		v.Backends = s.backends[:n]
		return v
	}
	s.up(service(4))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.curlAll(testVIP4, requests)
	}()
	reloads := 0
	for i := 0; ; i++ {
		select {
		case <-ended:
		case <-time.After(time.Second):
			if err := s.configure(s.nodes[0], service(3+i%2)); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(filepath.Join(bin, "sluice"), "reload", "--socket", s.nodes[0].socket).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "in force") {
				t.Errorf("sluice reload: %v\n%s", err, out)
			}
			reloads++
			continue
		}
		break
	}
	t.Logf("%d reloads", reloads)
	if reloads < 2 {
		t.Errorf("only %d reloads took place during the load", reloads)
	}
	s.down()
}

// SSH to the node's own address works while the node forwards, on the same interface.
func TestSSHToTheNode(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 1)
	s.nginx()
	s.up(s.service(testVIP4, "tcp", "any", "ipip", false)) // all ports of the VIP, 22 too
	key, hostKey := s.path("id"), s.path("host")
	for _, k := range []string{key, hostKey} {
		s.run(s.net.Client, 10*time.Second, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", k)
	}
	config := fmt.Sprintf("Port 22\nHostKey %s\nAuthorizedKeysFile %s.pub\nPermitRootLogin prohibit-password\nPidFile none\nStrictModes no\nUsePAM no\n", hostKey, key)
	if err := os.WriteFile(s.path("sshd_config"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // where sshd locks itself in; Debian's unit makes it
		t.Fatal(err)
	}
	node := s.nodes[0]
	sshd, err := node.Start(testenv.Cmd{Path: "/usr/sbin/sshd", Args: []string{"-D", "-e", "-f", s.path("sshd_config")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := sshd.WaitOutput(10*time.Second, "Server listening"); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 3<<20)
	if _, err := io.ReadFull(random(9, int64(len(data))), data); err != nil {
		t.Fatal(err)
	}
	before := s.status(node).Traffic.Steer.ToVIPs
	out, err := s.net.Client.Run(time.Minute, testenv.Cmd{
		Path: "ssh", Stdin: bytes.NewReader(data),
		Args: []string{"-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "root@" + node.IPv4.String(), "sha256sum"},
	})
	if err != nil {
		t.Fatalf("ssh: %v\n%s\n%s", err, out, sshd.Output())
	}
	if want := fmt.Sprintf("%x", sha256.Sum256(data)); !strings.HasPrefix(out, want) {
		t.Errorf("3 MiB through ssh: got %s, want %s", out, want)
	}
	if after := s.status(node).Traffic.Steer.ToVIPs; after != before {
		t.Errorf("%d packets of SSH to the node were taken for a VIP's", after-before)
	}
	if by := s.curlAll(testVIP4, 20); by["web-1"] == 0 {
		t.Error("the VIP does not answer")
	}
	s.down()
}

// What breaks is counted under its reason, and is over when its cause is: a backend that cannot be reached, an interface
// that goes down, one that vanishes and is made again, a daemon that is killed.
func TestFaults(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 1)
	s.nginx()
	s.up(s.service(testVIP4, "tcp", "80", "ipip", false))
	node := s.nodes[0]
	works := func(when string) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for {
			by, err := s.curl(s.net.Sources4[0], testVIP4, 1)
			if err == nil && by["web-1"] == 1 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: the VIP does not answer: %v %v", when, by, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	dropped := func(reason string) uint64 {
		n := uint64(0)
		for _, w := range s.status(node).Traffic.Workers {
			n += w.Dropped[reason]
		}
		return n
	}
	// counts sends SYNs until the reason is counted.
	counts := func(reason string) {
		t.Helper()
		before := dropped(reason)
		for deadline := time.Now().Add(20 * time.Second); dropped(reason) == before; {
			if time.Now().After(deadline) {
				t.Fatalf("%s is not counted: %+v", reason, s.status(node).Traffic.Workers)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			if conn, err := s.net.Client.Dialer().DialContext(ctx, "tcp", netip.AddrPortFrom(testVIP4, 80).String()); err == nil {
				conn.Close()
			}
			cancel()
		}
	}
	works("at the start")

	if err := s.backends[0].SetMAC("eth0", net.HardwareAddr{2, 0, 0, 0, 9, 9}); err != nil {
		t.Fatal(err)
	}
	works("the backend has another MAC")

	if err := s.net.Router.LinkDown(s.backends[0].Port()); err != nil {
		t.Fatal(err)
	}
	counts("no_neighbour")
	if err := s.net.Router.LinkUp(s.backends[0].Port()); err != nil {
		t.Fatal(err)
	}
	works("the backend is back")
	s.checkAtRest(node)

	if err := node.LinkDown("eth0"); err != nil {
		t.Fatal(err)
	}
	if err := node.daemon.WaitUntil(10*time.Second, "not ready", func() error {
		if node.ready() == nil {
			return errors.New("ready although the interface is down")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := node.LinkUp("eth0"); err != nil {
		t.Fatal(err)
	}
	works("the interface is up again")
	s.checkAtRest(node)

	if err := node.DeleteLink("eth0"); err != nil {
		t.Fatal(err)
	}
	if err := node.daemon.WaitUntil(10*time.Second, "not ready", func() error {
		if node.ready() == nil {
			return errors.New("ready although the interface is gone")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.net.Connect(node.Host); err != nil {
		t.Fatal(err)
	}
	works("the interface was made again")
	if err := node.daemon.WaitUntil(10*time.Second, "ready", node.ready); err != nil {
		t.Fatal(err)
	}
	s.checkAtRest(node)

	if err := node.daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.start(node); err != nil {
		t.Fatalf("start after SIGKILL: %v", err)
	}
	works("after SIGKILL and a new start")
	s.down()
}

// healthd's word takes a dead backend out and brings it back; without healthd the last word holds, and a new daemon learns
// everything at once.
func TestHealth(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 3)
	s.nginx()
	v := s.service(testVIP4, "tcp", "80", "ipip", false)
	v.Check = "{type: http, port: 80, path: /name, interval: 200ms, timeout: 150ms, rise: 2, fall: 2}"
	s.up(v)
	node := s.nodes[0]
	states := func(want ...control.State) func() error {
		return func() error {
			st, err := node.status()
			if err != nil {
				return err
			}
			for i, b := range st.Traffic.Services[0].Backends {
				if b.Health.State != want[i] {
					return fmt.Errorf("%s is %s (%s), not %s", b.Name, b.Health.State, b.Health.Evidence, want[i])
				}
			}
			return nil
		}
	}
	wait := func(what string, want ...control.State) {
		t.Helper()
		if err := node.daemon.WaitUntil(15*time.Second, what, states(want...)); err != nil {
			t.Fatal(err)
		}
	}
	const up, down = control.StateUp, control.StateDown
	wait("all up", up, up, up)
	if err := os.Remove(s.path("nginx-web-2/www/name")); err != nil { // 404
		t.Fatal(err)
	}
	wait("web-2 down", up, down, up)
	if by := s.curlAll(testVIP4, 100); by["web-2"] != 0 || len(by) != 2 {
		t.Errorf("with web-2 down: %v", by)
	}
	st := s.status(node)
	if e := st.Traffic.Services[0].Backends[1].Health.Evidence; !strings.Contains(e, "404") {
		t.Errorf("the evidence is %q", e)
	}

	if err := node.healthd.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path("nginx-web-2/www/name"), []byte("web-2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	if by := s.curlAll(testVIP4, 100); by["web-2"] != 0 {
		t.Errorf("without healthd web-2 came back: %v", by)
	}
	// A new daemon holds what was last known, before any health daemon has said anything.
	if err := node.daemon.Stop(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	if err := s.start(node); err != nil {
		t.Fatal(err)
	}
	wait("web-2 up again", up, up, up)
	if by := s.curlAll(testVIP4, 100); len(by) != 3 {
		t.Errorf("with all up: %v", by)
	}
	s.down()
}

// The daemon does next to nothing without traffic, starts at once, and is small.
func TestIdle(t *testing.T) {
	s := newSystem(t, 1, 1)
	for _, name := range []string{"sluice", "sluice-healthd", "sluice-agent"} {
		info, err := os.Stat(filepath.Join(bin, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %.1f MB", name, float64(info.Size())/1e6)
		if info.Size() >= 30e6 {
			t.Errorf("%s has %d bytes", name, info.Size())
		}
	}
	start := time.Now()
	s.up(s.service(testVIP4, "tcp", "80", "ipip", false))
	t.Logf("ready after %v, by the clock of who waits", time.Since(start).Round(time.Millisecond))
	time.Sleep(time.Second)
	before := cpuTime(t, s.nodes[0].daemon.PID())
	time.Sleep(5 * time.Second)
	share := float64(cpuTime(t, s.nodes[0].daemon.PID())-before) / float64(5*time.Second)
	t.Logf("idle: %.2f %% of a core", 100*share)
	if share >= 0.01 {
		t.Errorf("the idle daemon takes %.2f %% of a core", 100*share)
	}
	s.down()
}

// cpuTime returns the processor time of a process.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads of %d: %v", pid, err)
	}
	var sum time.Duration
	for _, path := range threads {
		var ns int64
		if data, err := os.ReadFile(path); err == nil {
			_, _ = fmt.Sscan(string(data), &ns)
		}
		sum += time.Duration(ns)
	}
	return sum
}

// SIGTERM: no longer ready at once, forwarding goes on for drain_time, the blackhole routes stay.
func TestDrainOnSIGTERM(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 1)
	s.nginx()
	s.up(s.service(testVIP4, "tcp", "80", "ipip", false))
	node := s.nodes[0]
	if err := node.daemon.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := node.daemon.WaitUntil(5*time.Second, "not ready", func() error {
		if node.ready() == nil {
			return errors.New("still ready")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if out := s.run(node.Namespace, 5*time.Second, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:9545/readyz"); out != "503" {
		t.Errorf("/readyz: %s", out)
	}
	if by, err := s.curl(s.net.Sources4[0], testVIP4, 1); err != nil || by["web-1"] != 1 {
		t.Errorf("during drain_time: %v %v", by, err)
	}
	s.checkAtRest(node)
	if err := node.daemon.Wait(10 * time.Second); err != nil || node.daemon.ExitCode() != 0 {
		t.Errorf("exit code %d, %v", node.daemon.ExitCode(), err)
	}
	if out := s.run(node.Namespace, 5*time.Second, "ip", "route", "show", "type", "blackhole"); !strings.Contains(out, testVIP4.String()) {
		t.Errorf("no blackhole route for the VIP: %q", out)
	}
}

// A file with a mistake is refused with its place, and changes nothing.
func TestRefusedReload(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 1)
	s.nginx()
	s.up(s.service(testVIP4, "tcp", "80", "ipip", false))
	node := s.nodes[0]
	data, err := os.ReadFile(node.config)
	if err != nil {
		t.Fatal(err)
	}
	bad := strings.Replace(string(data), "forward: ipip", "forwrad: ipip", 1)
	if err := os.WriteFile(node.config, []byte(bad), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(filepath.Join(bin, "sluice"), "check", node.config).CombinedOutput()
	if err == nil || !strings.Contains(string(out), ":16:5:") || !strings.Contains(string(out), "forwrad") {
		t.Errorf("sluice check: %v\n%s", err, out)
	}
	out, err = exec.Command(filepath.Join(bin, "sluice"), "reload", "--socket", node.socket).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "forwrad") {
		t.Errorf("sluice reload: %v\n%s", err, out)
	}
	// A backend that is the node itself would be a loop.
	own := strings.Replace(string(data), s.backends[0].IPv4.String(), node.IPv4.String(), 1)
	if err := os.WriteFile(node.config, []byte(own), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err = exec.Command(filepath.Join(bin, "sluice"), "reload", "--socket", node.socket).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "a node cannot be its own backend") {
		t.Errorf("sluice reload with the node's own address: %v\n%s", err, out)
	}
	s.curlAll(testVIP4, 10)
	out, err = exec.Command(filepath.Join(bin, "sluice"), "status", "--socket", node.socket).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "refused") {
		t.Errorf("sluice status: %v\n%s", err, out)
	}
	if err := os.WriteFile(node.config, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := node.daemon.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if err := node.daemon.WaitOutput(5*time.Second, "configuration reloaded"); err != nil {
		t.Fatal(err)
	}
	// What cannot change while the daemon runs is taken, with a note.
	larger := strings.Replace(string(data), "flows: 64k", "flows: 128k", 1)
	if err := os.WriteFile(node.config, []byte(larger), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := s.sluice(node, "reload"); !strings.Contains(out, "note: flows: the change takes effect at the next start") {
		t.Errorf("sluice reload with another size of the flow table: %s", out)
	}
	if bytes := s.status(node).Traffic.Table.Bytes; bytes != 1<<20 || !strings.Contains(node.daemon.Output(), "bytes=1048576") {
		t.Errorf("the flow table has %d bytes", bytes)
	}
	s.down()
}

// The daemon needs the capabilities that its help names, and no others.
func TestCapabilities(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 1)
	s.nginx()
	node := s.nodes[0]
	if err := s.configure(node, s.service(testVIP4, "tcp", "80", "ipip", false)); err != nil {
		t.Fatal(err)
	}
	var err error
	node.daemon, err = node.Start(testenv.Cmd{Path: "setpriv", Args: []string{
		"--bounding-set", "-all,+net_admin,+net_raw,+bpf,+perfmon,+ipc_lock", "--inh-caps", "-all",
		filepath.Join(bin, "sluice"), "run", "--config", node.config,
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := node.daemon.WaitUntil(10*time.Second, "ready", node.ready); err != nil {
		t.Fatal(err)
	}
	s.curlAll(testVIP4, 10)
	s.down()
}
