//go:build linux

package users

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/sluice-lb/sluice/testenv"
)

// system is one way from client to backends.
type system struct {
	name       string
	vip        netip.Addr
	needs      []program
	onBackends bool // the VIP is an address of the backends
	start      func(r *rig, s *running) error
}

// reference is the system that the others are compared with.
const reference = "direct"

var systems = []system{
	{name: reference, vip: vip(0), onBackends: true, start: startDirect},
	{name: "sluice-ipip", vip: vip(1), onBackends: true, start: startSluice},
	{name: "sluice-nat", vip: vip(2), start: startSluice},
	{name: "haproxy", vip: vip(3), needs: []program{haproxy}, start: startHAProxy},
	{name: "nginx", vip: vip(4), needs: []program{nginx, nginxStream}, start: startNginx},
	{name: "nft", vip: vip(5), needs: []program{nft}, start: startNFT},
}

// running is a system in its rig.
type running struct {
	*system
	web     netip.AddrPort   // before nginx on all backends
	bulk    netip.AddrPort   // before iperf3 on the first one: its two connections belong together
	process *testenv.Process // nil: it is the kernel
}

func vip(i byte) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, 10 + i}) }

// start starts a system and waits until all backends answer through it. One that is not installed is not started.
func (r *rig) start(ctx context.Context, y *system) (*running, error) {
	s := &running{system: y, web: netip.AddrPortFrom(y.vip, webPort), bulk: netip.AddrPortFrom(y.vip, bulkPort)}
	if needs(y.needs) != "" {
		return s, nil
	}
	if err := y.start(r, s); err != nil {
		return nil, err
	}
	if !nginx.installed() {
		return s, nil
	}
	return s, r.reach(ctx, s)
}

// announce makes the router send a system's VIP to a node.
func (r *rig) announce(s *running, nodes ...*testenv.Host) error {
	return r.net.Announce([]netip.Addr{s.vip}, nodes...)
}

// startDirect has the router spread connections over the backends, as no balancer can do better.
func startDirect(r *rig, s *running) error {
	s.bulk = netip.AddrPortFrom(r.net.Backends[0].IPv4, bulkPort)
	return r.announce(s, r.net.Backends...)
}

// startSluice starts the daemon, which has the services of both of Sluice's systems; for the second one it announces the VIP alone.
func startSluice(r *rig, s *running) (err error) {
	node := r.net.Nodes[sluiceNode]
	if r.daemon == nil {
		if err := r.write("sluice.yaml", r.sluiceConfig()); err != nil {
			return err
		}
		program := filepath.Join(r.programs, "sluice")
		r.daemon, err = r.launch(node.Namespace, r.systemCore, program, "run", "--config", r.path("sluice.yaml"))
		if err != nil {
			return err
		}
	}
	s.process = r.daemon
	return r.announce(s, node)
}

// sluiceConfig is the daemon's configuration. Without checks, all backends count as up.
func (r *rig) sluiceConfig() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Written by sluice bench tcp.
node: bench
state_dir: %[1]s/state
control: {socket: %[1]s/control.sock}
interfaces: [{name: eth0, mode: auto, queues: all}]
workers: 1
cpus: "%[2]d"
flows: 1M
metrics: {listen: 127.0.0.1:9545}
without_daemon: {for: 0s}
services:
`, r.dir, r.systemCore)
	for _, s := range r.systems {
		forward, ok := strings.CutPrefix(s.name, "sluice-")
		if !ok {
			continue
		}
		for _, service := range []struct {
			name     string
			port     int
			backends []*testenv.Host
		}{{"web", webPort, r.net.Backends}, {"bulk", bulkPort, r.net.Backends[:1]}} {
			fmt.Fprintf(&b, "  - name: %s-%s\n    vip: %v\n    protocol: tcp\n    ports: %d\n    forward: %s\n    backends:\n",
				service.name, forward, s.vip, service.port, forward)
			for j, host := range service.backends {
				address := host.IPv4
				if forward == "nat" {
					address = translated(sluiceNode, host)
				}
				fmt.Fprintf(&b, "      - {name: %s, address: %v}\n", backendName(j), address)
			}
		}
	}
	return b.String()
}

// haproxyConfig is in TCP mode, with one thread, for the one core.
const haproxyConfig = `global
  nbthread 1
  maxconn 8192
defaults
  mode tcp
  timeout connect 2s
  timeout client 30s
  timeout server 30s
  maxconn 8192
`

func startHAProxy(r *rig, s *running) (err error) {
	var b strings.Builder
	b.WriteString(haproxyConfig)
	for _, l := range r.listeners(s) {
		fmt.Fprintf(&b, "listen %s\n  bind %v backlog 4096\n  balance roundrobin\n", l.name, l.at)
		for i, to := range l.to {
			fmt.Fprintf(&b, "  server %s %v\n", backendName(i), to)
		}
	}
	if err := r.write("haproxy.cfg", b.String()); err != nil {
		return err
	}
	return r.startProxy(s, haproxy.name, "-db", "-f", r.path("haproxy.cfg"))
}

// nginxConfig is a single process, like HAProxy's.
const nginxConfig = `load_module %[2]s;
daemon off; master_process off; user root; pid %[1]s/nginx.pid; error_log %[1]s/nginx-error.log;
worker_rlimit_nofile 32768;
events { worker_connections 16384; }
stream {
`

func startNginx(r *rig, s *running) (err error) {
	var b strings.Builder
	fmt.Fprintf(&b, nginxConfig, r.dir, nginxStream.name)
	for _, l := range r.listeners(s) {
		fmt.Fprintf(&b, "  upstream %s {\n", l.name)
		for _, to := range l.to {
			fmt.Fprintf(&b, "    server %v;\n", to)
		}
		fmt.Fprintf(&b, "  }\n  server { listen %v backlog=4096; tcp_nodelay on; proxy_pass %s; }\n", l.at, l.name)
	}
	b.WriteString("}\n")
	if err := r.write("nginx-stream.conf", b.String()); err != nil {
		return err
	}
	return r.startProxy(s, nginx.name, "-p", r.dir, "-c", r.path("nginx-stream.conf"))
}

// listener is a port of a proxy, and what is behind it.
type listener struct {
	name string
	at   netip.AddrPort
	to   []netip.AddrPort
}

func (r *rig) listeners(s *running) []listener {
	web, bulk := listener{name: "web", at: s.web}, listener{name: "bulk", at: s.bulk}
	for _, b := range r.net.Backends {
		web.to = append(web.to, netip.AddrPortFrom(b.IPv4, webPort))
	}
	bulk.to = []netip.AddrPort{netip.AddrPortFrom(r.net.Backends[0].IPv4, bulkPort)}
	return []listener{web, bulk}
}

// startProxy starts a program that takes connections to the VIP itself.
func (r *rig) startProxy(s *running, path string, args ...string) (err error) {
	node := r.net.Nodes[proxyNode]
	if err := node.AddAddr("lo", netip.PrefixFrom(s.vip, 32)); err != nil {
		return err
	}
	if s.process, err = r.launch(node.Namespace, r.systemCore, path, args...); err != nil {
		return err
	}
	return r.announce(s, node)
}

// startNFT has the kernel translate, connection by connection, to backends in turn.
func startNFT(r *rig, s *running) error {
	node := r.net.Nodes[kernelNode]
	var turns []string
	for i, b := range r.net.Backends {
		turns = append(turns, fmt.Sprintf("%d : %v", i, translated(kernelNode, b)))
	}
	rules := fmt.Sprintf(`table ip bench {
  chain prerouting {
    type nat hook prerouting priority dstnat;
    ip daddr %[1]v tcp dport %[2]d dnat to numgen inc mod %[3]d map { %[4]s }
    ip daddr %[1]v tcp dport %[5]d dnat to %[6]v
  }
}
`, s.vip, webPort, backends, strings.Join(turns, ", "), bulkPort, translated(kernelNode, r.net.Backends[0]))
	if err := r.write("nft.conf", rules); err != nil {
		return err
	}
	if err := node.SetSysctl("net.ipv4.ip_forward", "1"); err != nil {
		return err
	}
	p, err := r.launch(node.Namespace, r.systemCore, nft.name, "-f", r.path("nft.conf"))
	if err != nil {
		return err
	}
	if err := p.Wait(startTime); err != nil {
		return err
	}
	return r.announce(s, node)
}

// write writes a configuration file.
func (r *rig) write(name, text string) error {
	return os.WriteFile(r.path(name), []byte(text), 0o600)
}
