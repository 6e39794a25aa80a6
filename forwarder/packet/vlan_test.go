package packet

import (
	"strings"
	"testing"
)

func TestTags(t *testing.T) {
	const macs = "02 00 00 00 00 02  02 00 00 00 00 01 "
	tcp := parse(fromHex(t, eth4+ip4TCP+tcpSYN))
	tcp.L3, tcp.L4, tcp.End = 18, 38, 58
	six := parse(fromHex(t, eth6+"60 00 00 00  00 14 06 40"+ip6Addrs+tcpSYN))
	six.L3, six.L4, six.End = 18, 58, 78
	for _, c := range []struct {
		name, frame string
		want        Meta
	}{
		{"IPv4", "81 00 00 05 08 00" + ip4TCP + tcpSYN, tcp},
		{"IPv4, padded", "81 00 00 05 08 00" + ip4TCP + tcpSYN + "00 00", tcp},
		{"IPv6", "81 00 00 05 86 dd 60 00 00 00  00 14 06 40" + ip6Addrs + tcpSYN, six},
		{"priority tag", "81 00 e0 00 08 00" + ip4TCP + tcpSYN, tcp},
		{"all bits", "81 00 ff ff 08 00" + ip4TCP + tcpSYN, tcp},
		{"two tags", "81 00 00 05 81 00 00 06 08 00" + ip4TCP + tcpSYN, Meta{Reason: NotIP}},
		{"service tag", "88 a8 00 05 08 00" + ip4TCP + tcpSYN, Meta{Reason: NotIP}},
		{"service tag and tag", "88 a8 00 05 81 00 00 06 08 00" + ip4TCP + tcpSYN, Meta{Reason: NotIP}},
		{"tag and service tag", "81 00 00 05 88 a8 00 06 08 00" + ip4TCP + tcpSYN, Meta{Reason: NotIP}},
		{"ARP", "81 00 00 05 08 06 00 01 08 00 06 04 00 01", Meta{Reason: NotIP}},
		{"tag cut", "81 00 00 05 08", Meta{Reason: Truncated}},
		{"nothing behind the tag", "81 00 00 05 08 00", Meta{Reason: Truncated}},
		{"IPv4 cut", "81 00 00 05 08 00" + ip4TCP + strings.TrimSuffix(tcpSYN, "00 "), Meta{Reason: Truncated}},
		{"IPv4 version 5", "81 00 00 05 08 00 55" + ip4TCP[2:] + tcpSYN, Meta{Reason: BadIPHeader}},
		{"IPv4 protocol", "81 00 00 05 08 00 45 00 00 18  00 00 40 00  40 2f 6c a9  0a 01 02 03  c0 00 02 0a  00 00 08 00",
			Meta{Dst: addr("192.0.2.10"), L3: 18, L4: 38, End: 42, Proto: 47, Reason: Protocol}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := parse(fromHex(t, macs+c.frame)); got != c.want {
				t.Errorf("\n got %+v\nwant %+v", got, c.want)
			}
		})
	}
}
