//go:build linux

package asavie

import (
	"net/netip"

	"github.com/sluice-lb/sluice/bench"
)

// traffic completes what a generator is to send to the way's node: ACKs of so many flows.
func (w *way) traffic(flows uint64, t bench.Traffic) bench.Traffic {
	t.SrcMAC, t.DstMAC = w.peer[:], w.own[:]
	t.Source, t.Target = netip.MustParsePrefix("11.0.0.0/12"), netip.AddrPortFrom(vip, port)
	t.Protocol, t.Flags, t.Flows = bench.TCP, bench.ACK, flows
	return t
}
