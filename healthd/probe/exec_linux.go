package probe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxExecs is how many programs run at once.
	maxExecs = 16
	// execFiles is how many descriptors a program may have.
	execFiles = 256
	// execWord is the first argument of a process that is to become a program.
	execWord = "exec-limited"
	// notRun begins what such a process says if it could not. No program's output begins with it by chance.
	notRun = "\x00"
	// execGrace is how long after its end a program's output may be held open by what it left behind, and how long after it was
	// killed it may take to end.
	execGrace = 200 * time.Millisecond
	// defaultMemory is the address space of a program, in bytes, where the check does not say.
	defaultMemory = 256_000_000
)

// Exec makes this process a limited program, if it was started for that, and returns otherwise. It is to be called first in main: Go
// can set no limits between fork and exec, so a probe of type exec starts its own program anew with a first argument that
// says so; that sets the limits on itself and becomes the program that the check names.
func Exec() {
	if len(os.Args) < 5 || os.Args[1] != execWord {
		return
	}
	err := limitedExec(os.Args[2], os.Args[3], os.Args[4:])
	fmt.Printf("%srun %s: %v", notRun, os.Args[3], err)
	os.Exit(1)
}

// limitedExec sets limits and becomes the program at path, with memory bytes of address space at most.
func limitedExec(memory, path string, args []string) error {
	bytes, err := strconv.ParseUint(memory, 10, 64)
	if err != nil {
		return err
	}
	// What prctl sets is the thread's, and the thread that calls exec is the one that stays.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_NO_NEW_PRIVS: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_PDEATHSIG: %w", err)
	}
	// What healthd may do so that it can probe (CAP_NET_RAW of AmbientCapabilities=) is not the program's.
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_CAP_AMBIENT_CLEAR_ALL: %w", err)
	}
	environment := os.Environ()
	for _, l := range []struct {
		name  string
		which int
		max   uint64
	}{
		{"RLIMIT_CORE", unix.RLIMIT_CORE, 0},
		{"RLIMIT_NOFILE", unix.RLIMIT_NOFILE, execFiles},
	} {
		// A hard limit of the process may be lower already, and cannot be raised.
		var now unix.Rlimit
		if err := unix.Getrlimit(l.which, &now); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		limit := min(l.max, now.Max)
		if err := unix.Setrlimit(l.which, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	// This process has more than the program may have, and cannot grow from here on. So it is the soft limit alone, to be taken
	// back if there is something to be said.
	debug.SetGCPercent(-1)
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_AS, &now); err != nil {
		return fmt.Errorf("RLIMIT_AS: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: min(bytes, now.Max), Max: now.Max}); err != nil {
		return fmt.Errorf("RLIMIT_AS: %w", err)
	}
	err = syscall.Exec(path, args, environment)
	_ = unix.Setrlimit(unix.RLIMIT_AS, &now)
	return err
}

// exec runs a program.
func (p *Prober) exec(ctx context.Context, t *Target) (outcome, error) {
	expected, err := newContent(&t.Check.Expect)
	if err != nil {
		return outcome{}, err
	}
	if len(t.Check.Command) == 0 {
		return outcome{}, lack("the check has no command")
	}
	path, err := trusted(t.Check.ExecDirectory, t.Check.Command[0])
	if err != nil {
		return outcome{}, lack(err.Error())
	}
	memory := t.Check.Memory
	if memory == 0 { // the check does not come from a file
		memory = defaultMemory
	}
	out := &output{limit: limit(&t.Check.Expect)}
	cmd := exec.Command("/proc/self/exe", append([]string{execWord, strconv.FormatUint(memory, 10), path}, t.Check.Command...)...)
	cmd.Dir = "/"
	cmd.Env = []string{
		"PATH=/usr/bin:/bin",
		"SLUICE_SERVICE=" + t.Service, "SLUICE_BACKEND=" + t.Backend,
		"SLUICE_ADDRESS=" + t.Address.String(), "SLUICE_VIP=" + t.VIP.String(), "SLUICE_PORT=" + strconv.Itoa(int(t.Check.Port)),
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = execGrace
	if err := p.place(ctx, t.timeout()); err != nil {
		return outcome{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, t.timeout())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		defer func() { <-p.execs }()
		ended <- run(ctx, cmd)
	}()
	select {
	case err = <-ended:
	case <-ctx.Done():
		select { // it is being killed
		case err = <-ended:
		case <-time.After(2 * execGrace): // it hangs in the kernel
			return outcome{}, bad(fmt.Sprintf("no end within %v, and it cannot be killed", t.timeout()))
		}
	}
	text := string(out.bytes())
	if cause, not := strings.CutPrefix(text, notRun); not {
		return outcome{}, lack(cause)
	}
	first, _, _ := strings.Cut(text, "\n")
	const most = 200
	first = first[:min(len(first), most)]
	var exit *exec.ExitError
	switch {
	case errors.Is(err, context.Canceled):
		return outcome{}, err
	case errors.Is(err, context.DeadlineExceeded):
		return outcome{}, said(fmt.Sprintf("no end within %v", t.timeout()), first)
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // something that it started holds its output open; it ended well itself
	case errors.As(err, &exit) && exit.Exited():
		return outcome{}, said(fmt.Sprintf("exit status %d", exit.ExitCode()), first)
	case errors.As(err, &exit):
		return outcome{}, said("ended by "+exit.String(), first)
	case isErrno(err):
		return outcome{}, lack("start a program: " + err.Error())
	default:
		return outcome{}, err
	}
	if err := expected.check(out.bytes()); err != nil {
		return outcome{}, err
	}
	return saw(string(said("exit status 0", first))), nil
}

// place waits for a place among the programs that run, for as long as the timeout is: that there are too many of them is no
// backend's fault.
func (p *Prober) place(ctx context.Context, timeout time.Duration) error {
	enough := time.NewTimer(timeout)
	defer enough.Stop()
	select {
	case p.execs <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-enough.C:
		return lack(fmt.Sprintf("%d programs of exec checks run already; make them fewer, faster or less frequent", maxExecs))
	}
}

// said adds what a program said to how it ended.
func said(end, line string) bad {
	if line = strings.TrimSpace(line); line == "" {
		return bad(end)
	}
	return bad(end + ": " + line)
}

// run runs cmd until it ends or ctx is done, and kills what is left of its process group. The error is that of ctx if that ended it.
func run(ctx context.Context, cmd *exec.Cmd) error {
	// PDEATHSIG is sent when the thread that forked ends. This one stays until the program has ended.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return err
	}
	kill := func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	stop := context.AfterFunc(ctx, kill)
	// The process is not reaped yet, so that its number, which is the group's, is nobody else's.
	for errors.Is(unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
	inTime := stop()
	kill()
	err := cmd.Wait()
	if !inTime {
		return ctx.Err()
	}
	return err
}

// trusted returns the file that command is, if nobody but root can put something else there.
func trusted(directory, command string) (string, error) {
	if directory == "" {
		return "", errors.New("exec checks need health.exec_directory")
	}
	directory, err := filepath.EvalSymlinks(directory)
	if err != nil {
		return "", fmt.Errorf("health.exec_directory: %w", err)
	}
	path, err := filepath.EvalSymlinks(command)
	if err != nil {
		return "", fmt.Errorf("command: %w", err)
	}
	if filepath.Dir(path) != directory {
		return "", fmt.Errorf("command: %s is %s, which is not in health.exec_directory (%s)", command, path, directory)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return "", fmt.Errorf("command: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
		return "", fmt.Errorf("command: %s is not an executable file", path)
	}
	for at := path; ; at = filepath.Dir(at) {
		info, err := os.Lstat(at)
		if err != nil {
			return "", fmt.Errorf("command: %w", err)
		}
		const othersWrite = 0o022
		// In a directory such as /tmp everyone may write, but not replace what is root's.
		shared := info.IsDir() && info.Mode()&fs.ModeSticky != 0 && at != directory
		if info.Sys().(*syscall.Stat_t).Uid != 0 || info.Mode().Perm()&othersWrite != 0 && !shared {
			return "", fmt.Errorf("command: %s is to be root's, and writable by nobody else (chown root, chmod go-w)", at)
		}
		if at == filepath.Dir(at) {
			return path, nil
		}
	}
}

// output keeps the beginning of what a program says, and lets it say the rest.
type output struct {
	limit int
	mu    sync.Mutex // a program that cannot be killed may go on to write
	data  []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.data = append(o.data, p[:min(len(p), o.limit-len(o.data))]...)
	return len(p), nil
}

func (o *output) bytes() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.data
}
