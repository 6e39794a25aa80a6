//go:build linux

package main

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-lb/sluice/internal/control"
)

func flowsCommand() *cobra.Command {
	var filter control.FlowFilter
	var top int
	var asJSON bool
	c := &cobra.Command{
		Use:   "flows [SRC:PORT VIP:PORT/PROTO]",
		Short: "Show whose flows are in the flow table, what becomes of one flow, or who opens most",
		Long: `Show whose flows are in the flow table: by service and backend, state, and how long they have had no packet. The
table is walked over once, while the workers go on.

With a source and a destination, tell about one flow: its word, and where its packets would go without one.

    sluice flows 198.51.100.7:51234 192.0.2.10:443/tcp

With --top, tell which sources have opened most of the flows that have a word, in the last minutes: an address of IPv4,
or a /64 of IPv6. The table itself holds no addresses, so this is a count on the side, in bounded memory.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 0 && len(args) != 2 {
				return fmt.Errorf("found %d arguments, expected none, or a source and a destination such as 198.51.100.7:51234 192.0.2.10:443/tcp", len(args))
			}
			return nil
		},
	}
	socket := socketFlag(c)
	f := c.Flags()
	f.StringVar(&filter.Service, "service", "", "only flows of this service")
	f.StringVar(&filter.Backend, "backend", "", "only flows of backends with this name")
	f.StringVar(&filter.State, "state", "", "only flows in this state: probation, established or closing")
	f.IntVar(&top, "top", 0, "show so many sources that open most flows")
	f.Lookup("top").NoOptDefVal = "20"
	f.BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		client := control.NewClient(*socket)
		defer client.Close()
		out := c.OutOrStdout()
		// show prints an answer, or its table.
		show := func(answer any, err error, table func() error) error {
			switch {
			case err != nil:
				return err
			case asJSON:
				return printJSON(out, answer)
			}
			return table()
		}
		switch {
		case len(args) == 2:
			q, err := parseFlow(args[0], args[1])
			if err != nil {
				return err
			}
			r, err := client.Flow(c.Context(), q)
			return show(r, err, func() error { return printFlow(out, q, r) })
		case f.Changed("top"):
			r, err := client.TopSources(c.Context(), "flows", top)
			return show(r, err, func() error { return printTop(out, r) })
		}
		r, err := client.Flows(c.Context(), filter)
		return show(r, err, func() error { return printFlows(out, r) })
	}
	return c
}

// parseFlow reads a flow as an operator writes it.
func parseFlow(source, destination string) (q control.FlowQuery, err error) {
	if q.Source, err = netip.ParseAddrPort(source); err != nil {
		return q, fmt.Errorf("source: found %q, expected ADDRESS:PORT such as 198.51.100.7:51234 or [2001:db8::7]:51234", source)
	}
	address, protocol, _ := strings.Cut(destination, "/")
	if q.Destination, err = netip.ParseAddrPort(address); err != nil || protocol != "tcp" && protocol != "udp" {
		return q, fmt.Errorf("destination: found %q, expected VIP:PORT/PROTO such as 192.0.2.10:443/tcp", destination)
	}
	q.Protocol = protocol
	return q, nil
}

// seconds is a time for a person: rounded to what matters.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}

func printFlows(out io.Writer, r control.FlowsReport) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	flows := r.States.Probation + r.States.Established + r.States.Closing
	fmt.Fprintf(w, "%d flows in %d words: %d established, %d on probation, %d closing; looked at in %.0f ms\n",
		flows, r.WalkedWords, r.States.Established, r.States.Probation, r.States.Closing, r.TookMS)
	var idle []string
	for _, a := range r.Ages {
		switch {
		case a.Flows == 0:
		case a.UpToSeconds == 0:
			idle = append(idle, fmt.Sprintf("longer %d", a.Flows))
		default:
			idle = append(idle, fmt.Sprintf("<%s %d", seconds(a.UpToSeconds), a.Flows))
		}
	}
	if len(idle) > 0 {
		fmt.Fprintf(w, "without a packet for: %s\n", strings.Join(idle, ", "))
	}
	fmt.Fprint(w, "\nSERVICE\tBACKEND\tADDRESS\tTAKES\tFLOWS\tESTABLISHED\tPROBATION\tCLOSING\tLONGEST IDLE\n")
	for _, s := range r.Services {
		for _, b := range s.Backends {
			takes := b.Takes
			if b.Leaving {
				takes = "leaving"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\n", s.Service, b.Backend, b.Address, takes, b.Flows, b.Established, b.Probation, b.Closing, seconds(b.LongestIdleSeconds))
		}
	}
	return w.Flush()
}

func printFlow(out io.Writer, q control.FlowQuery, r control.FlowReport) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "flow\t%s to %s/%s\nservice\t%s\n", q.Source, q.Destination, q.Protocol, r.Service)
	if r.Found {
		fmt.Fprintf(w, "word\t%s, in line %d or its alternate\nbackend\t%s (%s), slot %d\nidle\t%s\nexpires\tin %s without a packet\n",
			r.State, r.Line, r.Backend, r.Address, r.Slot, seconds(r.IdleSeconds), seconds(r.ExpiresInSeconds))
	} else {
		fmt.Fprintf(w, "word\tnone\n")
	}
	target := func(t *control.FlowTarget) string {
		if t == nil {
			return "as it stands then, or nowhere"
		}
		return fmt.Sprintf("to %s (%s)", t.Backend, t.Address)
	}
	if q.Protocol == "udp" {
		fmt.Fprintf(w, "without a word\ta packet would go %s\n", target(r.Opens))
	} else {
		fmt.Fprintf(w, "without a word\ta SYN would go %s\n\tany other packet %s\n", target(r.Opens), target(r.Continues))
	}
	return w.Flush()
}

func printTop(out io.Writer, r control.TopReport) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "sources that opened most flows with a word, in about the last %s (counts are halved each minute)\n\n", seconds(r.WindowSeconds))
	printSources(w, r.Sources)
	return w.Flush()
}
