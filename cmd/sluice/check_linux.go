//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
)

// agentsTimeout is how long sluice check waits for the answers of agents.
const agentsTimeout = 3 * time.Second

func checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration file: exit status 0 if it is good, else 1",
		Long: `Check a configuration file. The exit status is 0 if it is good, else 1.

On a machine that has the file's interfaces, addresses and MTUs are checked too: a node cannot be its own backend, and
outer headers need room on the way to the backends. Elsewhere, a warning says what was not checked. Agents of services with
syn_defence: cookie are asked whether they accept cookies, for three seconds at the most; what is wrong is a warning.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, warnings, err := loadHere(args[0])
			for _, w := range warnings {
				fmt.Fprintln(c.ErrOrStderr(), "warning:", w)
			}
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), agentsTimeout)
			defer cancel()
			for _, problem := range control.AskAgents(ctx, cfg) {
				fmt.Fprintln(c.ErrOrStderr(), "warning:", problem)
			}
			backends := 0
			for i := range cfg.Services {
				backends += len(cfg.Services[i].Backends)
			}
			for _, note := range control.FastPathNotes(cfg) {
				fmt.Fprintln(c.OutOrStdout(), note)
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: good, %d services, %d backends, hash %s\n", args[0], len(cfg.Services), backends, cfg.Hash())
			return nil
		},
	}
}

// loadHere reads a configuration for this machine: what sluice check refuses here, the daemon refuses too.
func loadHere(file string) (*config.Config, []config.Warning, error) {
	machine, err := thisMachine()
	if err != nil {
		return nil, nil, err
	}
	return config.LoadFor(file, machine)
}

// thisMachine is the machine, or network namespace, that the calling thread is on. It needs no privilege.
func thisMachine() (*config.Machine, error) {
	var links []netlink.Link
	err := error(netlink.ErrDumpInterrupted)
	for range 10 {
		if links, err = netlink.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	byIndex, mtus := make(map[int]netlink.Link), make(map[string]int)
	for _, l := range links {
		byIndex[l.Attrs().Index], mtus[l.Attrs().Name] = l, l.Attrs().MTU
	}
	mtu := func(name string) (mtu int, exists bool) {
		mtu, exists = mtus[name]
		return mtu, exists
	}
	way := func(a netip.Addr) config.Way {
		routes, err := netlink.RouteGet(net.IP(a.AsSlice()))
		if err != nil || len(routes) == 0 {
			return config.Way{} // unreachable, a blackhole …
		}
		r := &routes[0]
		link := byIndex[r.LinkIndex]
		switch {
		case r.Type == unix.RTN_LOCAL:
			return config.Way{Local: true}
		case r.Type != unix.RTN_UNICAST || link == nil:
			return config.Way{}
		}
		w := config.Way{Interface: link.Attrs().Name, MTU: link.Attrs().MTU}
		if r.MTU > 0 {
			w.MTU = min(w.MTU, r.MTU)
		}
		if below := byIndex[link.Attrs().ParentIndex]; link.Type() == "vlan" && below != nil {
			w.Interface = below.Attrs().Name
		}
		return w
	}
	multiBuffer := func(name string) bool {
		for index, l := range byIndex {
			if l.Attrs().Name == name {
				return takesMultiBuffer(index)
			}
		}
		return false
	}
	return &config.Machine{MTU: mtu, MultiBuffer: multiBuffer, Way: way}, nil
}

// Numbers of the netdev family (include/uapi/linux/netdev.h).
const (
	netdevGet            = 1      // NETDEV_CMD_DEV_GET
	netdevIfindex        = 1      // NETDEV_A_DEV_IFINDEX
	netdevXDPFeatures    = 3      // NETDEV_A_DEV_XDP_FEATURES
	xdpReceivesFragments = 1 << 5 // NETDEV_XDP_ACT_RX_SG
)

// takesMultiBuffer asks the kernel whether a driver runs XDP programs on packets in several buffers: XDP features of the
// netdev family (Documentation/netlink/specs/netdev.yaml), Linux 6.3. An older kernel does not answer, and cannot.
func takesMultiBuffer(ifindex int) bool {
	family, err := netlink.GenlFamilyGet("netdev")
	if err != nil {
		return false
	}
	req := nl.NewNetlinkRequest(int(family.ID), 0)
	// Not nl.Genlmsg: it leaves the two reserved bytes of the header to chance, and this family insists on zeroes.
	header := []byte{netdevGet, 1, 0, 0}
	req.AddRawData(append(header, nl.NewRtAttr(netdevIfindex, nl.Uint32Attr(uint32(ifindex))).Serialize()...))
	answers, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil || len(answers) != 1 || len(answers[0]) < nl.SizeofGenlmsg {
		return false
	}
	attrs, err := nl.ParseRouteAttr(answers[0][nl.SizeofGenlmsg:])
	if err != nil {
		return false
	}
	for _, a := range attrs {
		if a.Attr.Type == netdevXDPFeatures && len(a.Value) == 8 {
			return binary.NativeEndian.Uint64(a.Value)&xdpReceivesFragments != 0
		}
	}
	return false
}
