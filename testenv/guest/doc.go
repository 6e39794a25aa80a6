//go:build linux

// Package guest boots a virtual machine for tests that need another kernel or other network drivers than this machine
// has: zero-copy AF_XDP above all, which veth cannot do. The machine is emulated (no KVM), has no disk, and is gone when
// the test ends.
//
// A test binary is its own guest. On the host, [Boot] packs the running test binary, made with CGO_ENABLED=0, into an
// initramfs as /init, with the kernel modules and programs that the test names, and runs QEMU with the name of the test
// on the kernel's command line. In the guest the same binary is process 1: [Main] mounts what is usual, loads the
// modules, runs that one test and powers off. So one test function has both halves:
//
//	func TestMain(m *testing.M) { guest.Main(m) }
//
//	func TestSomething(t *testing.T) {
//		if !guest.Inside() {
//			guest.Boot(t, machine)
//			return
//		}
//		// In the guest: its interfaces are eth0, eth1 …
//	}
//
// Interfaces 2n and 2n+1 of a machine are joined by a bridge of their own in a network namespace on the host, so the
// guest's traffic reaches nothing else. QEMU runs in that namespace, as a process of package testenv, which kills it on
// every way out.
//
// A Machine can have a second one beside it, for traffic that is not to cost it anything, and a clock that counts instructions
// instead of the host's time.
//
// Kernels, and a newer QEMU where this system's does not emulate a card, are Debian packages. [Fetch] takes them from the
// backports suites with a private apt directory, without touching the system's sources or packages; the address is that
// of the system's own debian.sources. They are kept in a cache directory of the user, outside of the tree.
//
// The tests are in the folder zerocopy, behind the build tag guest. `make test-zerocopy` runs them.
package guest
