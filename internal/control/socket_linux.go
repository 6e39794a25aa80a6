package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// socketMode lets the owner and its group connect.
const socketMode = 0o660

// Listen makes the unix socket at path, with mode 0660 and owned by group if that is not empty (a name or a number).
// The socket of a daemon that has died is replaced. That of one that lives is not: it is told by a lock on path.lock,
// which the kernel drops with its holder, however that ends. Closing the listener removes the socket.
func Listen(path, group string) (net.Listener, error) {
	gid, err := groupID(group)
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen %s: %w; set control.socket to a place that can be written", path, err)
	}
	lock, err := takeLock(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", path, err)
	}
	l, err := bind(path, gid)
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("listen %s: %w", path, err)
	}
	return &listener{l, lock}, nil
}

// listener is a socket with its lock.
type listener struct {
	net.Listener
	lock *os.File
}

// Close removes the socket first: whoever gets the lock next makes its own.
func (l *listener) Close() error {
	return errors.Join(l.Listener.Close(), l.lock.Close())
}

func bind(path string, gid int) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, errors.New("there is something that is not a socket; set control.socket to another path")
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// The mode of a socket before bind limits that of its file (unix_mknod in net/unix/af_unix.c), so that nobody
		// else can connect in the moment before chmod.
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), socketMode) }), err)
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chown(path, -1, gid); err != nil {
		l.Close()
		return nil, fmt.Errorf("%w; only root can give the socket to a group that it is not in", err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// groupID returns the number of a group, or -1 for none.
func groupID(group string) (int, error) {
	if group == "" {
		return -1, nil
	}
	if n, err := strconv.ParseUint(group, 10, 32); err == nil {
		return int(n), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("%w; set control.group to a group of this machine", err)
	}
	return strconv.Atoi(g.Gid)
}

// takeLock takes the lock file at path and writes this process's number into it.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		holder := make([]byte, 16)
		n, _ := f.ReadAt(holder, 0)
		return nil, fmt.Errorf("another sluice is running (pid %s); stop it, or set another control.socket", strings.TrimSpace(string(holder[:n])))
	}
	// The number is for people: the lock holds without it.
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintln(f, os.Getpid())
	}
	return f, nil
}
