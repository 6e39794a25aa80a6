//go:build linux

package testenv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 looks for named namespaces.
const netnsDir = "/run/netns"

// killWait bounds how long a killed process may take to go.
const killWait = 5 * time.Second

// maker is the process that made a namespace. The start time tells it from a later process with the same id.
type maker struct {
	pid   int
	start uint64 // in clock ticks since boot: field 22 of /proc/PID/stat
}

// self is this process.
func self() (maker, error) {
	start, _, err := startTime(os.Getpid())
	return maker{os.Getpid(), start}, err
}

// prefix begins the names of the maker's namespaces.
func (m maker) prefix() string {
	return fmt.Sprintf("sluice-%d-%s", m.pid, strconv.FormatUint(m.start, 36))
}

// makerOf reads the maker from the name of a namespace, and says whether it is a name that this package gives.
func makerOf(name string) (maker, bool) {
	parts := strings.SplitN(name, "-", 4)
	if len(parts) != 4 || parts[0] != "sluice" {
		return maker{}, false
	}
	pid, err := strconv.Atoi(parts[1])
	if err != nil || pid <= 0 {
		return maker{}, false
	}
	start, err := strconv.ParseUint(parts[2], 36, 64)
	if err != nil {
		return maker{}, false
	}
	m := maker{pid, start}
	return m, strings.HasPrefix(name, m.prefix()+"-")
}

// alive says whether the maker still runs. When that cannot be known it is taken as alive.
func (m maker) alive() bool {
	start, zombie, err := startTime(m.pid)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false
	}
	return err != nil || start == m.start && !zombie
}

// startTime reads when a process started, and whether it has ended and only waits for its parent.
func startTime(pid int) (start uint64, zombie bool, err error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, false, err
	}
	// The second field is the name in parentheses, which may itself hold spaces and parentheses.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 20 {
		return 0, false, fmt.Errorf("read %s: %d fields after the name, expected at least 20", path, len(fields))
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, false, fmt.Errorf("read %s: %w", path, err)
	}
	return start, fields[0] == "Z" || fields[0] == "X", nil
}

// removeLeftovers removes the namespaces whose maker is dead. Several processes may do so at the same time.
func removeLeftovers() error {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs error
	for _, entry := range entries {
		if m, ok := makerOf(entry.Name()); ok && !m.alive() {
			errs = errors.Join(errs, removeLeftover(entry.Name()))
		}
	}
	return errs
}

// removeLeftover kills what runs inside a namespace and removes the name. One that is gone meanwhile is no error.
func removeLeftover(name string) error {
	f, err := os.Open(filepath.Join(netnsDir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return errors.Join(killInside(f), removeName(name))
}

// removeName removes the name of a namespace. The kernel frees the namespace with its interfaces a little after the
// last descriptor, process and socket is gone. A name that is gone already is no error, nor is a file that no namespace
// was mounted on: its maker died between the two steps.
func removeName(name string) error {
	path := filepath.Join(netnsDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// killInside kills every process in a network namespace and waits until they are gone. The caller's own process is
// left: its threads leave by themselves.
func killInside(ns *os.File) error {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Fstatfs(int(ns.Fd()), &fs), unix.Fstat(int(ns.Fd()), &st)); err != nil {
		return fmt.Errorf("stat %s: %w", ns.Name(), err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return nil // a plain file whose number means nothing
	}
	inside := fmt.Sprintf("net:[%d]", st.Ino)
	for deadline := time.Now().Add(killWait); ; time.Sleep(2 * time.Millisecond) {
		pids, err := processesIn(inside)
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill the processes in %s: %v still run after %v", ns.Name(), pids, killWait)
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d in %s: %w", pid, ns.Name(), err)
			}
		}
	}
}

// processesIn lists the other processes whose network namespace has this link text. One that has ended but still waits
// for its parent has no namespace any more and is not listed.
func processesIn(link string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if l, err := os.Readlink(filepath.Join("/proc", entry.Name(), "ns/net")); err == nil && l == link {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
