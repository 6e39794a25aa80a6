//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/testenv"
)

const demoHelp = `Run the main job on this machine, in network namespaces of its own.

A client, a router, one Sluice node and three backends are made, with the real daemon, healthd and agents. Real HTTP
over kernel TCP goes through the VIPs while one backend is killed, comes back, and a fourth is added by a reload. The
summary at the end says what happened and what was checked; the exit status is not 0 if a check failed.

Needs root. Nothing outside of the namespaces is touched, and everything is taken down at the end and on Ctrl-C.`

func demoCommand() *cobra.Command {
	var stay bool
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show the main job in network namespaces: real HTTP while backends die, come back and are added",
		Long:  demoHelp,
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			return runDemo(ctx, os.Stdout, stay)
		},
	}
	c.Flags().BoolVar(&stay, "stay", false, "leave everything up afterwards, until Ctrl-C, and say how to poke at it")
	c.AddCommand(demoBackendCommand())
	return c
}

var demoVIPs = []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")}

// demo is one run: the installation, the traffic through it, what is shown, and what was found.
type demo struct {
	rig     *rig
	node    *rigNode
	servers map[string]*testenv.Process // by backend
	load    *load
	view    *view
	checks  []checked

	mu    sync.Mutex
	shown []string // backends that the view shows
}

// checked is one thing that the demo made sure of.
type checked struct {
	good bool
	what string
}

func runDemo(ctx context.Context, out io.Writer, stay bool) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("demo: it makes network namespaces, which needs root")
	}
	bin, err := siblings()
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	dir, err := os.MkdirTemp("", "sluice-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	env, err := testenv.New("demo")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, env.Close()) }()

	d := &demo{servers: map[string]*testenv.Process{}, view: newView(out)}
	d.view.say("making a client, a router, a Sluice node and three backends")
	if err := d.setUp(env, dir, bin); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	err = d.story(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return errors.New("demo: interrupted; everything is taken down")
		}
		return fmt.Errorf("demo: %w\nlog of the daemon:\n%s", err, d.node.daemon.Output())
	}
	failed := d.summary(out)
	if stay && ctx.Err() == nil {
		d.explain(out)
		<-ctx.Done()
	}
	if failed > 0 {
		return fmt.Errorf("demo: %d checks failed\nlog of the daemon:\n%s", failed, d.node.daemon.Output())
	}
	return nil
}

// siblings returns the directory of this program, in which the others must be too.
func siblings() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	bin := filepath.Dir(self)
	for _, name := range []string{"sluice-healthd", "sluice-agent"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			return "", fmt.Errorf("%w; build all three programs with make build", err)
		}
	}
	return bin, nil
}

func (d *demo) setUp(env *testenv.Env, dir, bin string) (err error) {
	if d.rig, err = newRig(env, rigOptions{dir: dir, bin: bin, nodes: 1, backends: 3, queues: 2, vips: demoVIPs, fastPath: "on"}); err != nil {
		return err
	}
	d.node = d.rig.nodes[0]
	for _, b := range d.rig.backends {
		if err := d.startServer(b); err != nil {
			return err
		}
	}
	if err := d.configure(); err != nil {
		return err
	}
	if err := d.rig.start(d.node); err != nil {
		return err
	}
	return d.node.daemon.WaitUntil(10*time.Second, "all backends are up", func() error {
		for _, b := range d.rig.backends {
			if err := d.healthIs(b.name, control.StateUp)(); err != nil {
				return err
			}
		}
		return nil
	})
}

// configure writes a configuration with all backends that there are now.
func (d *demo) configure() error {
	services := make([]rigService, len(demoVIPs))
	for i, vip := range demoVIPs {
		services[i] = rigService{
			Name: map[bool]string{true: "web4", false: "web6"}[vip.Is4()], VIP: vip, Protocol: "tcp", Ports: "80", Forward: "ipip",
			Check:    "{type: http, port: 80, path: /, interval: 250ms, timeout: 200ms, rise: 2, fall: 2}",
			Backends: d.rig.backends,
		}
	}
	return d.rig.configure(d.node, services...)
}

func (d *demo) startServer(b *rigBackend) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	p, err := b.Start(testenv.Cmd{Path: self, Args: []string{"demo", "backend", "--name", b.name}})
	if err != nil {
		return err
	}
	d.servers[b.name] = p
	d.mu.Lock()
	if !slices.Contains(d.shown, b.name) {
		d.shown = append(d.shown, b.name)
	}
	d.mu.Unlock()
	return p.WaitTCP(5*time.Second, netip.AddrPortFrom(b.IPv4, 80))
}

// backends returns the names of those that have been started so far.
func (d *demo) backends() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.shown)
}

// story is what happens. It returns an error if it cannot go on; what should hold and does not is a failed check.
func (d *demo) story(ctx context.Context) error {
	loadContext, stopLoad := context.WithCancel(ctx)
	d.load = startLoad(loadContext, d.rig.net.Client, append(d.rig.net.Sources4, d.rig.net.Sources6...))
	defer func() { stopLoad(); d.load.wait() }()
	d.view.watch(d)
	defer d.view.stop()

	d.view.say("HTTP through %s and %s, a new connection for each request, and %d long-lived ones", demoVIPs[0], demoVIPs[1], longLived)
	steady := d.load.window()
	if err := pause(ctx, 5*time.Second); err != nil {
		return err
	}
	s := steady.end()
	d.check(s.requests > 100 && s.failed == 0, "5 s undisturbed: %d requests, %d failed", s.requests, s.failed)
	for _, b := range d.rig.backends[:3] {
		share := s.share(b.name)
		d.check(share > 0.2 && share < 0.47, "%s answered %.0f %% of them", b.name, 100*share)
	}

	victim := d.rig.backends[1]
	killed, at := d.load.window(), time.Now()
	if err := d.servers[victim.name].Kill(); err != nil {
		return err
	}
	d.view.say("killed the server on %s", victim.name)
	if err := d.await(ctx, d.healthIs(victim.name, control.StateDown)); err != nil {
		return err
	}
	noticed := time.Since(at)
	time.Sleep(20 * time.Millisecond) // connections that were under way
	s = killed.end()
	d.view.say("healthd noticed after %d ms; %d new connections had failed meanwhile", noticed.Milliseconds(), s.failed)
	d.check(noticed < 2*time.Second, "%s was found dead after %d ms (2 probes, 250 ms apart); %d of %d new connections failed until then",
		victim.name, noticed.Milliseconds(), s.failed, s.requests)
	after := d.load.window()
	if err := pause(ctx, 4*time.Second); err != nil {
		return err
	}
	s = after.end()
	d.check(s.requests > 100 && s.failed == 0, "the 4 s after that: %d requests, %d failed, none to %s (%d)", s.requests, s.failed, victim.name, s.by[victim.name])
	broken, others := d.load.broken(victim.name)
	d.check(others == 0 && broken > 0, "long-lived connections: the %d of %s broke, %d of others", broken, victim.name, others)

	back := d.load.window()
	if err := d.startServer(victim); err != nil {
		return err
	}
	d.view.say("started the server on %s again", victim.name)
	if err := d.await(ctx, d.healthIs(victim.name, control.StateUp)); err != nil {
		return err
	}
	if err := pause(ctx, 4*time.Second); err != nil {
		return err
	}
	s = back.end()
	d.check(s.failed == 0 && s.by[victim.name] > 0, "%s came back: %d of %d requests went to it, %d failed", victim.name, s.by[victim.name], s.requests, s.failed)

	added, err := d.rig.addBackend()
	if err != nil {
		return err
	}
	if err := d.startServer(added); err != nil {
		return err
	}
	fourth := d.load.window()
	if err := d.configure(); err != nil {
		return err
	}
	if _, err := d.node.reload(); err != nil {
		return err
	}
	d.view.say("added %s to the configuration and reloaded", added.name)
	if err := d.await(ctx, d.healthIs(added.name, control.StateUp)); err != nil {
		return err
	}
	full := d.load.window()
	if err := pause(ctx, 4*time.Second); err != nil {
		return err
	}
	s = full.end()
	d.check(s.share(added.name) > 0.12 && s.share(added.name) < 0.4, "%s was added by reload and answers %.0f %%", added.name, 100*s.share(added.name))
	s = fourth.end()
	_, others = d.load.broken(victim.name)
	d.check(s.failed == 0 && others == 0, "the reload broke nothing: %d requests, %d failed, %d long-lived connections broke", s.requests, s.failed, others)

	if err := d.drain(ctx, d.rig.backends[2], victim.name); err != nil {
		return err
	}
	stopLoad()
	d.load.wait()
	return d.checkEnd()
}

// drain takes a backend out by hand, and gives it new flows again. victim is where long-lived connections have broken before.
func (d *demo) drain(ctx context.Context, b *rigBackend, victim string) error {
	client := control.NewClient(d.node.socket)
	defer client.Close()
	services := []string{"web4", "web6"}
	for _, service := range services {
		if _, err := client.Drain(ctx, service, b.name, 0); err != nil {
			return err
		}
	}
	d.view.say("sluice drain web4/%[1]s, web6/%[1]s: no new connections, the ones it has go on", b.name)
	time.Sleep(20 * time.Millisecond) // requests that were under way
	drained := d.load.window()
	if err := pause(ctx, 3*time.Second); err != nil {
		return err
	}
	s := drained.end()
	_, others := d.load.broken(victim)
	d.check(s.requests > 100 && s.failed == 0 && s.by[b.name] == 0 && others == 0,
		"%s drains: of %d requests %d went to it and %d failed; %d long-lived connections broke", b.name, s.requests, s.by[b.name], s.failed, others)
	for _, service := range services {
		if _, err := client.Undrain(ctx, service, b.name); err != nil {
			return err
		}
	}
	d.view.say("sluice undrain")
	back := d.load.window()
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	s = back.end()
	d.check(s.failed == 0 && s.by[b.name] > 0, "undrained, it answers again: %d of %d requests", s.by[b.name], s.requests)
	return nil
}

// checkEnd looks at the books, with no more traffic.
func (d *demo) checkEnd() error {
	var books error
	for range 20 { // until the last frames of closing connections are through
		time.Sleep(100 * time.Millisecond)
		st, err := d.node.status()
		if err != nil {
			return err
		}
		if books = checkBooks(st); books == nil {
			d.check(true, "the books balance: %d packets to VIPs, all accounted for", st.Traffic.Steer.ToVIPs)
			return nil
		}
	}
	d.check(false, "the books do not balance: %v", books)
	return nil
}

// check notes what was found, and shows it.
func (d *demo) check(good bool, format string, args ...any) {
	c := checked{good, fmt.Sprintf(format, args...)}
	d.checks = append(d.checks, c)
	if !good {
		d.view.say("CHECK FAILED: %s", c.what)
	}
}

// healthIs returns a condition: a backend is in this state, in both services.
func (d *demo) healthIs(backend string, want control.State) func() error {
	return func() error {
		st, err := d.node.status()
		if err != nil {
			return err
		}
		found := 0
		for _, s := range st.Traffic.Services {
			for _, b := range s.Backends {
				if b.Name != backend {
					continue
				}
				if b.Health.State != want {
					return fmt.Errorf("%s of %s is %s, not %s", backend, s.Name, b.Health.State, want)
				}
				found++
			}
		}
		if found != len(demoVIPs) {
			return fmt.Errorf("%s occurs in %d services", backend, found)
		}
		return nil
	}
}

// await waits for a condition, ten seconds at most.
func (d *demo) await(ctx context.Context, condition func() error) error {
	for deadline := time.Now().Add(10 * time.Second); ; {
		err := condition()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited 10 s in vain: %w", err)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, t time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(t):
		return nil
	}
}

// summary prints what was checked, and returns how much of it failed.
func (d *demo) summary(out io.Writer) (failed int) {
	fmt.Fprintf(out, "\n%s\n", d.view.bold("What was checked"))
	for _, c := range d.checks {
		mark := d.view.green("ok    ")
		if !c.good {
			mark = d.view.red("FAILED")
			failed++
		}
		fmt.Fprintf(out, "  %s  %s\n", mark, c.what)
	}
	fmt.Fprintf(out, "%d checks, %d failed\n", len(d.checks), failed)
	return failed
}

// explain says how to poke at what is left up.
func (d *demo) explain(out io.Writer) {
	self, err := os.Executable()
	if err != nil {
		self = "sluice"
	}
	in := func(ns *testenv.Namespace, command string) string {
		return "ip netns exec " + ns.Name() + " " + command
	}
	var names []string
	for _, b := range d.rig.backends {
		names = append(names, fmt.Sprintf("  %s", in(b.Namespace, "sh")))
	}
	fmt.Fprintf(out, `
Everything stays up until Ctrl-C. In another terminal, as root:

  %s
  %s
  %s status --socket %s
  %s        (and then: %s reload --socket %s)
  %s
A shell on the node, and on each backend:
  %s
%s
`,
		in(d.rig.net.Client, "curl http://"+demoVIPs[0].String()+"/"),
		in(d.rig.net.Client, "curl -g 'http://["+demoVIPs[1].String()+"]/'"),
		self, d.node.socket,
		"${EDITOR:-vi} "+d.node.config, self, d.node.socket,
		in(d.node.Namespace, "curl -s http://127.0.0.1:9545/metrics"),
		in(d.node.Namespace, "sh"), strings.Join(names, "\n"))
}

// isTerminal says whether what is printed is seen by a person as it comes.
func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}
