//go:build linux && health

package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/testenv"
)

// haproxy is HAProxy as a peer: on a machine of its own on the LAN, before the same backends, with checks of the same kind and pace.
// It ends clients' connections and makes its own, so it may try another backend where Sluice's client has to.
type haproxy struct {
	host   *testenv.Host
	socket string
	port   int
}

// haproxyConfig is in TCP mode. What it has no word for here is HAProxy's default: three retries, a second apart.
const haproxyConfig = `global
  maxconn 8192
  stats socket %[1]s mode 600 level user
defaults
  mode tcp
  timeout connect 2s
  timeout client 30s
  timeout server 30s
  timeout check %[2]v
  retries 3
  option redispatch
  maxconn 8192
backend web
  balance roundrobin
  option httpchk GET /name
  default-server check inter %[3]v fastinter %[4]v rise %[5]d fall %[6]d
`

// startHAProxy starts it on a host, on a port, before that port of all backends.
func (s *system) startHAProxy(host *testenv.Host, port int, p checkPace) *haproxy {
	s.t.Helper()
	h := &haproxy{host: host, socket: s.path("haproxy.sock"), port: port}
	var config strings.Builder
	fmt.Fprintf(&config, haproxyConfig, h.socket, p.timeout.Milliseconds(), p.interval.Milliseconds(), p.fast.Milliseconds(), p.rise, p.fall)
	for _, b := range s.backends {
		fmt.Fprintf(&config, "  server %s %v\n", b.name, netip.AddrPortFrom(b.IPv4, uint16(port)))
	}
	fmt.Fprintf(&config, "frontend front\n  bind %v\n  default_backend web\n", h.address())
	must(s.t, os.WriteFile(s.path("haproxy.cfg"), []byte(config.String()), 0o644))
	process, err := host.Start(testenv.Cmd{Path: "haproxy", Args: []string{"-db", "-f", s.path("haproxy.cfg")}})
	must(s.t, err)
	must(s.t, process.WaitTCP(10*time.Second, h.address()))
	return h
}

// address is where clients connect.
func (h *haproxy) address() netip.AddrPort { return netip.AddrPortFrom(h.host.IPv4, uint16(h.port)) }

// takes is which backends it takes for up, in the words of Sluice.
func (h *haproxy) takes() (map[control.BackendKey]string, error) {
	conn, err := net.DialTimeout("unix", h.socket, time.Second)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := io.WriteString(conn, "show stat\n"); err != nil {
		return nil, err
	}
	rows, err := csv.NewReader(conn).ReadAll()
	if err != nil || len(rows) == 0 {
		return nil, errors.Join(errors.New("HAProxy's statistics"), err)
	}
	const name, server = 0, 1
	status := 0
	for rows[0][status] != "status" {
		status++
	}
	out := map[control.BackendKey]string{}
	for _, r := range rows {
		if r[name] == "web" && r[server] != "BACKEND" {
			out[control.BackendKey{Service: systemHAProxy, Backend: r[server]}] = map[bool]string{true: "up", false: "down"}[strings.HasPrefix(r[status], "UP") || r[status] == "no check"]
		}
	}
	return out, nil
}
