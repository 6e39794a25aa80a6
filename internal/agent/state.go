//go:build linux

package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/agent/capability"
)

// state is what an agent changed in its network namespace: enough to undo it all.
type state struct {
	Boot     string               `json:"boot"`     // of the kernel that the changes were made in
	PID      int                  `json:"pid"`      // of the agent that wrote this
	VIPs     []netip.Addr         `json:"vips"`     // that are answered for
	NAT      []capability.Mapping `json:"nat"`      // that SYN cookies are accepted by
	Listen   string               `json:"listen"`   // where that agent is asked; "": nowhere
	Added    []netip.Addr         `json:"added"`    // of the VIPs, put on loopback by an agent
	Settings []setting            `json:"settings"` // sysctls set by an agent
	Programs []attachment         `json:"programs"` // attached by an agent, or about to be
}

// setting is one sysctl that an agent set.
type setting struct {
	Name   string `json:"name"`           // below /proc/sys
	Link   int    `json:"link,omitempty"` // index of the interface that it is about; 0: all of them
	Before int    `json:"before"`         // the value before the first agent
	Set    int    `json:"set"`            // the value that an agent gave it
}

// String is for logs.
func (s setting) String() string { return fmt.Sprintf("%s=%d (was %d)", s.Name, s.Set, s.Before) }

// attachment is a program at the ingress or egress of an interface.
type attachment struct {
	Interface string `json:"interface"`
	Link      int    `json:"link"` // interface index
	Egress    bool   `json:"egress,omitempty"`
	Program   uint32 `json:"program"` // BPF program ID
}

func (a attachment) hook() ebpf.AttachType {
	if a.Egress {
		return ebpf.AttachTCXEgress
	}
	return ebpf.AttachTCXIngress
}

// sameHook reports whether both are on the same hook of the same interface.
func (a attachment) sameHook(b attachment) bool { return a.Link == b.Link && a.Egress == b.Egress }

// store keeps the state of one network namespace in a file, which is locked while an agent runs.
type store struct {
	path string
	boot string
	lock *os.File
}

// newStore names the files of the calling thread's network namespace, without touching them. The namespace's cookie is
// part of the name: unlike an inode number it is not given to another namespace later.
func newStore(dir string) (*store, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return nil, fmt.Errorf("read SO_NETNS_COOKIE: %w; Linux 6.6 or newer is needed", err)
	}
	return &store{
		path: filepath.Join(dir, fmt.Sprintf("netns-%d", cookie)),
		boot: strings.TrimSpace(string(boot)),
	}, nil
}

// openStore locks the state of this network namespace, or says who has it.
func openStore(dir string) (*store, error) {
	s, err := newStore(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make state directory: %w; run as root, or name another with --state-dir", err)
	}
	s.lock, err = os.OpenFile(s.path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w; run as root, or name another directory with --state-dir", err)
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		s.lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			who := ""
			if st, err := s.load(); err == nil {
				who = fmt.Sprintf(" (pid %d)", st.PID)
			}
			return nil, fmt.Errorf("lock %s: another sluice-agent%s runs in this network namespace; stop it, "+
				"or give it all interfaces and VIPs", s.path, who)
		}
		return nil, fmt.Errorf("lock %s: %w", s.path, err)
	}
	return s, nil
}

// running reports whether an agent holds the lock.
func (s *store) running() bool {
	f, err := os.Open(s.path + ".lock")
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// load returns what is changed now; the zero state if nothing is. What was changed before a reboot no longer is.
func (s *store) load() (state, error) {
	var st state
	data, err := os.ReadFile(s.path + ".json")
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, nil
	}
	if err != nil {
		return state{}, fmt.Errorf("read state: %w", err)
	}
	if err := json.Unmarshal(data, &st); err != nil {
		return state{}, fmt.Errorf("read state %s.json: %w; undo by hand what it names, then remove it", s.path, err)
	}
	if st.Boot != s.boot {
		return state{}, nil
	}
	return st, nil
}

// save replaces the state as a whole, so that an agent killed at any time leaves one that can be read.
func (s *store) save(st state) error {
	st.Boot, st.PID = s.boot, os.Getpid()
	data, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	tmp := s.path + ".tmp"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	if err := os.Rename(tmp, s.path+".json"); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

// remove says that nothing is changed any more.
func (s *store) remove() error {
	if err := os.Remove(s.path + ".json"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove state: %w", err)
	}
	return nil
}

// close gives the lock back. Its file stays: one that is removed could be locked twice.
func (s *store) close() { s.lock.Close() }
