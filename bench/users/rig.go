//go:build linux

package users

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/affinity"
	"github.com/sluice-lb/sluice/testenv"
)

const (
	backends    = 3
	webPort     = 80
	bulkPort    = 5201 // iperf3's own
	pageSize    = 1024 // bytes of the file that is asked for
	connections = 64   // of the client at a time
)

// The nodes, by their place in the topology.
const (
	sluiceNode = iota
	proxyNode
	kernelNode
	nodes
)

// rig is the network, and what runs on it.
type rig struct {
	net      *testenv.Topology
	dir      string // configuration files and state
	programs string // the directory of sluice and sluice-agent
	systems  []system

	userCore, systemCore int
	daemon               *testenv.Process // Sluice's, once it runs
	slowest              float64          // requests a second of the slowest system, once they are measured
}

// rule says what runs where.
func (r *rig) rule() string {
	return fmt.Sprintf("CPU %d: client programs, nginx and iperf3 on the backends, and the TCP/IP of these machines. "+
		"CPU %d: the processes of the system under test (taskset), and what the kernel does on its node and on the router, "+
		"cables that leave them included (RPS). The same for every system. %d backends.", r.userCore, r.systemCore, backends)
}

// newRig makes the network and the backends. The Env owns all of it.
func newRig(env *testenv.Env, dir, programs string) (*rig, error) {
	r := &rig{dir: dir, programs: programs, systems: systems}
	for _, name := range []string{"sluice", "sluice-agent"} {
		if _, err := os.Stat(filepath.Join(programs, name)); err != nil {
			return nil, fmt.Errorf("%w; build the programs with make build", err)
		}
	}
	var err error
	if r.userCore, r.systemCore, err = cores(); err != nil {
		return nil, err
	}
	r.net, err = testenv.NewTopology(env, testenv.TopologyOptions{Nodes: nodes, Backends: backends, Queues: 1, Sources: 1, TakesXDP: true})
	if err != nil {
		return nil, err
	}
	for _, step := range []func() error{r.wire, r.tune, r.placeKernel, r.routeReplies} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	for i := range r.net.Backends {
		if err := r.startBackend(i); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// cores returns the first two that this process may use.
func cores() (user, system int, err error) {
	cpus, err := affinity.Allowed()
	if err != nil {
		return 0, 0, err
	}
	if len(cpus) < 2 {
		return 0, 0, fmt.Errorf("cores that may be used: found %d, expected 2: for clients and backends, and for the system", len(cpus))
	}
	return cpus[0], cpus[1], nil
}

// hosts are all machines but the router.
func (r *rig) hosts() []*testenv.Namespace {
	out := []*testenv.Namespace{r.net.Client}
	for _, h := range append(append([]*testenv.Host(nil), r.net.Nodes...), r.net.Backends...) {
		out = append(out, h.Namespace)
	}
	return out
}

// wire makes cables carry what a wire does: frames of at most the MTU, which the receiver's driver merges where it can.
// Otherwise packets of 64 KiB would pass from kernel to kernel, but not through an XDP program.
func (r *rig) wire() error {
	for _, ns := range r.hosts() {
		if err := ns.SetFeatures("eth0", map[string]bool{testenv.TCPv4Segs: false, testenv.SoftMerge: true}); err != nil {
			return err
		}
	}
	return nil
}

// tune gives the machines what anybody who wants many connections would.
func (r *rig) tune() error {
	for _, ns := range r.hosts() {
		if err := ns.SetSysctl("net.ipv4.ip_local_port_range", "1024 65535"); err != nil {
			return err
		}
	}
	return nil
}

// placeKernel gives the kernel's work of each machine to one core: by itself it would stay on that of the sender.
func (r *rig) placeKernel() error {
	place := func(ns *testenv.Namespace, core int) error {
		// Through a process, whose /sys is that of its namespace.
		_, err := ns.Run(10*time.Second, testenv.Cmd{Path: "sh", Args: []string{"-ec",
			`for f in /sys/class/net/*/queues/rx-*/rps_cpus; do echo ` + cpuMask(core) + ` >"$f"; done`}})
		return err
	}
	errs := place(r.net.Client, r.userCore)
	for _, b := range r.net.Backends {
		errs = errors.Join(errs, place(b.Namespace, r.userCore))
	}
	for _, n := range append([]*testenv.Host{r.net.Router}, r.net.Nodes...) {
		errs = errors.Join(errs, place(n.Namespace, r.systemCore))
	}
	return errs
}

// cpuMask is a core as the kernel's bit maps are written: in hexadecimal, with a comma between 32 bits.
func cpuMask(core int) string {
	return fmt.Sprintf("%x", 1<<(core%32)) + strings.Repeat(",00000000", core/32)
}

// translated is the address of a host in the network of a node that translates. A backend's replies from its address there go
// through that node.
func translated(node int, h *testenv.Host) netip.Addr {
	a := h.IPv4.As4()
	a[2] = byte(1 + node)
	return netip.AddrFrom4(a)
}

// routeReplies gives the backends such addresses, and the nodes.
func (r *rig) routeReplies() error {
	for _, node := range []int{sluiceNode, kernelNode} {
		gateway := r.net.Nodes[node]
		if err := gateway.AddAddr("eth0", netip.PrefixFrom(translated(node, gateway), 24)); err != nil {
			return err
		}
		for _, b := range r.net.Backends {
			own := netip.PrefixFrom(translated(node, b), 24)
			if err := b.AddAddr("eth0", own); err != nil {
				return err
			}
			link, err := b.Link("eth0")
			if err != nil {
				return err
			}
			table := 100 + node
			rule := netlink.NewRule()
			rule.Src, rule.Table, rule.Family = netlink.NewIPNet(own.Addr().AsSlice()), table, unix.AF_INET
			err = b.Netlink().RouteAdd(&netlink.Route{Table: table, LinkIndex: link.Attrs().Index, Gw: gateway.IPv4.AsSlice()})
			if err == nil {
				err = b.Netlink().RuleAdd(rule)
			}
			if err != nil {
				return fmt.Errorf("route replies of %s through %s: %w", b, gateway, err)
			}
		}
	}
	return nil
}

const backendConfig = `daemon off; user root; worker_processes 1; pid %[1]s/pid; error_log %[1]s/error.log;
events { worker_connections 8192; }
http { access_log off; sendfile on; keepalive_requests 1000000000; open_file_cache max=16;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u;
  scgi_temp_path %[1]s/s;
  server { listen %[2]d backlog=4096; root %[1]s/www; } }
`

// startBackend starts agent and servers of a backend, those that are installed.
func (r *rig) startBackend(i int) error {
	b := r.net.Backends[i]
	dir := r.path(fmt.Sprintf("backend%d", i+1))
	if err := os.MkdirAll(filepath.Join(dir, "www"), 0o755); err != nil {
		return err
	}
	args := []string{"run", "--interface", "eth0", "--state-dir", filepath.Join(dir, "agent")}
	for _, s := range r.systems {
		if s.onBackends {
			args = append(args, "--vip", s.vip.String())
		}
	}
	agent, err := r.launch(b.Namespace, r.userCore, filepath.Join(r.programs, "sluice-agent"), args...)
	if err != nil {
		return err
	}
	if err := agent.WaitOutput(10*time.Second, "taking packets"); err != nil {
		return err
	}
	for name, content := range map[string]string{
		"nginx.conf":     fmt.Sprintf(backendConfig, dir, webPort),
		"www/name":       backendName(i),
		"www/index.html": strings.Repeat("x", pageSize),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	if nginx.installed() {
		p, err := r.launch(b.Namespace, r.userCore, nginx.name, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"))
		if err != nil {
			return err
		}
		if err := p.WaitTCP(10*time.Second, netip.AddrPortFrom(b.IPv4, webPort)); err != nil {
			return err
		}
	}
	if iperf3.installed() {
		p, err := r.launch(b.Namespace, r.userCore, iperf3.name, "-s", "-p", fmt.Sprint(bulkPort), "--forceflush")
		if err != nil {
			return err
		}
		return p.WaitOutput(10*time.Second, "listening")
	}
	return nil
}

func backendName(i int) string { return fmt.Sprintf("web-%d", i+1) }

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

// launch starts a program that stays, on one core.
func (r *rig) launch(ns *testenv.Namespace, core int, path string, args ...string) (*testenv.Process, error) {
	return ns.Start(testenv.Cmd{Path: "taskset", Args: append([]string{"-c", fmt.Sprint(core), path}, args...), Dir: r.dir})
}

// run runs a client's program to its end and returns what it printed. It is killed when the context ends, or at the limit.
func (r *rig) run(ctx context.Context, limit time.Duration, path string, args ...string) (string, error) {
	p, err := r.launch(r.net.Client, r.userCore, path, args...)
	if err != nil {
		return "", err
	}
	select {
	case <-ctx.Done():
		return "", errors.Join(ctx.Err(), p.Kill())
	case <-p.Done():
		return p.Stdout(), p.Wait(limit) // which returns at once
	case <-time.After(limit):
		return "", errors.Join(p.Wait(0), p.Kill())
	}
}

// reach asks through a system until every backend has answered: so it is ready, it balances, and all neighbours are resolved.
func (r *rig) reach(ctx context.Context, s *running) error {
	transport := r.net.Client.Dialer().Transport()
	transport.DisableKeepAlives = true
	client := &http.Client{Transport: transport, Timeout: 2 * time.Second}
	seen := map[string]bool{}
	var last error
	for deadline := time.Now().Add(15 * time.Second); len(seen) < backends; {
		name, err := get(ctx, client, fmt.Sprintf("http://%v/name", s.web))
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case s.process != nil && s.process.Ended():
			return s.process.WaitUntil(time.Second, "it answered", func() error { return err })
		case time.Now().After(deadline):
			return fmt.Errorf("of %d backends %d answered through %v in 15 s: %w", backends, len(seen), s.web, last)
		case err != nil:
			last = err
			time.Sleep(20 * time.Millisecond)
		default:
			seen[name] = true
		}
	}
	return nil
}

func get(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(body), err
}
