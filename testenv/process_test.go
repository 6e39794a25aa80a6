//go:build linux

package testenv

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shell starts a shell script in a namespace of its own.
func shell(t *testing.T, script string) *Process {
	t.Helper()
	_, all := newNamespaces(t, "a")
	p, err := all[0].Start(Cmd{Path: "sh", Args: []string{"-c", script}})
	ok(t, err)
	return p
}

func TestProcessOutput(t *testing.T) {
	p := shell(t, "echo out; echo err >&2; exit 3")
	err := p.Wait(5 * time.Second)
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "err") {
		t.Errorf("Wait: %v; want exit status 3 and the output", err)
	}
	if p.ExitCode() != 3 || !p.Ended() {
		t.Errorf("exit code %d, ended %t", p.ExitCode(), p.Ended())
	}
	if p.Stdout() != "out\n" || !strings.Contains(p.Output(), "out\n") || !strings.Contains(p.Output(), "err\n") {
		t.Errorf("stdout %q, output %q", p.Stdout(), p.Output())
	}
	if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v; want ErrProcessDone", err)
	}
	if err := errors.Join(p.Kill(), p.Stop(time.Second)); err != nil {
		t.Errorf("kill and stop after the end: %v", err)
	}
}

func TestProcessSettings(t *testing.T) {
	_, all := newNamespaces(t, "a")
	var stdout bytes.Buffer
	dir := t.TempDir()
	p, err := all[0].Start(Cmd{
		Path: "sh", Args: []string{"-c", "cat; echo $WORD; pwd"},
		Env: []string{"WORD=hello"}, Dir: dir, Stdin: strings.NewReader("in\n"), Stdout: &stdout,
	})
	ok(t, err)
	ok(t, p.Wait(5*time.Second))
	if want := "in\nhello\n" + dir + "\n"; stdout.String() != want {
		t.Errorf("stdout %q, want %q", stdout.String(), want)
	}
	if _, err := all[0].Start(Cmd{Path: "no-such-program"}); err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("a program that is not there: %v", err)
	}
}

func TestRun(t *testing.T) {
	_, all := newNamespaces(t, "a")
	out, err := all[0].Run(5*time.Second, Cmd{Path: "echo", Args: []string{"hello"}})
	if err != nil || out != "hello\n" {
		t.Errorf("Run: %q, %v", out, err)
	}
	if _, err := all[0].Run(20*time.Millisecond, Cmd{Path: "sleep", Args: []string{"1000"}}); err == nil {
		t.Error("a program that runs on is no error")
	}
	left, err := processesIn(all[0].inode(t))
	if err != nil || len(left) != 0 {
		t.Errorf("after the timeout there still run %v, %v", left, err)
	}
	if n := len(all[0].processes); n != 0 {
		t.Errorf("%d ended processes are kept", n)
	}
}

func TestWaitUntil(t *testing.T) {
	p := shell(t, "echo one; sleep 0.05; echo two; sleep 1000")
	ok(t, p.WaitOutput(5*time.Second, "two"))
	err := p.WaitOutput(20*time.Millisecond, "three")
	if err == nil || !strings.Contains(err.Error(), "two") {
		t.Errorf("text that never comes: %v; want an error with the output", err)
	}
	if err := p.Wait(20 * time.Millisecond); err == nil || !strings.Contains(err.Error(), "still runs") {
		t.Errorf("Wait: %v; want still runs", err)
	}
	if p.Ended() || p.ExitCode() != -1 {
		t.Error("waiting ended the process")
	}

	p = shell(t, "echo dying >&2; exit 1")
	start := time.Now()
	if err := p.WaitOutput(time.Minute, "never"); err == nil || !strings.Contains(err.Error(), "dying") {
		t.Errorf("a process that ends: %v; want an error with the output", err)
	}
	if time.Since(start) > 30*time.Second {
		t.Error("waited on for a process that had ended")
	}
	p = shell(t, "echo done")
	ok(t, p.WaitOutput(5*time.Second, "done")) // ended, but it has said so
}

func TestWaitTCP(t *testing.T) {
	p := shell(t, "sleep 1000")
	addr := netip.MustParseAddrPort("127.0.0.1:8080")
	if err := p.WaitTCP(30*time.Millisecond, addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v; want ECONNREFUSED", err)
	}
	l, err := p.ns.Listen("tcp", addr.String())
	ok(t, err)
	defer l.Close()
	ok(t, p.WaitTCP(5*time.Second, addr))
}

func TestStop(t *testing.T) {
	p := shell(t, "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done")
	ok(t, p.WaitOutput(5*time.Second, "ready"))
	ok(t, p.Stop(5*time.Second))
	if p.ExitCode() != 7 || !strings.Contains(p.Output(), "bye") {
		t.Errorf("exit code %d, output %q", p.ExitCode(), p.Output())
	}

	p = shell(t, "trap '' TERM; echo ready; while :; do sleep 0.01; done")
	ok(t, p.WaitOutput(5*time.Second, "ready"))
	if err := p.Stop(30 * time.Millisecond); err == nil {
		t.Error("a process that had to be killed is no error")
	}
	if !processGone(p.PID()) {
		t.Error("a stubborn process survived Stop")
	}
}

// TestGroupEndsWithLeader: what a program leaves running in its group dies with it, and does not wait for the Env.
func TestGroupEndsWithLeader(t *testing.T) {
	p := shell(t, "sleep 1000 & echo $!")
	ok(t, p.Wait(5*time.Second))
	child, err := strconv.Atoi(strings.TrimSpace(p.Stdout()))
	ok(t, err)
	eventually(t, "the child is gone", func() bool { return processGone(child) })
}

// TestDaemonOutlivesItsStarter: a program that makes a session of its own runs on, and its starter has ended well.
func TestDaemonOutlivesItsStarter(t *testing.T) {
	p := shell(t, "setsid sleep 1000 & echo $!; sleep 0.05")
	ok(t, p.Wait(5*time.Second))
	daemon, err := strconv.Atoi(strings.TrimSpace(p.Stdout()))
	ok(t, err)
	if processGone(daemon) {
		t.Error("the daemon is gone")
	}
}

// TestProcessSeesItsNamespace looks at the network from a process in the three ways there are.
func TestProcessSeesItsNamespace(t *testing.T) {
	_, a, _ := pair(t, 2, false)
	for script, want := range map[string]string{
		"readlink /proc/self/ns/net":                     a.inode(t),
		"ls /sys/class/net | xargs":                      "eth0 lo",
		"tail -n +3 /proc/net/dev | cut -d: -f1 | xargs": "",
		"ls -d /sys/class/net/eth0/queues/rx-* | wc -l":  "2",
		"cat /proc/sys/net/ipv4/conf/eth0/rp_filter":     "0",
	} {
		out, err := a.Run(5*time.Second, Cmd{Path: "sh", Args: []string{"-c", script}})
		ok(t, err)
		got := strings.Fields(out)
		if want == "" { // in no order
			slices.Sort(got)
			want = "eth0 lo"
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
}

// inode is the link text of the namespace.
func (ns *Namespace) inode(t *testing.T) (link string) {
	t.Helper()
	ok(t, ns.Do(func() (err error) {
		link, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}))
	return link
}

// TestManyProcesses starts processes from several goroutines; the thread that starts them must outlive them.
func TestManyProcesses(t *testing.T) {
	_, all := newNamespaces(t, "a")
	errs := make(chan error)
	for range 8 {
		go func() {
			for range 5 {
				if _, err := all[0].Run(10*time.Second, Cmd{Path: "sleep", Args: []string{"0.02"}}); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range 8 {
		ok(t, <-errs)
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var kept tail
	chunk := bytes.Repeat([]byte("0123456789"), 5000)
	for range 100 {
		_, _ = kept.Write(chunk)
	}
	_, _ = kept.Write([]byte("end"))
	got := kept.String()
	if len(got) != tailSize || !strings.HasSuffix(got, "789end") {
		t.Errorf("%d bytes are kept, ending in %q", len(got), got[len(got)-6:])
	}
	if cap(kept.text) > 8*tailSize {
		t.Errorf("%d bytes are held for %d", cap(kept.text), tailSize)
	}
}
