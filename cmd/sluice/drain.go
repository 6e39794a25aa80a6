//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-lb/sluice/internal/control"
)

// drainPoll is how often drain --wait looks.
const drainPoll = time.Second

func drainCommand() *cobra.Command {
	var timeout time.Duration
	var wait bool
	c := &cobra.Command{
		Use:   "drain SERVICE/BACKEND",
		Short: "Let a backend finish its flows and give it no new ones",
		Long: `Let a backend finish its flows and give it no new ones, until sluice undrain. It holds over reloads and restarts, as
long as the configuration has the backend at its address.

With --timeout, flows that are left then are ended: a TCP flow is reset with its next packet, a UDP flow gets another
backend. sluice status shows how many are left. --wait does the same until there are none.`,
		Args: cobra.ExactArgs(1),
	}
	socket := socketFlag(c)
	c.Flags().DurationVar(&timeout, "timeout", 0, "end the flows that are left after this time; 0: let them finish")
	c.Flags().BoolVar(&wait, "wait", false, "show the flows that are left until there are none")
	c.RunE = func(c *cobra.Command, args []string) error {
		service, backend, err := parseBackend(args[0])
		if err != nil {
			return err
		}
		client := control.NewClient(*socket)
		defer client.Close()
		r, err := client.Drain(c.Context(), service, backend, timeout)
		if err != nil {
			return err
		}
		fmt.Fprintln(c.OutOrStdout(), drainLine(args[0], &r.Backend))
		if !wait {
			return nil
		}
		return waitDrained(c.Context(), c.OutOrStdout(), client, service, backend, r.Backend.Flows)
	}
	return c
}

func undrainCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "undrain SERVICE/BACKEND",
		Short: "Give a backend new flows again that sluice drain took out",
		Args:  cobra.ExactArgs(1),
	}
	socket := socketFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		service, backend, err := parseBackend(args[0])
		if err != nil {
			return err
		}
		client := control.NewClient(*socket)
		defer client.Close()
		r, err := client.Undrain(c.Context(), service, backend)
		if err != nil {
			return err
		}
		fmt.Fprintln(c.OutOrStdout(), drainLine(args[0], &r.Backend))
		return nil
	}
	return c
}

func maintenanceCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "maintenance SERVICE/BACKEND on|off",
		Short: "Say that a backend is worked on: no new flows, and no alarm",
		Long: `Say that a backend is worked on. It gets no new flows, and those that it has go on, as with sluice drain. Its health is
probed and shown, but nobody is alarmed by it, and it counts neither as wanted nor as lost: in no quorum, panic threshold or share
of ejections. It holds over reloads and restarts, as long as the configuration has the backend at its address.

    sluice maintenance web/web-1 on
    sluice maintenance web/web-1 off

It is a mark beside a drain: a backend that is drained as well stays drained when its maintenance ends.`,
		Args:      cobra.ExactArgs(2),
		ValidArgs: []string{"on", "off"},
	}
	socket := socketFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		service, backend, err := parseBackend(args[0])
		if err != nil {
			return err
		}
		if args[1] != "on" && args[1] != "off" {
			return fmt.Errorf("found %q, expected on or off", args[1])
		}
		client := control.NewClient(*socket)
		defer client.Close()
		r, err := client.Maintenance(c.Context(), service, backend, args[1] == "on")
		if err != nil {
			return err
		}
		fmt.Fprintln(c.OutOrStdout(), maintenanceLine(args[0], &r.Backend))
		return nil
	}
	return c
}

// maintenanceLine tells how a backend stands after its maintenance was set.
func maintenanceLine(name string, b *control.Backend) string {
	line := fmt.Sprintf("%s is not in maintenance; it is %s, with %d flows", name, takes(b), b.Flows)
	if b.Hand.InMaintenance() {
		line = fmt.Sprintf("%s is in maintenance: %d flows left", name, b.Flows)
	}
	if b.Hand.Drained() {
		line += "; it is drained by hand as well"
	}
	return line
}

// parseBackend reads SERVICE/BACKEND.
func parseBackend(text string) (service, backend string, err error) {
	service, backend, ok := strings.Cut(text, "/")
	if !ok || service == "" || backend == "" {
		return "", "", fmt.Errorf("found %q, expected SERVICE/BACKEND such as web/web-1; sluice status lists them", text)
	}
	return service, backend, nil
}

// drainLine tells how a backend stands.
func drainLine(name string, b *control.Backend) string {
	if !b.Hand.Drained() {
		line := fmt.Sprintf("%s is not drained by hand; it is %s, with %d flows", name, takes(b), b.Flows)
		if b.Hand.InMaintenance() {
			line += ", in maintenance"
		}
		return line
	}
	line := fmt.Sprintf("%s is %s: %d flows left", name, takes(b), b.Flows)
	if b.Flows > 0 && b.LongestIdle > 0 {
		line += fmt.Sprintf(", one without a packet for %s at the last sweep", seconds(b.LongestIdle))
	}
	if !b.Hand.Until.IsZero() && !b.Hand.Cut {
		line += fmt.Sprintf(", to be ended in %s", time.Until(b.Hand.Until).Round(time.Second))
	}
	return line
}

// takes tells in a word or two what a backend takes.
func takes(b *control.Backend) string {
	switch {
	case b.Leaving:
		return "leaving"
	case b.Admit == "draining" && b.Flows == 0:
		return "drained"
	case b.Admit == "up" && b.Fraction < 1:
		return fmt.Sprintf("up %.0f %%", 100*b.Fraction)
	}
	return b.Admit
}

// waitDrained shows the flows left until there are none.
func waitDrained(ctx context.Context, out io.Writer, client *control.Client, service, backend string, last uint64) error {
	for last > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(drainPoll):
		}
		s, err := client.Status(ctx)
		if err != nil {
			return err
		}
		b := findBackend(&s, service, backend)
		switch {
		case b == nil:
			return errors.New("the backend was removed from the configuration; its flows finish all the same")
		case !b.Hand.Drained():
			return errors.New("somebody has undrained the backend")
		case b.Flows != last:
			fmt.Fprintln(out, drainLine(service+"/"+backend, b))
		}
		last = b.Flows
	}
	return nil
}
