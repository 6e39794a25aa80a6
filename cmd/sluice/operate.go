//go:build linux

package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/internal/control"
)

func reloadCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "reload",
		Short: "Have the daemon read its configuration again",
		Long:  "Have the daemon read its configuration again. A file with a mistake is refused whole, and the one before stays in force.",
		Args:  cobra.NoArgs,
	}
	socket := socketFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		client := control.NewClient(*socket)
		defer client.Close()
		r, err := client.Reload(c.Context())
		if err != nil {
			return err
		}
		for _, w := range r.Warnings {
			fmt.Fprintln(c.ErrOrStderr(), "warning:", w)
		}
		for _, t := range r.Tables {
			fmt.Fprintf(c.OutOrStdout(), "service %s: %d of %d entries of the lookup table moved%s\n", t.Service, t.Moved, t.Size, overLeast(t))
		}
		for _, n := range r.Notes {
			fmt.Fprintln(c.ErrOrStderr(), "note:", n)
		}
		what := "nothing changed"
		if r.Changed {
			what = "in force"
		}
		fmt.Fprintf(c.OutOrStdout(), "configuration %s, generation %d: %s\n", r.Hash, r.Generation, what)
		return nil
	}
	return c
}

// overLeast compares what a change of a lookup table moved with the least that it had to.
func overLeast(t control.TableChange) string {
	switch {
	case t.Moved == t.Least:
		return ", no more than had to"
	case t.Least == 0:
		return "; none had to"
	}
	return fmt.Sprintf(", %.2f times the least possible", float64(t.Moved)/float64(t.Least))
}

func statusCommand() *cobra.Command {
	var asJSON, attack, watch bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what the daemon does: interfaces, workers, services, backends, health, drops",
		Args:  cobra.NoArgs,
	}
	socket := socketFlag(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print everything, as JSON")
	c.Flags().BoolVar(&attack, "attack", false, "show what is dropped, limited and challenged a second, and who sends most")
	c.Flags().BoolVar(&watch, "watch", false, "with --attack: again every second, until Ctrl-C")
	c.MarkFlagsMutuallyExclusive("json", "attack")
	c.RunE = func(c *cobra.Command, _ []string) error {
		client := control.NewClient(*socket)
		defer client.Close()
		if attack {
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			return showAttack(ctx, c.OutOrStdout(), client, watch)
		}
		s, err := client.Status(c.Context())
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(c.OutOrStdout(), s)
		}
		return printStatus(c.OutOrStdout(), s)
	}
	return c
}

// printStatus prints a status for a person: what is wrong first, then tables.
func printStatus(out io.Writer, s control.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	ready := "ready"
	if !s.Ready {
		ready = "NOT READY: " + s.NotReady
	}
	fmt.Fprintf(w, "%s, sluice %s, up %s, %s\n", s.Node, s.Version, time.Since(s.Started).Round(time.Second), ready)
	fmt.Fprintf(w, "configuration %s, generation %d, %s\n", s.Config.Hash, s.Config.Generation, s.Config.File)
	if len(s.Config.Refused) > 0 {
		fmt.Fprintf(w, "the last reload was refused, an older configuration is in force: %s\n", s.Config.Refused[0])
	}
	fmt.Fprint(w, healthLine(&s.Health))

	fmt.Fprint(w, "\nINTERFACE\tSTATE\tXDP\tQUEUE\tWORKER\tMODE\tRECEIVED\tSENT\tRING DROPS\n")
	var fast, slow []string
	for _, i := range s.Traffic.Interfaces {
		state := "up"
		if !i.Up {
			state = "down"
		}
		if i.Problem != "" {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", i.Name, state, i.Attach, i.Problem)
		}
		if i.FastPath {
			fast = append(fast, i.Name)
		} else if i.FastPathCause != "" {
			slow = append(slow, fmt.Sprintf("%s: %s", i.Name, i.FastPathCause))
		}
		for _, q := range i.Queues {
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\t%d\t%d\t%d\n", i.Name, state, i.Attach, q.Queue, q.Worker, q.Mode, q.Received, q.Sent, q.RXDropped+q.RXRingFull)
		}
	}

	if len(fast) > 0 {
		fmt.Fprintf(w, "fast path on %s, %d packets forwarded\n", strings.Join(fast, ", "), s.Traffic.Steer.Forwarded)
	}
	for _, why := range slow {
		fmt.Fprintf(w, "no fast path on %s\n", why)
	}

	for _, v := range s.Traffic.Services {
		note := ""
		for _, n := range []struct {
			holds bool
			text  string
		}{
			{v.FailOpen && v.Quorum.Have == 0, "health is ignored: it would leave no backend"},
			{v.FailOpen && v.Quorum.Have > 0, fmt.Sprintf("health is ignored: it would leave %d of %d backends", v.Quorum.Have, v.Wanted)},
			{v.EjectionsIgnored, "ejections are ignored: all that are alive are ejected"},
			{v.ReadinessIgnored, "readiness is ignored: none that is alive is ready"},
			{len(fast) > 0 && v.NoFastPath != "", "no fast path: " + v.NoFastPath},
			{!v.Quorum.Met, fmt.Sprintf("quorum lost: %d of %d are alive", v.Quorum.Have, v.Quorum.Need)},
		} {
			if n.holds {
				note += "  (" + n.text + ")"
			}
		}
		fmt.Fprintf(w, "\n%s  %s %s:%s  %s  %s, table %s  %d flows%s\n", v.Name, v.Protocol, v.VIP, v.Ports, v.Forward, v.Scheduler, v.TableHash, v.Flows, note)
		fmt.Fprint(w, "BACKEND\tADDRESS\tWEIGHT\tTAKES\tHEALTH\tHOP\tPACKETS\tBYTES\tNEW FLOWS\tFLOWS\tLONGEST IDLE\n")
		for _, b := range v.Backends {
			takes := takes(&b)
			switch {
			case b.Hand.InMaintenance():
				takes += " (maintenance)"
			case b.Hand.Drained():
				takes += " (by hand)"
			}
			weight := strconv.Itoa(b.Weight)
			if b.Leaving {
				weight = "-"
			}
			idle := "-"
			if b.Flows > 0 {
				idle = seconds(b.LongestIdle)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\n", b.Name, b.Address, weight, takes, healthOfStatus(&b.Health), b.Hop, b.Forwarded.Packets, b.Forwarded.Bytes, b.NewFlows, b.Flows, idle)
		}
		printDropped(w, v.Dropped)
		if v.Cookies != "" {
			fmt.Fprintf(w, "SYN cookies: %s\n", v.Cookies)
		}
	}

	t := s.Traffic.Table
	fmt.Fprintf(w, "\nflow table: %d MiB for %d flows; %d now; %d established, %d on probation, %d closing at the last sweep; %d inserted, %d evicted alive, %d refused\n",
		t.Bytes>>20, t.Words/2, t.Flows, t.Established, t.Probation, t.Closing, t.Inserted, t.Evicted.Live(), t.Refused)
	var received, forwarded, answered, generated, held uint64
	dropped := control.Dropped{}
	for _, x := range s.Traffic.Workers {
		received += x.Received
		forwarded += x.Forwarded
		answered += x.Answered
		generated += x.Generated
		held += x.Held
		for reason, n := range x.Dropped {
			dropped[reason] += n
		}
		if x.Restarts > 0 {
			fmt.Fprintf(w, "worker %d was started again %d times after a fault; see the log\n", x.ID, x.Restarts)
		}
	}
	steer := s.Traffic.Steer
	fmt.Fprintf(w, "to VIPs: %d packets, from NAT backends: %d; %d received, %d forwarded, %d answered, %d held; %d more were sent\n",
		steer.ToVIPs, steer.Replies, received, forwarded, answered, held, generated)
	for reason, n := range map[packet.Reason]uint64{
		packet.NoSocket: steer.NoSocket, packet.NoExit: steer.NoExit, packet.NoDaemon: steer.NoDaemon, packet.Loop: steer.Loops, packet.Denied: steer.Denied, packet.Banned: steer.Banned,
		packet.Shed: steer.Shed,
	} {
		if n > 0 {
			dropped[reason.String()] = n
		}
	}
	printDropped(w, dropped)
	return w.Flush()
}

// healthOfStatus tells the health of a backend, and what is wrong with it.
func healthOfStatus(h *control.Health) string {
	switch {
	case h.State == control.StateDown && h.Evidence != "":
		return "down: " + h.Evidence
	case h.State.Alive() && h.EjectedMS > 0:
		return "ejected: " + h.Ejected
	case h.State.Alive() && h.Unready != "":
		return "unready: " + h.Unready
	case h.State.Alive() && h.Asks != nil:
		return fmt.Sprintf("%s, asks for %d %%", h.State, *h.Asks)
	}
	return string(h.State)
}

func printDropped(w io.Writer, d control.Dropped) {
	if len(d) == 0 {
		return
	}
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(d)) {
		parts = append(parts, fmt.Sprintf("%s %d", reason, d[reason]))
	}
	fmt.Fprintf(w, "dropped: %s\n", strings.Join(parts, ", "))
}
