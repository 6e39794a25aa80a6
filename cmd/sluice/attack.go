//go:build linux

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
)

// attackPeriod is over what the rates of status --attack are taken.
const attackPeriod = time.Second

// attackTop is how many sources it shows.
const attackTop = 10

// showAttack prints what is dropped, challenged and limited a second, and who sends most; with watch, again and again.
func showAttack(ctx context.Context, out io.Writer, client *control.Client, watch bool) error {
	before, err := client.Status(ctx)
	for err == nil {
		began := time.Now()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(attackPeriod):
		}
		var now control.Status
		if now, err = client.Status(ctx); err != nil {
			break
		}
		if watch {
			fmt.Fprint(out, "\x1b[H\x1b[2J")
		}
		if err = printAttack(ctx, out, client, &before, &now, time.Since(began)); err != nil || !watch {
			break
		}
		before = now
	}
	return err
}

// limitReasons are why packets are dropped that are an attack's, in the order in which they meet these.
var limitReasons = []string{"denied", "banned", "shed", "source_limit", "service_limit", "node_limit", "challenged", "unproved"}

func printAttack(ctx context.Context, out io.Writer, client *control.Client, before, now *control.Status, elapsed time.Duration) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	rate := func(now, before uint64) string { return fmt.Sprintf("%.0f", float64(now-before)/elapsed.Seconds()) }
	a, b := &before.Traffic, &now.Traffic
	dropped := func(t *control.Traffic) map[string]uint64 {
		d := map[string]uint64{"denied": t.Steer.Denied, "banned": t.Steer.Banned, "shed": t.Steer.Shed}
		for i := range t.Workers {
			for reason, n := range t.Workers[i].Dropped {
				d[reason] += n
			}
		}
		return d
	}
	was, is := dropped(a), dropped(b)
	fmt.Fprintf(w, "packets to VIPs: %s a second\n\nDROPPED UNDER\tA SECOND\tIN ALL\n", rate(b.Steer.ToVIPs, a.Steer.ToVIPs))
	for _, reason := range limitReasons {
		fmt.Fprintf(w, "%s\t%s\t%d\n", reason, rate(is[reason], was[reason]), is[reason])
	}
	fmt.Fprint(w, "\nSERVICE\tDEFENCE\tNOW\tSYNS/S\tCHALLENGED/S\tPROOFS/S\tSWITCHED\n")
	for i := range b.Services {
		v := &b.Services[i]
		var d control.Service
		for j := range a.Services {
			if a.Services[j].Name == v.Name {
				d = a.Services[j]
			}
		}
		state := "-"
		if v.Defence.Mode != "off" {
			state = "calm"
			switch {
			case v.Defence.Active:
				state = v.Defence.Answer + "s"
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\n", v.Name, v.Defence.Mode, state, rate(v.Defence.SYNs, d.Defence.SYNs),
			rate(v.Defence.Challenged, d.Defence.Challenged), rate(v.Defence.Proofs, d.Defence.Proofs), v.Defence.Switches)
	}
	if len(b.Shed) > 0 {
		fmt.Fprint(w, "\nOVERLOADED: SHED OF UNKNOWN SOURCES\tCLASS\tSHARE\tPACKETS\n")
		for _, s := range b.Shed {
			fmt.Fprintf(w, "%s\t%s\t%.1f %%\t%d\n", cmp.Or(s.Service, "(no ports)"), s.Class, 100*s.Share, s.Packets)
		}
	}
	for _, by := range []struct{ what, title string }{
		{"syns", "SYNs of flows without a word, to services with a defence"}, {"packets", "packets (estimated from samples)"},
		{"prefixes", "packets by prefix"},
	} {
		top, err := client.TopSources(ctx, by.what, attackTop)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "\nsources of most %s, in about the last %s\n", by.title, seconds(top.WindowSeconds))
		printSources(w, top.Sources)
	}
	return w.Flush()
}

// printSources prints sources and their counts.
func printSources(w io.Writer, sources []control.TopSource) {
	fmt.Fprint(w, "SOURCE\tCOUNT\tSHARE\t\n")
	for _, s := range sources {
		count := fmt.Sprint(s.Inserts)
		if s.Error > 0 {
			count = fmt.Sprintf("%d to %d", s.Inserts-s.Error, s.Inserts)
		}
		fmt.Fprintf(w, "%s\t%s\t%.1f %%\t\n", s.Source, count, 100*s.Share)
	}
}
