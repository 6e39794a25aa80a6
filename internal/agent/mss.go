//go:build linux

package agent

import (
	"fmt"
	"math"
	"strconv"

	"github.com/vishvananda/netlink"
)

// Values of Config.ClampMSS beside a number of bytes.
const (
	ClampAuto = 0  // after the interfaces' MTU, followed as it changes
	ClampOff  = -1 // SYN-ACKs leave as they are
)

// Bounds of an MSS given by hand: what every IPv4 host takes (RFC 9293, 3.7.1), and the payload of the largest IPv4 packet.
const (
	minMSS = 536
	maxMSS = math.MaxUint16 - 40
)

const (
	encapOverhead = 48 // the most that a node puts in front of a packet: an IPv6 header and a UDP header
	tcp4Headers   = 40 // IPv4 and TCP, both without options; an MSS does not count options (RFC 6691)
	tcp6Headers   = 60 // IPv6 and TCP
)

// MSS is the largest MSS for each family, in bytes; 0: any.
type MSS struct {
	IPv4 uint16 `json:"ipv4"`
	IPv6 uint16 `json:"ipv6"`
}

// ParseClampMSS reads auto, off, or a number of bytes, as Config.ClampMSS has it.
func ParseClampMSS(s string) (int, error) {
	switch s {
	case "auto":
		return ClampAuto, nil
	case "off":
		return ClampOff, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < minMSS || n > maxMSS {
		return 0, fmt.Errorf("give auto, off, or bytes from %d to %d", minMSS, maxMSS)
	}
	return n, nil
}

// clampFor is what Config.ClampMSS means on interfaces with this smallest MTU.
func clampFor(config, mtu int) MSS {
	switch config {
	case ClampOff:
		return MSS{}
	case ClampAuto:
		fit := func(headers int) uint16 { return uint16(min(max(mtu-encapOverhead-headers, minMSS), maxMSS)) }
		return MSS{IPv4: fit(tcp4Headers), IPv6: fit(tcp6Headers)}
	}
	return MSS{IPv4: uint16(config), IPv6: uint16(config)}
}

// smallestMTU is that of the interfaces: nodes' packets may arrive on any of them.
func (h *host) smallestMTU() (int, error) {
	smallest := math.MaxInt
	for _, l := range h.links {
		now, err := netlink.LinkByIndex(l.index)
		if err != nil {
			return 0, fmt.Errorf("read MTU of %s: %w", l.name, err)
		}
		smallest = min(smallest, now.Attrs().MTU)
	}
	return smallest, nil
}
