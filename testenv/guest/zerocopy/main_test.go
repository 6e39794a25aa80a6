//go:build linux && guest

// Package zerocopy runs the daemon in virtual machines whose network drivers have zero-copy AF_XDP; see package guest.
// The program bin/sluice is what is tested: `make test-zerocopy` builds it first.
package zerocopy

import (
	"os"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/testenv/guest"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == reflectorArgument {
		reflectorMain()
	}
	guest.Main(m)
}

var (
	// The first kernel whose virtio-net receives and transmits in zero-copy mode is 6.13.
	kernel618 = guest.Package{Suite: "trixie-backports", Name: `linux-image-6\.18\.\d+\+deb\d+-cloud-amd64`}
	// The flavour with drivers of real cards.
	kernel618Full = guest.Package{Suite: "trixie-backports", Name: `linux-image-6\.18\.\d+\+deb\d+-amd64`}
	// Its virtio-net refuses zero-copy.
	kernel612 = guest.Package{Suite: "bookworm-backports", Name: `linux-image-6\.12\.\d+\+deb\d+-cloud-amd64`}
	// The first QEMU that emulates igb is 8.0.
	qemu10 = []guest.Package{
		{Suite: "bookworm-backports", Name: "qemu-system-x86"},
		{Suite: "bookworm-backports", Name: "qemu-system-common"},
		{Suite: "bookworm-backports", Name: "qemu-system-data"},
	}
)

// virtio is a machine with virtio network cards. Without iommu_platform binding in zero-copy mode is refused.
func virtio(kernel guest.Package, cpus, queues int) guest.Machine {
	device := "virtio-net-pci,disable-legacy=on,iommu_platform=on,romfile="
	if queues > 1 {
		device += ",mq=on"
	}
	return guest.Machine{
		Kernel: kernel, CPUs: cpus, Queues: queues, Device: device, Modules: []string{"virtio_pci", "virtio_net"},
		Files: map[string]string{"bin/sluice": "../../../bin/sluice"}, Limit: 100 * time.Second,
	}
}

// igb is a machine with emulated Intel 82576 cards.
func igb(cpus int) guest.Machine {
	m := virtio(kernel618Full, cpus, 1)
	m.QEMU, m.Device, m.Modules = qemu10, "igb", []string{"igb"}
	return m
}

// As many queue pairs as processors; two workers, each with a queue of both cards.
func TestVirtio(t *testing.T) {
	if !guest.Inside() {
		guest.Boot(t, virtio(kernel618, 2, 2))
		return
	}
	r := newRig(t, 2)
	r.start("zerocopy")
	r.wantMode("zerocopy")
	r.exchange(1)
	r.wantAllQueuesUsed()

	r.stop()
	r.fastPath = "on"
	r.start("zerocopy")
	r.wantMode("zerocopy")
	r.exchange(2)
	r.exchange(2)
	r.wantFastPath("virtio_net")

	for i, name := range []string{"eth0", "eth2"} {
		r.flap(name)
		r.wantMode("zerocopy")
		r.exchange(3 + i)
	}
	r.finish()
}

// With more queue pairs than processors the driver uses few of them, and more once an XDP program is attached, on which
// frames would find no socket: the daemon says so and does not start.
func TestVirtioMoreQueuesThanProcessors(t *testing.T) {
	if !guest.Inside() {
		guest.Boot(t, virtio(kernel618, 1, 2))
		return
	}
	r := newRig(t, 2)
	r.wantRefusal("zerocopy", "eth0", "number of queues", "ethtool -L")
}

// The emulated Intel 82576 with the real driver, which spreads TCP flows on two queues by RSS.
func TestIGB(t *testing.T) {
	if !guest.Inside() {
		guest.Boot(t, igb(2))
		return
	}
	r := newRig(t, 2)
	r.start("zerocopy")
	r.wantMode("zerocopy")
	r.exchange(1)
	r.wantAllQueuesUsed()
	r.wantFastPath("zero-copy")
	r.stop()
	r.fastPath = "on"
	r.start("zerocopy")
	r.exchange(2)
	r.exchange(2) // flows that have a word by now
	r.wantFastPath("")
	r.flap("eth0")
	r.wantMode("zerocopy")
	r.exchange(3)
	r.finish()
}

// A driver without zero-copy: auto falls back to copy mode and says so, zerocopy refuses to start.
func TestFallback(t *testing.T) {
	if !guest.Inside() {
		guest.Boot(t, virtio(kernel612, 1, 1))
		return
	}
	r := newRig(t, 1)
	r.wantRefusal("zerocopy", "eth0", "auto")
	r.start("auto")
	r.wantMode("copy")
	r.exchange(1)
	r.exchange(1)
	r.wantFastPath("")
	r.finish()
}
