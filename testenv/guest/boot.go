//go:build linux

package guest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/testenv"
)

// wireMTU leaves room for outer headers around packets of 1500 bytes.
const wireMTU = 1600

// NanosPerInstruction is how fast the clock of a Machine goes that counts instructions.
const NanosPerInstruction = 2

// Machine is a guest.
type Machine struct {
	Kernel  Package
	QEMU    []Package // empty: that of this system
	CPUs    int
	Modules []string // kernel modules by name; what they depend on is added
	// Device is the kind of network card with its options, as after -device. There are four, eth0 to eth3 in the guest;
	// eth0 is joined to eth1 and eth2 to eth3.
	Device string
	Queues int               // queue pairs of each card that QEMU offers through the host's tap device; 1 for cards that have one
	Files  map[string]string // file on the host by path in the guest, without leading slash
	Limit  time.Duration     // for the whole life of the machine
	Flags  []string          // of the test binary in the guest, as name=value
	// Counted makes the guest's clock count instructions, NanosPerInstruction each, for as long as a processor is busy: by that
	// clock a program takes the same time however much of the host's the emulator gets.
	Counted bool
	// Beside is a second machine, with two cards: its eth0 is on the wire of eth0 and eth1, its eth1 on that of eth2 and
	// eth3. The same test runs in it, and [Beside] says true there. It starts with this one, and is killed at its end.
	Beside *Machine
}

// cards is the number of network cards of a Machine.
const cards = 4

// Boot runs the calling test in the guest and reports its outcome as that of t. What it prints is logged, and returned. Needs
// root and /dev/net/tun.
func Boot(t *testing.T, m Machine) (console string) {
	t.Helper()
	env := testenv.ForTest(t)
	wires, err := env.Namespace("wires")
	if err != nil {
		t.Fatal(err)
	}
	c, err := m.command(t, wires, 0, cards, "")
	if err != nil {
		t.Fatal(err)
	}
	var beside testenv.Cmd
	if m.Beside != nil {
		if beside, err = m.Beside.command(t, wires, cards, 2, besideParameter); err != nil {
			t.Fatal(err)
		}
	}
	for try := 1; ; try++ {
		started := time.Now()
		q, err := wires.Start(c)
		if err != nil {
			t.Fatal(err)
		}
		var other *testenv.Process
		if m.Beside != nil {
			if other, err = wires.Start(beside); err != nil {
				t.Fatal(err)
			}
		}
		err = q.Wait(m.Limit)
		console = words(q)
		t.Logf("%v in the guest:\n%s", time.Since(started).Round(time.Second/10), console)
		if other != nil {
			if err := other.Kill(); err != nil {
				t.Fatal(err)
			}
			t.Logf("in the guest beside it:\n%s", words(other))
		}
		if strings.Contains(console, crashed) && try < 3 {
			continue
		}
		m.judge(t, q, console, err)
		return console
	}
}

// words is what a machine has written to its serial line.
func words(q *testenv.Process) string { return strings.ReplaceAll(q.Output(), "\r", "") }

// crashed is what a kernel says that has met with something impossible, as emulation now and then makes it: another start
// shows whether it is the emulator's doing.
const crashed = "not syncing: Fatal exception"

// judge ends the test unless the guest has said that it passed. err is what became of QEMU.
func (m *Machine) judge(t *testing.T, q *testenv.Process, console string, err error) {
	t.Helper()
	switch {
	case err != nil && !q.Ended():
		t.Fatal(errors.Join(fmt.Errorf("the guest still runs after %v", m.Limit), q.Kill()))
	case err != nil:
		t.Fatal("QEMU failed; its last words are above")
	case !strings.Contains(console, passed):
		t.Fatal("the test failed in the guest, or the guest died")
	}
}

// command prepares everything that QEMU needs, with so many cards, of which the first has this number among those of all
// machines. parameters are further words for the kernel's command line.
func (m *Machine) command(t *testing.T, wires *testenv.Namespace, first, count int, parameters string) (testenv.Cmd, error) {
	tree, err := Fetch(m.Kernel)
	if err != nil {
		return testenv.Cmd{}, err
	}
	k, err := findKernel(tree)
	if err != nil {
		return testenv.Cmd{}, err
	}
	for _, f := range m.Flags {
		parameters += " " + flagParameter + f
	}
	initramfs := filepath.Join(t.TempDir(), "initramfs")
	if err := m.pack(k, initramfs); err != nil {
		return testenv.Cmd{}, err
	}
	args := []string{
		// On one thread, or processors meet each other's changes of code half made (jump labels: "Oops: int3"). Without
		// cx16: QEMU 7.2 leaves rubbish in the flags after cmpxchg16b on a single processor, and the kernel dies.
		"-M", "q35", "-accel", "tcg,thread=single", "-cpu", "max,cx16=off", "-smp", fmt.Sprint(m.CPUs), "-m", "1024",
		"-nographic", "-nodefaults", "-no-reboot", "-serial", "stdio", "-monitor", "none",
		"-kernel", k.image, "-initrd", initramfs,
		"-append", "console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off net.ifnames=0 " + testParameter + t.Name() + " " + parameters,
	}
	if m.Counted {
		args = append(args, "-icount", "shift=1") // two to this power are the nanoseconds
	}
	program, env := "qemu-system-x86_64", []string(nil)
	if len(m.QEMU) > 0 {
		tree, err := Fetch(m.QEMU...)
		if err != nil {
			return testenv.Cmd{}, err
		}
		program = filepath.Join(tree, "usr/bin", program)
		env = []string{"QEMU_MODULE_DIR=" + filepath.Join(tree, "usr/lib/x86_64-linux-gnu/qemu")}
		args = append(args, "-L", filepath.Join(tree, "usr/share/qemu"), "-L", "/usr/share/seabios")
	}
	for i := range count {
		card := first + i
		tap := fmt.Sprintf("tap%d", card)
		if err := wire(wires, tap, card, m.Queues); err != nil {
			return testenv.Cmd{}, fmt.Errorf("network of the guest: %s: %w", tap, err)
		}
		netdev := fmt.Sprintf("tap,id=n%d,ifname=%s,script=no,downscript=no,vhost=off", i, tap)
		if m.Queues > 1 {
			netdev += fmt.Sprintf(",queues=%d", m.Queues)
		}
		args = append(args, "-netdev", netdev, "-device", fmt.Sprintf("%s,netdev=n%d,mac=02:00:00:00:00:%02x,addr=0x%x", m.Device, i, card+1, 2*i+4)) // igb's virtual functions take two slots a card
	}
	return testenv.Cmd{Path: program, Args: args, Env: env}, nil
}

// wire makes a tap device for QEMU as a port of a bridge, and the bridge with its first port.
func wire(ns *testenv.Namespace, tap string, number, queues int) error {
	first, n := number%2 == 0, number/2
	if number >= cards { // a machine beside has one card on each
		first, n = false, number-cards
	}
	bridge := fmt.Sprintf("wire%d", n)
	if first {
		if err := ns.SetSysctl("net/ipv6/conf/default/disable_ipv6", "1"); err != nil { // these only carry
			return err
		}
		if err := ns.Bridge(bridge, net.HardwareAddr{2, 0, 0, 0, 1, byte(number)}, wireMTU); err != nil {
			return err
		}
	}
	master, err := ns.Link(bridge)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = tap
	flags := netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR
	if queues > 1 {
		flags |= netlink.TUNTAP_MULTI_QUEUE
	}
	device := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: flags, Queues: queues}
	err = ns.Do(func() error { // tun devices belong to the namespace of the thread that opens /dev/net/tun
		return netlink.LinkAdd(device)
	})
	if err != nil {
		return err
	}
	for _, f := range device.Fds { // the device stays; QEMU opens it again
		_ = f.Close()
	}
	link, err := ns.Link(tap)
	if err != nil {
		return err
	}
	h := ns.Netlink()
	return errors.Join(h.LinkSetMTU(link, wireMTU), h.LinkSetMaster(link, master), h.LinkSetUp(link))
}

// pack writes the initramfs.
func (m *Machine) pack(k *kernel, path string) error {
	var files []file
	loaded := map[string]bool{}
	for _, name := range m.Modules {
		if err := k.load(name, &files, loaded); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	host := map[string]string{"init": self}
	for to, from := range m.Files {
		host[to] = from
	}
	for to, from := range host {
		data, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("file %s for the guest: %w", to, err)
		}
		files = append(files, file{to, data})
	}
	return os.WriteFile(path, archive([]string{"proc", "sys", "dev", "run", "tmp", "var", "root"}, files), 0o644)
}

const (
	// On the kernel's command line: the test to run, its flags, and whether this is the second machine.
	testParameter   = "sluice.test="
	flagParameter   = "sluice.flag="
	besideParameter = "sluice.beside"
	passed          = "GUEST: PASSED"
)

// Inside says whether this is the guest.
func Inside() bool { return os.Getpid() == 1 }

// Beside says whether this is the guest that is a Machine's Beside.
func Beside() bool {
	line, err := os.ReadFile("/proc/cmdline")
	return Inside() && err == nil && slices.Contains(strings.Fields(string(line)), besideParameter)
}

// Main is the TestMain of a package whose tests run in guests.
func Main(m *testing.M) {
	if !Inside() {
		os.Exit(m.Run())
	}
	code, err := 1, prepare()
	if err == nil {
		code = m.Run()
	}
	if err != nil {
		fmt.Println("prepare the guest:", err)
	}
	if code == 0 {
		fmt.Println(passed)
	}
	time.Sleep(100 * time.Millisecond) // the serial line sends the rest
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}
