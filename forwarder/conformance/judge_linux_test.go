//go:build linux

package conformance

import (
	"encoding/binary"
	"net"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/testenv"
)

// judge is a kernel to which every address is its own. It is shown what the daemon has sent, as the receiver of the outer
// and of the inner packet, and has to find no checksum or header wrong.
type judge struct {
	wire  *wire
	shown uint64
}

var judgeMAC = net.HardwareAddr{2, 0, 0, 0, 0, 0xdd}

func newJudge(t *testing.T, env *testenv.Env) *judge {
	t.Helper()
	court, err := env.Namespace("judge")
	if err != nil {
		t.Fatal(err)
	}
	bar, err := env.Namespace("bar")
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(env.Veth(testenv.End{Namespace: court, Name: "eth0", MAC: judgeMAC, MTU: 3000},
		testenv.End{Namespace: bar, Name: "eth0", MTU: 3000}, 1))
	must(court.SetSysctl("net.ipv4.conf.all.accept_local", "1"))
	must(court.SetSysctl("net.ipv4.conf.eth0.accept_local", "1"))
	lo, err := court.Link("lo")
	must(err)
	for _, dst := range []string{"0.0.0.0/0", "::/0"} {
		_, n, err := net.ParseCIDR(dst)
		must(err)
		must(court.Netlink().RouteAdd(&netlink.Route{Dst: n, LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL,
			Scope: netlink.SCOPE_HOST, Table: unix.RT_TABLE_LOCAL}))
	}
	j := &judge{wire: newWire(t, bar, "eth0")}
	before, err := court.Counters()
	must(err)
	t.Cleanup(func() {
		now, err := court.Counters()
		if err != nil {
			t.Error(err)
		}
		for _, name := range []string{"IpInHdrErrors", "IpInAddrErrors", "IpExtInCsumErrors", "IpInTruncatedPkts",
			"TcpInCsumErrors", "UdpInCsumErrors", "IcmpInCsumErrors", "Ip6InHdrErrors", "Ip6InAddrErrors",
			"Ip6InTruncatedPkts", "Udp6InCsumErrors", "Icmp6InCsumErrors"} {
			if n := now[name] - before[name]; n != 0 {
				t.Errorf("the kernel found fault with the frames that went out: %s %d", name, n)
			}
		}
		if n := now["IpInReceives"] + now["Ip6InReceives"] - before["IpInReceives"] - before["Ip6InReceives"]; n < j.shown {
			t.Errorf("the kernel has seen %d of %d packets", n, j.shown)
		}
	})
	return j
}

// present shows a frame to the judge.
func (j *judge) present(t *testing.T, frame []byte, guePort uint16) {
	t.Helper()
	l3 := 14
	if binary.BigEndian.Uint16(frame[12:]) == 0x8100 {
		l3 = 18
	}
	for ip := frame[l3:]; len(ip) >= 20; {
		proto, head, etherType := ip[9], int(ip[0]&0xf)*4, []byte{0x08, 0}
		if ip[0]>>4 == 6 {
			proto, head, etherType = ip[6], 40, []byte{0x86, 0xdd}
		}
		// Only who expects it takes a UDP checksum of zero over IPv6 (RFC 6935): not a kernel without such a socket. And
		// link-local addresses cannot be made everybody's.
		zero := proto == nextUDP && len(ip) >= head+8 && ip[head+6]|ip[head+7] == 0
		if ip[0]>>4 == 4 || !zero && ip[24] != 0xfe {
			j.wire.send(t, slices.Concat(judgeMAC, []byte{2, 0, 0, 0, 0, 0xee}, etherType, ip))
			j.shown++
		}
		switch {
		case proto == nextIPv4 || proto == nextIPv6:
			ip = ip[head:]
		case proto == nextUDP && guePort != 0 && len(ip) > head+8 && binary.BigEndian.Uint16(ip[head+2:]) == guePort:
			ip = ip[head+8:]
		default:
			return
		}
	}
}
