//go:build linux

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sluice-lb/sluice/bench/report"
)

func benchCompareCommand() *cobra.Command {
	var threshold float64
	c := &cobra.Command{
		Use:   "compare OLD NEW",
		Short: "Compare two reports of this machine",
		Long: `Compare two reports (report.json of "sluice bench all") of one machine: has anything become better or worse?

Rows are compared by their ratio to their reference, and by their value where they have none. A difference counts if the
Mann-Whitney test over the rounds finds it at 1 in 100, and it is larger than the threshold. Reports of different machines,
kernels, modes or efforts are refused.

The exit status is 1 if anything has become worse: a ratio, or a value that is no time and no rate. Times and rates without a
reference are shown, but say more of what else the machine had to do.`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			if threshold < 0 || threshold >= 1 {
				return fmt.Errorf("--threshold: found %v, expected 0 to 1, such as 0.03 for 3 %%", threshold)
			}
			before, err := report.ReadFile(args[0])
			if err != nil {
				return err
			}
			after, err := report.ReadFile(args[1])
			if err != nil {
				return err
			}
			result, err := report.Compare(before, after, threshold)
			if err != nil {
				return err
			}
			if err := result.Print(c.OutOrStdout()); err != nil {
				return err
			}
			if worse := result.Worse(); len(worse) > 0 {
				return fmt.Errorf("%d worse; the first: %s %s", len(worse), worse[0].Table, worse[0].Key)
			}
			return nil
		},
	}
	c.Flags().Float64Var(&threshold, "threshold", 0.03, "what share a value must change by to count")
	return c
}
