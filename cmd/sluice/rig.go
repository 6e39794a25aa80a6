//go:build linux

package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"text/template"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/testenv"
)

// rig is a whole installation in network namespaces: client, router, nodes and backends of testenv.Topology, with the real
// daemon and healthd on each node and the real agent on each backend. The demo runs on it, and so do the functional tests.
type rig struct {
	net      *testenv.Topology
	dir      string // configuration, sockets and state
	bin      string // directory of the three programs
	nodes    []*rigNode
	backends []*rigBackend
	vips     []netip.Addr
	tunnel   string // the configuration's tunnel section, in YAML flow style; empty: none
	limits   string // likewise its limits
	health   string // likewise what concerns the checks of all services
	// fastPath is the fast_path of eth0, on, off or auto, and withoutDaemon the configuration's section of that name; empty: off, and
	// nothing goes on without the daemon.
	fastPath, withoutDaemon string
	// interfaces is the configuration's list of interfaces, in YAML flow style; empty: eth0.
	interfaces string
	cpus       string // the core of the one worker; empty: as many as there can be
	clampMSS   string // the agents' --clamp-mss; empty: auto
	cookies    bool   // the agents have the nodes' seed, and know port 80 of each VIP behind NAT
}

// rigNode is one Sluice node.
type rigNode struct {
	*testenv.Host
	config  string // path of the configuration file
	socket  string
	daemon  *testenv.Process
	healthd *testenv.Process
	// env and files are added to those of the daemon.
	env   []string
	files []*os.File
}

// rigBackend is one backend.
type rigBackend struct {
	*testenv.Host
	name  string
	agent *testenv.Process
}

// rigOptions says what is set up.
type rigOptions struct {
	dir, bin string
	nodes    int
	backends int
	queues   int
	sources  int // addresses of the client; 0: those of testenv
	vips     []netip.Addr
	clampMSS string
	cookies  bool
	fastPath string // of all nodes; empty: off
}

// newRig makes the network and starts the agents; nodes are started by startNode, once they have a configuration.
// The Env owns all of it.
func newRig(env *testenv.Env, o rigOptions) (*rig, error) {
	net, err := testenv.NewTopology(env, testenv.TopologyOptions{
		Nodes: o.nodes, Backends: o.backends, Queues: o.queues, Sources: o.sources, VIPs: o.vips, TakesXDP: o.fastPath == "on",
	})
	if err != nil {
		return nil, err
	}
	r := &rig{net: net, dir: o.dir, bin: o.bin, vips: o.vips, clampMSS: o.clampMSS, cookies: o.cookies, fastPath: o.fastPath}
	if err := os.WriteFile(r.path("group.key"), []byte("a seed that both nodes of the rig share"), 0o600); err != nil {
		return nil, err
	}
	for i, host := range net.Nodes {
		name := fmt.Sprintf("lb%d", i+1)
		r.nodes = append(r.nodes, &rigNode{
			Host:   host,
			config: r.path(name + ".yaml"),
			socket: r.path(name + ".sock"),
		})
	}
	for _, host := range net.Backends {
		if err := r.startBackend(host); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

// addBackend adds one more backend, with its agent, to the network.
func (r *rig) addBackend() (*rigBackend, error) {
	host, err := r.net.AddBackend()
	if err != nil {
		return nil, err
	}
	if err := r.startBackend(host); err != nil {
		return nil, err
	}
	return r.backends[len(r.backends)-1], nil
}

// startBackend starts the agent of a backend and waits until it answers for the VIPs.
func (r *rig) startBackend(host *testenv.Host) error {
	b := &rigBackend{Host: host, name: fmt.Sprintf("web-%d", len(r.backends)+1)}
	args := []string{"run", "--interface", "eth0", "--state-dir", r.path("agent")}
	for _, vip := range r.vips {
		args = append(args, "--vip", vip.String())
	}
	if r.clampMSS != "" {
		args = append(args, "--clamp-mss", r.clampMSS)
	}
	if r.cookies {
		args = append(args, "--cookie-seed", r.path("group.key"))
		for _, vip := range r.vips {
			local := host.IPv4
			if vip.Is6() {
				local = host.IPv6
			}
			args = append(args, "--nat", fmt.Sprintf("%v=%v", netip.AddrPortFrom(vip, 80), netip.AddrPortFrom(local, 80)))
		}
	}
	var err error
	if b.agent, err = host.Start(testenv.Cmd{Path: filepath.Join(r.bin, "sluice-agent"), Args: args}); err != nil {
		return err
	}
	r.backends = append(r.backends, b)
	return b.agent.WaitOutput(10*time.Second, "taking packets")
}

// rigService is one service in a rig's configuration.
type rigService struct {
	Name, Protocol, Forward, Ports string
	VIP                            netip.Addr
	Check                          string         // in YAML flow style; empty: none
	Options                        string         // further lines, as "on_no_backend: reject"
	BackendPort                    int            // NAT: where the backends receive; 0: on the service's port
	Outer6                         bool           // backends by their IPv6 addresses
	Weights                        map[string]int // by name of the backend; the default where there is none
	Backends                       []*rigBackend
}

// Address is where packets for a backend are sent.
func (s rigService) Address(b *rigBackend) netip.Addr {
	if s.Outer6 {
		return b.IPv6
	}
	return b.IPv4
}

// Weight is the weight of a backend in the configuration; empty: the default.
func (s rigService) Weight(b *rigBackend) string {
	if w, ok := s.Weights[b.name]; ok {
		return strconv.Itoa(w)
	}
	return ""
}

var rigConfig = template.Must(template.New("config").Parse(`# Written by sluice for a node in network namespaces.
node: {{.Node}}
group: {seed_file: {{printf "%q" .Seed}}, peers: {{.Peers}}}
state_dir: {{printf "%q" .State}}
control: {socket: {{printf "%q" .Socket}}}
interfaces: {{or .Interfaces (printf "[{name: eth0, mode: auto, fast_path: %s, queues: all}]" .FastPath)}}
{{- with .CPUs}}
workers: 1
cpus: "{{.}}"
{{- end}}
flows: 64k
drain_time: {{.DrainTime}}
without_daemon: {{or .WithoutDaemon "{for: 0s}"}}
metrics: {listen: 127.0.0.1:9545}
{{- with .Tunnel}}
tunnel: {{.}}
{{- end}}
{{- with .Limits}}
limits: {{.}}
{{- end}}
{{- with .Health}}
health: {{.}}
{{- end}}
services:
{{- range $s := .Services}}
  - name: {{.Name}}
    vip: {{.VIP}}
    protocol: {{.Protocol}}
    ports: {{.Ports}}
    forward: {{.Forward}}
    {{- with .Check}}
    check: {{.}}
    {{- end}}
    {{- with .Options}}
    {{.}}
    {{- end}}
    backends:
      {{- range .Backends}}
      - {name: {{.Name}}, address: {{$s.Address .}}{{with $s.BackendPort}}, port: {{.}}{{end}}{{with $s.Weight .}}, weight: {{.}}{{end}}}
      {{- end}}
{{- end}}
`))

// Name is the backend's name in the configuration.
func (b *rigBackend) Name() string { return b.name }

// configure writes a node's configuration file.
func (r *rig) configure(n *rigNode, services ...rigService) error {
	var b bytes.Buffer
	err := rigConfig.Execute(&b, map[string]any{
		"Node": n.name(), "Seed": r.path("group.key"), "State": r.path(n.name() + "-state"), "Peers": len(r.nodes), "Socket": n.socket, "DrainTime": "1s", "Tunnel": r.tunnel, "Limits": r.limits, "Health": r.health, "CPUs": r.cpus, "Interfaces": r.interfaces, "FastPath": cmp.Or(r.fastPath, "off"),
		"WithoutDaemon": r.withoutDaemon, "Services": services,
	})
	if err != nil {
		return err
	}
	// Whole or not at all: the daemon may read it at any time.
	if err := os.WriteFile(n.config+".new", b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(n.config+".new", n.config)
}

func (n *rigNode) name() string {
	base := filepath.Base(n.config)
	return base[:len(base)-len(".yaml")]
}

// start starts the daemon and healthd of a node, and waits until the node is ready.
func (r *rig) start(n *rigNode) (err error) {
	run := testenv.Cmd{Path: filepath.Join(r.bin, "sluice"), Args: []string{"run", "--config", n.config}, Env: n.env, Files: n.files}
	if len(n.files) > 0 { // as systemd hands descriptors over: they are for the process of this number alone
		run.Args = append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, run.Path}, run.Args...)
		run.Path = "/bin/sh"
	}
	if n.daemon, err = n.Start(run); err != nil {
		return err
	}
	if n.healthd == nil || n.healthd.Ended() { // else it notices that the daemon is another one
		n.healthd, err = n.Start(testenv.Cmd{Path: filepath.Join(r.bin, "sluice-healthd"), Args: []string{"run", "--socket", n.socket}})
		if err != nil {
			return err
		}
	}
	return n.daemon.WaitUntil(10*time.Second, "node is ready", n.ready)
}

func (n *rigNode) ready() error {
	st, err := n.status()
	if err == nil && !st.Ready {
		err = errors.New(st.NotReady)
	}
	return err
}

func (n *rigNode) status() (control.Status, error) {
	ctx, cancel := timeout()
	defer cancel()
	client := control.NewClient(n.socket)
	defer client.Close()
	return client.Status(ctx)
}

func (n *rigNode) reload() (control.ReloadResult, error) {
	ctx, cancel := timeout()
	defer cancel()
	client := control.NewClient(n.socket)
	defer client.Close()
	return client.Reload(ctx)
}

// checkBooks says what does not add up in a node's counters, which must be at rest.
func checkBooks(st control.Status) error {
	var errs []error
	s := st.Traffic.Steer
	if s.ToVIPs+s.Replies != s.Redirected+s.Forwarded+s.NoExit+s.NoDaemon+s.NoSocket+s.Loops+s.Denied+s.Banned+s.Shed {
		errs = append(errs, fmt.Errorf("XDP: %d packets to VIPs and %d replies, but %d redirected + %d forwarded + %d no_exit + %d no_daemon + %d no_socket + %d loops + %d denied + %d banned + %d shed",
			s.ToVIPs, s.Replies, s.Redirected, s.Forwarded, s.NoExit, s.NoDaemon, s.NoSocket, s.Loops, s.Denied, s.Banned, s.Shed))
	}
	var received, out, sent, ring uint64
	for _, w := range st.Traffic.Workers {
		if w.Received != w.Forwarded+w.Answered+w.Held+w.Dropped.Total() {
			errs = append(errs, fmt.Errorf("worker %d: %d received, but %d forwarded + %d answered + %d held + %d dropped", w.ID, w.Received, w.Forwarded, w.Answered, w.Held, w.Dropped.Total()))
		}
		received += w.Received
		out += w.Forwarded + w.Answered + w.Generated + w.Continued
	}
	for _, i := range st.Traffic.Interfaces {
		sent += i.Closed.Sent
		ring += i.Closed.RXDropped + i.Closed.RXRingFull
		for _, q := range i.Queues {
			sent += q.Sent
			ring += q.RXDropped + q.RXRingFull
		}
	}
	if s.Redirected != received+ring {
		errs = append(errs, fmt.Errorf("%d redirected, but %d received by workers + %d ring drops", s.Redirected, received, ring))
	}
	if sent != out {
		errs = append(errs, fmt.Errorf("%d forwarded, answered, generated and continued, but %d frames sent", out, sent))
	}
	return errors.Join(errs...)
}
