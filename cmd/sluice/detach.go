//go:build linux

package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-lb/sluice/forwarder"
)

func detachCommand() *cobra.Command {
	var pins string
	c := &cobra.Command{
		Use:   "detach",
		Short: "Take off the XDP programs that go on forwarding without a daemon",
		Long: `Take off the XDP programs that a daemon has left on its interfaces, and remove its flow table: what goes on by without_daemon ends at
once, and the kernel's blackhole routes take packets to VIPs. The next daemon starts with an empty table.

Stop the daemon first: one that runs notices, and attaches its programs again.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			interfaces, err := forwarder.Detach(pins)
			if len(interfaces) > 0 {
				fmt.Fprintf(c.OutOrStdout(), "detached from %s\n", strings.Join(interfaces, ", "))
			} else if err == nil {
				fmt.Fprintf(c.OutOrStdout(), "no program is pinned in %s\n", pins)
			}
			return err
		},
	}
	c.Flags().StringVar(&pins, "pins", "/sys/fs/bpf/sluice", "the directory that without_daemon.pins names")
	return c
}
