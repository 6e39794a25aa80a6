//go:build linux

package veth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-lb/sluice/testenv"
)

// testpmd is DPDK's own test program on AF_XDP. It is no load balancer: it swaps MACs.
var testpmd = &System{
	Name:  "testpmd",
	what:  "DPDK testpmd, macswap on net_af_xdp, without huge pages, one forwarding thread that polls all the time",
	peer:  "sluice",
	start: startTestpmd,
	needs: []need{
		{"dpdk-dev", "dpdk-testpmd"},
		{"librte-net-af-xdp23", "/usr/lib/*/dpdk/pmds-*/librte_net_af_xdp.so.*"},
	},
	version: firstLine("dpkg-query", "-W", "dpdk-dev"),
}

func startTestpmd(_ context.Context, r *Rig) (stop func() error, err error) {
	p, err := r.start(testenv.Cmd{Path: "dpdk-testpmd", Args: []string{
		"--no-huge", "-m", "256", "--no-pci", "--no-shconf", "--no-telemetry", "--iova-mode=va",
		// Two threads are the least; the first one only waits.
		fmt.Sprintf("--lcores=0@%d,1@%[1]d", r.cores.system),
		"--vdev=net_af_xdp0,iface=" + eth,
		"--",
		"--forward-mode=macswap", "--total-num-mbufs=16384", "--port-topology=loop", "--nb-cores=1", "--auto-start", "--stats-period=3600",
	}})
	if err != nil {
		return nil, err
	}
	if err := p.WaitOutput(20*time.Second, "Port statistics"); err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	return stopper(p), nil
}
