// Command sluice-healthd probes the backends of the Sluice daemon on the same machine and tells it which are healthy.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sluice-lb/sluice/healthd"
	"github.com/sluice-lb/sluice/healthd/probe"
	"github.com/sluice-lb/sluice/internal/cli"
	"github.com/sluice-lb/sluice/internal/control"
)

// version is set by the build: -ldflags "-X main.version=…".
var version = "development"

const defaultSocket = "/run/sluice/control.sock"

func main() {
	probe.Exec() // does not return in a process that is to run a program for an exec probe
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "sluice-healthd: "+err.Error())
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "sluice-healthd",
		Short:         "Probe Sluice's backends",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(runCommand(), cli.VersionCommand("sluice-healthd", version))
	return root
}

const runHelp = `Probe the backends of the sluice daemon on this machine, and tell it which are healthy.

What is probed, and how, the daemon says: it follows from the checks in its configuration, and a reload there is
followed at once. There is nothing to configure here. No privileges are needed beyond those to connect to the socket
(control.group in the daemon's configuration), but CAP_NET_RAW for checks with via: tunnel, and for those of type ping
unless net.ipv4.ping_group_range admits the process.

One reports at a time: while another sluice-healthd does, this one is refused, and tries again. It may be started before the daemon, and waits for it. When it ends, the daemon keeps the health it knew last.`

func runCommand() *cobra.Command {
	var socket, name string
	var newLog func() (*slog.Logger, error)
	c := &cobra.Command{
		Use:   "run",
		Short: "Probe backends until stopped",
		Long:  runHelp,
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			log, err := newLog()
			if err != nil {
				return err
			}
			if name == "" {
				if name, err = os.Hostname(); err != nil {
					return fmt.Errorf("find this node's name: %w; give it with --name", err)
				}
			}
			client := control.NewClient(socket)
			defer client.Close()
			// The second signal ends the program at once.
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGTERM, os.Interrupt)
			defer stop()
			context.AfterFunc(ctx, func() {
				stop()
				cli.Notify(log, cli.Stopping)
			})
			most, err := healthd.ProbesFor()
			if err != nil {
				return err
			}
			log.Info("sluice-healthd", "version", version, "socket", socket, "name", name, "most_probes_at_once", most)
			// Ready without the forwarder: probing goes on without it too, and it may start after this.
			cli.Notify(log, cli.Ready)
			return healthd.New(client, healthd.Options{Name: name, Version: version, MostProbes: most, Log: log}).Run(ctx)
		},
	}
	f := c.Flags()
	f.StringVar(&socket, "socket", defaultSocket, "the daemon's control socket")
	f.StringVar(&name, "name", "", "who reports, as shown by sluice status (default: the host's name)")
	newLog = cli.LogFlags(c)
	return c
}
