//go:build linux

// Package agent is what runs on a backend behind Sluice: it takes off the IP-in-IP or GUE headers that nodes put around
// clients' packets, and makes the host fit to answer for a VIP that it does not own alone (direct server return).
//
// Five things are changed on the host, by [Run], and all are undone when it returns:
//
//   - A BPF program at the tc ingress (tcx) of each interface, in bpf/decap.h. It comes first there, so that whatever
//     else looks at packets (other tcx programs, nftables, sockets) sees them as the clients sent them.
//   - A BPF program at the tc egress of each interface, in bpf/clamp.h, unless clamping is off. It lowers the MSS that
//     SYN-ACKs from the VIPs offer, so that a client's full segment still fits the network behind the node with the
//     node's header around it. It comes first there too. Answers that leave by another interface are not seen.
//   - With a seed of SYN cookies the ingress program also makes connections of the cookies that nodes answered SYNs with
//     (bpf/accept.h). The kernel does so only with tcp_syncookies, a sysctl that is set to 1 where it is 0. A backend that nodes
//     translate to (forward: nat) may have this alone: it is told which VIP and port each address and port of its own stands for,
//     and without VIPs none of the rest is done.
//   - The VIPs are addresses of the loopback device, so that the kernel takes packets to them as its own. IPv4 VIPs have
//     scope host and IPv6 VIPs are deprecated: neither is chosen as the source of the host's own connections.
//   - More sysctls, for IPv4 VIPs only. arp_ignore = 1 and arp_announce = 2, on `all` and on the interfaces: otherwise the
//     host would answer ARP for the VIP, or tell its neighbours about it, and draw traffic past the node. rp_filter = 2
//     (loose) on the interfaces, only where the strict filter is on: it drops packets of clients that the host would
//     reach through another interface. A setting that is good already is left as it is.
//
// IPv6 needs no sysctl: the kernel answers neighbour solicitations only for addresses of the interface that they
// arrive on (ndisc_recv_ns in net/ipv6/ndisc.c), and has no reverse path filter outside netfilter.
//
// The changes are written to a file before they are made. An agent that is killed leaves them all in place, and the
// backend goes on serving; the next one finds the file, takes the programs' place without a gap, and at its end
// restores what was there before the first. One agent runs in a network namespace, for all of its interfaces, since
// loopback and the `all` sysctls are one for all of them.
//
// An agent that accepts cookies can be asked which, over HTTP (package capability): nodes agree with clients to TCP options in the
// host's name, so the health daemon asks for its sysctls, its VIPs, its clock and the name of its secret.
//
// Everything runs on the goroutine that calls Run, but for those of the HTTP server, which read what Run's leaves for them (teller).
// Memory: the BPF maps belong to the kernel; Run's own state is on its stack. All netlink and /proc/sys access is to the network
// namespace of the calling thread.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/internal/agent/capability"
)

// DefaultStateDir is where an agent keeps what it changed: on a file system that a reboot clears, as it does the changes.
const DefaultStateDir = "/run/sluice-agent"

// DefaultGUEPort is the UDP port that IANA assigned to GUE.
const DefaultGUEPort = 6080

// pollInterval bounds how long a change of the interface's addresses or MTU, or a VIP that somebody removed, goes unnoticed.
const pollInterval = 2 * time.Second

// Config says what an agent is to do.
type Config struct {
	// Version of the program, told to those who ask.
	Version string
	// VIPs to answer for; at least one, unless there is NAT.
	VIPs []netip.Addr
	// NAT tells which VIP and port the connections to an address and TCP port of this host were to before a node rewrote their
	// destination (forward: nat), for SYN cookies. Each Local is there once.
	NAT []capability.Mapping
	// Interfaces on which packets from nodes arrive; at least one. They have to be Ethernet-like.
	Interfaces []string
	// Addresses to which nodes send encapsulated packets. Empty: all addresses of Interfaces, followed as they change.
	Addresses []netip.Addr
	// Sources from which encapsulated packets are taken: where nodes send from. Empty: any. Whoever can send from one of
	// them, or forge it, can inject packets with any client's address past filters that do not look inside tunnels.
	Sources []netip.Prefix
	// GUEPort is the UDP destination port of GUE packets to take (variant 1 of draft-ietf-intarea-gue: IP directly over
	// UDP), most often DefaultGUEPort. 0: IP-in-IP only. Packets to it that are not GUE around a packet to a VIP go to
	// the host's sockets as before.
	GUEPort uint16
	// ClampMSS is the largest MSS in bytes that SYN-ACKs from the VIPs leave with, over IPv4 and IPv6; ClampOff for none.
	// ClampAuto: the smallest MTU of Interfaces less 48 (outer IPv6 and UDP headers, the most that nodes add) and less 40
	// over IPv4 or 60 over IPv6, followed as the MTU changes, but at least 536.
	ClampMSS int
	// CookieSeed is the path of a copy of the nodes' seed file (group.seed_file). With it the host takes over connections that
	// nodes began by SYN cookies; needs Linux 6.9. Empty: it does not.
	CookieSeed string
	// Listen is the address and TCP port, ADDRESS:PORT or :PORT for all addresses, at which the agent tells those who ask what it
	// accepts (package capability): anybody, or Sources and the host itself, but not at a VIP. Only with CookieSeed. Empty: none.
	Listen string
	// StateDir holds what was changed. Empty: DefaultStateDir.
	StateDir string
	// Log takes what the operator should know. It must not be nil.
	Log *slog.Logger
}

// normalize checks the config, unmaps addresses and fills in defaults; all problems are in the error.
func (c *Config) normalize() error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }

	unmap := func(what string, in []netip.Addr) []netip.Addr {
		var out []netip.Addr
		for _, a := range in {
			switch a = a.Unmap(); {
			case unfit(a) != "":
				bad("%s %s: %s", what, a, unfit(a))
			case slices.Contains(out, a):
				bad("%s %s: given twice", what, a)
			default:
				out = append(out, a)
			}
		}
		return out
	}
	c.VIPs = unmap("VIP", c.VIPs)
	c.Addresses = unmap("address", c.Addresses)
	c.NAT = normalizeNAT(c.NAT, c.VIPs, bad)
	if len(c.VIPs)+len(c.NAT) == 0 && len(problems) == 0 {
		bad("no VIP given: at least one --vip or --nat is needed")
	}
	if c.CookieSeed == "" && len(c.NAT) > 0 {
		bad("--nat: it is for SYN cookies alone, which need --cookie-seed")
	}
	if c.Listen != "" {
		if err := checkListen(c.Listen, c.VIPs); err != nil {
			bad("--listen %s: %w", c.Listen, err)
		} else if c.CookieSeed == "" {
			bad("--listen %s: nodes ask about SYN cookies, which need --cookie-seed", c.Listen)
		}
	}
	for _, a := range c.Addresses {
		if slices.Contains(c.VIPs, a) {
			bad("address %s: is a VIP; nodes send to an address of this host alone", a)
		}
	}
	c.Interfaces = slices.Clone(c.Interfaces)
	if len(c.Interfaces) == 0 {
		bad("no interface given: at least one is needed")
	}
	for i, name := range c.Interfaces {
		if slices.Contains(c.Interfaces[:i], name) {
			bad("interface %s: given twice", name)
		}
	}
	c.Sources = slices.Clone(c.Sources)
	for i, p := range c.Sources {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		if !p.IsValid() {
			bad("source %s: not a prefix", p)
		}
		c.Sources[i] = p.Masked()
	}
	slices.SortFunc(c.Sources, netip.Prefix.Compare)
	c.Sources = slices.Compact(c.Sources)
	if c.ClampMSS != ClampAuto && c.ClampMSS != ClampOff && (c.ClampMSS < minMSS || c.ClampMSS > maxMSS) {
		bad("MSS %d: give auto, off, or bytes from %d to %d", c.ClampMSS, minMSS, maxMSS)
	}
	if len(c.VIPs) == 0 { // nothing comes in tunnels, and the host's own SYN-ACKs go back through the node
		c.GUEPort, c.ClampMSS = 0, ClampOff
	}
	if c.StateDir == "" {
		c.StateDir = DefaultStateDir
	}
	return errors.Join(problems...)
}

// unfit says why an address can be neither a VIP nor one that nodes send to; "" if it can.
func unfit(a netip.Addr) string {
	switch {
	case !a.IsValid() || a.Zone() != "" || !(a.IsGlobalUnicast() || a.IsLinkLocalUnicast()):
		return "not a unicast address of a host"
	case a.IsLinkLocalUnicast():
		return "link-local addresses cannot be routed to"
	}
	return ""
}

// anyIPv4 reports whether one of the addresses is IPv4.
func anyIPv4(addrs []netip.Addr) bool { return slices.ContainsFunc(addrs, netip.Addr.Is4) }

// Run sets the host up, calls ready (which may be nil) once packets are taken, and keeps the set-up true
// until ctx ends or an interface vanishes; then it undoes what it changed. It returns nil if ctx ended and everything
// was undone. On an error before ready nothing stays changed, except by a killed predecessor if the error came before
// its place was taken. Needs CAP_BPF and CAP_NET_ADMIN; to take a killed predecessor's place, CAP_SYS_ADMIN too.
func Run(ctx context.Context, cfg Config, ready func()) (err error) {
	if err := cfg.normalize(); err != nil {
		return err
	}
	log := cfg.Log

	store, err := openStore(cfg.StateDir)
	if err != nil {
		return err
	}
	defer store.close()
	prior, err := store.load()
	if err != nil {
		return err
	}
	h := &host{log: log, store: store, vips: cfg.VIPs, nat: cfg.NAT, listen: cfg.Listen, state: prior,
		tell: teller{version: cfg.Version, vips: append([]netip.Addr{}, cfg.VIPs...)}}
	if h.links, err = findLinks(cfg.Interfaces); err != nil {
		return err
	}

	// First what can fail without having changed anything.
	if err := h.readCookieSeed(cfg.CookieSeed); err != nil {
		return err
	}
	var asked *listener
	if cfg.Listen != "" {
		if asked, err = listen(cfg.Listen, cfg.VIPs, cfg.Sources); err != nil {
			return err
		}
		defer asked.Close()
	}
	p, err := loadPrograms(cfg.VIPs, cfg.NAT, cfg.Sources, h.secret)
	if err != nil {
		return err
	}
	defer p.close()
	local, err := h.localAddresses(cfg.Addresses)
	if err != nil {
		return err
	}
	if err := p.setAddresses(local); err != nil {
		return err
	}
	mtu, err := h.smallestMTU()
	if err != nil {
		return err
	}
	if err := p.setParameters(parameters{GUEPort: cfg.GUEPort, MSS: clampFor(cfg.ClampMSS, mtu)}); err != nil {
		return err
	}
	plan, err := h.plan()
	if err != nil {
		return err
	}
	takeovers, err := findPredecessors(h.links, prior.Programs)
	if err != nil {
		return err
	}
	defer takeovers.close()

	defer func() {
		if n, cerr := p.counters(); cerr == nil {
			log.Info("counted", "packets", n)
		}
		if uerr := h.undo(p); uerr != nil {
			err = errors.Join(err, fmt.Errorf("undo: %w", uerr))
		}
	}()
	if err := h.apply(plan); err != nil {
		return err
	}
	if err := h.attach(p, takeovers); err != nil {
		return err
	}
	if err := h.followCookies(p); err != nil {
		return err
	}
	if asked != nil {
		defer asked.serve(h.tell.answer, log)()
	}
	log.Info("taking packets", "vips", cfg.VIPs, "nat", cfg.NAT, "interfaces", cfg.Interfaces, "addresses", local,
		"sources", cfg.Sources, "gue_port", cfg.GUEPort, "clamp_mss", p.parameters.MSS, "cookies", h.secret != nil, "listen", cfg.Listen,
		"vips_added", h.state.Added, "sysctls_set", h.state.Settings)
	if len(local) == 0 && len(cfg.VIPs) > 0 {
		log.Warn("the interfaces have no address yet: encapsulated packets are taken as soon as one has")
	}
	if ready != nil {
		ready()
	}
	return h.keep(ctx, p, cfg, local)
}

// keep compares the host with what it should be, every pollInterval, until ctx ends (nil) or an interface has gone.
// Polling needs a few hundred microseconds a time and, unlike netlink's notices, cannot be overrun.
func (h *host) keep(ctx context.Context, p *programs, cfg Config, local []netip.Addr) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	told := "" // the problem that the log has already
	for {
		select {
		case <-ctx.Done():
			h.log.Info("stopping: undoing the changes")
			return nil
		case <-tick.C:
		}
		gone, err := h.goneLink()
		if gone != "" {
			return fmt.Errorf("interface %s has gone: start the agent again when it is back", gone)
		}
		if err == nil {
			local, err = h.follow(p, cfg.Addresses, local)
		}
		if err == nil {
			err = h.followMTU(p, cfg.ClampMSS)
		}
		if err == nil {
			err = h.restoreVIPs()
		}
		if err == nil {
			err = h.checkMerging(cfg.GUEPort)
		}
		// Whatever else is wrong: those who ask go by it.
		err = errors.Join(err, h.followCookies(p))
		switch {
		case err == nil:
			told = ""
		case err.Error() != told:
			told = err.Error()
			h.log.Warn("not all is as it should be: trying again until it is", "every", pollInterval, "error", err)
		}
	}
}

// follow gives the programs the addresses of the interfaces if they are no longer the local ones, and returns them.
func (h *host) follow(p *programs, fixed, local []netip.Addr) ([]netip.Addr, error) {
	now, err := h.localAddresses(fixed)
	if err != nil || slices.Equal(now, local) {
		return local, err
	}
	if err := p.setAddresses(now); err != nil {
		return local, err
	}
	h.log.Info("addresses changed", "addresses", now)
	return now, nil
}

// followMTU makes the clamp fit the MTU of the interfaces, if it is to.
func (h *host) followMTU(p *programs, config int) error {
	mtu, err := h.smallestMTU()
	if err != nil {
		return err
	}
	next := p.parameters
	next.MSS = clampFor(config, mtu)
	if next == p.parameters {
		return nil
	}
	if err := p.setParameters(next); err != nil {
		return err
	}
	h.log.Info("MTU changed", "mtu", mtu, "clamp_mss", next.MSS)
	return nil
}
