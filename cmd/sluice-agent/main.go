//go:build linux

// Command sluice-agent runs on a backend: it takes off the IP-in-IP or GUE headers that Sluice's nodes put around
// clients' packets, and makes the host answer for the VIPs. See package internal/agent for what it changes on the host.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/agent"
	"github.com/sluice-lb/sluice/internal/agent/capability"
	"github.com/sluice-lb/sluice/internal/cli"
)

// version is set by the build: -ldflags "-X main.version=…".
var version = "development"

func main() {
	if err := command().Execute(); err != nil {
		// run may have several errors to tell, one a line.
		fmt.Fprintln(os.Stderr, "sluice-agent: "+strings.ReplaceAll(err.Error(), "\n", "\nsluice-agent: "))
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "sluice-agent",
		Short:         "Answer for Sluice's VIPs on a backend",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(runCommand(), statusCommand(), cli.VersionCommand("sluice-agent", version))
	return root
}

const runHelp = `Answer for VIPs on this host until SIGTERM or SIGINT, then undo all that was changed.

IP-in-IP and GUE packets (4in4, 6in4, 4in6, 6in6) that arrive on the interfaces, are sent to one of their addresses and
carry a packet to a VIP are unwrapped in BPF at tc ingress, before netfilter: a firewall sees the inner packets.
Everything else is left alone. GUE is IP directly over UDP (variant 1 of the draft), to --gue-port; its UDP checksum may
be zero, over IPv6 too, and is not verified: the inner packet has its own. GUE packets with checksums must not be merged
by the interface (ethtool -K NAME rx-udp-gro-forwarding off rx-gro-list off, the default): merged ones are left alone.

SYN-ACKs from the VIPs that leave by the interfaces offer an MSS no larger than --clamp-mss, so that clients' packets
still fit with a node's header around them: auto is the smallest MTU of the interfaces less 88 over IPv4, less 108 over
IPv6 (1412 and 1392 at an MTU of 1500), and follows it; off is for networks with larger packets between node and backend.

With --cookie-seed, a copy of the file that group.seed_file of the nodes names, the host takes over connections that nodes
began by SYN cookies: the client's first segment that carries a valid one makes the connection, as if the host had made the
handshake itself. This needs Linux 6.9 and CAP_PERFMON, clocks that differ by less than 30 seconds (NTP), and a listener
that is not MPTCP, as those of Go programs are by default (GODEBUG=multipathtcp=0, or sysctl net.mptcp.enabled=0). If sysctl
net.ipv4.tcp_syncookies is 0 it is set to 1. A firewall on the host must not drop what conntrack calls invalid (sysctl
net.netfilter.nf_conntrack_tcp_loose=1, the default).

Behind a service with forward: nat the node rewrites what clients send to a VIP to an address and port of this host, but its
cookies are made with the VIP. --nat 192.0.2.10:80=10.0.0.11:8080 says that connections to port 8080 of this host's 10.0.0.11
were to port 80 of the VIP; each address and port stands for one VIP and port. With --nat alone, without --vip, nothing is
decapsulated or clamped, and nothing else on the host is changed but tcp_syncookies.

Nodes agree with clients to TCP options in the host's name. Their health daemons ask the agent, over HTTP at --listen, which
ones it takes: those that are not off by net.ipv4.tcp_window_scaling, tcp_sack, tcp_timestamps or tcp_ecn. The answer also
tells the VIPs, the program's version, the time, and the name of the secret, but nothing secret. Nobody can ask at a VIP, and
with --source only those sources and the host itself can: they have to include the addresses of the nodes. With --listen off, or nodes without a
health daemon, the four sysctls must not be 0.

The VIPs are put on the loopback device (one that is there already stays, also at the end). For IPv4 VIPs ARP is kept
quiet (arp_ignore=1, arp_announce=2, on "all" and the interfaces), and where rp_filter is strict it is made loose on
the interfaces.

What is changed is recorded in the state directory. If the agent is killed, the host goes on serving, and the next
agent takes over and restores at its end what was there before the first. One agent runs in a network namespace; give
it all interfaces.

Needs Linux 6.6 (6.9 for SYN cookies), CAP_BPF and CAP_NET_ADMIN; CAP_SYS_ADMIN to take over from a killed agent.`

func runCommand() *cobra.Command {
	var vips, nats, interfaces, addresses, sources []string
	var stateDir, clampMSS, cookieSeed, listen string
	var guePort uint16
	var newLog func() (*slog.Logger, error)
	c := &cobra.Command{
		Use:   "run --interface NAME [--vip ADDRESS] [--nat VIP:PORT=ADDRESS:PORT]",
		Short: "Answer for VIPs until stopped",
		Long:  runHelp,
		Example: "  sluice-agent run --vip 192.0.2.10 --vip 2001:db8::10 --interface eth0\n" +
			"  sluice-agent run --vip 192.0.2.10 --interface eth0 --source 10.0.0.0/24\n" +
			"  sluice-agent run --nat 192.0.2.10:80=10.0.0.11:8080 --interface eth0 --cookie-seed /etc/sluice/group.key",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			log, err := newLog()
			if err != nil {
				return err
			}
			cfg := agent.Config{Version: version, Interfaces: interfaces, GUEPort: guePort, CookieSeed: cookieSeed, StateDir: stateDir, Log: log}
			if listen != "off" && (cookieSeed != "" || c.Flags().Changed("listen")) {
				cfg.Listen = listen
			}
			var errs [5]error
			cfg.VIPs, errs[0] = parse("--vip", vips, netip.ParseAddr)
			cfg.Addresses, errs[1] = parse("--address", addresses, netip.ParseAddr)
			cfg.Sources, errs[2] = parse("--source", sources, parsePrefix)
			if cfg.ClampMSS, err = agent.ParseClampMSS(clampMSS); err != nil {
				errs[3] = fmt.Errorf("--clamp-mss %q: %w", clampMSS, err)
			}
			cfg.NAT, errs[4] = parse("--nat", nats, agent.ParseNAT)
			if err := errors.Join(errs[:]...); err != nil {
				return err
			}

			// The second signal ends the program at once.
			ctx, stop := signal.NotifyContext(c.Context(), unix.SIGTERM, os.Interrupt)
			defer stop()
			context.AfterFunc(ctx, func() {
				stop()
				cli.Notify(log, cli.Stopping)
			})
			return agent.Run(ctx, cfg, func() { cli.Notify(log, cli.Ready) })
		},
	}
	f := c.Flags()
	f.StringSliceVar(&vips, "vip", nil, "VIP to answer for (repeatable)")
	f.StringSliceVar(&nats, "nat", nil, "VIP:PORT=ADDRESS:PORT: take SYN cookies of VIP and port at an address and port of this host (repeatable)")
	f.StringSliceVar(&interfaces, "interface", nil, "interface on which packets from nodes arrive (repeatable)")
	f.StringSliceVar(&addresses, "address", nil, "address of this host that nodes send to (repeatable; default all of the interfaces', followed as they change)")
	f.StringSliceVar(&sources, "source", nil, "address or prefix that nodes send and ask from; others are dropped (repeatable; default any)")
	f.Uint16Var(&guePort, "gue-port", agent.DefaultGUEPort, "UDP port that nodes send GUE to; 0 takes none")
	f.StringVar(&clampMSS, "clamp-mss", "auto", "largest MSS in SYN-ACKs from the VIPs: auto, off, or bytes")
	f.StringVar(&cookieSeed, "cookie-seed", "", "copy of the nodes' seed file, to take over connections that they began by SYN cookies (default: none are)")
	f.StringVar(&listen, "listen", fmt.Sprintf(":%d", capability.DefaultPort), "with --cookie-seed, address and TCP port to be asked at by health daemons; off for none")
	stateDirFlag(c, &stateDir)
	newLog = cli.LogFlags(c)
	if err := c.MarkFlagRequired("interface"); err != nil {
		panic(err) // the flag is defined above
	}
	return c
}

func statusCommand() *cobra.Command {
	var stateDir string
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what the agent of this network namespace does, and its counters",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			st, err := agent.ReadStatus(stateDir)
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(c.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(st)
			}
			return printStatus(c.OutOrStdout(), st)
		},
	}
	stateDirFlag(c, &stateDir)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func stateDirFlag(c *cobra.Command, dir *string) {
	c.Flags().StringVar(dir, "state-dir", agent.DefaultStateDir, "where changes are recorded; should not outlive a reboot")
}

func printStatus(out io.Writer, st agent.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	state := fmt.Sprintf("running (pid %d)", st.PID)
	if !st.Running {
		state = fmt.Sprintf("killed (pid %d), its changes still work; start the agent to keep or undo them", st.PID)
	}
	fmt.Fprintf(w, "agent\t%s\n", state)
	fmt.Fprintf(w, "interfaces\t%s\n", strings.Join(st.Interfaces, ", "))
	for _, vip := range st.VIPs {
		fmt.Fprintf(w, "VIP\t%s\n", vip)
	}
	for _, m := range st.NAT {
		fmt.Fprintf(w, "NAT\t%s\n", m)
	}
	gue, clamp, listen := "off", "off", "off"
	if st.GUEPort != 0 {
		gue = fmt.Sprintf("UDP port %d", st.GUEPort)
	}
	if st.ClampMSS != (agent.MSS{}) {
		clamp = fmt.Sprintf("%d (IPv4), %d (IPv6)", st.ClampMSS.IPv4, st.ClampMSS.IPv6)
	}
	if st.Listen != "" {
		listen = st.Listen
	}
	fmt.Fprintf(w, "GUE\t%s\n", gue)
	fmt.Fprintf(w, "largest MSS\t%s\n", clamp)
	fmt.Fprintf(w, "SYN cookies\t%s\n", map[bool]string{false: "off", true: "accepted"}[st.Cookies])
	fmt.Fprintf(w, "asked at\t%s\n", listen)
	for _, s := range st.Sysctls {
		fmt.Fprintf(w, "sysctl\t%s\n", s)
	}
	p := st.Packets
	type row struct {
		name string
		n    uint64
	}
	rows := []row{
		{"decapsulated IPv4", p.DecapsulatedIPv4},
		{"decapsulated IPv6", p.DecapsulatedIPv6},
		{"left alone: not to a VIP", p.NotVIP},
		{"left alone: outer fragment", p.Fragment},
		{"left alone: malformed", p.Malformed},
		{"left alone: merged by the interface", p.Merged},
		{"dropped: source not allowed", p.Source},
		{"dropped: ECN (RFC 6040)", p.ECN},
		{"dropped: refused by the kernel", p.Failed},
		{"SYN-ACKs with a lowered MSS", p.Clamped},
	}
	if st.Cookies {
		rows = append(rows, []row{
			{"SYN cookies: accepted", p.CookieAccepted},
			{"SYN cookies: invalid, or none", p.CookieBad},
			{"SYN cookies: ended TIME_WAIT first", p.CookieTimeWait},
			{"SYN cookies: refused (MPTCP listener?)", p.CookieRefused},
			{"SYN cookies: no memory", p.CookieNoMemory},
			{"SYN cookies: other error", p.CookieFailed},
		}...)
	}
	for _, row := range rows {
		fmt.Fprintf(w, "%s\t%d\n", row.name, row.n)
	}
	return w.Flush()
}

// parse parses all values of a flag and tells all that are wrong.
func parse[T any](flag string, values []string, f func(string) (T, error)) ([]T, error) {
	var out []T
	var problems []error
	for _, s := range values {
		v, err := f(s)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s %q: %w", flag, s, err))
			continue
		}
		out = append(out, v)
	}
	return out, errors.Join(problems...)
}

// parsePrefix takes an address for the prefix that holds it alone.
func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Prefix(a.BitLen())
	}
	return netip.ParsePrefix(s)
}
