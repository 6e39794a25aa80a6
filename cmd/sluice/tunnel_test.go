//go:build linux

package main

import (
	"bytes"
	"context"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/healthd/tunnel"
)

// Beside a daemon, whose XDP program is on the interface and whose blackhole routes are in the table, connections through
// tunnels reach each backend, and no packet of theirs is the daemon's.
func TestTunnelsBesideTheDaemon(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 2)
	s.tunnel = "{source_ipv4: 10.7.0.0/16}"
	s.up(s.service(testVIP4, "tcp", "7000", "ipip", false), s.service(testVIP6, "tcp", "7000", "gue", false),
		s.service(testVIP4, "tcp", "7001", "l2", false))
	s.echoServers(7000)
	s.echoServers(7001)
	node := s.nodes[0]
	var d *tunnel.Dialer
	if err := node.Do(func() (err error) {
		d, err = tunnel.New()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	sent := bytes.Repeat([]byte("sluice"), 10000)
	for _, b := range s.backends {
		for _, c := range []struct {
			port uint16
			path tunnel.Path
		}{
			{7000, tunnel.Path{Forward: tunnel.IPIP, VIP: testVIP4, Backend: b.IPv4, Source: netip.MustParsePrefix("10.7.0.0/16")}},
			{7000, tunnel.Path{Forward: tunnel.GUE, VIP: testVIP6, Backend: b.IPv6, GUEPort: 6080}},
			{7001, tunnel.Path{Forward: tunnel.L2, VIP: testVIP4, Backend: b.IPv4}},
		} {
			conn, err := d.DialContext(ctx, "tcp", c.path, c.port)
			if err != nil {
				t.Error(err)
				continue
			}
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			go conn.Write(sent)
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%s to %s: what comes back is not what was sent, %v", c.path.Forward, b.name, err)
			}
			conn.Close()
		}
	}
	for _, w := range s.status(node).Traffic.Workers {
		if w.Received != 0 {
			t.Errorf("worker %d received %d packets", w.ID, w.Received)
		}
	}
	s.down()
}
