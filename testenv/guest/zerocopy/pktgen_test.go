//go:build linux && guest

package zerocopy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/testenv"
	"github.com/sluice-lb/sluice/testenv/guest"
)

// TestPktgen runs the scripts of bench/nic/pktgen, with a real pktgen and with busybox for a shell, and looks at what they send.
func TestPktgen(t *testing.T) {
	if !guest.Inside() {
		guest.Boot(t, *generatorMachine())
		return
	}
	env := testenv.ForTest(t)
	sender, receiver := newNamespace(t, env, "sender"), newNamespace(t, env, "receiver")
	furnish(t, sender, "eth0", rateClient)
	furnish(t, receiver, "eth1", rateNode)
	p := &pktgenRig{t: t, sender: sender, in: openPacketSocket(t, receiver, "eth1")}
	const mac = "02:00:00:00:00:02"

	t.Run("flood", func(t *testing.T) {
		seen := p.run("flood.sh", "-i", "eth0", "-m", mac, "-d", "192.0.2.10", "-p", "53", "-n", "2000",
			"-S", "4", "-s", "198.18.5.254", "-f", "12", "-r", "4000")
		want := []string{"198.18.5.254", "198.18.5.255", "198.18.6.0", "198.18.6.1"}
		if seen.frames != 2000 || len(seen.flows) != 12 || !slices.Equal(seen.sources(), want) || seen.sizes[60] != 2000 || seen.ports[53] != 2000 {
			t.Errorf("%+v; expected 2000 frames of 60 bytes, 12 flows, sources %v", seen, want)
		}
		if seen.took < 400*time.Millisecond {
			t.Errorf("2000 packets at 4000 a second took %v", seen.took)
		}
	})
	t.Run("IPv6", func(t *testing.T) {
		seen := p.run("flood.sh", "-i", "eth0", "-m", mac, "-d", "2001:db8::10", "-n", "500", "-f", "5")
		if seen.frames != 500 || len(seen.flows) != 5 || seen.sizes[78] != 500 || seen.ports[80] != 500 {
			t.Errorf("%+v; expected 500 frames of 78 bytes, 5 flows", seen)
		}
	})
	t.Run("IMIX", func(t *testing.T) {
		seen := p.run("imix.sh", "-i", "eth0", "-m", mac, "-d", "192.0.2.10", "-n", "1200", "-f", "1")
		small, middle, big := seen.sizes[60], seen.sizes[590], seen.sizes[1514]
		if seen.frames != 1200 || small+middle+big != 1200 || small < 600 || small > 800 || middle < 320 || middle > 480 || big < 60 || big > 150 {
			t.Errorf("%+v; expected 1200 frames, some 700 of 60 bytes, 400 of 590 and 100 of 1514", seen)
		}
		if len(seen.flows) != 1 {
			t.Errorf("%d flows; expected one", len(seen.flows))
		}
	})
	t.Run("interrupt", func(t *testing.T) {
		script := p.start("flood.sh", "-i", "eth0", "-m", mac, "-d", "192.0.2.10", "-r", "100", "-t", "60")
		time.Sleep(time.Second)
		if err := unix.Kill(-script.PID(), syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		select {
		case <-script.Done():
		case <-time.After(slow):
			t.Fatalf("it goes on: %s", script.Output())
		}
		if script.ExitCode() != 130 || !strings.Contains(script.Output(), "sent ") {
			t.Errorf("exit code %d; output: %s", script.ExitCode(), script.Output())
		}
		p.in.drain()
		time.Sleep(300 * time.Millisecond)
		if f := p.in.receive(); f != nil {
			t.Errorf("a frame after the end: % x", f)
		}
		// It has left nothing behind: pktgen is free for another.
		if seen := p.run("flood.sh", "-i", "eth0", "-m", mac, "-d", "192.0.2.10", "-n", "10"); seen.frames != 10 {
			t.Errorf("%+v", seen)
		}
	})
	t.Run("limit", func(t *testing.T) {
		begun := time.Now()
		p.run("flood.sh", "-i", "eth0", "-m", mac, "-d", "192.0.2.10", "-r", "100", "-t", "1")
		if took := time.Since(begun); took < time.Second || took > slow {
			t.Errorf("-t 1 took %v", took)
		}
	})
}

// pktgenRig is a card that sends and one that receives.
type pktgenRig struct {
	t      *testing.T
	sender *testenv.Namespace
	in     *packetSocket
}

// pktgenTraffic is what came.
type pktgenTraffic struct {
	frames int
	took   time.Duration // by the script
	sizes  map[int]int
	ports  map[uint16]int // destinations
	flows  map[netip.AddrPort]int
}

func (s *pktgenTraffic) sources() []string {
	all := map[string]bool{}
	for f := range s.flows {
		all[f.Addr().String()] = true
	}
	return slices.Sorted(maps.Keys(all))
}

func (p *pktgenRig) start(script string, args ...string) *testenv.Process {
	p.t.Helper()
	s, err := p.sender.Start(testenv.Cmd{Path: "/bin/sh", Args: append([]string{"/pktgen/" + script}, args...)})
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

// run runs a script to its end and returns what came.
func (p *pktgenRig) run(script string, args ...string) *pktgenTraffic {
	p.t.Helper()
	p.in.drain()
	begun := time.Now()
	s := p.start(script, args...)
	seen := &pktgenTraffic{sizes: map[int]int{}, ports: map[uint16]int{}, flows: map[netip.AddrPort]int{}}
	for ended := false; ; {
		frame := p.in.receive()
		switch {
		case frame != nil:
			p.look(frame, seen)
		case ended:
			if s.ExitCode() != 0 {
				p.t.Fatalf("exit code %d: %s", s.ExitCode(), s.Output())
			}
			p.t.Log(s.Output())
			return seen
		case s.Ended():
			ended, seen.took = true, time.Since(begun)
		case time.Since(begun) > slow:
			p.t.Fatalf("it still runs: %s", s.Output())
		}
	}
}

func (p *pktgenRig) look(frame []byte, seen *pktgenTraffic) {
	p.t.Helper()
	packet := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy)
	udp, ok := packet.TransportLayer().(*layers.UDP)
	if !ok {
		return // ARP
	}
	source, _ := netip.AddrFromSlice(packet.NetworkLayer().NetworkFlow().Src().Raw())
	if ip, ok := packet.NetworkLayer().(*layers.IPv4); ok && fold(frame[14:34], 0) != 0xffff {
		p.t.Fatalf("checksum of %+v", ip)
	}
	seen.frames++
	seen.sizes[len(frame)]++
	seen.ports[uint16(udp.DstPort)]++
	seen.flows[netip.AddrPortFrom(source, uint16(udp.SrcPort))]++
}
