//go:build linux

package agent

import (
	"errors"
	"fmt"

	"github.com/safchain/ethtool"
)

// Features of an interface by which the kernel makes one of several datagrams of a flow before tc ingress sees them, if
// they have UDP checksums (udp_gro_receive_segment in net/ipv4/udp_offload.c). Both are off by default.
var mergingFeatures = []string{"rx-udp-gro-forwarding", "rx-gro-list"}

// checkMerging is an error that says which interfaces merge GUE packets, while they do. It is for the operator to choose
// what to give up: somebody turned the feature on.
func (h *host) checkMerging(guePort uint16) error {
	if guePort == 0 {
		return nil
	}
	e, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("open ethtool socket: %w", err)
	}
	defer e.Close()
	var problems []error
	for _, l := range h.links {
		features, err := e.Features(l.name)
		if err != nil {
			return fmt.Errorf("read features of %s: %w", l.name, err)
		}
		for _, name := range mergingFeatures {
			if features["rx-gro"] && features[name] {
				problems = append(problems, fmt.Errorf("interface %s merges UDP packets (%s), and GUE packets with UDP checksums are "+
					"lost to the VIPs; turn it off (ethtool -K %s %s off), or let nodes send no checksums", l.name, name, l.name, name))
			}
		}
	}
	return errors.Join(problems...)
}
