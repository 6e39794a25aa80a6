//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/steer"
	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/internal/cli"
	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/control/metrics"
)

func runCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon",
		Long: `Run the daemon, in the foreground.

SIGHUP, or sluice reload, reads the configuration again; a file with a mistake changes nothing. SIGTERM or SIGINT makes
the node unready (/readyz), keeps forwarding for drain_time so that routers can turn away, and then ends; a second one
ends at once. The VIPs' blackhole routes stay behind, so that the kernel does not answer for them.

Needs root, or CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON and, beyond the limit of locked memory, CAP_IPC_LOCK.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return run(c.Context(), file, c.ErrOrStderr()) },
	}
	c.Flags().StringVar(&file, "config", defaultConfig, "the configuration file")
	return c
}

// run is the daemon from start to end. What it opens first is what tells it that another one runs already.
func run(ctx context.Context, file string, stderr io.Writer) error {
	cfg, warnings, err := loadHere(file)
	if err != nil {
		return err
	}
	d := &daemon{file: file, started: time.Now(), atStart: cfg}
	if d.log, d.level, err = cli.NewLog(stderr, cfg.Log.Format, cfg.Log.Level); err != nil {
		return err
	}
	for _, w := range warnings {
		d.log.Warn("configuration", "problem", w.String())
	}
	socket, err := control.Listen(cfg.Control.Socket, cfg.Control.Group)
	if err != nil {
		return err
	}
	defer socket.Close()
	scrape, err := net.Listen("tcp", cfg.Metrics.Listen.String())
	if err != nil {
		return fmt.Errorf("metrics.listen: %w", err)
	}
	defer scrape.Close()

	d.book = control.NewBook(cfg.StateDir, d.log)
	if d.node, err = startNode(cfg, inheritedTable(d.log), d.notice, d.log); err != nil {
		return err
	}
	d.book.UseCookieKey(d.node.CookieKeyID())
	keepTable(d.node, d.log)
	defer func() {
		if err := d.node.Close(); err != nil {
			d.log.Error("close", "error", err)
		}
	}()
	if err := d.apply(cfg, warnings); err != nil {
		return err
	}

	// Before anybody can see that the daemon runs: who stops it then is to find it listening.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGHUP, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(signals)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	start := func(f func() error) {
		running.Go(func() {
			if err := f(); err != nil {
				cancel(err)
			}
		})
	}
	start(func() error { return d.node.Run(ctx) })
	api := control.NewServer(d, version, d.log)
	start(func() error { return api.Serve(socket) })
	exporter := metrics.NewServer(d.Status, d.Ready, d.log)
	start(func() error {
		if err := exporter.Serve(scrape); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve metrics: %w", err)
		}
		return nil
	})
	start(func() error { d.book.Run(ctx); return nil })
	start(func() error { d.followHealth(ctx); return nil })

	cli.Notify(d.log, cli.Ready)
	d.log.Info("forwarding", "services", len(cfg.Services), "start", time.Since(d.started).Round(time.Millisecond))
	d.serveSignals(ctx, cancel, signals)

	cause := context.Cause(ctx)
	last, done := context.WithTimeout(context.Background(), 2*time.Second)
	defer done()
	_ = errors.Join(api.Shutdown(last), exporter.Shutdown(last)) // who still waits for an answer gets none
	running.Wait()
	if cause != nil && !errors.Is(cause, errStopped) {
		return cause
	}
	d.log.Info("stopped")
	return nil
}

// errStopped is the cause of an end that somebody asked for.
var errStopped = errors.New("stopped")

// serveSignals returns when the daemon is to end: by a signal after the drain time, by a second one, or because ctx ended.
func (d *daemon) serveSignals(ctx context.Context, stop context.CancelCauseFunc, signals <-chan os.Signal) {
	var drained <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-drained:
			stop(errStopped)
			return
		case s := <-signals:
			switch {
			case s == unix.SIGHUP:
				cli.Notify(d.log, cli.Reloading+fmt.Sprintf("\nMONOTONIC_USEC=%d", monotonicMicros()))
				_, _ = d.Reload(ctx) // it logs its errors
				cli.Notify(d.log, cli.Ready)
			case drained != nil:
				d.log.Warn("second signal: ending now")
				stop(errStopped)
				return
			default:
				drain := d.drainTime()
				d.log.Info("no longer ready; forwarding goes on for drain_time", "signal", s.String(), "drain_time", drain)
				d.stopping.Store(true)
				cli.Notify(d.log, cli.Stopping)
				drained = time.After(drain)
			}
		}
	}
}

func monotonicMicros() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return ts.Nano() / 1000
}

// tableName is the name of the flow table in systemd's store of descriptors.
const tableName = "flows"

// inheritedTable returns the descriptor of the flow table that the daemon before this one left with systemd; 0: there is
// none. Whatever else was left is closed.
func inheritedTable(log *slog.Logger) (table int) {
	for name, fds := range cli.InheritedFDs() {
		for _, fd := range fds {
			if name == tableName && table == 0 {
				table = fd
				continue
			}
			log.Warn("a descriptor that nobody knows was inherited, and is closed", "name", name)
			_ = unix.Close(fd)
		}
	}
	return table
}

// keepTable leaves the flow table with systemd, for the daemon after this one: systemctl restart, or a start after a crash,
// goes on with all flows.
func keepTable(n *forwarder.Node, log *slog.Logger) {
	err := cli.RemoveFD(tableName) // another one would not take its place
	if err == nil {
		err = cli.StoreFD(tableName, n.TableFD())
	}
	if err != nil {
		log.Warn("flows will not survive a restart of the daemon", "error", err)
	}
}

var fastModes = map[config.FastPath]forwarder.FastMode{
	config.FastPathAuto: forwarder.FastAuto, config.FastPathOn: forwarder.FastOn, config.FastPathOff: forwarder.FastOff,
}

// startNode attaches to the interfaces. table is the inherited flow table, or 0; notice is told of floods and overload.
func startNode(cfg *config.Config, table int, notice func(forwarder.Notice), log *slog.Logger) (*forwarder.Node, error) {
	seed := cfg.Group.Seed
	if seed.IsZero() {
		var err error
		if seed, err = config.EnsureSeed(cfg.StateDir); err != nil {
			return nil, err
		}
	}
	keys, err := forwarder.DeriveKeys(seed[:])
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.StateDir, 0o750); err != nil {
		return nil, fmt.Errorf("state_dir: %w", err)
	}
	c := forwarder.NodeConfig{
		Keys: keys, Flows: cfg.Flows, Workers: cfg.Workers, CPUs: cfg.CPUs, BusyPoll: cfg.BusyPoll, Log: log, Notice: notice,
		Limits:  cfg.Limits.PerSource.Table,
		TableFD: table, DirectoryFile: filepath.Join(cfg.StateDir, "slots.json"),
	}
	for _, i := range cfg.Interfaces {
		mode, err := xsk.ParseMode(string(i.Mode))
		if err != nil {
			return nil, err
		}
		c.Interfaces = append(c.Interfaces, forwarder.InterfaceConfig{
			Name: i.Name, Mode: mode, Fast: fastModes[i.FastPath], Queues: int(i.Queues), VLAN: i.VLAN,
		})
	}
	without := &cfg.WithoutDaemon
	c.Pins, c.Orphans = without.Pins, steer.Orphans{For: time.Duration(without.For), Drop: without.Then == config.VerdictDrop}
	c.Services = len(cfg.Services)
	for i := range cfg.Services {
		c.Backends += len(cfg.Services[i].Backends)
	}
	return forwarder.StartNode(c)
}
