//go:build linux

package forwarder

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/forwarder/steer"
)

const (
	// banTime is how long the XDP program drops what a source sends that is far over its limit. Then its packets are looked at
	// again, and if nothing has changed it is banned again after a few.
	banTime = 10 * time.Second
	// banPeriod is how often bans that are over are taken away.
	banPeriod = time.Second
)

// newACL is the lists of a spec as the XDP program takes them.
func newACL(spec *Spec) *steer.ACL {
	acl := &steer.ACL{Global: spec.ACL}
	for i := range spec.Services {
		s := &spec.Services[i]
		if len(s.ACL) == 0 {
			continue
		}
		list := steer.List{Name: s.Name, VIP: s.VIP.Unmap(), Proto: s.Protocol, Entries: s.ACL}
		for _, p := range s.Ports {
			list.Ports = append(list.Ports, steer.PortRange{First: p.First, Last: p.Last})
		}
		acl.Lists = append(acl.Lists, list)
	}
	return acl
}

// followFloods switches the defences of services, and has the XDP program drop sources that are far over their limits.
func (n *Node) followFloods(ctx context.Context) {
	// They go only while there is something to look at: what wakes an idle node costs it more than what it then does.
	detect, expire := time.NewTicker(detectPeriod), time.NewTicker(banPeriod)
	defer detect.Stop()
	defer expire.Stop()
	expire.Stop()
	banned, failed := 0, 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-detect.C:
			for _, c := range n.Detect() {
				if c.Began {
					n.log.Warn("flood of SYNs", "service", c.Service, "syn_defence", c.Defence.String(), "answer", c.Answer, "syns_per_second", int(c.Rate),
						"most_from", n.mostFrom(TopSYNs), "most_packets_from", n.mostFrom(TopPrefixes))
				} else {
					n.log.Info("the flood of SYNs is over", "service", c.Service, "lasted", c.Lasted.Round(100*time.Millisecond),
						"syns", c.SYNs, "answered", c.Challenged, "proofs", c.Proofs,
						"most_from", n.mostFrom(TopSYNs), "most_packets_from", n.mostFrom(TopPrefixes))
				}
				n.tell(c.notice())
			}
			if !n.defends() {
				detect.Stop()
			}
		case <-n.applied:
			detect.Reset(detectPeriod)
		case source := <-n.bans:
			if err := n.ban(source); err != nil {
				// One line, not one for each source: the workers refuse their packets as before.
				if failed++; failed == 1 {
					n.log.Warn("a source cannot be dropped in the XDP program", "error", err)
				}
				continue
			}
			if banned == 0 {
				expire.Reset(banPeriod)
				n.log.Warn("a source is far over its limit, and dropped in the XDP program for a while", "source", source, "seconds", banTime.Seconds())
			}
			banned++
		case <-expire.C:
			left, err := n.steer.ExpireBans(n.clock())
			if err != nil {
				n.log.Warn("end bans", "error", err)
			}
			if banned, failed = left, 0; banned == 0 {
				expire.Stop()
			}
		}
	}
}

// tell tells who wants to know what has begun or ended.
func (n *Node) tell(x Notice) {
	if n.config.Notice != nil {
		n.config.Notice(x)
	}
}

// notice puts c into words.
func (c *FloodChange) notice() Notice {
	if c.Began {
		return Notice{c.Service, true, fmt.Sprintf("flood of SYNs, %d a second: they are answered with a %s", int(c.Rate), c.Answer)}
	}
	return Notice{c.Service, false, fmt.Sprintf("the flood of SYNs is over, after %v: %d SYNs, %d answered, %d proofs",
		c.Lasted.Round(100*time.Millisecond), c.SYNs, c.Challenged, c.Proofs)}
}

// mostFrom is the three sources, or prefixes, that do most of something, with their shares: forged ones have next to none.
func (n *Node) mostFrom(by Top) string {
	top, total := n.TopSources(by)
	var texts []string
	for _, c := range top[:min(3, len(top))] {
		texts = append(texts, fmt.Sprintf("%s (%.1f %%)", by.Name(c), 100*float64(c.N)/float64(max(total, 1))))
	}
	return strings.Join(texts, ", ")
}

func (n *Node) ban(source netip.Addr) error {
	return n.steer.Ban(source, n.clock()+int64(banTime))
}
