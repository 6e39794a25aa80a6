// Package cli holds what the three commands do alike: how they log, and what they tell systemd.
package cli

import (
	"fmt"
	"io"
	"log/slog"
	"runtime"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
)

// States for Notify (sd_notify(3)).
const (
	Ready     = daemon.SdNotifyReady
	Stopping  = daemon.SdNotifyStopping
	Reloading = daemon.SdNotifyReloading
)

// Notify tells systemd, if it asked to be told (Type=notify).
func Notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("notify systemd", "error", err)
	}
}

// NewLog returns a log that writes to w in the given format, text or json, from the given level on: debug, info, warn or
// error. The level can be changed later.
func NewLog(w io.Writer, format, level string) (*slog.Logger, *slog.LevelVar, error) {
	least := new(slog.LevelVar)
	if err := least.UnmarshalText([]byte(level)); err != nil {
		return nil, nil, fmt.Errorf("log-level %q: give debug, info, warn or error", level)
	}
	options := &slog.HandlerOptions{Level: least}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), least, nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), least, nil
	}
	return nil, nil, fmt.Errorf("log-format %q: give text or json", format)
}

// LogFlags adds --log-format and --log-level to a command. What it returns makes the log, once the flags are parsed.
func LogFlags(c *cobra.Command) func() (*slog.Logger, error) {
	format := c.Flags().String("log-format", "text", "text or json")
	level := c.Flags().String("log-level", "info", "debug, info, warn or error")
	return func() (*slog.Logger, error) {
		log, _, err := NewLog(c.ErrOrStderr(), *format, *level)
		if err != nil {
			return nil, fmt.Errorf("--%w", err)
		}
		return log, nil
	}
}

// VersionCommand prints the version of a program, and of the Go that built it.
func VersionCommand(program, version string) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(c *cobra.Command, _ []string) {
			fmt.Fprintf(c.OutOrStdout(), "%s %s (%s)\n", program, version, runtime.Version())
		},
	}
}
