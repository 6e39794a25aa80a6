//go:build linux

// Command sluice is the load balancer's daemon (run) and the operator's tool (everything else).
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-lb/sluice/internal/cli"
)

// version is set by the build: -ldflags "-X main.version=…".
var version = "development"

const (
	defaultConfig = "/etc/sluice/sluice.yaml"
	defaultSocket = "/run/sluice/control.sock"
	// answerTime is how long a command waits for the daemon's answer.
	answerTime = 10 * time.Second
)

func main() {
	if err := command().Execute(); err != nil {
		// A refused configuration has many errors, one a line.
		fmt.Fprintln(os.Stderr, "sluice: "+strings.ReplaceAll(err.Error(), "\n", "\nsluice: "))
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "sluice",
		Short:         "Layer-4 load balancer",
		Long:          "Sluice spreads TCP and UDP flows to virtual IP addresses over backends, on AF_XDP.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(runCommand(), checkCommand(), reloadCommand(), statusCommand(), healthCommand(), eventsCommand(), flowsCommand(),
		detachCommand(), drainCommand(), undrainCommand(), maintenanceCommand(), demoCommand(), simCommand(), benchCommand(), cli.VersionCommand("sluice", version))
	return root
}

// printJSON prints v for machines, and for people who look at what machines get.
func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// socketFlag adds --socket to a command that speaks to the daemon.
func socketFlag(c *cobra.Command) *string {
	return c.Flags().String("socket", defaultSocket, "the daemon's control socket")
}

func timeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), answerTime)
}
