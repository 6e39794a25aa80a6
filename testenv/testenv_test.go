//go:build linux

package testenv

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// childMode makes the test binary a program that makes an Env and then misbehaves as told.
const childMode = "SLUICE_TESTENV_CHILD"

func TestMain(m *testing.M) {
	if mode := os.Getenv(childMode); mode != "" {
		if err := child(mode); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child makes a namespace with two processes, one of which has a session of its own and so escapes PDEATHSIG and the
// process group. It prints "NAMESPACE PID PID" and then sleeps or panics.
func child(mode string) error {
	e, err := New("child")
	if err != nil {
		return err
	}
	ns, err := e.Namespace("a")
	if err != nil {
		return err
	}
	p, err := ns.Start(Cmd{Path: "sleep", Args: []string{"1000"}})
	if err != nil {
		return err
	}
	q, err := ns.Start(Cmd{Path: "sh", Args: []string{"-c", "setsid sleep 1000 & echo $!; wait"}})
	if err != nil {
		return err
	}
	if err := q.WaitOutput(5*time.Second, "\n"); err != nil {
		return err
	}
	fmt.Println(ns.Name(), p.PID(), strings.TrimSpace(q.Stdout()))
	if mode == "panic" {
		panic("as the test wants")
	}
	time.Sleep(time.Minute)
	return errors.New("nobody ended the child")
}

// newNamespaces makes namespaces in an Env of the test.
func newNamespaces(t *testing.T, names ...string) (*Env, []*Namespace) {
	t.Helper()
	e := ForTest(t)
	var all []*Namespace
	for _, name := range names {
		ns, err := e.Namespace(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ns)
	}
	return e, all
}

// ok fails the test on an error.
func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits up to five seconds until f says true.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 5s until %s", what)
		}
	}
}

func processGone(pid int) bool {
	_, zombie, err := startTime(pid)
	return err != nil || zombie
}

func nameGone(name string) bool {
	_, err := os.Lstat(filepath.Join(netnsDir, name))
	return errors.Is(err, fs.ErrNotExist)
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	ok(t, err)
	return len(entries)
}

func TestMakerOf(t *testing.T) {
	for _, tc := range []struct {
		name string
		want maker
		ok   bool
	}{
		{"sluice-4242-k3x-demo1-client", maker{4242, 26061}, true},
		{"sluice-1-0-a1-b-c", maker{1, 0}, true},
		{"sluice-4242-k3x", maker{}, false},          // nothing after the start time
		{"sluice-prod-1-a-b", maker{}, false},        // somebody else's name
		{"sluice--4-k3x-a1-b", maker{}, false},       // no process id
		{"sluice-0-k3x-a1-b", maker{}, false},        // would mean the process group in kill(2)
		{"sluice-+5-k3x-a1-b", maker{}, false},       // not as we write it
		{"sluice-5-K3X-a1-b", maker{}, false},        // not as we write it
		{"sluice-5-k!x-a1-b", maker{}, false},        // not base 36
		{"lighthouse-4242-k3x-a1-b", maker{}, false}, // another program's
	} {
		got, ok := makerOf(tc.name)
		if ok != tc.ok || ok && got != tc.want {
			t.Errorf("makerOf(%q) = %v, %t; want %v, %t", tc.name, got, ok, tc.want, tc.ok)
		}
	}
}

func TestMakerAlive(t *testing.T) {
	me, err := self()
	ok(t, err)
	if !me.alive() {
		t.Error("this process is taken as dead")
	}
	if (maker{me.pid, me.start + 1}).alive() {
		t.Error("a later process with the same id is taken as the maker")
	}

	cmd := exec.Command("true")
	ok(t, cmd.Start())
	start, _, err := startTime(cmd.Process.Pid)
	ok(t, err)
	m := maker{cmd.Process.Pid, start}
	eventually(t, "a zombie is taken as dead", func() bool { return !m.alive() })
	ok(t, cmd.Wait())
	if m.alive() {
		t.Error("a process that is gone is taken as alive")
	}
}

func TestNamesAreChecked(t *testing.T) {
	RequireRoot(t)
	for _, bad := range []string{"", "-a", "a-", "A", "a/b", "..", "a.b", strings.Repeat("a", 33)} {
		if _, err := New(bad); err == nil {
			t.Errorf("New(%q) succeeded", bad)
		}
	}
	e := ForTest(t)
	for _, bad := range []string{"", "../../tmp/x", "a b"} {
		if _, err := e.Namespace(bad); err == nil {
			t.Errorf("Namespace(%q) succeeded", bad)
		}
	}
	_, err := e.Namespace("twice")
	ok(t, err)
	if _, err := e.Namespace("twice"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("the same name again: %v; want ErrExist", err)
	}
	ok(t, e.Close())
	if _, err := e.Namespace("late"); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Namespace after Close: %v; want ErrClosed", err)
	}
	ok(t, e.Close())
}

func TestDo(t *testing.T) {
	_, all := newNamespaces(t, "a", "b")
	a, b := all[0], all[1]
	current := func() string {
		link, err := os.Readlink("/proc/thread-self/ns/net")
		ok(t, err)
		return link
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home := current()

	ok(t, a.Do(func() error {
		outer := current()
		if outer == home {
			t.Error("Do did not enter")
		}
		ok(t, b.Do(func() error {
			if in := current(); in == outer || in == home {
				t.Error("the inner Do did not enter")
			}
			return nil
		}))
		if current() != outer {
			t.Error("the inner Do did not come back to the outer one")
		}
		return nil
	}))
	if want := errors.New("mine"); !errors.Is(a.Do(func() error { return want }), want) {
		t.Error("the error of the function is lost")
	}
	func() {
		defer func() {
			if recover() != "oops" {
				t.Error("the panic is lost")
			}
		}()
		_ = a.Do(func() error { panic("oops") })
	}()
	if current() != home {
		t.Error("the thread stayed inside")
	}
}

func TestDialer(t *testing.T) {
	_, all := newNamespaces(t, "a")
	ok(t, all[0].AddAddr("lo", netip.MustParsePrefix("10.9.0.1/32")))
	for _, network := range []string{"tcp", "tcp4", "udp", "udp4"} {
		var address string
		if strings.HasPrefix(network, "tcp") {
			l, err := all[0].Listen(network, "127.0.0.1:0")
			ok(t, err)
			defer l.Close()
			address = l.Addr().String()
		} else {
			c, err := all[0].ListenPacket(network, "127.0.0.1:0")
			ok(t, err)
			defer c.Close()
			address = c.LocalAddr().String()
		}
		d := Dialer{Namespace: all[0], Source: netip.MustParseAddr("10.9.0.1")}
		conn, err := d.DialContext(t.Context(), network, address)
		ok(t, err)
		defer conn.Close()
		if host := netip.MustParseAddrPort(conn.LocalAddr().String()).Addr(); host != d.Source {
			t.Errorf("%s: dialled from %v, want %v", network, host, d.Source)
		}
	}
	if _, err := all[0].Dialer().DialContext(t.Context(), "tcp", "localhost:80"); err == nil {
		t.Error("a name was dialled, though it would be resolved elsewhere")
	}
}

func TestDoAfterClose(t *testing.T) {
	e, all := newNamespaces(t, "a")
	ok(t, e.Close())
	if err := all[0].Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Do after Close: %v; want ErrClosed", err)
	}
	if _, err := all[0].Start(Cmd{Path: "true"}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Start after Close: %v; want ErrClosed", err)
	}
}

func TestSysctl(t *testing.T) {
	_, all := newNamespaces(t, "a", "b")
	before, err := os.ReadFile("/proc/sys/net/ipv4/ip_default_ttl")
	ok(t, err)
	ok(t, all[0].SetSysctl("net.ipv4.ip_default_ttl", "77"))
	for i, want := range []string{"77", "64"} {
		got, err := all[i].Sysctl("net/ipv4/ip_default_ttl")
		ok(t, err)
		if got != want {
			t.Errorf("ip_default_ttl in %s is %s, want %s", all[i], got, want)
		}
	}
	after, err := os.ReadFile("/proc/sys/net/ipv4/ip_default_ttl")
	ok(t, err)
	if string(before) != string(after) {
		t.Error("the machine's own sysctl changed")
	}
	if err := all[0].SetSysctl("net.ipv4.no_such", "1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown key: %v; want ErrNotExist", err)
	}
}

// TestCloseLeavesNothing looks for names, processes, threads, mounts and descriptors.
func TestCloseLeavesNothing(t *testing.T) {
	RequireRoot(t)
	threads := func() int {
		entries, err := os.ReadDir("/proc/self/task")
		ok(t, err)
		return len(entries)
	}
	var files, count int
	for round := range 4 {
		e, err := New("close")
		ok(t, err)
		defer e.Close()
		a, err := e.Namespace("a")
		ok(t, err)
		b, err := e.Namespace("b")
		ok(t, err)
		ok(t, e.Veth(End{Namespace: a, Name: "eth0"}, End{Namespace: b, Name: "eth0"}, 1))
		p, err := a.Start(Cmd{Path: "sleep", Args: []string{"1000"}})
		ok(t, err)
		q, err := b.Start(Cmd{Path: "sh", Args: []string{"-c", "setsid sleep 1000 & echo $!; wait"}})
		ok(t, err)
		ok(t, q.WaitOutput(5*time.Second, "\n"))
		escaped, err := strconv.Atoi(strings.TrimSpace(q.Stdout()))
		ok(t, err)
		ok(t, e.Close())

		for _, pid := range []int{p.PID(), q.PID(), escaped} {
			if !processGone(pid) {
				t.Errorf("process %d survived Close", pid)
			}
		}
		for _, ns := range []*Namespace{a, b} {
			if !nameGone(ns.Name()) {
				t.Errorf("%s is still there", ns)
			}
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		ok(t, err)
		if strings.Contains(string(mounts), a.Name()) {
			t.Errorf("%s is still mounted", a)
		}
		if round == 1 { // the runtime has by now what it opens and starts once
			files, count = openFiles(t), threads()
		}
	}
	if now := openFiles(t); now > files {
		t.Errorf("%d descriptors are open, %d two rounds ago", now, files)
	}
	eventually(t, "the threads that started processes are gone", func() bool { return threads() <= count+1 })
}

// TestKilledMaker kills a process that made an Env; its processes go with it, or at the latest with the next New.
func TestKilledMaker(t *testing.T) {
	RequireRoot(t)
	for _, mode := range []string{"kill", "panic"} {
		t.Run(mode, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childMode+"="+mode)
			out, err := cmd.StdoutPipe()
			ok(t, err)
			ok(t, cmd.Start())
			line, err := bufio.NewReader(out).ReadString('\n')
			ok(t, err)
			var name string
			var direct, escaped int
			_, err = fmt.Sscan(line, &name, &direct, &escaped)
			ok(t, err)

			if mode == "kill" {
				other := ForTest(t) // a New beside a living maker leaves that one's namespaces alone
				ok(t, other.Close())
				if nameGone(name) || processGone(direct) || processGone(escaped) {
					t.Fatal("New removed what a living process owns")
				}
				ok(t, cmd.Process.Signal(syscall.SIGKILL))
			}
			if err := cmd.Wait(); err == nil {
				t.Fatal("the child ended well")
			}
			eventually(t, "the direct child is killed by PDEATHSIG", func() bool { return processGone(direct) })

			ok(t, ForTest(t).Close())
			if !processGone(escaped) {
				t.Errorf("process %d of the dead maker still runs", escaped)
			}
			if !nameGone(name) {
				t.Errorf("%s of the dead maker is still there", name)
			}
		})
	}
}

// TestHalfMadeLeftover is a maker that died between making the file and mounting the namespace on it.
func TestHalfMadeLeftover(t *testing.T) {
	RequireRoot(t)
	ok(t, os.MkdirAll(netnsDir, 0o755))
	me, err := self()
	ok(t, err)
	name := maker{me.pid, me.start + 1}.prefix() + "-test1-a"
	ok(t, os.WriteFile(filepath.Join(netnsDir, name), nil, 0))
	ForTest(t)
	if !nameGone(name) {
		t.Errorf("%s is still there", name)
	}
}

func TestCounters(t *testing.T) {
	_, all := newNamespaces(t, "a")
	l, err := all[0].Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	defer l.Close()
	before, err := all[0].Counters()
	ok(t, err)
	ok(t, all[0].connect(netip.MustParseAddrPort(l.Addr().String())))
	after, err := all[0].Counters()
	ok(t, err)
	for _, name := range []string{"TcpActiveOpens", "TcpPassiveOpens"} {
		if after[name] != before[name]+1 {
			t.Errorf("%s went from %d to %d after one connection", name, before[name], after[name])
		}
	}
	for _, name := range []string{"TcpExtListenDrops", "Ip6InReceives", "UdpInErrors"} {
		if _, ok := after[name]; !ok {
			t.Errorf("there is no %s", name)
		}
	}
}

func BenchmarkDo(b *testing.B) {
	e := ForTest(b)
	ns, err := e.Namespace("a")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		_ = ns.Do(func() error { return nil })
	}
}
