//go:build linux

package testenv

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Cmd is a program to run.
type Cmd struct {
	Path   string     // of the program; without a slash it is looked up in PATH
	Args   []string   // without the program's name
	Env    []string   // KEY=value, added to the environment of this process
	Dir    string     // working directory; empty: that of this process
	Stdin  io.Reader  // nil: empty
	Files  []*os.File // descriptors 3 and up in the program
	Stdout io.Writer  // gets standard output in place of Process.Stdout and Output, which keep the last 1 MiB; nil: none
}

// Process is a program that runs inside a namespace. It leads a process group of its own, which ends with it.
type Process struct {
	ns  *Namespace
	cmd *exec.Cmd

	both   tail          // standard output and error as they came
	stdout tail          // standard output alone
	done   chan struct{} // closed when the process has ended and its output is read
	err    error         // of exec.Cmd.Wait; read it after done
}

// Start starts a program inside the namespace. It is killed when the Env closes or this process dies, with everything
// that it has started there.
func (ns *Namespace) Start(c Cmd) (*Process, error) {
	p := &Process{ns: ns, cmd: exec.Command(c.Path, c.Args...), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), c.Env...)
	p.cmd.Dir = c.Dir
	p.cmd.Stdin = c.Stdin
	p.cmd.ExtraFiles = c.Files
	p.cmd.Stderr = &p.both
	p.cmd.Stdout = io.MultiWriter(&p.both, &p.stdout)
	if c.Stdout != nil {
		p.cmd.Stdout = c.Stdout
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p.cmd.WaitDelay = time.Second // for output pipes that a survivor holds open

	ns.mu.Lock()
	defer ns.mu.Unlock()
	if ns.closed {
		return nil, fmt.Errorf("start %s: namespace %s is %w", p, ns, os.ErrClosed)
	}
	if ns.starter == nil {
		s, err := newStarter(ns)
		if err != nil {
			return nil, fmt.Errorf("start %s in %s: %w", p, ns, err)
		}
		ns.starter = s
	}
	if err := ns.starter.start(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", p, ns, err)
	}
	ns.processes[p] = true
	go p.reap()
	return p, nil
}

// reap waits for the end. The rest of the process group is killed while the process is a zombie, for as long as its id
// can belong to nobody else.
func (p *Process) reap() {
	for {
		err := unix.Waitid(unix.P_PID, p.PID(), nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	_ = unix.Kill(-p.PID(), unix.SIGKILL)
	p.err = p.cmd.Wait()
	if errors.Is(p.err, exec.ErrWaitDelay) {
		p.err = nil // it ended well; a program that left the group holds its output open
	}
	p.ns.mu.Lock()
	delete(p.ns.processes, p)
	p.ns.mu.Unlock()
	close(p.done)
}

// Run runs a program inside the namespace to its end and returns its standard output. An exit status other than zero is
// an error, and so is a program that still runs after the timeout; it is killed.
func (ns *Namespace) Run(timeout time.Duration, c Cmd) (stdout string, err error) {
	p, err := ns.Start(c)
	if err != nil {
		return "", err
	}
	err = p.Wait(timeout)
	if !p.Ended() {
		err = errors.Join(err, p.Kill())
	}
	return p.Stdout(), err
}

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// String is the command line.
func (p *Process) String() string { return strings.Join(p.cmd.Args, " ") }

// Output is what the process wrote to standard output and standard error, as it came: the last 1 MiB.
func (p *Process) Output() string { return p.both.String() }

// Stdout is what the process wrote to standard output: the last 1 MiB.
func (p *Process) Stdout() string { return p.stdout.String() }

// Ended says whether the process has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Done is closed when the process has ended and its output is complete.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitCode is the exit status of a process that has ended; -1 if it still runs or was ended by a signal.
func (p *Process) ExitCode() int {
	if !p.Ended() {
		return -1
	}
	return p.cmd.ProcessState.ExitCode()
}

// Wait waits for the end. The error tells of an exit status other than zero or of the timeout, with the output; after
// the timeout the process still runs.
func (p *Process) Wait(timeout time.Duration) error {
	select {
	case <-p.done:
	case <-time.After(timeout):
		return p.failure(fmt.Sprintf("still runs after %v", timeout), nil)
	}
	if p.err != nil {
		return p.failure("failed", p.err)
	}
	return nil
}

// Signal sends a signal to the process, not to its children. The error is os.ErrProcessDone after its end.
func (p *Process) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("signal %v to %s: %w", s, p, err)
	}
	return nil
}

// Stop asks the process to end (SIGTERM) and kills it if it has not done so in time, which is an error. The exit status
// is no error here: see ExitCode.
func (p *Process) Stop(timeout time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(timeout):
		return errors.Join(p.failure(fmt.Sprintf("still runs %v after SIGTERM and is killed", timeout), nil), p.Kill())
	}
}

// Kill ends the process and its group at once and waits until they are gone. It is no error when they are gone already.
func (p *Process) Kill() error {
	if p.Ended() {
		return nil
	}
	// Signal goes through a process descriptor, so it cannot hit another process; reap then kills the group.
	if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(killWait):
		return fmt.Errorf("kill %s: still there after %v", p, killWait)
	}
}

// WaitOutput waits until the output contains the text.
func (p *Process) WaitOutput(timeout time.Duration, text string) error {
	return p.WaitUntil(timeout, fmt.Sprintf("it writes %q", text), func() error {
		if !strings.Contains(p.Output(), text) {
			return errors.New("not yet written")
		}
		return nil
	})
}

// WaitTCP waits until something accepts TCP connections at an address, as seen from the process's namespace.
func (p *Process) WaitTCP(timeout time.Duration, addr netip.AddrPort) error {
	return p.WaitUntil(timeout, fmt.Sprintf("%v accepts connections", addr), func() error {
		return p.ns.connect(addr)
	})
}

// WaitUntil calls ready until it returns nil. It gives up when the process ends or after the timeout; the error then
// holds the last one of ready, and the output. What it waits for (a clause: "the port answers") is for the error.
func (p *Process) WaitUntil(timeout time.Duration, what string, ready func() error) error {
	deadline := time.After(timeout)
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			if err := ready(); err == nil { // its last words count
				return nil
			}
			return p.failure(fmt.Sprintf("ended (%v) before %s", p.cmd.ProcessState, what), err)
		case <-deadline:
			return p.failure(fmt.Sprintf("waited %v until %s", timeout, what), err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// failure is an error about the process with the end of its output.
func (p *Process) failure(what string, cause error) error {
	const most = 8 << 10
	out := strings.TrimSpace(p.Output())
	if len(out) > most {
		out = "…" + out[len(out)-most:]
	}
	if out == "" {
		out = "(nothing)"
	}
	if cause != nil {
		return fmt.Errorf("%s in %s: %s: %w; its output:\n%s", p, p.ns, what, cause, out)
	}
	return fmt.Errorf("%s in %s: %s; its output:\n%s", p, p.ns, what, out)
}

// starter is the thread that starts the processes of a namespace. It lives for as long as they may, see PDEATHSIG in
// prctl(2): the signal comes when the thread that forked ends.
type starter struct {
	work chan func()
}

func newStarter(ns *Namespace) (*starter, error) {
	s := &starter{work: make(chan func())}
	ready := make(chan error)
	go func() {
		// The thread is never unlocked, so it ends with this goroutine.
		runtime.LockOSThread()
		err := ns.furnish()
		ready <- err
		if err != nil {
			return
		}
		for f := range s.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		return nil, err
	}
	return s, nil
}

// furnish moves the calling thread into the namespace for good, with mounts of its own: /sys shows the interfaces of
// the namespace that it was mounted in.
func (ns *Namespace) furnish() error {
	if err := ns.enter(); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("separate the mounts: %w", err)
	}
	// The copies of the named namespaces would keep those alive after their removal.
	entries, err := os.ReadDir(netnsDir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		path := filepath.Join(netnsDir, entry.Name())
		err := unix.Unmount(path, unix.MNT_DETACH)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount the copy of %s: %w", path, err)
		}
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	return nil
}

// start starts a command on the thread.
func (s *starter) start(c *exec.Cmd) error {
	err := make(chan error)
	s.work <- func() { err <- c.Start() }
	return <-err
}

// stop ends the thread, and by PDEATHSIG what it has started.
func (s *starter) stop() { close(s.work) }

// tail keeps the last 1 MiB of what is written to it.
type tail struct {
	mu   sync.Mutex
	text []byte
}

const tailSize = 1 << 20

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, b...)
	if len(t.text) > 2*tailSize {
		t.text = append(t.text[:0], t.text[len(t.text)-tailSize:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.text) > tailSize {
		return string(t.text[len(t.text)-tailSize:])
	}
	return string(t.text)
}
