package cli

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// StoreFD gives systemd a duplicate of a descriptor to keep under a name, so that the next start of this service inherits it
// (sd_notify(3), FDSTORE=1); see InheritedFDs. The descriptor stays the caller's. Without systemd ($NOTIFY_SOCKET is not set)
// it does nothing and returns nil.
//
// A name is of letters, digits and dashes, 255 at most. Several descriptors may have the same one: to replace one, RemoveFD
// first. systemd does not answer: it drops the descriptor without a word if the unit's FileDescriptorStoreMax= is 0, as it is
// by default, or reached, and takes none from other processes than the main one unless NotifyAccess= says so. FDPOLL=0
// (systemd 246) has it kept whatever poll(2) says about it. Like Notify it waits while the queue of systemd is full.
func StoreFD(name string, fd int) error {
	if err := checkFDName(name); err != nil {
		return fmt.Errorf("store descriptor %d: %w", fd, err)
	}
	if err := storeFD("FDSTORE=1\nFDNAME="+name+"\nFDPOLL=0", fd); err != nil {
		return fmt.Errorf("store descriptor %d as %s with systemd: %w", fd, name, err)
	}
	return nil
}

// storeFD sends a state with a descriptor: daemon.SdNotify sends none, and package net none over a connected datagram socket.
func storeFD(state string, fd int) error {
	address := os.Getenv("NOTIFY_SOCKET")
	if address == "" {
		return nil
	}
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(socket)
	// An @ in front means an abstract socket to systemd and to this package alike.
	if err := unix.Sendmsg(socket, []byte(state), unix.UnixRights(fd), &unix.SockaddrUnix{Name: address}, 0); err != nil {
		return fmt.Errorf("send to %s: %w", address, err)
	}
	return nil
}

// RemoveFD has systemd close all descriptors that it keeps under a name (FDSTOREREMOVE=1, systemd 236). Without systemd, or
// if there is none, it does nothing and returns nil.
func RemoveFD(name string) error {
	if err := checkFDName(name); err != nil {
		return fmt.Errorf("remove stored descriptors: %w", err)
	}
	if _, err := daemon.SdNotify(false, "FDSTOREREMOVE=1\nFDNAME="+name); err != nil {
		return fmt.Errorf("remove stored descriptors %s with systemd: %w", name, err)
	}
	return nil
}

// checkFDName says whether a name means the same to us and to systemd, which takes more.
func checkFDName(name string) error {
	for _, c := range []byte(name) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '-' {
			return fmt.Errorf("name %q: only letters, digits and dashes are allowed", name)
		}
	}
	if len(name) == 0 || len(name) > 255 {
		return fmt.Errorf("name %q of %d characters: give 1 to 255", name, len(name))
	}
	return nil
}

// InheritedFDs returns the descriptors that systemd handed to this process, by name, those of a name in their order
// (sd_listen_fds(3)): what an earlier run gave to StoreFD, and sockets of socket units. One without a name is "unknown", as
// in systemd. The caller owns them all, also those that it does not know: close them. No program that this process starts
// inherits them.
//
// Call it once, at the start, before anything else opens files or starts programs: it unsets the variables, and a second
// call finds nothing. The map is empty, never nil, if nothing was handed over, or not to this process ($LISTEN_PID).
func InheritedFDs() map[string][]int {
	// The library's activation.Files would wrap them in files that the garbage collector closes.
	pid, fds, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, name := range []string{"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name) // fails only for names that are none
	}
	inherited := make(map[string][]int)
	n, err := strconv.Atoi(fds)
	if err != nil || pid != strconv.Itoa(os.Getpid()) {
		return inherited
	}
	const first = 3 // SD_LISTEN_FDS_START
	for i := range n {
		// One that is not open is none. There are no others after the first such, however large the number.
		if _, err := unix.FcntlInt(uintptr(first+i), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			break
		}
		name := "unknown"
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		inherited[name] = append(inherited[name], first+i)
	}
	return inherited
}
