//go:build linux

package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

func benchCommand() *cobra.Command {
	c := &cobra.Command{Use: "bench", Short: "Measure this machine"}
	c.AddCommand(
		benchAllCommand(), benchCompareCommand(), benchImportCommand(),
		benchWorkerCommand(), benchScalingCommand(), benchVethCommand(), benchTCPCommand(), benchChurnCommand(), benchCostCommand(),
		benchInstructionsCommand(), benchCountedCommand(),
	)
	return c
}

// parseCount reads a number such as 500, 100k or 4M.
func parseCount(text string) (int, error) {
	digits, factor := text, 1
	switch {
	case strings.HasSuffix(text, "k"):
		digits, factor = text[:len(text)-1], 1000
	case strings.HasSuffix(text, "M"):
		digits, factor = text[:len(text)-1], 1_000_000
	}
	n, err := strconv.Atoi(digits)
	if err != nil || n < 1 || n > 1_000_000_000/factor {
		return 0, fmt.Errorf("found %q, expected a number from 1 to 1000M, such as 500, 100k or 4M", text)
	}
	return n * factor, nil
}
