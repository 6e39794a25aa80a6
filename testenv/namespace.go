//go:build linux

package testenv

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace of an Env. It lives until the Env is closed.
type Namespace struct {
	name string
	file *os.File        // the namespace
	nl   *netlink.Handle // a route netlink socket inside

	mu        sync.Mutex
	closed    bool
	starter   *starter          // nil until the first process
	processes map[*Process]bool // those that run
}

// prepareDirectory makes /run/netns what `ip netns` makes of it before the first name is mounted there: a shared mount. If
// that were left to a later `ip netns`, it would mount the directory over itself, and hide and keep the names below.
func prepareDirectory() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(netnsDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil { // one at a time, as iproute2 does
		return fmt.Errorf("lock %s: %w", netnsDir, err)
	}
	share := func() error { return unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	if err = share(); err == unix.EINVAL { // it is no mount point yet
		if err = unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = share()
		}
	}
	if err != nil {
		return fmt.Errorf("make %s a shared mount: %w", netnsDir, err)
	}
	return nil
}

// newNamespace makes and prepares a named namespace.
func newNamespace(name string) (ns *Namespace, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make namespace %s: %w", name, err)
		}
	}()
	if err := prepareDirectory(); err != nil {
		return nil, err
	}
	path := filepath.Join(netnsDir, name)
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0)
	if err != nil {
		return nil, err
	}
	f.Close()
	defer func() {
		if err != nil {
			err = errors.Join(err, removeName(name))
		}
	}()

	unshare := func() error { return unix.Unshare(unix.CLONE_NEWNET) }
	err = onThread(unshare, func() error {
		return unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
	})
	if err != nil {
		return nil, err
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	ns = &Namespace{name: name, file: file, processes: map[*Process]bool{}}
	ns.nl, err = netlink.NewHandleAt(netns.NsHandle(file.Fd()), unix.NETLINK_ROUTE)
	if err == nil {
		err = errors.Join(ns.nl.SetSocketTimeout(10*time.Second), ns.prepare())
	}
	if err != nil {
		ns.release()
		return nil, err
	}
	return ns, nil
}

// prepare makes the namespace predictable. Some defaults come from the machine's own namespace, so all are set.
func (ns *Namespace) prepare() error {
	if err := ns.LinkUp("lo"); err != nil {
		return err
	}
	for _, conf := range []string{"all", "default"} {
		for _, s := range []struct{ key, value string }{
			{"net/ipv4/conf/%s/rp_filter", "0"},
			{"net/ipv4/conf/%s/send_redirects", "0"},
			{"net/ipv4/conf/%s/accept_redirects", "0"},
			{"net/ipv6/conf/%s/accept_redirects", "0"},
			{"net/ipv6/conf/%s/disable_ipv6", "0"},
			{"net/ipv6/conf/%s/accept_dad", "0"},
			{"net/ipv6/conf/%s/accept_ra", "0"},
			{"net/ipv6/conf/%s/router_solicitations", "0"},
		} {
			if err := ns.SetSysctl(fmt.Sprintf(s.key, conf), s.value); err != nil {
				return err
			}
		}
	}
	return nil
}

// Name is the full name, as `ip netns exec` takes it.
func (ns *Namespace) Name() string { return ns.name }

// String is the full name.
func (ns *Namespace) String() string { return ns.name }

// Netlink is a handle for route netlink inside the namespace, for what this package has no method for. It may be used
// from any goroutine and belongs to the namespace: do not close it.
func (ns *Namespace) Netlink() *netlink.Handle { return ns.nl }

// Do runs f inside the namespace, on the caller's goroutine, which is locked to its thread meanwhile. Calls may be
// nested; a panic or a t.Fatal in f leaves the namespace properly. Goroutines started by f run outside of it.
// The error is that of f, or says that the namespace could not be entered or left. In the last case the goroutine stays
// locked to its thread, so that Go ends the thread with the goroutine instead of giving it to another one.
func (ns *Namespace) Do(f func() error) error {
	return onThread(ns.enter, f)
}

// enter moves the calling thread into the namespace.
func (ns *Namespace) enter() error {
	return ns.withFD(func(fd int) error {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace %s: %w", ns.name, err)
		}
		return nil
	})
}

// withFD calls f with the namespace's descriptor, which stays open for as long as f runs, also when it is closed
// meanwhile.
func (ns *Namespace) withFD(f func(fd int) error) error {
	conn, err := ns.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("use namespace %s: %w", ns.name, err)
	}
	var inner error
	// Control fails only on a closed file, with an error that is not os.ErrClosed.
	if conn.Control(func(fd uintptr) { inner = f(int(fd)) }) != nil {
		return fmt.Errorf("use namespace %s: %w", ns.name, os.ErrClosed)
	}
	return inner
}

// onThread locks the goroutine to its thread, moves the thread with enter, runs f, and moves it back.
func onThread(enter, f func() error) (err error) {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err := enter(); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, fmt.Errorf("leave a network namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// Sysctl reads a kernel parameter inside the namespace. The key is written with dots or with slashes; with slashes it
// may name an interface that has a dot in its name.
func (ns *Namespace) Sysctl(key string) (value string, err error) {
	err = ns.Do(func() error {
		text, err := os.ReadFile(sysctlPath(key))
		value = strings.TrimSpace(string(text))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read sysctl %s in %s: %w", key, ns.name, err)
	}
	return value, nil
}

// SetSysctl writes a kernel parameter inside the namespace; see [Namespace.Sysctl] for the key.
func (ns *Namespace) SetSysctl(key, value string) error {
	// The files of /proc/sys/net belong to the namespace of the thread that opens them, not to a mount.
	err := ns.Do(func() error { return os.WriteFile(sysctlPath(key), []byte(value), 0) })
	if err != nil {
		return fmt.Errorf("set sysctl %s=%s in %s: %w", key, value, ns.name, err)
	}
	return nil
}

func sysctlPath(key string) string {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	return "/proc/sys/" + key
}

// close kills the processes and removes the namespace.
func (ns *Namespace) close() error {
	ns.mu.Lock()
	ns.closed = true
	processes, starter := slices.Collect(maps.Keys(ns.processes)), ns.starter
	ns.starter = nil
	ns.mu.Unlock()

	// All at once, also programs that made a session of their own and those that a user started by hand.
	errs := killInside(ns.file)
	for _, p := range processes {
		errs = errors.Join(errs, p.Kill())
	}
	if starter != nil {
		starter.stop()
	}
	errs = errors.Join(errs, removeName(ns.name))
	ns.release()
	return errs
}

// release closes the descriptors.
func (ns *Namespace) release() {
	if ns.nl != nil {
		ns.nl.Close()
	}
	ns.file.Close()
}
