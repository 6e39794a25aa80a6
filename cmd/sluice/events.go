//go:build linux

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/control"
)

const (
	// eventsWait is how long events --follow lets the daemon wait for one.
	eventsWait = 30 * time.Second
	// eventsAgain is how long it waits for a daemon that cannot be asked.
	eventsAgain = time.Second
)

func eventsCommand() *cobra.Command {
	var asJSON, follow bool
	c := &cobra.Command{
		Use:   "events [SERVICE[/BACKEND]]",
		Short: "Show what has happened: health, what was set by hand, fail open, quorums, floods, reloads",
		Long: `Show what has happened since the daemon started, as far as it remembers (4096 events), or what happens from now on:

    sluice events
    sluice events web/web-1
    sluice events --follow --json web | jq -r 'select(.to == "down") | .backend'

With --json, one object a line; those with "missed" tell how many events were no longer known.`,
		Args: cobra.MaximumNArgs(1),
	}
	socket := socketFlag(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON, one object a line")
	c.Flags().BoolVar(&follow, "follow", false, "go on until Ctrl-C, also over restarts of the daemon")
	c.RunE = func(c *cobra.Command, args []string) error {
		filter, err := parseFilter(args)
		if err != nil {
			return err
		}
		client := control.NewClient(*socket)
		defer client.Close()
		ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
		defer stop()
		answer, err := client.Events(ctx, "", 0, filter, 0)
		if err != nil {
			return err
		}
		// What was forgotten before anybody asked is no loss.
		answer.Missed = 0
		if err := printEvents(c.OutOrStdout(), answer, asJSON); err != nil || !follow {
			return err
		}
		return followEvents(ctx, c.OutOrStdout(), client, answer, filter, asJSON)
	}
	return c
}

// followEvents prints what happens after an answer, until ctx ends.
func followEvents(ctx context.Context, out io.Writer, client *control.Client, last control.Events, f control.EventFilter, asJSON bool) error {
	for ctx.Err() == nil {
		answer, err := client.Events(ctx, last.Boot, last.Last, f, eventsWait)
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(eventsAgain): // it may be starting again
			}
			continue
		}
		if answer.Boot != last.Boot {
			answer.Missed = 0
		}
		if err := printEvents(out, answer, asJSON); err != nil {
			return err
		}
		last = answer
	}
	return nil
}

func printEvents(out io.Writer, answer control.Events, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(out)
		if answer.Missed > 0 {
			if err := e.Encode(map[string]uint64{"missed": answer.Missed}); err != nil {
				return err
			}
		}
		for i := range answer.Events {
			if err := e.Encode(&answer.Events[i]); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if answer.Missed > 0 {
		fmt.Fprintf(w, "%d events are no longer known\n", answer.Missed)
	}
	for i := range answer.Events {
		e := &answer.Events[i]
		what := e.Service
		if e.Backend != "" {
			what += "/" + e.Backend
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", clock(e.Time), e.Kind, cmp.Or(what, "-"), fromTo(e), cmp.Or(e.Cause, "-"), e.Evidence)
	}
	return w.Flush()
}

// clock is a time of day for a person, with the date: an event may be of yesterday.
func clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05.000") }

// fromTo tells from what to what an event went.
func fromTo(e *control.Event) string {
	switch {
	case e.From == "" && e.To == "":
		return "-"
	case e.From == "":
		return e.To
	case e.From == e.To:
		return e.From
	}
	return e.From + " -> " + e.To
}
