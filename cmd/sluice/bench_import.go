//go:build linux

package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/sluice-lb/sluice/bench/nic"
	"github.com/sluice-lb/sluice/bench/report"
)

func benchImportCommand() *cobra.Command {
	var peer string
	var card report.NIC
	var asJSON bool
	c := &cobra.Command{
		Use:   "import FILE",
		Short: "Make a report of measurements on real cards",
		Long: `Make a report of measurements on real cards, which were made with generators on other machines. Run it on the machine that was
measured: the report holds its environment, by which "sluice bench compare" knows it again.

FILE has lines of comma-separated values in the order in which they were measured, system after system, round after round:

  system,forward,size,flows,mpps,loss_percent
  sluice,ipip,64,1000000,11.2,0
  ipvs,ipip,64,1000000,1.9,0

Columns before mpps are labels, the system among them; those behind it are further figures. Lines with the same labels are the
rounds of a row.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if card.Driver == "" || card.Mode == "" {
				return fmt.Errorf("--driver, --mode: found %q and %q, expected the card's driver (ethtool -i) and the mode (sluice status)",
					card.Driver, card.Mode)
			}
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			table, err := nic.Import(f, peer)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if !asJSON {
				return report.Print(c.OutOrStdout(), table)
			}
			r := report.Report{Environment: report.ReadEnvironment(version), Effort: report.Full, Tables: []report.Table{table}}
			r.Environment.NICs = []report.NIC{card}
			return r.Write(c.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringVar(&peer, "peer", "", "the system that others are compared with; empty: no comparison")
	f.StringVar(&card.Driver, "driver", "", "driver of the card")
	f.StringVar(&card.Mode, "mode", "", "mode of its queues: zerocopy or copy")
	f.BoolVar(&asJSON, "json", false, "print the report as JSON, as sluice bench compare reads it")
	return c
}
